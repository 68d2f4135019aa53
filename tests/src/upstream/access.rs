//! Who may read what, and the tokens that say so. It keeps time but does no I/O.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::json;

use super::answer::Answer;
use super::record::Recorded;

/// How the registry asks for credentials.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// It does not.
    Open,
    /// `Basic`, on the registry itself.
    Basic,
    /// `Bearer`, with tokens for one repository each from the token service.
    Bearer,
}

/// A login that opens the repositories below a prefix.
#[derive(Clone, Debug)]
pub struct Account {
    /// The repositories' common start; empty for all of them.
    pub prefix: String,
    /// User name.
    pub username: String,
    /// Password.
    pub password: String,
}

impl Account {
    /// A login for the repositories below a prefix.
    pub fn new(prefix: &str, username: &str, password: &str) -> Self {
        Self { prefix: prefix.to_owned(), username: username.to_owned(), password: password.to_owned() }
    }

    /// The `Authorization` value that shows it.
    pub fn basic(&self) -> String {
        let login = format!("{}:{}", self.username, self.password);
        format!("Basic {}", BASE64_STANDARD.encode(login))
    }
}

#[derive(Debug)]
struct Token {
    repository: String,
    expires: Instant,
}

/// The accounts, and the tokens issued.
#[derive(Debug)]
pub(super) struct Access {
    /// Host and port of the token service.
    pub(super) realm: String,
    scheme: Scheme,
    accounts: Vec<Account>,
    tokens: HashMap<String, Token>,
    issued: u64,
    pub(super) lifetime: Duration,
}

impl Access {
    pub(super) fn new(realm: SocketAddr) -> Self {
        Self {
            realm: realm.to_string(),
            scheme: Scheme::Open,
            accounts: Vec::new(),
            tokens: HashMap::new(),
            issued: 0,
            lifetime: Duration::from_secs(300),
        }
    }

    pub(super) fn require(&mut self, scheme: Scheme, accounts: &[Account]) {
        self.scheme = scheme;
        self.accounts = accounts.to_vec();
        self.revoke();
    }

    pub(super) fn revoke(&mut self) {
        self.tokens.clear();
    }

    /// Whether the registry lets this request in; `None` as repository is the ping.
    pub(super) fn admits(&self, request: &Recorded, repository: Option<&str>) -> bool {
        let shown = request.header("authorization").unwrap_or_default();
        match self.scheme {
            Scheme::Open => true,
            Scheme::Basic => match repository {
                Some(repository) => self.opens(shown, repository),
                None => self.accounts.iter().any(|account| account.basic() == shown),
            },
            Scheme::Bearer => {
                let token = shown.strip_prefix("Bearer ").and_then(|token| self.tokens.get(token));
                token.is_some_and(|token| {
                    token.expires > Instant::now() && repository.is_none_or(|asked| asked == token.repository)
                })
            }
        }
    }

    /// The challenge that goes with a 401.
    pub(super) fn challenge(&self, repository: Option<&str>) -> String {
        if self.scheme == Scheme::Basic {
            return r#"Basic realm="scripted""#.to_owned();
        }
        let scope = repository.map(|name| format!(r#",scope="repository:{name}:pull""#));
        let scope = scope.unwrap_or_default();
        format!(r#"Bearer realm="http://{}/token",service="scripted"{scope}"#, self.realm)
    }

    /// The token service's answer: a token for the repository in the scope, if the login opens it.
    pub(super) fn issue(&mut self, request: &Recorded) -> Answer {
        let scope = percent_decoded(query_value(&request.query, "scope").unwrap_or_default());
        let repository = scope.split(':').nth(1).unwrap_or_default().to_owned();
        let shown = request.header("authorization").unwrap_or_default();
        if !self.opens(shown, &repository) {
            return Answer::refusal(401, "UNAUTHORIZED").with("WWW-Authenticate", r#"Basic realm="tokens""#);
        }
        self.issued += 1;
        let token = format!("token-{}", self.issued);
        let expires = Instant::now() + self.lifetime;
        self.tokens.insert(token.clone(), Token { repository, expires });
        Answer::token(&token, self.lifetime)
    }

    /// The account with the longest matching prefix decides; without accounts anybody reads.
    fn opens(&self, shown: &str, repository: &str) -> bool {
        if self.accounts.is_empty() {
            return shown.is_empty();
        }
        let fitting = self.accounts.iter().filter(|account| repository.starts_with(&account.prefix));
        let account = fitting.max_by_key(|account| account.prefix.len());
        account.is_some_and(|account| account.basic() == shown)
    }
}

impl Answer {
    /// A token as the token service's JSON.
    pub(super) fn token(token: &str, lifetime: Duration) -> Self {
        let body = json!({"token": token, "access_token": token, "expires_in": lifetime.as_secs()});
        Self::ok("application/json", body.to_string())
    }
}

fn query_value<'a>(query: &'a str, key: &str) -> Option<&'a str> {
    let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    pairs.find(|(name, _)| *name == key).map(|(_, value)| value)
}

fn percent_decoded(text: &str) -> String {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let escaped = (*first == b'%').then(|| tail.get(..2).and_then(|pair| hex::decode(pair).ok()));
        match escaped.flatten() {
            Some(byte) => {
                decoded.extend(byte);
                rest = &tail[2..];
            }
            None => {
                decoded.push(if *first == b'+' { b' ' } else { *first });
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}
