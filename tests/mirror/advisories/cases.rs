//! Hostile cases that are nobody's in particular.

use std::net::SocketAddr;

use bytes::Bytes;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpListener;

use crate::support::fault::Fault;
use crate::support::image;
use crate::support::mirror::{Setup, before};
use crate::support::record::On;
use crate::support::upstream::Upstream;

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
