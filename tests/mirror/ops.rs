//! What an operator asks and tells a running mirror, by the admin API and by the command line.

use std::process::Output;

use hyper::Method;
use serde_json::{Value, json};

use crate::support::client::{Answer, Ask, raw};
use crate::support::image::{self, Image};
use crate::support::mirror::{Mirror, NAME, before, run};
use crate::support::record::On;
use crate::support::upstream::Upstream;

async fn post(mirror: &Mirror, path: &str, order: &Value) -> Answer {
    Ask::new(mirror.admin_address(), Method::POST, path)
        .header("content-type", "application/json")
        .body(order.to_string())
        .answer()
        .await
}

/// Runs a command against the mirror.
async fn tell(mirror: &Mirror, arguments: &[&str]) -> Output {
    let address = mirror.admin_address().to_string();
    run(&[arguments, &["--admin", &address]].concat()).await
}

/// As `tell`, for a command that must end well and print JSON.
async fn told(mirror: &Mirror, arguments: &[&str]) -> Value {
    let output = tell(mirror, &[arguments, &["--json"]].concat()).await;
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{arguments:?}: {error} in {text}"))
}

async fn refused(mirror: &Mirror, arguments: &[&str]) -> String {
    let output = tell(mirror, arguments).await;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {output:?}");
    assert_eq!(said.trim_end().lines().count(), 1, "one sentence: {said}");
    said
}

struct Scene {
    upstream: Upstream,
    mirror: Mirror,
    first: Image,
    second: Image,
}

impl Scene {
    /// Two images of one repository, pulled.
    async fn new(options: &str) -> Self {
        let upstream = Upstream::start().await;
        let first = image::oci(1).layers(&[200_000, 3000]).build();
        let second = image::oci(2).layers(&[150_000, 4000]).build();
        upstream.push("team/app", "v1", &first);
        upstream.push("team/app", "v2", &second);
        let mirror = before(&upstream).cache(options).with("tag_ttl: 1h").start().await;
        mirror.pull("team/app", "v1", &first).await;
        mirror.pull("team/app", "v2", &second).await;
        mirror.until_kept(8).await;
        Self { upstream, mirror, first, second }
    }

    fn keeps(&self, image: &Image) -> usize {
        let all = image.blobs().chain([&image.manifest]);
        all.filter(|content| self.mirror.keeps(&content.digest)).count()
    }
}

#[tokio::test]
async fn status_tells_sizes_bounds_and_hit_ratios() {
    let scene = Scene::new("max_size: 1GB").await;
    scene.mirror.pull("team/app", "v1", &scene.first).await;
    let status = told(&scene.mirror, &["status"]).await;
    let cache = &status["cache"];
    assert_eq!((&cache["objects"], &cache["max_bytes"]), (&json!(8), &json!(1_000_000_000)));
    assert_eq!(cache["biggest"]["digest"], json!(scene.first.layers[0].digest));
    assert_eq!(cache["biggest"]["bytes"], 200_000);
    assert_eq!((&cache["ready"], &cache["writable"]), (&json!(true), &json!(true)));
    // Twice five requests, and five hits.
    let ratio = status["requests"]["hit_ratio"].as_f64().unwrap();
    assert!((0.2..0.6).contains(&ratio), "{status}");
    assert!(status["requests"]["hit_byte_ratio"].as_f64().unwrap() > 0.2, "{status}");
    assert!(status["upstreams"][NAME]["requests"].as_u64().unwrap() > 10, "{status}");
    let text = tell(&scene.mirror, &["status"]).await;
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    for word in ["held", "8 objects", "hits", NAME, &scene.first.layers[0].digest] {
        assert!(text.contains(word), "{word}: {text}");
    }
}

#[tokio::test]
async fn ls_lists_repositories_tags_and_objects_in_bounded_pages() {
    let scene = Scene::new("max_size: 1GB").await;
    let other = image::oci(3).build();
    scene.upstream.push("a", "x", &other);
    scene.mirror.pull("a", "x", &other).await;
    scene.mirror.until_kept(12).await;
    let rows = told(&scene.mirror, &["ls"]).await;
    let names: Vec<_> = rows.as_array().unwrap().iter().map(|r| r["name"].clone()).collect();
    assert_eq!(names, [json!(format!("{NAME}/a")), json!(format!("{NAME}/team/app"))]);
    assert_eq!((&rows[1]["tags"], &rows[1]["objects"]), (&json!(2), &json!(8)));
    let page = scene.mirror.admin("/api/repositories?n=1").answer().await.json();
    assert_eq!((&page["next"], page["repositories"].as_array().unwrap().len()), (&names[0], 1));
    let rest = format!("/api/repositories?n=1&after={NAME}/a");
    let rest = scene.mirror.admin(&rest).answer().await.json();
    assert_eq!((&rest["next"], &rest["repositories"][0]["name"]), (&Value::Null, &names[1]));
    let tags = told(&scene.mirror, &["ls", "team/app"]).await;
    assert_eq!(tags[0]["tag"], "v1");
    assert_eq!((&tags[0]["objects"], &tags[0]["objects_held"]), (&json!(4), &json!(4)));
    assert_eq!(tags[1]["digest"], json!(scene.second.manifest.digest));
    let objects = told(&scene.mirror, &["ls", "--objects", "biggest", "-n", "2"]).await;
    let sizes: Vec<_> = objects.as_array().unwrap().iter().map(|o| o["bytes"].clone()).collect();
    assert_eq!(sizes, [200_000, 150_000]);
    assert!(refused(&scene.mirror, &["ls", "--objects", "best"]).await.contains("biggest"));
}

/// distribution: what leaves one repository leaves no other that has it, too.
#[tokio::test]
async fn distribution_2367_purge_lets_an_image_leave_and_nothing_that_others_need() {
    let scene = Scene::new("max_size: 1GB").await;
    scene.upstream.push("copy", "v2", &scene.second);
    scene.mirror.pull("copy", "v2", &scene.second).await;
    let purged = told(&scene.mirror, &["purge", "team/app:v1"]).await;
    assert_eq!((&purged["objects"], scene.keeps(&scene.first)), (&json!(4), 0), "{purged}");
    assert_eq!(scene.keeps(&scene.second), 4);
    let path = format!("/v2/team/app/manifests/{}", scene.second.manifest.digest);
    for _ in 0..20 {
        assert!(scene.mirror.get(&path).answer().await.cache().starts_with("pierhead; hit"));
    }
    let purged = told(&scene.mirror, &["purge", "--repository", "team/app"]).await;
    assert_eq!((&purged["objects"], &purged["shared"]), (&json!(0), &json!(4)), "{purged}");
    // Answers that were ready went at once, though the content stays.
    let asked = scene.upstream.count(&On::any("/team/app/"));
    assert_eq!(scene.mirror.get(&path).answer().await.status, 200);
    assert!(scene.upstream.count(&On::any("/team/app/")) > asked);
    let words = scene.mirror.pull("copy", "v2", &scene.second).await;
    assert!(words.iter().all(|word| word.starts_with("pierhead; hit")), "{words:?}");
    let layer = &scene.second.layers[0];
    let purged = told(&scene.mirror, &["purge", "--digest", &layer.digest]).await;
    assert_eq!((&purged["objects"], &purged["bytes"]), (&json!(1), &json!(150_000)));
    let purged = told(&scene.mirror, &["purge", "--upstream", NAME]).await;
    assert_eq!((&purged["objects"], scene.mirror.check_store()), (&json!(3), 0), "{purged}");
    // All of it can be pulled again.
    scene.mirror.pull("team/app", "v1", &scene.first).await;
    let asked = scene.upstream.count(&On::get("/blobs/"));
    scene.mirror.pull("team/app", "v1", &scene.first).await;
    assert_eq!(scene.upstream.count(&On::get("/blobs/")), asked);
}

#[tokio::test]
async fn pins_hold_through_pressure_and_restarts_and_unpin_lets_go() {
    let mut scene = Scene::new("max_size: 2MB").await;
    let pinned = told(&scene.mirror, &["pin", "team/app:v1"]).await;
    assert_eq!((&pinned["objects"], &pinned["objects_held"]), (&json!(4), &json!(4)), "{pinned}");
    scene.mirror.kill().await;
    scene.mirror.start().await;
    for n in 0..12 {
        let blob = scene.upstream.blob("team/app", 100 + n, 400_000);
        let path = format!("/v2/team/app/blobs/{}", blob.digest);
        assert!(scene.mirror.get(&path).answer().await.is(&blob.bytes));
    }
    assert_eq!(scene.keeps(&scene.first), 4, "pinned");
    assert!(scene.keeps(&scene.second) < 4, "not pinned");
    let kept = told(&scene.mirror, &["purge", "team/app:v1"]).await;
    assert_eq!((&kept["pinned"], scene.keeps(&scene.first)), (&json!(4), 4), "{kept}");
    let pins = told(&scene.mirror, &["pin"]).await;
    assert_eq!((&pins[0]["reference"], pins.as_array().unwrap().len()), (&json!("v1"), 1));
    told(&scene.mirror, &["unpin", "team/app:v1"]).await;
    assert_eq!(told(&scene.mirror, &["pin"]).await, json!([]));
    assert!(refused(&scene.mirror, &["unpin", "team/app:v1"]).await.contains("not pinned"));
    let said = refused(&scene.mirror, &["pin", "team/app:nothing"]).await;
    assert!(said.contains("not held") && said.contains("warm"), "{said}");
}

/// The whole room may be pinned: the rest passes through, and the bound holds.
#[tokio::test]
async fn pins_that_fill_the_cache_stop_nobody() {
    let scene = Scene::new("max_size: 400KB").await;
    for tag in ["team/app:v1", "team/app:v2"] {
        told(&scene.mirror, &["pin", tag]).await;
    }
    let blob = scene.upstream.blob("team/app", 100, 300_000);
    let path = format!("/v2/team/app/blobs/{}", blob.digest);
    for _ in 0..2 {
        assert!(scene.mirror.get(&path).answer().await.is(&blob.bytes));
    }
    assert_eq!((scene.keeps(&scene.first), scene.keeps(&scene.second)), (4, 4));
    assert!(scene.mirror.folder_bytes() <= 400_000);
}

#[tokio::test]
async fn verify_finds_rot_at_once_and_says_so_by_its_exit_code() {
    let scene = Scene::new("scrub_rate: 0").await;
    let clean = told(&scene.mirror, &["verify"]).await;
    assert_eq!((&clean["objects"], &clean["rotten"]), (&json!(8), &json!(0)), "{clean}");
    let file = scene.mirror.file_of("blobs", &scene.first.layers[1].digest);
    std::fs::write(file, vec![7; 3000]).unwrap();
    let said = refused(&scene.mirror, &["verify"]).await;
    assert!(said.contains("1 objects did not have their digest"), "{said}");
    assert!(!scene.mirror.keeps(&scene.first.layers[1].digest));
    // For a second the answer may still be ready in memory; then it is fetched again.
    while !scene.mirror.keeps(&scene.first.layers[1].digest) {
        scene.mirror.pull("team/app", "v1", &scene.first).await;
    }
    scene.mirror.until_kept(8).await;
    assert_eq!(told(&scene.mirror, &["verify"]).await["rotten"], 0);
}

#[tokio::test]
async fn warm_pulls_what_is_missing_and_asks_nobody_for_what_is_held() {
    let upstream = Upstream::start().await;
    let index = image::oci(5).index();
    upstream.push_index("team/multi", "v1", &index);
    let single = image::docker(9).layers(&[300_000]).build();
    upstream.push("team/app", "v1", &single);
    let mirror = before(&upstream).with("tag_ttl: 1h").start().await;
    let list = mirror.cache().join("../images.txt");
    std::fs::write(&list, "# wanted\nteam/app:v1  # the app\n\n").unwrap();
    let list = list.display().to_string();
    let rows =
        told(&mirror, &["warm", "team/multi:v1", "-f", &list, "--platform", "linux/arm64"]).await;
    assert_eq!((&rows[0]["objects"], &rows[0]["held"]), (&json!(5), &json!(0)), "{rows}");
    assert_eq!((&rows[1]["objects"], &rows[1]["held"]), (&json!(3), &json!(0)), "{rows}");
    mirror.until_kept(8).await;
    assert!(mirror.keeps(&index.images[1].layers[0].digest));
    assert!(!mirror.keeps(&index.images[0].layers[0].digest), "the other platform");
    let asked = upstream.count(&On::any(""));
    let rows = told(&mirror, &["warm", "team/app:v1"]).await;
    assert_eq!((&rows[0]["objects"], &rows[0]["held"]), (&json!(3), &json!(3)), "{rows}");
    assert_eq!(upstream.count(&On::any("")), asked, "{}", upstream.story());
    told(&mirror, &["warm", "team/multi:v1", "--platform", "all"]).await;
    mirror.until_kept(12).await;
    let output = tell(&mirror, &["warm", "team/app:none", "team/app:v1"]).await;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("1 of 2 images"), "{said}");
    let output = tell(&mirror, &["warm", "team/multi:v1", "--platform", "plan9/mips"]).await;
    assert!(String::from_utf8_lossy(&output.stderr).contains("--platform"), "{output:?}");
}

#[tokio::test]
async fn commands_without_a_mirror_say_so_in_one_sentence() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    drop(taken);
    for command in [&["status"][..], &["ls"], &["verify"], &["health"], &["warm", "a"]] {
        let output = run(&[command, &["--admin", &address]].concat()).await;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{command:?}: {said}");
        assert!(said.contains(&address) && said.contains("pierhead serve"), "{command:?}: {said}");
        assert_eq!(said.trim_end().lines().count(), 1, "{said}");
    }
}

#[tokio::test]
async fn health_waits_for_a_mirror_that_is_still_to_come() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    drop(taken);
    let url = format!("--url=http://{address}/v2/");
    let waiting = tokio::spawn(async move { run(&["health", &url, "--wait=25s"]).await });
    let upstream = Upstream::start().await;
    let _mirror = before(&upstream).listen(&address.to_string()).start().await;
    let waited = waiting.await.unwrap();
    assert!(waited.status.success(), "{waited:?}");
}

#[tokio::test]
async fn every_command_has_a_page_of_the_manual() {
    let folder = tempfile::tempdir().unwrap();
    let written = run(&["man", "--write", folder.path().to_str().unwrap()]).await;
    assert!(written.status.success(), "{written:?}");
    let pages = std::fs::read_dir(folder.path()).unwrap().count();
    assert!(pages > 20, "{pages} pages");
    let page = run(&["man", "client"]).await;
    assert!(String::from_utf8_lossy(&page.stdout).contains("hosts.toml"), "{page:?}");
    assert_eq!(run(&["man", "nonsense"]).await.status.code(), Some(2));
}

#[tokio::test]
async fn health_is_an_exit_code() {
    let upstream = Upstream::start().await;
    let mirror = before(&upstream).start().await;
    assert!(tell(&mirror, &["health"]).await.status.success());
    let url = |path: &str| format!("--url=http://{}{path}", mirror.address());
    let good = run(&["health", &url("/v2/")]).await;
    assert!(good.status.success(), "{good:?}");
    let bad = run(&["health", &url("/nowhere"), "--wait=1s"]).await;
    let said = String::from_utf8_lossy(&bad.stderr).into_owned();
    assert!(bad.status.code() == Some(1) && said.contains("answers 404"), "{said}");
    let all = run(&["health", &url("/v2/"), "--all", "--settle=1s", "--wait=20s"]).await;
    assert!(all.status.success(), "{all:?}");
    let wrong = run(&["health", "--all"]).await;
    assert_eq!(wrong.status.code(), Some(2), "{wrong:?}");
}

#[tokio::test]
async fn what_changes_something_is_refused_to_pages_of_other_sites() {
    let scene = Scene::new("max_size: 1GB").await;
    let order = json!({"image": "team/app:v1"});
    let ask = || {
        Ask::new(scene.mirror.admin_address(), Method::POST, "/api/purge").body(order.to_string())
    };
    let json_ask = || ask().header("content-type", "application/json");
    for (what, ask) in [
        ("a form", ask().header("content-type", "application/x-www-form-urlencoded")),
        ("a form of plain text", ask().header("content-type", "text/plain")),
        ("nothing told", ask()),
        ("another site", json_ask().header("sec-fetch-site", "cross-site")),
        ("another origin", json_ask().header("origin", "http://evil.test")),
        (
            "a name that leads here",
            json_ask().header("origin", "http://evil.test").header("host", "evil.test"),
        ),
    ] {
        let answer = ask.answer().await;
        assert_eq!(answer.status, 403, "{what}: {answer:?}");
        assert!(answer.json()["error"].is_string(), "{what}");
    }
    let reading = scene.mirror.admin("/api/purge").answer().await;
    assert_eq!(reading.status, 404);
    assert_eq!((scene.keeps(&scene.first), scene.keeps(&scene.second)), (4, 4));
    let long = "x".repeat(100_000);
    let answer =
        post(&scene.mirror, "/api/purge", &json!({"image": "team/app:v1", "more": 1})).await;
    assert_eq!(answer.status, 400, "unknown keys are errors: {answer:?}");
    let answer = post(&scene.mirror, "/api/purge", &json!({})).await;
    assert_eq!(answer.status, 400, "{answer:?}");
    for image in ["Team/App", "team/app:", "team/app@sha256:1", "unknown.test/a:b", &long] {
        let path = format!("/api/image?image={image}");
        if path.len() < 1000 {
            let answer = scene.mirror.admin(&path).answer().await;
            assert!((400..500).contains(&answer.status), "{image}: {answer:?}");
        }
    }
    let own = format!("http://{}", scene.mirror.admin_address());
    let answer = json_ask().header("origin", &own).header("sec-fetch-site", "same-origin");
    assert_eq!(answer.answer().await.status, 200);
    assert_eq!(scene.keeps(&scene.first), 0);
}

/// Records of content that has left go, those that are young stay.
#[tokio::test]
async fn the_links_of_content_that_has_left_go() {
    use std::time::{Duration, SystemTime};
    let scene = Scene::new("max_size: 1GB").await;
    for image in [&scene.first, &scene.second] {
        let layer = &image.layers[0].digest;
        told(&scene.mirror, &["purge", "--digest", layer]).await;
    }
    let collected = async || post(&scene.mirror, "/api/collect", &json!({})).await.json();
    assert_eq!(collected().await["records"], 0, "all links are young");
    let hex = &scene.first.layers[0].digest["sha256:".len()..];
    let links = scene.mirror.cache().join("repos").join(NAME).join("team/app/_links/sha256");
    let old = SystemTime::now() - Duration::from_secs(7200);
    let file = std::fs::File::options().write(true).open(links.join(hex)).unwrap();
    file.set_modified(old).unwrap();
    assert_eq!(collected().await["records"], 1);
    assert!(!links.join(hex).exists());
    scene.mirror.pull("team/app", "v1", &scene.first).await;
}

/// A page whose name leads here comes from this machine, too (DNS rebinding).
#[tokio::test]
async fn without_a_token_the_api_answers_no_name_of_anybody() {
    let mirror = before(&Upstream::start().await).start().await;
    let ask = |host: &str| {
        format!("GET /api/status HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")
    };
    for (host, status) in [
        ("evil.test", 403),
        ("127.0.0.1.evil.test:5001", 403),
        ("localhost", 200),
        ("127.0.0.1:5001", 200),
    ] {
        let answer = raw(mirror.admin_address(), ask(host).as_bytes()).await.expect("an answer");
        assert_eq!(answer.status, status, "{host}");
    }
}
