//! Several addresses of one mirror: one asks who is there, the other does not.

use std::net::SocketAddr;

use hyper::Method;

use crate::clients::basic;
use crate::support::auth::{Account, Auth, People};
use crate::support::client::{Answer, Ask};
use crate::support::image;
use crate::support::mirror::{Mirror, before, run};
use crate::support::record::On;
use crate::support::upstream::Upstream;

const BOTH: &str = "\n  - {address: \"127.0.0.1:0\", anonymous: true}\n  - 127.0.0.1:0";

/// The second address, which the mirror itself tells.
async fn guarded(mirror: &Mirror) -> SocketAddr {
    let status = mirror.admin("/api/status").answer().await.json();
    status["listen"][1].as_str().and_then(|text| text.parse().ok()).expect("a second address")
}

async fn tag(at: SocketAddr, repository: &str, login: Option<&str>) -> Answer {
    let ask = Ask::new(at, Method::GET, &format!("/v2/{repository}/manifests/v1"));
    match login {
        Some(text) => ask.header("authorization", text).answer().await,
        None => ask.answer().await,
    }
}

fn assert_denied(answer: &Answer) {
    answer.assert_error(403, "DENIED");
    assert!(!answer.headers.contains_key("www-authenticate"), "{answer:?}");
}

#[tokio::test]
async fn an_anonymous_address_challenges_nobody_and_believes_nobody() {
    let upstream = Upstream::start().await;
    let image = image::oci(1).build();
    upstream.push("open/app", "v1", &image);
    upstream.push("team/app", "v1", &image);
    let setup = before(&upstream).listen(BOTH);
    let file = setup.folder().join("htpasswd");
    let line = format!("ci:{}\n", bcrypt::hash("ci-pw", 4).expect("a hash"));
    std::fs::write(&file, line).expect("the folder takes a file");
    let mirror = setup
        .raw(&format!(
            "clients:\n  htpasswd: {}\n  rules:\n  - {{users: [anonymous], actions: [pull], repositories: [\"registry.test/open/**\"]}}\n  - {{users: [ci], actions: [pull], repositories: [\"registry.test/team/**\"]}}\n",
            file.display()
        ))
        .start()
        .await;
    let (open, closed) = (mirror.address(), guarded(&mirror).await);
    let (right, wrong) = (basic("ci", "ci-pw"), basic("ci", "wrong"));
    // Twice: what is held changes nothing.
    for _ in ["cold", "warm"] {
        for login in [None, Some(right.as_str()), Some(&wrong), Some("Bearer x"), Some("rubbish")] {
            let ping = Ask::new(open, Method::GET, "/v2/");
            let ping = match login {
                Some(text) => ping.header("authorization", text).answer().await,
                None => ping.answer().await,
            };
            assert_eq!(ping.status, 200, "{login:?}");
            assert_eq!(tag(open, "open/app", login).await.status, 200, "{login:?}");
            assert_denied(&tag(open, "team/app", login).await);
            assert_denied(&tag(open, "nowhere/app", login).await);
        }
        let token = Ask::new(open, Method::GET, "/token?scope=repository:team/app:pull");
        let token = token.header("authorization", &right).answer().await;
        assert_eq!(token.status, 404, "nobody gets a token where nobody needs one");
        let ping = Ask::new(closed, Method::GET, "/v2/").answer().await;
        assert!(ping.status == 401 && ping.headers.contains_key("www-authenticate"));
        assert_eq!(tag(closed, "team/app", Some(&right)).await.status, 200);
        assert_eq!(tag(closed, "team/app", Some(&wrong)).await.status, 401);
        assert_eq!(tag(closed, "open/app", None).await.status, 200);
    }
    let digest = format!("/v2/team/app/blobs/{}", image.config.digest);
    assert_denied(&Ask::new(open, Method::GET, &digest).answer().await);
    let blob = Ask::new(closed, Method::GET, &digest).header("authorization", &right);
    assert_eq!(blob.answer().await.status, 200);
    assert_denied(&Ask::new(open, Method::GET, &digest).answer().await);
    // And the ready answer of what is open to all there is none of the other address's.
    let digest = format!("/v2/open/app/blobs/{}", image.config.digest);
    for _ in 0..3 {
        assert_eq!(Ask::new(open, Method::GET, &digest).answer().await.status, 200);
    }
}

#[tokio::test]
async fn an_anonymous_address_shows_of_a_passing_upstream_what_is_public() {
    let upstream = Upstream::start().await;
    let mut people = People::new(&[Account::new("bob", "bob-pw")]);
    people.let_read("", "open/app");
    people.let_read("bob", "bob/app");
    upstream.set(|registry| registry.auth = Auth::People(people));
    upstream.push("open/app", "v1", &image::oci(1000).build());
    upstream.push("bob/app", "v1", &image::oci(2000).build());
    let mirror = before(&upstream).with("auth: passthrough").listen(BOTH).start().await;
    let (open, closed) = (mirror.address(), guarded(&mirror).await);
    let bob = basic("bob", "bob-pw");
    for _ in ["cold", "warm"] {
        assert_eq!(tag(open, "open/app", None).await.status, 200);
        let before = upstream.asked(&On::any("")).len();
        let denied = tag(open, "bob/app", Some(&bob)).await;
        assert_denied(&denied);
        let nowhere = tag(open, "none/app", Some(&bob)).await;
        assert_eq!(nowhere.body, denied.body, "what is private does not exist here");
        let asked = upstream.asked(&On::any("")).split_off(before);
        assert!(
            !asked.iter().any(|one| format!("{one:?}").contains(bob.trim_start_matches("Basic ")))
        );
        assert_eq!(tag(closed, "bob/app", Some(&bob)).await.status, 200);
        assert_eq!(tag(closed, "bob/app", None).await.status, 401);
    }
}

#[tokio::test]
async fn an_address_asks_for_certificates_or_for_nothing() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let authority = crate::support::secure::Authority::new();
    let pair = authority.issue(folder.path(), "a", &["mirror.test"]);
    let config = folder.path().join("c.yaml");
    let text = format!(
        "listen: {{address: \"127.0.0.1:0\", anonymous: true, tls: {{cert: {}, key: {}, client_ca: {}}}}}\n",
        pair.cert.display(),
        pair.key.display(),
        authority.file(folder.path()).display(),
    );
    std::fs::write(&config, text).expect("the folder takes a file");
    let output = run(&["check", "--config", &config.display().to_string()]).await;
    assert_eq!(output.status.code(), Some(64), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("remove `anonymous` or `client_ca`"));
}
