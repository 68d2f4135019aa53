//! Step 2, pure: from what was observed to what shall be built, or the reason why nothing shall.
//!
//! The API server has checked each object by itself. What is left is what concerns several objects: who holds the registry, whose
//! name it is, whether the former cache is gone. Bounds are checked again, because an object may be older than its rules.

use crate::observe::{Candidate, Observed};
use crate::pki::{Leaf, Tokens};
use crate::references::{InvalidReference, References};
use crate::watches::readable;
use breakwater_crds::names::{ANNOTATION_REGISTRY, LABEL_MANAGED_BY, MANAGER, cache_name};
use breakwater_crds::{RegistryMirror, Selector, SelectorInvalid, holder, is_older};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::{Resource, ResourceExt};
use std::num::NonZeroU16;
use std::sync::Arc;

/// A mirror that can be built.
#[derive(Debug)]
pub struct Valid {
    /// The object; its spec is sound.
    pub mirror: Arc<RegistryMirror>,
    /// Name of its cache: StatefulSet, Service and the prefix of its Secrets.
    pub name: String,
    /// The nodes that pull through it.
    pub nodes: Selector,
    /// The certificate as stored.
    pub leaf: Option<Leaf>,
    /// The tokens as stored.
    pub tokens: Option<Tokens>,
    /// The certificates of `caBundle`, PEM; or why the mirror stays as it is until somebody mends what it refers to.
    pub ca_bundle: Result<Option<String>, InvalidReference>,
    /// The StatefulSet as it is.
    pub statefulset: Option<Arc<StatefulSet>>,
    /// The claims of its replicas, as they are.
    pub claims: Vec<Arc<PersistentVolumeClaim>>,
}

/// Why nothing is built. All but [`Self::Handover`] wait for a person.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// An older mirror has the registry.
    #[error("{registry} belongs to RegistryMirror/{holder}, which is older; delete one of the two")]
    RegistryConflict {
        /// The registry.
        registry: String,
        /// The elder.
        holder: String,
    },
    /// The cache of a deleted mirror still has the name.
    #[error("waiting until StatefulSet {name} of the deleted RegistryMirror/{former} is gone")]
    Handover {
        /// The StatefulSet.
        name: String,
        /// The mirror it was made for.
        former: String,
    },
    /// Somebody else's object has the name.
    #[error("StatefulSet {name} exists and is not Breakwater's; delete or rename it")]
    Foreign {
        /// The StatefulSet.
        name: String,
    },
    /// A field is not valid.
    #[error("{field} {problem}")]
    InvalidSpec {
        /// Its path.
        field: &'static str,
        /// What is wrong, and the mend.
        problem: String,
    },
}

/// Judges one mirror.
///
/// # Errors
/// The reason why nothing is built.
pub fn validate(observed: &Observed) -> Result<Valid, Refusal> {
    let mirror = &observed.mirror;
    check_spec(mirror)?;
    let nodes = Selector::parse(&mirror.spec.nodes.selector).map_err(|error: SelectorInvalid| {
        Refusal::InvalidSpec { field: "spec.nodes.selector", problem: error.to_string() }
    })?;
    let mirrors = readable(&observed.mirrors);
    if let Some(elder) = holder(mirrors, &mirror.spec.registry).filter(|elder| elder.uid() != mirror.uid()) {
        let registry = mirror.spec.registry.clone();
        return Err(Refusal::RegistryConflict { registry, holder: elder.name_any() });
    }
    let candidate = choose(observed)?;
    Ok(Valid {
        mirror: mirror.clone(),
        name: candidate.name.clone(),
        nodes,
        leaf: candidate.leaf.clone(),
        tokens: candidate.tokens.clone(),
        ca_bundle: usable(&observed.references),
        statefulset: candidate.statefulset.clone(),
        claims: candidate.claim.iter().chain(&candidate.other_claims).cloned().collect(),
    })
}

/// The certificates, if everything that the mirror refers to can be used.
fn usable(references: &References) -> Result<Option<String>, InvalidReference> {
    let References { ca_bundle, proxy_login } = references.clone();
    proxy_login.transpose()?;
    ca_bundle.transpose()
}

fn check_spec(mirror: &RegistryMirror) -> Result<(), Refusal> {
    let invalid = |field, problem: &str| Err(Refusal::InvalidSpec { field, problem: problem.to_owned() });
    let spec = &mirror.spec;
    if !is_host(&spec.registry) {
        return invalid("spec.registry", "must be a host name with an optional port, such as docker.io");
    }
    let upstream = spec.upstream_url();
    let alternates = spec.alternates.iter().map(|alternate| ("spec.alternates", &*alternate.url));
    let proxy = spec.proxy.iter().map(|proxy| ("spec.proxy.url", &*proxy.url));
    for (field, url) in [("spec.url", &*upstream)].into_iter().chain(alternates).chain(proxy) {
        let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
        if !rest.is_some_and(|rest| is_host(rest.strip_suffix('/').unwrap_or(rest))) {
            return invalid(field, "must be http:// or https:// and a host with an optional port from 1 to 65535");
        }
    }
    let freshness = &spec.freshness;
    if freshness.tag_ttl.is_negative() || freshness.max_stale.is_negative() {
        return invalid("spec.freshness", "must have durations that are not negative");
    }
    Ok(())
}

/// A host with an optional port, as the cache takes it.
fn is_host(text: &str) -> bool {
    let (name, port) = text.rsplit_once(':').unwrap_or((text, "1"));
    let edges = [name.chars().next(), name.chars().last()];
    edges.iter().all(|c| c.is_some_and(|c| c.is_ascii_alphanumeric()))
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '.' || c == '-')
        && port.parse::<NonZeroU16>().is_ok()
}

/// Which of the two possible names the cache has: the one it already has, else the one that its content is kept under, else the plain
/// one unless that is another registry's.
fn choose(observed: &Observed) -> Result<&Candidate, Refusal> {
    let mirror = &observed.mirror;
    let owned = |candidate: &&Candidate| candidate.statefulset.as_deref().is_some_and(|it| is_owner(mirror, it));
    let candidates = [&observed.plain, &observed.hashed];
    if let Some(own) = candidates.into_iter().find(owned) {
        return Ok(own);
    }
    let keeps_ours = |candidate: &&Candidate| {
        let mut kept = registries(candidate).peekable();
        kept.peek().is_some() && kept.all(|registry| *registry == mirror.spec.registry)
    };
    let candidate = match candidates.into_iter().find(keeps_ours) {
        Some(candidate) => candidate,
        None if plain_is_taken(observed) => &observed.hashed,
        None => &observed.plain,
    };
    if let Some(found) = candidate.statefulset.as_deref() {
        let name = candidate.name.clone();
        if found.labels().get(LABEL_MANAGED_BY).map(String::as_str) != Some(MANAGER) {
            return Err(Refusal::Foreign { name });
        }
        if let Some(former) = found.owner_references().iter().find(|owner| owner.controller == Some(true)) {
            return Err(Refusal::Handover { name, former: former.name.clone() });
        }
    }
    Ok(candidate)
}

/// Whether another registry has the plain name: by its StatefulSet, by a retained claim with its content, or by an older mirror that
/// is about to take it. Two registries such as `a.b` and `a-b` share one.
fn plain_is_taken(observed: &Observed) -> bool {
    let (mirror, plain) = (&observed.mirror, &observed.plain);
    let is_other = |registry: &String| *registry != mirror.spec.registry;
    let takes_it = |other: &RegistryMirror| {
        let registry = &other.spec.registry;
        is_other(registry) && cache_name(registry) == plain.name && is_older(other, mirror)
    };
    registries(plain).any(is_other) || (plain.statefulset.is_none() && readable(&observed.mirrors).any(takes_it))
}

/// The registries that a StatefulSet and claims of this name were made for.
fn registries(candidate: &Candidate) -> impl Iterator<Item = &String> {
    let Candidate { statefulset, claim, other_claims, .. } = candidate;
    let claims = claim.iter().chain(other_claims).map(|claim| claim.annotations());
    let all = statefulset.iter().map(|found| found.annotations()).chain(claims);
    all.filter_map(|annotations| annotations.get(ANNOTATION_REGISTRY))
}

fn is_owner(mirror: &RegistryMirror, child: &StatefulSet) -> bool {
    let uid = mirror.meta().uid.as_deref();
    child.owner_references().iter().any(|owner| owner.controller == Some(true) && Some(owner.uid.as_str()) == uid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{mirror, observed, parse};

    /// A StatefulSet for a registry, owned by a mirror unless that is empty.
    fn statefulset(registry: &str, owner: &str) -> Option<Arc<StatefulSet>> {
        let owners = match owner {
            "" => "[]".to_owned(),
            name => {
                format!("[{{apiVersion: v1, kind: RegistryMirror, name: {name}, uid: uid-{name}, controller: true}}]")
            }
        };
        Some(Arc::new(parse(&format!(
            "{{metadata: {{name: x, labels: {{app.kubernetes.io/managed-by: breakwater}}, \
             annotations: {{breakwater.dev/registry: '{registry}'}}, ownerReferences: {owners}}}}}"
        ))))
    }

    fn outcome(observed: &Observed) -> String {
        validate(observed).map_or_else(|refusal| refusal.to_string(), |valid| valid.name)
    }

    #[test]
    fn the_elder_of_two_holds_the_registry() {
        let (elder, younger) = (mirror("old", 1, "{registry: docker.io}"), mirror("new", 2, "{registry: docker.io}"));
        assert_eq!(outcome(&observed(elder.clone(), std::slice::from_ref(&younger))), "cache-docker-io");
        assert_eq!(
            outcome(&observed(younger, &[elder])),
            "docker.io belongs to RegistryMirror/old, which is older; delete one of the two"
        );
    }

    #[test]
    fn a_successor_waits_for_the_former_cache_to_go() {
        let mut observed = observed(mirror("new", 2, "{registry: docker.io}"), &[]);
        observed.plain.statefulset = statefulset("docker.io", "old");
        assert_eq!(
            outcome(&observed),
            "waiting until StatefulSet cache-docker-io of the deleted RegistryMirror/old is gone"
        );
        observed.plain.statefulset = statefulset("docker.io", "");
        assert_eq!(outcome(&observed), "cache-docker-io", "an orphaned one is adopted");
        observed.plain.statefulset = statefulset("docker.io", "new");
        assert_eq!(outcome(&observed), "cache-docker-io");
        observed.plain.statefulset = Some(Arc::new(parse("{metadata: {name: cache-docker-io}}")));
        assert_eq!(
            outcome(&observed),
            "StatefulSet cache-docker-io exists and is not Breakwater's; delete or rename it"
        );
    }

    #[test]
    fn of_two_registries_with_one_name_the_owner_then_the_elder_has_it() {
        let (elder, younger) = (mirror("old", 1, "{registry: a.b}"), mirror("new", 2, "{registry: a-b}"));
        assert_eq!(outcome(&observed(elder.clone(), std::slice::from_ref(&younger))), "cache-a-b");
        let mut seen = observed(younger, std::slice::from_ref(&elder));
        assert!(outcome(&seen).starts_with("cache-a-b-"), "{}", outcome(&seen));
        seen.plain.statefulset = statefulset("a-b", "new");
        assert_eq!(outcome(&seen), "cache-a-b", "who has the name keeps it");
        let mut seen = observed(elder, &[]);
        seen.plain.statefulset = statefulset("a-b", "new");
        assert!(outcome(&seen).starts_with("cache-a-b-"));
        seen.plain.statefulset = None;
        seen.hashed.statefulset = statefulset("a.b", "old");
        assert_eq!(outcome(&seen), seen.hashed.name, "also the one with the hash");
    }

    #[test]
    fn a_retained_claim_is_never_given_to_another_registry() {
        let mut seen = observed(mirror("new", 1, "{registry: a.b}"), &[]);
        seen.plain.claim = Some(Arc::new(parse("{metadata: {annotations: {breakwater.dev/registry: a-b}}}")));
        assert_eq!(outcome(&seen), seen.hashed.name);
        seen.plain.claim = Some(Arc::new(parse("{metadata: {annotations: {breakwater.dev/registry: a.b}}}")));
        assert_eq!(outcome(&seen), "cache-a-b");
    }

    #[test]
    fn a_retained_claim_of_any_replica_decides_the_name() {
        let claim = |registry: &str| -> Arc<PersistentVolumeClaim> {
            Arc::new(parse(&format!("{{metadata: {{annotations: {{breakwater.dev/registry: {registry}}}}}}}")))
        };
        let (elder, younger) = (mirror("old", 1, "{registry: a-b}"), mirror("new", 2, "{registry: a.b}"));
        let mut seen = observed(younger.clone(), std::slice::from_ref(&elder));
        seen.plain.claim = Some(claim("a.b"));
        assert_eq!(outcome(&seen), "cache-a-b", "the elder cannot use what is kept there");
        let mut seen = observed(younger, &[]);
        seen.plain.other_claims = vec![claim("a-b")];
        assert_eq!(outcome(&seen), seen.hashed.name, "a second replica would not start on another's claim");
        seen.plain.other_claims = Vec::new();
        seen.hashed.claim = Some(claim("a.b"));
        assert_eq!(outcome(&seen), seen.hashed.name, "its content is there");
        seen.hashed.claim = None;
        seen.hashed.other_claims = vec![claim("a.b")];
        assert_eq!(outcome(&seen), seen.hashed.name);
        let mut seen = observed(elder, &[]);
        seen.plain.claim = Some(claim("a.b"));
        assert_eq!(outcome(&seen), seen.hashed.name);
    }

    #[test]
    fn what_an_older_schema_let_through_is_refused_by_name() {
        let check = |spec: &str, expected: &str| assert_eq!(outcome(&observed(mirror("m", 1, spec), &[])), expected);
        check(
            "{registry: 'https://x/y'}",
            "spec.registry must be a host name with an optional port, such as docker.io",
        );
        check("{registry: 'x:99999'}", "spec.registry must be a host name with an optional port, such as docker.io");
        let url = "must be http:// or https:// and a host with an optional port from 1 to 65535";
        for (fields, field) in [
            ("url: 'ftp://x'", "spec.url"),
            ("url: 'https://u@x'", "spec.url"),
            ("url: 'https://x:99999'", "spec.url"),
            ("url: 'https://x:0'", "spec.url"),
            ("proxy: {url: 'http://x:65536'}", "spec.proxy.url"),
            ("alternates: [{url: 'http://a'}, {url: 'http://b:70000'}]", "spec.alternates"),
        ] {
            check(&format!("{{registry: x.y, {fields}}}"), &format!("{field} {url}"));
        }
        check(
            "{registry: x.y, nodes: {selector: {matchExpressions: [{key: a, operator: Gt}]}}}",
            "spec.nodes.selector operator Gt must be In, NotIn, Exists or DoesNotExist",
        );
        check("{registry: 'x.y:5000', url: 'http://10.0.0.1:5000/', proxy: {url: 'http://p:3128/'}}", "cache-x-y-5000");
    }
}
