//! What has surely reached the disk. Syncing each small file costs more than the file, and a killed process loses nothing
//! that the kernel has, so the whole file system is synced now and then, and `DIR/durable` says up to when that was done.
//! After a reboot, what is younger than that may be anything.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustix::fs::syncfs;
use serde::{Deserialize, Serialize};
use tracing::{debug, warn};

use super::read;

/// The kernel stamps files by a clock that may lag behind by a tick.
const CLOCK_LAG: Duration = Duration::from_secs(1);

/// `DIR/durable`
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Record {
    boot_id: String,
    /// Counts syncs over all boots.
    generation: u64,
    /// What changed before this is on disk, in milliseconds since 1970.
    synced_until: u64,
}

/// Which boot of the machine this is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Boot(String);

impl Boot {
    /// As the kernel names it. Where it does not, no two starts are of the same boot.
    pub fn current() -> Self {
        let named = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok().and_then(|id| Self::named(id.trim()));
        named.unwrap_or_else(|| Self(format!("{}-{}", millis(SystemTime::now()), std::process::id())))
    }

    /// A boot by name: letters, digits and hyphens, as it becomes part of a file name.
    pub fn named(id: &str) -> Option<Self> {
        let is_plain = !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        is_plain.then(|| Self(id.to_owned()))
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

/// Syncs in groups.
pub(super) struct Durable {
    dir: PathBuf,
    boot: Boot,
    generation: AtomicU64,
    /// Something was written since the last sync.
    is_dirty: Arc<AtomicBool>,
    doubtful_from: Option<SystemTime>,
}

impl Durable {
    pub(super) fn open(dir: &Path, boot: Boot, is_dirty: Arc<AtomicBool>) -> Self {
        let record: Option<Record> = read::small(&dir.join("durable"));
        let doubtful_from = match &record {
            Some(record) if record.boot_id == boot.0 => None,
            Some(record) => Some(UNIX_EPOCH + Duration::from_millis(record.synced_until)),
            None => Some(UNIX_EPOCH),
        };
        let generation = record.map_or(0, |record| record.generation).into();
        Self { dir: dir.to_owned(), boot, generation, is_dirty, doubtful_from }
    }

    /// If the machine was booted since: what changed after this may never have reached the disk.
    pub(super) fn doubtful_from(&self) -> Option<SystemTime> {
        self.doubtful_from
    }

    /// What was doubtful among unfinished downloads is gone, and what is committed is hashed before it is trusted: from now
    /// on a restart in this boot doubts nothing, also one that comes before the first sync.
    pub(super) fn begin(&self) {
        let Some(from) = self.doubtful_from else { return };
        let synced_until = millis(from);
        let record =
            Record { boot_id: self.boot.0.clone(), generation: self.generation.load(Ordering::Relaxed), synced_until };
        if let Err(error) = self.write(&record) {
            warn!(%error, "cannot note which boot this is: a restart would begin unfinished downloads anew");
        }
    }

    /// Syncs if anything was written since the last time.
    pub(super) fn sync(&self) {
        if self.is_dirty.swap(false, Ordering::Relaxed)
            && let Err(error) = self.sync_now()
        {
            self.is_dirty.store(true, Ordering::Relaxed);
            warn!(%error, "cannot sync the data folder: a power cut would cost more downloads");
        }
    }

    fn sync_now(&self) -> io::Result<()> {
        let synced_until = millis(SystemTime::now() - CLOCK_LAG);
        syncfs(File::open(&self.dir)?)?;
        let generation = self.generation.fetch_add(1, Ordering::Relaxed) + 1;
        self.write(&Record { boot_id: self.boot.0.clone(), generation, synced_until })?;
        debug!(generation, "synced");
        Ok(())
    }

    /// The record itself is synced by the next one: an older one makes more doubtful than is.
    fn write(&self, record: &Record) -> io::Result<()> {
        let aside = self.dir.join("durable.tmp");
        fs::write(&aside, serde_json::to_vec(record)?)?;
        fs::rename(aside, self.dir.join("durable"))
    }
}

fn millis(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_boot_doubts_what_came_after_the_last_sync() {
        let dir = tempfile::tempdir().unwrap();
        let open = |boot| Durable::open(dir.path(), Boot::named(boot).unwrap(), Arc::new(true.into()));
        let first = open("one");
        assert_eq!(first.doubtful_from(), Some(UNIX_EPOCH), "nothing is known yet");
        let before = SystemTime::now() - 2 * CLOCK_LAG;
        first.sync();
        assert_eq!(open("one").doubtful_from(), None, "a restart doubts nothing");
        let from = open("two").doubtful_from().unwrap();
        assert!(from > before && from < SystemTime::now());
    }

    #[test]
    fn a_restart_before_the_first_sync_doubts_nothing_another_boot_everything() {
        let dir = tempfile::tempdir().unwrap();
        let open = |boot| Durable::open(dir.path(), Boot::named(boot).unwrap(), Arc::new(true.into()));
        open("one").begin();
        assert_eq!(open("one").doubtful_from(), None);
        assert_eq!(open("two").doubtful_from(), Some(UNIX_EPOCH));
        open("one").sync();
        let from = open("two").doubtful_from().unwrap();
        open("two").begin();
        assert_eq!(open("two").doubtful_from(), None);
        let still = open("three").doubtful_from().unwrap();
        assert!(from > UNIX_EPOCH && still == from, "nothing was synced in the second boot");
    }

    #[test]
    fn a_broken_record_is_none() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("durable"), b"{").unwrap();
        assert_eq!(Durable::open(dir.path(), Boot::current(), Arc::default()).doubtful_from(), Some(UNIX_EPOCH));
    }

    #[test]
    fn the_boot_is_the_same_all_the_time() {
        assert_eq!(Boot::current(), Boot::current());
        assert_eq!(Boot::named("../x"), None);
    }
}
