//! Manifests that are pushed: every kind, everything that can be wrong with them, tags, referrers.

use std::collections::BTreeSet;

use futures_util::future::join_all;
use hyper::Method;
use serde_json::{Value, json};

use crate::support::image::{
    self, Algorithm, Content, DOCKER_MANIFEST, OCI_CONFIG, OCI_INDEX, OCI_MANIFEST, artifact,
};
use crate::support::mirror::Mirror;
use crate::support::push::hosting;
use crate::support::upstream::Upstream;

async fn start(more: &str) -> (Upstream, Mirror) {
    let upstream = Upstream::start().await;
    let mirror = hosting(&upstream, more).start().await;
    (upstream, mirror)
}

fn manifest(media_type: &str, text: impl Into<String>) -> Content {
    Content::new(Algorithm::Sha256, media_type, text.into())
}

/// What is listed as attached to a manifest, page by page.
async fn referrers(mirror: &Mirror, subject: &str, query: &str) -> Vec<Value> {
    let mut path = format!("/v2/app/referrers/{subject}{query}");
    let mut found = Vec::new();
    loop {
        let page = mirror.get(&path).answer().await;
        assert_eq!((page.status, page.header("content-type")), (200, OCI_INDEX));
        found.extend(page.json()["manifests"].as_array().unwrap().clone());
        match page.header("link").strip_prefix('<').and_then(|link| link.split_once('>')) {
            Some((next, _)) => path = next.to_owned(),
            None => return found,
        }
    }
}

#[tokio::test]
async fn every_kind_of_manifest_is_kept_as_it_came() {
    let (_upstream, mirror) = start("").await;
    for (tag, image) in [("oci", image::oci(1).build()), ("docker", image::docker(2).build())] {
        mirror.push("app", tag, &image).await;
        mirror.pull("app", tag, &image).await;
    }
    let index = image::oci(3).index();
    for image in &index.images {
        mirror.push("app", &image.manifest.digest, image).await;
    }
    mirror.push_manifest("app", "index", &index.manifest).await;
    let nested = json!({
        "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [index.manifest.descriptor()],
    });
    let nested = manifest(OCI_INDEX, format!("  {nested:#}\n\n"));
    mirror.push_manifest("app", "nested", &nested).await;
    for (tag, content) in [("index", &index.manifest), ("nested", &nested)] {
        let got = mirror.get(&format!("/v2/app/manifests/{tag}")).answer().await;
        assert!(got.is(&content.bytes));
        assert_eq!(got.header("content-type"), content.media_type);
    }
    assert_eq!(mirror.tags("app").await, ["docker", "index", "nested", "oci"]);
}

#[tokio::test]
async fn a_manifest_that_is_wrong_is_refused_and_leaves_nothing() {
    let (_upstream, mirror) = start("").await;
    let blob = Content::blob(1, 100);
    mirror.push_blob("app", &blob).await;
    let d = blob.descriptor();
    let image = |more: &str| {
        format!(
            r#"{{"schemaVersion":2,"mediaType":"{OCI_MANIFEST}","config":{d},"layers":[{d}]{more}}}"#
        )
    };
    let deep = format!(r#","x":{}{}"#, "[".repeat(30), "]".repeat(30));
    let missing = image("").replace(&blob.digest[7..20], "0000000000000");
    let child = format!(r#"{{"schemaVersion":2,"mediaType":"{OCI_INDEX}","manifests":[{d}]}}"#);
    let traversal = image("").replace(&blob.digest, "sha256:../../../etc/passwd");
    let large = format!(r#","annotations":{{"x":"{}"}}"#, "x".repeat(4 * 1024 * 1024));
    for (media_type, text, status, code) in [
        (OCI_MANIFEST, "<html>".to_owned(), 400, "MANIFEST_INVALID"),
        (OCI_MANIFEST, String::new(), 400, "MANIFEST_INVALID"),
        (OCI_MANIFEST, image(r#","annotations":{"a":"1","a":"2"}"#), 400, "MANIFEST_INVALID"),
        (OCI_MANIFEST, image(&format!(r#","config":{d}"#)), 400, "MANIFEST_INVALID"),
        (OCI_MANIFEST, image(&deep), 400, "MANIFEST_INVALID"),
        (OCI_MANIFEST, image(&format!(r#","manifests":[{d}]"#)), 400, "MANIFEST_INVALID"),
        (OCI_MANIFEST, traversal, 400, "MANIFEST_INVALID"),
        (OCI_INDEX, image(""), 400, "MANIFEST_INVALID"),
        (DOCKER_MANIFEST, image(""), 400, "MANIFEST_INVALID"),
        ("application/json", image(""), 400, "MANIFEST_INVALID"),
        (OCI_MANIFEST, missing, 400, "MANIFEST_BLOB_UNKNOWN"),
        (OCI_INDEX, child, 400, "MANIFEST_BLOB_UNKNOWN"),
        (OCI_MANIFEST, image(&large), 413, "SIZE_INVALID"),
    ] {
        let manifest = manifest(media_type, text);
        let put = mirror.manifest("app", "v1", &manifest).answer().await;
        put.assert_error(status, code);
        let by_digest = format!("/v2/app/manifests/{}", manifest.digest);
        assert_eq!(mirror.head(&by_digest).answer().await.status, 404);
    }
    let good = manifest(OCI_MANIFEST, image(""));
    let put = mirror.manifest("app", &manifest("", "other").digest, &good).answer().await;
    put.assert_error(400, "DIGEST_INVALID");
    let put = mirror.manifest("app", "-x", &good).answer().await;
    put.assert_error(400, "TAG_INVALID");
    assert!(mirror.tags("app").await.is_empty());
    assert_eq!(mirror.check_store(), 1);
}

#[tokio::test]
async fn a_sparse_index_needs_a_switch() {
    let (_upstream, mirror) = start("sparse: true").await;
    let index = image::oci(1).index();
    mirror.push("app", "one", &index.images[0]).await;
    mirror.push_manifest("app", "all", &index.manifest).await;
    let got = mirror.get("/v2/app/manifests/all").answer().await;
    assert!(got.is(&index.manifest.bytes));
}

#[tokio::test]
async fn one_push_sets_several_tags() {
    let (_upstream, mirror) = start("").await;
    let image = image::oci(1).build();
    let reference = format!("{}?tag=a&tag=b", image.manifest.digest);
    for blob in image.blobs() {
        mirror.push_blob("app", blob).await;
    }
    let put = mirror.manifest("app", &reference, &image.manifest).answer().await;
    assert_eq!(put.status, 201);
    let told: Vec<_> = put.headers.get_all("oci-tag").iter().collect();
    assert_eq!(told, ["a", "b"]);
    assert_eq!(mirror.tags("app").await, ["a", "b"]);
    mirror.pull("app", "b", &image).await;
}

#[tokio::test]
async fn what_is_attached_is_listed_however_many_push_at_once() {
    let (_upstream, mut mirror) = start("").await;
    let subject = image::oci(1).build();
    let kinds = ["application/x.sbom", "application/x.sign"];
    let attached: Vec<_> = (0..24)
        .map(|n| artifact(100 + n, kinds[n as usize % 2], &subject.manifest).build())
        .collect();
    // Before the subject itself, which the specification allows.
    let pushes = attached.iter().map(|image| async {
        for blob in image.blobs() {
            mirror.push_blob("app", blob).await;
        }
        let put = mirror.manifest("app", &image.manifest.digest, &image.manifest);
        let put = put.answer().await;
        assert_eq!((put.status, put.header("oci-subject")), (201, &*subject.manifest.digest));
    });
    join_all(pushes).await;
    mirror.push("app", "v1", &subject).await;
    let digests = |found: Vec<Value>| -> BTreeSet<String> {
        found.iter().map(|one| one["digest"].as_str().unwrap().to_owned()).collect()
    };
    let wanted: BTreeSet<String> = attached.iter().map(|i| i.manifest.digest.clone()).collect();
    assert_eq!(digests(referrers(&mirror, &subject.manifest.digest, "").await), wanted);
    mirror.kill().await;
    mirror.start().await;
    let found = referrers(&mirror, &subject.manifest.digest, "").await;
    assert!(found.iter().all(|one| one["artifactType"].is_string() && one["size"].is_u64()));
    assert_eq!(digests(found), wanted);

    let query = format!("?artifactType={}", kinds[0]);
    let path = format!("/v2/app/referrers/{}{query}", subject.manifest.digest);
    let filtered = mirror.get(&path).answer().await;
    assert_eq!(filtered.header("oci-filters-applied"), "artifactType");
    assert_eq!(referrers(&mirror, &subject.manifest.digest, &query).await.len(), 12);

    let gone = format!("/v2/app/manifests/{}", attached[0].manifest.digest);
    assert_eq!(mirror.ask(Method::DELETE, &gone).answer().await.status, 202);
    assert_eq!(referrers(&mirror, &subject.manifest.digest, "").await.len(), 23);
    let nothing = format!("sha256:{}", "0".repeat(64));
    assert!(referrers(&mirror, &nothing, "").await.is_empty());
    mirror.get("/v2/app/referrers/sha256:x").answer().await.assert_error(400, "DIGEST_INVALID");
}

#[tokio::test]
async fn of_two_pushes_of_one_tag_one_wins_whole() {
    let (_upstream, mirror) = start("").await;
    let images: Vec<_> = (1..5).map(|seed| image::oci(seed).layers(&[10]).build()).collect();
    join_all(images.iter().map(|image| mirror.push("app", "v1", image))).await;
    let tagged = mirror.get("/v2/app/manifests/v1").answer().await;
    assert!(images.iter().any(|image| tagged.is(&image.manifest.bytes)));
    for image in &images {
        mirror.pull("app", &image.manifest.digest, image).await;
    }
}

#[tokio::test]
async fn foreign_layers_need_not_be_here() {
    let (_upstream, mirror) = start("").await;
    let config = Content::blob(1, 100);
    mirror.push_blob("app", &config).await;
    let mut descriptor = config.descriptor();
    descriptor["mediaType"] = OCI_CONFIG.into();
    let text = json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": descriptor,
        "layers": [{
            "mediaType": "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
            "digest": format!("sha256:{}", "1".repeat(64)), "size": 5,
            "urls": ["http://169.254.169.254/"],
        }],
    });
    mirror.push_manifest("app", "v1", &manifest(OCI_MANIFEST, text.to_string())).await;
}

#[tokio::test]
async fn tags_are_listed_by_page_moved_and_deleted() {
    let (_upstream, mirror) = start("").await;
    let (one, two) = (image::oci(1).build(), image::oci(2).build());
    for tag in ["b", "a", "C", "1.0", "_x"] {
        mirror.push("app", tag, &one).await;
    }
    mirror.push("app", "a", &two).await;
    mirror.pull("app", "a", &two).await;
    assert_eq!(mirror.tags("app").await, ["1.0", "C", "_x", "a", "b"]);
    let page = |path: &str| mirror.get(path).answer();
    let first = page("/v2/app/tags/list?n=2").await;
    assert_eq!(first.json(), json!({"name": "app", "tags": ["1.0", "C"]}));
    assert_eq!(first.header("link"), "</v2/app/tags/list?n=2&last=C>; rel=\"next\"");
    let last = page("/v2/app/tags/list?n=3&last=C").await;
    assert_eq!((last.json()["tags"].clone(), last.header("link")), (json!(["_x", "a", "b"]), ""));
    let none = page("/v2/app/tags/list?n=0").await;
    assert_eq!((none.json()["tags"].clone(), none.header("link")), (json!([]), ""));
    page("/v2/nothing/tags/list").await.assert_error(404, "NAME_UNKNOWN");

    let gone = mirror.ask(Method::DELETE, "/v2/app/manifests/b").answer().await;
    assert_eq!(gone.status, 202);
    mirror.get("/v2/app/manifests/b").answer().await.assert_error(404, "MANIFEST_UNKNOWN");
    mirror.pull("app", "C", &one).await;
    // A manifest takes its tags along.
    let path = format!("/v2/app/manifests/{}", one.manifest.digest);
    assert_eq!(mirror.ask(Method::DELETE, &path).answer().await.status, 202);
    assert_eq!(mirror.tags("app").await, ["a"]);
    mirror.ask(Method::DELETE, &path).answer().await.assert_error(404, "MANIFEST_UNKNOWN");
}
