//! `breakwater-operator check`: whether this installation works, told line by line. Reads, and changes nothing.

use crate::args::CheckArgs;
use crate::fleet::pod_is_ready;
use crate::lease;
use crate::skew::MEND;
use crate::startup::DEFINITIONS;
use crate::text::one_line;
use crate::watches::AGENT;
use breakwater_crds::names::LABEL_NAME;
use breakwater_crds::{Lacking, RegistryMirror, yaml};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::ListParams;
use kube::core::DeserializeGuard;
use kube::core::error_boundary::InvalidObject;
use kube::runtime::conditions::is_crd_established;
use kube::runtime::wait::Condition;
use kube::{Api, Client, ResourceExt};
use std::time::Duration;
use tokio::time::Instant;

const PAUSE: Duration = Duration::from_secs(1);
/// A call that takes longer has failed for this look.
const CALL_DEADLINE: Duration = Duration::from_secs(10);

/// One thing that was looked at: what was found, `Err` where it is not as it should be.
type Finding = Result<String, String>;

/// Looks until all is well or the time is over, prints the last look, and says whether all was well.
pub async fn check(args: CheckArgs, client: Client) -> bool {
    let deadline = Instant::now() + args.wait;
    loop {
        let findings = match tokio::time::timeout(CALL_DEADLINE, look(&args, &client)).await {
            Ok(Ok(findings)) => findings,
            Ok(Err(error)) => vec![Err(format!("API server: {}", crate::error_chain(&error)))],
            Err(_) => vec![Err(format!("API server: no answer within {}s", CALL_DEADLINE.as_secs()))],
        };
        let well = findings.iter().all(Result::is_ok);
        if well || Instant::now() + PAUSE > deadline {
            for finding in &findings {
                match finding {
                    Ok(text) => println!("ok    {text}"),
                    Err(text) => println!("FAIL  {text}"),
                }
            }
            return well;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn look(args: &CheckArgs, client: &Client) -> kube::Result<Vec<Finding>> {
    let mut findings = Vec::new();
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    for (name, ours) in DEFINITIONS.into_iter().zip(yaml::definitions()) {
        findings.push(definition(name, &ours, definitions.get_opt(name).await?.as_ref()));
    }
    if findings.iter().any(Result::is_err) {
        return Ok(findings);
    }
    let leases: Api<Lease> = Api::namespaced(client.clone(), &args.namespace);
    let lease = leases.get_opt(lease::NAME).await?;
    let pods: Api<Pod> = Api::namespaced(client.clone(), &args.namespace);
    let pods = pods.list(&ListParams::default()).await?.items;
    findings.push(leader(lease.as_ref(), &pods, Timestamp::now()));
    let pods: Api<Pod> = Api::namespaced(client.clone(), &args.nodes_namespace);
    let ours = ListParams::default().labels(&format!("{LABEL_NAME}={AGENT}"));
    findings.push(agents(&pods.list(&ours).await?.items));
    let mirrors: Api<DeserializeGuard<RegistryMirror>> = Api::all(client.clone());
    findings.extend(mirrors.list(&ListParams::default()).await?.iter().map(mirror));
    Ok(findings)
}

fn definition(name: &str, ours: &CustomResourceDefinition, served: Option<&CustomResourceDefinition>) -> Finding {
    let Some(served) = served.filter(|served| is_crd_established().matches_object(Some(served))) else {
        return Err(format!("definition {name} is not established: apply the CRDs"));
    };
    let lacking = Lacking::of(ours, served);
    if lacking.is_empty() {
        Ok(format!("definition {name}"))
    } else {
        Err(format!("definition {name} lacks {lacking}; {MEND}"))
    }
}

fn leader(lease: Option<&Lease>, pods: &[Pod], now: Timestamp) -> Finding {
    let spec = lease.and_then(|lease| lease.spec.as_ref());
    let Some(holder) = spec.and_then(|spec| spec.holder_identity.as_deref()).filter(|holder| !holder.is_empty()) else {
        return Err("operator: none leads; look at its Pod".to_owned());
    };
    let renewed = spec.and_then(|spec| spec.renew_time.as_ref()).map_or(Timestamp::UNIX_EPOCH, |time| time.0);
    // Two machines' clocks may differ; a leader that is gone stays silent, and the next look tells.
    if now.duration_since(renewed).as_secs() > 2 * lease::DURATION.as_secs().cast_signed() {
        return Err(format!("operator: {holder} led last at {renewed}; look at its Pod"));
    }
    // Whoever may write leases can hold this one, and then no operator leads.
    if !pods.iter().any(|pod| pod.name_any() == holder) {
        return Err(format!(
            "operator: {holder} leads, and no such Pod is there; delete Lease {}, and look at who writes it",
            lease::NAME
        ));
    }
    Ok(format!("operator: Pod {holder} leads"))
}

fn agents(pods: &[Pod]) -> Finding {
    let waiting: Vec<_> = pods.iter().filter(|pod| !pod_is_ready(pod)).map(ResourceExt::name_any).collect();
    match (pods.len(), waiting.len()) {
        (0, _) => Err("agents: no Pod of theirs; look at DaemonSet breakwater-node-agent".to_owned()),
        (all, 0) => Ok(format!("agents: {all} of {all} Pods are ready")),
        (all, left) => {
            let named = waiting.iter().take(3).cloned().collect::<Vec<_>>().join(", ");
            Err(format!("agents: {} of {all} Pods are ready; look at {named}", all - left))
        }
    }
}

fn mirror(mirror: &DeserializeGuard<RegistryMirror>) -> Finding {
    let name = format!("RegistryMirror/{}", mirror.name_any());
    let unreadable = |invalid: &InvalidObject| format!("{name}: cannot be read: {}", one_line(&invalid.error, 300));
    let mirror = mirror.0.as_ref().map_err(unreadable)?;
    let conditions = mirror.status.iter().flat_map(|status| &status.conditions);
    match conditions.into_iter().find(|condition| condition.type_ == "Ready") {
        Some(ready) if ready.observed_generation != mirror.metadata.generation => {
            Err(format!("{name}: the operator has not seen its last change"))
        }
        Some(ready) if ready.status == "True" => Ok(format!("{name}: {}", ready.message)),
        Some(ready) => Err(format!("{name}: {}: {}", ready.reason, ready.message)),
        None => Err(format!("{name}: the operator has not seen it")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse<T: serde::de::DeserializeOwned>(yaml: &str) -> T {
        serde_saphyr::from_str(yaml).unwrap()
    }

    #[test]
    fn a_leader_counts_while_it_renews() {
        let lease: Lease = parse("{metadata: {}, spec: {holderIdentity: a, renewTime: '2026-01-01T00:00:00.000000Z'}}");
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let pods = [parse("{metadata: {name: a}}")];
        assert_eq!(leader(Some(&lease), &pods, at("2026-01-01T00:00:20Z")).unwrap(), "operator: Pod a leads");
        assert!(leader(Some(&lease), &pods, at("2026-01-01T00:01:00Z")).unwrap_err().contains("led last"));
        assert!(leader(None, &pods, at("2026-01-01T00:00:00Z")).unwrap_err().contains("none leads"));
    }

    #[test]
    fn a_leader_is_a_pod() {
        let lease: Lease = parse("{metadata: {}, spec: {holderIdentity: a, renewTime: '2026-01-01T00:00:00.000000Z'}}");
        let told = |pods: &[Pod]| leader(Some(&lease), pods, "2026-01-01T00:00:05Z".parse().unwrap()).unwrap_err();
        assert!(told(&[]).starts_with("operator: a leads, and no such Pod is there"));
        assert!(told(&[parse("{metadata: {name: b}}")]).contains("no such Pod"));
    }

    #[test]
    fn every_agent_must_be_ready_and_one_must_be_there() {
        let pod = |ready: &str| -> Pod {
            parse(&format!("{{metadata: {{name: p}}, status: {{conditions: [{{type: Ready, status: '{ready}'}}]}}}}"))
        };
        assert!(agents(&[]).is_err());
        assert_eq!(agents(&[pod("True")]).unwrap(), "agents: 1 of 1 Pods are ready");
        assert_eq!(agents(&[pod("True"), pod("False")]).unwrap_err(), "agents: 1 of 2 Pods are ready; look at p");
    }

    #[test]
    fn a_mirror_must_be_ready_in_its_present_form() {
        let at = |generation: i64, status: &str| -> DeserializeGuard<RegistryMirror> {
            parse(&format!(
                "{{apiVersion: breakwater.dev/v1alpha1, kind: RegistryMirror, metadata: {{name: hub, generation: {generation}}},
                   spec: {{registry: docker.io}}, status: {{conditions: [{{type: Ready, status: '{status}', reason: R, message: why,
                   observedGeneration: 1, lastTransitionTime: '2026-01-01T00:00:00Z'}}]}}}}"
            ))
        };
        assert!(mirror(&at(1, "True")).is_ok());
        assert_eq!(mirror(&at(1, "False")).unwrap_err(), "RegistryMirror/hub: R: why");
        assert!(mirror(&at(2, "True")).unwrap_err().contains("last change"));
        let broken: DeserializeGuard<RegistryMirror> = parse("{metadata: {name: hub}, spec: {registry: 1}}");
        assert!(mirror(&broken).unwrap_err().starts_with("RegistryMirror/hub: cannot be read: "));
    }
}
