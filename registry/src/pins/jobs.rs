//! What the keeper does for its pins by asking upstream: chooses jobs, runs a few at a time, takes note of what came of them.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use tracing::warn;

use super::{
    fetch,
    keeper::Keeper,
    kept::{Kept, Sight},
    plan::Need,
};
use crate::{digest::Digest, failure::Failure};

/// Downloads, or questions to upstream, at a time: pulls go first.
const AT_A_TIME: usize = 4;
/// After so long with one kind of work the other gets its turn; downloads go on meanwhile.
const TURN: Duration = Duration::from_secs(5);
/// Questions for the meaning of tags, each tick.
const MOST_REFRESHES: usize = 5;
/// Upstream's "too many requests" is its answer to all pins.
const PAUSE: Duration = Duration::from_secs(60);

/// Something to do for one pin, named by its place in the list.
pub(super) enum Job {
    /// Find out what it needs.
    Learn(usize),
    /// Fetch a blob that it needs.
    Fetch(usize, Need),
}

/// What came of a job.
enum Outcome {
    Learned(Sight, Option<Failure>),
    Fetched(Digest, Result<(), Failure>),
}

impl Keeper {
    /// First what is not clear yet; then a few tags, those that have waited longest.
    pub(super) fn to_learn(&self) -> VecDeque<Job> {
        let (now, pins) = (Instant::now(), || self.kept.iter().enumerate());
        let unclear = pins().filter(|(_, kept)| kept.is_unclear()).map(|(place, _)| place);
        let is_away = self.parts.upstream.is_away().is_some();
        let is_stale = |kept: &Kept| !is_away && !kept.is_unclear() && kept.is_refresh_due(now);
        let mut stale: Vec<_> = pins().filter(|(_, kept)| is_stale(kept)).collect();
        stale.sort_by_key(|(_, kept)| kept.refresh_at);
        unclear.chain(stale.into_iter().map(|(place, _)| place).take(MOST_REFRESHES)).map(Job::Learn).collect()
    }

    pub(super) fn to_fetch(&self) -> VecDeque<Job> {
        let now = Instant::now();
        let fitting = self.kept.iter().enumerate().filter(|(_, kept)| !kept.is_refused && kept.is_due(now));
        fitting.flat_map(|(place, kept)| kept.missing().into_iter().map(move |need| Job::Fetch(place, need))).collect()
    }

    /// Does the jobs for a while, a few at a time and in their order; says whether all are done.
    pub(super) async fn work(&mut self, mut jobs: VecDeque<Job>) -> bool {
        let until = Instant::now() + TURN;
        let mut running = FuturesUnordered::new();
        loop {
            while running.len() < AT_A_TIME
                && let Some(job) = jobs.pop_front()
            {
                running.extend(self.start(job));
            }
            match tokio::time::timeout_at(until.into(), running.next()).await {
                Ok(Some((place, outcome))) => self.note(place, outcome),
                Ok(None) => return true,
                Err(_) => return false,
            }
        }
    }

    fn start(&mut self, job: Job) -> Option<BoxFuture<'static, (usize, Outcome)>> {
        let (Job::Learn(place) | Job::Fetch(place, _)) = job;
        let (now, kept) = (Instant::now(), &mut self.kept[place]);
        if !kept.is_due(now) {
            return None;
        }
        if self.paused_until.is_some_and(|until| now < until) {
            kept.failed(Failure::TooManyRequests, now);
            self.tell(place);
            return None;
        }
        let (pull, store, pin) = (Arc::clone(&self.parts.pull), Arc::clone(&self.parts.store), Arc::clone(&kept.pin));
        Some(match job {
            Job::Learn(_) => async move { fetch::learn(&pull, &store, pin).await }
                .map(move |(sight, failure)| (place, Outcome::Learned(sight, failure)))
                .boxed(),
            Job::Fetch(_, need) => async move {
                let fetched = fetch::blob(&pull, &store, &pin.repository, &need).await;
                (place, Outcome::Fetched(need.digest, fetched))
            }
            .boxed(),
        })
    }

    fn note(&mut self, place: usize, outcome: Outcome) {
        let (now, kept) = (Instant::now(), &mut self.kept[place]);
        let failure = match outcome {
            Outcome::Learned(sight, failure) => {
                self.has_changed |= kept.sight != sight;
                kept.learned(sight, failure, now, self.parts.tag_ttl);
                failure
            }
            Outcome::Fetched(digest, Ok(())) => {
                kept.has_come(&digest, now);
                // Its elder may go.
                self.has_changed |= kept.sight.plan.is_complete();
                None
            }
            Outcome::Fetched(_, Err(failure)) => {
                kept.failed(failure, now);
                Some(failure)
            }
        };
        if failure == Some(Failure::TooManyRequests) && self.paused_until.is_none_or(|until| until <= now) {
            warn!(pause = ?PAUSE, "upstream limits the rate, pins wait");
            self.paused_until = Some(now + PAUSE);
        }
        self.tell(place);
    }
}
