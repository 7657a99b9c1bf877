//! What an attack on the running program has found, so that it stays mended.

use crate::support::client::raw;
use crate::support::cold::{Cold, blobs};
use crate::support::fault::{Fault, Gate};
use crate::support::image;
use crate::support::mirror::{NAME, Setup, before};
use crate::support::record::On;
use crate::support::upstream::Upstream;

const MIB: usize = 1024 * 1024;

#[tokio::test]
async fn an_old_client_gets_no_chunks() {
    let cold = Cold::start(300_000).await;
    cold.upstream.always(blobs(), Fault::NoLength);
    let request = format!("GET {} HTTP/1.0\r\nHost: x\r\n\r\n", cold.path);
    let answer = raw(cold.mirror.address(), request.as_bytes()).await.expect("an answer");
    assert!(!answer.head.to_ascii_lowercase().contains("transfer-encoding"), "{}", answer.head);
    assert!(answer.body == cold.blob.bytes, "{} bytes", answer.body.len());
}

#[tokio::test]
async fn a_request_of_two_lengths_or_for_nobody_is_refused() {
    let cold = Cold::start(1000).await;
    for request in [
        "GET /v2/ HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "GET /v2/ HTTP/1.1\r\nHost: x\r\ntransfer-encoding: chunked\r\nCONTENT-LENGTH: 5\r\n\r\n0\r\n\r\n",
        "GET /v2/ HTTP/1.1\r\nAccept: */*\r\n\r\n",
    ] {
        let answer = raw(cold.mirror.address(), request.as_bytes()).await.expect("an answer");
        assert_eq!(answer.status, 400, "{request}");
    }
}

#[tokio::test]
async fn a_look_at_a_part_of_a_layer_fetches_no_other() {
    let image = image::oci(1).layers(&[300_000, 200_000, 150_000]).build();
    let upstream = Upstream::start().await;
    upstream.push("team/app", "v1", &image);
    let mirror = before(&upstream).start().await;
    mirror.get("/v2/team/app/manifests/v1").answer().await;
    let layer = format!("/v2/team/app/blobs/{}", image.layers[0].digest);
    let answer = mirror.get(&layer).header("range", "bytes=0-0").answer().await;
    assert_eq!(answer.status, 206);
    assert_eq!(upstream.count(&On::get("/blobs/")), 1, "{}", upstream.story());
}

#[tokio::test]
async fn an_upstream_that_hangs_takes_no_turn_of_another() {
    let (hanging, healthy) = (Upstream::start().await, Upstream::start().await);
    let gate = Gate::closed();
    hanging.always(On::get("/blobs/"), Fault::HoldAfter(1000, gate.clone()));
    let wanted = healthy.blob("team/app", 7, MIB);
    let blobs: Vec<_> = (0..140).map(|n| hanging.blob("team/app", 100 + n, 50_000)).collect();
    let mirror =
        Setup::new().upstream("hanging.test", &hanging).upstream(NAME, &healthy).start().await;
    let mut waiting = Vec::new();
    for blob in &blobs {
        let path = format!("/v2/hanging.test/team/app/blobs/{}", blob.digest);
        waiting.push(tokio::spawn(mirror.get(&path).open()));
    }
    let path = format!("/v2/{NAME}/team/app/blobs/{}", wanted.digest);
    assert!(mirror.get(&path).answer().await.is(&wanted.bytes));
    gate.open();
    for client in waiting {
        client.abort();
    }
}

#[tokio::test]
async fn a_cache_folder_that_is_emptied_under_the_mirror_is_made_anew() {
    let cold = Cold::start(300_000).await;
    for entry in std::fs::read_dir(cold.mirror.cache()).expect("the cache folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            std::fs::remove_dir_all(path).expect("root may remove it");
        }
    }
    assert!(cold.get().await.is(&cold.blob.bytes));
    cold.mirror.until_kept(1).await;
    assert!(cold.get().await.cache().starts_with("pierhead; hit"));
}
