//! How long a tag is believed. Holds no behaviour but defaults.

use kube::KubeSchema;
use kube::core::Duration;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Freshness of tags. Content by digest never ages.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Freshness {
    /// A tag is served without asking the upstream for this long: `30s`, `5m`, `1h30m`; at most 720h.
    #[schemars(length(min = 1, max = 32), extend("default" = "1m"))]
    #[serde(default = "default_tag_ttl", rename = "tagTTL")]
    #[x_kube(validation = Rule::new(GO_DURATION).message(
        "must be a duration from 0s to 720h in hours, minutes and seconds, such as 30s, 5m or 1h30m"))]
    pub tag_ttl: Duration,

    /// In an outage a tag is served past its TTL for this long, counted from the upstream's last good answer; at most 720h.
    #[schemars(length(min = 1, max = 32), extend("default" = "168h"))]
    #[serde(default = "default_max_stale")]
    #[x_kube(validation = Rule::new(GO_DURATION).message(
        "must be a duration from 0s to 720h in hours, minutes and seconds, such as 24h or 168h"))]
    pub max_stale: Duration,

    /// What becomes of a tag past its TTL when the upstream fails, by the class of the failure.
    #[schemars(extend("default" = {}))]
    #[serde(default)]
    pub on_error: OnError,
}

/// What becomes of a tag that is here, by what the upstream does when it is asked again.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub struct OnError {
    /// It cannot be resolved or connected to, fails at TLS, or says nothing in time.
    pub unreachable: StaleAction,
    /// It answers 5xx.
    pub server_error: StaleAction,
    /// It answers 429, or its announced budget is nearly used up.
    pub too_many_requests: StaleAction,
    /// It answers what no registry should, such as a login page.
    pub invalid_response: StaleAction,
    /// It answers, but its token service does not.
    pub token_service: StaleAction,
    /// It answers 401 or 403.
    pub unauthorized: StaleAction,
    /// It answers 404: the tag has been deleted.
    pub not_found: StaleAction,
}

impl Default for OnError {
    fn default() -> Self {
        let stale = StaleAction::ServeStale;
        Self {
            unreachable: stale,
            server_error: stale,
            too_many_requests: stale,
            invalid_response: stale,
            token_service: stale,
            unauthorized: stale,
            not_found: StaleAction::Deny,
        }
    }
}

/// What to do with an older answer.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum StaleAction {
    /// Serve it, for as long as `maxStale` allows.
    ServeStale,
    /// Pass the failure on.
    Deny,
}

const GO_DURATION: &str = "self.matches('^([0-9]{1,9}(\\\\.[0-9]{1,3})?(h|m|s|ms))+$') && \
                           duration(self) >= duration('0s') && duration(self) <= duration('720h')";

impl Default for Freshness {
    fn default() -> Self {
        Self { tag_ttl: default_tag_ttl(), max_stale: default_max_stale(), on_error: OnError::default() }
    }
}

fn default_tag_ttl() -> Duration {
    std::time::Duration::from_secs(60).into()
}

fn default_max_stale() -> Duration {
    std::time::Duration::from_secs(168 * 3600).into()
}
