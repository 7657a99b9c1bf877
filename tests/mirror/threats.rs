//! Further rows of the published advisories and of the generic hostile tests, by their names: what an
//! upstream does to our client.

use std::net::SocketAddr;

use bytes::Bytes;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpListener;

use crate::clients::basic;
use crate::support::auth::{Account, Auth, Bearer};
use crate::support::client::raw_request;
use crate::support::fault::Fault;
use crate::support::image;
use crate::support::mirror::{Setup, before};
use crate::support::record::On;
use crate::support::upstream::Upstream;

/// What is on loopback under another name is another host.
fn elsewhere(upstream: &Upstream) -> String {
    upstream.url().replace("127.0.0.1", "localhost")
}

/// oras: neither a realm nor a redirect on another host gets the credentials.
#[tokio::test]
async fn ghsa_xf85_363p_868w_cve_2026_48978_ghsa_vh4v_2xq2_g5cg() {
    for by_realm in [true, false] {
        let (upstream, evil) = (Upstream::start().await, Upstream::start().await);
        let blob = upstream.blob("team/app", 1, 1000);
        evil.push_blob("team/app", &blob);
        let path = format!("/v2/team/app/blobs/{}", blob.digest);
        upstream.set(|registry| {
            registry.auth = if by_realm {
                let mut bearer = Bearer::usual();
                bearer.account = Some(Account::new("u", "hunter2"));
                bearer.realm = Some(format!("{}/token", elsewhere(&evil)));
                Auth::Bearer(bearer)
            } else {
                Auth::Basic(Account::new("u", "hunter2"))
            };
        });
        if !by_realm {
            let to = format!("{}{path}", elsewhere(&evil));
            // The first question brings the challenge, the second is answered with the redirect.
            upstream.next(1, On::get("/blobs/"), [Fault::Header("x-first", "1".to_owned())]);
            upstream.always(On::get("/blobs/"), Fault::Redirect(307, to));
        }
        let mirror = before(&upstream).with("auth: {username: u, password: hunter2}").start().await;
        let answer = mirror.get(&path).answer().await;
        assert_eq!(answer.is(&blob.bytes), !by_realm, "{by_realm} {answer:?}");
        let seen = evil.asked(&On::any(""));
        assert_eq!(seen.is_empty(), by_realm, "{seen:?}");
        assert!(seen.iter().all(|one| one.header("authorization").is_empty()), "{seen:?}");
        assert!(!mirror.log().contains("hunter2"));
    }
}

/// oras: the `Location` of an answer that is no redirect leads nowhere, and nothing is ever uploaded to
/// an upstream.
#[tokio::test]
async fn ghsa_jxpm_75mh_9fp7() {
    let (upstream, evil) = (Upstream::start().await, Upstream::start().await);
    let blob = upstream.blob("team/app", 1, 1000);
    upstream.set(|registry| registry.auth = Auth::Basic(Account::new("u", "hunter2")));
    let mirror = before(&upstream).with("auth: {username: u, password: hunter2}").start().await;
    let path = format!("/v2/team/app/blobs/{}", blob.digest);
    for status in [200, 201, 202] {
        upstream.always(On::any("/blobs/"), Fault::Header("location", elsewhere(&evil)));
        if status != 200 {
            upstream.always(On::get("/blobs/"), Fault::Plain(status));
        }
        let answer = mirror.get(&path).answer().await;
        assert!(answer.is(&blob.bytes) || answer.status >= 500, "{answer:?}");
        upstream.behave();
    }
    for line in ["POST /v2/team/app/blobs/uploads/", "PUT /v2/team/app/manifests/v1"] {
        assert_eq!(raw_request(mirror.address(), line).await.status, 405, "{line}");
    }
    assert_eq!(evil.connections(), 0);
    let asked = upstream.asked(&On::any("/v2/"));
    assert!(asked.iter().all(|one| matches!(one.method.as_str(), "GET" | "HEAD")), "{asked:?}");
}

/// Quay: whoever may pull may not push for it.
#[tokio::test]
async fn cve_2025_4374() {
    let upstream = Upstream::start().await;
    let image = image::oci(1).build();
    upstream.push("team/app", "v1", &image);
    let setup = before(&upstream);
    let file = setup.folder().join("htpasswd");
    let line = format!("ci:{}\n", bcrypt::hash("ci-pw", 4).expect("a hash"));
    std::fs::write(&file, line).expect("the folder takes a file");
    let mirror = setup
        .raw(&format!(
            "hosted: {{repositories: [\"own/**\"]}}\nclients:\n  htpasswd: {}\n  rules: [{{users: [ci], actions: [pull], repositories: [\"**\"]}}]\n",
            file.display()
        ))
        .start()
        .await;
    let ci = basic("ci", "ci-pw");
    let pull = mirror.get("/v2/team/app/manifests/v1").header("authorization", &ci);
    assert_eq!(pull.answer().await.status, 200);
    for (line, wanted) in [
        ("POST /v2/own/app/blobs/uploads/", 403),
        ("PUT /v2/own/app/manifests/v1", 403),
        ("DELETE /v2/own/app/manifests/v1", 403),
        ("PUT /v2/team/app/manifests/v1", 405),
        ("DELETE /v2/team/app/manifests/v1", 405),
    ] {
        let (method, path) = line.split_once(' ').expect("two words");
        let method = hyper::Method::from_bytes(method.as_bytes()).expect("a method");
        let answer = mirror.ask(method, path).header("authorization", &ci).answer().await;
        assert_eq!(answer.status, wanted, "{line} {answer:?}");
    }
}

/// A space and a million copies of 258 of them, each in 13 bits (RFC 1951, 3.2.6), inside gzip: 256 MiB
/// that come as 1.7 MB.
fn bomb() -> Bytes {
    let mut packed = b"\x1f\x8b\x08\0\0\0\0\0\0\xff".to_vec();
    let (mut byte, mut filled) = (0_u8, 0);
    // Huffman codes go in from their first bit on, into each byte from its last.
    let mut push = |bits: &[u8]| {
        for bit in bits {
            byte |= bit << filled;
            filled += 1;
            if filled == 8 {
                packed.push(std::mem::take(&mut byte));
                filled = 0;
            }
        }
    };
    push(&[1, 1, 0]); // the last block, of fixed codes
    push(&[0, 1, 0, 1, 0, 0, 0, 0]); // the space
    for _ in 0..1_040_000 {
        push(&[1, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 0, 0]); // 258 times what stood one before
    }
    push(&[0; 15]); // the end of the block, and of the byte
    packed.extend([0; 8]); // the sum at the end, which nobody should get to
    packed.into()
}

/// A bomb in `Content-Encoding`: of a manifest, of a token, of a blob.
#[tokio::test]
async fn t6_a_decompression_bomb_is_bounded() {
    let upstream = Upstream::start().await;
    let image = image::oci(1).build();
    upstream.push("team/app", "v1", &image);
    let mirror = before(&upstream).start().await;
    let bomb = bomb();
    let peak = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", mirror.id()));
        let status = status.expect("the mirror runs");
        let line = status.lines().find(|line| line.starts_with("VmHWM")).expect("a line");
        let number = line.split_whitespace().nth(1).and_then(|text| text.parse::<u64>().ok());
        number.expect("kilobytes")
    };
    let first = peak();
    for (on, path) in [
        (On::any("/manifests/"), "/v2/team/app/manifests/v1".to_owned()),
        (On::any("/tags/"), "/v2/team/app/tags/list".to_owned()),
        (On::any("/referrers/"), format!("/v2/team/app/referrers/{}", image.manifest.digest)),
        (On::any("/blobs/"), format!("/v2/team/app/blobs/{}", image.config.digest)),
    ] {
        upstream.always(on.clone(), Fault::Body(bomb.clone()));
        upstream.always(on, Fault::Header("content-encoding", "gzip".to_owned()));
        let answer = mirror.get(&path).answer().await;
        assert!(answer.status >= 400 || !answer.whole, "{path}: {}", answer.status);
        upstream.behave();
    }
    let grown = peak() - first;
    assert!(grown < 128 << 10, "{grown} kB for bombs of 256 MiB");
    mirror.pull("team/app", "v1", &image).await;
}

/// A registry that writes what it likes, byte by byte: by path and method, on connections that stay.
async fn raw_registry(answer: impl Fn(&str, &str) -> String + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let answer = std::sync::Arc::new(answer);
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let answer = std::sync::Arc::clone(&answer);
            tokio::spawn(async move {
                let (read, mut write) = socket.into_split();
                let mut lines = BufReader::new(read).lines();
                let mut first = None;
                while let Ok(Some(line)) = lines.next_line().await {
                    if !line.is_empty() {
                        first.get_or_insert(line);
                        continue;
                    }
                    let Some(request) = first.take() else { continue };
                    let mut words = request.split(' ');
                    let (method, path) = (words.next(), words.next());
                    let text = answer(method.unwrap_or_default(), path.unwrap_or_default());
                    if write.write_all(text.as_bytes()).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

/// `Transfer-Encoding` where no body follows: the next answer on that connection is still whole.
#[tokio::test]
async fn t11_a_transfer_encoding_without_a_body_moves_no_frame() {
    let image = image::oci(1).build();
    let (digest, body) = (
        image.manifest.digest.clone(),
        String::from_utf8_lossy(&image.manifest.bytes).into_owned(),
    );
    let kind = image.manifest.media_type.clone();
    let address = raw_registry(move |method, path| {
        let about = format!("Docker-Content-Digest: {digest}\r\nContent-Type: {kind}\r\n");
        match (method, path.rsplit('/').next().unwrap_or_default()) {
            ("HEAD", "empty") => {
                format!("HTTP/1.1 204 No Content\r\n{about}Transfer-Encoding: chunked\r\n\r\n")
            }
            ("GET", "empty") => {
                "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned()
            }
            (_, "same") => {
                "HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned()
            }
            ("HEAD", _) => format!("HTTP/1.1 200 OK\r\n{about}Transfer-Encoding: chunked\r\n\r\n"),
            _ => format!("HTTP/1.1 200 OK\r\n{about}Content-Length: {}\r\n\r\n{body}", body.len()),
        }
    })
    .await;
    let url = format!("http://{address}");
    let setup = Setup::new().endpoints("registry.test", &[&url]).with("tag_ttl: 0s");
    let mirror = setup.start().await;
    for _ in 0..3 {
        let head = mirror.head("/v2/team/app/manifests/v1").answer().await;
        assert_eq!(head.status, 200, "{head:?}");
        assert_eq!(head.header("docker-content-digest"), image.manifest.digest);
        for tag in ["empty", "same"] {
            let answer = mirror.get(&format!("/v2/team/app/manifests/{tag}")).answer().await;
            assert!(answer.status >= 500 && answer.whole, "{tag}: {answer:?}");
        }
        let whole = mirror.get("/v2/team/app/manifests/v1").answer().await;
        assert!(whole.is(&image.manifest.bytes), "{whole:?}");
    }
}
