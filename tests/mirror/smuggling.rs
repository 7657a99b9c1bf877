//! Requests made so that two readers would see different things: bytes over raw sockets.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::image;
use crate::support::mirror::{Mirror, before};
use crate::support::record::On;
use crate::support::soon;
use crate::support::upstream::Upstream;

/// What a smuggled request would ask for; nothing else does.
pub(crate) const SMUGGLED: &str =
    "GET /v2/smuggled/app/manifests/v1 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";

pub(crate) async fn start() -> (Upstream, Mirror, String) {
    let upstream = Upstream::start().await;
    upstream.push("team/app", "v1", &image::oci(1).build());
    upstream.push("smuggled/app", "v1", &image::oci(2).build());
    let blob = upstream.blob("team/app", 7, 300_000);
    let mirror = before(&upstream).start().await;
    let path = format!("/v2/team/app/blobs/{}", blob.digest);
    assert!(mirror.get(&path).answer().await.is(&blob.bytes));
    (upstream, mirror, path)
}

/// Sends the bytes and reads to the end; the statuses of all answers, in their order.
pub(crate) async fn statuses(address: SocketAddr, bytes: &[u8]) -> Vec<u16> {
    let mut socket = TcpStream::connect(address).await.expect("the mirror takes connections");
    let mut read = Vec::new();
    let talk = async {
        let _sent = socket.write_all(bytes).await;
        let _closed = socket.shutdown().await;
        let _ended = socket.read_to_end(&mut read).await;
    };
    soon("the end of a raw talk", talk).await;
    let text = String::from_utf8_lossy(&read);
    text.match_indices("HTTP/1.1 ")
        .filter_map(|(at, found)| text[at + found.len()..].get(..3)?.parse().ok())
        .collect()
}

#[tokio::test]
async fn two_ways_to_tell_a_length_never_make_two_requests() {
    let (upstream, mirror, hit) = start().await;
    let heads = [
        ("CL.TE", "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        ("TE.CL", "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n"),
        ("two lengths", "Content-Length: 0\r\nContent-Length: 5\r\n\r\n"),
        ("a list of lengths", "Content-Length: 0, 5\r\n\r\n"),
        ("a signed length", "Content-Length: +0\r\n\r\n"),
        ("a hexadecimal length", "Content-Length: 0x0\r\n\r\n"),
        (
            "two encodings",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
        ),
        ("an encoding in disguise", "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"),
        ("an encoding behind a tab", "Transfer-Encoding:\tchunked\r\n\r\n0\r\n\r\n"),
        ("a space before the colon", "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n"),
        ("a folded header", "X: a\r\n Transfer-Encoding: chunked\r\n\r\n"),
        ("a bare line feed", "X: a\nTransfer-Encoding: chunked\r\n\r\n"),
        ("a bare carriage return", "X: a\rTransfer-Encoding: chunked\r\n\r\n"),
        ("a NUL", "X: a\0b\r\n\r\n"),
        ("an upgrade", "Connection: upgrade\r\nUpgrade: foo\r\n\r\n"),
        (
            "h2c",
            "Connection: upgrade, http2-settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n",
        ),
    ];
    for (name, head) in heads {
        for method in ["GET", "HEAD", "POST"] {
            for path in [hit.as_str(), "/v2/"] {
                let request = format!("{method} {path} HTTP/1.1\r\nHost: a\r\n{head}");
                // What follows is a body to one reader and a request to the other.
                let inside = format!("{request}{SMUGGLED}");
                let all = statuses(mirror.address(), inside.as_bytes()).await;
                assert!(all.len() <= 2, "{name} {method}: {all:?}");
            }
        }
    }
    // Whoever is answered twice has sent two requests by every reading, or was cut off; what must
    // not be is a body that was carried out.
    let bodies = [
        ("a body with a length", format!("Content-Length: {}\r\n\r\n{SMUGGLED}", SMUGGLED.len())),
        (
            "a chunked body",
            format!(
                "Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{SMUGGLED}\r\n0\r\n\r\n",
                SMUGGLED.len()
            ),
        ),
        (
            "both",
            format!(
                "Content-Length: {}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{SMUGGLED}",
                SMUGGLED.len() + 5
            ),
        ),
    ];
    let before = upstream.count(&On::any("smuggled"));
    for (name, body) in bodies {
        for method in ["GET", "HEAD", "POST", "PUT"] {
            let request = format!("{method} {hit} HTTP/1.1\r\nHost: a\r\n{body}");
            let all = statuses(mirror.address(), request.as_bytes()).await;
            assert!(all.len() <= 1, "{name} {method}: {all:?}");
        }
    }
    assert_eq!(upstream.count(&On::any("smuggled")), before, "a body was carried out");
}

/// Harbor and Nexus: upstreams come from the configuration and from nowhere else.
#[tokio::test]
async fn cve_2020_13788_cve_2026_0600_odd_targets_choose_no_host_that_is_not_configured() {
    let (upstream, mirror, _) = start().await;
    for target in [
        "GET http://evil.test/v2/team/app/manifests/v1",
        "GET http://169.254.169.254/latest/meta-data",
        "GET //evil.test/v2/team/app/manifests/v1",
        "CONNECT evil.test:443",
        "OPTIONS *",
        "GET *",
        "GET /v2/evil.test/team/app/manifests/v1",
        "GET /v2/team/app/manifests/v1?ns=evil.test",
        "GET /v2/team/app/manifests/v1?ns=registry.test@evil.test",
        "GET /v2/team/app/manifests/v1?ns=registry.test%00.evil.test",
        "GET /v2/team/app/manifests/v1?ns=registry.test&ns=evil.test",
        "GET /v2/team%2fapp%2f..%2f..%2f..%2fetc/manifests/passwd",
        "GET /v2/team/app%00/manifests/v1",
        "GET /v2/team/app/manifests/%c0%ae%c0%ae",
        "GET /v2/team/app/tags/list?n=9223372036854775808",
        "GET /v2/team/app/tags/list?n=-1",
    ] {
        let request = format!("{target} HTTP/1.1\r\nHost: evil.test\r\nConnection: close\r\n\r\n");
        let all = statuses(mirror.address(), request.as_bytes()).await;
        assert!(all.len() <= 1, "{target}: {all:?}");
        assert!(all.iter().all(|status| *status < 500), "{target}: {all:?}");
        let served = all == [200];
        let harmless =
            target.contains("n=9223") || target.starts_with("GET http://evil.test/v2/team");
        assert!(!served || harmless, "{target}");
    }
    for one in upstream.asked(&On::any("")) {
        // `evil.test/team/app` is a lawful name of a repository, and no host.
        let path = one.path.replace("/v2/evil.test/", "/v2/");
        assert!(path.starts_with("/v2/team/app/"), "{path}");
        assert!(!one.header("host").contains("evil"), "{:?}", one.headers);
    }
}

#[tokio::test]
async fn an_early_refusal_of_an_upload_reaches_the_client() {
    let (_upstream, mirror, _) = start().await;
    let mut socket = TcpStream::connect(mirror.address()).await.expect("a connection");
    let head =
        "PATCH /v2/team/app/blobs/uploads/1 HTTP/1.1\r\nHost: a\r\nContent-Length: 4000000\r\n\r\n";
    socket.write_all(head.as_bytes()).await.expect("the head is taken");
    let (mut read, mut write) = socket.into_split();
    let sending = tokio::spawn(async move {
        let piece = vec![0; 64 * 1024];
        for _ in 0..61 {
            if write.write_all(&piece).await.is_err() {
                return;
            }
        }
    });
    let mut answer = vec![0; 12];
    soon("the refusal", read.read_exact(&mut answer)).await.expect("an answer, not a reset");
    assert_eq!(answer, b"HTTP/1.1 405");
    soon("the end of the upload", sending).await.expect("no panic");
}
