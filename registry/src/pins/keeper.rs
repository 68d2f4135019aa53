//! Keeps the pins: takes new lists, completes what is missing, asks now and then whether tags have moved and looks whether
//! all is still here. The one owner of their state; what it knows is published for the API to read.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use tokio::sync::{mpsc, oneshot};
use tracing::{info, warn};

use super::{
    board::Board,
    disk, fetch,
    kept::{Kept, Sight, State},
    list::{self, Pin},
    plan::Need,
    space,
};
use crate::{
    digest::Digest,
    failure::Failure,
    pull::Pull,
    registry_host::RegistryHost,
    store::{Store, blocking},
    upstream::Upstream,
};

/// Downloads, or questions to upstream, at a time: pulls go first.
const AT_A_TIME: usize = 4;
const TICK: Duration = Duration::from_secs(1);
/// After so long with downloads everything else gets its turn; they go on meanwhile.
const MOST_FETCHING: Duration = Duration::from_secs(5);
/// Questions for the meaning of tags, each tick.
const MOST_REFRESHES: usize = 5;
/// What is here is looked at so often, and soon after somebody has asked for the state.
const RECHECK_EVERY: Duration = Duration::from_secs(600);
const RECHECK_IF_ASKED: Duration = Duration::from_secs(2);
/// Upstream's "too many requests" is its answer to all pins.
const PAUSE: Duration = Duration::from_secs(60);

/// A list to take over, and where to say that it is kept.
pub(super) type Accept = (Vec<Pin>, oneshot::Sender<Result<(), Failure>>);

/// The keeper of all pins.
pub(super) struct Keeper {
    pub(super) registry: RegistryHost,
    pub(super) store: Arc<Store>,
    pub(super) upstream: Arc<Upstream>,
    pub(super) pull: Arc<Pull>,
    pub(super) tag_ttl: Duration,
    pub(super) board: Arc<Board>,
    pub(super) kept: Vec<Kept>,
    /// What is needed has changed since it was last protected.
    pub(super) has_changed: bool,
    pub(super) was_away: bool,
    pub(super) paused_until: Option<Instant>,
    pub(super) rechecked: Instant,
}

/// Something to do for one pin, named by its place in the list.
enum Job {
    /// Find out what it needs.
    Learn(usize),
    /// Fetch a blob that it needs.
    Fetch(usize, Need),
}

/// What came of a job.
enum Outcome {
    Learned(usize, Sight, Option<Failure>),
    Fetched(usize, Digest, Result<(), Failure>),
}

impl Keeper {
    /// Runs for as long as the process does.
    pub(super) async fn run(mut self, mut lists: mpsc::Receiver<Accept>) {
        let (store, registry) = (Arc::clone(&self.store), self.registry.clone());
        let recalled = blocking(move || disk::recall(&store, &registry)).await.unwrap_or_default();
        self.replace(recalled).await;
        loop {
            // A new list ends the turn; downloads under way go on and are joined again.
            tokio::select! {
                accept = lists.recv() => match accept {
                    Some(accept) => self.accept(accept).await,
                    None => return,
                },
                () = self.turn() => {}
            }
        }
    }

    async fn accept(&mut self, (pins, done): Accept) {
        let (store, list) = (Arc::clone(&self.store), pins.clone());
        let written = blocking(move || store.pin_list.put(&list::write(&list)?)).await;
        let answer = match written {
            Some(Ok(())) => {
                info!(count = pins.len(), "pins accepted");
                self.replace(pins).await;
                Ok(())
            }
            Some(Err(error)) => {
                warn!(%error, "pins cannot be kept, the old ones stay");
                Err(Failure::Disk)
            }
            None => Err(Failure::Stopping),
        };
        // Whoever asked may have left.
        let _ = done.send(answer);
    }

    /// From here on these are the pins. What is here of them is protected before anything is fetched.
    async fn replace(&mut self, pins: Vec<Pin>) {
        let name = |pin: &Pin| (pin.repository.clone(), pin.reference.clone());
        let mut known: HashMap<_, _> = self.kept.drain(..).map(|kept| (name(&kept.pin), kept)).collect();
        let known: Vec<_> = pins.iter().map(|pin| known.remove(&name(pin)).filter(|kept| kept.pin == *pin)).collect();
        let store = Arc::clone(&self.store);
        let examined = blocking(move || {
            let examine = |(pin, known): (Pin, Option<Kept>)| {
                known.unwrap_or_else(|| {
                    let sight = disk::examine(&store, &pin);
                    Kept::new(pin, sight)
                })
            };
            pins.into_iter().zip(known).map(examine).collect()
        });
        self.kept = examined.await.unwrap_or_default();
        self.has_changed = true;
        self.protect();
    }

    async fn turn(&mut self) {
        self.look_for_its_return();
        self.recheck().await;
        let learn = self.to_learn();
        self.work(learn, None).await;
        self.protect();
        let fetch = self.to_fetch();
        let has_more = !fetch.is_empty();
        self.work(fetch, Some(Instant::now() + MOST_FETCHING)).await;
        self.protect();
        let is_fetching =
            has_more && self.kept.iter().any(|kept| kept.is_due(Instant::now()) && !kept.missing().is_empty());
        tokio::time::sleep(if is_fetching { Duration::ZERO } else { TICK }).await;
    }

    /// The end of an outage ends all waits.
    fn look_for_its_return(&mut self) {
        let is_away = self.upstream.is_away().is_some();
        if self.was_away && !is_away {
            self.kept.iter_mut().for_each(Kept::retry_now);
        }
        self.was_away = is_away;
    }

    /// Content may be deleted or set aside at any time.
    async fn recheck(&mut self) {
        let age = self.rechecked.elapsed();
        if age < RECHECK_EVERY && !(age >= RECHECK_IF_ASKED && self.board.was_asked()) {
            return;
        }
        let (store, needs) = (Arc::clone(&self.store), self.kept.iter().map(|kept| kept.sight.plan.needs.clone()));
        let mut needs: Vec<_> = needs.collect();
        let looked = blocking(move || {
            needs.iter_mut().for_each(|needs| disk::recheck(&store, needs));
            needs
        });
        for (place, needs) in looked.await.unwrap_or_default().into_iter().enumerate() {
            let before = &mut self.kept[place].sight.plan.needs;
            if *before != needs {
                let state = self.kept[place].state();
                self.kept[place].sight.plan.needs = needs;
                self.has_changed = true;
                self.tell(place, state);
            }
        }
        self.rechecked = Instant::now();
    }

    fn to_learn(&self) -> VecDeque<Job> {
        let now = Instant::now();
        let places = |is_meant: &dyn Fn(&Kept) -> bool| {
            let meant = self.kept.iter().enumerate().filter(|(_, kept)| is_meant(kept));
            meant.map(|(place, _)| Job::Learn(place)).collect::<VecDeque<_>>()
        };
        let mut jobs = places(&Kept::is_unclear);
        if !self.was_away {
            jobs.extend(
                places(&|kept| !kept.is_unclear() && kept.is_refresh_due(now)).into_iter().take(MOST_REFRESHES),
            );
        }
        jobs
    }

    fn to_fetch(&self) -> VecDeque<Job> {
        let fitting = self.kept.iter().enumerate().filter(|(_, kept)| !kept.is_refused);
        fitting.flat_map(|(place, kept)| kept.missing().into_iter().map(move |need| Job::Fetch(place, need))).collect()
    }

    /// Does the jobs, a few at a time, in their order.
    async fn work(&mut self, mut jobs: VecDeque<Job>, until: Option<Instant>) {
        let mut running = FuturesUnordered::new();
        loop {
            while running.len() < AT_A_TIME
                && let Some(job) = jobs.pop_front()
            {
                let (Job::Learn(place) | Job::Fetch(place, _)) = &job;
                if self.may_ask() && self.kept[*place].is_due(Instant::now()) {
                    running.push(self.start(job));
                }
            }
            let next = match until {
                Some(until) => tokio::time::timeout_at(until.into(), running.next()).await.unwrap_or(None),
                None => running.next().await,
            };
            let Some(outcome) = next else { return };
            self.note(outcome);
        }
    }

    fn may_ask(&self) -> bool {
        self.paused_until.is_none_or(|until| until <= Instant::now())
    }

    fn start(&self, job: Job) -> BoxFuture<'static, Outcome> {
        let (pull, store) = (Arc::clone(&self.pull), Arc::clone(&self.store));
        match job {
            Job::Learn(place) => {
                let pin = self.kept[place].pin.clone();
                async move {
                    let (sight, failure) = fetch::learn(&pull, &store, pin).await;
                    Outcome::Learned(place, sight, failure)
                }
                .boxed()
            }
            Job::Fetch(place, need) => {
                let repository = self.kept[place].pin.repository.clone();
                async move {
                    let fetched = fetch::blob(&pull, &store, &repository, &need).await;
                    Outcome::Fetched(place, need.digest, fetched)
                }
                .boxed()
            }
        }
    }

    fn note(&mut self, outcome: Outcome) {
        let now = Instant::now();
        let (Outcome::Learned(place, ..) | Outcome::Fetched(place, ..)) = &outcome;
        let (place, before) = (*place, self.kept[*place].state());
        let kept = &mut self.kept[place];
        let failure = match outcome {
            Outcome::Learned(_, sight, failure) => {
                if kept.sight.root.is_some() && kept.sight.root != sight.root {
                    info!(
                        image = kept.pin.image(),
                        digest = sight.root.as_ref().map(Digest::short),
                        "pinned tag has moved"
                    );
                }
                kept.learned(sight, failure, now, self.tag_ttl);
                self.has_changed = true;
                failure
            }
            Outcome::Fetched(_, digest, Ok(())) => {
                kept.has_come(&digest, now);
                // Its elder may go.
                self.has_changed |= kept.state() == State::Complete;
                None
            }
            Outcome::Fetched(_, _, Err(failure)) => {
                kept.failed(failure, now);
                Some(failure)
            }
        };
        if failure == Some(Failure::TooManyRequests) && self.may_ask() {
            warn!(pause = ?PAUSE, "upstream limits the rate, pins wait");
            self.paused_until = Some(now + PAUSE);
        }
        self.tell(place, before);
    }

    /// Publishes the state of one pin, and logs what has become of it.
    fn tell(&self, place: usize, before: State) {
        let status = self.kept[place].status();
        let (image, state) = (status.image.as_str(), status.state);
        if state != before || status.error != self.board.error(place) {
            match (state, status.error) {
                (State::Complete, _) => info!(image, bytes = status.bytes, "pin complete"),
                (_, None) => info!(image, ?state, "pin not complete"),
                (_, Some(reason)) => warn!(image, ?state, reason, "pin cannot be completed now"),
            }
        }
        self.board.update(place, status);
    }

    /// What is needed must not be evicted; what does not fit is refused.
    fn protect(&mut self) {
        if !std::mem::take(&mut self.has_changed) {
            return;
        }
        let refused = |kept: &[Kept]| kept.iter().map(|kept| kept.is_refused).collect::<Vec<_>>();
        let before = refused(&self.kept);
        let allotted = space::allot(&mut self.kept, self.store.space.limit());
        for (kept, _) in self.kept.iter().zip(before).filter(|(kept, before)| kept.is_refused && !before) {
            warn!(image = kept.pin.image(), reason = "NoSpace", "pin refused");
        }
        self.store.pinned.replace(allotted.digests);
        let pins = self.kept.iter().map(|kept| kept.pin.clone()).collect();
        self.board.publish(pins, self.kept.iter().map(Kept::status), allotted.bytes);
    }
}
