//! Who may tell the mirror what to do at its admin address.

use std::net::{IpAddr, SocketAddr, UdpSocket};

use hyper::Method;
use serde_json::json;

use crate::clients::basic;
use crate::support::client::{Answer, Ask};
use crate::support::image;
use crate::support::mirror::{Mirror, Setup, before, run};
use crate::support::upstream::Upstream;

const TOKEN: &str = "token-token-token-token-0123456789";

async fn ask(
    address: SocketAddr,
    method: Method,
    path: &str,
    authorization: Option<&str>,
) -> Answer {
    let ask = Ask::new(address, method.clone(), path);
    let ask = match authorization {
        Some(text) => ask.header("authorization", text),
        None => ask,
    };
    if method == Method::POST {
        let order = json!({"digest": format!("sha256:{}", "0".repeat(64))});
        return ask
            .header("content-type", "application/json")
            .body(order.to_string())
            .answer()
            .await;
    }
    ask.answer().await
}

/// What is asked, and whether everybody may.
const ASKED: [(Method, &str, bool); 10] = [
    (Method::GET, "/healthz", true),
    (Method::GET, "/livez", true),
    (Method::GET, "/readyz", true),
    (Method::GET, "/metrics", true),
    (Method::GET, "/api/status", false),
    (Method::GET, "/api/fills", false),
    (Method::GET, "/api/objects", false),
    (Method::POST, "/api/purge", false),
    (Method::POST, "/api/verify", false),
    (Method::POST, "/gc", false),
];

fn token_file(setup: &Setup) -> String {
    let file = setup.folder().join("token");
    std::fs::write(&file, format!("{TOKEN}\n")).expect("the temporary folder takes a file");
    file.display().to_string()
}

async fn with_token() -> (Upstream, Mirror, String) {
    let upstream = Upstream::start().await;
    let setup = before(&upstream);
    let file = token_file(&setup);
    let mirror = setup.env("PIERHEAD_ADMIN_TOKEN_FILE", &file).start().await;
    (upstream, mirror, file)
}

#[tokio::test]
async fn with_a_token_the_api_is_for_whoever_shows_it() {
    let (_upstream, mirror, _) = with_token().await;
    let bearer = format!("Bearer {TOKEN}");
    for (method, path, open) in ASKED {
        let asked = async |authorization: Option<&str>| {
            ask(mirror.admin_address(), method.clone(), path, authorization).await
        };
        for wrong in [None, Some("Bearer x"), Some(&*basic("a", "b")), Some("Bearer ")] {
            let answer = asked(wrong).await;
            assert_eq!(answer.status == 200, open, "{path} {wrong:?} {answer:?}");
            if !open {
                assert_eq!(answer.status, 401, "{path}");
                assert!(answer.header("www-authenticate").starts_with("Basic "));
                assert!(answer.json()["error"].as_str().unwrap_or_default().contains("token"));
            }
        }
        for right in [&bearer, &basic("anything", TOKEN)] {
            let answer = asked(Some(right)).await;
            assert!(![401, 403].contains(&answer.status), "{path} {answer:?}");
        }
    }
    assert!(!mirror.log().contains(TOKEN));
}

#[tokio::test]
async fn commands_give_the_token() {
    let (_upstream, mirror, file) = with_token().await;
    let address = mirror.admin_address().to_string();
    let refused = run(&["status", "--admin", &address]).await;
    assert_eq!(refused.status.code(), Some(1));
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(said.contains("--token-file") && said.trim_end().lines().count() == 1, "{said}");
    let good = run(&["status", "--admin", &address, "--token-file", &file]).await;
    assert!(good.status.success(), "{good:?}");
    let health = run(&["health", "--admin", &address]).await;
    assert!(health.status.success(), "a health check needs no token: {health:?}");
    let missing = run(&["status", "--admin", &address, "--token-file", "/nowhere/token"]).await;
    assert_eq!(missing.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&missing.stderr).contains("/nowhere/token"));
    // By the configuration that the mirror runs by.
    let folder = tempfile::tempdir().expect("a temporary folder");
    let config = folder.path().join("c.yaml");
    let text = format!("admin: {{address: \"{address}\", token_file: {file}}}\n");
    std::fs::write(&config, text).expect("it takes a file");
    let config = config.display().to_string();
    for command in [&["status"][..], &["gc", "--dry-run"], &["purge", "docker.io/library/a:1"]] {
        let done = run(&[command, &["--config", &config]].concat()).await;
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(!said.contains("token"), "{command:?}: {said}");
    }
    let done = run(&["gc", "--dry-run", "--config", &config]).await;
    assert!(done.status.success(), "{done:?}");
}

#[tokio::test]
async fn metrics_can_be_guarded_too() {
    let upstream = Upstream::start().await;
    let setup = before(&upstream);
    let file = token_file(&setup);
    let mirror = setup
        .env("PIERHEAD_ADMIN_TOKEN_FILE", &file)
        .env("PIERHEAD_ADMIN_GUARD_METRICS", "true")
        .start()
        .await;
    let at = mirror.admin_address();
    assert_eq!(ask(at, Method::GET, "/metrics", None).await.status, 401);
    let bearer = format!("Bearer {TOKEN}");
    assert_eq!(ask(at, Method::GET, "/metrics", Some(&bearer)).await.status, 200);
    assert_eq!(ask(at, Method::GET, "/readyz", None).await.status, 200);
}

#[tokio::test]
async fn users_whom_a_rule_lets_administer_may() {
    let upstream = Upstream::start().await;
    let setup = before(&upstream);
    let file = setup.folder().join("htpasswd");
    let line = |user: &str| {
        let hash = bcrypt::hash(format!("{user}-pw"), 4).expect("a hash");
        format!("{user}:{hash}\n")
    };
    std::fs::write(&file, line("root") + &line("ci")).expect("the folder takes a file");
    let mirror = setup
        .raw(&format!(
            "clients:\n  htpasswd: {}\n  rules:\n  - {{users: [root], actions: [admin], repositories: [\"**\"]}}\n  - {{users: [\"*\"], actions: [pull], repositories: [\"**\"]}}\n",
            file.display()
        ))
        .start()
        .await;
    let purge = async |who: &str, password: &str| {
        let shown = basic(who, password);
        ask(mirror.admin_address(), Method::POST, "/api/purge", Some(&shown)).await
    };
    assert!(![401, 403].contains(&purge("root", "root-pw").await.status));
    assert_eq!(purge("root", "wrong").await.status, 401);
    assert_eq!(purge("ci", "ci-pw").await.status, 403);
    let fills = async |shown: &str| {
        ask(mirror.admin_address(), Method::GET, "/api/fills", Some(shown)).await
    };
    assert_eq!(fills(&basic("root", "root-pw")).await.json()["count"], 0);
    let refused = fills(&basic("ci", "ci-pw")).await;
    assert_eq!((refused.status, refused.json().get("fills")), (403, None));
    // A token for repositories is none for the mirror itself.
    let token = mirror.get("/token?service=pierhead&scope=repository:_admin:*");
    let token = token.header("authorization", &basic("root", "root-pw")).answer().await;
    let token = crate::clients::bearer(&token);
    let refused = ask(mirror.admin_address(), Method::POST, "/api/purge", Some(&token)).await;
    assert_eq!(refused.status, 403);
    assert!(!mirror.log().contains("root-pw"));
}

/// An address of this machine that is not its loopback, if it has one. Nothing is sent.
fn own_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    Some(socket.local_addr().ok()?.ip()).filter(|ip| !ip.is_loopback() && !ip.is_unspecified())
}

#[tokio::test]
async fn without_a_token_orders_are_taken_from_this_machine_alone() {
    let upstream = Upstream::start().await;
    let image = image::oci(1).build();
    upstream.push("team/app", "v1", &image);
    let mirror = before(&upstream).env("PIERHEAD_ADMIN", "0.0.0.0:0").start().await;
    let port = mirror.admin_address().port();
    for (method, path, _) in ASKED {
        let answer = ask(([127, 0, 0, 1], port).into(), method, path, None).await;
        assert!(![401, 403].contains(&answer.status), "{path} {answer:?}");
    }
    // Where a machine has no other address, the unit test of the same decision stands alone.
    let Some(address) = own_address() else { return };
    for (method, path, open) in ASKED {
        let answer = ask((address, port).into(), method, path, None).await;
        assert_eq!(answer.status, if open { 200 } else { 403 }, "{path} {answer:?}");
        if !open {
            assert!(answer.json()["error"].as_str().unwrap_or_default().contains("token_file"));
        }
    }
}

#[tokio::test]
async fn a_token_that_is_none_is_refused_at_check_and_at_start() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (file, config) = (folder.path().join("token"), folder.path().join("c.yaml"));
    std::fs::write(&file, "change-me").expect("the folder takes a file");
    let text = format!("admin: {{address: 127.0.0.1:0, token_file: {}}}\n", file.display());
    std::fs::write(&config, text).expect("the folder takes a file");
    for command in ["check", "serve"] {
        let output = run(&[command, "--config", &config.display().to_string()]).await;
        assert_eq!(output.status.code(), Some(64), "{output:?}");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("openssl rand") && !said.contains("change-me"), "{said}");
    }
}
