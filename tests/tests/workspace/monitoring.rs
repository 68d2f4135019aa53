//! Alerts, their pages and the dashboard speak of metrics that exist, and fire when they should by Prometheus' own judgement.

use anyhow::{Context, Result, ensure};
use breakwater_tests::toolchain::Toolchain;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::process::Command;

use super::{read, root};

const SECTIONS: &[&str] = &["## Meaning", "## Impact", "## Diagnosis", "## Mitigation"];

fn groups() -> Result<Value> {
    let rule: Value = serde_saphyr::from_str(&read(&root().join("config/monitoring/prometheusrule.yaml"))?)?;
    Ok(rule["spec"].clone())
}

fn alerts() -> Result<Vec<Value>> {
    let groups = groups()?;
    let rules = groups.pointer("/groups/0/rules").and_then(Value::as_array).context("there are no rules")?;
    ensure!(rules.len() > 5, "found only {} alerts", rules.len());
    Ok(rules.clone())
}

/// Names of metrics in the first column of the pages that list them.
pub(super) fn documented() -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for page in ["metrics", "node-metrics", "operator-metrics"] {
        let text = read(&root().join(format!("docs/{page}.md")))?;
        let rows = text.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
        names.extend(rows.map(|(name, _)| name.to_owned()));
    }
    ensure!(names.len() > 30, "found only {names:?}");
    Ok(names)
}

/// Every word of an expression that begins like a metric of ours, without what a histogram adds to its name.
pub(super) fn metrics_in(expression: &str) -> impl Iterator<Item = &str> {
    let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("breakwater_")).map(|word| {
        let plain = ["_bucket", "_count", "_sum"].iter().find_map(|end| word.strip_suffix(end));
        plain.unwrap_or(word)
    })
}

/// Every string below a key of this name.
fn below<'a>(value: &'a Value, key: &str, found: &mut Vec<&'a str>) {
    match value {
        Value::Object(fields) => {
            for (name, inner) in fields {
                found.extend(inner.as_str().filter(|_| name == key));
                below(inner, key, found);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| below(item, key, found)),
        _ => {}
    }
}

#[test]
fn alerts_and_dashboard_use_metrics_that_exist() -> Result<()> {
    let known = documented()?;
    let dashboard: Value = serde_json::from_str(&read(&root().join("config/monitoring/dashboard.json"))?)?;
    let alerts = Value::Array(alerts()?);
    for (file, value, keys) in
        [("prometheusrule.yaml", &alerts, &["expr"][..]), ("dashboard.json", &dashboard, &["expr", "query"])]
    {
        let mut expressions = Vec::new();
        keys.iter().for_each(|key| below(value, key, &mut expressions));
        let used: Vec<_> = expressions.iter().flat_map(|expression| metrics_in(expression)).collect();
        ensure!(used.len() > 10, "{file}: found only {used:?}");
        for metric in used {
            assert!(known.contains(metric), "config/monitoring/{file}: {metric} is on no page of metrics in docs/");
        }
    }
    Ok(())
}

#[test]
fn every_alert_has_its_page_and_every_page_its_alert() -> Result<()> {
    let mut pages = BTreeSet::new();
    for alert in alerts()? {
        let name = alert["alert"].as_str().context("an alert without a name")?;
        let page = format!("docs/runbooks/{name}.md");
        assert_eq!(alert["annotations"]["runbook_url"], page.as_str(), "{name}");
        for annotation in ["summary", "description"] {
            assert!(alert["annotations"][annotation].is_string(), "{name}: must have a {annotation}");
        }
        let text = read(&root().join(&page))?;
        assert!(text.starts_with(&format!("# {name}\n")), "{page}: must begin with its alert's name");
        let places: Vec<_> = SECTIONS.iter().map(|section| text.find(section)).collect();
        assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{page}: must have {SECTIONS:?}");
        pages.insert(format!("{name}.md"));
    }
    for entry in std::fs::read_dir(root().join("docs/runbooks"))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        assert!(pages.contains(&name), "docs/runbooks/{name}: there is no such alert");
    }
    Ok(())
}

#[test]
fn alerts_fire_when_they_should() -> Result<()> {
    let folder = tempfile::tempdir().context("make a folder")?;
    std::fs::write(folder.path().join("rules.yaml"), groups()?.to_string()).context("write the rules")?;
    let tests = read(&root().join("config/monitoring/prometheusrule_test.yaml"))?;
    for alert in alerts()? {
        let name = alert["alert"].as_str().unwrap_or_default();
        assert!(tests.contains(name), "prometheusrule_test.yaml: must let {name} fire");
    }
    std::fs::write(folder.path().join("tests.yaml"), tests).context("write the tests")?;
    let promtool = Toolchain::promtool()?;
    for arguments in [["check", "rules", "--lint=all", "rules.yaml"].as_slice(), &["test", "rules", "tests.yaml"]] {
        let output =
            Command::new(&promtool).args(arguments).current_dir(folder.path()).output().context("run promtool")?;
        let said = [output.stdout, output.stderr].concat();
        assert!(output.status.success(), "promtool {arguments:?}: {}", String::from_utf8_lossy(&said));
    }
    Ok(())
}

/// Every expression of the dashboard as a rule, with Grafana's variables filled in, because promtool parses rules alone.
#[test]
fn the_dashboards_expressions_parse() -> Result<()> {
    let dashboard: Value = serde_json::from_str(&read(&root().join("config/monitoring/dashboard.json"))?)?;
    let mut expressions = Vec::new();
    below(&dashboard, "expr", &mut expressions);
    let rules: Vec<_> = (0..)
        .zip(&expressions)
        .map(|(number, text)| {
            let text = text.replace("$__rate_interval", "5m").replace("$registry", ".*");
            json!({"record": format!("panel:{number}"), "expr": text})
        })
        .collect();
    let folder = tempfile::tempdir().context("make a folder")?;
    let file = folder.path().join("rules.yaml");
    std::fs::write(&file, json!({"groups": [{"name": "panels", "rules": rules}]}).to_string())
        .context("write rules")?;
    let output =
        Command::new(Toolchain::promtool()?).args(["check", "rules"]).arg(&file).output().context("run promtool")?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
