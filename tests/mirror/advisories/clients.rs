//! What clients and libraries were found to do, where they and we have the same to do or to bear.

use std::time::Duration;

use serde_json::json;

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

/// What people log in with stands in no log and no metric.
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

/// What is on loopback under another name is another host.
fn elsewhere(upstream: &Upstream) -> String {
    upstream.url().replace("127.0.0.1", "localhost")
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
