//! The right to ask upstream: Basic, or Bearer tokens of the distribution token spec, kept until they expire.
//!
//! Credentials go to upstream's own origin, and to the realm that upstream names if that is reached by TLS (or upstream
//! itself is not); never to where a redirect leads.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU8, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwapOption;
use base64::{Engine, engine::general_purpose::STANDARD};
use http::{HeaderValue, Method, StatusCode, header::AUTHORIZATION};
use reqwest::{Request, Url};
use serde::Deserialize;
use tracing::{debug, warn};

use super::{
    challenge::Challenge,
    credentials::{CredentialStore, Login},
    transport::{HEADERS, Transport},
};
use crate::{background::Background, coalesce::Coalesce, failure::Failure, reference::RepositoryName, secret::Secret};

/// A token service that sends more is broken.
const MOST_TOKEN_BYTES: usize = 64 * 1024;
/// The token spec's default.
const DEFAULT_LIFE: Duration = Duration::from_secs(60);
const MOST_TOKENS: usize = 10_000;

/// What is sent with a request.
#[derive(Clone, Debug)]
pub(super) struct Permit {
    /// The value of `Authorization`, if any.
    pub(super) header: Option<HeaderValue>,
    /// Whether a login stands behind it: what is fetched with it is not public.
    pub(super) is_private: bool,
}

impl Permit {
    /// For what upstream gives to anyone.
    pub(super) fn none() -> Self {
        Self { header: None, is_private: false }
    }
}

#[derive(Clone, Debug)]
struct Token {
    value: Secret,
    is_private: bool,
    expires: Instant,
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
    /// Some services write it as a text, as a fraction or below zero.
    expires_in: Option<serde_json::Value>,
}

/// The last challenge, and what was asked for when it came.
struct Learned {
    challenge: Challenge,
    repository: Option<RepositoryName>,
}

/// Tokens and the last challenge.
pub(super) struct Auth {
    credentials: Arc<CredentialStore>,
    learned: ArcSwapOption<Learned>,
    tokens: Arc<Mutex<HashMap<RepositoryName, Token>>>,
    fetches: Coalesce<RepositoryName, Result<Token, Failure>>,
    accepted: Arc<Accepted>,
}

/// Whether upstream takes the logins: not known, yes, no.
#[derive(Default)]
struct Accepted(AtomicU8);

impl Auth {
    pub(super) fn new(credentials: Arc<CredentialStore>, background: Background) -> Self {
        Self {
            credentials,
            learned: ArcSwapOption::empty(),
            tokens: Arc::default(),
            fetches: Coalesce::new(background),
            accepted: Arc::default(),
        }
    }

    /// Whether what `repository` holds is fetched with a login.
    pub(super) fn is_private(&self, repository: &RepositoryName) -> bool {
        self.credentials.keyring().login(repository).is_some()
    }

    /// Whether upstream took the logins when last shown them.
    pub(super) fn accepted(&self) -> Option<bool> {
        match self.accepted.0.load(Ordering::Relaxed) {
            0 => None,
            state => Some(state == 1),
        }
    }

    /// The token service last named.
    pub(super) fn realm(&self) -> Option<Url> {
        match &self.learned.load().as_deref()?.challenge {
            Challenge::Bearer { realm, .. } => Some(realm.clone()),
            Challenge::Basic => None,
        }
    }

    /// Logins have changed: forget what was derived from the old ones.
    pub(super) fn forget(&self) {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.accepted.0.store(0, Ordering::Relaxed);
    }

    /// What upstream asked for when it was asked for `repository`; used from the first request on next time.
    pub(super) fn learn(&self, challenge: Challenge, repository: Option<&RepositoryName>) {
        self.learned.store(Some(Arc::new(Learned { challenge, repository: repository.cloned() })));
    }

    /// Whether it names the service that was asked already.
    pub(super) fn is_known(&self, challenge: &Challenge) -> bool {
        self.learned.load().as_deref().is_some_and(|known| known.challenge.is_of_same_service(challenge))
    }

    /// Upstream answers without a token: a realm that cannot be asked is no reason to ask upstream nothing.
    pub(super) fn forget_realm(&self) {
        if self.realm().is_some() {
            self.learned.store(None);
        }
    }

    /// A token that upstream rejects is not shown again.
    pub(super) fn reject(&self, repository: &RepositoryName) {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner).remove(repository);
    }

    /// Upstream answered a request that carried a login's permit.
    pub(super) fn judged(&self, was_accepted: bool) {
        self.accepted.0.store(if was_accepted { 1 } else { 2 }, Ordering::Relaxed);
    }

    /// The permit for a request to `repository` at upstream's own origin.
    pub(super) async fn permit(
        &self,
        transport: &Arc<Transport>,
        repository: &RepositoryName,
    ) -> Result<Permit, Failure> {
        let Some(learned) = self.learned.load_full() else { return Ok(Permit::none()) };
        let keyring = self.credentials.keyring();
        let login = keyring.login(repository);
        match &learned.challenge {
            Challenge::Basic => match login {
                None => Err(Failure::Refused),
                Some(login) => Ok(Permit { header: basic(login), is_private: true }),
            },
            Challenge::Bearer { realm, service, scope } => {
                // Upstream may know the repository by another name, but no name tells which.
                let scope = scope.clone().filter(|_| learned.repository.as_ref() == Some(repository));
                let scope = scope.unwrap_or_else(|| format!("repository:{repository}:pull"));
                let ask = TokenAsk {
                    realm: realm.clone(),
                    service: service.clone(),
                    scope: Some(scope),
                    login: login.cloned(),
                };
                let token = self.token(transport, repository, ask).await?;
                let header = HeaderValue::try_from(format!("Bearer {}", token.value.expose()))
                    .map_err(|_| Failure::TokenService)?;
                Ok(Permit { header: Some(sensitive(header)), is_private: token.is_private })
            }
        }
    }

    async fn token(
        &self,
        transport: &Arc<Transport>,
        repository: &RepositoryName,
        ask: TokenAsk,
    ) -> Result<Token, Failure> {
        let kept = self.tokens.lock().unwrap_or_else(PoisonError::into_inner).get(repository).cloned();
        if let Some(token) = kept.filter(|token| token.expires > Instant::now()) {
            return Ok(token);
        }
        let (transport, tokens, accepted) =
            (Arc::clone(transport), Arc::clone(&self.tokens), Arc::clone(&self.accepted));
        let name = repository.clone();
        let waiter = self.fetches.join(repository.clone(), || async move {
            let token = fetch_token(&transport, &name, ask, &accepted).await?;
            let mut tokens = tokens.lock().unwrap_or_else(PoisonError::into_inner);
            if tokens.len() >= MOST_TOKENS {
                tokens.clear();
            }
            tokens.insert(name, token.clone());
            Ok(token)
        });
        waiter.result().await.unwrap_or(Err(Failure::Stopping))
    }

    /// Shows a login to upstream without asking for content, to learn whether it is accepted.
    pub(super) async fn try_login(&self, transport: &Arc<Transport>) {
        let keyring = self.credentials.keyring();
        let (Some(login), Some(learned)) = (keyring.any(), self.learned.load_full()) else { return };
        match &learned.challenge {
            Challenge::Bearer { realm, service, .. } => {
                let ask = TokenAsk {
                    realm: realm.clone(),
                    service: service.clone(),
                    scope: None,
                    login: Some(login.clone()),
                };
                // The verdict is kept by the fetch; the token itself is good for nothing.
                let _ = fetch_token_answer(transport, None, ask, &self.accepted).await;
            }
            Challenge::Basic => {
                let mut request = Request::new(Method::GET, transport.origin().clone());
                request.url_mut().set_path("/v2/");
                if let Some(header) = basic(login) {
                    request.headers_mut().insert(AUTHORIZATION, header);
                }
                if let Ok(answer) = transport.send(request, None, Instant::now() + HEADERS).await {
                    match answer.status() {
                        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => self.judged(false),
                        status if status.is_success() => self.judged(true),
                        _ => {}
                    }
                }
            }
        }
    }
}

struct TokenAsk {
    realm: Url,
    service: Option<String>,
    scope: Option<String>,
    login: Option<Login>,
}

async fn fetch_token(
    transport: &Arc<Transport>,
    repository: &RepositoryName,
    ask: TokenAsk,
    accepted: &Accepted,
) -> Result<Token, Failure> {
    let is_private = ask.login.is_some();
    let asked = Instant::now();
    let body = fetch_token_answer(transport, Some(repository), ask, accepted).await?;
    let answer: TokenAnswer = serde_json::from_slice(&body).map_err(|_| Failure::TokenService)?;
    let value = answer.token.or(answer.access_token).filter(|text| !text.is_empty()).ok_or(Failure::TokenService)?;
    let life = answer.expires_in.as_ref().map_or(DEFAULT_LIFE, life);
    // A little early, so that it does not expire on its way.
    let expires = asked + life.saturating_sub((life / 10).min(Duration::from_secs(10)));
    Ok(Token { value: Secret::new(value), is_private, expires })
}

/// Nonsense is the token spec's default.
fn life(expires_in: &serde_json::Value) -> Duration {
    let seconds = expires_in.as_f64().or_else(|| expires_in.as_str()?.trim().parse().ok());
    match seconds.filter(|seconds| *seconds > 0.0) {
        Some(seconds) => Duration::from_secs_f64(seconds.min(86_400.0)),
        None => DEFAULT_LIFE,
    }
}

async fn fetch_token_answer(
    transport: &Arc<Transport>,
    repository: Option<&RepositoryName>,
    ask: TokenAsk,
    accepted: &Accepted,
) -> Result<Vec<u8>, Failure> {
    let TokenAsk { realm: mut url, service, scope, login } = ask;
    if url.scheme() != "https" && transport.origin().scheme() == "https" {
        warn!(realm = url.host_str(), "token realm without TLS refused");
        return Err(Failure::ForbiddenAddress);
    }
    for (key, value) in [("service", service), ("scope", scope)] {
        if let Some(value) = value {
            url.query_pairs_mut().append_pair(key, &value);
        }
    }
    let mut request = Request::new(Method::GET, url);
    if let Some(header) = login.as_ref().and_then(basic) {
        request.headers_mut().insert(AUTHORIZATION, header);
    }
    let deadline = Instant::now() + HEADERS;
    let mut response = transport.send(request, repository, deadline).await.map_err(|failure| match failure {
        Failure::ForbiddenAddress => failure,
        _ => Failure::TokenService,
    })?;
    let status = response.status();
    if status == StatusCode::UNAUTHORIZED || status == StatusCode::FORBIDDEN {
        debug!(status = status.as_u16(), "token service refuses");
        if login.is_some() {
            accepted.0.store(2, Ordering::Relaxed);
        }
        return Err(Failure::Refused);
    }
    if !status.is_success() {
        return Err(Failure::TokenService);
    }
    if login.is_some() {
        accepted.0.store(1, Ordering::Relaxed);
    }
    let mut body = Vec::new();
    while let Ok(read) = tokio::time::timeout_at(deadline.into(), response.chunk()).await {
        match read {
            Ok(None) => return Ok(body),
            Ok(Some(chunk)) if body.len() + chunk.len() <= MOST_TOKEN_BYTES => body.extend_from_slice(&chunk),
            Ok(Some(_)) | Err(_) => break,
        }
    }
    Err(Failure::TokenService)
}

fn basic(login: &Login) -> Option<HeaderValue> {
    let encoded = STANDARD.encode(format!("{}:{}", login.user, login.password.expose()));
    HeaderValue::try_from(format!("Basic {encoded}")).ok().map(sensitive)
}

fn sensitive(mut header: HeaderValue) -> HeaderValue {
    header.set_sensitive(true);
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_lives_of_tokens() {
        let check = |json: &str, seconds: u64| {
            assert_eq!(life(&serde_json::from_str(json).unwrap()), Duration::from_secs(seconds), "{json}");
        };
        check("300", 300);
        check("\"300\"", 300);
        check("1e99", 86_400);
        for nonsense in ["-1", "0", "null", "\"NaN\"", "{}", "[1]"] {
            check(nonsense, 60);
        }
    }
}
