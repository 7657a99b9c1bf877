//! Our own bearer tokens: short-lived, scoped, signed. Pure: time and randomness are passed in.
//!
//! They are JWTs of one form, signed with HMAC-SHA256 by ring, which the tree has anyway. A library
//! for JWTs brings what is not wanted here: the choice of an algorithm by whoever made the token,
//! keys inside tokens, key ids. The header is compared with ours as text, so none of these is read.
//!
//! A token may carry a caller's credentials for one upstream, sealed with AES-256-GCM: they are kept
//! nowhere here, and are of no use to whoever takes the token but for the token's own life.

use std::fmt;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::{aead, hkdf, hmac};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::error::{Error, Kind, Result};

/// `service` in our challenges, `aud` and `iss` in our tokens: one for all repositories.
pub const SERVICE: &str = "pierhead";

/// The only header a token of ours has.
const HEADER: &str = r#"{"alg":"HS256","typ":"JWT"}"#;

/// The longest token that is looked at.
const TOKEN_BYTES_MAX: usize = 16 * 1024;

/// The longest life that is believed, whatever a token says of itself.
const LIFE_SECONDS_MAX: u64 = 300;

/// Clocks of replicas may differ by this.
const LEEWAY_SECONDS: u64 = 30;

/// A name and a secret for an upstream. `Debug` shows neither; dropped, the secret is wiped.
#[derive(Clone)]
pub struct Login {
    /// The upstream that it is for, and no other.
    pub upstream: Arc<str>,
    /// The name.
    pub username: Zeroizing<String>,
    /// The secret.
    pub password: Zeroizing<String>,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Login(for {})", self.upstream)
    }
}

/// A repository and what may be done to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Access {
    /// `repository`.
    #[serde(rename = "type")]
    pub kind: String,
    /// As it stands in the request's path.
    pub name: String,
    /// `pull`, `push`, `delete`, or `*`.
    pub actions: Vec<String>,
}

/// What a token says.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claims {
    iss: String,
    aud: String,
    /// The user; empty for somebody who has not logged in.
    pub sub: String,
    /// How the user logged in.
    pub by: By,
    /// A hash of the user's entry in the file of users, as it was then: see [`Keys::mark`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    entry: Option<String>,
    iat: u64,
    exp: u64,
    /// What it opens, as was asked for; rules and rights are looked at again when it is used.
    pub access: Vec<Access>,
    /// The caller's own credentials, sealed, and for which upstream they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sealed: Option<(String, String)>,
}

/// How a user logged in; what is gone there is gone here, tokens or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum By {
    /// Not at all.
    Nothing,
    /// By name and password.
    Htpasswd,
    /// By a client certificate.
    Certificate,
}

/// What a token is made of.
#[derive(Debug)]
pub struct Grant<'a> {
    /// The user, if any.
    pub user: Option<&'a str>,
    /// How the user logged in.
    pub by: By,
    /// The user's entry in the file of users, if that is where the password stands.
    pub entry: Option<&'a str>,
    /// What is asked for.
    pub access: Vec<Access>,
    /// The caller's own credentials, if any.
    pub login: Option<&'a Login>,
}

/// The keys of one deployment.
pub struct Keys {
    sign: hmac::Key,
    seal: aead::LessSafeKey,
    header: String,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keys")
    }
}

impl Keys {
    /// Keys from one secret of at least 32 bytes.
    ///
    /// # Errors
    /// `Internal` where ring refuses, which it does not.
    pub fn new(secret: &[u8]) -> Result<Self> {
        struct Length;
        impl hkdf::KeyType for Length {
            fn len(&self) -> usize {
                32
            }
        }
        let extracted = hkdf::Salt::new(hkdf::HKDF_SHA256, b"pierhead tokens 1").extract(secret);
        let derive = |what: &'static [u8]| -> Result<Zeroizing<[u8; 32]>> {
            let mut key = Zeroizing::new([0; 32]);
            let info = [what];
            let okm = extracted.expand(&info, Length).map_err(|_| broken("derived"))?;
            okm.fill(&mut *key).map_err(|_| broken("derived"))?;
            Ok(key)
        };
        let seal = aead::UnboundKey::new(&aead::AES_256_GCM, &*derive(b"seal")?)
            .map_err(|_| broken("made"))?;
        Ok(Self {
            sign: hmac::Key::new(hmac::HMAC_SHA256, &*derive(b"sign")?),
            seal: aead::LessSafeKey::new(seal),
            header: URL_SAFE_NO_PAD.encode(HEADER),
        })
    }

    /// Makes a token. `now` is in seconds since 1970, `nonce` random.
    ///
    /// # Errors
    /// `Internal` where ring refuses, which it does not.
    pub fn issue(&self, grant: Grant<'_>, now: u64, life: u64, nonce: [u8; 12]) -> Result<String> {
        let sealed = grant.login.map(|login| self.seal(login, nonce)).transpose()?;
        let claims = Claims {
            iss: SERVICE.to_owned(),
            aud: SERVICE.to_owned(),
            sub: grant.user.unwrap_or_default().to_owned(),
            by: grant.by,
            entry: grant.entry.map(|entry| self.mark(entry)),
            iat: now,
            exp: now + life.min(LIFE_SECONDS_MAX),
            access: grant.access,
            sealed,
        };
        let claims = serde_json::to_vec(&claims)
            .map_err(|e| Error::internal("a token cannot be written", e))?;
        let mut token = format!("{}.{}", self.header, URL_SAFE_NO_PAD.encode(claims));
        let tag = hmac::sign(&self.sign, token.as_bytes());
        token.push('.');
        token.push_str(&URL_SAFE_NO_PAD.encode(tag));
        Ok(token)
    }

    /// Reads a token at `now`.
    ///
    /// # Errors
    /// `Unauthorized` for whatever is not ours, or not in force now.
    pub fn read(&self, token: &str, now: u64) -> Result<Claims> {
        let refuse = |why: &str| Error::new(Kind::Unauthorized, format!("the token {why}"));
        let foreign = || refuse("is not of this service; log in again");
        if token.len() > TOKEN_BYTES_MAX {
            return Err(refuse("is too long"));
        }
        let (signed, tag) = token.rsplit_once('.').ok_or_else(foreign)?;
        let (header, claims) = signed.split_once('.').ok_or_else(foreign)?;
        let tag = URL_SAFE_NO_PAD.decode(tag).map_err(|_| foreign())?;
        // Compares in constant time.
        hmac::verify(&self.sign, signed.as_bytes(), &tag).map_err(|_| foreign())?;
        if header != self.header {
            return Err(foreign());
        }
        let claims = URL_SAFE_NO_PAD.decode(claims).map_err(|_| foreign())?;
        let claims: Claims = serde_json::from_slice(&claims).map_err(|_| foreign())?;
        if claims.aud != SERVICE || claims.iss != SERVICE {
            return Err(refuse("is for another service; log in again"));
        }
        let too_long = claims.exp.saturating_sub(claims.iat) > LIFE_SECONDS_MAX;
        if claims.iat > now + LEEWAY_SECONDS || too_long || claims.exp <= now {
            return Err(refuse("has expired; log in again"));
        }
        Ok(claims)
    }

    /// Whether a token was made for a user whose entry in the file of users was this one: a password
    /// that was changed ends the tokens that the old one gave.
    pub fn is_of(&self, claims: &Claims, entry: &str) -> bool {
        claims.entry.as_ref().is_some_and(|mark| *mark == self.mark(entry))
    }

    /// A hash of an entry under our own key: the token says nothing of a password's hash.
    fn mark(&self, entry: &str) -> String {
        let tag = hmac::sign(&self.sign, &apart(entry));
        URL_SAFE_NO_PAD.encode(&tag.as_ref()[..16])
    }

    /// The credentials that a token carries, if any.
    ///
    /// # Errors
    /// `Unauthorized` where they were sealed by somebody else.
    pub fn open(&self, claims: &Claims) -> Result<Option<Login>> {
        let Some((upstream, sealed)) = &claims.sealed else { return Ok(None) };
        let open = || {
            let mut bytes = Zeroizing::new(URL_SAFE_NO_PAD.decode(sealed).ok()?);
            let (nonce, body) = bytes.split_at_mut_checked(12)?;
            let nonce = aead::Nonce::try_assume_unique_for_key(nonce).ok()?;
            let plain =
                self.seal.open_in_place(nonce, aead::Aad::from(upstream.as_bytes()), body).ok()?;
            let (username, password) = std::str::from_utf8(plain).ok()?.split_once(':')?;
            Some(Login {
                upstream: upstream.as_str().into(),
                username: Zeroizing::new(username.to_owned()),
                password: Zeroizing::new(password.to_owned()),
            })
        };
        let refused = || Error::new(Kind::Unauthorized, "the token is not of this service");
        open().map(Some).ok_or_else(refused)
    }

    /// Seals a text for `whom`: nobody can read or change it without this key, and it opens for no one
    /// else. `nonce` is random.
    ///
    /// # Errors
    /// `Internal` where ring refuses, which it does not.
    pub fn seal_text(&self, text: &str, whom: &str, nonce: [u8; 12]) -> Result<String> {
        let mut bytes = text.as_bytes().to_vec();
        let aad = aead::Aad::from(apart(whom));
        let tag = self
            .seal
            .seal_in_place_separate_tag(aead::Nonce::assume_unique_for_key(nonce), aad, &mut bytes)
            .map_err(|_| broken("used"))?;
        Ok(URL_SAFE_NO_PAD.encode([&nonce[..], &bytes, tag.as_ref()].concat()))
    }

    /// The text that was sealed for `whom`; `None` where it was not, or not here.
    pub fn open_text(&self, sealed: &str, whom: &str) -> Option<String> {
        let mut bytes = URL_SAFE_NO_PAD.decode(sealed).ok()?;
        let (nonce, body) = bytes.split_at_mut_checked(12)?;
        let nonce = aead::Nonce::try_assume_unique_for_key(nonce).ok()?;
        let aad = aead::Aad::from(apart(whom));
        let plain = self.seal.open_in_place(nonce, aad, body).ok()?;
        std::str::from_utf8(plain).ok().map(str::to_owned)
    }

    fn seal(&self, login: &Login, nonce: [u8; 12]) -> Result<(String, String)> {
        let mut plain =
            Zeroizing::new(format!("{}:{}", *login.username, *login.password).into_bytes());
        let aad = aead::Aad::from(login.upstream.as_bytes());
        let tag = self
            .seal
            .seal_in_place_separate_tag(aead::Nonce::assume_unique_for_key(nonce), aad, &mut plain)
            .map_err(|_| broken("sealed"))?;
        let all = [&nonce[..], &plain, tag.as_ref()].concat();
        Ok((login.upstream.to_string(), URL_SAFE_NO_PAD.encode(all)))
    }
}

/// Whether a token's list opens a repository for an action; `names` are its spellings.
pub fn opens(list: &[Access], names: &[&str], action: &str) -> bool {
    list.iter().any(|access| {
        access.kind == "repository"
            && names.contains(&access.name.as_str())
            && access.actions.iter().any(|one| one == action || one == "*")
    })
}

/// For whom a text is sealed, told apart from the upstreams that logins are sealed for: no host has
/// this in its name.
fn apart(whom: &str) -> Vec<u8> {
    [b"\0text\0", whom.as_bytes()].concat()
}

fn broken(what: &str) -> Error {
    Error::internal(format!("a key cannot be {what}"), "ring refused")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: u64 = 1_790_000_000;

    fn keys() -> Keys {
        Keys::new(&[7; 32]).unwrap()
    }

    fn access(name: &str) -> Vec<Access> {
        let actions = vec!["pull".to_owned()];
        vec![Access { kind: "repository".to_owned(), name: name.to_owned(), actions }]
    }

    fn issue(keys: &Keys, life: u64) -> String {
        let login = Login {
            upstream: "docker.io".into(),
            username: Zeroizing::new("alice".to_owned()),
            password: Zeroizing::new("hunter2:x".to_owned()),
        };
        let grant = Grant {
            user: None,
            by: By::Nothing,
            entry: None,
            access: access("a/b"),
            login: Some(&login),
        };
        keys.issue(grant, NOW, life, [1; 12]).unwrap()
    }

    fn forge(header: &str, claims: &str, key: &[u8]) -> String {
        let body = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), body.as_bytes());
        format!("{body}.{}", URL_SAFE_NO_PAD.encode(tag))
    }

    #[test]
    fn a_token_says_what_was_put_in() {
        let keys = keys();
        let token = issue(&keys, 300);
        assert!(!token.contains("alice") && !token.contains("hunter2"));
        let claims = keys.read(&token, NOW + 299).unwrap();
        let open = |names: &[&str], action| opens(&claims.access, names, action);
        assert!(open(&["x", "a/b"], "pull"));
        assert!(!open(&["a/b"], "push") && !open(&["a"], "pull"));
        let login = keys.open(&claims).unwrap().unwrap();
        assert_eq!((login.username.as_str(), login.password.as_str()), ("alice", "hunter2:x"));
        assert!(!format!("{login:?} {claims:?}").contains("hunter2"));
    }

    #[test]
    fn tokens_end_and_never_live_longer_than_five_minutes() {
        let keys = keys();
        let refused = |token: &str, now| keys.read(token, now).unwrap_err().kind();
        assert_eq!(refused(&issue(&keys, 10), NOW + 10), Kind::Unauthorized);
        assert_eq!(refused(&issue(&keys, 100_000), NOW + 300), Kind::Unauthorized);
        assert_eq!(refused(&issue(&keys, 300), NOW - 100), Kind::Unauthorized);
    }

    #[test]
    fn tokens_of_others_are_refused() {
        let keys = keys();
        let good = issue(&keys, 300);
        let claims = format!(
            r#"{{"iss":"pierhead","aud":"pierhead","sub":"root","by":"certificate","iat":{NOW},"exp":{},"access":[]}}"#,
            NOW + 60
        );
        let (body, tag) = good.rsplit_once('.').unwrap();
        for token in [
            issue(&Keys::new(&[8; 32]).unwrap(), 300),
            forge(HEADER, &claims, &[7; 32]),
            forge(r#"{"alg":"HS256","typ":"JWT","jwk":{"kty":"oct","k":"AA"}}"#, &claims, b"\0"),
            forge(r#"{"alg":"none"}"#, &claims, b""),
            forge(r#"{"alg":"HS256","kid":"../../dev/null"}"#, &claims, b""),
            format!(
                "{}.{}.",
                URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#),
                URL_SAFE_NO_PAD.encode(&claims)
            ),
            format!("{body}x.{tag}"),
            body.to_owned(),
            "a.b.c".to_owned(),
            String::new(),
            "x".repeat(100_000),
        ] {
            assert_eq!(
                keys.read(&token, NOW).unwrap_err().kind(),
                Kind::Unauthorized,
                "{token:.80}"
            );
        }
    }

    #[test]
    fn a_token_of_ours_must_say_when_it_was_made_and_for_whom() {
        let keys = keys();
        let sign = |claims: &str| {
            let body = format!("{}.{}", keys.header, URL_SAFE_NO_PAD.encode(claims));
            let tag = hmac::sign(&keys.sign, body.as_bytes());
            format!("{body}.{}", URL_SAFE_NO_PAD.encode(tag))
        };
        let exp = NOW + 60;
        for claims in [
            format!(
                r#"{{"iss":"pierhead","aud":"pierhead","sub":"","by":"nothing","exp":{exp},"access":[]}}"#
            ),
            format!(
                r#"{{"iss":"pierhead","aud":"other","sub":"","by":"nothing","iat":{NOW},"exp":{exp},"access":[]}}"#
            ),
            format!(
                r#"{{"iss":"pierhead","aud":"pierhead","sub":"","by":"nothing","iat":{},"exp":{exp},"access":[]}}"#,
                NOW - 9000
            ),
        ] {
            assert!(keys.read(&sign(&claims), NOW).is_err(), "{claims}");
        }
    }

    #[test]
    fn credentials_are_sealed_for_their_upstream() {
        let keys = keys();
        let mut claims = keys.read(&issue(&keys, 300), NOW).unwrap();
        claims.sealed = claims.sealed.map(|(_, sealed)| ("evil.test".to_owned(), sealed));
        assert!(keys.open(&claims).is_err());
    }

    proptest! {
        #[test]
        fn no_token_makes_it_panic(token in "[ -~]{0,200}") {
            prop_assert!(keys().read(&token, NOW).is_err());
        }
    }

    #[test]
    fn a_sealed_text_opens_for_whom_it_was_sealed_alone() {
        let keys = Keys::new(&[7; 32]).unwrap();
        let sealed = keys.seal_text("secret", "a", [1; 12]).unwrap();
        assert_eq!(keys.open_text(&sealed, "a").as_deref(), Some("secret"));
        assert_eq!(keys.open_text(&sealed, "b"), None);
        assert_eq!(Keys::new(&[8; 32]).unwrap().open_text(&sealed, "a"), None);
        for at in 0..sealed.len() {
            let mut other = sealed.clone().into_bytes();
            other[at] = if other[at] == b'A' { b'B' } else { b'A' };
            let other = String::from_utf8(other).unwrap();
            assert_ne!(keys.open_text(&other, "a").as_deref(), Some("secret"), "{at}");
        }
        for rubbish in ["", "AAAA", "!", &"A".repeat(16)] {
            assert_eq!(keys.open_text(rubbish, "a"), None);
        }
    }
}
