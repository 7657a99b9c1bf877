//! Images to pull: config, layers, manifest, index, artifact; the same bytes for the same seed.

use std::fmt::Write as _;

use bytes::Bytes;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256, Sha512};

pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub(crate) const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";

/// Some bytes with their digest and media type.
#[derive(Clone, Debug)]
pub(crate) struct Content {
    pub(crate) digest: String,
    pub(crate) media_type: String,
    pub(crate) bytes: Bytes,
}

impl Content {
    pub(crate) fn new(algorithm: Algorithm, media_type: &str, bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        Self { digest: algorithm.digest(&bytes), media_type: media_type.to_owned(), bytes }
    }

    /// A blob of `size` pseudo-random bytes.
    pub(crate) fn blob(seed: u64, size: usize) -> Self {
        Self::new(Algorithm::Sha256, "application/octet-stream", random(seed, size))
    }

    pub(crate) fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    pub(crate) fn descriptor(&self) -> Value {
        json!({"mediaType": self.media_type, "digest": self.digest, "size": self.len()})
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Algorithm {
    Sha256,
    Sha512,
}

impl Algorithm {
    pub(crate) fn digest(self, bytes: &[u8]) -> String {
        match self {
            Self::Sha256 => sha256(bytes),
            Self::Sha512 => format!("sha512:{}", hex(&Sha512::digest(bytes))),
        }
    }
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(&Sha256::digest(bytes)))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a String takes all that is written to it");
        text
    })
}

/// `size` bytes that look random and depend on `seed` alone (xorshift64*).
pub(crate) fn random(seed: u64, size: usize) -> Bytes {
    let mut state = (seed + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = Vec::with_capacity(size + 8);
    while bytes.len() < size {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        bytes.extend_from_slice(&state.wrapping_mul(0x2545_F491_4F6C_DD1D).to_le_bytes());
    }
    bytes.truncate(size);
    bytes.into()
}

/// One platform's image, or an artifact.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    pub(crate) manifest: Content,
    pub(crate) config: Content,
    pub(crate) layers: Vec<Content>,
}

impl Image {
    /// Everything that a client asks `/blobs/` for.
    pub(crate) fn blobs(&self) -> impl Iterator<Item = &Content> {
        std::iter::once(&self.config).chain(&self.layers)
    }
}

/// Several images under one name.
#[derive(Clone, Debug)]
pub(crate) struct Index {
    pub(crate) manifest: Content,
    pub(crate) images: Vec<Image>,
}

/// What an image is to be made of.
#[derive(Clone, Debug)]
pub(crate) struct Recipe {
    seed: u64,
    docker: bool,
    algorithm: Algorithm,
    layers: Vec<usize>,
    architecture: &'static str,
    subject: Option<Value>,
    artifact_type: Option<&'static str>,
}

/// An OCI image with one layer of 64 KiB and one of 3 KiB, until told otherwise.
pub(crate) fn oci(seed: u64) -> Recipe {
    Recipe {
        seed,
        docker: false,
        algorithm: Algorithm::Sha256,
        layers: vec![64 * 1024, 3 * 1024],
        architecture: "amd64",
        subject: None,
        artifact_type: None,
    }
}

/// The same with Docker's media types.
pub(crate) fn docker(seed: u64) -> Recipe {
    Recipe { docker: true, ..oci(seed) }
}

/// An artifact of `artifact_type` that refers to `subject`.
pub(crate) fn artifact(seed: u64, artifact_type: &'static str, subject: &Content) -> Recipe {
    Recipe {
        layers: vec![100],
        subject: Some(subject.descriptor()),
        artifact_type: Some(artifact_type),
        ..oci(seed)
    }
}

impl Recipe {
    /// One layer for each of these sizes.
    pub(crate) fn layers(mut self, sizes: &[usize]) -> Self {
        self.layers = sizes.to_vec();
        self
    }

    /// Every digest of the image in sha512.
    pub(crate) fn sha512(mut self) -> Self {
        self.algorithm = Algorithm::Sha512;
        self
    }

    fn architecture(mut self, architecture: &'static str) -> Self {
        self.architecture = architecture;
        self
    }

    pub(crate) fn build(&self) -> Image {
        let (manifest_type, config_type, layer_type) = if self.docker {
            (DOCKER_MANIFEST, DOCKER_CONFIG, DOCKER_LAYER)
        } else {
            (OCI_MANIFEST, OCI_CONFIG, OCI_LAYER)
        };
        let layers: Vec<Content> = (100 * self.seed..)
            .zip(&self.layers)
            .map(|(seed, size)| Content::new(self.algorithm, layer_type, random(seed, *size)))
            .collect();
        let diff_ids: Vec<&str> = layers.iter().map(|layer| layer.digest.as_str()).collect();
        let config = json!({
            "architecture": self.architecture,
            "os": "linux",
            "config": {"Labels": {"seed": self.seed.to_string()}},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let config = Content::new(self.algorithm, config_type, config.to_string());
        let mut manifest = json!({
            "schemaVersion": 2,
            "mediaType": manifest_type,
            "config": config.descriptor(),
            "layers": layers.iter().map(Content::descriptor).collect::<Vec<_>>(),
        });
        if let Some(subject) = &self.subject {
            manifest["subject"] = subject.clone();
        }
        if let Some(artifact_type) = self.artifact_type {
            manifest["artifactType"] = artifact_type.into();
        }
        // Spaces that a rewritten document would lose: a mirror must hand on the exact bytes.
        let text = format!("{manifest:#}\n  \n");
        Image { manifest: Content::new(self.algorithm, manifest_type, text), config, layers }
    }

    /// An index of two such images, for amd64 and arm64.
    pub(crate) fn index(&self) -> Index {
        let amd64 = self.clone().architecture("amd64").build();
        let other = Self { seed: self.seed + 50, ..self.clone() };
        let arm64 = other.architecture("arm64").build();
        let entry = |image: &Image, architecture: &str| {
            let mut entry = image.manifest.descriptor();
            entry["platform"] = json!({"architecture": architecture, "os": "linux"});
            entry
        };
        let media_type = if self.docker { DOCKER_LIST } else { OCI_INDEX };
        let index = json!({
            "schemaVersion": 2,
            "mediaType": media_type,
            "manifests": [entry(&amd64, "amd64"), entry(&arm64, "arm64")],
        });
        let manifest = Content::new(self.algorithm, media_type, format!("{index:#}\n"));
        Index { manifest, images: vec![amd64, arm64] }
    }
}
