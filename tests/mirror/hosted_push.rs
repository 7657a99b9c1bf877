//! Uploads: every way of them, broken off, resumed, refused.

use std::time::Duration;

use bytes::Bytes;
use hyper::Method;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::image::{self, Algorithm, Content, random};
use crate::support::mirror::Mirror;
use crate::support::push::hosting;
use crate::support::record::On;
use crate::support::soon;
use crate::support::upstream::Upstream;

const MIB: usize = 1024 * 1024;

async fn start(more: &str) -> (Upstream, Mirror) {
    let upstream = Upstream::start().await;
    let mirror = hosting(&upstream, more).start().await;
    (upstream, mirror)
}

#[tokio::test]
async fn what_is_pushed_is_pulled_back_and_never_asked_upstream() {
    let (upstream, mut mirror) = start("").await;
    let image = image::oci(1).layers(&[3 * MIB, 100, 0]).build();
    // The same name exists upstream, with something else in it.
    upstream.push("library/app", "v1", &image::oci(2).build());
    mirror.push("app", "v1", &image).await;
    mirror.pull("app", "v1", &image).await;
    mirror.kill().await;
    mirror.start().await;
    mirror.pull("app", "v1", &image).await;
    for path in ["app/manifests/v2", "app/tags/list", "nobody/tags/list", "team/x/manifests/v1"] {
        let _any = mirror.get(&format!("/v2/{path}")).answer().await;
    }
    assert_eq!(upstream.count(&On::any("")), 0, "a hosted name was asked upstream");
    // Nor the other way round: what is hosted answers for no upstream name.
    let theirs = mirror.get("/v2/library/app/manifests/v1").answer().await;
    assert_ne!(theirs.header("docker-content-digest"), image.manifest.digest);
}

#[tokio::test]
async fn a_blob_comes_in_one_request_or_in_two_or_in_pieces() {
    let (_upstream, mirror) = start("").await;
    let blob = Content::blob(1, 100_000);
    let one = format!("/v2/app/blobs/uploads/?digest={}", blob.digest);
    let put = mirror.ask(Method::POST, &one).body(blob.bytes.clone()).answer().await;
    assert_eq!(put.status, 201);
    mirror.push_blob("team/a", &blob).await;
    for (at, repository) in [(true, "b"), (false, "c")] {
        let location = mirror.begin(repository).await;
        let mut end = 0;
        for piece in blob.bytes.chunks(30_000) {
            let piece = Bytes::copy_from_slice(piece);
            let patched = mirror.patch(&location, &piece, at.then_some(end)).await;
            end += piece.len();
            assert_eq!(patched.status, 202, "{:?}", patched.body);
            assert_eq!(patched.header("range"), format!("0-{}", end - 1));
            let status = mirror.get(&location).answer().await;
            assert_eq!((status.status, status.header("range")), (204, patched.header("range")));
        }
        assert_eq!(mirror.put(&location, &blob.digest, &Bytes::new()).await.status, 201);
        assert_eq!(mirror.get(&location).answer().await.status, 404, "it is over");
    }
    for repository in ["app", "team/a", "b", "c"] {
        let got = mirror.get(&format!("/v2/{repository}/blobs/{}", blob.digest)).answer().await;
        assert!(got.is(&blob.bytes), "{repository}");
    }
    assert_eq!(mirror.check_store(), 1, "the same content is stored once");
}

#[tokio::test]
async fn a_piece_out_of_order_is_told_where_to_go_on() {
    let (_upstream, mirror) = start("").await;
    let blob = Content::blob(1, 1000);
    let location = mirror.begin("app").await;
    let (first, rest) = (blob.bytes.slice(..600), blob.bytes.slice(600..));
    mirror.patch(&location, &first, Some(0)).await;
    for at in [0, 599, 601] {
        let refused = mirror.patch(&location, &rest, Some(at)).await;
        refused.assert_error(416, "RANGE_INVALID");
        assert_eq!((refused.header("range"), refused.header("location")), ("0-599", &*location));
    }
    // A piece that is not as long as it says is taken back.
    let lies = mirror.ask(Method::PATCH, &location).header("content-range", "600-700");
    lies.body(rest.clone()).answer().await.assert_error(400, "SIZE_INVALID");
    let end = format!("{location}?digest={}", blob.digest);
    let late = mirror.ask(Method::PUT, &end).header("content-range", "700-1099");
    late.body(rest.clone()).answer().await.assert_error(416, "RANGE_INVALID");
    let put = mirror.ask(Method::PUT, &end).header("content-range", "600-999");
    assert_eq!(put.body(rest).answer().await.status, 201);
}

#[tokio::test]
async fn a_wrong_digest_at_the_end_leaves_nothing() {
    let (_upstream, mirror) = start("").await;
    let (blob, other) = (Content::blob(1, 1000), Content::blob(2, 1000));
    for digest in [&other.digest, "sha256:..", "md5:d41d8cd98f00b204e9800998ecf8427e", ""] {
        let location = mirror.begin("app").await;
        let put = mirror.put(&location, digest, &blob.bytes).await;
        put.assert_error(400, "DIGEST_INVALID");
    }
    let path = format!("/v2/app/blobs/uploads/?digest={}", other.digest);
    let whole = mirror.ask(Method::POST, &path).body(blob.bytes.clone()).answer().await;
    whole.assert_error(400, "DIGEST_INVALID");
    for digest in [&blob.digest, &other.digest] {
        assert_eq!(mirror.head(&format!("/v2/app/blobs/{digest}")).answer().await.status, 404);
    }
    assert_eq!(mirror.check_store(), 0);
}

#[tokio::test]
async fn an_upload_goes_on_after_a_kill() {
    let (_upstream, mut mirror) = start("").await;
    let blob = Content::blob(1, 3 * MIB);
    let location = mirror.begin("app").await;
    mirror.patch(&location, &blob.bytes.slice(..2 * MIB), None).await;
    mirror.kill().await;
    mirror.start().await;
    let status = mirror.get(&location).answer().await;
    assert_eq!((status.status, status.header("range")), (204, &*format!("0-{}", 2 * MIB - 1)));
    let rest = blob.bytes.slice(2 * MIB..);
    assert_eq!(mirror.patch(&location, &rest, Some(2 * MIB)).await.status, 202);
    assert_eq!(mirror.put(&location, &blob.digest, &Bytes::new()).await.status, 201);
    assert!(mirror.get(&format!("/v2/app/blobs/{}", blob.digest)).answer().await.is(&blob.bytes));
}

/// A client that vanishes in the middle leaves what it sent, and may go on there.
#[tokio::test]
async fn an_upload_goes_on_after_its_client_has_gone() {
    let (_upstream, mirror) = start("").await;
    let blob = Content::blob(1, 200_000);
    let location = mirror.begin("app").await;
    let mut socket = TcpStream::connect(mirror.address()).await.unwrap();
    let head = format!("PATCH {location} HTTP/1.1\r\nHost: a\r\nContent-Length: 200000\r\n\r\n");
    socket.write_all(head.as_bytes()).await.unwrap();
    socket.write_all(&blob.bytes[..150_000]).await.unwrap();
    drop(socket);
    let arrived = async {
        while mirror.get(&location).answer().await.header("range") != "0-149999" {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    soon("what was sent to be counted", arrived).await;
    let rest = blob.bytes.slice(150_000..);
    assert_eq!(mirror.put(&location, &blob.digest, &rest).await.status, 201);
}

#[tokio::test]
async fn an_upload_belongs_to_its_repository() {
    let (_upstream, mirror) = start("").await;
    let blob = Content::blob(1, 1000);
    let location = mirror.begin("app").await;
    let theirs = location.replace("/v2/app/", "/v2/team/other/");
    mirror.get(&theirs).answer().await.assert_error(404, "BLOB_UPLOAD_UNKNOWN");
    mirror.patch(&theirs, &blob.bytes, None).await.assert_error(404, "BLOB_UPLOAD_UNKNOWN");
    let put = mirror.put(&theirs, &blob.digest, &blob.bytes).await;
    put.assert_error(404, "BLOB_UPLOAD_UNKNOWN");
    let cancel = mirror.ask(Method::DELETE, &theirs).answer().await;
    cancel.assert_error(404, "BLOB_UPLOAD_UNKNOWN");
    for id in ["0".repeat(32), "../../format".to_owned(), "x".to_owned()] {
        let path = format!("/v2/app/blobs/uploads/{id}");
        assert_eq!(mirror.get(&path).answer().await.status, 404, "{id}");
    }
    assert_eq!(mirror.ask(Method::DELETE, &location).answer().await.status, 204);
    mirror.ask(Method::DELETE, &location).answer().await.assert_error(404, "BLOB_UPLOAD_UNKNOWN");
}

#[tokio::test]
async fn a_mount_saves_the_upload_where_the_other_repository_has_the_blob() {
    let (_upstream, mirror) = start("").await;
    let blob = Content::blob(1, 1000);
    mirror.push_blob("team/a", &blob).await;
    let mount = |from: &str| {
        let path = format!("/v2/app/blobs/uploads/?mount={}{from}", blob.digest);
        mirror.ask(Method::POST, &path).answer()
    };
    for from in ["&from=team/b", "&from=library/x"] {
        let begun = mount(from).await;
        assert_eq!(begun.status, 202, "{from}");
        assert!(begun.header("location").contains("/blobs/uploads/"));
    }
    let mine = format!("/v2/app/blobs/{}", blob.digest);
    assert_eq!(mirror.head(&mine).answer().await.status, 404, "a digest is not a permission");
    let mounted = mount("&from=team/a").await;
    assert_eq!((mounted.status, mounted.header("location")), (201, &*mine));
    assert!(mirror.get(&mine).answer().await.is(&blob.bytes));
}

/// Only where everybody may read everything: see `clients` for what rules make of it.
#[tokio::test]
async fn a_mount_that_names_no_repository_takes_from_whichever_has_the_blob() {
    let (upstream, mirror) = start("").await;
    let (pushed, cached) = (Content::blob(1, 1000), upstream.blob("library/x", 2, 1000));
    mirror.push_blob("team/deep/a", &pushed).await;
    assert!(
        mirror
            .get(&format!("/v2/library/x/blobs/{}", cached.digest))
            .answer()
            .await
            .is(&cached.bytes)
    );
    for (content, status) in [(&pushed, 201), (&cached, 202), (&Content::blob(3, 1000), 202)] {
        let path = format!("/v2/app/blobs/uploads/?mount={}", content.digest);
        assert_eq!(mirror.ask(Method::POST, &path).answer().await.status, status);
    }
    let path = format!("/v2/app/blobs/{}", pushed.digest);
    assert!(mirror.get(&path).answer().await.is(&pushed.bytes));
}

#[tokio::test]
async fn sha512_is_taken_in_every_way() {
    let (_upstream, mirror) = start("").await;
    for (seed, query) in [(1, "?digest-algorithm=sha512"), (2, "")] {
        let blob = Content::new(Algorithm::Sha512, "x", random(seed, 5000));
        let path = format!("/v2/app/blobs/uploads/{query}");
        let begun = mirror.ask(Method::POST, &path).answer().await;
        let location = begun.header("location").to_owned();
        mirror.patch(&location, &blob.bytes, None).await;
        assert_eq!(mirror.put(&location, &blob.digest, &Bytes::new()).await.status, 201);
        let got = mirror.get(&format!("/v2/app/blobs/{}", blob.digest)).answer().await;
        assert!(got.is(&blob.bytes));
    }
    let path = "/v2/app/blobs/uploads/?digest-algorithm=md5";
    mirror.ask(Method::POST, path).answer().await.assert_error(400, "DIGEST_INVALID");
}

/// containerd waits five seconds for this line before it sends anyway.
#[tokio::test]
async fn a_client_that_waits_to_go_on_is_told_to() {
    let (_upstream, mirror) = start("").await;
    let blob = Content::blob(1, 1000);
    let location = mirror.begin("app").await;
    let mut socket = TcpStream::connect(mirror.address()).await.unwrap();
    let head = |location: &str| {
        format!(
            "PUT {location}?digest={} HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\
             Expect: 100-continue\r\n\r\n",
            blob.digest
        )
    };
    socket.write_all(head(&location).as_bytes()).await.unwrap();
    assert!(read_head(&mut socket).await.starts_with("HTTP/1.1 100"));
    socket.write_all(&blob.bytes).await.unwrap();
    let created = read_head(&mut socket).await;
    assert!(created.starts_with("HTTP/1.1 201"), "{created}");
    // The connection goes on; and where nothing is wanted, nothing is asked for.
    let unknown = location.replace("/v2/app/", "/v2/other/");
    socket.write_all(head(&unknown).as_bytes()).await.unwrap();
    let refused = read_head(&mut socket).await;
    assert!(refused.starts_with("HTTP/1.1 404"), "{refused}");
}

async fn read_head(socket: &mut TcpStream) -> String {
    let mut head = Vec::new();
    let read = async {
        while !head.ends_with(b"\r\n\r\n") {
            head.push(socket.read_u8().await.expect("the connection stays"));
        }
    };
    soon("a head", read).await;
    String::from_utf8(head).unwrap()
}

/// A refusal comes while the client is still sending, and must not be lost in a reset.
#[tokio::test]
async fn an_early_refusal_reaches_a_client_that_is_still_sending() {
    let (_upstream, mirror) = start("max_blob_size: 1MiB").await;
    for (method, path) in [
        ("PUT", "/v2/app/manifests/v1".to_owned()),
        ("PATCH", format!("/v2/app/blobs/uploads/{}", "0".repeat(32))),
        ("PATCH", mirror.begin("app").await),
        ("PUT", "/v2/library/app/manifests/v1".to_owned()),
    ] {
        let mut socket = TcpStream::connect(mirror.address()).await.unwrap();
        let length = 8 * MIB;
        let head =
            format!("{method} {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n");
        socket.write_all(head.as_bytes()).await.unwrap();
        for _ in 0..length / 65536 {
            socket.write_all(&[0; 65536]).await.expect("the server reads on for a while");
        }
        let answer = read_head(&mut socket).await;
        let status = answer.split(' ').nth(1).unwrap().to_owned();
        assert!(["404", "405", "413"].contains(&&*status), "{method} {path}: {answer}");
    }
    let large = Content::blob(1, 2 * MIB);
    let location = mirror.begin("app").await;
    mirror.put(&location, &large.digest, &large.bytes).await.assert_error(413, "SIZE_INVALID");
}
