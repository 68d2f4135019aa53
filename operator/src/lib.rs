//! The operator: turns `RegistryMirror` objects into caches and says how they fare. Start at [`controller`].
//!
//! It never serves a pull: whatever happens to it, caches and nodes go on with what they have.

pub mod apply;
pub mod args;
pub mod build;
pub mod check;
pub mod controller;
pub mod credentials;
pub mod events;
pub mod exchange;
#[cfg(test)]
mod fixture;
pub mod fleet;
pub mod health;
pub mod images;
pub mod lease;
pub mod memory;
pub mod metrics;
pub mod observe;
pub mod pki;
pub mod references;
pub mod report;
pub mod run;
pub mod secrets;
pub mod skew;
pub mod slim;
pub mod startup;
pub mod status;
pub mod telemetry;
mod text;
pub mod upstream;
pub mod validate;
pub mod watches;

pub use text::error_chain;
