//! What a Pod fails at while it does other things well. Pure; time is passed in.

use super::offences::Offences;
use crate::relay::ask::Content;
use crate::relay::origin::Origin;
use crate::relay::trial::Trial;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::time::Instant;

/// No more than this is withheld of a Pod: who fails at so much is not asked at all.
const MOST: usize = 64;

/// By the path.
#[derive(Debug, Default)]
pub(super) struct Exceptions(BTreeMap<String, Exception>);

#[derive(Debug, Default)]
struct Exception {
    offences: Offences,
    /// No other content that came well is longer than what came of this: longer ones may fail there.
    is_beyond: bool,
}

impl Exceptions {
    /// It fails at this and, where all that came well was shorter, perhaps at what is longer.
    pub(super) fn withhold(&mut self, tried: &Arc<Trial>, is_beyond: bool, now: Instant) {
        if self.0.len() >= MOST && !self.0.contains_key(&tried.content.target) {
            self.0.pop_first();
        }
        // Who fails at the body is not asked, who is late with the headers is asked for what it has, and all others for everything.
        let gravity = |trial: &Trial| (trial.is_of_bodies(), trial.is_of_headers());
        if self.trial_of(&tried.content).is_some_and(|trial| gravity(trial) > gravity(tried)) {
            return;
        }
        let exception = self.0.entry(tried.content.target.clone()).or_default();
        exception.offences.begin(tried, !is_beyond, now);
        exception.is_beyond = is_beyond;
    }

    /// It fails at this, and perhaps at other content too. Whether it was asked for what is short until now.
    pub(super) fn convict(&mut self, tried: &Arc<Trial>, is_settled: bool, now: Instant) -> bool {
        let Some(exception) = self.0.get_mut(&tried.content.target) else { return false };
        if !exception.offences.awaits(tried) {
            return false;
        }
        exception.offences.begin(tried, is_settled, now);
        std::mem::take(&mut exception.is_beyond)
    }

    /// It does this well.
    pub(super) fn acquit(&mut self, tried: &Arc<Trial>) {
        self.0.retain(|_, exception| !exception.offences.awaits(tried));
    }

    /// There is this to compare with.
    pub(super) fn hasten(&mut self, wanted: &Content, now: Instant) {
        self.0.values_mut().for_each(|exception| exception.offences.hasten(wanted, now));
    }

    /// What it is tried with before it is asked for this again.
    pub(super) fn trial_of(&self, content: &Content) -> Option<&Trial> {
        self.0.get(&content.target)?.offences.pause().map(|(_, trial)| &**trial)
    }

    /// Whether a body from there of this length may fail where another did, beyond all that is known to come well.
    pub(super) fn are_beyond(&self, origin: Origin, length: u64) -> bool {
        let beyond = self.0.values().filter(|exception| exception.is_beyond);
        beyond.filter_map(|exception| exception.offences.pause()).any(|(_, trial)| trial.is_short_of(origin, length))
    }

    pub(super) fn pauses(&self) -> impl Iterator<Item = (Instant, &Arc<Trial>)> {
        self.0.values().filter_map(|exception| exception.offences.pause())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relay::conduct::offences::tests::content;
    use Origin::{Disk, Upstream};

    #[test]
    fn what_is_longer_is_in_doubt_until_something_longer_was_compared() {
        let (mut exceptions, now) = (Exceptions::default(), Instant::now());
        let far = |name, reached| Arc::new(Trial::beyond(reached, &content(name), Disk));
        let (one, other) = (far("a", 1000), far("b", 2000));
        exceptions.withhold(&one, true, now);
        exceptions.withhold(&other, true, now);
        assert!(exceptions.are_beyond(Disk, 1001) && !exceptions.are_beyond(Disk, 1000));
        assert!(!exceptions.are_beyond(Upstream, 1001), "once it has come that way, it tells");
        exceptions.withhold(&one, false, now);
        assert!(exceptions.are_beyond(Disk, 2001) && !exceptions.are_beyond(Disk, 2000));
        exceptions.acquit(&other);
        assert!(!exceptions.are_beyond(Disk, 2001));
        assert!(exceptions.trial_of(&one.content).is_some() && exceptions.trial_of(&other.content).is_none());
    }

    #[test]
    fn who_is_late_with_what_he_fails_at_is_not_asked_for_it_either() {
        let (mut exceptions, now) = (Exceptions::default(), Instant::now());
        let (get, a) = (http::Method::GET, content("a"));
        let trials = [Trial::sense(&get, &a), Trial::headers(&get, &a), Trial::sense(&get, &a)];
        for (trial, is_late) in trials.into_iter().zip([false, true, true]) {
            exceptions.withhold(&Arc::new(trial), false, now);
            assert_eq!(exceptions.trial_of(&a).is_some_and(Trial::is_of_headers), is_late);
        }
        for trial in [Trial::whole(&a, Disk), Trial::headers(&get, &a)] {
            exceptions.withhold(&Arc::new(trial), false, now);
            assert!(exceptions.trial_of(&a).is_some_and(Trial::is_of_bodies));
        }
    }

    #[test]
    fn no_more_is_withheld_than_can_be_kept() {
        let (mut exceptions, now) = (Exceptions::default(), Instant::now());
        for number in 0..=MOST {
            exceptions.withhold(&Arc::new(Trial::right(&content(&format!("a{number}")))), false, now);
        }
        assert_eq!(exceptions.pauses().count(), MOST);
    }
}
