//! Brings certs.d to what the plan wants and gives back what it wants no more. The only writer of the node's files.
//!
//! Each change is recorded in the journal first, so a crash at any step leaves either the old or the new file and a debt
//! that names what to give back. What others change under our feet is taken as theirs and merged anew.

mod fault;
mod first;
mod folder;
mod journal;

pub use fault::Fault;
pub(crate) use fault::again;
pub(crate) use first::First;

use crate::hosts_toml::{self, Entry};
use crate::registry_host::RegistryHost;
use folder::{CertsDir, Found, HostFolder};
use journal::{Debt, Journal, Original};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

/// The files of one node.
#[derive(Debug)]
pub struct Files {
    certs_dir: PathBuf,
    first: First,
    relay: String,
    journal: Journal,
}

/// What is to be done for one registry, decided before anything is written.
struct Step {
    folder: String,
    /// The file as it was when this was decided.
    current: Option<Found>,
    debt: Debt,
    text: String,
    /// Whether it stands otherwise than we left it.
    strayed: bool,
}

/// What one registry's `hosts.toml` should hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The registry.
    pub registry: RegistryHost,
    /// Our part of the file.
    pub entry: Entry,
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Each wanted registry: its file is in place, or why not.
    pub placed: BTreeMap<RegistryHost, Result<(), Fault>>,
    /// Folders that were given back now.
    pub given_back: Vec<String>,
    /// Folders that could not be given back.
    pub stuck: Vec<(String, Fault)>,
    /// Folders whose file was not as we left it and is merged anew.
    pub mended: Vec<String>,
    /// How many files were written.
    pub written: u64,
}

impl Outcome {
    /// Says so where the folder was taken away.
    #[must_use]
    pub fn replaced(&self) -> Option<Fault> {
        let faults = self.placed.values().filter_map(|placed| placed.as_ref().err());
        let mut faults = faults.chain(self.stuck.iter().map(|(_, fault)| fault));
        faults.any(|fault| matches!(fault, Fault::Replaced)).then_some(Fault::Replaced)
    }
}

impl Files {
    /// Takes over where a former process stopped.
    ///
    /// # Errors
    /// The state folder cannot be used; without it nothing may be changed.
    pub fn open(certs_dir: &Path, state_dir: &Path, relay: &str) -> io::Result<Self> {
        let journal = Journal::open(state_dir)?;
        Ok(Self { certs_dir: certs_dir.to_owned(), first: First::default(), relay: relay.to_owned(), journal })
    }

    /// Gives back what is no longer wanted, then puts in place what is. One folder's trouble never stops the others.
    pub fn converge(&mut self, wanted: &[Wanted]) -> Outcome {
        let mut outcome = Outcome::default();
        let root = match CertsDir::open(&self.certs_dir, &mut self.first) {
            Ok(root) => root,
            Err(fault) => return self.nothing_done(wanted, &fault),
        };
        let folders: Vec<_> = wanted.iter().map(|one| folder_of(&root, &one.registry)).collect();
        let keep: BTreeSet<&str> = folders.iter().flatten().map(String::as_str).collect();
        self.give_back(&root, self.unwanted(&root, &keep), &mut outcome);
        // Each step is done for all before the next is begun, so that hundreds of files cost one record.
        let mut steps = Vec::with_capacity(wanted.len());
        for (one, folder) in wanted.iter().zip(folders) {
            match folder.and_then(|folder| self.decide(&root, folder, &one.entry)) {
                Ok(step) => steps.push((one.registry.clone(), step)),
                Err(fault) => drop(outcome.placed.insert(one.registry.clone(), Err(fault))),
            }
        }
        let recorded = self.journal.record(steps.iter().map(|(_, step)| (step.folder.as_str(), &step.debt)));
        for (registry, step) in steps {
            if step.strayed {
                outcome.mended.push(step.folder.clone());
            }
            let placed = match &recorded {
                _ if step.is_done() => Ok(()),
                Ok(()) => self.carry_out(&root, step).inspect(|()| outcome.written += 1),
                Err(error) => Err(Fault::unrecorded(error)),
            };
            outcome.placed.insert(registry, placed);
        }
        outcome
    }

    /// Whether something is owed to folders of which certs.d has none: then another one was written.
    #[must_use]
    pub fn are_elsewhere(&self) -> bool {
        let mut owed = self.journal.folders().peekable();
        owed.peek().is_some() && !owed.any(|name| self.certs_dir.join(name).symlink_metadata().is_ok())
    }

    /// Gives everything back and then forgets everything, what else is kept in the state folder included.
    pub fn give_everything_back(&mut self) -> Outcome {
        let outcome = self.converge(&[]);
        if outcome.stuck.is_empty()
            && let Err(error) = self.journal.remove()
        {
            tracing::warn!(%error, "the state folder is not empty");
        }
        outcome
    }

    /// What came of it without certs.d.
    fn nothing_done(&self, wanted: &[Wanted], fault: &Fault) -> Outcome {
        let ours = |name: &str| {
            let is_folder = |one: &Wanted| {
                one.registry.folder() == name || one.registry.preferred_folder().is_some_and(|other| other == name)
            };
            wanted.iter().any(is_folder)
        };
        let owed = self.journal.folders().filter(|name| !ours(name));
        Outcome {
            placed: wanted.iter().map(|one| (one.registry.clone(), Err(fault.repeated()))).collect(),
            stuck: owed.map(|name| (name.clone(), fault.repeated())).collect(),
            ..Outcome::default()
        }
    }

    /// Folders that we owe something, or, should the journal be lost, that carry our part.
    fn unwanted(&self, root: &CertsDir, keep: &BTreeSet<&str>) -> BTreeSet<String> {
        let carries_ours = |name: &String| {
            let read = root.open_folder(name).and_then(|folder| folder.map_or(Ok(None), |folder| folder.read()));
            matches!(read, Ok(Some(found)) if hosts_toml::unmerge(&found.text, &self.relay).is_some())
        };
        let strays = root.names().unwrap_or_default().into_iter().filter(|name| !keep.contains(name.as_str()));
        let owed = self.journal.folders().filter(|name| !keep.contains(name.as_str())).cloned();
        owed.chain(strays.filter(carries_ours)).collect()
    }

    fn decide(&mut self, root: &CertsDir, name: String, entry: &Entry) -> Result<Step, Fault> {
        let folder = root.open_folder(&name)?;
        let current = folder.as_ref().map_or(Ok(None), HostFolder::read)?;
        let inherited = self.inherited(root, &name, folder.is_some())?;
        let original = self.foreign_part(&name, current.as_ref(), inherited.as_deref());
        if original.is_none() && folder.as_ref().map_or(Ok(false), HostFolder::has_certificates)? {
            self.undo(root, &name)?;
            self.journal.strike([&name]).map_err(|error| Fault::unrecorded(&error))?;
            return Err(Fault::Certificates("the registry's folder"));
        }
        let base = original.as_ref().map(|found| found.text.as_str()).or(inherited.as_deref());
        let text = match base {
            Some(base) => hosts_toml::merge(base, entry).map_err(Fault::Merge)?,
            None => hosts_toml::render(entry),
        };
        let made_folder = folder.is_none() || self.made_folder(&name, current.as_ref(), original.is_none());
        let wrote = self.texts_of_ours(&name, current.as_ref(), &text);
        let is_as_left = |debt: &Debt| current.as_ref().is_some_and(|current| debt.wrote.contains(&current.text));
        let strayed = self.journal.get(&name).is_some_and(|debt| !is_as_left(debt));
        Ok(Step { folder: name, current, debt: Debt { original, made_folder, wrote }, text, strayed })
    }

    fn carry_out(&mut self, root: &CertsDir, step: Step) -> Result<(), Fault> {
        let (name, is_untouched) = (step.folder.clone(), step.is_untouched());
        let written = Self::write(root, step);
        // Nothing is owed to who got nothing, and a folder that stays empty would hide `_default`. What cannot be undone now stays owed.
        if written.is_err() && is_untouched && self.undo(root, &name).is_ok() {
            drop(self.journal.strike([&name]));
        }
        written
    }

    fn write(root: &CertsDir, step: Step) -> Result<(), Fault> {
        let Step { folder: name, current, debt, text, strayed: _ } = step;
        let folder = root.open_folder(&name)?.map_or_else(|| root.make_folder(&name), Ok)?;
        if folder.read()? != current {
            return Err(Fault::Changed);
        }
        let replaced = folder.replace(&match debt.original {
            None => fresh(text),
            Some(Original { mode, uid, gid, .. }) => Found { text, mode, uid, gid, modified: None },
        });
        if replaced.is_err() {
            drop(folder.sweep());
        }
        replaced
    }

    /// What of the current file is not ours: what we found at first, unless others changed it since.
    fn foreign_part(&self, name: &str, current: Option<&Found>, inherited: Option<&str>) -> Option<Original> {
        let current = current?;
        if let Some(debt) = self.journal.get(name)
            && debt.wrote.contains(&current.text)
        {
            return debt.original.clone();
        }
        let Found { mode, uid, gid, .. } = *current;
        let like = |text: String| Original { text, mode, uid, gid, modified: None };
        let owed = self.journal.get(name).and_then(|debt| debt.original.as_ref());
        match hosts_toml::unmerge(&current.text, &self.relay) {
            None => Some(Original { modified: current.modified, ..like(current.text.clone()) }),
            Some(rest) if Some(rest.as_str()) == inherited => None,
            Some(rest) if rest.is_empty() && owed.is_none_or(|original| !original.text.is_empty()) => None,
            Some(rest) => Some(like(rest)),
        }
    }

    /// What may stand in the file after a crash and be ours to the last byte: what is to be written, and what was.
    fn texts_of_ours(&self, name: &str, current: Option<&Found>, next: &str) -> Vec<String> {
        let before =
            current.filter(|current| self.journal.get(name).is_some_and(|debt| debt.wrote.contains(&current.text)));
        let mut texts = vec![next.to_owned()];
        texts.extend(before.map(|current| current.text.clone()).filter(|text| text != next));
        texts
    }

    /// Whether the folder goes when it is empty. Without a journal, one that holds only a file of ours is taken for ours.
    fn made_folder(&self, name: &str, current: Option<&Found>, wholly_ours: bool) -> bool {
        self.journal.get(name).map_or(current.is_some() && wholly_ours, |debt| debt.made_folder)
    }

    /// The text of `_default/hosts.toml`, which containerd stops reading for a registry that gets a folder of its own:
    /// its hosts are carried over, so that the way back stays what it was.
    fn inherited(&self, root: &CertsDir, name: &str, exists: bool) -> Result<Option<String>, Fault> {
        if exists && !self.journal.get(name).is_some_and(|debt| debt.made_folder) {
            return Ok(None);
        }
        let Some(folder) = root.open_folder("_default")? else { return Ok(None) };
        match folder.read()? {
            Some(found) if hosts_toml::names_files(&found.text).map_err(Fault::Merge)? => {
                Err(Fault::Certificates("the folder _default"))
            }
            Some(found) => Ok(Some(found.text)),
            None if folder.has_certificates()? => Err(Fault::Certificates("the folder _default")),
            None => Ok(None),
        }
    }

    fn give_back(&mut self, root: &CertsDir, names: BTreeSet<String>, outcome: &mut Outcome) {
        let mut done = Vec::new();
        for name in names {
            match self.undo(root, &name) {
                Ok(changed) => done.push((name, changed)),
                Err(fault) => outcome.stuck.push((name, fault)),
            }
        }
        match self.journal.strike(done.iter().map(|(name, _)| name)) {
            Ok(()) => outcome.given_back.extend(done.into_iter().filter(|(_, changed)| *changed).map(|(name, _)| name)),
            Err(error) => {
                let unrecorded = || Fault::again("record in --state-dir that it was given back", &error);
                outcome.stuck.extend(done.into_iter().map(|(name, _)| (name, unrecorded())));
            }
        }
    }

    /// Leaves the folder as if we had never been there. Returns whether anything changed.
    fn undo(&self, root: &CertsDir, name: &str) -> Result<bool, Fault> {
        let mut changed = false;
        let mut made_folder = self.journal.get(name).is_some_and(|debt| debt.made_folder);
        if let Some(folder) = root.open_folder(name)? {
            let current = folder.read()?;
            let inherited = self.inherited(root, name, true).unwrap_or_default();
            let original = self.foreign_part(name, current.as_ref(), inherited.as_deref());
            made_folder |= self.made_folder(name, current.as_ref(), original.is_none());
            match (current, original) {
                (Some(current), Some(original)) if current.text != original.text => {
                    let Original { text, mode, uid, gid, modified } = original;
                    folder.replace(&Found { text, mode, uid, gid, modified })?;
                    changed = true;
                }
                (Some(_), None) => {
                    folder.remove()?;
                    changed = true;
                }
                _ => folder.sweep()?,
            }
        }
        if made_folder {
            root.remove_folder(name)?;
        }
        Ok(changed)
    }
}

impl Step {
    fn is_done(&self) -> bool {
        self.current.as_ref().is_some_and(|current| current.text == self.text)
    }

    /// Whether nothing of ours is in the file, or there is none.
    fn is_untouched(&self) -> bool {
        let text_of_original = self.debt.original.as_ref().map(|original| &original.text);
        self.current.as_ref().map(|current| &current.text) == text_of_original
    }
}

/// The folder that containerd reads for this registry, or the one to make.
fn folder_of(root: &CertsDir, registry: &RegistryHost) -> Result<String, Fault> {
    if let Some(preferred) = registry.preferred_folder()
        && root.has(&preferred)?
    {
        return Ok(preferred);
    }
    Ok(registry.folder().to_owned())
}

/// A file of our own.
fn fresh(text: String) -> Found {
    let (uid, gid) = folder::own_ids();
    Found { text, mode: 0o644, uid, gid, modified: None }
}

/// Where tests end the process in thought; does nothing else.
#[cfg(not(test))]
#[inline]
fn crash_point() -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
use tests::crash_point;

#[cfg(test)]
mod tests;
