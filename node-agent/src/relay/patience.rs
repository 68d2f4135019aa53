//! How long a body is waited for. Pure; time is passed in.
//!
//! Only the time that the cache is waited for counts: a runtime that takes its time is not the cache's fault.

use std::time::Duration;
use tokio::time::Instant;

/// A cache that sends nothing of a body for this long is not waited for.
pub(super) const STALL: Duration = Duration::from_secs(15);
/// What the cache has on its disk comes faster than this ...
pub(super) const SLOWEST_HIT: u64 = 256 * 1024;
/// ... over this much waiting.
const WINDOW: Duration = Duration::from_secs(5);

/// Why the wait ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exhausted {
    /// Nothing came.
    Stalled,
    /// Too little came of a hit.
    Slow,
}

/// The patience with one body.
#[derive(Debug)]
pub(super) struct Patience {
    is_hit: bool,
    waiting_since: Option<Instant>,
    /// Waited in this window, and what came in it.
    waited: Duration,
    came: u64,
}

impl Patience {
    /// With a body that the cache has on its disk, or that it fetches as we ask.
    pub(super) fn new(is_hit: bool) -> Self {
        Self { is_hit, waiting_since: None, waited: Duration::ZERO, came: 0 }
    }

    /// With another Pod's answer for the same body.
    pub(super) fn anew(&self) -> Self {
        Self::new(self.is_hit)
    }

    /// Nothing is here now. Says when to look again.
    pub(super) fn wait(&mut self, now: Instant) -> Instant {
        let since = *self.waiting_since.get_or_insert(now);
        let stall = since + STALL;
        if self.is_hit { stall.min(since + WINDOW.saturating_sub(self.waited)) } else { stall }
    }

    /// Something came.
    pub(super) fn came(&mut self, bytes: u64, now: Instant) {
        if let Some(since) = self.waiting_since.take() {
            self.waited += now.duration_since(since);
        }
        self.came += bytes;
    }

    /// Whether it is over, when nothing came by the time to look again.
    pub(super) fn exhausted(&mut self, now: Instant) -> Option<Exhausted> {
        let since = self.waiting_since?;
        if now.duration_since(since) >= STALL {
            return Some(Exhausted::Stalled);
        }
        if !self.is_hit || self.waited + now.duration_since(since) < WINDOW {
            return None;
        }
        if self.came < SLOWEST_HIT * WINDOW.as_secs() {
            return Some(Exhausted::Slow);
        }
        // The next window begins; the stall goes on from where it began.
        (self.waited, self.came) = (Duration::ZERO, 0);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    /// Plays a body that brings `bytes` after each wait of `every`, read at once; says when and why the patience ends.
    fn check(is_hit: bool, every: f64, bytes: u64, expected: Option<(f64, Exhausted)>) {
        let start = Instant::now();
        let (mut patience, mut now, mut next) = (Patience::new(is_hit), start, start + seconds(every));
        while now < start + seconds(60.0) {
            let look = patience.wait(now);
            if look >= next {
                now = next;
                next += seconds(every);
                patience.came(bytes, now);
            } else {
                now = look;
                if let Some(exhausted) = patience.exhausted(now) {
                    assert_eq!(Some((now.duration_since(start).as_secs_f64().round(), exhausted)), expected);
                    return;
                }
            }
        }
        assert_eq!(expected, None);
    }

    #[test]
    fn a_stall_ends_after_fifteen_seconds() {
        check(false, 100.0, 1, Some((15.0, Exhausted::Stalled)));
        check(false, 14.0, 1, None);
    }

    #[test]
    fn a_slow_hit_ends_after_five() {
        check(true, 100.0, 1, Some((5.0, Exhausted::Slow)));
        check(true, 0.3, 1024, Some((5.0, Exhausted::Slow)));
        check(true, 0.3, 200 * 1024, None);
        check(false, 0.3, 1024, None);
    }

    #[test]
    fn a_slow_runtime_costs_no_patience() {
        let start = Instant::now();
        let mut patience = Patience::new(true);
        for i in 0..100 {
            // Each frame is here at once; the runtime takes a second for it.
            patience.came(1024, start + seconds(f64::from(i)));
        }
        assert_eq!(patience.exhausted(start + seconds(200.0)), None);
        assert_eq!(patience.wait(start + seconds(200.0)), start + seconds(205.0));
    }
}
