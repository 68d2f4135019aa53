//! Looks at the digest of blobs that pass by. The runtime refuses a wrong one anyway; this finds out who sent it, so that no other
//! pull has to meet it. To hash a blob costs more than to pass it on, so large ones are looked at within a budget: all of what
//! comes now and then, a sample of what comes without end.

use super::ask::Digest;
use aws_lc_rs::digest::Context;
use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;
use tokio::time::Instant;

/// Blobs up to this size are always looked at, ...
const ALWAYS: u64 = 4 * 1024 * 1024;
/// ... larger ones while those before come to less than this, ...
const BUDGET: u64 = 64 * 1024 * 1024;
/// ... which is there anew after this time, ...
const RENEWAL: Duration = Duration::from_secs(8);
/// ... and of those beyond it one in so many ...
const ONE_IN: u64 = 16;
/// ... and what is among so many that were not looked at last: a runtime asks again for what it has refused.
const UNSEEN: usize = 256;

/// Which blobs of one registry are looked at.
#[derive(Debug)]
pub(super) struct Auditor {
    left: u64,
    since: Option<Instant>,
    unseen: VecDeque<Digest>,
}

impl Default for Auditor {
    fn default() -> Self {
        Self { left: BUDGET, since: None, unseen: VecDeque::new() }
    }
}

impl Auditor {
    /// For a blob that comes whole; None where it is not looked at.
    pub(super) fn audit(&mut self, expected: &Digest, length: u64, now: Instant) -> Option<Audit> {
        self.is_due(expected, length, now).then(|| Audit::new(expected))
    }

    fn is_due(&mut self, expected: &Digest, length: u64, now: Instant) -> bool {
        if length <= ALWAYS {
            return true;
        }
        let unseen = self.unseen.len();
        self.unseen.retain(|unseen| unseen != expected);
        let is_asked_again = self.unseen.len() < unseen;
        if self.affords(length, now) || is_asked_again || drawn() {
            return true;
        }
        self.unseen.truncate(UNSEEN - 1);
        self.unseen.push_front(expected.clone());
        false
    }

    /// The one that exceeds the budget is looked at as well: most pulls come after a pause, and one layer may be the larger part of an image.
    fn affords(&mut self, length: u64, now: Instant) -> bool {
        if now.duration_since(*self.since.get_or_insert(now)) >= RENEWAL {
            (self.left, self.since) = (BUDGET, Some(now));
        }
        let affords = self.left > 0;
        if affords {
            self.left = self.left.saturating_sub(length);
        }
        affords
    }
}

fn drawn() -> bool {
    RandomState::new().hash_one(()).is_multiple_of(ONE_IN)
}

/// A blob that is looked at.
pub(super) struct Audit {
    seen: Context,
    expected: Digest,
}

impl Audit {
    pub(super) fn new(expected: &Digest) -> Self {
        Self { seen: expected.context(), expected: expected.clone() }
    }

    pub(super) fn see(&mut self, bytes: &[u8]) {
        self.seen.update(bytes);
    }

    /// Whether it was the right one, once all of it was seen.
    pub(super) fn passes(self) -> bool {
        self.expected.is(self.seen.finish().as_ref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest() -> Digest {
        Digest::parse("sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad").unwrap()
    }

    #[test]
    fn a_blob_passes_by_its_bytes() {
        for (bytes, is_right) in [("abc", true), ("abd", false)] {
            let mut audit = Auditor::default().audit(&digest(), 3, Instant::now()).unwrap();
            audit.see(&bytes.as_bytes()[..1]);
            audit.see(&bytes.as_bytes()[1..]);
            assert_eq!(audit.passes(), is_right);
        }
    }

    #[test]
    fn an_image_is_looked_at_whole_and_a_flood_in_part() {
        let (mut auditor, now, mut names) = (Auditor::default(), Instant::now(), 0_u64..);
        let mut looks = |length, now| {
            let name = names.next().unwrap();
            auditor.audit(&Digest::parse(&format!("sha256:{name:064x}")).unwrap(), length, now).is_some()
        };
        assert!([BUDGET / 2, 5 << 20, BUDGET].iter().all(|length| looks(*length, now)), "an image");
        assert!((0..1000).all(|_| looks(ALWAYS, now)));
        let looked_at = (0..8000).filter(|_| looks(BUDGET / 4, now)).count();
        assert!((300..700).contains(&looked_at), "{looked_at}");
        assert!(looks(BUDGET * 100, now + RENEWAL), "the next image");
        let looked_at = (0..8000).filter(|_| looks(BUDGET / 4, now + RENEWAL)).count();
        assert!((300..700).contains(&looked_at), "{looked_at}");
    }

    #[test]
    fn what_is_asked_for_again_is_looked_at() {
        let (mut auditor, now) = (Auditor::default(), Instant::now());
        assert!(auditor.audit(&digest(), BUDGET, now).is_some());
        let mut looks = || auditor.audit(&digest(), BUDGET, now).is_some();
        assert!((0..100).all(|_| looks() || looks()));
    }
}
