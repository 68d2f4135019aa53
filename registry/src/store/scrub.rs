//! Hashes content again and again at a bounded rate, so that what a disk has spoilt is found before it is needed.

use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant, SystemTime},
};

use super::Store;

/// Bytes per second: a tenth of a slow disk.
const RATE: u64 = 8 << 20;
/// After a power cut it matters more, and there is little of it.
const RATE_OF_DOUBT: u64 = 64 << 20;
/// How soon an end is noticed.
const NAP: Duration = Duration::from_millis(50);

impl Store {
    /// Hashes what may never have reached the disk, if the machine was booted since it came.
    pub fn scrub_doubtful(&self, is_over: impl Fn() -> bool) {
        if let Some(from) = self.durable.doubtful_from() {
            self.scrub_since(Some(from), RATE_OF_DOUBT, is_over);
        }
    }

    /// Hashes everything once.
    pub fn scrub(&self, is_over: impl Fn() -> bool) {
        self.scrub_since(None, RATE, is_over);
    }

    fn scrub_since(&self, since: Option<SystemTime>, rate: u64, is_over: impl Fn() -> bool) {
        let pace = Pace { began: Instant::now(), rate };
        let mut hashed = 0;
        for digest in self.blobs.shelves.walk() {
            if is_over() {
                return;
            }
            self.blobs.inspect(&digest, since, |read| {
                hashed += read;
                self.tally.scrubbed_bytes.fetch_add(read, Ordering::Relaxed);
                pace.wait(hashed, &is_over);
                is_over()
            });
        }
    }
}

struct Pace {
    began: Instant,
    rate: u64,
}

impl Pace {
    /// Waits until so many bytes are due.
    fn wait(&self, bytes: u64, is_over: &impl Fn() -> bool) {
        let due = self.began + Duration::from_secs_f64(bytes as f64 / self.rate as f64);
        while let Some(early) = due.checked_duration_since(Instant::now()).filter(|early| !early.is_zero()) {
            if is_over() {
                return;
            }
            std::thread::sleep(early.min(NAP));
        }
    }
}
