//! Docker credentials from mounted Secrets, matched as the kubelet's keyring matches them. Reads files; sends nothing.

use std::{
    cmp::Reverse,
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use arc_swap::ArcSwap;
use base64::{Engine, engine::general_purpose::STANDARD};
use serde::Deserialize;
use tracing::{info, warn};

use crate::{reference::RepositoryName, registry_host::RegistryHost, secret::Secret};

/// A user and its password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login {
    /// User name.
    pub user: String,
    /// Password or token.
    pub password: Secret,
}

#[derive(Deserialize)]
struct DockerConfig {
    #[serde(default)]
    auths: HashMap<String, DockerAuth>,
}

#[derive(Deserialize)]
struct DockerAuth {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
}

/// The logins for one registry, longest path first, and of one path those of the host itself before a pattern's.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Keyring(Vec<Entry>);

/// A login, and for what it is to be used.
#[derive(Debug, PartialEq, Eq)]
struct Entry {
    path: String,
    is_pattern: bool,
    login: Login,
}

impl Keyring {
    /// The logins of one `.dockerconfigjson` that concern `registry`; `None` if the text is none.
    pub fn parse(text: &[u8], registry: &RegistryHost) -> Option<Self> {
        let mut keyring = Self::default();
        keyring.add(text, registry)?;
        Some(keyring)
    }

    /// Adds the logins of a `.dockerconfigjson` that concern `registry`; `None` if the text is none.
    fn add(&mut self, text: &[u8], registry: &RegistryHost) -> Option<()> {
        let config: DockerConfig = serde_json::from_slice(text).ok()?;
        for (key, auth) in config.auths {
            let (host, path) = split_key(&key);
            if let Some(login) = login_of(auth).filter(|_| host_matches(host, registry)) {
                self.0.push(Entry { path: path.to_owned(), is_pattern: host.contains('*'), login });
            }
        }
        // In the end the text decides, so that the same files always give the same choice.
        self.0.sort_by_cached_key(|Entry { path, is_pattern, login }| {
            (Reverse(path.len()), *is_pattern, path.clone(), login.user.clone())
        });
        Some(())
    }

    /// The login for a repository: the longest path that begins its name.
    pub fn login(&self, repository: &RepositoryName) -> Option<&Login> {
        self.0.iter().find(|entry| repository.as_str().starts_with(&entry.path)).map(|entry| &entry.login)
    }

    /// The login that stands for the whole host, or any: to learn whether it is still accepted.
    pub fn any(&self) -> Option<&Login> {
        self.0.iter().min_by_key(|entry| entry.path.len()).map(|entry| &entry.login)
    }
}

/// `https://index.docker.io/v1/` -> (`index.docker.io`, ``); `host/team` -> (`host`, `team`).
fn split_key(key: &str) -> (&str, &str) {
    let plain = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let (host, path) = plain.split_once('/').unwrap_or((plain, ""));
    let path = path.trim_end_matches('/');
    let path = match path.split_once('/').unwrap_or((path, "")) {
        ("v1" | "v2", below) => below,
        _ => path,
    };
    (host, path.trim_start_matches('/'))
}

/// Hosts match label by label, `*` standing for any part of one label; the port must be the same.
fn host_matches(pattern: &str, registry: &RegistryHost) -> bool {
    if registry.is_also_called(pattern) {
        return true;
    }
    let with_port = |text: &str| {
        let (host, port) = text.rsplit_once(':').unwrap_or((text, ""));
        (host.to_ascii_lowercase(), port.to_owned())
    };
    let ((pattern, pattern_port), (host, port)) = (with_port(pattern), with_port(registry.as_str()));
    let (patterns, labels): (Vec<_>, Vec<_>) = (pattern.split('.').collect(), host.split('.').collect());
    pattern_port == port
        && patterns.len() == labels.len()
        && patterns.iter().zip(labels).all(|(pattern, label)| label_matches(pattern, label))
}

fn label_matches(pattern: &str, label: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else { return pattern == label };
    let (between, end) = rest.rsplit_once('*').unwrap_or(("", rest));
    let middle = label.strip_prefix(start).and_then(|tail| tail.strip_suffix(end));
    // The first place that fits leaves the most for the parts to come, so none has to be tried again.
    let left = between.split('*').try_fold(middle, |left, part| {
        let left = left?;
        Some(Some(&left[left.find(part)? + part.len()..]))
    });
    left.flatten().is_some()
}

fn login_of(auth: DockerAuth) -> Option<Login> {
    let DockerAuth { auth, username, password } = auth;
    let (user, password) = match (auth.filter(|text| !text.is_empty()), username, password) {
        (Some(encoded), _, _) => {
            let text = String::from_utf8(STANDARD.decode(encoded.trim()).ok()?).ok()?;
            let (user, password) = text.split_once(':')?;
            (user.to_owned(), password.trim_end_matches('\0').to_owned())
        }
        (None, Some(user), Some(password)) => (user, password),
        _ => return None,
    };
    (!user.is_empty()).then(|| Login { user, password: Secret::new(password) })
}

/// The keyring as the mounted folder has it now.
pub struct CredentialStore {
    folder: Option<PathBuf>,
    registry: RegistryHost,
    keyring: ArcSwap<Keyring>,
}

impl CredentialStore {
    /// Reads `folder` once.
    pub fn open(folder: Option<PathBuf>, registry: RegistryHost) -> Self {
        let store = Self { folder, registry, keyring: ArcSwap::default() };
        store.reload();
        store
    }

    /// The logins to use now.
    pub fn keyring(&self) -> Arc<Keyring> {
        self.keyring.load_full()
    }

    /// What the folder looks like: changes when a file does. Follows symlinks, as mounted Secrets are swapped by them.
    pub fn fingerprint(&self) -> Vec<(PathBuf, SystemTime, u64)> {
        let files = self.folder.iter().flat_map(|folder| config_files(folder));
        let mut seen: Vec<_> = files
            .filter_map(|path| {
                let metadata = fs::metadata(&path).ok()?;
                Some((fs::canonicalize(&path).ok()?, metadata.modified().ok()?, metadata.len()))
            })
            .collect();
        seen.sort();
        seen
    }

    /// Reads the folder again.
    pub fn reload(&self) {
        let mut keyring = Keyring::default();
        for path in self.folder.iter().flat_map(|folder| config_files(folder)) {
            match fs::read(&path) {
                Ok(text) if keyring.add(&text, &self.registry).is_none() => {
                    warn!(registry = %self.registry, file = %path.display(), "credentials ignored: not a docker config in JSON");
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    warn!(registry = %self.registry, file = %path.display(), %error, "credentials unreadable");
                }
            }
        }
        if self.folder.is_some() {
            info!(registry = %self.registry, logins = keyring.0.len(), "credentials read");
        }
        self.keyring.store(Arc::new(keyring));
    }
}

/// `.dockerconfigjson` in the folder itself and in each folder below it, one per Secret.
fn config_files(folder: &Path) -> Vec<PathBuf> {
    let below = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut files: Vec<PathBuf> = below
        .filter(|path| {
            path.is_dir() && !path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b".."))
        })
        .chain([folder.to_owned()])
        .map(|path| path.join(".dockerconfigjson"))
        .filter(|path| path.exists())
        .collect();
    files.sort();
    files
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn keyring(registry: &str, auths: &serde_json::Value) -> Keyring {
        let mut keyring = Keyring::default();
        let text = serde_json::json!({ "auths": auths }).to_string();
        keyring.add(text.as_bytes(), &registry.parse().unwrap()).unwrap();
        keyring
    }

    fn user(keyring: &Keyring, repository: &str) -> Option<String> {
        keyring.login(&repository.parse().unwrap()).map(|login| login.user.clone())
    }

    #[test]
    fn the_longest_path_wins() {
        let auths = serde_json::json!({
            "registry.example.com": {"auth": STANDARD.encode("host:x")},
            "registry.example.com/team": {"username": "team", "password": "x"},
            "https://registry.example.com/team/app": {"auth": STANDARD.encode("app:x:y")},
            "registry.example.com/v2fly": {"username": "fly", "password": "x"},
            "other.example.com": {"auth": STANDARD.encode("other:x")},
        });
        let keyring = keyring("registry.example.com", &auths);
        assert_eq!(user(&keyring, "a/b").as_deref(), Some("host"));
        assert_eq!(user(&keyring, "team/x").as_deref(), Some("team"));
        assert_eq!(user(&keyring, "v2fly/x").as_deref(), Some("fly"), "no version of the API");
        assert_eq!(user(&keyring, "fly/x").as_deref(), Some("host"));
        assert_eq!(user(&keyring, "team/app").as_deref(), Some("app"));
        assert_eq!(keyring.login(&"team/app".parse().unwrap()).unwrap().password.expose(), "x:y");
        assert_eq!(keyring.any().unwrap().user, "host");
    }

    #[test]
    fn docker_hub_and_wildcards() {
        let auths = serde_json::json!({ "https://index.docker.io/v1/": {"auth": STANDARD.encode("hub:x")} });
        assert_eq!(user(&keyring("docker.io", &auths), "library/nginx").as_deref(), Some("hub"));
        let wild = serde_json::json!({ "*.example.com": {"auth": STANDARD.encode("any:x")} });
        let keyring_of_both = |first: &serde_json::Value, then: &serde_json::Value| {
            let mut keyring = keyring("a.example.com", first);
            let text = serde_json::json!({ "auths": then }).to_string();
            keyring.add(text.as_bytes(), &"a.example.com".parse().unwrap()).unwrap();
            assert_eq!(keyring.any(), keyring.login(&"x".parse().unwrap()), "it is tried as it is used");
            user(&keyring, "x")
        };
        let exact = serde_json::json!({ "a.example.com": {"auth": STANDARD.encode("the-one:x")} });
        assert_eq!(keyring_of_both(&wild, &exact).as_deref(), Some("the-one"));
        assert_eq!(keyring_of_both(&exact, &wild).as_deref(), Some("the-one"));
        let auths = serde_json::json!({ "*.example.com": {"auth": STANDARD.encode("wild:x")} });
        assert_eq!(user(&keyring("a.example.com", &auths), "x").as_deref(), Some("wild"));
        for (pattern, label, expected) in [
            ("*", "", true),
            ("a*", "abc", true),
            ("*c", "abc", true),
            ("a*c*e", "abcde", true),
            ("a*e*c", "abcde", false),
            ("ab*ba", "aba", false),
            (&"a*".repeat(40), &"a".repeat(60), true),
            (&format!("{}b", "a*".repeat(40)), &"a".repeat(60), false),
        ] {
            assert_eq!(label_matches(pattern, label), expected, "{pattern} {label}");
        }
        assert_eq!(user(&keyring("a.b.example.com", &auths), "x"), None);
        assert_eq!(user(&keyring("a.example.com:5000", &auths), "x"), None);
    }

    #[test]
    fn nonsense_is_ignored() {
        let host: RegistryHost = "docker.io".parse().unwrap();
        assert!(Keyring::default().add(b"{", &host).is_none());
        let auths = serde_json::json!({ "docker.io": {"auth": "!!"}, "index.docker.io": {}, "": {"auth": ""} });
        assert_eq!(user(&keyring("docker.io", &auths), "x"), None);
    }

    #[test]
    fn debug_shows_no_password() {
        let login = Login { user: "u".into(), password: Secret::new("hunter2") };
        assert!(!format!("{login:?}").contains("hunter2"));
    }

    proptest! {
        #[test]
        fn any_text_is_a_keyring_or_none(text: Vec<u8>, key in "[ -~]{0,30}", auth in "[ -~]{0,30}", host in "[a-z*.:0-9]{1,20}") {
            let registry = host.parse().unwrap_or_else(|_| "docker.io".parse().unwrap());
            let _ = Keyring::parse(&text, &registry);
            let config = serde_json::json!({ "auths": { key: {"auth": STANDARD.encode(&auth)}, host: {"auth": auth} } });
            let keyring = Keyring::parse(config.to_string().as_bytes(), &registry).unwrap();
            prop_assert!(keyring.login(&"library/app".parse().unwrap()).is_none_or(|login| !login.user.is_empty()));
        }
    }
}
