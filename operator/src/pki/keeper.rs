//! Keeps the authority's Secret and the agents' copy of its public part. Client I/O; the only writer of both.
//!
//! The authority is created and, in good time before its end, followed by another ([`succession`]). It is never overwritten
//! otherwise: not on a read error, not on a conflict, not when it is damaged. If the Secret vanishes while we know it, the same
//! authority is put back, so that no cache and no agent notices.

use super::{Authority, AuthorityInvalid, IssueFailed, SecretData, succession, text, value};
use breakwater_crds::names::{
    CA_CERTIFICATE_KEY, CA_NEXT_PRIVATE_KEY, CA_SECRET, LABEL_MANAGED_BY, LABEL_NAME, MANAGER, RELAY_KEY, RELAY_SECRET,
};
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, watch};

/// Also how soon a deleted copy of the agents is put back: the operator may not watch their namespace's Secrets.
const LOOK_EVERY: Duration = Duration::from_secs(60);
const RETRY_AFTER: Duration = Duration::from_secs(5);
const CALL_DEADLINE: Duration = Duration::from_secs(10);

/// Why there is no authority right now.
#[derive(Debug, thiserror::Error)]
pub enum NoAuthority {
    /// The Secret is damaged; a person must mend it.
    #[error("Secret {CA_SECRET} {0}; restore it from a backup, or delete it so that a new one is made")]
    Damaged(#[source] AuthorityInvalid),
    /// The Secret could not be read or created.
    #[error("Secret {CA_SECRET} cannot be read or created")]
    Api(#[source] kube::Error),
    /// The API server did not answer in time.
    #[error("Secret {CA_SECRET} cannot be read: the API server does not answer")]
    Timeout,
    /// No authority could be made.
    #[error("no certificate authority can be made")]
    Issue(#[source] IssueFailed),
    /// The API server does not say what time it is.
    #[error("the API server gives no creation time")]
    NoClock,
    /// Nobody has looked yet.
    #[error("Secret {CA_SECRET} has not been read yet")]
    NotYet,
}

/// The authority as everybody but the keeper sees it.
pub type Trust = watch::Receiver<Result<Arc<Authority>, Arc<NoAuthority>>>;

/// The task's state.
pub struct Keeper {
    secrets: Api<Secret>,
    relay: Api<Secret>,
    known: Option<SecretData>,
    publish: watch::Sender<Result<Arc<Authority>, Arc<NoAuthority>>>,
}

impl Keeper {
    /// A keeper and the place where it publishes.
    #[must_use]
    pub fn new(client: &Client, namespace: &str, nodes_namespace: &str) -> (Self, Trust) {
        let (publish, trust) = watch::channel(Err(Arc::new(NoAuthority::NotYet)));
        let secrets = Api::namespaced(client.clone(), namespace);
        let relay = Api::namespaced(client.clone(), nodes_namespace);
        (Self { secrets, relay, known: None, publish }, trust)
    }

    /// Looks after both Secrets until it is dropped; `touched` says that the authority's Secret changed.
    pub async fn run(mut self, touched: Arc<Notify>) {
        loop {
            let pause = match self.look().await {
                Ok(data) => {
                    let copied = self.copy_for_agents(&data).await;
                    self.known = Some(data);
                    if copied { LOOK_EVERY } else { RETRY_AFTER }
                }
                Err(error) => {
                    let damaged = matches!(error, NoAuthority::Damaged(_));
                    tracing::error!(error = %crate::error_chain(&error), "no certificate authority; caches that run go on");
                    // An API server that does not answer takes nothing away from the authority that we know.
                    if damaged || self.publish.borrow().is_err() {
                        let _ = self.publish.send_replace(Err(Arc::new(error)));
                    }
                    if damaged { LOOK_EVERY } else { RETRY_AFTER }
                }
            };
            let _ = tokio::time::timeout(pause, touched.notified()).await;
        }
    }

    /// Reads or creates the authority and publishes it.
    async fn look(&mut self) -> Result<SecretData, NoAuthority> {
        let secret = match call(self.secrets.get_opt(CA_SECRET)).await? {
            Some(secret) => secret,
            None => self.create().await?,
        };
        let data = self.advanced(secret).await;
        let authority = Authority::parse(&data, jiff::Timestamp::now()).map_err(NoAuthority::Damaged)?;
        self.publish.send_if_modified(|current| match current {
            Ok(current) if same(current, &authority) => false,
            _ => {
                *current = Ok(Arc::new(authority));
                true
            }
        });
        Ok(data)
    }

    async fn create(&self) -> Result<Secret, NoAuthority> {
        let data = match &self.known {
            Some(known) => known.clone(),
            // By the API server's clock: one that begins in the future would be trusted by no node until then, and it is never replaced.
            None => Authority::create(self.servers_clock().await?).map_err(NoAuthority::Issue)?,
        };
        let secret = Secret { data: Some(data), ..named(CA_SECRET) };
        match call(self.secrets.create(&PostParams::default(), &secret)).await {
            Ok(created) => {
                tracing::info!(secret = CA_SECRET, "certificate authority stored");
                Ok(created)
            }
            // Somebody was faster: theirs is the authority.
            Err(NoAuthority::Api(kube::Error::Api(status))) if status.is_already_exists() => {
                call(self.secrets.get(CA_SECRET)).await
            }
            Err(error) => Err(error),
        }
    }

    /// The Secret's data after the step of a succession that is due, if one is. Without it the present authority still does.
    async fn advanced(&self, secret: Secret) -> SecretData {
        match self.advance(&secret).await {
            Ok(Some(next)) => next,
            Ok(None) => secret.data.unwrap_or_default(),
            Err(error) => {
                tracing::warn!(error = %crate::error_chain(&error), "the certificate authority's successor has to wait");
                secret.data.unwrap_or_default()
            }
        }
    }

    async fn advance(&self, secret: &Secret) -> Result<Option<SecretData>, NoAuthority> {
        let data = secret.data.clone().unwrap_or_default();
        let due = |now| succession::due(&data, now).map_err(NoAuthority::Issue);
        if due(jiff::Timestamp::now())?.is_none() {
            return Ok(None);
        }
        // Ours may be wrong, and all nodes have to agree on who is trusted from when on.
        let Some(next) = due(self.servers_clock().await?)? else {
            tracing::warn!("this node's clock is not the API server's: the certificate authority is far from its end");
            return Ok(None);
        };
        let mut values = serde_json::json!(next);
        if !next.contains_key(CA_NEXT_PRIVATE_KEY) {
            values[CA_NEXT_PRIVATE_KEY] = serde_json::Value::Null;
        }
        // With the version, so that of two operators one takes the step.
        let version = &secret.metadata.resource_version;
        let patch = Patch::Merge(serde_json::json!({"metadata": {"resourceVersion": version}, "data": values}));
        let stored = call(self.secrets.patch(CA_SECRET, &PatchParams::default(), &patch)).await?;
        tracing::info!(secret = CA_SECRET, "succession of the certificate authority: one step taken");
        Ok(stored.data)
    }

    /// What time it is for the API server: it stamps what it is asked to make, also where it does not keep it.
    async fn servers_clock(&self) -> Result<jiff::Timestamp, NoAuthority> {
        let metadata = ObjectMeta { generate_name: Some("breakwater-clock-".to_owned()), ..ObjectMeta::default() };
        let params = PostParams { dry_run: true, ..PostParams::default() };
        let stamped = call(self.secrets.create(&params, &Secret { metadata, ..Secret::default() })).await?;
        stamped.metadata.creation_timestamp.map(|time| time.0).ok_or(NoAuthority::NoClock)
    }

    /// Gives the agents what they need to trust a cache and to be trusted by it; says whether that worked.
    async fn copy_for_agents(&self, authority: &SecretData) -> bool {
        let part = |key: &str| text(authority, key).map(|text| (key.to_owned(), value(text)));
        let wanted: SecretData = [CA_CERTIFICATE_KEY, RELAY_KEY].into_iter().filter_map(part).collect();
        match call(self.relay.get_opt(RELAY_SECRET)).await {
            Ok(Some(secret)) if holds(&secret, &wanted) => return true,
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(secret = RELAY_SECRET, error = %crate::error_chain(&error), "cannot read the agents' Secret");
                return false;
            }
        }
        let secret = Secret { data: Some(wanted), ..named(RELAY_SECRET) };
        match call(self.relay.patch(RELAY_SECRET, &PatchParams::apply(MANAGER).force(), &Patch::Apply(&secret))).await {
            Ok(_) => {
                tracing::info!(secret = RELAY_SECRET, "agents' Secret written");
                true
            }
            Err(error) => {
                tracing::warn!(secret = RELAY_SECRET, error = %crate::error_chain(&error), "cannot write the agents' Secret");
                false
            }
        }
    }
}

fn same(a: &Authority, b: &Authority) -> bool {
    a.bundle() == b.bundle() && a.relay_key() == b.relay_key() && a.certificate() == b.certificate()
}

/// Whether the Secret has these values; what others added to it is theirs.
fn holds(secret: &Secret, wanted: &SecretData) -> bool {
    let data = secret.data.as_ref();
    wanted.iter().all(|(key, value)| data.and_then(|data| data.get(key)) == Some(value))
}

fn named(name: &str) -> Secret {
    let labels = BTreeMap::from([
        (LABEL_NAME.to_owned(), "breakwater".to_owned()),
        (LABEL_MANAGED_BY.to_owned(), MANAGER.to_owned()),
    ]);
    let metadata = ObjectMeta { name: Some(name.to_owned()), labels: Some(labels), ..ObjectMeta::default() };
    Secret { metadata, ..Secret::default() }
}

async fn call<T>(request: impl Future<Output = Result<T, kube::Error>>) -> Result<T, NoAuthority> {
    match tokio::time::timeout(CALL_DEADLINE, request).await {
        Ok(answer) => answer.map_err(NoAuthority::Api),
        Err(_) => Err(NoAuthority::Timeout),
    }
}
