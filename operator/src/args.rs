//! The command line: the whole configuration of the operator. Knows nothing of what is done with it.

use breakwater_crds::names::{NODES_NAMESPACE, SYSTEM_NAMESPACE};
use clap::error::ErrorKind;
use clap::{Args as ClapArgs, CommandFactory, Parser, Subcommand, ValueEnum};
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

const AFTER_HELP: &str = "\
Example:
  POD_NAME=laptop breakwater-operator --image breakwater.dev/breakwater:0.1.0 --listen 127.0.0.1:8080

Exit codes: 0 stopped by a signal, 1 could not start or go on, 2 wrong usage";

/// Turns RegistryMirror objects into one pull-through cache per upstream registry
#[derive(Debug, Parser)]
#[command(name = "breakwater-operator", version, args_conflicts_with_subcommands = true, after_help = AFTER_HELP)]
pub struct Cli {
    /// What to do instead of running as the operator
    #[command(subcommand)]
    pub command: Option<Command>,

    /// How to run as the operator
    #[command(flatten)]
    pub operator: Args,
}

/// What to do beside an operator that runs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Say whether the installation works: the API, who leads, the agents, each mirror; exits with 1 if not
    Check(CheckArgs),
}

/// How to check.
#[derive(Debug, ClapArgs)]
pub struct CheckArgs {
    /// Namespace of the operator
    #[arg(long, env = "BREAKWATER_NAMESPACE", default_value = SYSTEM_NAMESPACE, value_name = "NAME")]
    pub namespace: String,

    /// Namespace of the node agents
    #[arg(long, env = "BREAKWATER_NODES_NAMESPACE", default_value = NODES_NAMESPACE, value_name = "NAME")]
    pub nodes_namespace: String,

    /// Seconds to wait for what is not well yet
    #[arg(long, default_value = "0", value_name = "SECONDS", value_parser = seconds)]
    pub wait: Duration,
}

impl Cli {
    /// Checks what depends on the subcommand.
    ///
    /// # Errors
    /// The operator lacks a setting that it cannot do without.
    pub fn complete(self) -> Result<Self, clap::Error> {
        for (setting, flag) in [(&self.operator.image, "--image"), (&self.operator.pod_name, "--pod-name")] {
            if self.command.is_none() && setting.is_empty() {
                let message = format!("{flag} must be set");
                return Err(Self::command().error(ErrorKind::MissingRequiredArgument, message));
            }
        }
        Ok(self)
    }
}

/// Settings of the operator.
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// Namespace of the operator, its caches and their credentials
    #[arg(long, env = "BREAKWATER_NAMESPACE", default_value = SYSTEM_NAMESPACE, value_name = "NAME", help_heading = "Cluster")]
    pub namespace: String,

    /// Namespace of the node agents
    #[arg(long, env = "BREAKWATER_NODES_NAMESPACE", default_value = NODES_NAMESPACE, value_name = "NAME", help_heading = "Cluster")]
    pub nodes_namespace: String,

    /// Image that the caches run
    #[arg(
        long,
        env = "BREAKWATER_IMAGE",
        default_value = "",
        hide_default_value = true,
        value_name = "IMAGE",
        help_heading = "Cluster"
    )]
    pub image: String,

    /// Secrets of the operator's namespace that the caches' Pods pull the image with, separated by commas
    #[arg(
        long,
        env = "BREAKWATER_IMAGE_PULL_SECRETS",
        default_value = "",
        hide_default_value = true,
        value_name = "NAME",
        help_heading = "Cluster"
    )]
    pub image_pull_secrets: SecretNames,

    /// Name of this Pod: who holds the lease, and who reports Events
    #[arg(
        long,
        env = "POD_NAME",
        default_value = "",
        hide_default_value = true,
        value_name = "NAME",
        help_heading = "Cluster"
    )]
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

/// Names of Secrets; none where the setting is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SecretNames(Vec<String>);

/// A name that no Secret can have.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is no name of a Secret: it must consist of lower-case letters, digits, - and .")]
pub struct InvalidSecretName(String);

impl SecretNames {
    /// Each name.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }
}

impl FromStr for SecretNames {
    type Err = InvalidSecretName;

    fn from_str(text: &str) -> Result<Self, InvalidSecretName> {
        let names = text.split(',').map(str::trim).filter(|name| !name.is_empty());
        let is_of_a_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.');
        let parse = |name: &str| match name.chars().all(is_of_a_name) {
            true => Ok(name.to_owned()),
            false => Err(InvalidSecretName(name.to_owned())),
        };
        names.map(parse).collect::<Result<_, _>>().map(Self)
    }
}

/// The form of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// At most a day: a clock can be added to that.
fn seconds(text: &str) -> Result<Duration, &'static str> {
    let seconds = text.parse().ok().filter(|seconds| *seconds <= 86_400);
    seconds.map(Duration::from_secs).ok_or("must be whole seconds, at most 86400")
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
    fn names_of_secrets_are_separated_by_commas_and_an_empty_setting_has_none() {
        let parse = |text: &str| text.parse::<SecretNames>().map(|names| names.0);
        assert!(parse("").unwrap().is_empty() && parse(",").unwrap().is_empty());
        assert_eq!(parse("a, b.c-1").unwrap(), ["a", "b.c-1"]);
        let refused = parse("a,Not_A_Name").unwrap_err().to_string();
        assert!(refused.contains("\"Not_A_Name\" is no name of a Secret"), "{refused}");
        let cli = Cli::try_parse_from(["breakwater-operator", "--image-pull-secrets=a,b"]).unwrap();
        assert_eq!(cli.operator.image_pull_secrets.iter().collect::<Vec<_>>(), ["a", "b"]);
    }

    #[test]
    fn the_operator_needs_an_image_and_its_name_and_a_check_neither() {
        let parse = |arguments: &[&str]| {
            Cli::try_parse_from([&["breakwater-operator"], arguments].concat()).and_then(Cli::complete)
        };
        assert!(parse(&["--pod-name=x", "--image="]).unwrap_err().to_string().contains("--image must be set"));
        assert!(parse(&["--image=x", "--pod-name="]).unwrap_err().to_string().contains("--pod-name must be set"));
        assert!(parse(&["--image=x", "--pod-name=y"]).is_ok());
        assert!(parse(&["check", "--wait=86401"]).unwrap_err().to_string().contains("at most 86400"));
        let checked = parse(&["check", "--wait=60"]).unwrap();
        assert!(matches!(checked.command, Some(Command::Check(args)) if args.wait == Duration::from_secs(60)));
    }
}
