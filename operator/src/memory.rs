//! What the operator remembers between passes: only what saves calls or Events. Losing it, by a restart, costs one apply per child.

use crate::apply::Fingerprint;
use crate::images::ImageName;
use breakwater_crds::RegistryMirrorStatus;
use breakwater_crds::conditions::CACHE_READY;
use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The longest pause after failures.
const MAX_BACKOFF: Duration = Duration::from_secs(60);

/// Remembered facts; the lock is held for a look-up only.
#[derive(Debug, Default)]
pub struct Memory {
    mirrors: Mutex<HashMap<String, Remembered>>,
}

#[derive(Debug, Default)]
struct Remembered {
    children: HashMap<String, (u64, Fingerprint)>,
    reported: Option<Reported>,
    exposed: BTreeSet<ImageName>,
    cache: Option<(Said, Option<Instant>)>,
    failures: u32,
}

/// Status, reason and generation of a condition.
type Said = (String, String, Option<i64>);

/// The status last written.
#[derive(Clone, Debug)]
pub struct Reported {
    /// Version of the mirror that the status was computed from: while the watch shows this one, it shows the status before.
    pub from_version: Option<String>,
    /// Version that the mirror has with it.
    pub written: Option<String>,
    /// The status.
    pub status: RegistryMirrorStatus,
    /// When it and those before it were written, the latest first.
    pub writes: Vec<Instant>,
}

impl Memory {
    /// What was last sent of a mirror's child, and how the API server answered.
    pub(crate) fn applied(&self, mirror: &str, child: &str) -> Option<(u64, Fingerprint)> {
        lock(&self.mirrors).get(mirror)?.children.get(child).cloned()
    }

    /// Remembers what was sent of a child.
    pub(crate) fn set_applied(&self, mirror: &str, child: String, state: (u64, Fingerprint)) {
        lock(&self.mirrors).entry(mirror.to_owned()).or_default().children.insert(child, state);
    }

    /// The status last written for a mirror.
    pub(crate) fn reported(&self, mirror: &str) -> Option<Reported> {
        lock(&self.mirrors).get(mirror).and_then(|remembered| remembered.reported.clone())
    }

    /// Remembers a status.
    pub(crate) fn set_reported(&self, mirror: &str, reported: Reported) {
        lock(&self.mirrors).entry(mirror.to_owned()).or_default().reported = Some(reported);
    }

    /// Remembers which images were told to be exposed; gives those that were before.
    pub(crate) fn set_exposed(&self, mirror: &str, images: BTreeSet<ImageName>) -> BTreeSet<ImageName> {
        std::mem::replace(&mut lock(&self.mirrors).entry(mirror.to_owned()).or_default().exposed, images)
    }

    /// Takes note of what is said of a mirror's cache, after `old`.
    pub(crate) fn says(&self, mirror: &str, old: &RegistryMirrorStatus, new: &RegistryMirrorStatus) {
        let Some(said) = of_cache(new) else { return };
        let mut mirrors = lock(&self.mirrors);
        let cache = &mut mirrors.entry(mirror.to_owned()).or_default().cache;
        if cache.as_ref().is_none_or(|(before, _)| *before != said) {
            // Another operator may have said it long since.
            let since = (of_cache(old).as_ref() != Some(&said)).then(Instant::now);
            *cache = Some((said, since));
        }
    }

    /// For how long that has been the same; nothing where this operator was not there when it turned.
    pub(crate) fn said_for(&self, mirror: &str) -> Option<Duration> {
        Some(lock(&self.mirrors).get(mirror)?.cache.as_ref()?.1?.elapsed())
    }

    /// A pass went well.
    pub(crate) fn succeeded(&self, mirror: &str) {
        if let Some(remembered) = lock(&self.mirrors).get_mut(mirror) {
            remembered.failures = 0;
        }
    }

    /// A pass failed; how long to wait before the next: 1 s, doubled each time, up to a minute.
    pub(crate) fn failed(&self, mirror: &str) -> Duration {
        let mut mirrors = lock(&self.mirrors);
        let failures = &mut mirrors.entry(mirror.to_owned()).or_default().failures;
        let pause = Duration::from_secs(1_u64 << (*failures).min(6)).min(MAX_BACKOFF);
        *failures = failures.saturating_add(1);
        pause
    }

    /// How many passes in a row have failed.
    pub(crate) fn failures(&self, mirror: &str) -> u32 {
        lock(&self.mirrors).get(mirror).map_or(0, |remembered| remembered.failures)
    }

    /// Forgets a deleted mirror.
    pub(crate) fn forget(&self, mirror: &str) {
        lock(&self.mirrors).remove(mirror);
    }
}

fn of_cache(status: &RegistryMirrorStatus) -> Option<Said> {
    let said = status.conditions.iter().find(|condition| condition.type_ == CACHE_READY)?;
    Some((said.status.clone(), said.reason.clone(), said.observed_generation))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_minute_and_start_again_after_success() {
        let memory = Memory::default();
        let pauses: Vec<_> = (0..8).map(|_| memory.failed("m").as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60]);
        memory.succeeded("m");
        assert_eq!(memory.failed("m").as_secs(), 1);
    }
}
