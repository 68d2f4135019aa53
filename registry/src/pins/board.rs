//! What is known of all pins, where the API and the metrics find it without asking the keeper.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::sync::watch;

use super::{
    kept::{State, Status},
    list::Pin,
};
use crate::metrics::{Metrics, PinState};

/// The board. It is empty until the pins of an earlier run have been looked up.
pub(super) struct Board {
    shown: watch::Sender<Option<Shown>>,
    asked: AtomicBool,
    metrics: Arc<Metrics>,
}

struct Shown {
    pins: Vec<Pin>,
    statuses: Vec<Arc<Status>>,
    bytes: u64,
}

impl Board {
    pub(super) fn new(metrics: Arc<Metrics>) -> Self {
        Self { shown: watch::Sender::new(None), asked: AtomicBool::new(false), metrics }
    }

    /// The state of each pin; `None` if it is not known within `patience`.
    pub(super) async fn statuses(&self, patience: Duration) -> Option<Vec<Arc<Status>>> {
        self.asked.store(true, Ordering::Relaxed);
        let mut shown = self.shown.subscribe();
        let shown = tokio::time::timeout(patience, shown.wait_for(Option::is_some)).await.ok()?.ok()?;
        shown.as_ref().map(|shown| shown.statuses.clone())
    }

    /// Whether somebody has asked for the state since this was last called.
    pub(super) fn was_asked(&self) -> bool {
        self.asked.swap(false, Ordering::Relaxed)
    }

    /// Whether these are the pins already.
    pub(super) fn has(&self, pins: &[Pin]) -> bool {
        self.shown.borrow().as_ref().is_some_and(|shown| shown.pins == pins)
    }

    /// What was last said to be wrong with a pin.
    pub(super) fn error(&self, place: usize) -> Option<&'static str> {
        self.shown.borrow().as_ref()?.statuses.get(place)?.error
    }

    /// Replaces everything. `bytes`: what the pins need.
    pub(super) fn publish(&self, pins: Vec<Pin>, statuses: impl Iterator<Item = Status>, bytes: u64) {
        let statuses = statuses.map(Arc::new).collect();
        self.shown.send_replace(Some(Shown { pins, statuses, bytes }));
        self.count();
    }

    /// Replaces the state of one pin.
    pub(super) fn update(&self, place: usize, status: Status) {
        self.shown.send_if_modified(|shown| {
            if let Some(old) = shown.as_mut().and_then(|shown| shown.statuses.get_mut(place)) {
                *old = Arc::new(status);
            }
            // Nobody waits for this.
            false
        });
        self.count();
    }

    fn count(&self) {
        if let Some(Shown { statuses, bytes, .. }) = &*self.shown.borrow() {
            let count = |state: State| statuses.iter().filter(|status| status.state == state).count();
            let states = [(State::Complete, PinState::complete), (State::Partial, PinState::partial)];
            let [complete, partial] = states.map(|(state, label)| (label, count(state)));
            let missing = (PinState::missing, count(State::Missing));
            self.metrics.set_pins([complete, partial, missing], *bytes);
        }
    }
}
