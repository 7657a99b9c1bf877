//! SIGHUP: everything that can change without a restart does, all of it or nothing, and whoever is
//! served meanwhile notices nothing.

use std::time::Duration;

use hyper::Method;
use tokio::net::TcpStream;

use crate::support::client::{Ask, Lasting};
use crate::support::fault::{Fault, Gate};
use crate::support::image::{self, Content};
use crate::support::mirror::{NAME, Setup, before, until};
use crate::support::record::On;
use crate::support::secure::Authority;
use crate::support::soon;
use crate::support::upstream::Upstream;

fn path(blob: &Content) -> String {
    format!("/v2/team/app/blobs/{}", blob.digest)
}

/// Adds a line to the one upstream of a configuration.
fn upstream_with(line: &str) -> impl FnOnce(String) -> String {
    move |text| text.replace(&format!("  {NAME}:\n"), &format!("  {NAME}:\n    {line}\n"))
}

#[tokio::test]
async fn a_right_that_is_taken_away_is_gone_for_the_next_request_on_the_same_connection() {
    let upstream = Upstream::start().await;
    let blob = upstream.blob("team/app", 1, 1000);
    let mirror = before(&upstream).start().await;
    let mut client = Lasting::connect(mirror.address()).await;
    for _ in 0..20 {
        // Till there is an answer that is ready to be sent again.
        assert_eq!(client.get(&path(&blob)).await, Ok((200, blob.bytes.clone())));
    }
    assert!(mirror.reload(upstream_with("deny: ['team/**']")).await);
    assert_eq!(client.get(&path(&blob)).await.unwrap().0, 403);
    assert!(mirror.log().contains("upstreams.registry.test.deny"), "{}", mirror.log());
    assert!(mirror.reload(|text| text.replace("    deny: ['team/**']\n", "")).await);
    assert_eq!(client.get(&path(&blob)).await, Ok((200, blob.bytes.clone())));
    assert_eq!(upstream.count(&On::any("/blobs/")), 1, "what was held is held");
}

#[tokio::test]
async fn a_broken_file_leaves_everything_as_it_was_and_is_told_with_line_and_column() {
    let upstream = Upstream::start().await;
    let blob = upstream.blob("team/app", 1, 1000);
    let mirror = before(&upstream).start().await;
    let good = async || mirror.metric("pierhead_config_last_reload_successful", &[]).await;
    let since =
        async || mirror.metric("pierhead_config_last_reload_success_timestamp_seconds", &[]).await;
    let started = since().await;
    assert!(started > 1e9);
    assert!((good().await - 1.0).abs() < 0.1);
    let lines = mirror.folder().join("pierhead.yaml");
    let lines = std::fs::read_to_string(lines).unwrap().lines().count();
    // Half of it is good, and is not taken up either.
    let broken = "server: {header_timeout: soon}\nlog: {level: info}\nlimts: {}\n";
    let deny = upstream_with("deny: ['team/**']");
    assert!(!mirror.reload(|text| deny(text) + broken).await);
    for place in
        [format!("pierhead.yaml:{}:26", lines + 2), format!("pierhead.yaml:{}:1", lines + 4)]
    {
        soon(&place, async {
            while !mirror.log().contains(&place) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
    }
    assert!(good().await < 0.1);
    assert!((since().await - started).abs() < 0.1, "the time of the last good one");
    assert!(mirror.get(&path(&blob)).answer().await.is(&blob.bytes));
    assert!(mirror.reload(|text| text.replace(broken, "")).await);
    assert!((good().await - 1.0).abs() < 0.1);
    assert_eq!(mirror.get(&path(&blob)).answer().await.status, 403);
}

/// A full disk or an editor cuts it: what was closed must not be open.
#[tokio::test]
async fn an_empty_file_is_not_taken_up() {
    let upstream = Upstream::start().await;
    let blob = upstream.blob("team/app", 1, 1000);
    let mirror = before(&upstream).with("deny: ['secret/**']").start().await;
    assert!(!mirror.reload(|_| "# nothing\n".to_owned()).await);
    assert_eq!(mirror.get("/v2/secret/app/tags/list").answer().await.status, 403);
    assert!(mirror.get(&path(&blob)).answer().await.is(&blob.bytes));
}

#[tokio::test]
async fn what_takes_a_restart_is_named_and_the_rest_is_taken_up() {
    let upstream = Upstream::start().await;
    upstream.push("team/app", "v1", &image::oci(1).build());
    let mirror = before(&upstream).start().await;
    let cache = mirror.cache();
    let elsewhere = mirror.folder().join("elsewhere");
    let moved = |text: String| {
        text.replace(&cache.display().to_string(), &elsewhere.display().to_string())
            .replace("admin: 127.0.0.1:0", "admin: 127.0.0.1:1")
            + "server: {threads: 3, idle_timeout: 59s}\n"
    };
    assert!(mirror.reload(moved).await);
    mirror.until_said(1, "take a restart").await;
    let log = mirror.log();
    let line = |words: &str| log.lines().find(|line| line.contains(words)).unwrap_or_default();
    let restart = line("take a restart");
    assert!(restart.contains("admin cache.path server.threads"), "{log}");
    assert!(line("configuration reloaded").contains("\"server.idle_timeout\""), "{log}");
    assert!(!elsewhere.exists());
    assert_eq!(mirror.get("/v2/team/app/manifests/v1").answer().await.status, 200);
}

#[tokio::test]
async fn a_transfer_goes_on_with_the_upstream_that_a_reload_takes_away() {
    let (old, new) = (Upstream::start().await, Upstream::start().await);
    let blob = old.blob("team/app", 1, 2_000_000);
    let other = new.blob("team/app", 2, 1000);
    let gate = Gate::closed();
    old.always(On::get("/blobs/"), Fault::HoldAfter(1_000_000, gate.clone()));
    let mirror = before(&old).start().await;
    let mut reading = mirror.get(&path(&blob)).open().await;
    let first = reading.at_least(1000).await;
    assert!(mirror.reload(|text| text.replace(&old.url(), &new.url())).await);
    assert!(mirror.get(&path(&other)).answer().await.is(&other.bytes), "the new one is asked");
    let joined = tokio::spawn(mirror.get(&path(&blob)).answer());
    gate.open();
    let rest = reading.rest().await;
    assert!(rest.whole && [first, rest.body].concat() == blob.bytes);
    assert!(soon("the end", joined).await.unwrap().is(&blob.bytes), "and it is joined");
    assert_eq!(old.count(&On::get("/blobs/")), 1);
    mirror.until_kept(2).await;
}

#[tokio::test]
async fn an_upstream_that_has_not_changed_keeps_its_connections_and_one_can_come_and_go() {
    let (one, two) = (Upstream::start().await, Upstream::start().await);
    let blobs: Vec<_> = (0..4).map(|seed| one.blob("team/app", seed, 1000)).collect();
    let further = two.blob("team/app", 9, 1000);
    let mirror = before(&one).start().await;
    assert!(mirror.get(&path(&blobs[0])).answer().await.is(&blobs[0].bytes));
    let known = format!("{}?ns=two.test", path(&further));
    assert_eq!(mirror.get(&known).answer().await.status, 404);
    let added = format!("upstreams:\n  two.test: {{endpoints: ['{}']}}\n", two.url());
    assert!(mirror.reload(|text| text.replace("upstreams:\n", &added)).await);
    assert!(mirror.get(&known).answer().await.is(&further.bytes));
    assert!(mirror.reload(upstream_with("tag_ttl: 5s")).await);
    assert!(mirror.get(&path(&blobs[1])).answer().await.is(&blobs[1].bytes));
    assert_eq!(one.connections(), 1, "{}", one.story());
    assert!(mirror.reload(|text| text.replace(&added, "upstreams:\n")).await);
    assert_eq!(mirror.get(&known).answer().await.status, 404, "held, and nobody's any more");
}

#[tokio::test]
async fn bounds_limits_and_prefetch_change_while_it_runs() {
    let upstream = Upstream::start().await;
    let blobs: Vec<_> = (0..8).map(|seed| upstream.blob("team/app", seed, 1_000_000)).collect();
    let mirror = before(&upstream).raw("server: {max_connections_per_address: 50}").start().await;
    for blob in &blobs {
        assert!(mirror.get(&path(blob)).answer().await.is(&blob.bytes));
    }
    mirror.until_kept(8).await;
    let smaller = |text: String| {
        text.replace("min_free: 0%\n", "min_free: 0%\n  max_size: 3MiB\n  memory: 1MiB\n")
            .replace("_per_address: 50", "_per_address: 1, max_connections: 3")
    };
    assert!(mirror.reload(smaller).await);
    soon("what is too much to leave", async {
        while mirror.folder_bytes() > 3 << 20 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    let limit = mirror.metric("pierhead_cache_limit_bytes", &[]).await;
    assert!((limit - f64::from(3 << 20)).abs() < 0.5);
    let mut first = Lasting::connect(mirror.address()).await;
    assert_eq!(first.get("/v2/").await.unwrap().0, 200);
    let second = Ask::new(mirror.address(), Method::GET, "/v2/");
    assert_eq!(second.clone().status().await, None, "one connection is all that an address has");
    assert!(mirror.reload(|text| text.replace("_per_address: 1,", "_per_address: 9,")).await);
    assert_eq!(second.clone().status().await, Some(200));
    // Three places, and two silent connections beside the one that stays: then nobody comes in.
    let silent =
        [mirror.address(); 2].map(|address| std::net::TcpStream::connect(address).unwrap());
    until(
        "all places to be taken",
        || mirror.admin("/metrics"),
        |metrics| String::from_utf8_lossy(&metrics.body).contains("pierhead_connections 3\n"),
    )
    .await;
    let waiting = tokio::spawn(second.clone().status());
    assert!(mirror.reload(|text| text.replace("max_connections: 3", "max_connections: 4")).await);
    assert_eq!(soon("a place", waiting).await.unwrap(), Some(200));
    drop(silent);
}

#[tokio::test]
async fn users_rules_and_hosted_names_change_while_it_runs() {
    let upstream = Upstream::start().await;
    let blob = upstream.blob("team/app", 1, 1000);
    let mirror = before(&upstream).start().await;
    let mut client = Lasting::connect(mirror.address()).await;
    assert_eq!(client.get(&path(&blob)).await, Ok((200, blob.bytes.clone())));
    let push = || mirror.ask(Method::POST, "/v2/own/blobs/uploads/").status();
    assert_eq!(push().await, Some(405));
    assert!(mirror.reload(|text| text + "hosted: {repositories: [own]}\n").await);
    assert_eq!(push().await, Some(202));

    let hash = bcrypt::hash("secret", 4).unwrap();
    std::fs::write(mirror.folder().join("htpasswd"), format!("ci:{hash}\n")).unwrap();
    let file = mirror.folder().join("htpasswd");
    let clients = format!(
        "clients: {{htpasswd: {}, rules: [{{users: [ci], actions: [pull], repositories: ['**']}}]}}\n",
        file.display()
    );
    assert!(mirror.reload(|text| text + &clients).await);
    assert_eq!(client.get(&path(&blob)).await.unwrap().0, 401);
    assert_eq!(push().await, Some(401));
    let basic = "Basic Y2k6c2VjcmV0";
    let own = || mirror.get(&path(&blob)).header("authorization", basic);
    assert!(own().answer().await.is(&blob.bytes));
    // A token is good beyond a reload, as long as the rules are.
    let token = mirror.get("/token?service=pierhead&scope=repository:team/app:pull");
    let token = token.header("authorization", basic).answer().await.json()["token"].clone();
    let bearer = format!("Bearer {}", token.as_str().unwrap());
    let by_token = || mirror.get(&path(&blob)).header("authorization", &bearer).status();
    assert!(mirror.reload(upstream_with("tag_ttl: 5s")).await);
    assert_eq!(by_token().await, Some(200));
    assert!(mirror.reload(|text| text.replace("[pull]", "[push]")).await);
    assert_eq!(by_token().await, Some(403));
    assert_eq!(own().answer().await.status, 403);
}

#[tokio::test]
async fn an_address_takes_up_tls_and_other_certificates_and_connections_go_on() {
    let (upstream, authority) = (Upstream::start().await, Authority::new());
    let blob = upstream.blob("team/app", 1, 1000);
    let mirror = before(&upstream).start().await;
    let mut plain = Lasting::connect(mirror.address()).await;
    assert_eq!(plain.get(&path(&blob)).await.unwrap().0, 200);
    let client = authority.client(None, &["http/1.1"]);
    let listen = |name: &str| {
        let pair = authority.issue(mirror.folder(), name, &["localhost", "127.0.0.1"]);
        let (cert, key) = (pair.cert.display(), pair.key.display());
        format!("listen: [{{address: '127.0.0.1:0', tls: {{cert: {cert}, key: {key}}}}}]")
    };
    let shown = async || {
        let stream = client.connect(mirror.address(), "localhost").await.expect("a handshake");
        stream.get_ref().1.peer_certificates().expect("a certificate")[0].to_vec()
    };
    let (one, two) = (listen("one"), listen("two"));
    assert!(mirror.reload(|text| text.replace("listen: 127.0.0.1:0", &one)).await);
    let first = shown().await;
    assert!(mirror.reload(|text| text.replace(&one, &two)).await);
    assert!(shown().await != first);
    assert_eq!(plain.get(&path(&blob)).await.unwrap().0, 200, "a connection stays what it was");

    // A pair that cannot be used is a fault of the file, and nothing else changes either.
    std::fs::write(mirror.folder().join("two.key"), "rubbish").unwrap();
    let deny = upstream_with("deny: ['**']");
    assert!(
        !mirror.reload(|text| deny(text.replace("two", "one").replace("one.key", "two.key"))).await
    );
    assert_eq!(plain.get(&path(&blob)).await.unwrap().0, 200);
}

#[tokio::test]
async fn reloads_in_a_row_all_come_to_an_end_and_the_last_one_holds() {
    let upstream = Upstream::start().await;
    let blob = upstream.blob("team/app", 1, 1000);
    let mirror = Setup::new().upstream(NAME, &upstream).start().await;
    for round in 0..30 {
        let file = mirror.folder().join("pierhead.yaml");
        let text = std::fs::read_to_string(&file).unwrap();
        let text = text.replace("    deny: ['**']\n", "");
        let text = if round == 29 { upstream_with("deny: ['**']")(text) } else { text };
        std::fs::write(&file, text).unwrap();
        mirror.signal(nix::sys::signal::Signal::SIGHUP);
    }
    until("the last one", || mirror.get(&path(&blob)), |answer| answer.status == 403).await;
    assert!(TcpStream::connect(mirror.address()).await.is_ok());
}
