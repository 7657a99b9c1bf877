//! Starting, stopping, being killed, and what the admin address tells.

use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::fault::{Fault, Gate};
use crate::support::image::{self, Content};
use crate::support::mirror::{before, run};
use crate::support::record::On;
use crate::support::soon;
use crate::support::upstream::Upstream;

const MIB: usize = 1024 * 1024;

fn blobs() -> On {
    On::get("/blobs/")
}

fn path(blob: &Content) -> String {
    format!("/v2/team/app/blobs/{}", blob.digest)
}

#[tokio::test]
async fn sigterm_lets_transfers_under_way_end_and_then_ends_well() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let upstream = Upstream::start().await;
        let blob = upstream.blob("team/app", 1, 2 * MIB);
        let gate = Gate::closed();
        upstream.always(blobs(), Fault::HoldAfter(MIB as u64, gate.clone()));
        let mut mirror = before(&upstream).start().await;
        let address = mirror.address();
        let mut reading = mirror.get(&path(&blob)).open().await;
        let first = reading.at_least(1000).await;
        mirror.signal(signal);
        let refused = async {
            while TcpStream::connect(address).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        soon("new connections to be refused", refused).await;
        gate.open();
        let rest = reading.rest().await;
        assert!(rest.whole && [first, rest.body].concat() == blob.bytes);
        assert_eq!(mirror.ended().await.code(), Some(0), "{signal}");
        assert!(mirror.keeps(&blob.digest));
    }
}

/// dockerd and containerd keep connections open that they do not use.
#[tokio::test]
async fn connections_without_a_request_do_not_hold_up_the_end() {
    let upstream = Upstream::start().await;
    upstream.push("team/app", "v1", &image::oci(1).build());
    let mut mirror = before(&upstream).raw("server: {drain_timeout: 10m}").start().await;
    let silent = TcpStream::connect(mirror.address()).await.unwrap();
    let mut idle = TcpStream::connect(mirror.address()).await.unwrap();
    idle.write_all(b"GET /v2/ HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    assert!(idle.read(&mut [0; 1000]).await.unwrap() > 0);
    assert_eq!(mirror.stop().await.code(), Some(0));
    drop((silent, idle));
}

#[tokio::test]
async fn a_transfer_that_outlasts_the_drain_timeout_is_cut_and_not_ended() {
    let upstream = Upstream::start().await;
    let blob = upstream.blob("team/app", 1, 2 * MIB);
    upstream.always(blobs(), Fault::StallAfter(MIB as u64));
    let mut mirror = before(&upstream).raw("server: {drain_timeout: 1s}").start().await;
    let mut reading = mirror.get(&path(&blob)).open().await;
    reading.at_least(1000).await;
    assert_eq!(mirror.stop().await.code(), Some(0));
    assert!(!reading.rest().await.whole);
}

#[tokio::test]
async fn the_admin_address_tells_health_and_metrics() {
    let upstream = Upstream::start().await;
    let mirror = before(&upstream).start().await;
    for path in ["/healthz", "/readyz"] {
        assert_eq!(mirror.admin(path).answer().await.status, 200, "{path}");
    }
    let metrics = mirror.admin("/metrics").answer().await;
    assert_eq!(metrics.status, 200);
    assert!(metrics.header("content-type").starts_with("text/plain"), "{metrics:?}");
    let text = String::from_utf8(metrics.body.to_vec()).unwrap();
    assert!(text.contains("# TYPE pierhead_"), "{text}");
    assert_eq!(mirror.admin("/v2/").answer().await.status, 404, "no registry on the admin address");
    assert_eq!(upstream.connections(), 0);
}

#[tokio::test]
async fn no_metric_names_a_repository_a_tag_or_a_digest() {
    let upstream = Upstream::start().await;
    let image = image::oci(1).build();
    upstream.push("secret-team/secret-app", "secret-tag", &image);
    let mirror = before(&upstream).start().await;
    mirror.pull("secret-team/secret-app", "secret-tag", &image).await;
    mirror.get("/v2/secret-team/missing/manifests/secret-tag").answer().await;
    let metrics = mirror.admin("/metrics").answer().await;
    let text = String::from_utf8(metrics.body.to_vec()).unwrap();
    assert!(!text.contains("secret"), "{text}");
    assert!(!text.contains(&image.manifest.digest["sha256:".len()..]), "{text}");
}

#[tokio::test]
async fn killed_in_the_middle_of_a_fill_it_starts_again_with_nothing_wrong() {
    let upstream = Upstream::start().await;
    let image = image::oci(1).build();
    upstream.push("team/app", "v1", &image);
    let blob = upstream.blob("team/app", 9, 8 * MIB);
    let mut mirror = before(&upstream).start().await;
    mirror.pull("team/app", "v1", &image).await;
    mirror.until_kept(4).await;
    for round in 1..4 {
        let gate = Gate::closed();
        upstream.behave();
        upstream.always(On::get(&blob.digest), Fault::HoldAfter(MIB as u64, gate.clone()));
        let mut reading = mirror.get(&path(&blob)).open().await;
        // What a start resumes may have less than that left to hold back.
        reading.at_least(100_000 * round).await;
        mirror.kill().await;
        assert!(!reading.rest().await.whole);
        assert!(!mirror.keeps(&blob.digest));
        mirror.start().await;
    }
    upstream.behave();
    assert!(mirror.get(&path(&blob)).answer().await.is(&blob.bytes));
    let words = mirror.pull("team/app", "v1", &image).await;
    assert!(words.iter().all(|word| word.starts_with("pierhead; hit")), "{words:?}");
    mirror.until_kept(5).await;
}

#[tokio::test]
async fn a_fill_cut_by_kill_9_goes_on_where_it_stood() {
    let upstream = Upstream::start().await;
    let blob = upstream.blob("team/app", 1, 8 * MIB);
    upstream.next(1, blobs(), [Fault::HoldAfter(6 * MIB as u64, Gate::closed())]);
    let mut mirror = before(&upstream).start().await;
    let mut reading = mirror.get(&path(&blob)).open().await;
    reading.at_least(5 * MIB as u64).await;
    mirror.kill().await;
    mirror.start().await;
    assert!(mirror.get(&path(&blob)).answer().await.is(&blob.bytes));
    let sent = upstream.sent(&blobs());
    assert!(sent < 12 * MIB as u64, "{sent} bytes for 8 MiB\n{}", upstream.story());
}

#[tokio::test]
async fn what_is_kept_survives_kill_9() {
    let upstream = Upstream::start().await;
    let image = image::oci(1).build();
    upstream.push("team/app", "v1", &image);
    let mut mirror = before(&upstream).with("connect_timeout: 1s").start().await;
    mirror.pull("team/app", "v1", &image).await;
    mirror.until_kept(4).await;
    mirror.kill().await;
    upstream.stop().await;
    mirror.start().await;
    mirror.pull("team/app", "v1", &image).await;
}

/// Rotten bits, or somebody's editor.
#[tokio::test]
async fn a_file_that_was_shortened_on_disk_makes_no_wrong_answer() {
    let upstream = Upstream::start().await;
    let blob = upstream.blob("team/app", 1, MIB);
    let mut mirror = before(&upstream).start().await;
    assert!(mirror.get(&path(&blob)).answer().await.is(&blob.bytes));
    mirror.stop().await;
    let hex = &blob.digest["sha256:".len()..];
    let file = mirror.cache().join("blobs/sha256").join(&hex[..2]).join(hex);
    let handle = std::fs::OpenOptions::new().write(true).open(&file).unwrap();
    handle.set_len(1000).unwrap();
    drop(handle);
    mirror.start().await;
    let answer = mirror.get(&path(&blob)).answer().await;
    assert!(!answer.deceives(&blob.bytes), "{} {:?}", answer.status, answer.headers);
}

struct Start {
    folder: tempfile::TempDir,
}

impl Start {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().expect("a temporary folder") }
    }

    fn cache(&self) -> String {
        self.folder.path().join("cache").display().to_string()
    }

    /// Runs `serve` with this configuration to its end: exit code and what it said.
    async fn serve(&self, yaml: &str) -> (Option<i32>, String) {
        let file = self.folder.path().join("pierhead.yaml");
        std::fs::write(&file, yaml).expect("the temporary folder takes a file");
        let output = run(&["serve", "--config", &file.display().to_string()]).await;
        (output.status.code(), String::from_utf8(output.stderr).expect("text for people"))
    }

    /// As [`Start::serve`] with this cache folder: exit code 1 and one sentence.
    async fn fails_in_one_sentence(&self, cache: &str) -> String {
        let yaml = format!("listen: 127.0.0.1:0\nadmin: 127.0.0.1:0\ncache: {{path: {cache}}}\n");
        let (code, said) = self.serve(&yaml).await;
        assert_eq!(code, Some(1), "{said}");
        assert_eq!(said.trim_end().lines().count(), 1, "one sentence: {said}");
        assert!(said.contains(cache), "says where: {said}");
        assert!(!said.contains("panicked"), "{said}");
        said
    }
}

/// Root may write everywhere, hence a folder that nobody can make.
#[tokio::test]
async fn a_cache_folder_that_cannot_be_written_is_told_in_one_sentence() {
    let start = Start::new();
    std::fs::write(start.folder.path().join("file"), "").unwrap();
    let below_a_file = start.folder.path().join("file/cache").display().to_string();
    start.fails_in_one_sentence(&below_a_file).await;
    start.fails_in_one_sentence("/proc/pierhead").await;
    let file = start.folder.path().join("file").display().to_string();
    start.fails_in_one_sentence(&file).await;
}

#[tokio::test]
async fn a_cache_folder_of_a_newer_format_is_left_alone() {
    let start = Start::new();
    std::fs::create_dir(start.cache()).unwrap();
    std::fs::write(format!("{}/format", start.cache()), "2").unwrap();
    let said = start.fails_in_one_sentence(&start.cache()).await;
    assert!(said.contains("format"), "{said}");
    let left: Vec<_> = std::fs::read_dir(start.cache()).unwrap().collect();
    assert_eq!(left.len(), 1, "{left:?}");
    assert_eq!(std::fs::read_to_string(format!("{}/format", start.cache())).unwrap(), "2");
}

#[tokio::test]
async fn an_address_in_use_is_told_in_one_sentence() {
    let start = Start::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    for (listen, admin) in [
        (address.to_string(), "127.0.0.1:0".to_owned()),
        ("127.0.0.1:0".to_owned(), address.to_string()),
    ] {
        let yaml =
            format!("listen: {listen}\nadmin: {admin}\ncache: {{path: {}}}\n", start.cache());
        let (code, said) = start.serve(&yaml).await;
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains(&address.to_string()) && !said.contains("panicked"), "{said}");
    }
}

#[tokio::test]
async fn a_wrong_configuration_is_told_with_line_and_column() {
    let start = Start::new();
    let cache = format!("cache:\n  path: {}\n", start.cache());
    let cases = [
        (format!("{cache}listne: 127.0.0.1:0\n"), ":3:1"),
        (format!("{cache}upstreams:\n  docker.io:\n    tag_tll: 60s\n"), ":5:5"),
        (format!("{cache}upstreams:\n  docker.io:\n    tag_ttl: soon\n"), ":5:14"),
        (format!("{cache}listen: nowhere\n"), ":3:9"),
        (format!("{cache}default_upstream: unknown.test\n"), ":3:"),
        (format!("{cache}listen: [127.0.0.1:0\n"), ":"),
        ("cache:\n  path: x\n  max_size: many\n".to_owned(), ":3:13"),
    ];
    for (yaml, place) in cases {
        let (code, said) = start.serve(&yaml).await;
        assert_eq!(code, Some(64), "{yaml}\n{said}");
        assert!(said.contains(&format!("pierhead.yaml{place}")), "{yaml}\n{said}");
    }
    assert!(!std::path::Path::new(&start.cache()).exists(), "nothing was begun");
}

#[tokio::test]
async fn every_fault_of_a_configuration_is_told_at_once() {
    let start = Start::new();
    let yaml = "listne: x\nupstreams:\n  docker.io:\n    tag_tll: 60s\ncache:\n  max_size: many\n";
    let (code, said) = start.serve(yaml).await;
    assert_eq!(code, Some(64), "{said}");
    for place in [":1:1", ":4:5", ":6:13"] {
        assert!(said.contains(&format!("pierhead.yaml{place}")), "{place}:\n{said}");
    }
    assert!(said.contains("listen"), "a remedy for listne: {said}");
}

#[tokio::test]
async fn a_configuration_that_is_not_there_and_a_wrong_option_are_told_apart() {
    let output = run(&["serve", "--config", "/nowhere/pierhead.yaml"]).await;
    assert_eq!(output.status.code(), Some(64), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("/nowhere/pierhead.yaml"));
    let output = run(&["serve", "--no-such-option"]).await;
    assert_eq!(output.status.code(), Some(2), "{output:?}");
}
