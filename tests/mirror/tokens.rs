//! Logging in upstream: challenges of every form, tokens of every form, and what must not leak.

use futures_util::future::join_all;

use crate::support::auth::{Account, Auth, Bearer};
use crate::support::client::Answer;
use crate::support::fault::{Fault, Gate};
use crate::support::image::{self, Image};
use crate::support::mirror::{Mirror, NAME, before, until};
use crate::support::record::On;
use crate::support::upstream::Upstream;

const PATH: &str = "/v2/team/app/manifests/v1";

async fn upstream_with(auth: Auth) -> (Upstream, Image) {
    let upstream = Upstream::start().await;
    let image = image::oci(1).build();
    upstream.push("team/app", "v1", &image);
    upstream.set(|registry| registry.auth = auth);
    (upstream, image)
}

async fn mirror_before(auth: Auth) -> (Upstream, Mirror, Image) {
    let (upstream, image) = upstream_with(auth).await;
    let mirror = before(&upstream).start().await;
    (upstream, mirror, image)
}

/// Pulls anonymously from a registry with this way of handing out tokens, which takes one token.
async fn pulls(what: &str, bearer: Bearer) {
    let (upstream, mirror, image) = mirror_before(Auth::Bearer(bearer)).await;
    let answer = mirror.get(PATH).answer().await;
    assert!(answer.is(&image.manifest.bytes), "{what}: {answer:?}");
    mirror.pull("team/app", "v1", &image).await;
    let asked = upstream.asked(&On::get("/token"));
    assert_eq!(asked.len(), 1, "{what}: {}", upstream.story());
    assert!(!asked[0].headers.contains_key("authorization"), "{what}");
}

#[tokio::test]
async fn challenges_of_every_form_are_understood() {
    let challenges = [
        r#"Bearer realm="{realm}",service="registry.test",scope="{scope}""#,
        r#"bearer realm="{realm}",service="registry.test",scope="{scope}""#,
        r#"BEARER Realm="{realm}", Service="registry.test", Scope="{scope}""#,
        r#"Bearer realm="{realm}",scope="{scope}""#,
        r#"Bearer realm="{realm}",service="with \"quotes\", and commas",scope="{scope}""#,
        r#"Bearer realm="{realm}",service=unquoted,scope="{scope}",error="invalid_token""#,
        r#"Basic realm="registry.test", Bearer realm="{realm}",service="x",scope="{scope}""#,
        r#"Negotiate, Bearer realm="{realm}",service="x",scope="{scope}""#,
        r#"Bearer realm="{realm}",service="registry.test",scope="{scope}",extra="1""#,
    ];
    join_all(challenges.map(|text| pulls(text, Bearer::usual().challenge(text)))).await;
}

#[tokio::test]
async fn a_challenge_without_a_scope_gets_the_usual_one() {
    for text in [r#"Bearer realm="{realm}",service="registry.test""#, r#"Bearer realm="{realm}""#] {
        pulls(text, Bearer::usual().challenge(text)).await;
    }
}

#[tokio::test]
async fn a_scope_of_its_own_kind_is_passed_on() {
    let text = r#"Bearer realm="{realm}",service="public.ecr.aws",scope="aws""#;
    pulls(text, Bearer { scope: "aws".to_owned(), ..Bearer::usual().challenge(text) }).await;
}

#[tokio::test]
async fn a_challenge_among_several_headers_is_found() {
    let mut bearer = Bearer::usual();
    bearer.challenges.insert(0, r#"Basic realm="registry.test""#.to_owned());
    bearer.challenges.push("Digest realm=\"x\", nonce=\"y\"".to_owned());
    pulls("Basic, Bearer, Digest", bearer).await;
}

#[tokio::test]
async fn a_realm_with_a_query_keeps_it() {
    let mut bearer = Bearer::usual();
    bearer.challenges =
        vec![r#"Bearer realm="{realm}?account=none",service="s",scope="{scope}""#.to_owned()];
    let (upstream, mirror, image) = mirror_before(Auth::Bearer(bearer)).await;
    mirror.pull("team/app", "v1", &image).await;
    let query = &upstream.asked(&On::get("/token"))[0].query;
    assert!(query.contains("account=none") && query.contains("service=s"), "{query}");
}

#[tokio::test]
async fn token_answers_of_every_form_are_understood() {
    let replies = [
        r#"{"token":"{token}"}"#,
        r#"{"access_token":"{token}"}"#,
        r#"{"token":"","access_token":"{token}","expires_in":3600}"#,
        r#"{"access_token":"{token}","expires_in":300,"issued_at":"2001-01-01T00:00:00Z"}"#,
        r#"{"token":"{token}","expires_in":300,"issued_at":"2099-01-01T00:00:00.123456Z"}"#,
        r#"{"token":"{token}","expires_in":1}"#,
        r#"{"token":"{token}","expires_in":0,"issued_at":"never","refresh_token":null}"#,
    ];
    join_all(replies.map(|text| pulls(text, Bearer::usual().reply(text)))).await;
}

#[tokio::test]
async fn one_token_is_fetched_for_any_number_of_waiters_and_kept() {
    let (upstream, mirror, _) = mirror_before(Auth::Bearer(Bearer::usual())).await;
    let blobs: Vec<_> = (10..42).map(|seed| upstream.blob("team/app", seed, 1000)).collect();
    let gate = Gate::closed();
    upstream.always(On::any("/token"), Fault::HoldHead(gate.clone()));
    let clients = join_all(blobs.iter().map(async |blob| {
        let path = format!("/v2/team/app/blobs/{}", blob.digest);
        mirror.get(&path).answer().await.is(&blob.bytes)
    }));
    let opening = async {
        upstream.until_asked(1, &On::any("/token")).await;
        // Every client that goes out without a token is turned away before the door opens.
        gate.open();
    };
    let (answers, ()) = tokio::join!(clients, opening);
    assert!(answers.iter().all(|right| *right));
    assert_eq!(upstream.count(&On::any("/token")), 1, "{}", upstream.story());
}

#[tokio::test]
async fn each_repository_gets_a_token_of_its_own() {
    let (upstream, mirror, image) = mirror_before(Auth::Bearer(Bearer::usual())).await;
    upstream.push("team/other", "v1", &image::oci(2).build());
    mirror.pull("team/app", "v1", &image).await;
    mirror.pull("team/other", "v1", &image::oci(2).build()).await;
    assert_eq!(upstream.count(&On::any("/token")), 2, "{}", upstream.story());
}

#[tokio::test]
async fn a_token_that_is_refused_is_renewed_once() {
    let (upstream, mirror, image) = mirror_before(Auth::Bearer(Bearer::usual())).await;
    let path = |place: usize| format!("/v2/team/app/blobs/{}", image.layers[place].digest);
    assert!(mirror.get(&path(0)).answer().await.is(&image.layers[0].bytes));
    upstream.tokens().revoke();
    assert!(mirror.get(&path(1)).answer().await.is(&image.layers[1].bytes));
    assert_eq!(upstream.count(&On::any("/token")), 2, "{}", upstream.story());
}

/// Docker Hub hands out tokens for private and missing repositories as well; GHCR does not.
#[tokio::test]
async fn no_access_is_a_denial_and_not_an_outage() {
    let empty = Bearer { empty: true, ..Bearer::usual() };
    let private = Bearer { account: Some(Account::new("somebody", "else")), ..Bearer::usual() };
    for bearer in [empty, private] {
        let (upstream, mirror, image) = mirror_before(Auth::Bearer(bearer)).await;
        for path in [PATH.to_owned(), format!("/v2/team/app/blobs/{}", image.config.digest)] {
            let answer = mirror.get(&path).answer().await;
            answer.error();
            assert!([401, 403, 404].contains(&answer.status), "{}", answer.status);
            let challenged = answer.headers.contains_key("www-authenticate");
            assert!(answer.status != 401 || challenged, "{answer:?}");
        }
        assert!(upstream.count(&On::any("/token")) <= 6, "{}", upstream.story());
        upstream.set(|registry| registry.auth = Auth::Bearer(Bearer::usual()));
        let opened = |answer: &Answer| answer.is(&image.manifest.bytes);
        until("the repository that was opened", || mirror.get(PATH), opened).await;
    }
}

#[tokio::test]
async fn a_token_service_that_fails_or_talks_nonsense_is_named_and_asked_again_later() {
    let faults = [
        Fault::Html,
        Fault::Body("{\"token\":".into()),
        Fault::Body("{}".into()),
        Fault::Body("[1,2,3]".into()),
        Fault::Body("{\"token\":17}".into()),
        Fault::Body("{\"token\":\"with\\r\\nX-Injected: yes\"}".into()),
        Fault::Body(" ".repeat(5_000_000).into()),
        Fault::Body("[".repeat(100_000).into()),
        Fault::Status(500),
        Fault::CutHead,
        Fault::Redirect(307, "/token".to_owned()),
    ];
    join_all(faults.map(async |fault| {
        let (upstream, mirror, image) = mirror_before(Auth::Bearer(Bearer::usual())).await;
        let name = format!("{fault:.60?}");
        upstream.always(On::any("/token"), fault);
        let answer = mirror.get(PATH).answer().await;
        let (_, message) = answer.error();
        assert!(answer.status >= 500, "{name:.60}: {} {message}", answer.status);
        assert!(message.contains(NAME), "{name:.60}: {message}");
        assert!(
            upstream.asked(&On::any("")).iter().all(|one| !one.headers.contains_key("x-injected"))
        );
        upstream.behave();
        let served = |answer: &Answer| answer.is(&image.manifest.bytes);
        until("the token service that is well again", || mirror.get(PATH), served).await;
    }))
    .await;
}

#[tokio::test]
async fn a_challenge_that_leads_nowhere_is_an_error_that_names_the_upstream() {
    let challenges = [
        "Bearer",
        "Bearer realm=\"\"",
        "Bearer realm=\"not a url\"",
        "Bearer realm=\"ftp://127.0.0.1/token\"",
        "Bearer realm=\"file:///etc/passwd\"",
        "Bearer service=\"no realm\"",
        "Negotiate",
        "Bearer realm=\"unclosed",
        ", , ,=",
    ];
    for text in challenges {
        let (upstream, mirror, _) =
            mirror_before(Auth::Bearer(Bearer::usual().challenge(text))).await;
        let answer = mirror.get(PATH).answer().await;
        let (_, message) = answer.error();
        assert!(answer.status >= 400, "{text}: {}", answer.status);
        assert!(answer.status < 500 || message.contains(NAME), "{text}: {message}");
        assert!(upstream.count(&On::any("")) <= 10, "{text}: {}", upstream.story());
    }
}

#[tokio::test]
async fn a_token_service_on_a_listener_of_its_own_is_used() {
    let (upstream, image) = upstream_with(Auth::Open).await;
    let service = Upstream::start().await;
    let bearer = Bearer { realm: Some(format!("{}/token", service.url())), ..Bearer::usual() };
    upstream.set(|registry| registry.auth = Auth::Bearer(bearer.clone()));
    service.set(|registry| {
        registry.auth = Auth::Bearer(bearer);
        registry.tokens = upstream.tokens();
    });
    let mirror = before(&upstream).start().await;
    mirror.pull("team/app", "v1", &image).await;
    assert_eq!(service.count(&On::get("/token")), 1);
}

fn account() -> Account {
    Account::new("robot$team+ci", "p4ss: \"word\"/+=")
}

const LOGIN: &str = r#"auth: {username: "robot$team+ci", password: "p4ss: \"word\"/+="}"#;

/// No secret in what the mirror shows of itself.
async fn keeps_its_secrets(mirror: &Mirror) {
    let metrics = mirror.admin("/metrics").answer().await;
    let shown = mirror.log() + &String::from_utf8_lossy(&metrics.body);
    let basic = account().basic();
    for secret in ["p4ss", &basic["Basic ".len()..], "from_the~test"] {
        assert!(!shown.contains(secret), "{secret} is shown");
    }
}

#[tokio::test]
async fn a_login_is_sent_to_the_token_service_and_the_token_to_the_registry() {
    let bearer = Bearer { account: Some(account()), ..Bearer::usual() };
    let (upstream, image) = upstream_with(Auth::Bearer(bearer)).await;
    let mirror = before(&upstream).with(LOGIN).start().await;
    mirror.pull("team/app", "v1", &image).await;
    for asked in upstream.asked(&On::any("")) {
        let sent = asked.header("authorization");
        assert!(!sent.starts_with("Basic") || asked.path == "/token", "{asked:?}");
    }
    assert_eq!(upstream.count(&On::get("/token")), 1, "{}", upstream.story());
    keeps_its_secrets(&mirror).await;
}

#[tokio::test]
async fn a_login_serves_a_registry_that_wants_basic() {
    let (upstream, image) = upstream_with(Auth::Basic(account())).await;
    let mirror = before(&upstream).with(LOGIN).start().await;
    mirror.pull("team/app", "v1", &image).await;
    keeps_its_secrets(&mirror).await;
}

#[tokio::test]
async fn a_password_is_read_from_a_file_and_again_when_it_changes() {
    let (upstream, image) = upstream_with(Auth::Basic(Account::new("robot", "first"))).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("password");
    std::fs::write(&file, "first\n").unwrap();
    let login = format!("auth: {{username: robot, password_file: {}}}", file.display());
    let mirror = before(&upstream).with(&login).start().await;
    let path = |place: usize| format!("/v2/team/app/blobs/{}", image.layers[place].digest);
    assert!(mirror.get(&path(0)).answer().await.is(&image.layers[0].bytes));
    upstream
        .set(|registry| registry.auth = Auth::Basic(Account::new("robot", "second, and longer")));
    std::fs::write(&file, "second, and longer\n").unwrap();
    let served = |answer: &Answer| answer.is(&image.layers[1].bytes);
    until("the new password", || mirror.get(&path(1)), served).await;
}

#[tokio::test]
async fn a_wrong_password_is_told_as_a_refusal_and_not_tried_over_and_over() {
    let bearer = Bearer { account: Some(account()), ..Bearer::usual() };
    for auth in [Auth::Basic(account()), Auth::Bearer(bearer)] {
        let (upstream, _) = upstream_with(auth).await;
        let mirror =
            before(&upstream).with("auth: {username: robot, password: wrong}").start().await;
        let answer = mirror.get(PATH).answer().await;
        let (_, message) = answer.error();
        assert!([401, 403, 404, 502, 503].contains(&answer.status), "{}", answer.status);
        assert!(message.contains(NAME), "{message}");
        assert!(upstream.count(&On::any("")) <= 8, "{}", upstream.story());
    }
}

/// CVE-2026-33540: a challenge that sends the mirror's credentials elsewhere.
#[tokio::test]
async fn credentials_do_not_go_to_a_realm_on_a_foreign_host() {
    let trap = Upstream::start().await;
    let port = trap.host().rsplit(':').next().unwrap().to_owned();
    for host in ["localhost", "127.0.0.2", "[::ffff:127.0.0.1]"] {
        let realm = Some(format!("http://{host}:{port}/token"));
        let (upstream, _) = upstream_with(Auth::Bearer(Bearer { realm, ..Bearer::usual() })).await;
        let mirror = before(&upstream).with(LOGIN).with("connect_timeout: 1s").start().await;
        let answer = mirror.get(PATH).answer().await;
        assert!(answer.status >= 400, "{host}: {}", answer.status);
        answer.error();
        keeps_its_secrets(&mirror).await;
    }
    for asked in trap.asked(&On::any("")) {
        assert!(!asked.headers.contains_key("authorization"), "{asked:?}");
    }
}

#[tokio::test]
async fn one_upstreams_credentials_are_never_sent_to_another() {
    let (private, image) = upstream_with(Auth::Basic(account())).await;
    let (other, _) = upstream_with(Auth::Basic(Account::new("x", "y"))).await;
    let setup = before(&private).with(LOGIN).upstream("other.test", &other);
    let mirror = setup.start().await;
    mirror.pull("team/app", "v1", &image).await;
    let answer = mirror.get("/v2/team/app/manifests/v1?ns=other.test").answer().await;
    assert!([401, 403, 404].contains(&answer.status), "{answer:?}");
    assert!(other.asked(&On::any("")).iter().all(|one| !one.headers.contains_key("authorization")));
}
