//! What was found in the HTTP server that we stand on.

use crate::smuggling::{SMUGGLED, start, statuses};
use crate::support::image;
use crate::support::mirror::{Setup, before};
use crate::support::record::On;
use crate::support::upstream::Upstream;

/// A body that nobody read is no request, however it tells its length, and whoever answers: memory or disk.
#[tokio::test]
async fn cve_2025_4366_an_unread_body_on_a_hit_is_drained_before_the_next_request() {
    let (upstream, mirror, blob) = start().await;
    let manifest = "/v2/team/app/manifests/v1";
    assert_eq!(mirror.get(manifest).answer().await.status, 200);
    let body = SMUGGLED.repeat(3);
    let next = "GET /v2/ HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    for hit in [blob.as_str(), manifest] {
        for (head, body) in [
            (format!("Content-Length: {}", body.len()), body.clone()),
            (
                "Transfer-Encoding: chunked".to_owned(),
                format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len()),
            ),
        ] {
            let request = format!("GET {hit} HTTP/1.1\r\nHost: a\r\n{head}\r\n\r\n{body}{next}");
            let all = statuses(mirror.address(), request.as_bytes()).await;
            assert!(all == [200, 200] || all == [200], "{hit} {head}: {all:?}");
        }
    }
    assert_eq!(upstream.count(&On::any("smuggled")), 0);
}

/// No other protocol is ever begun: what comes behind an `Upgrade` is a request like any other, judged
/// like any other, and nothing of it reaches the upstream as it came.
#[tokio::test]
async fn cve_2026_2833() {
    let upstream = Upstream::start().await;
    upstream.push("team/app", "v1", &image::oci(1).build());
    upstream.push("smuggled/app", "v1", &image::oci(2).build());
    let mirror = before(&upstream).with("tag_ttl: 0s\ndeny: ['smuggled/**']").start().await;
    for upgrade in ["foo", "websocket", "h2c", "TLS/1.2"] {
        for method in ["GET", "HEAD"] {
            let request = format!(
                "{method} /v2/team/app/manifests/v1 HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: {upgrade}\r\n\r\n{SMUGGLED}"
            );
            let all = statuses(mirror.address(), request.as_bytes()).await;
            assert!(all == [200] || all == [200, 403], "{upgrade} {method}: {all:?}");
        }
    }
    assert_eq!(upstream.count(&On::any("smuggled")), 0);
    for one in upstream.asked(&On::any("")) {
        assert!(!one.headers.contains_key("upgrade"), "{:?}", one.headers);
    }
}

/// Who tells a length in two ways is refused, and the connection ends with that.
#[tokio::test]
async fn cve_2026_2835() {
    let (upstream, mirror, hit) = start().await;
    let chunked = "Transfer-Encoding: chunked\r\n";
    for (name, head) in [
        ("CL.TE", format!("Content-Length: 5\r\n{chunked}")),
        ("TE.CL", format!("{chunked}Content-Length: 5\r\n")),
        ("CL.TE, in capitals", format!("CONTENT-LENGTH: 5\r\n{}", chunked.to_uppercase())),
        ("two lengths", "Content-Length: 0\r\nContent-Length: 5\r\n".to_owned()),
        ("two encodings", format!("{chunked}Transfer-Encoding: identity\r\n")),
        ("chunked, and not last", "Transfer-Encoding: chunked, gzip\r\n".to_owned()),
        ("an unknown encoding", "Transfer-Encoding: xchunked\r\n".to_owned()),
    ] {
        for method in ["GET", "HEAD", "POST"] {
            let request =
                format!("{method} {hit} HTTP/1.1\r\nHost: a\r\n{head}\r\n0\r\n\r\n{SMUGGLED}");
            let all = statuses(mirror.address(), request.as_bytes()).await;
            assert_eq!(all, [400], "{name} {method}");
        }
    }
    assert_eq!(upstream.count(&On::any("smuggled")), 0);
}

/// What ends with its connection leaves no room for another request behind it.
#[tokio::test]
async fn cve_2026_2835_http_1_0_with_a_transfer_encoding_does_not_keep_the_connection() {
    let (upstream, mirror, hit) = start().await;
    for keep in ["", "Connection: keep-alive\r\n"] {
        let request = format!(
            "GET {hit} HTTP/1.0\r\nHost: a\r\n{keep}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n{SMUGGLED}"
        );
        let all = statuses(mirror.address(), request.as_bytes()).await;
        assert!(all.len() <= 1, "{all:?}");
    }
    assert_eq!(upstream.count(&On::any("smuggled")), 0);
}

/// The same path under two hosts or names is never mixed.
#[tokio::test]
async fn cve_2026_2836() {
    let (one, two) = (Upstream::start().await, Upstream::start().await);
    let (first, second) = (image::oci(1).build(), image::oci(2).build());
    one.push("team/app", "v1", &first);
    two.push("team/app", "v1", &second);
    let mirror = Setup::new()
        .upstream("one.test", &one)
        .upstream("two.test", &two)
        .with("hosts: [two.mirror.test]")
        .default_upstream("one.test")
        .start()
        .await;
    let path = "/v2/team/app/manifests/v1";
    for _ in 0..2 {
        assert!(mirror.get(path).answer().await.is(&first.manifest.bytes));
        let by_host = mirror.get(path).header("host", "two.mirror.test").answer().await;
        assert!(by_host.is(&second.manifest.bytes));
        let by_name = mirror.get(&format!("{path}?ns=two.test")).answer().await;
        assert!(by_name.is(&second.manifest.bytes));
    }
}

/// The versions that the program is built of are those that were mended.
#[test]
fn rustsec_2026_0002() {
    let lock = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.lock");
    let lock = std::fs::read_to_string(lock).expect("it stands beside the manifest");
    let versions = |name: &str| -> Vec<Vec<u64>> {
        let name = format!("name = \"{name}\"\nversion = \"");
        let found = lock.split(name.as_str()).skip(1).filter_map(|rest| rest.split('"').next());
        let numbers = |version: &str| version.split('.').map_while(|n| n.parse().ok()).collect();
        found.map(numbers).collect()
    };
    for (name, least) in [("lru", [0, 16, 3]), ("pingora", [0, 8, 0]), ("pingora-core", [0, 8, 0])]
    {
        let versions = versions(name);
        assert!(!versions.is_empty(), "{name} is no longer used: this row can go");
        assert!(versions.iter().all(|version| version[..] >= least[..]), "{name} {versions:?}");
    }
}
