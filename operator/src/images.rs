//! Images in use survive the loss of their registry: which images those are, and whether the caches hold them.
//!
//! 1. [`collect`] — client: watches Pods and workloads ([`workload`], [`usage`]) and reads the names of their images ([`reference`])
//! 2. [`wanted`] — pure: what the cache of each mirror shall hold
//! 3. [`keeper`] — client: tells every replica ([`replicas`], [`line`]) and hears how far it is
//! 4. [`verdict`] — pure: which images would survive, and why the others would not
//!
//! What is pinned is what a kubelet asks for, the name in the Pod's spec, and not the digest in its status: when the Pod starts on
//! another node, in an outage too, it is that name which is pulled. The status and the condition are [`crate::status`]'s.

mod collect;
mod keeper;
mod line;
mod metrics;
mod reference;
mod replicas;
mod usage;
mod verdict;
mod wanted;
mod workload;

pub use collect::{InUse, collect};
pub use keeper::{Keeper, Survey, Surveys};
pub use metrics::ImageMetrics;
pub use reference::ImageName;
pub use verdict::{Exposed, ImagesReport};
