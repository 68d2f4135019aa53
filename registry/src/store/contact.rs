//! When upstream last gave a good answer to anything: staleness counts from there, over restarts too.

use std::{
    fs::File,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tracing::debug;

/// Written at most so often: staleness is measured in hours.
const PERSIST_EVERY: u64 = 60;

/// The time of the last good answer, kept as the modification time of a file.
pub struct LastContact {
    file: Arc<File>,
    seconds: AtomicU64,
    persisted: AtomicU64,
}

impl LastContact {
    /// Continues from what `file` says.
    pub fn of(file: Arc<File>) -> Self {
        let modified = file.metadata().and_then(|metadata| metadata.modified()).unwrap_or(UNIX_EPOCH);
        let seconds = seconds_of(modified);
        Self { file, seconds: seconds.into(), persisted: seconds.into() }
    }

    /// Upstream has just given a good answer.
    pub fn good(&self) {
        let now = seconds_of(SystemTime::now());
        self.seconds.store(now, Ordering::Relaxed);
        let persisted = self.persisted.load(Ordering::Relaxed);
        let is_due = now.abs_diff(persisted) >= PERSIST_EVERY;
        if is_due && self.persisted.compare_exchange(persisted, now, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            let file = Arc::clone(&self.file);
            // One system call a minute; nothing waits for it.
            drop(tokio::task::spawn_blocking(move || {
                if let Err(error) = file.set_modified(SystemTime::now()) {
                    debug!(%error, "time of last contact not kept");
                }
            }));
        }
    }

    /// For how long there has been no good answer.
    pub fn silence(&self) -> Duration {
        let now = seconds_of(SystemTime::now());
        Duration::from_secs(now.saturating_sub(self.seconds.load(Ordering::Relaxed)))
    }
}

fn seconds_of(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
