//! A mirror before a registry that has one blob, not held yet: where most tests of fills begin.

use super::client::Answer;
use super::image::Content;
use super::mirror::{Mirror, before};
use super::record::On;
use super::upstream::Upstream;

pub(crate) const MIB: usize = 1024 * 1024;

pub(crate) fn blobs() -> On {
    On::get("/blobs/")
}

pub(crate) struct Cold {
    pub(crate) upstream: Upstream,
    pub(crate) mirror: Mirror,
    pub(crate) blob: Content,
    pub(crate) path: String,
}

impl Cold {
    pub(crate) async fn start(size: usize) -> Self {
        Self::with(size, "stall_timeout: 1s").await
    }

    pub(crate) async fn with(size: usize, options: &str) -> Self {
        let upstream = Upstream::start().await;
        let blob = upstream.blob("team/app", 1, size);
        let mirror = before(&upstream).with(options).start().await;
        let path = format!("/v2/team/app/blobs/{}", blob.digest);
        Self { upstream, mirror, blob, path }
    }

    pub(crate) async fn get(&self) -> Answer {
        self.mirror.get(&self.path).answer().await
    }

    pub(crate) fn sent(&self) -> u64 {
        self.upstream.sent(&blobs())
    }

    /// After whatever happened: nothing wrong is kept, and an upstream that behaves again is
    /// believed again.
    pub(crate) async fn recovers(&self) {
        self.mirror.check_store();
        self.upstream.behave();
        let answer = self.get().await;
        let story = self.upstream.story();
        assert!(answer.is(&self.blob.bytes), "{} {:?}\n{story}", answer.status, answer.headers);
        self.mirror.check_store();
    }
}
