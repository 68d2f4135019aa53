//! What a Pod is compared by: other content than that at which it failed. Pure.

use crate::relay::ask::Content;
use crate::relay::origin::Origin;
use crate::relay::trial::Trial;
use std::collections::VecDeque;
use std::sync::Arc;

/// Of what is wanted, so much is kept of each sort. The parts of one image differ in size, and a fault may show in large ones alone.
const WANTED: usize = 4;

#[derive(Debug, Default)]
pub(super) struct Controls {
    /// What the Pod last did well, one of each sort.
    well: Vec<Arc<Content>>,
    /// What was wanted of it last and refused.
    wanted: VecDeque<Arc<Content>>,
}

impl Controls {
    /// This was asked for in vain, though other content failed.
    pub(super) fn want(&mut self, content: &Arc<Content>) {
        self.wanted.retain(|wanted| wanted.target != content.target);
        self.wanted.push_front(content.clone());
        let mut of_its_sort = 0;
        self.wanted.retain(|wanted| {
            of_its_sort += usize::from(wanted.is_like(content));
            !wanted.is_like(content) || of_its_sort <= WANTED
        });
    }

    /// This came well. Of blobs, a small one tells less than a large one.
    pub(super) fn do_well(&mut self, content: &Arc<Content>, is_small: bool) {
        if is_small && content.blob().is_some() && self.well.iter().any(|well| well.is_like(content)) {
            return;
        }
        self.well.retain(|well| !well.is_like(content));
        self.well.push(content.clone());
    }

    /// The same as was tried, for each of its sort. What it did well is on its disk by now, and tells nothing of its upstream.
    pub(super) fn of(&self, tried: &Trial) -> Vec<Trial> {
        let well = self.well.iter().filter(|_| tried.origin == Origin::Disk);
        let others = self.wanted.iter().chain(well);
        let others = others.filter(|other| other.target != tried.content.target && other.is_like(&tried.content));
        others.map(|content| tried.with(content)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relay::conduct::offences::tests::{blob, content, trial};

    #[test]
    fn what_is_wanted_last_is_compared_first_and_nothing_twice() {
        let mut controls = Controls::default();
        for repository in ["b", "c", "b", "d", "e", "f"] {
            controls.want(&content(repository));
        }
        let compared = |controls: &Controls| controls.of(&trial()).into_iter().map(|trial| trial.content).collect();
        let wanted: Vec<_> = compared(&controls);
        assert_eq!(wanted, ["f", "e", "d", "b"].map(content));
        controls.do_well(&content("g"), true);
        assert_eq!(compared(&controls).last(), Some(&content("g")));
        assert_eq!(
            controls.of(&Trial::whole(&content("a"), Origin::Upstream)).len(),
            4,
            "it says nothing of the upstream"
        );
    }

    #[test]
    fn how_manifests_go_tells_nothing_of_blobs() {
        let mut controls = Controls::default();
        controls.want(&blob("a"));
        for repository in ["b", "c", "d", "e", "f"] {
            controls.want(&content(repository));
        }
        controls.do_well(&blob("c"), false);
        controls.do_well(&content("c"), true);
        controls.do_well(&blob("d"), true);
        let compared = controls.of(&Trial::whole(&blob("b"), Origin::Disk));
        assert_eq!(compared.into_iter().map(|trial| trial.content).collect::<Vec<_>>(), ["a", "c"].map(blob));
    }

    #[test]
    fn what_was_tried_tells_nothing_more() {
        let mut controls = Controls::default();
        controls.do_well(&trial().content, false);
        controls.want(&trial().content);
        assert!(controls.of(&trial()).is_empty());
    }
}
