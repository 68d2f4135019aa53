//! The agent's subcommands, which know no cluster: what it would write, and giving everything back.

use crate::args::{NodeArgs, PlanArgs};
use crate::drop_ins::DropIns;
use crate::durable;
use crate::files::{Files, Outcome, Wanted};
use crate::known::{Known, Node};
use crate::plan;
use crate::runtime::Configure;
use breakwater_crds::RegistryMirror;
use kube::ResourceExt;
use rustix::fs::{CWD, Mode, mkfifoat};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

const HOSTS_TOML: &str = "hosts.toml";

/// Why there is no answer. Each says all of it, causes included: nothing is told twice.
#[derive(Debug, thiserror::Error)]
pub enum OfflineFault {
    /// The mirrors cannot be read.
    #[error("--from {path}: {why}; name a file of RegistryMirrors, or - for the standard input")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        why: io::Error,
    },
    /// The mirrors are no YAML.
    #[error("--from {path}: {why}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why.
        why: String,
    },
    /// The node's files cannot be looked at.
    #[error("{flag} {path}: {why}")]
    Look {
        /// What names the folder.
        flag: &'static str,
        /// The folder.
        path: PathBuf,
        /// Why.
        why: io::Error,
    },
    /// What the agent wrote is not there.
    #[error(
        "--certs-dir {certs_dir}: none of the folders that the agent wrote is there; name the certs.d that it wrote, \
         or remove {journal} if that is gone"
    )]
    Elsewhere {
        /// Where it was looked for.
        certs_dir: PathBuf,
        /// What knows of the folders.
        journal: PathBuf,
    },
    /// The state folder cannot be used.
    #[error("--state-dir: {0}")]
    State(io::Error),
    /// There is no place for a copy of the node's files.
    #[error("make a temporary folder: {0}; name a place where one can be made in TMPDIR")]
    Temporary(io::Error),
}

/// What a subcommand found.
#[derive(Debug)]
pub struct Told {
    /// For the standard output.
    pub text: String,
    /// What could not be done, for the standard error.
    pub troubles: Vec<String>,
}

/// What the agent would write on a node for these mirrors. The node's files are copied and the copy is changed, by the very code
/// that changes them.
///
/// # Errors
/// The mirrors or the node's files cannot be read.
pub fn plan(args: PlanArgs) -> Result<Told, OfflineFault> {
    let PlanArgs { from, labels, node: NodeArgs { certs_dir, registries_conf_dir, state_dir, relay_listen } } = args;
    let text = if from == Path::new("-") { io::read_to_string(io::stdin()) } else { std::fs::read_to_string(&from) };
    let text = text.map_err(|why| OfflineFault::Read { path: from.clone(), why })?;
    let (mirrors, mut troubles) = parse(&text).map_err(|why| OfflineFault::Parse { path: from, why })?;
    let node = Some(Node { uid: String::new(), labels: labels.into_iter().collect() });
    let known = Known { mirrors: Some(mirrors), node, ..Known::default() };
    let plan = plan::plan(&known, relay_listen).unwrap_or_default();
    troubles.extend(plan.refused.iter().map(|(registry, message)| format!("{registry}: {message}")));

    let wanted: Vec<_> = plan.mirrors.into_iter().map(|planned| planned.wanted).collect();
    let copy = tempfile::tempdir().map_err(OfflineFault::Temporary)?;
    if let Some(folder) = registries_conf_dir {
        let look = |why| OfflineFault::Look { flag: "--registries-conf-dir", path: folder.clone(), why };
        let (text, more) = plan_drop_ins(&folder, copy.path(), &wanted).map_err(look)?;
        troubles.extend(more);
        return Ok(Told { text, troubles });
    }
    let look = |why| OfflineFault::Look { flag: "--certs-dir", path: certs_dir.clone(), why };
    let (certs_copy, state_copy) = (copy.path().join("certs.d"), copy.path().join("state"));
    let before = imitate(&certs_dir, &certs_copy).map_err(look)?;
    copy_journal(&state_dir, &state_copy).map_err(OfflineFault::State)?;
    let mut files =
        Files::open(&certs_copy, &state_copy, &plan::relay_url(relay_listen)).map_err(OfflineFault::State)?;
    troubles.extend(troubles_of(&files.converge(&wanted)));
    let after = texts(&certs_copy).map_err(look)?;
    Ok(Told { text: difference(&certs_dir, &before, &after), troubles })
}

/// The same for drop-ins of registries.conf.
fn plan_drop_ins(folder: &Path, temporary: &Path, wanted: &[Wanted]) -> io::Result<(String, Vec<String>)> {
    let copy = temporary.join("registries.conf.d");
    std::fs::create_dir(&copy)?;
    let main = folder.with_file_name("registries.conf");
    if main.try_exists()? {
        std::fs::copy(main, temporary.join("registries.conf"))?;
    }
    if folder.try_exists()? {
        for entry in std::fs::read_dir(folder)? {
            let entry = entry?;
            // Whatever else stands there is no drop-in.
            if entry.path().is_file() {
                std::fs::copy(entry.path(), copy.join(entry.file_name()))?;
            }
        }
    }
    let before = files(&copy)?;
    let outcome = DropIns::new(&copy, &temporary.join("state")).converge(wanted);
    Ok((difference(folder, &before, &files(&copy)?), troubles_of(&outcome)))
}

fn files(folder: &Path) -> io::Result<Texts> {
    let mut texts = Texts::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        texts.insert(entry.file_name().into(), std::fs::read(entry.path())?);
    }
    Ok(texts)
}

/// Gives every file back as the agent does when it is removed.
///
/// # Errors
/// The state folder cannot be used, or an agent works with it still.
pub fn restore(args: &NodeArgs) -> Result<Told, OfflineFault> {
    let NodeArgs { certs_dir, registries_conf_dir, state_dir, relay_listen } = args;
    let _occupied = durable::occupy(state_dir).map_err(OfflineFault::State)?;
    let (root, outcome) = match registries_conf_dir {
        Some(folder) => (folder, DropIns::new(folder, state_dir).give_everything_back()),
        None => {
            let relay = plan::relay_url(*relay_listen);
            let mut files = Files::open(certs_dir, state_dir, &relay).map_err(OfflineFault::State)?;
            // Nothing would be found to give back, and the originals forgotten.
            if files.are_elsewhere() {
                let journal = state_dir.join(durable::JOURNAL);
                return Err(OfflineFault::Elsewhere { certs_dir: certs_dir.clone(), journal });
            }
            (certs_dir, files.give_everything_back())
        }
    };
    // Last: what names certs.d goes after what is in it.
    let unconfigured = Configure::new(state_dir, false).give_back();
    if outcome.stuck.is_empty() && unconfigured.is_ok() {
        durable::forget(state_dir).map_err(OfflineFault::State)?;
    }
    let mut text = String::new();
    for name in &outcome.given_back {
        // Writing to a String does not fail.
        let _ = writeln!(text, "given back: {}", root.join(name).display());
    }
    if outcome.given_back.is_empty() && outcome.stuck.is_empty() {
        text.push_str("nothing to give back\n");
    }
    let mut troubles = troubles_of(&outcome);
    troubles.extend(unconfigured.err().map(|error| error.to_string()));
    Ok(Told { text, troubles })
}

fn troubles_of(outcome: &Outcome) -> Vec<String> {
    let unplaced = outcome.placed.iter().filter_map(|(registry, placed)| {
        let fault = placed.as_ref().err()?;
        Some(format!("{registry}: {fault}"))
    });
    unplaced.chain(outcome.stuck.iter().map(|(folder, fault)| format!("{folder}: {fault}"))).collect()
}

type Mirrors = BTreeMap<String, RegistryMirror>;

/// The mirrors among the objects of a manifest, lists included, and those that are malformed.
fn parse(text: &str) -> Result<(Mirrors, Vec<String>), String> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(text).map_err(|error| error.to_string())?;
    let objects = documents.into_iter().flat_map(|document| match document.get("items") {
        Some(Value::Array(items)) => items.clone(),
        _ => vec![document],
    });
    let (mut mirrors, mut troubles) = (BTreeMap::new(), Vec::new());
    for object in objects.filter(|object| object["kind"] == "RegistryMirror") {
        let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        match serde_json::from_value::<RegistryMirror>(object) {
            Ok(mirror) => drop(mirrors.insert(mirror.name_any(), mirror)),
            Err(error) => troubles.push(format!("RegistryMirror {name}: {error}")),
        }
    }
    Ok((mirrors, troubles))
}

type Texts = BTreeMap<PathBuf, Vec<u8>>;

/// Makes a folder that looks like certs.d: every hosts.toml with its text, every other file without. Returns the texts.
fn imitate(certs_dir: &Path, copy: &Path) -> io::Result<Texts> {
    std::fs::create_dir(copy)?;
    if !certs_dir.try_exists()? {
        return Ok(Texts::new());
    }
    for entry in std::fs::read_dir(certs_dir)? {
        let entry = entry?;
        let (from, to) = (entry.path(), copy.join(entry.file_name()));
        if !entry.file_type()?.is_dir() {
            imitate_file(&from, &to)?;
            continue;
        }
        std::fs::create_dir(&to)?;
        for inner in std::fs::read_dir(&from)? {
            let name = inner?.file_name();
            imitate_file(&from.join(&name), &to.join(&name))?;
        }
    }
    texts(copy)
}

fn imitate_file(from: &Path, to: &Path) -> io::Result<()> {
    let kind = from.symlink_metadata()?.file_type();
    if kind.is_symlink() {
        symlink(std::fs::read_link(from)?, to)
    } else if kind.is_dir() {
        std::fs::create_dir(to)
    } else if kind.is_file() && from.ends_with(HOSTS_TOML) {
        std::fs::copy(from, to).map(drop)
    } else if kind.is_file() {
        // Keys need not leave their place to be seen as there.
        std::fs::write(to, "")
    } else {
        // Whatever it is, it is no file, and nobody opens it.
        Ok(mkfifoat(CWD, to, Mode::empty())?)
    }
}

fn copy_journal(state_dir: &Path, copy: &Path) -> io::Result<()> {
    std::fs::create_dir(copy)?;
    match std::fs::copy(state_dir.join(durable::JOURNAL), copy.join(durable::JOURNAL)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn texts(root: &Path) -> io::Result<Texts> {
    let mut texts = Texts::new();
    for entry in std::fs::read_dir(root)? {
        let path = entry?.path().join(HOSTS_TOML);
        if path.symlink_metadata().is_ok_and(|found| found.is_file()) {
            let below = path.strip_prefix(root).unwrap_or(&path).to_owned();
            texts.insert(below, std::fs::read(&path)?);
        }
    }
    Ok(texts)
}

/// Each file that would change with its whole text, each that would go, and how many would stay as they are.
fn difference(certs_dir: &Path, before: &Texts, after: &Texts) -> String {
    let mut told = String::new();
    let mut same = 0;
    let paths: BTreeSet<_> = before.keys().chain(after.keys()).collect();
    for path in paths {
        let shown = certs_dir.join(path);
        let shown = shown.display();
        // Writing to a String does not fail.
        let _ = match (before.get(path), after.get(path)) {
            (Some(old), Some(new)) if old == new => {
                same += 1;
                Ok(())
            }
            (old, Some(new)) => {
                let what = if old.is_some() { "change" } else { "create" };
                writeln!(told, "# {what} {shown}\n{}", String::from_utf8_lossy(new))
            }
            (_, None) => writeln!(told, "# remove {shown}\n"),
        };
    }
    let _ = writeln!(told, "# {same} unchanged");
    told
}

#[cfg(test)]
mod tests;
