//! Offences of one sort, and the pauses after them: each ends with a trial, and the next one is longer. Pure; time is passed in.

use crate::relay::ask::Content;
use crate::relay::trial::Trial;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Bodies are not asked for this long after the first offence, ...
pub(in crate::relay) const FIRST: Duration = Duration::from_secs(60);
/// ... twice as long after each further one, at most this long: no pull waits for the end of a pause, and in an outage each may need it.
const LONGEST: Duration = Duration::from_secs(120);
/// At most so long where much has to be read to tell: each node of a cluster reads it.
const LONGEST_IF_COSTLY: Duration = Duration::from_secs(600);

/// Of one sort, since the last amends.
#[derive(Debug, Default)]
pub(super) struct Offences {
    count: u32,
    pause: Option<Pause>,
}

#[derive(Debug)]
struct Pause {
    until: Instant,
    /// What shows whether it may end.
    trial: Arc<Trial>,
    haste: Haste,
}

/// Whether a pause ends as soon as there is something to compare with.
#[derive(Debug, PartialEq, Eq)]
enum Haste {
    /// There was, or nothing has been tried yet.
    No,
    /// The first thing that is wanted ends it.
    Once,
    /// It did. That is enough, or each pull that tells nothing would have the Pod tried.
    Done,
}

impl Offences {
    /// Another one: the next pause begins.
    pub(super) fn add(&mut self, trial: &Arc<Trial>, now: Instant) {
        // Those that run beside one another are one, but for a lie: only what is right makes up for it.
        let is_graver = |pause: &Pause| trial.is_of_lies() && !pause.trial.is_of_lies();
        if self.pause.as_ref().is_none_or(is_graver) {
            self.begin(trial, true, now);
        }
    }

    /// The next pause begins, which is longer than the one before it. Where it is not settled whether the Pod fails at that alone, what
    /// is wanted next may end it.
    pub(super) fn begin(&mut self, trial: &Arc<Trial>, is_settled: bool, now: Instant) {
        let longest = if trial.is_cheap() { LONGEST } else { LONGEST_IF_COSTLY };
        let pause = FIRST.saturating_mul(2_u32.saturating_pow(self.count)).min(longest);
        let was_hastened = self.pause.as_ref().is_some_and(|pause| pause.haste == Haste::Done);
        let haste = if is_settled || was_hastened { Haste::No } else { Haste::Once };
        self.count = self.count.saturating_add(1);
        self.pause = Some(Pause { until: now + pause, trial: trial.clone(), haste });
    }

    /// Whether there is a pause now. It lasts until the trial after it has gone well.
    pub(super) fn is_refused(&self) -> bool {
        self.pause.is_some()
    }

    /// Whether this was tried for it.
    pub(super) fn awaits(&self, tried: &Arc<Trial>) -> bool {
        self.pause.as_ref().is_some_and(|pause| Arc::ptr_eq(&pause.trial, tried))
    }

    /// Until when the pause lasts, and what is tried then.
    pub(super) fn pause(&self) -> Option<(Instant, &Arc<Trial>)> {
        self.pause.as_ref().map(|pause| (pause.until, &pause.trial))
    }

    /// There is this to compare with, which may end the pause.
    pub(super) fn hasten(&mut self, wanted: &Content, now: Instant) {
        let waits = |pause: &&mut Pause| pause.haste == Haste::Once && pause.trial.content.is_like(wanted);
        if let Some(pause) = self.pause.as_mut().filter(waits) {
            (pause.until, pause.haste) = (now.min(pause.until), Haste::Done);
        }
    }

    /// The pause is over. That there was one stays known.
    pub(super) fn end(&mut self) {
        self.pause = None;
    }

    /// Whether there was one since the last amends.
    pub(super) fn is_on_record(&self) -> bool {
        self.count > 0
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::relay::ask::Ask;
    use crate::relay::origin::Origin;
    use http::{Method, Uri};

    pub(in crate::relay) fn content(repository: &str) -> Arc<Content> {
        parsed(&format!("/v2/{repository}/manifests/latest?ns=docker.io"))
    }

    pub(in crate::relay) fn blob(repository: &str) -> Arc<Content> {
        parsed(&format!("/v2/{repository}/blobs/sha256:{}?ns=docker.io", "0".repeat(64)))
    }

    fn parsed(path: &str) -> Arc<Content> {
        let path: Uri = path.parse().unwrap();
        let Ok(Ask::Content(content)) = Ask::parse(&Method::GET, &path) else { unreachable!() };
        Arc::new(content)
    }

    pub(in crate::relay) fn trial() -> Trial {
        Trial::whole(&content("a"), Origin::Disk)
    }

    #[test]
    fn each_offence_after_a_pause_makes_the_next_pause_longer() {
        let (mut offences, mut now) = (Offences::default(), Instant::now());
        for (pause, is_tried) in [60, 120, 240, 480, 600, 600].into_iter().zip([true, false].into_iter().cycle()) {
            let costly = || Arc::new(Trial::right(&content("a")));
            if is_tried {
                offences.end();
                offences.add(&costly(), now);
            } else {
                let tried = offences.pause().unwrap().1.clone();
                offences.begin(&tried, true, now);
            }
            offences.add(&costly(), now + Duration::from_secs(1));
            let until = offences.pause().unwrap().0;
            assert_eq!((until - now).as_secs(), pause);
            now = until;
        }
        assert!(offences.is_refused(), "time alone ends no pause");
    }

    #[test]
    fn what_costs_little_is_tried_every_other_minute() {
        let (mut offences, now) = (Offences::default(), Instant::now());
        for pause in [60, 120, 120] {
            offences.begin(&Arc::new(trial()), true, now);
            assert_eq!((offences.pause().unwrap().0 - now).as_secs(), pause);
        }
    }

    #[test]
    fn what_was_not_settled_is_tried_with_the_first_thing_wanted_and_not_with_each() {
        let (mut offences, now) = (Offences::default(), Instant::now());
        let is_hastened = |offences: &mut Offences| {
            offences.hasten(&content("b"), now);
            offences.pause().unwrap().0 == now
        };
        offences.add(&Arc::new(trial()), now);
        assert!(!is_hastened(&mut offences), "it was not tried yet");
        for may_be in [true, false, true] {
            offences.begin(&Arc::new(trial()), false, now);
            offences.hasten(&blob("b"), now);
            assert!(offences.pause().unwrap().0 > now, "a blob tells nothing of manifests");
            assert_eq!(is_hastened(&mut offences), may_be);
        }
        offences.begin(&Arc::new(trial()), true, now);
        assert!(!is_hastened(&mut offences), "there was something to compare with");
    }
}
