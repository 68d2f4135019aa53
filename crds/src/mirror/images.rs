//! `spec.images` of a mirror: which images its cache must hold completely. Holds no behaviour but defaults.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// A repository's path with a tag, a digest or both, with or without the registry's host.
const IMAGE: &str = "self.matches('^([A-Za-z0-9-]*[.:][A-Za-z0-9.:-]*/)?[a-z0-9]+((\\\\.|_|__|-+)[a-z0-9]+)*\
                     (/[a-z0-9]+((\\\\.|_|__|-+)[a-z0-9]+)*)*\
                     (:[A-Za-z0-9_][A-Za-z0-9._-]{0,127}(@sha256:[0-9a-f]{64})?|@sha256:[0-9a-f]{64})$')";

const PLATFORM: &str = "self.matches('^[a-z0-9]+/[a-z0-9]+(/[a-z0-9]+)?$')";

/// Images that the cache holds completely and never evicts, so that they outlive the loss of their registry.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ImagesSpec {
    /// Whether these are the images of this registry that Pods, Deployments, StatefulSets, DaemonSets, Jobs and CronJobs name. An
    /// image that nothing names any more is kept for two hours.
    #[serde(default = "yes")]
    pub in_use: bool,

    /// The platforms to hold of each image, as `os/architecture[/variant]`. Default: those of the cluster's nodes.
    #[schemars(schema_with = "platforms")]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub platforms: Vec<String>,

    /// Further images, in use or not, as they are named in Pods, with a tag or a digest; of both, the digest counts. The registry's host
    /// may be left out.
    #[schemars(schema_with = "images")]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub include: Vec<String>,

    /// What becomes of a new node's own images when the registry is lost: those of host-network DaemonSets and static Pods in
    /// `kube-system` or of priority `system-node-critical`, which it pulls before it can pull through Breakwater.
    #[serde(default)]
    pub node_bootstrap: NodeBootstrap,
}

impl Default for ImagesSpec {
    fn default() -> Self {
        Self { in_use: yes(), platforms: Vec::new(), include: Vec::new(), node_bootstrap: NodeBootstrap::default() }
    }
}

fn platforms(_: &mut SchemaGenerator) -> Schema {
    let advice = "must be os/architecture or os/architecture/variant, such as linux/amd64 or linux/arm/v7";
    list(16, 64, PLATFORM, advice)
}

fn images(_: &mut SchemaGenerator) -> Schema {
    list(256, 450, IMAGE, "must be an image with a tag or a digest, such as library/nginx:1.27")
}

/// The rule is each item's own: the API server names the item that breaks it.
fn list(most: u32, longest: u32, rule: &str, message: &str) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": most,
        "items": {
            "type": "string",
            "minLength": 3,
            "maxLength": longest,
            "x-kubernetes-validations": [{"rule": rule, "message": message}],
        },
    })
}

const fn yes() -> bool {
    true
}

/// Where new nodes get the images from that they need before they can pull through Breakwater.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NodeBootstrap {
    /// From the registry: without it, no new node works. They are listed as exposed.
    #[default]
    Exposed,
    /// By other means, such as the nodes' disk image: they survive as far as the cache holds them.
    Provided,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mirror_pins_the_images_in_use_unless_told_otherwise() {
        let images: ImagesSpec = serde_saphyr::from_str("{}").unwrap();
        assert_eq!(images, ImagesSpec::default());
        assert!(images.in_use && images.node_bootstrap == NodeBootstrap::Exposed);
    }
}
