//! The agent's disk work, off the threads that serve pulls: what is known of the cluster is kept, the files converge, and what
//! came of it is logged.

use super::AgentFault;
use crate::files::{Files, Outcome, Wanted};
use crate::known::Known;
use crate::touched::Watches;
use std::path::PathBuf;
use tokio::task::spawn_blocking;

/// The folders that the agent works in.
#[derive(Clone, Debug)]
struct Disk {
    certs_dir: PathBuf,
    state_dir: PathBuf,
    watches: Watches,
}

/// The state of the disk work.
#[derive(Debug)]
pub(super) struct Upkeep {
    disk: Disk,
    /// At home except during the work.
    files: Option<Files>,
    /// What of the cluster is kept on disk.
    stored: Option<Known>,
    /// Folders that could not be given back, and why.
    stuck: Vec<(String, String)>,
}

impl Upkeep {
    /// Takes over where a former process stopped.
    ///
    /// # Errors
    /// The state folder cannot be used.
    pub(super) async fn start(
        certs_dir: PathBuf,
        state_dir: PathBuf,
        relay_url: String,
        stored: Known,
        watches: Watches,
    ) -> Result<Self, AgentFault> {
        let disk = Disk { certs_dir, state_dir, watches };
        let opened = disk.clone();
        let files = spawn_blocking(move || Files::open(&opened.certs_dir, &opened.state_dir, &relay_url));
        let files = files.await.map_err(AgentFault::Task)?.map_err(AgentFault::OpenState)?;
        Ok(Self { disk, files: Some(files), stored: Some(stored), stuck: Vec::new() })
    }

    /// Keeps what is known and brings the files to what is wanted; None: they stay as they are.
    ///
    /// # Errors
    /// certs.d was taken away.
    pub(super) async fn converge(&mut self, wanted: Option<Vec<Wanted>>, known: &Known) -> Result<Outcome, AgentFault> {
        let news = (self.stored.as_ref() != Some(known)).then(|| known.clone());
        let disk = self.disk.clone();
        let (outcome, is_stored) = self
            .on_disk(move |files| {
                let stored = news.map_or(Ok(()), |known| known.store(&disk.state_dir)).inspect_err(|error| {
                    tracing::warn!(%error, "last known set is not kept, a restart without the API server would start from less");
                });
                // First the watches: what others change from here on is told.
                disk.watches.renew(&disk.certs_dir);
                (wanted.map(|wanted| files.converge(&wanted)).unwrap_or_default(), stored.is_ok())
            })
            .await?;
        if is_stored {
            self.stored = Some(known.clone());
        }
        self.log(&outcome);
        match outcome.replaced() {
            Some(fault) => Err(AgentFault::CertsDir(fault)),
            None => Ok(outcome),
        }
    }

    /// Leaves the node as it was found. What cannot be given back stays on record, for another agent or `restore`.
    ///
    /// # Errors
    /// The work died.
    pub(super) async fn give_everything_back(&mut self) -> Result<(), AgentFault> {
        let outcome = self.on_disk(Files::give_everything_back).await?;
        self.log(&outcome);
        Ok(())
    }

    async fn on_disk<T: Default + Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut Files) -> T + Send + 'static,
    ) -> Result<T, AgentFault> {
        let Some(mut files) = self.files.take() else { return Ok(T::default()) };
        let done = spawn_blocking(move || {
            let done = work(&mut files);
            (files, done)
        });
        let (files, done) = done.await.map_err(AgentFault::Task)?;
        self.files = Some(files);
        Ok(done)
    }

    fn log(&mut self, outcome: &Outcome) {
        for folder in &outcome.mended {
            tracing::info!(registry = folder, "hosts.toml was not as left and is merged anew");
        }
        for folder in &outcome.given_back {
            tracing::info!(registry = folder, "hosts.toml given back as found");
        }
        let stuck: Vec<_> = outcome.stuck.iter().map(|(folder, fault)| (folder.clone(), fault.to_string())).collect();
        for (folder, error) in stuck.iter().filter(|stuck| !self.stuck.contains(stuck)) {
            tracing::error!(registry = folder, error, "hosts.toml cannot be given back");
        }
        self.stuck = stuck;
    }
}
