//! The configuration as it was resolved, its schema, and the annotated sample.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;
use serde_yaml::{Mapping, Value};

use super::Config;
use super::load::{BUILT_IN, Loaded};
use super::tree::Origin;

/// The annotated sample, which is also the built-in configuration.
#[must_use]
pub fn init() -> &'static str {
    BUILT_IN
}

/// The JSON Schema of the file, for editors and other tools.
#[must_use]
pub fn schema() -> String {
    serde_json::to_string_pretty(&schemars::schema_for!(Config)).unwrap_or_default()
}

/// What was resolved, secrets hidden: YAML with the origin of each leaf beside it, or JSON with the
/// configuration under `config` and the origins under `from`, by JSON pointer.
#[must_use]
pub fn show(loaded: &Loaded, json: bool) -> String {
    // This kind of value keeps the order of the fields, which `serde_json`'s does not.
    let config = serde_yaml::to_value(&loaded.config).unwrap_or_default();
    let mut page = Page { loaded, lines: Vec::new() };
    page.node(&config, &mut Vec::new(), "", 0);
    if json { page.json() } else { page.yaml() }
}

/// A line of YAML; one with a leaf also says where that came from.
struct Line {
    text: String,
    leaf: Option<(Vec<String>, String)>,
}

struct Page<'a> {
    loaded: &'a Loaded,
    lines: Vec<Line>,
}

impl Page<'_> {
    /// Writes a value behind `lead`, which is `key:` or `-` with its indentation.
    fn node(&mut self, value: &Value, path: &mut Vec<String>, lead: &str, depth: usize) {
        match value {
            Value::Mapping(map) if !map.is_empty() => self.map(map, path, lead, depth),
            Value::Sequence(list) if !list.is_empty() => {
                self.lines.push(Line { text: lead.to_owned(), leaf: None });
                for (index, item) in list.iter().enumerate() {
                    path.push(index.to_string());
                    self.node(item, path, &format!("{}-", "  ".repeat(depth)), depth + 1);
                    path.pop();
                }
            }
            single => {
                let text = format!("{lead} {}", scalar(single));
                self.lines.push(Line { text, leaf: Some((path.clone(), self.from(path))) });
            }
        }
    }

    fn map(&mut self, map: &Mapping, path: &mut Vec<String>, lead: &str, depth: usize) {
        // The first key of a map in a list stands on the line of the dash.
        let in_list = lead.ends_with('-');
        if !in_list && !lead.is_empty() {
            self.lines.push(Line { text: lead.to_owned(), leaf: None });
        }
        for (index, (key, value)) in map.iter().enumerate() {
            let indent =
                if in_list && index == 0 { format!("{lead} ") } else { "  ".repeat(depth) };
            let key = key.as_str().unwrap_or_default();
            path.push(key.to_owned());
            self.node(value, path, &format!("{indent}{}:", word(key)), depth + 1);
            path.pop();
        }
    }

    /// Where the value at `path` came from. What a short form implies came from the short form.
    fn from(&self, path: &[String]) -> String {
        let origins = &self.loaded.origins;
        let origin = (1..=path.len()).rev().find_map(|end| origins.get(&path[..end]));
        match origin {
            None | Some(Origin::Default) => "default".to_owned(),
            Some(Origin::File { line, variables, .. }) => {
                let variables =
                    variables.as_ref().map_or_else(String::new, |names| format!(" with {names}"));
                format!("{}:{line}{variables}", self.loaded.source)
            }
            Some(Origin::Env(name)) => name.to_string(),
            Some(Origin::Flag(name)) => (*name).to_owned(),
        }
    }

    fn yaml(self) -> String {
        let width = self
            .lines
            .iter()
            .filter(|line| line.leaf.is_some())
            .map(|line| line.text.chars().count());
        let width = width.filter(|width| *width <= 60).max().unwrap_or(0);
        let mut page = String::new();
        for Line { text, leaf } in &self.lines {
            // Writing to a string cannot fail.
            let _ = match leaf {
                Some((_, from)) => writeln!(page, "{text:<width$}  # {from}"),
                None => writeln!(page, "{text}"),
            };
        }
        page
    }

    fn json(self) -> String {
        #[derive(Serialize)]
        struct Json<'a> {
            source: &'a str,
            config: &'a Config,
            from: BTreeMap<String, String>,
        }
        let escape = |step: &String| format!("/{}", step.replace('~', "~0").replace('/', "~1"));
        let leaves = self.lines.into_iter().filter_map(|line| line.leaf);
        let from = leaves.map(|(path, from)| (path.iter().map(escape).collect(), from)).collect();
        let page = Json { source: &self.loaded.source, config: &self.loaded.config, from };
        serde_json::to_string_pretty(&page).unwrap_or_default() + "\n"
    }
}

/// A leaf in YAML. JSON's quoted strings are YAML too.
fn scalar(leaf: &Value) -> String {
    match leaf {
        Value::String(text) => word(text),
        other => serde_json::to_string(other).unwrap_or_default(),
    }
}

/// A text, quoted where YAML would take it for anything else.
fn word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "./_-%".contains(c);
    let looks_like_text = text
        .starts_with(|c: char| c.is_ascii_alphabetic() || c == '/' || c == '.')
        && !["true", "false", "null", "yes", "no", "on", "off", "y", "n"]
            .contains(&text.to_lowercase().as_str());
    // A colon is harmless before anything but a space or the end: addresses and URLs stay legible.
    let colons = text
        .char_indices()
        .all(|(at, c)| plain(c) || (c == ':' && text[at + 1..].starts_with(plain)));
    let unit = text.starts_with(|c: char| c.is_ascii_digit())
        && text.ends_with(|c: char| c.is_ascii_alphabetic() || c == '%')
        && text.chars().all(plain)
        && text.parse::<f64>().is_err()
        && !text.starts_with('0');
    let address = text.parse::<std::net::SocketAddr>().is_ok_and(|address| address.is_ipv4());
    if (looks_like_text && colons && text.parse::<f64>().is_err()) || unit || address {
        text.to_owned()
    } else {
        serde_json::to_string(text).unwrap_or_default()
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "tests write the files that are read")]
mod tests {
    use super::*;
    use crate::config::Overrides;

    const FILE: &str = "\
listen: 0.0.0.0:5000
upstreams:
  docker.io:
    auth: {username: \"007\", password: \"${PW}\"}
    allow: [\"library/*\", '**']
";

    fn loaded() -> Loaded {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f.yaml");
        std::fs::write(&path, FILE).unwrap();
        let env = [("PW", "hunter2"), ("PIERHEAD_CACHE_MEMORY", "1MiB")];
        let env = env.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let overrides = Overrides { cache: Some("/x y".into()), ..Overrides::default() };
        let mut loaded = Config::load(Some(&path), env, &overrides).unwrap();
        loaded.source = "f.yaml".to_owned();
        loaded
    }

    #[test]
    fn each_leaf_says_where_it_came_from() {
        let text = show(&loaded(), false);
        let squeezed: Vec<String> = text
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        for line in [
            "- address: 0.0.0.0:5000 # f.yaml:1",
            "admin: 127.0.0.1:5001 # default",
            "path: \"/x y\" # --cache",
            "memory: 1MiB # PIERHEAD_CACHE_MEMORY",
            "username: \"007\" # f.yaml:4",
            "password: \"<hidden>\" # f.yaml:4 with PW",
            "- \"library/*\" # f.yaml:5",
            "- https://registry-1.docker.io # default",
            "tag_ttl: 1m # default",
        ] {
            assert!(squeezed.iter().any(|found| found == line), "{line} is not in\n{text}");
        }
        assert!(!text.contains("hunter2"));
    }

    #[test]
    fn what_is_shown_can_be_loaded() {
        for loaded in [loaded(), Config::load(None, [], &Overrides::default()).unwrap()] {
            let again = Config::parse("shown", &show(&loaded, false)).unwrap();
            let json = |loaded: &Loaded| serde_json::to_value(&loaded.config).unwrap();
            assert_eq!(json(&again), json(&loaded));
        }
    }

    #[test]
    fn json_holds_the_same() {
        let page: serde_json::Value = serde_json::from_str(&show(&loaded(), true)).unwrap();
        assert_eq!(page["config"]["cache"]["memory"], "1MiB");
        assert_eq!(page["from"]["/cache/memory"], "PIERHEAD_CACHE_MEMORY");
        assert_eq!(page["from"]["/upstreams/docker.io/auth/password"], "f.yaml:4 with PW");
        assert!(!page.to_string().contains("hunter2"));
    }

    #[test]
    fn words_are_quoted_where_yaml_would_misread_them() {
        for plain in [
            "info",
            "./pierhead-data",
            "127.0.0.1:5000",
            "https://ghcr.io",
            "100GiB",
            "5%",
            "1m",
            "2.5%",
        ] {
            assert_eq!(word(plain), plain);
        }
        for text in [
            "", "5", "1.5", "true", "No", "null", "~", "*", "a: b", "a #b", "1e3", "0x1f", "0b1",
            "-", "<hidden>", "a:",
        ] {
            assert_eq!(word(text), format!("\"{text}\""));
        }
    }

    #[test]
    fn the_schema_knows_every_key_and_no_others() {
        let schema: serde_json::Value = serde_json::from_str(&schema()).unwrap();
        let text = schema.to_string();
        let json = serde_json::to_value(Config::default()).unwrap();
        let hub = &json["upstreams"]["docker.io"];
        for section in [&json, &json["cache"], &json["server"], &json["log"], hub] {
            for key in section.as_object().unwrap().keys() {
                assert!(text.contains(&format!("\"{key}\":{{")), "{key}");
            }
        }
        assert_eq!(schema["additionalProperties"], false);
    }
}
