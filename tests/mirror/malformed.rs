//! Requests that are not as the specification has them.

use crate::support::client::{raw, raw_request};
use crate::support::image::{self, Content};
use crate::support::mirror::before;
use crate::support::upstream::Upstream;

/// (method and path, status, code); an empty code stands for any.
const MALFORMED: &[(&str, u16, &str)] = &[
    ("GET /v2/Team/app/manifests/v1", 400, "NAME_INVALID"),
    ("GET /v2/team/app-/manifests/v1", 400, "NAME_INVALID"),
    ("GET /v2/team/_app/manifests/v1", 400, "NAME_INVALID"),
    ("GET /v2/team/a..b/manifests/v1", 400, "NAME_INVALID"),
    ("GET /v2/team/a___b/manifests/v1", 400, "NAME_INVALID"),
    ("GET /v2/team/%C3%A4pp/manifests/v1", 400, "NAME_INVALID"),
    ("GET /v2/team%00/app/manifests/v1", 400, ""),
    ("GET /v2/team%ff/app/manifests/v1", 400, ""),
    ("GET /v2/team%252Fapp/manifests/v1", 400, ""),
    ("GET /v2/team/app/manifests/.v1", 400, ""),
    ("GET /v2/team/app/manifests/-v1", 400, ""),
    ("GET /v2/team/app/manifests/v%20", 400, ""),
    ("GET /v2/team/app/manifests/v%0d%0aX-Injected:%20yes", 400, ""),
    ("GET /v2/team/app/manifests/sha256:0123", 400, "DIGEST_INVALID"),
    ("GET /v2/team/app/manifests/sha256:../../../../etc/passwd", 400, ""),
    ("GET /v2/team/app/blobs/sha256:..%2f..%2f..%2fformat", 400, ""),
    ("GET /v2/team/app/blobs/sha256%3A%2e%2e", 400, "DIGEST_INVALID"),
    ("GET /v2/team/app/blobs/sha256:baddigeststring", 400, "DIGEST_INVALID"),
    ("GET /v2/team/app/blobs/sha256:", 400, "DIGEST_INVALID"),
    ("GET /v2/team/app/blobs/md5:d41d8cd98f00b204e9800998ecf8427e", 400, "DIGEST_INVALID"),
    ("GET /v2/team/app/blobs/latest", 400, "DIGEST_INVALID"),
    ("GET /v2/team/app/referrers/latest", 400, "DIGEST_INVALID"),
];

#[tokio::test]
async fn an_encoded_colon_in_a_digest_is_read() {
    let upstream = Upstream::start().await;
    let blob = upstream.blob("team/app", 1, 1000);
    let mirror = before(&upstream).start().await;
    let encoded = blob.digest.replace(':', "%3A");
    let answer = mirror.get(&format!("/v2/team/app/blobs/{encoded}")).answer().await;
    assert!(answer.is(&blob.bytes), "{answer:?}");
    let path = format!("/v2/team/app/blobs/{}", blob.digest);
    let answer = mirror.get(&path).answer().await;
    assert!(answer.cache().starts_with("pierhead; hit"), "one blob under two spellings");
}

#[tokio::test]
async fn malformed_names_tags_and_digests_are_refused_with_the_code_of_the_specification() {
    let upstream = Upstream::start().await;
    let mirror = before(&upstream).start().await;
    let long_name = format!("GET /v2/{}/manifests/v1", "a".repeat(300));
    let long_tag = format!("GET /v2/team/app/manifests/{}", "t".repeat(129));
    let digest = Content::blob(1, 1).digest;
    let short = format!("GET /v2/team/app/blobs/{}", &digest[..digest.len() - 1]);
    let upper =
        format!("GET /v2/team/app/blobs/{}", digest.to_uppercase().replace("SHA256", "sha256"));
    let mut cases = MALFORMED.to_vec();
    cases.push((&long_name, 400, "NAME_INVALID"));
    cases.push((&long_tag, 400, ""));
    cases.push((&short, 400, "DIGEST_INVALID"));
    cases.push((&upper, 400, "DIGEST_INVALID"));
    for (line, status, code) in cases {
        let answer = raw_request(mirror.address(), line).await;
        let (given, message) = answer.error();
        let at_fault = format!("{line}: {given}, {message}");
        // A name or tag that fits no grammar may as well be called unknown.
        let absent = answer.status == 404 && code.is_empty();
        assert!(answer.status == status || absent, "{at_fault}: {}", answer.status);
        assert!(code.is_empty() || given == code, "{at_fault}");
        assert!(!answer.head.to_lowercase().contains("x-injected"), "{at_fault}");
    }
    assert_eq!(upstream.connections(), 0);
    assert_eq!(mirror.check_store(), 0);
}

#[tokio::test]
async fn paths_that_the_specification_does_not_know_are_json_errors() {
    let upstream = Upstream::start().await;
    let mirror = before(&upstream).start().await;
    let paths = [
        "/v2/team",
        "/v2/team/app",
        "/v2/team/app/",
        "/v2/team/app/manifests",
        "/v2/team/app/manifests/",
        "/v2/team/app/blobs/",
        "/v2/team/app/tags",
        "/v2/team/app/tags/v1",
        "/v2/team/app/unknown/v1",
        "/v2/manifests/v1",
        "/v2//manifests/v1",
        "/v2/team//app/manifests/v1",
        "/v2/_catalog",
        "/v2//",
        "/v2/../v2/team/app/manifests/v1",
        "/v2/team/../../../etc/passwd",
        "/v2/team/%2e%2e/%2e%2e/format",
        "/v2/..%2f..%2fetc/passwd",
        "/v2/team\\app/manifests/v1",
        "/v2/team/app/manifests/v1/extra",
    ];
    for path in paths {
        let answer = raw_request(mirror.address(), &format!("GET {path}")).await;
        assert!((400..500).contains(&answer.status), "{path}: {answer:?}");
        answer.error();
    }
    assert_eq!(upstream.connections(), 0);
}

#[tokio::test]
async fn a_mirror_refuses_every_method_that_changes_something() {
    let upstream = Upstream::start().await;
    let image = image::oci(1).build();
    upstream.push("team/app", "v1", &image);
    let mirror = before(&upstream).start().await;
    let digest = &image.config.digest;
    let requests = [
        "POST /v2/team/app/blobs/uploads/".to_owned(),
        format!("POST /v2/team/app/blobs/uploads/?mount={digest}&from=team/other"),
        "PATCH /v2/team/app/blobs/uploads/1234".to_owned(),
        format!("PUT /v2/team/app/blobs/uploads/1234?digest={digest}"),
        "PUT /v2/team/app/manifests/v1".to_owned(),
        "DELETE /v2/team/app/manifests/v1".to_owned(),
        format!("DELETE /v2/team/app/manifests/{digest}"),
        format!("DELETE /v2/team/app/blobs/{digest}"),
        "POST /v2/".to_owned(),
        "OPTIONS /v2/team/app/manifests/v1".to_owned(),
        "TRACE /v2/team/app/manifests/v1".to_owned(),
        "BREW /v2/team/app/manifests/v1".to_owned(),
    ];
    for line in requests {
        let answer = raw_request(mirror.address(), &line).await;
        let (code, _) = answer.error();
        assert_eq!((answer.status, code.as_str()), (405, "UNSUPPORTED"), "{line}");
    }
    assert_eq!(upstream.connections(), 0);
}

#[tokio::test]
async fn requests_that_are_no_http_harm_nobody() {
    let upstream = Upstream::start().await;
    upstream.push("team/app", "v1", &image::oci(1).build());
    let mirror = before(&upstream).start().await;
    let head = "GET /v2/ HTTP/1.1\r\nHost: a\r\nConnection: close\r\n";
    let smuggled = "GET /v2/team/app/manifests/v1 HTTP/1.1\r\nHost: a\r\n\r\n";
    let requests = [
        "\r\n\r\n\r\n".to_owned(),
        "GET\r\n\r\n".to_owned(),
        "GET /v2/ HTTP/9.9\r\n\r\n".to_owned(),
        "\u{16}\u{3}\u{1}\u{2}\u{0}\u{1}\u{0}\u{1}\u{fc}\r\n\r\n".to_owned(),
        format!("{head}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{smuggled}"),
        format!("{head}Content-Length: {}\r\n\r\n{smuggled}", smuggled.len()),
        format!("{head}X: {}\r\n\r\n", "x".repeat(2_000_000)),
        format!(
            "GET /v2/{} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
            "a/".repeat(100_000)
        ),
    ];
    for request in requests {
        if let Some(answer) = raw(mirror.address(), request.as_bytes()).await {
            assert!((200..500).contains(&answer.status), "{request:.60}: {}", answer.status);
        }
    }
    assert_eq!(upstream.connections(), 0, "a smuggled request was carried out");
    assert_eq!(mirror.get("/v2/team/app/manifests/v1").answer().await.status, 200);
}

#[tokio::test]
async fn nothing_but_the_registry_is_on_the_pull_port() {
    let upstream = Upstream::start().await;
    let mirror = before(&upstream).start().await;
    for path in
        ["/", "/metrics", "/healthz", "/readyz", "/v1/", "/index.html", "/team/app", "/api/status"]
    {
        let answer = mirror.get(path).answer().await;
        assert_eq!(answer.status, 404, "{path}");
        assert!(!answer.header("content-type").contains("html"), "{path}");
    }
    assert_eq!(upstream.connections(), 0);
}
