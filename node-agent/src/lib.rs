//! The agent of one node: hosts.toml, the relay and the MirrorNode's status. Start at [`agent`].

pub mod agent;
pub mod args;
pub mod departure;
pub mod durable;
pub mod files;
pub mod hosts_toml;
pub mod known;
pub mod plan;
pub mod registry_host;
pub mod relay;
pub mod report;
pub mod status;
pub mod watch;
