//! When upstream last gave a good answer to anything: staleness counts from there, over restarts too.

use std::{
    fs::File,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use tracing::debug;

/// Written at most so often, in seconds: a restart makes staleness longer by no more than that.
const PERSIST_EVERY: u64 = 1;

/// The time of the last good answer, kept as the modification time of a file. Within a process the monotonic clock counts:
/// a clock that is set in an outage makes no answer older.
pub struct LastContact {
    file: Option<Arc<File>>,
    /// The origin of `good_at`, and the silence that there had been then.
    opened: Instant,
    silence_before: Duration,
    /// Milliseconds since `opened`; 0: none yet.
    good_at: AtomicU64,
    /// The wall clock's seconds.
    persisted: AtomicU64,
}

impl LastContact {
    /// Continues from what `file` says.
    pub fn of(file: Arc<File>) -> Self {
        let modified = file.metadata().and_then(|metadata| metadata.modified()).unwrap_or(UNIX_EPOCH);
        let silence = SystemTime::now().duration_since(modified).unwrap_or_default();
        Self { file: Some(file), persisted: seconds_of(modified).into(), ..Self::after(silence) }
    }

    /// Of a registry whose answers say nothing of upstream.
    pub fn unkept() -> Self {
        Self::after(Duration::ZERO)
    }

    fn after(silence_before: Duration) -> Self {
        let (good_at, persisted) = Default::default();
        Self { file: None, opened: Instant::now(), silence_before, good_at, persisted }
    }

    /// Upstream has just given a good answer.
    pub fn good(&self) {
        let now = seconds_of(SystemTime::now());
        let since = u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.good_at.store(since.max(1), Ordering::Relaxed);
        let Some(file) = &self.file else { return };
        let persisted = self.persisted.load(Ordering::Relaxed);
        let is_due = now.abs_diff(persisted) >= PERSIST_EVERY;
        if is_due && self.persisted.compare_exchange(persisted, now, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            let file = Arc::clone(file);
            // One system call a second; nothing waits for it.
            drop(tokio::task::spawn_blocking(move || {
                if let Err(error) = file.set_modified(SystemTime::now()) {
                    debug!(%error, "time of last contact not kept");
                }
            }));
        }
    }

    /// For how long there has been no good answer.
    pub fn silence(&self) -> Duration {
        match self.good_at.load(Ordering::Relaxed) {
            0 => self.silence_before + self.opened.elapsed(),
            at => self.opened.elapsed().saturating_sub(Duration::from_millis(at)),
        }
    }
}

fn seconds_of(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
