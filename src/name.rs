//! Names: repositories, tags and references, parsed once and safe from then on.

use std::fmt;
use std::sync::Arc;

use crate::digest::Digest;
use crate::error::{Error, Kind};
use crate::limits::{NAME_BYTES_MAX, TAG_BYTES_MAX};

/// A repository's name, without registry.
///
/// * one or more components joined by `/`,
/// * a component is runs of `[a-z0-9]` joined by `.`, `_`, `__` or any number of `-`,
/// * at most 255 bytes.
///
/// So no component is empty, `.` or `..`, and none begins with `_`: safe as a path of folders, and
/// never in the way of `_tags` and `_links`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Repository(Arc<str>);

impl Repository {
    /// Reads a name.
    ///
    /// # Errors
    /// `NameInvalid` outside the grammar (distribution-spec, "Pulling manifests").
    pub fn parse(text: &str) -> Result<Self, Error> {
        let lawful = !text.is_empty()
            && text.len() <= NAME_BYTES_MAX
            && text.split('/').all(|c| is_component(c.as_bytes()));
        if lawful {
            Ok(Self(text.into()))
        } else {
            Err(Error::new(
                Kind::NameInvalid,
                "repository name is outside the specification's grammar",
            ))
        }
    }

    /// Stands for all that an upstream has shown to an anonymous caller. No client can name it.
    pub fn anyones() -> Self {
        Self("_public".into())
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Docker Hub's official images live under `library/`, which people leave out.
    #[must_use]
    pub fn with_library(self) -> Self {
        if self.0.contains('/') { self } else { Self(format!("library/{}", self.0).into()) }
    }
}

fn is_component(text: &[u8]) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let (Some(&first), Some(&last)) = (text.first(), text.last()) else { return false };
    if !plain(first) || !plain(last) {
        return false;
    }
    text.split(|&b| plain(b)).all(|joint| match joint {
        b"" | b"." | b"_" | b"__" => true,
        dashes => dashes.iter().all(|&b| b == b'-'),
    })
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A tag: `[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}`, hence safe as a file's name.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tag(Arc<str>);

impl Tag {
    /// Reads a tag.
    ///
    /// # Errors
    /// `TagInvalid` outside the grammar.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
        let bytes = text.as_bytes();
        let lawful = bytes.first().is_some_and(|&b| word(b))
            && bytes.len() <= TAG_BYTES_MAX
            && bytes.iter().all(|&b| word(b) || b == b'.' || b == b'-');
        if lawful {
            Ok(Self(text.into()))
        } else {
            Err(Error::new(Kind::TagInvalid, "tag is outside the specification's grammar"))
        }
    }

    /// The tag as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is one under which signatures, attestations and lists of referrers are kept:
    /// `sha256-<hex>`, perhaps with `.sig`, `.att` or `.sbom`.
    pub fn is_attached(&self) -> bool {
        let hex = self.0.strip_prefix("sha256-").or_else(|| self.0.strip_prefix("sha512-"));
        hex.is_some_and(|rest| rest.bytes().take(64).filter(u8::is_ascii_hexdigit).count() == 64)
    }

    /// The tag that stands in for the referrers API where a registry lacks it: the algorithm cut
    /// to 32 characters, `-`, the encoded part cut to 64 (distribution-spec, "Referrers tag schema").
    pub fn of_referrers(subject: &Digest) -> Self {
        let hex = subject.hex();
        Self(format!("{}-{}", subject.algorithm().as_str(), &hex[..64]).into())
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The name of an upload under way: 32 hexadecimal digits that nobody can guess, hence safe as a
/// file's name.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct UploadId(Arc<str>);

impl UploadId {
    /// Its length.
    pub const LETTERS: usize = 32;

    /// A name from random bytes.
    pub fn new(random: [u8; 16]) -> Self {
        Self(format!("{:032x}", u128::from_be_bytes(random)).into())
    }

    /// Reads a name.
    ///
    /// # Errors
    /// `BlobUploadUnknown`: what was never given out is not known.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let lawful = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if text.len() == Self::LETTERS && text.bytes().all(lawful) {
            return Ok(Self(text.into()));
        }
        Err(Error::new(Kind::BlobUploadUnknown, "no such upload; begin a new one"))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for UploadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for UploadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a manifest is asked by.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Reference {
    /// A name that may move.
    Tag(Tag),
    /// A name that cannot.
    Digest(Digest),
}

impl Reference {
    /// Reads a tag or a digest; a colon makes it a digest, since no tag may hold one.
    ///
    /// # Errors
    /// `DigestInvalid` or `TagInvalid`.
    pub fn parse(text: &str) -> Result<Self, Error> {
        if text.contains(':') {
            Digest::parse(text).map(Self::Digest)
        } else {
            Tag::parse(text).map(Self::Tag)
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => tag.fmt(f),
            Self::Digest(digest) => digest.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lawful_names_pass() {
        for name in ["a", "library/alpine", "a/b/c", "a.b", "a_b", "a__b", "a---b", "0", "a1/b-2.c"]
        {
            assert_eq!(Repository::parse(name).unwrap().as_str(), name);
        }
    }

    #[test]
    fn unlawful_names_are_refused() {
        let long = "a".repeat(256);
        for name in [
            "", "/", "a/", "/a", "a//b", ".", "..", "a/../b", "A", "_tags", "a/_links", "a___b",
            "a..b", "a._b", "-a", "a-", "a b", "a\0", "ä", "a:b", &long,
        ] {
            assert_eq!(Repository::parse(name).unwrap_err().kind(), Kind::NameInvalid, "{name:?}");
        }
    }

    #[test]
    fn tags_keep_to_the_grammar() {
        let longest = "a".repeat(128);
        for tag in ["latest", "1.2.3", "_x", "V-1_2", &longest] {
            assert!(Tag::parse(tag).is_ok(), "{tag}");
        }
        let long = "a".repeat(129);
        for tag in ["", ".", "..", "-a", "a/b", "a b", "a+b", "ä", &long] {
            assert!(Tag::parse(tag).is_err(), "{tag}");
        }
    }

    #[test]
    fn official_images_get_their_library() {
        assert_eq!(Repository::parse("alpine").unwrap().with_library().as_str(), "library/alpine");
        assert_eq!(Repository::parse("a/b").unwrap().with_library().as_str(), "a/b");
    }

    #[test]
    fn the_referrers_tag_is_cut_by_the_rule() {
        let long = Digest::of(crate::digest::Algorithm::Sha512, b"");
        let tag = Tag::of_referrers(&long);
        assert_eq!(tag.as_str().len(), 6 + 1 + 64);
        assert!(Tag::parse(tag.as_str()).is_ok());
    }

    proptest! {
        #[test]
        fn a_lawful_name_is_a_safe_path(text in "[a-z0-9._/-]{0,40}") {
            if let Ok(name) = Repository::parse(&text) {
                for part in name.as_str().split('/') {
                    prop_assert!(!part.is_empty() && part != "." && part != ".." && !part.starts_with('_'));
                }
            }
        }
    }
}
