//! Writes objects to an API server, many at a time, and reads nothing back that is not asked for.

use std::fmt::Write;

use anyhow::{Context, Result};
use futures::{Stream, StreamExt, TryStreamExt, stream};
use kube::Client;
use serde_json::{Value, json};

use super::objects::{self, Size};
use breakwater_crds::names::{NODES_NAMESPACE, SYSTEM_NAMESPACE};

/// More than this make the API server no faster.
const AT_ONCE: usize = 64;
const NODES: &str = "/api/v1/nodes";
const MIRRORS: &str = "/apis/breakwater.dev/v1alpha1/registrymirrors";
const MIRROR_NODES: &str = "/apis/breakwater.dev/v1alpha1/mirrornodes";

/// An API server, and how large what is in it is.
#[derive(Clone)]
pub(super) struct Writer {
    pub(super) client: Client,
    pub(super) size: Size,
}

impl Writer {
    /// Everything but mirrors: nodes with their agents, and what runs on them.
    pub(super) async fn fill(&self) -> Result<()> {
        let accounts = objects::teams().chain([SYSTEM_NAMESPACE.to_owned(), NODES_NAMESPACE.to_owned()]);
        for namespace in accounts {
            if namespace.starts_with("team-") {
                let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}});
                self.create("/api/v1/namespaces", &object).await?;
            }
            let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
            self.create(&format!("/api/v1/namespaces/{namespace}/serviceaccounts"), &account).await?;
        }
        self.all(stream::iter(0..self.size.nodes), async |node| self.node(node).await).await?;
        let apps = self.size.each_app().flat_map(|app| {
            let (deployments, pods) = (app.path("deployments"), app.path("pods"));
            let deployment = std::iter::once((deployments, app.deployment()));
            deployment.chain(app.pods().map(move |pod| (pods.clone(), pod)).collect::<Vec<_>>())
        });
        self.all(stream::iter(apps), async |(path, object)| self.create(&path, &object).await).await
    }

    async fn node(&self, node: usize) -> Result<()> {
        self.create(NODES, &objects::node(node)).await?;
        let (pods, agent) = (format!("/api/v1/namespaces/{NODES_NAMESPACE}/pods"), objects::agent(node));
        self.create(&pods, &agent).await?;
        let ready = json!({"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}});
        let name = agent["metadata"]["name"].as_str().context("a Pod has a name")?;
        self.patch(&format!("{pods}/{name}/status"), &ready).await?;
        self.create(MIRROR_NODES, &objects::mirror_node(node)).await?;
        self.report(node, |_| false).await
    }

    pub(super) async fn mirrors(&self) -> Result<()> {
        self.all(stream::iter(0..self.size.mirrors), async |mirror| {
            self.create(MIRRORS, &objects::mirror(mirror)).await
        })
        .await
    }

    /// What a node's agent writes.
    pub(super) async fn report(&self, node: usize, bypassed: impl Fn(usize) -> bool) -> Result<()> {
        let report = objects::report(self.size, bypassed);
        self.patch(&format!("{MIRROR_NODES}/{}/status", objects::node_name(node)), &report).await
    }

    /// What a node's kubelet writes every five minutes.
    pub(super) async fn heartbeat(&self, node: usize) -> Result<()> {
        let conditions = objects::node_conditions(&jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
        self.patch(
            &format!("{NODES}/{}/status", objects::node_name(node)),
            &json!({"status": {"conditions": conditions}}),
        )
        .await
    }

    pub(super) async fn newcomer(&self, mirror: usize, number: usize) -> Result<()> {
        let path = format!("/api/v1/namespaces/{}/pods", objects::team(0));
        self.create(&path, &objects::newcomer(mirror, number)).await
    }

    /// Changes the spec of a mirror in a way that its cache must follow.
    pub(super) async fn edit(&self, mirror: usize, seconds: usize) -> Result<()> {
        let spec = json!({"spec": {"freshness": {"tagTTL": format!("{seconds}s")}}});
        self.patch(&format!("{MIRRORS}/{}", objects::mirror_name(mirror)), &spec).await
    }

    /// Does the same for each, many at a time, until one fails.
    pub(super) async fn all<T>(&self, items: impl Stream<Item = T>, each: impl AsyncFn(T) -> Result<()>) -> Result<()> {
        let each = &each;
        items.map(|item| each(item)).buffer_unordered(AT_ONCE).try_collect().await
    }

    async fn create(&self, path: &str, object: &Value) -> Result<()> {
        self.send(http::Method::POST, path, "application/json", object).await
    }

    pub(super) async fn patch(&self, path: &str, change: &Value) -> Result<()> {
        self.send(http::Method::PATCH, path, "application/merge-patch+json", change).await
    }

    async fn send(&self, method: http::Method, path: &str, kind: &str, body: &Value) -> Result<()> {
        let mut what = String::new();
        let _ = write!(what, "{method} {path}");
        let request = http::Request::builder().method(method).uri(path).header(http::header::CONTENT_TYPE, kind);
        let request = request.body(body.to_string().into_bytes()).context("make a request")?;
        self.client.request_text(request).await.map(drop).context(what)
    }
}
