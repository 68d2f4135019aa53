//! Pins: images that the cache must hold completely and never evict, so that their upstream may vanish.
//!
//! A list of images comes in by HTTP (api.rs, list.rs, platform.rs) and is kept in `pins.json`. The keeper (keeper.rs) finds
//! out what each image needs: its manifests tell (plan.rs), as far as they are on disk (disk.rs). What fits beside the pins
//! before it (space.rs) is protected from eviction at once, and then fetched as a pull would (fetch.rs), a few blobs at a
//! time (jobs.rs). What fails is tried again, at once when upstream returns (kept.rs). The state of each (status.rs) is published on a
//! board (board.rs).

mod api;
mod board;
mod disk;
mod fetch;
mod jobs;
mod keeper;
mod kept;
pub mod list;
pub mod plan;
pub mod platform;
mod space;
mod status;

use std::{sync::Arc, time::Duration};

use tokio::sync::mpsc;

pub use self::api::PATH;
use self::{
    board::Board,
    keeper::{Accept, Keeper},
};
use crate::{
    background::Background, metrics::Metrics, pull::Pull, registry_host::RegistryHost, store::Store, upstream::Upstream,
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
    /// Where the keeper runs.
    pub background: Background,
}

impl Pins {
    /// Recalls the pins of an earlier run and keeps them, in the background.
    pub fn keep(parts: Parts) -> Self {
        let (registry, background) = (parts.registry.clone(), parts.background.clone());
        let board = Arc::new(Board::new(Arc::clone(&parts.metrics)));
        let (lists, accepted) = mpsc::channel(1);
        background.spawn(Keeper::new(parts, Arc::clone(&board)).run(accepted));
        Self { registry, board, lists }
    }
}
