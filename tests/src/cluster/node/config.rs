//! The configuration files of a node's parts. Pure; each setting that is not obvious says why.

use std::path::Path;

use serde_json::json;

/// containerd 2.x.
pub(super) fn containerd(pause_image: &str) -> String {
    format!(
        r#"version = 3

[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = "{pause_image}"

# One folder: containerd's default of two is not split when the transfer service pulls.
[plugins.'io.containerd.cri.v1.images'.registry]
  config_path = "/etc/containerd/certs.d"

[plugins.'io.containerd.cri.v1.runtime']
  # Lowering a score needs CAP_SYS_RESOURCE, which not every machine gives to root.
  restrict_oom_score_adj = true

[plugins.'io.containerd.cri.v1.runtime'.cni]
  bin_dirs = ["/usr/lib/cni"]
  conf_dir = "/etc/cni/net.d"

[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"

[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
  SystemdCgroup = false
"#
    )
}

/// Point-to-point links: between two pods on one bridge a Service's answer would not pass the node's NAT.
pub(super) fn cni(node: &str, subnet: &str) -> String {
    json!({
        "cniVersion": "1.0.0",
        "name": format!("pods-{node}"),
        "plugins": [{
            "type": "ptp",
            "ipMasq": false,
            "ipam": {
                "type": "host-local",
                "ranges": [[{"subnet": subnet}]],
                "routes": [{"dst": "0.0.0.0/0"}],
            },
        }],
    })
    .to_string()
}

/// The kubelet.
pub(super) fn kubelet(cgroup: &str, ca_file: &Path) -> String {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": cgroup,
        "failCgroupV1": false,
        "failSwapOn": false,
        // Without these the kubelet waits for facts about a file system that it cannot find in a namespace.
        "localStorageCapacityIsolation": false,
        "evictionHard": {"memory.available": "50Mi"},
        "resolvConf": "/etc/resolv.conf",
        "authentication": {
            "anonymous": {"enabled": false},
            "webhook": {"enabled": false},
            "x509": {"clientCAFile": ca_file},
        },
        "authorization": {"mode": "AlwaysAllow"},
        "serializeImagePulls": false,
        "registerNode": true,
        "maxPods": 100,
    })
    .to_string()
}
