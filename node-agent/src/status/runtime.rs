//! What the `MirrorNode` says of the container runtime: whether it reads what the agent writes. Pure.

use crate::plan::Plan;
use crate::proof::{Evidence, Proofs};
use crate::registry_host::RegistryHost;
use crate::runtime::{Doubt, Look};
use breakwater_crds::MirrorState;
use breakwater_crds::conditions::{RUNTIME_CONFIGURED, Status, Verdict, reason};

/// What is known of the runtime.
#[derive(Clone, Copy, Debug)]
pub struct RuntimeSeen<'a> {
    /// What was proven.
    pub proofs: &'a Proofs,
    /// What its configuration says.
    pub look: &'a Look,
    /// The folder that the agent writes, as the node sees it.
    pub folder: &'a str,
}

impl RuntimeSeen<'_> {
    /// Why the runtime does not come to the relay for a registry whose file is in place; None once it was seen to.
    pub(super) fn unread(&self, registry: &str) -> Option<(MirrorState, &'static str, String)> {
        let doubt = self.look.doubt(self.folder);
        let failed = |Doubt { reason, message, .. }| Some((MirrorState::Failed, reason, message));
        let certain = doubt.clone().filter(|doubt| doubt.certain);
        let why = match self.proofs.of(registry) {
            Some(Evidence::Proven) if certain.is_none() || self.proofs.is_proven(registry, &self.look.fingerprint) => {
                return None;
            }
            Some(Evidence::Missed(said)) => {
                let doubt = doubt.unwrap_or_else(|| Doubt {
                    reason: reason::NOT_PROVEN,
                    message: format!(
                        "the container runtime does not come to the relay although its configuration says that it should; restart it, \
                         or let CRI-O reload, if that \
                         changed since it started: {said}"
                    ),
                    certain: true,
                });
                return failed(doubt);
            }
            Some(Evidence::Unclear(why)) => match certain {
                Some(doubt) => return failed(doubt),
                None => format!("{why}; the first pull from {registry} will prove it"),
            },
            Some(Evidence::Proven) | None => match certain.filter(|_| self.look.socket.is_none()) {
                Some(doubt) => return failed(doubt),
                None if self.look.socket.is_some() => "it is being asked".to_owned(),
                None => format!("without the runtime's socket the first pull from {registry} will prove it"),
            },
        };
        let doubt = doubt.map(|doubt| format!("; {}", doubt.message)).unwrap_or_default();
        let message = format!("the container runtime was not seen to come to the relay yet: {why}{doubt}");
        Some((MirrorState::Pending, reason::NOT_PROVEN, message))
    }

    /// The condition over all registries whose files are in place.
    pub(super) fn configured(&self, plan: &Plan, is_placed: impl Fn(&RegistryHost) -> bool) -> Verdict {
        let placed = plan.mirrors.iter().map(|planned| &planned.wanted.registry).filter(|one| is_placed(one));
        let (mut proven, mut pending) = (Vec::new(), None);
        for registry in placed {
            match self.unread(registry.as_str()) {
                None => proven.push(registry.to_string()),
                Some((MirrorState::Failed, reason, message)) => return verdict(Status::False, reason, message),
                Some((_, reason, message)) => pending = pending.or(Some((reason, message))),
            }
        }
        match (pending, self.look.doubt(self.folder)) {
            (Some((reason, message)), _) => verdict(Status::Unknown, reason, message),
            (None, _) if !proven.is_empty() => {
                let message = format!("the container runtime comes to the relay for {}", super::named(proven.iter()));
                verdict(Status::True, reason::PROVEN, message)
            }
            (None, Some(doubt)) => {
                let status = if doubt.certain { Status::False } else { Status::Unknown };
                verdict(status, doubt.reason, doubt.message)
            }
            (None, None) => {
                let message = match plan.mirrors.is_empty() {
                    true => "no mirror selects this node, so there is nothing to prove",
                    false => "no mirror's file is in place, so nothing can be proven",
                };
                verdict(Status::Unknown, reason::NOT_PROVEN, message.to_owned())
            }
        }
    }
}

fn verdict(status: Status, reason: &'static str, message: String) -> Verdict {
    Verdict { kind: RUNTIME_CONFIGURED, status, reason, message }
}
