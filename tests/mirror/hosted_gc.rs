//! Garbage: what goes, what stays, and that nothing goes that a push is about to refer to.

use std::time::Duration;

use hyper::Method;
use serde_json::json;

use crate::support::image::{self, Content, OCI_INDEX, artifact};
use crate::support::mirror::{Mirror, run};
use crate::support::push::hosting;
use crate::support::upstream::Upstream;

async fn start(more: &str) -> (Upstream, Mirror) {
    let upstream = Upstream::start().await;
    let mirror = hosting(&upstream, more).start().await;
    (upstream, mirror)
}

#[tokio::test]
async fn what_no_tag_and_no_referrer_holds_goes() {
    let (_upstream, mut mirror) = start("gc_grace: 0s").await;
    let (kept, gone) = (image::oci(1).build(), image::oci(2).build());
    let index = image::oci(3).index();
    mirror.push("app", "v1", &gone).await;
    mirror.push("app", "v1", &kept).await;
    for image in &index.images {
        mirror.push("app", &image.manifest.digest, image).await;
    }
    mirror.push_manifest("app", "index", &index.manifest).await;
    let signature = artifact(9, "application/x.sign", &kept.manifest).build();
    mirror.push("app", &signature.manifest.digest, &signature).await;
    let on_signature = artifact(10, "application/x.sign", &signature.manifest).build();
    mirror.push("app", &on_signature.manifest.digest, &on_signature).await;
    mirror.push_blob("app", &Content::blob(99, 1000)).await;
    let before = mirror.check_store();

    let told = mirror.gc(r#"{"dry_run": true}"#).await;
    assert_eq!((told["manifests"].clone(), told["blobs"].clone()), (json!(1), json!(4)));
    assert!(told["items"].as_array().unwrap().iter().all(|item| item["why"].is_string()));
    assert_eq!(mirror.check_store(), before);
    mirror.pull("app", &gone.manifest.digest, &gone).await;

    let done = mirror.gc("{}").await;
    assert_eq!((done["manifests"].clone(), done["blobs"].clone()), (json!(1), json!(4)));
    assert_eq!(mirror.check_store(), before - 5);
    let path = format!("/v2/app/manifests/{}", gone.manifest.digest);
    assert_eq!(mirror.get(&path).answer().await.status, 404);
    for _life in 0..2 {
        mirror.pull("app", "v1", &kept).await;
        mirror.pull("app", &index.images[1].manifest.digest, &index.images[1]).await;
        mirror.pull("app", &on_signature.manifest.digest, &on_signature).await;
        let again = mirror.gc("{}").await;
        assert_eq!((again["manifests"].clone(), again["blobs"].clone()), (json!(0), json!(0)));
        mirror.kill().await;
        mirror.start().await;
    }
    // With its subject goes what is attached to it.
    let path = format!("/v2/app/manifests/{}", kept.manifest.digest);
    assert_eq!(mirror.ask(Method::DELETE, &path).answer().await.status, 202);
    assert_eq!(mirror.gc("{}").await["manifests"], 2);
}

#[tokio::test]
async fn the_grace_period_counts_from_the_last_use() {
    let (_upstream, mirror) = start("gc_grace: 1h").await;
    let (image, blob) = (image::oci(1).build(), Content::blob(9, 100));
    mirror.push("app", "v1", &image).await;
    mirror.push_blob("app", &blob).await;
    let links = mirror.cache().join("repos/_hosted/app/_links/sha256");
    let age = |digest: &str| {
        let file = std::fs::File::open(links.join(&digest[7..])).unwrap();
        let then = std::time::SystemTime::now() - Duration::from_secs(7200);
        file.set_modified(then).unwrap();
    };
    for content in image.blobs().chain([&image.manifest, &blob]) {
        age(&content.digest);
    }
    // A client that finds the blob does not upload it again: it is about to refer to it.
    let head = mirror.head(&format!("/v2/app/blobs/{}", blob.digest)).answer().await;
    assert_eq!(head.status, 200);
    // A tag that leaves lets go only now.
    assert_eq!(mirror.ask(Method::DELETE, "/v2/app/manifests/v1").answer().await.status, 202);
    let report = mirror.gc("{}").await;
    assert_eq!((report["manifests"].clone(), report["blobs"].clone()), (json!(0), json!(0)));
    for content in image.blobs().chain([&image.manifest, &blob]) {
        age(&content.digest);
    }
    let report = mirror.gc("{}").await;
    assert_eq!((report["manifests"].clone(), report["blobs"].clone()), (json!(1), json!(4)));
    assert_eq!(mirror.check_store(), 0);
}

/// Collections as fast as they go beside pushes that are slow between blobs and manifest.
#[tokio::test]
async fn a_push_and_a_collection_do_not_meet() {
    let (_upstream, mirror) = start("gc_grace: 2s").await;
    let push = async {
        for seed in 0..12 {
            // Layers are shared between images, and the tag moves on, so that there is garbage.
            let image = image::oci(seed % 3).layers(&[1000, 2000 + seed as usize]).build();
            mirror.push("app", "v1", &image).await;
            tokio::time::sleep(Duration::from_millis(300)).await;
            mirror.pull("app", "v1", &image).await;
        }
    };
    let collect = async {
        loop {
            mirror.gc("{}").await;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        () = push => {}
        () = collect => {}
    }
    mirror.check_store();
}

#[tokio::test]
async fn garbage_is_collected_by_the_clock_and_by_command() {
    let (_upstream, mirror) = start("gc_grace: 0s, gc_interval: 200ms, upload_expiry: 300ms").await;
    let blob = Content::blob(1, 1000);
    mirror.push_blob("app", &blob).await;
    let location = mirror.begin("app").await;
    mirror.patch(&location, &blob.bytes, None).await;
    let gone = async {
        while mirror.check_store() > 0 || mirror.get(&location).answer().await.status != 404 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    crate::support::soon("garbage to go by itself", gone).await;
    assert_eq!(std::fs::read_dir(mirror.cache().join("uploads")).unwrap().count(), 0);
    let refused = mirror.post_admin("/gc").body("{}").answer().await;
    assert_eq!(refused.status, 415, "a web page could have sent it");
    let nobody = run(&["gc", "--dry-run"]).await;
    assert_eq!(nobody.status.code(), Some(1));
}

/// An index whose child has gone is broken but must not stop a collection.
#[tokio::test]
async fn broken_repositories_do_not_stop_a_collection() {
    let (_upstream, mirror) = start("gc_grace: 0s, sparse: true").await;
    let index = image::oci(1).index();
    mirror.push_manifest("app", "v1", &index.manifest).await;
    assert_eq!(index.manifest.media_type, OCI_INDEX);
    let tags = mirror.cache().join("repos/_hosted/app/_tags");
    std::fs::write(tags.join("rot"), "{").unwrap();
    std::fs::write(tags.join("..x"), "{").unwrap();
    let report = mirror.gc("{}").await;
    assert_eq!(report["manifests"], 0);
    assert_eq!(mirror.get("/v2/app/manifests/rot").answer().await.status, 500);
    assert!(mirror.get("/v2/app/manifests/v1").answer().await.is(&index.manifest.bytes));
}
