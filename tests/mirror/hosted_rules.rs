//! Who may do what to hosted repositories: immutable tags, quotas, what a digest is not, catalogs.

use hyper::Method;
use serde_json::json;

use crate::support::image::{self, Content};
use crate::support::mirror::{Mirror, before};
use crate::support::push::hosting;
use crate::support::record::On;
use crate::support::upstream::Upstream;

async fn start(more: &str) -> (Upstream, Mirror) {
    let upstream = Upstream::start().await;
    let mirror = hosting(&upstream, more).start().await;
    (upstream, mirror)
}

/// zot: to create is not to replace.
#[tokio::test]
async fn cve_2026_31801_ghsa_85jx_fm8m_x8c6_a_tag_that_cannot_be_moved_stays() {
    let rule = "immutable: [{repositories: ['team/**'], tags: ['v*']}]";
    let (_upstream, mirror) = start(rule).await;
    let (one, two) = (image::oci(1).build(), image::oci(2).build());
    mirror.push("team/app", "v1", &one).await;
    mirror.push("team/app", "v1", &one).await; // the same once more is no move
    for (repository, tag) in [("team/app", "latest"), ("app", "v1")] {
        mirror.push(repository, tag, &one).await;
        mirror.push(repository, tag, &two).await;
    }
    mirror.manifest("team/app", "v1", &two.manifest).answer().await.assert_error(403, "DENIED");
    let both = format!("{}?tag=v1&tag=new", two.manifest.digest);
    mirror.manifest("team/app", &both, &two.manifest).answer().await.assert_error(403, "DENIED");
    for reference in ["v1", &one.manifest.digest] {
        let path = format!("/v2/team/app/manifests/{reference}");
        mirror.ask(Method::DELETE, &path).answer().await.assert_error(403, "DENIED");
    }
    assert_eq!(mirror.tags("team/app").await, ["latest", "v1"], "nothing was half done");
    mirror.pull("team/app", "v1", &one).await;
}

#[tokio::test]
async fn a_repository_holds_no_more_than_its_quota() {
    let rule = "gc_grace: 0s, quotas: [{repositories: [app], max_size: 100KiB}]";
    let (_upstream, mut mirror) = start(rule).await;
    let (fits, more) = (Content::blob(1, 70_000), Content::blob(2, 40_000));
    mirror.push_blob("app", &fits).await;
    mirror.push_blob("app", &fits).await; // what is there already takes no more room
    mirror.push_blob("other", &more).await;
    let location = mirror.begin("app").await;
    mirror.put(&location, &more.digest, &more.bytes).await.assert_error(403, "DENIED");
    let path = format!("/v2/app/blobs/uploads/?mount={}&from=other", more.digest);
    mirror.ask(Method::POST, &path).answer().await.assert_error(403, "DENIED");
    mirror.kill().await;
    mirror.start().await;
    let location = mirror.begin("app").await;
    mirror.put(&location, &more.digest, &more.bytes).await.assert_error(403, "DENIED");
    mirror.gc("{}").await;
    mirror.push_blob("app", &more).await;
}

#[tokio::test]
async fn a_digest_is_not_a_permission() {
    let (upstream, mirror) = start("").await;
    let image = image::oci(1).build();
    mirror.push("a", "v1", &image).await;
    let layer = &image.layers[0].digest;
    for path in [
        format!("/v2/b/blobs/{layer}"),
        format!("/v2/b/manifests/{}", image.manifest.digest),
        format!("/v2/library/a/blobs/{layer}"),
        format!("/v2/library/a/manifests/{}", image.manifest.digest),
    ] {
        assert_eq!(mirror.head(&path).answer().await.status, 404, "{path}");
        assert_eq!(mirror.get(&path).answer().await.status, 404, "{path}");
    }
    // What leaves one repository stays in the other, and is gone from the one.
    mirror.push("b", "v1", &image).await;
    let path = format!("/v2/a/blobs/{layer}");
    assert_eq!(mirror.ask(Method::DELETE, &path).answer().await.status, 202);
    assert_eq!(mirror.head(&path).answer().await.status, 404);
    assert_eq!(mirror.get(&path).answer().await.status, 404);
    mirror.ask(Method::DELETE, &path).answer().await.assert_error(404, "BLOB_UNKNOWN");
    mirror.pull("b", "v1", &image).await;
    assert_eq!(upstream.count(&On::any("/v2/a/")) + upstream.count(&On::any("/v2/b/")), 0);
}

/// The same content, cached from upstream and pushed here, is stored once and outlives either.
#[tokio::test]
async fn cached_and_hosted_content_is_one() {
    let (upstream, mirror) = start("gc_grace: 0s").await;
    let image = image::oci(1).build();
    upstream.push("library/app", "v1", &image);
    mirror.pull("library/app", "v1", &image).await;
    mirror.until_kept(4).await;
    mirror.push("app", "v1", &image).await;
    assert_eq!(mirror.check_store(), 4);
    let path = format!("/v2/app/manifests/{}", image.manifest.digest);
    mirror.ask(Method::DELETE, &path).answer().await;
    mirror.gc("{}").await;
    assert_eq!(mirror.check_store(), 4, "it is still cached content");
    upstream.stop().await;
    mirror.pull("library/app", &image.manifest.digest, &image).await;
}

#[tokio::test]
async fn the_catalog_names_what_lives_here_and_nothing_else() {
    let (upstream, mirror) = start("").await;
    let image = image::oci(1).layers(&[10]).build();
    upstream.push("library/theirs", "v1", &image);
    mirror.pull("library/theirs", "v1", &image).await;
    let all = ["a", "a-b", "b", "team/a", "team/a/b", "team/c"];
    for repository in all {
        mirror.push(repository, "v1", &image).await;
    }
    let mut listed: Vec<String> = Vec::new();
    let mut path = "/v2/_catalog?n=2".to_owned();
    loop {
        let page = mirror.get(&path).answer().await;
        listed.extend(
            page.json()["repositories"]
                .as_array()
                .unwrap()
                .iter()
                .map(|n| n.as_str().unwrap().into()),
        );
        match page.header("link").strip_prefix('<').and_then(|link| link.split_once('>')) {
            Some((next, _)) => path = next.to_owned(),
            None => break,
        }
    }
    listed.sort();
    assert_eq!(listed, all);
    let none = mirror.get("/v2/_catalog?n=0").answer().await;
    assert_eq!(none.json(), json!({"repositories": []}));
    mirror.get("/v2/_catalog?n=-1").answer().await.assert_error(400, "PAGINATION_NUMBER_INVALID");
    let huge = mirror.get("/v2/_catalog?n=99999999999999999999").answer().await;
    assert_eq!(huge.status, 200);
}

#[tokio::test]
async fn a_mirror_that_hosts_nothing_refuses_every_push() {
    let upstream = Upstream::start().await;
    let mirror = before(&upstream).start().await;
    for (method, path) in [
        (Method::POST, "/v2/app/blobs/uploads/"),
        (Method::PUT, "/v2/app/manifests/v1"),
        (Method::DELETE, "/v2/app/manifests/v1"),
    ] {
        mirror.ask(method, path).answer().await.assert_error(405, "UNSUPPORTED");
    }
    assert_eq!(mirror.get("/v2/_catalog").answer().await.status, 404);
    assert_eq!(upstream.count(&On::any("")), 0);
}
