//! What each fault of a cache, an agent or the API server costs a pull: a real containerd, the real agent and real caches, and
//! beside each pull one of the same size that goes straight to the registry.
//!
//! [`Fault`] lists what goes wrong, `scene` sets it up, [`Cell`] is what a pull met. It runs no Pods.

mod cri;
mod front;
mod kubelet;
mod network;
pub mod report;
mod runtime;
mod scene;

pub use cri::Cri;
pub use runtime::Containerd;

use std::time::Duration;

use anyhow::Result;
use futures::{StreamExt, stream};

use crate::toolchain::Runtime;
use front::Way;
use scene::Scene;

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// Nobody listens at the cache's address.
    Refused,
    /// Packets to the cache vanish.
    BlackHoled,
    /// The cache accepts and says nothing.
    Silent,
    /// Every body of the cache stops half way.
    Stalling,
    /// Every body ends half way, in order.
    Truncating,
    /// Every body ends half way, by a reset.
    Resetting,
    /// Every manifest has a wrong byte.
    WrongManifests,
    /// Every blob has a wrong byte.
    WrongBlobs,
    /// Every body comes at 1 KiB/s.
    Slow,
    /// The cache's certificate has expired.
    Expired,
    /// The cache refuses the node's token.
    OtherToken,
    /// The agent was killed and does not come back.
    AgentKilled,
    /// The agent hangs; its liveness probe ends it.
    AgentStopped,
    /// The API server is gone, and the agent starts anew without it.
    NoApiServer,
}

/// How many Pods the cache has, and how many of them go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replicas {
    /// The only one does.
    One,
    /// Of two, the one that is asked first.
    FirstOfTwo,
    /// Both do.
    BothOfTwo,
}

/// What pulls met.
#[derive(Clone, Debug)]
pub struct Cell {
    /// What went wrong.
    pub fault: Fault,
    /// Where.
    pub replicas: Replicas,
    /// The first pull after the fault began.
    pub first: Pull,
    /// The same image again until it was there; None where the first pull had it.
    pub again: Option<Pull>,
    /// Another image, once the agent could have noticed.
    pub later: Pull,
}

/// One pull, beside one without Breakwater.
#[derive(Clone, Debug)]
pub struct Pull {
    /// How much longer it took.
    pub extra: Duration,
    /// What the runtime said, where it failed.
    pub failed: Option<String>,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 15] = [
        Self::None,
        Self::Refused,
        Self::BlackHoled,
        Self::Silent,
        Self::Stalling,
        Self::Truncating,
        Self::Resetting,
        Self::WrongManifests,
        Self::WrongBlobs,
        Self::Slow,
        Self::Expired,
        Self::OtherToken,
        Self::AgentKilled,
        Self::AgentStopped,
        Self::NoApiServer,
    ];

    /// The most that the first pull may take longer.
    #[must_use]
    pub fn bound(self) -> Duration {
        match self {
            Self::None | Self::NoApiServer => LATER,
            Self::Refused | Self::AgentKilled => Duration::from_millis(1500),
            Self::Stalling | Self::Truncating | Self::Resetting | Self::Slow => Duration::from_secs(16),
            _ => Duration::from_secs(6),
        }
    }

    /// In the table.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "healthy",
            Self::Refused => "cache refuses connections",
            Self::BlackHoled => "packets to the cache are dropped",
            Self::Silent => "cache accepts and is silent",
            Self::Stalling => "bodies stall half way",
            Self::Truncating => "bodies end half way (FIN)",
            Self::Resetting => "bodies end half way (RST)",
            Self::WrongManifests => "wrong byte in every manifest",
            Self::WrongBlobs => "wrong byte in every blob",
            Self::Slow => "bodies at 1 KiB/s",
            Self::Expired => "certificate expired",
            Self::OtherToken => "cache refuses the token",
            Self::AgentKilled => "agent killed",
            Self::AgentStopped => "agent stopped (SIGSTOP)",
            Self::NoApiServer => "API server gone, agent restarted",
        }
    }

    /// Whether it is of the cache, and not of the node or the control plane.
    #[must_use]
    pub fn is_of_cache(self) -> bool {
        !matches!(self, Self::None | Self::AgentKilled | Self::AgentStopped | Self::NoApiServer)
    }

    fn way(self) -> Way {
        match self {
            Self::Silent => Way::Silent,
            Self::Stalling => Way::Stall,
            Self::Truncating => Way::Truncate,
            Self::Resetting => Way::Reset,
            Self::WrongManifests => Way::WrongManifest,
            Self::WrongBlobs => Way::WrongBlob,
            Self::Slow => Way::Slow,
            Self::Expired => Way::Expired,
            Self::OtherToken => Way::OtherToken,
            _ => Way::Through,
        }
    }

    /// Whether the agent finds it out by itself.
    fn shows_in_probes(self) -> bool {
        matches!(self, Self::Refused | Self::BlackHoled | Self::Silent | Self::Expired | Self::OtherToken)
    }
}

/// The most that a pull may take longer once the agent has noticed.
pub const LATER: Duration = Duration::from_millis(200);

impl Cell {
    /// What is not as promised, with this much allowed for noise.
    #[must_use]
    pub fn complaint(&self, noise: Duration) -> Option<String> {
        let Self { fault, first, later, again, .. } = self;
        if let Some(error) = &first.failed
            && *fault != Fault::WrongBlobs
        {
            return Some(format!("the first pull failed: {error}"));
        }
        if let Some(error) = again.as_ref().and_then(|pull| pull.failed.as_ref()).or(later.failed.as_ref()) {
            return Some(format!("a later pull failed: {error}"));
        }
        let (bound, later_bound) = (fault.bound() + noise, LATER + noise);
        (first.extra > bound || later.extra > later_bound).then(|| {
            format!("+{:.1?}, then +{:.1?}; at most {bound:.1?} and {later_bound:.1?}", first.extra, later.extra)
        })
    }
}

/// Plays these faults on one containerd, one after the other; `done` hears of each.
///
/// # Errors
/// Fails when the scene cannot be set, not when a pull fails.
pub async fn run(runtime: &Runtime, faults: &[(Fault, Replicas)], done: impl Fn(&Cell)) -> Result<Vec<Cell>> {
    let mut scene = Scene::set(runtime).await?;
    let mut cells = Vec::new();
    for (fault, replicas) in faults {
        let cell = scene.play(*fault, *replicas).await?;
        done(&cell);
        cells.push(cell);
    }
    scene.remove().await?;
    Ok(cells)
}

/// The whole matrix: each fault with one and two replicas.
#[must_use]
pub fn matrix() -> Vec<(Fault, Replicas)> {
    let replicas = |fault: Fault| match fault.is_of_cache() {
        true => vec![Replicas::One, Replicas::FirstOfTwo, Replicas::BothOfTwo],
        false => vec![Replicas::One, Replicas::BothOfTwo],
    };
    Fault::ALL.into_iter().flat_map(|fault| replicas(fault).into_iter().map(move |of| (fault, of))).collect()
}

/// Plays the faults on several versions, so many at a time.
///
/// # Errors
/// As [`run`].
pub async fn run_all(
    runtimes: &[Runtime],
    faults: &[(Fault, Replicas)],
    at_once: usize,
    done: impl Fn(&Runtime, &Cell),
) -> Result<Vec<Vec<Cell>>> {
    let done = &done;
    let all = stream::iter(runtimes).map(|runtime| run(runtime, faults, move |cell| done(runtime, cell)));
    all.buffered(at_once).collect::<Vec<_>>().await.into_iter().collect()
}
