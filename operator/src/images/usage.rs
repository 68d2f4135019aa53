//! Which objects of one kind name which images: a table that a watch keeps. Pure.
//!
//! Most Pods are copies of few templates, so each set of images is kept once, and only the coming and going of sets is news.

use super::workload::{Named, Workload};
use kube::Resource;
use kube::runtime::watcher::Event;
use std::collections::HashMap;
use std::sync::Arc;

/// What one template names.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct Uses {
    pub(super) images: Box<[Box<str>]>,
    pub(super) is_node_bootstrap: bool,
}

/// All objects of one kind.
#[derive(Debug, Default)]
pub(super) struct Usage {
    known: Option<Table>,
    /// While the objects are listed anew: what was known stands until the list is whole.
    listing: Table,
}

#[derive(Debug, Default)]
struct Table {
    objects: HashMap<Box<str>, Arc<Uses>>,
    sets: HashMap<Arc<Uses>, usize>,
}

impl Usage {
    /// Takes note of an event; says whether other images are in use now.
    pub(super) fn apply<K>(&mut self, event: Event<Workload<K>>) -> bool
    where
        Workload<K>: Resource,
    {
        match event {
            Event::Init => {
                self.listing = Table::default();
                false
            }
            Event::InitApply(object) => {
                self.listing.put(&object);
                false
            }
            Event::InitDone => {
                let fresh = std::mem::take(&mut self.listing);
                let is_same = self.known.as_ref().is_some_and(|known| {
                    known.sets.len() == fresh.sets.len() && known.sets.keys().all(|uses| fresh.sets.contains_key(uses))
                });
                self.known = Some(fresh);
                !is_same
            }
            Event::Apply(object) => self.known.as_mut().is_some_and(|known| known.put(&object)),
            Event::Delete(object) => {
                let uid = object.meta().uid.as_deref().unwrap_or_default();
                self.known.as_mut().is_some_and(|known| known.remove(uid))
            }
        }
    }

    /// The sets of images in use; none before the objects were listed once.
    pub(super) fn sets(&self) -> Option<impl Iterator<Item = &Uses>> {
        self.known.as_ref().map(|known| known.sets.keys().map(AsRef::as_ref))
    }
}

impl Table {
    fn put<K>(&mut self, object: &Workload<K>) -> bool
    where
        Workload<K>: Resource,
    {
        let uid = object.meta().uid.as_deref().unwrap_or_default();
        let Named { images, is_node_bootstrap } = &object.facts;
        if images.is_empty() {
            return self.remove(uid);
        }
        let uses = Uses { images: images.as_slice().into(), is_node_bootstrap: *is_node_bootstrap };
        if self.objects.get(uid).is_some_and(|known| **known == uses) {
            return false;
        }
        let uid = Box::from(uid);
        let is_gone = self.remove(&uid);
        let known = self.sets.get_key_value(&uses).map(|(uses, _)| uses.clone());
        let is_new = known.is_none();
        let uses = known.unwrap_or_else(|| Arc::new(uses));
        *self.sets.entry(uses.clone()).or_default() += 1;
        self.objects.insert(uid, uses);
        is_new || is_gone
    }

    /// Says whether it was the last of its set.
    fn remove(&mut self, uid: &str) -> bool {
        let Some(uses) = self.objects.remove(uid) else { return false };
        match self.sets.get_mut(&uses) {
            Some(count) if *count > 1 => {
                *count -= 1;
                false
            }
            _ => self.sets.remove(&uses).is_some(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::parse;
    use k8s_openapi::api::core::v1::Pod;
    use proptest::prelude::*;
    use std::collections::{BTreeMap, BTreeSet};

    fn pod(uid: u32, image: &str) -> Workload<Pod> {
        parse(&format!("{{metadata: {{uid: '{uid}'}}, spec: {{containers: [{{image: '{image}'}}]}}}}"))
    }

    fn images(usage: &Usage) -> Option<BTreeSet<String>> {
        Some(usage.sets()?.flat_map(|uses| uses.images.iter().map(|image| image.to_string())).collect())
    }

    #[test]
    fn an_unfinished_list_takes_nothing_away() {
        let mut usage = Usage::default();
        usage.apply::<Pod>(Event::Init);
        usage.apply(Event::InitApply(pod(1, "a")));
        assert_eq!(images(&usage), None, "half a list is no list");
        assert!(usage.apply::<Pod>(Event::InitDone));
        assert!(!usage.apply::<Pod>(Event::Init));
        assert_eq!(images(&usage), Some(["a".to_owned()].into()), "the old list stands while a new one comes");
        usage.apply(Event::InitApply(pod(2, "a")));
        assert!(!usage.apply::<Pod>(Event::InitDone), "another Pod of the same image is no news");
    }

    proptest! {
        #[test]
        fn the_sets_are_those_of_the_objects(steps in proptest::collection::vec((0_u32..6, 0_u8..4, any::<bool>()), 0..60)) {
            let mut usage = Usage::default();
            let mut model: BTreeMap<u32, String> = BTreeMap::new();
            usage.apply::<Pod>(Event::Init);
            usage.apply::<Pod>(Event::InitDone);
            for (uid, image, is_there) in steps {
                let before = images(&usage);
                // Image 0 is none: a Pod that has ended.
                let image = if image == 0 { String::new() } else { image.to_string() };
                let changed = if is_there {
                    model.insert(uid, image.clone());
                    usage.apply(Event::Apply(pod(uid, &image)))
                } else {
                    model.remove(&uid);
                    usage.apply(Event::Delete(pod(uid, &image)))
                };
                let expected: BTreeSet<_> = model.values().filter(|image| !image.is_empty()).cloned().collect();
                prop_assert_eq!(images(&usage), Some(expected.clone()));
                prop_assert_eq!(changed, before != Some(expected));
            }
        }
    }
}
