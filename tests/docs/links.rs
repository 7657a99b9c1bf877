//! Every link between our own pages and files leads somewhere, and every page is in the book.

use std::fs;

use crate::page::{self, Page, root};

/// How the pages name this repository's own files where they are read elsewhere.
const OURS: &str = "https://github.com/pierhead/pierhead/";

/// The targets of `[text](target)`.
fn targets(prose: &str) -> Vec<&str> {
    prose.split("](").skip(1).filter_map(|rest| rest.split([')', ' ']).next()).collect()
}

fn follow(page: &Page, target: &str) -> Result<(), String> {
    let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
    let file = if let Some(rest) = path.strip_prefix(OURS) {
        match rest.split_once("/main/") {
            Some(("blob" | "tree", path)) => root().join(path),
            _ => return Err("write it as blob/main/… or tree/main/…".to_owned()),
        }
    } else if path.contains("://") {
        return Ok(());
    } else if path.is_empty() {
        page.path.clone()
    } else {
        page.path.parent().unwrap().join(path)
    };
    let real = fs::canonicalize(&file).map_err(|_| "there is no such file".to_owned())?;
    let book = root().join("docs/src");
    if page.path.starts_with(&book) && !path.contains("://") && !real.starts_with(&book) {
        return Err(format!("it leads out of the book; write {OURS}blob/main/…"));
    }
    let known = anchor.is_empty() || Page::read(real).anchors().iter().any(|a| a == anchor);
    if known { Ok(()) } else { Err("there is no such heading".to_owned()) }
}

#[test]
fn every_link_leads_somewhere() {
    let mut count = 0;
    for page in page::all() {
        for target in targets(&page.prose()) {
            count += 1;
            if let Err(why) = follow(&page, target) {
                panic!("{}: {target}: {why}", page.name());
            }
        }
    }
    assert!(count > 100, "only {count} links were found");
}

#[test]
fn every_page_is_in_the_book_once() {
    let book = root().join("docs/src");
    let summary = Page::read(book.join("SUMMARY.md"));
    for path in page::files(&book, "md") {
        let name = path.strip_prefix(&book).unwrap().to_str().unwrap();
        let count = targets(&summary.text).iter().filter(|target| **target == name).count();
        assert_eq!(count, usize::from(name != "SUMMARY.md"), "{name} in SUMMARY.md");
    }
}

/// Comments and messages name pages by their paths, too.
#[test]
fn every_page_that_is_named_is_there() {
    let mut paths = Vec::new();
    for (folder, extension) in
        [("config", "yaml"), ("charts", "yaml"), ("packaging", "py"), ("src", "rs")]
    {
        paths.extend(page::files(&root().join(folder), extension));
    }
    paths.extend(page::all().into_iter().map(|page| page.path));
    let mut count = 0;
    for path in paths {
        let text = fs::read_to_string(&path).unwrap();
        for (at, _) in text.match_indices("docs/") {
            let named =
                text[at..].split(|c: char| !(c.is_alphanumeric() || "/_.-".contains(c))).next();
            let named = named.unwrap_or_default().trim_end_matches(['.', '/']);
            let is_path = !text[..at].ends_with(|c: char| c.is_alphanumeric() || "-./".contains(c));
            if is_path || text[..at].ends_with("/main/") {
                count += 1;
                assert!(root().join(named).exists(), "{} names {named}", path.display());
            }
        }
    }
    assert!(count > 20, "only {count} were found");
}

#[test]
fn a_broken_link_is_noticed() {
    let page = Page::read(root().join("docs/src/start.md"));
    for (target, good) in [
        ("operate.md#as-a-container", true),
        ("operate.md#as-a-contaner", false),
        ("nowhere.md", false),
        ("../book.toml", false),
        ("https://example.com/x", true),
        ("https://github.com/pierhead/pierhead/blob/main/nowhere", false),
    ] {
        assert_eq!(follow(&page, target).is_ok(), good, "{target}");
    }
}
