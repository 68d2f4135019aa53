//! A certs.d with many mirrors, and one that others write to, remove or forbid at the same time.

use super::*;

fn many(count: usize) -> Vec<Wanted> {
    (0..count).map(|i| wanted(&format!("r{i}.example"))).collect()
}

/// Durable steps that one pass takes.
fn steps_of(files: &mut Files, wanted: &[Wanted]) -> usize {
    TAKEN.set(0);
    let outcome = files.converge(wanted);
    assert!(outcome.placed.values().all(Result::is_ok) && outcome.stuck.is_empty(), "{outcome:?}");
    TAKEN.get()
}

#[test]
fn hundreds_of_mirrors_cost_one_record_and_a_second_pass_costs_nothing() {
    let node = Node::new(&[]);
    let mut files = node.files();
    // One record; then for each mirror its folder and the four steps of a replacement.
    assert_eq!(steps_of(&mut files, &many(300)), 1 + 300 * 5);
    assert_eq!(steps_of(&mut files, &many(300)), 0);
    assert_eq!(steps_of(&mut files, &many(301)), 1 + 5, "one more is the work of one");
    // Each file and its folder, then one record.
    assert_eq!(steps_of(&mut files, &[]), 301 * 2 + 1);
    assert_eq!(node.tree(), tree(&[]));
}

#[test]
fn what_strayed_is_told_once() {
    let node = Node::new(&[("ghcr.io/hosts.toml", "# a\n")]);
    let mut files = node.files();
    let both = [wanted("docker.io"), wanted("ghcr.io")];
    assert!(files.converge(&both).mended.is_empty());
    node.put("ghcr.io/hosts.toml", "# b\n");
    std::fs::remove_dir_all(node.certs().join("docker.io")).unwrap();
    assert_eq!(files.converge(&both).mended, ["docker.io", "ghcr.io"]);
    assert!(files.converge(&both).mended.is_empty());
    files.converge(&[]);
    assert_eq!(node.tree(), tree(&[("ghcr.io/hosts.toml", "# b\n")]));
}

#[test]
fn what_could_not_be_written_has_not_strayed() {
    let node = Node::new(&[("ghcr.io/hosts.toml", "# a\n")]);
    let mut files = node.files();
    for is_failing in [true, true, false] {
        // The first step is the record.
        FAIL.set(is_failing.then_some(2));
        let outcome = files.converge(&[wanted("ghcr.io")]);
        let is_placed = outcome.placed.values().all(Result::is_ok);
        assert_eq!((is_placed, outcome.mended.is_empty()), (!is_failing, true), "{outcome:?}");
    }
}

#[test]
fn what_others_write_between_our_look_and_our_write_is_not_lost() {
    let node = Node::new(&[("docker.io/hosts.toml", "# a\n")]);
    let mut files = node.files();
    let root = CertsDir::open(&node.certs(), &mut First::default()).unwrap();
    let step = files.decide(&root, "docker.io".into(), &wanted("docker.io").entry).unwrap();
    node.put("docker.io/hosts.toml", "# b\n");
    assert!(matches!(files.carry_out(&root, step), Err(Fault::Changed)));
    assert_eq!(node.tree()["docker.io/hosts.toml"], "# b\n");

    // A folder that somebody makes meanwhile is not taken away again.
    let step = files.decide(&root, "ghcr.io".into(), &wanted("ghcr.io").entry).unwrap();
    node.put("ghcr.io/hosts.toml", "# c\n");
    assert!(matches!(files.carry_out(&root, step), Err(Fault::Changed)));
    assert_eq!(node.tree()["ghcr.io/hosts.toml"], "# c\n");
}

#[test]
fn a_folder_that_is_taken_away_is_not_taken_for_its_successor() {
    let node = Node::new(&[]);
    let held = std::fs::File::open(node.certs()).unwrap();
    let mut files = node.files();
    assert!(files.converge(&[wanted("docker.io")]).replaced().is_none());
    std::fs::remove_dir_all(node.certs()).unwrap();
    assert!(files.converge(&[wanted("docker.io")]).replaced().is_some());
    assert!(files.converge(&[]).replaced().is_some(), "what is owed is not forgotten");
    std::fs::create_dir(node.certs()).unwrap();
    assert!(files.converge(&[wanted("docker.io")]).replaced().is_some());
    assert_eq!(node.tree(), tree(&[]));
    assert!(node.converge(&[wanted("docker.io")]).replaced().is_none(), "a new process sees it for the first time");

    // As a mount keeps it, without a name.
    use std::os::fd::AsRawFd;
    let mount = PathBuf::from(format!("/proc/self/fd/{}", held.as_raw_fd()));
    let mut files = Files::open(&mount, &node.root.path().join("other"), RELAY).unwrap();
    assert!(files.converge(&[wanted("docker.io")]).replaced().is_some());
}

#[test]
fn without_certs_d_what_is_owed_stays_owed_and_is_told() {
    let node = Node::new(&[]);
    node.converge(&[wanted("docker.io"), wanted("r.example:5000")]);
    let aside = node.root.path().join("aside");
    std::fs::rename(node.certs(), &aside).unwrap();
    let outcome = node.converge(&[wanted("r.example:5000")]);
    assert_eq!(outcome.placed.len(), 1);
    let stuck: Vec<_> = outcome.stuck.iter().map(|(folder, _)| folder.as_str()).collect();
    assert_eq!(stuck, ["docker.io"]);
    std::fs::rename(&aside, node.certs()).unwrap();
    node.converge(&[]);
    assert_eq!(node.tree(), tree(&[]));
}
