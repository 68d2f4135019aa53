//! How much room there is: the limit that was asked for, and the volume as it is. Deletes nothing; evict.rs does.

use std::{
    path::PathBuf,
    sync::atomic::{AtomicU64, Ordering},
};

use rustix::fs::statvfs;
use tokio::sync::Notify;

use super::size::{CacheSize, part};

/// However much was asked for, so much of the volume is left to others: file systems slow down and lose metadata
/// operations when they are full to the brim.
const KEEP_FREE_PERCENT: u8 = 2;
/// More than that helps nobody on a large volume.
const KEEP_FREE_MOST: u64 = 1 << 30;
/// Files take whole ones.
pub(super) const BLOCK: u64 = 4096;
/// What a blob takes besides its bytes: the rest of its last block, and a block each for a link and a tag.
pub(super) const BESIDE: u64 = 3 * BLOCK;
/// Of what is taken, so small a part may be somebody else's on a volume that is ours.
const OTHERS_PART: u64 = 8;

/// The volume that the cache stands on.
pub struct Space {
    dir: PathBuf,
    size: CacheSize,
    /// As last measured; zero if that never worked.
    capacity: AtomicU64,
    free: AtomicU64,
    grown: Notify,
}

impl Space {
    pub(super) fn new(dir: PathBuf, size: CacheSize) -> Self {
        let space = Self { dir, size, capacity: AtomicU64::new(0), free: AtomicU64::new(0), grown: Notify::new() };
        space.look();
        space
    }

    /// Measures the volume: it may be filled by others, and it may grow.
    pub fn look(&self) {
        if let Ok(volume) = statvfs(&self.dir) {
            // What only root may use is no capacity of ours.
            let usable = volume.f_blocks.saturating_sub(volume.f_bfree).saturating_add(volume.f_bavail);
            self.capacity.store(usable.saturating_mul(volume.f_frsize), Ordering::Relaxed);
            self.free.store(volume.f_bavail.saturating_mul(volume.f_frsize), Ordering::Relaxed);
        }
    }

    /// How many bytes the cache may hold: what was asked for, or what the volume has. `None` if nobody knows.
    pub fn limit(&self) -> Option<u64> {
        match (self.size, self.capacity.load(Ordering::Relaxed)) {
            (CacheSize::Bytes(bytes), 0) => Some(bytes),
            (CacheSize::Percent(_), 0) => None,
            (size, capacity) => Some(size.of_volume(capacity).min(capacity - self.keep_free())),
        }
    }

    /// Bytes that are free on the volume, as last measured.
    pub fn free(&self) -> u64 {
        self.free.load(Ordering::Relaxed)
    }

    /// Whether so many bytes are free now, as far as can be known.
    pub(super) fn has_room(&self, bytes: u64) -> bool {
        self.look();
        self.capacity.load(Ordering::Relaxed) == 0 || bytes <= self.free()
    }

    /// Whether it is the cache itself that fills the volume: with `bytes` of content in so many `files`.
    pub(super) fn is_ours(&self, bytes: u64, files: u64) -> bool {
        self.look();
        let taken = self.capacity.load(Ordering::Relaxed).saturating_sub(self.free());
        let ours = bytes.saturating_add(files.saturating_mul(BESIDE));
        ours >= taken - taken / OTHERS_PART
    }

    /// Something came: the limit may be exceeded.
    pub(super) fn wake(&self) {
        self.grown.notify_one();
    }

    /// Waits until something came.
    pub async fn grown(&self) {
        self.grown.notified().await;
    }

    /// Bytes of the volume that stay free if it can be helped.
    pub(super) fn keep_free(&self) -> u64 {
        part(self.capacity.load(Ordering::Relaxed), KEEP_FREE_PERCENT).min(KEEP_FREE_MOST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_gets_more_than_the_volume_has() {
        let folder = tempfile::tempdir().unwrap();
        let space = |size| Space::new(folder.path().to_owned(), size);
        assert_eq!(space(CacheSize::Bytes(1000)).limit(), Some(1000));
        let all = space(CacheSize::Percent(100)).limit().unwrap();
        assert!(all > 0 && space(CacheSize::Bytes(u64::MAX)).limit() == Some(all));
        assert!(space(CacheSize::Percent(50)).limit().unwrap() < all);
        let space = space(CacheSize::Percent(50));
        assert!(space.has_room(0) && !space.has_room(u64::MAX));
    }

    #[test]
    fn a_volume_is_ours_if_our_content_fills_it() {
        let space = Space::new("/no/such/folder".into(), CacheSize::Percent(90));
        space.capacity.store(40 << 20, Ordering::Relaxed);
        assert!(space.is_ours(39 << 20, 10));
        assert!(space.is_ours(14 << 20, 2000), "small blobs take more than their bytes");
        assert!(!space.is_ours(30 << 20, 10), "somebody has a quarter of it");
    }

    #[test]
    fn an_unknown_volume_bounds_nothing() {
        let space = |size| Space::new("/no/such/folder".into(), size);
        assert_eq!(space(CacheSize::Percent(90)).limit(), None);
        assert_eq!(space(CacheSize::Bytes(7)).limit(), Some(7));
        assert!(space(CacheSize::Bytes(7)).has_room(u64::MAX));
    }
}
