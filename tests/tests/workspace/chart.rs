//! The chart and config/ say the same: what Helm renders is compared with what kustomize renders, object by object.

use anyhow::{Context, Result, bail, ensure};
use breakwater_tests::toolchain::Toolchain;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output};
use tempfile::TempDir;

use super::{read, root};

/// What to do after a change in config/.
const MEND: &str = "charts/breakwater and config/ must say the same: run `make manifests`, which copies what the chart takes over \
                    as it is, and edit charts/breakwater/templates/{operator,node-agent}.yaml by hand";

/// A preset of config/node-agent/presets, and the values that mean the same.
const PRESETS: &[(&str, &[&str])] = &[
    ("k3s", &["nodeAgent.preset=k3s"]),
    ("rke2", &["nodeAgent.preset=rke2"]),
    ("k0s", &["nodeAgent.preset=k0s"]),
    ("microk8s", &["nodeAgent.preset=microk8s"]),
    ("talos", &["nodeAgent.preset=talos"]),
    ("cri-o", &["nodeAgent.preset=cri-o"]),
    ("configure-runtime", &["nodeAgent.configureRuntime=true"]),
    ("without-socket", &["nodeAgent.socket=false"]),
];

/// Rendered objects by kind, namespace and name.
pub(super) type Objects = BTreeMap<String, Value>;

fn run(program: &Path, arguments: &[&str]) -> Result<Output> {
    Command::new(program).args(arguments).current_dir(root()).output().with_context(|| format!("run {program:?}"))
}

pub(super) fn rendered(output: &Output) -> Result<Objects> {
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout.clone()).context("read what was rendered")?;
    let mut objects = Objects::new();
    // A hook is no part of what is installed. A test of its own compares the definitions; they are the most of the text, and slow to parse in a test's build.
    let left_out = |document: &&str| {
        ["kind: CustomResourceDefinition", "helm.sh/hook"].iter().all(|mark| !document.contains(mark))
    };
    for document in text.split("\n---").filter(left_out) {
        let Some(mut object) = serde_saphyr::from_str::<Option<Value>>(document).context("parse what was rendered")?
        else {
            continue;
        };
        sort_by_name(&mut object);
        let text = |pointer| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
        let key = format!("{} {}/{}", text("/kind"), text("/metadata/namespace"), text("/metadata/name"));
        ensure!(objects.insert(key.clone(), object).is_none(), "{key} is rendered twice");
    }
    Ok(objects)
}

/// Environment, volumes and mounts are sets by name to Kubernetes, and kustomize orders them by its own rules.
fn sort_by_name(value: &mut Value) {
    match value {
        Value::Array(items) => {
            items.iter_mut().for_each(sort_by_name);
            if items.iter().all(|item| item["name"].is_string()) {
                items.sort_by_key(|item| item["name"].to_string());
            }
        }
        Value::Object(fields) => fields.values_mut().for_each(sort_by_name),
        _ => {}
    }
}

/// The first place where two values differ.
fn difference(config: &Value, chart: &Value, path: &str) -> Option<String> {
    match (config, chart) {
        // Each key once: twice at each level is a million times at the depth of a schema.
        (Value::Object(a), Value::Object(b)) => {
            a.keys().chain(b.keys().filter(|key| !a.contains_key(*key))).find_map(|key| {
                let none = Value::Null;
                difference(a.get(key).unwrap_or(&none), b.get(key).unwrap_or(&none), &format!("{path}.{key}"))
            })
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            a.iter().zip(b).enumerate().find_map(|(index, (a, b))| difference(a, b, &format!("{path}[{index}]")))
        }
        (Value::Number(a), Value::Number(b)) if a.as_f64() == b.as_f64() => None,
        _ if config == chart => None,
        _ => Some(format!("at {path} config has {config}, the chart {chart}")),
    }
}

fn ensure_same(what: &str, config: &Objects, chart: &Objects) -> Result<()> {
    for key in config.keys().chain(chart.keys()) {
        let (Some(a), Some(b)) = (config.get(key), chart.get(key)) else {
            let holder = if config.contains_key(key) { "config" } else { "the chart" };
            bail!("{what}: only {holder} has {key}\n{MEND}");
        };
        if let Some(place) = difference(a, b, "") {
            bail!("{what}: {key}: {place}\n{MEND}");
        }
    }
    Ok(())
}

fn template(helm: &Path, values: &[&str]) -> Result<Output> {
    let mut arguments = vec!["template", "breakwater", "charts/breakwater"];
    for value in values {
        match value.strip_prefix("--") {
            Some(_) => arguments.push(value),
            None => arguments.extend(["--set", value]),
        }
    }
    run(helm, &arguments)
}

/// An overlay of config/default with one preset.
fn overlay(preset: &str) -> Result<TempDir> {
    let folder = tempfile::tempdir().context("make a folder")?;
    let path = folder.path().canonicalize().context("find the folder")?;
    let config = root().join("config").canonicalize().context("find config")?;
    // Kustomize takes relative paths alone.
    let up = "../".repeat(path.components().count() - 1);
    let config = format!("{up}{}", config.display().to_string().trim_start_matches('/'));
    let text = format!("resources: [{config}/default]\ncomponents: [{config}/node-agent/presets/{preset}]\n");
    std::fs::write(path.join("kustomization.yaml"), text).context("write an overlay")?;
    Ok(folder)
}

#[test]
fn the_chart_and_kustomize_render_the_same() -> Result<()> {
    let (helm, kubectl) = (Toolchain::helm()?, Toolchain::kubectl()?);
    let kustomize = |folder: &Path| rendered(&run(&kubectl, &["kustomize", &folder.to_string_lossy()])?);
    let config = kustomize(&root().join("config/default"))?;
    // What outlives an uninstallation is Helm's own business.
    let chart = |values: &[&str]| rendered(&template(&helm, &[values, &["crds.keep=false"]].concat())?);
    ensure_same("the defaults", &config, &chart(&[])?)?;
    for (preset, values) in PRESETS {
        let folder = overlay(preset)?;
        ensure_same(&format!("the preset {preset}"), &kustomize(folder.path())?, &chart(values)?)?;
    }
    Ok(())
}

#[test]
fn monitoring_is_the_same_and_links_where_it_is_told() -> Result<()> {
    let (helm, kubectl) = (Toolchain::helm()?, Toolchain::kubectl()?);
    let template = |values: &[&str]| -> Result<Objects> {
        let only =
            ["--show-only=templates/monitoring.yaml", "monitoring.podMonitors=true", "monitoring.prometheusRule=true"];
        rendered(&template(&helm, &[&only, values].concat())?)
    };
    let config = rendered(&run(&kubectl, &["kustomize", "config/monitoring"])?)?;
    ensure_same("monitoring", &config, &template(&[])?)?;
    let set = ["monitoring.runbookBase=https://x.test/", "monitoring.labels.release=a", "monitoring.dashboard=true"];
    let objects = template(&set)?;
    let rule = &objects["PrometheusRule breakwater-system/breakwater"];
    let link = rule.pointer("/spec/groups/0/rules/0/annotations/runbook_url").and_then(Value::as_str);
    assert!(link.is_some_and(|link| link.starts_with("https://x.test/docs/runbooks/Breakwater")), "{link:?}");
    assert_eq!(rule["metadata"]["labels"]["release"], "a");
    let dashboard = &objects["ConfigMap breakwater-system/breakwater-dashboard"]["data"]["breakwater.json"];
    let dashboard: Value = serde_json::from_str(dashboard.as_str().context("no dashboard")?)?;
    assert_eq!(dashboard, serde_json::from_str::<Value>(&read(&root().join("config/monitoring/dashboard.json"))?)?);
    Ok(())
}

#[test]
fn every_preset_has_its_values() -> Result<()> {
    for entry in std::fs::read_dir(root().join("config/node-agent/presets"))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        assert!(
            PRESETS.iter().any(|(preset, _)| *preset == name),
            "the chart must know the preset {name}, and PRESETS here"
        );
    }
    Ok(())
}

#[test]
fn what_the_chart_takes_over_is_what_config_has() -> Result<()> {
    for part in ["crd", "rbac", "monitoring"] {
        let names = |folder: &Path| -> Result<Vec<String>> {
            let entries = std::fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))?;
            let mut names: Vec<_> =
                entries.filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned())).collect();
            names.retain(|name| name != "kustomization.yaml" && !name.ends_with("_test.yaml"));
            names.sort();
            Ok(names)
        };
        let (ours, theirs) = (root().join("charts/breakwater/files").join(part), root().join("config").join(part));
        assert_eq!(names(&ours)?, names(&theirs)?, "{MEND}");
        for name in names(&ours)? {
            assert!(read(&ours.join(&name))? == read(&theirs.join(&name))?, "config/{part}/{name} changed: {MEND}");
        }
    }
    Ok(())
}

#[test]
fn helm_finds_no_fault_and_refuses_wrong_values() -> Result<()> {
    let helm = Toolchain::helm()?;
    let lint = run(&helm, &["lint", "--strict", "charts/breakwater"])?;
    assert!(lint.status.success(), "{}", String::from_utf8_lossy(&lint.stdout));
    for (value, refusal) in [
        ("operator.replica=2", "additional properties 'replica' not allowed"),
        ("nodeagent.preset=k3s", "additional properties 'nodeagent' not allowed"),
        ("nodeAgent.preset=kind", "value must be one of 'containerd', 'k3s'"),
        ("operator.replicas=0", "minimum: got 0, want 1"),
        ("image.digest=latest", "does not match pattern"),
        ("nodeAgent.configureRuntime=1", "got number, want boolean"),
    ] {
        let refused = template(&helm, &[value])?;
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && said.contains(refusal), "{value}: must say {refusal}: {said}");
    }
    let both = template(&helm, &["nodeAgent.preset=k3s", "nodeAgent.configureRuntime=true"])?;
    assert!(String::from_utf8_lossy(&both.stderr).contains("nodeAgent.configureRuntime: must be false"), "{both:?}");
    Ok(())
}

#[test]
fn values_reach_the_objects() -> Result<()> {
    let helm = Toolchain::helm()?;
    let digest = format!("sha256:{}", "a".repeat(64));
    let values = [
        format!("image.digest={digest}"),
        "commonLabels.team=platform".to_owned(),
        "imagePullSecrets[0].name=login".to_owned(),
        "imagePullSecrets[1].name=spare".to_owned(),
        "operator.nodeSelector.pool=infra".to_owned(),
        "operator.podLabels.scrape=yes".to_owned(),
    ];
    let objects = rendered(&template(&helm, &values.each_ref().map(String::as_str))?)?;
    for (key, object) in &objects {
        assert_eq!(object["metadata"]["labels"]["team"], "platform", "{key}");
    }
    let operator = &objects["Deployment breakwater-system/breakwater-operator"]["spec"]["template"];
    let image = format!("breakwater.dev/breakwater@{digest}");
    assert_eq!(operator["spec"]["containers"][0]["image"], image.as_str());
    assert_eq!(operator["spec"]["containers"][0]["env"][0]["value"], image.as_str());
    assert_eq!(operator["spec"]["imagePullSecrets"][0]["name"], "login");
    assert_eq!(operator["spec"]["containers"][0]["env"][1]["value"], "login,spare", "for the caches' Pods");
    assert_eq!(operator["spec"]["nodeSelector"]["pool"], "infra");
    assert_eq!(operator["metadata"]["labels"]["scrape"], "yes");
    Ok(())
}

#[test]
fn values_that_look_like_something_else_make_objects_all_the_same() -> Result<()> {
    let helm = Toolchain::helm()?;
    // A label twice is what tools that read manifests after Helm refuse, and a number is no name.
    let values = [
        r"commonLabels.app\.kubernetes\.io/part-of=platform",
        r"operator.podLabels.app\.kubernetes\.io/name=mine",
        r"nodeAgent.podLabels.app\.kubernetes\.io/name=mine",
        "--set-string=imagePullSecrets[0].name=123",
        "--set-string=operator.priorityClassName=1",
        "--set-string=nodeAgent.priorityClassName=1",
        "monitoring.dashboard=true",
    ];
    let objects = rendered(&template(&helm, &values)?)?;
    for (key, name) in [
        ("Deployment breakwater-system/breakwater-operator", "breakwater-operator"),
        ("DaemonSet breakwater-nodes/breakwater-node-agent", "breakwater-node-agent"),
    ] {
        let template = &objects[key]["spec"]["template"];
        assert_eq!(template["metadata"]["labels"]["app.kubernetes.io/name"], name, "its selector needs it");
        assert_eq!(template["spec"]["priorityClassName"], "1", "{key}");
    }
    let operator = &objects["Deployment breakwater-system/breakwater-operator"]["spec"]["template"]["spec"];
    assert_eq!(operator["containers"][0]["env"][1]["value"], "123");
    Ok(())
}

#[test]
fn the_definitions_are_kept_or_not_or_left_out() -> Result<()> {
    let helm = Toolchain::helm()?;
    for (values, definitions, kept) in
        [(&[][..], 2, 3), (&["crds.keep=false"][..], 2, 0), (&["crds.enabled=false"][..], 0, 1)]
    {
        let text = String::from_utf8(template(&helm, values)?.stdout)?;
        assert_eq!(text.matches("\nkind: CustomResourceDefinition\n").count(), definitions, "{values:?}");
        // With the namespace of their caches.
        assert_eq!(text.matches("    helm.sh/resource-policy: keep\n").count(), kept, "{values:?}");
    }
    let text = String::from_utf8(template(&helm, &["crds.keep=false", "--show-only=templates/crds.yaml"])?.stdout)?;
    for definition in breakwater_crds::yaml::definitions() {
        let name = definition.metadata.name.clone().unwrap_or_default();
        let chart = text.split("\n---").find(|document| document.contains(&format!("\n  name: {name}\n")));
        let chart: Value = serde_saphyr::from_str(chart.context("the chart has no such definition")?)?;
        let place = difference(&serde_json::to_value(&definition)?, &chart, "");
        assert_eq!(place, None, "{name} differs in the chart: {MEND}");
    }
    Ok(())
}

#[test]
fn every_value_has_a_comment_and_a_place_in_the_schema() -> Result<()> {
    let text = read(&root().join("charts/breakwater/values.yaml"))?;
    let schema: Value = serde_json::from_str(&read(&root().join("charts/breakwater/values.schema.json"))?)?;
    let (mut known, mut above, mut found) = (&schema, "", 0);
    for line in text.lines() {
        let name = line.trim_start();
        let depth = line.len() - name.len();
        // Deeper, and in lists, are fields of Kubernetes' own.
        if let Some((name, _)) = name.split_once(':').filter(|_| depth <= 2 && !name.starts_with(['#', '-'])) {
            let place = if depth == 0 { &schema } else { known };
            ensure!(place["properties"][name].is_object(), "values.schema.json: must have {name}");
            ensure!(above.trim_start().starts_with('#'), "values.yaml: {name} must have a comment");
            known = if depth == 0 { &schema["properties"][name] } else { known };
            found += 1;
        }
        above = line;
    }
    let in_schema = |schema: &Value| schema["properties"].as_object().map_or(0, serde_json::Map::len);
    let all: usize =
        schema["properties"].as_object().into_iter().flatten().map(|(_, below)| 1 + in_schema(below)).sum();
    assert_eq!(found + 1, all, "values.yaml: must have every value of values.schema.json but Helm's own `global`");
    Ok(())
}
