//! Makes room: the least recently used content goes first, never what is pinned, open or in flight.
//!
//! There is no index. A survey of the folders yields the oldest few thousand; they go one by one as room is needed, each
//! looked at again before it goes. Whatever came or was used since the survey is younger than all of them, so the order
//! holds until they are used up, and only then the folders are surveyed again. Memory is bounded, however much is here.

use std::{
    collections::{BinaryHeap, VecDeque},
    fs,
    sync::{Mutex, MutexGuard, PoisonError, TryLockError, atomic::Ordering},
    time::{Duration, Instant, SystemTime},
};

use tracing::{debug, info};

use super::{
    Store,
    marks::Mark,
    space::{BESIDE, BLOCK},
};
use crate::digest::Digest;

/// So many of the oldest are found by one survey.
const BATCH: usize = 8192;
/// A survey that takes longer is left to the background.
const QUICK: Duration = Duration::from_millis(20);
/// Where others fill the volume, what has not been used for this long makes up for it: they would take what is at work too.
const IDLE: Duration = Duration::from_secs(60);
/// From this size on more is evicted than must be, so that surveys are rare.
const GAP_FROM: u64 = 1 << 30;
/// What is evicted beyond that, as a part of the limit.
const GAP_PART: u64 = 50;

/// Something that may go, and when it was used when that was last looked at. Ordered by that.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    used: SystemTime,
    digest: Digest,
    is_partial: bool,
}

/// What eviction remembers from one time to the next.
#[derive(Default)]
pub(super) struct Evictor(Mutex<Oldest>);

#[derive(Default)]
struct Oldest {
    queue: VecDeque<Candidate>,
    surveyed: Option<Survey>,
}

/// What the last survey was.
struct Survey {
    at: Instant,
    took: Duration,
    /// How much was here then.
    used: u64,
    /// Whether anything that it found could go.
    was_useful: bool,
}

/// What one run has evicted so far.
#[derive(Clone, Copy, Default)]
struct Freed {
    files: u64,
    bytes: u64,
}

/// How much may be done for room.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Effort {
    /// What can be done while a client waits.
    Quick,
    /// Whatever it takes.
    Thorough,
}

impl Store {
    /// Bytes of content, whole or growing.
    pub fn used(&self) -> u64 {
        self.blobs.used() + self.partials.used()
    }

    /// Counts what is here, and finds the oldest.
    pub fn survey(&self, is_over: impl Fn() -> bool) {
        self.survey_into(&mut self.evictor.wait(), is_over);
    }

    /// Evicts until the limit is kept; says whether it is.
    pub fn keep_limit(&self, effort: Effort) -> bool {
        let excess = || self.space.limit().map_or(0, |limit| self.used().saturating_sub(limit));
        if excess() == 0 {
            return true;
        }
        if !self.pinned.is_known() {
            return false;
        }
        let Some(mut oldest) = self.evictor.begin(effort) else { return false };
        let limit = self.space.limit().unwrap_or(u64::MAX);
        let gap = if limit >= GAP_FROM { limit / GAP_PART } else { 0 };
        let wanted = excess() + gap;
        self.evict(&mut oldest, effort, Duration::ZERO, |freed| wanted.saturating_sub(freed.bytes));
        excess() == 0
    }

    /// Evicts until others leave enough of the volume free: what they take may not stop this cache, or them.
    pub fn keep_free(&self) {
        self.space.look();
        let (free, wanted) = (self.space.free(), self.space.keep_free());
        if free < wanted && self.pinned.is_known() {
            // Twice as much, or the next byte would start it all again.
            self.free(2 * wanted - free);
        }
    }

    /// The disk is full: gives up what serves nobody now.
    pub(super) fn free(&self, bytes: u64) {
        self.blobs.quarantine.empty();
        if self.pinned.is_known()
            && let Some(mut oldest) = self.evictor.begin(Effort::Thorough)
        {
            let is_ours = self.space.is_ours(self.used(), self.blobs.files());
            let idle = if is_ours { Duration::ZERO } else { IDLE };
            let missing = |freed: Freed| (bytes + BESIDE).saturating_sub(freed.bytes + freed.files * BLOCK);
            self.evict(&mut oldest, Effort::Thorough, idle, missing);
        }
        self.space.look();
    }

    /// Evicts what was not used for `idle`, oldest first, until `missing` says that nothing is.
    fn evict(&self, oldest: &mut Oldest, effort: Effort, idle: Duration, missing: impl Fn(Freed) -> u64) {
        let mut freed = Freed::default();
        let mut surveyed = false;
        while missing(freed) > 0 {
            let Some(candidate) = oldest.queue.pop_front() else {
                if surveyed || !oldest.may_survey(effort, self.used()) {
                    break;
                }
                surveyed = true;
                self.survey_into(oldest, || false);
                continue;
            };
            if candidate.used.elapsed().unwrap_or_default() < idle {
                oldest.queue.push_front(candidate);
                break;
            }
            let bytes = self.evict_one(&candidate);
            freed = Freed { files: freed.files + u64::from(bytes > 0), bytes: freed.bytes + bytes };
            if let Some(survey) = &mut oldest.surveyed {
                survey.was_useful |= bytes > 0;
            }
        }
        if freed.files > 0 {
            self.tally.evicted.fetch_add(freed.files, Ordering::Relaxed);
            self.tally.evicted_bytes.fetch_add(freed.bytes, Ordering::Relaxed);
            info!(count = freed.files, bytes = freed.bytes, "evicted");
        } else if missing(freed) > 0 {
            debug!("nothing left to evict");
        }
    }

    fn evict_one(&self, Candidate { used, digest, is_partial }: &Candidate) -> u64 {
        if *is_partial {
            return self.partials.remove_idle(digest);
        }
        if self.pinned.contains(digest) || self.blobs.recency.is_open(digest) {
            return 0;
        }
        let freed = self.blobs.shelves.take(digest, |path| {
            // Used since, it is no longer the oldest.
            if let Ok(found) = fs::symlink_metadata(path)
                && found.modified().is_ok_and(|at| self.blobs.recency.last_use(digest, at) <= *used)
                && fs::remove_file(path).is_ok()
            {
                self.blobs.marks.forget(Mark::of(&found));
            }
        });
        if freed > 0 {
            self.blobs.recency.forget(digest);
        }
        freed
    }

    fn survey_into(&self, oldest: &mut Oldest, is_over: impl Fn() -> bool) {
        let began = Instant::now();
        let mut heap = BinaryHeap::new();
        let mut add = |candidate: Candidate| {
            if heap.len() < BATCH {
                heap.push(candidate);
            } else if heap.peek().is_some_and(|youngest| candidate < *youngest) {
                heap.pop();
                heap.push(candidate);
            }
        };
        self.blobs.shelves.survey(is_over, |digest, found| {
            if let Ok(modified) = found.modified()
                && !(self.pinned.is_known() && self.pinned.contains(&digest))
            {
                let used = self.blobs.recency.last_use(&digest, modified);
                add(Candidate { used, digest, is_partial: false });
            }
        });
        for (digest, found) in self.partials.idle() {
            if let Ok(used) = found.modified() {
                add(Candidate { used, digest, is_partial: true });
            }
        }
        oldest.queue = heap.into_sorted_vec().into();
        let (at, took) = (Instant::now(), began.elapsed());
        oldest.surveyed = Some(Survey { at, took, used: self.used(), was_useful: false });
    }
}

impl Evictor {
    fn wait(&self) -> MutexGuard<'_, Oldest> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Only one evicts at a time; who has no time leaves it to whoever does.
    fn begin(&self, effort: Effort) -> Option<MutexGuard<'_, Oldest>> {
        match (effort, self.0.try_lock()) {
            (_, Ok(oldest)) => Some(oldest),
            (_, Err(TryLockError::Poisoned(poisoned))) => Some(poisoned.into_inner()),
            (Effort::Quick, Err(TryLockError::WouldBlock)) => None,
            (Effort::Thorough, Err(TryLockError::WouldBlock)) => Some(self.wait()),
        }
    }
}

impl Oldest {
    /// A long survey of which nothing could go is not repeated at once: all may be pinned or open. Unless much has come
    /// since: it may have been made while the cache was empty.
    fn may_survey(&self, effort: Effort, used: u64) -> bool {
        match &self.surveyed {
            None => effort == Effort::Thorough,
            Some(survey) if survey.took < QUICK => true,
            Some(Survey { at, took, used: before, was_useful }) => {
                let has_grown = used > before.saturating_add(before / 8);
                effort == Effort::Thorough && (*was_useful || has_grown || at.elapsed() > 10 * *took)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::digest::Algorithm;

    #[test]
    fn nothing_is_remembered_of_what_was_evicted() {
        let (folder, registry) = (tempfile::tempdir().unwrap(), "docker.io".parse().unwrap());
        let store = Store::open(folder.path().to_owned(), &registry, "10000".parse().unwrap()).unwrap();
        store.pinned.replace(HashSet::new());
        for n in 0..100 {
            let bytes = [n; 1000];
            store.keep_small(&Digest::of(Algorithm::Sha256, &bytes), &bytes, true).unwrap();
        }
        store.keep_limit(Effort::Thorough);
        assert_eq!((store.blobs.files(), store.blobs.marks.count()), (10, 10));
    }

    #[test]
    fn a_long_survey_is_repeated_where_it_promises_something() {
        let after = |took, used, was_useful| {
            let survey = Survey { at: Instant::now(), took, used, was_useful };
            Oldest { surveyed: Some(survey), ..Oldest::default() }
        };
        let (quick, long) = (Duration::from_millis(1), Duration::from_secs(10));
        assert!(after(quick, 80, false).may_survey(Effort::Quick, 80));
        assert!(!after(long, 80, true).may_survey(Effort::Quick, 800), "no client waits for it");
        assert!(!after(long, 80, false).may_survey(Effort::Thorough, 90), "all may be pinned");
        assert!(after(long, 80, true).may_survey(Effort::Thorough, 80), "the next batch");
        assert!(after(long, 0, false).may_survey(Effort::Thorough, 1), "it was empty then");
    }
}
