//! Content that the registry sends its clients elsewhere for.

use std::sync::Arc;

use crate::support::auth::{Account, Auth, Bearer};
use crate::support::cdn::Cdn;
use crate::support::client::Answer;
use crate::support::fault::{Fault, Gate};
use crate::support::image::{self, Content};
use crate::support::mirror::{Mirror, NAME, before, until};
use crate::support::record::{Exchange, On};
use crate::support::upstream::Upstream;

fn blob_path(blob: &Content) -> String {
    format!("/v2/team/app/blobs/{}", blob.digest)
}

async fn upstream_with_image(image: &image::Image) -> Upstream {
    let upstream = Upstream::start().await;
    upstream.push("team/app", "v1", image);
    upstream
}

struct Redirected {
    upstream: Upstream,
    cdn: Arc<Cdn>,
    mirror: Mirror,
    image: image::Image,
    account: Account,
}

impl Redirected {
    /// A registry that wants credentials and redirects blobs to a CDN that must not see them.
    async fn start(status: u16) -> Self {
        let account = Account::new("robot", "s3cret-p4ssword");
        let image = image::oci(1).layers(&[3_000_000]).build();
        let upstream = upstream_with_image(&image).await;
        let cdn = Cdn::start().await;
        upstream.set(|registry| {
            registry.blobs_at = Some((status, Arc::clone(&cdn)));
            registry.auth =
                Auth::Bearer(Bearer { account: Some(account.clone()), ..Bearer::usual() });
        });
        let login = format!("auth: {{username: {}, password: {}}}", account.user, account.password);
        let mirror = before(&upstream).with(&login).with("stall_timeout: 1s").start().await;
        Self { upstream, cdn, mirror, image, account }
    }

    fn layer(&self) -> &Content {
        &self.image.layers[0]
    }

    /// Whatever happened, no credential got to the CDN or into the log.
    fn kept_its_secrets(&self) {
        for asked in self.cdn.asked(&On::any("")) {
            assert!(!asked.headers.contains_key("authorization"), "{asked:?}");
            assert!(!asked.headers.contains_key("cookie"), "{asked:?}");
        }
        let log = self.mirror.log();
        let basic = self.account.basic();
        for secret in
            [&self.account.password, &basic["Basic ".len()..], "token-0", "X-Amz-Signature="]
        {
            assert!(!log.contains(secret), "{secret} is in the log");
        }
    }
}

#[tokio::test]
async fn blobs_are_fetched_from_where_the_registry_redirects_to_without_credentials() {
    for status in [301, 302, 303, 307, 308] {
        let redirected = Redirected::start(status).await;
        redirected.mirror.pull("team/app", "v1", &redirected.image).await;
        assert_eq!(
            redirected.cdn.sent(&On::get("/objects/")),
            3_000_000 + redirected.image.config.len()
        );
        redirected.mirror.pull("team/app", "v1", &redirected.image).await;
        assert_eq!(redirected.cdn.count(&On::any("")), 2, "{status}");
        redirected.kept_its_secrets();
    }
}

#[tokio::test]
async fn nothing_of_the_cdn_reaches_the_client() {
    let redirected = Redirected::start(307).await;
    let path = blob_path(redirected.layer());
    for ask in
        [redirected.mirror.get(&path), redirected.mirror.get(&path), redirected.mirror.head(&path)]
    {
        let answer = ask.answer().await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("etag"), format!("\"{}\"", redirected.layer().digest));
        assert_eq!(answer.header("content-type"), "application/octet-stream");
        for name in ["set-cookie", "age", "x-amz-request-id", "location"] {
            assert!(!answer.headers.contains_key(name), "{name}: {answer:?}");
        }
        assert!(!answer.header("cache-control").contains("14400"));
    }
}

#[tokio::test]
async fn the_size_of_a_missing_blob_is_found_out_without_head_on_a_signed_url() {
    let redirected = Redirected::start(307).await;
    let answer = redirected.mirror.head(&blob_path(redirected.layer())).answer().await;
    assert_eq!((answer.status, answer.header("content-length")), (200, "3000000"));
    assert_eq!(redirected.cdn.count(&On::head("")), 0, "{}", redirected.cdn.story());
    let sent = redirected.cdn.sent(&On::any(""));
    assert!(sent <= 100_000, "a HEAD cost {sent} bytes");
    redirected.kept_its_secrets();
}

/// ECR Public: HEAD is 401 even with a valid token.
#[tokio::test]
async fn a_head_that_the_registry_refuses_is_not_taken_for_a_denial() {
    let redirected = Redirected::start(307).await;
    redirected.upstream.always(On::head("/blobs/"), Fault::Status(401));
    let path = blob_path(redirected.layer());
    let answer = redirected.mirror.head(&path).answer().await;
    assert_eq!((answer.status, answer.header("content-length")), (200, "3000000"));
    assert!(redirected.mirror.get(&path).answer().await.is(&redirected.layer().bytes));
}

#[tokio::test]
async fn a_download_that_dies_after_its_url_has_expired_is_resumed_with_a_new_url() {
    let redirected = Redirected::start(307).await;
    let gate = Gate::closed();
    let faults = [Fault::HoldAfter(1_000_000, gate.clone()), Fault::CutAfter(1_000_000)];
    redirected.cdn.next(1, On::get("/objects/"), faults);
    let reading = redirected.mirror.get(&blob_path(redirected.layer())).open().await;
    redirected.cdn.until_sent(1_000_000, &On::get("/objects/")).await;
    redirected.cdn.expire();
    gate.open();
    assert!(reading.brings(&redirected.layer().bytes).await, "{}", redirected.cdn.story());
    assert!(redirected.cdn.sent(&On::get("/objects/")) <= 3_150_000, "{}", redirected.cdn.story());
    redirected.kept_its_secrets();
}

#[tokio::test]
async fn a_cdn_that_never_delivers_yields_an_error_that_names_the_upstream() {
    for fault in [Fault::Plain(403), Fault::Html, Fault::Status(500), Fault::CutHead] {
        let redirected = Redirected::start(307).await;
        redirected.cdn.always(On::any(""), fault.clone());
        let answer = redirected.mirror.get(&blob_path(redirected.layer())).answer().await;
        assert!(!answer.deceives(&redirected.layer().bytes), "{fault:?}");
        if answer.status != 200 {
            let (_, message) = answer.error();
            assert!(answer.status >= 500, "{fault:?}: {} {message}", answer.status);
            assert!(message.contains(NAME), "{fault:?}: {message}");
        }
        redirected.cdn.behave();
        let served = |answer: &Answer| answer.is(&redirected.layer().bytes);
        let ask = || redirected.mirror.get(&blob_path(redirected.layer()));
        until("the CDN to be believed again", ask, served).await;
        redirected.kept_its_secrets();
    }
}

/// registry.k8s.io.
#[tokio::test]
async fn manifests_are_followed_to_another_host_too() {
    let image = image::oci(1).build();
    let upstream = upstream_with_image(&image).await;
    let cdn = Upstream::start().await;
    cdn.push("team/app", "v1", &image);
    for kind in ["manifests", "blobs"] {
        for content in [&image.manifest, &image.config, &image.layers[0], &image.layers[1]] {
            let path = format!("/v2/team/app/{kind}/{}", content.digest);
            upstream.always(On::any(&path), Fault::Redirect(307, format!("{}{path}", cdn.url())));
        }
    }
    let tag = "/v2/team/app/manifests/v1";
    upstream.always(On::any(tag), Fault::Redirect(307, format!("{}{tag}", cdn.url())));
    let mirror = before(&upstream).start().await;
    mirror.pull("team/app", "v1", &image).await;
}

/// S3 in front of manifests has neither digest nor media type to tell.
#[tokio::test]
async fn a_manifest_from_a_host_that_knows_nothing_of_registries_is_read_or_refused_honestly() {
    let image = image::oci(1).build();
    let upstream = upstream_with_image(&image).await;
    let cdn = Cdn::start().await;
    upstream.set(|registry| registry.manifests_at = Some((307, Arc::clone(&cdn))));
    let mirror = before(&upstream).start().await;
    let answer = mirror.get("/v2/team/app/manifests/v1").answer().await;
    assert!(answer.is(&image.manifest.bytes), "the body says what it is: {answer:?}");
    assert_eq!(answer.header("content-type"), image::OCI_MANIFEST);
    assert_eq!(answer.header("docker-content-digest"), image.manifest.digest);
}

/// Harbor's proxy projects answer 301 to `library/`.
#[tokio::test]
async fn a_redirect_to_another_name_inside_the_registry_is_followed() {
    let image = image::oci(1).build();
    let upstream = Upstream::start().await;
    upstream.push("proxy/library/alpine", "v1", &image);
    let all = [&image.manifest, &image.config, &image.layers[0], &image.layers[1]];
    for reference in all.map(|content| content.digest.as_str()).into_iter().chain(["v1"]) {
        for kind in ["manifests", "blobs"] {
            let to = format!("/v2/proxy/library/alpine/{kind}/{reference}");
            upstream.always(
                On::any(&format!("/v2/proxy/alpine/{kind}/{reference}")),
                Fault::Redirect(301, to),
            );
        }
    }
    let mirror = before(&upstream).start().await;
    mirror.pull("proxy/alpine", "v1", &image).await;
}

#[tokio::test]
async fn redirects_that_lead_nowhere_are_errors_that_name_the_upstream() {
    let image = image::oci(1).build();
    let path = blob_path(&image.config);
    let targets = |own: &str| {
        let loops = format!("{own}{path}");
        [
            loops,
            path.clone(),
            "file:///etc/passwd".to_owned(),
            "ftp://x.test/y".to_owned(),
            "http://".to_owned(),
            String::new(),
        ]
    };
    for case in 0..6 {
        let upstream = upstream_with_image(&image).await;
        let target = targets(&upstream.url())[case].clone();
        upstream.always(On::any("/blobs/"), Fault::Redirect(307, target.clone()));
        let mirror = before(&upstream).start().await;
        let answer = mirror.get(&path).answer().await;
        let (_, message) = answer.error();
        assert!(answer.status >= 500, "{target}: {} {message}", answer.status);
        assert!(message.contains(NAME), "{target}: {message}");
        assert!(upstream.count(&On::any("")) <= 40, "{target}: {}", upstream.story());
        upstream.behave();
        let served = |answer: &Answer| answer.is(&image.config.bytes);
        until("the next try", || mirror.get(&path), served).await;
    }
}

/// Go: whoever loses credentials on the way does not find them again, not even back at home.
#[tokio::test]
async fn cve_2024_45336_cve_2025_4673_credentials_do_not_come_back_on_a_redirect_that_returns() {
    let account = Account::new("robot", "s3cret-p4ssword");
    let (upstream, other) = (Upstream::start().await, Upstream::start().await);
    let blob = upstream.blob("team/app", 1, 1000);
    upstream.set(|registry| registry.auth = Auth::Basic(account.clone()));
    let path = blob_path(&blob);
    let back = format!("{}{path}?back=1", upstream.url());
    other.always(On::any("/hop"), Fault::Redirect(307, back));
    // The first request is sent without credentials and challenged.
    upstream.next(1, On::get("/blobs/"), [Fault::Header("x-first", "1".to_owned())]);
    upstream.next(1, On::get("/blobs/"), [Fault::Redirect(307, format!("{}/hop", other.url()))]);
    let login = format!("auth: {{username: {}, password: {}}}", account.user, account.password);
    let mirror = before(&upstream).with(&login).start().await;
    mirror.get(&path).answer().await;
    let authorized = |exchange: &Exchange| exchange.headers.contains_key("authorization");
    assert!(!other.asked(&On::any("")).iter().any(authorized), "{}", other.story());
    let returned = upstream.asked(&On::any("")).into_iter().filter(|one| one.query == "back=1");
    assert!(!returned.into_iter().any(|one| authorized(&one)), "{}", upstream.story());
}
