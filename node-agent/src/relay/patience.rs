//! How long a body is waited for. Pure; time is passed in.
//!
//! Only the time that the cache is waited for counts: neither a runtime that takes its time is the cache's fault, nor a machine on
//! which we do not get to run.

use super::awake::LOOK;
use super::origin::Origin;
use std::collections::VecDeque;
use std::time::Duration;
use tokio::time::Instant;

/// A cache that sends nothing of a body for this long is not waited for, over all its Pods together.
pub(super) const STALL: Duration = Duration::from_secs(15);
/// The same for a body that fits into one packet or a few, and for a Pod that stalled before.
const SHORT_STALL: Duration = Duration::from_secs(5);
/// And from a Pod that answers nobody any more.
const GONE_STALL: Duration = Duration::from_secs(1);
/// What is small: nobody's link is so slow.
pub(super) const SMALL: u64 = 64 * 1024;
/// What the cache has on its disk comes faster than this ...
pub(super) const SLOWEST_HIT: u64 = 256 * 1024;
/// ... over this much waiting, ...
const HIT_WINDOW: Duration = Duration::from_secs(5);
/// ... or this much where it failed to before.
const PROBATION_WINDOW: Duration = Duration::from_secs(2);
/// What comes through it from the upstream drips at least like this: what is slower has as good as stalled, and the cache goes on with it
/// by itself ...
const SLOWEST_MISS: u64 = 16 * 1024;
/// ... over this share of the wait for a stall, so that a drip costs a pull no more than a stall, manifest included.
const MISS_WINDOW: (u32, u32) = (2, 3);

/// What comes like this costs a pull no time worth a word.
const DUE: u64 = 1024 * 1024;

/// How long so many bytes may take.
pub(super) fn due(bytes: u64) -> Duration {
    Duration::from_millis(bytes.saturating_mul(1000) / DUE)
}

/// A window slides by this part of it: what came in a burst counts for no longer than the window.
const STEPS: u32 = 5;

/// Why the wait ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exhausted {
    /// Nothing came.
    Stalled,
    /// Too little came.
    Slow,
    /// Nothing came, and nobody is there who could send it.
    Gone,
}

/// How long a body is waited for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    origin: Origin,
    stall: Duration,
    /// Over so much waiting, at least so many bytes have come a second.
    window: Duration,
    slowest: u64,
}

impl Limits {
    /// For a body of this length, of which `left` may be waited for nothing.
    pub(super) fn new(origin: Origin, length: Option<u64>, is_on_probation: bool, left: Duration) -> Self {
        let is_small = length.is_some_and(|length| length <= SMALL);
        let stall = if is_small || is_on_probation { left.min(SHORT_STALL) } else { left };
        let (window, slowest) = match origin {
            Origin::Disk if is_on_probation => (PROBATION_WINDOW, SLOWEST_HIT),
            Origin::Disk => (HIT_WINDOW, SLOWEST_HIT),
            Origin::Upstream => (left * MISS_WINDOW.0 / MISS_WINDOW.1, SLOWEST_MISS),
        };
        Self { origin, stall, window, slowest }
    }
}

/// The patience with one Pod's answer.
#[derive(Debug)]
pub(super) struct Patience {
    limits: Limits,
    /// Nothing is here, and this is when that was looked at last.
    looked: Option<Instant>,
    /// Waited in all.
    total: Duration,
    /// Waited since something came.
    silent: Duration,
    /// Waited in this step of the window, and what came in it and in those before it.
    waited: Duration,
    came: VecDeque<u64>,
    is_spent: bool,
}

impl Patience {
    pub(super) fn new(limits: Limits) -> Self {
        let came = VecDeque::from([0]);
        let [total, silent, waited] = [Duration::ZERO; 3];
        Self { limits, looked: None, total, silent, waited, came, is_spent: false }
    }

    /// How long it was needed.
    pub(super) fn total(&self) -> Duration {
        self.total
    }

    /// How long it lasts while nothing comes, or too little.
    pub(super) fn lasts(&self, exhausted: Exhausted) -> Duration {
        match exhausted {
            Exhausted::Stalled => self.limits.stall,
            Exhausted::Slow => self.limits.window,
            Exhausted::Gone => GONE_STALL,
        }
    }

    /// Nothing is here now. Says when to look again.
    pub(super) fn wait(&mut self, now: Instant) -> Instant {
        let stall = self.limits.stall.saturating_sub(self.silent);
        let step = self.step().saturating_sub(self.waited);
        let left = if self.counts() { stall.min(step) } else { stall };
        *self.looked.get_or_insert(now) + left.min(LOOK)
    }

    /// Something came.
    pub(super) fn came(&mut self, bytes: u64, now: Instant) {
        self.count(now);
        (self.looked, self.silent) = (None, Duration::ZERO);
        self.came[0] += bytes;
        // What comes often leaves no time for a look. One step is left to it, or all of the window would slide away at the next.
        while self.counts() && self.waited >= self.step() * 2 {
            self.is_spent |= self.is_too_little();
            self.slide();
        }
    }

    /// Whether too little came, although it came so often that nobody had to look.
    pub(super) fn is_spent(&self) -> bool {
        self.is_spent
    }

    /// The next step begins.
    fn slide(&mut self) {
        self.waited -= self.step();
        self.came.truncate(STEPS as usize - 1);
        self.came.push_front(0);
    }

    fn step(&self) -> Duration {
        self.limits.window / STEPS
    }

    /// A look that comes late shows that we did not run, whatever the cache did meanwhile: it counts as one in time.
    fn count(&mut self, now: Instant) {
        let Some(looked) = self.looked.replace(now) else { return };
        let waited = now.duration_since(looked).min(LOOK);
        self.total += waited;
        self.silent += waited;
        self.waited += waited;
        // What has not begun is within its first step.
        if !self.counts() {
            self.waited = self.waited.min(self.step());
        }
    }

    /// Whether bytes are counted. An upstream may take its time to begin: that is a stall, if anything.
    fn counts(&self) -> bool {
        self.limits.origin == Origin::Disk || self.came.len() > 1 || self.came[0] > 0
    }

    /// Whether it is over, when nothing came by the time to look again; `is_out` if the Pod answers nobody.
    pub(super) fn exhausted(&mut self, now: Instant, is_out: bool) -> Option<Exhausted> {
        self.count(now);
        if is_out && self.silent >= GONE_STALL {
            return Some(Exhausted::Gone);
        }
        if self.silent >= self.limits.stall {
            return Some(Exhausted::Stalled);
        }
        if !self.counts() || self.waited < self.step() {
            return None;
        }
        if self.is_too_little() {
            return Some(Exhausted::Slow);
        }
        // The stall goes on from where it began.
        self.slide();
        None
    }

    /// Of a whole window.
    fn is_too_little(&self) -> bool {
        if self.came.len() < STEPS as usize {
            return false;
        }
        // An upstream that was fast until it stalled has the time of a stall.
        let counted = match self.limits.origin {
            Origin::Disk => self.limits.window,
            Origin::Upstream => self.limits.window.saturating_sub(self.silent),
        };
        self.came.iter().sum::<u64>() < self.limits.slowest * counted.as_millis() as u64 / 1000
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Origin::{Disk, Upstream};

    fn seconds(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    /// Plays a body that brings `bytes` after each wait of `every`, read at once; says when and why the patience ends.
    fn check(limits: Limits, every: f64, bytes: u64, expected: Option<(f64, Exhausted)>) {
        let start = Instant::now();
        let (mut patience, mut now, mut next) = (Patience::new(limits), start, start + seconds(every));
        while now < start + seconds(60.0) {
            let look = patience.wait(now);
            if look >= next {
                now = next;
                next += seconds(every);
                patience.came(bytes, now);
            } else {
                now = look;
                if let Some(exhausted) = patience.exhausted(now, false) {
                    assert_eq!(Some((now.duration_since(start).as_secs_f64().round(), exhausted)), expected);
                    return;
                }
            }
        }
        assert_eq!(expected, None);
    }

    fn limits(origin: Origin) -> Limits {
        Limits::new(origin, None, false, STALL)
    }

    #[test]
    fn a_stall_ends_after_fifteen_seconds_and_a_drip_after_ten() {
        check(limits(Upstream), 100.0, 1, Some((15.0, Exhausted::Stalled)));
        check(limits(Upstream), 1.0, 1, Some((10.0, Exhausted::Slow)));
        check(limits(Upstream), 0.5, 512, Some((10.0, Exhausted::Slow)));
        check(limits(Upstream), 0.5, 7 * 1024, Some((10.0, Exhausted::Slow)));
        check(limits(Upstream), 14.0, 300 * 1024, None);
    }

    #[test]
    fn a_burst_buys_no_more_time_than_the_window() {
        for (origin, expected) in [(Upstream, 12.0), (Disk, 6.0)] {
            let start = Instant::now();
            let mut patience = Patience::new(limits(origin));
            patience.wait(start);
            patience.came(2 << 20, start);
            let end = (1..200).find_map(|look| {
                let now = start + LOOK * look;
                patience.wait(now - LOOK);
                patience.came(1024, now);
                patience.wait(now);
                patience.exhausted(now, false).map(|_| (LOOK * look).as_secs_f64())
            });
            assert_eq!(end, Some(expected), "{origin:?}");
        }
    }

    #[test]
    fn who_was_fast_before_a_stall_has_the_time_of_a_stall() {
        let start = Instant::now();
        let mut patience = Patience::new(limits(Upstream));
        patience.wait(start);
        patience.came(20 * 1024, start + LOOK);
        patience.wait(start + LOOK);
        let mut ends = (2..).map(|look| (look, patience.exhausted(start + look * LOOK, false)));
        let (look, why) = ends.find(|(_, exhausted)| exhausted.is_some()).unwrap();
        assert_eq!(((look - 1) * LOOK, why), (STALL, Some(Exhausted::Stalled)));
    }

    #[test]
    fn nothing_is_waited_for_from_a_pod_that_is_gone() {
        let start = Instant::now();
        let mut patience = Patience::new(limits(Upstream));
        patience.came(1024, start);
        patience.wait(start);
        assert_eq!(patience.exhausted(start + LOOK, true), None, "what it sent may be on its way");
        assert_eq!(patience.exhausted(start + 2 * LOOK, false), None);
        assert_eq!(patience.exhausted(start + 3 * LOOK, true), Some(Exhausted::Gone));
    }

    #[test]
    fn many_short_waits_add_up_to_no_stall_and_hide_no_drip() {
        // Always here before the next look: more than ten times what is asked for, and less than a tenth of it.
        for (origin, bytes, is_slow) in [(Disk, 256 * 1024, false), (Disk, 1024, true), (Upstream, 64, true)] {
            let (mut patience, mut now) = (Patience::new(limits(origin)), Instant::now());
            for _ in 0..600 {
                patience.wait(now);
                now += seconds(0.05);
                patience.came(bytes, now);
            }
            patience.wait(now);
            assert_eq!(patience.is_spent(), is_slow, "{origin:?}");
            assert!(is_slow || (0..10).all(|_| patience.exhausted(now, false).is_none()));
        }
    }

    #[test]
    fn a_slow_hit_ends_after_five() {
        check(limits(Disk), 100.0, 1, Some((5.0, Exhausted::Slow)));
        check(limits(Disk), 0.3, 1024, Some((5.0, Exhausted::Slow)));
        check(limits(Disk), 0.3, 200 * 1024, None);
    }

    #[test]
    fn little_is_waited_for_less_and_so_is_who_stalled_before() {
        check(Limits::new(Upstream, Some(500), false, STALL), 100.0, 1, Some((5.0, Exhausted::Stalled)));
        check(Limits::new(Upstream, None, true, STALL), 100.0, 1, Some((5.0, Exhausted::Stalled)));
        check(Limits::new(Upstream, None, false, STALL / 2), 100.0, 1, Some((8.0, Exhausted::Stalled)));
        check(Limits::new(Disk, None, true, STALL), 100.0, 1, Some((2.0, Exhausted::Slow)));
    }

    #[test]
    fn a_slow_runtime_costs_no_patience() {
        let start = Instant::now();
        let mut patience = Patience::new(limits(Disk));
        for i in 0..100 {
            // Each frame is here at once; the runtime takes a second for it.
            patience.came(1024, start + seconds(f64::from(i)));
        }
        assert_eq!(patience.exhausted(start + seconds(200.0), false), None);
        assert_eq!(patience.wait(start + seconds(200.0)), start + seconds(200.0) + LOOK);
    }

    #[test]
    fn time_in_which_we_do_not_run_costs_no_patience() {
        let start = Instant::now();
        let mut patience = Patience::new(limits(Disk));
        patience.wait(start);
        assert_eq!(patience.exhausted(start + seconds(60.0), false), None, "nothing had a chance to come");
        patience.wait(start + seconds(60.0));
        patience.came(1024, start + seconds(120.0));
        patience.wait(start + seconds(120.0));
        assert_eq!(patience.exhausted(start + seconds(121.0), false), None, "this much was here meanwhile");
        let ends = (1..60).find(|look| patience.exhausted(start + seconds(121.0) + *look * LOOK, false).is_some());
        assert_eq!(ends, Some(7), "three looks were late, and each counts as one in time");
    }
}
