//! What registries and caches of others were found to do.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use hyper::Method;
use serde_json::{Value, json};

use super::{Two, believes, status};
use crate::clients::{basic, bearer, htpasswd};
use crate::keys::{Signer, claims};
use crate::support::auth::{Account, Auth, Bearer, People};
use crate::support::client::raw_request;
use crate::support::fault::{Fault, Gate};
use crate::support::image::{self, Algorithm, Content, OCI_INDEX, OCI_MANIFEST};
use crate::support::mirror::{before, until};
use crate::support::record::On;
use crate::support::upstream::Upstream;

/// A realm on another host gets no credentials.
#[tokio::test]
async fn cve_2026_33540_ghsa_3p65_76g6_3w7r() {
    let (upstream, evil) = (Upstream::start().await, Upstream::start().await);
    upstream.push("team/app", "v1", &image::oci(1).build());
    upstream.set(|registry| {
        let mut bearer = Bearer::usual();
        bearer.realm = Some(format!("{}/token", evil.url().replace("127.0.0.1", "localhost")));
        registry.auth = Auth::Bearer(bearer);
    });
    for auth in ["auth: {username: u, password: hunter2}", "auth: passthrough"] {
        let mirror = before(&upstream).with(auth).start().await;
        let ask = mirror.get("/v2/team/app/manifests/v1");
        let answer = ask.header("authorization", &basic("u", "hunter2")).answer().await;
        assert!(answer.status >= 400, "{auth}: {answer:?}");
        assert!(!mirror.log().contains("hunter2"));
    }
    let seen = evil.asked(&On::any(""));
    assert!(seen.iter().all(|one| one.header("authorization").is_empty()), "{seen:?}");
}

/// A blob that one repository no longer has is not readable through what another one has.
#[tokio::test]
async fn cve_2026_35172_ghsa_f2g3_hh2r_cwgc() {
    let upstream = Upstream::start().await;
    let blob = upstream.blob("team/b", 1, 10_000);
    let mirror = before(&upstream).start().await;
    let path = |repository: &str| format!("/v2/{repository}/blobs/{}", blob.digest);
    assert!(mirror.get(&path("team/b")).answer().await.is(&blob.bytes));
    mirror.get(&path("team/a")).answer().await.assert_error(404, "BLOB_UNKNOWN");
    assert_eq!(mirror.head(&path("team/a")).answer().await.status, 404);
}

/// Every method that changes something is refused, and the upstream sees nothing of it.
#[tokio::test]
async fn cve_2026_41888() {
    let upstream = Upstream::start().await;
    upstream.push("team/app", "v1", &image::oci(1).build());
    let mirror = before(&upstream).start().await;
    for line in [
        "DELETE /v2/team/app/manifests/v1",
        "PUT /v2/team/app/manifests/v1",
        "POST /v2/team/app/blobs/uploads/",
        "PATCH /v2/team/app/blobs/uploads/x",
    ] {
        assert_eq!(raw_request(mirror.address(), line).await.status, 405, "{line}");
    }
    assert_eq!(upstream.connections(), 0);
}

/// No key that a token brings along, no way to one, and no other algorithm makes it good.
#[tokio::test]
async fn cve_2025_24976_ghsa_phw4_mc57_4hwc() {
    let (upstream, evil) = (Upstream::start().await, Upstream::start().await);
    upstream.push("team/app", "v1", &image::oci(1).build());
    let (theirs, own) = (Signer::new("k", 1), Signer::new("k", 66));
    let mirror = believes(&theirs, &upstream).await;
    let sound = json!({"alg": "EdDSA", "kid": "k"});
    assert_eq!(status(&mirror, &theirs.sign(&sound, &claims())).await, 200);
    let keys = format!("{}/keys.json", evil.url());
    for head in [
        json!({"alg": "EdDSA", "kid": "k"}),
        json!({"alg": "EdDSA", "kid": "k", "jwk": own.public()}),
        json!({"alg": "EdDSA", "jwk": own.public()}),
        json!({"alg": "EdDSA", "kid": "k", "jku": keys}),
        json!({"alg": "EdDSA", "kid": "k", "x5u": keys, "x5c": ["AAAA"]}),
        json!({"alg": "EdDSA", "kid": "../../../../dev/null"}),
        json!({"alg": "EdDSA", "kid": keys}),
        json!({"alg": "none"}),
        json!({"alg": "None", "kid": "k"}),
    ] {
        let token = own.sign(&head, &claims());
        assert_eq!(status(&mirror, &token).await, 401, "{head}");
        let (unsigned, _) = token.rsplit_once('.').expect("three parts");
        assert_eq!(status(&mirror, &format!("{unsigned}.")).await, 401, "{head}");
    }
    let head = json!({"alg": "EdDSA", "kid": "k", "crit": ["x"], "x": 1});
    assert_eq!(status(&mirror, &theirs.sign(&head, &claims())).await, 401, "not understood");
    // The public key, taken for a secret.
    let token = with_hmac(&theirs.public(), &claims());
    assert_eq!(status(&mirror, &token).await, 401);
    assert_eq!(evil.connections(), 0);
}

/// A token signed by HMAC with the bytes of a public key.
fn with_hmac(public: &Value, claims: &Value) -> String {
    let encode = |part: &Value| URL_SAFE_NO_PAD.encode(part.to_string());
    let key = URL_SAFE_NO_PAD.decode(public["x"].as_str().expect("a key")).expect("base64");
    let body = format!("{}.{}", encode(&json!({"alg": "HS256", "kid": "k"})), encode(claims));
    let tag =
        ring::hmac::sign(&ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &key), body.as_bytes());
    format!("Bearer {body}.{}", URL_SAFE_NO_PAD.encode(tag))
}

/// A token that does not say when it was made, or says a time to come, is none.
#[tokio::test]
async fn harbor_22900_harbor_23270() {
    let upstream = Upstream::start().await;
    upstream.push("team/app", "v1", &image::oci(1).build());
    let theirs = Signer::new("k", 1);
    let mirror = believes(&theirs, &upstream).await;
    let head = json!({"alg": "EdDSA", "kid": "k"});
    let now = claims()["iat"].as_u64().expect("seconds");
    let mut without = claims();
    without.as_object_mut().expect("claims").remove("iat");
    assert_eq!(status(&mirror, &theirs.sign(&head, &without)).await, 401);
    for iat in [Value::Null, json!(-1), json!("0"), json!(now + 3000), json!(u64::MAX)] {
        let mut wrong = claims();
        wrong["iat"] = iat;
        assert_eq!(status(&mirror, &theirs.sign(&head, &wrong)).await, 401, "{wrong}");
    }
    assert_eq!(status(&mirror, &theirs.sign(&head, &claims())).await, 200);
}

/// Who has left a group has left it with the tokens that were had before.
#[tokio::test]
async fn cve_2025_23208_ghsa_c9p4_xwr9_rfhx() {
    let upstream = Upstream::start().await;
    upstream.push("team/app", "v1", &image::oci(1).build());
    let setup = before(&upstream);
    let file = htpasswd(&setup, &[("ci", "pw"), ("eve", "pw")]);
    let groups = "groups: {builders: [ci]}";
    let rule = "{groups: [builders], actions: [pull], repositories: ['**']}";
    let clients =
        format!("clients:\n  htpasswd: {}\n  {groups}\n  rules: [{rule}]", file.display());
    let mirror = setup.raw(&clients).start().await;
    let ask = mirror.get("/token?scope=repository:team/app:pull");
    let token = bearer(&ask.header("authorization", &basic("ci", "pw")).answer().await);
    for shown in [&token, &basic("ci", "pw")] {
        assert_eq!(status(&mirror, shown).await, 200);
    }
    assert!(mirror.reload(|yaml| yaml.replace(groups, "groups: {builders: [eve]}")).await);
    for shown in [&token, &basic("ci", "pw")] {
        assert_eq!(status(&mirror, shown).await, 403);
    }
    assert_eq!(status(&mirror, &basic("eve", "pw")).await, 200);
}

/// A giant page size is bounded.
#[tokio::test]
async fn cve_2023_2253_ghsa_hqxw_f8mx_cpmw() {
    let upstream = Upstream::start().await;
    upstream.push("team/app", "v1", &image::oci(1).build());
    let mirror = before(&upstream).start().await;
    let tags = mirror.get("/v2/team/app/tags/list?n=9223372036854775808").answer().await;
    assert_eq!(tags.json()["tags"], json!(["v1"]));
    let negative = mirror.get("/v2/team/app/tags/list?n=-1").answer().await;
    negative.assert_error(400, "PAGINATION_NUMBER_INVALID");
    assert_eq!(mirror.get("/v2/_catalog?n=9223372036854775808").answer().await.status, 404);
}

/// A body that is a manifest to one and an index to another is refused and not kept.
#[tokio::test]
async fn cve_2021_41190_ghsa_qq97_vm5h_rrhg_ghsa_mc8v_mgrf_8f4m_ghsa_5j5w_g665_5m35() {
    let upstream = Upstream::start().await;
    let both = json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST, "manifests": [], "layers": [],
        "config": {"mediaType": "x", "digest": Content::blob(1, 1).digest, "size": 1}
    });
    let differing = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []});
    let mirror = before(&upstream).start().await;
    for (name, body) in [("both", both), ("differing", differing)] {
        let manifest = Content::new(Algorithm::Sha256, OCI_MANIFEST, body.to_string());
        upstream.push_manifest("team/app", &manifest);
        upstream.tag("team/app", name, &manifest);
        for reference in [name, &manifest.digest] {
            let answer = mirror.get(&format!("/v2/team/app/manifests/{reference}")).answer().await;
            assert!(answer.status >= 400, "{name}: {answer:?}");
        }
        assert!(!mirror.keeps(&manifest.digest), "{name}");
    }
}

/// A manifest without end is cut at 4 MiB.
#[tokio::test]
async fn cve_2017_11468() {
    let upstream = Upstream::start().await;
    upstream.push("team/app", "v1", &image::oci(1).build());
    upstream.always(On::get("/manifests/"), Fault::Extra(100 << 20));
    upstream.always(On::get("/manifests/"), Fault::NoLength);
    let mirror = before(&upstream).start().await;
    let answer = mirror.get("/v2/team/app/manifests/v1").answer().await;
    assert!(answer.status >= 500, "{answer:?}");
    assert_eq!(mirror.check_store(), 0);
}

/// The same from a client: told or found out on the way, more than 4 MiB is refused.
#[tokio::test]
async fn cve_2017_11468_pushed() {
    let two = Two::start().await;
    for size in [(4 << 20) + 1, 100 << 20] {
        let path = "/v2/a/app/manifests/v1";
        let body = Bytes::from(vec![b' '; size]);
        let ask = two.as_("alice", Method::PUT, path).header("content-type", OCI_MANIFEST);
        ask.body(body).answer().await.assert_error(413, "SIZE_INVALID");
    }
    assert_eq!(two.mirror.check_store(), 0);
}

/// What is held for one repository is not told through another: GET, HEAD and mount.
#[tokio::test]
async fn cve_2024_39897_ghsa_55r9_5mx9_qq7r() {
    let upstream = Upstream::start().await;
    let mut people = People::new(&[Account::new("a", "pa"), Account::new("b", "pb")]);
    people.let_read("a", "team/a");
    people.let_read("b", "team/b");
    upstream.set(|registry| registry.auth = Auth::People(people));
    let secret = upstream.blob("team/b", 1, 10_000);
    upstream.blob("team/a", 2, 10);
    let mirror = before(&upstream).with("auth: passthrough").start().await;
    let path = |repository: &str| format!("/v2/{repository}/blobs/{}", secret.digest);
    let held = mirror.get(&path("team/b")).header("authorization", &basic("b", "pb"));
    assert!(held.answer().await.is(&secret.bytes));
    let a = basic("a", "pa");
    let get = mirror.get(&path("team/a")).header("authorization", &a).answer().await;
    get.assert_error(404, "BLOB_UNKNOWN");
    let head = mirror.head(&path("team/a")).header("authorization", &a).answer().await;
    assert_eq!(head.status, 404);
    let absent = format!("/v2/team/a/blobs/{}", Content::blob(99, 1).digest);
    let absent = mirror.get(&absent).header("authorization", &a).answer().await;
    assert_eq!(absent.status, get.status);
    let mount = format!("POST /v2/team/a/blobs/uploads/?mount={}&from=team/b", secret.digest);
    assert!(raw_request(mirror.address(), &mount).await.status >= 400);
}

/// No user name and no agent is trusted for what it is called.
#[tokio::test]
async fn harbor_c080060() {
    let upstream = Upstream::start().await;
    upstream.set(|registry| registry.auth = Auth::People(People::new(&[])));
    upstream.push("team/app", "v1", &image::oci(1).build());
    let mirror = before(&upstream).with("auth: passthrough").start().await;
    for user in ["scanner-1", "robot$scanner-1", "admin", "system", "root"] {
        let ask = mirror.get("/v2/team/app/manifests/v1").header("user-agent", "harbor-scanner");
        let answer = ask.header("authorization", &basic(user, "")).answer().await;
        assert!(matches!(answer.status, 401 | 403), "{user}: {answer:?}");
    }
}

/// A default secret is refused at start.
#[tokio::test]
async fn cve_2026_4404() {
    let upstream = Upstream::start().await;
    let rules = "rules: [{users: [anonymous], actions: [pull], repositories: ['**']}]";
    for key in ["change-me-change-me-change-me-change-me", "short", ""] {
        let setup = before(&upstream).raw(&format!("clients: {{token_key: '{key}', {rules}}}"));
        let file = setup.folder().join("bad.yaml");
        std::fs::write(&file, setup.yaml()).expect("the temporary folder takes a file");
        let file = file.display().to_string();
        let output = crate::support::mirror::run(&["serve", "--config", &file]).await;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(64), "{said}");
        assert!(key.is_empty() || !said.contains(&format!("`{key}`")), "{said}");
    }
}

/// Lists of a private repository are for those who may read it.
#[tokio::test]
async fn cve_2022_46463() {
    let upstream = Upstream::start().await;
    upstream.set(|registry| registry.auth = Auth::People(People::new(&[])));
    upstream.push("team/app", "v1", &image::oci(1).build());
    let mirror = before(&upstream).with("auth: passthrough").start().await;
    assert_eq!(mirror.get("/v2/team/app/tags/list").answer().await.status, 401);
    assert_eq!(mirror.get("/v2/_catalog").answer().await.status, 404);
}

/// Whatever has an id is looked for in the repository that is named, and nowhere else.
#[tokio::test]
async fn cve_2022_31666_to_31671() {
    let two = Two::start().await;
    let image = image::oci(1).build();
    let signature = image::artifact(7, "application/vnd.test", &image.manifest).build();
    two.push("alice", "a/app", "v1", &image).await;
    two.push("alice", "a/app", "signature", &signature).await;
    two.push("bob", "b/app", "mine", &image::oci(9).build()).await;
    let begun = two.as_("alice", Method::POST, "/v2/a/app/blobs/uploads/").answer().await;
    let upload = begun.header("location").replace("/v2/a/", "/v2/b/");
    let (layer, manifest) = (&image.layers[0].digest, &image.manifest.digest);
    for (method, path) in [
        (Method::GET, format!("/v2/b/app/blobs/{layer}")),
        (Method::HEAD, format!("/v2/b/app/blobs/{layer}")),
        (Method::DELETE, format!("/v2/b/app/blobs/{layer}")),
        (Method::GET, format!("/v2/b/app/manifests/{manifest}")),
        (Method::HEAD, format!("/v2/b/app/manifests/{manifest}")),
        (Method::DELETE, format!("/v2/b/app/manifests/{manifest}")),
        (Method::GET, "/v2/b/app/manifests/v1".to_owned()),
        (Method::DELETE, "/v2/b/app/manifests/v1".to_owned()),
        (Method::GET, upload.clone()),
        (Method::PATCH, upload.clone()),
        (Method::PUT, format!("{upload}?digest={layer}")),
        (Method::DELETE, upload),
    ] {
        let answer = two.as_("bob", method.clone(), &path).answer().await;
        assert_eq!(answer.status, 404, "{method} {path}");
        let alices = path.replace("/v2/b/", "/v2/a/");
        let refused = two.as_("bob", method.clone(), &alices).answer().await;
        assert!([403, 404].contains(&refused.status), "{method} {alices}: {}", refused.status);
    }
    let referrers = two.as_("bob", Method::GET, &format!("/v2/b/app/referrers/{manifest}"));
    assert_eq!(referrers.answer().await.json()["manifests"], json!([]));
    // Nor is anything of it named in what is his.
    let stolen = two.manifest("bob", "b/app", "stolen", &image.manifest).answer().await;
    stolen.assert_error(400, "MANIFEST_BLOB_UNKNOWN");
    let mount = format!("/v2/b/app/blobs/uploads/?mount={layer}&from=a/app");
    assert_eq!(two.as_("bob", Method::POST, &mount).answer().await.status, 202, "no mount");
    for content in image.blobs() {
        let path = format!("/v2/a/app/blobs/{}", content.digest);
        assert!(two.as_("alice", Method::GET, &path).answer().await.is(&content.bytes));
    }
}

/// A redirect leads to no address nearer than its author.
#[tokio::test]
async fn cve_2026_2376() {
    let upstream = Upstream::start().await;
    let blob = upstream.blob("team/app", 1, 1000);
    let mirror = before(&upstream).start().await;
    for to in [
        "http://169.254.169.254/latest/meta-data",
        "http://[::ffff:169.254.169.254]/",
        "http://2852039166/",
        "http://0.0.0.0/",
        "file:///etc/passwd",
    ] {
        upstream.next(1, On::get("/blobs/"), [Fault::Redirect(307, to.to_owned())]);
        upstream.next(8, On::get("/blobs/"), [Fault::Redirect(307, to.to_owned())]);
        let answer = mirror.get(&format!("/v2/team/app/blobs/{}", blob.digest)).answer().await;
        assert!(answer.status >= 500, "{to}: {answer:?}");
        upstream.behave();
    }
}

/// Quay: whoever may pull may not push for it.
#[tokio::test]
async fn cve_2025_4374() {
    let upstream = Upstream::start().await;
    let image = image::oci(1).build();
    upstream.push("team/app", "v1", &image);
    let setup = before(&upstream);
    let file = setup.folder().join("htpasswd");
    let line = format!("ci:{}\n", bcrypt::hash("ci-pw", 4).expect("a hash"));
    std::fs::write(&file, line).expect("the folder takes a file");
    let mirror = setup
        .raw(&format!(
            "hosted: {{repositories: [\"own/**\"]}}\nclients:\n  htpasswd: {}\n  rules: [{{users: [ci], actions: [pull], repositories: [\"**\"]}}]\n",
            file.display()
        ))
        .start()
        .await;
    let ci = basic("ci", "ci-pw");
    let pull = mirror.get("/v2/team/app/manifests/v1").header("authorization", &ci);
    assert_eq!(pull.answer().await.status, 200);
    for (line, wanted) in [
        ("POST /v2/own/app/blobs/uploads/", 403),
        ("PUT /v2/own/app/manifests/v1", 403),
        ("DELETE /v2/own/app/manifests/v1", 403),
        ("PUT /v2/team/app/manifests/v1", 405),
        ("DELETE /v2/team/app/manifests/v1", 405),
    ] {
        let (method, path) = line.split_once(' ').expect("two words");
        let method = Method::from_bytes(method.as_bytes()).expect("a method");
        let answer = mirror.ask(method, path).header("authorization", &ci).answer().await;
        assert_eq!(answer.status, wanted, "{line} {answer:?}");
    }
}

/// No path leads out of the cache.
#[tokio::test]
async fn cve_2024_4956() {
    let upstream = Upstream::start().await;
    let mirror = before(&upstream).start().await;
    for path in [
        "/v2/..%2f..%2fetc/passwd",
        "/v2/%2e%2e/%2e%2e/format",
        "/v2//etc/passwd",
        "/v2/..\\..\\etc\\passwd",
        "/v2/team/app/blobs/sha256:..%2f..%2f..%2fformat",
        "/v2/team%00/app/manifests/v1",
    ] {
        let answer = raw_request(mirror.address(), &format!("GET {path}")).await;
        assert!(matches!(answer.status, 400 | 404), "{path}: {answer:?}");
    }
    assert_eq!(upstream.connections(), 0);
}

/// What is blocked is blocked for all who ask at once.
#[tokio::test]
async fn nexus_firewall_coalesced_waiters() {
    let upstream = Upstream::start().await;
    upstream.push("team/evil", "v1", &image::oci(1).build());
    let mirror = before(&upstream).with("deny: [team/evil]").start().await;
    let asked: Vec<_> =
        (0..20).map(|_| tokio::spawn(mirror.get("/v2/team/evil/manifests/v1").answer())).collect();
    for answer in asked {
        assert_eq!(answer.await.expect("no panic").status, 403);
    }
    assert_eq!(upstream.connections(), 0);
}

/// No header changes bytes, links or the host that is asked.
#[tokio::test]
async fn cve_2024_6915() {
    let upstream = Upstream::start().await;
    let image = image::oci(1).build();
    upstream.push("team/app", "v1", &image);
    let mirror = before(&upstream).start().await;
    for name in ["x-forwarded-host", "x-original-url", "x-rewrite-url", "forwarded", "cookie"] {
        let ask = mirror.get("/v2/team/app/manifests/v1").header(name, "evil.test");
        assert!(ask.answer().await.is(&image.manifest.bytes), "{name}");
    }
    for one in upstream.asked(&On::any("")) {
        let all = format!("{:?}", one.headers);
        assert!(!all.contains("evil") && !all.contains("cookie"), "{all}");
    }
}

/// An index names other hosts and other repositories as it likes: credentials go to none of the hosts, and
/// the names are no way to what another repository has.
#[tokio::test]
async fn artifact_keeper_2925() {
    let (upstream, evil) = (Upstream::start().await, Upstream::start().await);
    let secret = image::oci(5).build();
    upstream.push("team/secret", "v1", &secret);
    let mut child = secret.manifest.descriptor();
    child["urls"] = json!([format!("{}/v2/x/manifests/v1", evil.url())]);
    child["annotations"] = json!({
        "org.opencontainers.image.ref.name": format!("{}/x:v1", evil.host()),
        "org.opencontainers.image.source": evil.url(),
    });
    let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [child]});
    let index = Content::new(Algorithm::Sha256, OCI_INDEX, index.to_string());
    upstream.push_manifest("team/app", &index);
    upstream.tag("team/app", "v1", &index);
    upstream.set(|registry| registry.auth = Auth::Basic(Account::new("u", "hunter2")));
    let mirror = before(&upstream).with("auth: {username: u, password: hunter2}").start().await;
    mirror.pull("team/secret", "v1", &secret).await;
    assert!(mirror.get("/v2/team/app/manifests/v1").answer().await.is(&index.bytes));
    let child = format!("/v2/team/app/manifests/{}", secret.manifest.digest);
    mirror.get(&child).answer().await.assert_error(404, "MANIFEST_UNKNOWN");
    let layer = format!("/v2/team/app/blobs/{}", secret.config.digest);
    mirror.get(&layer).answer().await.assert_error(404, "BLOB_UNKNOWN");
    for path in [child, layer] {
        assert!(upstream.count(&On::any(&path)) > 0, "the upstream decides: {path}");
    }
    assert_eq!(evil.connections(), 0);
}

/// What breaks off is no blob, whoever broke it off, and nobody waits for a writer that is dead.
#[tokio::test]
async fn distribution_4381() {
    let upstream = Upstream::start().await;
    let blob = upstream.blob("team/app", 1, 400_000);
    let mirror = before(&upstream).start().await;
    let path = format!("/v2/team/app/blobs/{}", blob.digest);
    let gate = Gate::closed();
    let dies = [Fault::HoldAfter(100_000, gate.clone()), Fault::CutAfter(100_000)];
    upstream.next(1, On::get("/blobs/"), dies);
    upstream.always(On::get("/blobs/"), Fault::CutHead);
    let waiting: Vec<_> = (0..5).map(|_| tokio::spawn(mirror.get(&path).answer())).collect();
    upstream.until_asked(1, &On::get("/blobs/")).await;
    gate.open();
    for answer in waiting {
        let answer = answer.await.expect("no panic");
        assert!(!answer.is(&blob.bytes) && !answer.deceives(&blob.bytes), "{}", answer.status);
    }
    assert!(!mirror.keeps(&blob.digest));
    upstream.behave();
    // The client leaves in the middle, and the next one gets all of it.
    let gate = Gate::closed();
    upstream.always(On::get("/blobs/"), Fault::HoldAfter(200_000, gate.clone()));
    drop(until("a head", || mirror.head(&path), |answer| answer.status == 200).await);
    let mut leaves = mirror.get(&path).open().await;
    leaves.at_least(10_000).await;
    drop(leaves);
    assert!(!mirror.keeps(&blob.digest), "half of it is not it");
    gate.open();
    assert!(mirror.get(&path).answer().await.is(&blob.bytes));
    mirror.until_kept(1).await;
}
