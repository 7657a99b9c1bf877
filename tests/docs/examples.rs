//! Every example in the pages is good: configurations by the program's own `check`, and what is for others by its
//! grammar.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use tempfile::TempDir;

use crate::page::{self, Page};

/// Folders of files that configurations name. The files are made here, each of the kind that its name says.
const FOLDERS: [&str; 2] = ["/etc/pierhead/", "/run/secrets/"];

/// Runs `check` on a configuration, with the files and variables that it names.
fn check(place: &str, yaml: &str) {
    let folder = TempDir::with_prefix("pierhead-docs-").unwrap();
    let mut text = yaml.to_owned();
    for original in FOLDERS {
        let here = format!("{}{original}", folder.path().display());
        for (at, _) in text.match_indices(original) {
            let rest = &text[at + original.len()..];
            let end = rest.find(|c: char| c.is_whitespace() || ",}]\"'".contains(c));
            make(Path::new(&format!("{here}{}", &rest[..end.unwrap_or(rest.len())])));
        }
        text = text.replace(original, &here);
    }
    let file = folder.path().join("pierhead.yaml");
    fs::write(&file, &text).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_pierhead"));
    command.env_clear().arg("check").arg("--config").arg(&file).envs(variables(yaml));
    let told = command.output().unwrap();
    let said = String::from_utf8_lossy(&told.stderr);
    assert!(told.status.success(), "{place} is refused:\n{said}");
    assert!(said.is_empty(), "{place} is warned of:\n{said}");
}

/// A file such as its name promises.
fn make(path: &Path) {
    let name = path.file_name().unwrap().to_str().unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let content = match (name, name.rsplit('.').next().unwrap_or_default()) {
        ("htpasswd", _) => format!("ci:{}\n", bcrypt::hash("x", 4).unwrap()),
        ("jwks.json", _) => jwks(&key),
        ("service-account.json", _) => r#"{"private_key": ""}"#.to_owned(),
        (_, "crt" | "pem" | "key") => {
            // One pair for all: a certificate and its key may be made in any order.
            let pair = path.with_file_name("pair.pem");
            if !pair.exists() {
                let made = rcgen::CertificateParams::new(["mirror.example.com".to_owned()]);
                let made = made.unwrap().self_signed(&key).unwrap();
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(&pair, format!("{}{}", made.pem(), key.serialize_pem())).unwrap();
            }
            fs::read_to_string(pair).unwrap()
        }
        _ => "a-secret-of-a-fitting-length\n".to_owned(),
    };
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

/// A set with one key.
fn jwks(key: &rcgen::KeyPair) -> String {
    let point = key.public_key_raw();
    let half = |from: usize| URL_SAFE_NO_PAD.encode(&point[from..from + 32]);
    format!(r#"{{"keys":[{{"kty":"EC","crv":"P-256","x":"{}","y":"{}"}}]}}"#, half(1), half(33))
}

/// What `${NAME}` stands for.
fn variables(yaml: &str) -> BTreeMap<String, String> {
    let names = yaml.split("${").skip(1).filter_map(|rest| rest.split(['}', ':']).next());
    names
        .map(|name| (name.to_owned(), format!("{name}-0123456789abcdefghijklmnopqrstuvwxyz")))
        .collect()
}

/// What the chart is given: known values, and in them a configuration.
fn values(place: &str, yaml: &str) {
    let values: serde_json::Value =
        serde_yaml::from_str(yaml).unwrap_or_else(|e| panic!("{place}: {e}"));
    let schema =
        fs::read_to_string(page::root().join("charts/pierhead/values.schema.json")).unwrap();
    let schema: serde_json::Value = serde_json::from_str(&schema).unwrap();
    let map = values.as_object().unwrap_or_else(|| panic!("{place} is no map"));
    for key in map.keys() {
        assert!(!schema["properties"][key].is_null(), "{place}: the chart has no value `{key}`");
    }
    if let Some(config) = map.get("config") {
        check(place, &serde_json::to_string(config).unwrap());
    }
}

fn example(page: &Page, place: &str, tag: &str, text: &str, counts: &mut BTreeMap<String, usize>) {
    *counts.entry(tag.to_owned()).or_default() += 1;
    match tag {
        // What the chart's page shows of YAML are values.
        "yaml" if page.name().starts_with("charts/") => values(place, text),
        "yaml" => check(place, text),
        "yaml,values" => values(place, text),
        "yaml,k3s" | "yaml,kubernetes" | "yaml,prometheus" => {
            let read = serde_yaml::from_str::<serde_yaml::Value>(text);
            read.unwrap_or_else(|e| panic!("{place}: {e}"));
        }
        "json" => {
            serde_json::from_str::<serde_json::Value>(text)
                .unwrap_or_else(|e| panic!("{place}: {e}"));
        }
        "toml" => {
            text.parse::<toml_edit::Document<String>>().unwrap_or_else(|e| panic!("{place}: {e}"));
        }
        "" | "console" | "sh" | "text" | "ini" => {}
        other => panic!("{place}: a block of `{other}`, which nothing here looks at"),
    }
}

#[test]
fn every_example_is_good() {
    let mut counts = BTreeMap::new();
    for page in page::all() {
        for block in page.blocks() {
            let place = format!("{}:{}", page.name(), block.line);
            example(&page, &place, &block.tag, &block.text, &mut counts);
        }
    }
    let told = counts.iter().fold(String::new(), |mut told, (tag, count)| {
        let _ = write!(told, "{tag}: {count}; "); // a String takes all
        told
    });
    assert!(counts["yaml"] > 30 && counts["toml"] > 5 && counts["json"] > 2, "{told}");
}

#[test]
#[should_panic(expected = "unknown key `tag_tll`")]
fn a_faulty_example_is_noticed() {
    check("here", "upstreams: {docker.io: {tag_tll: 5m}}");
}
