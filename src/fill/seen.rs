//! A fill as it is seen from outside, at one moment.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde::Serialize;

use super::{Fill, Progress, Why};
use crate::digest::Digest;

/// What a fill is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// It waits for its turn: so many others come from the same upstream.
    Queued,
    /// It has asked, and the upstream has not begun to answer.
    Asking,
    /// Bytes come.
    Fetching,
    /// All has come and is right; it is being put in its place.
    Keeping,
}

/// A fill at one moment.
#[derive(Clone, Debug, Serialize)]
pub struct Seen {
    /// What is being filled.
    pub digest: Digest,
    /// From where.
    pub upstream: Arc<str>,
    /// For which repository it was begun.
    pub repository: String,
    /// What it is at.
    pub stage: Stage,
    /// Why it was begun.
    pub why: Why,
    /// Bytes that have come, those of an earlier attempt included.
    pub bytes: u64,
    /// The whole size in bytes, where the upstream has told it.
    pub total_bytes: Option<u64>,
    /// Transfers under way: several where it is fetched in parts.
    pub transfers: usize,
    /// Requests that wait for it or read along.
    pub waiters: usize,
    /// Since it was begun, in seconds.
    pub seconds: f64,
}

impl Fill {
    /// How it is now.
    pub(super) fn seen(&self) -> Seen {
        // Not held any longer than for these copies: the fill moves it.
        let Progress { head, size, written, ahead, verified, .. } = *self.progress.borrow();
        let stage = match (self.has_turn.load(Ordering::Relaxed), head, verified) {
            (_, _, true) => Stage::Keeping,
            (false, ..) => Stage::Queued,
            (true, false, _) => Stage::Asking,
            (true, true, _) => Stage::Fetching,
        };
        Seen {
            digest: self.digest,
            upstream: Arc::clone(&self.place.upstream),
            repository: self.place.repository.as_str().to_owned(),
            stage,
            why: self.why,
            bytes: size.filter(|_| verified).unwrap_or(written + ahead),
            total_bytes: size,
            transfers: self.transfers.load(Ordering::Relaxed),
            waiters: self.waiters.load(Ordering::Relaxed),
            seconds: (self.begun.elapsed().as_secs_f64() * 1e3).round() / 1e3,
        }
    }
}
