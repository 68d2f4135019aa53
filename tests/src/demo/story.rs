//! The demo's story, in order: each chapter is a function, each claim a check.

use std::time::Instant;

use crate::cluster::{Node, until};
use crate::distribution::Request;
use crate::product::{CACHE_PROGRAM, Product, snapshot};
use anyhow::{Context, Result, ensure};

use super::report::{Report, seconds};
use super::stage::{POD_LIMIT, Stage};

/// Tells the whole story; the first claim that does not hold ends it.
pub(super) async fn tell(stage: &Stage, report: &mut Report) -> Result<()> {
    let direct = direct_pull(stage, report).await?;
    let product = install(stage, report).await?;
    pull_through_the_cache(stage, product, report).await?;
    outage(stage, product, report).await?;
    caches_fail(stage, product, report, direct).await?;
    removal(stage, product, report).await
}

fn nodes(stage: &Stage) -> Result<(&Node, &Node)> {
    Ok((stage.cluster.node("node-1")?, stage.cluster.node("node-2")?))
}

/// What a pull costs without Breakwater: the measure for every fall-back.
async fn direct_pull(stage: &Stage, report: &mut Report) -> Result<f64> {
    Report::chapter("Before: a pull straight from the registry");
    let start = stage.start("direct", "direct", nodes(stage)?.0).await?;
    let pull = start.pull.context("the image was there before it was pulled")?;
    report.held("a direct pull, for comparison", seconds(pull));
    Ok(pull.as_secs_f64())
}

async fn install<'a>(stage: &'a Stage, report: &mut Report) -> Result<Product<'a>> {
    Report::chapter("kubectl apply -k config/default, and two RegistryMirrors");
    let begun = Instant::now();
    let product = stage.install().await?;
    report.held("installed, both mirrors Ready", seconds(begun.elapsed()));
    Report::quote("kubectl get rmir,mirrornodes", &stage.cluster.kubectl(&["get", "rmir,mirrornodes"]).await?);
    let file = nodes(stage)?.0.certs_d().join(stage.b.registry()).join("hosts.toml");
    let text = std::fs::read_to_string(&file).context("read a node's hosts.toml")?;
    Report::quote(&format!("cat /etc/containerd/certs.d/{}/hosts.toml", stage.b.registry()), &text);
    ensure!(text.contains("Written by hand"), "the foreign file's comment is gone");
    ensure!(text.find("127.0.0.1:429") < text.find("the rack's own"), "the relay does not come first");
    Ok(product)
}

async fn pull_through_the_cache(stage: &Stage, product: Product<'_>, report: &mut Report) -> Result<()> {
    Report::chapter("A Pod starts on node-1 through the cache");
    let (log, before) = (stage.a.plain_log(), stage.a.plain_log().now()?);
    let start = stage.start("app-1", "app", nodes(stage)?.0).await?;
    stage.start("job-1", "job", nodes(stage)?.0).await?;
    let asked = log.since(before)?;
    let blobs = |agent: &str| asked.iter().filter(|request| is_blob(request, agent)).count();
    ensure!(blobs("containerd") == 0, "the node pulled past its cache: {asked:?}");
    ensure!(blobs("breakwater") > 0, "the cache asked for no blob: {asked:?}");
    let bytes =
        product.cache_metric("registry-a", "breakwater_cache_content_bytes_total", "source=\"upstream\"").await?;
    let misses = product.cache_metric("registry-a", "breakwater_cache_requests_total", "result=\"miss\"").await?;
    ensure!(bytes > 5e6 && misses > 0.0, "the cache's metrics know of {misses} misses and {bytes} bytes");
    report.held("first Pod on node-1, pulled through the cache", format!("{} in all", seconds(start.total)));
    let figure = format!("{} by the cache, 0 by nodes; {:.1} MiB", blobs("breakwater"), bytes / 1_048_576.0);
    report.held("blobs asked of the registry", figure);
    Ok(())
}

fn is_blob(request: &Request, agent: &str) -> bool {
    request.method == "GET" && request.path.contains("/blobs/") && request.agent.starts_with(agent)
}

async fn outage(stage: &Stage, product: Product<'_>, report: &mut Report) -> Result<()> {
    Report::chapter("Both registries stop");
    stage.stop_upstreams().await?;
    let (one, two) = nodes(stage)?;
    let a = stage.start("app-2", "app", two).await?;
    let b = stage.start("job-2", "job", two).await?;
    ensure!(a.pull.is_some() && b.pull.is_some(), "node-2 had the images already");
    report.held(
        "same images on node-2, which never had them, registries down",
        format!("{}, {}", seconds(a.total), seconds(b.total)),
    );

    product.signal(CACHE_PROGRAM, "KILL").await?;
    product.ready(POD_LIMIT).await?;
    for (pod, image) in [("app-1", "app"), ("job-1", "job")] {
        stage.cluster.kubectl(&["delete", "pod", pod, "--wait=true", "--grace-period=1"]).await?;
        one.remove_image(stage.image(image)?).await?;
    }
    let again = stage.start("app-3", "app", one).await?;
    ensure!(again.pull.is_some(), "node-1 still had the image");
    report.held("after kill -9 of the caches, still without registries", seconds(again.total));
    Ok(())
}

async fn caches_fail(stage: &Stage, product: Product<'_>, report: &mut Report, direct: f64) -> Result<()> {
    Report::chapter("The registries are back; now the caches hang, then vanish");
    stage.resume_upstreams().await?;
    let (one, two) = nodes(stage)?;
    product.signal(CACHE_PROGRAM, "STOP").await?;
    let compare = |pull: Option<std::time::Duration>| -> Result<String> {
        let pull = pull.context("the image was there before it was pulled")?;
        Ok(format!("pulled in {}, {:+.2} s against direct", seconds(pull), pull.as_secs_f64() - direct))
    };
    let first = stage.start("frozen-first", "frozen-first", one).await?;
    report.held("cache frozen, new image, first pull", compare(first.pull)?);
    let next = stage.start("frozen-next", "frozen-next", one).await?;
    report.held("cache frozen, new image, once noticed", compare(next.pull)?);

    let scale = async |workload: &str, replicas: &str| {
        stage.cluster.kubectl(&["-n", "breakwater-system", "scale", workload, replicas]).await
    };
    scale("deployment/breakwater-operator", "--replicas=0").await?;
    stage.cluster.kubectl(&["-n", "breakwater-system", "scale", "statefulset", "--all", "--replicas=0"]).await?;
    stage
        .cluster
        .kubectl(&[
            "-n",
            "breakwater-system",
            "delete",
            "pod",
            "-l",
            "app.kubernetes.io/name=breakwater-cache",
            "--force",
            "--grace-period=0",
            "--ignore-not-found",
        ])
        .await?;
    let gone = stage.start("gone", "gone", two).await?;
    report.held("caches and operator gone, new image", compare(gone.pull)?);
    scale("deployment/breakwater-operator", "--replicas=1").await?;
    let begun = Instant::now();
    product.ready(POD_LIMIT).await?;
    report.held("operator back: both mirrors Ready again", seconds(begun.elapsed()));
    Ok(())
}

async fn removal(stage: &Stage, product: Product<'_>, report: &mut Report) -> Result<()> {
    Report::chapter("kubectl delete rmir --all");
    let begun = Instant::now();
    stage.cluster.kubectl(&["delete", "rmir", "--all"]).await?;
    product.given_back(POD_LIMIT).await?;
    for node in stage.cluster.nodes() {
        let before = stage.before.get(node.name()).context("a node that was not there before")?;
        ensure!(&snapshot(&node.certs_d())? == before, "certs.d of {} is not as before", node.name());
    }
    report.held("certs.d of both nodes byte for byte as before", seconds(begun.elapsed()));
    until(POD_LIMIT, "the caches' objects to go", async || {
        let left = [
            "-n",
            "breakwater-system",
            "get",
            "statefulset,service,secret,pod",
            "-l",
            "app.kubernetes.io/name=breakwater-cache",
            "-o",
            "name",
        ];
        Ok(stage.cluster.kubectl(&left).await?.trim().is_empty().then_some(()))
    })
    .await?;
    report.held("StatefulSets, Services, Secrets and Pods of the caches gone", seconds(begun.elapsed()));
    Ok(())
}
