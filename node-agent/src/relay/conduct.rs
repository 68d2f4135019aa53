//! Whether what a Pod sends is worth waiting for: for a cache that answers every probe and then stalls, drips, breaks off or sends
//! something else. Pure; time is passed in.
//!
//! What the cache has on its disk is its own affair. What it fetches meanwhile may be slow because the upstream is, which must
//! not keep anybody from what it has.

mod controls;
mod exceptions;
mod lateness;
mod nonsense;
mod offences;
mod suspicions;

pub(super) use lateness::{BEARABLE_ITSELF, Lateness};

use super::ask::Content;
use super::origin::Origin;
use super::trial::Trial;
use controls::Controls;
use exceptions::Exceptions;
use nonsense::Nonsense;
use offences::{FIRST, Offences};
use std::sync::Arc;
use suspicions::Suspicions;
use tokio::time::Instant;

/// What is held against one Pod.
#[derive(Debug, Default)]
pub(super) struct Conduct {
    /// Bodies from its disk.
    disk: Offences,
    /// Bodies that it fetched.
    upstream: Offences,
    pub(super) lateness: Lateness,
    nonsense: Nonsense,
    last_break: Option<Instant>,
    exceptions: Exceptions,
    suspicions: Suspicions,
    controls: Controls,
}

impl Conduct {
    /// A body stalled, dripped or was another's.
    pub(super) fn offend(&mut self, trial: &Arc<Trial>, now: Instant) {
        self.upstream.add(trial, now);
        if trial.origin == Origin::Disk {
            self.disk.add(trial, now);
        }
    }

    /// What is to be tried next, and when.
    pub(super) fn next_trial(&self) -> Option<(Instant, Arc<Trial>)> {
        self.pauses().min_by_key(|(until, _)| *until).map(|(until, trial)| (until, trial.clone()))
    }

    fn pauses(&self) -> impl Iterator<Item = (Instant, &Arc<Trial>)> {
        let all =
            [&self.disk, &self.upstream].into_iter().chain(self.lateness.offences()).chain(self.nonsense.offences());
        all.filter_map(Offences::pause).chain(self.exceptions.pauses()).chain(self.suspicions.pauses())
    }

    fn of_all_it_sends(&mut self) -> impl Iterator<Item = &mut Offences> {
        let bodies = [&mut self.disk, &mut self.upstream].into_iter();
        bodies.chain(self.lateness.offences_mut()).chain(self.nonsense.offences_mut())
    }

    fn awaiting(&mut self, tried: &Arc<Trial>) -> impl Iterator<Item = &mut Offences> {
        self.of_all_it_sends().filter(|offences| offences.awaits(tried))
    }

    /// What was tried went well.
    pub(super) fn acquit(&mut self, tried: &Arc<Trial>) {
        self.nonsense.settle(tried);
        self.awaiting(tried).for_each(Offences::end);
        self.exceptions.acquit(tried);
        self.suspicions.settle(tried);
    }

    /// What was tried failed, and so does other content or, where that is not settled, none tells: the next pause begins.
    pub(super) fn convict(&mut self, tried: &Arc<Trial>, is_settled: bool, now: Instant) {
        self.awaiting(tried).for_each(|offences| offences.begin(tried, is_settled, now));
        if self.exceptions.convict(tried, is_settled, now) {
            self.offend(tried, now);
        }
    }

    /// What was tried failed, and other content does not as far as is known: the Pod is asked for all but that and, where all other
    /// was shorter, but what is longer.
    pub(super) fn withhold(&mut self, tried: &Arc<Trial>, is_beyond: bool, now: Instant) {
        self.nonsense.settle(tried);
        self.awaiting(tried).for_each(Offences::end);
        self.exceptions.withhold(tried, is_beyond, now);
    }

    /// What shows whether the Pod is at fault, or one content alone: the same, tried with others.
    pub(super) fn controls(&self, tried: &Trial) -> Vec<Trial> {
        self.controls.of(tried)
    }

    /// This was asked for in vain, though other content failed. Whether something is to be tried now, because there is something to
    /// compare with at last.
    pub(super) fn want(&mut self, content: &Arc<Content>, now: Instant) -> bool {
        if self.pauses().any(|(_, trial)| trial.content.target == content.target) {
            return false;
        }
        self.controls.want(content);
        self.of_all_it_sends().for_each(|offences| offences.hasten(content, now));
        self.exceptions.hasten(content, now);
        self.pauses().any(|(until, _)| until <= now)
    }

    /// Whether this alone is not asked for.
    pub(super) fn withholds(&self, content: &Content) -> bool {
        self.exceptions.trial_of(content).is_some_and(Trial::is_of_bodies)
    }

    /// Whether this is asked for where the Pod has it alone.
    pub(super) fn is_late_with(&self, content: &Content) -> bool {
        self.lateness.is_late() || self.exceptions.trial_of(content).is_some_and(Trial::is_of_headers)
    }

    /// Another Pod sent something else than this: it is tried at once.
    pub(super) fn suspect(&mut self, content: &Arc<Content>, now: Instant) {
        self.suspicions.add(content, now);
    }

    /// Until when any large blob of it may be a lie.
    pub(super) fn is_suspect_until(&self, now: Instant) -> Option<Instant> {
        self.suspicions.last_until(now)
    }

    /// Whether a large blob of it from there, of this length, may be a lie or end where another did.
    pub(super) fn is_doubtful(&self, content: &Content, origin: Origin, length: u64, now: Instant) -> bool {
        let is_suspect = self.is_suspect_until(now).is_some() || self.suspicions.are_of(content);
        is_suspect || self.exceptions.are_beyond(origin, length)
    }

    /// What came no cache of ours would say.
    pub(super) fn talk_nonsense(&mut self, trial: Trial, now: Instant) {
        self.nonsense.add(&Arc::new(trial), now);
    }

    /// What came of this was of use.
    pub(super) fn talk_sense(&mut self, content: &Content) {
        self.nonsense.end(content);
    }

    /// Whether it talks nonsense alone, be it of blobs.
    pub(super) fn is_useless(&self) -> bool {
        self.nonsense.is_lasting()
    }

    /// A body ended before its end. That may be a restart, and keeps nobody from asking.
    pub(super) fn break_off(&mut self, now: Instant) {
        self.last_break = Some(now);
    }

    /// A small body was right, which makes up for nothing and is something to compare with.
    pub(super) fn do_well(&mut self, content: &Arc<Content>) {
        self.controls.do_well(content, true);
    }

    /// A body of some size arrived. One that ran beside an offence makes up for nothing.
    pub(super) fn behave(&mut self, origin: Origin, content: &Arc<Content>) {
        self.last_break = None;
        self.controls.do_well(content, false);
        let offences = self.of_mut(origin);
        if !offences.is_refused() {
            *offences = Offences::default();
        }
    }

    /// A body from there arrived, where a pause keeps nobody from asking: it is over.
    pub(super) fn make_up(&mut self, origin: Origin) {
        self.of_mut(origin).end();
    }

    /// Whether a body from there is to be asked elsewhere.
    pub(super) fn is_refused(&self, origin: Origin) -> bool {
        self.of(origin).is_refused()
    }

    /// Whether another is the better choice, if there is one.
    pub(super) fn is_last_choice(&self, now: Instant) -> bool {
        let broke_lately = self.last_break.is_some_and(|broke| now < broke + FIRST);
        self.upstream.is_refused() || self.lateness.is_last_choice() || self.is_useless() || broke_lately
    }

    /// Whether a body from there is waited for less long: the last was an offence, or downloads are refused at the moment.
    pub(super) fn is_on_probation(&self, origin: Origin) -> bool {
        self.of(origin).is_on_record() || self.upstream.is_refused()
    }

    fn of(&self, origin: Origin) -> &Offences {
        match origin {
            Origin::Disk => &self.disk,
            Origin::Upstream => &self.upstream,
        }
    }

    fn of_mut(&mut self, origin: Origin) -> &mut Offences {
        match origin {
            Origin::Disk => &mut self.disk,
            Origin::Upstream => &mut self.upstream,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::offences::tests::{content, trial};
    use super::*;
    use Origin::{Disk, Upstream};
    use std::time::Duration;

    /// Ends the next pause, well or not; says how long after `now` it ended.
    fn end(conduct: &mut Conduct, is_well: bool, now: &mut Instant) -> Duration {
        let (until, trial) = conduct.next_trial().unwrap();
        let lasted = until.duration_since(*now);
        *now = until;
        if is_well {
            conduct.acquit(&trial);
        } else {
            conduct.convict(&trial, true, until);
        }
        lasted
    }

    #[test]
    fn a_slow_upstream_keeps_nobody_from_what_the_cache_has() {
        let (mut conduct, mut now) = (Conduct::default(), Instant::now());
        conduct.offend(&Arc::new(Trial::whole(&content("a"), Upstream)), now);
        assert!(conduct.is_refused(Upstream) && !conduct.is_refused(Disk));
        end(&mut conduct, true, &mut now);
        conduct.offend(&Arc::new(trial()), now);
        assert!(conduct.is_refused(Disk) && conduct.is_refused(Upstream));
    }

    #[test]
    fn a_pause_ends_where_the_trial_goes_well_and_only_a_pull_ends_probation() {
        let (mut conduct, mut now) = (Conduct::default(), Instant::now());
        conduct.offend(&Arc::new(trial()), now);
        conduct.behave(Disk, &trial().content);
        assert!(conduct.is_refused(Disk), "that ran beside it");
        assert_eq!(end(&mut conduct, false, &mut now), FIRST);
        assert!(conduct.is_refused(Disk) && conduct.is_refused(Upstream));
        assert_eq!(end(&mut conduct, true, &mut now), FIRST * 2);
        assert!(!conduct.is_refused(Disk) && !conduct.is_refused(Upstream), "one trial for both");
        assert!(conduct.is_on_probation(Disk) && conduct.is_on_probation(Upstream));
        conduct.behave(Disk, &trial().content);
        assert!(!conduct.is_on_probation(Disk) && conduct.is_on_probation(Upstream));
    }

    #[test]
    fn what_alone_goes_wrong_is_withheld_until_it_goes_well() {
        let (mut conduct, mut now) = (Conduct::default(), Instant::now());
        let ill = trial();
        let content = ill.content.clone();
        conduct.behave(Disk, &content);
        assert!(conduct.controls(&ill).is_empty(), "that is the same");
        conduct.offend(&Arc::new(ill), now);
        for pause in [FIRST, FIRST, FIRST * 2] {
            let (until, tried) = conduct.next_trial().unwrap();
            assert_eq!(until.duration_since(now), pause);
            conduct.withhold(&tried, false, until);
            now = until;
            assert!(!conduct.is_refused(Disk) && conduct.withholds(&content));
        }
        let (until, tried) = conduct.next_trial().unwrap();
        conduct.convict(&tried, true, until);
        assert_eq!(end(&mut conduct, true, &mut now), FIRST * 4, "two pauses");
        assert!(!conduct.withholds(&content) && conduct.next_trial().is_none());
    }

    #[test]
    fn what_failed_with_nothing_to_compare_is_tried_with_what_is_wanted_next() {
        let (mut conduct, mut now) = (Conduct::default(), Instant::now());
        conduct.offend(&Arc::new(trial()), now);
        let (until, tried) = conduct.next_trial().unwrap();
        now = until;
        conduct.convict(&tried, false, now);
        assert!(!conduct.want(&trial().content, now), "that is the same");
        assert!(conduct.want(&content("b"), now), "tried at once");
        let (until, tried) = conduct.next_trial().unwrap();
        assert_eq!(until, now);
        conduct.convict(&tried, false, now);
        assert!(!conduct.want(&content("b"), now), "once");
        end(&mut conduct, false, &mut now);
        assert!(!conduct.want(&content("c"), now), "there was something to compare with");
        assert!(end(&mut conduct, true, &mut now) > FIRST);
    }

    #[test]
    fn who_is_suspected_is_tried_at_once_and_kept_from_little() {
        let (mut conduct, now) = (Conduct::default(), Instant::now());
        conduct.suspect(&content("a"), now);
        let is_doubtful = |conduct: &Conduct, name, now| conduct.is_doubtful(&content(name), Disk, 1, now);
        let later = conduct.is_suspect_until(now).unwrap();
        assert!(is_doubtful(&conduct, "b", now) && !is_doubtful(&conduct, "b", later));
        assert!(is_doubtful(&conduct, "a", later) && !conduct.is_refused(Disk));
        assert_eq!(end(&mut conduct, true, &mut now.clone()), Duration::ZERO);
        assert!(!is_doubtful(&conduct, "a", now) && conduct.next_trial().is_none());
    }

    #[test]
    fn what_is_longer_than_all_that_came_well_is_tried_before_it_is_sent() {
        let (mut conduct, mut now) = (Conduct::default(), Instant::now());
        conduct.offend(&Arc::new(Trial::beyond(1000, &content("a"), Disk)), now);
        let (until, tried) = conduct.next_trial().unwrap();
        now = until;
        conduct.withhold(&tried, true, now);
        let is_doubtful = |conduct: &Conduct, length| conduct.is_doubtful(&content("b"), Disk, length, until);
        assert!(!conduct.is_refused(Disk) && !is_doubtful(&conduct, 1000) && is_doubtful(&conduct, 1001));
        assert!(conduct.want(&content("b"), now), "tried at once");
        let (until, tried) = conduct.next_trial().unwrap();
        assert_eq!(until, now);
        conduct.convict(&tried, true, now);
        assert!(conduct.is_refused(Disk) && conduct.is_refused(Upstream));
        conduct.withhold(&tried, true, now);
        conduct.withhold(&tried, false, now);
        assert!(!conduct.is_refused(Disk) && !is_doubtful(&conduct, 1001) && conduct.withholds(&content("a")));
    }

    #[test]
    fn a_lie_beside_a_stall_is_not_forgotten() {
        let (mut conduct, mut now) = (Conduct::default(), Instant::now());
        conduct.offend(&Arc::new(trial()), now);
        conduct.offend(&Arc::new(Trial::right(&content("b"))), now);
        conduct.offend(&Arc::new(trial()), now);
        let tried = conduct.next_trial().unwrap().1;
        assert!(tried.is_of_lies() && conduct.is_refused(Disk));
        end(&mut conduct, true, &mut now);
        assert!(!conduct.is_refused(Disk));
    }

    #[test]
    fn what_made_no_sense_is_fetched_all_the_same() {
        let (mut conduct, now) = (Conduct::default(), Instant::now());
        for _ in 0..5 {
            conduct.talk_nonsense(Trial::sense(&http::Method::GET, &content("a")), now);
        }
        let (until, tried) = conduct.next_trial().unwrap();
        conduct.withhold(&tried, false, until);
        assert!(!conduct.withholds(&content("a")) && !conduct.is_late_with(&content("a")));
    }

    #[test]
    fn who_was_tried_for_nonsense_is_not_useless_over_one_more() {
        for is_well in [true, false] {
            let (mut conduct, now) = (Conduct::default(), Instant::now());
            let add = |conduct: &mut Conduct| {
                conduct.talk_nonsense(Trial::sense(&http::Method::GET, &content("a")), now);
            };
            (0..5).for_each(|_| add(&mut conduct));
            let tried = conduct.next_trial().unwrap().1;
            if is_well {
                conduct.acquit(&tried);
            } else {
                conduct.withhold(&tried, false, now);
            }
            add(&mut conduct);
            assert!(!conduct.is_useless());
        }
    }

    #[test]
    fn what_alone_comes_late_is_asked_for_where_it_is() {
        let (mut conduct, now) = (Conduct::default(), Instant::now());
        conduct.lateness.keep_waiting(Trial::headers(&http::Method::GET, &trial().content), now);
        let (until, tried) = conduct.next_trial().unwrap();
        conduct.withhold(&tried, false, until);
        assert!(
            !conduct.lateness.is_late() && conduct.is_late_with(&tried.content) && !conduct.withholds(&tried.content)
        );
    }

    #[test]
    fn who_broke_off_is_asked_after_the_others() {
        let (mut conduct, now) = (Conduct::default(), Instant::now());
        conduct.break_off(now);
        assert!(conduct.is_last_choice(now) && !conduct.is_refused(Upstream));
        assert!(!conduct.is_last_choice(now + FIRST));
        conduct.behave(Disk, &trial().content);
        assert!(!conduct.is_last_choice(now));
    }

    #[test]
    fn who_keeps_others_waiting_is_asked_for_what_he_has_for_a_while() {
        let (mut conduct, mut now) = (Conduct::default(), Instant::now());
        conduct.lateness.keep_waiting(trial(), now);
        conduct.lateness.answer(Upstream);
        assert!(conduct.lateness.is_late() && conduct.is_last_choice(now) && !conduct.is_refused(Upstream));
        assert_eq!(end(&mut conduct, true, &mut now), FIRST);
        assert!(!conduct.lateness.is_late());
        conduct.lateness.keep_waiting(trial(), now);
        assert_eq!(end(&mut conduct, true, &mut now), FIRST * 2, "it had not answered");
        conduct.lateness.answer(Disk);
        conduct.lateness.answer(Upstream);
        conduct.lateness.keep_waiting(trial(), now);
        assert_eq!(end(&mut conduct, true, &mut now), FIRST, "it had answered");
    }
}
