//! What is said of the upstream: whether it answers, and whether it takes the credentials. Pure.

use crate::credentials::{Credential, Finding};
use crate::text::{clock, duration};
use crate::upstream::UpstreamReport;
use breakwater_crds::conditions::{Status, UPSTREAM_CREDENTIALS_ACCEPTED, UPSTREAM_REACHABLE, Verdict, reason};
use breakwater_crds::{RegistryMirrorSpec, UpstreamStatus};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

/// UpstreamReachable.
pub(super) fn reachable(spec: &RegistryMirrorSpec, report: Option<&UpstreamReport>, now: Timestamp) -> Verdict {
    let registry = &spec.registry;
    let verdict = |status, reason, message| Verdict { kind: UPSTREAM_REACHABLE, status, reason, message };
    match report.map(|report| (report.reachable, report)) {
        None => verdict(Status::Unknown, reason::UNKNOWN, "the cache does not say".to_owned()),
        Some((None, _)) => {
            verdict(Status::Unknown, reason::UNKNOWN, format!("the cache has not spoken to {registry} yet"))
        }
        Some((Some(true), _)) => verdict(Status::True, reason::UPSTREAM_ANSWERS, format!("{registry} answers")),
        Some((Some(false), report)) => {
            let cause = report.message.as_deref().unwrap_or("no answer");
            let since = report.since.map(|since| format!(" since {}", clock(since, now))).unwrap_or_default();
            let max_stale = duration(spec.freshness.max_stale.into());
            let message = format!(
                "{registry}: {cause}{since}; cached tags are served up to {max_stale} past their TTL (freshness.maxStale)"
            );
            verdict(Status::False, reason::UPSTREAM_UNREACHABLE, message)
        }
    }
}

/// UpstreamCredentialsAccepted, for a mirror that has credentials. A Secret that cannot be used says so here and not in
/// CacheReady: the cache serves all the same.
pub(super) fn credentials(
    spec: &RegistryMirrorSpec,
    credentials: &[Credential],
    report: Option<&UpstreamReport>,
) -> Option<Verdict> {
    if credentials.is_empty() {
        return None;
    }
    let registry = &spec.registry;
    let verdict =
        |status, reason, message| Some(Verdict { kind: UPSTREAM_CREDENTIALS_ACCEPTED, status, reason, message });
    let usable = credentials.iter().any(|credential| credential.finding == Finding::Usable);
    let meanwhile = if usable { "pulling without it" } else { "pulling anonymously" };
    for Credential { name, finding } in credentials {
        match finding {
            Finding::Usable => {}
            Finding::NotFound => {
                let message = format!("{registry}: Secret {name} not found; {meanwhile} until it exists");
                return verdict(Status::False, reason::SECRET_NOT_FOUND, message);
            }
            Finding::Invalid(why) => {
                let message = format!("{registry}: Secret {name} {why}; {meanwhile} meanwhile");
                return verdict(Status::False, reason::SECRET_INVALID, message);
            }
        }
    }
    let names = credentials.iter().map(|credential| credential.name.as_str()).collect::<Vec<_>>().join(", ");
    match report.and_then(|report| report.credentials_accepted) {
        Some(true) => verdict(Status::True, reason::CREDENTIALS_ACCEPTED, format!("{registry} accepts them")),
        Some(false) => verdict(
            Status::False,
            reason::CREDENTIALS_REFUSED,
            format!("{registry} refuses the credentials of Secret {names}; renew it"),
        ),
        None => verdict(Status::Unknown, reason::UNKNOWN, "not used yet".to_owned()),
    }
}

/// `status.upstream`.
pub(super) fn status(report: &UpstreamReport) -> UpstreamStatus {
    UpstreamStatus {
        reachable: report.reachable,
        since: report.since.map(|since| Time(super::whole_seconds(since))),
        message: match report.reachable {
            Some(false) => report.message.clone().unwrap_or_default(),
            _ => String::new(),
        },
        rate_limit_remaining: report.rate_limit_remaining,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> RegistryMirrorSpec {
        serde_saphyr::from_str("registry: docker.io").unwrap()
    }

    fn said(verdict: &Verdict) -> String {
        format!("{} {}: {}", verdict.status.as_str(), verdict.reason, verdict.message)
    }

    #[test]
    fn an_outage_says_since_when_and_what_goes_on() {
        let now = "2026-11-21T10:00:00Z".parse().unwrap();
        let check = |report: Option<&str>, expected: &str| {
            let report: Option<UpstreamReport> = report.map(|report| serde_json::from_str(report).unwrap());
            assert_eq!(said(&reachable(&spec(), report.as_ref(), now)), expected);
        };
        check(None, "Unknown Unknown: the cache does not say");
        check(Some(r#"{"reachable":null}"#), "Unknown Unknown: the cache has not spoken to docker.io yet");
        check(Some(r#"{"reachable":true,"message":"x"}"#), "True UpstreamAnswers: docker.io answers");
        check(
            Some(r#"{"reachable":false,"since":"2026-11-21T09:02:08Z","message":"connect timeout"}"#),
            "False UpstreamUnreachable: docker.io: connect timeout since 09:02Z; cached tags are served up to 168h past their \
             TTL (freshness.maxStale)",
        );
    }

    #[test]
    fn credentials_are_judged_by_their_secret_and_by_the_upstream() {
        let credential = |finding| vec![Credential { name: "hub".to_owned(), finding }];
        let check = |credentials_: Vec<Credential>, accepted: Option<bool>, expected: Option<&str>| {
            let report = UpstreamReport { credentials_accepted: accepted, ..UpstreamReport::default() };
            assert_eq!(credentials(&spec(), &credentials_, Some(&report)).as_ref().map(said).as_deref(), expected);
        };
        check(vec![], None, None);
        check(
            credential(Finding::NotFound),
            None,
            Some("False SecretNotFound: docker.io: Secret hub not found; pulling anonymously until it exists"),
        );
        check(
            credential(Finding::Invalid("is odd")),
            None,
            Some("False SecretInvalid: docker.io: Secret hub is odd; pulling anonymously meanwhile"),
        );
        check(credential(Finding::Usable), None, Some("Unknown Unknown: not used yet"));
        check(credential(Finding::Usable), Some(true), Some("True CredentialsAccepted: docker.io accepts them"));
        check(
            credential(Finding::Usable),
            Some(false),
            Some("False CredentialsRefused: docker.io refuses the credentials of Secret hub; renew it"),
        );
    }
}
