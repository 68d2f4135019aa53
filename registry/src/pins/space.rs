//! Who may stay when not all pins fit: those that stand first in the list. Pure.

use std::collections::HashSet;

use super::kept::Kept;
use crate::{digest::Digest, pins::plan::Need};

/// Pins get so many percent of the cache; the rest is for what is pulled today.
const PERCENT: u64 = 80;

/// What the pins that fit need.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Allotment {
    /// Must not be evicted.
    pub(super) digests: HashSet<Digest>,
    /// How much that is once it is here.
    pub(super) bytes: u64,
}

/// Goes through the list and refuses what does not fit beside what stands before it. Content that several pins share counts
/// once. A newcomer under an old tag is refused alone: its elder stays.
pub(super) fn allot(pins: &mut [Kept], size: Option<u64>) -> Allotment {
    let most = size.map_or(u64::MAX, |size| size / 100 * PERCENT + size % 100 * PERCENT / 100);
    let mut allotted = Allotment::default();
    for kept in pins {
        let elder = kept.sight.elder.as_slice();
        kept.is_refused = !allotted.takes(&[&kept.sight.plan.needs, elder], most);
        if kept.is_refused {
            allotted.takes(&[elder], most);
        }
    }
    allotted
}

impl Allotment {
    /// Takes all of it or nothing.
    fn takes(&mut self, needs: &[&[Need]], most: u64) -> bool {
        let (before, mut added) = (self.bytes, Vec::new());
        for need in needs.iter().copied().flatten() {
            if self.digests.insert(need.digest.clone()) {
                self.bytes = self.bytes.saturating_add(need.size);
                added.push(&need.digest);
            }
        }
        if self.bytes <= most {
            return true;
        }
        self.bytes = before;
        for digest in added {
            self.digests.remove(digest);
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::{
        digest::Algorithm,
        pins::{kept::Sight, list::Pin, plan::Plan},
        reference::Reference,
    };

    fn needs(named: &[(u8, u64)]) -> Vec<Need> {
        let digest = |name: u8| Digest::of(Algorithm::Sha256, &[name]);
        let need = |&(name, size): &(u8, u64)| Need { digest: digest(name), size, is_manifest: false, is_here: false };
        named.iter().map(need).collect()
    }

    fn pin(current: &[(u8, u64)], elder: &[(u8, u64)]) -> Kept {
        let reference = Reference::Tag("v1".parse().unwrap());
        let pin = Pin { repository: "a".parse().unwrap(), reference, platforms: Default::default() };
        let plan = Plan { needs: needs(current), ..Plan::default() };
        Kept::new(Arc::new(pin), Sight { root: None, plan, elder: needs(elder) })
    }

    fn refused(pins: &mut [Kept], size: u64) -> (Vec<bool>, u64) {
        let allotted = allot(pins, Some(size));
        (pins.iter().map(|kept| kept.is_refused).collect(), allotted.bytes)
    }

    #[test]
    fn the_first_in_the_list_fit() {
        let pins = || [pin(&[(1, 50)], &[]), pin(&[(2, 40)], &[]), pin(&[(3, 30)], &[])];
        assert_eq!(refused(&mut pins(), 100), (vec![false, true, false], 80));
        assert_eq!(refused(&mut pins(), 150), (vec![false, false, false], 120));
        assert_eq!(allot(&mut pins(), None).bytes, 120);
    }

    #[test]
    fn what_is_shared_counts_once() {
        let mut pins = [pin(&[(1, 50), (2, 10)], &[]), pin(&[(1, 50), (3, 20)], &[])];
        assert_eq!(refused(&mut pins, 100), (vec![false, false], 80));
    }

    #[test]
    fn an_elder_stays_where_its_successor_does_not_fit() {
        let mut pins = [pin(&[(1, 70)], &[(2, 60)])];
        let allotted = allot(&mut pins, Some(100));
        assert!(pins[0].is_refused && allotted.bytes == 60 && allotted.digests.len() == 1);
    }

    proptest! {
        #[test]
        fn never_more_than_its_part(
            pins in proptest::collection::vec(proptest::collection::vec((0u8..20, 0u64..50), 0..6), 0..12),
            size in 0u64..500,
        ) {
            let mut kept: Vec<_> = pins.iter().map(|needs| pin(needs, &[])).collect();
            let allotted = allot(&mut kept, Some(size));
            prop_assert!(allotted.bytes <= size * 8 / 10);
            for kept in kept.iter().filter(|kept| !kept.is_refused) {
                prop_assert!(kept.sight.plan.needs.iter().all(|need| allotted.digests.contains(&need.digest)));
            }
        }
    }
}
