//! The rules of the API on a real API server: what `kubectl apply` accepts, and what it says about the rest.
#![cfg(feature = "cluster")]

use anyhow::{Context, Result};
use breakwater_crds::RegistryMirror;
use breakwater_tests::cluster::Cluster;
use kube::api::{Api, Patch, PatchParams};
use serde_json::{Value, json};

/// A spec, and what the refusal must say; nothing where it is accepted.
type Case = (&'static str, &'static str);

const CREATE: &[Case] = &[
    ("{registry: docker.io}", ""),
    ("{registry: 'registry.example.com:5000', url: 'http://10.1.2.3:5000'}", ""),
    ("{registry: docker.io, freshness: {tagTTL: 1h30m, maxStale: 0s}}", ""),
    ("{registry: docker.io, cache: {storage: {size: 1Ti, storageClassName: fast, whenDeleted: Delete}}}", ""),
    ("{registry: docker.io, cache: {storage: {ephemeral: true}, resources: {limits: {cpu: 2, memory: 1Gi}}}}", ""),
    ("{registry: docker.io, cache: {replicas: 3}}", ""),
    ("{registry: docker.io, alternates: [{url: 'https://public.ecr.aws', repositoryPrefix: docker}]}", ""),
    ("{registry: docker.io, alternates: [{url: public.ecr.aws}]}", "spec.alternates[0].url: Invalid value"),
    (
        "{registry: docker.io, alternates: [{url: 'https://a.example', repositoryPrefix: /docker/}]}",
        "must be the beginning of a repository's name",
    ),
    ("{registry: docker.io, freshness: {onError: {unauthorized: Deny, notFound: ServeStale}}}", ""),
    ("{registry: docker.io, freshness: {onError: {notFound: Ask}}}", "supported values: \"ServeStale\", \"Deny\""),
    ("{registry: docker.io, freshness: {onError: {gone: Deny}}}", "field not declared in schema"),
    ("{registry: docker.io, cache: {replicas: 0}}", "spec.cache.replicas in body should be greater than or equal to 1"),
    ("{registry: docker.io, cache: {replicas: 4}}", "spec.cache.replicas in body should be less than or equal to 3"),
    ("{registry: docker.io, nodes: {fallback: None, selector: {matchLabels: {zone: a}}}}", ""),
    ("{registry: docker.io, nodes: {selector: {matchExpressions: [{key: zone, operator: In, values: [a]}]}}}", ""),
    ("{registry: docker.io, credentials: [{secretRef: {name: hub}}]}", ""),
    (
        "{registry: docker.io, images: {inUse: false, platforms: [linux/amd64, linux/arm/v7], include: ['nginx:1.27', \
         'docker.io/a/b:1'], nodeBootstrap: Provided}}",
        "",
    ),
    ("{registry: 'r.example:5000', images: {include: ['r.example:5000/my.team/app__x:v1', 'team/app:v1']}}", ""),
    (
        "{registry: docker.io, images: {include: ['a/b@sha256:\
         e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855']}}",
        "",
    ),
    ("{registry: docker.io, images: {include: [library/nginx]}}", "must be images with a tag or a digest"),
    ("{registry: docker.io, images: {include: ['Library/nginx:1']}}", "must be images with a tag or a digest"),
    ("{registry: docker.io, images: {include: ['quay.io/a/b:1']}}", "must be images of this mirror's registry"),
    ("{registry: docker.io, images: {platforms: [amd64]}}", "must be os/architecture or os/architecture/variant"),
    ("{registry: docker.io, images: {nodeBootstrap: Safe}}", "supported values: \"Exposed\", \"Provided\""),
    ("{registry: docker.io, images: {pin: true}}", "field not declared in schema"),
    ("{}", "spec.registry: Required value"),
    ("{registry: 'https://docker.io/v2'}", "with no scheme or path: write docker.io"),
    ("{registry: docker.io/library}", "with no scheme or path: write docker.io"),
    ("{registry: 'docker io'}", "must be a host name with an optional port"),
    ("{registry: index.docker.io}", "must be the name that images use for Docker Hub: write docker.io"),
    ("{registry: docker.io, url: registry-1.docker.io}", "spec.url: Invalid value"),
    ("{registry: docker.io, url: 'https://user:secret@docker.io'}", "with no path, user or query"),
    ("{registry: docker.io, url: 'https://docker.io/v2/'}", "with no path, user or query"),
    ("{registry: docker.io, freshness: {tagTTL: 1d}}", "spec.freshness.tagTTL: Invalid value"),
    ("{registry: docker.io, freshness: {tagTTL: -1m}}", "must be a duration from 0s to 720h"),
    ("{registry: docker.io, freshness: {maxStale: 721h}}", "must be a duration from 0s to 720h"),
    ("{registry: docker.io, cache: {storage: {size: big}}}", "must be a quantity of at least 100Mi"),
    ("{registry: docker.io, cache: {storage: {size: 1Mi}}}", "must be a quantity of at least 100Mi"),
    (
        "{registry: docker.io, cache: {storage: {ephemeral: true, storageClassName: fast}}}",
        "must not be set together with ephemeral",
    ),
    ("{registry: docker.io, cache: {resources: {limits: {cpu: much}}}}", "spec.cache.resources.limits.cpu"),
    ("{registry: docker.io, nodes: {fallback: Maybe}}", "supported values: \"Upstream\", \"None\""),
    (
        "{registry: docker.io, nodes: {selector: {matchExpressions: [{key: a, operator: Is}]}}}",
        "Unsupported value: \"Is\"",
    ),
    (
        "{registry: docker.io, nodes: {selector: {matchExpressions: [{key: a, operator: In}]}}}",
        "must have values with In and NotIn",
    ),
    ("{registry: docker.io, credentials: [{secretRef: {name: Hub}}]}", "must be the name of a Secret"),
    ("{registry: docker.io, proxyUrl: 'http://proxy'}", "field not declared in schema"),
    ("{registry: docker.io, caBundle: {configMapRef: {name: corp-ca, key: bundle.pem}}}", ""),
    (
        "{registry: docker.io, caBundle: {configMapRef: {key: ca.crt}}}",
        "spec.caBundle.configMapRef.name: Required value",
    ),
    ("{registry: docker.io, caBundle: {}}", "spec.caBundle.configMapRef: Required value"),
    ("{registry: docker.io, caBundle: {configMapRef: {name: Corp}}}", "must be the name of a ConfigMap"),
    ("{registry: docker.io, caBundle: {configMapRef: {name: a, key: a/b}}}", "must be a key of a ConfigMap"),
    ("{registry: docker.io, proxy: {url: 'http://proxy:3128', secretRef: {name: login}}}", ""),
    ("{registry: docker.io, proxy: {secretRef: {name: login}}}", "spec.proxy.url: Required value"),
    ("{registry: docker.io, proxy: {url: 'http://me:secret@proxy'}}", "the login belongs into secretRef"),
    ("{registry: docker.io, proxy: {url: 'socks5://proxy'}}", "must be http:// or https://"),
    (
        "{registry: docker.io, cache: {nodeSelector: {pool: infra}, priorityClassName: high, \
          tolerations: [{operator: Exists}, {key: a, value: b, effect: NoExecute, tolerationSeconds: 5}]}}",
        "",
    ),
    ("{registry: docker.io, cache: {nodeSelector: {pool: 1}}}", "spec.cache.nodeSelector.pool"),
    ("{registry: docker.io, cache: {priorityClassName: High}}", "must be the name of a PriorityClass"),
    ("{registry: docker.io, cache: {tolerations: [{value: a}]}}", "must have a key, or operator: Exists"),
    ("{registry: docker.io, cache: {tolerations: [{key: a, operator: Is}]}}", "Unsupported value: \"Is\""),
    (
        "{registry: docker.io, cache: {tolerations: [{key: a, tolerationSeconds: 5}]}}",
        "must have effect: NoExecute together with tolerationSeconds",
    ),
    (
        "{registry: docker.io, cache: {tolerations: [{key: a, operator: Exists, value: b}]}}",
        "must have no value together with operator: Exists",
    ),
    (
        "{registry: docker.io, cache: {affinity: {podAntiAffinity: {requiredDuringSchedulingIgnoredDuringExecution: \
          [{topologyKey: kubernetes.io/hostname, labelSelector: {matchLabels: {a: b}}}]}}}}",
        "",
    ),
    ("{registry: docker.io, cache: {affinity: {podAffinity: {near: x}}}}", "field not declared in schema"),
];

/// What may be changed of a stored mirror of docker.io with a claim of 50Gi.
const UPDATE: &[Case] = &[
    ("{registry: docker.io, freshness: {tagTTL: 5m}}", ""),
    ("{registry: docker.io, url: 'https://mirror.example.com'}", ""),
    ("{registry: docker.io, cache: {storage: {size: 51200Mi, whenDeleted: Delete}}}", ""),
    ("{registry: docker.io, cache: {replicas: 2}}", ""),
    ("{registry: ghcr.io}", "must not change, because it names the cache and its volume"),
    ("{registry: docker.io, cache: {storage: {size: 60Gi}}}", ""),
    ("{registry: docker.io, cache: {storage: {size: 40Gi}}}", "must not shrink, because a claim can only grow"),
    ("{registry: docker.io, caBundle: {configMapRef: {name: a}}, proxy: {url: 'http://p'}}", ""),
    ("{registry: docker.io, cache: {nodeSelector: {a: b}, tolerations: [{key: a}], priorityClassName: x}}", ""),
    (
        "{registry: docker.io, cache: {storage: {storageClassName: fast}}}",
        "must not change, because a claim keeps its class",
    ),
    ("{registry: docker.io, cache: {storage: {ephemeral: true}}}", "must not change: delete the RegistryMirror"),
];

async fn api_server() -> Result<(Cluster, Api<RegistryMirror>)> {
    let cluster = Cluster::control_plane_only().await?;
    for definition in breakwater_crds::yaml::definitions() {
        cluster.apply(&breakwater_crds::yaml::document(&definition)?).await?;
    }
    cluster.kubectl(&["wait", "--for=condition=Established", "--timeout=30s", "crd", "--all"]).await?;
    let mirrors = Api::all(cluster.client());
    Ok((cluster, mirrors))
}

fn mirror(name: &str, spec: &str) -> Result<Value> {
    let spec: Value = serde_saphyr::from_str(spec).with_context(|| format!("parse {spec}"))?;
    Ok(
        json!({"apiVersion": "breakwater.dev/v1alpha1", "kind": "RegistryMirror", "metadata": {"name": name}, "spec": spec}),
    )
}

/// Applies server-side as the documentation tells users to; `dry_run` leaves nothing behind.
async fn apply(
    mirrors: &Api<RegistryMirror>,
    name: &str,
    spec: &str,
    dry_run: bool,
) -> Result<std::result::Result<RegistryMirror, String>> {
    let params = PatchParams { dry_run, field_manager: Some("test".into()), ..PatchParams::default() };
    let patch = Patch::Apply(mirror(name, spec)?);
    Ok(mirrors.patch(name, &params, &patch).await.map_err(|error| error.to_string()))
}

fn check(spec: &str, expected: &str, got: std::result::Result<RegistryMirror, String>) {
    match got {
        Ok(_) => assert!(expected.is_empty(), "{spec}: accepted, must be refused with: {expected}"),
        Err(refusal) => {
            assert!(!expected.is_empty(), "{spec}: must be accepted, refused with: {refusal}");
            assert!(refusal.contains(expected), "{spec}: must be refused with: {expected}\ngot: {refusal}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn apply_says_what_is_wrong_and_where() -> Result<()> {
    let (cluster, mirrors) = api_server().await?;
    for (spec, expected) in CREATE {
        check(spec, expected, apply(&mirrors, "case", spec, true).await?);
    }
    let long = "x".repeat(64);
    check(
        "a name of 64 characters",
        "must have a name of at most 63",
        apply(&mirrors, &long, "{registry: docker.io}", true).await?,
    );
    apply(&mirrors, "stored", "{registry: docker.io}", false).await?.map_err(anyhow::Error::msg)?;
    for (spec, expected) in UPDATE {
        check(spec, expected, apply(&mirrors, "stored", spec, true).await?);
    }
    cluster.remove().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fresh_mirror_has_defaults_and_counts_as_not_yet_observed() -> Result<()> {
    let (cluster, mirrors) = api_server().await?;
    let stored = apply(&mirrors, "fresh", "{registry: docker.io}", false).await?.map_err(anyhow::Error::msg)?;
    assert_eq!(stored.spec, serde_saphyr::from_str("{registry: docker.io}")?);
    assert_eq!(stored.status.context("has no status")?.observed_generation, Some(-1));
    let durations = "jsonpath={.spec.freshness.tagTTL} {.spec.freshness.maxStale}";
    assert_eq!(cluster.kubectl(&["get", "rmir", "fresh", "-o", durations]).await?, "1m 168h");
    let rules = "jsonpath={.spec.freshness.onError.unreachable} {.spec.freshness.onError.notFound}";
    assert_eq!(cluster.kubectl(&["get", "rmir", "fresh", "-o", rules]).await?, "ServeStale Deny");
    assert_eq!(cluster.kubectl(&["get", "rmir", "fresh", "-o", "jsonpath={.spec.images.inUse}"]).await?, "true");
    let columns = cluster.kubectl(&["get", "rmir", "-o", "wide"]).await?;
    let header: Vec<_> = columns.lines().next().unwrap_or_default().split_whitespace().collect();
    assert_eq!(header, ["NAME", "REGISTRY", "READY", "UPSTREAM", "NODES", "SURVIVABLE", "AGE", "STATUS"]);
    cluster.remove().await
}
