//! What the binaries are linked from: free licences, one registry, one implementation of cryptography.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::collections::BTreeSet;
use std::process::Command;

use super::root;

/// Licences that may be used with Apache-2.0 and ask for no more than to be named.
const LICENCES: &[&str] = &[
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "MIT-0",
    "Unicode-3.0",
    "Zlib",
];

/// Unmaintained, or a second implementation of what rustls does.
const BANNED: &[&str] = &["openssl-sys", "native-tls", "rustls-pemfile", "serde_yaml"];

/// Whether an SPDX expression can be met; `OR` binds less than `AND`.
fn met(expression: &str) -> bool {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let words: Vec<_> = spaced.split_whitespace().collect();
    let (value, rest) = any(&words);
    value && rest.is_empty()
}

fn any<'a, 'b>(words: &'a [&'b str]) -> (bool, &'a [&'b str]) {
    let (mut value, mut rest) = all(words);
    while let ["OR", more @ ..] = rest {
        let (next, left) = all(more);
        (value, rest) = (value || next, left);
    }
    (value, rest)
}

fn all<'a, 'b>(words: &'a [&'b str]) -> (bool, &'a [&'b str]) {
    let (mut value, mut rest) = one(words);
    while let ["AND", more @ ..] = rest {
        let (next, left) = one(more);
        (value, rest) = (value && next, left);
    }
    (value, rest)
}

fn one<'a, 'b>(words: &'a [&'b str]) -> (bool, &'a [&'b str]) {
    match words {
        ["(", inner @ ..] => {
            let (value, rest) = any(inner);
            (value && rest.first() == Some(&")"), rest.get(1..).unwrap_or_default())
        }
        [licence, "WITH", exception, rest @ ..] => (LICENCES.contains(&&*format!("{licence} WITH {exception}")), rest),
        [licence, rest @ ..] => (LICENCES.contains(licence), rest),
        [] => (false, words),
    }
}

#[test]
fn expressions_are_understood() {
    for (expression, expected) in [
        ("MIT", true),
        ("GPL-3.0-only", false),
        ("GPL-3.0-only OR MIT", true),
        ("GPL-3.0-only AND MIT", false),
        ("(GPL-3.0-only OR MIT) AND ISC", true),
        ("MIT/Apache-2.0", true),
        ("Apache-2.0 WITH LLVM-exception", true),
        ("", false),
    ] {
        assert_eq!(met(expression), expected, "{expression}");
    }
}

#[test]
fn dependencies_are_free_from_one_registry_and_not_twice_the_same() -> Result<()> {
    let arguments = ["metadata", "--format-version=1", "--locked"];
    let output = Command::new("cargo").args(arguments).current_dir(root()).output().context("run cargo metadata")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout)?;
    let packages = metadata["packages"].as_array().context("no packages")?;
    ensure!(packages.len() > 100, "found only {}", packages.len());
    let mut sources = BTreeSet::new();
    for package in packages {
        let text = |field: &str| package[field].as_str().unwrap_or_default();
        let name = text("name");
        assert!(met(text("license")), "{name}: its licence {:?} is none of LICENCES", text("license"));
        assert!(!BANNED.contains(&name), "{name}: is banned: cargo tree -i {name}");
        let source = text("source");
        let ours = source.is_empty() && name.starts_with("breakwater-");
        assert!(ours || source.starts_with("registry+"), "{name}: comes from {source:?}, not from a registry");
        sources.insert(source);
    }
    sources.remove("");
    assert_eq!(sources.len(), 1, "must all come from one registry: {sources:?}");
    Ok(())
}
