//! The cgroup below which a node's kubelet puts its pods, in version 1, version 2 and hybrid set-ups.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::cluster::wait::until;

const ROOT: &str = "/sys/fs/cgroup";
const LIMIT: Duration = Duration::from_secs(10);
/// A new cpuset of version 1 is empty, and no process can enter it.
const INHERITED: &[&str] = &["cpuset.cpus", "cpuset.mems"];

/// Makes the cgroup `path` in every hierarchy that has controllers.
pub(super) fn make(path: &str) -> Result<()> {
    for hierarchy in hierarchies()? {
        let mut folder = hierarchy;
        for step in path.split('/').filter(|step| !step.is_empty()) {
            let child = folder.join(step);
            pass_controllers_down(&folder);
            fs::create_dir_all(&child).with_context(|| format!("make the cgroup {}", child.display()))?;
            inherit(&folder, &child)?;
            folder = child;
        }
    }
    Ok(())
}

/// Takes the cgroup `path` and all below it out of every hierarchy, as a reboot does; the kubelet spends seconds on each
/// container's cgroup that it finds without a container.
pub(super) async fn remove(path: &str) -> Result<()> {
    until(LIMIT, "a node's cgroups to be empty", async || {
        // All hierarchies, those without controllers included: runc makes a container's cgroup in each.
        let entries = fs::read_dir(ROOT).with_context(|| format!("list {ROOT}"))?;
        let roots = entries.flatten().map(|entry| entry.path()).chain([PathBuf::from(ROOT)]);
        let folders = roots.map(|root| root.join(path.trim_start_matches('/'))).filter(|folder| folder.is_dir());
        // A busy one is tried again: killed processes leave it a moment later than their PID namespace.
        let left = folders.filter(|folder| remove_tree(folder).is_err()).count();
        Ok((left == 0).then_some(()))
    })
    .await
}

fn remove_tree(folder: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(folder)?.flatten() {
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(folder)
}

fn hierarchies() -> Result<Vec<PathBuf>> {
    if Path::new(ROOT).join("cgroup.controllers").exists() {
        return Ok(vec![PathBuf::from(ROOT)]);
    }
    let entries = fs::read_dir(ROOT).with_context(|| format!("list {ROOT}"))?;
    // Only version 1 has a file `tasks`; the version 2 part of a hybrid set-up has no controllers.
    Ok(entries.flatten().map(|entry| entry.path()).filter(|path| path.join("tasks").exists()).collect())
}

/// Version 2 only: children get the controllers that their parent passes on.
fn pass_controllers_down(folder: &Path) {
    let Ok(controllers) = fs::read_to_string(folder.join("cgroup.controllers")) else { return };
    for controller in controllers.split_whitespace() {
        // One that cannot be passed on, such as a busy realtime cpu controller, must not keep back the others.
        let _ = fs::write(folder.join("cgroup.subtree_control"), format!("+{controller}"));
    }
}

fn inherit(parent: &Path, child: &Path) -> Result<()> {
    for file in INHERITED {
        let (from, to) = (parent.join(file), child.join(file));
        let is_empty = fs::read_to_string(&to).is_ok_and(|value| value.trim().is_empty());
        if is_empty && !child.join("cgroup.controllers").exists() {
            let value = fs::read_to_string(&from).with_context(|| format!("read {}", from.display()))?;
            fs::write(&to, value).with_context(|| format!("write {}", to.display()))?;
        }
    }
    Ok(())
}
