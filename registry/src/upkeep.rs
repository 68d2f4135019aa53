//! What keeps the folder in order while the cache serves: eviction, times of use, syncs, sweeps, scrubs. Decides when; the
//! store knows how.

use std::{sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;

use crate::{
    background::Background,
    store::{Due, Effort, Store, blocking},
};

/// How often the volume is looked at: others may fill it.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// What was used or verified is written down so soon.
const REMEMBER_EVERY: Duration = Duration::from_secs(1);
/// What a power cut may cost.
const SYNC_EVERY: Duration = Duration::from_secs(5);
const SWEEP_EVERY: Duration = Duration::from_secs(6 * 3600);
/// A cache that has just started has better things to do.
const SCRUB_AFTER: Duration = Duration::from_secs(60);
const SCRUB_EVERY: Duration = Duration::from_secs(24 * 3600);

/// Starts all of it; ends with `background`.
pub fn start(store: &Arc<Store>, background: &Background) {
    let over = background.stopping();
    background.spawn(keep_room(Arc::clone(store), over.clone()));
    background.spawn(every(REMEMBER_EVERY, Arc::clone(store), |store| store.remember(Due::ByNow)));
    background.spawn(every(SYNC_EVERY, Arc::clone(store), Store::sync));
    background.spawn(every(SWEEP_EVERY, Arc::clone(store), {
        let over = over.clone();
        move |store| store.sweep(|| over.is_cancelled())
    }));
    background.spawn(scrub(Arc::clone(store), over));
}

/// The last words of a process that stops in order.
pub async fn finish(store: Arc<Store>) {
    // If it cannot be run, the next start knows less, and nothing wrong.
    let _ = blocking(move || store.remember(Due::All)).await;
}

async fn every(period: Duration, store: Arc<Store>, work: impl Fn(&Store) + Clone + Send + 'static) {
    loop {
        let (store, work) = (Arc::clone(&store), work.clone());
        if blocking(move || work(&store)).await.is_none() {
            return;
        }
        tokio::time::sleep(period).await;
    }
}

async fn keep_room(store: Arc<Store>, over: CancellationToken) {
    let surveyed = Arc::clone(&store);
    let survey = move || {
        surveyed.recall();
        surveyed.survey(|| over.is_cancelled());
    };
    if blocking(survey).await.is_none() {
        return;
    }
    loop {
        let kept = Arc::clone(&store);
        let keep = move || {
            kept.keep_limit(Effort::Thorough);
            kept.keep_free();
        };
        if blocking(keep).await.is_none() {
            return;
        }
        tokio::select! {
            () = store.space.grown() => {}
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
}

async fn scrub(store: Arc<Store>, over: CancellationToken) {
    let (doubted, doubt_over) = (Arc::clone(&store), over.clone());
    if blocking(move || doubted.scrub_doubtful(|| doubt_over.is_cancelled())).await.is_none() {
        return;
    }
    tokio::time::sleep(SCRUB_AFTER).await;
    every(SCRUB_EVERY, store, move |store| store.scrub(|| over.is_cancelled())).await;
}
