//! The Kubernetes API of Breakwater: types, conditions and the names that operator, agent and cache agree on.
//!
//! Pure data and pure functions: this crate does no I/O and knows no client, no runtime and no task.
//! Start at [`mirror`] for what a user writes and at [`node`] for what an agent reports.

#![allow(
    unreachable_pub,
    reason = "the schema derive repeats our types in a hidden module, with the spans of the originals"
)]
#![allow(clippy::duplicated_attributes, reason = "each printer column names its type")]

pub mod claims;
pub mod conditions;
pub mod lacking;
pub mod mirror;
pub mod mirror_status;
pub mod names;
pub mod node;
pub mod pace;
pub mod quantity;
pub mod reference;
pub mod relay_token;
mod schema;
pub mod selector;
pub mod yaml;

pub use claims::{claims, holder, is_older};
pub use lacking::Lacking;
pub use mirror::{
    Alternate, CaBundle, CacheSpec, ConfigMapKey, CredentialSource, Fallback, Freshness, ImagesSpec, NodeBootstrap,
    NodesSpec, OnError, Proxy, RegistryMirror, RegistryMirrorSpec, SecretReference, StaleAction, StorageSpec,
    WhenDeleted,
};
pub use mirror_status::{
    CacheStatus, ExposedImage, ImagesStatus, NodeCounts, RegistryMirrorStatus, Summary, UpstreamStatus,
};
pub use node::{InactiveMirror, MirrorNode, MirrorNodeSpec, MirrorNodeStatus, MirrorState, Observed, Runtime};
pub use pace::Pace;
pub use relay_token::{MalformedRelayKey, RelayKey, relay_token};
pub use selector::{Selector, SelectorInvalid};
