//! Media types, and a peek into manifests. A manifest's bytes are never written anew: what is read
//! here only says which type it has and what it refers to.

use serde::Deserialize;

use crate::digest::Digest;
use crate::error::{Error, Kind};
use crate::limits::MANIFEST_DEPTH_MAX;

/// An OCI index: the answer of the referrers API.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const OCI_ARTIFACT: &str = "application/vnd.oci.artifact.manifest.v1+json";

/// What is asked of upstreams: everything. GHCR and ACR answer 404 to a narrower list, and old
/// registries answer schema 1 to a bare `*/*`.
pub const ACCEPT_MANIFESTS: &str = "application/vnd.oci.image.index.v1+json, \
application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.list.v2+json, \
application/vnd.docker.distribution.manifest.v2+json, application/vnd.oci.artifact.manifest.v1+json";

/// Something a manifest refers to.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Descriptor {
    /// Its content's name.
    pub digest: Digest,
    /// Its content's size in bytes.
    pub size: u64,
    /// Its type.
    #[serde(rename = "mediaType", default)]
    pub media_type: String,
    /// For which machine, in an index.
    #[serde(default)]
    pub platform: Option<Platform>,
}

/// For which machine an image is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
pub struct Platform {
    /// Such as `amd64`.
    #[serde(default)]
    pub architecture: String,
    /// Such as `linux`.
    #[serde(default)]
    pub os: String,
    /// Such as `v7`.
    #[serde(default)]
    pub variant: Option<String>,
}

/// What a manifest says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// The type it is served with.
    pub media_type: String,
    /// Children of an index.
    pub manifests: Vec<Descriptor>,
    /// Config and layers of an image, blobs of an artifact.
    pub blobs: Vec<Descriptor>,
    /// What it is attached to.
    pub subject: Option<Descriptor>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    schema_version: Option<u64>,
    media_type: Option<String>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    blobs: Option<Vec<Descriptor>>,
    manifests: Option<Vec<Descriptor>>,
    subject: Option<Descriptor>,
}

impl Manifest {
    /// Reads a manifest that came with `content_type`.
    ///
    /// # Errors
    /// `ManifestInvalid` where it is no JSON object, is nested too deep, names invalid digests, is
    /// of schema 1, could be read as an image and as an index (CVE-2021-41190), or says another
    /// type of itself than the one it came with.
    pub fn read(bytes: &[u8], content_type: Option<&str>) -> Result<Self, Error> {
        if depth(bytes) > MANIFEST_DEPTH_MAX {
            return Err(invalid("manifest is nested too deep"));
        }
        let raw: Raw = serde_json::from_slice(bytes)
            .map_err(|e| invalid("manifest is not a JSON document of a known form").because(e))?;
        let media_type = raw.media_type(content_type)?;
        Ok(Self {
            media_type,
            manifests: raw.manifests.unwrap_or_default(),
            blobs: raw
                .config
                .into_iter()
                .chain(raw.layers.into_iter().flatten())
                .chain(raw.blobs.into_iter().flatten())
                .collect(),
            subject: raw.subject,
        })
    }
}

impl Manifest {
    /// The layers of an image, without its config.
    pub fn layers(&self) -> impl Iterator<Item = &Descriptor> {
        self.blobs.iter().filter(|d| {
            !d.media_type.contains("config") && !d.media_type.contains("container.image.v1")
        })
    }
}

impl Raw {
    fn media_type(&self, content_type: Option<&str>) -> Result<String, Error> {
        if self.schema_version == Some(1) {
            return Err(invalid("manifest is of schema 1, which clients no longer take"));
        }
        let is_index = self.manifests.is_some();
        let is_image = self.config.is_some() || self.layers.is_some() || self.blobs.is_some();
        if is_index && is_image {
            return Err(invalid("manifest could be read as an image and as an index"));
        }
        if !is_index && !is_image {
            return Err(invalid("manifest is neither an image nor an index"));
        }
        let told = content_type
            .map(|t| t.split(';').next().unwrap_or(t).trim())
            .filter(|t| is_manifest(t));
        let own = self.media_type.as_deref().filter(|t| !t.is_empty());
        let media_type = match (own, told) {
            (Some(own), Some(told)) if own != told => {
                return Err(invalid("manifest came with another Content-Type than its mediaType"));
            }
            (Some(own), _) => own,
            (None, Some(told)) => told,
            (None, None) if is_index => OCI_INDEX,
            (None, None) => OCI_MANIFEST,
        };
        if is_manifest(media_type) && is_index != matches!(media_type, OCI_INDEX | DOCKER_LIST) {
            return Err(invalid("manifest's type does not fit its content"));
        }
        Ok(media_type.to_owned())
    }
}

/// Whether a type is one of those that manifests have.
pub fn is_manifest(media_type: &str) -> bool {
    matches!(media_type, OCI_INDEX | OCI_MANIFEST | DOCKER_MANIFEST | DOCKER_LIST | OCI_ARTIFACT)
}

fn invalid(what: &str) -> Error {
    Error::new(Kind::ManifestInvalid, what)
}

/// How deep a JSON text is nested; brackets within strings do not count.
fn depth(text: &[u8]) -> usize {
    let (mut depth, mut deepest, mut quoted, mut escaped) = (0usize, 0, false, false);
    for &b in text {
        match b {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            _ if quoted => {}
            b'{' | b'[' => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blob() -> String {
        format!(r#"{{"mediaType":"x","digest":"sha256:{}","size":1}}"#, "a".repeat(64))
    }

    fn image(extra: &str) -> String {
        format!(r#"{{"schemaVersion":2{extra},"config":{b},"layers":[{b}]}}"#, b = blob())
    }

    #[test]
    fn an_image_names_its_config_and_layers() {
        let m = Manifest::read(image("").as_bytes(), Some(OCI_MANIFEST)).unwrap();
        assert_eq!((m.media_type.as_str(), m.blobs.len(), m.manifests.len()), (OCI_MANIFEST, 2, 0));
    }

    #[test]
    fn the_type_comes_from_the_body_where_the_header_says_nothing() {
        let text = image(&format!(r#","mediaType":"{DOCKER_MANIFEST}""#));
        for header in [None, Some("text/plain"), Some("application/octet-stream")] {
            assert_eq!(
                Manifest::read(text.as_bytes(), header).unwrap().media_type,
                DOCKER_MANIFEST
            );
        }
        let with_charset = format!("{DOCKER_MANIFEST}; charset=utf-8");
        assert!(Manifest::read(text.as_bytes(), Some(&with_charset)).is_ok());
    }

    #[test]
    fn ambiguous_and_foreign_documents_are_refused() {
        let both = format!(r#"{{"schemaVersion":2,"layers":[{b}],"manifests":[{b}]}}"#, b = blob());
        let typed = image(&format!(r#","mediaType":"{DOCKER_MANIFEST}""#));
        let twice = format!(r#"{{"layers":[],"layers":[{}]}}"#, blob());
        let traversal = r#"{"layers":[{"digest":"sha256:../../x","size":1}]}"#;
        let deep = format!(r#"{{"layers":[],"x":{}{}}}"#, "[".repeat(40), "]".repeat(40));
        for (text, header) in [
            (both.as_str(), None),
            (&typed, Some(OCI_MANIFEST)),
            (&twice, None),
            (traversal, None),
            (&deep, None),
            ("<html></html>", None),
            ("{}", None),
            ("", None),
            ("[]", None),
            (r#"{"schemaVersion":1,"layers":[]}"#, None),
            (r#"{"layers":[]}"#, Some(OCI_INDEX)),
        ] {
            let kind = Manifest::read(text.as_bytes(), header).unwrap_err().kind();
            assert_eq!(kind, Kind::ManifestInvalid, "{text}");
        }
    }

    #[test]
    fn brackets_in_strings_do_not_count_as_depth() {
        assert_eq!(depth(br#"{"a":"[[[[\"[[","b":[1]}"#), 2);
    }
}
