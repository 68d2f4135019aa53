//! One pin as the cache has it: what it needs, what of that is here, what is wrong, when to try again. Pure.

use std::{
    collections::hash_map::DefaultHasher,
    hash::{Hash, Hasher},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    list::Pin,
    plan::{Need, Plan},
};
use crate::{digest::Digest, failure::Failure, reference::Reference};

/// Before the first repetition; doubled each time.
const FIRST_RETRY: Duration = Duration::from_secs(2);
/// The longest wait where upstream fails. Its return is not waited for: that ends every wait.
const LAST_RETRY: Duration = Duration::from_secs(60);
/// The longest wait where upstream does not have it: only a push can change that.
const LAST_RETRY_IF_ABSENT: Duration = Duration::from_secs(300);
/// A short time to live is for pulls; in the background this is often enough.
const REFRESH: Duration = Duration::from_secs(300);
/// Where the time to live is shorter than that allows, as a part of it.
const REFRESH_EVERY_TTLS: u32 = 5;

/// What is found on disk of a pin.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Sight {
    /// What the reference stands for.
    pub(super) root: Option<Digest>,
    /// What that needs.
    pub(super) plan: Plan,
    /// What the tag stood for before; kept until its successor is complete.
    pub(super) elder: Vec<Need>,
}

/// One pin.
pub(super) struct Kept {
    pub(super) pin: Arc<Pin>,
    pub(super) sight: Sight,
    /// It does not fit.
    pub(super) is_refused: bool,
    /// What last went wrong.
    pub(super) failure: Option<Failure>,
    attempts: u32,
    retry_at: Option<Instant>,
    /// When to ask again what the tag means; `None` if that was not asked yet.
    pub(super) refresh_at: Option<Instant>,
}

impl Kept {
    pub(super) fn new(pin: Arc<Pin>, sight: Sight) -> Self {
        Self { pin, sight, is_refused: false, failure: None, attempts: 0, retry_at: None, refresh_at: None }
    }

    /// Whether the manifests that are here do not tell all that is needed.
    pub(super) fn is_unclear(&self) -> bool {
        self.sight.root.is_none() || self.sight.plan.unread().next().is_some()
    }

    /// Whether what failed may be tried again.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.retry_at.is_none_or(|at| at <= now)
    }

    /// Whether upstream should be asked what the tag means now.
    pub(super) fn is_refresh_due(&self, now: Instant) -> bool {
        matches!(self.pin.reference, Reference::Tag(_)) && self.refresh_at.is_none_or(|at| at <= now)
    }

    /// The blobs to fetch. Which comes first changes with each attempt, so that one that cannot be had stops no other.
    pub(super) fn missing(&self) -> Vec<Need> {
        let needs = self.sight.plan.needs.iter();
        let mut missing: Vec<Need> = needs.filter(|need| !need.is_manifest && !need.is_here).cloned().collect();
        let first = self.attempts as usize % missing.len().max(1);
        missing.rotate_left(first);
        missing
    }

    /// Takes note of what is on disk and of what upstream said when asked for more.
    pub(super) fn learned(&mut self, sight: Sight, failure: Option<Failure>, now: Instant, tag_ttl: Duration) {
        // The same manifests again do not make a blob that failed any better.
        let is_news = self.is_unclear() || self.sight.root != sight.root;
        self.sight = sight;
        self.refresh_at = Some(now + self.refresh_every(tag_ttl));
        match failure {
            Some(failure) if !self.sight.plan.is_complete() => self.failed(failure, now),
            _ if is_news || self.sight.plan.is_complete() => self.succeeded(),
            _ => {}
        }
    }

    /// A blob has come.
    pub(super) fn has_come(&mut self, digest: &Digest, now: Instant) {
        let needs = &mut self.sight.plan.needs;
        needs.iter_mut().filter(|need| need.digest == *digest).for_each(|need| need.is_here = true);
        // Another one that failed meanwhile keeps its wait.
        if self.is_due(now) || self.sight.plan.is_complete() {
            self.succeeded();
        }
    }

    fn succeeded(&mut self) {
        (self.failure, self.attempts, self.retry_at) = (None, 0, None);
        if self.sight.plan.is_complete() {
            self.sight.elder.clear();
        }
    }

    /// Something could not be had.
    pub(super) fn failed(&mut self, failure: Failure, now: Instant) {
        self.failure = Some(failure);
        // Several that fail together are one attempt.
        if self.is_due(now) {
            let longest = if failure.is_absence() { LAST_RETRY_IF_ABSENT } else { LAST_RETRY };
            let wait = FIRST_RETRY.saturating_mul(1 << self.attempts.min(16)).min(longest);
            self.attempts += 1;
            self.retry_at = Some(now + wait.mul_f64(self.spread()));
        }
    }

    /// Upstream is back.
    pub(super) fn retry_now(&mut self) {
        (self.attempts, self.retry_at) = (0, None);
    }

    fn refresh_every(&self, tag_ttl: Duration) -> Duration {
        tag_ttl.max(REFRESH.min(tag_ttl.saturating_mul(REFRESH_EVERY_TTLS))).mul_f64(self.spread())
    }

    /// Between 1 and 1.2, the same for the same image: what began together must not stay together.
    fn spread(&self) -> f64 {
        let mut hasher = DefaultHasher::new();
        (&self.pin.repository, &self.pin.reference).hash(&mut hasher);
        1.0 + 0.2 * (hasher.finish() % 1000) as f64 / 1000.0
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::digest::Algorithm;

    const TTL: Duration = Duration::from_secs(60);

    pub(in crate::pins) fn kept(needs: &[(&str, bool)]) -> Kept {
        let pin = Pin {
            repository: "library/app".parse().unwrap(),
            reference: Reference::Tag("v1".parse().unwrap()),
            platforms: ["linux/amd64".parse().unwrap()].into(),
        };
        Kept::new(Arc::new(pin), sight(needs))
    }

    fn sight(needs: &[(&str, bool)]) -> Sight {
        let need = |(name, is_here): &(&str, bool)| Need {
            digest: blob(name),
            size: 10,
            is_manifest: *name == "manifest",
            is_here: *is_here,
        };
        let plan = Plan { needs: needs.iter().map(need).collect(), ..Plan::default() };
        Sight { root: Some(blob("manifest")), plan, elder: Vec::new() }
    }

    fn blob(name: &str) -> Digest {
        Digest::of(Algorithm::Sha256, name.as_bytes())
    }

    #[test]
    fn waits_grow_and_end_with_the_outage() {
        let mut now = Instant::now();
        let mut kept = kept(&[("manifest", true), ("a", false)]);
        let mut waits = Vec::new();
        for _ in 0..8 {
            kept.failed(Failure::ServerError, now);
            kept.failed(Failure::ServerError, now);
            let at = kept.retry_at.unwrap();
            waits.push(at - now);
            assert!(!kept.is_due(now) && kept.is_due(at));
            now = at;
        }
        assert!(waits.is_sorted() && waits[0] < FIRST_RETRY * 2 && waits[7] >= LAST_RETRY && waits[7] < LAST_RETRY * 2);
        assert_eq!(kept.failure, Some(Failure::ServerError));
        kept.failed(Failure::Connect, now);
        kept.retry_now();
        assert!(kept.is_due(now));
        kept.has_come(&blob("a"), Instant::now());
        assert!(kept.sight.plan.is_complete() && kept.failure.is_none());
    }

    #[test]
    fn an_elder_stays_until_its_successor_is_complete() {
        let mut kept = kept(&[]);
        let elder = sight(&[("old", true)]).plan.needs;
        let newcomer = Sight { elder: elder.clone(), ..sight(&[("manifest", true), ("a", false), ("b", false)]) };
        kept.learned(newcomer, None, Instant::now(), TTL);
        kept.has_come(&blob("a"), Instant::now());
        assert_eq!(kept.sight.elder, elder);
        kept.has_come(&blob("b"), Instant::now());
        assert_eq!(kept.sight.elder, []);
    }

    #[test]
    fn a_tag_is_asked_for_now_and_then() {
        let every = |ttl: Duration| {
            let (mut kept, now) = (kept(&[("manifest", true)]), Instant::now());
            assert!(kept.is_refresh_due(now));
            kept.learned(sight(&[("manifest", true)]), None, now, ttl);
            assert!(!kept.is_refresh_due(now));
            kept.refresh_at.unwrap() - now
        };
        let about = |expected: Duration, ttl: Duration| every(ttl) >= expected && every(ttl) <= expected.mul_f64(1.21);
        assert!(about(REFRESH, TTL) && about(TTL * 60, TTL * 60) && about(TTL / 12, TTL / 60));
    }

    #[test]
    fn one_blob_that_cannot_be_had_stops_no_other() {
        let mut kept = kept(&[("manifest", true), ("a", false), ("b", false)]);
        let first = kept.missing()[0].digest.clone();
        kept.failed(Failure::NotFound, Instant::now());
        assert_ne!(kept.missing()[0].digest, first);
    }
}
