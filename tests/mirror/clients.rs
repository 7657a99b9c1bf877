//! Who comes in: users, rules, tokens of our own, certificates.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use bytes::Bytes;
use hyper::Method;
use serde_json::Value;

use crate::support::client::{Answer, Ask, raw};
use crate::support::image::{self, Image};
use crate::support::mirror::{Mirror, NAME, Setup, before, until};
use crate::support::secure::Authority;
use crate::support::soon;
use crate::support::upstream::Upstream;

const RULES: &str = r#"
  groups: {builders: [ci]}
  rules:
    - {users: [anonymous], actions: [pull], repositories: ["registry.test/open/**"]}
    - {users: ["*"], actions: [pull], repositories: ["registry.test/team/**"]}
    - {groups: [builders], actions: [pull], repositories: ["registry.test/secret/**"]}
"#;

pub(crate) fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

pub(crate) fn htpasswd(setup: &Setup, users: &[(&str, &str)]) -> std::path::PathBuf {
    let lines: String = users
        .iter()
        .map(|(user, password)| {
            // Replicas have one file: always the same salt.
            let hash = bcrypt::hash_with_salt(password, 4, [7; 16]).expect("a hash");
            format!("{user}:{hash}\n")
        })
        .collect();
    let path = setup.folder().join("htpasswd");
    std::fs::write(&path, lines).expect("the temporary folder takes a file");
    path
}

struct Guarded {
    mirror: Mirror,
    upstream: Upstream,
    image: Image,
}

async fn guarded(more: &str) -> Guarded {
    let upstream = Upstream::start().await;
    let image = image::oci(1).build();
    for repository in ["open/app", "team/app", "secret/app"] {
        upstream.push(repository, "v1", &image);
    }
    let setup = before(&upstream);
    let file = htpasswd(&setup, &[("ci", "builder:pw"), ("eve", "evening")]);
    let mirror = setup
        .raw(&format!("clients:\n  htpasswd: {}\n{more}{RULES}", file.display()))
        .start()
        .await;
    Guarded { mirror, upstream, image }
}

impl Guarded {
    async fn tag(&self, repository: &str, authorization: Option<&str>) -> Answer {
        let ask = self.mirror.get(&format!("/v2/{repository}/manifests/v1"));
        match authorization {
            Some(text) => ask.header("authorization", text).answer().await,
            None => ask.answer().await,
        }
    }

    async fn token(&self, query: &str, authorization: Option<&str>) -> Answer {
        let ask = self.mirror.get(&format!("/token?{query}"));
        match authorization {
            Some(text) => ask.header("authorization", text).answer().await,
            None => ask.answer().await,
        }
    }
}

pub(crate) fn bearer(answer: &Answer) -> String {
    assert_eq!(answer.status, 200, "{answer:?}");
    let body: Value = serde_json::from_slice(&answer.body).expect("JSON");
    assert_eq!(body["token"], body["access_token"]);
    format!("Bearer {}", body["token"].as_str().expect("a token"))
}

#[tokio::test]
async fn each_gets_what_the_rules_give_him() {
    let all = guarded("").await;
    let (ci, eve) = (basic("ci", "builder:pw"), basic("eve", "evening"));
    let table = [
        ("open/app", None, 200),
        ("open/app", Some(&eve), 200),
        ("team/app", None, 401),
        ("team/app", Some(&eve), 200),
        ("secret/app", None, 401),
        ("secret/app", Some(&eve), 403),
        ("secret/app", Some(&ci), 200),
        ("nowhere/app", None, 401),
        ("nowhere/app", Some(&ci), 403),
    ];
    // Twice: what is held changes nothing.
    for _ in ["cold", "warm"] {
        for (repository, who, status) in table {
            let answer = all.tag(repository, who.map(String::as_str)).await;
            assert_eq!(answer.status, status, "{repository} {who:?} {answer:?}");
        }
    }
    let asked = all.upstream.asked(&crate::support::record::On::any("nowhere"));
    assert!(asked.is_empty(), "what the rules refuse is asked of nobody");
    let wrong = all.tag("open/app", Some(&basic("ci", "wrong"))).await;
    wrong.assert_error(401, "UNAUTHORIZED");
    let unknown = all.tag("open/app", Some(&basic("nobody", "builder:pw"))).await;
    assert_eq!(unknown.body, wrong.body, "whether there is such a user is not told");
    assert!(!all.mirror.log().contains("builder:pw"));
}

#[tokio::test]
async fn docker_login_and_a_pull_by_token() {
    let all = guarded("").await;
    let ping = all.mirror.get("/v2/").answer().await;
    ping.assert_error(401, "UNAUTHORIZED");
    let challenges: Vec<_> = ping.headers.get_all("www-authenticate").iter().collect();
    let wanted =
        format!("Bearer realm=\"http://{}/token\",service=\"pierhead\"", all.mirror.address());
    assert_eq!(challenges, [wanted.as_str()], "exactly one challenge");

    let login = "account=ci&client_id=docker&offline_token=true&service=pierhead";
    let refused = all.token(login, Some(&basic("ci", "wrong"))).await;
    refused.assert_error(401, "UNAUTHORIZED");
    let token = bearer(&all.token(login, Some(&basic("ci", "builder:pw"))).await);
    let ping = all.mirror.get("/v2/").header("authorization", &token).answer().await;
    assert_eq!(ping.status, 200);
    let with_basic = all.mirror.get("/v2/").header("authorization", &basic("ci", "builder:pw"));
    assert_eq!(with_basic.answer().await.status, 200);

    // That token opens no repository; the challenge says which scope would.
    let refused = all.tag("secret/app", Some(&token)).await;
    refused.assert_error(401, "UNAUTHORIZED");
    assert!(refused.header("www-authenticate").contains("scope=\"repository:secret/app:pull\""));
    let scope = "service=pierhead&scope=repository:secret/app:pull";
    let token = bearer(&all.token(scope, Some(&basic("ci", "builder:pw"))).await);
    assert_eq!(all.tag("secret/app", Some(&token)).await.status, 200);
    assert_eq!(all.tag("team/app", Some(&token)).await.status, 401, "one repository's token");
    let blob = format!("/v2/secret/app/blobs/{}", all.image.config.digest);
    let blob = all.mirror.get(&blob).header("authorization", &token).answer().await;
    assert!(blob.is(&all.image.config.bytes));

    // A token does not make itself a successor, and eve's opens what eve may.
    assert_eq!(all.token(scope, Some(&token)).await.status, 403);
    let token = bearer(&all.token(scope, Some(&basic("eve", "evening"))).await);
    assert_eq!(all.tag("secret/app", Some(&token)).await.status, 403);
    let anonymous = bearer(&all.token("scope=repository:open/app:pull", None).await);
    assert_eq!(all.tag("open/app", Some(&anonymous)).await.status, 200);
}

#[tokio::test]
async fn tokens_are_had_by_form_too() {
    let all = guarded("").await;
    let post = async |form: &str| {
        let address = all.mirror.address();
        let request = format!(
            "POST /token HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n\r\n{form}",
            form.len()
        );
        raw(address, request.as_bytes()).await.expect("an answer")
    };
    let good = post("grant_type=password&service=pierhead&client_id=containerd-client&username=ci&password=builder%3Apw&scope=repository:secret/app:pull").await;
    assert_eq!(good.status, 200, "{good:?}");
    let body: Value = serde_json::from_slice(&good.body).expect("JSON");
    let token = format!("Bearer {}", body["access_token"].as_str().expect("a token"));
    assert_eq!(all.tag("secret/app", Some(&token)).await.status, 200);
    assert_eq!(post("grant_type=password&username=ci&password=wrong").await.status, 401);
    assert_eq!(post("grant_type=password&username=ci%3Ax&password=y").await.status, 401);
    assert_eq!(post("grant_type=refresh_token&refresh_token=x").await.status, 400);
    assert_eq!(post(&"x".repeat(100_000)).await.status, 400);
    assert_eq!(post(&"scope=repository:a:pull&".repeat(600)).await.status, 400);
}

#[tokio::test]
async fn forged_expired_and_foreign_tokens_are_refused() {
    let all = guarded("  token_ttl: 10s\n").await;
    let other = guarded("").await;
    let scope = "scope=repository:secret/app:pull";
    let ci = basic("ci", "builder:pw");
    let good = bearer(&all.token(scope, Some(&ci)).await);
    let foreign = bearer(&other.token(scope, Some(&ci)).await);
    let parts: Vec<&str> = good.trim_start_matches("Bearer ").split('.').collect();
    let forge = |header: &str| {
        format!("Bearer {}.{}.{}", URL_SAFE_NO_PAD.encode(header), parts[1], parts[2])
    };
    for token in [
        foreign,
        forge(r#"{"alg":"none","typ":"JWT"}"#),
        forge(r#"{"alg":"HS256","typ":"JWT","jwk":{"kty":"oct","k":"AAAA"}}"#),
        forge(r#"{"alg":"HS256","typ":"JWT","kid":"../../dev/null"}"#),
        format!("Bearer {}.{}.", parts[0], parts[1]),
        "Bearer x".to_owned(),
        "Bearer ".to_owned(),
        format!("Bearer {}", "x".repeat(30_000)),
        "Negotiate abc".to_owned(),
        "Basic !!!".to_owned(),
    ] {
        let answer = all.tag("secret/app", Some(&token)).await;
        assert_eq!(answer.status, 401, "{token:.100}");
    }
    assert_eq!(all.tag("secret/app", Some(&good)).await.status, 200);
    soon("the end of a token", async {
        while all.tag("secret/app", Some(&good)).await.status == 200 {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    })
    .await;
    assert_eq!(all.tag("secret/app", Some(&good)).await.status, 401);
}

/// Harbor: a token from before its user was made anew, or removed, is worth nothing.
#[tokio::test]
async fn harbor_22900_harbor_23270_a_user_who_is_gone_or_has_another_password_is_gone_with_his_tokens()
 {
    let hash = |password: &str| bcrypt::hash(password, 4).expect("a hash");
    let gone = format!("eve:{}\n", hash("evening"));
    let changed = format!("ci:{}\n", hash("another"));
    for users in [gone, changed] {
        let all = guarded("").await;
        let (ci, scope) = (basic("ci", "builder:pw"), "scope=repository:secret/app:pull");
        let token = bearer(&all.token(scope, Some(&ci)).await);
        assert_eq!(all.tag("secret/app", Some(&token)).await.status, 200);
        std::fs::write(all.mirror.folder().join("htpasswd"), users).expect("our own file");
        let ask = || all.mirror.get("/v2/secret/app/manifests/v1").header("authorization", &token);
        until("the user to be gone", ask, |answer| answer.status == 401).await;
        assert_eq!(all.tag("secret/app", Some(&ci)).await.status, 401);
    }
}

#[tokio::test]
async fn replicas_share_a_key_and_believe_each_others_tokens() {
    let key = "  token_key: 0123456789abcdef0123456789abcdef\n";
    let (one, two) = (guarded(key).await, guarded(key).await);
    let scope = "scope=repository:secret/app:pull";
    let token = bearer(&one.token(scope, Some(&basic("ci", "builder:pw"))).await);
    assert_eq!(two.tag("secret/app", Some(&token)).await.status, 200);
}

#[tokio::test]
async fn a_mirror_of_public_registries_challenges_nobody_and_takes_no_credentials() {
    let upstream = Upstream::start().await;
    upstream.push("team/app", "v1", &image::oci(1).build());
    let mirror = before(&upstream).start().await;
    for authorization in ["Basic eDp5", "Bearer whatever", "Rubbish"] {
        let ask = |path: &str| mirror.get(path).header("authorization", authorization);
        assert_eq!(ask("/v2/").answer().await.status, 200);
        assert_eq!(ask("/v2/team/app/manifests/v1").answer().await.status, 200);
        assert_eq!(ask("/token").answer().await.status, 404);
    }
    let sent = upstream.asked(&crate::support::record::On::any(""));
    assert!(sent.iter().all(|one| one.header("authorization").is_empty()));
}

#[tokio::test]
async fn the_realm_is_where_the_client_is_and_nothing_a_header_says() {
    let all = guarded("").await;
    let realm = async |ask: Ask| ask.answer().await.header("www-authenticate").to_owned();
    let own = format!("realm=\"http://{}/token\"", all.mirror.address());
    let ask = || all.mirror.get("/v2/");
    for name in ["x-forwarded-host", "x-forwarded-proto", "x-original-url", "forwarded"] {
        assert!(realm(ask().header(name, "evil.test")).await.contains(&own), "{name}");
    }
    let odd = realm(ask().header("host", "a\"b,c")).await;
    assert!(!odd.contains("a\"b"), "{odd}");
}

#[tokio::test]
async fn a_certificate_names_the_user() {
    let (upstream, authority) = (Upstream::start().await, Authority::new());
    let image = image::oci(1).build();
    upstream.push("secret/app", "v1", &image);
    let setup = before(&upstream);
    let pair = authority.issue(setup.folder(), "mirror", &["localhost"]);
    let (ci, eve) = (
        authority.issue(setup.folder(), "ci", &["ci"]),
        authority.issue(setup.folder(), "eve", &["eve"]),
    );
    let listen = format!(
        "[{{address: '127.0.0.1:0', tls: {{cert: {}, key: {}, client_ca: {}, client_optional: true}}}}]",
        pair.cert.display(),
        pair.key.display(),
        authority.file(setup.folder()).display()
    );
    let mirror = setup.listen(&listen).raw(&format!("clients:{RULES}")).start().await;
    let get = async |own, headers: &[(&str, &str)]| {
        let client = authority.client(own, &["http/1.1"]);
        client
            .get(mirror.address(), "/v2/secret/app/manifests/v1", headers)
            .await
            .expect("an answer")
    };
    assert_eq!(get(Some(&ci), &[]).await, (200, Bytes::clone(&image.manifest.bytes)));
    assert_eq!(get(Some(&eve), &[]).await.0, 403);
    assert_eq!(get(None, &[]).await.0, 401);
    // The token service takes it too, and the token stands for it.
    let client = authority.client(Some(&ci), &["http/1.1"]);
    let path = "/token?scope=repository:secret/app:pull";
    let (status, body) = client.get(mirror.address(), path, &[]).await.expect("an answer");
    assert_eq!(status, 200);
    let body: Value = serde_json::from_slice(&body).expect("JSON");
    let token = format!("Bearer {}", body["token"].as_str().expect("a token"));
    assert_eq!(get(None, &[("authorization", &token)]).await.0, 200);
}

#[tokio::test]
async fn an_address_serves_only_what_it_is_for() {
    let upstream = Upstream::start().await;
    upstream.push("team/app", "v1", &image::oci(1).build());
    let mirror = before(&upstream)
        .upstream("other.test", &upstream)
        .listen("[{address: '127.0.0.1:0', serves: [other.test]}]")
        .start()
        .await;
    let refused = mirror.get("/v2/team/app/manifests/v1").answer().await;
    refused.assert_error(404, "NAME_UNKNOWN");
    let named = format!("/v2/{NAME}/team/app/manifests/v1");
    mirror.get(&named).answer().await.assert_error(404, "NAME_UNKNOWN");
    let served = mirror.get("/v2/other.test/team/app/manifests/v1").answer().await;
    assert_eq!(served.status, 200);
    let head = mirror.ask(Method::HEAD, "/v2/").answer().await;
    assert_eq!(head.status, 200);
}

#[tokio::test]
async fn tokens_of_somebody_elses_service_are_believed_by_its_keys() {
    use ring::signature::{Ed25519KeyPair, KeyPair as _};
    let upstream = Upstream::start().await;
    upstream.push("secret/app", "v1", &image::oci(1).build());
    let pair = Ed25519KeyPair::from_seed_unchecked(&[9; 32]).expect("a seed");
    let setup = before(&upstream);
    let keys = setup.folder().join("keys.json");
    let x = URL_SAFE_NO_PAD.encode(pair.public_key());
    let document = format!(r#"{{"keys":[{{"kty":"OKP","crv":"Ed25519","kid":"k","x":"{x}"}}]}}"#);
    std::fs::write(&keys, document).expect("the temporary folder takes a file");
    let jwt = format!("jwt: {{jwks: {}, issuer: them, audience: mirror}}", keys.display());
    let mirror = setup.raw(&format!("clients:\n  {jwt}{RULES}")).start().await;
    let token = |audience: &str, sub: &str, groups: &str| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let now = now.expect("a clock").as_secs();
        let claims = format!(
            r#"{{"iss":"them","aud":"{audience}","sub":"{sub}","groups":{groups},"iat":{now},"exp":{}}}"#,
            now + 60
        );
        let encode = |text: &str| URL_SAFE_NO_PAD.encode(text);
        let body = format!("{}.{}", encode(r#"{"alg":"EdDSA","kid":"k"}"#), encode(&claims));
        format!("Bearer {body}.{}", URL_SAFE_NO_PAD.encode(pair.sign(body.as_bytes())))
    };
    for (token, status) in [
        (token("mirror", "ci", "[]"), 200),
        (token("mirror", "somebody", r#"["builders"]"#), 200),
        (token("mirror", "somebody", "[]"), 403),
        (token("other", "ci", "[]"), 401),
    ] {
        let ask = mirror.get("/v2/secret/app/manifests/v1").header("authorization", &token);
        assert_eq!(ask.answer().await.status, status, "{token}");
        let another = mirror.get("/token").header("authorization", &token).answer().await;
        assert!(another.status >= 400, "a token makes no other token");
    }
}

#[tokio::test]
async fn pushes_and_lists_of_hosted_repositories_go_by_the_rules() {
    let upstream = Upstream::start().await;
    let setup = before(&upstream);
    let file = htpasswd(&setup, &[("ci", "pw"), ("eve", "pw")]);
    let rules = r#"
  rules:
    - {users: [ci], actions: [pull, push], repositories: ["team/**"]}
    - {users: [eve], actions: [pull, push], repositories: ["eve/**"]}
"#;
    let clients = format!("clients:\n  htpasswd: {}{rules}", file.display());
    let mirror = setup.raw(&format!("hosted: {{repositories: ['**']}}\n{clients}")).start().await;
    let blob = image::Content::blob(1, 1000);
    let post = async |target: &str, who: Option<&str>, body: &[u8]| {
        let who = who.map(|user| format!("Authorization: {}\r\n", basic(user, "pw")));
        let address = mirror.address();
        let mut request = format!(
            "POST {target} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n{}Content-Length: {}\r\n\r\n",
            who.unwrap_or_default(),
            body.len()
        )
        .into_bytes();
        request.extend_from_slice(body);
        raw(address, &request).await.expect("an answer").status
    };
    let whole = format!("/v2/team/app/blobs/uploads/?digest={}", blob.digest);
    assert_eq!(post(&whole, None, &blob.bytes).await, 401);
    assert_eq!(post(&whole, Some("eve"), &blob.bytes).await, 403);
    assert_eq!(post(&whole, Some("ci"), &blob.bytes).await, 201);
    // A mount takes only from where one may read: else it begins an upload, as if nothing were there.
    let mount =
        |to: &str, from: &str| format!("/v2/{to}/blobs/uploads/?mount={}{from}", blob.digest);
    assert_eq!(post(&mount("eve/app", "&from=team/app"), Some("eve"), b"").await, 202);
    assert_eq!(post(&mount("eve/app", ""), Some("eve"), b"").await, 202);
    assert_eq!(post(&mount("team/other", "&from=team/app"), Some("ci"), b"").await, 201);
    let get = async |path: String, who: Option<&str>| {
        let ask = mirror.get(&path);
        let ask = who.map_or(ask.clone(), |user| ask.header("authorization", &basic(user, "pw")));
        ask.answer().await.status
    };
    let held = format!("/v2/team/app/blobs/{}", blob.digest);
    assert_eq!(get(held.clone(), None).await, 401);
    assert_eq!(get(held.clone(), Some("eve")).await, 403);
    assert_eq!(get(held, Some("ci")).await, 200);
    assert_eq!(get("/v2/_catalog".to_owned(), None).await, 401);
    assert_eq!(get("/v2/_catalog".to_owned(), Some("ci")).await, 403);
}

/// Quay: an upload is for the one who began it, under the repository that he began it in.
#[tokio::test]
async fn cve_2026_32589_an_upload_belongs_to_who_began_it() {
    let upstream = Upstream::start().await;
    let setup = before(&upstream);
    let file = htpasswd(&setup, &[("ci", "pw"), ("eve", "pw")]);
    let rules =
        "  rules:\n    - {users: [ci, eve], actions: [pull, push], repositories: [\"**\"]}\n";
    let clients = format!("clients:\n  htpasswd: {}\n{rules}", file.display());
    let mirror = setup.raw(&format!("hosted: {{repositories: ['**']}}\n{clients}")).start().await;
    let ask = async |method: Method, path: &str, user: &str| {
        let ask = mirror.ask(method, path).header("authorization", &basic(user, "pw"));
        ask.answer().await
    };
    let begun = ask(Method::POST, "/v2/team/app/blobs/uploads/", "ci").await;
    assert_eq!(begun.status, 202);
    let location = begun.header("location").to_owned();
    // Its id tells nothing to others, nor to its owner where he names another repository of his.
    let elsewhere = location.replace("team/app", "team/other");
    let digest = image::Content::blob(1, 1).digest;
    for (method, query) in [
        (Method::GET, String::new()),
        (Method::PATCH, String::new()),
        (Method::PUT, format!("?digest={digest}")),
        (Method::DELETE, String::new()),
    ] {
        for (path, user) in [(&elsewhere, "ci"), (&elsewhere, "eve"), (&location, "eve")] {
            let answer = ask(method.clone(), &format!("{path}{query}"), user).await;
            answer.assert_error(404, "BLOB_UPLOAD_UNKNOWN");
        }
    }
    assert_eq!(ask(Method::GET, &location, "ci").await.status, 204);
    assert_eq!(ask(Method::DELETE, &location, "ci").await.status, 204);
}

/// The access line of the last request for this path.
async fn access_line(mirror: &Mirror, path: &str) -> Value {
    let lines = || {
        let log = mirror.log();
        let mut parsed = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        parsed.rfind(|line| line["target"] == "access" && line["path"] == path)
    };
    soon("the access line", async {
        loop {
            if let Some(line) = lines() {
                return line;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
}

#[tokio::test]
async fn the_access_line_names_the_user_and_the_metrics_nobody() {
    let all = guarded("").await;
    let (ci, wrong) = (basic("ci", "builder:pw"), basic("ci", "wrong-pw"));
    let scope = "scope=repository:secret/app:pull";
    let token = bearer(&all.token(scope, Some(&ci)).await);
    assert_eq!(access_line(&all.mirror, "/token").await["user"], "ci");
    for (repository, shown, status, user) in [
        ("open/app", None, 200, "-"),
        ("secret/app", Some(&token), 200, "ci"),
        ("team/app", Some(&ci), 200, "ci"),
        ("open/none", Some(&wrong), 401, "-"),
        ("secret/none", None, 401, "-"),
        ("none/app", Some(&ci), 403, "ci"),
    ] {
        let answer = all.tag(repository, shown.map(String::as_str)).await;
        assert_eq!(answer.status, status, "{repository}");
        let line = access_line(&all.mirror, &format!("/v2/{repository}/manifests/v1")).await;
        assert_eq!(line["user"], user, "{line}");
    }
    for secret in ["builder:pw", "wrong-pw", ci.trim_start_matches("Basic "), &token[20..]] {
        assert!(!all.mirror.log().contains(secret), "{secret}");
    }
    for (result, least) in
        [("allowed", 4.0), ("refused", 1.0), ("challenged", 1.0), ("denied", 1.0)]
    {
        let labels = [("result", result)];
        let counted = all.mirror.metric("pierhead_auth_decisions_total", &labels).await;
        assert!(counted >= least, "{result}: {counted}");
    }
    let metrics = all.mirror.admin("/metrics").answer().await;
    let metrics = String::from_utf8_lossy(&metrics.body).into_owned();
    assert!(!metrics.contains("\"ci\"") && !metrics.contains("user="));
}
