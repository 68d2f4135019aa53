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
    let unconfigured = Configure::new(state_dir, false).give_back();
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
    } else {
        // Keys need not leave their place to be seen as there.
        std::fs::write(to, "")
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
mod tests {
    use super::*;
    use tempfile::TempDir;

    const MIRRORS: &str = "\
apiVersion: v1
kind: ConfigMap
metadata: {name: beside}
---
apiVersion: breakwater.dev/v1alpha1
kind: RegistryMirror
metadata: {name: hub}
spec: {registry: docker.io}
---
apiVersion: v1
kind: List
items:
  - apiVersion: breakwater.dev/v1alpha1
    kind: RegistryMirror
    metadata: {name: elsewhere}
    spec: {registry: quay.io, nodes: {selector: {matchLabels: {zone: b}}}}
  - apiVersion: breakwater.dev/v1alpha1
    kind: RegistryMirror
    metadata: {name: broken}
    spec: {registry: '../etc'}
";

    fn plan_args(dir: &TempDir, labels: &[(&str, &str)]) -> PlanArgs {
        let from = dir.path().join("mirrors.yaml");
        std::fs::write(&from, MIRRORS).unwrap();
        PlanArgs {
            from,
            labels: labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
            node: NodeArgs {
                certs_dir: dir.path().join("certs.d"),
                registries_conf_dir: None,
                state_dir: dir.path().join("state"),
                relay_listen: ([127, 0, 0, 1], 429).into(),
            },
        }
    }

    #[test]
    fn a_plan_is_told_and_nothing_is_written() {
        let dir = TempDir::new().unwrap();
        let told = plan(plan_args(&dir, &[])).unwrap();
        let path = dir.path().join("certs.d/docker.io/hosts.toml");
        let begin = format!("# create {}\n# Managed by Breakwater: RegistryMirror/hub\n", path.display());
        assert!(told.text.starts_with(&begin) && told.text.ends_with("# 0 unchanged\n"), "{}", told.text);
        assert!(!told.text.contains("quay.io"), "{}", told.text);
        assert_eq!(told.troubles.len(), 1, "{:?}", told.troubles);
        assert!(told.troubles[0].contains("../etc"), "{:?}", told.troubles);
        assert!(!path.exists() && !dir.path().join("state").exists());
        assert!(plan(plan_args(&dir, &[("zone", "b")])).unwrap().text.contains("quay.io/hosts.toml"));
    }

    #[test]
    fn what_is_there_is_merged_and_restored_byte_for_byte() {
        let dir = TempDir::new().unwrap();
        let folder = dir.path().join("certs.d/docker.io");
        std::fs::create_dir_all(&folder).unwrap();
        let foreign = "[host.'https://spare.example']\r\n";
        std::fs::write(folder.join(HOSTS_TOML), foreign).unwrap();
        std::fs::write(folder.join("client.key"), "secret").unwrap();
        let told = plan(plan_args(&dir, &[])).unwrap();
        assert!(told.text.contains("# change ") && told.text.contains(foreign), "{}", told.text);
        assert_eq!(std::fs::read_to_string(folder.join(HOSTS_TOML)).unwrap(), foreign);

        // As the agent does it, then without it.
        let args = plan_args(&dir, &[]).node;
        let (mirrors, _) = parse(MIRRORS).unwrap();
        let node = Some(Node { uid: String::new(), labels: BTreeMap::new() });
        let known = Known { mirrors: Some(mirrors), node, ..Known::default() };
        let planned = plan::plan(&known, args.relay_listen).unwrap();
        let wanted: Vec<_> = planned.mirrors.into_iter().map(|planned| planned.wanted).collect();
        let relay = plan::relay_url(args.relay_listen);
        let mut files = Files::open(&args.certs_dir, &args.state_dir, &relay).unwrap();
        assert!(files.converge(&wanted).placed.values().all(Result::is_ok));
        assert_eq!(plan(plan_args(&dir, &[])).unwrap().text, "# 1 unchanged\n");

        let agent = durable::occupy(&args.state_dir).unwrap();
        assert!(restore(&args).unwrap_err().to_string().contains("another agent"), "it would write them again");
        drop(agent);
        let empty = dir.path().join("empty");
        std::fs::create_dir(&empty).unwrap();
        let refused = restore(&NodeArgs { certs_dir: empty, ..args.clone() }).unwrap_err().to_string();
        assert!(refused.contains("name the certs.d that it wrote"), "{refused}");
        let told = restore(&args).unwrap();
        assert_eq!(told.text, format!("given back: {}\n", folder.display()));
        assert_eq!(std::fs::read_to_string(folder.join(HOSTS_TOML)).unwrap(), foreign);
        assert_eq!(restore(&args).unwrap().text, "nothing to give back\n");
    }

    #[test]
    fn drop_ins_are_planned_and_restored_too() {
        let dir = TempDir::new().unwrap();
        let folder = dir.path().join("registries.conf.d");
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("10-corp.conf"), "# corp\n").unwrap();
        let mut args = plan_args(&dir, &[]);
        args.node.registries_conf_dir = Some(folder.clone());
        let node = args.node.clone();
        let told = plan(args).unwrap();
        assert!(told.text.contains("50-breakwater-docker.io.conf\n# Managed by Breakwater: "), "{}", told.text);
        assert!(told.text.ends_with("# 1 unchanged\n"), "{}", told.text);
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1);

        std::fs::write(folder.join("50-breakwater-docker.io.conf"), "# Managed by Breakwater: RegistryMirror/hub\n")
            .unwrap();
        let told = restore(&node).unwrap();
        assert!(told.text.starts_with("given back: ") && told.troubles.is_empty(), "{told:?}");
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1);
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let dir = TempDir::new().unwrap();
        let mut args = plan_args(&dir, &[]);
        args.from = dir.path().join("none.yaml");
        let told = format!("{:#}", anyhow::Error::from(plan(args).unwrap_err()));
        assert!(told.contains("none.yaml: No such file") && told.contains("; name a file"), "{told}");
        assert_eq!(told.matches("No such file").count(), 1, "{told}");
        let args = plan_args(&dir, &[]);
        std::fs::write(&args.from, "a: [").unwrap();
        assert!(plan(args).unwrap_err().to_string().contains("mirrors.yaml"));
        let mut args = plan_args(&dir, &[]);
        args.node.registries_conf_dir = Some(args.from.clone()); // no folder
        let told = plan(args).unwrap_err().to_string();
        assert!(told.starts_with("--registries-conf-dir ") && told.contains("Not a directory"), "{told}");
    }
}
