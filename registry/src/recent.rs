//! What was read from disk a moment ago: hits that follow each other closely cost no system call. Does no I/O.
//!
//! An entry lives for a second, so that use still shows on disk and what happens to a file is soon noticed, and not
//! beyond the next change to anything of its kind: whoever changes something says so when it is done, and whoever reads
//! notes before reading which changes it will have seen.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

const LIFE: Duration = Duration::from_secs(1);
/// All values of one kind together.
const MOST_BYTES: usize = 8 * 1024 * 1024;
/// So that many small values are bounded too.
const PER_ENTRY: usize = 512;

/// How many changes there have been.
#[derive(Clone, Debug, Default)]
pub struct Changes(Arc<AtomicU64>);

impl Changes {
    /// Something has changed, and whoever reads from now on sees it.
    pub fn note(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }

    fn count(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

/// What was read a moment ago, by key.
pub struct Recent<K, V> {
    changes: Changes,
    entries: Mutex<Entries<K, V>>,
}

struct Entries<K, V> {
    bytes: usize,
    by_key: HashMap<K, Entry<V>>,
}

struct Entry<V> {
    value: V,
    at: Instant,
    seen: u64,
}

/// The changes that a read will have seen.
#[derive(Clone, Copy)]
pub struct Seen(u64);

impl<K: Eq + Hash, V: Clone> Recent<K, V> {
    /// With nothing; `changes` end the life of what was read before them.
    pub fn new(changes: Changes) -> Self {
        Self { changes, entries: Mutex::new(Entries { bytes: 0, by_key: HashMap::new() }) }
    }

    /// What was read, if that still holds.
    pub fn get(&self, key: &K) -> Option<V> {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = entries.by_key.get(key)?;
        (entry.seen == self.changes.count() && entry.at.elapsed() < LIFE).then(|| entry.value.clone())
    }

    /// To be called before reading.
    pub fn begin(&self) -> Seen {
        Seen(self.changes.count())
    }

    /// Keeps what was read since `seen`; `bytes` are what it holds in memory.
    pub fn put(&self, seen: Seen, key: K, value: V, bytes: usize) {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if entries.bytes + bytes + PER_ENTRY > MOST_BYTES {
            // All of it is read again within a second anyway.
            *entries = Entries { bytes: 0, by_key: HashMap::new() };
        }
        let entry = Entry { value, at: Instant::now(), seen: seen.0 };
        // What it replaces stays counted until the next clearing: an estimate that errs on the safe side.
        entries.by_key.insert(key, entry);
        entries.bytes += bytes + PER_ENTRY;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_ends_what_was_read_before_it_and_only_that() {
        let changes = Changes::default();
        let recent = Recent::new(changes.clone());
        recent.put(recent.begin(), "a", 1, 0);
        assert_eq!(recent.get(&"a"), Some(1));
        let seen = recent.begin();
        changes.note();
        assert_eq!(recent.get(&"a"), None);
        recent.put(seen, "a", 1, 0);
        assert_eq!(recent.get(&"a"), None, "read before the change, kept after it");
        recent.put(recent.begin(), "a", 2, 0);
        assert_eq!(recent.get(&"a"), Some(2));
    }

    #[test]
    fn memory_is_bounded() {
        let recent = Recent::new(Changes::default());
        for key in 0..100 {
            recent.put(recent.begin(), key, (), MOST_BYTES / 10);
        }
        let kept = (0..100).filter(|key| recent.get(key).is_some()).count();
        assert!((1..=10).contains(&kept), "{kept}");
        assert_eq!(recent.get(&99), Some(()));
    }
}
