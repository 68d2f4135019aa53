//! The command line: all there is to configure. Each flag has an environment twin.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::Parser;
use reqwest::Url;

use crate::{
    duration, on_error::Rule, peer::PeerAddress, reference::RepositoryName, registry_host::RegistryHost,
    secret::Secret, store::size::CacheSize, telemetry::LogFormat,
};

const AFTER_HELP: &str = "\
Example:
  breakwater-registry --upstream-registry docker.io --data-dir ./cache
  curl -s http://127.0.0.1:5000/v2/library/alpine/manifests/latest

Exit codes:
  0 stopped by a signal
  1 could not start or go on
  2 wrong usage";

const ON_ERROR_HELP: &str = "\
What to do with an older answer when upstream fails so; may be given again

CLASS is unreachable, server-error, too-many-requests, invalid-response, token-service, unauthorized or not-found; \
ACTION is serve-stale or deny, which answers 404 for unauthorized and not-found and 503 for the others. \
[default: serve-stale, not-found=deny]";

/// A pull-through cache for one registry that goes on serving while the registry is down
#[derive(Debug, Parser)]
#[command(name = "breakwater-registry", version, after_help = AFTER_HELP)]
pub struct Args {
    /// Host as it stands in image names, such as docker.io
    #[arg(long, value_name = "HOST", env = "BREAKWATER_UPSTREAM_REGISTRY", help_heading = "Upstream")]
    pub upstream_registry: RegistryHost,

    /// Where the registry lives, if not at https://HOST (docker.io's place is known)
    #[arg(long, value_name = "URL", env = "BREAKWATER_UPSTREAM_URL", value_parser = parse_url, help_heading = "Upstream")]
    pub upstream_url: Option<Url>,

    /// Registry with the same content, asked for digests when the registry fails; PREFIX begins its repositories' names; may be given again
    #[arg(long, value_name = "URL[=PREFIX]", env = "BREAKWATER_ALTERNATE", value_delimiter = ',', value_parser = parse_alternate, help_heading = "Upstream")]
    pub alternate: Vec<AlternateAt>,

    /// Another replica of this cache, asked before upstream; may be given again
    #[arg(long, value_name = "HOST:PORT", env = "BREAKWATER_PEER", value_delimiter = ',', help_heading = "Replicas")]
    pub peer: Vec<PeerAddress>,

    /// Folder with one sub-folder per Secret, each with a .dockerconfigjson; read again when it changes
    #[arg(long, value_name = "DIR", env = "BREAKWATER_CREDENTIALS_DIR", help_heading = "Upstream")]
    pub credentials_dir: Option<PathBuf>,

    /// PEM file with certificates to trust upstream by, besides the public ones; may be given again
    #[arg(long, value_name = "FILE", env = "BREAKWATER_CA_FILE", value_delimiter = ',', help_heading = "Upstream")]
    pub ca_file: Vec<PathBuf>,

    /// Proxy for everything upstream, user and password included; better in the environment than on the command line
    #[arg(long, value_name = "URL", env = "BREAKWATER_PROXY_URL", hide_env_values = true, value_parser = parse_secret, help_heading = "Upstream")]
    pub proxy_url: Option<Secret>,

    /// Folder with the files username and password for the proxy, as a Secret is mounted; read again when they change
    #[arg(
        long,
        value_name = "DIR",
        env = "BREAKWATER_PROXY_CREDENTIALS_DIR",
        requires = "proxy_url",
        help_heading = "Upstream"
    )]
    pub proxy_credentials_dir: Option<PathBuf>,

    /// Serve a tag without asking upstream for this long
    #[arg(long, value_name = "DURATION", env = "BREAKWATER_TAG_TTL", default_value = "1m", value_parser = duration::parse, help_heading = "Freshness")]
    pub tag_ttl: Duration,

    /// While upstream fails, serve tags for this long after its last good answer
    #[arg(long, value_name = "DURATION", env = "BREAKWATER_MAX_STALE", default_value = "168h", value_parser = duration::parse, help_heading = "Freshness")]
    pub max_stale: Duration,

    /// What to do with an older answer when upstream fails so; may be given again [default: serve-stale, not-found=deny]
    #[arg(
        long,
        value_name = "CLASS=ACTION",
        env = "BREAKWATER_ON_ERROR",
        value_delimiter = ',',
        long_help = ON_ERROR_HELP,
        help_heading = "Freshness"
    )]
    pub on_error: Vec<Rule>,

    /// Folder that holds the cache; one process and one registry per folder
    #[arg(
        long,
        value_name = "DIR",
        env = "BREAKWATER_DATA_DIR",
        default_value = "./breakwater-data",
        help_heading = "Storage"
    )]
    pub data_dir: PathBuf,

    /// Keep at most this much, such as 40Gi, or this part of the volume; the least recently used goes first
    #[arg(long, value_name = "SIZE", env = "BREAKWATER_CACHE_SIZE", default_value = "90%", help_heading = "Storage")]
    pub cache_size: CacheSize,

    /// Serve pulls by plain HTTP here [default: 127.0.0.1:5000, none with --tls-listen]
    #[arg(long, value_name = "ADDR", env = "BREAKWATER_LISTEN", value_parser = parse_listen, help_heading = "Listeners")]
    pub listen: Option<Listen>,

    /// Serve pulls by TLS here, to callers that show a token
    #[arg(long, value_name = "ADDR", env = "BREAKWATER_TLS_LISTEN", value_parser = parse_listen, requires = "tls_dir", requires = "token_dir", help_heading = "Listeners")]
    pub tls_listen: Option<Listen>,

    /// Folder with tls.crt and tls.key; read again when they change
    #[arg(long, value_name = "DIR", env = "BREAKWATER_TLS_DIR", help_heading = "Listeners")]
    pub tls_dir: Option<PathBuf>,

    /// Folder with the tokens that open the TLS listener: pulls in files named relay*, pins in operator*; read again when they change
    #[arg(long, value_name = "DIR", env = "BREAKWATER_TOKEN_DIR", help_heading = "Listeners")]
    pub token_dir: Option<PathBuf>,

    /// Serve /healthz, /readyz, /metrics and /v1/upstream here
    #[arg(long, value_name = "ADDR", env = "BREAKWATER_ADMIN_LISTEN", default_value = "127.0.0.1:5001", value_parser = parse_listen, help_heading = "Listeners")]
    pub admin_listen: Listen,

    /// How log lines look; RUST_LOG decides which there are
    #[arg(
        long,
        value_name = "FORMAT",
        env = "BREAKWATER_LOG_FORMAT",
        default_value = "text",
        value_enum,
        help_heading = "Logs"
    )]
    pub log_format: LogFormat,
}

/// Where to listen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listen {
    /// Every address of the machine, IPv6 and IPv4.
    Everywhere(u16),
    /// One address.
    At(SocketAddr),
}

fn parse_listen(text: &str) -> Result<Listen, String> {
    let everywhere = text.strip_prefix(':').and_then(|port| port.parse().ok()).map(Listen::Everywhere);
    let localhost = text.strip_prefix("localhost:").map(|port| format!("127.0.0.1:{port}"));
    let at = localhost.as_deref().unwrap_or(text).parse().ok().map(Listen::At);
    everywhere.or(at).ok_or_else(|| {
        "must be ADDRESS:PORT such as 127.0.0.1:5000 or [::1]:5000, or :PORT for every address".to_owned()
    })
}

/// Judged later: the parser's complaints would repeat it.
fn parse_secret(text: &str) -> Result<Secret, std::convert::Infallible> {
    Ok(Secret::new(text))
}

/// Where an alternate is, and what its repositories' names begin with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AlternateAt {
    /// Where it is.
    pub url: Url,
    /// `library/x` is `<prefix>/library/x` there.
    pub prefix: Option<RepositoryName>,
}

fn parse_alternate(text: &str) -> Result<AlternateAt, String> {
    let (url, prefix) = text.split_once('=').map_or((text, None), |(url, prefix)| (url, Some(prefix)));
    let prefix = prefix.map(|prefix| {
        prefix
            .parse()
            .map_err(|_| format!("the prefix must begin repository names, such as docker, and not {prefix:?}"))
    });
    Ok(AlternateAt { url: parse_url(url)?, prefix: prefix.transpose()? })
}

fn parse_url(text: &str) -> Result<Url, String> {
    let url: Url = text.parse().map_err(|_| "must be a URL such as https://registry.example.com".to_owned())?;
    let is_bare = url.path() == "/" && url.query().is_none() && url.fragment().is_none() && url.username().is_empty();
    if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
        return Err("must begin with https:// or http://".to_owned());
    }
    if !is_bare || url.password().is_some() {
        return Err("must hold scheme, host and port only: a registry's API is always at /v2/".to_owned());
    }
    Ok(url)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Args::command().debug_assert();
    }

    /// A row of the reference per flag.
    fn reference() -> String {
        let command = Args::command();
        let flags = command.get_arguments().filter(|flag| flag.get_env().is_some());
        let row = |flag: &clap::Arg| {
            let help = flag.get_help().map(ToString::to_string).unwrap_or_default();
            let (meaning, said) = help.split_once(" [default: ").unwrap_or((&help, ""));
            let values = flag.get_default_values().first().and_then(|value| value.to_str()).unwrap_or_default();
            let default = if said.is_empty() { values } else { said.trim_end_matches(']') };
            let name = flag.get_value_names().and_then(<[_]>::first).map(ToString::to_string).unwrap_or_default();
            let environment = flag.get_env().and_then(|name| name.to_str()).unwrap_or_default();
            let long = flag.get_long().unwrap_or_default();
            format!("| `--{long} {name}` | `{environment}` | {default} | {meaning} |\n")
        };
        flags.map(row).collect()
    }

    #[test]
    fn the_page_lists_every_flag() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/standalone.md");
        let page = std::fs::read_to_string(path).unwrap();
        let found: String = page.split_inclusive('\n').filter(|line| line.starts_with("| `--")).collect();
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(path, page.replace(&found, &reference())).unwrap();
        } else {
            assert_eq!(found, reference(), "UPDATE=1 rewrites docs/standalone.md");
        }
    }

    #[test]
    fn addresses() {
        assert_eq!(parse_listen(":5000"), Ok(Listen::Everywhere(5000)));
        assert_eq!(parse_listen("localhost:0"), Ok(Listen::At("127.0.0.1:0".parse().unwrap())));
        assert_eq!(parse_listen("[::1]:5"), Ok(Listen::At("[::1]:5".parse().unwrap())));
        for bad in ["", "5000", "host:5000", ":", ":99999", "127.0.0.1"] {
            assert!(parse_listen(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn urls() {
        assert!(parse_url("https://registry.example.com:5000").is_ok());
        for bad in ["registry.example.com", "ftp://x", "https://x/path", "https://user@x", "https://x?y"] {
            assert!(parse_url(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn rules_for_failures() {
        let parse = |rule: &str| Args::try_parse_from(["x", "--upstream-registry", "docker.io", "--on-error", rule]);
        assert_eq!(parse("not-found=serve-stale,unreachable=deny").map(|args| args.on_error.len()).ok(), Some(2));
        let refused = parse("404=deny").err().map(|error| error.to_string());
        assert!(refused.is_some_and(|text| text.contains("--on-error") && text.contains("not-found")));
    }

    #[test]
    fn alternates() {
        let parsed = parse_alternate("https://public.ecr.aws=docker").unwrap();
        assert_eq!((parsed.url.as_str(), parsed.prefix.unwrap().as_str()), ("https://public.ecr.aws/", "docker"));
        assert_eq!(parse_alternate("http://a:1").unwrap().prefix, None);
        for bad in ["", "a", "https://a/x", "https://a=", "https://a=/x", "https://a=X", "https://a=b=c"] {
            assert!(parse_alternate(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn tls_needs_its_folders() {
        let parse = |extra: &[&str]| Args::try_parse_from([&["x", "--upstream-registry", "docker.io"], extra].concat());
        assert!(parse(&[]).is_ok());
        assert!(parse(&["--tls-listen", ":0"]).is_err());
        assert!(parse(&["--tls-listen", ":0", "--tls-dir", "a", "--token-dir", "b"]).is_ok());
    }
}
