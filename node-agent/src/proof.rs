//! Which registries the container runtime was seen to ask the relay for. Part of the last known set, so that a restart of the
//! agent asks nothing anew. Pure.

use crate::runtime::Seen;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What is proven, by registry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proofs(BTreeMap<String, Proof>);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Proof {
    fingerprint: String,
    /// Named as in the sets that older agents kept.
    #[serde(rename = "verdict")]
    evidence: Evidence,
}

/// What an attempt to prove a registry showed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Evidence {
    /// The runtime came to the relay.
    Proven,
    /// It answered and had not come; what it said.
    Missed(String),
    /// It could not be asked; why.
    Unclear(String),
}

impl Proofs {
    /// What is known of a registry. What an older runtime showed counts until there is something newer.
    #[must_use]
    pub fn of(&self, registry: &str) -> Option<&Evidence> {
        self.0.get(registry).map(|proof| &proof.evidence)
    }

    /// Whether it is proven of the runtime as it is now.
    #[must_use]
    pub fn is_proven(&self, registry: &str, fingerprint: &str) -> bool {
        self.0.get(registry).is_some_and(|proof| proof.fingerprint == fingerprint && proof.evidence == Evidence::Proven)
    }

    /// What the runtime as it is now did about these registries, taken together.
    #[must_use]
    pub fn seen<'a>(&self, registries: impl Iterator<Item = &'a String>, fingerprint: &str) -> Seen {
        let mut seen = Seen::Nothing;
        for registry in registries {
            match self.0.get(registry).filter(|proof| proof.fingerprint == fingerprint).map(|proof| &proof.evidence) {
                Some(Evidence::Proven) => return Seen::Came,
                Some(Evidence::Missed(_)) => seen = Seen::Missed,
                // Not asked yet: it may come.
                Some(Evidence::Unclear(_)) | None => return Seen::Nothing,
            }
        }
        seen
    }

    /// Takes note. What could not be asked takes nothing away that was proven or missed.
    pub fn note(&mut self, registry: &str, fingerprint: &str, evidence: Evidence) {
        let is_settled = |proof: &Proof| !matches!(proof.evidence, Evidence::Unclear(_));
        if matches!(evidence, Evidence::Unclear(_)) && self.0.get(registry).is_some_and(is_settled) {
            return;
        }
        self.0.insert(registry.to_owned(), Proof { fingerprint: fingerprint.to_owned(), evidence });
    }

    /// Forgets registries that are mirrored no more.
    pub fn keep(&mut self, wanted: impl Fn(&str) -> bool) {
        self.0.retain(|registry, _| wanted(registry));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_runtime_has_missed_once_it_was_asked_for_all_in_vain() {
        let both = ["docker.io".to_owned(), "quay.io".to_owned()];
        let mut proofs = Proofs::default();
        let seen = |proofs: &Proofs| proofs.seen(both.iter(), "1");
        assert_eq!(proofs.seen([].iter(), "1"), Seen::Nothing);
        proofs.note("docker.io", "1", Evidence::Missed("not found".into()));
        assert_eq!(seen(&proofs), Seen::Nothing);
        proofs.note("quay.io", "0", Evidence::Missed("not found".into()));
        assert_eq!(seen(&proofs), Seen::Nothing, "that was another life of it");
        proofs.note("quay.io", "1", Evidence::Missed("not found".into()));
        assert_eq!(seen(&proofs), Seen::Missed);
        proofs.note("docker.io", "1", Evidence::Proven);
        assert_eq!(seen(&proofs), Seen::Came);
    }

    #[test]
    fn evidence_stands_until_there_is_better_and_a_proof_is_of_one_runtime() {
        let mut proofs = Proofs::default();
        let silent = || Evidence::Unclear("silent".into());
        proofs.note("docker.io", "1", silent());
        assert_eq!(proofs.of("docker.io"), Some(&silent()));
        proofs.note("docker.io", "1", Evidence::Proven);
        assert!(proofs.is_proven("docker.io", "1") && !proofs.is_proven("docker.io", "2"));
        proofs.note("docker.io", "2", silent());
        assert_eq!(proofs.of("docker.io"), Some(&Evidence::Proven));
        proofs.note("docker.io", "2", Evidence::Missed("not found".into()));
        assert_eq!(proofs.of("docker.io"), Some(&Evidence::Missed("not found".into())));
        proofs.note("quay.io", "2", Evidence::Proven);
        proofs.keep(|registry| registry == "quay.io");
        assert_eq!((proofs.of("docker.io"), proofs.of("quay.io")), (None, Some(&Evidence::Proven)));
    }

    #[test]
    fn what_an_older_agent_kept_is_understood() {
        let kept = r#"{"docker.io":{"fingerprint":"1","verdict":"Proven"}}"#;
        let proofs: Proofs = serde_json::from_str(kept).unwrap();
        assert!(proofs.is_proven("docker.io", "1"));
        assert_eq!(serde_json::to_string(&proofs).unwrap(), kept);
    }
}
