//! Circuit breakers, one per host and port, so that an outage costs milliseconds and not seconds. Does no I/O: callers
//! report what they saw, and start the probe when told that a breaker has opened.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use jiff::Timestamp;
use reqwest::Url;

use crate::{failure::Failure, reference::RepositoryName};

/// So many repositories must answer 5xx before the host itself is asked whether it is to blame.
const SICK_REPOSITORIES: usize = 3;
/// 5xx answers older than this do not count.
const SICK_WINDOW: Duration = Duration::from_secs(30);
const MOST_HOSTS: usize = 1024;

/// A host and port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HostKey(String);

impl HostKey {
    /// Of a URL.
    pub fn of(url: &Url) -> Self {
        let port = url.port_or_known_default().unwrap_or_default();
        Self(format!("{}:{port}", url.host_str().unwrap_or_default()))
    }

    /// For logs.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What is known of a host.
#[derive(Clone, Debug)]
pub struct HostState {
    /// Why requests fail at once, if they do.
    pub open: Option<Failure>,
    /// Since when it is open or closed.
    pub since: Timestamp,
    /// The last good answer.
    pub last_good: Option<Instant>,
    /// The last answer to a question beside one in trouble.
    last_heard: Option<Instant>,
    /// The last failure that was the host's.
    pub last_failure: Option<Instant>,
    /// Repositories that answered 5xx of late.
    sick: Vec<(RepositoryName, Instant)>,
}

impl HostState {
    fn new() -> Self {
        Self {
            open: None,
            since: Timestamp::now(),
            last_good: None,
            last_heard: None,
            last_failure: None,
            sick: Vec::new(),
        }
    }

    /// Whether the last contact failed, not longer ago than `window`.
    pub fn failed_within(&self, window: Duration) -> bool {
        self.last_failure.is_some_and(|at| at.elapsed() < window && self.last_good.is_none_or(|good| good < at))
    }
}

/// Whether a report opened a breaker; its opener has to start the probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Opened {
    /// By this report.
    Now,
    /// Not by this report.
    No,
}

/// All breakers.
#[derive(Default)]
pub struct Breakers {
    hosts: Mutex<HashMap<HostKey, HostState>>,
    last_return: Mutex<Option<Instant>>,
}

impl Breakers {
    /// Fails if requests to `host` are to fail at once.
    pub fn admit(&self, host: &HostKey) -> Result<(), Failure> {
        match self.state(host).and_then(|state| state.open) {
            Some(failure) => Err(failure),
            None => Ok(()),
        }
    }

    /// What is known of `host`.
    pub fn state(&self, host: &HostKey) -> Option<HostState> {
        self.hosts.lock().unwrap_or_else(PoisonError::into_inner).get(host).cloned()
    }

    /// The hosts that requests fail for at once.
    pub fn open(&self) -> Vec<HostKey> {
        let hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        hosts.iter().filter(|(_, state)| state.open.is_some()).map(|(host, _)| host.clone()).collect()
    }

    /// When a breaker closed last: failures from before say nothing any more.
    pub fn last_return(&self) -> Option<Instant> {
        *self.last_return.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `host` answered, for `repository` or for nobody's sake: that closes its breaker.
    pub fn answered(&self, host: &HostKey, repository: Option<&RepositoryName>) {
        let now = Instant::now();
        let was_open = self.update(host, |state| {
            state.last_good = Some(now);
            state.sick.retain(|(name, _)| Some(name) != repository);
            let was_open = state.open.take().is_some();
            if was_open {
                state.since = Timestamp::now();
                state.sick.clear();
            }
            was_open
        });
        if was_open {
            *self.last_return.lock().unwrap_or_else(PoisonError::into_inner) = Some(now);
        }
    }

    /// `host` answered a question beside the one that is in trouble: it is there, whatever it says.
    pub fn heard(&self, host: &HostKey) {
        self.update(host, |state| state.last_heard = Some(Instant::now()));
    }

    /// A request that began at `began` got no answer from `host`. What began before the last good answer says nothing
    /// of the host as it is now.
    pub fn silent(&self, host: &HostKey, began: Instant, failure: Failure) -> Opened {
        self.update(host, |state| {
            if state.last_good.max(state.last_heard).is_some_and(|heard| heard > began) {
                return Opened::No;
            }
            state.last_failure = Some(Instant::now());
            open(state, failure)
        })
    }

    /// `host` answered 5xx for `repository`. Says whether it has for so many that it may be to blame itself.
    pub fn server_error(&self, host: &HostKey, repository: &RepositoryName) -> bool {
        self.update(host, |state| {
            let now = Instant::now();
            state.last_failure = Some(now);
            state.sick.retain(|(name, at)| now.duration_since(*at) < SICK_WINDOW && name != repository);
            state.sick.push((repository.clone(), now));
            state.open.is_none() && state.sick.len() >= SICK_REPOSITORIES
        })
    }

    /// `host` answered 5xx to a question that no repository has a part in.
    pub fn sick(&self, host: &HostKey) -> Opened {
        self.update(host, |state| {
            if state.sick.len() < SICK_REPOSITORIES { Opened::No } else { open(state, Failure::ServerError) }
        })
    }

    /// `host` answered such a question well: the repositories are to blame.
    pub fn sound(&self, host: &HostKey) {
        self.update(host, |state| state.sick.clear());
    }

    fn update<T>(&self, host: &HostKey, change: impl FnOnce(&mut HostState) -> T) -> T {
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        if hosts.len() >= MOST_HOSTS && !hosts.contains_key(host) {
            hosts.retain(|_, state| state.open.is_some());
        }
        change(hosts.entry(host.clone()).or_insert_with(HostState::new))
    }
}

fn open(state: &mut HostState, failure: Failure) -> Opened {
    if state.open.is_some() {
        return Opened::No;
    }
    state.open = Some(failure);
    state.since = Timestamp::now();
    Opened::Now
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> HostKey {
        HostKey::of(&"https://registry.example.com/v2/".parse().unwrap())
    }

    #[test]
    fn silence_opens_once_and_an_answer_closes() {
        let breakers = Breakers::default();
        assert_eq!(host().as_str(), "registry.example.com:443");
        assert_eq!(breakers.admit(&host()), Ok(()));
        assert_eq!(breakers.silent(&host(), Instant::now(), Failure::ConnectTimeout), Opened::Now);
        assert_eq!(breakers.silent(&host(), Instant::now(), Failure::Connect), Opened::No);
        assert_eq!(breakers.admit(&host()), Err(Failure::ConnectTimeout));
        assert_eq!(breakers.last_return(), None);
        breakers.answered(&host(), None);
        assert_eq!(breakers.admit(&host()), Ok(()));
        let returned = breakers.last_return();
        assert!(returned.is_some());
        breakers.answered(&host(), None);
        assert_eq!(breakers.last_return(), returned, "it was not away");
    }

    #[test]
    fn what_was_swallowed_before_the_return_does_not_open_it_again() {
        let breakers = Breakers::default();
        let began = Instant::now();
        breakers.answered(&host(), None);
        assert_eq!(breakers.silent(&host(), began, Failure::HeaderTimeout), Opened::No);
    }

    #[test]
    fn a_question_that_is_swallowed_while_others_are_answered_does_not_open_it() {
        let breakers = Breakers::default();
        let began = Instant::now();
        breakers.heard(&host());
        assert_eq!(breakers.silent(&host(), began, Failure::HeaderTimeout), Opened::No);
        assert_eq!(breakers.silent(&host(), Instant::now(), Failure::HeaderTimeout), Opened::Now);
    }

    #[test]
    fn a_repository_that_recovers_is_not_counted() {
        let breakers = Breakers::default();
        let [a, b, c] = ["a", "b", "c"].map(|name| name.parse::<RepositoryName>().unwrap());
        for name in [&a, &b] {
            assert!(!breakers.server_error(&host(), name));
        }
        breakers.answered(&host(), Some(&a));
        assert!(!breakers.server_error(&host(), &c) && breakers.server_error(&host(), &a));
    }

    #[test]
    fn bad_repositories_are_not_the_host() {
        let breakers = Breakers::default();
        let [a, b, c] = ["a", "b", "c"].map(|name| name.parse::<RepositoryName>().unwrap());
        for _ in 0..10 {
            assert!(!breakers.server_error(&host(), &a));
            assert_eq!(breakers.sick(&host()), Opened::No);
        }
        assert!(!breakers.server_error(&host(), &b) && breakers.server_error(&host(), &c));
        breakers.sound(&host());
        assert_eq!(breakers.sick(&host()), Opened::No);
        assert!(![&a, &b].into_iter().any(|name| breakers.server_error(&host(), name)));
        assert!(breakers.server_error(&host(), &c));
        assert_eq!(breakers.sick(&host()), Opened::Now);
        assert_eq!(breakers.admit(&host()), Err(Failure::ServerError));
    }
}
