//! What other Pods of the cache sent wrongly, and this one may as well: a pull is owed no second lie. Pure; time is passed in.

use crate::relay::ask::Content;
use crate::relay::trial::Trial;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Who is suspected is sent nobody for large blobs for so long. To try a very large one takes longer, and in an outage the one who has
/// everything may be the one that is suspected.
const SUSPICION: Duration = Duration::from_secs(2);
/// More than pulls meet at once.
const MOST: usize = 64;

/// Since when, and how it shows.
#[derive(Debug, Default)]
pub(super) struct Suspicions(Vec<(Instant, Arc<Trial>)>);

impl Suspicions {
    pub(super) fn add(&mut self, content: &Arc<Content>, now: Instant) {
        if self.0.len() < MOST && !self.are_of(content) {
            self.0.push((now, Arc::new(Trial::honest(content))));
        }
    }

    /// It sends the right one, or not; either is known now.
    pub(super) fn settle(&mut self, tried: &Arc<Trial>) {
        self.0.retain(|(_, trial)| !Arc::ptr_eq(trial, tried));
    }

    /// Whether the Pod may send something else than this.
    pub(super) fn are_of(&self, content: &Content) -> bool {
        self.0.iter().any(|(_, trial)| trial.content.target == content.target)
    }

    /// Until when nobody is sent to it for any large blob.
    pub(super) fn last_until(&self, now: Instant) -> Option<Instant> {
        self.0.iter().map(|(since, _)| *since + SUSPICION).filter(|until| *until > now).max()
    }

    /// They are tried at once.
    pub(super) fn pauses(&self) -> impl Iterator<Item = (Instant, &Arc<Trial>)> {
        self.0.iter().map(|(since, trial)| (*since, trial))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relay::conduct::offences::tests::content;

    #[test]
    fn the_same_content_is_in_doubt_until_it_was_tried_and_all_other_for_a_while() {
        let (mut suspicions, now) = (Suspicions::default(), Instant::now());
        let (one, other) = (content("a"), content("b"));
        for content in [&one, &other, &one] {
            suspicions.add(content, now);
        }
        assert_eq!(suspicions.pauses().count(), 2, "one of each");
        assert_eq!((suspicions.last_until(now), suspicions.last_until(now + SUSPICION)), (Some(now + SUSPICION), None));
        let (due, tried) = suspicions.pauses().next().map(|(due, trial)| (due, trial.clone())).unwrap();
        suspicions.settle(&tried);
        assert_eq!((due, &tried.content), (now, &one));
        assert!(!suspicions.are_of(&one) && suspicions.are_of(&other));
    }
}
