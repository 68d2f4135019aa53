//! The agent of one node. Start at [`agent`].
#![allow(missing_docs)]
pub mod durable;
pub mod files;
pub mod hosts_toml;
pub mod registry_host;
pub mod selector;
