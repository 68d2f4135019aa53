//! When which blob was last used, and which are open. Exact while the process lives; files' times carry it over restarts.

use std::{
    collections::HashMap,
    fs::File,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::{Duration, SystemTime},
};

use crate::digest::Digest;

/// A blob's file is touched at its first use and then this rarely, or each hit would be a write.
const TOUCH_EVERY: Duration = Duration::from_secs(3600);
/// So many uses are remembered; beyond that they are written to the files and forgotten.
const MOST: usize = 1 << 14;

struct Use {
    at: SystemTime,
    written: Option<SystemTime>,
    inode: u64,
    file: Weak<File>,
}

/// Uses of blobs by this process.
#[derive(Default)]
pub(super) struct Recency(Mutex<HashMap<Digest, Use>>);

/// What is to be written to files.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// What has not been written for long enough.
    ByNow,
    /// Everything: the process ends.
    All,
}

impl Recency {
    /// The blob is used now. Gives its file if that is open already: a thousand readers share one.
    pub(super) fn share(&self, digest: &Digest, inode: u64) -> Option<Arc<File>> {
        let mut uses = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = uses.get_mut(digest)?;
        known.at = SystemTime::now();
        known.file.upgrade().filter(|_| known.inode == inode)
    }

    /// The blob is used now, by this file.
    pub(super) fn opened(&self, digest: &Digest, inode: u64, file: &Arc<File>) {
        let (at, file) = (SystemTime::now(), Arc::downgrade(file));
        let mut uses = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match uses.get_mut(digest) {
            Some(known) => (known.at, known.inode, known.file) = (at, inode, file),
            None => drop(uses.insert(digest.clone(), Use { at, written: None, inode, file })),
        }
    }

    /// When the blob was last used, if its file's time says `modified`.
    pub(super) fn last_use(&self, digest: &Digest, modified: SystemTime) -> SystemTime {
        let uses = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        uses.get(digest).map_or(modified, |known| known.at.max(modified))
    }

    /// Whether somebody reads the blob: removing its file would free nothing.
    pub(super) fn is_open(&self, digest: &Digest) -> bool {
        let uses = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        uses.get(digest).is_some_and(|known| known.file.strong_count() > 0)
    }

    /// The blob is gone.
    pub(super) fn forget(&self, digest: &Digest) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(digest);
    }

    /// What is to be written to the blobs' files; taken as written.
    pub(super) fn take_due(&self, due: Due) -> Vec<(Digest, SystemTime)> {
        let mut uses = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let too_many = uses.len() > MOST;
        let mut unwritten = Vec::new();
        for (digest, known) in uses.iter_mut() {
            let is_due = match known.written {
                None => true,
                Some(written) if known.at <= written => false,
                Some(written) => {
                    due == Due::All || too_many || known.at.duration_since(written).is_ok_and(|age| age >= TOUCH_EVERY)
                }
            };
            if is_due {
                known.written = Some(known.at);
                unwritten.push((digest.clone(), known.at));
            }
        }
        if too_many {
            uses.retain(|_, known| known.file.strong_count() > 0);
        }
        unwritten
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Algorithm;

    fn digest(bytes: &[u8]) -> Digest {
        Digest::of(Algorithm::Sha256, bytes)
    }

    #[test]
    fn readers_share_a_file_while_it_is_open() {
        let (recency, file) = (Recency::default(), Arc::new(tempfile::tempfile().unwrap()));
        let one = digest(b"one");
        assert!(recency.share(&one, 1).is_none() && !recency.is_open(&one));
        recency.opened(&one, 1, &file);
        assert!(recency.share(&one, 1).is_some() && recency.is_open(&one));
        assert!(recency.share(&one, 2).is_none(), "another file stands there now");
        drop(file);
        assert!(recency.share(&one, 1).is_none() && !recency.is_open(&one));
    }

    #[test]
    fn the_first_use_is_written_soon_and_the_next_at_the_end() {
        let (recency, file) = (Recency::default(), Arc::new(tempfile::tempfile().unwrap()));
        recency.opened(&digest(b"one"), 1, &file);
        assert_eq!(recency.take_due(Due::ByNow).len(), 1);
        recency.share(&digest(b"one"), 1);
        assert_eq!(recency.take_due(Due::ByNow).len(), 0);
        assert_eq!(recency.take_due(Due::All).len(), 1);
        assert_eq!(recency.take_due(Due::All).len(), 0);
    }

    #[test]
    fn memory_is_bounded_and_forgets_no_open_file() {
        let (recency, file) = (Recency::default(), Arc::new(tempfile::tempfile().unwrap()));
        recency.opened(&digest(b"open"), 1, &file);
        let closed = Arc::new(tempfile::tempfile().unwrap());
        for number in 0..=MOST {
            recency.opened(&digest(&number.to_le_bytes()), 1, &closed);
        }
        drop(closed);
        assert_eq!(recency.take_due(Due::ByNow).len(), MOST + 2);
        assert_eq!(recency.0.lock().unwrap().len(), 1);
        assert!(recency.is_open(&digest(b"open")));
    }
}
