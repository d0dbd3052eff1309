//! Whether links between the repository's documents lead to a file, and to a heading in it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::build::root;

/// All documents that git tracks.
pub(super) fn check() -> Result<()> {
    let listed = Command::new("git").args(["ls-files", "-z", "*.md"]).current_dir(root()).output();
    let listed = listed.context("cannot run git, which knows the documents")?;
    ensure!(listed.status.success(), "git ls-files: {}", String::from_utf8_lossy(&listed.stderr));
    let names = String::from_utf8(listed.stdout)?;
    let mut documents = BTreeMap::new();
    for name in names.split_terminator('\0') {
        let text =
            std::fs::read_to_string(root().join(name)).with_context(|| format!("cannot read {name}"))?;
        documents.insert(PathBuf::from(name), text);
    }
    ensure!(documents.len() > 5, "only {:?} found", documents.keys());
    let broken = broken(&documents, |path| root().join(path).exists());
    ensure!(broken.is_empty(), "{}", broken.join("\n"));
    Ok(())
}

/// Links that lead nowhere, as `document: link`.
fn broken(documents: &BTreeMap<PathBuf, String>, exists: impl Fn(&Path) -> bool) -> Vec<String> {
    let mut broken = Vec::new();
    for (document, text) in documents {
        for link in links(text).filter(|link| !link.contains("://")) {
            let (file, anchor) =
                link.split_once('#').map_or((link, None), |(file, anchor)| (file, Some(anchor)));
            let target = match file {
                "" => document.clone(),
                file => joined(document, file),
            };
            let found = exists(&target)
                && anchor
                    .is_none_or(|anchor| documents.get(&target).is_some_and(|t| anchors(t).contains(anchor)));
            if !found {
                broken.push(format!("{}: {link}", document.display()));
            }
        }
    }
    broken
}

/// `a/b.md` and `../c.md` make `c.md`.
fn joined(document: &Path, link: &str) -> PathBuf {
    let mut path = document.to_owned();
    path.pop();
    for component in Path::new(link).components() {
        if component == Component::ParentDir {
            path.pop();
        } else {
            path.push(component);
        }
    }
    path
}

/// Where inline links and pictures lead. Code blocks have none.
fn links(text: &str) -> impl Iterator<Item = &str> {
    prose(text)
        .flat_map(|line| line.split("](").skip(1).filter_map(|rest| rest.split_once(')').map(|(to, _)| to)))
}

/// What GitHub calls the headings: in lower case, blanks as hyphens, other signs left out, and repeated ones numbered.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut seen = BTreeMap::<String, usize>::new();
    let headings = prose(text)
        .filter_map(|line| line.trim_start_matches('#').strip_prefix(' ').filter(|_| line.starts_with('#')));
    headings
        .map(|heading| {
            let heading = heading.trim().to_lowercase().replace(' ', "-");
            let anchor: String =
                heading.chars().filter(|c| c.is_alphanumeric() || matches!(c, '-' | '_')).collect();
            let before = seen.entry(anchor.clone()).or_default();
            *before += 1;
            if *before == 1 { anchor } else { format!("{anchor}-{}", *before - 1) }
        })
        .collect()
}

/// The lines outside of fenced code blocks.
fn prose(text: &str) -> impl Iterator<Item = &str> {
    let mut in_code = false;
    text.lines().filter(move |line| {
        let fence = line.trim_start().starts_with("```");
        in_code ^= fence;
        !fence && !in_code
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is broken in a repository of two documents and a picture.
    fn broken_in(page: &str) -> Vec<String> {
        let documents = [
            ("docs/page.md", page),
            (
                "README.md",
                "# Top\n\n## What it *costs*, `a_b`?\n\n## Again\n\n```\n## Code\n```\n\n## Again\n",
            ),
        ];
        let documents: BTreeMap<_, _> =
            documents.map(|(name, text)| (PathBuf::from(name), text.to_owned())).into();
        broken(&documents, |path| documents.contains_key(path) || path == Path::new("docs/picture.png"))
    }

    #[test]
    fn links_to_files_and_headings_are_found() {
        let good = "# Here\n![a](picture.png) [b](../README.md), [c](../README.md#what-it-costs-a_b) and [d](#here)\n\
                    [e](../README.md#again-1) [f](https://example.com/no/such.md#x)\n```\n[g](nowhere.md)\n```\n";
        assert_eq!(broken_in(good), Vec::<String>::new());
    }

    #[test]
    fn a_link_that_leads_nowhere_is_named() {
        for link in
            ["nowhere.md", "README.md", "../README.md#costs", "../README.md#code", "#there", "picture.png#x"]
        {
            assert_eq!(broken_in(&format!("[x]({link})\n")), [format!("docs/page.md: {link}")]);
        }
    }
}
