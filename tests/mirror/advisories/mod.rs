//! Published attacks, each a test that bears its name.

mod cases;
mod clients;
mod pingora;
mod registries;

use hyper::Method;

use crate::clients::{basic, htpasswd};
use crate::support::client::Ask;
use crate::support::image::{Content, Image};
use crate::support::mirror::{Mirror, before};
use crate::support::upstream::Upstream;

/// A mirror that hosts what alice has below `a/` and bob below `b/`, and nothing is both's.
struct Two {
    mirror: Mirror,
    _upstream: Upstream,
}

impl Two {
    async fn start() -> Self {
        let upstream = Upstream::start().await;
        let setup = before(&upstream);
        let file = htpasswd(&setup, &[("alice", "pw"), ("bob", "pw")]);
        let rule = |user: &str, below: &str| {
            format!(
                "{{users: [{user}], actions: [pull, push, delete], repositories: ['{below}/**']}}"
            )
        };
        let clients = format!(
            "hosted: {{repositories: ['**']}}\nclients:\n  htpasswd: {}\n  rules: [{}, {}]",
            file.display(),
            rule("alice", "a"),
            rule("bob", "b")
        );
        Self { mirror: setup.raw(&clients).start().await, _upstream: upstream }
    }

    fn as_(&self, user: &str, method: Method, path: &str) -> Ask {
        self.mirror.ask(method, path).header("authorization", &basic(user, "pw"))
    }

    fn manifest(&self, user: &str, repository: &str, tag: &str, manifest: &Content) -> Ask {
        let path = format!("/v2/{repository}/manifests/{tag}");
        let ask = self.as_(user, Method::PUT, &path).body(manifest.bytes.clone());
        ask.header("content-type", &manifest.media_type)
    }

    async fn push(&self, user: &str, repository: &str, tag: &str, image: &Image) {
        for blob in image.blobs() {
            let path = format!("/v2/{repository}/blobs/uploads/?digest={}", blob.digest);
            let put = self.as_(user, Method::POST, &path).body(blob.bytes.clone()).answer().await;
            assert_eq!(put.status, 201, "{:?}", put.body);
        }
        let put = self.manifest(user, repository, tag, &image.manifest).answer().await;
        assert_eq!(put.status, 201, "{:?}", put.body);
    }
}
