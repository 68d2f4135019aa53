//! What flights leave behind when they fail: why, so that the next client is not made to wait for the same; and who sent
//! wrong bytes, so that the next flight asks others first. Does no I/O.

use std::time::{Duration, Instant};

use crate::{digest::Digest, fading::Fading, failure::Failure, reference::RepositoryName, source::Source};

/// A failure answers for this long, so that a client that comes back at once goes on to upstream.
const REMEMBER_FAILURE: Duration = Duration::from_secs(5);
/// A source of wrong bytes is asked last for this long.
const REMEMBER_LIAR: Duration = Duration::from_secs(600);

/// The memory of all flights.
pub(super) struct Memory {
    failures: Fading<(RepositoryName, Digest), (Instant, Failure)>,
    liars: Fading<Digest, Vec<Source>>,
}

impl Default for Memory {
    fn default() -> Self {
        Self { failures: Fading::new(REMEMBER_FAILURE), liars: Fading::new(REMEMBER_LIAR) }
    }
}

impl Memory {
    /// Why a flight has just failed, unless a host has come back since it began.
    pub(super) fn failure(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        last_return: Option<Instant>,
    ) -> Option<Failure> {
        let (began, failure) = self.failures.get(&(repository.clone(), digest.clone()))?;
        (last_return < Some(began)).then_some(failure)
    }

    /// A flight that began at `began` has failed.
    pub(super) fn failed(&self, repository: RepositoryName, digest: Digest, began: Instant, failure: Failure) {
        self.failures.put((repository, digest), (began, failure));
    }

    /// Who sent wrong bytes for this digest.
    pub(super) fn liars(&self, digest: &Digest) -> Vec<Source> {
        self.liars.get(digest).unwrap_or_default()
    }

    /// These sent wrong bytes.
    pub(super) fn lied(&self, digest: Digest, sources: Vec<Source>) {
        self.liars.put(digest, sources);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Algorithm;

    #[test]
    fn a_return_ends_what_began_before_it() {
        let (memory, began) = (Memory::default(), Instant::now());
        let (name, digest) = ("app".parse::<RepositoryName>().expect("a name"), Digest::of(Algorithm::Sha256, b"x"));
        memory.failed(name.clone(), digest.clone(), began, Failure::Connect);
        let tick = Duration::from_millis(1);
        for (last_return, expected) in
            [(None, Some(Failure::Connect)), (Some(began - tick), Some(Failure::Connect)), (Some(began + tick), None)]
        {
            assert_eq!(memory.failure(&name, &digest, last_return), expected);
        }
    }
}
