//! What must be there before the operator can work: its CustomResourceDefinitions. Client I/O; waits with a deadline.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::runtime::conditions::is_crd_established;
use kube::runtime::wait::Condition;
use kube::{Api, Client};
use std::time::Duration;
use tokio::time::Instant;

/// Both are applied together with the operator; an API server under load may take a while to establish them.
const DEADLINE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_secs(1);
/// The definitions of both kinds.
pub const DEFINITIONS: [&str; 2] = ["registrymirrors.breakwater.dev", "mirrornodes.breakwater.dev"];

/// Why the operator cannot start.
#[derive(Debug, thiserror::Error)]
pub enum NotReady {
    /// A definition is not there.
    #[error("CustomResourceDefinition {name} is not established after {}s; apply Breakwater's CRDs", DEADLINE.as_secs())]
    Missing {
        /// Its name.
        name: &'static str,
    },
    /// A definition cannot be read.
    #[error("cannot read CustomResourceDefinition {name} for {}s", DEADLINE.as_secs())]
    Read {
        /// Its name.
        name: &'static str,
        /// Why not.
        #[source]
        source: kube::Error,
    },
}

/// Waits until both definitions are established. Asks by name instead of watching, because the operator may read these two alone.
///
/// # Errors
/// They are not within the deadline.
pub async fn definitions_established(client: &Client) -> Result<(), NotReady> {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    let deadline = Instant::now() + DEADLINE;
    for name in DEFINITIONS {
        loop {
            let failure = match tokio::time::timeout_at(deadline, api.get_opt(name)).await {
                Ok(Ok(definition)) if is_crd_established().matches_object(definition.as_ref()) => break,
                Ok(Ok(_)) | Err(_) => NotReady::Missing { name },
                Ok(Err(source)) => NotReady::Read { name, source },
            };
            if Instant::now() + PAUSE > deadline {
                return Err(failure);
            }
            tracing::debug!(error = %failure, "waiting for the API");
            tokio::time::sleep(PAUSE).await;
        }
    }
    Ok(())
}
