//! What a Pod is compared by: other content than that at which it failed. Pure.

use crate::relay::ask::Content;
use crate::relay::origin::Origin;
use crate::relay::trial::Trial;
use std::collections::VecDeque;
use std::sync::Arc;

/// Of what is wanted, so much is kept. The parts of one image differ in size, and a fault may show in large ones alone.
const WANTED: usize = 4;

#[derive(Debug, Default)]
pub(super) struct Controls {
    /// What the Pod last did well.
    pub(super) well: Option<Arc<Content>>,
    /// What was wanted of it last and refused.
    wanted: VecDeque<Arc<Content>>,
}

impl Controls {
    /// This was asked for in vain, though other content failed.
    pub(super) fn want(&mut self, content: &Arc<Content>) {
        self.wanted.retain(|wanted| wanted.target != content.target);
        self.wanted.truncate(WANTED - 1);
        self.wanted.push_front(content.clone());
    }

    /// The same as was tried, for each of them. What it did well is on its disk by now, and tells nothing of its upstream.
    pub(super) fn of(&self, tried: &Trial) -> Vec<Trial> {
        let well = self.well.iter().filter(|_| tried.origin == Origin::Disk);
        let others = self.wanted.iter().chain(well);
        others.filter(|content| content.target != tried.content.target).map(|content| tried.with(content)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relay::conduct::offences::tests::{content, trial};

    #[test]
    fn what_is_wanted_last_is_compared_first_and_nothing_twice() {
        let mut controls = Controls::default();
        for repository in ["b", "c", "b", "d", "e", "f"] {
            controls.want(&content(repository));
        }
        let compared = |controls: &Controls| controls.of(&trial()).into_iter().map(|trial| trial.content).collect();
        let wanted: Vec<_> = compared(&controls);
        assert_eq!(wanted, ["f", "e", "d", "b"].map(content));
        controls.well = Some(content("g"));
        assert_eq!(compared(&controls).last(), Some(&content("g")));
        assert_eq!(
            controls.of(&Trial::whole(&content("a"), Origin::Upstream)).len(),
            4,
            "it says nothing of the upstream"
        );
    }

    #[test]
    fn what_was_tried_tells_nothing_more() {
        let mut controls = Controls { well: Some(trial().content), ..Controls::default() };
        controls.want(&trial().content);
        assert!(controls.of(&trial()).is_empty());
    }
}
