//! What a Pod failed at is asked of it again before any pull depends on it: the half-open state of a circuit breaker
//! (<https://learn.microsoft.com/azure/architecture/patterns/circuit-breaker>), with a request of our own in place of somebody's.

mod attempt;

use super::ask::Content;
use super::origin::Origin;
use http::Method;
use std::sync::Arc;

/// A body that broke off is read this much further.
const FURTHER: u64 = 256 * 1024;
/// What takes no more than this is tried more often.
const LITTLE: u64 = 4 * 1024 * 1024;
/// Of content that is tried for comparison, no more is read than this.
const CONTROL: u64 = 16 * 1024 * 1024;

/// What is asked again.
#[derive(Debug)]
pub(super) struct Trial {
    pub(super) content: Arc<Content>,
    pub(super) part: Part,
    /// Where that came from at which it failed. What has come to its disk since tells nothing of its upstream.
    pub(super) origin: Origin,
    /// Of other content, tried to compare.
    is_control: bool,
}

/// What it shows that something goes well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// That all is well which is tried.
    All,
    /// That it has come to the disk meanwhile, and nothing of the upstream.
    OfTheDisk,
    /// That less is well than came well of the other.
    Short,
}

#[derive(Clone, Debug)]
pub(super) enum Part {
    /// Headers, as a runtime asks for them.
    Headers(Method),
    /// The same of who is only asked after another while they come late, which costs nobody anything.
    Soon(Method),
    /// What it has, as soon as others have theirs.
    Promptly,
    /// Whether it has it.
    Own(Method),
    /// Headers of use, or such as a cache of ours sends.
    Sense(Method),
    /// The body up to there, or all of it where it ends before. One that is shorter than what was sent before the fault tells nothing
    /// of longer ones.
    Body { sent: u64, until: u64 },
    /// All of the body, of who sent a wrong one.
    Right,
    /// All of the body, where another Pod of the cache sent a wrong one.
    Honest,
}

impl Trial {
    fn of(content: &Arc<Content>, part: Part, origin: Origin) -> Self {
        Self { content: content.clone(), part, origin, is_control: false }
    }

    /// Of who let somebody wait for headers.
    pub(super) fn headers(method: &Method, content: &Arc<Content>) -> Self {
        Self::of(content, Part::Headers(method.clone()), Origin::Upstream)
    }

    /// Of who did so where another can be asked.
    pub(super) fn soon(method: &Method, content: &Arc<Content>) -> Self {
        Self::of(content, Part::Soon(method.clone()), Origin::Disk)
    }

    /// Of who took its time over what it has, again and again.
    pub(super) fn promptly(content: &Arc<Content>) -> Self {
        Self::of(content, Part::Promptly, Origin::Disk)
    }

    /// Of who told not even what it has.
    pub(super) fn own(method: &Method, content: &Arc<Content>) -> Self {
        Self::of(content, Part::Own(method.clone()), Origin::Disk)
    }

    /// Of who talked nonsense.
    pub(super) fn sense(method: &Method, content: &Arc<Content>) -> Self {
        Self::of(content, Part::Sense(method.clone()), Origin::Disk)
    }

    /// Of who sent a body from there as far as this.
    pub(super) fn beyond(reached: u64, content: &Arc<Content>, origin: Origin) -> Self {
        let part = Part::Body { sent: reached.min(CONTROL), until: reached.saturating_add(FURTHER) };
        Self::of(content, part, origin)
    }

    /// Of who sent other content than it should.
    pub(super) fn right(content: &Arc<Content>) -> Self {
        Self::of(content, Part::Right, Origin::Disk)
    }

    /// Of who may do so as well, for all that is known.
    pub(super) fn honest(content: &Arc<Content>) -> Self {
        Self::of(content, Part::Honest, Origin::Disk)
    }

    /// Of who sent hardly any of a small body.
    pub(super) fn whole(content: &Arc<Content>, origin: Origin) -> Self {
        Self::of(content, Part::Body { sent: 0, until: LITTLE }, origin)
    }

    /// The same for other content, of which a part is enough. The headers of a large blob tell nothing of a small one's, for which a
    /// cache of ours waits until it has all of it.
    pub(super) fn with(&self, content: &Arc<Content>) -> Self {
        let part = match &self.part {
            Part::Headers(_) if content.blob().is_some() => Part::Body { sent: 0, until: LITTLE },
            Part::Body { sent, until } => Part::Body { sent: *sent, until: CONTROL.min(*until) },
            other => other.clone(),
        };
        Self { content: content.clone(), part, origin: self.origin, is_control: true }
    }

    /// Whether less of the body came from there than a body of this length has.
    pub(super) fn is_short_of(&self, from: Origin, length: u64) -> bool {
        self.origin == from && matches!(self.part, Part::Body { sent, .. } if length > sent)
    }

    /// Whether it is about how soon headers come that the upstream may have to send first.
    pub(super) fn is_of_headers(&self) -> bool {
        matches!(self.part, Part::Headers(_))
    }

    /// Whether it shows that what was a lie is one no more.
    pub(super) fn is_of_lies(&self) -> bool {
        matches!(self.part, Part::Right)
    }

    /// Whether it is about what is sent, and not only about how soon.
    pub(super) fn is_of_bodies(&self) -> bool {
        matches!(self.part, Part::Own(_) | Part::Body { .. } | Part::Right | Part::Honest)
    }

    /// Whether all nodes of a cluster can ask for so much every other minute.
    pub(super) fn is_cheap(&self) -> bool {
        match self.part {
            Part::Headers(_) | Part::Soon(_) | Part::Promptly | Part::Own(_) | Part::Sense(_) => true,
            Part::Body { until, .. } => until <= LITTLE,
            Part::Right | Part::Honest => false,
        }
    }
}
