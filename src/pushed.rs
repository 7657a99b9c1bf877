//! A manifest as it is pushed: what it refers to, and all that is wrong with it. Stricter than what is
//! taken from upstreams, since here somebody can still mend it.

use std::collections::HashSet;
use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use crate::digest::Digest;
use crate::error::{Error, Kind};
use crate::media::{self, Descriptor, Manifest};

/// A manifest that may be kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pushed {
    /// The type it is served with.
    pub media_type: String,
    /// Manifests that must be there: children of an index.
    pub manifests: Vec<Digest>,
    /// Blobs that must be there: all but those that live elsewhere by design.
    pub blobs: Vec<Digest>,
    /// What it is attached to.
    pub subject: Option<Digest>,
    /// What the list of referrers says of it.
    pub artifact_type: Option<String>,
    /// What the list of referrers says of it.
    pub annotations: Option<Map<String, Value>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct More {
    media_type: Option<String>,
    artifact_type: Option<String>,
    annotations: Option<Map<String, Value>>,
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Vec<Elsewhere>,
    #[serde(default)]
    blobs: Vec<Elsewhere>,
}

/// A descriptor whose content may live elsewhere.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Elsewhere {
    digest: Digest,
    #[serde(default)]
    media_type: String,
    #[serde(default)]
    urls: Vec<String>,
}

impl Elsewhere {
    /// Foreign layers are never pushed; they are neither asked for nor followed.
    fn must_be_here(&self) -> bool {
        self.urls.is_empty()
            && !self.media_type.contains(".foreign.")
            && !self.media_type.contains(".nondistributable.")
    }
}

impl Pushed {
    /// Reads what came with `content_type`.
    ///
    /// # Errors
    /// `ManifestInvalid`, with what is wrong.
    pub fn read(bytes: &[u8], content_type: Option<&str>) -> Result<Self, Error> {
        let told = content_type.map(|t| t.split(';').next().unwrap_or(t).trim());
        let manifest = Manifest::read(bytes, told)?;
        let more: More = Self::strictly(bytes)?;
        match (told, more.media_type.as_deref()) {
            (Some(told), Some(own)) if told != own => {
                return Err(invalid("manifest came with another Content-Type than its mediaType"));
            }
            (Some(told), None) if !media::is_manifest(told) => {
                return Err(invalid("Content-Type is no manifest's, and there is no mediaType"));
            }
            (None, None) => {
                return Err(invalid("neither Content-Type nor mediaType says its type"));
            }
            _ => {}
        }
        if !media::is_manifest(&manifest.media_type) {
            return Err(invalid("mediaType is none that manifests have"));
        }
        let named = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        let of_config = more.config.as_ref().map(|config| config.media_type.clone());
        let blobs = more.layers.iter().chain(&more.blobs).filter(|blob| blob.must_be_here());
        Ok(Self {
            media_type: manifest.media_type,
            manifests: manifest.manifests.iter().map(|child| child.digest).collect(),
            blobs: more.config.iter().map(|c| c.digest).chain(blobs.map(|b| b.digest)).collect(),
            subject: manifest.subject.map(|subject| subject.digest),
            artifact_type: named(&more.artifact_type).or(named(&of_config)),
            annotations: more.annotations.filter(|annotations| !annotations.is_empty()),
        })
    }

    /// What it holds, that is keeps from being removed.
    pub fn holds(&self) -> impl Iterator<Item = &Digest> {
        self.manifests.iter().chain(&self.blobs)
    }

    fn strictly(bytes: &[u8]) -> Result<More, Error> {
        let mut json = serde_json::Deserializer::from_slice(bytes);
        Unambiguous
            .deserialize(&mut json)
            .and_then(|()| json.end())
            .map_err(|error| invalid("manifest is not JSON, or has a key twice").because(error))?;
        serde_json::from_slice(bytes)
            .map_err(|e| invalid("manifest is not a JSON document of a known form").because(e))
    }
}

fn invalid(what: &str) -> Error {
    Error::new(Kind::ManifestInvalid, what)
}

/// Walks over a JSON document and refuses a key that stands twice in one object: of the two values,
/// one reader takes the first and another the last.
#[derive(Clone, Copy)]
struct Unambiguous;

impl<'de> DeserializeSeed<'de> for Unambiguous {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        json.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Unambiguous {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON without a key twice")
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while list.next_element_seed(self)?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut keys = HashSet::new();
        while let Some(key) = map.next_key::<String>()? {
            map.next_value_seed(self)?;
            if !keys.insert(key) {
                return Err(A::Error::custom("a key stands twice"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IMAGE: &str = "application/vnd.oci.image.manifest.v1+json";

    fn blob(rest: &str) -> String {
        format!(r#"{{"mediaType":"x","digest":"sha256:{}","size":1{rest}}}"#, "a".repeat(64))
    }

    fn image(rest: &str) -> String {
        format!(r#"{{"schemaVersion":2,"config":{b},"layers":[{b}]{rest}}}"#, b = blob(""))
    }

    #[test]
    fn an_image_tells_what_it_holds_and_what_it_is_listed_as() {
        let subject = format!(r#","subject":{},"annotations":{{"a":"b"}}"#, blob(""));
        let pushed = Pushed::read(image(&subject).as_bytes(), Some(IMAGE)).unwrap();
        assert_eq!((pushed.blobs.len(), pushed.manifests.len()), (2, 0));
        assert_eq!(pushed.artifact_type.as_deref(), Some("x"));
        assert!(pushed.subject.is_some() && pushed.annotations.is_some());
    }

    #[test]
    fn what_lives_elsewhere_need_not_be_here() {
        let layers = [
            blob(r#","urls":["https://x.test/"]"#),
            blob("")
                .replace(r#""x""#, r#""application/vnd.oci.image.layer.nondistributable.v1.tar""#),
        ];
        let text = format!(r#"{{"config":{},"layers":[{}]}}"#, blob(""), layers.join(","));
        assert_eq!(Pushed::read(text.as_bytes(), Some(IMAGE)).unwrap().blobs.len(), 1);
    }

    #[test]
    fn ambiguous_manifests_are_refused() {
        let typed = format!(r#","mediaType":"{IMAGE}""#);
        for (text, content_type) in [
            (image(r#","annotations":{"a":"1","a":"2"}"#), Some(IMAGE)),
            (image(r#","x":1,"x":2"#), Some(IMAGE)),
            (image(r#","x":{"y":{"z":1,"z":1}}"#), Some(IMAGE)),
            (image(&typed), Some("application/json")),
            (image(""), Some("application/json")),
            (image(""), None),
            (image(r#","mediaType":"application/x""#), None),
            (image("") + "x", Some(IMAGE)),
            (image("").replace("aaaa", "AAAA"), Some(IMAGE)),
        ] {
            let error = Pushed::read(text.as_bytes(), content_type).unwrap_err();
            assert_eq!(error.kind(), Kind::ManifestInvalid, "{text} {content_type:?}");
        }
        assert!(Pushed::read(image(&typed).as_bytes(), None).is_ok());
    }
}
