//! Pods of the tests: started, waited for, and how long their image took to come.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::{Event, Node, Pod, ServiceAccount};
use kube::api::{ListParams, PostParams};
use kube::{Api, Client};
use serde_json::json;
use tokio::time::Instant;

use super::Cluster;
use super::wait::until;

const NAMESPACE: &str = "default";
const EVENT_LIMIT: Duration = Duration::from_secs(30);

/// A pod that was created; it stays when this is dropped.
#[derive(Clone)]
pub struct TestPod {
    client: Client,
    name: String,
    uid: String,
    created: Instant,
}

/// How long a pod took to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PodStart {
    /// From its creation, or from when the wait began, until all its containers ran and were ready.
    pub total: Duration,
    /// What the kubelet says that pulling the image took; none if the image was there already.
    pub pull: Option<Duration>,
}

impl TestPod {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Waits until it runs and is ready.
    ///
    /// # Errors
    /// Fails after `limit`, with the pod's events.
    pub async fn running(&self, limit: Duration) -> Result<PodStart> {
        let mut start = wait_running(&self.client, NAMESPACE, &self.name, limit).await?;
        start.total = self.created.elapsed();
        start.pull = pull_time(&self.client, &self.uid).await?;
        Ok(start)
    }
}

impl Cluster {
    /// Creates a pod in the namespace `default` that runs an image as it is, on a certain node or where it fits.
    ///
    /// # Errors
    /// Fails when the API server refuses it.
    pub async fn run_pod(&self, name: &str, image: &str, node: Option<&str>) -> Result<TestPod> {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": name},
            "spec": {
                "nodeName": node,
                "terminationGracePeriodSeconds": 1,
                "automountServiceAccountToken": false,
                "enableServiceLinks": false,
                "dnsPolicy": "Default",
                "containers": [{"name": "app", "image": image, "imagePullPolicy": "IfNotPresent"}],
            },
        }))
        .context("describe a pod")?;
        let created = Instant::now();
        let client = self.client();
        let pod = Api::namespaced(client.clone(), NAMESPACE)
            .create(&PostParams::default(), &pod)
            .await
            .with_context(|| format!("create the pod {name}"))?;
        Ok(TestPod { client, name: name.to_owned(), uid: pod.metadata.uid.unwrap_or_default(), created })
    }

    /// Waits until a pod of any namespace runs and is ready.
    ///
    /// # Errors
    /// Fails after `limit`, with the pod's events.
    pub async fn wait_pod_running(&self, namespace: &str, name: &str, limit: Duration) -> Result<PodStart> {
        wait_running(&self.client(), namespace, name, limit).await
    }
}

async fn wait_running(client: &Client, namespace: &str, name: &str, limit: Duration) -> Result<PodStart> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let begun = Instant::now();
    let ready = until(limit, &format!("the pod {name} to run"), async || {
        // A pod of a StatefulSet may not exist yet; an API server under load may not answer in time.
        let pod = pods.get_opt(name).await.unwrap_or_default();
        Ok(pod.filter(is_ready).map(drop))
    })
    .await;
    if let Err(error) = ready {
        let events = events(client, namespace, &format!("involvedObject.name={name}")).await.unwrap_or_default();
        return Err(error.context(format!("--- events of {name}:\n{}", events.join("\n"))));
    }
    Ok(PodStart { total: begun.elapsed(), pull: None })
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    pod.metadata.deletion_timestamp.is_none()
        && conditions.into_iter().flatten().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

async fn events(client: &Client, namespace: &str, of: &str) -> Result<Vec<String>> {
    let api: Api<Event> = Api::namespaced(client.clone(), namespace);
    let ours = ListParams::default().fields(of);
    let list = api.list(&ours).await.context("list the events of a pod")?;
    Ok(list.items.into_iter().filter_map(|event| event.message).collect())
}

/// What the kubelet told about pulling the image of this pod, and of no earlier one of its name; its events come a moment later than the
/// status.
async fn pull_time(client: &Client, uid: &str) -> Result<Option<Duration>> {
    until(EVENT_LIMIT, "the kubelet's event about the image", async || {
        let events = events(client, NAMESPACE, &format!("involvedObject.uid={uid}")).await.unwrap_or_default();
        if let Some(took) = events.iter().find_map(|message| parse_pull(message)) {
            return Ok(Some(Some(took)));
        }
        let present = events.iter().any(|message| message.contains("already present on machine"));
        Ok(present.then_some(None))
    })
    .await
}

/// `Successfully pulled image "x" in 1.2s (1.3s including waiting). Image size: 7 bytes.`
fn parse_pull(message: &str) -> Option<Duration> {
    let (_, rest) = message.strip_prefix("Successfully pulled image ")?.split_once("\" in ")?;
    parse_go_duration(rest.split(' ').next()?)
}

/// Go's notation, such as `1m2.5s` or `812ms`.
fn parse_go_duration(text: &str) -> Option<Duration> {
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at(digits);
        let unit_end = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_end);
        let seconds = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        total += Duration::try_from_secs_f64(number.parse::<f64>().ok()? * seconds).ok()?;
        rest = tail;
    }
    Some(total)
}

/// Waits until `nodes` nodes are ready and pods can be made in the default namespace.
pub(super) async fn wait_until_usable(client: &Client, nodes: usize, limit: Duration) -> Result<()> {
    let api: Api<Node> = Api::all(client.clone());
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), NAMESPACE);
    until(limit, &format!("{nodes} ready nodes"), async || {
        // An API server under load may not answer in time.
        let Ok(all) = api.list(&ListParams::default()).await else { return Ok(None) };
        let ready = all.iter().filter(|node| takes_pods(node)).count();
        if ready > nodes {
            bail!("there are {ready} ready nodes, more than the {nodes} of the cluster");
        }
        let account = accounts.get_opt("default").await.unwrap_or_default();
        Ok((ready == nodes && account.is_some()).then_some(()))
    })
    .await
}

fn takes_pods(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
    taints.is_none_or(Vec::is_empty)
        && conditions.into_iter().flatten().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_a_pull_is_read_from_the_kubelets_words() {
        let message = r#"Successfully pulled image "registry-a.test/x:1" in 1m2.5s (1m3s including waiting). Image size: 7 bytes."#;
        assert_eq!(parse_pull(message), Some(Duration::from_millis(62_500)));
        assert_eq!(parse_pull("Pulling image \"x\""), None);
        assert_eq!(parse_go_duration("812ms"), Some(Duration::from_millis(812)));
        assert_eq!(parse_go_duration("12"), None);
        assert_eq!(parse_go_duration("1w"), None);
    }
}
