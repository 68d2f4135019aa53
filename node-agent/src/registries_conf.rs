//! The text of a drop-in for `registries.conf`, by which CRI-O, podman and skopeo go to the relay. Pure; knows no path.
//!
//! Of two files that speak of the same prefix the later one replaces the earlier one's whole table. So what a foreign file says of
//! a prefix is carried over into ours with our mirror before its mirrors; the foreign file stays as it is.
//! <https://github.com/containers/image/blob/main/docs/containers-registries.conf.5.md>

use crate::hosts_toml::{Entry, Server};
use crate::registry_host::RegistryHost;
use std::io;
use toml_edit::{ArrayOfTables, Document, DocumentMut, Item, Table, TomlError, value};

/// Begins each file of ours; the mirror's name follows.
pub const MARKER: &str = "# Managed by Breakwater: RegistryMirror/";
/// Begins the name of each file of ours.
pub const NAME: &str = "50-breakwater-";

/// A file of somebody else's, in the order in which they are read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Foreign {
    /// Its name; the main file has none, as it is read first.
    pub name: Option<String>,
    /// Its text.
    pub text: String,
}

/// Why there is no drop-in.
#[derive(Debug, thiserror::Error)]
pub enum Unfit {
    /// The runtime may read it, and what it says is not known.
    #[error("{0} cannot be read: {1}; mend or remove it")]
    Read(String, #[source] io::Error),
    /// The runtime does not read it either.
    #[error("{0} is not valid TOML")]
    Parse(String, #[source] TomlError),
    /// Ours would not count.
    #[error("{0} speaks of the same prefix and is read later; rename it so that it sorts before {NAME}")]
    Shadowed(String),
    /// Nothing is to be pulled from there.
    #[error("{0} blocks the registry")]
    Blocked(String),
}

/// The name of a registry's drop-in.
#[must_use]
pub fn file_name(registry: &RegistryHost) -> String {
    format!("{NAME}{}.conf", path_part(registry))
}

/// The text of a registry's drop-in among what others say.
///
/// # Errors
/// A foreign file that cannot be read, comes later or blocks the registry.
pub fn render(registry: &RegistryHost, entry: &Entry, foreign: &[Foreign]) -> Result<String, Unfit> {
    let mut table = Table::new();
    let mut carried = None;
    for file in foreign {
        let name = file.name.as_deref().unwrap_or("registries.conf");
        let Some(theirs) = table_of(&file.text, registry).map_err(|error| Unfit::Parse(name.to_owned(), error))? else {
            continue;
        };
        if name > file_name(registry).as_str() && file.name.is_some() {
            return Err(Unfit::Shadowed(name.to_owned()));
        }
        if theirs.get("blocked").and_then(Item::as_bool) == Some(true) {
            return Err(Unfit::Blocked(name.to_owned()));
        }
        (table, carried) = (theirs, Some(name));
    }
    let mut mirrors = ArrayOfTables::new();
    mirrors.push(relay_mirror(registry, entry));
    let theirs = table.remove("mirror").and_then(|theirs| theirs.into_array_of_tables().ok());
    for mut theirs in theirs.into_iter().flatten() {
        theirs.decor_mut().set_prefix("\n");
        mirrors.push(theirs);
    }
    if entry.server == Server::Relay && mirrors.len() == 1 {
        // The last host is the relay as well.
        mirrors.clear();
    }
    let own = table.get("location").and_then(Item::as_str).map(str::to_owned);
    let (location, is_plain) = match &entry.server {
        Server::Relay => (relay_location(registry, entry), true),
        // As with hosts.toml, somebody's own way to the upstream counts more than ours.
        Server::Url(url) if own.is_none() => {
            (url.split_once("://").map_or(url.as_str(), |(_, host)| host).to_owned(), url.starts_with("http://"))
        }
        Server::Url(_) | Server::Default => (own.unwrap_or_else(|| registry.to_string()), false),
    };
    table.insert("prefix", value(registry.as_str()));
    table.insert("location", value(location));
    if is_plain {
        table.insert("insecure", value(true));
    }
    if !mirrors.is_empty() {
        table.insert("mirror", Item::ArrayOfTables(mirrors));
    }
    table.decor_mut().clear();
    let mut document = DocumentMut::new();
    document.insert("registry", Item::ArrayOfTables([table].into_iter().collect()));
    let kept = carried.map(|name| format!("# Keeps what {name} says of this registry.\n")).unwrap_or_default();
    Ok(format!("{MARKER}{}\n{kept}{document}", entry.mirror))
}

/// What a file says of exactly this prefix; longer and shorter ones are no affair of ours.
fn table_of(text: &str, registry: &RegistryHost) -> Result<Option<Table>, TomlError> {
    let mut document = Document::parse(text)?.into_mut();
    let tables = document.remove("registry").and_then(|tables| tables.into_array_of_tables().ok());
    let is_it = |table: &&Table| {
        let prefix = table.get("prefix").and_then(Item::as_str).filter(|prefix| !prefix.is_empty());
        let prefix = prefix.or_else(|| table.get("location").and_then(Item::as_str));
        prefix.map(|prefix| prefix.trim_end_matches('/')) == Some(registry.as_str())
    };
    Ok(tables.and_then(|tables| tables.iter().find(is_it).cloned()))
}

fn relay_mirror(registry: &RegistryHost, entry: &Entry) -> Table {
    let mut table = Table::new();
    table.insert("location", value(relay_location(registry, entry)));
    // It speaks plain HTTP, over loopback alone.
    table.insert("insecure", value(true));
    table
}

/// The relay as a mirror: without `ns`, the first part of the path names the registry.
fn relay_location(registry: &RegistryHost, entry: &Entry) -> String {
    let relay = entry.relay.strip_prefix("http://").unwrap_or(&entry.relay);
    format!("{relay}/{}", path_part(registry))
}

/// A repository's path has no colon, and a host no underscore.
fn path_part(registry: &RegistryHost) -> String {
    registry.as_str().replace(':', "_")
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};

    fn host(registry: &str) -> RegistryHost {
        RegistryHost::parse(registry).unwrap()
    }

    fn rendered(registry: &RegistryHost, server: Server, foreign: &[(&str, &str)]) -> Result<String, Unfit> {
        let entry = Entry { mirror: "hub".into(), relay: "http://127.0.0.1:429".into(), server };
        let foreign: Vec<_> = foreign
            .iter()
            .map(|(name, text)| Foreign {
                name: Some((*name).to_owned()).filter(|name| !name.is_empty()),
                text: (*text).to_owned(),
            })
            .collect();
        render(registry, &entry, &foreign)
    }

    #[track_caller]
    fn check(registry: &str, server: Server, foreign: &[(&str, &str)], expected: &Expect) {
        let text = rendered(&host(registry), server, foreign).unwrap();
        assert!(text.parse::<DocumentMut>().is_ok(), "{text}");
        expected.assert_eq(&text);
    }

    #[test]
    fn the_relay_comes_first_and_the_registry_itself_last() {
        check(
            "docker.io",
            Server::Default,
            &[("", "unqualified-search-registries = ['docker.io']\n[[registry]]\nlocation = 'docker.io/library'\n")],
            &expect![[r##"
                # Managed by Breakwater: RegistryMirror/hub
                [[registry]]
                prefix = "docker.io"
                location = "docker.io"

                [[registry.mirror]]
                location = "127.0.0.1:429/docker.io"
                insecure = true
            "##]],
        );
        check(
            "r.example:5000",
            Server::Url("http://10.0.0.1:5000".into()),
            &[],
            &expect![[r##"
            # Managed by Breakwater: RegistryMirror/hub
            [[registry]]
            prefix = "r.example:5000"
            location = "10.0.0.1:5000"
            insecure = true

            [[registry.mirror]]
            location = "127.0.0.1:429/r.example_5000"
            insecure = true
        "##]],
        );
        check(
            "ghcr.io",
            Server::Relay,
            &[],
            &expect![[r##"
                # Managed by Breakwater: RegistryMirror/hub
                [[registry]]
                prefix = "ghcr.io"
                location = "127.0.0.1:429/ghcr.io"
                insecure = true
            "##]],
        );
    }

    #[test]
    fn what_others_say_of_the_prefix_is_kept_behind_ours() {
        let main = "[[registry]]\nprefix = 'docker.io'\nlocation = 'old.example'\n";
        let drop_in = "# corp\n[[registry]]\nlocation = 'docker.io'\nmirror-by-digest-only = true # safe\n\
                       [[registry.mirror]]\nlocation = 'm.corp/hub'\npull-from-mirror = 'digest-only'\n";
        check(
            "docker.io",
            Server::Default,
            &[("", main), ("10-corp.conf", drop_in)],
            &expect![[r##"
                # Managed by Breakwater: RegistryMirror/hub
                # Keeps what 10-corp.conf says of this registry.
                [[registry]]
                location = "docker.io"
                mirror-by-digest-only = true # safe
                prefix = "docker.io"

                [[registry.mirror]]
                location = "127.0.0.1:429/docker.io"
                insecure = true

                [[registry.mirror]]
                location = 'm.corp/hub'
                pull-from-mirror = 'digest-only'
            "##]],
        );
    }

    #[test]
    fn what_would_make_ours_void_is_refused() {
        let theirs = "[[registry]]\nprefix = 'docker.io'\nlocation = 'docker.io'\n";
        let refused =
            |name: &str, text: &str| rendered(&host("docker.io"), Server::Default, &[(name, text)]).unwrap_err();
        assert!(matches!(refused("60-corp.conf", theirs), Unfit::Shadowed(name) if name == "60-corp.conf"));
        assert!(matches!(refused("", &format!("{theirs}blocked = true\n")), Unfit::Blocked(_)));
        assert!(matches!(refused("10.conf", "["), Unfit::Parse(..)));
        let other = rendered(&host("ghcr.io"), Server::Default, &[("60-corp.conf", theirs)]);
        assert!(other.is_ok());
    }

    #[test]
    fn arrays_of_inline_tables_are_read_and_a_slash_at_the_end_means_nothing() {
        let rendered = |theirs| rendered(&host("docker.io"), Server::Default, &[("10-corp.conf", theirs)]);
        let mirror = "[[registry]]\nprefix = 'docker.io'\nmirror = [{location = 'm.corp/hub'}]\n";
        assert!(rendered(mirror).unwrap().contains("m.corp/hub"));
        for blocked in [
            "registry = [{prefix = 'docker.io', location = 'docker.io', blocked = true}]\n",
            "[[registry]]\nprefix = 'docker.io/'\nlocation = 'docker.io'\nblocked = true\n",
        ] {
            assert!(matches!(rendered(blocked), Err(Unfit::Blocked(_))), "{blocked}");
        }
    }
}
