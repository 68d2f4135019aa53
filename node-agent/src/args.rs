//! The command line: the complete surface of the agent's settings. Decides nothing.

use breakwater_crds::names;
use clap::{Parser, ValueEnum};
use std::net::SocketAddr;
use std::path::PathBuf;

/// Points this node's container runtime at Breakwater's caches and keeps the way to the upstream open
#[derive(Debug, Parser)]
#[command(version, after_help = "Exit codes: 0 stopped by a signal, 1 could not start or go on, 2 wrong usage")]
pub struct Args {
    /// Name of the Node that the agent runs on; also read from NODE_NAME
    #[arg(long, env = "BREAKWATER_NODE_NAME", default_value_t = std::env::var("NODE_NAME").unwrap_or_default(),
          hide_default_value = true, value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub node_name: String,

    /// Where the node's certs.d is mounted
    #[arg(long, env = "BREAKWATER_CERTS_DIR", default_value = "/etc/containerd/certs.d", value_name = "DIR")]
    pub certs_dir: PathBuf,

    /// The same folder as the node sees it, for the status
    #[arg(long, env = "BREAKWATER_CONFIG_PATH", default_value = "/etc/containerd/certs.d", value_name = "DIR")]
    pub config_path: String,

    /// Keeps what to give back and what was last known of the cluster
    #[arg(long, env = "BREAKWATER_STATE_DIR", default_value = "/var/lib/breakwater", value_name = "DIR")]
    pub state_dir: PathBuf,

    /// Loopback address that the container runtime asks
    #[arg(long, env = "BREAKWATER_RELAY_LISTEN", value_parser = loopback, value_name = "ADDR",
          default_value_t = SocketAddr::from(([127, 0, 0, 1], names::RELAY_PORT)))]
    pub relay_listen: SocketAddr,

    /// Namespace of the caches
    #[arg(long, env = "BREAKWATER_NAMESPACE", default_value = names::SYSTEM_NAMESPACE)]
    pub namespace: String,

    /// Namespace of the agents
    #[arg(long, env = "BREAKWATER_AGENT_NAMESPACE", default_value = names::NODES_NAMESPACE, value_name = "NAMESPACE")]
    pub agent_namespace: String,

    /// Name of the agents' DaemonSet: while it is there, a stop is an upgrade and the node's files stay
    #[arg(long, env = "BREAKWATER_DAEMON_SET", default_value = "breakwater-node-agent", value_name = "NAME")]
    pub daemon_set: String,

    /// Form of the log
    #[arg(long, env = "BREAKWATER_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
}

/// Form of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines.
    Json,
}

fn loopback(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr =
        text.parse().map_err(|_| "must be an address and a port, such as 127.0.0.1:429".to_owned())?;
    if address.ip().is_loopback() {
        Ok(address)
    } else {
        Err("must be a loopback address, because the relay serves this node alone: use 127.0.0.1".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_relay_listens_on_loopback_alone() {
        let parse = |listen| Args::try_parse_from(["agent", "--node-name", "n", "--relay-listen", listen]);
        assert_eq!(parse("127.0.0.1:0").unwrap().relay_listen.port(), 0);
        assert!(parse("[::1]:429").is_ok());
        for bad in ["0.0.0.0:429", "[::]:429", "10.0.0.1:429", "localhost:429", "429"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn defaults_are_those_of_the_manifests() {
        let args = Args::try_parse_from(["agent", "--node-name", "n"]).unwrap();
        assert_eq!(args.relay_listen.to_string(), "127.0.0.1:429");
        assert_eq!(args.daemon_set, "breakwater-node-agent");
        assert!(Args::try_parse_from(["agent", "--node-name", ""]).is_err());
    }
}
