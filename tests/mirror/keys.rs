//! Keys of somebody else's token service, fetched from their URL.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures_util::future::join_all;
use parking_lot::Mutex;
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::support::image;
use crate::support::mirror::{Mirror, before, run, until};
use crate::support::secure::{Authority, Pair};
use crate::support::upstream::Upstream;

/// What the service answers with, and how often it was asked.
#[derive(Default)]
struct State {
    status: String,
    body: String,
    asked: usize,
}

struct Service {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
}

impl Service {
    async fn start(pair: &Pair) -> Self {
        let chain = CertificateDer::pem_file_iter(&pair.cert).expect("our own certificate");
        let chain = chain.map(|one| one.expect("a certificate")).collect();
        let key = PrivateKeyDer::from_pem_file(&pair.key).expect("our own key");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .expect("a pair");
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let (acceptor, state) = (acceptor.clone(), Arc::clone(&shared));
                tokio::spawn(async move {
                    let Ok(mut stream) = acceptor.accept(socket).await else { return };
                    let mut head = Vec::new();
                    while !head.ends_with(b"\r\n\r\n") {
                        let Ok(byte) = stream.read_u8().await else { return };
                        head.push(byte);
                    }
                    let answer = {
                        let mut state = state.lock();
                        state.asked += 1;
                        let (status, body) = (&state.status, &state.body);
                        format!(
                            "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                            body.len()
                        )
                    };
                    let _ = stream.write_all(answer.as_bytes()).await; // the mirror may be gone
                    let _ = stream.shutdown().await;
                });
            }
        });
        let service = Self { address, state };
        service.answers("200 OK", &json!({"keys": []}).to_string());
        service
    }

    fn answers(&self, status: &str, body: &str) {
        let mut state = self.state.lock();
        (state.status, state.body) = (status.to_owned(), body.to_owned());
    }

    fn has(&self, keys: &[&Signer]) {
        let keys: Vec<_> = keys.iter().map(|key| key.public()).collect();
        self.answers("200 OK", &json!({"keys": keys}).to_string());
    }

    fn asked(&self) -> usize {
        self.state.lock().asked
    }
}

/// Who signs tokens of somebody else's service, rightly or not.
pub(crate) struct Signer {
    id: &'static str,
    pair: Ed25519KeyPair,
}

impl Signer {
    pub(crate) fn new(id: &'static str, seed: u8) -> Self {
        Self { id, pair: Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).expect("a key") }
    }

    pub(crate) fn public(&self) -> Value {
        let x = URL_SAFE_NO_PAD.encode(self.pair.public_key().as_ref());
        json!({"kty": "OKP", "crv": "Ed25519", "kid": self.id, "x": x})
    }

    fn token(&self) -> String {
        let mut claims = claims();
        claims["iss"] = json!("https://issuer.test");
        self.sign(&json!({"alg": "EdDSA", "kid": self.id}), &claims)
    }

    /// A token of this head and these claims, with a good signature.
    pub(crate) fn sign(&self, head: &Value, claims: &Value) -> String {
        let encode = |part: &Value| URL_SAFE_NO_PAD.encode(part.to_string());
        let body = format!("{}.{}", encode(head), encode(claims));
        format!("Bearer {body}.{}", URL_SAFE_NO_PAD.encode(self.pair.sign(body.as_bytes())))
    }
}

/// What a good token says, of the service `them`, for the audience `mirror`, of the user `ci`.
pub(crate) fn claims() -> Value {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    json!({"iss": "them", "aud": "mirror", "sub": "ci", "iat": now, "exp": now + 3600})
}

fn clients(jwks: &str, ca: &Path, more: &str) -> String {
    format!(
        "clients:\n  jwt: {{jwks: \"{jwks}\", ca: {}, issuer: \"https://issuer.test\", audience: mirror{more}}}\n  rules: [{{users: [ci], actions: [pull], repositories: [\"**\"]}}]\n",
        ca.display()
    )
}

async fn with_service(more: &str) -> (Upstream, Mirror, Service) {
    let upstream = Upstream::start().await;
    upstream.push("team/app", "v1", &image::oci(1).build());
    let setup = before(&upstream);
    let authority = Authority::new();
    let service = Service::start(&authority.issue(setup.folder(), "issuer", &["127.0.0.1"])).await;
    let ca = authority.file(setup.folder());
    let url = format!("https://{}/keys", service.address);
    let mirror = setup.raw(&clients(&url, &ca, more)).start().await;
    (upstream, mirror, service)
}

async fn status(mirror: &Mirror, signer: &Signer) -> u16 {
    let ask = mirror.get("/v2/team/app/manifests/v1").header("authorization", &signer.token());
    ask.answer().await.status
}

/// Until a token is taken.
async fn taken(mirror: &Mirror, signer: &Signer) {
    let ask = || mirror.get("/v2/team/app/manifests/v1").header("authorization", &signer.token());
    until("a token to be believed", ask, |answer| answer.status == 200).await;
}

#[tokio::test]
async fn keys_come_from_their_url_and_change_there() {
    let (_upstream, mirror, service) = with_service(", private: true, fetch_after: 1s").await;
    let (old, new, strange) = (Signer::new("old", 1), Signer::new("new", 2), Signer::new("no", 3));
    service.has(&[&old]);
    taken(&mirror, &old).await;
    assert_eq!(status(&mirror, &strange).await, 401);
    // A key that is not known has them fetched, and one that is no longer there opens nothing.
    service.has(&[&new]);
    taken(&mirror, &new).await;
    assert_eq!(status(&mirror, &old).await, 401);
    // Whatever the service says but good keys leaves the known ones.
    for (answer, body) in [
        ("500 Internal Server Error", String::new()),
        ("200 OK", "<html>".to_owned()),
        ("200 OK", json!({"keys": []}).to_string()),
        ("302 Found\r\nLocation: https://127.0.0.1:1/", String::new()),
        ("200 OK", format!("{{\"keys\":[{}]}}", " ".repeat(2 << 20))),
    ] {
        service.answers(answer, &body);
        let before = service.asked();
        let asked = || mirror.get("/v2/").header("authorization", &strange.token());
        until("the service to be asked", asked, |_| service.asked() > before).await;
        assert_eq!(status(&mirror, &new).await, 200, "{answer}");
    }
    assert!(mirror.log().contains("those known stay"));
}

#[tokio::test]
async fn strange_tokens_do_not_make_us_ask_all_the_time() {
    let (_upstream, mirror, service) = with_service(", private: true, fetch_after: 1h").await;
    let good = Signer::new("good", 1);
    let strange = Signer::new("strange", 2);
    join_all((0..50).map(|_| status(&mirror, &strange))).await;
    assert_eq!(service.asked(), 1, "once, at start or for the first of them");
    service.has(&[&good]);
    assert_eq!(status(&mirror, &good).await, 401, "not before fetch_after is over");
    assert_eq!(service.asked(), 1);
}

#[tokio::test]
async fn a_service_that_is_not_trusted_gives_no_keys() {
    // Its certificate is of another authority.
    let upstream = Upstream::start().await;
    let setup = before(&upstream);
    let (ours, theirs) = (Authority::new(), Authority::new());
    let service = Service::start(&theirs.issue(setup.folder(), "issuer", &["127.0.0.1"])).await;
    let good = Signer::new("good", 1);
    service.has(&[&good]);
    let ca = ours.file(setup.folder());
    let url = format!("https://{}/keys", service.address);
    let mirror = setup.raw(&clients(&url, &ca, ", private: true")).start().await;
    assert_eq!(status(&mirror, &good).await, 401);
    assert_eq!(service.asked(), 0);
}

#[tokio::test]
async fn urls_that_anybody_could_answer_at_are_refused() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let ca = Authority::new().file(folder.path());
    let config = folder.path().join("c.yaml");
    for (jwks, more, why) in [
        ("http://issuer.test/keys", "", "https"),
        ("https://127.0.0.1/keys", "", "private: true"),
        ("https://169.254.169.254/keys", "", "private: true"),
        ("https://[::ffff:10.0.0.1]/keys", "", "private: true"),
        ("https://localhost/keys", "", "private: true"),
        ("https://user:pw@issuer.test/keys", "", "without a user"),
        ("https://issuer.test/keys", ", fetch_after: 0s", "1s to 1h"),
    ] {
        std::fs::write(&config, clients(jwks, &ca, more)).expect("the folder takes a file");
        let output = run(&["check", "--config", &config.display().to_string()]).await;
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(64) && said.contains(why), "{jwks}: {said}");
    }
    std::fs::write(&config, clients("https://issuer.test/keys", &ca, "")).expect("a file");
    let output = run(&["check", "--config", &config.display().to_string()]).await;
    assert!(output.status.success(), "nothing is asked at check: {output:?}");
}
