//! What the pages tell users to type names what exists: kinds, objects, namespaces, labels, fields, conditions, files, lines of the log.

use anyhow::{Context, Result, ensure};
use breakwater_crds::names::{CACHE, LABEL_MIRROR, LABEL_NAME};
use breakwater_tests::toolchain::Toolchain;
use serde_json::Value;
use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::PathBuf;
use std::process::Command;

use super::chart::{Objects, rendered};
use super::monitoring::{documented, metrics_in};
use super::{fields, read, root, rust_files};

/// Kubernetes' own kinds as the pages write them, and the kind's name where the object must be one that config/ installs.
const KINDS: &[(&str, Option<&str>)] = &[
    ("pod", None),
    ("pods", None),
    ("pvc", None),
    ("statefulset", None),
    ("node", None),
    ("nodes", None),
    ("namespace", None),
    ("secret", None),
    ("configmap", None),
    ("storageclass", None),
    ("lease", None),
    ("crd", None),
    ("deployment", Some("Deployment")),
    ("deploy", Some("Deployment")),
    ("ds", Some("DaemonSet")),
    ("daemonset", Some("DaemonSet")),
];
const WITH_OBJECTS: &[&str] = &["get", "describe", "wait", "logs", "exec", "port-forward", "delete", "rollout"];
const FLAGS_WITH_VALUE: &[&str] = &["-n", "-l", "-o", "-f", "-k", "--for", "--field-selector"];

/// What is in code on a page: lines of blocks, and spans, in one line each.
fn code(page: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (number, part) in page.split("```").enumerate() {
        if number % 2 == 1 {
            found.extend(part.replace("\\\n", " ").lines().map(str::to_owned));
        } else {
            found.extend(part.split('`').skip(1).step_by(2).map(|span| span.replace('\n', " ")));
        }
    }
    found
}

/// The words of a command as a shell takes them, as far as the pages go: single quotes, comments, one pipe.
fn words(line: &str) -> (Vec<String>, Option<String>) {
    let line = line.split(" # ").next().unwrap_or(line).split("  #").next().unwrap_or(line);
    let (mut words, mut quoted) = (vec![String::new()], false);
    for character in line.chars() {
        match character {
            '\'' => quoted = !quoted,
            ' ' if !quoted => words.push(String::new()),
            other => words.last_mut().into_iter().for_each(|word| word.push(other)),
        }
    }
    words.retain(|word| !word.is_empty());
    let pipe = words.iter().position(|word| word == "|");
    let piped = pipe.map(|at| words.split_off(at)[1..].join(" "));
    (words, piped)
}

/// Paths of a JSONPath template, those in a range as what they mean.
fn paths(template: &str) -> Vec<String> {
    let (mut found, mut range) = (Vec::new(), String::new());
    for part in template.split('{').filter_map(|part| Some(part.split_once('}')?.0)) {
        match part.strip_prefix("range ") {
            Some(path) => range = path.to_owned(),
            None if part == "end" => range.clear(),
            None if part.starts_with('.') => found.push(format!("{range}{part}")),
            None => {}
        }
    }
    found
}

/// What the commands may name.
struct Known {
    objects: Objects,
    ours: Vec<(BTreeSet<String>, Vec<String>)>,
    conditions: String,
    labels: BTreeSet<String>,
    namespaces: BTreeSet<String>,
    log: String,
}

impl Known {
    fn gather() -> Result<Self> {
        let kubectl = Toolchain::kubectl()?;
        let output = Command::new(kubectl).args(["kustomize", "config/default"]).current_dir(root()).output();
        let objects = rendered(&output.context("run kubectl kustomize")?)?;
        let mut labels = BTreeSet::from([format!("{LABEL_NAME}={CACHE}"), format!("{LABEL_MIRROR}=MIRROR")]);
        let mut namespaces = BTreeSet::new();
        for object in objects.values() {
            let own = object.pointer("/spec/template/metadata/labels").and_then(Value::as_object);
            labels.extend(
                own.into_iter().flatten().filter_map(|(key, value)| Some(format!("{key}={}", value.as_str()?))),
            );
            namespaces.extend(object["metadata"]["namespace"].as_str().map(str::to_owned));
        }
        let definitions = breakwater_crds::yaml::definitions().map(|definition| {
            let names = &definition.spec.names;
            let short = names.short_names.clone().unwrap_or_default();
            let kinds = short.into_iter().chain([names.plural.clone()]).chain(names.singular.clone()).collect();
            let schema = serde_json::to_value(&definition.spec.versions[0].schema).unwrap_or_default();
            let mut found = Vec::new();
            fields(&schema["openAPIV3Schema"], "", &mut found);
            (kinds, found)
        });
        let mut log = String::new();
        for file in rust_files()?.iter().filter(|file| file.iter().any(|part| part == "src")) {
            log +=
                &read(file)?.lines().filter(|line| line.contains("!(")).collect::<Vec<_>>().join("\n").to_lowercase();
        }
        let conditions = read(&root().join("crds/src/conditions.rs"))?;
        Ok(Self { objects, ours: definitions.into(), conditions, labels, namespaces, log })
    }

    fn has_object(&self, kind: &str, name: &str) -> bool {
        self.objects.keys().any(|key| key.starts_with(&format!("{kind} ")) && key.ends_with(&format!("/{name}")))
    }

    /// A kind, and the name that follows it.
    fn check_object(&self, kind: &str, name: Option<&str>) -> Result<()> {
        if self.ours.iter().any(|(kinds, _)| kinds.contains(kind)) {
            return Ok(());
        }
        let (_, installed) =
            KINDS.iter().find(|(known, _)| *known == kind).with_context(|| format!("there is no kind {kind}"))?;
        let (Some(installed), Some(name)) = (installed, name) else { return Ok(()) };
        ensure!(self.has_object(installed, name), "config/default has no {installed} {name}");
        Ok(())
    }

    /// Fields below the kind's schema; conditions by a type that exists.
    fn check_path(&self, kind: &str, path: &str) -> Result<()> {
        if let Some(rest) = path.strip_prefix(r#".status.conditions[?(@.type==""#) {
            let kind = rest.split('"').next().unwrap_or_default();
            return self.check_condition(kind);
        }
        let plain = path.replace("[*]", "");
        let Some((_, fields)) = self.ours.iter().find(|(kinds, _)| kinds.contains(kind)) else { return Ok(()) };
        ensure!(fields.contains(&plain), "{kind} has no field {plain}");
        Ok(())
    }

    fn check_condition(&self, kind: &str) -> Result<()> {
        ensure!(self.conditions.contains(&format!("= \"{kind}\";")), "there is no condition {kind}");
        Ok(())
    }

    fn check_flag(&self, kind: &str, flag: &str, value: &str) -> Result<()> {
        match flag {
            "-n" => ensure!(self.namespaces.contains(value), "nothing is installed in the namespace {value}"),
            "-l" => ensure!(self.labels.contains(value), "no Pod has the label {value}"),
            "-k" | "-f" if value != "-" => ensure!(root().join(value).exists(), "there is no {value}"),
            "-o" => {
                let template = value.strip_prefix("jsonpath=").unwrap_or_default();
                paths(template).iter().try_for_each(|path| self.check_path(kind, path))?;
            }
            "--for" => match (value.strip_prefix("condition="), value.strip_prefix("jsonpath=")) {
                (Some(condition), _) => self.check_condition(condition)?,
                (_, Some(template)) => paths(template).iter().try_for_each(|path| self.check_path(kind, path))?,
                // Of `kubectl events`.
                _ => self.check_object(value.split('/').next().unwrap_or_default(), None)?,
            },
            _ => {}
        }
        Ok(())
    }

    fn check(&self, line: &str) -> Result<()> {
        let (words, piped) = words(line);
        let (mut flags, mut plain) = (Vec::new(), Vec::new());
        let mut rest = words.iter().skip(1).take_while(|word| *word != "--");
        while let Some(word) = rest.next() {
            match word.split_once('=').filter(|_| word.starts_with("--")) {
                Some(pair) => flags.push(pair),
                None if FLAGS_WITH_VALUE.contains(&word.as_str()) => {
                    flags.push((word, rest.next().context("a flag without its value")?));
                }
                None if word.starts_with('-') => flags.push((word, "")),
                None => plain.push(word.as_str()),
            }
        }
        let verb = plain.first().copied().unwrap_or_default();
        let mut kind = "";
        let at = if verb == "rollout" { 2 } else { 1 };
        if let Some(named) = plain.get(at).filter(|_| WITH_OBJECTS.contains(&verb)) {
            for part in named.split(',') {
                let (this, name) = match part.split_once('/') {
                    Some((this, name)) => (this, Some(name)),
                    // These take a Pod's name alone.
                    None if ["logs", "exec", "port-forward"].contains(&verb) => ("pod", None),
                    None => (part, plain.get(at + 1).copied()),
                };
                self.check_object(this, name)?;
                kind = this;
            }
        }
        flags.iter().try_for_each(|(flag, value)| self.check_flag(kind, flag, value))?;
        let Some(search) = piped.as_deref().and_then(|piped| piped.strip_prefix("grep ")) else { return Ok(()) };
        let pattern = search.trim_start_matches("-i ").trim_start_matches("-E ").to_lowercase();
        for word in pattern.split('|') {
            ensure!(verb != "logs" || self.log.contains(word), "no line of the log says {word}");
        }
        let has = |flag: &str| flags.iter().any(|(name, _)| *name == flag);
        ensure!(!has("-l") || has("--tail"), "by label, kubectl logs shows ten lines of a Pod: set --tail");
        Ok(())
    }
}

fn pages() -> Result<Vec<PathBuf>> {
    let mut pages = vec![root().join("README.md")];
    for folder in ["docs", "docs/runbooks"] {
        for entry in std::fs::read_dir(root().join(folder)).context("list the pages")? {
            pages.extend(Some(entry?.path()).filter(|path| path.extension().is_some_and(|end| end == "md")));
        }
    }
    Ok(pages)
}

#[test]
fn every_command_names_what_exists() -> Result<()> {
    let known = Known::gather()?;
    let (mut found, mut wrong) = (0, String::new());
    for page in pages()? {
        for line in code(&read(&page)?).iter().map(|line| line.trim_start_matches("$ ").trim()) {
            if line.starts_with("kubectl ") && !line.ends_with("...") {
                found += 1;
                if let Err(error) = known.check(line) {
                    let _ = writeln!(wrong, "{}: {line}: {error}", page.display());
                }
            }
        }
    }
    ensure!(wrong.is_empty(), "\n{wrong}");
    ensure!(found > 50, "found only {found} commands");
    Ok(())
}

#[test]
fn what_the_pages_say_to_look_at_is_measured() -> Result<()> {
    let known = documented()?;
    for page in pages()? {
        for span in code(&read(&page)?).iter().filter(|span| !span.contains("*")) {
            for metric in metrics_in(span) {
                ensure!(known.contains(metric), "{}: {metric} is on no page of metrics", page.display());
            }
        }
    }
    Ok(())
}
