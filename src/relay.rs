//! Content passed on without being kept, for when the disk takes no more: one transfer for one
//! client, hashed on its way, its last piece held back until the digest is right.

use std::collections::VecDeque;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;

use crate::digest::{Digest, Hasher};
use crate::error::{Error, Kind, Result};
use crate::limits::{HOLD_BACK_BYTES, SLICE_BYTES};
use crate::range::Span;
use crate::store::Place;
use crate::upstream::ask::{self, Ask};
use crate::upstream::{Answer, Patience, Upstream};

/// Attempts that may end without a single new byte, one after the other.
const FRUITLESS_MAX: u32 = 3;

/// One transfer for one client.
#[derive(Debug)]
pub struct Relay {
    upstream: Arc<Upstream>,
    place: Place,
    digest: Digest,
    answer: Option<Answer>,
    /// Of everything from the first byte to `position`; `None` where only a part is passed on, which
    /// no digest can prove.
    hasher: Option<Hasher>,
    /// The next byte to come from upstream.
    position: u64,
    size: Option<u64>,
    held: VecDeque<Bytes>,
    held_bytes: u64,
}

impl Relay {
    /// Asks for the whole content. The size is known then, where the upstream tells it.
    ///
    /// # Errors
    /// The upstream's.
    pub async fn start(upstream: &Arc<Upstream>, place: &Place, digest: Digest) -> Result<Self> {
        let mut relay =
            Self::new(upstream, place, digest, Some(Hasher::new(digest.algorithm())), 0);
        relay.connect().await?;
        Ok(relay)
    }

    /// Goes on at `position` for a client who has all before it from `file`, which a fill that
    /// cannot go on has left.
    ///
    /// # Errors
    /// `Internal` where the file cannot be read.
    pub async fn resume(
        upstream: &Arc<Upstream>,
        place: &Place,
        digest: Digest,
        file: Arc<File>,
        position: u64,
    ) -> Result<Self> {
        let hasher = tokio::task::spawn_blocking(move || hash_to(&file, digest, position))
            .await
            .map_err(|e| Error::internal("a hash was dropped", e))?
            .map_err(|e| Error::internal("cannot read what was downloaded", e))?;
        Ok(Self::new(upstream, place, digest, Some(hasher), position))
    }

    fn new(
        upstream: &Arc<Upstream>,
        place: &Place,
        digest: Digest,
        hasher: Option<Hasher>,
        position: u64,
    ) -> Self {
        Self {
            upstream: Arc::clone(upstream),
            place: place.clone(),
            digest,
            answer: None,
            hasher,
            position,
            size: None,
            held: VecDeque::new(),
            held_bytes: 0,
        }
    }

    /// The whole size in bytes, where the upstream told it.
    pub fn size(&self) -> Option<u64> {
        self.size
    }

    /// Passes on only a part, which begins where the transfer stands or later.
    pub fn only(&mut self, span: Span) {
        // A span without an end is the whole of what has no size yet.
        if span.start > 0 || self.size.is_some_and(|size| span.end < size) {
            self.hasher = None;
            if span.start != self.position {
                self.position = span.start;
                self.answer = None;
            }
        }
    }

    /// The next bytes; `None` at the end, when the digest was right. Not cancel safe.
    ///
    /// # Errors
    /// The upstream's, after some attempts; `BadUpstream` for wrong bytes.
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        loop {
            let releasable =
                self.hasher.is_none() || self.held_bytes > HOLD_BACK_BYTES + self.front();
            if releasable && let Some(bytes) = self.release() {
                return Ok(Some(bytes));
            }
            if !self.receive().await? {
                break;
            }
        }
        if let Some(hasher) = self.hasher.take()
            && hasher.finish() != self.digest
        {
            self.held.clear();
            return Err(Error::new(
                Kind::BadUpstream,
                format!("{} sent bytes that are not {}", self.upstream.name(), self.digest),
            ));
        }
        Ok(self.release())
    }

    fn front(&self) -> u64 {
        self.held.front().map_or(0, |b| b.len() as u64)
    }

    fn release(&mut self) -> Option<Bytes> {
        let bytes = self.held.pop_front()?;
        self.held_bytes -= bytes.len() as u64;
        Some(bytes)
    }

    /// Takes in one piece, again from where it broke if it does. `false` at the end.
    async fn receive(&mut self) -> Result<bool> {
        let mut fruitless = 0;
        loop {
            let error = match self.piece().await {
                Ok(Some(bytes)) => {
                    self.take(bytes);
                    return Ok(true);
                }
                Ok(None) if self.size.is_none_or(|s| self.position >= s) => return Ok(false),
                Ok(None) => Error::new(
                    Kind::Unavailable,
                    format!("{} ended the transfer early", self.upstream.name()),
                ),
                Err(error) => error,
            };
            fruitless += 1;
            self.answer = None;
            if error.kind() != Kind::Unavailable || fruitless > FRUITLESS_MAX {
                return Err(error);
            }
        }
    }

    async fn piece(&mut self) -> Result<Option<Bytes>> {
        if self.answer.is_none() {
            self.connect().await?;
        }
        match &mut self.answer {
            Some(answer) => answer.piece().await,
            None => Ok(None),
        }
    }

    async fn connect(&mut self) -> Result<()> {
        let ask = Ask::blob_from(&self.place.repository, &self.digest, self.position);
        let mut answer = self.upstream.ask(&ask, Patience::Full).await?;
        let bad = |why: String| {
            Error::new(Kind::BadUpstream, format!("{} answered with {why}", self.upstream.name()))
        };
        let (start, size) =
            ask::extent(answer.status(), answer.headers(), ask.range).map_err(bad)?;
        self.size = size.or(self.size);
        let mut skip = self.position - start;
        while skip > 0 {
            // The upstream ignores Range: what is known already is read over.
            let Some(bytes) = answer.piece().await? else { break };
            let over = usize::try_from(skip).unwrap_or(usize::MAX).min(bytes.len());
            skip -= over as u64;
            if over < bytes.len() {
                let rest = bytes.slice(over..);
                self.take(rest);
            }
        }
        self.answer = Some(answer);
        Ok(())
    }

    fn take(&mut self, bytes: Bytes) {
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&bytes);
        }
        self.position += bytes.len() as u64;
        self.held_bytes += bytes.len() as u64;
        self.held.push_back(bytes);
    }
}

fn hash_to(file: &File, digest: Digest, to: u64) -> std::io::Result<Hasher> {
    let mut hasher = Hasher::new(digest.algorithm());
    let mut buffer = vec![0; SLICE_BYTES];
    let mut at = 0;
    while at < to {
        let length = usize::try_from(to - at).unwrap_or(usize::MAX).min(buffer.len());
        file.read_exact_at(&mut buffer[..length], at)?;
        hasher.update(&buffer[..length]);
        at += length as u64;
    }
    Ok(hasher)
}
