//! Objects of the API server, and what the agent keeps of them.

use super::*;
use k8s_openapi::ByteString;
use serde_json::json;
use std::sync::Mutex;

fn slice(labels: &serde_json::Value, ports: &serde_json::Value) -> EndpointSlice {
    serde_json::from_value(json!({
        "metadata": {"name": "s", "labels": labels},
        "addressType": "IPv4",
        "ports": ports,
        "endpoints": [
            {"addresses": ["10.0.0.1"], "targetRef": {"name": "cache-docker-io-0"}, "conditions": {"ready": false}},
            {"addresses": ["not-an-address", "10.0.0.2"], "conditions": {"terminating": true}},
        ],
    }))
    .unwrap()
}

#[test]
fn a_slice_of_a_cache_is_read_whatever_its_readiness() {
    let labels = json!({"breakwater.dev/mirror": "hub", "kubernetes.io/service-name": "cache-docker-io"});
    let ports = json!([{"name": "admin", "port": 5001}, {"name": "tls", "port": 5000}]);
    let parsed = parse_slice(&slice(&labels, &ports)).unwrap();
    assert_eq!((parsed.mirror.as_str(), parsed.service.as_str()), ("hub", "cache-docker-io"));
    let found: Vec<_> =
        parsed.endpoints.iter().map(|e| (e.pod.as_str(), e.address.to_string(), e.terminating)).collect();
    assert_eq!(found, [("cache-docker-io-0", "10.0.0.1:5000".into(), false), ("", "10.0.0.2:5000".into(), true)]);

    for (labels, port) in [(json!({}), json!(5000)), (labels.clone(), json!(70000)), (labels, json!(null))] {
        assert_eq!(parse_slice(&slice(&labels, &json!([{"name": "tls", "port": port}]))), None);
    }
}

fn secret(data: &[(&str, &str)]) -> Secret {
    let data = data.iter().map(|(key, value)| ((*key).to_owned(), ByteString((*value).into()))).collect();
    Secret { data: Some(data), ..Secret::default() }
}

#[test]
fn a_bad_or_vanished_secret_takes_nothing_away() {
    let mut known = Known::default();
    let ca = rcgen::generate_simple_self_signed(vec!["x".into()]).unwrap().cert.pem();
    let key = "a".repeat(64);
    take_secret(&mut known, Change::Set(secret(&[("ca.crt", &ca), ("relay.key", &key)])));
    let good = known.clone();
    assert_eq!(good.trust.as_ref().map(|trust| &trust.ca), Some(&ca));
    for (ca, key) in [(ca.as_str(), "short"), ("no certificate", key.as_str())] {
        take_secret(&mut known, Change::Set(secret(&[("ca.crt", ca), ("relay.key", key)])));
    }
    take_secret(&mut known, Change::All(Vec::new()));
    take_secret(&mut known, Change::Gone(secret(&[])));
    assert_eq!(known, good);
}

fn mirror(spec: &serde_json::Value) -> DeserializeGuard<RegistryMirror> {
    let object = json!({"apiVersion": "breakwater.dev/v1alpha1", "kind": "RegistryMirror", "metadata": {"name": "hub"}, "spec": spec});
    serde_json::from_value(object).unwrap()
}

#[test]
fn a_mirror_that_cannot_be_read_stays_as_it_was() {
    let mut known = Known::default();
    let names = |known: &Known| known.mirrors.as_ref().map(|mirrors| mirrors.keys().cloned().collect::<Vec<_>>());
    assert_eq!(names(&known), None);
    let newer = || mirror(&json!({"registry": "docker.io", "nodes": {"fallback": "AFourthWay"}}));
    take_mirror(&mut known, Change::All(vec![newer()]));
    assert_eq!(names(&known), Some(vec![]), "it was not known before");
    take_mirror(&mut known, Change::Set(mirror(&json!({"registry": "docker.io", "aNewField": {"x": [1]}}))));
    let readable = known.clone();
    assert_eq!(names(&known), Some(vec!["hub".into()]));
    take_mirror(&mut known, Change::Set(newer()));
    take_mirror(&mut known, Change::All(vec![newer()]));
    assert_eq!(known, readable);
    take_mirror(&mut known, Change::Gone(newer()));
    assert_eq!(names(&known), Some(vec![]));
}

fn not_found() -> watcher::Error {
    let status = kube::core::Status { code: 404, reason: "NotFound".into(), ..Default::default() };
    watcher::Error::InitialListFailed(kube::Error::Api(Box::new(status)))
}

#[tokio::test(start_paused = true)]
async fn a_list_counts_once_it_is_complete_and_a_kind_once_it_is_long_gone() {
    let (to, mut from) = tokio::sync::mpsc::unbounded_channel();
    let events = futures::stream::iter([
        Ok(Event::Init),
        Ok(Event::InitApply(1)),
        Err(not_found()),
        Ok(Event::Init),
        Ok(Event::InitApply(2)),
        Ok(Event::InitDone),
        Ok(Event::Apply(3)),
    ])
    .chain(futures::stream::iter(0..60).map(|turn| if turn % 2 == 0 { Ok(Event::Init) } else { Err(not_found()) }));
    let started = Instant::now();
    follow("Numbers", Arc::default(), events, |change| {
        let text = match change {
            Change::All(all) => format!("all {all:?}"),
            Change::Set(one) => format!("set {one}"),
            Change::Gone(one) => format!("gone {one}"),
        };
        to.send((text, started.elapsed())).unwrap();
    })
    .await;
    drop(to);
    let mut seen = Vec::new();
    while let Some(change) = from.recv().await {
        seen.push(change);
    }
    let texts: Vec<_> = seen.iter().map(|(text, _)| text.as_str()).collect();
    assert_eq!(texts[..3], ["all [2]", "set 3", "all []"]);
    assert!(seen[2].1 >= KIND_GONE, "{seen:?}");
    assert!(started.elapsed() > PAUSE_MAX * 25, "thirty failures came within {:?}", started.elapsed());
}

#[tokio::test(start_paused = true)]
async fn an_upgrade_of_the_runtime_is_learned() {
    let versions = Arc::new(Mutex::new(vec!["containerd://2.2.0", "containerd://2.0.5"]));
    let service = tower::service_fn(move |_: http::Request<kube::client::Body>| {
        let version = versions.lock().unwrap().pop().unwrap();
        let info = [
            "architecture",
            "bootID",
            "kernelVersion",
            "kubeProxyVersion",
            "kubeletVersion",
            "machineID",
            "operatingSystem",
            "osImage",
            "systemUUID",
        ];
        let mut info: serde_json::Map<_, _> = info.into_iter().map(|key| (key.to_owned(), json!(""))).collect();
        info.insert("containerRuntimeVersion".into(), json!(version));
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"}, "status": {"nodeInfo": info}});
        let body = kube::client::Body::from(node.to_string().into_bytes());
        async move { Ok::<_, std::convert::Infallible>(http::Response::new(body)) }
    });
    let (known, mut news) = tokio::sync::watch::channel(Known::default());
    let learning = tokio::spawn(learn_runtime(Api::all(Client::new(service, "default")), "n".into(), known));
    for version in ["containerd://2.0.5", "containerd://2.2.0"] {
        news.changed().await.unwrap();
        assert_eq!(news.borrow_and_update().runtime_version.as_deref(), Some(version));
    }
    learning.abort();
}
