//! T17: attacks with credentials, and a search for them wherever they must not be.

use hyper::Method;

use super::elsewhere;
use crate::clients::{basic, bearer};
use crate::passthrough::{ALICE, BOB, as_, people, with_people};
use crate::support::auth::{Account, Auth, Bearer};
use crate::support::client::raw;
use crate::support::fault::Fault;
use crate::support::image;
use crate::support::mirror::{Mirror, Setup, files_under};
use crate::support::record::On;
use crate::support::upstream::Upstream;

/// A password, a token or another secret, as it may stand anywhere.
fn spellings(user: &str, password: &str) -> [String; 2] {
    [password.to_owned(), basic(user, password)["Basic ".len()..].to_owned()]
}

/// The secret that is sent where none belongs.
const STRAY: &str = "stray-s3cret-of-somebody";

/// What the mirror itself logs in with at one of its upstreams.
const ROBOT: &str = "robots-s3cret";

/// Requests of every bad kind, each with these credentials.
async fn attack(mirror: &Mirror, authorization: &str, digest: &str) {
    for target in [
        "GET /v2/".to_owned(),
        "GET /v2/one.test/team/app/manifests/v1".to_owned(),
        "GET /v2/two.test/alice/app/manifests/v1".to_owned(),
        "GET /v2/two.test/bob/app/manifests/v1".to_owned(),
        "GET /v2/two.test/bob/app/tags/list".to_owned(),
        format!("GET /v2/one.test/team/app/blobs/{digest}"),
        format!("GET /v2/two.test/bob/app/blobs/{digest}"),
        format!("GET /v2/two.test/bob/app/referrers/{digest}"),
        "GET /v2/team/app/manifests/v1?ns=evil.test".to_owned(),
        "GET /v2/team/app/manifests/%0d%0aX:y".to_owned(),
        "GET /v2/..%2f..%2fetc/passwd".to_owned(),
        format!("GET /v2/one.test/team/app/manifests/v1?access_token={STRAY}&password={STRAY}"),
        format!("GET http://user:{STRAY}@one.test/v2/team/app/manifests/v1"),
        format!(
            "GET /token?service=pierhead&account=alice&scope=repository:x:pull&password={STRAY}"
        ),
        "GET /token?scope=repository:two.test/alice/app:pull".to_owned(),
        format!("POST /token?password={STRAY}"),
        "POST /v2/two.test/alice/app/blobs/uploads/".to_owned(),
        format!("PATCH /v2/two.test/alice/app/blobs/uploads/x?_upstream={STRAY}"),
        "DELETE /v2/two.test/alice/app/manifests/v1".to_owned(),
        "BREW /v2/".to_owned(),
    ] {
        let secrets = format!(
            "Authorization: {authorization}\r\nCookie: session={STRAY}\r\nProxy-Authorization: Basic {STRAY}\r\nX-Registry-Auth: {STRAY}\r\n"
        );
        for odd in ["", "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", "X: a\0b\r\n"] {
            let ask =
                format!("{target} HTTP/1.1\r\nHost: a\r\n{secrets}{odd}Connection: close\r\n\r\n");
            let answer = raw(mirror.address(), ask.as_bytes()).await;
            let said = answer.map(|answer| answer.head + &String::from_utf8_lossy(&answer.body));
            assert!(!said.unwrap_or_default().contains(STRAY), "{target}");
        }
    }
    let form = format!("grant_type=password&username=alice&password={STRAY}&refresh_token={STRAY}");
    let post = mirror.ask(Method::POST, "/token").header("authorization", authorization);
    let post = post.header("content-type", "application/x-www-form-urlencoded").body(form);
    let said = post.answer().await;
    assert!(!String::from_utf8_lossy(&said.body).contains(STRAY), "{said:?}");
}

/// All that the mirror shows of itself or leaves behind.
async fn shown(mirror: &Mirror) -> Vec<(String, String)> {
    let mut all = vec![("the log".to_owned(), mirror.log())];
    for path in
        ["/", "/metrics", "/healthz", "/readyz", "/api/status", "/api/repositories", "/api/objects"]
    {
        let answer = mirror.admin(path).answer().await;
        all.push((path.to_owned(), String::from_utf8_lossy(&answer.body).into_owned()));
    }
    for file in files_under(&mirror.cache()) {
        let text = String::from_utf8_lossy(&std::fs::read(&file).unwrap_or_default()).into_owned();
        all.push((file.display().to_string(), text));
    }
    all
}

async fn shows_none(mirror: &Mirror, secrets: &[String]) {
    for (place, text) in shown(mirror).await {
        for secret in secrets {
            let line = text.lines().find(|line| line.contains(secret));
            assert!(line.is_none(), "{secret} stands in {place}: {line:?}");
        }
    }
}

/// Everything is logged, and no secret stands in the log, in the metrics, in an answer, in a file, or in
/// what another registry is told.
#[tokio::test]
async fn t17_no_secret_is_found_in_logs_metrics_or_files() {
    let (one, two, evil) = (Upstream::start().await, people(401).await, Upstream::start().await);
    let image = image::oci(1).build();
    one.push("team/app", "v1", &image);
    two.push("alice/app", "v1", &image);
    with_people(&two, |people| people.let_read("alice", "alice/app"));
    one.set(|registry| {
        let mut bearer = Bearer::usual();
        bearer.account = Some(Account::new("robot", ROBOT));
        registry.auth = Auth::Bearer(bearer);
    });
    let signed = format!("{}/x?X-Amz-Signature={STRAY}", elsewhere(&evil));
    one.always(On::get("/blobs/"), Fault::Redirect(307, signed));
    let mirror = Setup::new()
        .upstream("one.test", &one)
        .with(&format!("auth: {{username: robot, password: {ROBOT}}}"))
        .upstream("two.test", &two)
        .with("auth: {passthrough: {allow_ttl: 1s, deny_ttl: 1s}}")
        .default_upstream("two.test")
        .raw("log: {level: trace}")
        .start()
        .await;
    let token = mirror.get("/token?scope=repository:alice/app:pull");
    let token = bearer(&as_(token, "alice", ALICE).answer().await);
    let forged = format!("{}x", &token[..token.len() - 5]);
    for authorization in [
        basic("alice", ALICE),
        basic("bob", BOB),
        basic("alice", STRAY),
        token.clone(),
        forged,
        format!("Negotiate {STRAY}"),
        format!("Bearer {STRAY}"),
        STRAY.to_owned(),
    ] {
        attack(&mirror, &authorization, &image.config.digest).await;
    }
    // Credentials that cannot be tried, and a registry that dies meanwhile.
    two.stop().await;
    attack(&mirror, &basic("alice", ALICE), &image.config.digest).await;
    // Lines come in their order: where this one stands, all of the others do.
    let last = "/v2/one.test/last/of/all/tags/list";
    assert_eq!(mirror.get(last).answer().await.status, 404);
    mirror.until_said(1, last).await;
    let signature = token.rsplit('.').next().expect("a signature").to_owned();
    let logins = [spellings("alice", ALICE), spellings("bob", BOB), spellings("robot", ROBOT)];
    let others = [signature, STRAY.to_owned(), "from_the~test".to_owned()];
    shows_none(&mirror, &[&logins.concat()[..], &others].concat()).await;
    // Each login went to its own registry, and to no other.
    let seen = |upstream: &Upstream| format!("{:?}", upstream.asked(&On::any("")));
    let (at_one, at_two, at_evil) = (seen(&one), seen(&two), seen(&evil));
    assert!(
        at_one.contains(&spellings("robot", ROBOT)[1])
            && at_two.contains(&spellings("bob", BOB)[1])
    );
    for own in spellings("robot", ROBOT) {
        assert!(!at_two.contains(&own) && !at_evil.contains(&own), "{own}");
    }
    for theirs in [spellings("alice", ALICE), spellings("bob", BOB)].concat() {
        assert!(!at_one.contains(&theirs) && !at_evil.contains(&theirs), "{theirs}");
    }
}
