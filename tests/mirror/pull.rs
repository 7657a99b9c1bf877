//! The main job: an image is pulled through the mirror, and the second pull asks nobody.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::future::join_all;
use hyper::header::HeaderMap;

use crate::support::client::Answer;
use crate::support::image::{self, Content, DOCKER_MANIFEST, Image, OCI_MANIFEST};
use crate::support::mirror::{NAME, before};
use crate::support::record::On;
use crate::support::soon;
use crate::support::upstream::Upstream;

const REPOSITORY: &str = "team/app";

async fn upstream_with(image: &Image) -> Upstream {
    let upstream = Upstream::start().await;
    upstream.push(REPOSITORY, "v1", image);
    upstream
}

#[tokio::test]
async fn the_second_pull_of_an_image_does_not_go_upstream() {
    let image = image::oci(1).build();
    let upstream = upstream_with(&image).await;
    let mirror = before(&upstream).start().await;

    let first = mirror.pull(REPOSITORY, "v1", &image).await;
    // A layer that was fetched ahead may be whole when it is asked for.
    assert!(
        first[..3].iter().skip(1).all(|word| word.starts_with("pierhead; fwd=miss")),
        "{first:?}"
    );
    let asked = upstream.count(&On::any(""));
    assert_eq!(upstream.count(&On::get("/manifests/")), 1, "{}", upstream.story());
    assert_eq!(upstream.count(&On::get("/blobs/")), 3, "{}", upstream.story());

    let second = mirror.pull(REPOSITORY, "v1", &image).await;
    assert!(second.iter().all(|word| word.starts_with("pierhead; hit")), "{second:?}");
    assert_eq!(upstream.count(&On::any("")), asked, "{}", upstream.story());
}

#[tokio::test]
async fn a_tag_can_be_pulled_by_get_alone() {
    let image = image::oci(1).build();
    let upstream = upstream_with(&image).await;
    let mirror = before(&upstream).start().await;
    for _ in 0..2 {
        let answer = mirror.get("/v2/team/app/manifests/v1").answer().await;
        assert!(answer.is(&image.manifest.bytes), "{answer:?}");
        assert_eq!(answer.header("content-type"), OCI_MANIFEST);
    }
    assert_eq!(upstream.count(&On::get("/manifests/")), 1, "{}", upstream.story());
}

#[tokio::test]
async fn a_digest_is_served_though_no_tag_led_to_it() {
    let image = image::oci(1).build();
    let upstream = upstream_with(&image).await;
    let mirror = before(&upstream).start().await;
    let path = format!("/v2/team/app/manifests/{}", image.manifest.digest);
    assert!(mirror.get(&path).answer().await.is(&image.manifest.bytes));
    assert!(mirror.get(&path).answer().await.cache().starts_with("pierhead; hit"));
    assert_eq!(upstream.count(&On::any("/manifests/")), 1, "{}", upstream.story());
}

#[tokio::test]
async fn the_version_check_is_answered_by_the_mirror_itself() {
    let upstream = Upstream::start().await;
    let mirror = before(&upstream).start().await;
    for ask in [mirror.get("/v2/"), mirror.head("/v2/")] {
        let answer = ask.answer().await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("docker-distribution-api-version"), "registry/2.0");
    }
    assert_eq!(upstream.connections(), 0);
}

#[tokio::test]
async fn head_on_a_missing_blob_tells_its_size_and_downloads_nothing() {
    let upstream = Upstream::start().await;
    let blob = upstream.blob(REPOSITORY, 1, 3_000_000);
    let mirror = before(&upstream).start().await;
    for _ in 0..3 {
        let answer = mirror.head(&format!("/v2/team/app/blobs/{}", blob.digest)).answer().await;
        assert_eq!((answer.status, answer.header("content-length")), (200, "3000000"));
        assert_eq!(answer.header("docker-content-digest"), blob.digest);
    }
    let sent = upstream.sent(&On::get("/blobs/"));
    assert!(sent <= 1, "the upstream sent {sent} bytes\n{}", upstream.story());
    assert!(!mirror.keeps(&blob.digest));
}

/// Both on a miss, where the mirror learns as it goes, and on a hit.
#[tokio::test]
async fn manifests_carry_every_header_that_clients_need() {
    let image = image::oci(1).build();
    let upstream = upstream_with(&image).await;
    let mirror = before(&upstream).start().await;
    let digest = &image.manifest.digest;
    for reference in ["v1", digest, "v1", digest] {
        let path = format!("/v2/team/app/manifests/{reference}");
        for answer in [mirror.head(&path).answer().await, mirror.get(&path).answer().await] {
            assert_eq!(answer.status, 200);
            assert_eq!(answer.header("content-type"), OCI_MANIFEST);
            assert_eq!(answer.header("content-length"), image.manifest.len().to_string());
            assert_eq!(answer.header("docker-content-digest"), digest);
            assert_eq!(answer.header("etag"), format!("\"{digest}\""));
            assert_eq!(answer.header("docker-distribution-api-version"), "registry/2.0");
            assert!(answer.headers.contains_key("server-timing"), "{answer:?}");
            assert!(answer.cache().starts_with("pierhead; "), "{answer:?}");
            assert!(!answer.headers.contains_key("transfer-encoding"), "{answer:?}");
        }
    }
}

#[tokio::test]
async fn blobs_carry_every_header_that_clients_need() {
    let upstream = Upstream::start().await;
    let blob = upstream.blob(REPOSITORY, 1, 300_000);
    let mirror = before(&upstream).start().await;
    let path = format!("/v2/team/app/blobs/{}", blob.digest);
    let asks = [mirror.head(&path), mirror.get(&path), mirror.get(&path), mirror.head(&path)];
    for ask in asks {
        let answer = ask.answer().await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("content-type"), "application/octet-stream");
        assert_eq!(answer.header("content-length"), "300000");
        assert_eq!(answer.header("docker-content-digest"), blob.digest);
        assert_eq!(answer.header("etag"), format!("\"{}\"", blob.digest));
        assert_eq!(answer.header("accept-ranges"), "bytes");
        assert_eq!(answer.header("docker-distribution-api-version"), "registry/2.0");
        assert!(!answer.headers.contains_key("content-encoding"), "{answer:?}");
        assert!(!answer.headers.contains_key("set-cookie"), "the upstream's: {answer:?}");
    }
}

fn names(headers: &HeaderMap) -> BTreeSet<String> {
    headers.keys().map(ToString::to_string).filter(|name| name != "server-timing").collect()
}

#[tokio::test]
async fn head_and_get_of_held_content_have_the_same_headers() {
    let image = image::oci(1).build();
    let upstream = upstream_with(&image).await;
    let mirror = before(&upstream).start().await;
    mirror.pull(REPOSITORY, "v1", &image).await;
    for path in ["manifests/v1".to_owned(), format!("blobs/{}", image.config.digest)] {
        let path = format!("/v2/team/app/{path}");
        let head = mirror.head(&path).answer().await;
        let get = mirror.get(&path).answer().await;
        assert_eq!(names(&head.headers), names(&get.headers));
        assert!(head.body.is_empty());
    }
}

#[tokio::test]
async fn docker_media_types_come_through_untouched() {
    let image = image::docker(1).build();
    let upstream = upstream_with(&image).await;
    let mirror = before(&upstream).start().await;
    mirror.pull(REPOSITORY, "v1", &image).await;
    for _ in 0..2 {
        let answer = mirror.head("/v2/team/app/manifests/v1").answer().await;
        assert_eq!(answer.header("content-type"), DOCKER_MANIFEST);
    }
}

#[tokio::test]
async fn sha512_digests_work_from_end_to_end() {
    let image = image::oci(1).sha512().build();
    let upstream = upstream_with(&image).await;
    let mirror = before(&upstream).start().await;
    for round in ["fwd=miss", "hit"] {
        for content in [&image.manifest, &image.config, &image.layers[0]] {
            let kind = if content.digest == image.manifest.digest { "manifests" } else { "blobs" };
            let path = format!("/v2/team/app/{kind}/{}", content.digest);
            let answer = mirror.get(&path).answer().await;
            assert!(answer.is(&content.bytes), "{answer:?}");
            assert_eq!(answer.header("docker-content-digest"), content.digest);
            assert!(answer.cache().starts_with(&format!("pierhead; {round}")), "{answer:?}");
        }
    }
}

#[tokio::test]
async fn blobs_of_odd_sizes_come_whole() {
    let upstream = Upstream::start().await;
    let mirror = before(&upstream).start().await;
    let sizes = [0, 1, 16_383, 16_384, 16_385, 131_071, 131_072, 131_073, 524_288, 1_048_577];
    for (seed, size) in (1..).zip(sizes) {
        let blob = upstream.blob(REPOSITORY, seed, size);
        let path = format!("/v2/team/app/blobs/{}", blob.digest);
        for word in ["pierhead; fwd=miss", "pierhead; hit"] {
            let answer = mirror.get(&path).answer().await;
            assert!(answer.is(&blob.bytes), "{size} bytes: {} {:?}", answer.status, answer.headers);
            assert!(answer.cache().starts_with(word), "{size} bytes: {:?}", answer.headers);
        }
    }
    mirror.until_kept(sizes.len()).await;
}

#[tokio::test]
async fn many_clients_on_one_cold_tag_cost_one_counted_pull() {
    let image = image::oci(1).build();
    let upstream = upstream_with(&image).await;
    let mirror = before(&upstream).start().await;
    let ask = || mirror.get("/v2/team/app/manifests/v1").answer();
    let answers: Vec<Answer> = join_all((0..32).map(|_| ask())).await;
    assert!(answers.iter().all(|answer| answer.is(&image.manifest.bytes)));
    assert_eq!(upstream.count(&On::get("/manifests/")), 1, "{}", upstream.story());
}

#[tokio::test]
async fn nothing_of_the_client_reaches_the_upstream() {
    let image = image::oci(1).build();
    let upstream = upstream_with(&image).await;
    let mirror = before(&upstream).start().await;
    let blob = format!("/v2/team/app/blobs/{}?ns={NAME}&from=client", image.config.digest);
    let manifest = format!("/v2/team/app/manifests/v1?ns={NAME}&from=client");
    for path in [&manifest, &blob] {
        let ask = mirror.get(path);
        let answer = ask
            .header("authorization", "Basic c2VjcmV0OnNlY3JldA==")
            .header("cookie", "secret=1")
            .header("proxy-authorization", "Basic c2VjcmV0OnNlY3JldA==")
            .header("x-forwarded-for", "203.0.113.9")
            .header("x-forwarded-host", "secret.example")
            .header("user-agent", "secret/1.0")
            .header("referer", "http://secret.example/")
            .answer()
            .await;
        assert_eq!(answer.status, 200);
    }
    for asked in upstream.asked(&On::any("")) {
        assert_eq!(asked.query, "");
        assert_eq!(asked.header("host"), upstream.host());
        assert!(asked.header("user-agent").to_lowercase().contains("pierhead"), "{asked:?}");
        for name in [
            "authorization",
            "cookie",
            "proxy-authorization",
            "x-forwarded-for",
            "x-forwarded-host",
            "referer",
        ] {
            assert!(!asked.headers.contains_key(name), "{name} in {asked:?}");
        }
        let encoding = asked.header("accept-encoding");
        assert!(["", "identity"].contains(&encoding), "{encoding}");
    }
}

#[tokio::test]
async fn what_does_not_exist_is_a_404_of_the_right_kind() {
    let upstream = upstream_with(&image::oci(1).build()).await;
    let mirror = before(&upstream).start().await;
    let absent = Content::blob(99, 10).digest;
    mirror.get("/v2/team/app/manifests/v2").answer().await.assert_error(404, "MANIFEST_UNKNOWN");
    let path = format!("/v2/team/app/manifests/{absent}");
    mirror.get(&path).answer().await.assert_error(404, "MANIFEST_UNKNOWN");
    let path = format!("/v2/team/app/blobs/{absent}");
    mirror.get(&path).answer().await.assert_error(404, "BLOB_UNKNOWN");
    assert_eq!(mirror.head(&path).answer().await.status, 404);
    assert_eq!(mirror.check_store(), 0);
}

/// The same digest, held because one repository has it, is no content of another one.
#[tokio::test]
async fn a_digest_held_for_one_repository_is_not_served_under_another_without_asking() {
    let upstream = Upstream::start().await;
    let blob = upstream.blob("team/secret", 1, 1000);
    upstream.blob("team/other", 2, 1000);
    let mirror = before(&upstream).start().await;
    let path = |repository: &str| format!("/v2/{repository}/blobs/{}", blob.digest);
    assert!(mirror.get(&path("team/secret")).answer().await.is(&blob.bytes));
    mirror.get(&path("team/other")).answer().await.assert_error(404, "BLOB_UNKNOWN");
    mirror.get(&path("team/none")).answer().await.assert_error(404, "BLOB_UNKNOWN");
    assert_eq!(mirror.head(&path("team/other")).answer().await.status, 404);
    upstream.push_blob("team/other", &blob);
    let what = "the blob under the repository that has it by now";
    let found = |answer: &Answer| answer.is(&blob.bytes);
    crate::support::mirror::until(what, || mirror.get(&path("team/other")), found).await;
}

#[tokio::test]
async fn the_metrics_tell_hits_from_misses_and_count_what_the_upstream_sent() {
    let image = image::oci(1).build();
    let upstream = upstream_with(&image).await;
    let mirror = before(&upstream).with("prefetch: false").start().await;
    mirror.pull(REPOSITORY, "v1", &image).await;
    mirror.pull(REPOSITORY, "v1", &image).await;
    let requests = async |cache| {
        let labels = [("upstream", NAME), ("kind", "blob"), ("method", "GET"), ("cache", cache)];
        mirror.metric("pierhead_requests_total", &labels).await.to_string()
    };
    // A request is counted after its last byte is out.
    let counted = async {
        while requests("hit").await != "3" {
            tokio::task::yield_now().await;
        }
    };
    soon("the third hit to be counted", counted).await;
    assert_eq!(requests("miss").await, "3");
    let total = upstream.sent(&On::any(""));
    let counted = mirror.metric("pierhead_upstream_bytes_total", &[("upstream", NAME)]).await;
    assert_eq!(counted.to_string(), total.to_string());
}

#[tokio::test]
async fn the_metrics_count_what_is_kept() {
    let image = image::oci(1).build();
    let upstream = upstream_with(&image).await;
    let mirror = before(&upstream).start().await;
    mirror.pull(REPOSITORY, "v1", &image).await;
    let size: u64 = image.blobs().map(Content::len).sum::<u64>() + image.manifest.len();
    // The last byte may go out before a blob is in its place.
    let kept = async {
        loop {
            let objects = mirror.metric("pierhead_cache_objects", &[]).await;
            let bytes = mirror.metric("pierhead_cache_bytes", &[]).await;
            if (objects.to_string(), bytes.to_string()) == ("4".to_owned(), size.to_string()) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    soon("four objects to be counted", kept).await;
}
