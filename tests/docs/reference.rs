//! The reference of the configuration, made from what `pierhead config schema` prints.

use std::fmt::Write as _;
use std::fs;
use std::process::Command;

use serde_json::Value;

use crate::page::root;

const PAGE: &str = "docs/src/configuration.md";

const HEAD: &str = "\
<!-- Made from `pierhead config schema` by `UPDATE=1 cargo test --test docs`. -->

# Configuration

YAML. Every key has a default; unknown keys are errors. `pierhead config init` prints a sample with every key explained,
`pierhead config show` what is in force and where each value came from, `pierhead config schema` the JSON Schema, for
editors.

- **Sizes**: `100GiB`, `500MB`, or a number of bytes. **Durations**: `500ms`, `60s`, `1h30m`, `2d`.
- **Variables**: `${NAME}` in a value is replaced from the environment; `${NAME:-text}` has a default; `$${` stands for the
  characters themselves. Inside `[ ]` and `{ }` put quotes around them.
- **Overrides**: `PIERHEAD_CACHE_MAX_SIZE=20GiB` wins over the file, and so does any key at any depth:
  `PIERHEAD__UPSTREAMS__DOCKER_IO__TAG_TTL=5m`. The command line wins over both.
- **Reload**: `SIGHUP` has the file read again. If it is faulty, the old configuration stays. [Some keys](operate.md#to-change-it-while-it-runs)
  take a restart.
- **Patterns** of repositories: `*` stands for one part of a name, `**` for any number of them.

";

/// Where what the schema names is described: a section, by its path.
struct Reference<'s> {
    schema: &'s Value,
    sections: Vec<(String, &'s Value)>,
    text: String,
}

impl<'s> Reference<'s> {
    fn definition(&self, node: &'s Value) -> Option<(&'s str, &'s Value)> {
        let name = node["$ref"].as_str()?.strip_prefix("#/$defs/")?;
        Some((name, &self.schema["$defs"][name]))
    }

    /// What a value may be, in words; a map of keys gets a section of its own.
    fn kind(&mut self, node: &'s Value, path: &str) -> String {
        if let Some((name, definition)) = self.definition(node) {
            let word = match name {
                "Size" => "size",
                "Span" => "duration",
                "Free" => "size or percentage",
                "Ratio" => "share, from 0 to 1",
                "Secret" => "text",
                _ if definition["properties"].is_object() || name == "Auth" => {
                    if !self.sections.iter().any(|(known, _)| known == path) {
                        self.sections.push((path.to_owned(), definition));
                    }
                    return format!("[keys](#{})", anchor(path));
                }
                _ => return choices(definition),
            };
            return word.to_owned();
        }
        if let Some(several) = node["anyOf"].as_array() {
            let kinds: Vec<_> = several
                .iter()
                .filter(|one| one["type"] != "null")
                .map(|one| self.kind(one, path))
                .collect();
            return kinds.join(", or ");
        }
        let word = match &node["type"] {
            Value::String(word) => word.as_str(),
            Value::Array(words) => words[0].as_str().unwrap_or_default(),
            _ => "",
        };
        match word {
            "string" => "text".to_owned(),
            "integer" => "number".to_owned(),
            "boolean" => "`true` or `false`".to_owned(),
            "array" => match self.kind(&node["items"], path) {
                one if one.starts_with('[') => format!("list of {one}"),
                one => format!("list of {one}"),
            },
            "object" => {
                let one = self.kind(&node["additionalProperties"], &format!("{path}.NAME"));
                format!("map of names to {one}")
            }
            other => panic!("{path}: the schema has a type `{other}`, which has no words here"),
        }
    }

    /// A table of the keys of a map.
    fn table(&mut self, path: &str, map: &'s Value) {
        let required = map["required"].as_array();
        self.text.push_str("| key | value | default | meaning |\n|---|---|---|---|\n");
        for (key, node) in map["properties"].as_object().into_iter().flatten() {
            let below = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            let kind = self.kind(node, &below);
            let told = node["description"].as_str().unwrap_or_default().replace('\n', " ");
            assert!(!told.is_empty(), "{below} says nothing of itself");
            let needed = required.is_some_and(|names| names.iter().any(|name| name == key))
                && node["default"].is_null()
                && node["type"] != "array";
            let (default, told) = match split_default(&told) {
                Some((default, told)) => (default, told),
                None if needed => ("*needed*".to_owned(), told),
                None => (plain_default(&node["default"]), told),
            };
            let row = [format!("`{key}`"), kind, default, told].map(|c| c.replace('|', "\\|"));
            let _ = writeln!(self.text, "| {} |", row.join(" | ")); // a String takes all
        }
        self.text.push('\n');
    }

    /// The ways to log in, which are no map of keys but a choice.
    fn ways(&mut self, path: &str, auth: &'s Value) {
        self.text.push_str("One of these, or a list of them, of which the next is taken where the limit of one is reached:\n\n");
        self.text.push_str("| form | meaning |\n|---|---|\n");
        for way in auth["anyOf"][0]["oneOf"].as_array().into_iter().flatten() {
            let (form, told) = match way["const"].as_str() {
                Some(word) => {
                    (format!("`{word}`"), way["description"].as_str().unwrap_or_default())
                }
                None => self.way(path, way),
            };
            let _ = writeln!(self.text, "| {form} | {} |", told.replace('\n', " ")); // a String takes all
        }
        self.text.push('\n');
    }

    fn way(&mut self, path: &str, way: &'s Value) -> (String, &'s str) {
        let keys: Vec<_> = way["properties"].as_object().into_iter().flatten().collect();
        if let [(key, node)] = keys[..] {
            let told = self.definition(node).map_or(node, |(_, definition)| definition);
            let told = told["description"].as_str().unwrap_or_default();
            let value = match self.definition(node) {
                Some(_) => self.kind(node, &format!("{path}.{key}")),
                None => "text".to_owned(),
            };
            return (format!("`{key}:` {value}"), told);
        }
        let names: Vec<_> = keys.iter().map(|(key, _)| format!("`{key}`")).collect();
        (names.join(", "), way["description"].as_str().unwrap_or_default())
    }
}

fn anchor(path: &str) -> String {
    path.to_lowercase().chars().filter(|c| c.is_alphanumeric() || *c == '_').collect()
}

/// The words that a value may be.
fn choices(definition: &Value) -> String {
    let words = definition["oneOf"].as_array().into_iter().flatten();
    let words: Vec<_> = words.filter_map(|w| Some(format!("`{}`", w["const"].as_str()?))).collect();
    words.join(", ")
}

/// `Default `X`.` at the end of what a key says of itself stands in a column of its own.
fn split_default(told: &str) -> Option<(String, String)> {
    let (before, rest) = told.split_once("Default `")?;
    let (value, after) = rest.split_once('`')?;
    (after == ".").then(|| (format!("`{value}`"), before.trim_end().to_owned()))
}

fn plain_default(value: &Value) -> String {
    match value {
        Value::Bool(_) | Value::Number(_) => format!("`{value}`"),
        Value::String(text) => format!("`{text}`"),
        _ => String::new(),
    }
}

fn reference(schema: &Value) -> String {
    let mut page = Reference { schema, sections: Vec::new(), text: HEAD.to_owned() };
    page.table("", schema);
    let mut next = 0;
    while next < page.sections.len() {
        let (path, definition) = page.sections[next].clone();
        let _ = writeln!(page.text, "## `{path}`\n"); // a String takes all
        let told = definition["description"].as_str().unwrap_or_default().replace('\n', " ");
        let _ = writeln!(page.text, "{told}\n");
        if definition["properties"].is_object() {
            page.table(&path, definition);
        } else {
            page.ways(&path, definition);
        }
        next += 1;
    }
    page.text.truncate(page.text.trim_end().len());
    page.text + "\n"
}

#[test]
fn the_reference_is_what_the_program_has() {
    let told = Command::new(env!("CARGO_BIN_EXE_pierhead")).args(["config", "schema"]).output();
    let schema: Value = serde_json::from_slice(&told.unwrap().stdout).unwrap();
    let wanted = reference(&schema);
    for name in schema["$defs"]["Upstream"]["properties"].as_object().unwrap().keys() {
        assert!(wanted.contains(&format!("| `{name}` |")), "{name} is not in it");
    }
    let path = root().join(PAGE);
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&path, &wanted).unwrap();
    }
    let found = fs::read_to_string(&path).unwrap_or_default();
    assert!(found == wanted, "{PAGE} is stale; write it anew by `UPDATE=1 cargo test --test docs`");
}
