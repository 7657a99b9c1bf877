//! From the file, the environment and the command line to a configuration, or to all its faults.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path;

use super::Config;
use super::check::{Checker, Path};
use super::de::{self, Mistake};
use super::defaults::{DEFAULT_UPSTREAM, well_known};
use super::fault::{FAULTS_MAX, Fault, Faults, Source};
use super::layers::{self, Environment, Overrides};
use super::read::endpoint;
use super::tree::{self, Node, Origin, Snag, Value};

/// The built-in configuration, which is also the annotated sample.
pub(super) const BUILT_IN: &str = include_str!("../../config/pierhead.yaml");

/// A configuration is a few kilobytes; whatever is larger is another file.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// How often the types are tried again without the parts found wrong or empty so far.
const ROUNDS_MAX: usize = 200;

/// A configuration and where it came from.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// What the program goes by.
    pub config: Config,
    /// The file's path, or `built-in`.
    pub source: String,
    /// What works but is hardly meant.
    pub warnings: Faults,
    /// Whether the file says nothing at all: an editor, or a full disk, may have cut it.
    pub says_nothing: bool,
    /// Where each leaf came from, by its path.
    pub(super) origins: BTreeMap<Path, Origin>,
}

impl Config {
    /// Reads the file, or the built-in configuration where there is none, lays the environment and
    /// the command line over it, and checks the whole.
    pub fn load(
        path: Option<&path::Path>,
        env: impl IntoIterator<Item = (String, String)>,
        overrides: &Overrides,
    ) -> Result<Loaded, Faults> {
        let source = match path {
            None => Source::new("built-in".to_owned(), BUILT_IN),
            Some(path) => open(path)?,
        };
        load(&source, &env.into_iter().collect(), overrides)
    }

    /// Reads a configuration from a text, with nothing laid over it.
    pub fn parse(name: &str, text: &str) -> Result<Loaded, Faults> {
        let source = Source::new(name.to_owned(), text);
        load(&source, &Environment::new(), &Overrides::default())
    }
}

/// The environment as [`Config::load`] wants it. Variables that are not Unicode are none of ours.
pub fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
}

#[expect(clippy::disallowed_methods, reason = "read once, before anything is served")]
fn open(path: &path::Path) -> Result<Source, Faults> {
    let name = path.display().to_string();
    let refuse = |message: String| {
        let source = Source::new(name.clone(), "");
        Faults::new(vec![source.fault(&Origin::Default, message)])
    };
    let unreadable = |error: std::io::Error| {
        refuse(format!("the file cannot be read ({error}); check the path and its permissions"))
    };
    let mut bytes = Vec::new();
    // One byte more than allowed tells a file that is too large; its length may be unknown, as that
    // of a pipe is.
    std::fs::File::open(path)
        .and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes))
        .map_err(unreadable)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(refuse(
            "the file is larger than 1MiB, as no configuration is; check the path".to_owned(),
        ));
    }
    let text = String::from_utf8(bytes)
        .map_err(|_| refuse("the file is not UTF-8 text; save it as such".to_owned()))?;
    Ok(Source::new(name, &text))
}

fn load(source: &Source, env: &Environment, overrides: &Overrides) -> Result<Loaded, Faults> {
    let (root, snags) = layered(source, env, overrides);
    let mut faults: Vec<Fault> = snags
        .into_iter()
        .take(FAULTS_MAX)
        .map(|snag| source.fault(&snag.origin, snag.text))
        .collect();
    let Some(mut root) = root else { return Err(Faults::new(faults)) };
    // What is wrong in the text is not told once more as a value that does not fit.
    let told: BTreeSet<String> = faults.iter().map(|fault| fault.place.clone()).collect();
    let untold = |fault: &Fault| !told.contains(&fault.place);

    let (mut misfits, mut pruned) = (Vec::new(), Vec::new());
    let config = read(source, &mut root, &mut pruned, &mut misfits);
    let mut warnings = Vec::new();
    let config = config.map(|config| complete(config, &root));
    if let Some(config) = &config {
        let faults = std::mem::take(&mut misfits);
        let mut checker = Checker { source, root: &root, pruned: &pruned, faults, warnings };
        checker.run(config);
        (misfits, warnings) = (checker.faults, checker.warnings);
    }
    faults.extend(misfits.into_iter().filter(untold));
    match config {
        Some(config) if faults.is_empty() => {
            let mut origins = BTreeMap::new();
            leaves(&root, &mut Vec::new(), &mut origins);
            let (name, warnings) = (source.name.clone(), Faults::new(warnings));
            let nothing = |line: &str| {
                let line = line.trim();
                line.is_empty() || line.starts_with('#') || matches!(line, "---" | "{}")
            };
            let says_nothing = source.text.lines().all(nothing);
            Ok(Loaded { config, source: name, warnings, says_nothing, origins })
        }
        _ => Err(Faults::new(faults)),
    }
}

/// The tree of the file with the environment and the command line over it; `None` where the file
/// is too broken for that.
fn layered(source: &Source, env: &Environment, overrides: &Overrides) -> (Option<Node>, Vec<Snag>) {
    let (root, mut snags) = tree::parse(&source.text);
    let Some(mut root) = root else { return (None, snags) };
    if root.is_null() {
        root = Node::empty_map(Origin::Default);
    }
    if !matches!(root.value, Value::Map(_)) {
        let text = "the file is not a map; write `key: value` lines".to_owned();
        snags.push(Snag { origin: root.origin, text });
        return (None, snags);
    }
    let mut used = BTreeSet::new();
    layers::interpolate(&mut root, env, &mut used, &mut snags);
    layers::environment(&mut root, env, &used, &mut snags);
    layers::flags(&mut root, overrides);
    normalize(&mut root);
    (Some(root), snags)
}

/// Brings short forms into their long one, so that what is resolved stands where it was written.
fn normalize(root: &mut Node) {
    let Value::Map(map) = &mut root.value else { return };
    if let Some((_, listen)) = map.get_mut("listen")
        && !matches!(listen.value, Value::List(_))
        && !listen.is_null()
    {
        let origin = listen.origin.clone();
        let one = std::mem::replace(listen, Node::empty_map(origin));
        listen.value = Value::List(vec![one]);
    }
    if let Some((_, Node { value: Value::Map(upstreams), .. })) = map.get_mut("upstreams") {
        for (_, upstream) in upstreams.values_mut().filter(|(_, upstream)| upstream.is_null()) {
            *upstream = Node::empty_map(upstream.origin.clone());
        }
    }
}

/// Reads the types again and again, each time without the part that was wrong, until the rest fits.
fn read(
    source: &Source,
    root: &mut Node,
    pruned: &mut Vec<Path>,
    faults: &mut Vec<Fault>,
) -> Option<Config> {
    let above =
        |path: &[String]| path.split_last().map_or(Path::new(), |(_, above)| above.to_vec());
    let mut misspelt: Vec<Path> = Vec::new();
    for _ in 0..ROUNDS_MAX {
        let mistake = match de::read::<Config>(root) {
            Ok(config) => return Some(config),
            Err(mistake) => mistake,
        };
        if !mistake.of_key && drop_empty(root, &mistake.path) {
            continue;
        }
        let Mistake { mut path, origin, text, meant, .. } = mistake;
        // A key that is missing because it is misspelt is not told twice.
        if !misspelt.iter().any(|meant| above(meant) == path) {
            faults.push(source.fault(&origin.unwrap_or_default(), text));
        }
        if faults.len() >= FAULTS_MAX || !root.remove(&path) {
            return None;
        }
        if let Some(meant) = meant {
            let mut meant_path = above(&path);
            meant_path.push(meant.to_owned());
            if root.find(&meant_path).is_none() {
                misspelt.push(meant_path.clone());
                pruned.push(meant_path);
            }
        }
        // The next item takes the place of one that is gone, so its number says nothing any more.
        if matches!(root.find(&above(&path)), Some(Node { value: Value::List(_), .. })) {
            path.truncate(path.len() - 1);
            path.push("-".to_owned());
        }
        pruned.push(path);
    }
    let text = "the file has too many faults to find the rest; mend these first";
    faults.push(source.fault(&root.origin, text));
    None
}

/// Keys that keep somebody out. One that stands there with nothing behind it is a fault: what was
/// meant to be closed must not be open because its lines are commented out.
const GUARDS: &[&str] =
    &["clients", "htpasswd", "rules", "jwt", "client_ca", "token_file", "allow", "deny", "auth"];

/// A known key without a value is no fault: it is taken out and its default stands, as it is what
/// remains of a section whose keys are all commented out. Takes it out of all upstreams at once,
/// so that thousands of them do not take thousands of rounds. False where there is a value.
fn drop_empty(root: &mut Node, path: &[String]) -> bool {
    if path.last().is_some_and(|key| GUARDS.contains(&key.as_str())) {
        return false;
    }
    let in_map = path.split_last().and_then(|(_, above)| root.find(above));
    if !matches!(in_map, Some(Node { value: Value::Map(_), .. }))
        || !root.find(path).is_some_and(Node::is_null)
    {
        return false;
    }
    if let ([section, _, below @ ..], Value::Map(map)) = (path, &mut root.value)
        && !below.is_empty()
        && let Some((_, Node { value: Value::Map(upstreams), .. })) = map.get_mut(section)
    {
        for (_, upstream) in upstreams.values_mut() {
            if upstream.find(below).is_some_and(Node::is_null) {
                upstream.remove(below);
            }
        }
        return true;
    }
    root.remove(path)
}

/// Fills in what depends on other keys.
fn complete(mut config: Config, root: &Node) -> Config {
    let given = |path: &[&str]| {
        root.find(&path.iter().map(|&step| step.to_owned()).collect::<Vec<_>>()).is_some()
    };
    let names: BTreeSet<String> = config.upstreams.keys().cloned().collect();
    if given(&["upstreams"]) {
        for (name, upstream) in &mut config.upstreams {
            let (url, aliases) = well_known(name);
            if !given(&["upstreams", name, "endpoints"]) {
                upstream.endpoints.extend(endpoint(&url));
            }
            if !given(&["upstreams", name, "aliases"]) {
                // A name of its own comes before an alias that nobody wrote.
                let free = aliases.iter().filter(|alias| !names.contains(**alias));
                upstream.aliases.extend(free.map(|alias| (*alias).to_owned()));
            }
        }
    }
    if !given(&["default_upstream"]) {
        config.default_upstream =
            names.contains(DEFAULT_UPSTREAM).then(|| DEFAULT_UPSTREAM.to_owned());
    }
    config
}

/// Notes the origin of each leaf. An empty list is one; an empty map says nothing of its own.
fn leaves(node: &Node, path: &mut Path, origins: &mut BTreeMap<Path, Origin>) {
    let mut below = |step: String, node: &Node| {
        path.push(step);
        leaves(node, path, origins);
        path.pop();
    };
    match &node.value {
        Value::List(items) if !items.is_empty() => {
            items.iter().enumerate().for_each(|(index, item)| below(index.to_string(), item));
        }
        Value::Map(map) => map.iter().for_each(|(key, (_, item))| below(key.clone(), item)),
        _ => drop(origins.insert(path.clone(), node.origin.clone())),
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "tests write the files that are read")]
mod tests {
    use super::*;

    fn env(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn faults(text: &str) -> String {
        Config::parse("f.yaml", text).unwrap_err().to_string()
    }

    #[test]
    fn every_sample_loads() {
        let folder = path::Path::new(env!("CARGO_MANIFEST_DIR")).join("config");
        let mut count = 0;
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let loaded = Config::load(Some(&path), [], &Overrides::default());
            let loaded = loaded.unwrap_or_else(|faults| panic!("{faults}"));
            assert!(loaded.warnings.is_empty(), "{}", loaded.warnings);
            count += 1;
        }
        assert!(count >= 4);
    }

    #[test]
    fn many_faults_are_found_in_one_run() {
        let text = r#"listen: [127.0.0.1:5000, ":5001", {adress: 127.0.0.1:5002}]
cahce: {path: x}
cache:
  max_size: 10 GX
  memory:
  min_free: 100%
upstreams:
  docker.io:
    auth: {username: a, passwrd: hunter2}
    tag_ttl: 60
    tag_ttl: 60s
  Quay.io:
  ghcr.io:
    endpoints: [ghcr.io, "https://u:hunter2@x/"]
    allow: foo
    aliases: [docker.io]
server: {threads: "4", max_connections: 0}
log: {format: jsn, access: yes}
default_upstream: ghcr.oi
"#;
        let wanted = r#"f.yaml:1:26: `:5001` is not an address; write 127.0.0.1:5001 for this machine alone or 0.0.0.0:5001 for all
     1 | listen: [127.0.0.1:5000, ":5001", {adress: 127.0.0.1:5002}]
       |                          ^
f.yaml:1:36: unknown key `adress`; did you mean `address`?
     1 | listen: [127.0.0.1:5000, ":5001", {adress: 127.0.0.1:5002}]
       |                                    ^
f.yaml:2:1: unknown key `cahce`; did you mean `cache`?
     2 | cahce: {path: x}
       | ^
f.yaml:4:13: `10 GX` is not a size; write a number and a unit, for example 100GiB or 500MB
     4 |   max_size: 10 GX
       |             ^
f.yaml:6:13: all of the disk cannot stay free; write less than 100%, for example 5%
     6 |   min_free: 100%
       |             ^
f.yaml:9:25: unknown key `passwrd`; did you mean `password`?
     9 |     auth: {username: a, passwrd: <hidden>
       |                         ^
f.yaml:10:14: `60` has no unit; write 60s for seconds
    10 |     tag_ttl: 60
       |              ^
f.yaml:11:5: `tag_ttl` is already given in line 10; keep one of the two
    11 |     tag_ttl: 60s
       |     ^
f.yaml:12:3: `Quay.io` is no name for an upstream: it has capital letters; write quay.io
    12 |   Quay.io:
       |   ^
f.yaml:14:17: `ghcr.io` is not a URL; write https://ghcr.io
    14 |     endpoints: [ghcr.io, "https://<hidden>@x/"]
       |                 ^
f.yaml:14:26: the endpoint carries a user; move it to `auth: {username, password}`
    14 |     endpoints: [ghcr.io, "https://<hidden>@x/"]
       |                          ^
f.yaml:15:12: a text stands where a list is wanted; write [ … ] or lines that begin with `- `
    15 |     allow: foo
       |            ^
f.yaml:16:15: `docker.io` is an upstream itself; remove it from one of the two
    16 |     aliases: [docker.io]
       |               ^
f.yaml:17:19: a text stands where a whole number from 0 up is wanted; write it without quotation marks
    17 | server: {threads: "4", max_connections: 0}
       |                   ^
f.yaml:17:41: the number of connections is out of range; write 1 to 1000000
    17 | server: {threads: "4", max_connections: 0}
       |                                         ^
f.yaml:18:15: `jsn` is not known here; did you mean `json`?
    18 | log: {format: jsn, access: yes}
       |               ^
f.yaml:18:28: a text stands where true or false is wanted; write one of the two
    18 | log: {format: jsn, access: yes}
       |                            ^
f.yaml:19:19: `ghcr.oi` is not among the upstreams; did you mean `ghcr.io`?
    19 | default_upstream: ghcr.oi
       |                   ^"#;
        assert_eq!(faults(text), wanted);
    }

    #[test]
    fn slips_in_yaml_are_explained() {
        for (text, wanted) in [
            (
                "cache:\n\tpath: x",
                "f.yaml:2:2: this is not YAML (tabs disallowed within this context (block indentation)); indent with spaces, not tabs\n     2 | \tpath: x\n       | \t^",
            ),
            (
                "cache:\n  path: \"x\nlog:\n",
                "f.yaml:2:9: this is not YAML (invalid indentation in quoted scalar); check where the quotation marks open and close\n     2 |   path: \"x\n       |         ^",
            ),
            (
                "listen:127.0.0.1:5000",
                "f.yaml:1:1: the file is not a map; write `key: value` lines\n     1 | listen:127.0.0.1:5000\n       | ^",
            ),
            (
                "log: {level: ${L}}",
                "f.yaml:1:15: this is not YAML (while parsing a flow mapping, did not find expected ',' or '}'); inside { } and [ ], put quotation marks around \"${NAME}\"\n     1 | log: {level: ${L}}\n       |               ^",
            ),
            (
                "a: 1\n---\nb: 2",
                "f.yaml:2:1: a second document begins here; keep one and remove the `---` between them\n     2 | ---\n       | ^",
            ),
            (
                "log: {level: \"${L}\"}",
                "f.yaml:1:14: the variable L is not set; set it, or write ${L:-default}\n     1 | log: {level: \"${L}\"}\n       |              ^",
            ),
        ] {
            assert_eq!(faults(text), wanted, "{text}");
        }
    }

    #[test]
    fn sections_without_keys_stand_at_their_default() {
        let json = |config: &Config| serde_json::to_value(config).unwrap();
        for text in [
            "",
            "---",
            "\u{feff}# nothing",
            "cache:\nlog: ~\nupstreams: null\nlisten:\nserver:\n  threads:",
        ] {
            assert_eq!(
                json(&Config::parse("f", text).unwrap().config),
                json(&Config::default()),
                "{text:?}"
            );
        }
        assert!(faults("cahce:").contains("did you mean `cache`?"));
        assert!(faults("listen: [127.0.0.1:5000, ]\nlog: {level: [~]}").contains("a list stands"));
    }

    #[test]
    fn upstreams_fill_in_what_goes_without_saying() {
        let text = "upstreams:\n  docker.io: {endpoints: ['https://hub.example.com']}\n  ghcr.io:\n  registry:5000: {}\n  index.docker.io: {aliases: []}";
        let Config { upstreams, default_upstream, .. } = Config::parse("f", text).unwrap().config;
        let endpoint = |name: &str| upstreams[name].endpoints[0].as_str();
        assert_eq!(endpoint("docker.io"), "https://hub.example.com/");
        assert_eq!(endpoint("ghcr.io"), "https://ghcr.io/");
        assert_eq!(endpoint("registry:5000"), "https://registry:5000/");
        assert_eq!(upstreams["docker.io"].aliases, ["registry-1.docker.io"]);
        assert_eq!(default_upstream.as_deref(), Some("docker.io"));
        assert_eq!(
            Config::parse("f", "upstreams: {ghcr.io: }").unwrap().config.default_upstream,
            None
        );
    }

    #[test]
    fn the_command_line_wins_over_the_environment_over_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f.yaml");
        std::fs::write(
            &path,
            "listen: 127.0.0.1:1\nadmin: 127.0.0.1:2\ncache: {path: three, memory: 1MiB}",
        )
        .unwrap();
        let env = env(&[
            ("PIERHEAD_LISTEN", "127.0.0.1:11"),
            ("PIERHEAD__ADMIN", "127.0.0.1:12"),
            ("PIERHEAD_CACHE_PATH", "thirteen"),
        ]);
        let flags = Overrides {
            listen: Some(([127, 0, 0, 1], 21).into()),
            cache: Some("twenty".into()),
            admin: None,
        };
        let config = Config::load(Some(&path), env.clone(), &flags).unwrap().config;
        assert_eq!((config.listen[0].address.port(), config.admin.address.port()), (21, 12));
        assert_eq!(
            (config.cache.path.to_str().unwrap(), config.cache.memory.bytes()),
            ("twenty", 1 << 20)
        );

        let flags = Overrides { admin: Some(([127, 0, 0, 1], 11).into()), ..Overrides::default() };
        let faults = Config::load(Some(&path), env, &flags).unwrap_err();
        assert_eq!(
            faults.to_string(),
            "--admin: the admin address 127.0.0.1:11 and the pull address 127.0.0.1:11 are the same port; give one of them another"
        );
    }

    #[test]
    fn a_faulty_variable_is_named() {
        let env = env(&[
            ("PIERHEAD_CACHE_MAX_SIZE", "much"),
            ("PIERHEAD__LOG__ACESS", "true"),
            ("PIERHEAD_LSTEN", "x"),
            ("PIERHEAD_LOG", "["),
        ]);
        let faults = Config::load(None, env, &Overrides::default()).unwrap_err();
        let wanted = "\
environment variable PIERHEAD_CACHE_MAX_SIZE: `much` is not a size; write a number and a unit, for example 100GiB or 500MB
environment variable PIERHEAD_LOG: this is not YAML (while parsing a node, did not find expected node content); check the indentation and quote text with special characters
environment variable PIERHEAD_LSTEN: no key goes by this name; did you mean PIERHEAD_LISTEN?
environment variable PIERHEAD__LOG__ACESS: unknown key `acess`; did you mean `access`?";
        assert_eq!(faults.to_string(), wanted);
    }

    #[test]
    fn a_file_that_cannot_be_read_is_a_fault() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &[u8]| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        for (path, why) in [
            (folder.path().join("missing"), "No such file or directory"),
            (folder.path().to_owned(), "Is a directory"),
            (file("latin1", b"a: \xe4"), "not UTF-8"),
            (file("large", &vec![b'#'; 2 << 20]), "larger than 1MiB"),
        ] {
            let text =
                Config::load(Some(&path), [], &Overrides::default()).unwrap_err().to_string();
            assert!(text.starts_with(&*path.to_string_lossy()) && text.contains(why), "{text}");
        }
    }

    #[test]
    fn a_secret_from_outside_is_in_no_fault_and_no_debug_output() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f.yaml");
        let auth = "upstreams: {x.io: {auth: {username: u, password: \"${PW}\"}}}\n";
        let pw = || env(&[("PW", "hunter2")]);
        std::fs::write(&path, auth).unwrap();
        let loaded = Config::load(Some(&path), pw(), &Overrides::default()).unwrap();
        assert!(!format!("{loaded:?}").contains("hunter2"));
        std::fs::write(&path, format!("{auth}admin: x")).unwrap();
        let faults = Config::load(Some(&path), pw(), &Overrides::default()).unwrap_err();
        assert!(!format!("{faults} {faults:?}").contains("hunter2"));
    }

    #[test]
    fn a_guard_with_nothing_behind_it_is_a_fault_and_an_empty_file_says_so() {
        for text in [
            "clients:",
            "clients: ~",
            "upstreams: {a.io: {allow: }}",
            "upstreams: {a.io: {deny: }}",
        ] {
            let faults = Config::parse("f", text).unwrap_err();
            assert!(faults.to_string().contains("nothing stands"), "{text}: {faults}");
        }
        for (text, nothing) in [("", true), ("# a: b\n---\n", true), ("log: {}", false)] {
            assert_eq!(Config::parse("f", text).unwrap().says_nothing, nothing, "{text:?}");
        }
    }

    #[test]
    fn a_hostile_file_is_refused_in_good_time() {
        let bytes = usize::try_from(FILE_BYTES_MAX).unwrap();
        let upstreams = |text: &str| {
            (0..4000).map(|n| format!("  h{n}.io: {text}")).collect::<Vec<_>>().join("\n")
        };
        for text in [
            "a: b\n".repeat(bytes / 5),
            format!("listen: [{}]", "127.0.0.1:1,".repeat(bytes / 12)),
            format!("upstreams:\n{}", upstreams("{tag_tl: 5}")),
            format!("upstreams:\n{}", upstreams("{Tag_ttl: , tag_ttl: }")),
            format!("upstreams:\n{}", upstreams("{allow: ['']}")),
        ] {
            let faults = Config::parse("f", &text).unwrap_err();
            assert!(faults.len() <= FAULTS_MAX + 1, "{}", faults.len());
        }
        assert!(
            Config::parse("f", &format!("upstreams:\n{}", upstreams("{tag_ttl: , proxy: }")))
                .is_ok()
        );
    }
}
