//! The upstream's limit as a budget: what is spared, who waits, and when another account is taken.

use std::time::Duration;

use futures_util::future::join_all;

use crate::support::auth::{Account, Auth, Bearer};
use crate::support::client::Answer;
use crate::support::fault::Fault;
use crate::support::image::{self, Image};
use crate::support::mirror::{Mirror, before};
use crate::support::record::On;
use crate::support::registry::Limit;
use crate::support::soon;
use crate::support::upstream::Upstream;

const PATH: &str = "/v2/team/app/manifests/v1";

async fn upstream_with_image() -> (Upstream, Image) {
    let upstream = Upstream::start().await;
    let image = image::oci(1).build();
    upstream.push("team/app", "v1", &image);
    (upstream, image)
}

fn limit(upstream: &Upstream, limit: Limit) {
    upstream.set(|registry| registry.limit = Some(limit));
}

async fn serves(mirror: &Mirror, image: &Image) -> bool {
    mirror.get(PATH).answer().await.is(&image.manifest.bytes)
}

#[tokio::test]
async fn a_thousand_pulls_of_a_tag_cost_two_counted_requests_at_most() {
    let (upstream, image) = upstream_with_image().await;
    limit(&upstream, Limit::of(5));
    let mirror = before(&upstream).with("tag_ttl: 1s").start().await;
    for _ in 0..20 {
        let pulls = join_all((0..50).map(|_| serves(&mirror, &image))).await;
        assert!(pulls.iter().all(|served| *served));
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
    assert!(upstream.count(&On::get("/manifests/")) <= 2, "{}", upstream.story());
    assert!(upstream.count(&On::head("/manifests/")) >= 2, "the tag was asked for again");
}

#[tokio::test]
async fn where_little_is_left_held_tags_are_served_without_asking() {
    let (upstream, image) = upstream_with_image().await;
    upstream.push("team/app", "v2", &image::oci(2).build());
    limit(&upstream, Limit { remaining: 11, ..Limit::of(100) });
    let mirror = before(&upstream).with("tag_ttl: 0s").start().await;
    assert!(serves(&mirror, &image).await);
    // Ten are left: one look whether that is so, then no more.
    for _ in 0..5 {
        let answer = mirror.get(PATH).answer().await;
        assert!(answer.is(&image.manifest.bytes), "{}", answer.status);
    }
    let heads = upstream.count(&On::head("/manifests/"));
    assert!(heads <= 2, "{}", upstream.story());
    assert!(mirror.get(PATH).answer().await.cache().contains("stale"));
    // What is not held is what the rest is kept for.
    let other = image::oci(2).build();
    let answer = mirror.get("/v2/team/app/manifests/v2").answer().await;
    assert!(answer.is(&other.manifest.bytes), "{}", answer.status);
    let told = async {
        while !mirror.log().contains("runs low") {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    soon("the log to say that the limit runs low", told).await;
    assert!((mirror.metric("pierhead_upstream_ratelimit_remaining", &[]).await - 9.0).abs() < 0.1);
}

#[tokio::test]
async fn the_next_account_is_taken_where_a_limit_is_reached() {
    let (upstream, image) = upstream_with_image().await;
    let (first, second) = (Account::new("first", "s3cret"), Account::new("second", "s3cret"));
    upstream.set(|registry| registry.auth = Auth::Bearer(Bearer::usual()));
    let accounts =
        "auth: [{username: first, password: s3cret}, {username: second, password: s3cret}]";
    let mirror = before(&upstream).with(accounts).start().await;
    let limited = [Fault::Status(429), Fault::Header("retry-after", "600".to_owned())];
    let path = format!("/v2/team/app/blobs/{}", image.config.digest);
    assert!(mirror.get(&path).answer().await.is(&image.config.bytes));
    upstream.next(1, On::get("/manifests/"), limited);
    assert!(serves(&mirror, &image).await, "{}", upstream.story());
    let tokens = upstream.asked(&On::get("/token"));
    let sent: Vec<_> = tokens.iter().map(|asked| asked.header("authorization")).collect();
    assert_eq!(sent, [first.basic(), second.basic()], "{}", upstream.story());
}

#[tokio::test]
async fn many_refusals_do_not_become_many_retries() {
    let (upstream, _) = upstream_with_image().await;
    let images: Vec<_> = (10..40).map(|seed| image::oci(seed).build()).collect();
    for (place, image) in images.iter().enumerate() {
        upstream.push("team/app", &format!("t{place}"), image);
    }
    let mirror = before(&upstream).start().await;
    let limited = [Fault::Status(429), Fault::Header("retry-after", "2".to_owned())];
    upstream.next(30, On::get("/manifests/"), limited);
    let pulls = join_all(
        (0..30).map(|place| mirror.get(&format!("/v2/team/app/manifests/t{place}")).answer()),
    )
    .await;
    assert!(pulls.iter().all(|answer| [200, 503].contains(&answer.status)));
    // Each was asked for once; then one at a time tried.
    let refused = upstream.asked(&On::get("/manifests/"));
    let refused = refused.iter().filter(|one| one.status.is_some_and(|s| s == 429)).count();
    assert!(refused <= 32, "{refused}: {}", upstream.story());
    let served = pulls.iter().filter(|answer| answer.status == 200).count();
    assert!(served >= 1, "those who waited are served once the limit is over");
}

#[tokio::test]
async fn a_limit_on_manifests_stops_no_blobs_and_is_told_without_asking() {
    let (upstream, image) = upstream_with_image().await;
    let mirror = before(&upstream).start().await;
    let limited = [Fault::Status(429), Fault::Header("retry-after", "600".to_owned())];
    upstream.next(1, On::get("/manifests/"), limited);
    let refused = |answer: &Answer| {
        let seconds: u64 = answer.header("retry-after").parse().unwrap();
        assert!((590..=601).contains(&seconds), "{seconds}");
    };
    for _ in 0..3 {
        let answer = mirror.get(PATH).answer().await;
        assert_eq!(answer.status, 503);
        refused(&answer);
    }
    assert_eq!(upstream.count(&On::any("/manifests/")), 1, "{}", upstream.story());
    let path = format!("/v2/team/app/blobs/{}", image.config.digest);
    assert!(mirror.get(&path).answer().await.is(&image.config.bytes));
}
