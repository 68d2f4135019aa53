//! What is known of all pins, where the API and the metrics find it without asking the keeper.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::sync::watch;

use super::status::Status;
use crate::metrics::{Metrics, PinState};

/// What can be told of the pins.
#[derive(Clone, Default)]
pub(super) enum Shown {
    /// Nothing yet: those of an earlier run are being looked up.
    #[default]
    NotYet,
    /// There were some, but nobody knows which.
    Lost,
    /// The state of each, in the order of the list.
    Known(Vec<Arc<Status>>),
}

/// The board.
pub(super) struct Board {
    shown: watch::Sender<Shown>,
    asked: AtomicBool,
    metrics: Arc<Metrics>,
}

impl Board {
    pub(super) fn new(metrics: Arc<Metrics>) -> Self {
        Self { shown: watch::Sender::default(), asked: AtomicBool::new(false), metrics }
    }

    /// What is known now, or within `patience` if that is nothing.
    pub(super) async fn shown(&self, patience: Duration) -> Shown {
        self.asked.store(true, Ordering::Relaxed);
        let mut shown = self.shown.subscribe();
        let known = shown.wait_for(|shown| !matches!(shown, Shown::NotYet));
        match tokio::time::timeout(patience, known).await {
            Ok(Ok(shown)) => shown.clone(),
            Ok(Err(_)) | Err(_) => Shown::NotYet,
        }
    }

    /// Whether somebody has asked for the state since this was last called.
    pub(super) fn was_asked(&self) -> bool {
        self.asked.swap(false, Ordering::Relaxed)
    }

    /// Whether the list is known.
    pub(super) fn is_known(&self) -> bool {
        matches!(*self.shown.borrow(), Shown::Known(_))
    }

    /// Replaces everything.
    pub(super) fn show(&self, shown: Shown) {
        self.shown.send_replace(shown);
        self.count();
    }

    /// Replaces the state of one pin; gives the one before.
    pub(super) fn update(&self, place: usize, status: Arc<Status>) -> Option<Arc<Status>> {
        let (state, mut before) = (status.state, None);
        self.shown.send_if_modified(|shown| {
            if let Shown::Known(statuses) = shown
                && let Some(old) = statuses.get_mut(place)
            {
                before = Some(std::mem::replace(old, status));
            }
            // Nobody waits for this.
            false
        });
        if before.as_ref().is_some_and(|before| before.state != state) {
            self.count();
        }
        before
    }

    fn count(&self) {
        if let Shown::Known(statuses) = &*self.shown.borrow() {
            let states = [PinState::complete, PinState::partial, PinState::missing];
            let is_in = |state| statuses.iter().filter(|status| PinState::from(status.state) == state).count();
            self.metrics.set_pins(states.map(|state| (state, is_in(state))));
        }
    }
}
