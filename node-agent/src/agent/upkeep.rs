//! The agent's disk work, off the threads that serve pulls: what is known of the cluster is kept, the files converge, and what
//! came of it is logged.

use super::AgentFault;
use crate::drop_ins::DropIns;
use crate::durable;
use crate::files::{Fault, Files, Outcome, Wanted};
use crate::known::Known;
use crate::reload::reload;
use crate::touched::Watches;
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::task::spawn_blocking;

/// The folder of the container runtime, by the runtime's kind.
#[derive(Clone, Debug)]
pub(super) enum Folder {
    /// containerd's certs.d.
    Certs(PathBuf),
    /// registries.conf.d of CRI-O and podman.
    RegistriesConf(PathBuf),
}

/// The folders that the agent works in.
#[derive(Clone, Debug)]
struct Disk {
    folder: Folder,
    state_dir: PathBuf,
    /// The state folder itself; keeps other agents out while this lives.
    occupied: Arc<File>,
    watches: Watches,
}

impl Disk {
    /// Whether the state folder was removed: nothing can be recorded any more, whatever the node makes in its place.
    fn is_state_gone(&self) -> bool {
        self.occupied.metadata().is_ok_and(|state| state.nlink() == 0)
    }
}

/// What works on that folder.
#[derive(Debug)]
enum Writer {
    Hosts(Files),
    DropIns(DropIns),
}

/// What was told of faults, by what they are of, so that each is told once while it lasts.
type Told = BTreeMap<String, String>;

/// The state of the disk work.
#[derive(Debug)]
pub(super) struct Upkeep {
    disk: Disk,
    /// At home except during the work.
    writer: Option<Writer>,
    /// What of the cluster is kept on disk.
    stored: Option<Known>,
    /// Registries whose file could not be written, and why.
    unplaced: Told,
    /// Folders that could not be given back, and why.
    stuck: Told,
}

impl Upkeep {
    /// Takes over where a former process stopped.
    ///
    /// # Errors
    /// The state folder cannot be used, or another agent does.
    pub(super) async fn start(
        folder: Folder,
        state_dir: PathBuf,
        relay_url: String,
        stored: Known,
        watches: Watches,
    ) -> Result<Self, AgentFault> {
        let started = spawn_blocking(move || {
            let occupied = Arc::new(durable::occupy(&state_dir)?);
            let writer = match &folder {
                Folder::Certs(folder) => Writer::Hosts(Files::open(folder, &state_dir, &relay_url)?),
                Folder::RegistriesConf(folder) => Writer::DropIns(DropIns::new(folder, &state_dir)),
            };
            Ok((writer, Disk { folder, state_dir, occupied, watches }))
        });
        let (writer, disk) = started.await.map_err(AgentFault::Task)?.map_err(AgentFault::OpenState)?;
        let (unplaced, stuck) = (Told::new(), Told::new());
        Ok(Self { disk, writer: Some(writer), stored: Some(stored), unplaced, stuck })
    }

    /// Keeps what is known and brings the files to what is wanted; None: they stay as they are.
    ///
    /// # Errors
    /// The folder was taken away, or the state folder.
    pub(super) async fn converge(&mut self, wanted: Option<Vec<Wanted>>, known: &Known) -> Result<Outcome, AgentFault> {
        let news = (self.stored.as_ref() != Some(known)).then(|| known.clone());
        let disk = self.disk.clone();
        let (outcome, is_stored, is_state_gone) = self
            .on_disk(move |writer| {
                if disk.is_state_gone() {
                    return (Outcome::default(), false, true);
                }
                let stored = news.map_or(Ok(()), |known| known.store(&disk.state_dir)).inspect_err(|error| {
                    tracing::warn!(%error, "last known set is not kept, a restart without the API server would start from less");
                });
                // First the watches: what others change from here on is told.
                disk.watches.renew(disk.folder.path());
                (wanted.map(|wanted| writer.converge(&wanted)).unwrap_or_default(), stored.is_ok(), false)
            })
            .await?;
        if is_state_gone {
            return Err(AgentFault::Replaced { folder: self.disk.state_dir.clone(), source: Fault::Replaced });
        }
        if is_stored {
            self.stored = Some(known.clone());
        }
        self.log(&outcome);
        match outcome.replaced() {
            Some(source) => Err(AgentFault::Replaced { folder: self.disk.folder.path().to_owned(), source }),
            None => Ok(outcome),
        }
    }

    /// Leaves the node as it was found. What cannot be given back stays on record, for another agent or `restore`.
    ///
    /// # Errors
    /// The work died.
    pub(super) async fn give_everything_back(&mut self) -> Result<(), AgentFault> {
        let outcome = self.on_disk(Writer::give_everything_back).await?;
        self.log(&outcome);
        Ok(())
    }

    async fn on_disk<T: Default + Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut Writer) -> T + Send + 'static,
    ) -> Result<T, AgentFault> {
        let Some(mut writer) = self.writer.take() else { return Ok(T::default()) };
        let done = spawn_blocking(move || {
            let done = work(&mut writer);
            (writer, done)
        });
        let (writer, done) = done.await.map_err(AgentFault::Task)?;
        self.writer = Some(writer);
        Ok(done)
    }

    fn log(&mut self, outcome: &Outcome) {
        for folder in &outcome.mended {
            tracing::info!(registry = folder, "file was not as left and is merged anew");
        }
        for folder in &outcome.given_back {
            tracing::info!(registry = folder, "file given back as found");
        }
        let unplaced = outcome.placed.iter().filter_map(|(registry, placed)| {
            let fault = placed.as_ref().err()?;
            Some((registry.to_string(), fault.to_string()))
        });
        tell_new(&mut self.unplaced, unplaced.collect(), |registry, error| {
            tracing::error!(registry, error, "file cannot be put in place");
        });
        let stuck = outcome.stuck.iter().map(|(folder, fault)| (folder.clone(), fault.to_string()));
        tell_new(&mut self.stuck, stuck.collect(), |registry, error| {
            tracing::error!(registry, error, "file cannot be given back");
        });
    }
}

/// Tells what was not told before, or otherwise.
fn tell_new(before: &mut Told, now: Told, tell: impl Fn(&str, &str)) {
    now.iter().filter(|(of, error)| before.get(*of) != Some(*error)).for_each(|(of, error)| tell(of, error));
    *before = now;
}

impl Folder {
    fn path(&self) -> &Path {
        match self {
            Self::Certs(path) | Self::RegistriesConf(path) => path,
        }
    }
}

impl Writer {
    fn converge(&mut self, wanted: &[Wanted]) -> Outcome {
        match self {
            Self::Hosts(files) => files.converge(wanted),
            Self::DropIns(drop_ins) => told(drop_ins.converge(wanted)),
        }
    }

    fn give_everything_back(&mut self) -> Outcome {
        match self {
            Self::Hosts(files) => files.give_everything_back(),
            Self::DropIns(drop_ins) => told(drop_ins.give_everything_back()),
        }
    }
}

/// Tells CRI-O of a change. Whether it took notice shows in what it pulls.
fn told(outcome: Outcome) -> Outcome {
    if (outcome.written > 0 || !outcome.given_back.is_empty())
        && let Err(error) = reload()
    {
        tracing::warn!(%error, "drop-ins changed");
    }
    outcome
}
