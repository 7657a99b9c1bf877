//! The scripted upstream itself: a test that trusts a broken script proves nothing.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use hyper::Method;

use crate::support::auth::{Auth, Bearer};
use crate::support::cdn::Cdn;
use crate::support::client::{Answer, Ask};
use crate::support::fault::{Fault, Gate};
use crate::support::image::{self, Content};
use crate::support::record::On;
use crate::support::upstream::Upstream;

fn ask(upstream: &Upstream, path: &str) -> Ask {
    Ask::new(upstream.host().parse().expect("an address"), Method::GET, path)
}

async fn blob_with(fault: Fault) -> (Answer, Content) {
    let upstream = Upstream::start().await;
    let blob = upstream.blob("a", 1, 200_000);
    upstream.next(1, On::get("/blobs/"), [fault]);
    let path = format!("/v2/a/blobs/{}", blob.digest);
    let answer = ask(&upstream, &path).answer().await;
    let again = ask(&upstream, &path).answer().await;
    assert!(again.is(&blob.bytes), "a rule for one request holds for one request");
    (answer, blob)
}

#[tokio::test]
async fn images_are_always_the_same_and_refer_to_their_parts() {
    let image = image::oci(7).build();
    assert_eq!(image.manifest.digest, image::oci(7).build().manifest.digest);
    assert_ne!(image.manifest.digest, image::oci(8).build().manifest.digest);
    let text = String::from_utf8(image.manifest.bytes.to_vec()).unwrap();
    assert!(image.blobs().all(|blob| text.contains(&blob.digest)));
    assert!(image::oci(7).sha512().build().manifest.digest.starts_with("sha512:"));
}

#[tokio::test]
async fn faults_do_what_they_are_called() {
    let (answer, blob) = blob_with(Fault::CutAfter(100_000)).await;
    assert_eq!((answer.status, answer.whole, answer.body.len()), (200, false, 100_000));
    assert_eq!(answer.body, blob.bytes.slice(..100_000));

    let (answer, _) = blob_with(Fault::Truncate(5)).await;
    assert_eq!((answer.whole, answer.body.len(), answer.header("content-length")), (true, 5, "5"));

    let (answer, _) = blob_with(Fault::Extra(3)).await;
    assert_eq!((answer.whole, answer.body.len()), (true, 200_003));

    let (answer, blob) = blob_with(Fault::CorruptAt(9)).await;
    assert!(answer.deceives(&blob.bytes) && answer.body.len() == blob.bytes.len());

    let (answer, blob) = blob_with(Fault::NoLength).await;
    assert_eq!(answer.header("content-length"), "");
    assert!(answer.is(&blob.bytes));

    let (answer, _) = blob_with(Fault::Html).await;
    assert_eq!((answer.status, answer.header("content-type")), (200, "text/html; charset=utf-8"));

    let (answer, _) = blob_with(Fault::Status(429)).await;
    answer.assert_error(429, "TOOMANYREQUESTS");

    let (answer, blob) = blob_with(Fault::Throttle(2_000_000)).await;
    assert!(answer.is(&blob.bytes));
    let (answer, blob) = blob_with(Fault::DelayBody(Duration::from_millis(1))).await;
    assert!(answer.is(&blob.bytes));
}

#[tokio::test]
async fn ranges_are_honoured_unless_a_fault_says_otherwise() {
    let upstream = Upstream::start().await;
    let blob = upstream.blob("a", 1, 1000);
    let path = format!("/v2/a/blobs/{}", blob.digest);
    let range = |range: &str| ask(&upstream, &path).header("range", range).answer();
    let answer = range("bytes=100-199").await;
    assert_eq!((answer.status, answer.header("content-range")), (206, "bytes 100-199/1000"));
    assert_eq!(answer.body, blob.bytes.slice(100..200));
    assert_eq!(range("bytes=-10").await.body, blob.bytes.slice(990..));
    assert_eq!(range("bytes=1000-").await.header("content-range"), "bytes */1000");
    upstream.always(On::get("/blobs/"), Fault::ShiftContentRange(1));
    assert_eq!(range("bytes=100-").await.header("content-range"), "bytes 101-1000/1001");
    upstream.always(On::get("/blobs/"), Fault::IgnoreRange);
    assert!(range("bytes=100-").await.is(&blob.bytes));
}

#[tokio::test]
async fn an_answer_waits_at_a_gate_and_the_record_tells_how_far_it_got() {
    let upstream = Upstream::start().await;
    let blob = upstream.blob("a", 1, 300_000);
    let gate = Gate::closed();
    upstream.always(On::get("/blobs/"), Fault::HoldAfter(150_000, gate.clone()));
    let mut reading = ask(&upstream, &format!("/v2/a/blobs/{}", blob.digest)).open().await;
    let first = reading.at_least(150_000).await;
    assert_eq!(first, blob.bytes.slice(..150_000));
    upstream.until_sent(150_000, &On::any("")).await;
    assert_eq!(upstream.sent(&On::get("/blobs/")), 150_000);
    gate.open();
    assert_eq!(reading.rest().await.body, blob.bytes.slice(150_000..));
    assert!(upstream.until_ended(&On::any("")).await[0].sent == 300_000);
}

#[tokio::test]
async fn a_stopped_upstream_refuses_and_returns_on_its_port() {
    let upstream = Upstream::start().await;
    let address: SocketAddr = upstream.host().parse().unwrap();
    upstream.stop().await;
    assert!(tokio::net::TcpStream::connect(address).await.is_err());
    upstream.restart();
    assert_eq!(ask(&upstream, "/v2/").answer().await.status, 200);
}

#[tokio::test]
async fn a_token_opens_the_repository_it_was_asked_for() {
    let upstream = Upstream::start().await;
    upstream.push("a/b", "v1", &image::oci(1).build());
    upstream.set(|registry| registry.auth = Auth::Bearer(Bearer::usual()));
    let refused = ask(&upstream, "/v2/a/b/manifests/v1").answer().await;
    assert_eq!(refused.status, 401);
    assert!(refused.header("www-authenticate").contains(r#"scope="repository:a/b:pull""#));
    let token = async |scope: &str| {
        let path = format!("/token?service=registry.test&scope=repository%3A{scope}%3Apull");
        ask(&upstream, &path).answer().await.json()["token"].as_str().unwrap().to_owned()
    };
    let with = async |token: &str| {
        let ask = ask(&upstream, "/v2/a/b/manifests/v1");
        ask.header("authorization", &format!("Bearer {token}")).answer().await.status
    };
    assert_eq!(with(&token("a/b").await).await, 200);
    assert_eq!(with(&token("other").await).await, 401);
    let revoked = token("a/b").await;
    upstream.tokens().revoke();
    assert_eq!(with(&revoked).await, 401);
}

#[tokio::test]
async fn the_cdn_wants_a_fresh_url_and_no_credentials() {
    let cdn = Cdn::start().await;
    let address: SocketAddr = cdn.host().parse().unwrap();
    let url = cdn.sign("sha256:00", &Bytes::from_static(b"content"));
    let path = url.strip_prefix(&cdn.url()).unwrap();
    let get = || Ask::new(address, Method::GET, path);
    assert!(get().answer().await.is(&Bytes::from_static(b"content")));
    assert_eq!(get().header("authorization", "Bearer x").answer().await.status, 400);
    assert_eq!(Ask::new(address, Method::HEAD, path).answer().await.status, 403);
    cdn.expire();
    assert_eq!(get().answer().await.status, 403);
}
