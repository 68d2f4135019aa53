//! The tokens that open the TLS listener, by what they are for; read again when their files change. Knows nothing of HTTP
//! but the header that shows a token.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use aws_lc_rs::constant_time::verify_slices_are_equal;
use http::{HeaderMap, HeaderValue, header::AUTHORIZATION};
use tracing::{info, warn};

use crate::{
    digest::{Algorithm, Digest},
    secret::Secret,
};

/// A token that was taken away opens nothing after this long.
const POLL: Duration = Duration::from_secs(2);
/// A caller with a new token is not made to wait for the poll, nor can a stranger make us read files all the time.
const REREAD_AT_MOST_EVERY: Duration = Duration::from_secs(1);

/// What a token opens. One kind opens nothing of the other's: every node holds a relay's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Pulls; files named `relay*`.
    Relay,
    /// Pins; files named `operator*`.
    Operator,
}

impl Role {
    fn of_file(name: &[u8]) -> Option<Self> {
        match name {
            name if name.starts_with(b"relay") => Some(Self::Relay),
            name if name.starts_with(b"operator") => Some(Self::Operator),
            _ => None,
        }
    }
}

/// The token folder cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("--token-dir: cannot read {path}")]
pub struct TokensUnreadable {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// The tokens in force. Each role may have several at a time, so that one can be replaced without a gap.
pub struct Tokens {
    dir: PathBuf,
    current: ArcSwap<Vec<Known>>,
    read: Mutex<Instant>,
}

/// A token: hashes are compared, so that the time it takes tells nothing of it.
#[derive(PartialEq, Eq)]
struct Known {
    role: Role,
    hash: Digest,
    text: Secret,
}

impl Tokens {
    /// Reads the files named `relay*` and `operator*`.
    pub fn open(dir: PathBuf) -> Result<Self, TokensUnreadable> {
        let current = read(&dir).map_err(|source| TokensUnreadable { path: dir.clone(), source })?;
        if !current.iter().any(|known| known.role == Role::Relay) {
            warn!("no relay token in --token-dir yet, all pulls are refused until there is one");
        }
        Ok(Self { dir, current: ArcSwap::from_pointee(current), read: Mutex::new(Instant::now()) })
    }

    /// Whether a request shows a valid token for `role`.
    pub fn admit(&self, headers: &HeaderMap, role: Role) -> bool {
        let shown = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()?.split_once(' '));
        let Some((_, token)) = shown.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("Bearer")) else { return false };
        let hash = hash(token);
        self.knows(&hash, role) || (self.reread() && self.knows(&hash, role))
    }

    /// What opens other replicas for `role`: all are given the same tokens.
    pub fn shown(&self, role: Role) -> Option<HeaderValue> {
        let current = self.current.load();
        let token = &current.iter().find(|known| known.role == role)?.text;
        let mut value = HeaderValue::try_from(format!("Bearer {}", token.expose())).ok()?;
        value.set_sensitive(true);
        Some(value)
    }

    /// A token that was taken away must not stay valid either.
    pub async fn keep_fresh(self: Arc<Self>) {
        loop {
            tokio::time::sleep(POLL).await;
            self.reread();
        }
    }

    fn knows(&self, shown: &Digest, role: Role) -> bool {
        let is_shown = |hash: &Digest| verify_slices_are_equal(hash.hex().as_bytes(), shown.hex().as_bytes()).is_ok();
        self.current.load().iter().any(|known| known.role == role && is_shown(&known.hash))
    }

    fn reread(&self) -> bool {
        let mut last = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if last.elapsed() < REREAD_AT_MOST_EVERY {
            return false;
        }
        *last = Instant::now();
        drop(last);
        match read(&self.dir) {
            Ok(tokens) if tokens == **self.current.load() => {}
            Ok(tokens) => {
                info!(count = tokens.len(), "tokens read again");
                self.current.store(Arc::new(tokens));
            }
            Err(error) => warn!(%error, "tokens not read again, the old ones stay"),
        }
        true
    }
}

/// In the order of their names, so that two readings can be compared.
fn read(dir: &Path) -> io::Result<Vec<Known>> {
    let mut names = fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<_>>>()?;
    names.sort_unstable();
    let mut tokens = Vec::new();
    for name in names {
        let Some(role) = Role::of_file(name.as_encoded_bytes()) else { continue };
        let text = fs::read_to_string(dir.join(name))?;
        // An empty file opens nothing, least of all to a caller who shows an empty token.
        let known = |text| Known { role, hash: hash(text), text: Secret::new(text) };
        tokens.extend(Some(text.trim()).filter(|text| !text.is_empty()).map(known));
    }
    Ok(tokens)
}

fn hash(text: &str) -> Digest {
    Digest::of(Algorithm::Sha256, text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shows(credentials: &str) -> HeaderMap {
        HeaderMap::from_iter([(AUTHORIZATION, credentials.parse().unwrap())])
    }

    #[test]
    fn each_file_opens_what_its_name_says() {
        let dir = tempfile::tempdir().unwrap();
        let files =
            [("relay", "one\n"), ("relay-next", " two "), ("operator", "three"), ("relay-empty", "\n"), ("x", "y")];
        for (name, text) in files {
            fs::write(dir.path().join(name), text).unwrap();
        }
        let tokens = Tokens::open(dir.path().to_owned()).unwrap();
        let roles =
            |credentials: &str| [Role::Relay, Role::Operator].map(|role| tokens.admit(&shows(credentials), role));
        assert_eq!(roles("Bearer one"), [true, false]);
        assert_eq!(roles("bearer two"), [true, false]);
        assert_eq!(roles("Bearer three"), [false, true]);
        for bad in ["Bearer y", "Bearer ", "Bearer", "one", "Basic one", "Bearer  one", "Bearer one two"] {
            assert_eq!(roles(bad), [false, false], "{bad}");
        }
        assert!(!tokens.admit(&HeaderMap::new(), Role::Relay));
        assert_eq!(tokens.shown(Role::Relay).unwrap(), "Bearer one");
    }

    #[test]
    fn a_missing_folder_is_named() {
        let error = Tokens::open("/nonexistent".into()).err().unwrap();
        assert_eq!(error.to_string(), "--token-dir: cannot read /nonexistent");
    }
}
