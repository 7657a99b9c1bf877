//! YAML as a tree whose every node knows where it came from.
//!
//! Files, environment variables and flags are laid over each other here, before any types, so that
//! a fault or a `config show` can point at the line or the variable that is to blame. Scalars keep
//! their text; what type it stands for is decided when a field asks for it. Whatever the input,
//! depth, size and the weight of aliases are bounded.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, Tag};

/// A configuration is nested six deep at most; more than this is an attack or a mistake.
const DEPTH_MAX: usize = 32;

/// How much text and how many nodes aliases may multiply, roughly in bytes.
const ALIASED_BYTES_MAX: usize = 1 << 20;

/// Where a value came from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Origin {
    /// Nobody wrote it.
    #[default]
    Default,
    /// The configuration file; both counted from 1.
    File {
        /// The line.
        line: usize,
        /// The column, in characters.
        column: usize,
        /// The variables whose values stand in it, `None` where there are none.
        variables: Option<Arc<str>>,
    },
    /// This environment variable.
    Env(Arc<str>),
    /// This flag of the command line.
    Flag(&'static str),
}

impl Origin {
    fn at(mark: Marker) -> Self {
        Self::File { line: mark.line(), column: mark.col() + 1, variables: None }
    }
}

/// One value and where it came from.
#[derive(Clone)]
pub(super) struct Node {
    pub(super) value: Value,
    pub(super) origin: Origin,
}

/// What a node is.
#[derive(Clone)]
pub(super) enum Value {
    /// A single value; a plain one may stand for nothing, a number or a truth value.
    Scalar {
        text: String,
        plain: bool,
    },
    List(Vec<Node>),
    Map(Map),
}

/// Keys in alphabetical order, each with the place of the key itself.
pub(super) type Map = BTreeMap<String, (Origin, Node)>;

/// A fault in the text itself.
#[derive(Debug)]
pub(super) struct Snag {
    pub(super) origin: Origin,
    pub(super) text: String,
}

impl Node {
    pub(super) fn plain(text: impl Into<String>, origin: Origin) -> Self {
        Self { value: Value::Scalar { text: text.into(), plain: true }, origin }
    }

    pub(super) fn empty_map(origin: Origin) -> Self {
        Self { value: Value::Map(Map::new()), origin }
    }

    /// Whether this is YAML's way of saying that there is nothing.
    pub(super) fn is_null(&self) -> bool {
        matches!(&self.value, Value::Scalar { text, plain: true }
            if matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL"))
    }

    /// The node at the end of `path`; list items go by their number.
    pub(super) fn find(&self, path: &[String]) -> Option<&Self> {
        path.iter().try_fold(self, |node, step| match &node.value {
            Value::Map(map) => map.get(step).map(|(_, value)| value),
            Value::List(items) => items.get(step.parse::<usize>().ok()?),
            Value::Scalar { .. } => None,
        })
    }

    /// Takes the node at the end of `path` out; false where there is none.
    pub(super) fn remove(&mut self, path: &[String]) -> bool {
        let Some((first, rest)) = path.split_first() else { return false };
        match (&mut self.value, rest.is_empty()) {
            (Value::Map(map), true) => map.remove(first).is_some(),
            (Value::Map(map), false) => {
                map.get_mut(first).is_some_and(|(_, node)| node.remove(rest))
            }
            (Value::List(items), last) => match first.parse::<usize>() {
                Ok(index) if index < items.len() && last => {
                    items.remove(index);
                    true
                }
                Ok(index) => items.get_mut(index).is_some_and(|node| node.remove(rest)),
                Err(_) => false,
            },
            (Value::Scalar { .. }, _) => false,
        }
    }

    /// About how many bytes a copy takes.
    fn weight(&self) -> usize {
        16 + match &self.value {
            Value::Scalar { text, .. } => text.len(),
            Value::List(items) => items.iter().map(Self::weight).sum(),
            Value::Map(map) => map.iter().map(|(key, (_, node))| key.len() + node.weight()).sum(),
        }
    }
}

/// Reads one YAML document. Snags that leave the rest readable are collected; the first one that
/// does not ends the reading.
pub(super) fn parse(text: &str) -> (Option<Node>, Vec<Snag>) {
    let mut builder = Builder::default();
    let mut parser = Parser::new_from_str(text);
    while let Some(event) = parser.next_event() {
        let taken = match event {
            Ok((event, span)) => builder.take(event, span.start),
            Err(error) => {
                let line = text.lines().nth(error.marker().line().saturating_sub(1));
                let text = explain(error.info(), line.unwrap_or_default());
                Err(Snag { origin: Origin::at(*error.marker()), text })
            }
        };
        if let Err(snag) = taken {
            builder.snags.push(snag);
            return (None, builder.snags);
        }
    }
    (Some(builder.root.unwrap_or_else(|| Node::plain("", Origin::Default))), builder.snags)
}

/// The parser's words with a remedy for the slips that people make.
fn explain(info: &str, line: &str) -> String {
    let says = |words: &[&str]| words.iter().any(|word| info.contains(word));
    let remedy = if line.contains("${") && line.contains(['{', '[']) {
        "inside { } and [ ], put quotation marks around \"${NAME}\""
    } else if line.contains("]:") {
        "put quotation marks around an address such as \"[::1]:5000\""
    } else if says(&["tab"]) {
        "indent with spaces, not tabs"
    } else if says(&["illegal placement"]) {
        "close the brackets and quotation marks of the lines above"
    } else if says(&["mapping values", "simple key"]) {
        "check the indentation, the space after each colon, and quote text that contains `: `"
    } else if says(&["escape"]) {
        "put single quotation marks around text with backslashes"
    } else if says(&["quoted scalar", "quoted"]) {
        "check where the quotation marks open and close"
    } else if says(&["flow", "bracket", "',' or"]) {
        "close each bracket and part the items by commas"
    } else if says(&["anchor", "alias"]) {
        "quote text that begins with `*` or `&`"
    } else {
        "check the indentation and quote text with special characters"
    };
    format!("this is not YAML ({info}); {remedy}")
}

/// A list or map that is not closed yet.
struct Open {
    node: Node,
    anchor: usize,
    /// In a map: the key whose value comes next; `None` inside while its key was refused.
    key: Option<(String, Origin)>,
}

#[derive(Default)]
struct Builder {
    open: Vec<Open>,
    anchors: HashMap<usize, Node>,
    aliased_bytes: usize,
    root: Option<Node>,
    snags: Vec<Snag>,
}

impl Builder {
    fn take(&mut self, event: Event<'_>, mark: Marker) -> Result<(), Snag> {
        let origin = Origin::at(mark);
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                // `!!str` and `!` say the same as quotation marks.
                let plain = style == ScalarStyle::Plain
                    && self.check_tag(tag.as_deref(), &origin) != Tagged::Text;
                let value = Value::Scalar { text: text.into_owned(), plain };
                self.add(Node { value, origin }, anchor)
            }
            Event::SequenceStart(anchor, tag) => {
                self.check_tag(tag.as_deref(), &origin);
                self.open(Value::List(Vec::new()), origin, anchor)
            }
            Event::MappingStart(anchor, tag) => {
                self.check_tag(tag.as_deref(), &origin);
                self.open(Value::Map(Map::new()), origin, anchor)
            }
            Event::SequenceEnd | Event::MappingEnd => match self.open.pop() {
                Some(Open { node, anchor, .. }) => self.add(node, anchor),
                None => Ok(()),
            },
            Event::Alias(anchor) => self.alias(anchor, origin),
            Event::DocumentStart(_) if self.root.is_some() => Err(Snag {
                origin,
                text: "a second document begins here; keep one and remove the `---` between them"
                    .to_owned(),
            }),
            _ => Ok(()),
        }
    }

    fn open(&mut self, value: Value, origin: Origin, anchor: usize) -> Result<(), Snag> {
        if self.open.len() >= DEPTH_MAX {
            let text = format!(
                "this is nested more than {DEPTH_MAX} deep; no key of the configuration is"
            );
            return Err(Snag { origin, text });
        }
        self.open.push(Open { node: Node { value, origin }, anchor, key: None });
        Ok(())
    }

    /// Puts a finished node into the list or map that is open.
    fn add(&mut self, node: Node, anchor: usize) -> Result<(), Snag> {
        if anchor > 0 {
            self.anchors.insert(anchor, node.clone());
        }
        let Some(open) = self.open.last_mut() else {
            self.root = Some(node);
            return Ok(());
        };
        match &mut open.node.value {
            Value::List(items) => items.push(node),
            Value::Map(map) => match open.key.take() {
                None => open.key = Some(key_of(node)?),
                Some((key, origin)) => match map.get(&key) {
                    Some((first, _)) => self.snags.push(twice(&key, first, origin)),
                    None => drop(map.insert(key, (origin, node))),
                },
            },
            // Only lists and maps are ever opened.
            Value::Scalar { .. } => {}
        }
        Ok(())
    }

    /// Copies what an anchor stands for, within bounds: each level of aliases of aliases would
    /// otherwise multiply the size of the whole.
    fn alias(&mut self, anchor: usize, origin: Origin) -> Result<(), Snag> {
        let Some(node) = self.anchors.get(&anchor) else {
            let text = "this alias stands inside what it names; write the value out".to_owned();
            return Err(Snag { origin, text });
        };
        self.aliased_bytes += node.weight();
        if self.aliased_bytes > ALIASED_BYTES_MAX {
            let text = "the aliases up to here blow the file up beyond 1MiB; write the values out"
                .to_owned();
            return Err(Snag { origin, text });
        }
        let node = node.clone();
        self.add(node, 0)
    }

    fn check_tag(&mut self, tag: Option<&Tag>, origin: &Origin) -> Tagged {
        let Some(tag) = tag else { return Tagged::No };
        let name: Cow<'_, str> =
            if tag.is_yaml_core_schema() { (&*tag.suffix).into() } else { tag.to_string().into() };
        match &*name {
            "str" | "!" | "!!" => Tagged::Text,
            "map" | "seq" | "int" | "float" | "bool" | "null" => Tagged::No,
            _ => {
                let text =
                    format!("the tag `{tag}` means nothing here; remove it, or quote the text");
                self.snags.push(Snag { origin: origin.clone(), text });
                Tagged::No
            }
        }
    }
}

/// What a tag says about a scalar.
#[derive(PartialEq)]
enum Tagged {
    No,
    Text,
}

fn key_of(node: Node) -> Result<(String, Origin), Snag> {
    match node.value {
        Value::Scalar { text, .. } => Ok((text, node.origin)),
        Value::List(_) | Value::Map(_) => Err(Snag {
            origin: node.origin,
            text: "a list or map stands where a key is wanted; write `key: value`".to_owned(),
        }),
    }
}

fn twice(key: &str, first: &Origin, origin: Origin) -> Snag {
    let text = match first {
        Origin::File { line, .. } => {
            format!("`{key}` is already given in line {line}; keep one of the two")
        }
        _ => format!("`{key}` is given twice; keep one of the two"),
    };
    Snag { origin, text }
}

/// Gives all nodes of a tree one origin.
pub(super) fn relabel(node: &mut Node, origin: &Origin) {
    node.origin.clone_from(origin);
    match &mut node.value {
        Value::List(items) => items.iter_mut().for_each(|item| relabel(item, origin)),
        Value::Map(map) => map.values_mut().for_each(|(key, item)| {
            key.clone_from(origin);
            relabel(item, origin);
        }),
        Value::Scalar { .. } => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn snags(text: &str) -> Vec<String> {
        parse(text).1.into_iter().map(|snag| snag.text).collect()
    }

    #[test]
    fn nodes_know_their_place() {
        let (root, _) = parse("a:\n  - x\n  - {b: y}\n");
        let path: Vec<String> = ["a", "1", "b"].map(str::to_owned).into();
        let node = root.unwrap();
        assert_eq!(
            node.find(&path).unwrap().origin,
            Origin::File { line: 3, column: 9, variables: None }
        );
    }

    #[test]
    fn aliases_are_copies_within_bounds() {
        let (root, snags) = parse("a: &a {x: 1}\nb: *a\n");
        assert!(snags.is_empty() && root.unwrap().find(&["b".into(), "x".into()]).is_some());
        assert!(self::snags("a: &a [*a]").concat().contains("inside what it names"));
        let level =
            |(one, next): (char, char)| format!("{next}: &{next} [*{one}, *{one}, *{one}]\n");
        let levels: String = ('a'..='y').zip('b'..='z').map(level).collect();
        let bomb = format!("a: &a [x, x, x]\n{levels}");
        assert!(self::snags(&bomb).concat().contains("beyond 1MiB"));
    }

    #[test]
    fn depth_is_bounded_in_every_form() {
        for text in [
            "[".repeat(100_000),
            "- ".repeat(100_000),
            "{a: ".repeat(100_000),
            "? ".repeat(100_000),
        ] {
            assert_eq!(snags(&text).len(), 1);
        }
    }

    #[test]
    fn tags_are_no_back_door() {
        assert!(snags("a: !!str 5\nb: ! 6\nc: !!int 7").is_empty());
        assert!(snags("a: !include /etc/passwd").concat().contains("means nothing here"));
    }

    #[test]
    fn a_byte_order_mark_a_comment_and_nothing_are_no_snags() {
        for text in ["", "# nothing\n", "---\n", "---\na: b\n...\n"] {
            assert!(snags(text).is_empty(), "{text:?}");
        }
        assert!(snags("a: b\n---\nc: d\n").concat().contains("second document"));
    }

    proptest! {
        #[test]
        fn no_text_is_too_strange(text in r#"([a-c\n :#\-?*&!|>'"%@`{}\[\],~$\t\r]|é){0,60}"#) {
            let _ = parse(&text);
        }
    }
}
