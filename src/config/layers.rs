//! The layers above the file: variables inside its values, the environment, the command line.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;

use super::de::nearest;
use super::tree::{self, Map, Node, Origin, Snag, Value};
use super::{Config, WELL_KNOWN};

/// What every variable of ours begins with.
const PREFIX: &str = "PIERHEAD_";

/// Variables of ours that are no keys of the configuration.
const NO_KEYS: &[&str] = &["PIERHEAD_CONFIG", "PIERHEAD_HANDOVER", "PIERHEAD_TOKEN_FILE"];

/// What the command line says; it wins over the environment, which wins over the file.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// `--listen`.
    pub listen: Option<SocketAddr>,
    /// `--admin`.
    pub admin: Option<SocketAddr>,
    /// `--cache`.
    pub cache: Option<PathBuf>,
}

/// The environment by name.
pub(super) type Environment = BTreeMap<String, String>;

// --- variables in values -----------------------------------------------------------------------

/// Replaces `${NAME}` in every value and notes the names in `used`.
pub(super) fn interpolate(
    node: &mut Node,
    env: &Environment,
    used: &mut BTreeSet<String>,
    snags: &mut Vec<Snag>,
) {
    match &mut node.value {
        Value::List(items) => items.iter_mut().for_each(|item| interpolate(item, env, used, snags)),
        Value::Map(map) => {
            for (_, item) in map.values_mut() {
                interpolate(item, env, used, snags);
            }
        }
        Value::Scalar { text, plain } if text.contains("${") => match expand(text, env) {
            Ok((expanded, names)) => {
                *text = expanded;
                // What comes from outside is a value, even if it is empty, and never "nothing".
                *plain &= !text.is_empty();
                if let Origin::File { variables, .. } = &mut node.origin {
                    *variables = (!names.is_empty()).then(|| names.join(", ").into());
                }
                used.extend(names);
            }
            Err(text) => snags.push(Snag { origin: node.origin.clone(), text }),
        },
        Value::Scalar { .. } => {}
    }
}

/// The text with its variables replaced, and their names.
fn expand(text: &str, env: &Environment) -> Result<(String, Vec<String>), String> {
    let (mut done, mut rest, mut names) = (String::new(), text, Vec::new());
    while let Some(at) = rest.find("${") {
        let (before, after) = (&rest[..at], &rest[at + 2..]);
        if let Some(before) = before.strip_suffix('$') {
            done.push_str(before);
            done.push_str("${");
            rest = after;
            continue;
        }
        done.push_str(before);
        let (inside, after) = after
            .split_once('}')
            .ok_or("`${` is not closed; write ${NAME}, or $${ for the characters themselves")?;
        let (name, fallback) =
            inside.split_once(":-").map_or((inside, None), |(name, text)| (name, Some(text)));
        if !is_name(name) {
            return Err(format!(
                "`${{{inside}}}` names no variable; write ${{NAME}} or ${{NAME:-default}}, or \
                 $${{ for the characters themselves"
            ));
        }
        match (env.get(name).map(String::as_str), fallback) {
            (Some(value), None) => done.push_str(value),
            (Some(value), Some(_)) if !value.is_empty() => done.push_str(value),
            (_, Some(fallback)) => done.push_str(fallback),
            (None, None) => {
                return Err(format!(
                    "the variable {name} is not set; set it, or write ${{{name}:-default}}"
                ));
            }
        }
        names.push(name.to_owned());
        rest = after;
    }
    done.push_str(rest);
    Ok((done, names))
}

fn is_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

// --- variables as keys -------------------------------------------------------------------------

/// Lays the variables `PIERHEAD_…` over the tree. Those in `used` stand in values: no keys.
pub(super) fn environment(
    root: &mut Node,
    env: &Environment,
    used: &BTreeSet<String>,
    snags: &mut Vec<Snag>,
) {
    let short = short_names();
    for (name, value) in env {
        let Some(rest) = name.strip_prefix(PREFIX) else { continue };
        // An empty variable is what scripts and Compose files make of one that is not set.
        if value.is_empty()
            || used.contains(name)
            || NO_KEYS.contains(&&**name)
            || is_from_kubernetes(name, value)
        {
            continue;
        }
        let origin = Origin::Env(name.as_str().into());
        let path = match rest.strip_prefix('_') {
            Some(long) => long_path(long, root),
            None => short.get(rest).cloned().ok_or_else(|| unknown(name, &short)),
        };
        let path = path.map(|path| if path == ["admin"] { admin(root) } else { path });
        if path.as_ref().is_ok_and(|path| path.len() > 1 && path[0] == "admin") {
            lengthen_admin(root);
        }
        match path.and_then(|path| Ok((path, value_of(value, &origin)?))) {
            Ok((path, node)) => set(root, &path, node, &origin),
            Err(text) => snags.push(Snag { origin, text }),
        }
    }
}

/// Kubernetes gives each pod variables for each service of its namespace, and a service called
/// `pierhead` is likely: `PIERHEAD_SERVICE_HOST`, `PIERHEAD_PORT_5000_TCP_ADDR` and so on.
fn is_from_kubernetes(name: &str, value: &str) -> bool {
    let port = || name.ends_with("_PORT") && value.contains("://");
    name.contains("_SERVICE_HOST")
        || name.contains("_SERVICE_PORT")
        || name.split_once("_PORT_").is_some_and(|(_, rest)| {
            rest.starts_with(|c: char| c.is_ascii_digit())
                && ["TCP", "UDP", "SCTP"].iter().any(|word| rest.contains(word))
        })
        || port()
}

/// `CACHE_MAX_SIZE` to `cache.max_size`, for the keys at the top and one level below.
fn short_names() -> BTreeMap<String, Vec<String>> {
    let mut names = BTreeMap::new();
    let Ok(serde_json::Value::Object(top)) = serde_json::to_value(Config::default()) else {
        return names;
    };
    for below in ["address", "token_file", "guard_metrics"] {
        let path = vec!["admin".to_owned(), below.to_owned()];
        names.insert(format!("ADMIN_{below}").to_uppercase(), path);
    }
    for (key, value) in top {
        names.insert(key.to_uppercase(), vec![key.clone()]);
        if let (serde_json::Value::Object(section), true) = (value, key != "upstreams") {
            for below in section.into_iter().map(|(below, _)| below) {
                names.insert(format!("{key}_{below}").to_uppercase(), vec![key.clone(), below]);
            }
        }
    }
    names
}

fn unknown(name: &str, short: &BTreeMap<String, Vec<String>>) -> String {
    let rest = name.trim_start_matches(PREFIX).to_lowercase();
    let known: Vec<String> = short.keys().map(|key| key.to_lowercase()).collect();
    match nearest(&rest, known.iter().map(String::as_str)) {
        Some(meant) => {
            format!("no key goes by this name; did you mean {PREFIX}{}?", meant.to_uppercase())
        }
        None => "no key goes by this name; unset it, or write PIERHEAD__SECTION__KEY".to_owned(),
    }
}

/// `UPSTREAMS__DOCKER_IO__TAG_TTL` to its path. As most shells allow no dots in names, an upstream
/// goes by its name with `_` for all that is neither letter nor digit.
fn long_path(long: &str, root: &mut Node) -> Result<Vec<String>, String> {
    let mut path: Vec<String> = long.split("__").map(str::to_lowercase).collect();
    if path.iter().any(String::is_empty) {
        return Err("a part of the name is empty; write PIERHEAD__SECTION__KEY".to_owned());
    }
    if let [section, name, ..] = path.as_mut_slice()
        && section == "upstreams"
    {
        let upstreams = upstreams(root);
        let flat = |name: &str| name.replace(|c: char| !c.is_ascii_alphanumeric(), "_");
        let mut alike = upstreams.keys().filter(|known| flat(known) == flat(name));
        match (alike.next(), alike.next()) {
            (Some(known), None) => known.clone_into(name),
            (Some(_), Some(_)) => {
                return Err(format!("several upstreams could be `{name}`; write it in the file"));
            }
            (None, _) => {
                return Err(format!("no upstream is called `{name}`; add it to the file first"));
            }
        }
    }
    Ok(path)
}

/// The upstreams of the tree; the well-known ones where it says nothing about them, as otherwise
/// one variable would do away with all of them.
fn upstreams(root: &mut Node) -> &Map {
    static NONE: Map = Map::new();
    if root.find(&["upstreams".to_owned()]).is_none_or(Node::is_null) {
        let mut all = Map::new();
        for (name, ..) in WELL_KNOWN {
            all.insert((*name).to_owned(), (Origin::Default, Node::empty_map(Origin::Default)));
        }
        let node = Node { value: Value::Map(all), origin: Origin::Default };
        set(root, &["upstreams".to_owned()], node, &Origin::Default);
    }
    match root.find(&["upstreams".to_owned()]).map(|node| &node.value) {
        Some(Value::Map(map)) => map,
        _ => &NONE,
    }
}

/// A variable's value: a list or map in YAML's flow form, else the text as it stands.
fn value_of(value: &str, origin: &Origin) -> Result<Node, String> {
    if !value.starts_with(['[', '{']) {
        return Ok(Node::plain(value, origin.clone()));
    }
    match tree::parse(value) {
        (Some(mut node), snags) if snags.is_empty() => {
            tree::relabel(&mut node, origin);
            Ok(node)
        }
        (_, snags) => Err(snags.into_iter().next().map_or_else(String::new, |snag| snag.text)),
    }
}

/// The admin address is a key of its own where it is written in its long form: an address given
/// from above must not take its token away.
fn admin(root: &Node) -> Vec<String> {
    let top = vec!["admin".to_owned()];
    match root.find(&top).map(|node| &node.value) {
        Some(Value::Map(_)) => vec!["admin".to_owned(), "address".to_owned()],
        _ => top,
    }
}

/// Makes the short form of the admin address the long one, so that a key can stand beside it.
fn lengthen_admin(root: &mut Node) {
    let Value::Map(map) = &mut root.value else { return };
    let Some((_, node)) = map.get_mut("admin") else { return };
    if matches!(node.value, Value::Scalar { .. }) && !node.is_null() {
        let origin = node.origin.clone();
        let short = std::mem::replace(node, Node::empty_map(origin.clone()));
        set(node, &["address".to_owned()], short, &origin);
    }
}

/// Puts a node at the end of `path`, over whatever stands there or in the way.
fn set(root: &mut Node, path: &[String], node: Node, origin: &Origin) {
    let Some((first, rest)) = path.split_first() else {
        *root = node;
        return;
    };
    if !matches!(root.value, Value::Map(_)) {
        *root = Node::empty_map(origin.clone());
    }
    if let Value::Map(map) = &mut root.value {
        let (_, below) = map
            .entry(first.clone())
            .or_insert_with(|| (origin.clone(), Node::empty_map(origin.clone())));
        set(below, rest, node, origin);
    }
}

// --- the command line --------------------------------------------------------------------------

/// Lays the flags over the tree.
pub(super) fn flags(root: &mut Node, overrides: &Overrides) {
    let at = admin(root);
    let mut flag = |path: &[&str], name: &'static str, text: String| {
        let path: Vec<String> = path.iter().map(|&step| step.to_owned()).collect();
        let node = Node { value: Value::Scalar { text, plain: false }, origin: Origin::Flag(name) };
        set(root, &path, node, &Origin::Flag(name));
    };
    if let Some(address) = overrides.listen {
        flag(&["listen"], "--listen", address.to_string());
    }
    if let Some(address) = overrides.admin {
        let path: Vec<&str> = at.iter().map(String::as_str).collect();
        flag(&path, "--admin", address.to_string());
    }
    if let Some(path) = &overrides.cache {
        flag(&["cache", "path"], "--cache", path.to_string_lossy().into_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(pairs: &[(&str, &str)]) -> Environment {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    /// The tree as text after the environment was laid over it, and the snags.
    fn laid(text: &str, pairs: &[(&str, &str)]) -> (Node, Vec<String>) {
        let (mut snags, mut used) = (Vec::new(), BTreeSet::new());
        let mut root = tree::parse(text).0.unwrap();
        interpolate(&mut root, &env(pairs), &mut used, &mut snags);
        environment(&mut root, &env(pairs), &used, &mut snags);
        (root, snags.into_iter().map(|snag| snag.text).collect())
    }

    fn text(root: &Node, path: &str) -> Option<String> {
        let path: Vec<String> = path.split(' ').map(str::to_owned).collect();
        match &root.find(&path)?.value {
            Value::Scalar { text, .. } => Some(text.clone()),
            _ => None,
        }
    }

    #[test]
    fn variables_in_values_are_replaced() {
        let pairs = [("A", "x"), ("EMPTY", "")];
        for (written, wanted) in [
            ("${A}", "x"),
            ("a${A}b${A}", "axbx"),
            ("$A $ {A}", "$A $ {A}"),
            ("$${A} ${A}", "${A} x"),
            ("${B:-y}", "y"),
            ("${EMPTY:-y}", "y"),
            ("${EMPTY}", ""),
            ("${B:-}", ""),
        ] {
            assert_eq!(expand(written, &env(&pairs)).unwrap().0, wanted, "{written}");
        }
        for (written, why) in [
            ("${B}", "the variable B is not set; set it, or write ${B:-default}"),
            ("${A", "`${` is not closed"),
            ("${a b}", "`${a b}` names no variable"),
            ("${}", "`${}` names no variable"),
        ] {
            let error = expand(written, &env(&pairs)).unwrap_err();
            assert!(error.starts_with(why), "{written}: {error}");
        }
    }

    #[test]
    fn an_admin_address_and_its_token_do_not_take_each_other_away() {
        let (root, snags) = laid("admin: 0.0.0.0:1", &[("PIERHEAD_ADMIN_TOKEN_FILE", "/t")]);
        assert!(snags.is_empty());
        assert_eq!(text(&root, "admin address").unwrap(), "0.0.0.0:1");
        assert_eq!(text(&root, "admin token_file").unwrap(), "/t");
        let long = "admin: {address: 0.0.0.0:1, token_file: /t}";
        let (mut root, _) = laid(long, &[("PIERHEAD_ADMIN", "0.0.0.0:2")]);
        assert_eq!(text(&root, "admin address").unwrap(), "0.0.0.0:2");
        let admin = Some(([127, 0, 0, 1], 3).into());
        flags(&mut root, &Overrides { admin, ..Overrides::default() });
        assert_eq!(text(&root, "admin address").unwrap(), "127.0.0.1:3");
        assert_eq!(text(&root, "admin token_file").unwrap(), "/t");
    }

    #[test]
    fn what_a_variable_brings_is_never_more_than_a_value() {
        let (root, _) = laid("a: ${A}", &[("A", "x\nb: [c] # d")]);
        assert_eq!(text(&root, "a").unwrap(), "x\nb: [c] # d");
    }

    #[test]
    fn variables_go_by_short_and_long_names() {
        let (root, snags) = laid(
            "cache: {memory: 1}\nupstreams: {docker.io: , my-host.io: }",
            &[
                ("PIERHEAD_LISTEN", "0.0.0.0:1"),
                ("PIERHEAD_CACHE_MAX_SIZE", "1GiB"),
                ("PIERHEAD_LOG_LEVEL", ""),
                ("PIERHEAD__CACHE__MEMORY", "2"),
                ("PIERHEAD__UPSTREAMS__DOCKER_IO__TAG_TTL", "5s"),
                ("PIERHEAD__UPSTREAMS__MY_HOST_IO__ALLOW", "[a, b]"),
            ],
        );
        assert!(snags.is_empty(), "{snags:?}");
        for (path, wanted) in [
            ("listen", "0.0.0.0:1"),
            ("cache max_size", "1GiB"),
            ("cache memory", "2"),
            ("upstreams docker.io tag_ttl", "5s"),
            ("upstreams my-host.io allow 1", "b"),
        ] {
            assert_eq!(text(&root, path).as_deref(), Some(wanted), "{path}");
        }
    }

    #[test]
    fn one_variable_does_not_do_away_with_the_well_known_registries() {
        let (root, snags) = laid("{}", &[("PIERHEAD__UPSTREAMS__GHCR_IO__TAG_TTL", "5s")]);
        assert!(snags.is_empty(), "{snags:?}");
        assert!(root.find(&["upstreams".into(), "docker.io".into()]).is_some());
    }

    #[test]
    fn unknown_variables_are_refused() {
        let (_, snags) = laid(
            "a: ${PIERHEAD_TOKEN}",
            &[
                ("PIERHEAD_TOKEN", "used above"),
                ("PIERHEAD_CONFIG", "the command line's"),
                ("PIERHEAD_CACHE_SIZE", "1"),
                ("PIERHEAD_FOO", "1"),
                ("PIERHEAD__UPSTREAMS__NOWHERE_IO__TAG_TTL", "1s"),
                ("PIERHEAD____X", "1"),
                ("OTHER", "1"),
            ],
        );
        let wanted = [
            "no key goes by this name; did you mean PIERHEAD_CACHE_MAX_SIZE?",
            "no key goes by this name; unset it, or write PIERHEAD__SECTION__KEY",
            "no upstream is called `nowhere_io`; add it to the file first",
            "a part of the name is empty; write PIERHEAD__SECTION__KEY",
        ];
        let mut snags = snags;
        snags.sort();
        let mut wanted: Vec<String> = wanted.map(str::to_owned).into();
        wanted.sort();
        assert_eq!(snags, wanted);
    }

    #[test]
    fn what_kubernetes_adds_for_services_is_let_be() {
        let (_, snags) = laid(
            "{}",
            &[
                ("PIERHEAD_SERVICE_HOST", "10.0.0.1"),
                ("PIERHEAD_SERVICE_PORT", "5000"),
                ("PIERHEAD_SERVICE_PORT_REGISTRY", "5000"),
                ("PIERHEAD_PORT", "tcp://10.0.0.1:5000"),
                ("PIERHEAD_PORT_5000_TCP", "tcp://10.0.0.1:5000"),
                ("PIERHEAD_PORT_5000_TCP_ADDR", "10.0.0.1"),
                ("PIERHEAD_ADMIN_SERVICE_HOST", "10.0.0.2"),
                ("PIERHEAD_ADMIN_PORT_5001_TCP_PROTO", "tcp"),
            ],
        );
        assert_eq!(snags, Vec::<String>::new());
    }
}
