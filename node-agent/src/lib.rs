//! The agent of one node: hosts.toml, the relay and the MirrorNode's status. Start at [`agent`].

pub mod admin;
pub mod agent;
pub mod args;
pub mod cri;
pub mod departure;
pub mod drop_ins;
pub mod durable;
pub mod files;
pub mod hosts_toml;
pub mod known;
pub mod metrics;
pub mod offline;
pub mod plan;
pub mod proof;
pub mod prove;
pub mod registries_conf;
pub mod registry_host;
pub mod relay;
pub mod reload;
pub mod report;
pub mod runtime;
pub mod spread;
pub mod status;
pub mod text_file;
pub mod touched;
pub mod watch;
