//! Looks at the digest of blobs that pass by. The runtime refuses a wrong one anyway; this finds out who sent it, so that no other
//! pull has to meet it. Not every blob is looked at: to hash one costs more than to pass it on.

use super::ask::Digest;
use aws_lc_rs::digest::Context;
use std::hash::{BuildHasher, RandomState};

/// Blobs up to this size are always looked at, ...
const ALWAYS: u64 = 4 * 1024 * 1024;
/// ... of larger ones one in so many.
const ONE_IN: u64 = 8;

/// A blob that is looked at.
pub(super) struct Audit {
    seen: Context,
    expected: Digest,
}

impl Audit {
    /// For a blob that comes whole; None where it is not looked at.
    pub(super) fn of(expected: &Digest, length: u64) -> Option<Self> {
        let is_due = length <= ALWAYS || RandomState::new().hash_one(length).is_multiple_of(ONE_IN);
        is_due.then(|| Self { seen: expected.context(), expected: expected.clone() })
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

    #[test]
    fn every_small_blob_is_looked_at_and_some_large_ones() {
        let digest = Digest::parse("sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad").unwrap();
        for (bytes, is_right) in [("abc", true), ("abd", false)] {
            let mut audit = Audit::of(&digest, 3).unwrap();
            audit.see(&bytes.as_bytes()[..1]);
            audit.see(&bytes.as_bytes()[1..]);
            assert_eq!(audit.passes(), is_right);
        }
        let looked_at = (0..4000).filter(|_| Audit::of(&digest, ALWAYS + 1).is_some()).count();
        assert!((300..700).contains(&looked_at), "{looked_at}");
    }
}
