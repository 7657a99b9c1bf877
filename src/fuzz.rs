//! What must hold of anything that comes from outside: one function for each kind of input, called by
//! the fuzz targets under `fuzz/` and by `tests/fuzz.rs`, which runs them without a fuzzer.
//!
//! Each panics where a promise is broken, and is of no other use.

use std::cell::RefCell;
use std::io::Cursor;
use std::time::{Duration, Instant};

use http::header::{CONTENT_LENGTH, CONTENT_RANGE, HeaderValue, WWW_AUTHENTICATE};
use http::{HeaderMap, Method, StatusCode};
use pingora::protocols::http::ServerSession;
use ring::signature::{Ed25519KeyPair, KeyPair};
use tokio::runtime::Runtime;
use url::Url;

use crate::config::jwks::{self, Key, Named};
use crate::config::units::{Free, Size, Span};
use crate::config::{Config, Jwt, htpasswd};
use crate::digest::{Algorithm, Digest};
use crate::issuer::Issuer;
use crate::limits::{MANIFEST_DEPTH_MAX, NAME_BYTES_MAX, RANGES_MAX, TAG_BYTES_MAX};
use crate::media::Manifest;
use crate::name::{Reference, Repository, Tag, UploadId};
use crate::pages;
use crate::pass::{Access, By, Grant, Keys, Login};
use crate::patterns;
use crate::pushed::Pushed;
use crate::range::{Ranges, Selection};
use crate::respond;
use crate::route::{Action, HOSTED, Route, Table};
use crate::scope::{self, Asked};
use crate::server::request::Request;
use crate::upstream::address::Reach;
use crate::upstream::ask;
use crate::upstream::redirect;
use crate::upstream::token::{Bearer, Challenge, Token};

/// One kind of input.
pub type Target = fn(&[u8]);

/// Every kind of input, by the name of its corpus.
pub const TARGETS: [(&str, Target); 8] = [
    ("heads", heads),
    ("names", names),
    ("digests", digests),
    ("ranges", ranges),
    ("challenges", challenges),
    ("manifests", manifests),
    ("tokens", tokens),
    ("configuration", configuration),
];

/// A moment within the life of the tokens that are made here, in seconds since 1970.
const NOW: u64 = 1_790_000_000;

fn text(data: &[u8]) -> Option<&str> {
    std::str::from_utf8(data).ok()
}

/// A table with each way to name an upstream, and hosted names.
fn table() -> Table {
    let mut table = Table::new(Some("docker.io"));
    table.add("docker.io", &["index.docker.io".to_owned()], &[]);
    table.add("ghcr.io", &[], &["mirror.test".to_owned()]);
    table.add("localhost:5000", &[], &[]);
    table.host(&["*".to_owned(), "team/**".to_owned()]);
    table
}

// --- requests ------------------------------------------------------------------------------------

/// The bytes that a client sends, as one connection reads them: a head with two ways to tell its
/// length is refused, and what is let in names only what is configured.
pub fn heads(data: &[u8]) {
    thread_local! {
        static RUNTIME: RefCell<Runtime> = RefCell::new(
            tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime"),
        );
    }
    RUNTIME.with_borrow(|runtime| runtime.block_on(head(data)));
}

async fn head(data: &[u8]) {
    let stream = Box::new(Cursor::new(data.to_vec()));
    let mut session = ServerSession::new_http1(stream);
    let read = session.read_request().await;
    if !matches!(read, Ok(true)) || respond::is_ambiguous(&session) {
        return;
    }
    let lengths = lengths(data);
    assert!(lengths <= 1, "{lengths} ways to tell the body's length were let in");
    let request = Request::take(&session, Instant::now());
    for told in [Some(&request.path), request.query.as_ref(), request.knock.host.as_ref()] {
        assert!(!told.is_some_and(|t| t.contains(['\r', '\n', '\0'])), "{told:?}");
    }
    if let Some(header) = &request.conditions.range {
        within(header, 1000);
    }
    let shown = request.knock.authorization.as_deref();
    if let Some(basic) = shown.and_then(|shown| shown.strip_prefix("Basic ")) {
        let _ = scope::basic(basic); // its promises are those of `tokens`
    }
    let (query, host) = (request.query.as_deref(), request.knock.host.as_deref());
    if let Ok(route) = table().route(&request.method, &request.path, query, host) {
        lawful(&route, &request.method);
    }
    let mut body = 0;
    while let Ok(Some(piece)) = session.read_request_body().await {
        body += piece.len();
    }
    assert!(body <= data.len(), "a body of {body} bytes came out of {}", data.len());
}

/// How many headers of a head tell its body's length, read in the plainest way there is.
fn lengths(data: &[u8]) -> usize {
    let mut lines = data.split(|&b| b == b'\n').skip_while(|line| line.trim_ascii().is_empty());
    lines.next(); // the request line
    let head = lines.take_while(|line| !matches!(*line, b"" | b"\r"));
    let names = head.filter_map(|line| line.split(|&b| b == b':').next());
    let mut kinds: Vec<_> = names.map(|name| name.trim_ascii().to_ascii_lowercase()).collect();
    kinds.sort_unstable();
    // The same length told twice is one, and Pingora's business.
    kinds.dedup();
    let tells =
        |name: &&Vec<u8>| matches!(name.as_slice(), b"content-length" | b"transfer-encoding");
    kinds.iter().filter(tells).count()
}

fn lawful(route: &Route, method: &Method) {
    let Some(target) = &route.target else {
        assert!(matches!(route.action, Action::Ping | Action::Catalog(..)), "{route:?}");
        return;
    };
    let known = ["docker.io", "ghcr.io", "localhost:5000", HOSTED];
    assert!(known.contains(&&*target.upstream), "{route:?}");
    repository(target.repository.as_str());
    if !matches!(route.action, Action::Push(_)) {
        assert!(matches!(*method, Method::GET | Method::HEAD), "{method} reads");
    }
}

fn repository(name: &str) {
    assert!(name.len() <= NAME_BYTES_MAX + "library/".len(), "{name}");
    for part in name.split('/') {
        assert!(!part.is_empty() && !part.contains("..") && !part.starts_with(['.', '_', '-']));
        assert!(
            part.bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b))
        );
    }
}

/// Names as they stand in paths, in references and in patterns.
pub fn names(data: &[u8]) {
    let Some(text) = text(data) else { return };
    if let Ok(name) = Repository::parse(text) {
        assert_eq!(name.as_str(), text);
        repository(text);
    }
    if let Ok(tag) = Tag::parse(text) {
        assert_eq!(tag.as_str(), text);
        assert!(text.len() <= TAG_BYTES_MAX && !text.starts_with('.') && !text.contains('/'));
    }
    if let Ok(reference) = Reference::parse(text) {
        assert_eq!(reference.to_string(), text);
    }
    if let Ok(id) = UploadId::parse(text) {
        assert!(id.as_str() == text && text.bytes().all(|b| b.is_ascii_hexdigit()));
    }
    let table = table();
    if let Ok((target, reference)) = table.image(text) {
        repository(target.repository.as_str());
        assert_eq!(Reference::parse(&reference.to_string()).ok(), Some(reference));
    }
    let (path, query) = text.split_once('?').map_or((text, None), |(p, q)| (p, Some(q)));
    for method in [Method::GET, Method::PUT, Method::DELETE, Method::POST] {
        if let Ok(route) = table.route(&method, path, query, Some("mirror.test:443")) {
            lawful(&route, &method);
        }
    }
    let (pattern, name) = text.split_once(' ').unwrap_or((text, "library/alpine"));
    // What `check` takes has two of these at most: more would let a name drive the work.
    if pattern.split('/').filter(|part| *part == "**").count() <= 2 {
        let _ = patterns::matches(pattern, name); // it only has to end
        assert!(patterns::matches("**", name) || name.is_empty());
    }
}

/// Digests: what is taken is printed as it came, and safe in a path.
pub fn digests(data: &[u8]) {
    for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
        let made = Digest::of(algorithm, data);
        assert_eq!(Digest::parse(&made.to_string()).ok(), Some(made));
        let (first, second) = made.halves();
        assert_eq!(Digest::from_halves(&first, second.as_ref()), made);
    }
    let Some(text) = text(data) else { return };
    let Ok(digest) = Digest::parse(text) else { return };
    assert_eq!(digest.to_string(), text);
    let (word, hex) = text.split_once(':').expect("a digest has a colon");
    assert_eq!(Algorithm::parse(word), Some(digest.algorithm()));
    assert!(hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')), "{text}");
}

/// Ranges: the first line is the body's size.
pub fn ranges(data: &[u8]) {
    let Some((size, header)) = text(data).and_then(|text| text.split_once('\n')) else { return };
    within(header, size.trim().parse().unwrap_or(2048));
    // What an upstream says of a part that it sends.
    let mut headers = HeaderMap::new();
    let Ok(value) = HeaderValue::from_str(header) else { return };
    headers.insert(CONTENT_RANGE, value.clone());
    headers.insert(CONTENT_LENGTH, value);
    if let Ok((start, _)) = ask::extent(StatusCode::PARTIAL_CONTENT, &headers, Some((7, None))) {
        assert_eq!(start, 7, "another part than was asked for");
    }
    if let Ok((start, _)) = ask::extent(StatusCode::OK, &headers, Some((7, None))) {
        assert_eq!(start, 0);
    }
}

fn within(header: &str, size: u64) {
    let Ok(Some(ranges)) = Ranges::parse(header) else { return };
    let spans = match ranges.select(size) {
        Ok(Selection::One(span)) => vec![span],
        Ok(Selection::Many(spans)) => spans,
        Ok(Selection::Whole) | Err(_) => return,
    };
    assert!(spans.len() <= RANGES_MAX, "{} parts", spans.len());
    for span in &spans {
        assert!(span.start < span.end && span.end <= size, "{span:?} of {size}");
    }
    let sum: u128 = spans.iter().map(|span| u128::from(span.len())).sum();
    assert!(sum <= u128::from(size), "{sum} bytes of {size}");
}

// --- upstreams -----------------------------------------------------------------------------------

/// What an upstream answers with: its challenge, its token service's answer, where it leads.
pub fn challenges(data: &[u8]) {
    let home = Url::parse("https://registry.example.com/v2/").expect("a URL");
    let mut headers = HeaderMap::new();
    for line in data.split(|&b| b == b'\n') {
        if let Ok(value) = HeaderValue::from_bytes(line) {
            headers.append(WWW_AUTHENTICATE, value);
        }
    }
    if let Some(Challenge::Bearer(bearer)) = Challenge::read(&headers) {
        realm(&bearer, &home);
    }
    let now = Instant::now();
    if let Ok(token) = Token::read(data, now) {
        let value = HeaderValue::from_str(&format!("Bearer {}", token.value));
        assert!(value.is_ok(), "a token that cannot stand in a header");
        assert!(token.renew_at > now && token.renew_at <= now + Duration::from_secs(86_400));
    }
    let _ = pages::descriptors(data).map(|found| pages::referrers_index(found, &[]));
    let _ = ask::message(data).map(|said| assert!(!said.contains(['\r', '\n'])));
    if let Some(location) = text(data)
        && let Ok(hop) = redirect::next("x", &home, Reach::Public, Some(location))
    {
        assert_eq!(hop.url.scheme(), "https");
        assert!(hop.url.username().is_empty() && hop.url.password().is_none());
        assert!(redirect::literal(&hop.url).is_none_or(|ip| Reach::Public.may_name(ip)));
        assert_eq!(hop.same_origin, hop.url.origin() == home.origin());
    }
}

fn realm(bearer: &Bearer, home: &Url) {
    if bearer.permit("x", home, Reach::Public, &[], true).is_ok() {
        assert_eq!(bearer.realm.scheme(), "https", "a secret in the clear");
        let host = bearer.realm.host_str().unwrap_or_default();
        let host = host.trim_end_matches('.'); // the same name, written out to its root
        let own = host == "example.com" || host.ends_with(".example.com");
        assert!(own, "a secret goes to {host}");
    }
    if bearer.permit("x", home, Reach::Public, &[], false).is_ok() {
        assert!(bearer.realm.username().is_empty() && bearer.realm.password().is_none());
        let near = redirect::literal(&bearer.realm).is_some_and(|ip| !Reach::Public.may_name(ip));
        assert!(!near, "led to {}", bearer.realm);
    }
    if !matches!(bearer.realm.scheme(), "http" | "https") {
        let permitted = bearer.permit("x", home, Reach::Public, &[], false);
        return assert!(permitted.is_err(), "asked by {}", bearer.realm.scheme());
    }
    let scope = bearer.scope_for("team/app", "pull");
    let url = bearer.url(&scope, Some("user&x=y"));
    assert_eq!(url.origin(), bearer.realm.origin());
    // Several in one challenge are told one by one.
    let told = url.query_pairs().filter(|(key, _)| key == "scope").map(|(_, value)| value);
    let told: Vec<String> = told.map(std::borrow::Cow::into_owned).collect();
    let scopes: Vec<&str> = scope.split(' ').filter(|scope| !scope.is_empty()).collect();
    assert!(scopes.iter().all(|scope| told.iter().any(|t| t == scope)), "the scope is lost");
}

/// Manifests: from upstreams, and as they are pushed. The first line is the `Content-Type`.
pub fn manifests(data: &[u8]) {
    let end = data.iter().position(|&b| b == b'\n').unwrap_or(0);
    let (kind, body) = data.split_at(end);
    let body = body.strip_prefix(b"\n").unwrap_or(body);
    let kind = text(kind).filter(|kind| !kind.is_empty());
    let read = Manifest::read(body, kind);
    if let Ok(manifest) = &read {
        assert!(manifest.manifests.is_empty() || manifest.blobs.is_empty(), "two meanings");
        for one in manifest.manifests.iter().chain(&manifest.blobs).chain(&manifest.subject) {
            assert_eq!(Digest::parse(&one.digest.to_string()).ok(), Some(one.digest));
        }
        // The same bytes mean the same with the type that they are served with.
        let again = Manifest::read(body, Some(&manifest.media_type));
        assert_eq!(again.ok().as_ref(), Some(manifest), "served as {}", manifest.media_type);
    }
    let deep = "[".repeat(MANIFEST_DEPTH_MAX + 1);
    assert!(Manifest::read(&[deep.as_bytes(), body].concat(), kind).is_err());
    if let Ok(pushed) = Pushed::read(body, kind) {
        let read = read.expect("what may be pushed may be pulled");
        assert!(serde_json::from_slice::<serde_json::Value>(body).is_ok(), "it is JSON");
        assert_eq!(pushed.media_type, read.media_type);
        assert!(pushed.holds().count() <= read.manifests.len() + read.blobs.len());
    }
}

// --- logins --------------------------------------------------------------------------------------

/// Tokens, ours and those of others: what is believed was signed by the one key there is. The first
/// byte says whether the rest stands alone or is laid over a good token, from the place on that the
/// second byte names.
pub fn tokens(data: &[u8]) {
    let keys = Keys::new(&[7; 32]).expect("keys");
    let good = keys.issue(grant(), NOW, 300, [1; 12]).expect("a token");
    let pair = Ed25519KeyPair::from_seed_unchecked(&[9; 32]).expect("a key");
    let issuer = issuer(&pair);
    let theirs = signed(&pair);
    let [kind, place, rest @ ..] = data else { return };
    for (genuine, foreign) in [(&good, &theirs), (&theirs, &good)] {
        let candidate = match kind % 3 {
            0 => text(rest).unwrap_or_default().to_owned(),
            1 => laid_over(genuine, usize::from(*place), rest),
            _ => laid_over(foreign, usize::from(*place) * 2, rest),
        };
        for now in [NOW, NOW + 200, NOW + 400] {
            let live = now < NOW + 300;
            let ours = keys.read(&candidate, now);
            assert_eq!(ours.is_ok(), live && candidate == good, "{candidate}");
            if let Ok(claims) = ours {
                let login = keys.open(&claims).expect("ours").expect("with credentials");
                assert_eq!((&**login.username, &**login.password), ("user", "pass:word"));
            }
            let said = issuer.read(&candidate, now);
            assert_eq!(said.is_ok(), live && candidate == theirs, "{candidate}");
        }
    }
    assert!(keys.read(&good, NOW).is_ok() && issuer.read(&theirs, NOW).is_ok());
    if let Some(text) = text(rest) {
        for form in [false, true] {
            let Ok(asked) = Asked::read(text, form) else { continue };
            assert!(asked.password.is_some() == form && asked.access.len() <= 64);
            for access in asked.access {
                assert!(!access.name.contains(['"', '\r', '\n', ' ', '\\']), "{}", access.name);
            }
        }
        if let Some((username, password)) = scope::basic(text) {
            assert!(!username.is_empty() && !username.contains(':'));
            assert!(!username.chars().chain(password.chars()).any(char::is_control));
        }
    }
}

fn grant() -> Grant<'static> {
    thread_local! {
        static LOGIN: &'static Login = Box::leak(Box::new(Login {
            upstream: "docker.io".into(),
            username: "user".to_owned().into(),
            password: "pass:word".to_owned().into(),
        }));
    }
    let actions = vec!["pull".to_owned()];
    let access = Access { kind: "repository".to_owned(), name: "team/app".to_owned(), actions };
    let login = LOGIN.with(|login| *login);
    Grant {
        user: Some("ci"),
        by: By::Htpasswd,
        entry: Some("$2y$"),
        access: vec![access],
        login: Some(login),
    }
}

fn issuer(pair: &Ed25519KeyPair) -> Issuer {
    let settings = Jwt {
        jwks: "/nowhere".into(),
        issuer: "https://issuer.test".to_owned(),
        audience: "mirror".to_owned(),
        ca: None,
        private: false,
        fetch_after: Span::secs(30),
    };
    let key = Key::Ed25519(pair.public_key().as_ref().to_vec());
    Issuer::of(settings, vec![Named { id: Some("k".to_owned()), key }])
}

/// A token of somebody else's, alive as long as ours.
fn signed(pair: &Ed25519KeyPair) -> String {
    use base64::Engine as _;
    let encode = |bytes: &[u8]| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes);
    let claims = serde_json::json!({
        "iss": "https://issuer.test", "aud": "mirror", "sub": "ci", "iat": NOW, "exp": NOW + 300,
    });
    let head = encode(br#"{"alg":"EdDSA","kid":"k"}"#);
    let body = format!("{head}.{}", encode(claims.to_string().as_bytes()));
    format!("{body}.{}", encode(pair.sign(body.as_bytes()).as_ref()))
}

fn laid_over(base: &str, place: usize, rest: &[u8]) -> String {
    let mut bytes = base.as_bytes().to_vec();
    let place = place.min(bytes.len());
    let end = (place + rest.len()).min(bytes.len());
    bytes.splice(place..end, rest.iter().copied());
    String::from_utf8(bytes).unwrap_or_default()
}

// --- configuration -------------------------------------------------------------------------------

/// Configurations and the files that they name: a fault has a text, and what is taken means the same
/// once it is printed.
pub fn configuration(data: &[u8]) {
    let Some(text) = text(data) else { return };
    let _ = jwks::parse(data).map(|keys| assert!(!keys.is_empty()));
    let _ = htpasswd::parse(text).map_err(|(line, why)| assert!(line > 0 && !why.is_empty()));
    if let Ok(size) = Size::parse(text) {
        assert_eq!(Size::parse(&size.to_string()).ok(), Some(size), "{text}");
    }
    if let Ok(span) = Span::parse(text) {
        assert_eq!(Span::parse(&span.to_string()).ok(), Some(span), "{text}");
    }
    if let Ok(free) = Free::parse(text) {
        assert_eq!(Free::parse(&free.to_string()).ok(), Some(free), "{text}");
    }
    match Config::parse("fuzz", text) {
        Err(faults) => assert!(faults.iter().all(|fault| !fault.message.is_empty())),
        Ok(loaded) => {
            let json = |config: &Config| serde_json::to_value(config).expect("JSON");
            let printed = serde_yaml::to_string(&loaded.config).expect("YAML");
            // Secrets are not printed; any that is long enough may stand for them.
            let printed = printed.replace("<hidden>", &"s".repeat(40));
            let again = Config::parse("printed", &printed)
                .unwrap_or_else(|faults| panic!("{faults}\n{printed}"));
            assert_eq!(json(&again.config), json(&loaded.config), "{printed}");
        }
    }
}
