//! Pins: images that the cache must hold completely and never evict, so that their upstream may vanish.
//!
//! A list of images comes in by HTTP (api.rs, list.rs) and is kept in `pins.json`. The keeper (keeper.rs) finds out what
//! each image needs: its manifests tell (plan.rs), as far as they are on disk (disk.rs). What fits beside the pins before
//! it (space.rs) is protected from eviction at once, and then fetched as a pull would (fetch.rs), a few blobs at a time.
//! What fails is tried again, at once when upstream returns (kept.rs). The state of all is published on a board (board.rs).

mod api;
mod board;
mod disk;
mod fetch;
mod keeper;
mod kept;
pub mod list;
pub mod plan;
mod space;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::{mpsc, oneshot};

pub use self::api::PATH;
use self::{
    board::Board,
    keeper::{Accept, Keeper},
    list::Pin,
};
use crate::{
    background::Background, failure::Failure, metrics::Metrics, pull::Pull, registry_host::RegistryHost, store::Store,
    upstream::Upstream,
};

/// The pins as the API sees them.
pub struct Pins {
    registry: RegistryHost,
    board: Arc<Board>,
    lists: mpsc::Sender<Accept>,
}

/// What pins are kept with.
pub struct Parts {
    /// Whose cache this is.
    pub registry: RegistryHost,
    /// Where the content is.
    pub store: Arc<Store>,
    /// Whose return ends all waits.
    pub upstream: Arc<Upstream>,
    /// What fetches.
    pub pull: Arc<Pull>,
    /// What counts.
    pub metrics: Arc<Metrics>,
    /// Tags are kept fresh about so often.
    pub tag_ttl: Duration,
}

impl Pins {
    /// Recalls the pins of an earlier run and keeps them, in the `background`.
    pub fn keep(parts: Parts, background: &Background) -> Arc<Self> {
        let Parts { registry, store, upstream, pull, metrics, tag_ttl } = parts;
        let board = Arc::new(Board::new(metrics));
        let (lists, accepted) = mpsc::channel(1);
        let keeper = Keeper {
            registry: registry.clone(),
            store,
            upstream,
            pull,
            tag_ttl,
            board: Arc::clone(&board),
            kept: Vec::new(),
            has_changed: false,
            was_away: false,
            paused_until: None,
            rechecked: Instant::now(),
        };
        background.spawn(keeper.run(accepted));
        Arc::new(Self { registry, board, lists })
    }

    /// Replaces the list; when this returns it is on disk, and what is here of it is protected.
    async fn accept(&self, pins: Vec<Pin>, patience: Duration) -> Result<(), Failure> {
        let (done, answer) = oneshot::channel();
        let accepted = async {
            self.lists.send((pins, done)).await.map_err(|_| Failure::Stopping)?;
            answer.await.map_err(|_| Failure::Stopping)?
        };
        tokio::time::timeout(patience, accepted).await.map_err(|_| Failure::Disk)?
    }
}
