//! Hostile cases that are nobody's in particular.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

use super::{Two, believes, elsewhere, status};
use crate::clients::{basic, htpasswd};
use crate::keys::{Signer, claims};
use crate::passthrough::{ALICE, BOB, as_, start, with_people};
use crate::support::auth::{Account, Auth, Bearer};
use crate::support::client::{Answer, raw, raw_request};
use crate::support::fault::{Fault, Gate};
use crate::support::image::{self, Content};
use crate::support::mirror::{Mirror, Setup, before};
use crate::support::record::On;
use crate::support::secure::Authority;
use crate::support::soon;
use crate::support::upstream::Upstream;

/// What an answer tells, apart from the digest that was asked for, and the times.
fn told(answer: &Answer, digest: &str) -> (u16, Vec<String>, String, String) {
    let mut names: Vec<String> = answer.headers.keys().map(ToString::to_string).collect();
    names.sort();
    let body = String::from_utf8_lossy(&answer.body).replace(digest, "DIGEST");
    (answer.status, names, answer.cache().to_owned(), body)
}

fn median(mut took: Vec<Duration>) -> Duration {
    took.sort();
    took[took.len() / 2]
}

/// To one who has no right to it, what is held is not told from what is not: neither by the answer nor by
/// the time that it takes, as far as one can tell.
#[tokio::test]
async fn t2_what_is_held_is_told_to_nobody_without_the_right_to_it() {
    const TIMES: u64 = 40;
    let (upstream, mirror) = start(404, "").await;
    with_people(&upstream, |people| people.let_read("alice", "alice/app"));
    let held: Vec<Content> = (0..TIMES).map(|n| upstream.blob("alice/app", n, 500)).collect();
    let path = |content: &Content, whose: &str| format!("/v2/{whose}/app/blobs/{}", content.digest);
    for content in &held {
        let ask = as_(mirror.get(&path(content, "alice")), "alice", ALICE);
        assert!(ask.answer().await.is(&content.bytes));
    }
    mirror.until_kept(held.len()).await;
    for whose in ["bob", "alice"] {
        let (mut times, mut asked) = ([Vec::new(), Vec::new()], [0, 0]);
        for (n, content) in (1000..).zip(&held) {
            let absent = Content::blob(n, 500);
            // In turns, each of them first as often as the other.
            let mut pair = [(0, content), (1, &absent)];
            pair.rotate_left(usize::from(n % 2 == 0));
            let mut answers = [None, None];
            for (which, content) in pair {
                let before = upstream.count(&On::any(""));
                let began = Instant::now();
                let answer = as_(mirror.get(&path(content, whose)), "bob", BOB).answer().await;
                times[which].push(began.elapsed());
                asked[which] += upstream.count(&On::any("")) - before;
                answers[which] = Some(told(&answer, &content.digest));
            }
            assert_eq!(answers[0], answers[1], "{whose}");
            assert_eq!(answers[0].as_ref().map(|told| told.0), Some(404), "{whose}");
        }
        let [held, absent] = times.map(median);
        println!("without a right at {whose}'s: held {held:?}, absent {absent:?}");
        assert!(held < absent * 4 && absent < held * 4, "{held:?} {absent:?}");
        // What takes time is to ask, and that is done for the one as for the other.
        let apart = asked[0].abs_diff(asked[1]);
        assert!(apart <= 4, "{whose}: the upstream was asked {asked:?} times");
    }
}

/// Reads until the mirror ends the connection, and returns what it said.
async fn until_closed(socket: &mut TcpStream) -> String {
    let mut read = Vec::new();
    let _reset = soon("the end of a connection", socket.read_to_end(&mut read)).await;
    String::from_utf8_lossy(&read).into_owned()
}

/// Who is slow, or sends a giant header, is cut off or waits alone; others do not notice.
#[tokio::test]
async fn t7_slow_peers_and_giant_headers_harm_nobody_else() {
    let upstream = Upstream::start().await;
    let (first, second) = (image::oci(1).build(), image::oci(2).build());
    upstream.push("team/app", "v1", &first);
    upstream.push("team/app", "v2", &second);
    let slow = upstream.blob("slow/app", 9, 4_000_000);
    let limits = "server: {header_timeout: 1s, send_timeout: 1s}";
    let mirror = before(&upstream).with("stall_timeout: 1s").raw(limits).start().await;
    mirror.pull("team/app", "v1", &first).await;
    let gate = Gate::closed();
    upstream.always(On::get("/v2/slow/"), Fault::HoldAfter(2_000_000, gate.clone()));
    let connect = || TcpStream::connect(mirror.address());
    let (mut halves, mut deaf) = (Vec::new(), Vec::new());
    for _ in 0..20 {
        let mut half = connect().await.expect("a connection");
        half.write_all(b"GET /v2/ HTTP/1.1\r\nHos").await.expect("a few bytes are taken");
        halves.push(half);
        let mut one = connect().await.expect("a connection");
        let ask = format!("GET /v2/slow/app/blobs/{} HTTP/1.1\r\nHost: a\r\n\r\n", slow.digest);
        one.write_all(ask.as_bytes()).await.expect("a few bytes are taken");
        deaf.push(one);
    }
    for name in ["X", "Authorization", "Cookie", "Range", "Accept", "If-None-Match"] {
        let header = format!("{name}: {}", "x".repeat(64 << 10));
        let ask = format!("GET /v2/ HTTP/1.1\r\nHost: a\r\n{header}\r\nConnection: close\r\n\r\n");
        if let Some(answer) = raw(mirror.address(), ask.as_bytes()).await {
            assert!([200, 400, 401, 431].contains(&answer.status), "{name}: {}", answer.status);
        }
    }
    mirror.pull("team/app", "v1", &first).await;
    mirror.pull("team/app", "v2", &second).await;
    for mut half in halves {
        let said = until_closed(&mut half).await;
        assert!(!said.contains(" 200 "), "{said}");
    }
    upstream.behave();
    gate.open();
    let path = format!("/v2/slow/app/blobs/{}", slow.digest);
    assert!(mirror.get(&path).answer().await.is(&slow.bytes), "the slow one is not lost");
    drop(deaf);
}

/// The most memory that the mirror has had at once, in kilobytes.
fn peak(mirror: &Mirror) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", mirror.id()));
    let status = status.expect("the mirror runs");
    let line = status.lines().find(|line| line.starts_with("VmHWM")).expect("a line");
    let number = line.split_whitespace().nth(1).and_then(|text| text.parse::<u64>().ok());
    number.expect("kilobytes")
}

/// A frame of HTTP/2 on stream 1.
fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a short frame").to_be_bytes();
    [&length[1..], &[kind, flags, 0, 0, 0, stream], payload].concat()
}

/// A head that never ends, in as many frames as one likes.
#[tokio::test]
async fn t10_a_flood_of_continuations_is_cut_off() {
    const FRAMES: usize = 8192; // 128 MiB
    let (upstream, authority) = (Upstream::start().await, Authority::new());
    let image = image::oci(1).build();
    upstream.push("team/app", "v1", &image);
    let setup = before(&upstream);
    let pair = authority.issue(setup.folder(), "mirror", &["localhost"]);
    let (cert, key) = (pair.cert.display(), pair.key.display());
    let listen = format!("[{{address: '127.0.0.1:0', tls: {{cert: {cert}, key: {key}}}}}]");
    let mirror = setup.listen(&listen).start().await;
    let client = authority.client(None, &["h2"]);
    let path = "/v2/team/app/manifests/v1";
    assert_eq!(client.get_h2(mirror.address(), path).await.expect("an answer").0, 200);
    let first = peak(&mirror);
    // A header of a name and no value, a thousand times; and one header of 16 KiB.
    let small = b"\x00\x01x\x00".repeat(4000);
    let mut large = b"\x00\x01x\x7f\x81\x7d".to_vec(); // a value of 127 + 1 + 125 * 128 bytes
    large.resize(16_134, b'x');
    for headers in [small, large] {
        let mut stream = client.connect(mirror.address(), "localhost").await.expect("a handshake");
        let mut begun = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        begun.extend(frame(4, 0, 0, &[]));
        begun.extend(frame(1, 0, 1, b"\x82\x86\x84")); // GET, http, /: and no end of the head
        stream.write_all(&begun).await.expect("the beginning is taken");
        let more = frame(9, 0, 1, &headers);
        let mut taken = 0;
        let flood = async {
            while taken < FRAMES && stream.write_all(&more).await.is_ok() {
                taken += 1;
            }
        };
        soon("the end of a flood", flood).await;
        assert!(taken < FRAMES, "all of it was taken");
    }
    let grown = peak(&mirror) - first;
    assert!(grown < 32 << 10, "{grown} kB for floods of 128 MiB");
    assert_eq!(client.get_h2(mirror.address(), path).await.expect("an answer").0, 200);
}

/// A line break in whatever is said back ends no line.
#[tokio::test]
async fn t12_a_line_break_gets_into_no_header() {
    let two = Two::start().await;
    let image = image::oci(1).build();
    for tag in ["t1", "t2", "t3"] {
        two.push("alice", "a/app", tag, &image).await;
    }
    let alice = format!("Authorization: {}\r\n", basic("alice", "pw"));
    let (digest, evil) = (&image.manifest.digest, "%0d%0aX-Injected:%20yes");
    for (line, refused) in [
        (format!("GET /v2/a/app/manifests/v1{evil}"), true),
        (format!("GET /v2/a/app{evil}/manifests/v1"), true),
        (format!("GET /v2/a/app/manifests/{digest}{evil}"), true),
        (format!("GET /v2/a/app/manifests/v1?ns=registry.test{evil}"), true),
        ("GET /v2/a/app/manifests/v1?ns=registry.test%0aX-Injected:%20yes".to_owned(), true),
        (format!("GET /v2/a/app/tags/list?n=1&last=t1{evil}"), false),
        (format!("GET /v2/a/app/tags/list?n=1{evil}"), true),
        (format!("GET /v2/a/app/referrers/{digest}?artifactType=x{evil}"), false),
        (format!("POST /v2/a/app/blobs/uploads/?digest={digest}{evil}"), true),
        (format!("POST /v2/a/app/blobs/uploads/?mount={digest}&from=a/x{evil}"), false),
        (format!("POST /v2/a/app{evil}/blobs/uploads/"), true),
        (format!("PUT /v2/a/app/manifests/v1{evil}"), true),
        (format!("GET /token?service=pierhead{evil}"), true),
        (format!("GET /token?scope=repository:a/app{evil}:pull"), false),
    ] {
        let ask = format!(
            "{line} HTTP/1.1\r\nHost: a\r\n{alice}Content-Length: 0\r\nConnection: close\r\n\r\n"
        );
        let answer = raw(two.mirror.address(), ask.as_bytes()).await.expect("an answer");
        assert!(answer.status < 500 && (!refused || answer.status >= 400), "{line}: {answer:?}");
        let injected = |line: &str| line.to_ascii_lowercase().starts_with("x-injected");
        assert!(!answer.head.lines().any(injected), "{line}: {answer:?}");
        let alone = answer.head.replace("\r\n", "");
        assert!(!alone.contains(['\r', '\n']), "{line}: {answer:?}");
    }
}

/// Whatever is wrong, a browser is shown no page of it: it is JSON, says so, and stays JSON with any name.
#[tokio::test]
async fn t13_errors_are_json_and_no_page() {
    let upstream = Upstream::start().await;
    upstream.push("team/app", "v1", &image::oci(1).build());
    let mirror = before(&upstream).with("deny: ['denied/**']").start().await;
    let script = "%3Cscript%3Ealert(1)%3C%2Fscript%3E";
    let plain = "<script>alert(1)</script>";
    for line in [
        format!("GET /{script}"),
        format!("GET /{plain}"),
        format!("GET /v2/{script}"),
        format!("GET /v2/{script}/manifests/v1"),
        format!("GET /v2/team/app/manifests/{script}"),
        format!("GET /v2/team/app/manifests/{plain}"),
        format!("GET /v2/team/app/blobs/{script}"),
        format!("GET /v2/team/app/manifests/v1?ns={script}"),
        format!("GET /v2/team/app/tags/list?n={script}"),
        format!("GET /v2/team/app/{script}/v1"),
        format!("GET /v2/denied/app/manifests/v1?x={script}"),
        format!("GET /token?scope={script}"),
        format!("PUT /v2/team/app/manifests/{script}"),
        format!("{plain} /v2/"),
        "GET /v2/team/none/manifests/v1".to_owned(),
        "GET /v2/\u{e4}/manifests/v1".to_owned(),
        "GET".to_owned(),
    ] {
        let answer = raw_request(mirror.address(), &line).await;
        assert!((400..500).contains(&answer.status), "{line}: {answer:?}");
        let (_, message) = answer.error();
        assert!(!answer.head.contains("script"), "{line}: {answer:?}");
        assert!(!message.contains("<html"), "{line}: {message}");
    }
    // Nor is a page of the upstream handed on.
    upstream.always(On::any("/v2/"), Fault::Html);
    for path in ["team/other/manifests/v1", "team/other/tags/list"] {
        let answer = mirror.get(&format!("/v2/{path}")).answer().await;
        assert!(answer.status >= 400, "{path}: {answer:?}");
        answer.error();
    }
}

/// Ten thousand scopes, in one parameter or in many, by query or by form.
#[tokio::test]
async fn t15_scopes_are_bounded() {
    let upstream = Upstream::start().await;
    upstream.push("team/app", "v1", &image::oci(1).build());
    let setup = before(&upstream);
    let file = htpasswd(&setup, &[("ci", "pw")]);
    let rule = "{users: [ci], actions: [pull], repositories: ['**']}";
    let clients = format!("clients:\n  htpasswd: {}\n  rules: [{rule}]", file.display());
    let mirror = setup.raw(&clients).start().await;
    let first = peak(&mirror);
    let login = basic("ci", "pw");
    for (scope, times) in [("repository:team/app:pull", 10_000), ("repository:a:pull", 100)] {
        let scopes = vec![format!("scope={scope}"); times].join("&");
        let ask = format!(
            "GET /token?{scopes} HTTP/1.1\r\nHost: a\r\nAuthorization: {login}\r\nConnection: close\r\n\r\n"
        );
        // A head that long need not be read to its end.
        if let Some(answer) = raw(mirror.address(), ask.as_bytes()).await {
            assert!([400, 414, 431].contains(&answer.status), "{times}: {answer:?}");
        }
        let form = format!("grant_type=password&username=ci&password=pw&{scopes}");
        let one = format!(
            "grant_type=password&username=ci&password=pw&scope={}",
            vec![scope; times].join("+")
        );
        for form in [form, one] {
            let post = mirror.ask(Method::POST, "/token").body(form);
            let post = post.header("content-type", "application/x-www-form-urlencoded");
            assert_eq!(post.answer().await.status, 400, "{times}");
        }
    }
    let ask = mirror.get("/token?scope=repository:team/app:pull").header("authorization", &login);
    assert_eq!(ask.answer().await.status, 200);
    let grown = peak(&mirror) - first;
    assert!(grown < 32 << 10, "{grown} kB");
}

/// A token of somebody else's service that opens ten thousand repositories.
#[tokio::test]
async fn t15_access_lists_are_bounded() {
    let upstream = Upstream::start().await;
    upstream.push("team/app", "v1", &image::oci(1).build());
    let theirs = Signer::new("k", 1);
    let believing = believes(&theirs, &upstream).await;
    let first = peak(&believing);
    let head = json!({"alg": "EdDSA", "kid": "k"});
    let opens = |times: usize| {
        let one = json!({"type": "", "name": "", "actions": []});
        let mut all = vec![one; times];
        all.push(json!({"type": "repository", "name": "team/app", "actions": ["pull"]}));
        let mut claims = claims();
        claims["access"] = Value::Array(all);
        theirs.sign(&head, &claims)
    };
    for (times, wanted) in [(0, 200), (200, 200), (256, 401), (10_000, 401)] {
        let token = opens(times);
        // One that is too long for a header is cut off with it, or refused.
        let ask = format!(
            "GET /v2/team/app/manifests/v1 HTTP/1.1\r\nHost: a\r\nAuthorization: {token}\r\nConnection: close\r\n\r\n"
        );
        match raw(believing.address(), ask.as_bytes()).await {
            Some(answer) => {
                let refused = wanted != 200 && [400, 401, 431].contains(&answer.status);
                assert!(answer.status == wanted || refused, "{times}: {}", answer.status);
            }
            None => assert_ne!(wanted, 200, "{times}"),
        }
    }
    assert_eq!(status(&believing, &opens(1)).await, 200);
    let grown = peak(&believing) - first;
    assert!(grown < 32 << 10, "{grown} kB");
}

/// A realm on a bare address, on a name without a domain, at the cloud's metadata, or that leads on: no
/// credentials go there. One on plain http before an https registry: see `src/upstream/token.rs`.
#[tokio::test]
async fn t16_strange_realms_get_no_credentials() {
    let trap = Upstream::start().await;
    let port = trap.host().rsplit(':').next().expect("a port").to_owned();
    let image = image::oci(1).build();
    for realm in [
        "http://169.254.169.254/token".to_owned(),
        "http://[fd00:ec2::254]/token".to_owned(),
        format!("http://127.0.0.2:{port}/token"),
        format!("http://[::1]:{port}/token"),
        format!("http://2130706434:{port}/token"),
        elsewhere(&trap) + "/token",
        "redirect".to_owned(),
    ] {
        let upstream = Upstream::start().await;
        upstream.push("team/app", "v1", &image);
        let mut bearer = Bearer::usual();
        bearer.account = Some(Account::new("u", "hunter2"));
        if realm == "redirect" {
            let to = elsewhere(&trap) + "/token";
            upstream.always(On::any("/token"), Fault::Redirect(307, to));
        } else {
            bearer.realm = Some(realm.clone());
        }
        upstream.set(|registry| registry.auth = Auth::Bearer(bearer));
        for auth in ["auth: {username: u, password: hunter2}", "auth: passthrough"] {
            let mirror = before(&upstream).with(auth).with("connect_timeout: 1s").start().await;
            let ask = mirror.get("/v2/team/app/manifests/v1");
            let answer = ask.header("authorization", &basic("u", "hunter2")).answer().await;
            assert!(answer.status >= 400, "{realm} {auth}: {answer:?}");
            answer.error();
            assert!(!mirror.log().contains("hunter2"), "{realm} {auth}");
        }
    }
    for asked in trap.asked(&On::any("")) {
        assert!(asked.header("authorization").is_empty(), "{asked:?}");
        assert!(!asked.query.contains("hunter2") && asked.body.is_empty(), "{asked:?}");
    }
}

/// A space and a million copies of 258 of them, each in 13 bits (RFC 1951, 3.2.6), inside gzip: 256 MiB
/// that come as 1.7 MB.
fn bomb() -> Bytes {
    let mut packed = b"\x1f\x8b\x08\0\0\0\0\0\0\xff".to_vec();
    let (mut byte, mut filled) = (0_u8, 0);
    // Huffman codes go in from their first bit on, into each byte from its last.
    let mut push = |bits: &[u8]| {
        for bit in bits {
            byte |= bit << filled;
            filled += 1;
            if filled == 8 {
                packed.push(std::mem::take(&mut byte));
                filled = 0;
            }
        }
    };
    push(&[1, 1, 0]); // the last block, of fixed codes
    push(&[0, 1, 0, 1, 0, 0, 0, 0]); // the space
    for _ in 0..1_040_000 {
        push(&[1, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 0, 0]); // 258 times what stood one before
    }
    push(&[0; 15]); // the end of the block, and of the byte
    packed.extend([0; 8]); // the sum at the end, which nobody should get to
    packed.into()
}

/// A bomb in `Content-Encoding`: of a manifest, of a token, of a blob.
#[tokio::test]
async fn t6_a_decompression_bomb_is_bounded() {
    let upstream = Upstream::start().await;
    let image = image::oci(1).build();
    upstream.push("team/app", "v1", &image);
    let mirror = before(&upstream).start().await;
    let bomb = bomb();
    let first = peak(&mirror);
    for (on, path) in [
        (On::any("/manifests/"), "/v2/team/app/manifests/v1".to_owned()),
        (On::any("/tags/"), "/v2/team/app/tags/list".to_owned()),
        (On::any("/referrers/"), format!("/v2/team/app/referrers/{}", image.manifest.digest)),
        (On::any("/blobs/"), format!("/v2/team/app/blobs/{}", image.config.digest)),
    ] {
        upstream.always(on.clone(), Fault::Body(bomb.clone()));
        upstream.always(on, Fault::Header("content-encoding", "gzip".to_owned()));
        let answer = mirror.get(&path).answer().await;
        assert!(answer.status >= 400 || !answer.whole, "{path}: {}", answer.status);
        upstream.behave();
    }
    let grown = peak(&mirror) - first;
    assert!(grown < 128 << 10, "{grown} kB for bombs of 256 MiB");
    mirror.pull("team/app", "v1", &image).await;
}

/// A registry that writes what it likes, byte by byte: by path and method, on connections that stay.
async fn raw_registry(answer: impl Fn(&str, &str) -> String + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let answer = std::sync::Arc::new(answer);
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let answer = std::sync::Arc::clone(&answer);
            tokio::spawn(async move {
                let (read, mut write) = socket.into_split();
                let mut lines = BufReader::new(read).lines();
                let mut first = None;
                while let Ok(Some(line)) = lines.next_line().await {
                    if !line.is_empty() {
                        first.get_or_insert(line);
                        continue;
                    }
                    let Some(request) = first.take() else { continue };
                    let mut words = request.split(' ');
                    let (method, path) = (words.next(), words.next());
                    let text = answer(method.unwrap_or_default(), path.unwrap_or_default());
                    if write.write_all(text.as_bytes()).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

/// `Transfer-Encoding` where no body follows: the next answer on that connection is still whole.
#[tokio::test]
async fn t11_a_transfer_encoding_without_a_body_moves_no_frame() {
    let image = image::oci(1).build();
    let (digest, body) = (
        image.manifest.digest.clone(),
        String::from_utf8_lossy(&image.manifest.bytes).into_owned(),
    );
    let kind = image.manifest.media_type.clone();
    let address = raw_registry(move |method, path| {
        let about = format!("Docker-Content-Digest: {digest}\r\nContent-Type: {kind}\r\n");
        match (method, path.rsplit('/').next().unwrap_or_default()) {
            ("HEAD", "empty") => {
                format!("HTTP/1.1 204 No Content\r\n{about}Transfer-Encoding: chunked\r\n\r\n")
            }
            ("GET", "empty") => {
                "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned()
            }
            (_, "same") => {
                "HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned()
            }
            ("HEAD", _) => format!("HTTP/1.1 200 OK\r\n{about}Transfer-Encoding: chunked\r\n\r\n"),
            _ => format!("HTTP/1.1 200 OK\r\n{about}Content-Length: {}\r\n\r\n{body}", body.len()),
        }
    })
    .await;
    let url = format!("http://{address}");
    let setup = Setup::new().endpoints("registry.test", &[&url]).with("tag_ttl: 0s");
    let mirror = setup.start().await;
    for _ in 0..3 {
        let head = mirror.head("/v2/team/app/manifests/v1").answer().await;
        assert_eq!(head.status, 200, "{head:?}");
        assert_eq!(head.header("docker-content-digest"), image.manifest.digest);
        for tag in ["empty", "same"] {
            let answer = mirror.get(&format!("/v2/team/app/manifests/{tag}")).answer().await;
            assert!(answer.status >= 500 && answer.whole, "{tag}: {answer:?}");
        }
        let whole = mirror.get("/v2/team/app/manifests/v1").answer().await;
        assert!(whole.is(&image.manifest.bytes), "{whole:?}");
    }
}
