//! Whether the bodies that a Pod sends are worth waiting for: for a cache that answers every probe and then stalls, drips, breaks off
//! or sends something else. Pure; time is passed in.
//!
//! What the cache has on its disk is its own affair. What it fetches meanwhile may be slow because the upstream is, which must
//! not keep anybody from what it has.

use super::ask::Content;
use super::offences::{FIRST, Offences};
use super::origin::Origin;
use super::trial::Trial;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// So many answers of no use in a row are told of. A pull meets as many.
const IN_A_ROW: u32 = 5;
/// No more than this is withheld of a Pod: who fails at so much is not asked at all.
const WITHHELD: usize = 64;
/// Who is suspected of lies is sent nobody for large blobs for so long. To try a very large one takes longer, and in an outage the one
/// who has everything may be the one that is suspected.
const SUSPICION: Duration = Duration::from_secs(2);
/// Of what is wanted, so much is kept to compare with. The parts of one image differ in size, and a fault may show in large ones alone.
const WANTED: usize = 4;
/// What failures may cost within `FIRST`. A pull asks five times and more, and would meet them at each.
const BEARABLE: Duration = Duration::from_secs(1);
/// And what those may over what it has itself, which it has only to look up.
pub(super) const BEARABLE_ITSELF: Duration = Duration::from_millis(500);

/// What is held against one Pod.
#[derive(Debug, Default)]
pub(super) struct Conduct {
    disk: Offences,
    upstream: Offences,
    /// Answers that did not come, or were of no use and came late.
    late: Offences,
    /// Answers of no use, one after the other. Nothing is refused over them: they cost nothing, and in an outage any other answer is a gain.
    useless: Offences,
    useless_in_a_row: u32,
    /// What it failed over, asked as the runtime asked.
    in_vain: Lost,
    /// What it failed over, asked for what it has.
    in_vain_itself: Lost,
    /// When headers last took long.
    answered_slowly: Option<Instant>,
    last_break: Option<Instant>,
    /// It took long to tell of what it has.
    dawdled: Offences,
    /// Another Pod of the cache sent something else than this, and this one may do so as well; since when.
    suspected: Vec<(Instant, Arc<Trial>)>,
    /// What it fails at while it does other things well, by the path.
    withheld: BTreeMap<String, Offences>,
    /// What it last did well, and what was wanted of it last and refused.
    well: Option<Arc<Content>>,
    wanted: VecDeque<Arc<Content>>,
    /// What it failed at again when nothing told whether it fails at that alone.
    unsettled: Option<Arc<Trial>>,
    /// The same where other content came well, but none that is longer than what came of this: longer ones may fail there.
    unsettled_beyond: Option<Arc<Trial>>,
    /// What was wanted has ended a pause: once is enough, or each pull that tells nothing would have it tried.
    is_hastened: bool,
}

/// Time that was lost to failures.
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

impl Conduct {
    /// A body stalled, dripped or was another's.
    pub(super) fn offend(&mut self, origin: Origin, trial: Trial, now: Instant) {
        let trial = Arc::new(trial);
        self.upstream.add(&trial, now);
        if origin == Origin::Disk {
            self.disk.add(&trial, now);
        }
    }

    /// Another Pod sent something else: it is tried at once.
    pub(super) fn suspect(&mut self, trial: Trial, now: Instant) {
        if self.suspected.len() < WITHHELD && !self.is_suspected_of(&trial.content) {
            self.suspected.push((now, Arc::new(trial)));
        }
    }

    /// Whether a large blob of it may be a lie.
    pub(super) fn is_suspect(&self, content: &Content, now: Instant) -> bool {
        let is_new = |(since, _): &(Instant, _)| now < *since + SUSPICION;
        self.suspected.iter().any(is_new) || self.is_suspected_of(content)
    }

    fn is_suspected_of(&self, content: &Content) -> bool {
        self.suspected.iter().any(|(_, trial)| trial.content.target == content.target)
    }

    /// What is to be tried next, and when.
    pub(super) fn next_trial(&self) -> Option<(Instant, Arc<Trial>)> {
        self.pauses().min_by_key(|(until, _)| *until).cloned()
    }

    fn pauses(&self) -> impl Iterator<Item = &(Instant, Arc<Trial>)> {
        let all = [&self.disk, &self.upstream, &self.late, &self.useless, &self.dawdled].into_iter();
        all.chain(self.withheld.values()).filter_map(Offences::pause).chain(&self.suspected)
    }

    /// What shows whether the Pod is at fault, or one content alone: the same, tried with others.
    pub(super) fn controls(&self, tried: &Trial) -> Vec<Trial> {
        let others = self.wanted.iter().chain(&self.well);
        others.filter(|content| content.target != tried.content.target).map(|content| tried.with(content)).collect()
    }

    /// This was asked for in vain, though other content failed. Whether that is to be tried now, because there is something to
    /// compare with at last.
    pub(super) fn want(&mut self, content: &Arc<Content>, now: Instant) -> bool {
        if self.pauses().any(|(_, trial)| trial.content.target == content.target) {
            return false;
        }
        self.wanted.retain(|wanted| wanted.target != content.target);
        self.wanted.truncate(WANTED - 1);
        self.wanted.push_front(content.clone());
        let Some(tried) = self.unsettled.take() else { return false };
        self.is_hastened = true;
        self.of_all_it_sends(&tried).for_each(|offences| offences.hasten(now));
        let withheld = self.withheld.get_mut(&tried.content.target).filter(|offences| offences.awaits(&tried));
        withheld.into_iter().for_each(|offences| offences.hasten(now));
        true
    }

    /// Whether a body from there of this length may fail where another did, beyond all that is known to come well.
    pub(super) fn is_beyond(&self, origin: Origin, length: u64) -> bool {
        self.unsettled_beyond.as_ref().is_some_and(|tried| tried.is_short_of(origin, length))
    }

    /// What was tried went well.
    pub(super) fn acquit(&mut self, tried: &Arc<Trial>) {
        self.of_all_it_sends(tried).for_each(Offences::end);
        self.withheld.retain(|_, offences| !offences.awaits(tried));
        self.suspected.retain(|(_, trial)| !Arc::ptr_eq(trial, tried));
        self.unsettled_beyond.take_if(|unsettled| Arc::ptr_eq(unsettled, tried));
    }

    /// What was tried failed, and so does other content or, where that is not settled, none tells: the next pause begins.
    pub(super) fn convict(&mut self, tried: &Arc<Trial>, is_settled: bool, now: Instant) {
        self.leave_unsettled(!is_settled, tried);
        if self.unsettled_beyond.take().is_some_and(|unsettled| Arc::ptr_eq(&unsettled, tried)) {
            // It was let in for what is short, and fails at all that is long.
            self.withheld.remove(&tried.content.target);
            self.upstream.begin(tried, now);
            if tried.origin == Origin::Disk {
                self.disk.begin(tried, now);
            }
            return;
        }
        let withheld = self.withheld.get_mut(&tried.content.target).filter(|offences| offences.awaits(tried));
        withheld.into_iter().for_each(|offences| offences.begin(tried, now));
        self.of_all_it_sends(tried).for_each(|offences| offences.begin(tried, now));
    }

    /// What was tried failed, and other content does not as far as is known: the Pod is asked for all but that and, where all other
    /// was shorter, but what is longer.
    pub(super) fn withhold(&mut self, tried: &Arc<Trial>, is_beyond: bool, now: Instant) {
        self.leave_unsettled(is_beyond, tried);
        self.unsettled_beyond = is_beyond.then(|| tried.clone());
        self.of_all_it_sends(tried).for_each(Offences::end);
        if self.withheld.len() >= WITHHELD && !self.withheld.contains_key(&tried.content.target) {
            self.withheld.pop_first();
        }
        self.withheld.entry(tried.content.target.clone()).or_default().begin(tried, now);
    }

    fn leave_unsettled(&mut self, is_unsettled: bool, tried: &Arc<Trial>) {
        let was_hastened = std::mem::take(&mut self.is_hastened);
        self.unsettled = (is_unsettled && !was_hastened).then(|| tried.clone());
    }

    /// Whether this alone is not asked for.
    pub(super) fn withholds(&self, content: &Content) -> bool {
        self.withheld_for(content).is_some_and(Trial::is_of_bodies)
    }

    /// Whether this is asked for where the Pod has it alone.
    pub(super) fn is_late_with(&self, content: &Content) -> bool {
        self.is_late() || self.withheld_for(content).is_some_and(|trial| !trial.is_of_bodies())
    }

    fn withheld_for(&self, content: &Content) -> Option<&Trial> {
        self.withheld.get(&content.target)?.pause().map(|(_, trial)| &**trial)
    }

    fn of_all_it_sends(&mut self, tried: &Arc<Trial>) -> impl Iterator<Item = &mut Offences> {
        let all = [&mut self.disk, &mut self.upstream, &mut self.late, &mut self.useless, &mut self.dawdled];
        all.into_iter().filter(|offences| offences.awaits(tried))
    }

    /// No headers came, in more time than a cache gives its upstream.
    pub(super) fn keep_waiting(&mut self, trial: Trial, now: Instant) {
        self.late.add(&Arc::new(trial), now);
    }

    /// What came, after so long, was of no use.
    pub(super) fn fail(&mut self, after: Duration, trial: Trial, now: Instant) {
        if !self.is_late() && self.in_vain.add(after, BEARABLE, now) {
            self.keep_waiting(trial, now);
        }
    }

    /// What came no cache of ours would say.
    pub(super) fn talk_nonsense(&mut self, trial: Trial, now: Instant) {
        self.useless_in_a_row = self.useless_in_a_row.saturating_add(1);
        if self.useless_in_a_row >= IN_A_ROW {
            self.useless.add(&Arc::new(trial), now);
        }
    }

    /// What came was of use, or said why it was not.
    pub(super) fn talk_sense(&mut self) {
        (self.useless, self.useless_in_a_row) = (Offences::default(), 0);
    }

    /// Whether it talks nonsense alone.
    pub(super) fn is_useless(&self) -> bool {
        self.useless.is_refused()
    }

    /// Asked for what it has, it neither gave it nor said that it has it not. Whether that happened for too long by now.
    pub(super) fn fail_itself(&mut self, after: Duration, now: Instant) -> bool {
        self.in_vain_itself.add(after, BEARABLE_ITSELF, now)
    }

    /// Headers came, hardly sooner. A pull asks five times and more, so the second such answer within a minute is as bad as none.
    pub(super) fn answer_slowly(&mut self, trial: Trial, now: Instant) {
        if self.answered_slowly.replace(now).is_some_and(|before| now < before + FIRST) {
            self.keep_waiting(trial, now);
        }
    }

    /// Headers came from there. Who holds back blobs may well answer for manifests, so that ends no pause.
    pub(super) fn answer(&mut self, origin: Origin) {
        if origin == Origin::Upstream {
            [&mut self.late, &mut self.dawdled]
                .into_iter()
                .filter(|one| !one.is_refused())
                .for_each(|one| *one = Offences::default());
        }
    }

    /// Whether it is asked for what it has alone.
    pub(super) fn is_late(&self) -> bool {
        self.late.is_refused()
    }

    /// A body ended before its end. That may be a restart, and keeps nobody from asking.
    pub(super) fn break_off(&mut self, now: Instant) {
        self.last_break = Some(now);
    }

    /// It took its time to tell of what it has. No body makes up for that.
    pub(super) fn dawdle(&mut self, trial: Trial, now: Instant) {
        self.dawdled.add(&Arc::new(trial), now);
    }

    /// A body of some size arrived. One that ran beside an offence makes up for nothing.
    pub(super) fn behave(&mut self, origin: Origin, content: &Arc<Content>) {
        self.last_break = None;
        self.well = Some(content.clone());
        let offences = match origin {
            Origin::Disk => &mut self.disk,
            Origin::Upstream => &mut self.upstream,
        };
        if !offences.is_refused() {
            *offences = Offences::default();
        }
    }

    /// Whether a body from there is to be asked elsewhere.
    pub(super) fn is_refused(&self, origin: Origin) -> bool {
        self.of(origin).is_refused()
    }

    /// Whether another is the better choice, if there is one.
    pub(super) fn is_last_choice(&self, now: Instant) -> bool {
        let broke_lately = self.last_break.is_some_and(|broke| now < broke + FIRST);
        self.upstream.is_refused() || self.is_late() || self.dawdled.is_refused() || broke_lately
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
}

#[cfg(test)]
mod tests {
    use super::super::offences::tests::{content, trial};
    use super::*;
    use Origin::{Disk, Upstream};

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
        conduct.offend(Upstream, trial(), now);
        assert!(conduct.is_refused(Upstream) && !conduct.is_refused(Disk));
        end(&mut conduct, true, &mut now);
        conduct.offend(Disk, trial(), now);
        assert!(conduct.is_refused(Disk) && conduct.is_refused(Upstream));
    }

    #[test]
    fn a_pause_ends_where_the_trial_goes_well_and_only_a_pull_ends_probation() {
        let (mut conduct, mut now) = (Conduct::default(), Instant::now());
        conduct.offend(Disk, trial(), now);
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
        conduct.offend(Disk, ill, now);
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
        conduct.offend(Disk, trial(), now);
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
        let (one, two) = (content("a"), content("b"));
        for content in [&one, &two, &one] {
            conduct.suspect(Trial::honest(content), now);
        }
        assert!(conduct.is_suspect(&content("c"), now) && !conduct.is_suspect(&content("c"), now + SUSPICION));
        for content in [&one, &two] {
            let (due, trial) = conduct.next_trial().unwrap();
            assert_eq!((due, &trial.content), (now, content));
            assert!(conduct.is_suspect(content, now + SUSPICION));
            conduct.acquit(&trial);
            assert!(!conduct.is_suspect(content, now + SUSPICION));
        }
        assert!(conduct.next_trial().is_none() && !conduct.is_refused(Disk));
    }

    #[test]
    fn what_is_longer_than_all_that_came_well_is_tried_before_it_is_sent() {
        let (mut conduct, mut now) = (Conduct::default(), Instant::now());
        conduct.offend(Disk, Trial::beyond(1000, &content("a"), Disk), now);
        let (until, tried) = conduct.next_trial().unwrap();
        now = until;
        conduct.withhold(&tried, true, now);
        assert!(!conduct.is_refused(Disk) && !conduct.is_beyond(Disk, 1000) && conduct.is_beyond(Disk, 1001));
        assert!(!conduct.is_beyond(Upstream, 1001), "once it has come that way, it tells");
        assert!(conduct.want(&content("b"), now), "tried at once");
        let (until, tried) = conduct.next_trial().unwrap();
        assert_eq!(until, now);
        conduct.convict(&tried, true, now);
        assert!(conduct.is_refused(Disk) && conduct.is_refused(Upstream));
        conduct.withhold(&tried, true, now);
        conduct.withhold(&tried, false, now);
        assert!(!conduct.is_beyond(Disk, 1001) && conduct.withholds(&content("a")));
    }

    #[test]
    fn what_is_wanted_last_is_compared_first_and_nothing_twice() {
        let mut conduct = Conduct::default();
        for repository in ["b", "c", "b", "d", "e", "f"] {
            conduct.want(&content(repository), Instant::now());
        }
        let compared: Vec<_> = conduct.controls(&trial()).into_iter().map(|trial| trial.content).collect();
        assert_eq!(compared, ["f", "e", "d", "b"].map(content));
    }

    #[test]
    fn what_alone_comes_late_is_asked_for_where_it_is() {
        let (mut conduct, now) = (Conduct::default(), Instant::now());
        conduct.keep_waiting(Trial::headers(&http::Method::GET, &trial().content), now);
        let (until, tried) = conduct.next_trial().unwrap();
        conduct.withhold(&tried, false, until);
        assert!(!conduct.is_late() && conduct.is_late_with(&tried.content) && !conduct.withholds(&tried.content));
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
        conduct.keep_waiting(trial(), now);
        conduct.answer(Upstream);
        assert!(conduct.is_late() && conduct.is_last_choice(now) && !conduct.is_refused(Upstream));
        assert_eq!(end(&mut conduct, true, &mut now), FIRST);
        assert!(!conduct.is_late());
        conduct.keep_waiting(trial(), now);
        assert_eq!(end(&mut conduct, true, &mut now), FIRST * 2, "it had not answered");
        conduct.answer(Disk);
        conduct.answer(Upstream);
        conduct.keep_waiting(trial(), now);
        assert_eq!(end(&mut conduct, true, &mut now), FIRST, "it had answered");
    }

    #[test]
    fn who_answers_slowly_again_is_as_late_as_who_does_not() {
        let (mut conduct, now) = (Conduct::default(), Instant::now());
        conduct.answer_slowly(trial(), now);
        conduct.answer_slowly(trial(), now + FIRST);
        assert!(!conduct.is_late(), "that is long ago");
        conduct.answer_slowly(trial(), now + FIRST + Duration::from_secs(4));
        assert!(conduct.is_late());
    }

    #[test]
    fn many_short_failures_are_as_bad_as_a_long_one() {
        let (mut conduct, now) = (Conduct::default(), Instant::now());
        let (short, long) = (Duration::from_millis(400), BEARABLE + Duration::from_millis(1));
        conduct.fail(short, trial(), now);
        conduct.fail(short, trial(), now);
        conduct.fail(short, trial(), now + FIRST);
        assert!(!conduct.is_late(), "some of them are long ago");
        conduct.fail(short, trial(), now + FIRST);
        conduct.fail(short, trial(), now + FIRST);
        assert!(conduct.is_late());
        assert!(!conduct.fail_itself(short, now) && conduct.fail_itself(long, now));
        assert!(!conduct.fail_itself(short, now), "counted anew");
    }
}
