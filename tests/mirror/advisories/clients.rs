//! What clients and libraries were found to do, where they and we have the same to do or to bear.

use std::time::Duration;

use hyper::Method;
use serde_json::json;

use super::{Two, elsewhere};
use crate::clients::basic;
use crate::support::auth::{Account, Auth, Bearer, People};
use crate::support::client::raw_request;
use crate::support::fault::Fault;
use crate::support::image::{self, Algorithm, Content, OCI_INDEX, OCI_MANIFEST};
use crate::support::mirror::before;
use crate::support::record::On;
use crate::support::upstream::Upstream;

/// Foreign layers' URLs are never dialled.
#[tokio::test]
async fn cve_2020_15157_ghsa_742w_89gc_8m9c_ghsa_qvqc_4c52_x6qp() {
    let (upstream, evil) = (Upstream::start().await, Upstream::start().await);
    let layer = Content::blob(5, 100);
    let manifest = json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": Content::blob(1, 1).digest, "size": 1},
        "layers": [{"mediaType": "application/vnd.oci.image.layer.nondistributable.v1.tar", "digest": layer.digest, "size": 100, "urls": [format!("{}/layer", evil.url())]}]
    });
    let manifest = Content::new(Algorithm::Sha256, OCI_MANIFEST, manifest.to_string());
    upstream.push_manifest("team/app", &manifest);
    upstream.tag("team/app", "v1", &manifest);
    let mirror = before(&upstream).start().await;
    assert_eq!(mirror.get("/v2/team/app/manifests/v1").answer().await.status, 200);
    let answer = mirror.get(&format!("/v2/team/app/blobs/{}", layer.digest)).answer().await;
    assert_eq!(answer.status, 404);
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(evil.connections(), 0);
}

/// What people log in with stands in no log and no metric, whatever program gave it to whom it was not
/// meant for: of CVE-2021-41092 there is nothing beyond that for a mirror to do. T17 looks further.
#[tokio::test]
async fn moby_42022_cve_2021_41092() {
    let upstream = Upstream::start().await;
    upstream.set(|registry| registry.auth = Auth::People(People::new(&[])));
    let mirror = before(&upstream).with("auth: passthrough").start().await;
    let secret = basic("alice", "hunter2");
    let ask = mirror.get("/v2/team/app/manifests/v1").header("authorization", &secret);
    assert!(ask.answer().await.status >= 400);
    let metrics = mirror.admin("/metrics").answer().await;
    let all = mirror.log() + &String::from_utf8_lossy(&metrics.body);
    let encoded = secret.trim_start_matches("Basic ");
    assert!(!all.contains("hunter2") && !all.contains(encoded));
}

/// Wrong bytes for a digest are never kept, and no client takes them.
#[tokio::test]
async fn cve_2014_8178_cve_2014_8179() {
    let upstream = Upstream::start().await;
    let blob = upstream.blob("team/app", 1, 100_000);
    upstream.always(On::get("/blobs/"), Fault::CorruptAt(50_000));
    let mirror = before(&upstream).start().await;
    let answer = mirror.get(&format!("/v2/team/app/blobs/{}", blob.digest)).answer().await;
    assert!(!answer.deceives(&blob.bytes) && !answer.is(&blob.bytes));
    assert!(!mirror.keeps(&blob.digest));
}

/// What is held is found by its digest and by nothing else: not by what it is made of, nor by its tag.
#[tokio::test]
async fn cve_2024_24557() {
    let upstream = Upstream::start().await;
    let image = image::oci(1).build();
    // The same config and layers, and another manifest: who looks by what is inside confuses the two.
    let text = String::from_utf8_lossy(&image.manifest.bytes).replace("\n  \n", "\n");
    let twin = Content::new(Algorithm::Sha256, OCI_MANIFEST, text);
    assert_ne!(twin.digest, image.manifest.digest);
    upstream.push("team/app", "v1", &image);
    upstream.push_manifest("team/app", &twin);
    let mirror = before(&upstream).with("tag_ttl: 0s").start().await;
    for (moved, at) in [(&image.manifest, "v1"), (&twin, "v1"), (&image.manifest, "v1")] {
        upstream.tag("team/app", at, moved);
        assert!(mirror.get("/v2/team/app/manifests/v1").answer().await.is(&moved.bytes));
        for content in [&image.manifest, &twin] {
            let path = format!("/v2/team/app/manifests/{}", content.digest);
            for accept in ["*/*", OCI_MANIFEST, "application/json"] {
                let answer = mirror.get(&path).header("accept", accept).answer().await;
                assert!(answer.is(&content.bytes), "{accept}: {answer:?}");
                assert_eq!(answer.header("docker-content-digest"), content.digest);
            }
        }
    }
    mirror.until_kept(2).await;
}

/// Digests that are none are refused wherever they stand.
#[tokio::test]
async fn cve_2024_3727_ghsa_6wvf_f2vw_3425() {
    let upstream = Upstream::start().await;
    upstream.push("team/app", "v1", &image::oci(1).build());
    let mirror = before(&upstream).start().await;
    let hex = "a".repeat(64);
    let bad = [
        "sha256:../../x".to_owned(),
        format!("sha256:{}", &hex[1..]),
        format!("sha256:{}", hex.to_uppercase()),
    ];
    for digest in &bad {
        for kind in ["blobs", "manifests", "referrers"] {
            let line = format!("GET /v2/team/app/{kind}/{digest}");
            assert!(
                matches!(raw_request(mirror.address(), &line).await.status, 400 | 404),
                "{line}"
            );
        }
    }
    // In a manifest: one is handed on as it is, or not at all, and nothing is asked for by that name.
    for digest in &bad {
        let layer = json!({"mediaType": "x", "digest": digest, "size": 1});
        let manifest = json!({
            "schemaVersion": 2, "mediaType": OCI_MANIFEST, "layers": [layer], "config": layer, "subject": layer,
        });
        let manifest = Content::new(Algorithm::Sha256, OCI_MANIFEST, manifest.to_string());
        upstream.push_manifest("team/app", &manifest);
        let path = format!("/v2/team/app/manifests/{}", manifest.digest);
        let answer = mirror.get(&path).answer().await;
        assert!(answer.is(&manifest.bytes) || answer.status >= 400, "{digest}");
        assert_eq!(upstream.count(&On::any(digest)), 0, "{digest}");
    }
    for digest in bad {
        upstream.next(
            1,
            On::head("/manifests/"),
            [Fault::Header("docker-content-digest", digest.clone())],
        );
        let answer = mirror.head("/v2/team/app/manifests/v1").answer().await;
        assert_ne!(answer.header("docker-content-digest"), digest);
        upstream.behave();
    }
}

/// The same in what is pushed: as the digest of an upload, of a mount, of a manifest, and inside one.
#[tokio::test]
async fn cve_2024_3727_ghsa_6wvf_f2vw_3425_pushed() {
    let two = Two::start().await;
    let (image, hex) = (image::oci(1).build(), "a".repeat(64));
    two.push("alice", "a/app", "v1", &image).await;
    let kept = two.mirror.check_store();
    for digest in [
        "sha256:../../x".to_owned(),
        "sha256:..%2f..%2fx".to_owned(),
        format!("sha256:{}", &hex[1..]),
        format!("sha256:{}", hex.to_uppercase()),
        format!("sha256:{hex}%3Fx"),
        format!("sha256%3A{hex}%00"),
        "sha256:".to_owned(),
    ] {
        let uploads = "/v2/a/app/blobs/uploads/";
        let push = |path: &str| two.as_("alice", Method::POST, path).body("abc").answer();
        push(&format!("{uploads}?digest={digest}")).await.assert_error(400, "DIGEST_INVALID");
        let mount = push(&format!("{uploads}?mount={digest}&from=a/other")).await;
        assert!([202, 400].contains(&mount.status), "{digest}: {}", mount.status);
        let begun = push(uploads).await.header("location").to_owned();
        let put = two.as_("alice", Method::PUT, &format!("{begun}?digest={digest}"));
        put.answer().await.assert_error(400, "DIGEST_INVALID");
        let named = two.manifest("alice", "a/app", &digest, &image.manifest).answer().await;
        assert!([400, 404, 405].contains(&named.status), "{digest}: {}", named.status);
        let text = String::from_utf8_lossy(&image.manifest.bytes);
        let text = text.replace(&image.config.digest, &digest);
        let inside = Content::new(Algorithm::Sha256, OCI_MANIFEST, text);
        let inside = two.manifest("alice", "a/app", "v2", &inside).answer().await;
        assert_eq!(inside.status, 400, "{digest}: {:?}", inside.body);
    }
    assert_eq!(two.mirror.check_store(), kept);
    let tags = two.as_("alice", Method::GET, "/v2/a/app/tags/list").answer().await;
    assert_eq!(tags.json()["tags"], json!(["v1"]));
}

/// A name inside an image is no name: what is pulled or pushed is called what the request calls it.
#[tokio::test]
async fn cve_2026_50195_ghsa_cvxm_645q_p574() {
    let names = json!({
        "org.opencontainers.image.ref.name": "latest",
        "io.containerd.image.name": "registry.test/team/app:latest",
        "org.opencontainers.image.base.name": "registry.test/library/alpine:3",
    });
    let image = image::oci(1).build();
    let mut child = image.manifest.descriptor();
    child["annotations"] = names.clone();
    let index = json!({
        "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [child], "annotations": names,
    });
    let index = Content::new(Algorithm::Sha256, OCI_INDEX, index.to_string());
    // From an upstream.
    let upstream = Upstream::start().await;
    upstream.push("team/app", "v1", &image);
    upstream.push_manifest("team/app", &index);
    upstream.tag("team/app", "evil", &index);
    let mirror = before(&upstream).start().await;
    assert!(mirror.get("/v2/team/app/manifests/evil").answer().await.is(&index.bytes));
    mirror.pull("team/app", "v1", &image).await;
    upstream.stop().await;
    for other in ["team/app/manifests/latest", "library/alpine/manifests/3"] {
        assert_eq!(mirror.get(&format!("/v2/{other}")).answer().await.status, 503, "{other}");
    }
    // From a client.
    let two = Two::start().await;
    two.push("alice", "a/app", "v1", &image).await;
    let put = two.manifest("alice", "a/app", "evil", &index).answer().await;
    assert_eq!(put.status, 201, "{:?}", put.body);
    let tags = two.as_("alice", Method::GET, "/v2/a/app/tags/list").answer().await;
    assert_eq!(tags.json()["tags"], json!(["evil", "v1"]));
    let latest = two.as_("alice", Method::GET, "/v2/a/app/manifests/latest").answer().await;
    latest.assert_error(404, "MANIFEST_UNKNOWN");
}

/// oras: neither a realm nor a redirect on another host gets the credentials.
#[tokio::test]
async fn ghsa_xf85_363p_868w_cve_2026_48978_ghsa_vh4v_2xq2_g5cg() {
    for by_realm in [true, false] {
        let (upstream, evil) = (Upstream::start().await, Upstream::start().await);
        let blob = upstream.blob("team/app", 1, 1000);
        evil.push_blob("team/app", &blob);
        let path = format!("/v2/team/app/blobs/{}", blob.digest);
        upstream.set(|registry| {
            registry.auth = if by_realm {
                let mut bearer = Bearer::usual();
                bearer.account = Some(Account::new("u", "hunter2"));
                bearer.realm = Some(format!("{}/token", elsewhere(&evil)));
                Auth::Bearer(bearer)
            } else {
                Auth::Basic(Account::new("u", "hunter2"))
            };
        });
        if !by_realm {
            let to = format!("{}{path}", elsewhere(&evil));
            // The first question brings the challenge, the second is answered with the redirect.
            upstream.next(1, On::get("/blobs/"), [Fault::Header("x-first", "1".to_owned())]);
            upstream.always(On::get("/blobs/"), Fault::Redirect(307, to));
        }
        let mirror = before(&upstream).with("auth: {username: u, password: hunter2}").start().await;
        let answer = mirror.get(&path).answer().await;
        assert_eq!(answer.is(&blob.bytes), !by_realm, "{by_realm} {answer:?}");
        let seen = evil.asked(&On::any(""));
        assert_eq!(seen.is_empty(), by_realm, "{seen:?}");
        assert!(seen.iter().all(|one| one.header("authorization").is_empty()), "{seen:?}");
        assert!(!mirror.log().contains("hunter2"));
    }
}

/// oras: the `Location` of an answer that is no redirect leads nowhere, and nothing is ever uploaded to
/// an upstream.
#[tokio::test]
async fn ghsa_jxpm_75mh_9fp7() {
    let (upstream, evil) = (Upstream::start().await, Upstream::start().await);
    let blob = upstream.blob("team/app", 1, 1000);
    upstream.set(|registry| registry.auth = Auth::Basic(Account::new("u", "hunter2")));
    let mirror = before(&upstream).with("auth: {username: u, password: hunter2}").start().await;
    let path = format!("/v2/team/app/blobs/{}", blob.digest);
    for status in [200, 201, 202] {
        upstream.always(On::any("/blobs/"), Fault::Header("location", elsewhere(&evil)));
        if status != 200 {
            upstream.always(On::get("/blobs/"), Fault::Plain(status));
        }
        let answer = mirror.get(&path).answer().await;
        assert!(answer.is(&blob.bytes) || answer.status >= 500, "{answer:?}");
        upstream.behave();
    }
    for line in ["POST /v2/team/app/blobs/uploads/", "PUT /v2/team/app/manifests/v1"] {
        assert_eq!(raw_request(mirror.address(), line).await.status, 405, "{line}");
    }
    assert_eq!(evil.connections(), 0);
    let asked = upstream.asked(&On::any("/v2/"));
    assert!(asked.iter().all(|one| matches!(one.method.as_str(), "GET" | "HEAD")), "{asked:?}");
}

/// ggcr and malcontent: no answer of any kind leads us to an address nearer than its author, be it of
/// the registry or of its token service.
#[tokio::test]
async fn ggcr_2193_ggcr_2258_ghsa_9m43_p3cx_w8j5() {
    let upstream = Upstream::start().await;
    let image = image::oci(1).build();
    upstream.push("team/app", "v1", &image);
    upstream.set(|registry| {
        let mut bearer = Bearer::usual();
        bearer.account = Some(Account::new("u", "hunter2"));
        registry.auth = Auth::Bearer(bearer);
    });
    let mirror = before(&upstream).with("auth: {username: u, password: hunter2}").start().await;
    for (on, path) in [
        ("/token", "/v2/team/app/manifests/v1".to_owned()),
        ("/manifests/", format!("/v2/team/app/manifests/{}", image.manifest.digest)),
        ("/blobs/", format!("/v2/team/app/blobs/{}", image.config.digest)),
        ("/tags/", "/v2/team/app/tags/list".to_owned()),
        ("/referrers/", format!("/v2/team/app/referrers/{}", image.manifest.digest)),
    ] {
        for to in
            ["http://169.254.169.254/", "http://[fd00:ec2::254]/", "http://0.0.0.0/", "gopher://x/"]
        {
            upstream.always(On::any(on), Fault::Redirect(302, to.to_owned()));
            let answer = mirror.get(&path).answer().await;
            // A redirect is how some registries say that they know no referrers.
            if on == "/referrers/" {
                assert_eq!(answer.json()["manifests"], json!([]), "{to}");
            } else {
                assert!(answer.status >= 500, "{on} {to}: {answer:?}");
                answer.error();
            }
            upstream.behave();
        }
    }
    assert!(!mirror.log().contains("hunter2"));
}

/// Lists without end are bounded: a million referrers, a link that leads to itself.
#[tokio::test]
async fn cve_2024_29902_cve_2024_29903_cve_2023_33958() {
    let upstream = Upstream::start().await;
    let image = image::oci(1).build();
    upstream.push("team/app", "v1", &image);
    let mirror = before(&upstream).start().await;
    let path = format!("/v2/team/app/referrers/{}", image.manifest.digest);
    let link = format!("<{path}?page=1>; rel=\"next\"");
    upstream.always(On::get("/referrers/"), Fault::Header("link", link));
    let answer = mirror.get(&path).answer().await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(upstream.count(&On::get("/referrers/")) <= 20);
    upstream.behave();
    let one = json!({"digest": image.manifest.digest, "mediaType": OCI_MANIFEST, "size": 1});
    let many = vec![one; 200_000];
    let body = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": many}).to_string();
    upstream.always(On::get("/referrers/"), Fault::Body(body.into()));
    let answer = mirror.get(&path).answer().await;
    assert!(answer.status >= 500, "{}", answer.status);
}
