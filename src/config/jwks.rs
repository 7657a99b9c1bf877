//! Somebody else's public keys: a JWKS document (RFC 7517), of which only what is needed is read.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;

/// Some dozens of keys are some kilobytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// A public key; its kind decides the one algorithm that it is used with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Key {
    /// RS256.
    Rsa {
        /// The modulus.
        n: Vec<u8>,
        /// The exponent.
        e: Vec<u8>,
    },
    /// ES256: the point, uncompressed.
    P256(Vec<u8>),
    /// `EdDSA`.
    Ed25519(Vec<u8>),
}

impl Key {
    /// Every algorithm that some key is used with.
    pub const ALGORITHMS: [&str; 3] = ["RS256", "ES256", "EdDSA"];

    /// The only algorithm it is used with.
    pub fn algorithm(&self) -> &'static str {
        match self {
            Self::Rsa { .. } => "RS256",
            Self::P256(_) => "ES256",
            Self::Ed25519(_) => "EdDSA",
        }
    }
}

/// A key and its id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// `kid`.
    pub id: Option<String>,
    /// The key.
    pub key: Key,
}

#[derive(Deserialize)]
struct Document {
    keys: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    kty: String,
    kid: Option<String>,
    #[serde(rename = "use")]
    usage: Option<String>,
    alg: Option<String>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

/// Reads a file of keys.
///
/// # Errors
/// One sentence that says what is wrong and what to do.
#[expect(clippy::disallowed_methods, reason = "a few kilobytes, at start and when they change")]
pub fn load(path: &Path) -> Result<Vec<Named>, String> {
    let fail = |why: &dyn std::fmt::Display| {
        format!(
            "the keys of {} cannot be used ({why}); write the path of a JWKS document",
            path.display()
        )
    };
    let about = std::fs::metadata(path).map_err(|e| fail(&e))?;
    if !about.is_file() || about.len() > FILE_BYTES_MAX {
        return Err(fail(&"it is no file of a fitting size"));
    }
    parse(&std::fs::read(path).map_err(|e| fail(&e))?).map_err(|why| fail(&why))
}

/// Reads the document; keys for other purposes and of other kinds are left out.
///
/// # Errors
/// Why none is left.
pub fn parse(text: &[u8]) -> Result<Vec<Named>, String> {
    let document: Document = serde_json::from_slice(text).map_err(|e| e.to_string())?;
    let keys: Vec<Named> = document.keys.into_iter().filter_map(Entry::read).collect();
    if keys.is_empty() {
        return Err("it holds no key for RS256, ES256 or EdDSA".to_owned());
    }
    Ok(keys)
}

impl Entry {
    fn read(self) -> Option<Named> {
        if self.usage.as_deref().is_some_and(|usage| usage != "sig") {
            return None;
        }
        let bytes = |text: Option<String>| URL_SAFE_NO_PAD.decode(text?).ok();
        let key = match (self.kty.as_str(), self.crv.as_deref()) {
            ("RSA", _) => Key::Rsa { n: bytes(self.n)?, e: bytes(self.e)? },
            ("EC", Some("P-256")) => {
                let (x, y) = (bytes(self.x)?, bytes(self.y)?);
                let whole = x.len() == 32 && y.len() == 32;
                whole.then(|| Key::P256([&[4], &x[..], &y[..]].concat()))?
            }
            ("OKP", Some("Ed25519")) => Key::Ed25519(bytes(self.x).filter(|x| x.len() == 32)?),
            _ => return None,
        };
        let fits = self.alg.as_deref().is_none_or(|alg| alg == key.algorithm());
        fits.then_some(Named { id: self.kid, key })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_public_keys_for_signatures_are_taken() {
        let x = URL_SAFE_NO_PAD.encode([1; 32]);
        let ed = format!(r#"{{"kty":"OKP","crv":"Ed25519","kid":"a","x":"{x}"}}"#);
        let all = format!(
            r#"{{"keys":[{ed},{{"kty":"oct","k":"AAAA"}},{{"kty":"OKP","crv":"Ed25519","use":"enc","x":"{x}"}},{{"kty":"OKP","crv":"Ed25519","alg":"RS256","x":"{x}"}},{{"kty":"EC","crv":"P-256","x":"{x}","y":"AA"}}]}}"#
        );
        let keys = parse(all.as_bytes()).unwrap();
        assert_eq!(keys, [Named { id: Some("a".into()), key: Key::Ed25519(vec![1; 32]) }]);
        for bad in ["", "{}", r#"{"keys":[]}"#, r#"{"keys":[{"kty":"oct","k":"AAAA"}]}"#] {
            assert!(parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_document_makes_it_panic(text in "[ -~]{0,120}") {
            let _ = parse(text.as_bytes());
        }
    }
}
