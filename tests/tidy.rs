//! The rules of ARCHITECTURE.md that a machine can keep.

#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a test that reads the sources, and cannot go on where they are not there"
)]

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Lines above a file's tests; a room that grows beyond is rebuilt.
const LINES_MAX: usize = 500;

fn sources() -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                found.push((path.strip_prefix(&root).unwrap().to_owned(), text));
            }
        }
    }
    assert!(found.len() > 20, "where are the sources?");
    found
}

/// What stands above the tests.
fn code(text: &str) -> &str {
    text.split("\n#[cfg(test)]").next().unwrap_or(text)
}

/// The module of the first floor that a file belongs to.
fn room(path: &Path) -> String {
    let first = path.components().next().unwrap().as_os_str().to_string_lossy().into_owned();
    first.trim_end_matches(".rs").to_owned()
}

#[test]
fn every_file_says_what_it_is_and_holds_one_thought() {
    for (path, text) in sources() {
        assert!(text.starts_with("//!"), "{} does not open with //!", path.display());
        let lines = code(&text).lines().count();
        assert!(lines <= LINES_MAX, "{} has {lines} lines above its tests", path.display());
        assert!(path.components().count() <= 2, "{} lies too deep", path.display());
    }
}

#[test]
fn a_file_names_only_what_is_listed_before_it() {
    let sources = sources();
    let lib = &sources.iter().find(|(p, _)| p == Path::new("lib.rs")).unwrap().1;
    let order: HashMap<&str, usize> = lib
        .lines()
        .filter_map(|l| l.strip_prefix("pub mod ")?.strip_suffix(';'))
        .enumerate()
        .map(|(n, name)| (name, n))
        .collect();
    for (path, text) in &sources {
        let Some(own) = order.get(room(path).as_str()) else { continue };
        for line in code(text).lines().filter(|l| !l.trim_start().starts_with("//")) {
            for used in line.split("crate::").skip(1) {
                let name: String =
                    used.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                let Some(other) = order.get(name.as_str()) else { continue };
                assert!(
                    other <= own,
                    "{} uses {name}, which lib.rs lists after it",
                    path.display()
                );
            }
        }
    }
}

#[test]
fn only_some_rooms_may_name_some_crates() {
    let allowed: &[(&str, &[&str])] = &[
        (
            "pingora::",
            &[
                "respond",
                "express",
                "receive",
                "transport",
                "server",
                "admin",
                "run",
                "demo",
                "fuzz",
            ],
        ),
        ("prometheus::", &["metrics"]),
        ("reqwest::", &["upstream", "traces", "demo", "hosted", "cli"]),
        ("opentelemetry", &["traces"]),
        ("SystemTime::now", &["manifests", "hosted", "upstream", "keeper", "hot", "doors", "run"]),
        ("unsafe ", &["sendfile", "handover"]),
    ];
    for (path, text) in sources() {
        for (word, rooms) in allowed {
            let used =
                code(&text).lines().any(|l| !l.trim_start().starts_with("//") && l.contains(word));
            assert!(
                !used || rooms.contains(&room(&path).as_str()),
                "{} names {word}",
                path.display()
            );
        }
    }
}

#[test]
fn words_and_decisions_do_no_io() {
    let pure = [
        "error",
        "limits",
        "digest",
        "name",
        "range",
        "media",
        "pushed",
        "patterns",
        "cache",
        "route",
        "freshness",
        "index",
        "spares",
        "rules",
        "pass",
        "scope",
    ];
    for (path, text) in sources().iter().filter(|(p, _)| pure.contains(&room(p).as_str())) {
        for word in ["std::fs", "tokio::", "tracing::", "Instant::now", "std::net::Tcp"] {
            assert!(!code(text).contains(word), "{} names {word}", path.display());
        }
    }
}

#[test]
fn the_architecture_lists_the_rooms_in_their_order() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |path: &str| fs::read_to_string(root.join(path)).unwrap();
    let (lib, architecture) = (read("src/lib.rs"), read("ARCHITECTURE.md"));
    let rooms: Vec<&str> =
        lib.lines().filter_map(|l| l.strip_prefix("pub mod ")?.strip_suffix(';')).collect();
    let floors = architecture.lines().skip_while(|line| *line != "## Floors");
    let rows = floors.filter(|line| line.starts_with("| ")).skip(1).take(5);
    let cells = rows.map(|row| row.split('|').nth(2).unwrap_or_default());
    // Every second piece between the marks.
    let named = cells.flat_map(|cell| cell.split('`').skip(1).step_by(2));
    let named: Vec<&str> = named.map(|name| name.trim_end_matches('/')).collect();
    assert_eq!(named, rooms);
    for (path, _) in sources() {
        let room = room(&path);
        let known = ["lib", "main"].contains(&room.as_str()) || rooms.contains(&room.as_str());
        assert!(known, "lib.rs does not list {room}");
    }
}
