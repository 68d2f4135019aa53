//! Links between the project's pages lead somewhere, headings included.

use anyhow::{Context, Result, ensure};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;

use super::{read, root};

fn pages() -> Result<Vec<PathBuf>> {
    let arguments = ["ls-files", "--cached", "--others", "--exclude-standard", "*.md"];
    let listed = Command::new("git").args(arguments).current_dir(root()).output().context("list files with git")?;
    let pages: Vec<_> = String::from_utf8(listed.stdout)?.lines().map(|line| root().join(line)).collect();
    ensure!(pages.len() > 10, "found only {} pages", pages.len());
    Ok(pages.into_iter().filter(|page| page.exists()).collect())
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
