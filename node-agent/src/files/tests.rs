//! Files in real folders: path to text, before and after, and a crash after every step.

use super::*;
use crate::hosts_toml::Server;
use breakwater_crds::conditions::reason;
use proptest::prelude::*;
use std::cell::Cell;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use tempfile::TempDir;

mod attributes;
mod shared;

const RELAY: &str = "http://127.0.0.1:429";

thread_local! {
    /// Durable steps left before the process dies in thought; None: it lives.
    static STEPS: Cell<Option<usize>> = const { Cell::new(None) };
    /// The one durable step that fails, counted from 1.
    static FAIL: Cell<Option<usize>> = const { Cell::new(None) };
    /// Durable steps that were taken.
    static TAKEN: Cell<usize> = const { Cell::new(0) };
}

pub(super) fn crash_point() -> io::Result<()> {
    TAKEN.set(TAKEN.get() + 1);
    if let Some(left) = FAIL.get() {
        FAIL.set(left.checked_sub(1).filter(|left| *left > 0));
        if left == 1 {
            return Err(io::Error::other("failed"));
        }
    }
    match STEPS.get() {
        None => Ok(()),
        Some(0) => Err(io::Error::other("crashed")),
        Some(left) => {
            STEPS.set(Some(left - 1));
            Ok(())
        }
    }
}

/// A node's certs.d and the agent's state beside it. Paths to texts, as `ls` would show them; folders end in `/`.
struct Node {
    root: TempDir,
}

type Tree = BTreeMap<String, String>;

impl Node {
    fn new(files: &[(&str, &str)]) -> Self {
        let root = TempDir::new().unwrap();
        let node = Self { root };
        std::fs::create_dir(node.certs()).unwrap();
        for (path, text) in files {
            node.put(path, text);
        }
        node
    }

    fn certs(&self) -> PathBuf {
        self.root.path().join("certs.d")
    }

    fn put(&self, path: &str, text: &str) {
        let path = self.certs().join(path);
        if path.to_str().unwrap().ends_with('/') {
            return std::fs::create_dir_all(path).unwrap();
        }
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    fn lose_state(&self) {
        std::fs::remove_dir_all(self.root.path().join("state")).unwrap();
    }

    fn files(&self) -> Files {
        Files::open(&self.certs(), &self.root.path().join("state"), RELAY).unwrap()
    }

    fn converge(&self, wanted: &[Wanted]) -> Outcome {
        self.files().converge(wanted)
    }

    /// A replaced file has another inode.
    fn inodes(&self) -> Vec<u64> {
        let ino = |path: &String| std::fs::metadata(self.certs().join(path)).unwrap().ino();
        self.tree().keys().map(ino).collect()
    }

    fn tree(&self) -> Tree {
        let mut tree = Tree::new();
        for folder in std::fs::read_dir(self.certs()).unwrap().map(Result::unwrap) {
            let name = folder.file_name().into_string().unwrap();
            tree.insert(format!("{name}/"), String::new());
            if folder.file_type().unwrap().is_dir() {
                for file in std::fs::read_dir(folder.path()).unwrap().map(Result::unwrap) {
                    let text = std::fs::read_to_string(file.path()).unwrap();
                    tree.insert(format!("{name}/{}", file.file_name().into_string().unwrap()), text);
                }
            }
        }
        tree
    }
}

fn wanted(registry: &str) -> Wanted {
    wanted_with(registry, Server::Default)
}

fn wanted_with(registry: &str, server: Server) -> Wanted {
    let mirror = registry.replace(['.', ':'], "-");
    Wanted { registry: RegistryHost::parse(registry).unwrap(), entry: Entry { mirror, relay: RELAY.into(), server } }
}

fn block(mirror: &str) -> String {
    format!(
        "# Managed by Breakwater: RegistryMirror/{mirror}\n[host.\"{RELAY}\"]\ncapabilities = [\"pull\", \"resolve\"]\n\
         dial_timeout = \"1s\"\n"
    )
}

fn tree(files: &[(&str, &str)]) -> Tree {
    let mut tree = Tree::new();
    for (path, text) in files {
        let folder = path.split_inclusive('/').next().unwrap();
        tree.insert(folder.to_owned(), String::new());
        if *path != folder {
            tree.insert((*path).to_owned(), (*text).to_owned());
        }
    }
    tree
}

/// Existing files, what is wanted, expected files; and all of it taken back again, with and without the journal.
fn check(existing: &[(&str, &str)], registry: &str, expected: &[(&str, &str)]) {
    for lose_state in [false, true] {
        let node = Node::new(existing);
        let outcome = node.converge(&[wanted(registry)]);
        assert!(outcome.placed.values().all(Result::is_ok), "{outcome:?}");
        assert_eq!(node.tree(), tree(expected));
        let before = node.inodes();
        node.converge(&[wanted(registry)]);
        assert_eq!(node.tree(), tree(expected), "a second pass changes nothing");
        assert_eq!(before, node.inodes(), "and writes nothing");
        if lose_state {
            node.lose_state();
        }
        node.converge(&[]);
        assert_eq!(node.tree(), tree(existing), "given back (state lost: {lose_state})");
    }
}

#[test]
fn path_to_text() {
    let ours = block("docker-io");
    let theirs = "# corp\n[host.\"https://m.corp\"]\n";
    check(&[], "docker.io", &[("docker.io/hosts.toml", &ours)]);
    check(
        &[("ghcr.io/hosts.toml", theirs)],
        "docker.io",
        &[("docker.io/hosts.toml", &ours), ("ghcr.io/hosts.toml", theirs)],
    );
    check(
        &[("docker.io/hosts.toml", theirs), ("docker.io/ca.crt", "pem")],
        "docker.io",
        &[("docker.io/hosts.toml", &format!("{ours}{theirs}")), ("docker.io/ca.crt", "pem")],
    );
    let ported = block("r-example-5000");
    check(&[], "r.example:5000", &[("r.example:5000/hosts.toml", &ported)]);
    check(
        &[("r.example_5000_/hosts.toml", theirs), ("r.example:5000/hosts.toml", "x = 1\n")],
        "r.example:5000",
        &[("r.example_5000_/hosts.toml", &format!("{ported}{theirs}")), ("r.example:5000/hosts.toml", "x = 1\n")],
    );
}

#[test]
fn an_empty_folder_that_was_there_stays() {
    let node = Node::new(&[("docker.io/", "")]);
    node.converge(&[wanted("docker.io")]);
    node.converge(&[]);
    assert_eq!(node.tree(), tree(&[("docker.io/", "")]));
}

#[test]
fn hosts_of_the_default_folder_are_carried_over_and_follow_it() {
    let default = "[host.\"https://m.corp\"]\n";
    let node = Node::new(&[("_default/hosts.toml", default)]);
    node.converge(&[wanted("docker.io")]);
    assert_eq!(node.tree()["docker.io/hosts.toml"], format!("{}{default}", block("docker-io")));
    let changed = "[host.\"https://n.corp\"]\n";
    node.put("_default/hosts.toml", changed);
    node.converge(&[wanted("docker.io")]);
    assert_eq!(node.tree()["docker.io/hosts.toml"], format!("{}{changed}", block("docker-io")));
    node.converge(&[]);
    assert_eq!(node.tree(), tree(&[("_default/hosts.toml", changed)]));
}

#[test]
fn a_crash_while_following_the_default_folder_leaves_no_copy_of_it() {
    for steps in 0..8 {
        let node = Node::new(&[("_default/hosts.toml", "[host.\"https://m.corp\"]\n")]);
        node.converge(&[wanted("docker.io")]);
        let changed = "[host.\"https://n.corp\"]\n";
        node.put("_default/hosts.toml", changed);
        let mut files = node.files();
        STEPS.set(Some(steps));
        files.converge(&[wanted("docker.io")]);
        STEPS.set(None);
        node.converge(&[]);
        assert_eq!(node.tree(), tree(&[("_default/hosts.toml", changed)]), "after {steps} steps");
    }
}

#[test]
fn certificates_that_containerd_would_ignore_keep_us_away() {
    for existing in [
        [("docker.io/ca.crt", "pem")].as_slice(),
        &[("_default/ca.crt", "pem")],
        &[("_default/hosts.toml", "[host.\"https://m\"]\nca = \"ca.crt\"\n")],
    ] {
        let node = Node::new(existing);
        let outcome = node.converge(&[wanted("docker.io"), wanted("ghcr.io")]);
        let docker = outcome.placed[&RegistryHost::parse("docker.io").unwrap()].as_ref().unwrap_err();
        assert_eq!(docker.reason(), reason::CERTIFICATES_WITHOUT_HOSTS);
        node.converge(&[]);
        assert_eq!(node.tree(), tree(existing));
    }
    let node = Node::new(&[]);
    node.converge(&[wanted("docker.io")]);
    node.put("docker.io/ca.crt", "pem");
    node.converge(&[wanted("docker.io")]);
    assert_eq!(node.tree(), tree(&[("docker.io/ca.crt", "pem")]), "added later, they win too");
}

#[test]
fn what_others_change_under_our_feet_is_theirs() {
    let node = Node::new(&[("docker.io/hosts.toml", "# a\n")]);
    node.converge(&[wanted("docker.io")]);
    let edited = format!("{}# b\n[host.\"https://m\"]\n", node.tree()["docker.io/hosts.toml"]);
    node.put("docker.io/hosts.toml", &edited);
    node.converge(&[wanted("docker.io")]);
    assert_eq!(node.tree()["docker.io/hosts.toml"], edited);
    node.converge(&[]);
    assert_eq!(node.tree()["docker.io/hosts.toml"], "# a\n# b\n[host.\"https://m\"]\n");

    node.converge(&[wanted("docker.io")]);
    node.put("docker.io/hosts.toml", "# replaced\n");
    node.converge(&[wanted("docker.io")]);
    assert_eq!(node.tree()["docker.io/hosts.toml"], format!("{}# replaced\n", block("docker-io")));

    std::fs::remove_file(node.certs().join("docker.io/hosts.toml")).unwrap();
    node.converge(&[wanted("docker.io")]);
    assert_eq!(node.tree()["docker.io/hosts.toml"], block("docker-io"));
    node.converge(&[]);
    assert_eq!(node.tree(), tree(&[("docker.io/", "")]));
}

#[test]
fn unsafe_and_invalid_files_are_left_alone_and_stop_nobody_else() {
    let node = Node::new(&[
        ("linked.example/hosts.toml", "x = 1\n"),
        ("invalid.example/hosts.toml", "server ="),
        ("elsewhere/hosts.toml", "x = 1\n"),
        ("fifo.example/", ""),
    ]);
    std::fs::remove_file(node.certs().join("linked.example/hosts.toml")).unwrap();
    symlink("../elsewhere/hosts.toml", node.certs().join("linked.example/hosts.toml")).unwrap();
    symlink("elsewhere", node.certs().join("folder.example")).unwrap();
    symlink("elsewhere", node.certs().join("ported.example_5000_")).unwrap();
    let fifo = node.certs().join("fifo.example/hosts.toml");
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::from_raw_mode(0o600)).unwrap();
    node.put("large.example/hosts.toml", &"#".repeat(1024 * 1024 + 1));

    let names = [
        "linked.example",
        "invalid.example",
        "folder.example",
        "ported.example:5000",
        "fifo.example",
        "large.example",
        "docker.io",
    ];
    let outcome = node.converge(&names.map(wanted));
    let reasons: Vec<_> = names
        .iter()
        .map(|name| {
            outcome.placed[&RegistryHost::parse(name).unwrap()].as_ref().map_or_else(Fault::reason, |()| "placed")
        })
        .collect();
    let unsafe_path = reason::UNSAFE_PATH;
    let invalid = reason::FOREIGN_FILE_INVALID;
    assert_eq!(reasons, [unsafe_path, invalid, unsafe_path, unsafe_path, unsafe_path, unsafe_path, "placed"]);
    assert_eq!(std::fs::read_to_string(node.certs().join("elsewhere/hosts.toml")).unwrap(), "x = 1\n");
    assert!(node.certs().join("linked.example/hosts.toml").is_symlink());
}

#[test]
fn a_missing_folder_is_a_fault_of_each_registry() {
    let node = Node::new(&[]);
    std::fs::remove_dir(node.certs()).unwrap();
    let outcome = node.converge(&[wanted("docker.io"), wanted("ghcr.io")]);
    assert_eq!(outcome.placed.len(), 2);
    assert!(outcome.placed.values().all(|placed| placed.as_ref().is_err_and(|f| f.reason() == reason::WRITE_FAILED)));
}

#[test]
fn a_write_that_fails_leaves_nothing_behind() {
    let existing = [("ghcr.io/hosts.toml", "# theirs\n")];
    let node = Node::new(&existing);
    // Journal, folder, then each step of the write; the cleaning up that follows is not to fail as well.
    for failing in 1..=5 {
        let mut files = node.files();
        FAIL.set(Some(failing));
        let outcome = files.converge(&[wanted("docker.io")]);
        FAIL.set(None);
        assert_eq!(outcome.placed.values().filter(|placed| placed.is_err()).count(), 1, "step {failing}");
        assert_eq!(node.tree(), tree(&existing), "step {failing}");
    }
}

#[test]
fn a_damaged_journal_counts_as_lost() {
    let node = Node::new(&[("docker.io/hosts.toml", "# a\n")]);
    node.converge(&[wanted("docker.io"), wanted("ghcr.io")]);
    std::fs::write(node.root.path().join("state/files.json"), "{").unwrap();
    node.converge(&[]);
    assert_eq!(node.tree(), tree(&[("docker.io/hosts.toml", "# a\n")]));
}

#[derive(Clone, Debug)]
enum Step {
    Want(Vec<usize>, Server),
    GiveBack,
}

fn steps() -> impl Strategy<Value = Vec<(Step, Option<usize>)>> {
    let server = prop_oneof![Just(Server::Default), Just(Server::Relay), Just(Server::Url("https://u.example".into()))];
    let want = (prop::sample::subsequence(vec![0usize, 1, 2, 3], 0..=4), server).prop_map(|(w, s)| Step::Want(w, s));
    let step = prop_oneof![4 => want, 1 => Just(Step::GiveBack)];
    prop::collection::vec((step, prop::option::of(0usize..24)), 1..6)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    /// Whatever is wanted in turn, and wherever the process dies, containerd never sees anything but a file that was there
    /// or one that we meant, and in the end each node is as it was.
    #[test]
    fn a_crash_at_any_step_loses_nothing(steps in steps()) {
        let registries = ["docker.io", "ghcr.io", "r.example:5000", "quay.io"];
        let existing = [
            ("docker.io/hosts.toml", "# theirs\nserver = \"https://mine\"\n[host.\"https://m\"]\n"),
            ("ghcr.io/", ""),
            ("r.example_5000_/hosts.toml", ""),
            ("_default/hosts.toml", "[host.\"https://d\"]\n"),
        ];
        let node = Node::new(&existing);
        for (step, crash) in steps {
            let wanted = match &step {
                Step::Want(which, server) =>
                    which.iter().map(|i| wanted_with(registries[*i], server.clone())).collect(),
                Step::GiveBack => Vec::new(),
            };
            let mut files = node.files();
            STEPS.set(crash);
            files.converge(&wanted);
            STEPS.set(None);
            for (path, text) in node.tree() {
                if path.ends_with("hosts.toml") && !path.ends_with(".breakwater") {
                    prop_assert!(text.parse::<toml_edit::DocumentMut>().is_ok(), "{path}: {text}");
                    let theirs = existing.iter().find(|(p, _)| *p == path).map_or("", |(_, text)| *text);
                    prop_assert!(text == theirs || text.contains(RELAY), "{path}: {text}");
                }
            }
        }
        node.converge(&[]);
        prop_assert_eq!(node.tree(), tree(&existing));
    }
}
