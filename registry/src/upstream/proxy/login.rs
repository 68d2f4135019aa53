//! What a proxy is shown: a user and a password, from a folder if need be. Reads files; sends nothing.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use http::HeaderValue;
use tracing::{info, warn};

/// A changed login is used after this long; a busy cache does not read files for each request.
const REREAD_AT_MOST_EVERY: Duration = Duration::from_secs(1);

/// The value of `Proxy-Authorization` for Basic, the only scheme that is spoken; none if it cannot stand in a header.
pub(super) fn basic(user: &str, password: &str) -> Option<HeaderValue> {
    let encoded = STANDARD.encode(format!("{user}:{password}"));
    let mut header = HeaderValue::try_from(format!("Basic {encoded}")).ok()?;
    header.set_sensitive(true);
    Some(header)
}

/// A folder with the files `username` and `password`, as a Secret is mounted. Its `Debug` shows neither.
pub(super) struct LoginFolder {
    folder: PathBuf,
    known: Mutex<Known>,
}

struct Known {
    login: Option<HeaderValue>,
    read: Instant,
}

impl LoginFolder {
    /// Reads it once. One that is not there yet is no obstacle: the proxy then says that it wants a login.
    pub(super) fn open(folder: PathBuf) -> Self {
        let login = read(&folder)
            .inspect_err(|error| warn!(%error, "--proxy-credentials-dir: no username and password there yet"))
            .unwrap_or_default();
        Self { folder, known: Mutex::new(Known { login, read: Instant::now() }) }
    }

    /// The login as it is now. What cannot be read leaves the one before in force.
    pub(super) fn login(&self) -> Option<HeaderValue> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.read.elapsed() >= REREAD_AT_MOST_EVERY {
            known.read = Instant::now();
            if let Ok(login) = read(&self.folder)
                && login != known.login
            {
                info!("login for the proxy read again");
                known.login = login;
            }
        }
        known.login.clone()
    }
}

fn read(folder: &Path) -> io::Result<Option<HeaderValue>> {
    let text =
        |name: &str| fs::read_to_string(folder.join(name)).map(|text| text.trim_end_matches(['\r', '\n']).to_owned());
    Ok(basic(&text("username")?, &text("password")?))
}

impl fmt::Debug for LoginFolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LoginFolder").field(&self.folder).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_is_read_without_its_line_end_and_stays_when_its_files_go() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        assert_eq!(LoginFolder::open(folder.path().to_owned()).login(), None);
        write("username", "somebody\n");
        write("password", "pa:ss word\n");
        let login = LoginFolder::open(folder.path().to_owned());
        assert_eq!(login.login(), basic("somebody", "pa:ss word"));
        let reread = || {
            login.known.lock().unwrap().read -= REREAD_AT_MOST_EVERY;
            login.login()
        };
        write("password", "other");
        assert_eq!(reread(), basic("somebody", "other"));
        fs::remove_file(folder.path().join("password")).unwrap();
        assert_eq!(reread(), basic("somebody", "other"));
        assert!(!format!("{login:?}").contains("somebody"));
    }
}
