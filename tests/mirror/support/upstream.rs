//! The scripted registry that tests put behind the mirror.

use std::ops::Deref;
use std::sync::Arc;

use parking_lot::Mutex;

use super::auth::Tokens;
use super::image::{Content, Image, Index};
use super::registry::Registry;
use super::scripted::Scripted;

pub(crate) struct Upstream {
    server: Scripted,
    registry: Arc<Mutex<Registry>>,
}

impl Upstream {
    /// An empty registry that anybody may read.
    pub(crate) async fn start() -> Self {
        let registry = Arc::new(Mutex::new(Registry::default()));
        let server = Scripted::start({
            let registry = Arc::clone(&registry);
            move |request| registry.lock().answer(request)
        });
        Self { server: server.await, registry }
    }

    /// Changes how the registry works, or looks into it.
    pub(crate) fn set<T>(&self, change: impl FnOnce(&mut Registry) -> T) -> T {
        change(&mut self.registry.lock())
    }

    pub(crate) fn tokens(&self) -> Tokens {
        self.set(|registry| registry.tokens.clone())
    }

    /// Stores the image with all its blobs under a tag.
    pub(crate) fn push(&self, repository: &str, tag: &str, image: &Image) {
        for blob in image.blobs() {
            self.push_blob(repository, blob);
        }
        self.push_manifest(repository, &image.manifest);
        self.tag(repository, tag, &image.manifest);
    }

    pub(crate) fn push_index(&self, repository: &str, tag: &str, index: &Index) {
        for image in &index.images {
            self.push(repository, tag, image);
        }
        self.push_manifest(repository, &index.manifest);
        self.tag(repository, tag, &index.manifest);
    }

    pub(crate) fn push_manifest(&self, repository: &str, manifest: &Content) {
        self.set(|registry| {
            let manifests = &mut registry.repository(repository).manifests;
            manifests.insert(manifest.digest.clone(), manifest.clone());
        });
    }

    pub(crate) fn tag(&self, repository: &str, tag: &str, manifest: &Content) {
        self.set(|registry| {
            let tags = &mut registry.repository(repository).tags;
            tags.insert(tag.to_owned(), manifest.digest.clone());
        });
    }

    pub(crate) fn push_blob(&self, repository: &str, blob: &Content) {
        self.set(|registry| {
            let blobs = &mut registry.repository(repository).blobs;
            blobs.insert(blob.digest.clone(), blob.bytes.clone());
        });
    }

    /// A new blob of `size` random bytes in `repository`.
    pub(crate) fn blob(&self, repository: &str, seed: u64, size: usize) -> Content {
        let blob = Content::blob(seed, size);
        self.push_blob(repository, &blob);
        blob
    }
}

impl Deref for Upstream {
    type Target = Scripted;

    fn deref(&self) -> &Scripted {
        &self.server
    }
}
