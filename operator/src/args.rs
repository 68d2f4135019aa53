//! The command line: the whole configuration of the operator. Knows nothing of what is done with it.

use breakwater_crds::names::{NODES_NAMESPACE, SYSTEM_NAMESPACE};
use clap::{Parser, ValueEnum};
use std::net::SocketAddr;

const AFTER_HELP: &str = "\
Example:
  POD_NAME=laptop breakwater-operator --image breakwater.dev/breakwater:0.1.0 --listen 127.0.0.1:8080

Exit codes: 0 stopped by a signal, 1 could not start or go on, 2 wrong usage";

/// Turns RegistryMirror objects into one pull-through cache per upstream registry
#[derive(Debug, Parser)]
#[command(name = "breakwater-operator", version, about, after_help = AFTER_HELP)]
pub struct Args {
    /// Namespace of the operator, its caches and their credentials
    #[arg(long, env = "BREAKWATER_NAMESPACE", default_value = SYSTEM_NAMESPACE, value_name = "NAME", help_heading = "Cluster")]
    pub namespace: String,

    /// Namespace of the node agents
    #[arg(long, env = "BREAKWATER_NODES_NAMESPACE", default_value = NODES_NAMESPACE, value_name = "NAME", help_heading = "Cluster")]
    pub nodes_namespace: String,

    /// Image that the caches run
    #[arg(long, env = "BREAKWATER_IMAGE", value_name = "IMAGE", help_heading = "Cluster")]
    pub image: String,

    /// Name of this Pod: who holds the lease, and who reports Events
    #[arg(long, env = "POD_NAME", value_name = "NAME", help_heading = "Cluster")]
    pub pod_name: String,

    /// Address for /healthz, /readyz, /metrics and /log-level; :PORT is every address
    #[arg(long, env = "BREAKWATER_LISTEN", default_value = ":8080", value_name = "ADDR", value_parser = listen_address, help_heading = "Operation")]
    pub listen: SocketAddr,

    /// Form of the log
    #[arg(
        long,
        env = "BREAKWATER_LOG_FORMAT",
        default_value = "text",
        value_name = "FORMAT",
        help_heading = "Operation"
    )]
    pub log_format: LogFormat,
}

/// The form of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// `:8080` is every address: a dual-stack socket on `[::]`.
fn listen_address(text: &str) -> Result<SocketAddr, std::net::AddrParseError> {
    match text.strip_prefix(':') {
        Some(port) => format!("[::]:{port}").parse(),
        None => text.parse(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_alone_is_every_address() {
        assert_eq!(listen_address(":8080").unwrap(), "[::]:8080".parse().unwrap());
        assert_eq!(listen_address("127.0.0.1:0").unwrap(), "127.0.0.1:0".parse().unwrap());
        assert!(listen_address("localhost").is_err());
    }

    #[test]
    fn the_image_is_required() {
        let error = Args::try_parse_from(["breakwater-operator", "--pod-name", "x"]);
        assert!(std::env::var_os("BREAKWATER_IMAGE").is_some() || error.unwrap_err().to_string().contains("--image"));
    }
}
