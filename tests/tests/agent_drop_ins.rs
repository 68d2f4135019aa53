//! The real containers/image library, which CRI-O and podman pull with, as skopeo: it reads the agent's drop-ins and pulls through
//! the relay.
#![cfg(feature = "cluster")]

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use breakwater_tests::agent::{Stage, token};
use breakwater_tests::binaries::{REGISTRY, binary};
use breakwater_tests::cache::Identity;
use breakwater_tests::distribution::{Distribution, DistributionConfig, PLAIN_PORT};
use breakwater_tests::images::Image;
use breakwater_tests::product::snapshot;

const LIMIT: Duration = Duration::from_secs(30);
const SERVICE: &str = "cache-test";

/// Starts the real cache of that registry, at the Pods' port.
async fn cache(stage: &Stage, upstream: &Distribution, identity: &Path) -> Result<breakwater_tests::cluster::Part> {
    let data = stage.folder().join("cache");
    std::fs::create_dir(&data).context("make the cache's folder")?;
    let text = |path: &Path| path.display().to_string();
    let arguments = [
        text(&binary(REGISTRY)),
        "--upstream-registry".to_owned(),
        format!("{}:{PLAIN_PORT}", upstream.address()),
        "--upstream-url".to_owned(),
        format!("http://{}:{PLAIN_PORT}", upstream.address()),
        "--data-dir".to_owned(),
        text(&data),
        "--listen".to_owned(),
        "127.0.0.1:5009".to_owned(),
        "--tls-listen".to_owned(),
        ":5000".to_owned(),
        "--tls-dir".to_owned(),
        text(&identity.join("tls")),
        "--token-dir".to_owned(),
        text(&identity.join("tokens")),
        "--tag-ttl".to_owned(),
        "1s".to_owned(),
    ];
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    stage.cluster.machine().spawn("cache", &arguments, &[], &stage.folder().join("cache.log")).await
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_image_pulls_through_the_relay_and_past_it() -> Result<()> {
    let stage = Stage::start().await?;
    let upstream = Distribution::start(&stage.cluster, DistributionConfig::at("registry-a.test")).await?;
    let pushed = upstream.push(&Image::busybox_app("team/app", 1, &[100_000])?).await?;
    let registry = format!("{}:{PLAIN_PORT}", upstream.address());
    let image = pushed.replace("registry-a.test", &registry);

    let (_identity, folder) = Identity::with_token(&token(SERVICE)?);
    stage.trust(&std::fs::read_to_string(folder.path().join("tls/ca.crt")).context("read the CA")?).await?;
    let _cache = cache(&stage, &upstream, folder.path()).await?;
    let mirror = format!(
        "{{apiVersion: breakwater.dev/v1alpha1, kind: RegistryMirror, metadata: {{name: by-address}}, \
          spec: {{registry: '{registry}', url: 'http://{registry}'}}}}"
    );
    stage.cluster.apply(&mirror).await?;
    stage.cache_at("by-address", SERVICE, stage.cluster.machine().address()).await?;

    // As an administrator left it.
    let containers = stage.folder().join("containers");
    let drop_ins = containers.join("registries.conf.d");
    std::fs::create_dir_all(&drop_ins).context("make registries.conf.d")?;
    std::fs::write(containers.join("registries.conf"), "unqualified-search-registries = ['docker.io']\n")?;
    std::fs::write(drop_ins.join("10-corp.conf"), format!("[[registry]]\nlocation = '{registry}'\ninsecure = true\n"))?;
    let before = snapshot(&containers)?;

    let agent = stage.agent_in("", &["--registries-conf-dir", &drop_ins.to_string_lossy()])?;
    stage.counts(&format!("breakwater_relay_cache_up{{registry=\"{registry}\"}} 1"), LIMIT).await?;
    stage.counts("breakwater_node_files{state=\"placed\"} 1", LIMIT).await?;
    let pull = async |to: &str| {
        let script = format!(
            "mount --bind '{}' /etc/containers\nexec skopeo copy --insecure-policy docker://{image} dir:{}",
            containers.display(),
            stage.folder().join(to).display()
        );
        stage.run(&script).await
    };
    pull("first").await?;
    // A manifest, a configuration and a layer at least; and the pull was the proof that the files are read.
    let (_, metrics) = stage.ask("/metrics").await?;
    let served = metrics.lines().find(|line| line.contains("\"served\"")).and_then(|line| line.rsplit_once(' '));
    ensure!(served.is_some_and(|(_, count)| count.parse().is_ok_and(|count: u32| count >= 3)), "{metrics}");
    stage.says("the mirror is active", LIMIT, |status| status.active == [registry.clone()]).await?;

    upstream.stop().await?;
    pull("in-an-outage").await?;
    upstream.resume(&stage.cluster).await?;

    stage.cluster.kubectl(&["-n", "breakwater-nodes", "delete", "ds", "breakwater-node-agent"]).await?;
    agent.stop().await?;
    ensure!(snapshot(&containers)? == before, "registries.conf.d is not as before");
    pull("without-an-agent").await?;
    stage.cluster.remove().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_is_gone_is_passed_by() -> Result<()> {
    let stage = Stage::start().await?;
    let upstream = Distribution::start(&stage.cluster, DistributionConfig::at("registry-a.test")).await?;
    let pushed = upstream.push(&Image::busybox_app("team/app", 1, &[100_000])?).await?;
    let registry = format!("{}:{PLAIN_PORT}", upstream.address());
    let containers = stage.folder().join("containers");
    let drop_ins = containers.join("registries.conf.d");
    std::fs::create_dir_all(&drop_ins).context("make registries.conf.d")?;
    let mirror = format!(
        "{{apiVersion: breakwater.dev/v1alpha1, kind: RegistryMirror, metadata: {{name: by-address}}, \
          spec: {{registry: '{registry}', url: 'http://{registry}'}}}}"
    );
    stage.cluster.apply(&mirror).await?;
    let agent = stage.agent_in("", &["--registries-conf-dir", &drop_ins.to_string_lossy()])?;
    stage.counts("breakwater_node_files{state=\"placed\"} 1", LIMIT).await?;
    let script = |to: &str| {
        format!(
            "mount --bind '{}' /etc/containers\nexec skopeo copy --insecure-policy docker://{} dir:{}",
            containers.display(),
            pushed.replace("registry-a.test", &registry),
            stage.folder().join(to).display()
        )
    };
    // The relay answers 503: it knows no address of the cache.
    stage.run(&script("refused")).await?;
    drop(agent);
    stage.run(&script("gone")).await?;
    stage.cluster.remove().await
}
