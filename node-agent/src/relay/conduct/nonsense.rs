//! Answers that no cache of ours would give, one after the other. Nothing is refused over them: they cost little, and in an outage any
//! other answer is a gain. Pure; time is passed in.

use super::offences::Offences;
use crate::relay::ask::Content;
use crate::relay::trial::Trial;
use std::sync::Arc;
use tokio::time::Instant;

/// So many in a row are told of. A pull meets as many.
const IN_A_ROW: u32 = 5;

/// Of blobs apart from all other: who has no blob to send may well answer for manifests.
#[derive(Debug, Default)]
pub(super) struct Nonsense {
    of_blobs: InARow,
    of_others: InARow,
}

#[derive(Debug, Default)]
struct InARow {
    count: u32,
    offences: Offences,
}

impl Nonsense {
    /// Another one.
    pub(super) fn add(&mut self, trial: &Arc<Trial>, now: Instant) {
        let row = self.row(&trial.content);
        row.count = row.count.saturating_add(1);
        if row.count >= IN_A_ROW {
            row.offences.add(trial, now);
        }
    }

    /// What came of this was of use.
    pub(super) fn end(&mut self, content: &Content) {
        *self.row(content) = InARow::default();
    }

    /// This was tried for it, and went well or was all that it talked nonsense of.
    pub(super) fn settle(&mut self, tried: &Arc<Trial>) {
        let settled = [&mut self.of_blobs, &mut self.of_others].into_iter().filter(|row| row.offences.awaits(tried));
        settled.for_each(|row| *row = InARow::default());
    }

    /// Whether they are told of.
    pub(super) fn is_lasting(&self) -> bool {
        self.offences().into_iter().any(Offences::is_refused)
    }

    pub(super) fn offences(&self) -> [&Offences; 2] {
        [&self.of_blobs.offences, &self.of_others.offences]
    }

    pub(super) fn offences_mut(&mut self) -> [&mut Offences; 2] {
        [&mut self.of_blobs.offences, &mut self.of_others.offences]
    }

    fn row(&mut self, content: &Content) -> &mut InARow {
        if content.blob().is_some() { &mut self.of_blobs } else { &mut self.of_others }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relay::ask::{Digest, Kind};
    use crate::relay::conduct::offences::tests::content;
    use http::Method;

    #[test]
    fn manifests_that_are_of_use_make_up_for_no_blob() {
        let (mut nonsense, now) = (Nonsense::default(), Instant::now());
        let manifest = content("a");
        let digest = Digest::parse(&format!("sha256:{}", "0".repeat(64))).unwrap();
        let blob = Content { kind: Kind::Blob(digest), ..(*manifest).clone() };
        let trial = Arc::new(Trial::sense(&Method::GET, &Arc::new(blob)));
        for _ in 0..IN_A_ROW {
            assert!(!nonsense.is_lasting());
            nonsense.add(&trial, now);
            nonsense.end(&manifest);
        }
        assert!(nonsense.is_lasting());
        nonsense.end(&trial.content);
        assert!(!nonsense.is_lasting());
    }

    #[test]
    fn who_was_tried_for_it_begins_anew() {
        let (mut nonsense, now) = (Nonsense::default(), Instant::now());
        let trial = Arc::new(Trial::sense(&Method::GET, &content("a")));
        (0..IN_A_ROW).for_each(|_| nonsense.add(&trial, now));
        nonsense.settle(&trial);
        nonsense.add(&trial, now);
        assert!(!nonsense.is_lasting(), "one in a row");
    }
}
