//! Proves by canaries that the container runtime reads what was written, and takes real requests for proofs where it cannot be
//! asked. Never in the way of a pull: a canary is an image of a few hundred bytes that the relay itself serves.

use crate::cri::{Cri, CriFault};
use crate::known::Known;
use crate::proof::Evidence;
use crate::relay::Relay;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::watch::{Receiver, Sender};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

/// Canaries that are out together.
const TOGETHER: usize = 8;
/// A runtime that does not answer is tried again soon: it may be starting.
const SILENT: Backoff = Backoff { first: Duration::from_secs(1), last: Duration::from_secs(300) };
/// One that goes elsewhere is asked seldom, because its upstream gets the question.
const MISSED: Backoff = Backoff { first: Duration::from_secs(60), last: Duration::from_secs(3600) };

struct Backoff {
    first: Duration,
    last: Duration,
}

/// What is to be proven.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Target {
    /// Registries whose files are in place while the relay listens.
    pub registries: BTreeSet<String>,
    /// The runtime as it is now; see `runtime::Look`.
    pub fingerprint: String,
    /// Where it can be asked, if anywhere.
    pub socket: Option<PathBuf>,
}

/// Proves what the newest target names, until dropped. None: too little is known to prove anything.
pub async fn prove_forever(targets: Receiver<Option<Target>>, relay: Relay, known: Sender<Known>) {
    Prover { targets, relay, known, running: JoinSet::new(), out: BTreeSet::new(), failed: BTreeMap::new() }
        .run()
        .await;
}

struct Prover {
    targets: Receiver<Option<Target>>,
    relay: Relay,
    known: Sender<Known>,
    running: JoinSet<Attempt>,
    /// Registries whose canaries are out.
    out: BTreeSet<String>,
    failed: BTreeMap<String, Failure>,
}

/// Failures of one registry in a row, of one runtime.
struct Failure {
    fingerprint: String,
    count: u32,
    again: Instant,
}

struct Attempt {
    registry: String,
    fingerprint: String,
    evidence: Evidence,
    version: Option<String>,
}

impl Prover {
    async fn run(mut self) {
        loop {
            let newest = self.targets.borrow_and_update().clone();
            let Some(target) = newest else {
                if self.targets.changed().await.is_err() {
                    return;
                }
                continue;
            };
            self.note(|known| known.proofs.keep(|registry| target.registries.contains(registry)));
            let unproven = self.unproven(&target);
            self.relay.await_proof(unproven.clone());
            let again = self.start(&target, unproven);
            tokio::select! {
                changed = self.targets.changed() => if changed.is_err() { return },
                asked = self.relay.asked() => self.take_real_requests(&target, &asked),
                Some(Ok(attempt)) = self.running.join_next() => self.finish(attempt),
                () = sleep_until(again) => {}
            }
        }
    }

    fn unproven(&self, target: &Target) -> BTreeSet<String> {
        let proofs = &self.known.borrow().proofs;
        target.registries.iter().filter(|one| !proofs.is_proven(one, &target.fingerprint)).cloned().collect()
    }

    /// Lets canaries out that are due and returns when the next one is.
    fn start(&mut self, target: &Target, unproven: BTreeSet<String>) -> Instant {
        let now = Instant::now();
        let mut next = now + MISSED.last;
        let Some(socket) = &target.socket else { return next };
        for registry in unproven.into_iter().filter(|registry| !self.out.contains(registry)).collect::<Vec<_>>() {
            let failure = self.failed.get(&registry).filter(|failure| failure.fingerprint == target.fingerprint);
            match failure {
                Some(failure) if failure.again > now => next = next.min(failure.again),
                // One that ends starts the next.
                _ if self.running.len() >= TOGETHER => {}
                _ => {
                    self.out.insert(registry.clone());
                    let fingerprint = target.fingerprint.clone();
                    self.running.spawn(attempt(self.relay.clone(), socket.clone(), registry, fingerprint));
                }
            }
        }
        next
    }

    fn finish(&mut self, attempt: Attempt) {
        let mut attempts = vec![attempt];
        while let Some(Ok(attempt)) = self.running.try_join_next() {
            attempts.push(attempt);
        }
        for Attempt { registry, fingerprint, evidence, .. } in &attempts {
            self.out.remove(registry);
            let backoff = match evidence {
                Evidence::Proven => {
                    tracing::info!(registry, "the container runtime comes to the relay");
                    self.failed.remove(registry);
                    continue;
                }
                Evidence::Missed(error) => {
                    tracing::warn!(registry, error, "the container runtime does not come to the relay");
                    &MISSED
                }
                Evidence::Unclear(error) => {
                    tracing::debug!(registry, error, "the container runtime cannot be asked");
                    &SILENT
                }
            };
            let before = self.failed.get(registry).filter(|failure| failure.fingerprint == *fingerprint);
            let count = before.map_or(0, |failure| failure.count + 1);
            let pause = backoff.first.saturating_mul(2_u32.saturating_pow(count)).min(backoff.last);
            let failure = Failure { fingerprint: fingerprint.clone(), count, again: Instant::now() + pause };
            self.failed.insert(registry.clone(), failure);
        }
        self.note(|known| {
            for Attempt { registry, fingerprint, evidence, version } in attempts {
                known.proofs.note(&registry, &fingerprint, evidence);
                known.runtime_version = version.or(known.runtime_version.take());
            }
        });
    }

    /// A request for real content proves as much as a canary.
    fn take_real_requests(&self, target: &Target, asked: &BTreeSet<String>) {
        self.note(|known| {
            for registry in asked.intersection(&target.registries) {
                known.proofs.note(registry, &target.fingerprint, Evidence::Proven);
            }
        });
    }

    fn note(&self, change: impl FnOnce(&mut Known)) {
        self.known.send_if_modified(|known| {
            let before = (known.proofs.clone(), known.runtime_version.clone());
            change(known);
            (&known.proofs, &known.runtime_version) != (&before.0, &before.1)
        });
    }
}

/// Sends one canary out and takes it off the node again.
async fn attempt(relay: Relay, socket: PathBuf, registry: String, fingerprint: String) -> Attempt {
    let (evidence, version) = match ask(&relay, &socket, &registry).await {
        Ok((evidence, version)) => (evidence, version),
        Err(fault) => (Evidence::Unclear(fault.to_string()), None),
    };
    Attempt { registry, fingerprint, evidence, version }
}

async fn ask(relay: &Relay, socket: &Path, registry: &str) -> Result<(Evidence, Option<String>), CriFault> {
    let mut cri = Cri::connect(socket).await?;
    let Some(canary) = relay.release_canary(registry) else {
        return Ok((Evidence::Unclear("the system has no random numbers".to_owned()), None));
    };
    let pulled = cri.pull(&canary.reference).await;
    let version = cri.version().await.ok();
    if canary.arrived() {
        // Proven, whatever became of the pull; it is removed even so, for it may have come to an end meanwhile.
        if let Err(error) = cri.remove(&canary.reference).await {
            tracing::debug!(registry, %error, "a canary of a few hundred bytes stays until the kubelet collects it");
        }
        return Ok((Evidence::Proven, version));
    }
    match pulled {
        // Somebody else served a digest of random bytes: impossible, and no proof.
        Ok(()) => Ok((Evidence::Missed("the image came from elsewhere".to_owned()), version)),
        Err(CriFault::Refused(said)) => Ok((Evidence::Missed(said), version)),
        Err(silent @ CriFault::Silent { .. }) => Err(silent),
    }
}
