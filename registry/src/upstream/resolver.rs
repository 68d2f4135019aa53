//! Name resolution for the HTTP client: one look-up per name at a time, the last known addresses while DNS fails, and
//! the address check on what will really be connected to.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use futures::future::BoxFuture;
use hyper_util::client::legacy::connect::dns::Name;
use tower::Service;

use super::address::Boundary;
use crate::{
    background::Background,
    coalesce::Coalesce,
    metrics::{Metrics, Phase},
};

/// For DNS while upstream's addresses are known.
const PATIENCE: Duration = Duration::from_millis(1500);
/// Look-ups of a name that begin in the same slot are one.
const SLOT: Duration = Duration::from_secs(1);
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
pub(crate) struct LookUps {
    running: Coalesce<(String, u64), Option<Vec<SocketAddr>>>,
    known: Arc<Mutex<HashMap<String, Vec<SocketAddr>>>>,
    began: Instant,
}

impl LookUps {
    pub(crate) fn new(background: Background) -> Arc<Self> {
        Arc::new(Self { running: Coalesce::new(background), known: Arc::default(), began: Instant::now() })
    }

    /// After `patience` the last known addresses are used; the look-up goes on.
    pub(crate) async fn addresses(&self, name: &str, patience: Duration) -> Option<Vec<SocketAddr>> {
        // getaddrinfo blocks a thread for as long as DNS hangs, so there is one per name and slot of time: few threads, and
        // what DNS has swallowed does not delay who asks after its return.
        let slot = self.began.elapsed().as_millis() / SLOT.as_millis();
        let key = (name.to_owned(), u64::try_from(slot).unwrap_or(u64::MAX));
        let (host, known) = (name.to_owned(), Arc::clone(&self.known));
        let waiter = self.running.join(key, || async move {
            let found: Vec<_> = tokio::net::lookup_host((host.as_str(), 0)).await.ok()?.collect();
            remember(&known, host, &found);
            (!found.is_empty()).then_some(found)
        });
        let found = tokio::time::timeout(patience, waiter.result()).await.ok().flatten().flatten();
        found.or_else(|| self.known.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned())
    }
}

fn remember(known: &Mutex<HashMap<String, Vec<SocketAddr>>>, name: String, found: &[SocketAddr]) {
    let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
    if known.len() >= MOST_NAMES {
        known.clear();
    }
    if !found.is_empty() {
        known.insert(name, found.to_vec());
    }
}

/// A resolver for connections. With a boundary it yields only addresses that upstream may send us to.
#[derive(Clone)]
pub(super) struct Resolver {
    pub(super) look_ups: Arc<LookUps>,
    pub(super) boundary: Option<Arc<Boundary>>,
    pub(super) metrics: Arc<Metrics>,
}

impl Resolver {
    async fn resolve(self, name: Name) -> Result<std::vec::IntoIter<SocketAddr>, Unresolved> {
        let found = self.metrics.time(Phase::resolve, self.look_ups.addresses(name.as_str(), PATIENCE)).await;
        let mut addresses = found.ok_or(Unresolved::Dns)?;
        if let Some(boundary) = &self.boundary {
            addresses.retain(|address| boundary.allows(address.ip()));
            if addresses.is_empty() {
                return Err(Unresolved::Forbidden);
            }
        }
        Ok(addresses.into_iter())
    }
}

impl Service<Name> for Resolver {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = Unresolved;
    type Future = BoxFuture<'static, Result<Self::Response, Unresolved>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Unresolved>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        Box::pin(self.clone().resolve(name))
    }
}
