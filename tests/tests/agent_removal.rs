//! Each way in which an agent ends, by what it leaves on its node: an upgrade leaves everything, a removal nothing.
#![cfg(feature = "cluster")]

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use breakwater_tests::agent::{NODE, Stage};
use breakwater_tests::product::snapshot;

const LIMIT: Duration = Duration::from_secs(30);
const FOREIGN: &str = "# by hand, with\tan odd end\r\n[host.'https://spare.test']\ncapabilities = ['pull']";

/// Nothing of the agent's is on the node.
fn is_left(stage: &Stage, before: &breakwater_tests::product::Snapshot) -> Result<()> {
    ensure!(snapshot(&stage.certs_d())? == *before, "certs.d is not as before");
    let left = snapshot(&stage.state())?;
    ensure!(left.is_empty(), "the state folder holds {:?}", left.keys());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_leaves_everything_and_a_removal_nothing() -> Result<()> {
    let stage = Stage::start().await?;
    std::fs::create_dir(stage.certs_d().join("ghcr.io")).context("make a folder by hand")?;
    std::fs::write(stage.hosts_toml("ghcr.io"), FOREIGN).context("write a file by hand")?;
    let before = snapshot(&stage.certs_d())?;
    stage.mirrors(&["docker.io", "ghcr.io"]).await?;
    let start = async || {
        let agent = stage.agent()?;
        stage.written("docker.io", LIMIT).await?;
        stage.written("ghcr.io", LIMIT).await?;
        // The files of the one before may still be there.
        stage.counts("breakwater_relay_listening 1", LIMIT).await?;
        anyhow::Ok(agent)
    };
    let agent = start().await?;
    agent.stop().await?;
    ensure!(stage.hosts_toml("docker.io").exists(), "an upgrade takes files away");

    // The node is not one of the DaemonSet's any more.
    let daemon_set = ["-n", "breakwater-nodes", "patch", "ds", "breakwater-node-agent", "--type=merge", "-p"];
    let select = async |selector: &str| {
        let patch = format!(r#"{{"spec":{{"template":{{"spec":{{"nodeSelector":{selector}}}}}}}}}"#);
        stage.cluster.kubectl(&[&daemon_set[..], &[&patch]].concat()).await
    };
    let agent = start().await?;
    select(r#"{"zone":"b"}"#).await?;
    agent.stop().await?;
    is_left(&stage, &before).context("deselected")?;

    // Of a namespace that is deleted the Pods go first, while the DaemonSet is as it was.
    select("null").await?;
    let agent = start().await?;
    stage.cluster.kubectl(&["delete", "namespace", "breakwater-nodes", "--wait=false"]).await?;
    agent.stop().await?;
    is_left(&stage, &before).context("namespace deleted")?;
    stage.cluster.remove().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_loss_of_its_daemon_set_ends_an_agent_and_its_report() -> Result<()> {
    let stage = Stage::start().await?;
    let before = snapshot(&stage.certs_d())?;
    stage.mirrors(&["docker.io"]).await?;
    let agent = stage.agent()?;
    stage.written("docker.io", LIMIT).await?;
    stage.cluster.kubectl(&["-n", "breakwater-nodes", "delete", "ds", "breakwater-node-agent"]).await?;
    agent.stop().await?;
    is_left(&stage, &before).context("deleted")?;

    // Its last report went with it, or goes with the node.
    let nodes = stage.cluster.kubectl(&["get", "mirrornodes", "-o", "name"]).await?;
    ensure!(!nodes.contains(NODE), "{nodes}");
    stage.cluster.remove().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_loss_of_its_node_ends_an_agent() -> Result<()> {
    let stage = Stage::start().await?;
    let before = snapshot(&stage.certs_d())?;
    stage.mirrors(&["docker.io"]).await?;
    let agent = stage.agent()?;
    stage.written("docker.io", LIMIT).await?;
    stage.cluster.kubectl(&["delete", "node", NODE]).await?;
    ensure!(stage.hosts_toml("docker.io").exists(), "the machine pulls until its agent is stopped");
    agent.stop().await?;
    is_left(&stage, &before).context("its Node deleted")?;
    stage.cluster.remove().await
}
