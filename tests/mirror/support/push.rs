//! Pushing as clients do: blobs in one request or in pieces, then the manifest.

use bytes::Bytes;
use hyper::Method;

use super::client::{Answer, Ask};
use super::image::{Content, Image};
use super::mirror::{Mirror, Setup, before};
use super::upstream::Upstream;

/// A mirror that hosts names of one component and those below `team/`, before an upstream that must
/// not see any of them.
pub(crate) fn hosting(upstream: &Upstream, more: &str) -> Setup {
    let more = if more.is_empty() { String::new() } else { format!(", {more}") };
    before(upstream).raw(&format!("hosted: {{repositories: ['*', 'team/**']{more}}}"))
}

impl Mirror {
    /// Begins an upload and returns its location.
    pub(crate) async fn begin(&self, repository: &str) -> String {
        let path = format!("/v2/{repository}/blobs/uploads/");
        let begun = self.ask(Method::POST, &path).answer().await;
        assert_eq!((begun.status, begun.header("range")), (202, "0-0"));
        let location = begun.header("location").to_owned();
        assert!(location.starts_with(&path), "{location} is not relative");
        location
    }

    /// Adds to an upload; with `at`, as a chunk that says where it belongs.
    pub(crate) async fn patch(&self, location: &str, bytes: &Bytes, at: Option<usize>) -> Answer {
        let mut ask = self.ask(Method::PATCH, location).body(bytes.clone());
        if let Some(at) = at {
            ask = ask.header("content-range", &format!("{at}-{}", at + bytes.len() - 1));
        }
        ask.answer().await
    }

    /// Ends an upload, with the last of it.
    pub(crate) async fn put(&self, location: &str, digest: &str, last: &Bytes) -> Answer {
        let path = format!("{location}?digest={digest}");
        self.ask(Method::PUT, &path).body(last.clone()).answer().await
    }

    pub(crate) async fn push_blob(&self, repository: &str, blob: &Content) {
        let location = self.begin(repository).await;
        let put = self.put(&location, &blob.digest, &blob.bytes).await;
        assert_eq!(put.status, 201, "{:?}", put.body);
        assert_eq!(put.header("docker-content-digest"), blob.digest);
        assert_eq!(put.header("location"), format!("/v2/{repository}/blobs/{}", blob.digest));
    }

    /// The request that pushes a manifest.
    pub(crate) fn manifest(&self, repository: &str, reference: &str, manifest: &Content) -> Ask {
        let path = format!("/v2/{repository}/manifests/{reference}");
        let ask = self.ask(Method::PUT, &path).body(manifest.bytes.clone());
        ask.header("content-type", &manifest.media_type)
    }

    pub(crate) async fn push_manifest(&self, repository: &str, reference: &str, it: &Content) {
        let put = self.manifest(repository, reference, it).answer().await;
        assert_eq!(put.status, 201, "{:?}", put.body);
        assert_eq!(put.header("docker-content-digest"), it.digest);
    }

    /// Pushes an image with all that belongs to it.
    pub(crate) async fn push(&self, repository: &str, reference: &str, image: &Image) {
        for blob in image.blobs() {
            self.push_blob(repository, blob).await;
        }
        self.push_manifest(repository, reference, &image.manifest).await;
    }

    /// Has garbage collected, as `pierhead gc` does.
    pub(crate) async fn gc(&self, order: &str) -> serde_json::Value {
        let ask = self.post_admin("/gc").header("content-type", "application/json");
        let answer = ask.body(order.to_owned()).answer().await;
        assert_eq!(answer.status, 200, "{:?}", answer.body);
        answer.json()
    }

    /// The tags on one page.
    pub(crate) async fn tags(&self, repository: &str) -> Vec<String> {
        let answer = self.get(&format!("/v2/{repository}/tags/list")).answer().await;
        serde_json::from_value(answer.json()["tags"].clone()).expect("a list of tags")
    }
}
