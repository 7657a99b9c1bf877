//! Stand-ins for the token services of clouds, which check what is signed and do not assume it.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE, URL_SAFE_NO_PAD};
use bytes::Bytes;
use hyper::http::request::Parts;
use ring::{digest, hmac, signature};
use serde_json::{Value, json};
use url::form_urlencoded;

use super::fault::error;
use super::reply::Reply;
use super::scripted::{Scripted, posted};

/// The access key that the stand-in for AWS knows.
pub(crate) const AWS_KEY: (&str, &str) =
    ("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY");

/// A service account's key, made for these tests and good for nothing else.
const GOOGLE_KEY: &str = include_str!("test-only-key.pem");
const GOOGLE_PUBLIC: &str = "MIIBCgKCAQEAzTKZaMDgPeU6Up5ELP4lyoJMSHv4PzE24KhVmJRgI2sLJcgsYIGb61qA9o5U/UTCca2nSFy+l4jIfWOI4Hd1p/lH990LT4R+U14WoajHBCU54uVI8wdluencLZOVRYcee9n+rpNf0T1mUK45jGDfO4aXLxls8b5OjCLhnKqVDz+Kl7IDQghNxJpZ5jr+9QWqlD+VVaDbNPbf9HaGpPG4YOUjxJk3R+iuh8ggPgbQRWVqJ19cvJ99tApqtkhBN4s9MDmqgIRCSUKwaZcmna4Zaa84nSevIkERKkHGaQoKO0NJGhVGJXkp2ap9TnnCtIk2BKuQdP+6cMPJfvE7Cr9jHQIDAQAB";

/// ECR's API and the metadata service of a machine. It gives passwords `pw-1`, `pw-2` and so on.
pub(crate) async fn aws() -> Scripted {
    let given = std::sync::atomic::AtomicU32::new(0);
    Scripted::start(move |request| {
        let expiry = "2099-01-01T00:00:00Z";
        match request.uri.path() {
            "/latest/api/token" => error(405), // it is to be asked by PUT
            _ if !verified(request) => json_reply(400, &json!({"__type": "InvalidSignatureException", "message": expiry})),
            _ => {
                let number = given.fetch_add(1, std::sync::atomic::Ordering::SeqCst) + 1;
                let token = STANDARD.encode(format!("AWS:pw-{number}"));
                let ends = now() + 43_200;
                let one = json!({"authorizationToken": token, "expiresAt": ends, "proxyEndpoint": "https://x"});
                json_reply(200, &json!({"authorizationData": [one]}))
            }
        }
    })
    .await
}

/// Checks a request's signature as AWS does it (Signature Version 4).
fn verified(request: &Parts) -> bool {
    let header = |name: &str| {
        request.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    };
    let field = |name: &str| {
        let authorization = header("authorization").trim_start_matches("AWS4-HMAC-SHA256 ");
        let mut fields = authorization.split(", ");
        fields.find_map(|field| field.strip_prefix(name)?.strip_prefix('=')).unwrap_or_default()
    };
    let Some((key, scope)) = field("Credential").split_once('/') else { return false };
    let signed = field("SignedHeaders");
    if key != AWS_KEY.0
        || !["host", "x-amz-date", "x-amz-target"].iter().all(|h| signed.contains(h))
    {
        return false;
    }
    let headers: String =
        signed.split(';').map(|name| format!("{name}:{}\n", header(name).trim())).collect();
    let canonical = format!(
        "{}\n{}\n{}\n{headers}\n{signed}\n{}",
        request.method,
        request.uri.path(),
        request.uri.query().unwrap_or_default(),
        hex(digest::digest(&digest::SHA256, &posted(request)).as_ref()),
    );
    let hash = hex(digest::digest(&digest::SHA256, canonical.as_bytes()).as_ref());
    let text = format!("AWS4-HMAC-SHA256\n{}\n{scope}\n{hash}", header("x-amz-date"));
    let mut key = format!("AWS4{}", AWS_KEY.1).into_bytes();
    for part in scope.split('/').chain([text.as_str()]) {
        let signing = hmac::Key::new(hmac::HMAC_SHA256, &key);
        key = hmac::sign(&signing, part.as_bytes()).as_ref().to_vec();
    }
    hex(&key) == field("Signature") && scope.ends_with("/eu-central-1/ecr/aws4_request")
}

/// The key file of a service account whose token service is `google`.
pub(crate) fn google_key_file(google: &Scripted) -> String {
    json!({
        "type": "service_account",
        "project_id": "tests",
        "private_key_id": "1",
        "private_key": GOOGLE_KEY,
        "client_email": "puller@tests.iam.gserviceaccount.com",
        "token_uri": format!("{}/oauth2/token", google.url()),
    })
    .to_string()
}

/// Google's token service and metadata server: both give `ya29.access`.
pub(crate) async fn google() -> Scripted {
    Scripted::start(|request| {
        let token =
            json!({"access_token": "ya29.access", "expires_in": 3599, "token_type": "Bearer"});
        let flavor = request.headers.get("metadata-flavor").is_some_and(|value| value == "Google");
        match request.uri.path() {
            "/oauth2/token" if asserted(&posted(request)) => json_reply(200, &token),
            "/computeMetadata/v1/instance/service-accounts/default/token" if flavor => {
                json_reply(200, &token)
            }
            _ => json_reply(403, &json!({"error": "invalid_grant"})),
        }
    })
    .await
}

/// Whether a form holds a JWT signed with the service account's key.
fn asserted(form: &Bytes) -> bool {
    let Some((_, jwt)) = form_urlencoded::parse(form).find(|(name, _)| name == "assertion") else {
        return false;
    };
    let Some((text, signed)) = jwt.rsplit_once('.') else { return false };
    let decode = |text: &str| {
        URL_SAFE_NO_PAD.decode(text).or_else(|_| URL_SAFE.decode(text)).unwrap_or_default()
    };
    let public = STANDARD.decode(GOOGLE_PUBLIC).expect("our own constant");
    let key = signature::UnparsedPublicKey::new(&signature::RSA_PKCS1_2048_8192_SHA256, public);
    let claims = text.split_once('.').map(|(_, claims)| decode(claims)).unwrap_or_default();
    let claims: Value = serde_json::from_slice(&claims).unwrap_or_default();
    let fresh = claims["exp"].as_u64().is_some_and(|exp| exp > now());
    let whose = claims["iss"] == "puller@tests.iam.gserviceaccount.com";
    key.verify(text.as_bytes(), &decode(signed)).is_ok() && fresh && whose
}

/// The managed identity of an App Service, which gives `entra-token` to who knows `header`.
pub(crate) async fn azure() -> Scripted {
    Scripted::start(|request| {
        let known = request.headers.get("x-identity-header").is_some_and(|value| value == "header");
        let query = request.uri.query().unwrap_or_default();
        if !known || !query.contains("containerregistry.azure.net") {
            return json_reply(400, &json!({"error": "invalid_request"}));
        }
        let ends = (now() + 3600).to_string();
        json_reply(200, &json!({"access_token": "entra-token", "expires_on": ends, "token_type": "Bearer", "resource": "x"}))
    })
    .await
}

pub(crate) fn json_reply(status: u16, body: &Value) -> Reply {
    Reply::text(status, "application/json", &body.to_string())
}

fn now() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::SystemTime::UNIX_EPOCH);
    since.expect("a clock after 1970").as_secs()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
