//! `push: true`: a push to an upstream's name is passed on as it comes, and is a hit afterwards.

use std::time::Duration;

use bytes::Bytes;
use hyper::Method;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use crate::clients::{basic, bearer};
use crate::support::auth::{Account, Auth, People};
use crate::support::client::{Answer, Ask};
use crate::support::fault::{Fault, Gate};
use crate::support::image::{self, Content, Image};
use crate::support::mirror::{Mirror, Setup, before};
use crate::support::pushed::Pushes;
use crate::support::raw::Raw;
use crate::support::record::On;
use crate::support::soon;
use crate::support::upstream::Upstream;

const MIB: usize = 1024 * 1024;

async fn upstream() -> Upstream {
    let upstream = Upstream::start().await;
    upstream.set(|registry| registry.pushes = Some(Pushes::default()));
    upstream
}

async fn start(more: &str) -> (Upstream, Mirror) {
    let upstream = upstream().await;
    let mirror = before(&upstream).with("push: true").with(more).start().await;
    (upstream, mirror)
}

/// Looks again and again until it is so.
async fn eventually(what: &str, is_so: impl AsyncFn() -> bool) {
    let looking = async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    soon(what, looking).await;
}

/// A repository as a client names it, and who the client is.
#[derive(Clone)]
struct To<'a> {
    mirror: &'a Mirror,
    name: &'a str,
    query: &'a str,
    login: String,
}

impl<'a> To<'a> {
    fn new(mirror: &'a Mirror, name: &'a str) -> Self {
        To { mirror, name, query: "", login: String::new() }
    }

    fn ask(&self, method: Method, path: &str) -> Ask {
        let ask = self.mirror.ask(method, path);
        if self.login.is_empty() { ask } else { ask.header("authorization", &self.login) }
    }

    async fn begin(&self) -> String {
        let mark = if self.query.is_empty() { "" } else { "?" };
        let path = format!("/v2/{}/blobs/uploads/{mark}{}", self.name, self.query);
        let begun = self.ask(Method::POST, &path).answer().await;
        assert_eq!((begun.status, begun.header("range")), (202, "0-0"), "{:?}", begun.body);
        let location = begun.header("location").to_owned();
        assert!(location.starts_with(&format!("/v2/{}/blobs/uploads/", self.name)), "{location}");
        assert!(!location.contains("_state"), "the upstream's own address is shown: {location}");
        location
    }

    async fn patch(&self, location: &str, bytes: &Bytes, at: Option<usize>) -> Answer {
        let mut ask = self.ask(Method::PATCH, location).body(bytes.clone());
        if let Some(at) = at {
            ask = ask.header("content-range", &format!("{at}-{}", at + bytes.len() - 1));
        }
        ask.answer().await
    }

    async fn put(&self, location: &str, digest: &str, last: &Bytes) -> Answer {
        self.ask(Method::PUT, &format!("{location}&digest={digest}"))
            .body(last.clone())
            .answer()
            .await
    }

    /// As dockerd does: one stream, then its digest.
    async fn blob(&self, blob: &Content) -> Answer {
        let patched = self.patch(&self.begin().await, &blob.bytes, None).await;
        assert_eq!(patched.status, 202, "{:?}", patched.body);
        self.put(patched.header("location"), &blob.digest, &Bytes::new()).await
    }

    fn manifest(&self, reference: &str, manifest: &Content) -> Ask {
        let path = format!("/v2/{}/manifests/{reference}", self.name);
        let ask = self.ask(Method::PUT, &path).body(manifest.bytes.clone());
        ask.header("content-type", &manifest.media_type)
    }

    async fn image(&self, tag: &str, image: &Image) {
        for blob in image.blobs() {
            let put = self.blob(blob).await;
            assert_eq!(put.status, 201, "{:?}", put.body);
            let at = format!("/v2/{}/blobs/{}", self.name, blob.digest);
            assert_eq!(
                (put.header("location"), put.header("docker-content-digest")),
                (&*at, &*blob.digest)
            );
        }
        let put = self.manifest(tag, &image.manifest).answer().await;
        assert_eq!(put.status, 201, "{:?}", put.body);
        assert_eq!(put.header("docker-content-digest"), image.manifest.digest);
    }
}

/// Pulls it, and all of it is held.
async fn is_a_hit(mirror: &Mirror, name: &str, tag: &str, image: &Image) {
    let head = mirror.head(&format!("/v2/{name}/manifests/{tag}")).answer().await;
    assert_eq!(head.cache(), "pierhead; hit", "the tag is not known: {:?}", head.headers);
    for words in mirror.pull(name, tag, image).await {
        assert_eq!(words, "pierhead; hit");
    }
}

#[tokio::test]
async fn what_is_pushed_through_is_there_and_is_a_hit() {
    let (upstream, mirror) = start("tag_ttl: 1h").await;
    for (seed, host) in [(1, String::new()), (2, upstream.url())] {
        upstream.set(|registry| registry.pushes = Some(Pushes::led_to(&host)));
        for name in ["team/app", "registry.test/team/app"] {
            let image = image::oci(seed).layers(&[3 * MIB, 1000, 0]).build();
            To::new(&mirror, name).image("v1", &image).await;
            let held = upstream.set(|registry| registry.repository("team/app").tags["v1"].clone());
            assert_eq!(held, image.manifest.digest);
            is_a_hit(&mirror, name, "v1", &image).await;
        }
    }
    assert_eq!(
        upstream.count(&On::get("")) + upstream.count(&On::head("")),
        0,
        "{}",
        upstream.story()
    );
    assert_eq!(upstream.set(|registry| registry.pushes.as_ref().unwrap().open()), 0);
    assert!(std::fs::read_dir(mirror.cache().join("uploads")).unwrap().next().is_none());
    mirror.check_store();
}

#[tokio::test]
async fn every_way_to_push_a_blob_is_passed_on() {
    let (upstream, mirror) = start("").await;
    let blob = Content::blob(1, 100_000);
    let hit = async |name: &str| {
        let got = mirror.get(&format!("/v2/{name}/blobs/{}", blob.digest)).answer().await;
        assert!(got.is(&blob.bytes) && got.cache() == "pierhead; hit", "{name}: {:?}", got.headers);
    };
    // All at once.
    let path = format!("/v2/a/one/blobs/uploads/?digest={}", blob.digest);
    let put = mirror.ask(Method::POST, &path).body(blob.bytes.clone()).answer().await;
    assert_eq!(put.status, 201, "{:?}", put.body);
    hit("a/one").await;
    // In two requests, as containerd does, with `ns` in both.
    let to = To { query: "ns=registry.test", ..To::new(&mirror, "a/two") };
    let location = to.begin().await;
    assert!(location.contains("ns=registry.test"), "{location}");
    let put = to.put(&format!("{location}&ns=registry.test"), &blob.digest, &blob.bytes).await;
    assert_eq!(put.status, 201, "{:?}", put.body);
    hit("a/two").await;
    // In chunks, with a look at it between them, and the last with its end.
    let to = To::new(&mirror, "registry.test/a/three");
    let mut location = to.begin().await;
    for (at, piece) in [(0, ..40_000), (40_000, ..80_000)] {
        let patched = to.patch(&location, &blob.bytes.slice(piece).slice(at..), Some(at)).await;
        assert_eq!(patched.status, 202, "{:?}", patched.body);
        let told = to.ask(Method::GET, patched.header("location")).answer().await;
        assert_eq!((told.status, told.header("range")), (204, patched.header("range")));
        assert!(told.header("docker-upload-uuid").starts_with("upload-"));
        told.header("location").clone_into(&mut location);
    }
    // Out of order: told where to go on, and goes on there.
    let late = to.patch(&location, &blob.bytes.slice(90_000..), Some(90_000)).await;
    late.assert_error(416, "RANGE_INVALID");
    assert_eq!(late.header("range"), "0-79999");
    let put = to.put(late.header("location"), &blob.digest, &blob.bytes.slice(80_000..)).await;
    assert_eq!(put.status, 201, "{:?}", put.body);
    let got = mirror.get(&format!("/v2/a/three/blobs/{}", blob.digest)).answer().await;
    assert!(got.is(&blob.bytes));
    // Mounted.
    let path = format!("/v2/a/four/blobs/uploads/?mount={}&from=a/one", blob.digest);
    let mounted = mirror.ask(Method::POST, &path).answer().await;
    assert_eq!(mounted.status, 201, "{:?}", mounted.body);
    let asked = upstream.asked(&On::any("/v2/a/four/blobs/uploads/")).pop().unwrap();
    assert_eq!(asked.query, format!("mount={}&from=a%2Fone", blob.digest.replace(':', "%3A")));
    hit("a/four").await;
    // From somewhere that is not there: an upload, whose shortest chunk is told.
    let path = format!("/v2/a/five/blobs/uploads/?mount={}&from=a/nine", blob.digest);
    let begun = mirror.ask(Method::POST, &path).answer().await;
    assert_eq!((begun.status, begun.header("oci-chunk-min-length")), (202, "10"));
    let gone = mirror.ask(Method::DELETE, begun.header("location")).answer().await;
    assert_eq!(gone.status, 204, "{:?}", gone.body);
    let told = mirror.get(begun.header("location")).answer().await;
    assert_eq!(told.status, 404);
    for name in ["one", "two", "three", "four"] {
        let held = upstream.set(|r| r.repository(&format!("a/{name}")).blobs.len());
        assert_eq!(held, 1, "{name}");
    }
}

#[tokio::test]
async fn a_wrong_digest_is_refused_by_the_upstream_and_kept_by_nobody() {
    let (_upstream, mirror) = start("").await;
    let (blob, other) = (Content::blob(1, 300_000), Content::blob(2, 300_000));
    let to = To::new(&mirror, "a/b");
    let patched = to.patch(&to.begin().await, &blob.bytes, None).await;
    to.put(patched.header("location"), &other.digest, &Bytes::new())
        .await
        .assert_error(400, "DIGEST_INVALID");
    for digest in [&blob.digest, &other.digest] {
        assert_eq!(mirror.head(&format!("/v2/a/b/blobs/{digest}")).answer().await.status, 404);
    }
    assert_eq!(mirror.check_store(), 0);
    assert!(std::fs::read_dir(mirror.cache().join("uploads")).unwrap().next().is_none());
}

#[tokio::test]
async fn a_pushed_tag_is_fresh_at_once() {
    let (upstream, mirror) = start("tag_ttl: 1h\ncooldown: 1h").await;
    let to = To::new(&mirror, "a/b");
    let images: Vec<Image> = (1..5).map(|seed| image::oci(seed).build()).collect();
    assert_eq!(mirror.get("/v2/a/b/manifests/v1").answer().await.status, 404);
    for image in &images[..2] {
        to.image("v1", image).await;
        is_a_hit(&mirror, "a/b", "v1", image).await;
    }
    // Further tags of the same push.
    let digest = &images[2].manifest.digest;
    for blob in images[2].blobs() {
        to.blob(blob).await;
    }
    let put = to.manifest(&format!("{digest}?tag=v1&tag=v2"), &images[2].manifest).answer().await;
    assert_eq!((put.status, put.headers.get_all("oci-tag").iter().count()), (201, 2));
    is_a_hit(&mirror, "a/b", "v1", &images[2]).await;
    is_a_hit(&mirror, "a/b", "v2", &images[2]).await;
    assert_eq!(upstream.count(&On::get("manifests")), 1, "the one before all pushes");
    // A push that fails leaves it unknown what the tag is: it is asked for.
    upstream.next(1, On::any("/manifests/v1"), [Fault::CutHead]);
    to.manifest("v1", &images[1].manifest).answer().await.assert_error(503, "UNAVAILABLE");
    assert_eq!(upstream.count(&On::head("/manifests/v1")), 0);
    let head = mirror.head("/v2/a/b/manifests/v1").answer().await;
    assert_eq!(head.header("docker-content-digest"), *digest, "what the cooldown lets through");
    assert!(upstream.count(&On::head("/manifests/v1")) > 0, "the tag was not asked for");
}

#[tokio::test]
async fn of_two_pushes_at_once_the_upstreams_last_is_the_tag() {
    let (upstream, mirror) = start("tag_ttl: 1h").await;
    let to = To::new(&mirror, "a/b");
    let (first, second) = (image::oci(1).build(), image::oci(2).build());
    to.image("v0", &first).await;
    to.image("v0", &second).await;
    let gate = Gate::closed();
    // The upstream takes the first before the second, and says so after it.
    upstream.next(1, On::any("/manifests/v1"), [Fault::HoldHead(gate.clone())]);
    let slow = tokio::spawn(to.manifest("v1", &first.manifest).answer());
    upstream.until_asked(1, &On::any("/manifests/v1")).await;
    assert_eq!(to.manifest("v1", &second.manifest).answer().await.status, 201);
    gate.open();
    assert_eq!(slow.await.unwrap().status, 201);
    mirror.pull("a/b", "v1", &second).await;
}

#[tokio::test]
async fn an_answer_from_before_a_push_is_no_answer_after_it() {
    let (upstream, mirror) = start("tag_ttl: 0s").await;
    let to = To::new(&mirror, "a/b");
    let (old, new) = (image::oci(1).build(), image::oci(2).build());
    to.image("v1", &old).await;
    let gate = Gate::closed();
    upstream.next(1, On::head("/manifests/v1"), [Fault::HoldHead(gate.clone())]);
    let slow = tokio::spawn(mirror.get("/v2/a/b/manifests/v1").answer());
    upstream.until_asked(1, &On::head("/manifests/v1")).await;
    to.image("v1", &new).await;
    // Not joined to the question that was asked before.
    mirror.pull("a/b", "v1", &new).await;
    gate.open();
    assert!(slow.await.unwrap().is(&old.manifest.bytes), "asked before, answered as before");
    mirror.pull("a/b", "v1", &new).await;
}

#[tokio::test]
async fn what_is_deleted_is_gone() {
    let (upstream, mirror) = start("tag_ttl: 1h").await;
    let to = To::new(&mirror, "a/b");
    let image = image::oci(1).build();
    to.image("v1", &image).await;
    to.image("v2", &image).await;
    let delete =
        async |path: &str| mirror.ask(Method::DELETE, &format!("/v2/a/b/{path}")).answer().await;
    assert_eq!(delete("manifests/v1").await.status, 202);
    assert_eq!(mirror.get("/v2/a/b/manifests/v1").answer().await.status, 404);
    is_a_hit(&mirror, "a/b", "v2", &image).await;
    let digest = &image.manifest.digest;
    assert_eq!(delete(&format!("manifests/{digest}")).await.status, 202);
    for reference in ["v2", digest] {
        let path = format!("/v2/a/b/manifests/{reference}");
        let gone = async || mirror.get(&path).answer().await.status == 404;
        eventually("the deletion to be seen", gone).await;
    }
    let blob = image.blobs().next().unwrap();
    assert_eq!(delete(&format!("blobs/{}", blob.digest)).await.status, 202);
    let path = format!("/v2/a/b/blobs/{}", blob.digest);
    eventually("the blob to be gone", async || mirror.get(&path).answer().await.status == 404)
        .await;
    assert_eq!(delete("manifests/v9").await.status, 404);
    assert!(upstream.set(|registry| registry.repository("a/b").manifests.is_empty()));
}

#[tokio::test]
async fn without_the_key_nothing_is_passed_on_and_the_key_is_named() {
    let upstream = upstream().await;
    let mirror = before(&upstream).start().await;
    for (method, path) in [
        (Method::POST, "/v2/a/b/blobs/uploads/"),
        (Method::PUT, "/v2/a/b/manifests/v1"),
        (Method::DELETE, "/v2/a/b/manifests/v1"),
        (Method::PATCH, "/v2/registry.test/a/b/blobs/uploads/00000000000000000000000000000000"),
        (Method::GET, "/v2/a/b/blobs/uploads/00000000000000000000000000000000"),
    ] {
        let refused = mirror.ask(method, path).answer().await;
        let (code, message) = refused.error();
        assert_eq!((refused.status, &*code), (405, "UNSUPPORTED"), "{path}");
        assert!(message.contains("`push: true`") && message.contains("registry.test"), "{message}");
        assert_eq!(refused.header("allow"), "GET, HEAD");
    }
    assert_eq!(upstream.count(&On::any("")), 0);
}

/// oras: the upstream says where an upload goes on, and its own host is the only answer.
#[tokio::test]
async fn ghsa_jxpm_75mh_9fp7_an_upload_leads_nowhere_but_where_it_began() {
    let (upstream, mirror) = start("").await;
    let other = Upstream::start().await;
    for host in
        [other.url(), format!("http://localhost:{}", upstream.host().split_once(':').unwrap().1)]
    {
        upstream.set(|registry| registry.pushes = Some(Pushes::led_to(&host)));
        let begun = mirror.ask(Method::POST, "/v2/a/b/blobs/uploads/").answer().await;
        let (_, message) = begun.error();
        assert_eq!(begun.status, 502);
        assert!(message.contains("it goes to no other host"), "{message}");
    }
    upstream.set(|registry| registry.pushes = Some(Pushes::default()));
    let blob = Content::blob(1, 1000);
    let to = To::new(&mirror, "a/b");
    // A redirect gets neither the body nor the credentials.
    let location = to.begin().await;
    upstream.next(1, On::any("/blobs/uploads/upload"), [Fault::Redirect(307, other.url())]);
    let patched = to.patch(&location, &blob.bytes, None).await;
    assert_eq!(patched.status, 502, "{:?}", patched.body);
    assert_eq!(other.count(&On::any("")), 0);
    // An address belongs to its repository, and nobody can write one.
    let location = to.begin().await;
    let (path, state) = location.split_once('?').unwrap();
    let asked = upstream.count(&On::any(""));
    for wrong in [
        format!("{}?{state}", path.replace("a/b", "a/c")),
        format!("{}?{state}", path.replace("/v2/a/b", "/v2/registry.test/x/y")),
        path.to_owned(),
        format!("{path}?{state}A"),
        format!("{path}?_upstream="),
        format!("{path}?_upstream=http%3A%2F%2F127.0.0.1%2F"),
    ] {
        let wrong = to.patch(&wrong, &blob.bytes, None).await;
        wrong.assert_error(404, "BLOB_UPLOAD_UNKNOWN");
    }
    assert_eq!(upstream.count(&On::any("")), asked);
    assert_eq!(to.patch(&location, &blob.bytes, None).await.status, 202);
}

#[tokio::test]
async fn a_refusal_reaches_the_client_in_the_upstreams_words() {
    let (upstream, mirror) = start("").await;
    let to = To::new(&mirror, "a/b");
    for (status, code) in [(403, "DENIED"), (429, "TOOMANYREQUESTS"), (405, "UNSUPPORTED")] {
        let location = to.begin().await;
        upstream.next(1, On::any("/blobs/uploads/upload"), [Fault::Status(status)]);
        let refused = to.patch(&location, &Bytes::from_static(b"abc"), None).await;
        let (said, message) = refused.error();
        assert_eq!((refused.status, &*said, &*message), (status, code, "said the upstream"));
    }
    let location = to.begin().await;
    upstream.next(1, On::any("/blobs/uploads/upload"), [Fault::Plain(413)]);
    to.patch(&location, &Bytes::from_static(b"abc"), None).await.assert_error(413, "SIZE_INVALID");
    upstream.next(1, On::any("/blobs/uploads/"), [Fault::Status(503)]);
    let refused = mirror.ask(Method::POST, "/v2/a/b/blobs/uploads/").answer().await;
    refused.assert_error(503, "UNAVAILABLE");
    assert_ne!(refused.header("retry-after"), "");
}

/// The client was told that a blob is there, and the upstream has removed it since.
#[tokio::test]
async fn what_the_upstream_lacks_is_not_told_to_be_there_again() {
    let (upstream, mirror) = start("").await;
    let to = To::new(&mirror, "a/b");
    let image = image::oci(1).build();
    to.image("v1", &image).await;
    let blob = image.blobs().last().unwrap();
    upstream.set(|registry| registry.repository("a/b").blobs.remove(&blob.digest));
    let path = format!("/v2/a/b/blobs/{}", blob.digest);
    assert_eq!(mirror.head(&path).answer().await.status, 200, "it is held");
    to.manifest("v2", &image.manifest).answer().await.assert_error(404, "MANIFEST_BLOB_UNKNOWN");
    eventually("the blob to be asked for", async || {
        mirror.head(&path).answer().await.status == 404
    })
    .await;
    to.image("v2", &image).await;
}

#[tokio::test]
async fn a_cache_without_room_passes_on_all_the_same() {
    let upstream = upstream().await;
    let setup = before(&upstream).with("push: true").cache("max_size: 1MiB");
    let mirror = setup.start().await;
    let blob = Content::blob(1, 5 * MIB);
    assert_eq!(To::new(&mirror, "a/b").blob(&blob).await.status, 201);
    assert!(upstream.set(|registry| registry.repository("a/b").blobs.contains_key(&blob.digest)));
    assert!(!mirror.keeps(&blob.digest));
    let got = mirror.get(&format!("/v2/a/b/blobs/{}", blob.digest)).answer().await;
    assert!(got.is(&blob.bytes));
}

#[tokio::test]
async fn an_upload_goes_on_after_a_kill_where_the_key_is_the_same() {
    let key = "a".repeat(40);
    let rule = "{users: [anonymous], actions: [pull, push], repositories: ['**']}";
    for (clients, goes_on) in
        [(format!("clients: {{token_key: {key}, rules: [{rule}]}}"), true), (String::new(), false)]
    {
        let upstream = upstream().await;
        let mut mirror = before(&upstream).with("push: true").raw(&clients).start().await;
        let blob = Content::blob(1, 3 * MIB);
        let location = {
            let to = To::new(&mirror, "a/b");
            let half = blob.bytes.slice(..2 * MIB);
            to.patch(&to.begin().await, &half, None).await.header("location").to_owned()
        };
        mirror.kill().await;
        mirror.start().await;
        let to = To::new(&mirror, "a/b");
        let rest = blob.bytes.slice(2 * MIB..);
        let put = to.put(&location, &blob.digest, &rest).await;
        if goes_on {
            assert_eq!(put.status, 201, "{:?}", put.body);
        } else {
            put.assert_error(404, "BLOB_UPLOAD_UNKNOWN");
            assert_eq!(to.blob(&blob).await.status, 201);
        }
        let got = mirror.get(&format!("/v2/a/b/blobs/{}", blob.digest)).answer().await;
        assert!(got.is(&blob.bytes));
        mirror.check_store();
    }
}

// --- rights ------------------------------------------------------------------------------------

async fn people() -> Upstream {
    let upstream = upstream().await;
    let mut people =
        People::new(&[Account::new("alice", "a-secret"), Account::new("bob", "b-secret")]);
    people.let_write("alice", "alice/app");
    people.let_read("bob", "alice/app");
    upstream.set(|registry| registry.auth = Auth::People(people));
    upstream
}

#[tokio::test]
async fn each_pushes_by_his_own_rights() {
    let upstream = people().await;
    let mirror = before(&upstream).with("push: true\nauth: passthrough").start().await;
    let to = To::new(&mirror, "alice/app");
    let path = "/v2/alice/app/blobs/uploads/";
    // Nobody: told how to log in, and for what.
    let refused = mirror.ask(Method::POST, path).answer().await;
    refused.assert_error(401, "UNAUTHORIZED");
    let challenge = refused.header("www-authenticate").to_owned();
    assert!(challenge.contains(r#"scope="repository:alice/app:pull,push""#), "{challenge}");
    let token = async |user: &str, password: &str| {
        let ask = mirror.get("/token?service=pierhead&scope=repository:alice/app:pull,push");
        bearer(&ask.header("authorization", &basic(user, password)).answer().await)
    };
    let alice = [basic("alice", "a-secret"), token("alice", "a-secret").await];
    let bob = [basic("bob", "b-secret"), token("bob", "b-secret").await];
    for (seed, login) in (1..).zip(&alice) {
        let to = To { login: login.clone(), ..to.clone() };
        let image = image::oci(seed).layers(&[2 * MIB]).build();
        to.image("v1", &image).await;
        let head = to.ask(Method::HEAD, "/v2/alice/app/manifests/v1").answer().await;
        assert_eq!(head.header("docker-content-digest"), image.manifest.digest);
    }
    let location = To { login: alice[0].clone(), ..to.clone() }.begin().await;
    let before = upstream.count(&On::any("/blobs/uploads/upload"));
    for login in &bob {
        let to = To { login: login.clone(), ..to.clone() };
        let refused = to.ask(Method::POST, path).answer().await;
        refused.assert_error(401, "UNAUTHORIZED");
        // Another's upload is not there.
        let refused = to.patch(&location, &Bytes::from_static(b"abc"), None).await;
        refused.assert_error(404, "BLOB_UPLOAD_UNKNOWN");
        let read = to.ask(Method::GET, "/v2/alice/app/manifests/v1").answer().await;
        assert_eq!(read.status, 200, "he may read");
    }
    let anonymous = to.patch(&location, &Bytes::from_static(b"abc"), None).await;
    anonymous.assert_error(404, "BLOB_UPLOAD_UNKNOWN");
    assert_eq!(upstream.count(&On::any("/blobs/uploads/upload")), before);
    let deleted = To { login: alice[0].clone(), ..to.clone() };
    let deleted = deleted.ask(Method::DELETE, "/v2/alice/app/manifests/v1").answer().await;
    assert_eq!(deleted.status, 202, "{:?}", deleted.body);
    assert!(!mirror.log().contains("a-secret"), "a password stands in the log");
}

/// What is not there yet is shown by the upstream to those alone who may push it.
#[tokio::test]
async fn a_new_repository_can_be_pushed_to() {
    let upstream = people().await;
    upstream.set(|registry| {
        if let Auth::People(people) = &mut registry.auth {
            people.let_write("alice", "alice/new");
        }
    });
    let mirror = before(&upstream).with("push: true\nauth: passthrough").start().await;
    let ask = mirror.get("/token?service=pierhead&scope=repository:alice/new:pull,push");
    let login = bearer(&ask.header("authorization", &basic("alice", "a-secret")).answer().await);
    let to = To { login, ..To::new(&mirror, "alice/new") };
    let image = image::oci(1).build();
    let blob = image.blobs().next().unwrap();
    let head = to.ask(Method::HEAD, &format!("/v2/alice/new/blobs/{}", blob.digest)).answer().await;
    assert_eq!(head.status, 404);
    to.image("v1", &image).await;
    let tokens = upstream.asked(&On::get("/token"));
    let scopes: Vec<&str> = tokens.iter().map(|one| one.query.as_str()).collect();
    assert!(scopes.iter().any(|query| query.contains("pull%2Cpush")), "{scopes:?}");
}

fn with_rules(upstream: &Upstream) -> Setup {
    let setup = before(upstream);
    let file = setup.folder().join("htpasswd");
    let hash = |password: &str| bcrypt::hash(password, 4).unwrap();
    std::fs::write(&file, format!("ci:{}\neve:{}\n", hash("builder"), hash("evening"))).unwrap();
    let login = "push: true\nauth: {username: alice, password: a-secret}";
    setup.with(login).raw(&format!(
        "clients:\n  htpasswd: {}\n  rules:\n  - {{users: [ci], actions: [pull, push], repositories: ['registry.test/alice/**']}}\n  - {{users: [eve], actions: [pull], repositories: ['**']}}",
        file.display()
    ))
}

#[tokio::test]
async fn our_login_pushes_for_those_whom_the_rules_let() {
    let upstream = people().await;
    let mirror = with_rules(&upstream).start().await;
    let to = To::new(&mirror, "alice/app");
    let (ci, eve) = (basic("ci", "builder"), basic("eve", "evening"));
    let image = image::oci(1).build();
    To { login: ci.clone(), ..to.clone() }.image("v1", &image).await;
    let asked = upstream.count(&On::any(""));
    let path = "/v2/alice/app/blobs/uploads/";
    mirror.ask(Method::POST, path).answer().await.assert_error(401, "UNAUTHORIZED");
    let eves = To { login: eve, ..to.clone() };
    eves.ask(Method::POST, path).answer().await.assert_error(403, "DENIED");
    let theirs = To { login: ci, ..To::new(&mirror, "bob/app") };
    let elsewhere = theirs.ask(Method::POST, "/v2/bob/app/blobs/uploads/").answer().await;
    elsewhere.assert_error(403, "DENIED");
    assert_eq!(upstream.count(&On::any("")), asked, "it was asked for what the rules forbid");
    // A mount from where the caller may not read is an upload like any other.
    let blob = upstream.blob("bob/app", 7, 100);
    let alices = To { name: "alice/app", ..theirs };
    let path = format!("{path}?mount={}&from=bob/app", blob.digest);
    assert_eq!(alices.ask(Method::POST, &path).answer().await.status, 202);
    let last = upstream.asked(&On::any("/blobs/uploads/")).pop().unwrap();
    assert!(!last.query.contains("mount"), "{}", last.query);
    // Our own login is refused: that is not the caller's to mend.
    let other = To { name: "alice/other", ..alices };
    let refused = other.ask(Method::POST, "/v2/alice/other/blobs/uploads/").answer().await;
    refused.assert_error(403, "DENIED");
}

// --- bad luck ----------------------------------------------------------------------------------

const LONG: usize = 64 * MIB;

/// Begins an upload at a raw upstream and sends the head of a long body.
async fn sending(mirror: &Mirror, head: &str) -> TcpStream {
    let location = To::new(mirror, "a/b").begin().await;
    let mut socket = TcpStream::connect(mirror.address()).await.unwrap();
    let head = format!("PATCH {location} HTTP/1.1\r\nHost: a\r\n{head}\r\n\r\n");
    socket.write_all(head.as_bytes()).await.unwrap();
    socket
}

async fn before_raw(raw: &Raw) -> Mirror {
    Setup::new().endpoints("registry.test", &[&raw.url()]).with("push: true").start().await
}

#[tokio::test]
async fn a_refusal_in_the_middle_reaches_a_client_that_is_still_sending() {
    for reading in [0, 100_000] {
        let raw = Raw::start().await;
        let body = r#"{"errors":[{"code":"SIZE_INVALID","message":"too much for us"}]}"#;
        let refusal = format!(
            "HTTP/1.1 413 Payload Too Large\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        );
        raw.on_patch(reading, &refusal, true);
        let mirror = before_raw(&raw).await;
        let location = To::new(&mirror, "a/b").begin().await;
        let body = Bytes::from(vec![7; LONG]);
        let refused = To::new(&mirror, "a/b").patch(&location, &body, None).await;
        let (code, message) = refused.error();
        assert_eq!((refused.status, &*code, &*message), (413, "SIZE_INVALID", "too much for us"));
        assert_eq!(raw.patches(), 1, "it was sent once more");
    }
}

#[tokio::test]
async fn an_upstream_that_dies_in_the_middle_is_told_and_nothing_is_sent_twice() {
    let raw = Raw::start().await;
    raw.on_patch(200_000, "", false);
    let mirror = before_raw(&raw).await;
    let to = To::new(&mirror, "a/b");
    let location = to.begin().await;
    let dead = to.patch(&location, &Bytes::from(vec![7; LONG]), None).await;
    dead.assert_error(503, "UNAVAILABLE");
    assert_eq!(raw.patches(), 1);
    eventually("the copy to be gone", async || {
        std::fs::read_dir(mirror.cache().join("uploads")).unwrap().next().is_none()
    })
    .await;
}

/// Neither with a length nor in chunks does the upstream see a clean end of what is not whole.
#[tokio::test]
async fn a_client_that_leaves_in_the_middle_ends_nothing_cleanly() {
    for (head, piece) in [
        ("Content-Length: 1000000", vec![7; 100_000]),
        (
            "Transfer-Encoding: chunked",
            [b"186A0\r\n".to_vec(), vec![7; 100_000], b"\r\n".to_vec()].concat(),
        ),
    ] {
        let raw = Raw::start().await;
        raw.on_patch(usize::MAX, "", false);
        let mirror = before_raw(&raw).await;
        let mut socket = sending(&mirror, head).await;
        socket.write_all(&piece).await.unwrap();
        raw.until_read(90_000).await;
        drop(socket);
        let tail = soon("the upstream's connection to be cut", raw.until_cut()).await;
        assert!(!tail.ends_with(b"0\r\n\r\n"), "{head}: a clean end");
        assert_eq!(raw.patches(), 1);
    }
}

/// The client can send no faster than the upstream takes.
#[tokio::test]
async fn a_slow_upstream_slows_its_client_and_fills_no_memory() {
    let raw = Raw::start().await;
    raw.stall();
    let mirror = before_raw(&raw).await;
    let mut socket = sending(&mirror, &format!("Content-Length: {}", 8 * LONG)).await;
    let piece = vec![7; MIB];
    let mut sent = 0;
    while sent < 8 * LONG {
        let quiet = Duration::from_secs(2);
        match tokio::time::timeout(quiet, socket.write(&piece)).await {
            Ok(written) => sent += written.unwrap(),
            Err(_) => break, // nobody takes any more
        }
    }
    assert!(sent < LONG, "{sent} bytes went into a mirror whose upstream takes none");
}

/// A client that waits for leave to send gets it, and its body is passed on.
#[tokio::test]
async fn who_waits_to_be_told_to_go_on_is_told() {
    let (upstream, mirror) = start("").await;
    let blob = Content::blob(1, 5000);
    let to = To::new(&mirror, "a/b");
    let location = to.begin().await;
    let mut socket = TcpStream::connect(mirror.address()).await.unwrap();
    let head = format!(
        "PUT {location}&digest={} HTTP/1.1\r\nHost: a\r\nContent-Length: 5000\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n",
        blob.digest
    );
    socket.write_all(head.as_bytes()).await.unwrap();
    let mut told = [0; 25];
    let wait = tokio::io::AsyncReadExt::read_exact(&mut socket, &mut told);
    soon("leave to go on", wait).await.unwrap();
    assert!(told.starts_with(b"HTTP/1.1 100"), "{}", String::from_utf8_lossy(&told));
    socket.write_all(&blob.bytes).await.unwrap();
    let mut rest = Vec::new();
    let wait = tokio::io::AsyncReadExt::read_to_end(&mut socket, &mut rest);
    soon("the answer", wait).await.unwrap();
    assert!(
        String::from_utf8_lossy(&rest).contains("HTTP/1.1 201"),
        "{}",
        String::from_utf8_lossy(&rest)
    );
    assert!(upstream.set(|registry| registry.repository("a/b").blobs.contains_key(&blob.digest)));
}
