//! What would be written and what is given back, in folders of their own.

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
fn what_is_refused_on_the_node_is_refused_in_the_plan() {
    let dir = TempDir::new().unwrap();
    let folder = dir.path().join("certs.d/docker.io");
    std::fs::create_dir_all(&folder).unwrap();
    mkfifoat(CWD, folder.join(HOSTS_TOML), Mode::RUSR).unwrap();
    let told = plan(plan_args(&dir, &[])).unwrap();
    assert_eq!(told.text, "# 0 unchanged\n");
    assert!(told.troubles.iter().any(|trouble| trouble.starts_with("docker.io: ")), "{:?}", told.troubles);
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

#[test]
fn a_drop_in_that_is_taken_back_leaves_no_state_folder() {
    let dir = TempDir::new().unwrap();
    let args = plan_args(&dir, &[]).node;
    durable::make_folder(&args.state_dir).unwrap();
    let record = serde_json::json!({"path": dir.path().join("99-breakwater.toml"), "life": null, "takenBack": null});
    std::fs::write(args.state_dir.join(durable::RUNTIME), record.to_string()).unwrap();
    let told = restore(&args).unwrap();
    assert!(told.troubles.is_empty(), "{:?}", told.troubles);
    assert!(!args.state_dir.exists());
}
