//! Layers come before they are asked for, and only when an image is really pulled.

use crate::support::image;
use crate::support::mirror::before;
use crate::support::record::On;
use crate::support::soon;
use crate::support::upstream::Upstream;

#[tokio::test]
async fn the_other_layers_come_once_one_is_asked_for() {
    let image = image::oci(1).layers(&[300_000, 200_000, 150_000, 400_000]).build();
    let upstream = Upstream::start().await;
    upstream.push("team/app", "v1", &image);
    let mirror = before(&upstream).start().await;
    mirror.get("/v2/team/app/manifests/v1").answer().await;
    let layer = format!("/v2/team/app/blobs/{}", image.layers[2].digest);
    assert!(mirror.get(&layer).answer().await.is(&image.layers[2].bytes));
    soon("four layers and a manifest", mirror.until_kept(5)).await;
    assert_eq!(upstream.count(&On::get("/blobs/")), 4, "{}", upstream.story());
    let pulled = mirror.pull("team/app", "v1", &image).await;
    assert!(
        pulled.iter().filter(|word| word.starts_with("pierhead; hit")).count() >= 5,
        "{pulled:?}"
    );
    assert_eq!(upstream.count(&On::get("/blobs/")), 5, "the config: {}", upstream.story());
}

#[tokio::test]
async fn who_looks_at_a_manifest_and_a_config_downloads_no_layer() {
    let image = image::oci(1).layers(&[300_000, 200_000]).build();
    let upstream = Upstream::start().await;
    upstream.push("team/app", "v1", &image);
    let mirror = before(&upstream).start().await;
    mirror.get("/v2/team/app/manifests/v1").answer().await;
    let config = format!("/v2/team/app/blobs/{}", image.config.digest);
    assert!(mirror.get(&config).answer().await.is(&image.config.bytes));
    mirror.head(&format!("/v2/team/app/blobs/{}", image.layers[0].digest)).answer().await;
    assert_eq!(upstream.count(&On::get("/blobs/")), 1, "{}", upstream.story());
}

#[tokio::test]
async fn a_layer_shared_with_another_public_image_is_served_when_the_upstream_is_gone() {
    let image = image::oci(1).layers(&[300_000, 200_000]).build();
    let upstream = Upstream::start().await;
    upstream.push("team/base", "v1", &image);
    upstream.push("team/app", "v1", &image);
    let mirror = before(&upstream).start().await;
    mirror.pull("team/base", "v1", &image).await;
    mirror.get("/v2/team/app/manifests/v1").answer().await;
    mirror.until_kept(4).await;
    upstream.stop().await;
    let layer = format!("/v2/team/app/blobs/{}", image.layers[0].digest);
    assert!(mirror.get(&layer).answer().await.is(&image.layers[0].bytes));
}

/// Two indexes; a client that has taken one's image for amd64 will take the other's next.
fn two_indexes(upstream: &Upstream) -> (image::Index, image::Index) {
    let (first, second) = (image::oci(1).index(), image::oci(2).index());
    upstream.push_index("team/app", "v1", &first);
    upstream.push_index("team/other", "v1", &second);
    (first, second)
}

#[tokio::test]
async fn of_an_index_the_manifest_comes_that_clients_took_of_the_one_before() {
    let upstream = Upstream::start().await;
    let (first, second) = two_indexes(&upstream);
    let mirror = before(&upstream).start().await;
    let child = |repository: &str, index: &image::Index, n: usize| {
        format!("/v2/{repository}/manifests/{}", index.images[n].manifest.digest)
    };
    assert!(mirror.get("/v2/team/app/manifests/v1").answer().await.is(&first.manifest.bytes));
    assert_eq!(upstream.count(&On::get("sha256")), 0, "nobody has said for which machine");
    mirror.get(&child("team/app", &first, 0)).answer().await;

    assert!(mirror.get("/v2/team/other/manifests/v1").answer().await.is(&second.manifest.bytes));
    let amd64 = child("team/other", &second, 0);
    upstream.until_asked(1, &On::get(&amd64)).await;
    let answer = mirror.get(&amd64).answer().await;
    assert!(answer.is(&second.images[0].manifest.bytes));
    assert_eq!(upstream.count(&On::get(&amd64)), 1, "asked once: {}", upstream.story());
    assert_eq!(upstream.count(&On::get(&child("team/other", &second, 1))), 0, "nobody's machine");
    assert_eq!(upstream.count(&On::get("/blobs/")), 0, "a look at a manifest pulls no layer");
}

#[tokio::test]
async fn where_it_is_switched_off_nothing_of_an_index_comes_unasked() {
    let upstream = Upstream::start().await;
    let (first, second) = two_indexes(&upstream);
    let mirror = before(&upstream).with("prefetch: false").start().await;
    mirror.get("/v2/team/app/manifests/v1").answer().await;
    let child = format!("/v2/team/app/manifests/{}", first.images[0].manifest.digest);
    mirror.get(&child).answer().await;
    assert!(mirror.get("/v2/team/other/manifests/v1").answer().await.is(&second.manifest.bytes));
    let other = On::get("/v2/team/other/manifests/sha256");
    assert_eq!(upstream.count(&other), 0, "{}", upstream.story());
}
