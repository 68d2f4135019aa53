//! Whether a Pod keeps others waiting: for headers, for failures, for what it has. Who does is asked for what it has alone, or after
//! the others. Pure; time is passed in.

use super::offences::{FIRST, Offences};
use crate::relay::origin::Origin;
use crate::relay::trial::Trial;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// What failures may cost within `FIRST`. A pull asks five times and more, and would meet them at each.
const BEARABLE: Duration = Duration::from_secs(1);
/// And what those may over what it has itself, which it has only to look up.
pub(in crate::relay) const BEARABLE_ITSELF: Duration = Duration::from_millis(500);

#[derive(Debug, Default)]
pub(in crate::relay) struct Lateness {
    /// Answers that did not come, or were of no use and came late.
    late: Offences,
    /// It took long to tell of what it has.
    dawdled: Offences,
    /// What it failed over, asked as the runtime asked.
    in_vain: Lost,
    /// What it failed over, asked for what it has.
    in_vain_itself: Lost,
    /// What it has came, but took so much longer than it should have.
    dawdling: Lost,
    /// When that was last added to.
    took_time: Option<Instant>,
    /// When headers last took long.
    answered_slowly: Option<Instant>,
}

/// Time that was lost.
#[derive(Debug, Default)]
struct Lost {
    since: Option<Instant>,
    time: Duration,
}

impl Lost {
    /// Whether it is more than a Pod is borne with; then it is counted anew.
    fn add(&mut self, time: Duration, bearable: Duration, now: Instant) -> bool {
        if self.since.is_none_or(|since| now >= since + FIRST) {
            *self = Self { since: Some(now), time: Duration::ZERO };
        }
        self.time += time;
        let is_too_much = self.time > bearable;
        if is_too_much {
            *self = Self::default();
        }
        is_too_much
    }
}

impl Lateness {
    /// No headers came, in more time than a cache gives its upstream.
    pub(in crate::relay) fn keep_waiting(&mut self, trial: Trial, now: Instant) {
        self.late.add(&Arc::new(trial), now);
    }

    /// What came, after so long, was of no use.
    pub(in crate::relay) fn fail(&mut self, after: Duration, trial: Trial, now: Instant) {
        if !self.is_late() && self.in_vain.add(after, BEARABLE, now) {
            self.keep_waiting(trial, now);
        }
    }

    /// Asked for what it has, it neither gave it nor said that it has it not. Whether that happened for too long by now.
    pub(in crate::relay) fn fail_itself(&mut self, after: Duration, now: Instant) -> bool {
        self.in_vain_itself.add(after, BEARABLE_ITSELF, now)
    }

    /// Headers came, hardly sooner. A pull asks five times and more, so the second such answer within a minute is as bad as none.
    pub(in crate::relay) fn answer_slowly(&mut self, trial: Trial, now: Instant) {
        if self.answered_slowly.replace(now).is_some_and(|before| now < before + FIRST) {
            self.keep_waiting(trial, now);
        }
    }

    /// It took its time to tell of what it has. No body makes up for that.
    pub(in crate::relay) fn dawdle(&mut self, trial: Trial, now: Instant) {
        self.dawdled.add(&Arc::new(trial), now);
    }

    /// What it has took so much longer than it should have, which a pull loses with each of its parts. Whether it is held against it.
    pub(in crate::relay) fn take_time(&mut self, too_much: Duration, trial: Trial, now: Instant) -> bool {
        // What is lost beside one another is lost once.
        let since = self.took_time.replace(now).map_or(Duration::MAX, |before| now.duration_since(before));
        let is_dawdling = self.dawdling.add(too_much.min(since), BEARABLE, now);
        if is_dawdling {
            self.dawdle(trial, now);
        }
        is_dawdling
    }

    /// Headers came from there. Who holds back blobs may well answer for manifests, so that ends no pause.
    pub(in crate::relay) fn answer(&mut self, origin: Origin) {
        if origin == Origin::Upstream {
            let over = [&mut self.late, &mut self.dawdled].into_iter().filter(|offences| !offences.is_refused());
            over.for_each(|offences| *offences = Offences::default());
        }
    }

    /// Whether it is asked for what it has alone.
    pub(in crate::relay) fn is_late(&self) -> bool {
        self.late.is_refused()
    }

    /// Whether another is the better choice, if there is one.
    pub(super) fn is_last_choice(&self) -> bool {
        self.is_late() || self.dawdled.is_refused()
    }

    pub(super) fn offences(&self) -> [&Offences; 2] {
        [&self.late, &self.dawdled]
    }

    pub(super) fn offences_mut(&mut self) -> [&mut Offences; 2] {
        [&mut self.late, &mut self.dawdled]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relay::conduct::offences::tests::trial;

    #[test]
    fn who_answers_slowly_again_is_as_late_as_who_does_not() {
        let (mut lateness, now) = (Lateness::default(), Instant::now());
        lateness.answer_slowly(trial(), now);
        lateness.answer_slowly(trial(), now + FIRST);
        assert!(!lateness.is_late(), "that is long ago");
        lateness.answer_slowly(trial(), now + FIRST + Duration::from_secs(4));
        assert!(lateness.is_late());
    }

    #[test]
    fn who_takes_a_little_too_long_again_and_again_is_asked_last() {
        let (mut lateness, now) = (Lateness::default(), Instant::now());
        for (after, is_last) in [(0, false), (0, false), (0, false), (61, false), (62, false), (62, false), (63, true)]
        {
            lateness.take_time(BEARABLE / 2, trial(), now + Duration::from_secs(after));
            assert_eq!((lateness.is_last_choice(), lateness.is_late()), (is_last, false), "after {after} s");
        }
    }

    #[test]
    fn many_short_failures_are_as_bad_as_a_long_one() {
        let (mut lateness, now) = (Lateness::default(), Instant::now());
        let (short, long) = (Duration::from_millis(400), BEARABLE + Duration::from_millis(1));
        lateness.fail(short, trial(), now);
        lateness.fail(short, trial(), now);
        lateness.fail(short, trial(), now + FIRST);
        assert!(!lateness.is_late(), "some of them are long ago");
        lateness.fail(short, trial(), now + FIRST);
        lateness.fail(short, trial(), now + FIRST);
        assert!(lateness.is_late());
        assert!(!lateness.fail_itself(short, now) && lateness.fail_itself(long, now));
        assert!(!lateness.fail_itself(short, now), "counted anew");
    }
}
