//! What the API says of a pin. Pure.

use serde::Serialize;

use super::{kept::Kept, platform::Platform};
use crate::{digest::Digest, metrics::PinState};

/// How much of an image is here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum State {
    /// All of it, and it stays: upstream may vanish.
    Complete,
    /// Some of it, or all of it without a promise that it stays.
    Partial,
    /// Nothing.
    Missing,
}

/// The answer for one pin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Status {
    /// `repository:tag` or `repository@digest`.
    pub(super) image: String,
    /// As asked for.
    pub(super) platforms: Vec<Platform>,
    /// How much of it is here.
    pub(super) state: State,
    /// What the tag stands for.
    pub(super) digest: Option<String>,
    /// Bytes that are here.
    pub(super) bytes: u64,
    /// Bytes of all of it, as far as its manifests are here.
    pub(super) total_bytes: u64,
    /// What keeps it from being complete: `NoSpace`, `NoSuchPlatform`, or upstream's failure as in `Cache-Status`.
    pub(super) error: Option<&'static str>,
    /// The same in words.
    pub(super) message: Option<String>,
}

impl Status {
    pub(super) fn of(kept: &Kept) -> Self {
        let (error, message) = trouble(kept).unzip();
        let needs = &kept.sight.plan.needs;
        let sum = |bytes: &mut dyn Iterator<Item = u64>| bytes.fold(0, u64::saturating_add);
        Self {
            image: kept.pin.image(),
            platforms: kept.pin.platforms.iter().cloned().collect(),
            state: State::of(kept),
            digest: kept.sight.root.as_ref().map(Digest::to_string),
            bytes: sum(&mut needs.iter().filter(|need| need.is_here).map(|need| need.size)),
            total_bytes: sum(&mut needs.iter().map(|need| need.size)),
            error,
            message,
        }
    }
}

impl State {
    fn of(kept: &Kept) -> Self {
        match &kept.sight.plan {
            plan if plan.is_complete() && !kept.is_refused => Self::Complete,
            plan if plan.needs.iter().any(|need| need.is_here) => Self::Partial,
            _ => Self::Missing,
        }
    }
}

impl From<State> for PinState {
    fn from(state: State) -> Self {
        match state {
            State::Complete => Self::complete,
            State::Partial => Self::partial,
            State::Missing => Self::missing,
        }
    }
}

fn trouble(kept: &Kept) -> Option<(&'static str, String)> {
    if kept.is_refused {
        let why = "the pins before it fill 80 % of --cache-size: raise that or pin less";
        return Some(("NoSpace", why.to_owned()));
    }
    match (&kept.sight.plan.obstacle, kept.failure) {
        (Some(obstacle), _) => Some((obstacle.category(), obstacle.to_string())),
        (None, failure) => failure.map(|failure| (failure.category(), failure.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pins::{kept::tests::kept, plan::Obstacle};

    fn told(kept: &Kept) -> (State, Option<&'static str>) {
        let Status { state, error, .. } = Status::of(kept);
        (state, error)
    }

    #[test]
    fn states() {
        assert_eq!(told(&kept(&[])), (State::Missing, None));
        assert_eq!(told(&kept(&[("manifest", false)])), (State::Missing, None));
        assert_eq!(told(&kept(&[("manifest", true), ("a", false)])), (State::Partial, None));
        assert_eq!(told(&kept(&[("manifest", true), ("a", true)])), (State::Complete, None));
        let mut refused = kept(&[("manifest", true)]);
        refused.is_refused = true;
        assert_eq!(told(&refused), (State::Partial, Some("NoSpace")));
        let mut wrong = kept(&[("manifest", true)]);
        wrong.sight.plan.obstacle = Some(Obstacle::NotOffered("linux/s390x".parse().unwrap()));
        assert_eq!(told(&wrong), (State::Partial, Some("NoSuchPlatform")));
    }

    #[test]
    fn sizes_that_a_manifest_made_up_do_not_overflow() {
        let mut huge = kept(&[("manifest", true), ("a", false)]);
        huge.sight.plan.needs[1].size = u64::MAX;
        assert_eq!(Status::of(&huge).total_bytes, u64::MAX);
    }
}
