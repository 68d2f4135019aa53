//! What the simulated cluster consists of, as JSON. Pure; sizes are those of real objects, because sizes are what it is about.

use breakwater_crds::names::{LABEL_NAME, NODES_NAMESPACE};
use serde_json::{Value, json};

/// Pods of one Deployment.
const COPIES: usize = 25;
const TEAMS: usize = 20;
/// What a kubelet lists of the images on its node, at most.
const IMAGES_ON_NODE: usize = 50;

/// How large the cluster is.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// RegistryMirrors.
    pub mirrors: usize,
    /// Nodes, each with an agent's Pod and a MirrorNode.
    pub nodes: usize,
    /// Pods besides those of agents and caches.
    pub pods: usize,
}

/// A Deployment and where its Pods are.
pub(super) struct App {
    number: usize,
    size: Size,
}

impl Size {
    /// Deployments that own the Pods.
    #[must_use]
    pub fn apps(&self) -> usize {
        self.pods.div_ceil(COPIES)
    }

    pub(super) fn each_app(self) -> impl Iterator<Item = App> {
        (0..self.apps()).map(move |number| App { number, size: self })
    }

    /// How many images of this mirror's registry are in use.
    pub(super) fn images_of(&self, mirror: usize) -> usize {
        self.each_app().flat_map(|app| app.mirrors()).filter(|of| *of == mirror).count()
    }
}

impl App {
    /// Two containers, each with an image of its own and from another registry.
    fn mirrors(&self) -> [usize; 2] {
        [self.number % self.size.mirrors, (self.number * 7 + 3) % self.size.mirrors]
    }

    fn name(&self) -> String {
        format!("app-{:05}", self.number)
    }

    fn namespace(&self) -> String {
        team(self.number % TEAMS)
    }

    pub(super) fn path(&self, collection: &str) -> String {
        let group = if collection == "deployments" { "apis/apps/v1" } else { "api/v1" };
        format!("/{group}/namespaces/{}/{collection}", self.namespace())
    }

    fn template(&self) -> Value {
        let [main, side] = self.mirrors();
        let name = self.name();
        let main = container("main", &format!("{}/team/{name}:v1.{}.0", registry(main), self.number % 90));
        let side = container("side", &format!("{}/platform/side-{name}:2026.{}", registry(side), self.number % 12));
        json!({
            "metadata": {"labels": labels(&name), "annotations": {"checksum/config": "5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef"}},
            "spec": {
                "containers": [main, side],
                "tolerations": [{"key": "dedicated", "operator": "Equal", "value": "apps", "effect": "NoSchedule"}],
                "volumes": [{"name": "tmp", "emptyDir": {}}, {"name": "config", "configMap": {"name": name, "optional": true}}],
                "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "topology.kubernetes.io/zone", "whenUnsatisfiable": "ScheduleAnyway",
                                               "labelSelector": {"matchLabels": {"app.kubernetes.io/name": name}}}],
            },
        })
    }

    pub(super) fn deployment(&self) -> Value {
        let name = self.name();
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "labels": labels(&name)},
            "spec": {"replicas": COPIES, "selector": {"matchLabels": {"app.kubernetes.io/name": name}}, "template": self.template()},
        })
    }

    /// Its Pods, bound to nodes.
    pub(super) fn pods(&self) -> impl Iterator<Item = Value> {
        let (first, end) = (self.number * COPIES, self.size.pods.min((self.number + 1) * COPIES));
        let (template, name, nodes) = (self.template(), self.name(), self.size.nodes);
        (first..end).map(move |number| {
            let mut pod = template.clone();
            (pod["apiVersion"], pod["kind"]) = ("v1".into(), "Pod".into());
            pod["metadata"]["name"] = format!("{name}-6f7d9c5b8-{number:05}").into();
            pod["metadata"]["ownerReferences"] = owner("apps/v1", "ReplicaSet", &format!("{name}-6f7d9c5b8"));
            pod["spec"]["nodeName"] = node_name(number * 17 % nodes).into();
            pod
        })
    }
}

pub(super) fn teams() -> impl Iterator<Item = String> {
    (0..TEAMS).map(team)
}

pub(super) fn team(number: usize) -> String {
    format!("team-{number:02}")
}

pub(super) fn registry(mirror: usize) -> String {
    format!("registry-{mirror:02}.example.com")
}

pub(super) fn mirror_name(mirror: usize) -> String {
    format!("registry-{mirror:02}")
}

pub(super) fn node_name(node: usize) -> String {
    format!("ip-10-{}-{}-{}.internal", node >> 16, (node >> 8) & 255, node & 255)
}

pub(super) fn mirror(number: usize) -> Value {
    json!({"apiVersion": "breakwater.dev/v1alpha1", "kind": "RegistryMirror", "metadata": {"name": mirror_name(number)},
           "spec": {"registry": registry(number)}})
}

/// As large as a kubelet's, with the images on the node.
pub(super) fn node(number: usize) -> Value {
    let name = node_name(number);
    let images: Vec<_> = (0..IMAGES_ON_NODE)
        .map(|image| {
            let repository = format!("{}/team/app-{:05}", registry(image), (number + image) % 2000);
            json!({"names": [format!("{repository}@sha256:{:064x}", number * 64 + image), format!("{repository}:v1.0")], "sizeBytes": 80_000_000})
        })
        .collect();
    let mut labels = json!({
        "kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64", "beta.kubernetes.io/os": "linux",
        "topology.kubernetes.io/region": "eu-west-1", "topology.kubernetes.io/zone": format!("eu-west-1{}", ["a", "b", "c"][number % 3]),
        "node.kubernetes.io/instance-type": "m7i.4xlarge", "node.example.com/serial": format!("{number:08}"),
    });
    for extra in 0..12 {
        labels[format!("features.example.com/property-{extra:02}")] = format!("value-{}", number % 7).into();
    }
    json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}, "spec": {"podCIDR": "10.244.0.0/24"},
        "status": {"conditions": node_conditions("2026-11-21T10:00:00Z"), "images": images, "nodeInfo": node_info()},
    })
}

/// All that a heartbeat changes.
pub(super) fn node_conditions(heard: &str) -> Value {
    let condition = |kind: &str, status: &str| {
        json!({"type": kind, "status": status, "reason": "Kubelet", "message": "as the kubelet says",
               "lastHeartbeatTime": heard, "lastTransitionTime": "2026-11-21T10:00:00Z"})
    };
    json!([
        condition("MemoryPressure", "False"),
        condition("DiskPressure", "False"),
        condition("PIDPressure", "False"),
        condition("Ready", "True")
    ])
}

fn node_info() -> Value {
    let keys =
        "bootID machineID systemUUID kernelVersion osImage containerRuntimeVersion kubeletVersion kubeProxyVersion";
    let mut info: serde_json::Map<_, _> = keys.split(' ').map(|key| (key.to_owned(), json!("unknown"))).collect();
    info.extend([("operatingSystem".to_owned(), json!("linux")), ("architecture".to_owned(), json!("amd64"))]);
    info.into()
}

/// The Pod of a node's agent.
pub(super) fn agent(node: usize) -> Value {
    let mut metadata =
        json!({"name": format!("breakwater-node-agent-{node:05}"), "labels": {LABEL_NAME: "breakwater-node-agent"}});
    metadata["namespace"] = NODES_NAMESPACE.into();
    metadata["ownerReferences"] = owner("apps/v1", "DaemonSet", "breakwater-node-agent");
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata,
           "spec": {"nodeName": node_name(node), "hostNetwork": true, "containers": [container("agent", "breakwater.test/breakwater:1")]}})
}

pub(super) fn mirror_node(node: usize) -> Value {
    let mut metadata = json!({"name": node_name(node)});
    metadata["ownerReferences"] = owner("v1", "Node", &node_name(node));
    json!({"apiVersion": "breakwater.dev/v1alpha1", "kind": "MirrorNode", "metadata": metadata})
}

/// What an agent says while the caches of these mirrors do not answer, and the others do.
pub(super) fn report(size: Size, bypassed: impl Fn(usize) -> bool) -> Value {
    let all = || 0..size.mirrors;
    let active: Vec<_> = all().filter(|mirror| !bypassed(*mirror)).map(registry).collect();
    let inactive: Vec<_> = all()
        .filter(|mirror| bypassed(*mirror))
        .map(|mirror| {
            json!({"registry": registry(mirror), "state": "Bypassed", "reason": "CacheUnreachable", "since": "2026-11-21T10:00:00Z",
                   "message": format!("cache stopped answering; pulls go to the upstream: 10.244.{mirror}.7: connect: time-out after 1s")})
        })
        .collect();
    let condition = |kind: &str, status: bool| {
        json!({"type": kind, "status": if status { "True" } else { "False" }, "reason": "AllActive",
               "message": "pulls from registry-00.example.com, registry-01.example.com, registry-02.example.com and 47 more go through their caches",
               "lastTransitionTime": "2026-11-21T10:00:00Z"})
    };
    json!({"status": {
        "runtime": {"version": "containerd://2.4.2", "configPath": "/etc/containerd/certs.d"},
        "observed": {"mirrors": size.mirrors, "active": active.len()},
        "summary": format!("{}/{}", active.len(), size.mirrors),
        "conditions": [condition("Ready", inactive.is_empty()), condition("RuntimeConfigured", true)],
        "active": active, "inactive": inactive,
    }})
}

/// A Pod by itself, of an image that nobody else uses.
pub(super) fn newcomer(mirror: usize, number: usize) -> Value {
    let image = format!("{}/new/app-{number}:1", registry(mirror));
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": format!("newcomer-{number}"), "namespace": team(0)},
           "spec": {"containers": [container("main", &image)]}})
}

fn labels(name: &str) -> Value {
    json!({"app.kubernetes.io/name": name, "app.kubernetes.io/part-of": "shop", "app.kubernetes.io/managed-by": "Helm",
           "helm.sh/chart": "service-4.2.1", "example.com/cost-centre": "4711"})
}

fn owner(api: &str, kind: &str, name: &str) -> Value {
    json!([{"apiVersion": api, "kind": kind, "name": name, "uid": "00000000-0000-0000-0000-000000000001", "controller": true}])
}

fn container(name: &str, image: &str) -> Value {
    let env: Vec<_> = (0..12)
        .map(|n| json!({"name": format!("SETTING_{n}"), "value": format!("a value of a usual length, {n}")}))
        .collect();
    let probe = json!({"httpGet": {"path": "/healthz", "port": 8080}, "periodSeconds": 10, "timeoutSeconds": 2});
    json!({
        "name": name, "image": image, "args": ["--config=/etc/config/service.yaml", "--log-format=json"], "env": env,
        "livenessProbe": probe, "readinessProbe": probe,
        "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "512Mi"}},
        "securityContext": {"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]}},
    })
}
