//! Whether a stop is an upgrade or the end: the agent asks for its own DaemonSet, namespace and Node.

use crate::known::Node;
use futures::future::join3;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Namespace, Node as NodeObject, NodeSelectorTerm};
use kube::{Api, Client};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::{sleep, timeout};

/// Well within the Pod's grace period, with time left to give the files back and to drain.
const ANSWER: Duration = Duration::from_secs(5);
const AGAIN: Duration = Duration::from_millis(300);

/// What a stop means for the node's files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Departure {
    /// Another agent comes: the files stay.
    Upgrade,
    /// None comes: every file is given back.
    End,
}

/// Asks the API server. One that does not answer tells nothing, and the files stay. So they do while the node is unknown.
pub async fn decide(
    client: Client,
    namespace: &str,
    daemon_set: &str,
    node_name: &str,
    node: Option<&Node>,
) -> Departure {
    let sets = Api::<DaemonSet>::namespaced(client.clone(), namespace);
    let namespaces = Api::<Namespace>::all(client.clone());
    let nodes = Api::<NodeObject>::all(client);
    let answers = join3(
        clear_answer(|| sets.get(daemon_set)),
        clear_answer(|| namespaces.get_metadata(namespace)),
        clear_answer(|| nodes.get_metadata(node_name)),
    );
    match answers.await {
        // A namespace loses its Pods first, and its DaemonSets only then.
        (_, Some(Ok(namespace)), _) if namespace.metadata.deletion_timestamp.is_some() => Departure::End,
        // No other agent comes to a Node that is gone. Should the machine join anew, that is another Node.
        (_, _, Some(Err(kube::Error::Api(status)))) if status.code == 404 => Departure::End,
        (Some(answer), _, _) => judge(answer.as_ref(), node),
        (None, _, _) => Departure::Upgrade,
    }
}

/// Asks until the answer is a clear one. An API server that struggles may give one next.
async fn clear_answer<T, F: Future<Output = kube::Result<T>>>(ask: impl Fn() -> F) -> Option<kube::Result<T>> {
    let asking = async {
        loop {
            match ask().await {
                Err(kube::Error::Api(status)) if [429, 503, 504].contains(&status.code) => sleep(AGAIN).await,
                answer => return answer,
            }
        }
    };
    timeout(ANSWER, asking).await.ok()
}

fn judge(answer: Result<&DaemonSet, &kube::Error>, node: Option<&Node>) -> Departure {
    match answer {
        Ok(daemon_set) if daemon_set.metadata.deletion_timestamp.is_some() => Departure::End,
        Ok(daemon_set) if node.is_some_and(|node| !selects(daemon_set, &node.labels)) => Departure::End,
        // Without the right to ask, what gave it is gone already.
        Err(kube::Error::Api(status)) if [401, 403, 404].contains(&status.code) => Departure::End,
        Ok(_) | Err(_) => Departure::Upgrade,
    }
}

/// Whether the DaemonSet wants a Pod on a node with these labels, as far as labels decide.
fn selects(daemon_set: &DaemonSet, labels: &BTreeMap<String, String>) -> bool {
    let Some(pod) = &daemon_set.spec.template.spec else { return true };
    let has = |(key, value): (&String, &String)| labels.get(key) == Some(value);
    let required = pod.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
    let required = required.and_then(|node| node.required_during_scheduling_ignored_during_execution.as_ref());
    pod.node_selector.iter().flatten().all(has)
        && required.is_none_or(|required| required.node_selector_terms.iter().any(|term| fits(term, labels)))
}

fn fits(term: &NodeSelectorTerm, labels: &BTreeMap<String, String>) -> bool {
    term.match_expressions.iter().flatten().all(|one| {
        let value = labels.get(&one.key);
        let is_named = value.is_some_and(|value| one.values.iter().flatten().any(|named| named == value));
        match one.operator.as_str() {
            "In" => is_named,
            "NotIn" => !is_named,
            "Exists" => value.is_some(),
            "DoesNotExist" => value.is_none(),
            // What is not understood here ends nothing.
            _ => true,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{Request, Response};
    use kube::client::Body;
    use std::sync::atomic::{AtomicU16, Ordering};

    #[test]
    fn only_a_clear_answer_ends_it() {
        let refused = |code| {
            let status = kube::core::Status { code, ..Default::default() };
            judge(Err(&kube::Error::Api(Box::new(status))), None)
        };
        for code in [401, 403, 404] {
            assert_eq!(refused(code), Departure::End, "{code}");
        }
        for code in [429, 500, 503] {
            assert_eq!(refused(code), Departure::Upgrade, "{code}");
        }
        let found = |metadata: &str| {
            let daemon_set: DaemonSet = serde_saphyr::from_str(&format!("{{metadata: {metadata}}}")).unwrap();
            judge(Ok(&daemon_set), None)
        };
        assert_eq!(found("{name: a}"), Departure::Upgrade);
        assert_eq!(found("{name: a, deletionTimestamp: '2026-01-01T00:00:00Z'}"), Departure::End);
    }

    /// What is decided where the API server answers so by the path that is asked for.
    async fn decided(answers: impl Fn(&str) -> (u16, &'static str) + Send + 'static) -> Departure {
        let service = tower::service_fn(move |request: Request<Body>| {
            let (code, body) = answers(request.uri().path());
            let body = match code {
                200 => body.to_owned(),
                _ => format!(r#"{{"kind":"Status","apiVersion":"v1","status":"Failure","code":{code}}}"#),
            };
            let answer = Response::builder().status(code).body(Body::from(body.into_bytes()));
            async move { answer }
        });
        decide(Client::new(service, "default"), "default", "agent", "node-1", None).await
    }

    #[tokio::test(start_paused = true)]
    async fn an_api_server_that_struggles_is_asked_again_for_some_seconds() {
        for (refusals, departure) in [(3, Departure::End), (100, Departure::Upgrade)] {
            let asked = AtomicU16::new(0);
            let answers = move |_: &str| (if asked.fetch_add(1, Ordering::Relaxed) < refusals { 503 } else { 404 }, "");
            assert_eq!(decided(answers).await, departure, "after {refusals} refusals");
        }
    }

    #[tokio::test]
    async fn a_node_that_is_gone_is_left() {
        const THERE: &str = r#"{"metadata":{"name":"a"}}"#;
        for (of_the_node, departure) in
            [(404, Departure::End), (200, Departure::Upgrade), (403, Departure::Upgrade), (500, Departure::Upgrade)]
        {
            let answers = move |path: &str| (if path == "/api/v1/nodes/node-1" { of_the_node } else { 200 }, THERE);
            assert_eq!(decided(answers).await, departure, "{of_the_node}");
        }
    }

    #[test]
    fn a_node_that_the_daemon_set_does_not_select_any_more_is_left() {
        let labels = [("zone".to_owned(), "a".to_owned())].into();
        let node = Node { uid: String::new(), labels };
        let departs = |pod: &str| {
            let daemon_set =
                format!("{{metadata: {{}}, spec: {{selector: {{}}, template: {{spec: {{containers: [], {pod}}}}}}}}}");
            judge(Ok(&serde_saphyr::from_str(&daemon_set).unwrap()), Some(&node))
        };
        let affinity = |terms: &str| {
            departs(&format!(
                "affinity: {{nodeAffinity: {{requiredDuringSchedulingIgnoredDuringExecution: {{nodeSelectorTerms: [{terms}]}}}}}}"
            ))
        };
        assert_eq!(departs("nodeSelector: {zone: a}"), Departure::Upgrade);
        assert_eq!(departs("nodeSelector: {zone: b}"), Departure::End);
        let term = |operator: &str, values: &str| {
            format!("{{matchExpressions: [{{key: zone, operator: {operator}, values: [{values}]}}]}}")
        };
        for (operator, values, departure) in [
            ("In", "a, b", Departure::Upgrade),
            ("In", "b", Departure::End),
            ("NotIn", "a", Departure::End),
            ("Exists", "", Departure::Upgrade),
            ("DoesNotExist", "", Departure::End),
            ("Gt", "'1'", Departure::Upgrade),
        ] {
            assert_eq!(affinity(&term(operator, values)), departure, "{operator} {values}");
        }
        assert_eq!(affinity(&format!("{}, {}", term("In", "b"), term("In", "a"))), Departure::Upgrade);
    }
}
