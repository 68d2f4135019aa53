//! What flights leave behind when they fail: why, so that the next client is not made to wait for the same; and who sent
//! wrong bytes, so that the next flight asks others first. Does no I/O.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use crate::{digest::Digest, failure::Failure, reference::RepositoryName, source::Source};

/// A failure answers for this long, so that a client that comes back at once goes on to upstream.
const REMEMBER_FAILURE: Duration = Duration::from_secs(5);
/// A source of wrong bytes is asked last for this long.
const REMEMBER_LIAR: Duration = Duration::from_secs(600);
const MOST: usize = 10_000;

/// The memory of all flights.
#[derive(Default)]
pub(super) struct Memory {
    failures: Fading<(RepositoryName, Digest), Failure>,
    liars: Fading<Digest, Vec<Source>>,
}

impl Memory {
    /// Why a flight has just failed.
    pub(super) fn failure(&self, repository: &RepositoryName, digest: &Digest) -> Option<Failure> {
        self.failures.get(&(repository.clone(), digest.clone()), REMEMBER_FAILURE)
    }

    /// A flight has failed.
    pub(super) fn failed(&self, repository: RepositoryName, digest: Digest, failure: Failure) {
        self.failures.put((repository, digest), failure, REMEMBER_FAILURE);
    }

    /// Who sent wrong bytes for this digest.
    pub(super) fn liars(&self, digest: &Digest) -> Vec<Source> {
        self.liars.get(digest, REMEMBER_LIAR).unwrap_or_default()
    }

    /// These sent wrong bytes.
    pub(super) fn lied(&self, digest: Digest, sources: Vec<Source>) {
        self.liars.put(digest, sources, REMEMBER_LIAR);
    }
}

/// Values that are good for some time.
struct Fading<K, V>(Mutex<HashMap<K, (Instant, V)>>);

impl<K, V> Default for Fading<K, V> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Eq + Hash, V: Clone> Fading<K, V> {
    fn get(&self, key: &K, life: Duration) -> Option<V> {
        let values = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        values.get(key).filter(|(at, _)| at.elapsed() < life).map(|(_, value)| value.clone())
    }

    fn put(&self, key: K, value: V, life: Duration) {
        let mut values = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if values.len() >= MOST {
            values.retain(|_, (at, _)| at.elapsed() < life);
            if values.len() >= MOST {
                values.clear();
            }
        }
        values.insert(key, (Instant::now(), value));
    }
}
