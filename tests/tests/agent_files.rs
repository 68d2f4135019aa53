//! The node's files under the real agent and a real API server: others edit, remove and forbid them, disks are full, the
//! relay's port is taken.
#![cfg(feature = "cluster")]

use std::fs::Permissions;
use std::net::Ipv4Addr;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use breakwater_crds::{RegistryMirror, names};
use breakwater_tests::agent::Stage;
use breakwater_tests::cluster::until;
use breakwater_tests::product::snapshot;
use kube::Api;
use kube::api::{DeleteParams, ListParams};

const LIMIT: Duration = Duration::from_secs(30);
/// Far less than the agent's rescan takes: it was told.
const AT_ONCE: Duration = Duration::from_secs(8);
const FOREIGN: &str = "# by hand\n[host.'https://spare.test']\n";

#[tokio::test(flavor = "multi_thread")]
async fn what_others_do_to_the_files_is_mended_at_once() -> Result<()> {
    let stage = Stage::start().await?;
    stage.mirrors(&["docker.io", "ghcr.io"]).await?;
    let mut agent = stage.agent()?;
    stage.written("docker.io", LIMIT).await?;
    stage.written("ghcr.io", LIMIT).await?;

    let file = stage.hosts_toml("docker.io");
    // At one stroke: a file that is cut and not written yet is another that the agent would mend.
    let beside = stage.folder().join("by-hand.toml");
    std::fs::write(&beside, FOREIGN).context("write by hand")?;
    std::fs::rename(&beside, &file).context("put it in place")?;
    stage.written("docker.io", AT_ONCE).await?;
    ensure!(std::fs::read_to_string(&file).context("read")?.ends_with(FOREIGN));
    std::fs::remove_dir_all(stage.certs_d().join("ghcr.io")).context("remove a folder")?;
    stage.written("ghcr.io", AT_ONCE).await?;
    agent.logged("merged anew").await?;

    // In a container only a new process gets the new folder mounted.
    remove_certs_d(&stage).await?;
    let ended = agent.ended(AT_ONCE).await?;
    ensure!(ended.code() == Some(1), "{ended}");
    agent.logged("was removed or replaced").await?;
    std::fs::create_dir(stage.certs_d()).context("make certs.d anew")?;
    let agent = stage.agent()?;
    stage.written("docker.io", LIMIT).await?;
    stage.written("ghcr.io", LIMIT).await?;
    agent.stop().await?;
    stage.cluster.remove().await
}

/// Removes it though the agent may just be putting back what is gone.
async fn remove_certs_d(stage: &Stage) -> Result<()> {
    let is_gone = || std::fs::remove_dir_all(stage.certs_d()).is_ok() || !stage.certs_d().exists();
    until(AT_ONCE, "certs.d to be removed", async || Ok(is_gone().then_some(()))).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_folder_in_the_place_of_certs_d_is_filled_by_the_next_process() -> Result<()> {
    let stage = Stage::start().await?;
    stage.mirrors(&["docker.io"]).await?;
    // As in its Pod: what the mount of certs.d hides is the same folder, read-only.
    let mounts = format!(
        "mount --bind '{0}' '{0}'\nmount -o remount,bind,ro '{0}'\n\
         for each in certs.d state; do mount --bind \"{0}/$each\" \"{0}/$each\"; mount -o remount,bind,rw \"{0}/$each\"; done",
        stage.folder().display()
    );
    let mut agent = stage.agent_in(&mounts, &[])?;
    stage.written("docker.io", LIMIT).await?;
    // Many a file system gives the new folder the number of the old one.
    remove_certs_d(&stage).await?;
    std::fs::create_dir(stage.certs_d()).context("make certs.d anew")?;
    let ended = agent.ended(AT_ONCE).await?;
    ensure!(ended.code() == Some(1), "{ended}");
    agent.logged("was removed or replaced").await?;
    let mut agent = stage.agent_in(&mounts, &[])?;
    stage.written("docker.io", LIMIT).await?;

    // Without its state it can write nothing more.
    std::fs::remove_dir_all(stage.state()).context("remove the state folder")?;
    stage.mirrors(&["ghcr.io"]).await?;
    let ended = agent.ended(AT_ONCE).await?;
    ensure!(ended.code() == Some(1), "{ended}");
    agent.logged("state: the node's folder was removed or replaced").await?;
    std::fs::create_dir(stage.state()).context("make the state folder anew")?;
    let agent = stage.agent_in(&mounts, &[])?;
    stage.written("ghcr.io", LIMIT).await?;
    agent.stop().await?;
    stage.cluster.remove().await
}

#[tokio::test(flavor = "multi_thread")]
async fn hundreds_of_mirrors_are_written_soon_and_given_back() -> Result<()> {
    let stage = Stage::start().await?;
    let agent = stage.agent()?;
    stage.mirrors(&["docker.io"]).await?;
    stage.written("docker.io", LIMIT).await?;
    let registries: Vec<String> = (0..300).map(|i| format!("r{i}.example:5000")).collect();
    let names: Vec<&str> = registries.iter().map(String::as_str).collect();
    let applied = Instant::now();
    stage.mirrors(&names).await?;
    let accepted = applied.elapsed();
    for registry in &names {
        stage.written(registry, LIMIT).await?;
    }
    let later = applied.elapsed() - accepted;
    println!("300 mirrors: applied in {accepted:.1?}, written {later:.1?} later, {} KiB of memory", agent.memory()?);
    let applied = Instant::now();
    let mirrors: Api<RegistryMirror> = Api::all(stage.cluster.client());
    mirrors.delete_collection(&DeleteParams::default(), &ListParams::default()).await.context("delete the mirrors")?;
    let is_empty = || std::fs::read_dir(stage.certs_d()).is_ok_and(|mut entries| entries.next().is_none());
    until(LIMIT, "certs.d to be empty", async || Ok(is_empty().then_some(()))).await?;
    println!("given back {:.1?} after they were deleted", applied.elapsed());
    drop(agent);
    stage.cluster.remove().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_disk_refuses_is_said_and_mended_once_it_does_not() -> Result<()> {
    let stage = Stage::start().await?;
    stage.mirrors(&["docker.io"]).await?;
    let certs = stage.certs_d();
    let read_only = format!("mount --bind '{0}' '{0}'\nmount -o remount,bind,ro '{0}'", certs.display());
    let agent = stage.agent_in(&read_only, &[])?;
    stage.says_of("docker.io", "WriteFailed", "Read-only file system", LIMIT).await?;
    // Also where the API server that would take the status is away.
    agent.logged("file cannot be put in place").await?;
    agent.stop().await?;

    // A full disk takes neither what is to be given back nor, so, the file.
    let state = stage.state();
    let full =
        format!("mount -t tmpfs -o size=16k tmpfs '{0}'\nhead -c 16384 /dev/zero >'{0}/ballast'", state.display());
    let agent = stage.agent_in(&full, &[])?;
    stage.says_of("docker.io", "WriteFailed", "--state-dir", LIMIT).await?;
    ensure!(!stage.hosts_toml("docker.io").exists(), "a file without a record of it");
    std::fs::remove_file(agent.sees(&state)?.join("ballast")).context("make room")?;
    stage.written("docker.io", Duration::from_secs(45)).await?;
    agent.stop().await?;
    stage.cluster.remove().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_agent_may_not_keep_as_it_is_is_left_alone() -> Result<()> {
    let stage = Stage::start().await?;
    for registry in ["docker.io", "ghcr.io", "quay.io"] {
        std::fs::create_dir(stage.certs_d().join(registry)).context("make a folder by hand")?;
        std::fs::write(stage.hosts_toml(registry), FOREIGN).context("write by hand")?;
    }
    let owned = stage.hosts_toml("docker.io");
    chown(&owned, Some(1000), Some(1000)).context("give the file to somebody")?;
    let hidden = stage.hosts_toml("ghcr.io");
    std::fs::set_permissions(&hidden, Permissions::from_mode(0o000)).context("hide the file")?;
    chown(&hidden, Some(1000), Some(1000)).context("give the file to somebody")?;
    let linked = stage.hosts_toml("quay.io");
    std::fs::rename(&linked, stage.folder().join("elsewhere.toml")).context("move the file")?;
    symlink("../../elsewhere.toml", &linked).context("link to it")?;
    let before = snapshot(&stage.certs_d())?;
    stage.mirrors(&["docker.io", "ghcr.io", "quay.io"]).await?;

    // As its Pod is: root with one capability.
    let agent = stage.agent_in("exec setpriv --bounding-set=-all,+net_bind_service \"$@\"", &[])?;
    stage.says_of("docker.io", "WriteFailed", "keep the owner", LIMIT).await?;
    stage.says_of("ghcr.io", "WriteFailed", "Permission denied", LIMIT).await?;
    stage.says_of("quay.io", "UnsafePath", "symlink", LIMIT).await?;
    ensure!(snapshot(&stage.certs_d())? == before, "something changed");
    chown(&owned, Some(0), Some(0)).context("take the file back")?;
    stage.written("docker.io", AT_ONCE).await?;
    agent.stop().await?;
    stage.cluster.remove().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_taken_port_is_said_and_taken_over_once_it_is_free() -> Result<()> {
    let stage = Stage::start().await?;
    stage.mirrors(&["docker.io"]).await?;
    let agent = stage.agent()?;
    stage.written("docker.io", LIMIT).await?;
    agent.stop().await?;
    ensure!(stage.hosts_toml("docker.io").exists(), "an upgrade takes files away");

    let squatter = stage.cluster.listen(Ipv4Addr::LOCALHOST, names::RELAY_PORT).await?;
    let agent = stage.agent()?;
    stage.says_of("docker.io", "RelayPortTaken", "free the port", LIMIT).await?;
    // Nothing that a restart mends: the agent lives, and is not ready.
    ensure!(stage.ask("/healthz").await?.0 == 200 && stage.ask("/readyz").await?.0 == 503);
    stage.counts("breakwater_relay_listening 0", LIMIT).await?;
    until(LIMIT, "the file to be given back", async || Ok((!stage.hosts_toml("docker.io").exists()).then_some(())))
        .await?;
    drop(squatter);
    stage.written("docker.io", LIMIT).await?;
    stage
        .says("no port taken", LIMIT, |status| status.inactive.iter().all(|one| one.reason != "RelayPortTaken"))
        .await?;
    ensure!(stage.ask("/readyz").await?.0 == 200);
    drop(agent);
    stage.cluster.remove().await
}
