//! Manifests: every type and every form they come in, and those that must not be handed on.

use futures_util::future::join_all;

use crate::support::fault::Fault;
use crate::support::image::{
    self, Content, DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST, sha256,
};
use crate::support::mirror::{NAME, before};
use crate::support::record::On;
use crate::support::upstream::Upstream;

const REPOSITORY: &str = "team/app";

#[tokio::test]
async fn an_index_leads_to_the_image_of_each_platform() {
    let upstream = Upstream::start().await;
    let indexes = [
        ("oci", image::oci(1).index(), OCI_INDEX),
        ("docker", image::docker(2).index(), DOCKER_LIST),
    ];
    for (tag, index, _) in &indexes {
        upstream.push_index(REPOSITORY, tag, index);
    }
    let mirror = before(&upstream).start().await;
    for (tag, index, media_type) in &indexes {
        let path = format!("/v2/team/app/manifests/{tag}");
        let answer = mirror.get(&path).answer().await;
        assert!(answer.is(&index.manifest.bytes));
        assert_eq!(answer.header("content-type"), *media_type);
        for image in &index.images {
            let path = format!("/v2/team/app/manifests/{}", image.manifest.digest);
            assert!(mirror.get(&path).answer().await.is(&image.manifest.bytes));
            for blob in image.blobs() {
                let path = format!("/v2/team/app/blobs/{}", blob.digest);
                assert!(mirror.get(&path).answer().await.is(&blob.bytes));
            }
        }
    }
}

/// A client's narrow Accept must neither reach the upstream nor be remembered as an absence.
#[tokio::test]
async fn the_upstream_is_asked_for_every_media_type_whatever_the_client_accepts() {
    let index = image::oci(1).index();
    let upstream = Upstream::start().await;
    upstream.push_index(REPOSITORY, "v1", &index);
    upstream.set(|registry| registry.strict_accept = true);
    let mirror = before(&upstream).start().await;
    let narrow = mirror.get("/v2/team/app/manifests/v1").header("accept", DOCKER_MANIFEST);
    let narrow = narrow.answer().await;
    assert!(!narrow.deceives(&index.manifest.bytes), "{narrow:?}");
    let lines = mirror.get("/v2/team/app/manifests/v1").header("accept", OCI_MANIFEST);
    let answer = lines.line("accept", OCI_INDEX).answer().await;
    assert!(answer.is(&index.manifest.bytes), "{answer:?}");
    for asked in upstream.asked(&On::any("/manifests/")) {
        let accept = asked.headers.get_all("accept").iter();
        let accept = accept.filter_map(|line| line.to_str().ok()).collect::<Vec<_>>().join(",");
        for media_type in [DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST] {
            assert!(accept.contains(media_type), "{accept}");
        }
    }
}

/// The digest of a manifest is known when it is asked for by digest, and only told when asked for
/// by tag.
#[tokio::test]
async fn a_manifest_that_is_not_what_its_digest_says_is_refused_and_not_kept() {
    let (one, two) = (image::oci(1).build(), image::oci(2).build());
    let wrong = [
        Fault::Body(two.manifest.bytes.clone()),
        Fault::CorruptAt(10),
        Fault::Truncate(50),
        Fault::Extra(1),
        Fault::Html,
    ];
    join_all(wrong.map(async |fault| {
        let upstream = Upstream::start().await;
        upstream.push("team/app", "v1", &one);
        let mirror = before(&upstream).start().await;
        upstream.always(On::get("/manifests/"), fault.clone());
        for reference in [&one.manifest.digest, "v1"] {
            let answer = mirror.get(&format!("/v2/team/app/manifests/{reference}")).answer().await;
            let (_, message) = answer.error();
            assert!(answer.status >= 500, "{fault:?} {reference}: {}, {message}", answer.status);
            assert!(message.contains(NAME), "{fault:?} {reference}: {message}");
        }
        assert_eq!(mirror.check_store(), 0, "{fault:?}");
        upstream.behave();
        mirror.pull("team/app", "v1", &one).await;
    }))
    .await;
}

#[tokio::test]
async fn a_lying_docker_content_digest_is_found_out() {
    let (one, two) = (image::oci(1).build(), image::oci(2).build());
    for lie in [
        two.manifest.digest.clone(),
        "sha256:../../x".to_owned(),
        "nonsense".to_owned(),
        sha256(b""),
    ] {
        let upstream = Upstream::start().await;
        upstream.push("team/app", "v1", &one);
        let mirror = before(&upstream).start().await;
        upstream
            .always(On::any("/manifests/"), Fault::Header("docker-content-digest", lie.clone()));
        let answer = mirror.get("/v2/team/app/manifests/v1").answer().await;
        if answer.status == 200 {
            // A malformed one may be passed over; then the digest told must be the bytes' own.
            assert!(answer.is(&one.manifest.bytes), "{lie}");
            assert_eq!(answer.header("docker-content-digest"), one.manifest.digest);
        } else {
            assert!(answer.status >= 500, "{lie}: {}", answer.status);
            assert!(answer.error().1.contains(NAME), "{lie}: {:?}", answer.error());
        }
        assert!(!mirror.keeps(&two.manifest.digest));
        mirror.check_store();
        upstream.behave();
        mirror.pull("team/app", "v1", &one).await;
    }
}

#[tokio::test]
async fn a_manifest_of_thirty_megabytes_is_refused() {
    let upstream = Upstream::start().await;
    let padding = " ".repeat(30_000_000);
    let text = format!("{{\"schemaVersion\":2,\"mediaType\":\"{OCI_MANIFEST}\"}}{padding}");
    let huge = Content::new(image::Algorithm::Sha256, OCI_MANIFEST, text);
    upstream.push_manifest("team/app", &huge);
    upstream.tag("team/app", "huge", &huge);
    let mirror = before(&upstream).start().await;
    for fault in [None, Some(Fault::NoLength)] {
        if let Some(fault) = fault {
            upstream.always(On::any("/manifests/"), fault);
        }
        for reference in ["huge", &huge.digest] {
            let answer = mirror.get(&format!("/v2/team/app/manifests/{reference}")).answer().await;
            assert!(answer.status >= 500, "{}", answer.status);
            assert!(answer.error().1.contains(NAME), "{:?}", answer.error());
        }
    }
    assert_eq!(mirror.check_store(), 0);
    let sent = upstream.sent(&On::get("/manifests/"));
    assert!(sent < 60_000_000, "{sent} bytes were read\n{}", upstream.story());
}

#[tokio::test]
async fn a_manifest_of_nearly_four_megabytes_passes() {
    let upstream = Upstream::start().await;
    let note = "x".repeat(3_900_000);
    let text = format!(
        r#"{{"schemaVersion":2,"mediaType":"{0}","config":{{"mediaType":"application/vnd.oci.empty.v1+json","digest":"{1}","size":2}},"layers":[],"annotations":{{"note":"{note}"}}}}"#,
        OCI_MANIFEST,
        sha256(b"{}"),
    );
    let large = Content::new(image::Algorithm::Sha256, OCI_MANIFEST, text);
    upstream.push_manifest("team/app", &large);
    upstream.tag("team/app", "large", &large);
    let mirror = before(&upstream).start().await;
    for _ in 0..2 {
        let answer = mirror.get("/v2/team/app/manifests/large").answer().await;
        assert!(answer.is(&large.bytes), "{} {:?}", answer.status, answer.headers);
    }
}

#[tokio::test]
async fn a_manifest_without_digest_length_or_identity_encoding_is_understood() {
    let image = image::oci(1).build();
    let faults = [
        Fault::NoHeader("docker-content-digest"),
        Fault::NoLength,
        Fault::Gzip,
        Fault::Header("content-type", format!("{OCI_MANIFEST}; charset=utf-8")),
    ];
    for fault in faults {
        let upstream = Upstream::start().await;
        upstream.push("team/app", "v1", &image);
        let mirror = before(&upstream).with("tag_ttl: 0s").start().await;
        upstream.always(On::any("/manifests/"), fault.clone());
        for _ in 0..2 {
            let head = mirror.head("/v2/team/app/manifests/v1").answer().await;
            assert_eq!(head.header("docker-content-digest"), image.manifest.digest, "{fault:?}");
            assert_eq!(
                head.header("content-length"),
                image.manifest.len().to_string(),
                "{fault:?}"
            );
            let answer = mirror.get("/v2/team/app/manifests/v1").answer().await;
            assert!(answer.is(&image.manifest.bytes), "{fault:?}: {answer:?}");
            assert_eq!(answer.header("content-type"), OCI_MANIFEST, "{fault:?}");
            assert_eq!(answer.header("content-encoding"), "", "{fault:?}");
        }
    }
}

/// CVE-2021-41190: what one reader takes for an image another takes for an index.
#[tokio::test]
async fn an_ambiguous_manifest_is_refused() {
    let upstream = Upstream::start().await;
    let image = image::oci(1).build();
    let both = serde_json::json!({
        "schemaVersion": 2,
        "config": image.config.descriptor(),
        "layers": [image.layers[0].descriptor()],
        "manifests": [image.manifest.descriptor()],
    });
    let other = serde_json::json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []});
    for (tag, body) in [("both", both), ("other", other)] {
        let content = Content::new(image::Algorithm::Sha256, OCI_MANIFEST, body.to_string());
        upstream.push_manifest("team/app", &content);
        upstream.tag("team/app", tag, &content);
    }
    let mirror = before(&upstream).start().await;
    for tag in ["both", "other"] {
        let answer = mirror.get(&format!("/v2/team/app/manifests/{tag}")).answer().await;
        assert!(answer.status >= 400, "{tag}: {}", answer.status);
        answer.error();
    }
    assert_eq!(mirror.check_store(), 0);
}
