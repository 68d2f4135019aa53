//! Condition types and reasons. They are API: one constant per mend, deprecated rather than renamed.
//!
//! Conditions follow kstatus: `Reconciling` and `Stalled` are present only while True.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

/// A pull through the cache works from the nodes: [`CACHE_READY`] and [`NODES_READY`]. The upstream's state never touches it.
pub const READY: &str = "Ready";
/// The cache's Pod serves.
pub const CACHE_READY: &str = "CacheReady";
/// The selected nodes pull through the cache.
pub const NODES_READY: &str = "NodesReady";
/// The cache reaches the upstream registry.
pub const UPSTREAM_REACHABLE: &str = "UpstreamReachable";
/// The upstream accepts the mirror's credentials.
pub const UPSTREAM_CREDENTIALS_ACCEPTED: &str = "UpstreamCredentialsAccepted";
/// The images in use would survive the loss of their registry.
pub const IMAGES_SURVIVABLE: &str = "ImagesSurvivable";
/// The node's container runtime comes to the relay for what the agent wrote.
pub const RUNTIME_CONFIGURED: &str = "RuntimeConfigured";
/// Work is under way; present only while True.
pub const RECONCILING: &str = "Reconciling";
/// Nothing will happen until somebody acts; present only while True.
pub const STALLED: &str = "Stalled";

/// Reasons, each with what it means and the mend.
pub mod reason {
    /// Ready: the cache serves the nodes.
    pub const SERVING: &str = "Serving";
    /// Ready, Stalled: an older mirror holds the registry. Delete one of the two.
    pub const REGISTRY_CONFLICT: &str = "RegistryConflict";
    /// Ready, Stalled: the object is not valid although the API server stored it. Mend the field that the message names.
    pub const INVALID_SPEC: &str = "InvalidSpec";
    /// Ready, Reconciling: the registry's former cache is still being removed. Wait.
    pub const HANDOVER: &str = "Handover";
    /// CacheReady: the cache's Pod serves.
    pub const CACHE_SERVES: &str = "CacheServes";
    /// CacheReady, Ready, Reconciling; Stalled after 10 minutes: the cache's Pod is starting. Wait; once stalled, describe what the message names.
    pub const CACHE_STARTING: &str = "CacheStarting";
    /// CacheReady; Stalled after 10 minutes: the claim has no volume. Make a StorageClass the default, or provide a volume.
    pub const VOLUME_PENDING: &str = "VolumePending";
    /// CacheReady; Stalled after 10 minutes: the Pod cannot be scheduled. Free resources, or lower `cache.resources`.
    pub const UNSCHEDULABLE: &str = "Unschedulable";
    /// CacheReady; Stalled after 10 minutes: the Pod fails or restarts, or its node does not let it in. Read its log or its Events.
    pub const POD_FAILING: &str = "PodFailing";
    /// CacheReady; Stalled after 10 minutes: the Pod's node is lost. Bring it back or delete its Node object.
    pub const NODE_LOST: &str = "NodeLost";
    /// UpstreamCredentialsAccepted: a Secret of `credentials` does not exist; the cache pulls anonymously. Create it.
    pub const SECRET_NOT_FOUND: &str = "SecretNotFound";
    /// UpstreamCredentialsAccepted: a Secret of `credentials` has no usable `.dockerconfigjson`. Recreate it with the right type.
    pub const SECRET_INVALID: &str = "SecretInvalid";
    /// CacheReady, Stalled: the API server refuses a child object; a cache that serves goes on as it was. Do what the message says.
    pub const CHILD_REFUSED: &str = "ChildRefused";
    /// CacheReady, Stalled: the Secret with Breakwater's certificate authority is damaged or cannot be read; caches that run go on.
    /// Restore it.
    pub const NO_AUTHORITY: &str = "NoAuthority";
    /// CacheReady, Stalled: `caBundle` or `proxy` refers to what is not there or cannot be used; a cache that runs goes on as it is.
    /// Create or mend what the message names.
    pub const INVALID_REFERENCE: &str = "InvalidReference";
    /// Stalled: a call to the API server has failed for a minute. Look at the message's cause; a cache that runs goes on.
    pub const API_SERVER_FAILS: &str = "ApiServerFails";
    /// CacheReady, Stalled: a claim cannot grow to `cache.storage.size`; the cache goes on within what it has. Allow its StorageClass to
    /// expand volumes, or create the mirror anew.
    pub const VOLUME_NOT_EXPANDABLE: &str = "VolumeNotExpandable";
    /// NodesReady: all selected nodes are active.
    pub const NODES_ACTIVE: &str = "NodesActive";
    /// NodesReady: the selector matches no Ready node. Correct `nodes.selector`.
    pub const NO_NODES: &str = "NoNodes";
    /// NodesReady: nodes have not reported yet. Wait, or look at their agents.
    pub const NODES_PENDING: &str = "NodesPending";
    /// NodesReady: nodes bypass the cache. Look at the message's cause.
    pub const NODES_BYPASSED: &str = "NodesBypassed";
    /// NodesReady: nodes could not be configured. Look at their MirrorNode.
    pub const NODES_FAILED: &str = "NodesFailed";
    /// NodesReady: agents do not report. Look at the agents' Pods.
    pub const AGENT_SILENT: &str = "AgentSilent";
    /// UpstreamReachable: the upstream answers.
    pub const UPSTREAM_ANSWERS: &str = "UpstreamAnswers";
    /// UpstreamReachable: the upstream does not answer. Cached images go on; wait, or look at the message's cause.
    pub const UPSTREAM_UNREACHABLE: &str = "UpstreamUnreachable";
    /// UpstreamReachable, UpstreamCredentialsAccepted: not known, because the cache has not asked yet or does not answer.
    pub const UNKNOWN: &str = "Unknown";
    /// UpstreamCredentialsAccepted: the upstream accepts them.
    pub const CREDENTIALS_ACCEPTED: &str = "CredentialsAccepted";
    /// UpstreamCredentialsAccepted: the upstream refuses them. Renew the Secret.
    pub const CREDENTIALS_REFUSED: &str = "CredentialsRefused";
    /// ImagesSurvivable: every image in use would survive the loss of its registry.
    pub const ALL_SURVIVABLE: &str = "AllSurvivable";
    /// ImagesSurvivable: some would not. See `status.images.exposed`.
    pub const IMAGES_EXPOSED: &str = "ImagesExposed";
    /// Exposed image: the cache is still fetching it. Wait.
    pub const INCOMPLETE: &str = "Incomplete";
    /// Exposed image: the upstream does not have it. Push it, or correct the name.
    pub const NOT_FOUND: &str = "NotFound";
    /// Exposed image: the upstream refuses to give it. Add or renew `credentials`.
    pub const NO_CREDENTIAL: &str = "NoCredential";
    /// Exposed image: it does not fit beside the others. Give the cache a larger volume, or pin less.
    pub const NO_SPACE: &str = "NoSpace";
    /// Exposed image: it is not made for a platform of `images.platforms`. Correct them.
    pub const NO_SUCH_PLATFORM: &str = "NoSuchPlatform";
    /// Exposed image: `freshness` lets no tag outlive its registry. Allow it, or name the image by digest.
    pub const TAGS_EXPIRE: &str = "TagsExpire";
    /// Exposed image: a new node pulls it before it can pull through Breakwater. Provide it by other means, and set
    /// `images.nodeBootstrap: Provided`.
    pub const NODE_BOOTSTRAP: &str = "NodeBootstrap";
    /// Not in a status, only in metrics: the registry of the image has no mirror. Make one.
    pub const NOT_MIRRORED: &str = "NotMirrored";
    /// MirrorNode Ready: every mirror that selects the node is active.
    pub const ALL_ACTIVE: &str = "AllActive";
    /// MirrorNode Ready: no mirror selects the node.
    pub const NO_MIRRORS: &str = "NoMirrors";
    /// MirrorNode Ready: some mirrors are not active; see `status.inactive`.
    pub const SOME_INACTIVE: &str = "SomeInactive";
    /// Inactive mirror: the cache has not answered from this node yet. Wait, or look at the cache.
    pub const CACHE_NOT_PROVEN: &str = "CacheNotProven";
    /// Inactive mirror: no address of the cache is known. Look at the mirror's CacheReady.
    pub const NO_CACHE_ADDRESS: &str = "NoCacheAddress";
    /// Inactive mirror: the cache does not answer. Look at the mirror's CacheReady and the network.
    pub const CACHE_UNREACHABLE: &str = "CacheUnreachable";
    /// Inactive mirror: what stands at the cache's address answers, and what it sends is of no use. Look at the mirror's CacheReady and
    /// at what the message names.
    pub const CACHE_FAILS: &str = "CacheFails";
    /// Inactive mirror: a file or folder in the way is not safe to write. Remove what the message names.
    pub const UNSAFE_PATH: &str = "UnsafePath";
    /// Inactive mirror: the file found is not valid TOML; containerd ignores it too. Mend or remove it.
    pub const FOREIGN_FILE_INVALID: &str = "ForeignFileInvalid";
    /// Inactive mirror: the registry's folder holds certificates and no hosts.toml, and adding one would make containerd
    /// ignore them. Add a hosts.toml that names them.
    pub const CERTIFICATES_WITHOUT_HOSTS: &str = "CertificatesWithoutHosts";
    /// Inactive mirror: the file could not be written. Do what the message says.
    pub const WRITE_FAILED: &str = "WriteFailed";
    /// RuntimeConfigured: the container runtime was seen to come to the relay for every mirror.
    pub const PROVEN: &str = "Proven";
    /// RuntimeConfigured, inactive mirror: the container runtime was not seen to come to the relay. While the state is Pending, wait or
    /// pull an image; once it is Failed, do what the message says.
    pub const NOT_PROVEN: &str = "NotProven";
    /// RuntimeConfigured, inactive mirror: containerd reads no hosts.toml, because `config_path` is empty. Set it and restart containerd.
    pub const CONFIG_PATH_UNSET: &str = "ConfigPathUnset";
    /// RuntimeConfigured, inactive mirror: containerd reads other folders than the one that the agent writes. Give the agent that folder.
    pub const CONFIG_PATH_ELSEWHERE: &str = "ConfigPathElsewhere";
    /// RuntimeConfigured, inactive mirror: `config_path` is a list, which this containerd takes for one folder. Set one and restart
    /// containerd.
    pub const MULTIPLE_PATHS: &str = "MultiplePaths";
    /// RuntimeConfigured, inactive mirror: `registry.mirrors` is set, which excludes hosts.toml. Move it there and restart containerd.
    pub const LEGACY_MIRRORS: &str = "LegacyMirrors";
    /// RuntimeConfigured, inactive mirror: the runtime's configuration cannot be read. Mount it into the agent.
    pub const CONFIG_UNREADABLE: &str = "ConfigUnreadable";
    /// Inactive mirror, MirrorNode Ready: the relay's port is taken. Free it.
    pub const RELAY_PORT_TAKEN: &str = "RelayPortTaken";
}

/// Sets a condition; the transition time moves only when the status does.
///
/// `now` is passed in so that callers stay pure.
pub fn set(conditions: &mut Vec<Condition>, new: Verdict, generation: Option<i64>, now: &Time) {
    let Verdict { kind, status, reason, message } = new;
    let since = conditions.iter().find(|old| old.type_ == kind && old.status == status.as_str());
    let condition = Condition {
        type_: kind.to_owned(),
        status: status.as_str().to_owned(),
        reason: reason.to_owned(),
        message,
        observed_generation: generation,
        last_transition_time: since.map_or_else(|| now.clone(), |old| old.last_transition_time.clone()),
    };
    match conditions.iter_mut().find(|old| old.type_ == kind) {
        Some(old) => *old = condition,
        None => conditions.push(condition),
    }
}

/// What a condition says, before it is stamped with time and generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// One of the condition types of this module.
    pub kind: &'static str,
    /// Its status.
    pub status: Status,
    /// One of [`reason`].
    pub reason: &'static str,
    /// What, why, since when, what serves meanwhile, and the mend.
    pub message: String,
}

/// The status of a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It holds.
    True,
    /// It does not hold.
    False,
    /// It cannot be told.
    Unknown,
}

impl Status {
    /// The word of the Kubernetes API.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Time {
        serde_json::from_value(serde_json::json!(text)).unwrap()
    }

    fn verdict(status: Status, reason: &'static str) -> Verdict {
        Verdict { kind: READY, status, reason, message: String::new() }
    }

    #[test]
    fn the_transition_time_moves_only_with_the_status() {
        let mut conditions = Vec::new();
        set(&mut conditions, verdict(Status::False, reason::CACHE_STARTING), Some(1), &at("2026-01-01T00:00:00Z"));
        set(&mut conditions, verdict(Status::False, reason::VOLUME_PENDING), Some(2), &at("2026-01-02T00:00:00Z"));
        assert_eq!(conditions.len(), 1);
        assert_eq!(conditions[0].reason, reason::VOLUME_PENDING);
        assert_eq!(conditions[0].observed_generation, Some(2));
        assert_eq!(conditions[0].last_transition_time, at("2026-01-01T00:00:00Z"));
        set(&mut conditions, verdict(Status::True, reason::SERVING), Some(2), &at("2026-01-03T00:00:00Z"));
        assert_eq!(conditions[0].last_transition_time, at("2026-01-03T00:00:00Z"));
    }
}
