//! What the agent knows of the cluster, and its copy on disk: after a restart the relay works at once, with the API server
//! away too. Knows no client.

use crate::durable;
use crate::proof::Proofs;
use breakwater_crds::{RegistryMirror, RelayKey};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::Path;

/// The last known set. A part stays as it was until a complete new one has arrived.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Known {
    /// All mirrors by name, without what the agent never reads; None until they were listed once.
    pub mirrors: Option<BTreeMap<String, RegistryMirror>>,
    /// The caches' EndpointSlices by name.
    pub slices: BTreeMap<String, Slice>,
    /// What it takes to trust a cache and to be trusted by it.
    pub trust: Option<Trust>,
    /// This node; None until it was seen once.
    pub node: Option<Node>,
    /// The container runtime as the kubelet reports it.
    pub runtime_version: Option<String>,
    /// Of what it was seen to read.
    #[serde(default)]
    pub proofs: Proofs,
}

/// One EndpointSlice of a cache.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Slice {
    /// Name of the mirror.
    pub mirror: String,
    /// Name of the cache's Service.
    pub service: String,
    /// Addresses of its Pods.
    pub endpoints: Vec<Endpoint>,
}

/// One Pod of a cache.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Endpoint {
    /// Whether the Pod is going; such a one is tried last.
    pub terminating: bool,
    /// Name of the Pod, which outlives its address.
    pub pod: String,
    /// Address of its TLS listener.
    pub address: SocketAddr,
}

/// The relay's Secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trust {
    /// Certificates of Breakwater's CA, PEM.
    pub ca: String,
    /// The key that the caches' tokens derive from.
    #[serde(serialize_with = "reveal", deserialize_with = "parse")]
    pub key: RelayKey,
}

/// The node itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Its uid, for the owner reference of what we report.
    pub uid: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}

fn reveal<S: Serializer>(key: &RelayKey, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(key.reveal())
}

fn parse<'de, D: Deserializer<'de>>(from: D) -> Result<RelayKey, D::Error> {
    RelayKey::parse(&String::deserialize(from)?).map_err(de::Error::custom)
}

/// A mirror with what the agent reads and no more: it is kept in memory and on disk.
#[must_use]
pub fn slim(mut mirror: RegistryMirror) -> RegistryMirror {
    let metadata = std::mem::take(&mut mirror.metadata);
    mirror.metadata = ObjectMeta {
        name: metadata.name,
        creation_timestamp: metadata.creation_timestamp,
        deletion_timestamp: metadata.deletion_timestamp,
        ..ObjectMeta::default()
    };
    mirror.status = None;
    mirror
}

impl Known {
    /// Reads what a former process knew. What cannot be read is not known.
    #[must_use]
    pub fn load(state_dir: &Path) -> Self {
        let path = state_dir.join(durable::KNOWN);
        let parsed = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(io::Error::from),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error),
        };
        parsed.unwrap_or_else(|error| {
            tracing::warn!(path = %path.display(), %error, "last known set cannot be read, waiting for the API server instead");
            Self::default()
        })
    }

    /// Keeps it for the next process, readable by the owner alone.
    ///
    /// # Errors
    /// It is not durably kept.
    pub fn store(&self, state_dir: &Path) -> io::Result<()> {
        durable::make_folder(state_dir)?;
        durable::replace(&state_dir.join(durable::KNOWN), &serde_json::to_vec(self)?, durable::PRIVATE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_next_process_knows_the_same_and_nobody_else_reads_it() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        let mirror: RegistryMirror = serde_saphyr::from_str(
            "{apiVersion: breakwater.dev/v1alpha1, kind: RegistryMirror, spec: {registry: docker.io}, \
             metadata: {name: hub, creationTimestamp: '2026-01-01T00:00:00Z', managedFields: []}}",
        )
        .unwrap();
        let key = "0a".repeat(32);
        let known = Known {
            mirrors: Some([("hub".to_owned(), slim(mirror))].into()),
            trust: Some(Trust { ca: "pem".into(), key: RelayKey::parse(&key).unwrap() }),
            node: Some(Node { uid: "u".into(), labels: BTreeMap::new() }),
            ..Known::default()
        };
        assert_eq!(Known::load(&state), Known::default());
        known.store(&state).unwrap();
        assert_eq!(Known::load(&state), known);
        let mode = state.join("known.json").metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(!format!("{known:?}").contains(&key));
        std::fs::write(state.join("known.json"), "{").unwrap();
        assert_eq!(Known::load(&state), Known::default());
    }
}
