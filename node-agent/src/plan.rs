//! From what is known to what this node should do: which files, which routes. Pure.

use crate::files::Wanted;
use crate::hosts_toml::{Entry, Server};
use crate::known::{Endpoint, Known};
use crate::registry_host::RegistryHost;
use breakwater_crds::{Fallback, RegistryMirror, RegistryMirrorSpec, Selector, claims};
use kube::ResourceExt;
use std::net::SocketAddr;

/// What this node should do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Mirrors that select this node, by registry.
    pub mirrors: Vec<Planned>,
    /// Mirrors that select this node and are not valid, as registry and what is wrong.
    pub refused: Vec<(String, &'static str)>,
}

/// One mirror on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned {
    /// Its file.
    pub wanted: Wanted,
    /// Its cache; None while no address was ever published.
    pub cache: Option<CacheAddress>,
}

/// Where a cache is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheAddress {
    /// Name of its Service: its certificate and its token are for that.
    pub service: String,
    /// Its Pods.
    pub endpoints: Vec<Endpoint>,
    /// Runtimes have no other way to the registry's content.
    pub is_only_way: bool,
}

/// Plans for the node; None while too little is known to change anything.
#[must_use]
pub fn plan(known: &Known, relay: SocketAddr) -> Option<Plan> {
    let (mirrors, node) = (known.mirrors.as_ref()?, known.node.as_ref()?);
    let mut plan = Plan::default();
    for (registry, mirror) in claims(mirrors.values()) {
        let going = mirror.metadata.deletion_timestamp.is_some();
        // A selector that makes no sense selects nothing; the operator says so on the mirror.
        let selected =
            Selector::parse(&mirror.spec.nodes.selector).is_ok_and(|selector| selector.matches(&node.labels));
        if going || !selected {
            continue;
        }
        match wanted(mirror, relay) {
            Ok(wanted) => plan.mirrors.push(Planned { wanted, cache: cache_address(known, mirror) }),
            Err(message) => plan.refused.push((registry.to_owned(), message)),
        }
    }
    Some(plan)
}

/// The API server has validated all this; what decides about files on a node is validated here again.
fn wanted(mirror: &RegistryMirror, relay: SocketAddr) -> Result<Wanted, &'static str> {
    let registry =
        RegistryHost::parse(&mirror.spec.registry).map_err(|_| "spec.registry is not a host with an optional port")?;
    let server = server(&mirror.spec)?;
    Ok(Wanted { registry, entry: Entry { mirror: mirror.name_any(), relay: relay_url(relay), server } })
}

fn server(spec: &RegistryMirrorSpec) -> Result<Server, &'static str> {
    match spec.nodes.fallback {
        Fallback::None => Ok(Server::Relay),
        Fallback::Upstream if spec.has_default_url() => Ok(Server::Default),
        Fallback::Upstream => {
            let url = spec.upstream_url();
            let host = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
            let valid = host.is_some_and(|host| RegistryHost::parse(host).is_ok());
            if valid { Ok(Server::Url(url)) } else { Err("spec.url is not a scheme and a host with an optional port") }
        }
    }
}

/// The relay as a runtime on this node addresses it.
#[must_use]
pub fn relay_url(relay: SocketAddr) -> String {
    format!("http://{relay}")
}

fn cache_address(known: &Known, mirror: &RegistryMirror) -> Option<CacheAddress> {
    let name = mirror.name_any();
    let mut slices = known.slices.values().filter(|slice| slice.mirror == name).peekable();
    let service = slices.peek()?.service.clone();
    let mut endpoints: Vec<_> =
        slices.filter(|slice| slice.service == service).flat_map(|slice| slice.endpoints.iter().cloned()).collect();
    endpoints.sort();
    endpoints.dedup();
    Some(CacheAddress { service, endpoints, is_only_way: mirror.spec.nodes.fallback == Fallback::None })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hosts_toml;
    use crate::known::{Node, Slice};

    const RELAY: ([u8; 4], u16) = ([127, 0, 0, 1], 429);

    fn known(mirrors: &[&str]) -> Known {
        let parse = |fields: &&str| {
            let mirror: RegistryMirror = serde_saphyr::from_str(&format!(
                "{{apiVersion: breakwater.dev/v1alpha1, kind: RegistryMirror, {fields}}}"
            ))
            .unwrap();
            (mirror.name_any(), mirror)
        };
        let labels = [("zone".to_owned(), "a".to_owned())].into();
        Known {
            mirrors: Some(mirrors.iter().map(parse).collect()),
            node: Some(Node { uid: "u".into(), labels }),
            ..Known::default()
        }
    }

    fn check(mirrors: &[&str], expected: &[(&str, Server)]) {
        let plan = plan(&known(mirrors), RELAY.into()).unwrap();
        let planned: Vec<_> =
            plan.mirrors.iter().map(|p| (p.wanted.registry.as_str(), p.wanted.entry.server.clone())).collect();
        assert_eq!(planned, expected);
    }

    #[test]
    fn a_mirror_that_selects_the_node_gets_a_file() {
        check(&["metadata: {name: hub}, spec: {registry: docker.io}"], &[("docker.io", Server::Default)]);
        check(
            &["metadata: {name: a}, spec: {registry: 'r.example:5000', url: 'http://r.example:5000'}"],
            &[("r.example:5000", Server::Url("http://r.example:5000".into()))],
        );
        check(
            &["metadata: {name: a}, spec: {registry: ghcr.io, nodes: {fallback: None}}"],
            &[("ghcr.io", Server::Relay)],
        );
        check(&["metadata: {name: a}, spec: {registry: ghcr.io, nodes: {selector: {matchLabels: {zone: b}}}}"], &[]);
        check(&["metadata: {name: a, deletionTimestamp: '2026-01-01T00:00:00Z'}, spec: {registry: ghcr.io}"], &[]);
    }

    #[test]
    fn the_holder_decides_even_where_it_does_not_select_the_node() {
        let old = "metadata: {name: old, creationTimestamp: '2026-01-01T00:00:00Z'}, \
                   spec: {registry: ghcr.io, nodes: {selector: {matchLabels: {zone: b}}}}";
        let young = "metadata: {name: young, creationTimestamp: '2026-01-02T00:00:00Z'}, spec: {registry: ghcr.io}";
        check(&[old, young], &[]);
    }

    #[test]
    fn what_is_not_valid_is_refused_and_stops_nobody_else() {
        let known = known(&[
            "metadata: {name: a}, spec: {registry: '../etc'}",
            "metadata: {name: b}, spec: {registry: ghcr.io, url: 'https://u:p@ghcr.io'}",
            "metadata: {name: c}, spec: {registry: quay.io}",
        ]);
        let plan = plan(&known, RELAY.into()).unwrap();
        assert_eq!(
            plan.refused.iter().map(|(registry, _)| registry.as_str()).collect::<Vec<_>>(),
            ["../etc", "ghcr.io"]
        );
        assert_eq!(plan.mirrors.len(), 1);
    }

    #[test]
    fn nothing_is_planned_from_half_of_what_is_needed() {
        let whole = known(&[]);
        assert_eq!(plan(&whole, RELAY.into()), Some(Plan::default()));
        assert_eq!(plan(&Known { node: None, ..whole.clone() }, RELAY.into()), None);
        assert_eq!(plan(&Known { mirrors: None, ..whole }, RELAY.into()), None);
    }

    #[test]
    fn slices_of_one_service_are_joined() {
        let slice = |service: &str, last: u8| Slice {
            mirror: "hub".into(),
            service: service.into(),
            endpoints: vec![Endpoint {
                terminating: last == 1,
                pod: "p".into(),
                address: ([10, 0, 0, last], 5000).into(),
            }],
        };
        let mut known = known(&["metadata: {name: hub}, spec: {registry: docker.io}"]);
        known.slices =
            [("a", slice("cache-docker-io", 1)), ("b", slice("cache-docker-io", 2)), ("c", slice("other", 3))]
                .map(|(name, slice)| (name.to_owned(), slice))
                .into();
        let plan = plan(&known, RELAY.into()).unwrap();
        let cache = plan.mirrors[0].cache.as_ref().unwrap();
        assert_eq!(cache.service, "cache-docker-io");
        let addresses: Vec<_> = cache.endpoints.iter().map(|e| e.address.to_string()).collect();
        assert_eq!(addresses, ["10.0.0.2:5000", "10.0.0.1:5000"], "one that goes is last");
        let text = hosts_toml::render(&plan.mirrors[0].wanted.entry);
        assert!(text.contains("[host.\"http://127.0.0.1:429\"]"), "{text}");
    }
}
