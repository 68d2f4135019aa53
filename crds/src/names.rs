//! Names, labels and ports that operator, agent and cache agree on. Constants and pure functions only.

use aws_lc_rs::digest::{SHA256, digest};

/// Namespace of the operator and the caches.
pub const SYSTEM_NAMESPACE: &str = "breakwater-system";
/// Namespace of the node agents.
pub const NODES_NAMESPACE: &str = "breakwater-nodes";

/// Label that says what an object is part of; caches carry [`CACHE`].
pub const LABEL_NAME: &str = "app.kubernetes.io/name";
/// Label that carries the name of the cache an object belongs to.
pub const LABEL_INSTANCE: &str = "app.kubernetes.io/instance";
/// Label that says who manages an object; ours carry [`MANAGER`].
pub const LABEL_MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// Label that carries the name of the mirror an object belongs to. Kubernetes copies it from a Service to its EndpointSlices.
pub const LABEL_MIRROR: &str = "breakwater.dev/mirror";
/// Annotation that carries the registry an object belongs to; a label cannot hold a colon.
pub const ANNOTATION_REGISTRY: &str = "breakwater.dev/registry";
/// Value of [`LABEL_NAME`] on everything that belongs to a cache.
pub const CACHE: &str = "breakwater-cache";
/// Value of [`LABEL_NAME`] on a Service by which the replicas of a cache find one of them; nodes do not look at it.
pub const CACHE_PEER: &str = "breakwater-cache-peer";
/// Value of [`LABEL_MANAGED_BY`], and the field manager of the operator.
pub const MANAGER: &str = "breakwater";

/// Port of a cache's TLS listener, and its name in Services and EndpointSlices.
pub const TLS_PORT: u16 = 5000;
/// Name of [`TLS_PORT`].
pub const TLS_PORT_NAME: &str = "tls";
/// Port of a cache's admin listener.
pub const ADMIN_PORT: u16 = 5001;
/// Name of [`ADMIN_PORT`].
pub const ADMIN_PORT_NAME: &str = "admin";
/// Port of the relay on a node's loopback. Below 1024, so that no unprivileged process takes it; below the 600 to 1023 that
/// NFS clients take at random.
pub const RELAY_PORT: u16 = 429;
/// Port of a node agent's health and metrics, chosen as [`RELAY_PORT`] is.
pub const NODE_ADMIN_PORT: u16 = 430;

/// Secret in [`SYSTEM_NAMESPACE`] with the CA and the key that relay tokens derive from.
pub const CA_SECRET: &str = "breakwater-ca";
/// Secret in [`NODES_NAMESPACE`] with what agents need to trust a cache and to be trusted by it.
pub const RELAY_SECRET: &str = "breakwater-relay";
/// Key of the CA certificate in both Secrets, PEM; during a change of CA it holds both.
pub const CA_CERTIFICATE_KEY: &str = "ca.crt";
/// Key of the CA's private key in [`CA_SECRET`], PEM.
pub const CA_PRIVATE_KEY: &str = "ca.key";
/// Key of the private key of the CA that follows, in [`CA_SECRET`], PEM; there while its certificate is published and does not sign yet.
pub const CA_NEXT_PRIVATE_KEY: &str = "next.key";
/// Key of the text that relay tokens derive from, in both Secrets.
pub const RELAY_KEY: &str = "relay.key";

/// Name of the volume with a cache's content, and of its claim template.
pub const DATA_VOLUME: &str = "data";

/// Most replicas of a cache.
pub const MOST_REPLICAS: i32 = 3;

/// Longest name of a cache: a StatefulSet's Pods and their revision label add to it and must stay within 63 characters.
pub const CACHE_NAME_MAX: usize = 52;

/// The name of a registry's cache: `cache-docker-io`; with a hash at its end where it had to be cut.
#[must_use]
pub fn cache_name(registry: &str) -> String {
    let plain = plain_cache_name(registry);
    if plain.len() <= CACHE_NAME_MAX { plain } else { hashed_cache_name(registry) }
}

/// The name of a registry's cache where another cache has the plain one: cut and with a hash of the registry at its end.
#[must_use]
pub fn hashed_cache_name(registry: &str) -> String {
    let hash = hex::encode(&digest(&SHA256, registry.as_bytes()).as_ref()[..4]);
    let mut name = plain_cache_name(registry);
    name.truncate(CACHE_NAME_MAX - hash.len() - 1);
    format!("{}-{hash}", name.trim_end_matches('-'))
}

fn plain_cache_name(registry: &str) -> String {
    let slug: String =
        registry.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' }).collect();
    format!("cache-{slug}")
}

/// The name that a cache's certificate carries and that relays ask for.
#[must_use]
pub fn cache_server_name(service: &str) -> String {
    format!("{service}.{SYSTEM_NAMESPACE}.svc")
}

/// Name of a cache's Pod.
#[must_use]
pub fn pod_name(service: &str, ordinal: i32) -> String {
    format!("{service}-{ordinal}")
}

/// Name of the claim of a cache's Pod.
#[must_use]
pub fn claim_name(service: &str, ordinal: i32) -> String {
    format!("{DATA_VOLUME}-{}", pod_name(service, ordinal))
}

/// Name of the Service by which the replicas of a cache find one of them.
#[must_use]
pub fn peer_service(service: &str, ordinal: i32) -> String {
    format!("{service}-peer-{ordinal}")
}

/// Name of the Secret with a cache's certificate.
#[must_use]
pub fn tls_secret(service: &str) -> String {
    format!("{service}-tls")
}

/// Name of the Secret with the tokens that a cache accepts.
#[must_use]
pub fn tokens_secret(service: &str) -> String {
    format!("{service}-tokens")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_cache_is_named_after_its_registry() {
        assert_eq!(cache_name("docker.io"), "cache-docker-io");
        assert_eq!(cache_name("Registry.example.com:5000"), "cache-registry-example-com-5000");
        assert_eq!(hashed_cache_name("docker.io"), "cache-docker-io-3530c441");
    }

    #[test]
    fn long_registries_that_share_their_beginning_differ() {
        let (a, b) = (format!("{}a", "x".repeat(60)), format!("{}b", "x".repeat(60)));
        assert_ne!(cache_name(&a), cache_name(&b));
    }

    proptest! {
        #[test]
        fn a_cache_name_is_always_a_dns_label(registry in "[A-Za-z0-9]([A-Za-z0-9.-]{0,120}[A-Za-z0-9])?(:[0-9]{1,5})?") {
            for name in [cache_name(&registry), hashed_cache_name(&registry)] {
                prop_assert!(name.len() <= CACHE_NAME_MAX);
                prop_assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'));
                prop_assert!(!name.ends_with('-'));
            }
        }
    }
}
