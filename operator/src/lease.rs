//! Leader election over one `Lease`: a pure decision and a small loop around it.
//!
//! Not a library's, because a standby must notice a released lease within a second, and because the age of a foreign lease is
//! measured by our own clock from when we saw it change, never by comparing clocks of two machines. A lease fences nothing:
//! what the operator writes must be right even if two of them write for a moment.

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::PostParams;
use kube::{Api, Client};
use std::time::Duration;
use tokio::time::Instant;

/// The lease's name.
pub const NAME: &str = "breakwater-operator";
/// A holder that is silent for longer has lost its lease.
pub const DURATION: Duration = Duration::from_secs(15);
/// With one more call shorter than [`DURATION`]: the holder gives up before somebody else may begin.
const RENEW_DEADLINE: Duration = Duration::from_secs(10);
const RENEW_EVERY: Duration = Duration::from_secs(2);
const LOOK_EVERY: Duration = Duration::from_secs(1);
const CALL_DEADLINE: Duration = Duration::from_secs(3);
/// While the API server is away, one line in so many looks says so.
const SAY_EVERY: u32 = 60;

/// Why the lease is gone.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Lost {
    /// Somebody else has it.
    #[error("the lease was taken by {0}")]
    Taken(String),
    /// It could not be renewed in time.
    #[error("the lease could not be renewed for {}s", RENEW_DEADLINE.as_secs())]
    NotRenewed,
}

#[derive(Debug, thiserror::Error)]
enum CallFailure {
    #[error("the API server did not answer within {}s", CALL_DEADLINE.as_secs())]
    Timeout,
    #[error("the API server refused")]
    Api(#[source] kube::Error),
}

/// What to do about the lease as it stands.
#[derive(Debug, PartialEq, Eq)]
enum Decision {
    Take,
    Renew,
    Wait { holder: String },
}

/// Pure: `unchanged` is how long we have seen the record as it is.
fn decide(spec: Option<&LeaseSpec>, me: &str, unchanged: Duration) -> Decision {
    let Some(holder) = spec.and_then(|spec| spec.holder_identity.as_deref()).filter(|holder| !holder.is_empty()) else {
        return Decision::Take;
    };
    if holder == me {
        return Decision::Renew;
    }
    let seconds = spec.and_then(|spec| spec.lease_duration_seconds).unwrap_or(0).max(1);
    if unchanged > Duration::from_secs(seconds.unsigned_abs().into()) {
        Decision::Take
    } else {
        Decision::Wait { holder: holder.to_owned() }
    }
}

/// This process's part in the election.
#[derive(Debug)]
pub struct Candidate {
    api: Api<Lease>,
    me: String,
    seen: Option<(LeaseSpec, Instant)>,
}

impl Candidate {
    /// `me` must be unique among the candidates; a restarted container of the same Pod takes its lease back at once.
    #[must_use]
    pub fn new(client: Client, namespace: &str, me: String) -> Self {
        Self { api: Api::namespaced(client, namespace), me, seen: None }
    }

    /// Waits, without a deadline because standing by is a job, until the lease is ours.
    pub async fn acquire(&mut self) {
        let mut waiting_for = None;
        let mut failures = 0_u32;
        loop {
            match self.step().await {
                Ok(Decision::Take | Decision::Renew) => return,
                Ok(Decision::Wait { holder }) => {
                    failures = 0;
                    if waiting_for.as_ref() != Some(&holder) {
                        tracing::info!(%holder, "standing by");
                        waiting_for = Some(holder);
                    }
                }
                Err(error) => {
                    if failures.is_multiple_of(SAY_EVERY) {
                        tracing::warn!(failures, error = %crate::error_chain(&error), "cannot read or write the lease");
                    }
                    failures = failures.saturating_add(1);
                }
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Keeps the lease; returns only when it is lost.
    pub async fn hold(&mut self) -> Lost {
        loop {
            match tokio::time::timeout(RENEW_DEADLINE, self.renew()).await {
                Ok(Ok(())) => {}
                Ok(Err(holder)) => return Lost::Taken(holder),
                Err(_) => return self.successor().await.map_or(Lost::NotRenewed, Lost::Taken),
            }
        }
    }

    /// Who has the lease, if that is another: who stood still finds that out only now.
    async fn successor(&self) -> Option<String> {
        let spec = call(self.api.get_opt(NAME)).await.ok()??.spec;
        match decide(spec.as_ref(), &self.me, Duration::ZERO) {
            Decision::Wait { holder } => Some(holder),
            Decision::Take | Decision::Renew => None,
        }
    }

    /// Renews once, however often that has to be tried; the error is who has the lease now.
    async fn renew(&mut self) -> Result<(), String> {
        loop {
            tokio::time::sleep(RENEW_EVERY).await;
            match self.step().await {
                Ok(Decision::Take | Decision::Renew) => return Ok(()),
                Ok(Decision::Wait { holder }) => return Err(holder),
                Err(error) => tracing::debug!(error = %crate::error_chain(&error), "lease not renewed"),
            }
        }
    }

    /// Gives the lease back, so that the successor need not wait for it to run out.
    pub async fn release(&mut self) {
        let released = call(async {
            let mut lease = self.api.get(NAME).await?;
            if lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref()) != Some(&self.me) {
                return Ok(());
            }
            if let Some(spec) = &mut lease.spec {
                spec.holder_identity = None;
                spec.acquire_time = None;
                spec.renew_time = None;
            }
            self.api.replace(NAME, &PostParams::default(), &lease).await.map(drop)
        });
        match released.await {
            Ok(()) => tracing::info!("lease released"),
            Err(error) => {
                tracing::warn!(error = %crate::error_chain(&error), "lease not released; it runs out by itself");
            }
        }
    }

    /// Looks once and takes or renews where that is right. Writes carry the resourceVersion read, so of two takers one fails.
    async fn step(&mut self) -> Result<Decision, CallFailure> {
        let lease = call(self.api.get_opt(NAME)).await?;
        let spec = lease.as_ref().and_then(|lease| lease.spec.clone()).unwrap_or_default();
        let now = Instant::now();
        let since = match &self.seen {
            Some((old, since)) if *old == spec => *since,
            _ => now,
        };
        self.seen = Some((spec.clone(), since));
        let decision = decide(Some(&spec), &self.me, now - since);
        let taken = match decision {
            Decision::Wait { .. } => return Ok(decision),
            Decision::Take => true,
            Decision::Renew => false,
        };
        let spec = claimed(spec, &self.me, taken, jiff::Timestamp::now());
        match lease {
            Some(lease) => {
                let lease = Lease { spec: Some(spec), ..lease };
                call(self.api.replace(NAME, &PostParams::default(), &lease)).await?;
            }
            None => {
                let metadata = ObjectMeta { name: Some(NAME.to_owned()), ..ObjectMeta::default() };
                call(self.api.create(&PostParams::default(), &Lease { metadata, spec: Some(spec) })).await?;
            }
        }
        Ok(decision)
    }
}

/// The record with our name in it. Pure.
fn claimed(old: LeaseSpec, me: &str, taken: bool, now: jiff::Timestamp) -> LeaseSpec {
    let now = MicroTime(now);
    LeaseSpec {
        holder_identity: Some(me.to_owned()),
        lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
        acquire_time: if taken { Some(now.clone()) } else { old.acquire_time },
        renew_time: Some(now),
        lease_transitions: Some(old.lease_transitions.unwrap_or(0).saturating_add(i32::from(taken))),
        ..LeaseSpec::default()
    }
}

async fn call<T>(request: impl Future<Output = Result<T, kube::Error>>) -> Result<T, CallFailure> {
    match tokio::time::timeout(CALL_DEADLINE, request).await {
        Ok(answer) => answer.map_err(CallFailure::Api),
        Err(_) => Err(CallFailure::Timeout),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{Method, Request, Response};
    use kube::client::Body;

    fn held_by(holder: &str) -> LeaseSpec {
        LeaseSpec { holder_identity: Some(holder.to_owned()), lease_duration_seconds: Some(15), ..LeaseSpec::default() }
    }

    #[test]
    fn a_lease_is_taken_when_it_is_free_or_silent_for_too_long() {
        let seconds = Duration::from_secs;
        assert_eq!(decide(None, "me", seconds(0)), Decision::Take);
        assert_eq!(decide(Some(&LeaseSpec::default()), "me", seconds(0)), Decision::Take);
        assert_eq!(decide(Some(&held_by("")), "me", seconds(0)), Decision::Take);
        assert_eq!(decide(Some(&held_by("me")), "me", seconds(99)), Decision::Renew);
        let wait = Decision::Wait { holder: "other".to_owned() };
        assert_eq!(decide(Some(&held_by("other")), "me", seconds(15)), wait);
        assert_eq!(decide(Some(&held_by("other")), "me", seconds(16)), Decision::Take);
    }

    #[tokio::test(start_paused = true)]
    async fn a_holder_that_cannot_renew_gives_up_before_somebody_else_may_begin() {
        // Each look is told at the last moment, and no write is answered: the longest that one attempt can take.
        let service = tower::service_fn(|request: Request<Body>| async move {
            if request.method() != Method::GET {
                return std::future::pending().await;
            }
            tokio::time::sleep(CALL_DEADLINE - Duration::from_millis(1)).await;
            let lease = serde_json::json!({"metadata": {"name": NAME, "resourceVersion": "1"}, "spec": {"holderIdentity": "me"}});
            Response::builder().body(Body::from(lease.to_string().into_bytes()))
        });
        let mut candidate = Candidate::new(Client::new(service, "default"), "default", "me".to_owned());
        let renewed = Instant::now();
        assert_eq!(candidate.hold().await, Lost::NotRenewed);
        assert!(renewed.elapsed() < DURATION, "{:?}", renewed.elapsed());
    }

    #[test]
    fn renewing_keeps_the_count_of_transitions_and_taking_adds_to_it() {
        let now = jiff::Timestamp::from_second(1_800_000_000).unwrap();
        let taken = claimed(LeaseSpec { lease_transitions: Some(4), ..held_by("other") }, "me", true, now);
        assert_eq!((taken.holder_identity.as_deref(), taken.lease_transitions), (Some("me"), Some(5)));
        let renewed = claimed(taken.clone(), "me", false, now);
        assert_eq!(renewed, taken);
    }
}
