//! What the node's `MirrorNode` says, from what the agent did and saw. Pure.

mod runtime;

pub use runtime::RuntimeSeen;

use crate::files::Fault;
use crate::hosts_toml::Server;
use crate::plan::Plan;
use crate::registry_host::RegistryHost;
use crate::relay::{Standing, View};
use breakwater_crds::conditions::{self, READY, Status, Verdict, reason};
use breakwater_crds::{InactiveMirror, MirrorNodeStatus, MirrorState, Observed, Runtime};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use std::collections::BTreeMap;

/// `inactive` lists this many; the counts tell the rest.
const LISTED: usize = 50;
const ACTIVE: usize = 1000;

/// What one turn of the agent did and saw.
pub struct Seen<'a> {
    /// What was to be done.
    pub plan: &'a Plan,
    /// What came of the files.
    pub placed: &'a BTreeMap<RegistryHost, Result<(), Fault>>,
    /// Folders that could not be given back: their mirrors are not gone from this node yet.
    pub stuck: &'a [(String, Fault)],
    /// How the caches stand.
    pub views: &'a BTreeMap<String, View>,
    /// Whether the relay listens, or why not.
    pub listening: &'a Result<(), String>,
    /// Whether caches can be trusted, or what is missing.
    pub trust: &'a Result<(), String>,
    /// The container runtime's version, once known.
    pub runtime_version: Option<String>,
    /// What is known of how it is configured.
    pub runtime: RuntimeSeen<'a>,
}

/// The findings: the status without times, so that equal findings are equal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Findings {
    runtime: Option<(String, String)>,
    active: Vec<String>,
    inactive: Vec<Inactive>,
    verdicts: [Verdict; 2],
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Inactive {
    registry: String,
    state: MirrorState,
    reason: &'static str,
    message: String,
}

impl Findings {
    /// How many mirrors are in each state.
    #[must_use]
    pub fn states(&self) -> BTreeMap<&'static str, usize> {
        let in_state = |state| self.inactive.iter().filter(|one| one.state == state).count();
        BTreeMap::from([
            ("active", self.active.len()),
            ("pending", in_state(MirrorState::Pending)),
            ("bypassed", in_state(MirrorState::Bypassed)),
            ("failed", in_state(MirrorState::Failed)),
        ])
    }
}

/// What is to be reported.
#[must_use]
pub fn findings(seen: Seen<'_>) -> Findings {
    let Seen { plan, placed, stuck, views, listening, trust, runtime_version, runtime } = seen;
    let (mut active, mut inactive) = (Vec::new(), Vec::new());
    for wanted in plan.mirrors.iter().map(|planned| &planned.wanted) {
        let registry = &wanted.registry;
        match verdict_of(
            &wanted.entry.server,
            placed.get(registry),
            views.get(registry.as_str()),
            listening,
            trust,
            runtime.unread(registry.as_str()),
        ) {
            None => active.push(registry.to_string()),
            Some((state, reason, message)) => {
                inactive.push(Inactive { registry: registry.to_string(), state, reason, message });
            }
        }
    }
    inactive.extend(plan.refused.iter().map(|(registry, message)| Inactive {
        registry: registry.clone(),
        state: MirrorState::Failed,
        reason: reason::INVALID_SPEC,
        message: (*message).to_owned(),
    }));
    for (folder, fault) in stuck {
        // A mirror that became invalid is told of once: the API wants each registry once.
        if inactive.iter().all(|one| one.registry != *folder) {
            let message = format!("not mirrored on this node any more, but its file cannot be given back: {fault}");
            let (registry, state) = (folder.clone(), MirrorState::Failed);
            inactive.push(Inactive { registry, state, reason: fault.reason(), message });
        }
    }
    active.sort();
    inactive.sort_by(|a, b| a.registry.cmp(&b.registry));
    let configured = runtime.configured(plan, |registry| matches!(placed.get(registry), Some(Ok(()))));
    let verdicts = [ready(&active, &inactive, listening), configured];
    let runtime = runtime_version.map(|version| (version, runtime.folder.to_owned()));
    Findings { runtime, active, inactive, verdicts }
}

type Unfit = (MirrorState, &'static str, String);

/// Why a mirror is not active; None if it is.
fn verdict_of(
    server: &Server,
    placed: Option<&Result<(), Fault>>,
    view: Option<&View>,
    listening: &Result<(), String>,
    trust: &Result<(), String>,
    unread: Option<Unfit>,
) -> Option<Unfit> {
    if let Err(error) = listening {
        return Some((MirrorState::Failed, reason::RELAY_PORT_TAKEN, error.clone()));
    }
    match placed {
        Some(Ok(())) => {}
        Some(Err(fault)) => return Some((MirrorState::Failed, fault.reason(), fault.to_string())),
        None => {
            return Some((MirrorState::Pending, reason::CACHE_NOT_PROVEN, "hosts.toml is not written yet".to_owned()));
        }
    }
    let pulls = match server {
        Server::Relay => "pulls fail, as nodes.fallback says",
        Server::Default | Server::Url(_) => "pulls go to the upstream",
    };
    let standing = view.map_or(Standing::Unknown, |view| view.standing);
    match unread {
        Some(unread) if standing == Standing::In || unread.0 == MirrorState::Failed => return Some(unread),
        None if standing == Standing::In => {
            let uselessness = view?.uselessness.as_ref()?;
            let message = format!("cache sends nothing of use, so {pulls}: {uselessness}");
            return Some((MirrorState::Bypassed, reason::CACHE_FAILS, message));
        }
        _ => {}
    }
    let state = if standing == Standing::Out { MirrorState::Bypassed } else { MirrorState::Pending };
    if let Err(missing) = trust {
        return Some((state, reason::CACHE_NOT_PROVEN, missing.clone()));
    }
    if view.is_none_or(|view| view.pods == 0) {
        return Some((state, reason::NO_CACHE_ADDRESS, format!("the cache's Service has no Pod, so {pulls}")));
    }
    let untold = match state {
        // One answer does not bring it back.
        MirrorState::Bypassed => "it answers again, and is asked once that lasts",
        MirrorState::Pending | MirrorState::Failed => "it was not asked yet",
    };
    let trouble = view.and_then(|view| view.trouble.as_deref()).unwrap_or(untold);
    let (reason, message) = match state {
        MirrorState::Bypassed => (reason::CACHE_UNREACHABLE, "cache stopped answering"),
        MirrorState::Pending | MirrorState::Failed => {
            (reason::CACHE_NOT_PROVEN, "cache has not answered from this node yet")
        }
    };
    Some((state, reason, format!("{message}, so {pulls}: {trouble}")))
}

fn ready(active: &[String], inactive: &[Inactive], listening: &Result<(), String>) -> Verdict {
    let all = active.len() + inactive.len();
    let (status, reason, message) = if let Err(error) = listening {
        (Status::False, reason::RELAY_PORT_TAKEN, error.clone())
    } else if all == 0 {
        (Status::True, reason::NO_MIRRORS, "no mirror selects this node".to_owned())
    } else if inactive.is_empty() {
        (Status::True, reason::ALL_ACTIVE, format!("pulls from {} go through their caches", named(active.iter())))
    } else {
        let first = &inactive[0];
        let names = named(inactive.iter().map(|one| &one.registry));
        let which = if inactive.len() == 1 { String::new() } else { format!("{names} are not active; ") };
        (Status::False, reason::SOME_INACTIVE, format!("{which}{}: {}", first.registry, first.message))
    };
    Verdict { kind: READY, status, reason, message }
}

/// At most three names, then how many more.
fn named<'a>(names: impl ExactSizeIterator<Item = &'a String>) -> String {
    let more = names.len().saturating_sub(3);
    let listed: Vec<_> = names.take(3).map(String::as_str).collect();
    let listed = listed.join(", ");
    if more == 0 { listed } else { format!("{listed} and {more} more") }
}

/// The status with times: each stays as long as what it dates.
#[must_use]
pub fn stamp(findings: &Findings, before: &MirrorNodeStatus, now: &Time) -> MirrorNodeStatus {
    let Findings { runtime, active, inactive, verdicts } = findings;
    let count = |n: usize| i32::try_from(n).unwrap_or(i32::MAX);
    let observed = Observed { mirrors: count(active.len() + inactive.len()), active: count(active.len()) };
    let since = |one: &Inactive| {
        let old = before.inactive.iter().find(|old| old.registry == one.registry);
        old.filter(|old| old.state == one.state && old.reason == one.reason)
            .map_or_else(|| now.clone(), |old| old.since.clone())
    };
    let listed = inactive.iter().take(LISTED).map(|one| InactiveMirror {
        registry: one.registry.clone(),
        state: one.state,
        reason: one.reason.to_owned(),
        message: one.message.clone(),
        since: since(one),
    });
    let mut stamped = MirrorNodeStatus {
        runtime: runtime.clone().map(|(version, config_path)| Runtime { version, config_path }),
        observed,
        summary: format!("{}/{}", observed.active, observed.mirrors),
        active: active.iter().take(ACTIVE).cloned().collect(),
        inactive: listed.collect(),
        conditions: before.conditions.clone(),
    };
    for verdict in verdicts {
        conditions::set(&mut stamped.conditions, verdict.clone(), None, now);
    }
    stamped
}

#[cfg(test)]
mod tests;
