//! Progress lines on standard error for steps that take longer than a person waits without a word.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const EVERY: Duration = Duration::from_secs(15);

/// Says what is going on and, every quarter of a minute, for how long; says how long it took when told [`Progress::done`].
#[derive(Debug)]
pub struct Progress {
    what: String,
    begun: Instant,
    ticker: Option<(mpsc::Sender<()>, JoinHandle<()>)>,
}

impl Progress {
    /// Prints `<what> (<estimate>)` and begins to count.
    #[must_use]
    pub fn start(what: &str, estimate: &str) -> Self {
        eprintln!("{what} ({estimate})");
        let begun = Instant::now();
        let (stop, stopped) = mpsc::channel();
        let line = what.to_owned();
        let ticker = std::thread::spawn(move || {
            while stopped.recv_timeout(EVERY) == Err(RecvTimeoutError::Timeout) {
                eprintln!("  {line}: {} s", begun.elapsed().as_secs());
            }
        });
        Self { what: what.to_owned(), begun, ticker: Some((stop, ticker)) }
    }

    /// Prints how long it took.
    pub fn done(mut self) {
        self.stop();
        eprintln!("  {}: done in {:.0} s", self.what, self.begun.elapsed().as_secs_f64());
    }

    fn stop(&mut self) {
        if let Some((stop, ticker)) = self.ticker.take() {
            drop(stop);
            // A ticker that panicked has nothing more to say.
            let _ = ticker.join();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.stop();
    }
}
