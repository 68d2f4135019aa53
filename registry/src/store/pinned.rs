//! Which content eviction must leave alone. Holds digests only; knows nothing of images or of disks.

use std::{collections::HashSet, sync::Arc};

use arc_swap::ArcSwapOption;

use crate::digest::Digest;

/// The pinned digests. Until the pins of an earlier run have been read, everything counts as pinned.
#[derive(Default)]
pub struct Pinned(ArcSwapOption<HashSet<Digest>>);

impl Pinned {
    /// Pins exactly these from now on.
    pub fn replace(&self, digests: HashSet<Digest>) {
        self.0.store(Some(Arc::new(digests)));
    }

    /// Whether the pins are known: nothing may be evicted before.
    pub fn is_known(&self) -> bool {
        self.0.load().is_some()
    }

    /// Whether `digest` must stay.
    pub fn contains(&self, digest: &Digest) -> bool {
        self.0.load().as_ref().is_none_or(|pinned| pinned.contains(digest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Algorithm;

    #[test]
    fn everything_is_pinned_until_the_pins_are_known() {
        let [one, other] = [b"one".as_slice(), b"other"].map(|bytes| Digest::of(Algorithm::Sha256, bytes));
        let pinned = Pinned::default();
        assert!(!pinned.is_known() && pinned.contains(&one));
        pinned.replace([one.clone()].into());
        assert!(pinned.is_known() && pinned.contains(&one) && !pinned.contains(&other));
    }
}
