//! Name resolution for the HTTP client: one look-up per name at a time, the last known addresses while DNS fails, and
//! the address check on what will really be connected to.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use super::address::Boundary;
use crate::{
    background::Background,
    coalesce::Coalesce,
    metrics::{Metrics, Phase},
};

/// After this long the last known addresses are used; the look-up goes on.
const PATIENCE: Duration = Duration::from_millis(1500);
const MOST_NAMES: usize = 1024;

/// Why no address came out.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unresolved {
    /// DNS has no answer, nor had it one before.
    #[error("name cannot be resolved")]
    Dns,
    /// There are addresses, none of which upstream may send us to.
    #[error("name leads to forbidden addresses only")]
    Forbidden,
}

/// Look-ups shared by all clients.
pub(super) struct LookUps {
    running: Coalesce<String, Option<Vec<SocketAddr>>>,
    known: Mutex<HashMap<String, Vec<SocketAddr>>>,
}

impl LookUps {
    pub(super) fn new(background: Background) -> Arc<Self> {
        Arc::new(Self { running: Coalesce::new(background), known: Mutex::default() })
    }

    async fn addresses(&self, name: &str) -> Option<Vec<SocketAddr>> {
        let host = name.to_owned();
        // getaddrinfo blocks a thread for as long as DNS hangs, so there is never more than one per name.
        let waiter = self
            .running
            .join(host.clone(), || async move { tokio::net::lookup_host((host, 0)).await.ok().map(Iterator::collect) });
        let found = tokio::time::timeout(PATIENCE, waiter.result()).await.ok().flatten().flatten();
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        match found.filter(|addresses: &Vec<_>| !addresses.is_empty()) {
            Some(addresses) => {
                if known.len() >= MOST_NAMES {
                    known.clear();
                }
                known.insert(name.to_owned(), addresses.clone());
                Some(addresses)
            }
            None => known.get(name).cloned(),
        }
    }
}

/// A resolver for reqwest. With a boundary it yields only addresses that upstream may send us to.
#[derive(Clone)]
pub(super) struct Resolver {
    pub(super) look_ups: Arc<LookUps>,
    pub(super) boundary: Option<Arc<Boundary>>,
    pub(super) metrics: Arc<Metrics>,
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let this = self.clone();
        Box::pin(async move {
            let found = this.metrics.time(Phase::resolve, this.look_ups.addresses(name.as_str())).await;
            let mut addresses = found.ok_or(Unresolved::Dns)?;
            if let Some(boundary) = &this.boundary {
                addresses.retain(|address| boundary.allows(address.ip()));
                if addresses.is_empty() {
                    return Err(Unresolved::Forbidden.into());
                }
            }
            Ok(Box::new(addresses.into_iter()) as Addrs)
        })
    }
}
