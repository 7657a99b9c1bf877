//! TLS: versions, HTTP/2, names, clients' certificates, and certificates that change under load.

use std::sync::Arc;
use std::time::Duration;

use http_body_util::BodyExt as _;
use hyper::Method;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use nix::sys::signal::Signal;
use rustls::{HandshakeKind, ProtocolVersion};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::Barrier;

use crate::support::fault::{Fault, Gate};
use crate::support::image;
use crate::support::mirror::{Mirror, Setup, before, run};
use crate::support::record::On;
use crate::support::secure::{Authority, Client, Pair, request};
use crate::support::soon;
use crate::support::upstream::Upstream;

fn listen(pair: &Pair, more: &str) -> String {
    let (cert, key) = (pair.cert.display(), pair.key.display());
    format!("[{{address: '127.0.0.1:0', tls: {{cert: {cert}, key: {key}{more}}}}}]")
}

fn with_tls(setup: Setup, authority: &Authority, more: &str) -> (Setup, Pair) {
    let pair = authority.issue(setup.folder(), "mirror", &["localhost", "127.0.0.1"]);
    let listen = listen(&pair, more);
    (setup.listen(&listen), pair)
}

/// Pingora would wait for the first bytes for ever, and hold a place for them.
#[tokio::test]
async fn a_client_that_chose_http2_and_says_nothing_is_closed_and_one_that_rests_is_not() {
    let (upstream, authority) = (Upstream::start().await, Authority::new());
    let (setup, _) = with_tls(before(&upstream), &authority, "");
    let mirror = setup.raw("server: {header_timeout: 1s}").start().await;
    let client = authority.client(None, &["h2"]);
    let mut resting = client.h2(mirror.address()).await.expect("a connection");
    for half in [&b""[..], b"PRI * HTTP/2.0"] {
        let mut silent = client.connect(mirror.address(), "localhost").await.expect("a handshake");
        silent.write_all(half).await.expect("it is still open");
        let mut rest = Vec::new();
        let _ended = soon("the end of a silence", silent.read_to_end(&mut rest)).await;
    }
    // Both took longer than the deadline for first bytes.
    assert_eq!(resting.get("/v2/").await.expect("an answer").0, 200);
}

/// The subject of the certificate that the mirror shows to new connections.
async fn shown(client: &Client, mirror: &Mirror, host: &str) -> Vec<u8> {
    let stream = client.connect(mirror.address(), host).await.expect("a handshake");
    stream.get_ref().1.peer_certificates().expect("a certificate")[0].to_vec()
}

#[tokio::test]
async fn images_are_pulled_through_tls_by_both_versions_of_http() {
    let (upstream, authority) = (Upstream::start().await, Authority::new());
    let image = image::oci(1).build();
    upstream.push("team/app", "v1", &image);
    let blob = upstream.blob("team/app", 7, 3_000_000);
    let (setup, _) = with_tls(before(&upstream), &authority, "");
    let mirror = setup.start().await;
    let path = format!("/v2/team/app/blobs/{}", blob.digest);
    for _ in ["miss", "hit"] {
        let old = authority.client(None, &["http/1.1"]);
        let (status, body) = old.get(mirror.address(), &path, &[]).await.expect("an answer");
        assert!(status == 200 && body == blob.bytes);
        let new = authority.client(None, &["h2", "http/1.1"]);
        let (status, body) = new.get_h2(mirror.address(), &path).await.expect("an answer");
        assert!(status == 200 && body == blob.bytes);
    }
    let plain = authority.client(None, &[]);
    let (status, body) =
        plain.get(mirror.address(), "/v2/team/app/manifests/v1", &[]).await.expect("an answer");
    assert!(status == 200 && body == image.manifest.bytes);
    let part = plain.get(mirror.address(), &path, &[("range", "bytes=5-9")]).await.expect("a part");
    assert_eq!(part, (206, blob.bytes.slice(5..10)));
}

/// Within a second of the first hit, answers are ready: HTTP/2 names the host elsewhere than HTTP/1.
#[tokio::test]
async fn a_ready_answer_is_whole_and_none_of_another_host() {
    let (a, b, authority) = (Upstream::start().await, Upstream::start().await, Authority::new());
    let image = image::oci(1).build();
    a.push("team/app", "v1", &image);
    b.push("team/app", "v1", &image::oci(2).build());
    let setup = Setup::new().upstream("a.test", &a).with("hosts: [a.mirror.test]");
    let setup = setup.upstream("b.test", &b).with("hosts: [b.mirror.test]");
    let (setup, _) = with_tls(setup.default_upstream("a.test"), &authority, "");
    let mirror = setup.start().await;
    let old = authority.client(None, &["http/1.1"]);
    let new = authority.client(None, &["h2"]);
    let mut new = new.h2(mirror.address()).await.expect("a connection");
    let path = format!("/v2/team/app/manifests/{}", image.manifest.digest);
    let whole = (200, image.manifest.bytes.clone());
    for turn in 0..20 {
        assert_eq!(old.get(mirror.address(), &path, &[]).await.expect("an answer"), whole);
        let got = new.ask("a.mirror.test", Method::GET, &path).await.expect("an answer");
        assert_eq!(got, whole, "{turn}");
        let head = new.ask("a.mirror.test", Method::HEAD, &path).await.expect("an answer");
        assert!(head.0 == 200 && head.1.is_empty());
        let elsewhere = new.ask("b.mirror.test", Method::GET, &path).await.expect("an answer");
        assert_eq!(elsewhere.0, 404, "{turn}");
    }
    let shown = mirror.admin("/metrics").answer().await;
    let hits = String::from_utf8_lossy(&shown.body).into_owned();
    let hits = hits
        .lines()
        .filter(|line| line.contains("pierhead_requests_total") && line.contains("\"hit\""));
    let hits: u32 = hits.filter_map(|line| line.rsplit(' ').next()?.parse::<u32>().ok()).sum();
    assert_eq!(hits, 59, "all but the first, which was a miss");
}

/// Pingora gathers small writes, and a client may wait for a head no longer than for anything else.
#[tokio::test]
async fn a_head_goes_out_though_the_upstream_pauses() {
    let (upstream, authority, gate) = (Upstream::start().await, Authority::new(), Gate::closed());
    let blob = upstream.blob("team/app", 7, 3_000_000);
    upstream.always(On::get(&blob.digest), Fault::HoldAfter(2000, gate.clone()));
    let (setup, _) = with_tls(before(&upstream), &authority, "");
    let mirror = setup.start().await;
    let client = authority.client(None, &["http/1.1"]);
    let stream = client.connect(mirror.address(), "localhost").await.expect("a handshake");
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.expect("a connection");
    tokio::spawn(connection);
    let path = format!("/v2/team/app/blobs/{}", blob.digest);
    let asked = sender.send_request(request(mirror.address(), &path, &[]));
    let answer = soon("the head", asked).await.expect("a head");
    gate.open();
    let body = soon("the rest", answer.into_body().collect()).await.expect("all of it");
    assert!(body.to_bytes() == blob.bytes);
}

#[tokio::test]
async fn sessions_are_resumed_and_both_versions_of_tls_are_spoken() {
    let (upstream, authority) = (Upstream::start().await, Authority::new());
    let (setup, _) = with_tls(before(&upstream), &authority, "");
    let mirror = setup.start().await;
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let base = authority.client(None, &["http/1.1"]);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[version])
            .expect("a version of the provider's")
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        config.dangerous().set_certificate_verifier(verifier(&authority));
        config.alpn_protocols.clone_from(&base.0.alpn_protocols);
        let client = Client(Arc::new(config));
        let mut kinds = Vec::new();
        for _ in 0..3 {
            let stream = client.connect(mirror.address(), "localhost").await.expect("a handshake");
            let state = stream.get_ref().1;
            let wanted =
                if version.version == ProtocolVersion::TLSv1_2 { "TLSv1_2" } else { "TLSv1_3" };
            assert_eq!(format!("{:?}", state.protocol_version().expect("a version")), wanted);
            kinds.push(state.handshake_kind());
            // TLS 1.3 hands its tickets out after the handshake, with the first answer.
            let (mut sender, connection) =
                http1::handshake(TokioIo::new(stream)).await.expect("a connection");
            tokio::spawn(connection);
            let sent = sender.send_request(request(mirror.address(), "/v2/", &[])).await;
            assert_eq!(sent.expect("an answer").status(), 200);
        }
        assert_eq!(
            kinds[1..],
            [Some(HandshakeKind::Resumed), Some(HandshakeKind::Resumed)],
            "{version:?}"
        );
    }
}

fn verifier(authority: &Authority) -> Arc<dyn rustls::client::danger::ServerCertVerifier> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = authority.file(folder.path());
    let mut roots = rustls::RootCertStore::empty();
    let pem = std::fs::read(file).expect("our own file");
    let der = <rustls::pki_types::CertificateDer<'_> as rustls::pki_types::pem::PemObject>::from_pem_slice(&pem);
    roots.add(der.expect("our own certificate")).expect("our own certificate");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    rustls::client::WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .expect("one root is enough")
}

#[tokio::test]
async fn the_certificate_fits_the_name_that_is_asked_for() {
    let (upstream, authority) = (Upstream::start().await, Authority::new());
    let setup = before(&upstream);
    let other = authority.issue(setup.folder(), "other", &["other.test", "*.wild.test"]);
    let more =
        format!(", also: [{{cert: {}, key: {}}}]", other.cert.display(), other.key.display());
    let (setup, _) = with_tls(setup, &authority, &more);
    let mirror = setup.start().await;
    let client = authority.client(None, &[]);
    let first = shown(&client, &mirror, "localhost").await;
    let second = shown(&client, &mirror, "other.test").await;
    assert_ne!(first, second);
    assert_eq!(shown(&client, &mirror, "a.wild.test").await, second);
    assert!(
        client.connect(mirror.address(), "unknown.test").await.is_err(),
        "the first one is for localhost"
    );
}

#[tokio::test]
async fn a_certificate_swapped_under_50_connections_breaks_none() {
    let (upstream, authority) = (Upstream::start().await, Authority::new());
    let blob = upstream.blob("team/app", 1, 200_000);
    let (setup, pair) = with_tls(before(&upstream), &authority, "");
    let mirror = setup.start().await;
    let path = format!("/v2/team/app/blobs/{}", blob.digest);
    let client = authority.client(None, &["http/1.1"]);
    let before_swap = shown(&client, &mirror, "localhost").await;
    let (ready, swapped) = (Arc::new(Barrier::new(51)), Arc::new(Barrier::new(51)));
    let connections: Vec<_> = (0..50)
        .map(|_| {
            let (client, path, address) = (client.clone(), path.clone(), mirror.address());
            let (ready, swapped) = (Arc::clone(&ready), Arc::clone(&swapped));
            tokio::spawn(async move {
                let stream = client.connect(address, "localhost").await.expect("a handshake");
                let (mut sender, connection) =
                    http1::handshake(TokioIo::new(stream)).await.expect("a connection");
                tokio::spawn(connection);
                let mut bytes = 0;
                for round in 0..20 {
                    if round == 5 {
                        ready.wait().await;
                    }
                    if round == 15 {
                        swapped.wait().await;
                    }
                    let answer = sender.send_request(request(address, &path, &[])).await;
                    let body = answer.expect("an answer over the old connection").into_body();
                    bytes += http_body_util::BodyExt::collect(body)
                        .await
                        .expect("all of it")
                        .to_bytes()
                        .len();
                }
                bytes
            })
        })
        .collect();
    ready.wait().await;
    let new = authority.issue(mirror.folder(), "new", &["localhost"]);
    std::fs::rename(&new.cert, &pair.cert).expect("the same folder");
    std::fs::rename(&new.key, &pair.key).expect("the same folder");
    mirror.signal(Signal::SIGHUP);
    soon("the new certificate", async {
        while shown(&client, &mirror, "localhost").await == before_swap {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    swapped.wait().await;
    for connection in connections {
        assert_eq!(soon("a connection's end", connection).await.expect("no failure"), 20 * 200_000);
    }
}

#[tokio::test]
async fn a_changed_file_is_seen_without_a_signal_and_a_bad_one_is_refused() {
    let (upstream, authority) = (Upstream::start().await, Authority::new());
    let (setup, pair) = with_tls(before(&upstream), &authority, "");
    let mirror = setup.start().await;
    let client = authority.client(None, &[]);
    let old = shown(&client, &mirror, "localhost").await;
    std::fs::write(&pair.key, "rubbish").expect("our own file");
    soon("the refusal", async {
        while !mirror.log().contains("new certificates are refused") {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    assert_eq!(shown(&client, &mirror, "localhost").await, old);
    let new = authority.issue(mirror.folder(), "new", &["localhost"]);
    std::fs::rename(&new.cert, &pair.cert).expect("the same folder");
    std::fs::rename(&new.key, &pair.key).expect("the same folder");
    soon("the new certificate", async {
        while shown(&client, &mirror, "localhost").await == old {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn only_clients_with_a_certificate_come_in_where_one_is_asked_for() {
    let (upstream, authority, stranger) =
        (Upstream::start().await, Authority::new(), Authority::new());
    let setup = before(&upstream);
    let more = format!(", client_ca: {}", authority.file(setup.folder()).display());
    let own = authority.issue(setup.folder(), "alice", &["alice"]);
    let foreign = stranger.issue(setup.folder(), "mallory", &["alice"]);
    let (setup, _) = with_tls(setup, &authority, &more);
    let mirror = setup.start().await;
    let ping = async |own: Option<&Pair>| {
        authority.client(own, &["http/1.1"]).get(mirror.address(), "/v2/", &[]).await
    };
    assert_eq!(ping(Some(&own)).await.expect("an answer").0, 200);
    assert!(ping(None).await.is_err());
    assert!(ping(Some(&foreign)).await.is_err());
}

#[tokio::test]
async fn a_bad_pair_is_refused_at_check_and_at_start_without_a_panic() {
    let (upstream, authority) = (Upstream::start().await, Authority::new());
    let setup = before(&upstream);
    let one = authority.issue(setup.folder(), "one", &["localhost"]);
    let two = authority.issue(setup.folder(), "two", &["localhost"]);
    let mixed = Pair { cert: one.cert.clone(), key: two.key };
    let missing = Pair { cert: one.cert, key: setup.folder().join("nowhere") };
    let file = setup.folder().join("bad.yaml");
    for (pair, why) in [(mixed, "does not belong"), (missing, "cannot be read")] {
        let setup = before(&upstream).listen(&listen(&pair, ""));
        std::fs::write(&file, setup.yaml()).expect("the temporary folder takes a file");
        for command in ["check", "serve"] {
            let output = run(&[command, "--config", &file.display().to_string()]).await;
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(64), "{said}");
            assert!(said.contains(why) && !said.contains("panicked"), "{said}");
        }
    }
}

#[tokio::test]
async fn a_handshake_that_does_not_go_on_is_ended_in_time() {
    let (upstream, authority) = (Upstream::start().await, Authority::new());
    let (setup, _) = with_tls(before(&upstream), &authority, "");
    let mirror = setup.raw("server: {header_timeout: 1s}").start().await;
    let mut silent = tokio::net::TcpStream::connect(mirror.address()).await.expect("a connection");
    let mut byte = [0];
    let read = soon("the end of a silent connection", silent.read(&mut byte)).await;
    assert!(matches!(read, Ok(0) | Err(_)));
}
