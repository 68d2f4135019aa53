//! The proxy that all requests to upstream, its token service and its redirects go through. Sends nothing.

mod login;

use std::{path::PathBuf, sync::Arc};

use http::{HeaderValue, Uri};
use reqwest::Url;

use crate::{route::percent_decode, secret::Secret};
use login::{LoginFolder, basic};

/// A proxy's URL, checked. `Debug` shows neither user nor password.
#[derive(Clone, Debug)]
pub struct ProxyUrl {
    /// Scheme, host and port.
    url: Url,
    uri: Uri,
    login: Option<HeaderValue>,
    folder: Option<Arc<LoginFolder>>,
}

/// Why a text is no proxy's URL. Does not repeat the text, which may hold a password.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("--proxy-url: must be http:// or https:// with a host, such as http://user:password@proxy.example.com:3128")]
pub struct ProxyInvalid;

impl ProxyUrl {
    /// Checks `text`.
    pub fn parse(text: &Secret) -> Result<Self, ProxyInvalid> {
        let url: Url = text.expose().parse().map_err(|_| ProxyInvalid)?;
        let is_bare = url.path() == "/" && url.query().is_none() && url.fragment().is_none();
        if !matches!(url.scheme(), "http" | "https") || url.host().is_none() || !is_bare {
            return Err(ProxyInvalid);
        }
        let login = login(&url)?;
        let mut url = url;
        // Neither can fail on a URL with a host.
        let _ = (url.set_username(""), url.set_password(None));
        let uri = url.as_str().parse().map_err(|_| ProxyInvalid)?;
        Ok(Self { url, uri, login, folder: None })
    }

    /// With the login in the files `username` and `password` of a folder instead of the URL's.
    pub fn with_login_from(self, folder: Option<PathBuf>) -> Self {
        Self { folder: folder.map(LoginFolder::open).map(Arc::new), ..self }
    }

    /// For logs.
    pub fn as_str(&self) -> &str {
        self.url.as_str()
    }

    pub(super) fn uri(&self) -> Uri {
        self.uri.clone()
    }

    /// The value of `Proxy-Authorization`.
    pub(super) fn login(&self) -> Option<HeaderValue> {
        self.folder.as_ref().map_or_else(|| self.login.clone(), |folder| folder.login())
    }
}

/// Basic, the only scheme that is asked for in a URL.
fn login(url: &Url) -> Result<Option<HeaderValue>, ProxyInvalid> {
    let password = url.password().unwrap_or_default();
    if url.username().is_empty() && password.is_empty() {
        return Ok(None);
    }
    let decode = |text| percent_decode(text).ok_or(ProxyInvalid);
    basic(&decode(url.username())?, &decode(password)?).map(Some).ok_or(ProxyInvalid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_not_shown() {
        let proxy = ProxyUrl::parse(&Secret::new("http://somebody:pa%40zz@proxy:3128")).unwrap();
        assert_eq!(proxy.as_str(), "http://proxy:3128/");
        let debug = format!("{proxy:?}");
        assert!(!debug.contains("somebody") && !debug.contains("zz") && !debug.contains("Basic"), "{debug}");
    }

    #[test]
    fn table() {
        let parse = |text: &str| ProxyUrl::parse(&Secret::new(text)).map(|proxy| proxy.as_str().to_owned());
        assert_eq!(parse("https://[::1]:3128"), Ok("https://[::1]:3128/".to_owned()));
        for bad in ["", "proxy:3128", "socks5://proxy", "http://", "http://proxy/path", "http://proxy?x"] {
            assert_eq!(parse(bad), Err(ProxyInvalid), "{bad}");
        }
    }
}
