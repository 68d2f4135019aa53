//! What we owe each folder of certs.d: recorded durably before the node's file changes. Knows no hosts.toml.

use crate::durable;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// The debts, by folder name, as they are on disk.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    entries: BTreeMap<String, Debt>,
}

/// What one folder gets back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Debt {
    /// The foreign file that we merged into; None where there was none.
    pub(super) original: Option<Original>,
    /// Whether the folder is of our making.
    pub(super) made_folder: bool,
    /// What we wrote last, or were about to write and what it replaces.
    pub(super) wrote: Vec<String>,
}

/// A foreign file as it was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Original {
    pub(super) text: String,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// None where an older agent found it, or others changed it since.
    #[serde(default)]
    pub(super) modified: Option<SystemTime>,
}

impl Journal {
    /// Reads the journal. One that cannot be read counts as lost: our part is recognised in the files themselves.
    pub(super) fn open(state_dir: &Path) -> io::Result<Self> {
        durable::make_folder(state_dir)?;
        let path = state_dir.join(durable::JOURNAL);
        let entries = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                tracing::warn!(path = %path.display(), %error, "journal is damaged, our part is recognised in the files instead");
                BTreeMap::new()
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => return Err(error),
        };
        Ok(Self { path, entries })
    }

    pub(super) fn get(&self, folder: &str) -> Option<&Debt> {
        self.entries.get(folder)
    }

    pub(super) fn folders(&self) -> impl Iterator<Item = &String> {
        self.entries.keys()
    }

    /// Records debts before they are made, in one write; in none if they are recorded already.
    pub(super) fn record<'a>(&mut self, debts: impl Iterator<Item = (&'a str, &'a Debt)>) -> io::Result<()> {
        let mut new = debts.filter(|(folder, debt)| self.entries.get(*folder) != Some(debt)).peekable();
        if new.peek().is_none() {
            return Ok(());
        }
        let mut entries = self.entries.clone();
        entries.extend(new.map(|(folder, debt)| (folder.to_owned(), debt.clone())));
        self.store(entries)
    }

    /// Strikes debts out after they are paid, in one write.
    pub(super) fn strike<'a>(&mut self, folders: impl IntoIterator<Item = &'a String>) -> io::Result<()> {
        let mut entries = self.entries.clone();
        let before = entries.len();
        for folder in folders {
            entries.remove(folder);
        }
        if entries.len() == before { Ok(()) } else { self.store(entries) }
    }

    /// Leaves nothing of the agent's state but what is still owed.
    pub(super) fn remove(&mut self) -> io::Result<()> {
        self.entries.clear();
        durable::remove(&self.path)?;
        self.path.parent().map_or(Ok(()), durable::forget)
    }

    fn store(&mut self, entries: BTreeMap<String, Debt>) -> io::Result<()> {
        super::crash_point()?;
        let bytes = serde_json::to_vec(&entries)?;
        durable::replace(&self.path, &bytes, durable::PRIVATE)?;
        self.entries = entries;
        Ok(())
    }
}
