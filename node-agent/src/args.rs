//! The command line: the complete surface of the agent's settings. Decides nothing.

use breakwater_crds::names;
use clap::error::ErrorKind;
use clap::{Args as ClapArgs, CommandFactory, Parser, Subcommand, ValueEnum};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Points this node's container runtime at Breakwater's caches and keeps the way to the upstream open
#[derive(Debug, Parser)]
#[command(
    version,
    args_conflicts_with_subcommands = true,
    after_help = "Exit codes: 0 stopped by a signal or done, 1 could not start, go on or do all of it, 2 wrong usage"
)]
pub struct Cli {
    /// What to do instead of running as the node's agent
    #[command(subcommand)]
    pub command: Option<Command>,

    /// How to run as the node's agent
    #[command(flatten)]
    pub agent: Args,
}

/// What to do without a cluster.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Print each file that the agent would write, with its whole text; writes nothing
    Plan(PlanArgs),
    /// Give every file back as it was found; stop the agent before, or it writes them again
    Restore(NodeArgs),
}

/// How to plan.
#[derive(Debug, ClapArgs)]
pub struct PlanArgs {
    /// Manifest with RegistryMirrors; other objects in it are passed over; -: standard input
    #[arg(long, value_name = "FILE")]
    pub from: PathBuf,

    /// Labels of the node, for mirrors that select nodes
    #[arg(long, value_delimiter = ',', value_parser = label, value_name = "KEY=VALUE,...")]
    pub labels: Vec<(String, String)>,

    /// Which node
    #[command(flatten)]
    pub node: NodeArgs,
}

/// The node that a subcommand is about.
#[derive(Clone, Debug, ClapArgs)]
pub struct NodeArgs {
    /// The node's certs.d
    #[arg(long, env = "BREAKWATER_CERTS_DIR", default_value = "/etc/containerd/certs.d", value_name = "DIR")]
    pub certs_dir: PathBuf,

    /// On nodes with CRI-O or podman: the node's registries.conf.d, in place of certs.d
    #[arg(long, env = "BREAKWATER_REGISTRIES_CONF_DIR", value_name = "DIR")]
    pub registries_conf_dir: Option<PathBuf>,

    /// The agent's state, which tells what it wrote and holds what to give back
    #[arg(long, env = "BREAKWATER_STATE_DIR", default_value = "/var/lib/breakwater", value_name = "DIR")]
    pub state_dir: PathBuf,

    /// Loopback address that the container runtime asks, by which the agent's part of a file is known should its state be lost
    #[arg(long, env = "BREAKWATER_RELAY_LISTEN", value_parser = loopback, value_name = "ADDR",
          default_value_t = SocketAddr::from(([127, 0, 0, 1], names::RELAY_PORT)))]
    pub relay_listen: SocketAddr,
}

impl Cli {
    /// Checks what depends on the subcommand.
    ///
    /// # Errors
    /// The node's agent does not know its node.
    pub fn check(self) -> Result<Self, clap::Error> {
        if self.command.is_none() && self.agent.node_name.is_empty() {
            let message = "--node-name must name the Node that the agent runs on; set it or NODE_NAME";
            return Err(Self::command().error(ErrorKind::MissingRequiredArgument, message));
        }
        Ok(self)
    }
}

/// Settings of the node's agent.
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// Name of the Node that the agent runs on; also read from NODE_NAME
    #[arg(long, env = "BREAKWATER_NODE_NAME", default_value_t = std::env::var("NODE_NAME").unwrap_or_default(),
          hide_default_value = true)]
    pub node_name: String,

    /// Where the node's certs.d is mounted
    #[arg(long, env = "BREAKWATER_CERTS_DIR", default_value = "/etc/containerd/certs.d", value_name = "DIR")]
    pub certs_dir: PathBuf,

    /// The same folder as the node sees it, for the status
    #[arg(long, env = "BREAKWATER_CONFIG_PATH", default_value = "/etc/containerd/certs.d", value_name = "DIR")]
    pub config_path: String,

    /// On nodes with CRI-O or podman: writes drop-ins there instead of hosts.toml files; /etc/containers/registries.conf.d as a rule
    #[arg(long, env = "BREAKWATER_REGISTRIES_CONF_DIR", value_name = "DIR")]
    pub registries_conf_dir: Option<PathBuf>,

    /// containerd's configuration, at the path where the node has it; read to say why the runtime ignores certs.d
    #[arg(long, env = "BREAKWATER_RUNTIME_CONFIG", default_value = "/etc/containerd/config.toml", value_name = "FILE")]
    pub runtime_config: PathBuf,

    /// Where containerd 2.x reads no hosts.toml, writes a drop-in that has it read certs.d from its next start on; taken back if that does
    /// not help
    #[arg(long, env = "BREAKWATER_CONFIGURE_RUNTIME")]
    pub configure_runtime: bool,

    /// The runtime's CRI socket, by which is proven that it reads certs.d; none: the first pull is the proof
    #[arg(
        long,
        env = "BREAKWATER_CRI_SOCKET",
        default_value = "/run/containerd/containerd.sock",
        value_name = "FILE|none"
    )]
    pub cri_socket: CriSocket,

    /// Keeps what to give back and what was last known of the cluster
    #[arg(long, env = "BREAKWATER_STATE_DIR", default_value = "/var/lib/breakwater", value_name = "DIR")]
    pub state_dir: PathBuf,

    /// Loopback address that the container runtime asks
    #[arg(long, env = "BREAKWATER_RELAY_LISTEN", value_parser = loopback, value_name = "ADDR",
          default_value_t = SocketAddr::from(([127, 0, 0, 1], names::RELAY_PORT)))]
    pub relay_listen: SocketAddr,

    /// Address that health and metrics are told at; it serves no content
    #[arg(long, env = "BREAKWATER_ADMIN_LISTEN", value_name = "ADDR",
          default_value_t = SocketAddr::from(([0, 0, 0, 0], names::NODE_ADMIN_PORT)))]
    pub admin_listen: SocketAddr,

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

/// Whether and where the container runtime is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CriSocket(pub Option<PathBuf>);

impl FromStr for CriSocket {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let path = Path::new(text.strip_prefix("unix://").unwrap_or(text));
        match text {
            "none" => Ok(Self(None)),
            _ if path.is_absolute() => Ok(Self(Some(path.to_owned()))),
            _ => Err("must be none or the absolute path of a socket, such as /run/containerd/containerd.sock"),
        }
    }
}

/// Form of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines.
    Json,
}

fn label(text: &str) -> Result<(String, String), &'static str> {
    let (key, value) = text.split_once('=').ok_or("must be a label as kubectl prints it, such as zone=a")?;
    Ok((key.to_owned(), value.to_owned()))
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

    fn agent(more: &[&str]) -> Result<Args, clap::Error> {
        let parsed = Cli::try_parse_from([&["agent", "--node-name", "n"], more].concat())?;
        parsed.check().map(|cli| cli.agent)
    }

    #[test]
    fn subcommands_need_no_node_and_the_agent_does() {
        let parse = |arguments: &[&str]| Cli::try_parse_from([&["agent"], arguments].concat()).and_then(Cli::check);
        assert!(parse(&["plan"]).is_err());
        assert!(parse(&["plan", "--from", "m.yaml", "--labels", "zone"]).is_err());
        let parsed = parse(&["plan", "--from", "m.yaml", "--labels", "zone=a,b=", "--certs-dir", "/c"]).unwrap();
        let Some(Command::Plan(plan)) = parsed.command else { panic!("{parsed:?}") };
        assert_eq!(plan.labels, [("zone".to_owned(), "a".to_owned()), ("b".to_owned(), String::new())]);
        assert!(matches!(parse(&["restore"]).unwrap().command, Some(Command::Restore(_))));
        assert!(parse(&["--node-name", ""]).is_err());
        assert!(parse(&["--node-name", "n", "restore"]).is_err());
    }

    #[test]
    fn the_relay_listens_on_loopback_alone() {
        let parse = |listen| agent(&["--relay-listen", listen]);
        assert_eq!(parse("127.0.0.1:0").unwrap().relay_listen.port(), 0);
        assert!(parse("[::1]:429").is_ok());
        for bad in ["0.0.0.0:429", "[::]:429", "10.0.0.1:429", "localhost:429", "429"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_socket_is_a_path_or_none() {
        let parse = |socket| agent(&["--cri-socket", socket]).map(|args| args.cri_socket.0);
        assert_eq!(parse("none").unwrap(), None);
        for socket in ["/run/k3s/c.sock", "unix:///run/k3s/c.sock"] {
            assert_eq!(parse(socket).unwrap(), Some(PathBuf::from("/run/k3s/c.sock")));
        }
        for bad in ["", "no", "run/c.sock", "tcp://127.0.0.1:1"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn defaults_are_those_of_the_manifests() {
        let args = agent(&[]).unwrap();
        assert_eq!(args.relay_listen.to_string(), "127.0.0.1:429");
        assert_eq!(args.admin_listen.to_string(), "0.0.0.0:430");
        assert_eq!(args.daemon_set, "breakwater-node-agent");
    }
}
