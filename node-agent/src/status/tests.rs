//! What is seen of relay and files, and what the MirrorNode says of it.

use super::*;
use crate::files::Wanted;
use crate::hosts_toml::Entry;
use crate::plan::Planned;
use crate::proof::{Evidence, Proofs};
use crate::runtime::{Effective, Look, Lookup};

fn planned(registry: &str) -> Planned {
    let entry = Entry { mirror: "m".into(), relay: "http://127.0.0.1:429".into(), server: Server::Default };
    Planned { wanted: Wanted { registry: RegistryHost::parse(registry).unwrap(), entry }, cache: None }
}

fn view(standing: Standing, trouble: Option<&str>) -> View {
    View { standing, pods: 1, answering: 1, trouble: trouble.map(str::to_owned), uselessness: None }
}

const FOLDER: &str = "/etc/containerd/certs.d";

fn looked(lookup: Lookup) -> Look {
    let file = "/etc/containerd/config.toml".into();
    let effective = Ok(Effective { lookup, file, plugin: "io.containerd.cri.v1.images" });
    let socket = Some("/run/containerd/containerd.sock".into());
    Look { effective, fingerprint: "1".into(), socket, life: Some("1".into()), note: None }
}

/// What is found of mirrors that are otherwise well.
struct Case {
    plan: Plan,
    placed: BTreeMap<RegistryHost, Result<(), Fault>>,
    stuck: Vec<(String, Fault)>,
    views: BTreeMap<String, View>,
    listening: Result<(), String>,
    trust: Result<(), String>,
    proofs: Proofs,
    look: Look,
}

impl Case {
    fn well(registries: &[&str]) -> Self {
        let plan = Plan { mirrors: registries.iter().map(|registry| planned(registry)).collect(), refused: Vec::new() };
        let placed = plan.mirrors.iter().map(|planned| (planned.wanted.registry.clone(), Ok(()))).collect();
        let views = registries.iter().map(|registry| ((*registry).to_owned(), view(Standing::In, None))).collect();
        let mut proofs = Proofs::default();
        registries.iter().for_each(|registry| proofs.note(registry, "1", Evidence::Proven));
        let look = looked(Lookup::Folders(vec![FOLDER.to_owned()]));
        Self { plan, placed, stuck: Vec::new(), views, listening: Ok(()), trust: Ok(()), proofs, look }
    }

    fn findings(&self) -> Findings {
        let Self { plan, placed, stuck, views, listening, trust, proofs, look } = self;
        let runtime_version = Some("containerd://2.4.2".into());
        let runtime = RuntimeSeen { proofs, look, folder: FOLDER };
        findings(Seen { plan, placed, stuck, views, listening, trust, runtime_version, runtime })
    }

    fn status(&self) -> MirrorNodeStatus {
        stamp(&self.findings(), &MirrorNodeStatus::default(), &time(0))
    }

    #[track_caller]
    fn check(&self, state: MirrorState, reason: &str, message: &str) {
        let status = self.status();
        let one = &status.inactive[0];
        assert_eq!((one.state, one.reason.as_str()), (state, reason));
        assert!(one.message.contains(message), "{}", one.message);
        assert_eq!(status.summary, "0/1");
    }
}

fn time(second: i64) -> Time {
    Time(jiff::Timestamp::from_second(second).unwrap())
}

#[test]
fn an_active_node() {
    let status = Case::well(&["quay.io", "docker.io"]).status();
    assert_eq!(status.active, ["docker.io", "quay.io"]);
    assert_eq!(status.summary, "2/2");
    assert_eq!(status.runtime.unwrap().version, "containerd://2.4.2");
    let ready = &status.conditions[0];
    assert_eq!((ready.status.as_str(), ready.reason.as_str()), ("True", reason::ALL_ACTIVE));
    assert_eq!(ready.message, "pulls from docker.io, quay.io go through their caches");
    assert_eq!(Case::well(&[]).status().conditions[0].reason, reason::NO_MIRRORS);
}

#[test]
fn each_way_of_not_being_active() {
    let with = |change: &dyn Fn(&mut Case)| {
        let mut case = Case::well(&["docker.io"]);
        change(&mut case);
        case
    };
    let stands =
        |standing, trouble| with(&move |case| drop(case.views.insert("docker.io".into(), view(standing, trouble))));
    stands(Standing::Out, Some("10.0.0.1:5000: connect: refused")).check(
        MirrorState::Bypassed,
        reason::CACHE_UNREACHABLE,
        "10.0.0.1:5000: connect: refused",
    );
    stands(Standing::Out, None).check(MirrorState::Bypassed, reason::CACHE_UNREACHABLE, "it answers again");
    let mut only_way = stands(Standing::Out, Some("refused"));
    only_way.check(
        MirrorState::Bypassed,
        reason::CACHE_UNREACHABLE,
        "cache stopped answering, so pulls go to the upstream: refused",
    );
    only_way.plan.mirrors[0].wanted.entry.server = Server::Relay;
    only_way.check(
        MirrorState::Bypassed,
        reason::CACHE_UNREACHABLE,
        "cache stopped answering, so pulls fail, as nodes.fallback says: refused",
    );
    stands(Standing::Unproven, Some("refused")).check(MirrorState::Pending, reason::CACHE_NOT_PROVEN, "refused");
    stands(Standing::Unknown, None).check(MirrorState::Pending, reason::CACHE_NOT_PROVEN, "not asked yet");
    with(&|case| {
        let view = case.views.get_mut("docker.io").unwrap();
        view.pods = 0;
        view.standing = Standing::Out;
    })
    .check(MirrorState::Bypassed, reason::NO_CACHE_ADDRESS, "has no Pod");
    with(&|case| case.views.get_mut("docker.io").unwrap().uselessness = Some("the cache answered 500".into())).check(
        MirrorState::Bypassed,
        reason::CACHE_FAILS,
        "cache sends nothing of use, so pulls go to the upstream: the cache answered 500",
    );
    with(&|case| {
        case.trust = Err("Secret breakwater-relay is missing".into());
        case.views.clear();
    })
    .check(MirrorState::Pending, reason::CACHE_NOT_PROVEN, "breakwater-relay");
    with(&|case| case.placed.values_mut().for_each(|placed| *placed = Err(Fault::NotText))).check(
        MirrorState::Failed,
        reason::FOREIGN_FILE_INVALID,
        "UTF-8",
    );
    let taken = with(&|case| case.listening = Err("127.0.0.1:429 is in use".into()));
    taken.check(MirrorState::Failed, reason::RELAY_PORT_TAKEN, "in use");
    assert_eq!(taken.status().conditions[0].reason, reason::RELAY_PORT_TAKEN);
    let mut refused = Case::well(&[]);
    refused.plan.refused.push(("../etc".into(), "spec.registry is wrong"));
    refused.check(MirrorState::Failed, reason::INVALID_SPEC, "spec.registry");
}

#[test]
fn a_node_whose_runtime_ignores_the_files_is_not_active_and_says_the_mend() {
    let check =
        |lookup, socket: bool, proof: Option<Evidence>, state: Option<MirrorState>, status: &str, reason: &str| {
            let mut case = Case::well(&["docker.io"]);
            case.look = looked(lookup);
            case.look.socket = case.look.socket.filter(|_| socket);
            case.proofs = Proofs::default();
            if let Some(proof) = proof.clone() {
                case.proofs.note("docker.io", "1", proof);
            }
            let found = case.status();
            let configured = found.conditions.iter().find(|one| one.type_ == "RuntimeConfigured").unwrap();
            let context = format!("{proof:?} {found:?}");
            assert_eq!((configured.status.as_str(), configured.reason.as_str()), (status, reason), "{context}");
            assert_eq!(found.inactive.first().map(|one| one.state), state, "{context}");
            if let Some(one) = found.inactive.first() {
                assert_eq!((&one.reason, &one.message), (&configured.reason, &configured.message));
            }
        };
    let fits = || Lookup::Folders(vec![FOLDER.to_owned()]);
    let elsewhere = || Lookup::Folders(vec!["/elsewhere".to_owned()]);
    let (missed, unclear) =
        (|| Some(Evidence::Missed("not found".into())), || Some(Evidence::Unclear("silent".into())));
    let (failed, pending) = (Some(MirrorState::Failed), Some(MirrorState::Pending));
    // The canary has the last word, whatever the configuration says.
    check(Lookup::Nowhere, true, Some(Evidence::Proven), None, "True", "Proven");
    check(Lookup::Nowhere, true, missed(), failed, "False", "ConfigPathUnset");
    check(Lookup::Unsplit("/a:/b".into()), true, missed(), failed, "False", "MultiplePaths");
    check(Lookup::LegacyMirrors, true, missed(), failed, "False", "LegacyMirrors");
    check(elsewhere(), true, missed(), failed, "False", "ConfigPathElsewhere");
    check(fits(), true, missed(), failed, "False", "NotProven");
    // It is out, or could not be sent out.
    check(Lookup::Nowhere, true, None, pending, "Unknown", "NotProven");
    check(Lookup::Nowhere, true, unclear(), failed, "False", "ConfigPathUnset");
    check(fits(), true, unclear(), pending, "Unknown", "NotProven");
    // Without a socket the configuration is taken at its word where that is a no, and a pull proves the yes.
    check(Lookup::Nowhere, false, None, failed, "False", "ConfigPathUnset");
    check(elsewhere(), false, None, pending, "Unknown", "NotProven");
    check(fits(), false, None, pending, "Unknown", "NotProven");
    check(fits(), false, Some(Evidence::Proven), None, "True", "Proven");
}

#[test]
fn what_cannot_be_given_back_counts_until_it_is() {
    let stuck = || vec![("docker.io".to_owned(), Fault::NotText)];
    let case = Case { stuck: stuck(), ..Case::well(&[]) };
    case.check(MirrorState::Failed, reason::FOREIGN_FILE_INVALID, "cannot be given back");
    let mut case = Case { stuck: stuck(), ..Case::well(&[]) };
    case.plan.refused.push(("docker.io".into(), "spec.url is wrong"));
    assert_eq!(case.status().inactive.len(), 1);
}

#[test]
fn names_are_counted_beyond_three_and_lists_are_bounded() {
    let mut case = Case::well(&["ok.example"]);
    for i in 0..60 {
        let registry = format!("r{i:02}.example");
        case.plan.mirrors.push(planned(&registry));
        case.proofs.note(&registry, "1", Evidence::Proven);
        case.placed.insert(RegistryHost::parse(&registry).unwrap(), Ok(()));
    }
    let status = case.status();
    assert_eq!((status.inactive.len(), status.summary.as_str()), (50, "1/61"));
    assert!(
        status.conditions[0]
            .message
            .starts_with("r00.example, r01.example, r02.example and 57 more are not active; r00.example: ")
    );
}

#[test]
fn times_move_only_with_what_they_date() {
    let mut case = Case::well(&["docker.io"]);
    case.views.insert("docker.io".into(), view(Standing::Out, Some("refused")));
    let first = case.status();
    case.views.insert("docker.io".into(), view(Standing::Out, Some("silent")));
    let second = stamp(&case.findings(), &first, &time(10));
    assert_eq!(
        (second.inactive[0].since.clone(), second.conditions[0].last_transition_time.clone()),
        (time(0), time(0))
    );
    assert!(second.inactive[0].message.contains("silent"));
    case.views.get_mut("docker.io").unwrap().pods = 0;
    let third = stamp(&case.findings(), &second, &time(20));
    assert_eq!(third.inactive[0].since, time(20), "another reason");
    assert_eq!(third.conditions[0].last_transition_time, time(0));
}

#[test]
fn a_runtime_that_was_configured_otherwise_since_is_not_proven_for_ever() {
    let mut case = Case::well(&["docker.io"]);
    // Without a socket nobody asks it anew.
    case.look = Look { fingerprint: "2".into(), socket: None, life: None, ..looked(Lookup::Nowhere) };
    let status = case.status();
    assert_eq!(status.conditions[1].status, "False", "{:?}", status.conditions[1]);
}
