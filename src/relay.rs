//! Content passed on without being kept, for when the disk takes no more: hashed on its way, its last
//! piece held back until the digest is right. Clients who come at the same moment share a transfer.

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

pub mod shared;

use shared::{Reader, Relays};

/// Attempts that may end without a single new byte, one after the other.
const FRUITLESS_MAX: u32 = 3;

/// What is passed on, and where from.
#[derive(Clone, Debug)]
pub struct Source {
    /// Who is asked, by whose credentials.
    pub upstream: Arc<Upstream>,
    /// In which repository.
    pub place: Place,
    /// What for.
    pub digest: Digest,
}

/// Content on its way to one client.
#[derive(Debug)]
pub enum Passing {
    /// By a transfer of his own.
    Alone(Box<Relay>),
    /// By one that others read too. The size that was told comes along.
    Shared(Reader, Option<u64>),
}

impl Passing {
    /// Passes on from `position`, up to which the client has everything; `file` has it as well, if
    /// that is not the beginning. What a digest will prove is shared.
    ///
    /// # Errors
    /// The upstream's, or `Internal` where the file cannot be read.
    pub async fn begin(
        relays: &Relays,
        source: &Source,
        (position, file): (u64, Option<Arc<File>>),
        is_provable: bool,
    ) -> Result<Self> {
        let begin = || Relay::begin(source.clone(), position, file.clone());
        let shared = if is_provable { relays.join_or(source, position, begin()) } else { None };
        let Some(mut reader) = shared else { return begin().await.map(Self::alone) };
        let size = reader.size().await?;
        Ok(Self::Shared(reader, size))
    }

    /// Joins what is passed on to others at this moment and still has its beginning, by the same
    /// credentials from the same place.
    pub async fn join(relays: &Relays, source: &Source) -> Option<Self> {
        let mut reader = relays.join(source)?;
        // Where that fails, whoever asks begins anew and is told why.
        let size = reader.size().await.ok()?;
        Some(Self::Shared(reader, size))
    }

    fn alone(relay: Relay) -> Self {
        Self::Alone(Box::new(relay))
    }

    /// The whole size in bytes, where the upstream told it.
    pub fn size(&self) -> Option<u64> {
        match self {
            Self::Alone(relay) => relay.size,
            Self::Shared(_, size) => *size,
        }
    }

    /// Passes on only a part, which begins where the transfer stands or later.
    pub fn only(&mut self, span: Span) {
        match self {
            Self::Alone(relay) => relay.only(span),
            Self::Shared(reader, size) => {
                // A part is nobody else's, and leaves nobody waiting.
                if is_part(span, *size) {
                    *self = Self::alone(Relay::part(reader.source(), *size, span));
                }
            }
        }
    }

    /// The next bytes; `None` at the end, when the digest was right. Not cancel safe.
    ///
    /// # Errors
    /// The upstream's, after some attempts; `BadUpstream` for wrong bytes.
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        match self {
            Self::Alone(relay) => relay.next().await,
            Self::Shared(reader, _) => reader.next().await,
        }
    }
}

/// One transfer.
#[derive(Debug)]
pub struct Relay {
    source: Source,
    answer: Option<Answer>,
    /// Of everything from the first byte to `position`; `None` where only a part is passed on, which
    /// no digest can prove.
    hasher: Option<Hasher>,
    /// The next byte to come from upstream.
    position: u64,
    size: Option<u64>,
    /// What is not passed on yet, with the hash of all before it.
    held: VecDeque<(Bytes, Option<Hasher>)>,
    held_bytes: u64,
}

impl Relay {
    /// Asks for the whole content, or goes on at `position` for a client who has all before it from
    /// `file`, which a fill that cannot go on has left. Where the file does not reach so far the
    /// client wants a part only, which no digest can prove. The size is known then, where the upstream
    /// tells it and has been asked.
    async fn begin(source: Source, position: u64, file: Option<Arc<File>>) -> Result<Self> {
        let digest = source.digest;
        let Some(file) = file.filter(|_| position > 0) else {
            let mut relay = Self::new(&source, Some(Hasher::new(digest.algorithm())), 0);
            relay.connect().await?;
            return Ok(relay);
        };
        let hasher = tokio::task::spawn_blocking(move || hash_to(&file, digest, position))
            .await
            .map_err(|e| Error::internal("a hash was dropped", e))?;
        let hasher = match hasher {
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => None,
            hasher => {
                Some(hasher.map_err(|e| Error::internal("cannot read what was downloaded", e))?)
            }
        };
        Ok(Self::new(&source, hasher, position))
    }

    /// A part alone, which no digest can prove.
    fn part(source: &Source, size: Option<u64>, span: Span) -> Self {
        Self { size, ..Self::new(source, None, span.start) }
    }

    fn new(source: &Source, hasher: Option<Hasher>, position: u64) -> Self {
        Self {
            source: source.clone(),
            answer: None,
            hasher,
            position,
            size: None,
            held: VecDeque::new(),
            held_bytes: 0,
        }
    }

    fn size(&self) -> Option<u64> {
        self.size
    }

    fn only(&mut self, span: Span) {
        if is_part(span, self.size) {
            self.hasher = None;
            if span.start != self.position {
                self.position = span.start;
                self.answer = None;
            }
        }
    }

    async fn next(&mut self) -> Result<Option<Bytes>> {
        self.next_hashed().await.map(|next| next.map(|(bytes, _)| bytes))
    }

    /// The next bytes, and the hash of all before them, where there is one.
    async fn next_hashed(&mut self) -> Result<Option<(Bytes, Option<Hasher>)>> {
        loop {
            let releasable =
                self.hasher.is_none() || self.held_bytes > HOLD_BACK_BYTES + self.front();
            if releasable && let Some(held) = self.release() {
                return Ok(Some(held));
            }
            if !self.receive().await? {
                break;
            }
        }
        if let Some(hasher) = self.hasher.take()
            && hasher.finish() != self.source.digest
        {
            self.held.clear();
            let text =
                format!("{} sent bytes that are not {}", self.upstream(), self.source.digest);
            return Err(Error::new(Kind::BadUpstream, text));
        }
        Ok(self.release())
    }

    fn upstream(&self) -> &str {
        self.source.upstream.name()
    }

    fn front(&self) -> u64 {
        self.held.front().map_or(0, |(bytes, _)| bytes.len() as u64)
    }

    fn release(&mut self) -> Option<(Bytes, Option<Hasher>)> {
        let held = self.held.pop_front()?;
        self.held_bytes -= held.0.len() as u64;
        Some(held)
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
                    format!("{} ended the transfer early", self.upstream()),
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
        let ask = Ask::blob_from(&self.source.place.repository, &self.source.digest, self.position);
        let mut answer = self.source.upstream.ask(&ask, Patience::Full).await?;
        let bad = |why: String| {
            Error::new(Kind::BadUpstream, format!("{} answered with {why}", self.upstream()))
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
        let before = self.hasher.clone();
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&bytes);
        }
        self.position += bytes.len() as u64;
        self.held_bytes += bytes.len() as u64;
        self.held.push_back((bytes, before));
    }
}

/// Whether a span is less than all. One without an end is the whole of what has no size yet.
fn is_part(span: Span, size: Option<u64>) -> bool {
    span.start > 0 || size.is_some_and(|size| span.end < size)
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
