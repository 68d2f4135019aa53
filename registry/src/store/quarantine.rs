//! What turned out to be wrong, kept for whoever wants to know why; bounded, as it serves nobody.

use std::{
    fs::{self, DirEntry, Metadata},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use super::{Tally, size::part, space::Space};

/// Nobody looks at older ones.
const KEEP: Duration = Duration::from_secs(7 * 24 * 3600);
/// The newest are enough to see a pattern.
const MOST_FILES: usize = 64;
/// Of what the cache may hold.
const MOST_PERCENT: u8 = 5;

/// The folder of wrong content.
pub(super) struct Quarantine {
    dir: PathBuf,
    space: Arc<Space>,
    tally: Arc<Tally>,
    next: AtomicU64,
}

impl Quarantine {
    pub(super) fn new(dir: PathBuf, space: Arc<Space>, tally: Arc<Tally>) -> Self {
        Self { dir, space, tally, next: AtomicU64::new(0) }
    }

    /// Takes whatever stands at `path` out of the way.
    pub(super) fn receive(&self, path: &Path) {
        self.tally.quarantined.fetch_add(1, Ordering::Relaxed);
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let to = self.dir.join(format!("{name}.{}.{}", std::process::id(), self.next.fetch_add(1, Ordering::Relaxed)));
        if fs::rename(path, &to).is_err() {
            remove(path);
        }
        self.tidy();
    }

    /// Removes what is too old or too much.
    pub(super) fn tidy(&self) {
        let mut bytes = part(self.space.limit().unwrap_or(0), MOST_PERCENT);
        let entries = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let mut found: Vec<(DirEntry, Metadata)> =
            entries.filter_map(|entry| entry.metadata().ok().map(|found| (entry, found))).collect();
        // Renaming it to here has set the change time.
        found.sort_by_key(|(_, found)| std::cmp::Reverse((found.ctime(), found.ctime_nsec())));
        let oldest = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().saturating_sub(KEEP);
        for (rank, (entry, found)) in found.iter().enumerate() {
            let is_old = found.ctime().cast_unsigned() < oldest.as_secs();
            if is_old || rank >= MOST_FILES || found.len() > bytes {
                remove(&entry.path());
            } else {
                bytes -= found.len();
            }
        }
    }

    /// Removes everything: there is better use for the space.
    pub(super) fn empty(&self) {
        for entry in fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            remove(&entry.path());
        }
    }
}

/// Removes a file or a folder; what stays is looked at again the next time.
fn remove(path: &Path) {
    let _ = fs::remove_file(path).or_else(|_| fs::remove_dir_all(path));
}
