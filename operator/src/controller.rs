//! START HERE. One pass over one mirror, in five steps:
//!
//! 1. [`observe`](crate::observe) — client: gather all that concerns the mirror, from the watches' stores and its Secrets
//! 2. [`validate`](crate::validate) — pure: may it be built, and under which name
//! 3. [`build`](crate::build) — pure: the children as they should be
//! 4. [`apply`](crate::apply) — client: server-side apply of those that are not so yet
//! 5. [`report`](crate::report) — client: the status, computed by [`status`](crate::status), if it is news, and Events
//!
//! A pass is idempotent and never asks why it runs. Input that only a person can mend becomes a condition and not a retry.
//! Deleting needs nothing: owner references take the children, agents unwind a vanished mirror by themselves.

use crate::apply::{ApplyFailed, apply, renew};
use crate::build::{Applied, Material, Resources, Settings, build};
use crate::images::Surveys;
use crate::memory::Memory;
use crate::metrics::{Ended, Metrics};
use crate::observe::{Images, ObserveFailed, observe};
use crate::pki::keeper::{NoAuthority, Trust};
use crate::pki::{Authority, IssueFailed};
use crate::report::{ReportFailed, Reporter, present};
use crate::secrets::{ReadFailed, SecretReader};
use crate::status::{self, Obstacle};
use crate::text::one_line;
use crate::upstream::Reports;
use crate::validate::{Refusal, Valid, validate};
use crate::watches::Stores;
use breakwater_crds::conditions::reason;
use breakwater_crds::names::{tls_secret, tokens_secret};
use breakwater_crds::{RegistryMirror, RegistryMirrorStatus};
use jiff::Timestamp;
use kube::core::{DeserializeGuard, ObjectMeta};
use kube::runtime::controller::Action;
use kube::{Client, Resource, ResourceExt};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tracing::Instrument;

/// Nothing has to be looked at again by itself but certificates and the age of nodes; the rest comes as a change.
const LOOK_AGAIN: Duration = Duration::from_secs(5 * 60);
/// While something is amiss, time itself may be the news: a node is no longer young, a Pod has failed for long.
const LOOK_AGAIN_SOON: Duration = Duration::from_secs(30);
/// So long after the operator began, caches may not have told it yet what they hold, and what was said of that last stands.
const FIRST_WORDS: Duration = Duration::from_secs(60);
/// A former cache is on its way out, or an elder mirror may be deleted.
const WAIT_FOR_OTHERS: Duration = Duration::from_secs(5);
/// After so many failures in a row, which take a minute, a mirror says what fails.
const LASTING: u32 = 6;
const AFTER_CONFLICT: Duration = Duration::from_millis(500);

/// What a pass works with.
pub struct Context {
    /// Talks to the API server.
    pub client: Client,
    /// What is the same for every cache.
    pub settings: Settings,
    /// What the watches keep.
    pub stores: Stores,
    /// Reads Secrets.
    pub secrets: Arc<SecretReader>,
    /// The certificate authority.
    pub trust: Trust,
    /// What the caches say of their upstreams.
    pub upstreams: Reports,
    /// How the images in use fare.
    pub images: Surveys,
    /// When the operator began to lead.
    pub began: Instant,
    /// Writes statuses and Events.
    pub reporter: Reporter,
    /// What saves calls.
    pub memory: Memory,
    /// Counts passes.
    pub metrics: Arc<Metrics>,
}

/// A pass that failed, by its step.
#[derive(Debug, thiserror::Error)]
pub enum PassFailed {
    /// Step 1.
    #[error("cannot observe")]
    Observe(#[source] ObserveFailed),
    /// Step 3, where keys are made.
    #[error("cannot build")]
    Build(#[source] IssueFailed),
    /// Step 4.
    #[error("cannot apply")]
    Apply(#[source] ApplyFailed),
    /// Step 5.
    #[error("cannot report")]
    Report(#[source] ReportFailed),
}

impl PassFailed {
    /// The steps as metrics name them.
    pub const STEPS: [&'static str; 4] = ["observe", "build", "apply", "report"];

    /// The kinds of failure as metrics name them.
    pub const CATEGORIES: [&'static str; 7] =
        ["refused", "conflict", "throttled", "server_error", "timeout", "connection", "internal"];

    /// The kind of failure.
    #[must_use]
    pub fn category(&self) -> &'static str {
        match self {
            Self::Build(_) => "internal",
            Self::Apply(ApplyFailed::Refused { .. } | ApplyFailed::NotExpandable { .. }) => "refused",
            Self::Apply(ApplyFailed::Conflict { .. }) => "conflict",
            Self::Observe(ObserveFailed::Secret { source: ReadFailed::Timeout, .. })
            | Self::Apply(ApplyFailed::Timeout { .. })
            | Self::Report(ReportFailed::Timeout) => "timeout",
            Self::Observe(ObserveFailed::Secret { source: ReadFailed::Call(source), .. })
            | Self::Apply(ApplyFailed::Call { source, .. })
            | Self::Report(ReportFailed::Patch(source)) => category_of(source),
        }
    }

    /// The step that failed.
    #[must_use]
    pub fn step(&self) -> &'static str {
        match self {
            Self::Observe(_) => "observe",
            Self::Build(_) => "build",
            Self::Apply(_) => "apply",
            Self::Report(_) => "report",
        }
    }
}

/// The hasher's keys are random for each process, and others at each call.
fn pass_id() -> String {
    format!("{:016x}", RandomState::new().build_hasher().finish())
}

fn category_of(error: &kube::Error) -> &'static str {
    match error {
        kube::Error::Api(status) => match status.code {
            409 => "conflict",
            429 => "throttled",
            500.. => "server_error",
            _ => "refused",
        },
        _ => "connection",
    }
}

/// One pass over one mirror, counted; every line that it logs carries the mirror and an id of the pass.
///
/// # Errors
/// A step failed in a way that time may mend.
pub async fn reconcile(
    object: Arc<DeserializeGuard<RegistryMirror>>,
    context: Arc<Context>,
) -> Result<Action, PassFailed> {
    let _measured = context.metrics.pass();
    let span = tracing::info_span!("reconcile", mirror = %object.name_any(), reconcile_id = %pass_id());
    let outcome = async {
        let outcome = pass(&object, &context).await;
        if let Err(failure) = &outcome {
            let (step, category) = (failure.step(), failure.category());
            context.metrics.failed(step, category);
            // Two writers at the same time are no fault of anybody's.
            match category {
                "conflict" => tracing::debug!(step, error = %crate::error_chain(failure), "pass failed"),
                _ => tracing::warn!(step, category, error = %crate::error_chain(failure), "pass failed"),
            }
        }
        outcome
    };
    let outcome = outcome.instrument(span).await;
    context.metrics.ended(match &outcome {
        Ok((_, ended)) => *ended,
        Err(_) => Ended::failed,
    });
    outcome.map(|(action, _)| action)
}

async fn pass(object: &DeserializeGuard<RegistryMirror>, context: &Context) -> Result<(Action, Ended), PassFailed> {
    let mirror = match &object.0 {
        Ok(mirror) => Arc::new(mirror.clone()),
        Err(broken) => return Ok((report_broken(&broken.metadata, &broken.error, context).await?, Ended::refused)),
    };
    let now = Timestamp::now();
    let old = present(mirror.meta(), mirror.status.clone(), &context.memory);

    // 1. observe (client)
    let upstreams = context.upstreams.borrow().clone();
    let images = match context.images.borrow().mirrors.get(&mirror.name_any()) {
        Some(report) => Images::Known(report.clone()),
        None if context.began.elapsed() < FIRST_WORDS => Images::Awaited,
        None => Images::Unknown,
    };
    let said_for = context.memory.said_for(&mirror.name_any());
    let observed = observe(mirror.clone(), &context.stores, &context.secrets, upstreams, images, said_for).await;
    let observed = match observed {
        Ok(observed) => observed,
        Err(failure) => return Err(told(PassFailed::Observe(failure), &mirror, &old, context).await),
    };

    // 2. validate (pure)
    let valid = match validate(&observed) {
        Ok(valid) => valid,
        Err(refusal) => {
            let new = status::refused(mirror.meta(), &old, &refusal, now);
            let wait = report(mirror.meta(), &old, new, context).await?;
            return Ok((after_refusal(&refusal, wait), Ended::refused));
        }
    };

    // 3. build (pure) and 4. apply (client)
    let outcome = match build_and_apply(&valid, context, now).await {
        Ok(outcome) => outcome,
        Err(failure) => return Err(told(failure, &mirror, &old, context).await),
    };

    // 5. report (client)
    let children = outcome.as_ref().map_err(|obstacle| &obstacle.why);
    let new = status::of_children(&valid, &observed, children, &old, now);
    context.memory.says(&mirror.name_any(), &old, &new);
    let settled = !matches!(observed.images, Images::Awaited)
        && new.conditions.iter().all(|condition| condition.status == "True")
        && new.nodes.is_some_and(|nodes| nodes.active == nodes.desired);
    let wait = report(mirror.meta(), &old, new, context).await?;
    if let Some(images) = observed.images.report() {
        context.reporter.tell_of_exposed(mirror.meta(), images, &context.memory).await;
    }
    match outcome {
        // The status says it; the failure goes on to the error policy, because a quota may be raised at any time.
        Err(Hindered { failure: Some(failure), .. }) => Err(PassFailed::Apply(failure)),
        other => {
            context.memory.succeeded(&mirror.name_any());
            let action = Action::requeue(wait.unwrap_or(if settled { LOOK_AGAIN } else { LOOK_AGAIN_SOON }));
            Ok((action, if other.is_ok() { Ended::done } else { Ended::refused }))
        }
    }
}

/// A mirror that stays as it is, and why.
struct Hindered {
    why: Obstacle,
    failure: Option<ApplyFailed>,
}

/// Steps 3 and 4. What a person must mend comes back as an obstacle; what time mends is a failure.
async fn build_and_apply(
    valid: &Valid,
    context: &Context,
    now: Timestamp,
) -> Result<Result<Resources<Applied>, Hindered>, PassFailed> {
    let authority = context.trust.borrow().clone();
    if let Err(invalid) = &valid.ca_bundle {
        let why = Obstacle { reason: reason::INVALID_REFERENCE, message: invalid.to_string() };
        let failure = match authority {
            Ok(authority) => renew_secrets(valid, &authority, context, now).await?.err(),
            Err(_) => None,
        };
        return Ok(Err(Hindered { why, failure }));
    }
    let authority = match authority {
        Ok(authority) => authority,
        Err(error) => return Ok(Err(Hindered { why: without_authority(&error), failure: None })),
    };
    let material = Material::complete(valid, &authority, &context.settings, now).map_err(PassFailed::Build)?;
    let resources = build(valid, &material, &context.settings);
    let (name, namespace) = (valid.mirror.name_any(), &context.settings.namespace);
    match apply(&name, resources, &context.client, namespace, &context.stores, &context.memory).await {
        Ok(applied) => {
            let version = |metadata: &ObjectMeta| metadata.resource_version.clone();
            if let (Some(tls), Some(tokens)) = (version(&applied.tls.metadata), version(&applied.tokens.metadata)) {
                context.secrets.wrote_leaf(&tls_secret(&valid.name), &tls, material.leaf);
                context.secrets.wrote_tokens(&tokens_secret(&valid.name), &tokens, material.tokens);
            }
            Ok(Ok(applied))
        }
        Err(failure @ ApplyFailed::Refused { .. }) => {
            let why = Obstacle { reason: reason::CHILD_REFUSED, message: failure.to_string() };
            Ok(Err(Hindered { why, failure: Some(failure) }))
        }
        Err(failure @ ApplyFailed::NotExpandable { .. }) => {
            let why = Obstacle { reason: reason::VOLUME_NOT_EXPANDABLE, message: failure.to_string() };
            Ok(Err(Hindered { why, failure: Some(failure) }))
        }
        Err(failure) => Err(PassFailed::Apply(failure)),
    }
}

/// Renews the certificate and the tokens of a cache that otherwise stays as it is: nodes leave a cache whose certificate has run out, however
/// long nobody mends what its mirror refers to.
async fn renew_secrets(
    valid: &Valid,
    authority: &Authority,
    context: &Context,
    now: Timestamp,
) -> Result<Result<(), ApplyFailed>, PassFailed> {
    if valid.leaf.is_none() || valid.tokens.is_none() {
        return Ok(Ok(()));
    }
    let material = Material::complete(valid, authority, &context.settings, now).map_err(PassFailed::Build)?;
    Ok(renew(valid, &material, &context.client, &context.settings.namespace).await.map(|[tls, tokens]| {
        if let Some(version) = tls {
            context.secrets.wrote_leaf(&tls_secret(&valid.name), &version, material.leaf);
        }
        if let Some(version) = tokens {
            context.secrets.wrote_tokens(&tokens_secret(&valid.name), &version, material.tokens);
        }
    }))
}

fn without_authority(error: &NoAuthority) -> Obstacle {
    Obstacle { reason: reason::NO_AUTHORITY, message: error.to_string() }
}

/// A failure, told in the status once time has not mended it for a while.
async fn told(
    failure: PassFailed,
    mirror: &RegistryMirror,
    old: &RegistryMirrorStatus,
    context: &Context,
) -> PassFailed {
    if failure.category() != "conflict" && context.memory.failures(&mirror.name_any()) >= LASTING {
        let message = format!("{}; a cache that runs goes on as it was", crate::error_chain(&failure));
        let new = status::failing(mirror.meta(), old, &message, Timestamp::now());
        if let Err(unsaid) = report(mirror.meta(), old, new, context).await {
            tracing::debug!(error = %crate::error_chain(&unsaid), "cannot tell of it either");
        }
    }
    failure
}

/// An object that the API server stored and we cannot read, as after a change of the API: it says so and stops no other.
async fn report_broken(metadata: &ObjectMeta, error: &str, context: &Context) -> Result<Action, PassFailed> {
    let problem = format!("cannot be read: {}", one_line(error, 300));
    let refusal = Refusal::InvalidSpec { field: "spec", problem };
    // Its former status cannot be read either. What we said last stands for it, or every pass would say it anew.
    let old =
        context.memory.reported(&metadata.name.clone().unwrap_or_default()).map(|last| last.status).unwrap_or_default();
    let new = status::refused(metadata, &old, &refusal, Timestamp::now());
    let wait = report(metadata, &old, new, context).await?;
    Ok(after_refusal(&refusal, wait))
}

async fn report(
    metadata: &ObjectMeta,
    old: &RegistryMirrorStatus,
    new: RegistryMirrorStatus,
    context: &Context,
) -> Result<Option<Duration>, PassFailed> {
    context.reporter.report(metadata, old, new, &context.memory).await.map_err(PassFailed::Report)
}

fn after_refusal(refusal: &Refusal, wait: Option<Duration>) -> Action {
    match (refusal, wait) {
        (_, Some(wait)) => Action::requeue(wait),
        (Refusal::InvalidSpec { .. }, None) => Action::await_change(),
        (Refusal::RegistryConflict { .. } | Refusal::Handover { .. } | Refusal::Foreign { .. }, None) => {
            Action::requeue(WAIT_FOR_OTHERS)
        }
    }
}

/// When to try again after a failure: soon after a conflict, else with growing pauses.
#[expect(clippy::needless_pass_by_value, reason = "the signature is the Controller's")]
pub fn error_policy(
    object: Arc<DeserializeGuard<RegistryMirror>>,
    error: &PassFailed,
    context: Arc<Context>,
) -> Action {
    if matches!(error, PassFailed::Apply(ApplyFailed::Conflict { .. })) {
        return Action::requeue(AFTER_CONFLICT);
    }
    let mirror = object.name_any();
    let retry_in = context.memory.failed(&mirror);
    tracing::debug!(%mirror, ?retry_in, "trying again");
    Action::requeue(retry_in)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_failure_names_one_of_the_steps() {
        let failure = PassFailed::Report(ReportFailed::Timeout);
        assert!(PassFailed::STEPS.contains(&failure.step()));
        let status = |code| kube::Error::Api(kube::core::Status::failure("", "").with_code(code).boxed());
        for code in [400, 403, 404, 409, 422, 429, 500, 503] {
            assert!(PassFailed::CATEGORIES.contains(&PassFailed::Report(ReportFailed::Patch(status(code))).category()));
        }
    }

    #[test]
    fn input_that_a_person_must_mend_is_not_retried() {
        let invalid = Refusal::InvalidSpec { field: "spec", problem: String::new() };
        assert_eq!(after_refusal(&invalid, None), Action::await_change());
        let handover = Refusal::Handover { name: String::new(), former: String::new() };
        assert_eq!(after_refusal(&handover, None), Action::requeue(WAIT_FOR_OTHERS));
        assert_eq!(after_refusal(&invalid, Some(PACE)), Action::requeue(PACE));
    }

    const PACE: Duration = Duration::from_millis(600);
}
