//! What the book says of the running program: its metrics, and what may be done with its folder.

use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;

use crate::support::image::{self, Image};
use crate::support::mirror::{Mirror, NAME, Setup, before};
use crate::support::registry::Limit;
use crate::support::upstream::Upstream;

/// Names with their type and labels.
type Told = BTreeMap<String, (String, Vec<String>)>;

/// The table of the page: `| `name` | type | `label`, `label` | meaning |`.
fn in_the_page() -> Told {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/src/metrics.md");
    let text = std::fs::read_to_string(path).expect("the page of metrics");
    let row = |line: &str| {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let [_, name, kind, labels, meaning, ..] = cells[..] else { return None };
        let known = ["counter", "gauge", "histogram"].contains(&kind) && !meaning.is_empty();
        let mut labels: Vec<_> =
            labels.split(", ").map(|label| label.trim_matches('`').to_owned()).collect();
        labels.retain(|label| !label.is_empty());
        labels.sort();
        known.then(|| (name.trim_matches('`').to_owned(), (kind.to_owned(), labels)))
    };
    text.lines().filter_map(row).collect()
}

/// What Prometheus reads.
fn exposed(text: &str) -> Told {
    let mut told = Told::new();
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    for (name, kind) in types {
        let series = text.lines().find(|line| {
            line.strip_prefix(name)
                .is_some_and(|rest| rest.starts_with(['{', ' ']) || rest.starts_with("_bucket"))
        });
        let (_, rest) = series.and_then(|line| line.split_once('{')).unwrap_or_default();
        let labels = rest.split("\",").filter_map(|label| label.split_once('='));
        let mut labels: Vec<_> = labels.map(|(name, _)| name.to_owned()).collect();
        labels.retain(|label| label != "le");
        labels.sort();
        told.insert(name.to_owned(), (kind.to_owned(), labels));
    }
    told
}

/// A pull touches all there are: of what has labels, nothing is exposed before its first event.
#[tokio::test]
async fn the_page_of_metrics_says_what_is_exposed() {
    let upstream = Upstream::start().await;
    let image = image::oci(1).build();
    upstream.push("team/app", "v1", &image);
    upstream.set(|registry| registry.limit = Some(Limit::of(100)));
    let mirror = before(&upstream)
        .raw("clients:\n  rules:\n    - {users: [anonymous], actions: [pull], repositories: [\"registry.test/team/**\"]}")
        .start()
        .await;
    mirror.pull("team/app", "v1", &image).await;
    assert_eq!(mirror.get("/v2/secret/app/tags/list").answer().await.status, 401);
    let text: Bytes = mirror.admin("/metrics").answer().await.body;
    assert_eq!(in_the_page(), exposed(&String::from_utf8_lossy(&text)));
}

/// Copies a folder as `cp -r` does: nothing but names and bytes.
fn carry(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("the temporary folder takes a folder");
    for entry in std::fs::read_dir(from).expect("a folder") {
        let entry = entry.expect("an entry");
        let path = to.join(entry.file_name());
        if entry.path().is_dir() {
            carry(&entry.path(), &path);
        } else {
            std::fs::copy(entry.path(), path).expect("the temporary folder takes a file");
        }
    }
}

/// A cache that was filled with this image as `v1` where there is a line, and its mirror stopped.
async fn filled(image: &Image) -> Mirror {
    let upstream = Upstream::start().await;
    upstream.push("team/app", "v1", image);
    let mut outside = before(&upstream).start().await;
    outside.pull("team/app", "v1", image).await;
    outside.until_kept(1 + image.blobs().count()).await;
    assert!(outside.stop().await.success());
    outside
}

/// As the page on air gaps has it: the folder is filled where there is a line and served where there is none, and a
/// second delivery goes on top of the first.
#[tokio::test]
async fn a_carried_cache_is_served_without_a_line() {
    let (first, second) = (image::oci(1).build(), image::oci(2).build());
    let inside = Setup::new()
        .endpoints(NAME, &["http://127.0.0.1:9"])
        .with("tag_ttl: 3650d\nconnect_timeout: 1s");
    carry(&filled(&first).await.cache(), &inside.cache_folder());
    let mut inside = inside.start().await;
    let words = inside.pull("team/app", "v1", &first).await;
    assert!(words.iter().all(|word| word == "pierhead; hit"), "{words:?}");
    inside.get("/v2/team/app/manifests/v2").answer().await.assert_error(503, "UNAVAILABLE");

    assert!(inside.stop().await.success());
    carry(&filled(&second).await.cache(), &inside.cache());
    inside.start().await;
    let words = inside.pull("team/app", "v1", &second).await;
    assert!(words.iter().all(|word| word == "pierhead; hit"), "{words:?}");
}
