//! Tokens of somebody else's token service: believed by its public keys, for our audience only.
//!
//! The kind of a key decides the algorithm; the token's own word must agree and decides nothing.
//! Keys, addresses of keys and certificates inside a token are never read.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::signature::{self, RsaPublicKeyComponents, UnparsedPublicKey};
use serde::Deserialize;

use crate::config::Jwt;
use crate::config::jwks::{self, Key, Named};
use crate::error::{Error, Kind, Result};
use crate::pass::Access;
use crate::rules::Actor;
use crate::upstream::keys::Source;
use crate::watched::Watched;

/// The longest token that is looked at.
const TOKEN_BYTES_MAX: usize = 16 * 1024;

/// Entries of an access list that are looked at.
const ACCESS_MAX: usize = 256;

/// Clocks may differ by this.
const LEEWAY_SECONDS: u64 = 30;

/// Keys are fetched anew after this, so that one that was withdrawn is believed no longer.
const FETCH_EVERY: Duration = Duration::from_secs(3600);

/// Somebody else's token service.
#[derive(Debug)]
pub struct Issuer {
    settings: Jwt,
    keys: ArcSwap<Vec<Named>>,
    watched: Watched,
    /// Where the keys are fetched from, unless they are in a file.
    source: Option<Source>,
    /// When they were last asked for, whatever came of it; held while they are.
    asked: tokio::sync::Mutex<Option<Instant>>,
}

/// What such a token says.
#[derive(Debug)]
pub struct Said {
    /// Who it is.
    pub actor: Actor,
    /// What it is limited to, if anything.
    pub access: Option<Vec<Access>>,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    crit: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
struct Claims {
    iss: String,
    aud: Audience,
    sub: String,
    iat: u64,
    exp: u64,
    nbf: Option<u64>,
    #[serde(default)]
    groups: Vec<String>,
    access: Option<Vec<Access>>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Many(Vec<String>),
}

impl Issuer {
    /// Reads the keys of a file. Those of a URL come with the first token, or by [`Issuer::tend`].
    ///
    /// # Errors
    /// One sentence that says what is wrong with them.
    pub fn load(settings: &Jwt) -> Result<Self, String> {
        let source = Source::new(settings).map_err(|error| error.to_string())?;
        let watched = Watched::new(vec![settings.jwks.clone()]);
        let keys = match &source {
            Some(_) => Vec::new(),
            None => jwks::load(&settings.jwks)?,
        };
        Ok(Self { watched, source, ..Self::of(settings.clone(), keys) })
    }

    /// A service with these keys alone, for those who try what it believes.
    pub(crate) fn of(settings: Jwt, keys: Vec<Named>) -> Self {
        Self {
            settings,
            keys: ArcSwap::from_pointee(keys),
            watched: Watched::new(Vec::new()),
            source: None,
            asked: tokio::sync::Mutex::new(None),
        }
    }

    /// Whether these are its settings, and its keys come from a URL.
    pub fn is_fetching(&self, settings: &Jwt) -> bool {
        self.source.is_some() && self.settings == *settings
    }

    /// Fetches the keys anew each hour, and soon again where that failed, for as long as somebody
    /// goes by them. Ends at once where they do not come from a URL.
    pub async fn tend(of: Weak<Self>) {
        while let Some(issuer) = of.upgrade().filter(|issuer| issuer.source.is_some()) {
            let fresh = issuer.fetch().await;
            let rest = if fresh { FETCH_EVERY } else { issuer.settings.fetch_after.get() };
            drop(issuer);
            tokio::time::sleep(rest).await;
        }
    }

    /// Fetches the keys, unless that was done a moment ago. Those known before stay where it fails.
    /// Returns whether there are fresh ones. Cancel safe.
    async fn fetch(&self) -> bool {
        let Some(source) = &self.source else { return false };
        let mut asked = self.asked.lock().await;
        if asked.is_some_and(|at| at.elapsed() < self.settings.fetch_after.get()) {
            return false;
        }
        // Noted first: whoever leaves in the middle must not have it begun again at once.
        *asked = Some(Instant::now());
        match source.fetch().await {
            Ok(keys) => {
                self.keys.store(Arc::new(keys));
                true
            }
            Err(error) => {
                let known = self.keys.load().len();
                tracing::warn!(?error, known, "keys of tokens cannot be fetched; those known stay");
                false
            }
        }
    }

    /// Reads a token as [`Issuer::read`] does; where it names a key that is not known, the keys are
    /// fetched first, if they have not been lately.
    ///
    /// # Errors
    /// `Unauthorized` for whatever is not to be believed.
    pub async fn believe(&self, token: &str, now: u64) -> Result<Said> {
        if self.source.is_some() && self.lacks_key(token) {
            self.fetch().await;
        }
        self.read(token, now)
    }

    /// Whether a token could be good if only there were more keys.
    fn lacks_key(&self, token: &str) -> bool {
        let header = token.split_once('.').filter(|_| token.len() <= TOKEN_BYTES_MAX);
        let header = header.and_then(|(header, _)| URL_SAFE_NO_PAD.decode(header).ok());
        let header = header.and_then(|h| serde_json::from_slice::<Header>(&h).ok());
        header.is_some_and(|header| {
            let known = self.keys.load().iter().any(|named| named.fits(&header));
            !known && Key::ALGORITHMS.contains(&header.alg.as_str())
        })
    }

    /// Reads the keys again where the file has changed, or in any case with `force`. Blocks.
    ///
    /// # Errors
    /// One sentence; the keys known before stay.
    pub fn reload(&self, force: bool) -> Result<bool, String> {
        if self.source.is_some() {
            return Ok(false);
        }
        self.watched.look(force, || {
            self.keys.store(Arc::new(jwks::load(&self.settings.jwks)?));
            Ok(())
        })
    }

    /// Reads a token at `now`, in seconds since 1970.
    ///
    /// # Errors
    /// `Unauthorized` for whatever is not to be believed.
    pub fn read(&self, token: &str, now: u64) -> Result<Said> {
        let refuse = || Error::new(Kind::Unauthorized, "the token is not of a service known here");
        if token.len() > TOKEN_BYTES_MAX {
            return Err(refuse());
        }
        let (signed, tag) = token.rsplit_once('.').ok_or_else(refuse)?;
        let (header, claims) = signed.split_once('.').ok_or_else(refuse)?;
        let decode = |text: &str| URL_SAFE_NO_PAD.decode(text).map_err(|_| refuse());
        let header: Header = serde_json::from_slice(&decode(header)?).map_err(|_| refuse())?;
        let tag = decode(tag)?;
        let keys = self.keys.load();
        let mut fitting = keys.iter().filter(|named| named.fits(&header));
        if header.crit.is_some() || !fitting.any(|named| is_signed(&named.key, signed, &tag)) {
            return Err(refuse());
        }
        let claims: Claims = serde_json::from_slice(&decode(claims)?).map_err(|_| refuse())?;
        let ours = match &claims.aud {
            Audience::One(one) => *one == self.settings.audience,
            Audience::Many(many) => many.contains(&self.settings.audience),
        };
        if !ours || claims.iss != self.settings.issuer {
            return Err(Error::new(Kind::Unauthorized, "the token is for another service"));
        }
        let begun = claims.nbf.unwrap_or(0).max(claims.iat) <= now + LEEWAY_SECONDS;
        if !begun || claims.exp <= now {
            return Err(Error::new(Kind::Unauthorized, "the token has expired; log in again"));
        }
        if claims.access.as_ref().is_some_and(|access| access.len() > ACCESS_MAX) {
            return Err(Error::new(Kind::Unauthorized, "the token opens more than can be read"));
        }
        let user = (!claims.sub.is_empty()).then(|| claims.sub.as_str().into());
        let groups = claims.groups.iter().map(|group| group.as_str().into()).collect();
        Ok(Said { actor: Actor { user, groups }, access: claims.access })
    }
}

impl Named {
    /// Whether a token with this header may be signed with it. The key decides the algorithm.
    fn fits(&self, header: &Header) -> bool {
        self.key.algorithm() == header.alg && (header.kid.is_none() || header.kid == self.id)
    }
}

fn is_signed(key: &Key, signed: &str, tag: &[u8]) -> bool {
    let message = signed.as_bytes();
    match key {
        Key::Rsa { n, e } => RsaPublicKeyComponents { n, e }
            .verify(&signature::RSA_PKCS1_2048_8192_SHA256, message, tag)
            .is_ok(),
        Key::P256(point) => UnparsedPublicKey::new(&signature::ECDSA_P256_SHA256_FIXED, point)
            .verify(message, tag)
            .is_ok(),
        Key::Ed25519(point) => {
            UnparsedPublicKey::new(&signature::ED25519, point).verify(message, tag).is_ok()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use ring::rand::SystemRandom;
    use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair};

    const NOW: u64 = 1_790_000_000;

    fn issuer(keys: Vec<Named>) -> Issuer {
        let settings = Jwt {
            jwks: "/nowhere".into(),
            issuer: "https://issuer.test".into(),
            audience: "mirror".into(),
            ca: None,
            private: false,
            fetch_after: crate::config::units::Span::secs(30),
        };
        Issuer::of(settings, keys)
    }

    fn body(header: &str, change: impl Fn(&mut serde_json::Value)) -> String {
        let mut claims = serde_json::json!({
            "iss": "https://issuer.test", "aud": ["other", "mirror"], "sub": "ci", "iat": NOW,
            "exp": NOW + 60, "groups": ["builders"],
        });
        change(&mut claims);
        let encode = |text: &str| URL_SAFE_NO_PAD.encode(text);
        format!("{}.{}", encode(header), encode(&claims.to_string()))
    }

    fn ed25519() -> (Ed25519KeyPair, Issuer) {
        let pair = Ed25519KeyPair::from_seed_unchecked(&[9; 32]).unwrap();
        let key = Key::Ed25519(pair.public_key().as_ref().to_vec());
        (pair, issuer(vec![Named { id: Some("k".into()), key }]))
    }

    fn sign(pair: &Ed25519KeyPair, body: &str) -> String {
        format!("{body}.{}", URL_SAFE_NO_PAD.encode(pair.sign(body.as_bytes())))
    }

    #[test]
    fn tokens_of_the_service_are_believed() {
        let (pair, issuer) = ed25519();
        let token = sign(&pair, &body(r#"{"alg":"EdDSA","kid":"k"}"#, |_| {}));
        let said = issuer.read(&token, NOW).unwrap();
        assert_eq!(said.actor.user.as_deref(), Some("ci"));
        assert_eq!(&*said.actor.groups[0], "builders");
        let random = SystemRandom::new();
        let pkcs8 =
            EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
        let pair =
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8.as_ref(), &random)
                .unwrap();
        let key = Key::P256(pair.public_key().as_ref().to_vec());
        let issuer = self::issuer(vec![Named { id: None, key }]);
        let body = body(r#"{"alg":"ES256"}"#, |_| {});
        let tag = pair.sign(&random, body.as_bytes()).unwrap();
        let token = format!("{body}.{}", URL_SAFE_NO_PAD.encode(tag));
        assert!(issuer.read(&token, NOW).is_ok());
    }

    #[test]
    fn all_others_are_refused() {
        let (pair, issuer) = ed25519();
        let good = r#"{"alg":"EdDSA","kid":"k"}"#;
        let set = |key: &'static str, value: serde_json::Value| {
            sign(&pair, &body(good, |claims| claims[key] = value.clone()))
        };
        let stranger = Ed25519KeyPair::from_seed_unchecked(&[8; 32]).unwrap();
        let own = URL_SAFE_NO_PAD.encode(stranger.public_key().as_ref());
        let embedded =
            format!(r#"{{"alg":"EdDSA","jwk":{{"kty":"OKP","crv":"Ed25519","x":"{own}"}}}}"#);
        let public = pair.public_key().as_ref();
        let confused = {
            // The public key taken for the secret of an HMAC.
            let body = body(r#"{"alg":"HS256","kid":"k"}"#, |_| {});
            let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, public);
            format!("{body}.{}", URL_SAFE_NO_PAD.encode(ring::hmac::sign(&key, body.as_bytes())))
        };
        for token in [
            sign(&stranger, &body(good, |_| {})),
            sign(&stranger, &body(&embedded, |_| {})),
            sign(&pair, &body(r#"{"alg":"none","kid":"k"}"#, |_| {})),
            sign(&pair, &body(r#"{"alg":"ES256","kid":"k"}"#, |_| {})),
            sign(&pair, &body(r#"{"alg":"EdDSA","kid":"../../dev/null"}"#, |_| {})),
            sign(&pair, &body(r#"{"alg":"EdDSA","kid":"k","crit":["x"]}"#, |_| {})),
            format!("{}.", body(r#"{"alg":"none"}"#, |_| {})),
            confused,
            set("aud", "other".into()),
            set("iss", "https://evil.test".into()),
            set("exp", NOW.into()),
            set("nbf", (NOW + 900).into()),
            set("iat", serde_json::Value::Null),
            set(
                "access",
                vec![serde_json::json!({"type": "repository", "name": "a", "actions": []}); 300]
                    .into(),
            ),
            "x".repeat(100_000),
            String::new(),
        ] {
            let refused = issuer.read(&token, NOW).unwrap_err();
            assert_eq!(refused.kind(), Kind::Unauthorized, "{token:.80}");
        }
    }

    proptest! {
        #[test]
        fn no_token_makes_it_panic(token in "[ -~]{0,200}") {
            prop_assert!(ed25519().1.read(&token, NOW).is_err());
        }
    }
}
