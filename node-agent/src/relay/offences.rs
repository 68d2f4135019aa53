//! Offences of one sort, and the pauses after them: each ends with a trial, and the next one is longer. Pure; time is passed in.

use super::trial::Trial;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Bodies are not asked for this long after the first offence, ...
pub(super) const FIRST: Duration = Duration::from_secs(60);
/// ... twice as long after each further one, at most this long: no pull waits for the end of a pause, and in an outage each may need it.
const LONGEST: Duration = Duration::from_secs(120);
/// At most so long where much has to be read to tell: each node of a cluster reads it.
const LONGEST_IF_COSTLY: Duration = Duration::from_secs(600);

/// Of one sort, since the last amends.
#[derive(Debug, Default)]
pub(super) struct Offences {
    count: u32,
    /// A pause, and what shows after it whether it may end.
    pause: Option<(Instant, Arc<Trial>)>,
}

impl Offences {
    /// Another one: the next pause begins.
    pub(super) fn add(&mut self, trial: &Arc<Trial>, now: Instant) {
        // Those that run beside one another are one.
        if !self.is_refused() {
            self.begin(trial, now);
        }
    }

    /// The next pause begins, which is longer than the one before it.
    pub(super) fn begin(&mut self, trial: &Arc<Trial>, now: Instant) {
        let longest = if trial.is_cheap() { LONGEST } else { LONGEST_IF_COSTLY };
        let pause = FIRST.saturating_mul(2_u32.saturating_pow(self.count)).min(longest);
        self.count = self.count.saturating_add(1);
        self.pause = Some((now + pause, trial.clone()));
    }

    /// Whether there is a pause now. It lasts until the trial after it has gone well.
    pub(super) fn is_refused(&self) -> bool {
        self.pause.is_some()
    }

    /// Whether this was tried for it.
    pub(super) fn awaits(&self, tried: &Arc<Trial>) -> bool {
        self.pause.as_ref().is_some_and(|(_, trial)| Arc::ptr_eq(trial, tried))
    }

    /// Until when the pause lasts, and what is tried then.
    pub(super) fn pause(&self) -> Option<&(Instant, Arc<Trial>)> {
        self.pause.as_ref()
    }

    /// The pause need not last any longer.
    pub(super) fn hasten(&mut self, now: Instant) {
        self.pause.iter_mut().for_each(|(until, _)| *until = now.min(*until));
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
    use crate::relay::ask::{Ask, Content};
    use crate::relay::origin::Origin;
    use http::{Method, Uri};

    pub(in crate::relay) fn content(repository: &str) -> Arc<Content> {
        let path: Uri = format!("/v2/{repository}/manifests/latest?ns=docker.io").parse().unwrap();
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
                let (_, tried) = offences.pause().cloned().unwrap();
                offences.begin(&tried, now);
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
            offences.begin(&Arc::new(trial()), now);
            assert_eq!((offences.pause().unwrap().0 - now).as_secs(), pause);
        }
    }
}
