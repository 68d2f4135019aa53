//! Deadlines in time in which we ran. Whoever was stopped meanwhile, or did not get the processor, must blame nobody for it: what
//! he waited for had no chance to reach him.

use std::pin::pin;
use std::time::Duration;
use tokio::time::{Instant, timeout};

/// No more than this goes by between two looks. A look that comes late shows that we did not run, and counts as one in time.
pub(super) const LOOK: Duration = Duration::from_millis(500);

/// What is left of the time for several waits, one after another.
#[derive(Debug)]
pub(super) struct Time {
    left: Duration,
}

impl Time {
    pub(super) fn new(limit: Duration) -> Self {
        Self { left: limit }
    }

    /// Waits, but leaves this much for those that come later; None once there is no more.
    pub(super) async fn wait<T>(&mut self, reserve: Duration, awaited: impl Future<Output = T>) -> Option<T> {
        let mut awaited = pin!(awaited);
        while self.left > reserve {
            let (began, look) = (Instant::now(), LOOK.min(self.left - reserve));
            let done = timeout(look, &mut awaited).await;
            self.left -= began.elapsed().min(look);
            if let Ok(done) = done {
                return Some(done);
            }
        }
        None
    }

    /// How much there is.
    pub(super) fn left(&self) -> Duration {
        self.left
    }

    /// Whether there is no more.
    pub(super) fn is_over(&self) -> bool {
        self.left.is_zero()
    }
}

/// Waits this long for one thing.
pub(super) async fn wait<T>(limit: Duration, awaited: impl Future<Output = T>) -> Option<T> {
    Time::new(limit).wait(Duration::ZERO, awaited).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::pending;
    use tokio::time::{advance, sleep};

    const LIMIT: Duration = Duration::from_secs(5);
    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn several_waits_share_one_limit_and_leave_the_reserve() {
        let (began, mut time) = (Instant::now(), Time::new(LIMIT));
        assert_eq!(time.wait(SECOND, sleep(SECOND)).await, Some(()));
        assert_eq!(time.wait(SECOND, pending::<()>()).await, None);
        assert_eq!(began.elapsed(), LIMIT - SECOND);
        assert!(!time.is_over());
        assert_eq!(time.wait(Duration::ZERO, pending::<()>()).await, None);
        assert_eq!(began.elapsed(), LIMIT);
        assert!(time.is_over());
    }

    #[tokio::test(start_paused = true)]
    async fn time_in_which_we_did_not_run_is_not_counted() {
        let began = Instant::now();
        let stopped = async {
            advance(LIMIT * 10).await;
            sleep(LIMIT - SECOND).await;
        };
        assert_eq!(wait(LIMIT, stopped).await, Some(()));
        assert_eq!(began.elapsed(), LIMIT * 11 - SECOND);
    }
}
