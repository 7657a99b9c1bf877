//! What was found in the HTTP server that we stand on.

use crate::smuggling::{SMUGGLED, start, statuses};
use crate::support::image;
use crate::support::mirror::Setup;
use crate::support::record::On;
use crate::support::upstream::Upstream;

/// A body that nobody read is no request.
#[tokio::test]
async fn cve_2025_4366_an_unread_body_on_a_hit_is_drained_before_the_next_request() {
    let (upstream, mirror, hit) = start().await;
    let body = SMUGGLED.repeat(3);
    let next = "GET /v2/ HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let request = format!(
        "GET {hit} HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{body}{next}",
        body.len()
    );
    let all = statuses(mirror.address(), request.as_bytes()).await;
    assert!(all == [200, 200] || all == [200], "{all:?}");
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
