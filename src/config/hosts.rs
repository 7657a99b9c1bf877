//! What a host, a repository pattern and a folder must look like.

use std::net::Ipv6Addr;
use std::path::Path;

/// A host's length by RFC 1035, with room for a port.
const HOST_BYTES_MAX: usize = 253 + 6;

/// Checks `host[:port]` as it stands in image references; the error says what to write.
pub(super) fn check(text: &str) -> Result<(), String> {
    if text.is_empty() {
        return Err("it is empty; write a host such as ghcr.io".to_owned());
    }
    if let Some((_, rest)) = text.split_once("://") {
        let host = rest.split('/').next().unwrap_or_default();
        return Err(format!("it is a URL; write the host alone: {host}"));
    }
    if let Some((host, _)) = text.split_once('/') {
        return Err(format!("it has a path; write the host alone: {host}"));
    }
    if text.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Err(format!("it has capital letters; write {}", text.to_ascii_lowercase()));
    }
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !text.ends_with(']') => (host, Some(port)),
        _ => (text, None),
    };
    if port.is_some_and(|port| {
        !port.parse::<u16>().is_ok_and(|port| port > 0) || port.starts_with(['+', '0'])
    }) {
        return Err("its port is no number from 1 to 65535; correct it".to_owned());
    }
    let v6 = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let lawful = v6.map_or_else(
        || text.len() <= HOST_BYTES_MAX && host.split('.').all(is_label),
        |v6| v6.parse::<Ipv6Addr>().is_ok(),
    );
    if lawful {
        Ok(())
    } else {
        Err("write a host of letters, digits, `-` and `.`, such as ghcr.io".to_owned())
    }
}

fn is_label(label: &str) -> bool {
    (1..=63).contains(&label.len())
        && !label.starts_with('-')
        && !label.ends_with('-')
        && label
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
}

/// What is wrong with a repository pattern of the upstream `name`.
pub(super) fn pattern(pattern: &str, name: &str) -> Option<String> {
    if pattern.is_empty() {
        return Some(
            "the pattern is empty and matches nothing; write one such as library/* or remove it"
                .to_owned(),
        );
    }
    if let Some(rest) = pattern.strip_prefix(name).and_then(|rest| rest.strip_prefix('/')) {
        return Some(format!("patterns are matched without the registry's name; write {rest}"));
    }
    if pattern.starts_with('/') || pattern.ends_with('/') || pattern.contains("//") {
        return Some(format!(
            "`{pattern}` has an empty part and matches nothing; write it without the spare `/`"
        ));
    }
    let lawful = |c: char| {
        c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '_' | '-' | '/' | '*')
    };
    if !pattern.chars().all(lawful) {
        return Some(format!(
            "`{pattern}` matches nothing: names are lower case, tags do not count, and only `*` and \
             `**` stand for others; write one such as library/*"
        ));
    }
    // Each one more multiplies the work of a match, which clients' names could then drive.
    if pattern.split('/').filter(|part| *part == "**").count() > 2 {
        return Some(format!("`{pattern}` has more than two `**`; write it with fewer"));
    }
    if name == "docker.io" && pattern != "**" && !pattern.contains('/') {
        return Some(format!(
            "`{pattern}` matches nothing, as docker.io's official images are in library/; write \
             library/{pattern}"
        ));
    }
    None
}

/// What is wrong with a path that is handed to the file system as it stands.
pub(super) fn file_path(path: &Path) -> Option<&'static str> {
    if path.as_os_str().is_empty() {
        return Some("the path is empty; write one");
    }
    // Only shells know what this means; we would make a folder of that name.
    path.starts_with("~").then_some("`~` is not expanded; write the whole path, or ${HOME}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_of_image_references_pass() {
        for host in [
            "ghcr.io",
            "localhost:5000",
            "registry",
            "10.0.0.5:5000",
            "[::1]:5000",
            "[fd00::1]",
            "a-b.c0",
        ] {
            assert_eq!(check(host), Ok(()), "{host}");
        }
    }

    #[test]
    fn other_texts_are_refused_with_a_remedy() {
        for (host, remedy) in [
            ("", "write a host"),
            ("https://ghcr.io/v2", "write the host alone: ghcr.io"),
            ("ghcr.io/org", "write the host alone: ghcr.io"),
            ("GHCR.io", "write ghcr.io"),
            ("ghcr.io:0", "1 to 65535"),
            ("ghcr.io:70000", "1 to 65535"),
            ("ghcr.io:", "1 to 65535"),
            ("ghcr..io", "letters, digits"),
            ("ghcr.io.", "letters, digits"),
            ("-a.io", "letters, digits"),
            ("my_host", "letters, digits"),
            ("münchen.de", "letters, digits"),
            ("[::g]:5000", "letters, digits"),
            ("a b", "letters, digits"),
        ] {
            let error = check(host).unwrap_err();
            assert!(error.contains(remedy), "{host}: {error}");
        }
    }

    #[test]
    fn patterns_that_match_nothing_are_refused() {
        for good in ["*", "**", "library/*", "team/**", "a.b_c-d/e"] {
            assert_eq!(pattern(good, "ghcr.io"), None, "{good}");
        }
        for bad in [
            "",
            "/a",
            "a/",
            "a//b",
            "Team/*",
            "a b",
            "a:latest",
            "a@sha256:b",
            "{a,b}",
            "a?",
            "**/a/**/b/**",
            "ghcr.io/org/*",
        ] {
            assert!(pattern(bad, "ghcr.io").is_some(), "{bad}");
        }
        let official = pattern("alpine", "docker.io").unwrap();
        assert!(official.ends_with("write library/alpine"), "{official}");
        assert_eq!(pattern("**", "docker.io"), None);
    }

    #[test]
    fn a_tilde_is_not_a_home() {
        assert!(file_path(Path::new("~/cache")).is_some());
        assert!(file_path(Path::new("")).is_some());
        assert_eq!(file_path(Path::new("./~")), None);
    }
}
