//! The harness's own proof: what it promises about clusters holds.
#![cfg(feature = "cluster")]

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use breakwater_tests::cluster::{Cluster, ClusterConfig, until};
use breakwater_tests::distribution::{Distribution, DistributionConfig, PLAIN_PORT};
use breakwater_tests::images::Image;

const LIMIT: Duration = Duration::from_secs(60);
const END_LIMIT: Duration = Duration::from_secs(10);

fn two_nodes() -> ClusterConfig {
    ClusterConfig { nodes: 2, ..ClusterConfig::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_are_pulled_from_an_upstream_and_survive_a_power_cut() -> Result<()> {
    let cluster = Cluster::start(two_nodes()).await?;
    let upstream = Distribution::start(&cluster, DistributionConfig::at("registry-a.test")).await?;
    let image = Image::busybox_app("team/app", 1, &[300_000])?;
    let reference = upstream.push(&image).await?;
    let before = upstream.direct_log().now()?;

    for node in ["node-1", "node-2"] {
        let pod = cluster.run_pod(&format!("on-{node}"), &reference, Some(node)).await?;
        let start = pod.running(LIMIT).await?;
        ensure!(start.pull.is_some_and(|pull| pull <= start.total), "{node} did not pull: {start:?}");
    }
    let asked = upstream.direct_log().since(before)?;
    for layer in image.layers() {
        let path = format!("/v2/team/app/blobs/{layer}");
        let times = asked.iter().filter(|request| request.path == path && request.status == 200).count();
        ensure!(times == 2, "{path} was asked for {times} times, not once by each node: {asked:?}");
    }

    let node = cluster.node("node-1")?;
    node.power_off().await?;
    ensure!(node.exec(&["true"]).await.is_err(), "a machine without power runs programs");
    node.power_on().await?;
    until(LIMIT, "the pod to run again", async || {
        Ok(cluster.kubectl(&["exec", "on-node-1", "--", "/bin/sh", "-c", "true"]).await.ok())
    })
    .await?;
    cluster.remove().await
}

#[tokio::test(flavor = "multi_thread")]
async fn claims_get_a_volume_on_the_node_of_their_pod() -> Result<()> {
    let cluster = Cluster::start(two_nodes()).await?;
    let upstream = Distribution::start(&cluster, DistributionConfig::at("registry-b.test:5000")).await?;
    let reference = upstream.push(&Image::busybox_app("app", 2, &[])?).await?;
    cluster.apply(&stateful_set(&reference)).await?;
    for pod in ["writer-0", "writer-1"] {
        cluster.wait_pod_running("default", pod, LIMIT).await?;
        let script = "echo kept >/data/file && /bin/busybox cat /data/file";
        let read = cluster.kubectl(&["exec", pod, "--", "/bin/sh", "-c", script]).await?;
        ensure!(read == "kept\n", "{pod} read {read:?}");
    }
    // Other names are resolved by the cluster's name server too, from pods as well as from nodes.
    let lookup = ["exec", "writer-0", "--", "/bin/busybox", "nslookup", "registry-b.test"];
    let found = cluster.kubectl(&lookup).await?;
    ensure!(found.contains(&upstream.address().to_string()), "{found}");
    cluster.remove().await
}

/// Two pods on two nodes, each writing to its volume as the user that Breakwater's images have.
fn stateful_set(image: &str) -> String {
    serde_json::json!({
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": {"name": "writer", "namespace": "default"},
        "spec": {
            "replicas": 2,
            "serviceName": "writer",
            "selector": {"matchLabels": {"app": "writer"}},
            "template": {
                "metadata": {"labels": {"app": "writer"}},
                "spec": {
                    "dnsPolicy": "Default",
                    "securityContext": {"runAsUser": 65532, "runAsNonRoot": true},
                    "topologySpreadConstraints": [{
                        "maxSkew": 1,
                        "topologyKey": "kubernetes.io/hostname",
                        "whenUnsatisfiable": "DoNotSchedule",
                        "labelSelector": {"matchLabels": {"app": "writer"}},
                    }],
                    "containers": [{
                        "name": "app",
                        "image": image,
                        "volumeMounts": [{"name": "data", "mountPath": "/data"}],
                    }],
                },
            },
            "volumeClaimTemplates": [{
                "metadata": {"name": "data"},
                "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
            }],
        },
    })
    .to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_can_stop_hang_and_vanish_from_the_network() -> Result<()> {
    let cluster = Cluster::start(ClusterConfig::default()).await?;
    let upstream = Distribution::start(&cluster, DistributionConfig::at("registry-a.test")).await?;
    let node = cluster.node("node-1")?;
    // With bash alone, because a node has the programs of the machine that the tests run on.
    let request = format!(
        r"exec 3<>/dev/tcp/{}/{PLAIN_PORT}; printf 'GET /v2/ HTTP/1.0\r\n\r\n' >&3; read -r status <&3; [[ $status == *200* ]]",
        upstream.address()
    );
    let arguments = ["timeout", "3", "bash", "-euc", &request];
    let fetch = || node.exec(&arguments);

    fetch().await?;
    upstream.freeze().await?;
    let silent = fetch().await.err().map(|error| format!("{error:#}")).unwrap_or_default();
    ensure!(silent.contains("exit status: 124"), "a frozen registry answers: {silent}");
    upstream.thaw().await?;
    fetch().await?;

    upstream.stop().await?;
    let refused = fetch().await.err().map(|error| format!("{error:#}")).unwrap_or_default();
    ensure!(refused.contains("refused"), "a killed registry does not refuse: {refused}");
    upstream.resume(&cluster).await?;
    fetch().await?;

    let machine = node.machine()?;
    machine.drop_packets_to(upstream.address()).await?;
    let silent = fetch().await.err().map(|error| format!("{error:#}")).unwrap_or_default();
    ensure!(silent.contains("exit status: 124"), "a black hole answers: {silent}");
    machine.heal_network().await?;
    fetch().await?;
    cluster.remove().await
}

#[tokio::test(flavor = "multi_thread")]
async fn removal_leaves_nothing_behind() -> Result<()> {
    let cluster = Cluster::start(ClusterConfig::default()).await?;
    let (name, state) = (cluster.name().to_owned(), cluster.state().to_owned());
    let upstream = Distribution::start(&cluster, DistributionConfig::at("registry-a.test")).await?;
    let reference = upstream.push(&Image::busybox_app("app", 3, &[])?).await?;
    cluster.run_pod("app", &reference, Some("node-1")).await?.running(LIMIT).await?;
    ensure!(!traces(&name, &state)?.is_empty(), "the search for traces finds none of a living cluster");
    let machines = [cluster.machine(), &cluster.node("node-1")?.machine()?, upstream.host().machine()];
    let process = |init: u32| Path::new("/proc").join(init.to_string());
    let namespaces: Vec<_> = machines.iter().flat_map(|machine| namespaces_of(&process(machine.init()))).collect();
    ensure!(namespaces.len() == 9, "three machines have three namespaces each, not {namespaces:?}");

    cluster.remove().await?;
    nothing_left(|| traces(&name, &state)).await?;
    nothing_left(|| Ok(all_namespaces()?.into_iter().filter(|id| namespaces.contains(id)).collect())).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_removes_the_cluster_too() -> Result<()> {
    let cluster = Cluster::control_plane_only().await?;
    let (name, state) = (cluster.name().to_owned(), cluster.state().to_owned());
    let task = tokio::spawn(async move {
        let _owned = cluster;
        panic!("as a failing test does");
    });
    ensure!(task.await.is_err_and(|error| error.is_panic()), "the task did not panic");
    nothing_left(|| traces(&name, &state)).await
}

/// A program of this process's that entered a namespace ends a moment after the namespace.
async fn nothing_left(look: impl Fn() -> Result<Vec<String>>) -> Result<()> {
    let mut left = Vec::new();
    let gone = until(END_LIMIT, "nothing to be left behind", async || {
        left = look()?;
        Ok(left.is_empty().then_some(()))
    });
    gone.await.with_context(|| format!("left behind: {left:?}"))
}

/// Processes, cgroups, mounts and files that carry a cluster's name.
fn traces(name: &str, state: &Path) -> Result<Vec<String>> {
    let mut traces = Vec::new();
    if state.exists() {
        traces.push(state.display().to_string());
    }
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&command).contains(name) {
            traces.push(format!("process {}", entry.file_name().to_string_lossy()));
        }
    }
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    traces.extend(mounts.lines().filter(|line| line.contains(name)).map(str::to_owned));
    let cgroups = Command::new("find").args(["/sys/fs/cgroup", "-type", "d", "-name", name]).output()?;
    traces.extend(String::from_utf8_lossy(&cgroups.stdout).lines().map(str::to_owned));
    Ok(traces)
}

/// The namespaces of every process.
fn all_namespaces() -> Result<Vec<String>> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir("/proc")?.flatten() {
        all.extend(namespaces_of(&entry.path()));
    }
    Ok(all)
}

fn namespaces_of(process: &Path) -> Vec<String> {
    let read = |kind: &str| std::fs::read_link(process.join("ns").join(kind)).ok();
    ["net", "mnt", "pid"].into_iter().filter_map(read).map(|link| link.display().to_string()).collect()
}
