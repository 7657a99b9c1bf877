//! Digests: the names of immutable content, and the hashing that proves them.

use std::fmt;
use std::str::FromStr;

use sha2::Digest as _;

use crate::error::{Error, Kind};

/// The hash algorithms that are accepted. Others are refused: they could not be checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Algorithm {
    /// What nearly all content uses.
    Sha256,
    /// Allowed by the specification, used by digest only.
    Sha512,
}

impl Algorithm {
    /// The word before the colon, and the folder name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    /// The algorithm behind a word.
    pub fn parse(word: &str) -> Option<Self> {
        [Self::Sha256, Self::Sha512].into_iter().find(|a| a.as_str() == word)
    }

    /// Length of the digest in bytes.
    fn len(self) -> usize {
        match self {
            Self::Sha256 => 32,
            Self::Sha512 => 64,
        }
    }
}

/// A digest that was parsed, hence safe in a path or a URL.
///
/// * the algorithm is known,
/// * the encoded part has exactly its length and is lower-case hexadecimal.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest {
    algorithm: Algorithm,
    /// Filled with zeros behind a sha256.
    bytes: [u8; 64],
}

impl Digest {
    /// Reads `algorithm:hex`.
    ///
    /// # Errors
    /// `DigestInvalid` for everything that is not exactly a sha256 or sha512 digest.
    pub fn parse(text: &str) -> Result<Self, Error> {
        Self::read(text).ok_or_else(|| {
            Error::new(Kind::DigestInvalid, "digest is not sha256:<64 hex> or sha512:<128 hex>")
        })
    }

    fn read(text: &str) -> Option<Self> {
        let (word, hex) = text.split_once(':')?;
        let algorithm = match word {
            "sha256" => Algorithm::Sha256,
            "sha512" => Algorithm::Sha512,
            _ => return None,
        };
        if hex.len() != 2 * algorithm.len() {
            return None;
        }
        let mut bytes = [0; 64];
        for (byte, pair) in bytes.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
            *byte = nibble(pair[0])? << 4 | nibble(pair[1])?;
        }
        Some(Self { algorithm, bytes })
    }

    /// The digest of content that is wholly in memory.
    pub fn of(algorithm: Algorithm, content: &[u8]) -> Self {
        let mut hasher = Hasher::new(algorithm);
        hasher.update(content);
        hasher.finish()
    }

    /// The raw bytes in halves of 32; a sha256 has no second one.
    pub fn halves(&self) -> ([u8; 32], Option<[u8; 32]>) {
        let (mut first, mut second) = ([0; 32], [0; 32]);
        first.copy_from_slice(&self.bytes[..32]);
        second.copy_from_slice(&self.bytes[32..]);
        (first, (self.algorithm == Algorithm::Sha512).then_some(second))
    }

    /// The digest of which these are the halves.
    pub fn from_halves(first: &[u8; 32], second: Option<&[u8; 32]>) -> Self {
        let mut bytes = [0; 64];
        bytes[..32].copy_from_slice(first);
        if let Some(second) = second {
            bytes[32..].copy_from_slice(second);
        }
        let algorithm = if second.is_some() { Algorithm::Sha512 } else { Algorithm::Sha256 };
        Self { algorithm, bytes }
    }

    /// Which algorithm proves this digest.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The first half of a sha256, which is enough to tell contents apart in a set in memory.
    pub fn short(&self) -> u128 {
        self.bytes[..16].iter().fold(0, |n, b| n << 8 | u128::from(*b))
    }

    /// The part behind the colon.
    pub fn hex(&self) -> String {
        let mut out = String::with_capacity(2 * self.algorithm.len());
        push_hex(&mut out, &self.bytes[..self.algorithm.len()]);
        out
    }
}

fn nibble(c: u8) -> Option<u8> {
    match c {
        b'0'..=b'9' => Some(c - b'0'),
        b'a'..=b'f' => Some(c - b'a' + 10),
        _ => None,
    }
}

fn push_hex(out: &mut String, bytes: &[u8]) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    for b in bytes {
        out.push(char::from(HEX[usize::from(b >> 4)]));
        out.push(char::from(HEX[usize::from(b & 15)]));
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = String::with_capacity(7 + 2 * self.algorithm.len());
        out.push_str(self.algorithm.as_str());
        out.push(':');
        push_hex(&mut out, &self.bytes[..self.algorithm.len()]);
        f.write_str(&out)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = Error;
    fn from_str(s: &str) -> Result<Self, Error> {
        Self::parse(s)
    }
}

impl serde::Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(d)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

/// Hashes content piece by piece.
#[derive(Clone)]
pub struct Hasher(State);

/// sha2 is the fastest where the processor has SHA instructions; without them its portable code
/// is a third of ring's speed. For sha512, ring is the faster one everywhere.
#[derive(Clone)]
enum State {
    Sha2(sha2::Sha256),
    Ring(Algorithm, ring::digest::Context),
}

impl Hasher {
    /// A hasher that has seen nothing.
    pub fn new(algorithm: Algorithm) -> Self {
        Self(match algorithm {
            Algorithm::Sha256 if has_sha_instructions() => State::Sha2(sha2::Sha256::new()),
            Algorithm::Sha256 => {
                State::Ring(algorithm, ring::digest::Context::new(&ring::digest::SHA256))
            }
            Algorithm::Sha512 => {
                State::Ring(algorithm, ring::digest::Context::new(&ring::digest::SHA512))
            }
        })
    }

    /// Takes in the next piece.
    pub fn update(&mut self, piece: &[u8]) {
        match &mut self.0 {
            State::Sha2(h) => h.update(piece),
            State::Ring(_, h) => h.update(piece),
        }
    }

    /// The digest of all pieces.
    pub fn finish(self) -> Digest {
        let mut bytes = [0; 64];
        let algorithm = match self.0 {
            State::Sha2(h) => {
                bytes[..32].copy_from_slice(&h.finalize());
                Algorithm::Sha256
            }
            State::Ring(algorithm, h) => {
                bytes[..algorithm.len()].copy_from_slice(h.finish().as_ref());
                algorithm
            }
        };
        Digest { algorithm, bytes }
    }
}

impl fmt::Debug for Hasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hasher")
    }
}

#[cfg(target_arch = "x86_64")]
fn has_sha_instructions() -> bool {
    std::arch::is_x86_feature_detected!("sha")
}

#[cfg(target_arch = "aarch64")]
fn has_sha_instructions() -> bool {
    std::arch::is_aarch64_feature_detected!("sha2")
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn has_sha_instructions() -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn known_digests_come_out_right() {
        assert_eq!(Digest::of(Algorithm::Sha256, b"").to_string(), EMPTY);
        assert!(Digest::of(Algorithm::Sha512, b"abc").to_string().starts_with("sha512:ddaf35a1"));
    }

    #[test]
    fn the_two_implementations_agree() {
        let mut ring = Hasher(State::Ring(
            Algorithm::Sha256,
            ring::digest::Context::new(&ring::digest::SHA256),
        ));
        let mut sha2 = Hasher(State::Sha2(sha2::Sha256::new()));
        for piece in [&b"one"[..], b"", b"two"] {
            ring.update(piece);
            sha2.update(piece);
        }
        assert_eq!(ring.finish(), sha2.finish());
    }

    #[test]
    fn hostile_digests_are_refused() {
        let upper = EMPTY.to_uppercase();
        let long = format!("{EMPTY}0");
        for text in [
            "",
            ":",
            "sha256",
            "sha256:",
            "sha256:..",
            "sha256:../../etc/passwd",
            &EMPTY[..70],
            &long,
            &upper,
            "md5:d41d8cd98f00b204e9800998ecf8427e",
            "sha256:sha256:",
            "sha512:00",
        ] {
            assert_eq!(Digest::parse(text).unwrap_err().kind(), Kind::DigestInvalid, "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_parses_prints_the_same(hex in "[0-9a-f]{64}") {
            let text = format!("sha256:{hex}");
            prop_assert_eq!(Digest::parse(&text).unwrap().to_string(), text);
        }

        #[test]
        fn nothing_makes_it_panic(text in ".*") {
            let _ = Digest::parse(&text);
        }
    }
}
