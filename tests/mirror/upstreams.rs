//! Getting at content: several endpoints, outages, the pull limit, redirects.

use futures_util::future::join_all;

use crate::support::client::Answer;
use crate::support::fault::{Fault, Gate};
use crate::support::image::{self, Content};
use crate::support::mirror::{NAME, Setup, before};
use crate::support::record::On;
use crate::support::registry::Limit;
use crate::support::upstream::Upstream;

fn blob_path(blob: &Content) -> String {
    format!("/v2/team/app/blobs/{}", blob.digest)
}

async fn upstream_with_image(image: &image::Image) -> Upstream {
    let upstream = Upstream::start().await;
    upstream.push("team/app", "v1", image);
    upstream
}

#[tokio::test]
async fn of_several_endpoints_the_first_is_asked_as_long_as_it_answers() {
    let image = image::oci(1).build();
    let (first, second) = (upstream_with_image(&image).await, upstream_with_image(&image).await);
    let mirror = Setup::new().endpoints(NAME, &[&first.url(), &second.url()]).start().await;
    mirror.pull("team/app", "v1", &image).await;
    assert_eq!(second.connections(), 0);
}

#[tokio::test]
async fn the_next_endpoint_is_asked_where_one_fails() {
    let image = image::oci(1).build();
    let faults = [
        None,
        Some(Fault::Status(500)),
        Some(Fault::Plain(503)),
        Some(Fault::CutHead),
        Some(Fault::Html),
    ];
    join_all(faults.map(async |fault| {
        let (first, second) =
            (upstream_with_image(&image).await, upstream_with_image(&image).await);
        match &fault {
            Some(fault) => first.always(On::any(""), fault.clone()),
            None => first.stop().await,
        }
        let mirror = Setup::new().endpoints(NAME, &[&first.url(), &second.url()]).start().await;
        mirror.pull("team/app", "v1", &image).await;
        assert!(second.count(&On::get("/manifests/")) >= 1, "{fault:?}");
    }))
    .await;
}

#[tokio::test]
async fn with_every_endpoint_down_and_nothing_held_the_answer_is_a_503_to_try_again() {
    let image = image::oci(1).build();
    let (first, second) = (upstream_with_image(&image).await, upstream_with_image(&image).await);
    let setup = Setup::new().endpoints(NAME, &[&first.url(), &second.url()]);
    let mirror = setup.with("connect_timeout: 1s").start().await;
    first.stop().await;
    second.stop().await;
    for path in [
        "/v2/team/app/manifests/v1".to_owned(),
        blob_path(&image.config),
        "/v2/team/app/tags/list".to_owned(),
    ] {
        let answer = mirror.get(&path).answer().await;
        let (_, message) = answer.error();
        assert_eq!(answer.status, 503, "{path}: {message}");
        assert!(message.contains(NAME), "{message}");
        let seconds: u32 = answer.header("retry-after").parse().unwrap();
        assert!((1..=600).contains(&seconds), "{seconds}");
        let head = mirror.head(&path).answer().await;
        assert_eq!((head.status, head.headers.contains_key("retry-after")), (503, true));
    }
    second.restart();
    let served = |answer: &Answer| answer.is(&image.manifest.bytes);
    let ask = || mirror.get("/v2/team/app/manifests/v1");
    crate::support::mirror::until("the endpoint that is back", ask, served).await;
}

#[tokio::test]
async fn an_upstream_that_says_nothing_is_given_up_within_the_clients_patience() {
    let image = image::oci(1).build();
    let upstream = upstream_with_image(&image).await;
    let mirror = before(&upstream).with("response_timeout: 1s").start().await;
    upstream.always(On::any(""), Fault::HoldHead(Gate::closed()));
    for path in ["/v2/team/app/manifests/v1".to_owned(), blob_path(&image.config)] {
        let answer = mirror.get(&path).answer().await;
        let (_, message) = answer.error();
        assert_eq!(answer.status, 503, "{message}");
        assert!(message.contains(NAME), "{message}");
    }
}

#[tokio::test]
async fn two_failures_before_a_success_are_never_seen() {
    let image = image::oci(1).build();
    let upstream = upstream_with_image(&image).await;
    upstream.next(2, On::any("/manifests/"), [Fault::Status(503)]);
    upstream.next(2, On::any(&image.config.digest), [Fault::Plain(502)]);
    upstream.next(2, On::any(&image.layers[0].digest), [Fault::CutHead]);
    upstream.next(
        1,
        On::any(&image.layers[1].digest),
        [Fault::Status(429), Fault::Header("retry-after", "1".to_owned())],
    );
    let mirror = before(&upstream).start().await;
    mirror.pull("team/app", "v1", &image).await;
}

#[tokio::test]
async fn a_pull_limit_with_nothing_held_is_told_with_a_time_to_try_again() {
    let image = image::oci(1).build();
    for retry_after in
        [Some("1000".to_owned()), Some("Fri, 31 Dec 2100 23:59:59 GMT".to_owned()), None]
    {
        let upstream = upstream_with_image(&image).await;
        upstream.set(|registry| {
            registry.limit = Some(Limit { retry_after: retry_after.clone(), ..Limit::of(0) });
        });
        let mirror = before(&upstream).start().await;
        let answer = mirror.get("/v2/team/app/manifests/v1").answer().await;
        let (code, message) = answer.error();
        let known = [(429, "TOOMANYREQUESTS"), (503, "TOOMANYREQUESTS"), (503, "UNAVAILABLE")];
        assert!(known.contains(&(answer.status, code.as_str())), "{}: {message}", answer.status);
        assert!(message.contains(NAME), "{message}");
        let seconds: u64 = answer.header("retry-after").parse().unwrap();
        assert!(seconds > 0, "{retry_after:?}");
        assert!(retry_after.as_deref() != Some("1000") || seconds >= 900, "{seconds}");
        let counted = upstream.count(&On::get("/manifests/"));
        assert!(counted <= 4, "many 429s never become many retries\n{}", upstream.story());
    }
}

#[tokio::test]
async fn a_refusal_by_the_upstream_is_no_outage() {
    let image = image::oci(1).build();
    let upstream = upstream_with_image(&image).await;
    upstream.always(On::any("/v2/"), Fault::Status(403));
    let mirror = before(&upstream).start().await;
    for path in ["/v2/team/app/manifests/v1".to_owned(), blob_path(&image.config)] {
        let answer = mirror.get(&path).answer().await;
        let (code, _) = answer.error();
        assert!(
            [(403, "DENIED"), (404, "NAME_UNKNOWN")].contains(&(answer.status, code.as_str())),
            "{code}"
        );
    }
    assert!(upstream.count(&On::any("")) <= 4, "{}", upstream.story());
}

/// GHCR's CDN answers 501 to several ranges, GCS 400.
#[tokio::test]
async fn the_upstream_is_never_asked_for_several_ranges() {
    for answer in [501, 400] {
        let upstream = Upstream::start().await;
        let blob = upstream.blob("team/app", 1, 100_000);
        upstream.set(|registry| registry.many_ranges = answer);
        let mirror = before(&upstream).start().await;
        let ask = mirror.get(&blob_path(&blob)).header("range", "bytes=0-9,50-59");
        assert_eq!(ask.answer().await.status, 206);
        let asked = upstream.asked(&On::any("/blobs/"));
        assert!(asked.iter().all(|exchange| !exchange.header("range").contains(',')));
    }
}
