//! Keeps the pins: takes new lists, completes what is missing, asks now and then whether tags have moved and looks whether
//! all is still here. The one owner of their state; what it knows is published for the API to read.

use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use tokio::sync::{mpsc, oneshot};
use tracing::{error, info, warn};

use super::{
    Parts,
    board::{Board, Shown},
    disk,
    kept::Kept,
    list::{self, Pin},
    space,
    status::{State, Status},
};
use crate::{
    failure::Failure,
    store::{Store, blocking},
};

const TICK: Duration = Duration::from_secs(1);
/// What is here is looked at so often, and soon after somebody has asked for the state or something was set aside.
const LOOK_EVERY: Duration = Duration::from_secs(600);
const LOOK_IF_ASKED: Duration = Duration::from_secs(2);

/// A list to take over, and where to say that it is kept.
pub(super) type Accept = (Vec<Pin>, oneshot::Sender<Result<(), Failure>>);

/// The keeper of all pins.
pub(super) struct Keeper {
    pub(super) parts: Parts,
    board: Arc<Board>,
    pub(super) kept: Vec<Kept>,
    /// What is needed has changed since it was last protected.
    pub(super) has_changed: bool,
    /// What the cache could hold then.
    limit: Option<u64>,
    /// How many hosts of upstream were away when the turn began.
    away: usize,
    /// When upstream may be asked again after it limited the rate.
    pub(super) paused_until: Option<Instant>,
    looked: Instant,
    /// How much had been set aside by then.
    quarantined: u64,
}

impl Keeper {
    pub(super) fn new(parts: Parts, board: Arc<Board>) -> Self {
        let (kept, has_changed, limit) = (Vec::new(), false, None);
        let (away, paused_until, looked, quarantined) = (0, None, Instant::now(), 0);
        Self { parts, board, kept, has_changed, limit, away, paused_until, looked, quarantined }
    }

    /// Runs for as long as the process does.
    pub(super) async fn run(mut self, mut lists: mpsc::Receiver<Accept>) {
        let (store, registry) = (self.store(), self.parts.registry.clone());
        match blocking(move || disk::recall(&store, &registry)).await {
            Some(Ok(pins)) => self.replace(pins).await,
            Some(Err(error)) => {
                let error = &error as &dyn std::error::Error;
                error!(error, "pins.json is of no use: nothing is evicted until a list of pins is put again");
                self.board.show(Shown::Lost);
            }
            None => return,
        }
        loop {
            // A new list ends the turn; downloads under way go on and are joined again.
            tokio::select! {
                accept = lists.recv() => match accept {
                    // Whoever asked may have left.
                    Some((pins, done)) => { let _ = done.send(self.accept(pins).await); }
                    None => return,
                },
                () = self.turn() => {}
            }
        }
    }

    fn store(&self) -> Arc<Store> {
        Arc::clone(&self.parts.store)
    }

    async fn accept(&mut self, pins: Vec<Pin>) -> Result<(), Failure> {
        if self.board.is_known() && self.kept.iter().map(|kept| &*kept.pin).eq(&pins) {
            return Ok(());
        }
        let (store, list) = (self.store(), pins.clone());
        let written = blocking(move || store.keep_pins(&list::write(&list)?)).await.ok_or(Failure::Stopping)?;
        written.map_err(|error| {
            warn!(%error, "pins cannot be kept, the old ones stay");
            Failure::Disk
        })?;
        info!(count = pins.len(), "pins accepted");
        self.replace(pins).await;
        Ok(())
    }

    /// From here on these are the pins. What is here of them is protected before anything is fetched.
    async fn replace(&mut self, pins: Vec<Pin>) {
        let name = |pin: &Pin| (pin.repository.clone(), pin.reference.clone());
        let mut known: HashMap<_, _> = self.kept.drain(..).map(|kept| (name(&kept.pin), kept)).collect();
        let known: Vec<_> = pins.iter().map(|pin| known.remove(&name(pin)).filter(|kept| *kept.pin == *pin)).collect();
        let store = self.store();
        let examined = blocking(move || {
            let examine = |(pin, known): (Pin, Option<Kept>)| {
                known.unwrap_or_else(|| {
                    let sight = disk::examine(&store, &pin);
                    Kept::new(Arc::new(pin), sight)
                })
            };
            pins.into_iter().zip(known).map(examine).collect()
        });
        let Some(kept) = examined.await else { return };
        (self.kept, self.has_changed) = (kept, true);
        self.protect();
        self.board.show(Shown::Known(self.kept.iter().map(|kept| Arc::new(Status::of(kept))).collect()));
    }

    async fn turn(&mut self) {
        self.notice_returns();
        self.look_again().await;
        let learn = self.to_learn();
        let has_learned = self.work(learn).await;
        self.protect_and_tell();
        let fetch = self.to_fetch();
        let has_fetched = self.work(fetch).await;
        self.protect_and_tell();
        if has_learned && has_fetched {
            tokio::time::sleep(TICK).await;
        }
    }

    /// The end of an outage, be it that of a token service or a CDN, ends all waits.
    fn notice_returns(&mut self) {
        let away = self.parts.upstream.open_breakers().iter().map(|(_, count)| count).sum();
        if std::mem::replace(&mut self.away, away) > away {
            self.kept.iter_mut().for_each(Kept::retry_now);
        }
    }

    /// Content may be deleted, damaged or set aside at any time.
    async fn look_again(&mut self) {
        let (age, quarantined) = (self.looked.elapsed(), self.parts.store.tally.quarantined.load(Ordering::Relaxed));
        let is_asked = age >= LOOK_IF_ASKED && self.board.was_asked();
        if age < LOOK_EVERY && quarantined == self.quarantined && !is_asked {
            return;
        }
        (self.looked, self.quarantined) = (Instant::now(), quarantined);
        let (store, over) = (self.store(), self.parts.background.stopping());
        let mut images: Vec<_> = self.kept.iter().map(|kept| kept.sight.plan.needs.clone()).collect();
        let looked = blocking(move || {
            disk::look_again(&store, &mut images, &over);
            images
        });
        for (place, needs) in looked.await.unwrap_or_default().into_iter().enumerate() {
            let before = &mut self.kept[place].sight.plan.needs;
            if *before != needs {
                *before = needs;
                self.has_changed = true;
                self.tell(place);
            }
        }
    }

    /// Publishes the state of one pin, and logs what has become of it.
    pub(super) fn tell(&self, place: usize) {
        let status = Arc::new(Status::of(&self.kept[place]));
        let Some(before) = self.board.update(place, Arc::clone(&status)) else { return };
        let Status { image, state, digest, bytes, error, .. } = &*status;
        match (state, error) {
            _ if (before.state, before.error) == (*state, *error) => {}
            (State::Complete, _) => info!(image, digest, bytes, "pin complete"),
            (_, None) => info!(image, ?state, "pin not complete"),
            (_, Some(reason)) => warn!(image, ?state, reason, "pin cannot be completed now"),
        }
    }

    /// What is needed must not be evicted; what does not fit is refused.
    fn protect(&mut self) {
        let limit = self.parts.store.space.limit();
        let space::Allotment { digests, bytes } = space::allot(&mut self.kept, limit);
        self.parts.store.pinned.replace(digests);
        self.parts.metrics.set_pinned(bytes);
        (self.has_changed, self.limit) = (false, limit);
    }

    fn protect_and_tell(&mut self) {
        if !self.has_changed && (self.kept.is_empty() || self.limit == self.parts.store.space.limit()) {
            return;
        }
        let before: Vec<_> = self.kept.iter().map(|kept| kept.is_refused).collect();
        self.protect();
        for (place, before) in before.into_iter().enumerate() {
            if self.kept[place].is_refused != before {
                self.tell(place);
            }
        }
    }
}
