//! Tells at once that somebody touched certs.d. Knows no file's meaning. Where the kernel cannot tell, a slow rescan is the net.

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::Errno;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::net::unix::pipe::Receiver;
use tokio::time::{Instant, sleep_until};

/// What belongs together, such as an editor's save, is seen together.
const GATHER: Duration = Duration::from_millis(100);
/// Whoever writes against us again and again does not keep the disk busy.
const LEAST: Duration = Duration::from_secs(1);
const CHANGES: WatchFlags = WatchFlags::CLOSE_WRITE
    .union(WatchFlags::ATTRIB)
    .union(WatchFlags::CREATE)
    .union(WatchFlags::DELETE)
    .union(WatchFlags::MOVE)
    .union(WatchFlags::DELETE_SELF)
    .union(WatchFlags::MOVE_SELF)
    .union(WatchFlags::ONLYDIR);

/// Waits for changes.
#[derive(Debug)]
pub struct Touched {
    watches: Watches,
    last: Option<Instant>,
}

/// The folders that are watched. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Watches(Option<Arc<Inner>>);

#[derive(Debug)]
struct Inner {
    /// Events are read like a pipe's bytes.
    inotify: Receiver,
    has_complained: AtomicBool,
}

impl Touched {
    /// Watches nothing yet.
    #[must_use]
    pub fn new() -> Self {
        let made = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).map_err(io::Error::from);
        let made = made.and_then(Receiver::from_owned_fd_unchecked).inspect_err(|error| {
            tracing::warn!(%error, "changes of certs.d are noticed by the rescan alone");
        });
        let inner = made.ok().map(|inotify| Arc::new(Inner { inotify, has_complained: AtomicBool::new(false) }));
        Self { watches: Watches(inner), last: None }
    }

    /// The watches, to be renewed by whoever works on the files.
    #[must_use]
    pub fn watches(&self) -> Watches {
        self.watches.clone()
    }

    /// Waits for a change and for what comes with it.
    pub async fn next(&mut self) {
        self.watches.changed().await;
        let now = Instant::now();
        let due = self.last.map_or(now, |last| last + LEAST).max(now + GATHER);
        sleep_until(due).await;
        self.last = Some(due);
    }
}

impl Default for Touched {
    fn default() -> Self {
        Self::new()
    }
}

impl Watches {
    /// Watches certs.d and its folders, those that are watched already included. Blocks on the disk.
    pub fn renew(&self, certs_dir: &Path) {
        let Some(inner) = &self.0 else { return };
        let watch = |path: &Path, flags| inotify::add_watch(&inner.inotify, path, flags);
        let mut failed = watch(certs_dir, CHANGES).err();
        for entry in std::fs::read_dir(certs_dir).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                failed = watch(&entry.path(), CHANGES | WatchFlags::DONT_FOLLOW).err().or(failed);
            }
        }
        // What vanishes meanwhile is told by the folder above.
        let failed = failed.filter(|error| ![Errno::NOENT, Errno::NOTDIR].contains(error));
        if let Some(error) = failed
            && !inner.has_complained.swap(true, Ordering::Relaxed)
        {
            tracing::warn!(%error, "not all of certs.d can be watched, the rest is noticed by the rescan alone");
        }
    }

    async fn changed(&self) {
        let Some(inner) = &self.0 else { return std::future::pending().await };
        loop {
            if inner.inotify.readable().await.is_err() {
                return std::future::pending().await;
            }
            // That there are events is all that matters.
            let mut events = [0; 4096];
            let mut any = false;
            while inner.inotify.try_read(&mut events).is_ok() {
                any = true;
            }
            if any {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use tempfile::TempDir;
    use tokio::time::timeout;

    /// Whether a change is told.
    async fn tells(touched: &mut Touched, change: impl FnOnce()) -> bool {
        change();
        timeout(Duration::from_secs(2), touched.watches().changed()).await.is_ok()
    }

    #[tokio::test]
    async fn what_others_do_in_certs_d_is_told() {
        let dir = TempDir::new().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::create_dir(path("docker.io")).unwrap();
        std::fs::create_dir(path("elsewhere")).unwrap();
        let mut touched = Touched::new();
        let renew = |touched: &Touched| touched.watches().renew(dir.path());
        renew(&touched);
        assert!(tells(&mut touched, || std::fs::write(path("docker.io/hosts.toml"), "a").unwrap()).await);
        assert!(
            tells(&mut touched, || std::fs::rename(path("docker.io/hosts.toml"), path("docker.io/b")).unwrap()).await
        );
        assert!(tells(&mut touched, || std::fs::remove_file(path("docker.io/b")).unwrap()).await);
        assert!(tells(&mut touched, || std::fs::create_dir(path("ghcr.io")).unwrap()).await);
        renew(&touched);
        assert!(tells(&mut touched, || std::fs::write(path("ghcr.io/hosts.toml"), "a").unwrap()).await);
        assert!(tells(&mut touched, || std::fs::remove_dir_all(path("docker.io")).unwrap()).await);
        assert!(tells(&mut touched, || symlink("elsewhere", path("docker.io")).unwrap()).await);
        renew(&touched);
    }

    #[tokio::test(start_paused = true)]
    async fn a_fight_is_fought_once_a_second() {
        let dir = TempDir::new().unwrap();
        let mut touched = Touched::new();
        touched.watches().renew(dir.path());
        let started = Instant::now();
        let mut told = Vec::new();
        for round in 0..3 {
            std::fs::write(dir.path().join(round.to_string()), "").unwrap();
            touched.next().await;
            told.push(started.elapsed());
        }
        assert_eq!(told, [GATHER, GATHER + LEAST, GATHER + LEAST * 2]);
    }
}
