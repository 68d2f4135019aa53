//! Step 3, pure: from a valid mirror to the objects that make its cache. The same input gives the same objects.

mod claims;
mod placement;
mod pod;
mod replicas;

pub use claims::Growth;
pub(crate) use replicas::introduce;

use crate::args::SecretNames;
use crate::pki::{Authority, IssueFailed, Leaf, SecretData, Tokens};
use crate::validate::Valid;
use breakwater_crds::names::{
    ADMIN_PORT, ADMIN_PORT_NAME, ANNOTATION_REGISTRY, CACHE, LABEL_INSTANCE, LABEL_MANAGED_BY, LABEL_MIRROR,
    LABEL_NAME, MANAGER, TLS_PORT, TLS_PORT_NAME, cache_server_name, tls_secret, tokens_secret,
};
use breakwater_crds::{RegistryMirror, WhenDeleted};
use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::apps::v1::{
    StatefulSet, StatefulSetPersistentVolumeClaimRetentionPolicy, StatefulSetSpec, StatefulSetUpdateStrategy,
};
use k8s_openapi::api::core::v1::{Secret, Service, ServicePort, ServiceSpec};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::{Resource, ResourceExt};
use std::collections::BTreeMap;
use std::marker::PhantomData;

/// Key of the certificates to trust upstream by, in the Secret with the cache's own.
const CA_BUNDLE_KEY: &str = "upstream-ca.crt";

/// What is the same for every cache.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Namespace of the caches.
    pub namespace: String,
    /// Image that they run.
    pub image: String,
    /// Secrets that they pull it with.
    pub image_pull_secrets: SecretNames,
}

/// Secrets of one cache. Made apart from [`build`], because making keys takes random numbers.
#[derive(Clone, Debug)]
pub struct Material {
    /// The certificate.
    pub leaf: Leaf,
    /// The tokens.
    pub tokens: Tokens,
}

impl Material {
    /// What is stored, completed and renewed where that is due.
    ///
    /// # Errors
    /// A key could not be made.
    pub fn complete(
        valid: &Valid,
        authority: &Authority,
        settings: &Settings,
        now: Timestamp,
    ) -> Result<Self, IssueFailed> {
        let mut names = vec![cache_server_name(&valid.name), valid.name.clone()];
        let here = format!("{}.{}.svc", valid.name, settings.namespace);
        if !names.contains(&here) {
            names.push(here);
        }
        Ok(Self {
            leaf: Leaf::renewed(valid.leaf.as_ref(), authority, &names, now)?,
            tokens: Tokens::completed(valid.tokens.as_ref(), authority, &valid.name)?,
        })
    }
}

/// Resources that were built.
#[derive(Debug)]
pub struct Built;
/// Resources as the API server has them.
#[derive(Debug)]
pub struct Applied;

/// The children of one mirror. `Stage` says whether the API server has them, so that no status is computed from a wish.
#[derive(Debug)]
pub struct Resources<Stage> {
    /// The certificate.
    pub tls: Secret,
    /// The tokens.
    pub tokens: Secret,
    /// The headless Service.
    pub service: Service,
    /// A Service for each of several replicas.
    pub peers: Vec<Service>,
    /// Names of those that are not wanted any more.
    pub former_peers: Vec<String>,
    /// What drains have to respect.
    pub budget: PodDisruptionBudget,
    /// The cache.
    pub statefulset: StatefulSet,
    /// Claims that have to grow.
    pub growth: Vec<Growth>,
    /// Built or applied.
    pub stage: PhantomData<Stage>,
}

/// Builds all children of a mirror.
#[must_use]
pub fn build(valid: &Valid, material: &Material, settings: &Settings) -> Resources<Built> {
    let mut tls = material.leaf.data();
    if let Ok(Some(bundle)) = &valid.ca_bundle {
        // A copy: the cache can always be started again, whatever becomes of the ConfigMap.
        tls.insert(CA_BUNDLE_KEY.to_owned(), ByteString(bundle.clone().into_bytes()));
    }
    Resources {
        tls: secret(valid, tls_secret(&valid.name), "kubernetes.io/tls", tls),
        tokens: secret(valid, tokens_secret(&valid.name), "Opaque", material.tokens.data()),
        service: service(valid),
        peers: replicas::peers(valid),
        former_peers: replicas::former_peers(valid),
        budget: replicas::budget(valid),
        statefulset: statefulset(valid, settings),
        growth: claims::growth(valid),
        stage: PhantomData,
    }
}

fn secret(valid: &Valid, name: String, kind: &str, data: SecretData) -> Secret {
    Secret { metadata: metadata(valid, name), type_: Some(kind.to_owned()), data: Some(data), ..Secret::default() }
}

fn service(valid: &Valid) -> Service {
    let spec = ServiceSpec {
        cluster_ip: Some("None".to_owned()),
        // Relays judge a cache by its answers, never by readiness in the API, which lags and stands still in an outage of it.
        publish_not_ready_addresses: Some(true),
        selector: Some(selector_labels(valid)),
        ports: Some(vec![port(TLS_PORT_NAME, TLS_PORT), port(ADMIN_PORT_NAME, ADMIN_PORT)]),
        ..ServiceSpec::default()
    };
    Service { metadata: metadata(valid, valid.name.clone()), spec: Some(spec), ..Service::default() }
}

/// A port of a Service, found at the Pod by its name.
fn port(name: &str, number: u16) -> ServicePort {
    ServicePort {
        name: Some(name.to_owned()),
        port: number.into(),
        target_port: Some(IntOrString::String(name.to_owned())),
        protocol: Some("TCP".to_owned()),
        ..ServicePort::default()
    }
}

fn statefulset(valid: &Valid, settings: &Settings) -> StatefulSet {
    let storage = &valid.mirror.spec.cache.storage;
    let when_deleted = match storage.when_deleted {
        WhenDeleted::Retain => "Retain",
        WhenDeleted::Delete => "Delete",
    };
    let spec = StatefulSetSpec {
        service_name: Some(valid.name.clone()),
        replicas: Some(valid.mirror.spec.cache.replicas),
        // With OrderedReady a Pod that never gets ready blocks the roll-out of its own mend.
        pod_management_policy: Some("Parallel".to_owned()),
        update_strategy: Some(StatefulSetUpdateStrategy {
            type_: Some("RollingUpdate".to_owned()),
            rolling_update: None,
        }),
        persistent_volume_claim_retention_policy: Some(StatefulSetPersistentVolumeClaimRetentionPolicy {
            when_deleted: Some(when_deleted.to_owned()),
            when_scaled: Some("Retain".to_owned()),
        }),
        selector: selector(valid),
        template: pod::template(valid, settings),
        volume_claim_templates: (!storage.ephemeral).then(|| vec![claims::template(valid)]),
        ..StatefulSetSpec::default()
    };
    StatefulSet { metadata: metadata(valid, valid.name.clone()), spec, status: None }
}

fn metadata(valid: &Valid, name: String) -> ObjectMeta {
    ObjectMeta {
        name: Some(name),
        labels: Some(labels(valid)),
        annotations: Some(annotations(valid)),
        owner_references: valid.mirror.controller_owner_ref(&()).map(|owner| vec![owner]),
        ..ObjectMeta::default()
    }
}

/// What never changes in the life of a cache: a StatefulSet's selector is immutable.
fn selector_labels(valid: &Valid) -> BTreeMap<String, String> {
    BTreeMap::from([(LABEL_NAME.to_owned(), CACHE.to_owned()), (LABEL_INSTANCE.to_owned(), valid.name.clone())])
}

fn selector(valid: &Valid) -> LabelSelector {
    LabelSelector { match_labels: Some(selector_labels(valid)), match_expressions: None }
}

fn labels(valid: &Valid) -> BTreeMap<String, String> {
    let mut labels = selector_labels(valid);
    labels.insert(LABEL_MANAGED_BY.to_owned(), MANAGER.to_owned());
    labels.insert(LABEL_MIRROR.to_owned(), mirror_label(&valid.mirror));
    labels
}

/// A label holds 63 characters. The schema bounds the name; an older object's is cut rather than refused.
fn mirror_label(mirror: &RegistryMirror) -> String {
    let mut name = mirror.name_any();
    name.truncate(63);
    name
}

fn annotations(valid: &Valid) -> BTreeMap<String, String> {
    BTreeMap::from([(ANNOTATION_REGISTRY.to_owned(), valid.mirror.spec.registry.clone())])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{authority, now, valid};
    use expect_test::{ExpectFile, expect_file};
    use serde::Serialize;

    fn settings() -> Settings {
        Settings {
            namespace: "breakwater-system".to_owned(),
            image: "example.test/image:1".to_owned(),
            image_pull_secrets: SecretNames::default(),
        }
    }

    fn built(spec: &str) -> Resources<Built> {
        let mut valid = valid(spec);
        valid.ca_bundle = Ok(valid.mirror.spec.ca_bundle.is_some().then(|| "certificates".to_owned()));
        let material = Material::complete(&valid, &authority(), &settings(), now()).unwrap();
        build(&valid, &material, &settings())
    }

    /// The whole object as the API server gets it.
    fn check(object: &impl Serialize, expected: &ExpectFile) {
        let json = serde_json::to_value(object).unwrap();
        expected.assert_eq(&serde_saphyr::to_string(&json).unwrap());
    }

    #[test]
    fn the_smallest_mirror() {
        let built = built("{registry: docker.io}");
        check(&built.statefulset, &expect_file!["../tests/snapshots/smallest-statefulset.yaml"]);
        check(&built.service, &expect_file!["../tests/snapshots/smallest-service.yaml"]);
    }

    #[test]
    fn the_image_is_pulled_with_the_secrets_that_are_named() {
        let secrets = |names: &str| {
            let valid = valid("{registry: docker.io}");
            let image_pull_secrets = names.parse().unwrap();
            let settings = Settings { image_pull_secrets, ..settings() };
            pod::template(&valid, &settings).spec.unwrap().image_pull_secrets
        };
        assert_eq!(secrets(""), None);
        let named = secrets("a,b").unwrap();
        assert_eq!(named.iter().map(|secret| secret.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    }

    #[test]
    fn every_field() {
        let built = built(
            "{registry: 'registry.example.com:5000', url: 'http://10.0.0.1:5000/', \
             alternates: [{url: 'https://a.example/', repositoryPrefix: docker}, {url: 'http://b.example:5000'}], \
             credentials: [{secretRef: {name: login}}, {secretRef: {name: second}}, {secretRef: {name: login}}], \
             caBundle: {configMapRef: {name: corp-ca}}, proxy: {url: 'http://proxy.example:3128/', secretRef: {name: proxy-login}}, \
             cache: {replicas: 3, storage: {size: 1Gi, storageClassName: fast, whenDeleted: Delete}, resources: {limits: {memory: 1Gi}}, \
               nodeSelector: {pool: infra}, tolerations: [{key: infra, operator: Exists}], priorityClassName: high, \
               affinity: {nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: \
                 [{matchExpressions: [{key: disk, operator: In, values: [ssd]}]}]}}}}, \
             freshness: {tagTTL: 90s, maxStale: 24h, onError: {unauthorized: Deny, notFound: ServeStale}}}",
        );
        check(&built.statefulset, &expect_file!["../tests/snapshots/every-field-statefulset.yaml"]);
        check(&built.peers, &expect_file!["../tests/snapshots/every-field-peers.yaml"]);
        check(&built.budget, &expect_file!["../tests/snapshots/every-field-budget.yaml"]);
    }

    #[test]
    fn an_ephemeral_cache_has_no_claim() {
        let spec = built("{registry: docker.io, cache: {storage: {size: 2Gi, ephemeral: true}}}").statefulset.spec;
        assert_eq!(spec.volume_claim_templates, None);
        let volumes = spec.template.spec.unwrap().volumes.unwrap();
        let data = volumes.iter().find(|volume| volume.name == "data").unwrap();
        assert_eq!(data.empty_dir.as_ref().unwrap().size_limit.as_ref().unwrap().0, "2Gi");
    }

    #[test]
    fn secrets_have_what_the_cache_reads() {
        let Resources { tls, tokens, .. } = built("{registry: docker.io}");
        let keys = |secret: &Secret| secret.data.as_ref().unwrap().keys().cloned().collect::<Vec<_>>().join(" ");
        assert_eq!((tls.name_any().as_str(), keys(&tls).as_str()), ("cache-docker-io-tls", "ca.crt tls.crt tls.key"));
        assert_eq!((tokens.name_any().as_str(), keys(&tokens).as_str()), ("cache-docker-io-tokens", "operator relay"));
        for secret in [&tls, &tokens] {
            assert_eq!(secret.owner_references()[0].uid, "uid-harbour");
            assert_eq!(secret.labels()["breakwater.dev/mirror"], "harbour");
        }
    }

    #[test]
    fn other_certificates_to_trust_restart_the_cache() {
        let with = |bundle: Option<&str>| {
            let spec = bundle.map_or("", |_| ", caBundle: {configMapRef: {name: corp-ca}}");
            let mut valid = valid(&format!("{{registry: docker.io{spec}}}"));
            valid.ca_bundle = Ok(bundle.map(str::to_owned));
            let material = Material::complete(&valid, &authority(), &settings(), now()).unwrap();
            let built = build(&valid, &material, &settings());
            let copy =
                built.tls.data.unwrap().get("upstream-ca.crt").map(|copy| String::from_utf8(copy.0.clone()).unwrap());
            (copy, serde_json::to_string(&built.statefulset.spec.template).unwrap())
        };
        let (none, one, other) = (with(None), with(Some("one")), with(Some("other")));
        assert_eq!((none.0, one.0.as_deref(), other.0.as_deref()), (None, Some("one"), Some("other")));
        assert!(one.1.contains("/etc/breakwater/tls/upstream-ca.crt") && !none.1.contains("--ca-file"));
        assert!(one.1 != other.1);
    }

    #[test]
    fn the_same_input_gives_the_same_objects() {
        let valid = valid("{registry: docker.io}");
        let material = Material::complete(&valid, &authority(), &settings(), now()).unwrap();
        let json = || serde_json::to_string(&build(&valid, &material, &settings()).statefulset).unwrap();
        assert_eq!(json(), json());
    }
}
