//! Bounds: on connections, on what one caller takes, on clients that hang.

use std::time::{Duration, Instant};

use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::fault::{Fault, Gate};
use crate::support::image;
use crate::support::mirror::{before, until};
use crate::support::record::On;
use crate::support::secure::{Authority, request};
use crate::support::soon;
use crate::support::upstream::Upstream;

async fn is_closed(socket: &mut TcpStream) -> bool {
    let mut byte = [0];
    matches!(soon("a closed connection", socket.read(&mut byte)).await, Ok(0) | Err(_))
}

#[tokio::test]
async fn one_address_takes_only_so_many_connections() {
    let upstream = Upstream::start().await;
    let mirror = before(&upstream).raw("server: {max_connections_per_address: 5}").start().await;
    let mut held = Vec::new();
    for _ in 0..5 {
        held.push(TcpStream::connect(mirror.address()).await.expect("a connection"));
    }
    soon("five connections", async {
        while mirror.metric("pierhead_connections", &[]).await < 5.0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    let mut sixth = TcpStream::connect(mirror.address()).await.expect("the kernel takes it");
    assert!(is_closed(&mut sixth).await);
    drop(held);
    soon("places", async {
        while mirror.metric("pierhead_connections", &[]).await > 0.0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    assert_eq!(mirror.get("/v2/").answer().await.status, 200);
}

#[tokio::test]
async fn one_caller_begins_only_so_many_downloads_and_hits_go_on() {
    let upstream = Upstream::start().await;
    let blobs: Vec<_> = (0..4).map(|n| upstream.blob("team/app", n, 50_000)).collect();
    let mirror = before(&upstream).raw("server: {max_fills_per_caller: 2}").start().await;
    let path = |n: usize| format!("/v2/team/app/blobs/{}", blobs[n].digest);
    assert!(mirror.get(&path(3)).answer().await.is(&blobs[3].bytes));
    soon("the end of the first download", async {
        while mirror.metric("pierhead_fills_total", &[]).await < 1.0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    let gate = Gate::closed();
    for n in 0..2 {
        upstream.next(1, On::get(&path(n)), [Fault::HoldAfter(100, gate.clone())]);
    }
    let first = [0, 1].map(|n| tokio::spawn(mirror.get(&path(n)).answer()));
    upstream.until_asked(1, &On::get(&path(0))).await;
    upstream.until_asked(1, &On::get(&path(1))).await;
    let third = mirror.get(&path(2)).header("user-agent", "skopeo/1").answer().await;
    third.assert_error(429, "TOOMANYREQUESTS");
    assert!(!third.header("retry-after").is_empty());
    assert!(mirror.get(&path(3)).answer().await.is(&blobs[3].bytes), "a hit is no download");
    let joined = tokio::spawn(mirror.get(&path(0)).answer());
    gate.open();
    for (n, answer) in first.into_iter().enumerate() {
        assert!(answer.await.expect("no panic").is(&blobs[n].bytes));
    }
    assert!(joined.await.expect("no panic").is(&blobs[0].bytes), "joining is no download");
    until("a free turn", || mirror.get(&path(2)), |answer| answer.is(&blobs[2].bytes)).await;
}

#[tokio::test]
async fn t7_a_pull_beside_clients_that_hang_is_not_held_up() {
    let upstream = Upstream::start().await;
    let image = image::oci(1).build();
    upstream.push("team/app", "v1", &image);
    let blob = upstream.blob("team/app", 9, 8_000_000);
    let mirror = before(&upstream).with("tag_ttl: 1h").start().await;
    mirror.pull("team/app", "v1", &image).await;
    let large = format!("/v2/team/app/blobs/{}", blob.digest);
    assert!(mirror.get(&large).answer().await.is(&blob.bytes));
    let mut hanging = Vec::new();
    for n in 0..600 {
        let mut socket = TcpStream::connect(mirror.address()).await.expect("a connection");
        let bytes = if n % 3 == 0 {
            // Asks and never reads.
            format!("GET {large} HTTP/1.1\r\nHost: a\r\n\r\n")
        } else {
            "GET /v2/team/app/manifests/v1 HTTP/1.1\r\nHos".to_owned()
        };
        socket.write_all(bytes.as_bytes()).await.expect("a few bytes are taken");
        hanging.push(socket);
    }
    let mut took: Vec<Duration> = Vec::new();
    for _ in 0..20 {
        let began = Instant::now();
        let answer = mirror.get("/v2/team/app/manifests/v1").answer().await;
        assert_eq!(answer.status, 200);
        took.push(began.elapsed());
    }
    took.sort();
    println!("a pull beside 600 that hang: median {:?}, worst {:?}", took[10], took[19]);
    assert!(took[10] < Duration::from_millis(50), "{took:?}");
    drop(hanging);
}

#[tokio::test]
async fn t10_a_flood_of_resets_harms_nobody_else() {
    let (upstream, authority) = (Upstream::start().await, Authority::new());
    let image = image::oci(1).build();
    upstream.push("team/app", "v1", &image);
    let setup = before(&upstream).with("tag_ttl: 1h");
    let pair = authority.issue(setup.folder(), "mirror", &["localhost"]);
    let listen = format!(
        "[{{address: '127.0.0.1:0', tls: {{cert: {}, key: {}}}}}]",
        pair.cert.display(),
        pair.key.display()
    );
    let mirror = setup.listen(&listen).start().await;
    let client = authority.client(None, &["h2"]);
    let old = authority.client(None, &["http/1.1"]);
    let path = "/v2/team/app/manifests/v1";
    assert_eq!(client.get_h2(mirror.address(), path).await.expect("an answer").0, 200);
    let mut floods = Vec::new();
    for _ in 0..4 {
        let (client, address) = (client.clone(), mirror.address());
        floods.push(tokio::spawn(async move {
            let stream = client.connect(address, "localhost").await.expect("a handshake");
            let shaken = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
            let (mut sender, connection) = shaken.expect("a connection");
            let connection = tokio::spawn(connection);
            for _ in 0..2000 {
                let mut request = request(address, path, &[]);
                *request.uri_mut() = format!("https://{address}{path}").parse().expect("a URL");
                request.headers_mut().remove("host");
                // Begun and dropped at once: a reset for each.
                let begun = sender.send_request(request);
                if futures_util::poll!(std::pin::pin!(begun)).is_ready() {
                    return; // the mirror has ended the connection
                }
                tokio::task::yield_now().await;
            }
            drop(connection);
        }));
    }
    let mut took: Vec<Duration> = Vec::new();
    for _ in 0..20 {
        let began = Instant::now();
        let (status, body) = old.get(mirror.address(), path, &[]).await.expect("an answer");
        assert!(status == 200 && body == image.manifest.bytes);
        took.push(began.elapsed());
    }
    took.sort();
    println!(
        "a pull with a handshake beside four floods: median {:?}, worst {:?}",
        took[10], took[19]
    );
    for flood in floods {
        soon("the end of a flood", flood).await.expect("no panic");
    }
    assert_eq!(client.get_h2(mirror.address(), path).await.expect("an answer").0, 200);
}
