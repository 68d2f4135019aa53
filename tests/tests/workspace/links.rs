//! What the project's pages point at is there: pages, headings, files.

use anyhow::{Context, Result, ensure};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;

use super::{read, root};

/// Folders of ours: what stands in code and begins with one of them is a path.
const FOLDERS: [&str; 9] =
    ["charts/", "config/", "crds/", "docs/", "fuzz/", "node-agent/", "operator/", "registry/", "tests/"];

fn files() -> Result<Vec<String>> {
    let arguments = ["ls-files", "--cached", "--others", "--exclude-standard"];
    let listed = Command::new("git").args(arguments).current_dir(root()).output().context("list files with git")?;
    Ok(String::from_utf8(listed.stdout)?.lines().filter(|line| root().join(line).exists()).map(str::to_owned).collect())
}

fn pages() -> Result<Vec<PathBuf>> {
    let pages: Vec<_> = files()?.iter().filter(|file| file.ends_with(".md")).map(|file| root().join(file)).collect();
    ensure!(pages.len() > 10, "found only {} pages", pages.len());
    Ok(pages)
}

/// What follows `](`, but for other sites and pictures in code.
fn links(text: &str) -> impl Iterator<Item = &str> {
    text.split("](")
        .skip(1)
        .filter_map(|rest| rest.split_once(')'))
        .map(|(link, _)| link)
        .filter(|link| !link.contains("://"))
}

/// Headings as Git hosts make anchors of them.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings = text.lines().filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#').trim());
    headings
        .map(|heading| {
            let kept = heading.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
            kept.collect::<String>().to_lowercase().replace(' ', "-")
        })
        .collect()
}

#[test]
fn every_link_between_pages_leads_somewhere() -> Result<()> {
    let mut found = 0;
    for page in pages()? {
        let text = read(&page)?;
        for link in links(&text) {
            found += 1;
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = if path.is_empty() { page.clone() } else { page.with_file_name("").join(path) };
            assert!(target.exists(), "{}: links to {link}, which is not there", page.display());
            let there = anchor.is_empty() || anchors(&read(&target)?).contains(anchor);
            assert!(there, "{}: links to {link}, which has no such heading", page.display());
        }
    }
    ensure!(found > 30, "found only {found} links");
    Ok(())
}

#[test]
fn every_path_that_a_page_names_is_there() -> Result<()> {
    let (files, mut found) = (files()?, 0);
    for page in pages()? {
        let text = read(&page)?;
        let code = text.split('`').skip(1).step_by(2);
        for path in code.filter(|code| FOLDERS.iter().any(|folder| code.starts_with(folder))) {
            found += 1;
            // Of a pattern, what it begins with.
            let begin = path.split('*').next().unwrap_or(path);
            let is_there = files.iter().any(|file| file.starts_with(begin));
            assert!(is_there, "{}: names {path}, which is not there", page.display());
        }
    }
    ensure!(found > 20, "found only {found} paths");
    Ok(())
}
