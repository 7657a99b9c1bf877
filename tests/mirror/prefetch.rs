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
