//! The Pod template of a cache. Pure.

use super::{CA_BUNDLE_KEY, Settings, annotations, claims, labels};
use crate::credentials;
use crate::text::duration;
use crate::validate::Valid;
use breakwater_crds::names::{
    ADMIN_PORT, ADMIN_PORT_NAME, DATA_VOLUME, TLS_PORT, TLS_PORT_NAME, tls_secret, tokens_secret,
};
use breakwater_crds::{Alternate, OnError, RegistryMirrorSpec, StaleAction, quantity};
use k8s_openapi::api::core::v1::{
    Capabilities, Container, ContainerPort, EmptyDirVolumeSource, HTTPGetAction, KeyToPath, LocalObjectReference,
    PodSecurityContext, PodSpec, PodTemplateSpec, Probe, ResourceRequirements, SeccompProfile, SecretVolumeSource,
    SecurityContext, Volume, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// Name of the only container.
pub(crate) const CONTAINER: &str = "registry";
const TLS: &str = "tls";
const TOKENS: &str = "tokens";
const USER: i64 = 65532;
const DATA_DIR: &str = "/var/lib/breakwater";
const TLS_DIR: &str = "/etc/breakwater/tls";
const TOKEN_DIR: &str = "/etc/breakwater/tokens";
const CREDENTIALS_DIR: &str = "/etc/breakwater/credentials";
const PROXY_LOGIN: &str = "proxy-login";
const PROXY_LOGIN_DIR: &str = "/etc/breakwater/proxy";
/// The cache gives bodies on their way 10 s, and then writes down what it verified and when it was used.
const GRACE_SECONDS: i64 = 15;
/// Says which certificates the cache trusts upstream by: it reads them when it starts, so others are another template.
const ANNOTATION_CA_BUNDLE: &str = "breakwater.dev/ca-bundle-sha256";

/// The template. Secrets are files that the cache reads again when they change, so nothing here depends on their content, but for
/// the certificates of `caBundle`.
pub(super) fn template(valid: &Valid, settings: &Settings) -> PodTemplateSpec {
    let pull_secrets = settings.image_pull_secrets.iter().map(|name| LocalObjectReference { name: name.to_owned() });
    let mut spec = PodSpec {
        containers: vec![container(valid, settings)],
        image_pull_secrets: Some(pull_secrets.collect::<Vec<_>>()).filter(|secrets| !secrets.is_empty()),
        volumes: Some(volumes(valid)),
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        // Upstreams are found by the node's resolver: a cache outlives cluster DNS.
        dns_policy: Some("Default".to_owned()),
        termination_grace_period_seconds: Some(GRACE_SECONDS),
        security_context: Some(PodSecurityContext {
            run_as_non_root: Some(true),
            run_as_user: Some(USER),
            run_as_group: Some(USER),
            fs_group: Some(USER),
            // Changing the owner of a million blobs at each start would take minutes.
            fs_group_change_policy: Some("OnRootMismatch".to_owned()),
            seccomp_profile: Some(SeccompProfile { type_: "RuntimeDefault".to_owned(), localhost_profile: None }),
            ..PodSecurityContext::default()
        }),
        ..PodSpec::default()
    };
    super::placement::place(&mut spec, valid);
    let mut annotations = annotations(valid);
    if let Ok(Some(bundle)) = &valid.ca_bundle {
        let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bundle.as_bytes());
        annotations.insert(ANNOTATION_CA_BUNDLE.to_owned(), hex::encode(hash));
    }
    let metadata = ObjectMeta { labels: Some(labels(valid)), annotations: Some(annotations), ..ObjectMeta::default() };
    PodTemplateSpec { metadata: Some(metadata), spec: Some(spec) }
}

fn container(valid: &Valid, settings: &Settings) -> Container {
    let spec = &valid.mirror.spec;
    let port = |name: &str, number: u16| ContainerPort {
        name: Some(name.to_owned()),
        container_port: number.into(),
        protocol: Some("TCP".to_owned()),
        ..ContainerPort::default()
    };
    Container {
        name: CONTAINER.to_owned(),
        image: Some(settings.image.clone()),
        command: Some(vec!["/breakwater-registry".to_owned()]),
        args: Some(arguments(valid)),
        ports: Some(vec![port(TLS_PORT_NAME, TLS_PORT), port(ADMIN_PORT_NAME, ADMIN_PORT)]),
        readiness_probe: Some(Probe { period_seconds: Some(2), timeout_seconds: Some(1), ..probe("/readyz") }),
        // Patient: restarting a cache that is merely busy would make an outage of a slow disk.
        liveness_probe: Some(Probe {
            period_seconds: Some(10),
            timeout_seconds: Some(5),
            failure_threshold: Some(12),
            ..probe("/healthz")
        }),
        resources: Some(spec.cache.resources.clone().unwrap_or_else(default_resources)),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            read_only_root_filesystem: Some(true),
            capabilities: Some(Capabilities { drop: Some(vec!["ALL".to_owned()]), add: None }),
            ..SecurityContext::default()
        }),
        // A start that fails says why in its last line of log; the status repeats it.
        termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
        volume_mounts: Some(mounts(spec)),
        ..Container::default()
    }
}

fn arguments(valid: &Valid) -> Vec<String> {
    let spec = &valid.mirror.spec;
    let mut arguments = vec!["--upstream-registry".to_owned(), spec.registry.clone()];
    let mut flag = |name: &str, value: String| arguments.extend([name.to_owned(), value]);
    if !spec.has_default_url() {
        flag("--upstream-url", spec.upstream_url());
    }
    for Alternate { url, repository_prefix } in &spec.alternates {
        let url = url.trim_end_matches('/');
        flag(
            "--alternate",
            repository_prefix.as_ref().map_or_else(|| url.to_owned(), |prefix| format!("{url}={prefix}")),
        );
    }
    flag("--data-dir", DATA_DIR.to_owned());
    flag("--cache-size", cache_size(claims::usable(valid)));
    flag("--tls-listen", format!(":{TLS_PORT}"));
    flag("--tls-dir", TLS_DIR.to_owned());
    flag("--token-dir", TOKEN_DIR.to_owned());
    flag("--admin-listen", format!(":{ADMIN_PORT}"));
    if !spec.credentials.is_empty() {
        flag("--credentials-dir", CREDENTIALS_DIR.to_owned());
    }
    if spec.ca_bundle.is_some() {
        flag("--ca-file", format!("{TLS_DIR}/{CA_BUNDLE_KEY}"));
    }
    if let Some(proxy) = &spec.proxy {
        flag("--proxy-url", proxy.url.trim_end_matches('/').to_owned());
        if proxy.secret_ref.is_some() {
            flag("--proxy-credentials-dir", PROXY_LOGIN_DIR.to_owned());
        }
    }
    flag("--tag-ttl", duration(spec.freshness.tag_ttl.into()));
    flag("--max-stale", duration(spec.freshness.max_stale.into()));
    for rule in on_error(&spec.freshness.on_error) {
        flag("--on-error", rule);
    }
    flag("--log-format", "json".to_owned());
    arguments
}

/// The rules that differ from the cache's own defaults.
fn on_error(wanted: &OnError) -> Vec<String> {
    let classes = |rules: &OnError| {
        // Without `..`: a new class cannot be forgotten here.
        let OnError {
            unreachable,
            server_error,
            too_many_requests,
            invalid_response,
            token_service,
            unauthorized,
            not_found,
        } = *rules;
        [
            ("unreachable", unreachable),
            ("server-error", server_error),
            ("too-many-requests", too_many_requests),
            ("invalid-response", invalid_response),
            ("token-service", token_service),
            ("unauthorized", unauthorized),
            ("not-found", not_found),
        ]
    };
    let differing =
        classes(wanted).into_iter().zip(classes(&OnError::default())).filter(|(wanted, usual)| wanted != usual);
    differing
        .map(|((class, action), _)| match action {
            StaleAction::ServeStale => format!("{class}=serve-stale"),
            StaleAction::Deny => format!("{class}=deny"),
        })
        .collect()
}

/// The cache keeps within its claim by itself: a claim on a folder of the node's disk and an emptyDir look like the whole disk,
/// and the kubelet ends a Pod whose emptyDir outgrows its limit. A tenth is left for records and for what is being deleted.
fn cache_size(claim: &Quantity) -> String {
    quantity::bytes(claim).map_or_else(|| "90%".to_owned(), |bytes| (bytes - bytes / 10).to_string())
}

fn probe(path: &str) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.to_owned()),
            port: IntOrString::String(ADMIN_PORT_NAME.to_owned()),
            scheme: Some("HTTP".to_owned()),
            ..HTTPGetAction::default()
        }),
        ..Probe::default()
    }
}

/// Requests without limits: a limit on memory kills a cache in the middle of many pulls, when it is needed most.
fn default_resources() -> ResourceRequirements {
    let request = |name: &str, amount: &str| (name.to_owned(), Quantity(amount.to_owned()));
    ResourceRequirements {
        requests: Some([request("cpu", "50m"), request("memory", "64Mi")].into()),
        ..ResourceRequirements::default()
    }
}

fn volumes(valid: &Valid) -> Vec<Volume> {
    let secret = |volume: String, name: String, optional: Option<bool>| Volume {
        name: volume,
        secret: Some(SecretVolumeSource { secret_name: Some(name), optional, ..SecretVolumeSource::default() }),
        ..Volume::default()
    };
    // Optional: without its Secret the cache starts all the same and pulls anonymously. Of a Secret that the user names, only
    // what it is named for reaches the Pod.
    let login = |volume: String, name: String, keys: &[&str]| {
        let key = |key: &&str| KeyToPath { key: (*key).to_owned(), path: (*key).to_owned(), ..KeyToPath::default() };
        let mut volume = secret(volume, name, Some(true));
        if let Some(source) = &mut volume.secret {
            source.items = Some(keys.iter().map(key).collect());
        }
        volume
    };
    let spec = &valid.mirror.spec;
    let mut volumes = vec![
        secret(TLS.to_owned(), tls_secret(&valid.name), None),
        secret(TOKENS.to_owned(), tokens_secret(&valid.name), None),
    ];
    for (index, name) in credential_secrets(spec).into_iter().enumerate() {
        volumes.push(login(credentials_volume(index), name.to_owned(), &[credentials::KEY]));
    }
    if let Some(name) = proxy_login(spec) {
        volumes.push(login(PROXY_LOGIN.to_owned(), name.to_owned(), &["username", "password"]));
    }
    if spec.cache.storage.ephemeral {
        let size_limit = Some(spec.cache.storage.size.clone());
        volumes.push(Volume {
            name: DATA_VOLUME.to_owned(),
            empty_dir: Some(EmptyDirVolumeSource { size_limit, ..EmptyDirVolumeSource::default() }),
            ..Volume::default()
        });
    }
    volumes
}

fn mounts(spec: &RegistryMirrorSpec) -> Vec<VolumeMount> {
    let mount = |name: &str, path: String, read_only: Option<bool>| VolumeMount {
        name: name.to_owned(),
        mount_path: path,
        read_only,
        ..VolumeMount::default()
    };
    let mut mounts = vec![
        mount(DATA_VOLUME, DATA_DIR.to_owned(), None),
        mount(TLS, TLS_DIR.to_owned(), Some(true)),
        mount(TOKENS, TOKEN_DIR.to_owned(), Some(true)),
    ];
    for (index, name) in credential_secrets(spec).into_iter().enumerate() {
        let path = format!("{CREDENTIALS_DIR}/{name}");
        mounts.push(mount(&credentials_volume(index), path, Some(true)));
    }
    if proxy_login(spec).is_some() {
        mounts.push(mount(PROXY_LOGIN, PROXY_LOGIN_DIR.to_owned(), Some(true)));
    }
    mounts
}

/// The Secrets of `credentials`, each once: two mounts of one path are refused.
fn credential_secrets(spec: &RegistryMirrorSpec) -> Vec<&str> {
    let mut names = Vec::new();
    for source in &spec.credentials {
        if !names.contains(&source.secret_ref.name.as_str()) {
            names.push(source.secret_ref.name.as_str());
        }
    }
    names
}

/// The Secret with the proxy's login.
fn proxy_login(spec: &RegistryMirrorSpec) -> Option<&str> {
    Some(spec.proxy.as_ref()?.secret_ref.as_ref()?.name.as_str())
}

/// Numbered, because a Secret's name may be longer than a volume's.
fn credentials_volume(index: usize) -> String {
    format!("credentials-{index}")
}
