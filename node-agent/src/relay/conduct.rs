//! Whether the bodies that a Pod sends are worth waiting for: for a cache that answers every probe and then stalls, drips, breaks off
//! or sends something else. Pure; time is passed in.
//!
//! What the cache has on its disk is its own affair. What it fetches meanwhile may be slow because the upstream is, which must
//! not keep anybody from what it has.

use http::{HeaderMap, HeaderName, HeaderValue};
use std::time::Duration;
use tokio::time::Instant;

pub(super) const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");

/// Bodies are not asked for this long after the first offence, ...
const FIRST: Duration = Duration::from_secs(60);
/// ... twice as long after each further one, at most this long.
const LONGEST: Duration = Duration::from_secs(600);

/// What failures may cost within `FIRST`. A pull asks five times and more, and would meet them at each.
const BEARABLE: Duration = Duration::from_secs(1);

/// Where the bytes of a body come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// The cache's disk.
    Disk,
    /// The upstream, through the cache; or the cache does not say.
    Upstream,
}

/// How the cache says that it has something on its disk.
const FROM_DISK: [&[u8]; 2] = [b"breakwater; hit", b"breakwater; fwd=stale"];

impl Origin {
    /// Of an answer.
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let status = headers.get(CACHE_STATUS).map(HeaderValue::as_bytes).unwrap_or_default();
        if FROM_DISK.iter().any(|said| status.starts_with(said)) { Self::Disk } else { Self::Upstream }
    }
}

/// What is held against one Pod.
#[derive(Debug, Default)]
pub(super) struct Conduct {
    disk: Offences,
    upstream: Offences,
    /// Answers that did not come, or were of no use and came late.
    late: Offences,
    /// What it failed over, asked as the runtime asked.
    in_vain: Lost,
    /// What it failed over, asked for what it has.
    in_vain_itself: Lost,
    /// When headers last took long.
    answered_slowly: Option<Instant>,
    last_break: Option<Instant>,
}

/// Time that was lost to failures.
#[derive(Debug, Default)]
struct Lost {
    since: Option<Instant>,
    time: Duration,
}

impl Lost {
    /// Whether it is more than a Pod is borne with; then it is counted anew.
    fn add(&mut self, time: Duration, now: Instant) -> bool {
        if self.since.is_none_or(|since| now >= since + FIRST) {
            *self = Self { since: Some(now), time: Duration::ZERO };
        }
        self.time += time;
        let is_too_much = self.time > BEARABLE;
        if is_too_much {
            *self = Self::default();
        }
        is_too_much
    }
}

#[derive(Debug, Default)]
struct Offences {
    count: u32,
    refused_until: Option<Instant>,
}

impl Offences {
    fn add(&mut self, now: Instant) {
        // Those that run beside one another are one.
        if self.is_refused(now) {
            return;
        }
        let pause = FIRST.saturating_mul(2_u32.saturating_pow(self.count)).min(LONGEST);
        self.count = self.count.saturating_add(1);
        self.refused_until = Some(now + pause);
    }

    fn is_refused(&self, now: Instant) -> bool {
        self.refused_until.is_some_and(|until| now < until)
    }
}

impl Conduct {
    /// A body stalled, dripped or was another's.
    pub(super) fn offend(&mut self, origin: Origin, now: Instant) {
        self.upstream.add(now);
        if origin == Origin::Disk {
            self.disk.add(now);
        }
    }

    /// No headers came, in more time than a cache gives its upstream.
    pub(super) fn keep_waiting(&mut self, now: Instant) {
        self.late.add(now);
    }

    /// What came, after so long, was of no use.
    pub(super) fn fail(&mut self, after: Duration, now: Instant) {
        if !self.is_late(now) && self.in_vain.add(after, now) {
            self.late.add(now);
        }
    }

    /// Asked for what it has, it neither gave it nor said that it has it not. Whether that happened for too long by now.
    pub(super) fn fail_itself(&mut self, after: Duration, now: Instant) -> bool {
        self.in_vain_itself.add(after, now)
    }

    /// Headers came, hardly sooner. A pull asks five times and more, so the second such answer within a minute is as bad as none.
    pub(super) fn answer_slowly(&mut self, now: Instant) {
        if self.answered_slowly.replace(now).is_some_and(|before| now < before + FIRST) {
            self.late.add(now);
        }
    }

    /// Headers came from there. Who holds back blobs may well answer for manifests, so that ends no pause.
    pub(super) fn answer(&mut self, origin: Origin, now: Instant) {
        if origin == Origin::Upstream && !self.is_late(now) {
            self.late = Offences::default();
        }
    }

    /// Whether it is asked for what it has alone.
    pub(super) fn is_late(&self, now: Instant) -> bool {
        self.late.is_refused(now)
    }

    /// A body ended before its end. That may be a restart, and keeps nobody from asking.
    pub(super) fn break_off(&mut self, now: Instant) {
        self.last_break = Some(now);
    }

    /// A body of some size arrived.
    pub(super) fn behave(&mut self, origin: Origin) {
        self.upstream = Offences::default();
        self.last_break = None;
        if origin == Origin::Disk {
            self.disk = Offences::default();
        }
    }

    /// Whether a body from there is to be asked elsewhere.
    pub(super) fn is_refused(&self, origin: Origin, now: Instant) -> bool {
        self.of(origin).is_refused(now)
    }

    /// Whether another is the better choice, if there is one.
    pub(super) fn is_last_choice(&self, now: Instant) -> bool {
        self.upstream.is_refused(now) || self.is_late(now) || self.last_break.is_some_and(|broke| now < broke + FIRST)
    }

    /// Whether a body from there is waited for less long: the last was an offence, or downloads are refused at the moment.
    pub(super) fn is_on_probation(&self, origin: Origin, now: Instant) -> bool {
        self.of(origin).count > 0 || self.upstream.is_refused(now)
    }

    fn of(&self, origin: Origin) -> &Offences {
        match origin {
            Origin::Disk => &self.disk,
            Origin::Upstream => &self.upstream,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Origin::{Disk, Upstream};

    #[test]
    fn a_slow_upstream_keeps_nobody_from_what_the_cache_has() {
        let (mut conduct, now) = (Conduct::default(), Instant::now());
        conduct.offend(Upstream, now);
        assert!(conduct.is_refused(Upstream, now) && !conduct.is_refused(Disk, now));
        conduct.offend(Disk, now);
        assert!(conduct.is_refused(Disk, now));
        assert!(!conduct.is_refused(Disk, now + FIRST) && conduct.is_on_probation(Disk, now + FIRST));
        conduct.behave(Upstream);
        assert!(conduct.is_on_probation(Disk, now) && !conduct.is_on_probation(Upstream, now));
        conduct.behave(Disk);
        assert!(!conduct.is_on_probation(Disk, now));
    }

    #[test]
    fn who_broke_off_is_asked_after_the_others() {
        let (mut conduct, now) = (Conduct::default(), Instant::now());
        conduct.break_off(now);
        assert!(conduct.is_last_choice(now) && !conduct.is_refused(Upstream, now));
        assert!(!conduct.is_last_choice(now + FIRST));
        conduct.behave(Disk);
        assert!(!conduct.is_last_choice(now));
    }

    #[test]
    fn who_keeps_others_waiting_is_asked_for_what_he_has_for_a_while() {
        let (mut conduct, now) = (Conduct::default(), Instant::now());
        conduct.keep_waiting(now);
        conduct.answer(Upstream, now);
        assert!(conduct.is_late(now) && conduct.is_last_choice(now) && !conduct.is_refused(Upstream, now));
        assert!(!conduct.is_late(now + FIRST));
        conduct.keep_waiting(now + FIRST);
        assert!(conduct.is_late(now + FIRST * 3 - Duration::from_secs(1)), "twice as long");
        conduct.answer(Disk, now + FIRST * 3);
        conduct.answer(Upstream, now + FIRST * 3);
        conduct.keep_waiting(now + FIRST * 3);
        assert!(!conduct.is_late(now + FIRST * 4), "it had answered");
    }

    #[test]
    fn who_answers_slowly_again_is_as_late_as_who_does_not() {
        let (mut conduct, now) = (Conduct::default(), Instant::now());
        conduct.answer_slowly(now);
        conduct.answer_slowly(now + FIRST);
        assert!(!conduct.is_late(now + FIRST), "that is long ago");
        conduct.answer_slowly(now + FIRST + Duration::from_secs(4));
        assert!(conduct.is_late(now + FIRST + Duration::from_secs(4)));
    }

    #[test]
    fn many_short_failures_are_as_bad_as_a_long_one() {
        let (mut conduct, now) = (Conduct::default(), Instant::now());
        let (short, long) = (Duration::from_millis(400), BEARABLE + Duration::from_millis(1));
        conduct.fail(short, now);
        conduct.fail(short, now);
        conduct.fail(short, now + FIRST);
        assert!(!conduct.is_late(now + FIRST), "some of them are long ago");
        conduct.fail(short, now + FIRST);
        conduct.fail(short, now + FIRST);
        assert!(conduct.is_late(now + FIRST));
        assert!(!conduct.fail_itself(short, now) && conduct.fail_itself(long, now));
        assert!(!conduct.fail_itself(short, now), "counted anew");
    }

    #[test]
    fn each_offence_after_a_pause_makes_the_next_pause_longer() {
        let (mut conduct, mut now) = (Conduct::default(), Instant::now());
        for pause in [60, 120, 240, 480, 600, 600] {
            conduct.offend(Disk, now);
            conduct.offend(Disk, now + Duration::from_secs(1));
            now += Duration::from_secs(pause);
            assert!(
                conduct.is_refused(Disk, now - Duration::from_secs(1)) && !conduct.is_refused(Disk, now),
                "{pause}"
            );
        }
    }
}
