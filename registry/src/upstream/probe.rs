//! Knows how upstream is while nobody asks: `/v2/` after start, every half minute when idle, often while it fails.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
    time::{Duration, Instant},
};

use http::{Method, StatusCode};
use jiff::Timestamp;
use reqwest::Request;
use tracing::debug;

use super::{Upstream, breaker::HostKey, challenge, exchange::is_page, transport::HEADERS};

const TICK: Duration = Duration::from_secs(2);
/// How long an outage may go unseen while nobody pulls.
const IDLE: Duration = Duration::from_secs(15);
/// Logins that were refused are tried again after this time: rarely enough to lock no account.
const REFUSED: Duration = Duration::from_secs(600);

/// What the probe saw last, beyond what the breakers know.
#[derive(Default)]
pub(super) struct Findings {
    /// The 5xx that `/v2/` answers, or 0.
    sick: AtomicU16,
}

/// How upstream is, for people and for the operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamState {
    /// `None`: it has not been spoken to yet.
    pub reachable: Option<bool>,
    /// Since when that is so.
    pub since: Timestamp,
    /// Why it is not reachable, or an empty text.
    pub message: String,
    /// `None`: no login has been shown yet.
    pub credentials_accepted: Option<bool>,
}

impl Upstream {
    /// Runs for as long as the process does.
    pub async fn keep_informed(self: Arc<Self>) {
        // They may have changed since they were read at the start.
        let mut logins = Vec::new();
        let mut tried: Option<Instant> = None;
        let mut pinged: Option<Instant> = None;
        loop {
            let seen = self.credentials.fingerprint();
            if seen != logins {
                logins = seen;
                tried = None;
                self.credentials.reload();
                self.auth.forget();
                self.refusals.forget();
            }
            if self.is_ping_due(pinged) {
                pinged = Some(Instant::now());
                self.ping().await;
            }
            if self.is_away().is_none() && is_login_due(self.auth.accepted(), tried) {
                self.auth.try_login(&self.transport).await;
                tried = self.auth.accepted().map(|_| Instant::now());
            }
            // A little apart from others that started with us.
            tokio::time::sleep(TICK + Duration::from_millis(u64::from(std::process::id() % 500))).await;
        }
    }

    fn is_ping_due(&self, pinged: Option<Instant>) -> bool {
        let host = self.transport.breakers.state(&HostKey::of(self.transport.origin()));
        let heard = host.as_ref().and_then(|state| state.last_good);
        let is_quiet = heard.is_none_or(|at| at.elapsed() > IDLE);
        let is_sick = self.probe.sick.load(Ordering::Relaxed) != 0;
        // An open breaker has its own probe.
        let is_open = host.is_some_and(|state| state.open.is_some());
        !is_open && (is_sick || (is_quiet && pinged.is_none_or(|at| at.elapsed() > IDLE)) || (heard.is_none()))
    }

    async fn ping(&self) {
        let mut url = self.transport.origin().clone();
        url.set_path("/v2/");
        let answer = self.transport.send(Request::new(Method::GET, url), None, Instant::now() + HEADERS).await;
        match answer {
            Err(failure) => debug!(registry = %self.registry, reason = failure.category(), "probe failed"),
            Ok(answer) => {
                let status = answer.status();
                let is_sick = status.is_server_error();
                self.probe.sick.store(if is_sick { status.as_u16() } else { 0 }, Ordering::Relaxed);
                let is_good = status.is_success() || status == StatusCode::UNAUTHORIZED;
                if is_good && !is_page(answer.headers()) {
                    self.contact.good();
                    if status.is_success() && self.is_cut_off() {
                        // It is its token service that is away, and may not be needed any more: the next answer tells.
                        self.auth.forget_realm();
                    }
                }
                if status == StatusCode::UNAUTHORIZED
                    && let Some(challenge) = challenge::parse(answer.headers())
                {
                    self.auth.learn(challenge, None);
                }
            }
        }
    }

    /// Whether breakers let nothing new be asked: of the registry, or of its token service.
    pub fn is_cut_off(&self) -> bool {
        let breakers = &self.transport.breakers;
        let realm = self.auth.realm().map(|realm| HostKey::of(&realm));
        self.is_away().is_some() || realm.is_some_and(|realm| breakers.admit(&realm).is_err())
    }

    /// How upstream is now. A dead token service counts: nothing new can be pulled without it.
    pub fn state(&self) -> UpstreamState {
        let credentials_accepted = self.auth.accepted();
        let host = self.transport.breakers.state(&HostKey::of(self.transport.origin()));
        let realm = self.auth.realm().and_then(|realm| self.transport.breakers.state(&HostKey::of(&realm)));
        let since = host.as_ref().map_or_else(Timestamp::now, |state| state.since);
        let state = |reachable, since, message| UpstreamState { reachable, since, message, credentials_accepted };
        let Some(host) = host else { return state(None, since, String::new()) };
        if let Some(failure) = host.open {
            return state(Some(false), host.since, failure.to_string());
        }
        if let Some((realm, failure)) = realm.and_then(|realm| Some((realm.since, realm.open?))) {
            return state(Some(false), realm, format!("token service: {failure}"));
        }
        match self.probe.sick.load(Ordering::Relaxed) {
            0 if host.last_good.is_none() => state(None, since, String::new()),
            0 => state(Some(true), since, String::new()),
            status => state(Some(false), since, format!("/v2/ answers {status}")),
        }
    }
}

/// A refusal may have been a mistake, and who asks for nothing private hears of no other answer.
fn is_login_due(accepted: Option<bool>, tried: Option<Instant>) -> bool {
    match accepted {
        None => tried.is_none(),
        Some(false) => tried.is_none_or(|at| at.elapsed() > REFUSED),
        Some(true) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_login_is_tried_again_after_a_while() {
        let now = Instant::now();
        let ago = |seconds| now.checked_sub(Duration::from_secs(seconds));
        assert!(is_login_due(None, None) && is_login_due(Some(false), None));
        assert!(!is_login_due(None, Some(now)) && !is_login_due(Some(true), None));
        assert!(!is_login_due(Some(false), Some(now)) && is_login_due(Some(false), ago(601)));
    }
}
