//! Brings `registries.conf.d` to what the plan wants: one file of ours for each registry, removed when it is no longer wanted.
//! Other files are read and never changed, so there is nothing to give back but ours.

use crate::durable;
use crate::files::{Fault, First, Outcome, Wanted, again};
use crate::registries_conf::{self, Foreign, MARKER, NAME, Unfit};
use crate::text_file::read;
use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

/// The file beside the folder, which is read first.
const MAIN: &str = "registries.conf";

/// The drop-ins of one node.
#[derive(Debug)]
pub struct DropIns {
    folder: PathBuf,
    first: First,
    state_dir: PathBuf,
}

impl DropIns {
    /// For the folder `registries.conf.d`, beside which `registries.conf` lies.
    #[must_use]
    pub fn new(folder: &Path, state_dir: &Path) -> Self {
        Self { folder: folder.to_owned(), first: First::default(), state_dir: state_dir.to_owned() }
    }

    /// Removes what is no longer wanted, then writes what is. One file's trouble never stops the others.
    pub fn converge(&mut self, wanted: &[Wanted]) -> Outcome {
        let mut outcome = Outcome::default();
        let (ours, others) = match self.look() {
            Ok(found) => found,
            Err(fault) => return self.nothing_done(wanted, fault),
        };
        let names: BTreeSet<_> = wanted.iter().map(|one| registries_conf::file_name(&one.registry)).collect();
        for name in ours.iter().filter(|name| !names.contains(*name)) {
            match durable::remove(&self.folder.join(name)) {
                Ok(()) => outcome.given_back.push(name.clone()),
                Err(source) => outcome.stuck.push((name.clone(), Fault::Io { action: "remove a drop-in", source })),
            }
        }
        // Ours is given back whatever others wrote; only what is to be written depends on that.
        let foreign = self.foreign(others);
        for one in wanted {
            let placed = match &foreign {
                Ok(foreign) => self.place(one, &ours, foreign),
                Err((name, error)) => Err(Fault::Registries(Unfit::Read(name.clone(), again(error)))),
            };
            outcome.written += u64::from(matches!(&placed, Ok(true)));
            outcome.placed.insert(one.registry.clone(), placed.map(drop));
        }
        outcome
    }

    /// What came of it where the folder cannot be looked at.
    fn nothing_done(&self, wanted: &[Wanted], fault: Fault) -> Outcome {
        let mut outcome = Outcome {
            placed: wanted.iter().map(|one| (one.registry.clone(), Err(fault.repeated()))).collect(),
            ..Outcome::default()
        };
        // Where there is no folder, nothing of ours is in it.
        let is_gone = match &fault {
            Fault::Io { source, .. } => source.kind() == io::ErrorKind::NotFound,
            fault => matches!(fault, Fault::Replaced),
        };
        if !is_gone {
            outcome.stuck.push((self.folder.display().to_string(), fault));
        }
        outcome
    }

    /// Removes every file of ours, and the agent's state.
    pub fn give_everything_back(&mut self) -> Outcome {
        let outcome = self.converge(&[]);
        if outcome.stuck.is_empty()
            && let Err(error) = durable::forget(&self.state_dir)
        {
            tracing::warn!(%error, "the state folder is not empty");
        }
        outcome
    }

    /// Names of our files, and of the others'. What a crash left of a write is removed.
    fn look(&mut self) -> Result<(BTreeSet<String>, BTreeSet<String>), Fault> {
        let fault = |source| Fault::Io { action: "look for drop-ins", source };
        self.first.open(&self.folder).map_err(fault)?.ok_or(Fault::Replaced)?;
        durable::sweep(&self.folder).and_then(|()| self.names()).map_err(fault)
    }

    fn names(&self) -> io::Result<(BTreeSet<String>, BTreeSet<String>)> {
        let mut names = BTreeSet::new();
        for entry in std::fs::read_dir(&self.folder)? {
            // Names that are no text are nobody's that we know.
            names.extend(entry?.file_name().into_string().ok().filter(|name| name.ends_with(".conf")));
        }
        let is_ours = |name: &String| {
            name.starts_with(NAME) && read(&self.folder.join(name)).is_ok_and(|text| text.starts_with(MARKER))
        };
        Ok(names.into_iter().partition(is_ours))
    }

    /// The others' texts in the order in which they are read, or the one that cannot be read and why.
    fn foreign(&self, names: BTreeSet<String>) -> Result<Vec<Foreign>, (String, io::Error)> {
        let main = self.folder.with_file_name(MAIN);
        let mut foreign = Vec::with_capacity(names.len() + 1);
        match read(&main) {
            Ok(text) => foreign.push(Foreign { name: None, text }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err((MAIN.to_owned(), error)),
        }
        for name in names {
            match read(&self.folder.join(&name)) {
                Ok(text) => foreign.push(Foreign { name: Some(name), text }),
                Err(error) => return Err((name, error)),
            }
        }
        Ok(foreign)
    }

    /// Returns whether it wrote.
    fn place(&self, one: &Wanted, ours: &BTreeSet<String>, foreign: &[Foreign]) -> Result<bool, Fault> {
        let name = registries_conf::file_name(&one.registry);
        let path = self.folder.join(&name);
        if !ours.contains(&name) && path.symlink_metadata().is_ok() {
            return Err(Fault::Unsafe("a drop-in of that name is not the agent's"));
        }
        let text = registries_conf::render(&one.registry, &one.entry, foreign).map_err(Fault::Registries)?;
        if ours.contains(&name) && read(&path).is_ok_and(|current| current == text) {
            return Ok(false);
        }
        durable::replace(&path, text.as_bytes(), durable::PUBLIC)
            .map_err(|source| Fault::Io { action: "write a drop-in", source })?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hosts_toml::{Entry, Server};
    use crate::registry_host::RegistryHost;
    use breakwater_crds::conditions::reason;
    use tempfile::TempDir;

    fn wanted(registry: &str) -> Wanted {
        let entry = Entry { mirror: "m".into(), relay: "http://127.0.0.1:429".into(), server: Server::Default };
        Wanted { registry: RegistryHost::parse(registry).unwrap(), entry }
    }

    fn node() -> (TempDir, DropIns) {
        let dir = TempDir::new().unwrap();
        let folder = dir.path().join("registries.conf.d");
        std::fs::create_dir(&folder).unwrap();
        let drop_ins = DropIns::new(&folder, &dir.path().join("state"));
        (dir, drop_ins)
    }

    fn names(drop_ins: &DropIns) -> Vec<String> {
        let names = std::fs::read_dir(&drop_ins.folder).unwrap();
        let mut names: Vec<_> = names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn files_come_once_and_go_and_others_stay() {
        let (dir, mut drop_ins) = node();
        std::fs::write(dir.path().join("registries.conf"), "[[registry]]\nlocation = 'ghcr.io'\n").unwrap();
        std::fs::write(drop_ins.folder.join("10-corp.conf"), "# corp\n").unwrap();
        let both = [wanted("docker.io"), wanted("ghcr.io")];
        let outcome = drop_ins.converge(&both);
        assert!(outcome.placed.values().all(Result::is_ok) && outcome.written == 2, "{outcome:?}");
        assert_eq!(names(&drop_ins), ["10-corp.conf", "50-breakwater-docker.io.conf", "50-breakwater-ghcr.io.conf"]);
        let text = std::fs::read_to_string(drop_ins.folder.join("50-breakwater-ghcr.io.conf")).unwrap();
        assert!(text.contains("# Keeps what registries.conf says"), "{text}");
        assert_eq!(drop_ins.converge(&both).written, 0);
        assert_eq!(drop_ins.converge(&both[..1]).given_back, ["50-breakwater-ghcr.io.conf"]);
        std::fs::create_dir(&drop_ins.state_dir).unwrap();
        std::fs::write(drop_ins.folder.join(".breakwater-half"), "a crash left it").unwrap();
        drop_ins.give_everything_back();
        assert_eq!(names(&drop_ins), ["10-corp.conf"]);
        assert!(!drop_ins.state_dir.exists());
    }

    #[test]
    fn what_is_owed_to_certs_d_stays_on_record() {
        let (_dir, mut drop_ins) = node();
        durable::make_folder(&drop_ins.state_dir).unwrap();
        let journal = drop_ins.state_dir.join(durable::JOURNAL);
        std::fs::write(&journal, "{}").unwrap();
        drop_ins.give_everything_back();
        assert!(journal.exists());
    }

    #[test]
    fn ours_is_given_back_whatever_others_wrote_meanwhile() {
        let (_dir, mut drop_ins) = node();
        assert_eq!(drop_ins.converge(&[wanted("docker.io")]).written, 1);
        std::fs::write(drop_ins.folder.join("10-corp.conf"), [0xff]).unwrap();
        let outcome = drop_ins.converge(&[wanted("docker.io")]);
        let said = outcome.placed.values().next().unwrap().as_ref().unwrap_err().to_string();
        assert!(said.contains("10-corp.conf"), "{said}");
        assert_eq!(drop_ins.give_everything_back().given_back, ["50-breakwater-docker.io.conf"]);
        assert_eq!(names(&drop_ins), ["10-corp.conf"]);
    }

    #[test]
    fn what_cannot_be_looked_at_is_owed_still() {
        let (_dir, mut drop_ins) = node();
        std::fs::remove_dir(&drop_ins.folder).unwrap();
        std::fs::write(&drop_ins.folder, "no folder").unwrap();
        durable::make_folder(&drop_ins.state_dir).unwrap();
        assert_eq!(drop_ins.give_everything_back().stuck.len(), 1);
        assert!(drop_ins.state_dir.exists());
    }

    #[test]
    fn what_stands_in_the_way_is_told_and_left() {
        let (_dir, mut drop_ins) = node();
        let path = |name: &str| drop_ins.folder.join(name);
        std::fs::write(path("50-breakwater-docker.io.conf"), "# not ours\n").unwrap();
        std::fs::write(path("99-corp.conf"), "[[registry]]\nlocation = 'quay.io'\n").unwrap();
        let outcome = drop_ins.converge(&[wanted("docker.io"), wanted("quay.io"), wanted("ghcr.io")]);
        let reasons: Vec<_> =
            outcome.placed.values().map(|placed| placed.as_ref().map_or_else(Fault::reason, |()| "placed")).collect();
        assert_eq!(reasons, [reason::UNSAFE_PATH, "placed", reason::FOREIGN_FILE_INVALID]);
        drop_ins.give_everything_back();
        assert_eq!(names(&drop_ins), ["50-breakwater-docker.io.conf", "99-corp.conf"]);
        std::fs::remove_dir_all(&drop_ins.folder).unwrap();
        let outcome = drop_ins.converge(&[wanted("docker.io")]);
        assert!(
            outcome.placed.values().all(|placed| placed.as_ref().is_err_and(|f| f.reason() == reason::WRITE_FAILED))
        );
        assert!(outcome.replaced().is_some(), "only a new process gets a new folder mounted");
    }
}
