//! What the three ports share: content, accounts, faults in force and the record of requests.

use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use super::access::Access;
use super::answer::Store;
use super::fault::{Fault, On, Rules};
use super::record::Recorded;

/// The part a port plays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The registry itself.
    Registry,
    /// Its token service.
    Tokens,
    /// Where its blobs are redirected to.
    Cdn,
}

/// Where the three ports are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Addresses {
    pub(super) registry: SocketAddr,
    pub(super) tokens: SocketAddr,
    pub(super) cdn: SocketAddr,
}

/// How a port treats connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gate {
    /// They are accepted.
    Open,
    /// They are refused, and those that were open are closed.
    Closed,
    /// They come about no more: nothing answers their first packet.
    BlackHole,
}

/// A port's switch: what is wanted, and what is so.
#[derive(Debug)]
pub(super) struct Door {
    pub(super) wanted: watch::Sender<Gate>,
    pub(super) actual: watch::Sender<Gate>,
}

impl Default for Door {
    fn default() -> Self {
        Self { wanted: watch::Sender::new(Gate::Open), actual: watch::Sender::new(Gate::Closed) }
    }
}

impl Door {
    async fn set(&self, gate: Gate) {
        self.wanted.send_replace(gate);
        let mut actual = self.actual.subscribe();
        let settled = actual.wait_for(|actual| *actual == gate);
        let settled = tokio::time::timeout(Duration::from_secs(10), settled).await;
        assert!(settled.is_ok(), "the port did not open or close in time");
    }
}

/// Shared by the ports and by the test.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) addresses: Addresses,
    pub(super) log: watch::Sender<Vec<Recorded>>,
    /// Counts the healings: a stalled body goes on when it changes.
    pub(super) healings: watch::Sender<u64>,
    doors: [Door; 3],
    store: Mutex<Store>,
    access: Mutex<Access>,
    rules: Mutex<Rules>,
}

impl Shared {
    pub(super) fn new(addresses: Addresses) -> Self {
        Self {
            addresses,
            log: watch::Sender::new(Vec::new()),
            healings: watch::Sender::new(0),
            doors: Default::default(),
            store: Mutex::default(),
            access: Mutex::new(Access::new(addresses.tokens)),
            rules: Mutex::default(),
        }
    }

    pub(super) fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn access(&self) -> MutexGuard<'_, Access> {
        self.access.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn rules(&self) -> MutexGuard<'_, Rules> {
        self.rules.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn door(&self, role: Role) -> &Door {
        &self.doors[role as usize]
    }

    pub(super) async fn add_fault(&self, on: On, fault: Fault, times: Option<usize>) {
        let gate = match fault {
            Fault::Refuse => Gate::Closed,
            Fault::BlackHole => Gate::BlackHole,
            _ => return self.rules().add(on, fault, times),
        };
        if gate == Gate::BlackHole {
            self.rules().add(on.clone(), Fault::Silence, None);
        }
        for role in [Role::Registry, Role::Tokens, Role::Cdn] {
            if on.covers(role) {
                self.door(role).set(gate).await;
            }
        }
    }

    pub(super) async fn heal(&self) {
        self.rules().clear();
        self.healings.send_modify(|healings| *healings += 1);
        for door in &self.doors {
            door.set(Gate::Open).await;
        }
    }

    /// Writes a request down and gives its place in the record.
    pub(super) fn record(&self, request: Recorded) -> usize {
        let mut place = 0;
        self.log.send_modify(|log| {
            place = log.len();
            log.push(request);
        });
        place
    }

    pub(super) fn count(&self, place: usize, bytes: u64) {
        self.log.send_modify(|log| log[place].bytes_sent += bytes);
    }
}
