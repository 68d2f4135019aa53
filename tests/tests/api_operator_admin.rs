//! What the real operator says of itself: metrics, the log and its level, and that no secret is in either.
#![cfg(feature = "cluster")]

use anyhow::{Context, Result, ensure};
use breakwater_tests::api_proxy::Act;
use breakwater_tests::api_scene::{SETTLE, Scene};
use breakwater_tests::cluster::until;
use breakwater_tests::direct;
use breakwater_tests::operator::Operator;
use k8s_openapi::api::core::v1::Secret;
use kube::api::ListParams;
use reqwest::{Method, StatusCode};
use serde_json::Value;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

async fn ask(operator: &Operator, method: Method, path: &str, body: &'static str) -> Result<(StatusCode, String)> {
    let url = format!("http://{}{path}", operator.admin().await?);
    let answer = direct::client()?.request(method, url).body(body).send().await.context("ask the operator")?;
    Ok((answer.status(), answer.text().await.context("read its answer")?))
}

#[tokio::test(flavor = "multi_thread")]
async fn passes_and_failures_are_counted_by_what_became_of_them() -> Result<()> {
    let scene = Scene::start().await?;
    let mut refused = false;
    scene.door.treat(move |asked| {
        let first = asked.is_write() && asked.path.ends_with("/statefulsets/cache-docker-io") && !refused;
        refused |= first;
        if first { Act::Refuse(500, "InternalError", "later") } else { Act::Pass }
    });
    scene.mirror("docker-io", "{registry: docker.io}").await?;
    scene.mirror("younger", "{registry: docker.io}").await?;
    let operator = scene.operator("one")?;
    scene.condition("docker-io", "Ready", "False", "CacheStarting").await?;
    scene.condition("younger", "Ready", "False", "RegistryConflict").await?;
    // A status is there a moment before the pass that wrote it is over.
    let over = |text: &String| {
        let results = ["done", "refused", "failed"];
        results.iter().all(|it| !text.contains(&format!(r#"breakwater_reconcile_runs_total{{result="{it}"}} 0"#)))
    };
    let text =
        until(SETTLE, "the passes to be over", async || Ok(Some(operator.metrics().await?).filter(over))).await?;
    let value = |series: &str| {
        let line =
            text.lines().find(|line| line.starts_with(series)).with_context(|| format!("no {series} in\n{text}"))?;
        line.rsplit(' ')
            .next()
            .and_then(|value| value.parse::<f64>().ok())
            .with_context(|| format!("{line} has no value"))
    };
    for (series, least) in [
        (r#"breakwater_reconcile_runs_total{result="done"}"#, 1.0),
        (r#"breakwater_reconcile_runs_total{result="refused"}"#, 1.0),
        (r#"breakwater_reconcile_runs_total{result="failed"}"#, 1.0),
        (r#"breakwater_reconcile_errors_total{step="apply",category="server_error"}"#, 1.0),
        (r#"breakwater_leader"#, 1.0),
        (r#"breakwater_mirror_condition{name="younger",type="Ready",status="False"}"#, 1.0),
        (r#"breakwater_mirror_nodes{name="docker-io",state="desired"}"#, 0.0),
        // Ten years from now.
        (r#"breakwater_certificate_authority_expiry_timestamp_seconds"#, 2e9),
    ] {
        ensure!(value(series)? >= least, "{series} is {}", value(series)?);
    }
    ensure!(value(r#"breakwater_reconcile_errors_total{step="report",category="timeout"}"#)? < 0.5);
    operator.kill().await?;
    scene.cluster.remove().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_level_of_the_log_changes_on_demand_and_no_level_tells_secrets() -> Result<()> {
    let scene = Scene::start().await?;
    let operator = scene.operator("one")?;
    until(SETTLE, "the operator to lead", async || Ok(operator.log().contains("leading").then_some(()))).await?;
    ensure!(ask(&operator, Method::GET, "/log-level", "").await? == (StatusCode::OK, "info\n".to_owned()));
    for wrong in
        ["loud", "kube=trace", "", "breakwater_operator=trace,kube_client=trace,hyper=trace,and=more,than=a,level=is"]
    {
        let (status, said) = ask(&operator, Method::PUT, "/log-level", wrong).await?;
        ensure!(status == StatusCode::BAD_REQUEST, "{wrong:?}: {status} {said}");
    }
    ensure!(!operator.log().contains(r#""level":"DEBUG""#), "{}", operator.log());
    ensure!(ask(&operator, Method::PUT, "/log-level", "trace").await?.0 == StatusCode::OK);
    ensure!(ask(&operator, Method::GET, "/log-level", "").await?.1 == "trace\n");
    scene.mirror("docker-io", "{registry: docker.io}").await?;
    scene.condition("docker-io", "Ready", "False", "CacheStarting").await?;
    let lines: Vec<Value> = operator.log().lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let applied: Vec<_> = lines.iter().filter(|line| line["message"] == "applied").collect();
    ensure!(applied.len() > 3, "{applied:?}");
    for line in applied {
        let span = &line["span"];
        ensure!(
            span["mirror"] == "docker-io" && span["reconcile_id"].as_str().is_some_and(|id| id.len() == 16),
            "{line}"
        );
    }
    for secret in scene.system::<Secret>().list(&ListParams::default()).await.context("list the Secrets")? {
        for (key, value) in secret.data.unwrap_or_default() {
            let text = String::from_utf8_lossy(&value.0).into_owned();
            let telling = text.lines().find(|line| line.len() > 30 && !line.starts_with("---")).unwrap_or_default();
            let is_told = !telling.is_empty() && !key.ends_with(".crt") && operator.log().contains(telling);
            ensure!(!is_told, "the log tells {key} of {:?}", secret.metadata.name);
        }
    }
    operator.kill().await?;
    scene.cluster.remove().await
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_that_read_no_answer_keep_no_probe_from_its_own() -> Result<()> {
    /// More than there is room for.
    const SLOW: usize = 100;
    let scene = Scene::start().await?;
    let operator = scene.operator("one")?;
    let address = operator.admin().await?;
    // Far more than the kernel keeps for a reader that takes nothing.
    let questions = "GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n".repeat(5_000);
    let mut slow = Vec::new();
    for _ in 0..SLOW {
        let mut stream = TcpStream::connect(address).await.context("connect")?;
        // As much of it as is taken at once.
        let _ = tokio::time::timeout(Duration::from_millis(50), stream.write_all(questions.as_bytes())).await;
        slow.push(stream);
        let (status, _) = ask(&operator, Method::GET, "/healthz", "").await?;
        ensure!(status == StatusCode::OK, "after {} slow readers: {status}", slow.len());
    }
    operator.kill().await?;
    scene.cluster.remove().await
}
