//! Whoever waits for a fill: a reader at its own pace.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::watch;

use super::{Fill, Progress};
use crate::error::{Error, Result};
use crate::flight::Who;
use crate::metrics::Metrics;
use crate::relay::{Passing, Source};
use crate::store::Place;
use crate::traces::Span;

/// A reader of a fill. Many may follow one fill, each at its own offset.
#[derive(Debug)]
pub struct Follower {
    fill: Arc<Fill>,
    progress: watch::Receiver<Progress>,
    metrics: Arc<Metrics>,
}

impl Follower {
    pub(super) fn new(fill: Arc<Fill>, metrics: &Arc<Metrics>) -> Self {
        metrics.fill_waiters.inc();
        fill.waiters.fetch_add(1, Ordering::Relaxed);
        Self { progress: fill.progress.subscribe(), fill, metrics: Arc::clone(metrics) }
    }

    /// Whose upstream path the fill comes through.
    pub fn place(&self) -> &Place {
        &self.fill.place
    }

    /// The span of the fill, where it is traced.
    pub fn trace(&self) -> Option<&Span> {
        self.fill.trace.as_ref()
    }

    /// By whose credentials the fill comes.
    pub fn who(&self) -> Who {
        self.fill.upstream.who()
    }

    /// The file to read from, as far as `ready` says.
    ///
    /// # Errors
    /// `Internal` before anything is ready.
    pub fn file(&self) -> Result<&Arc<File>> {
        self.fill
            .file
            .get()
            .ok_or_else(|| Error::internal("a fill has no file", "nothing is ready yet"))
    }

    /// Waits for the whole size; `None` where the upstream does not tell and the fill goes on.
    /// Cancel safe.
    ///
    /// # Errors
    /// The fill's, where it fails before its head.
    pub async fn size(&mut self) -> Result<Option<u64>> {
        self.wait(|p| p.head).await.map(|p| p.size)
    }

    /// Waits until byte `position` may go out, and says how far it is ready; at the end of the
    /// content that is `position` itself. Cancel safe.
    ///
    /// # Errors
    /// The fill's, where it fails before it got there.
    pub async fn ready(&mut self, position: u64) -> Result<u64> {
        self.wait(|p| p.ready > position || p.verified).await.map(|p| p.ready)
    }

    /// Waits for the end, when every byte is known to be right. Cancel safe.
    ///
    /// # Errors
    /// The fill's.
    pub async fn end(&mut self) -> Result<Progress> {
        self.wait(|p| p.verified).await
    }

    /// Waits until every byte is known to be right, or it has failed, as one who is not counted:
    /// what is fetched ahead keeps nobody waiting. Cancel safe.
    pub async fn unseen(self) {
        let mut progress = self.progress.clone();
        drop(self);
        let _ended = progress.wait_for(|p| p.verified || p.end.is_some()).await;
    }

    /// Goes on at `position` without the fill, which the disk has stopped.
    ///
    /// # Errors
    /// The upstream's.
    pub async fn relay(&self, position: u64) -> Result<Passing> {
        let Fill { upstream, place, digest, file, relays, .. } = &*self.fill;
        let (upstream, place) = (Arc::clone(upstream), place.clone());
        let is_provable = position <= self.progress.borrow().written;
        let from = (position, file.get().cloned());
        Passing::begin(relays, &Source { upstream, place, digest: *digest }, from, is_provable)
            .await
    }

    async fn wait(&mut self, enough: impl Fn(&Progress) -> bool) -> Result<Progress> {
        let seen = self.progress.wait_for(|p| enough(p) || p.end.is_some()).await;
        let progress = seen.map_err(|e| Error::internal("a fill was dropped", e))?.clone();
        match &progress.end {
            Some(Err(error)) if !enough(&progress) => Err(error.clone()),
            _ => Ok(progress),
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.metrics.fill_waiters.dec();
        self.fill.waiters.fetch_sub(1, Ordering::Relaxed);
    }
}
