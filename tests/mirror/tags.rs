//! Tags: how long they are believed, how little is asked about them, and what stands in for an
//! upstream that cannot answer.

use std::time::Duration;

use futures_util::future::join_all;

use crate::support::client::Answer;
use crate::support::fault::{Fault, Gate};
use crate::support::image::{self, Image};
use crate::support::mirror::{Mirror, before, until};
use crate::support::record::On;
use crate::support::registry::Limit;
use crate::support::upstream::Upstream;

const PATH: &str = "/v2/team/app/manifests/v1";

fn manifests() -> On {
    On::any("/manifests/")
}

struct Tagged {
    upstream: Upstream,
    mirror: Mirror,
    image: Image,
}

impl Tagged {
    /// A mirror that believes a tag for so long and has pulled the image once.
    async fn pulled(tag_ttl: &str) -> Self {
        let upstream = Upstream::start().await;
        let image = image::oci(1).build();
        upstream.push("team/app", "v1", &image);
        let options = format!("tag_ttl: {tag_ttl}\nresponse_timeout: 1s\nconnect_timeout: 1s");
        let mirror = before(&upstream).with(&options).start().await;
        mirror.pull("team/app", "v1", &image).await;
        Self { upstream, mirror, image }
    }

    async fn get(&self) -> Answer {
        self.mirror.get(PATH).answer().await
    }

    fn is_stale(&self, answer: &Answer) -> bool {
        answer.is(&self.image.manifest.bytes) && answer.cache().contains("stale")
    }
}

#[tokio::test]
async fn a_fresh_tag_is_answered_without_asking() {
    let tagged = Tagged::pulled("1h").await;
    let asked = tagged.upstream.count(&On::any(""));
    for _ in 0..5 {
        assert!(tagged.get().await.cache().starts_with("pierhead; hit"));
    }
    let moved = image::oci(2).build();
    tagged.upstream.push("team/app", "v1", &moved);
    assert!(tagged.get().await.is(&tagged.image.manifest.bytes), "believed for an hour");
    assert_eq!(tagged.upstream.count(&On::any("")), asked, "{}", tagged.upstream.story());
}

#[tokio::test]
async fn a_tag_is_asked_about_again_once_its_time_is_over() {
    let tagged = Tagged::pulled("1s").await;
    let moved = image::oci(2).build();
    tagged.upstream.push("team/app", "v1", &moved);
    let has_moved = |answer: &Answer| answer.is(&moved.manifest.bytes);
    until("the tag's new image", || tagged.mirror.get(PATH), has_moved).await;
}

#[tokio::test]
async fn a_tag_that_has_not_moved_costs_a_head_and_no_counted_pull() {
    let tagged = Tagged::pulled("0s").await;
    let gets = tagged.upstream.count(&On::get("/manifests/"));
    let heads = tagged.upstream.count(&On::head("/manifests/"));
    for _ in 0..5 {
        assert!(tagged.get().await.is(&tagged.image.manifest.bytes));
    }
    let head = tagged.mirror.head(PATH).answer().await;
    assert_eq!(
        (head.status, head.header("docker-content-digest")),
        (200, tagged.image.manifest.digest.as_str())
    );
    let story = tagged.upstream.story();
    assert_eq!(tagged.upstream.count(&On::get("/manifests/")), gets, "{story}");
    assert_eq!(tagged.upstream.count(&On::head("/manifests/")), heads + 6, "{story}");
}

#[tokio::test]
async fn a_tag_that_moved_costs_one_pull_and_the_old_image_stays() {
    let tagged = Tagged::pulled("0s").await;
    let gets = tagged.upstream.count(&On::get("/manifests/"));
    let moved = image::oci(2).build();
    tagged.upstream.push("team/app", "v1", &moved);
    for _ in 0..3 {
        assert!(tagged.get().await.is(&moved.manifest.bytes));
    }
    assert_eq!(
        tagged.upstream.count(&On::get("/manifests/")),
        gets + 1,
        "{}",
        tagged.upstream.story()
    );
    // A node that looked the tag up before goes on by digest.
    tagged.upstream.stop().await;
    for content in [&tagged.image.manifest, &moved.manifest] {
        let path = format!("/v2/team/app/manifests/{}", content.digest);
        assert!(tagged.mirror.get(&path).answer().await.is(&content.bytes));
    }
}

#[tokio::test]
async fn many_clients_on_one_old_tag_cost_few_questions() {
    let tagged = Tagged::pulled("0s").await;
    let gate = Gate::closed();
    tagged.upstream.always(manifests(), Fault::HoldHead(gate.clone()));
    let asked = tagged.upstream.count(&manifests());
    let clients = join_all((0..32).map(|_| tagged.get()));
    let opening = async {
        tagged.upstream.until_asked(asked + 1, &manifests()).await;
        gate.open();
    };
    let (answers, ()) = tokio::join!(clients, opening);
    assert!(answers.iter().all(|answer| answer.is(&tagged.image.manifest.bytes)));
    // Those who came before the answer share it. With a lifetime of nothing those who came after
    // may not, but no question is a counted pull.
    assert!(tagged.upstream.count(&manifests()) < asked + 32, "{}", tagged.upstream.story());
    assert_eq!(tagged.upstream.count(&On::get("/manifests/")), 1, "{}", tagged.upstream.story());
}

#[tokio::test]
async fn a_head_without_a_digest_or_not_allowed_leads_to_a_get() {
    for (on, fault) in [
        (manifests(), Fault::NoHeader("docker-content-digest")),
        (On::head("/manifests/"), Fault::Status(405)),
    ] {
        let tagged = Tagged::pulled("0s").await;
        tagged.upstream.always(on, fault);
        assert!(tagged.get().await.is(&tagged.image.manifest.bytes));
        let moved = image::oci(2).build();
        tagged.upstream.push("team/app", "v1", &moved);
        assert!(tagged.get().await.is(&moved.manifest.bytes), "{}", tagged.upstream.story());
    }
}

#[tokio::test]
async fn a_tag_is_served_stale_when_the_upstream_cannot_answer() {
    let faults = [
        Fault::Status(429),
        Fault::Plain(429),
        Fault::Status(500),
        Fault::Plain(502),
        Fault::Status(503),
        Fault::Plain(504),
        Fault::CutHead,
        Fault::HoldHead(Gate::closed()),
    ];
    join_all(faults.map(async |fault| {
        let tagged = Tagged::pulled("0s").await;
        tagged.upstream.always(On::any(""), fault.clone());
        for ask in [tagged.mirror.get(PATH), tagged.mirror.get(PATH)] {
            let answer = ask.answer().await;
            assert!(tagged.is_stale(&answer), "{fault:?}: {answer:?}");
            assert!(answer.cache().contains("detail="), "why? {}", answer.cache());
        }
        let head = tagged.mirror.head(PATH).answer().await;
        assert_eq!(head.header("docker-content-digest"), tagged.image.manifest.digest, "{fault:?}");

        tagged.upstream.behave();
        let moved = image::oci(2).build();
        tagged.upstream.push("team/app", "v1", &moved);
        let has_moved = |answer: &Answer| answer.is(&moved.manifest.bytes);
        until("the upstream to be asked again", || tagged.mirror.get(PATH), has_moved).await;
    }))
    .await;
}

#[tokio::test]
async fn a_tag_is_served_stale_when_the_upstream_refuses_connections() {
    let tagged = Tagged::pulled("0s").await;
    tagged.upstream.stop().await;
    let answer = tagged.get().await;
    assert!(tagged.is_stale(&answer), "{answer:?}");
    tagged.upstream.restart();
    let moved = image::oci(2).build();
    tagged.upstream.push("team/app", "v1", &moved);
    let has_moved = |answer: &Answer| answer.is(&moved.manifest.bytes);
    until("the upstream to be asked again", || tagged.mirror.get(PATH), has_moved).await;
}

#[tokio::test]
async fn a_tag_that_moved_to_a_manifest_that_cannot_be_had_is_served_stale() {
    let tagged = Tagged::pulled("0s").await;
    tagged.upstream.push("team/app", "v1", &image::oci(2).build());
    tagged.upstream.always(On::get("/manifests/"), Fault::Status(429));
    let answer = tagged.get().await;
    assert!(tagged.is_stale(&answer), "{answer:?}");
}

#[tokio::test]
async fn a_refusal_or_an_absence_is_an_answer_and_never_papered_over() {
    for status in [401, 403, 404] {
        let tagged = Tagged::pulled("0s").await;
        tagged.upstream.always(manifests(), Fault::Status(status));
        for ask in [tagged.mirror.get(PATH), tagged.mirror.get(PATH)] {
            let answer = ask.answer().await;
            assert!((400..500).contains(&answer.status), "{status}: {answer:?}");
            let (code, _) = answer.error();
            match status {
                404 => assert_eq!((answer.status, code.as_str()), (404, "MANIFEST_UNKNOWN")),
                _ => assert!([401, 403, 404].contains(&answer.status), "{status}: {answer:?}"),
            }
            let challenged = answer.headers.contains_key("www-authenticate");
            assert!(answer.status != 401 || challenged, "{answer:?}");
        }
        assert!((400..500).contains(&tagged.mirror.head(PATH).answer().await.status));
        tagged.upstream.behave();
        let back = |answer: &Answer| answer.is(&tagged.image.manifest.bytes);
        until("the tag to be back", || tagged.mirror.get(PATH), back).await;
    }
}

#[tokio::test]
async fn a_deleted_tag_does_not_take_its_image_along() {
    let tagged = Tagged::pulled("0s").await;
    tagged.upstream.set(|registry| registry.repository("team/app").tags.clear());
    tagged.get().await.assert_error(404, "MANIFEST_UNKNOWN");
    tagged.mirror.until_kept(4).await;
    let path = format!("/v2/team/app/manifests/{}", tagged.image.manifest.digest);
    assert!(tagged.mirror.get(&path).answer().await.is(&tagged.image.manifest.bytes));
}

#[tokio::test]
async fn an_absence_is_believed_for_seconds_only() {
    let upstream = Upstream::start().await;
    let image = image::oci(1).build();
    let mirror = before(&upstream).with("tag_ttl: 1h").start().await;
    for _ in 0..5 {
        mirror.get(PATH).answer().await.assert_error(404, "MANIFEST_UNKNOWN");
    }
    assert!(upstream.count(&manifests()) <= 5, "{}", upstream.story());
    upstream.push("team/app", "v1", &image);
    let there = |answer: &Answer| answer.is(&image.manifest.bytes);
    let wait = until("the tag that was just pushed", || mirror.get(PATH), there);
    tokio::time::timeout(Duration::from_secs(30), wait).await.expect("within seconds");
}

#[tokio::test]
async fn an_exhausted_pull_limit_is_met_with_held_content_and_few_questions() {
    let tagged = Tagged::pulled("0s").await;
    tagged.upstream.set(|registry| registry.limit = Some(Limit::of(0)));
    let asked = tagged.upstream.count(&manifests());
    for _ in 0..10 {
        assert!(tagged.get().await.is(&tagged.image.manifest.bytes));
    }
    assert_eq!(tagged.upstream.count(&On::get("/manifests/")), 1, "{}", tagged.upstream.story());
    assert!(tagged.upstream.count(&manifests()) <= asked + 10, "{}", tagged.upstream.story());
}

#[tokio::test]
async fn a_thousand_pulls_of_one_tag_cost_hardly_anything() {
    let upstream = Upstream::start().await;
    let image = image::oci(1).build();
    upstream.push("team/app", "v1", &image);
    upstream.set(|registry| registry.limit = Some(Limit::of(5)));
    let mirror = before(&upstream).with("tag_ttl: 1s").start().await;
    for _ in 0..20 {
        let answers = join_all((0..50).map(|_| mirror.get(PATH).answer())).await;
        assert!(answers.iter().all(|answer| answer.is(&image.manifest.bytes)));
    }
    let counted = upstream.count(&On::get("/manifests/"));
    assert!(counted <= 2, "{counted} counted pulls\n{}", upstream.story());
}

#[tokio::test]
async fn the_remaining_budget_is_shown() {
    let upstream = Upstream::start().await;
    let image = image::oci(1).build();
    upstream.push("team/app", "v1", &image);
    upstream.set(|registry| registry.limit = Some(Limit::of(100)));
    let mirror = before(&upstream).start().await;
    mirror.pull("team/app", "v1", &image).await;
    let shown =
        async |what: &str| mirror.metric(&format!("pierhead_upstream_ratelimit_{what}"), &[]).await;
    assert_eq!((shown("limit").await, shown("remaining").await), (100.0, 99.0));
}

#[tokio::test]
async fn everything_pulled_before_is_served_with_the_upstream_gone_and_the_mirror_restarted() {
    let upstream = Upstream::start().await;
    let index = image::oci(1).index();
    let single = image::docker(9).layers(&[300_000, 10, 0]).build();
    upstream.push_index("team/app", "multi", &index);
    upstream.push("library/other", "v1", &single);
    let options = "tag_ttl: 0s\nconnect_timeout: 1s";
    let mut mirror = before(&upstream).with(options).start().await;
    let everything = async |mirror: &Mirror| {
        let answer = mirror.get("/v2/team/app/manifests/multi").answer().await;
        assert!(answer.is(&index.manifest.bytes), "{answer:?}");
        for image in &index.images {
            let path = format!("/v2/team/app/manifests/{}", image.manifest.digest);
            assert!(mirror.get(&path).answer().await.is(&image.manifest.bytes));
            for blob in image.blobs() {
                let path = format!("/v2/team/app/blobs/{}", blob.digest);
                assert!(mirror.get(&path).answer().await.is(&blob.bytes));
            }
        }
        mirror.pull("library/other", "v1", &single).await
    };
    everything(&mirror).await;
    upstream.stop().await;
    everything(&mirror).await;
    assert!(mirror.stop().await.success());
    mirror.start().await;
    assert_eq!(mirror.admin("/readyz").answer().await.status, 200, "ready without an upstream");
    let words = everything(&mirror).await;
    assert!(words.iter().all(|word| word.contains("hit") || word.contains("stale")), "{words:?}");
    let answer = mirror.get("/v2/team/app/manifests/multi").answer().await;
    assert_eq!(answer.header("content-type"), image::OCI_INDEX, "the type outlives a restart");
    let path = format!("/v2/library/other/manifests/{}", single.manifest.digest);
    let answer = mirror.get(&path).answer().await;
    assert_eq!(answer.header("content-type"), image::DOCKER_MANIFEST, "by digest too");
}

#[tokio::test]
async fn a_tag_that_moved_lately_keeps_its_previous_digest_for_the_cooldown() {
    let upstream = Upstream::start().await;
    let (old, new) = (image::oci(1).build(), image::oci(2).build());
    upstream.push("team/app", "v1", &old);
    let mirror = before(&upstream).with("tag_ttl: 0s").with("cooldown: 2s").start().await;
    let get = || mirror.get("/v2/team/app/manifests/v1");
    assert!(get().answer().await.is(&old.manifest.bytes), "nothing came before it");
    upstream.push("team/app", "v1", &new);
    for _ in 0..3 {
        assert!(get().answer().await.is(&old.manifest.bytes), "it moved just now");
        let head = mirror.head("/v2/team/app/manifests/v1").answer().await;
        assert_eq!(head.header("docker-content-digest"), old.manifest.digest);
    }
    let moved = |answer: &Answer| answer.is(&new.manifest.bytes);
    until("the end of the cooldown", get, moved).await;
}

#[tokio::test]
async fn a_pinned_tag_stands_for_its_digest_whatever_the_upstream_says() {
    let upstream = Upstream::start().await;
    let (good, bad) = (image::oci(1).build(), image::oci(2).build());
    upstream.push("team/app", "v0", &good);
    upstream.push("team/app", "v1", &bad);
    let pin = format!("pins: {{'team/app:v1': '{}'}}", good.manifest.digest);
    let mirror = before(&upstream).with(&pin).start().await;
    let answer = mirror.get("/v2/team/app/manifests/v1").answer().await;
    assert!(answer.is(&good.manifest.bytes));
    assert_eq!(upstream.count(&On::any("/manifests/v1")), 0, "{}", upstream.story());
}

/// Signing tools ask, make, and ask again.
#[tokio::test]
async fn the_absence_of_a_signature_is_believed_for_a_second_only() {
    let upstream = Upstream::start().await;
    let image = image::oci(1).build();
    let tag = format!("sha256-{}.sig", &image.manifest.digest["sha256:".len()..]);
    let mirror = before(&upstream).start().await;
    let get = || mirror.get(&format!("/v2/team/app/manifests/{tag}"));
    assert_eq!(get().answer().await.status, 404);
    upstream.push("team/app", &tag, &image);
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert!(get().answer().await.is(&image.manifest.bytes));
}
