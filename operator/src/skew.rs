//! Definitions of an older version than this operator, as when they were not upgraded with it: says what they lack until they are replaced.
//! Client I/O.

use crate::metrics::Metrics;
use crate::startup::DEFINITIONS;
use breakwater_crds::{Lacking, RegistryMirror, yaml};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{Api, Client, CustomResourceExt};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

const LOOK_EVERY: Duration = Duration::from_secs(30);
const CALL_DEADLINE: Duration = Duration::from_secs(10);
/// What to do about it.
pub const MEND: &str = "apply the definitions of this version: config/crd, or the chart";

/// What the definition of mirrors lacks, as everybody but the [`Skew`] sees it.
pub type Lacks = watch::Receiver<Lacking>;

/// Looks at the definitions while they lack something.
pub struct Skew {
    definitions: Api<CustomResourceDefinition>,
    metrics: Arc<Metrics>,
    publish: watch::Sender<Lacking>,
    /// What was logged last, by definition.
    told: HashMap<&'static str, Lacking>,
}

impl Skew {
    /// One that has not looked yet, and the place where it publishes.
    #[must_use]
    pub fn new(client: &Client, metrics: Arc<Metrics>) -> (Self, Lacks) {
        let (publish, lacks) = watch::channel(Lacking::default());
        (Self { definitions: Api::all(client.clone()), metrics, publish, told: HashMap::new() }, lacks)
    }

    /// Looks again and again while that is worth it, and never returns.
    pub async fn keep(mut self, mut look_again: bool) {
        while look_again {
            tokio::time::sleep(LOOK_EVERY).await;
            look_again = self.look().await;
        }
        // They are not made older again under an operator that runs.
        std::future::pending::<()>().await;
    }

    /// Looks once; says whether it is worth another look.
    pub async fn look(&mut self) -> bool {
        let mut look_again = false;
        for (name, ours) in DEFINITIONS.into_iter().zip(yaml::definitions()) {
            let served = tokio::time::timeout(CALL_DEADLINE, self.definitions.get(name)).await;
            let Ok(Ok(served)) = served else {
                tracing::debug!(definition = name, "cannot tell whether the definition is of this version");
                look_again = true;
                continue;
            };
            let lacking = Lacking::of(&ours, &served);
            look_again |= !lacking.is_empty();
            self.tell(name, &lacking);
            if name == RegistryMirror::crd_name() {
                self.publish.send_replace(lacking);
            }
        }
        look_again
    }

    fn tell(&mut self, name: &'static str, lacking: &Lacking) {
        self.metrics.definition_lacks(name, lacking.len());
        let before = self.told.insert(name, lacking.clone()).unwrap_or_default();
        match before == *lacking {
            true => {}
            false if lacking.is_empty() => tracing::info!(definition = name, "the definition is of this version now"),
            false => {
                tracing::warn!(definition = name, %lacking, "the definition is older than this operator, what it lacks is lost; {MEND}");
            }
        }
    }
}
