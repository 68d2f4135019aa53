//! The rules of the API on a real API server: what `kubectl apply` accepts, and what it says about the rest.
#![cfg(feature = "cluster")]

use anyhow::{Context, Result};
use breakwater_crds::RegistryMirror;
use breakwater_tests::api_scene::SETTLE;
use breakwater_tests::cluster::{Cluster, until};
use breakwater_tests::product::definitions_hold;
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
         e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855', 'nginx:1.27@sha256:\
         e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855']}}",
        "",
    ),
    (
        "{registry: docker.io, images: {include: ['nginx:1', library/nginx]}}",
        "spec.images.include[1]: Invalid value: \"library/nginx\": must be an image with a tag or a digest",
    ),
    ("{registry: docker.io, images: {include: ['Library/nginx:1']}}", "must be an image with a tag or a digest"),
    ("{registry: docker.io, images: {include: ['quay.io/a/b:1']}}", "must be images of this mirror's registry"),
    (
        "{registry: docker.io, images: {platforms: [linux/amd64, amd64]}}",
        "spec.images.platforms[1]: Invalid value: \"amd64\": must be os/architecture or os/architecture/variant",
    ),
    ("{registry: docker.io, images: {nodeBootstrap: Safe}}", "supported values: \"Exposed\", \"Provided\""),
    ("{registry: docker.io, images: {pin: true}}", "field not declared in schema"),
    ("{}", "spec.registry: Required value"),
    ("{registry: 'https://docker.io/v2'}", "with no scheme or path: write docker.io"),
    ("{registry: docker.io/library}", "with no scheme or path: write docker.io"),
    ("{registry: 'docker io'}", "must be a host name with an optional port"),
    ("{registry: index.docker.io}", "must be the name that images use for Docker Hub: write docker.io"),
    ("{registry: hub.docker.com}", "must be the name that images use for Docker Hub: write docker.io"),
    ("{registry: Docker.io}", "must be the name that images use for Docker Hub: write docker.io"),
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

const PORT: &str = "must have a port from 1 to 65535, or none";
const ADDRESS: &str = "must have an IPv4 address such as 10.1.2.3";
const KEY: &str = "must be a label's key";
const VALUE: &str = "must be a label's value";

/// What would else show when the cache does not start, or in no place at all.
const HOSTS_AND_PLACES: &[Case] = &[
    ("{registry: 'r.example:65535', url: 'https://10.0.0.255:1/', proxy: {url: 'http://proxy:03128'}}", ""),
    ("{registry: localhost}", ""),
    ("{registry: 'r.example:65536'}", PORT),
    ("{registry: docker.io, url: 'https://x:99999'}", "spec.url: Invalid value: \"https://x:99999\": must have a port"),
    ("{registry: docker.io, url: 'https://x:0/'}", PORT),
    ("{registry: docker.io, url: 'https://x:1234567890'}", PORT),
    ("{registry: docker.io, proxy: {url: 'http://p:65536'}}", "spec.proxy.url: Invalid value: \"http://p:65536\""),
    (
        "{registry: docker.io, alternates: [{url: 'http://a'}, {url: 'http://b:70000'}]}",
        "spec.alternates[1].url: Invalid value: \"http://b:70000\": must have a port",
    ),
    ("{registry: docker.io, url: 'https://10.0.0.256:5000'}", ADDRESS),
    ("{registry: 10.0.0}", ADDRESS),
    ("{registry: docker.io, url: 'https://mirror..example'}", "and a host with an optional port"),
    ("{registry: ghcr}", "must have a dot or a port"),
    (
        "{registry: docker.io, alternates: [{url: 'http://a', repositoryPrefix: a..b}]}",
        "must be the beginning of a repository's name",
    ),
    ("{registry: docker.io, cache: {storage: {storageClassName: Fast_SSD}}}", "must be the name of a StorageClass"),
    ("{registry: docker.io, cache: {storage: {size: 2Pi}}}", "must be at most 1Pi"),
    ("{registry: docker.io, credentials: [{secretRef: {name: a..b}}]}", "must be the name of a Secret"),
    ("{registry: docker.io, cache: {nodeSelector: {example.com/pool: a, 'a_B.c': ''}}}", ""),
    ("{registry: docker.io, cache: {nodeSelector: {a: b, 'c d': e}}}", "zone, and not c d"),
    ("{registry: docker.io, cache: {nodeSelector: {pool: 'a b'}}}", VALUE),
    ("{registry: docker.io, cache: {tolerations: [{key: 'a b', operator: Exists}]}}", "must be a taint's key"),
    ("{registry: docker.io, cache: {tolerations: [{key: a, value: 'b c'}]}}", "spec.cache.tolerations[0].value"),
    (
        "{registry: docker.io, cache: {resources: {requests: {cpu: 1, memory: 1Gi}, limits: {cpu: 1000m, memory: 1Gi}}}}",
        "",
    ),
    (
        "{registry: docker.io, cache: {resources: {requests: {cpu: 1, memory: 2Gi}, limits: {cpu: 2, memory: 1Gi}}}}",
        "spec.cache.resources.requests: Invalid value: must not exceed limits: lower memory, or raise its limit",
    ),
    ("{registry: docker.io, cache: {resources: {requests: {cpu: -1}}}}", "greater than or equal to 0"),
    ("{registry: docker.io, cache: {resources: {limits: {memory: -1Gi}}}}", "spec.cache.resources.limits.memory"),
    ("{registry: docker.io, cache: {resources: {limits: {example.com/gpu: 1, hugepages-2Mi: 4Mi}}}}", ""),
    ("{registry: docker.io, cache: {resources: {limits: {disk: 1Gi}}}}", "must be of cpu, memory, ephemeral-storage"),
    ("{registry: docker.io, nodes: {selector: {matchLabels: {'a b': c}}}}", "zone, and not a b"),
    ("{registry: docker.io, nodes: {selector: {matchExpressions: [{key: 'a b', operator: Exists}]}}}", KEY),
    ("{registry: docker.io, nodes: {selector: {matchExpressions: [{key: a, operator: In, values: ['b c']}]}}}", VALUE),
];

/// What `affinity` may hold, each in its place below `spec.cache`.
const AFFINITY: &[Case] = &[
    (
        "nodeAffinity: {PREFERRED: [{weight: 100, preference: {matchExpressions: [{key: a, operator: Gt, values: ['-5']}]}}]}",
        "",
    ),
    (
        "nodeAffinity: {REQUIRED: {nodeSelectorTerms: [{matchFields: [{key: metadata.name, operator: In, values: [n1]}]}]}}",
        "",
    ),
    (
        "podAffinity: {REQUIRED: [{topologyKey: zone, namespaces: [a], namespaceSelector: {}, matchLabelKeys: [a/b], \
          labelSelector: {matchExpressions: [{key: a, operator: NotIn, values: [b]}]}}]}",
        "",
    ),
    ("nodeAffinity: {PREFERRED: [{weight: 1000, preference: {}}]}", "[0].weight: Invalid value: 1000"),
    ("podAffinity: {PREFERRED: [{weight: 0, podAffinityTerm: {topologyKey: a}}]}", "[0].weight: Invalid value: 0"),
    ("nodeAffinity: {REQUIRED: {nodeSelectorTerms: []}}", "should have at least 1 items"),
    (
        "nodeAffinity: {REQUIRED: {nodeSelectorTerms: [{matchExpressions: [{key: a, operator: In}]}]}}",
        "must have values with In",
    ),
    (
        "nodeAffinity: {REQUIRED: {nodeSelectorTerms: [{matchExpressions: [{key: a, operator: Lt, values: [b]}]}]}}",
        "one whole number with Gt and Lt",
    ),
    ("nodeAffinity: {REQUIRED: {nodeSelectorTerms: [{matchExpressions: [{key: a b, operator: Exists}]}]}}", KEY),
    (
        "nodeAffinity: {REQUIRED: {nodeSelectorTerms: [{matchFields: [{key: spec.x, operator: In, values: [n1]}]}]}}",
        "supported values: \"metadata.name\"",
    ),
    ("podAffinity: {REQUIRED: [{topologyKey: a b}]}", KEY),
    ("podAffinity: {REQUIRED: [{topologyKey: a, namespaces: [A]}]}", "must be the name of a namespace"),
    (
        "podAntiAffinity: {REQUIRED: [{topologyKey: a, labelSelector: {matchExpressions: [{key: a, operator: Exists, values: [b]}]}}]}",
        "must have values with In and NotIn",
    ),
    (
        "podAntiAffinity: {PREFERRED: [{weight: 1, podAffinityTerm: {topologyKey: a, labelSelector: {matchLabels: {a: b c}}}}]}",
        VALUE,
    ),
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
    ("{registry: docker.io, url: 'https://x:99999'}", PORT),
    ("{registry: docker.io, cache: {nodeSelector: {'a b': c}}}", "zone, and not a b"),
    (
        "{registry: docker.io, cache: {resources: {requests: {cpu: 2}, limits: {cpu: 1}}}}",
        "lower cpu, or raise its limit",
    ),
    (
        "{registry: docker.io, cache: {affinity: {nodeAffinity: {preferredDuringSchedulingIgnoredDuringExecution: \
       [{weight: 101, preference: {}}]}}}}",
        "[0].weight: Invalid value: 101",
    ),
];

/// Nothing in it but `freshness` would be accepted today.
const STORED_BEFORE_THE_RULES: &str = "{registry: ghcr, url: 'https://x:99999', proxy: {url: 'http://p:65536'}, \
    alternates: [{url: 'http://a:70000', repositoryPrefix: a..b}], credentials: [{secretRef: {name: a..b}}], \
    cache: {storage: {size: 2Pi, storageClassName: Fast_SSD}, nodeSelector: {a b: c d}, tolerations: [{key: a b, value: c d}], \
      resources: {requests: {cpu: 2, disk: 1}, limits: {cpu: 1}}, \
      affinity: {nodeAffinity: {preferredDuringSchedulingIgnoredDuringExecution: [{weight: 1000, preference: {}}]}}}, \
    nodes: {selector: {matchLabels: {a b: c d}, matchExpressions: [{key: a b, operator: In}]}}, freshness: {tagTTL: 1m}}";

async fn api_server() -> Result<(Cluster, Api<RegistryMirror>)> {
    let cluster = Cluster::control_plane_only().await?;
    for definition in breakwater_crds::yaml::definitions() {
        cluster.apply(&breakwater_crds::yaml::document(&definition)?).await?;
    }
    definitions_hold(&cluster).await?;
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
    for (spec, expected) in HOSTS_AND_PLACES {
        check(spec, expected, apply(&mirrors, "case", spec, true).await?);
    }
    for (affinity, expected) in AFFINITY {
        let when = |text: &str| format!("{text}DuringSchedulingIgnoredDuringExecution");
        let affinity = affinity.replace("PREFERRED", &when("preferred")).replace("REQUIRED", &when("required"));
        let spec = format!("{{registry: docker.io, cache: {{affinity: {{{affinity}}}}}}}");
        check(&spec, expected, apply(&mirrors, "case", &spec, true).await?);
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

/// A definition as if no rule had been thought of.
fn without_rules(schema: &mut Value) {
    const RULES: [&str; 9] = [
        "x-kubernetes-validations",
        "pattern",
        "minimum",
        "maximum",
        "minItems",
        "maxItems",
        "minLength",
        "maxLength",
        "enum",
    ];
    match schema {
        Value::Object(fields) => {
            fields.retain(|name, _| !RULES.contains(&name.as_str()));
            fields.values_mut().for_each(without_rules);
        }
        Value::Array(items) => items.iter_mut().for_each(without_rules),
        _ => {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_stored_before_the_rules_can_still_be_changed_and_mended() -> Result<()> {
    let (cluster, mirrors) = api_server().await?;
    let [definition, _] = breakwater_crds::yaml::definitions();
    let mut without = serde_json::to_value(&definition).context("write JSON")?;
    without_rules(&mut without);
    cluster.apply(&without.to_string()).await?;
    let stored = STORED_BEFORE_THE_RULES;
    until(SETTLE, "a definition without rules to hold", async || Ok(apply(&mirrors, "old", stored, false).await?.ok()))
        .await?;
    cluster.apply(&breakwater_crds::yaml::document(&definition)?).await?;
    until(SETTLE, "the rules to hold", async || Ok(apply(&mirrors, "new", stored, true).await?.err())).await?;

    let later = stored.replace("tagTTL: 1m", "tagTTL: 5m");
    let changed = apply(&mirrors, "old", &later, false).await?.map_err(anyhow::Error::msg)?;
    assert_eq!(changed.spec.freshness.tag_ttl, std::time::Duration::from_secs(300));
    let status =
        json!({"apiVersion": "breakwater.dev/v1alpha1", "kind": "RegistryMirror", "status": {"observedGeneration": 2}});
    let params = PatchParams::apply("operator");
    mirrors.patch_status("old", &params, &Patch::Apply(status)).await.context("write a status")?;
    let mended = later.replace("x:99999", "x:9999").replace("weight: 1000", "weight: 10");
    check("two of its fields mended", "", apply(&mirrors, "old", &mended, false).await?);
    check("a field made bad again", PORT, apply(&mirrors, "old", &later, true).await?);
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
