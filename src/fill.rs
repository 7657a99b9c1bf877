//! Fills: content on its way from upstream to disk, followed by whoever waits for it.
//!
//! One detached task per digest owns the file under `fills/`, hashes what it writes, and moves a
//! watermark. Followers read the file up to the watermark, each at its own pace; nobody's socket is
//! awaited here. The last piece is held back until the digest is known to be right.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, mpsc, watch};

use crate::digest::{Digest, Hasher};
use crate::error::{Error, Kind, Result};
use crate::limits::{FILLS_MAX, HOLD_BACK_BYTES, SLICE_BYTES};
use crate::metrics::Metrics;
use crate::store::{Link, Place, Store};
use crate::upstream::ask::{self, Ask};
use crate::upstream::{Answer, Patience, Upstream};

/// Attempts that may end without a single new byte, one after the other.
const FRUITLESS_MAX: u32 = 3;

/// Pieces that wait to be written; each is what one read of the upstream's socket gave.
const PIECES_WAITING_MAX: usize = 4;

/// How far a fill has come.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// Whether the upstream's head has come, so that `size` says what it ever will.
    pub head: bool,
    /// The whole size in bytes, where the upstream told it.
    pub size: Option<u64>,
    /// Bytes that may go out.
    pub ready: u64,
    /// Whether the digest has been found right; `size` is known then.
    pub verified: bool,
    /// How it ended; `Ok` once every byte is right.
    pub end: Option<Result<()>>,
}

/// A fill under way, or just ended.
#[derive(Debug)]
pub struct Fill {
    /// Whose upstream path it comes through; others prove their own right before they join.
    pub place: Place,
    file: Arc<File>,
    progress: watch::Sender<Progress>,
}

impl Fill {
    /// The content, once every byte is known to be right: the rest is only keeping it.
    pub fn verified(&self) -> Option<(Arc<File>, u64)> {
        let progress = self.progress.borrow();
        progress.size.filter(|_| progress.verified).map(|size| (Arc::clone(&self.file), size))
    }
}

/// A reader of a fill. Many may follow one fill, each at its own offset.
#[derive(Debug)]
pub struct Follower {
    fill: Arc<Fill>,
    progress: watch::Receiver<Progress>,
    metrics: Arc<Metrics>,
}

impl Follower {
    fn new(fill: Arc<Fill>, metrics: &Arc<Metrics>) -> Self {
        metrics.fill_waiters.inc();
        Self { progress: fill.progress.subscribe(), fill, metrics: Arc::clone(metrics) }
    }

    /// The file to read from, as far as `reach` says.
    pub fn file(&self) -> &Arc<File> {
        &self.fill.file
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
    }
}

/// The fills under way.
#[derive(Debug)]
pub struct Fills {
    store: Arc<Store>,
    under_way: Mutex<HashMap<Digest, Arc<Fill>>>,
    turns: Arc<Semaphore>,
    metrics: Arc<Metrics>,
}

impl Fills {
    /// None under way.
    pub fn new(store: Arc<Store>, metrics: Arc<Metrics>) -> Self {
        Self {
            store,
            under_way: Mutex::default(),
            turns: Arc::new(Semaphore::new(FILLS_MAX)),
            metrics,
        }
    }

    /// The fill of a digest, if one is under way, with the place it comes through.
    pub fn find(&self, digest: &Digest) -> Option<Arc<Fill>> {
        self.under_way.lock().get(digest).cloned()
    }

    /// How many are under way.
    pub fn count(&self) -> usize {
        self.under_way.lock().len()
    }

    /// Whether some download is whole and about to be kept.
    pub fn is_publishing(&self) -> bool {
        self.under_way.lock().values().any(|fill| {
            let progress = fill.progress.borrow();
            progress.end.is_none() && progress.verified
        })
    }

    /// Follows a fill. The caller has proven its right to the content.
    pub fn follow(&self, fill: Arc<Fill>) -> Follower {
        Follower::new(fill, &self.metrics)
    }

    /// Follows the fill of a digest, and starts it where none is under way. The flag says whether
    /// it was joined.
    ///
    /// # Errors
    /// `Internal` where no file can be made for it.
    pub async fn join_or_start(
        self: &Arc<Self>,
        upstream: &Arc<Upstream>,
        place: &Place,
        digest: Digest,
    ) -> Result<(Follower, bool)> {
        if let Some(fill) = self.find(&digest) {
            return Ok((self.follow(fill), true));
        }
        let (file, path) = self
            .store
            .blocking(move |s| s.disk().open_fill(&digest))
            .await
            .map_err(|e| Error::internal("cannot make a file for a download", e))?;
        let mut under_way = self.under_way.lock();
        if let Some(fill) = under_way.get(&digest) {
            return Ok((self.follow(Arc::clone(fill)), true));
        }
        let fill = Arc::new(Fill {
            place: place.clone(),
            file: Arc::new(file),
            progress: watch::Sender::default(),
        });
        under_way.insert(digest, Arc::clone(&fill));
        drop(under_way);
        let task = Task {
            fills: Arc::clone(self),
            upstream: Arc::clone(upstream),
            fill: Arc::clone(&fill),
            digest,
            path,
        };
        tokio::spawn(task.run());
        Ok((self.follow(fill), false))
    }
}

/// The task of one fill.
struct Task {
    fills: Arc<Fills>,
    upstream: Arc<Upstream>,
    fill: Arc<Fill>,
    digest: Digest,
    path: PathBuf,
}

impl Task {
    async fn run(self) {
        self.fills.metrics.fills_in_flight.inc();
        let ending = Ending(&self);
        let outcome = match self.fills.turns.acquire().await {
            Ok(_turn) => self.fetch_and_publish().await,
            Err(e) => Err(Error::internal("the queue of fills is closed", e)),
        };
        self.fills.metrics.fill_ended(match &outcome {
            Ok(()) => "stored",
            Err(e) if e.kind() == Kind::Unavailable => "broken",
            Err(e) if e.is_outage() => "bad_upstream",
            Err(e) if e.kind() == Kind::Internal => "failed",
            Err(_) => "refused",
        });
        if let Err(error) = &outcome {
            tracing::warn!(digest = %self.digest, place = ?self.fill.place, ?error, "fill failed");
        }
        ending.with(outcome);
    }

    async fn fetch_and_publish(&self) -> Result<()> {
        let known = self.resume().await?;
        let (hasher, size) =
            if Digest::clone(&self.digest) == known.hasher.clone().finish() && known.written > 0 {
                (known.hasher, known.written) // a crash came between the last byte and the publishing
            } else {
                self.fetch(known).await?
            };
        if hasher.finish() != self.digest {
            self.drop_file();
            return Err(Error::new(
                Kind::BadUpstream,
                format!("{} sent {size} bytes that are not {}", self.upstream.name(), self.digest),
            ));
        }
        // The bytes are right: nobody need wait for the disk.
        self.fill.progress.send_modify(|p| {
            p.head = true;
            p.size = Some(size);
            p.ready = size;
            p.verified = true;
        });
        let (file, path, digest) = (Arc::clone(&self.fill.file), self.path.clone(), self.digest);
        self.fills
            .store
            .blocking(move |s| s.disk().publish(&file, &path, &digest))
            .await
            .map_err(|e| Error::internal("cannot keep a download", e))
    }

    /// Takes in what an earlier attempt, perhaps of an earlier process, has left in the file.
    async fn resume(&self) -> Result<Written> {
        let (file, digest) = (Arc::clone(&self.fill.file), self.digest);
        self.fills
            .store
            .blocking(move |_| Written::read(&file, digest))
            .await
            .map_err(|e| Error::internal("cannot read a download begun earlier", e))
    }

    /// Downloads from `known` on, again from where it broke, until the upstream's end.
    async fn fetch(&self, known: Written) -> Result<(Hasher, u64)> {
        let mut position = known.written;
        let (pieces, inbox) = mpsc::channel(PIECES_WAITING_MAX);
        let fill = Arc::clone(&self.fill);
        let writer = tokio::task::spawn_blocking(move || known.write(&fill, inbox));
        let fetched = self.feed(&pieces, &mut position).await;
        drop(pieces);
        let written =
            writer.await.map_err(|e| Error::internal("the writer of a fill died", e))??;
        fetched?;
        Ok((written.hasher, written.written))
    }

    async fn feed(&self, pieces: &mpsc::Sender<Piece>, position: &mut u64) -> Result<()> {
        let mut fruitless = 0;
        loop {
            let before = *position;
            let error = match self.attempt(pieces, position).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            fruitless = if *position > before { 0 } else { fruitless + 1 };
            let again = error.kind() == Kind::Unavailable
                && fruitless < FRUITLESS_MAX
                && self.fill.progress.borrow().head;
            if !again || pieces.is_closed() {
                return Err(error);
            }
            tracing::info!(digest = %self.digest, from = *position, ?error, "transfer broke; resuming");
        }
    }

    /// One transfer, from `position` to the end or to a break.
    async fn attempt(&self, pieces: &mpsc::Sender<Piece>, position: &mut u64) -> Result<()> {
        let ask = Ask::blob_from(&self.fill.place.repository, &self.digest, *position);
        let mut answer = self.upstream.ask(&ask, Patience::Full).await?;
        let (start, total) = self.accept(&answer, &ask).await?;
        let mut at = start;
        while let Some(bytes) = answer.piece().await? {
            let begin = at;
            at += bytes.len() as u64;
            if total.is_some_and(|t| at > t) {
                return Err(self.bad("sent more bytes than it announced"));
            }
            if pieces.send(Piece { at: begin, bytes }).await.is_err() {
                return Err(self.bad("sent other bytes than before, or the disk failed"));
            }
            *position = at.max(*position);
        }
        match total {
            Some(total) if at < total => Err(Error::new(
                Kind::Unavailable,
                format!("{} ended the transfer at byte {at} of {total}", self.upstream.name()),
            )),
            _ => Ok(()),
        }
    }

    /// Judges the head of an answer, notes the size and the proof that it gives.
    async fn accept(&self, answer: &Answer, ask: &Ask) -> Result<(u64, Option<u64>)> {
        let (start, total) = ask::extent(answer.status(), answer.headers(), ask.range)
            .map_err(|why| self.bad(&format!("answered with {why}")))?;
        let told = self.fill.progress.borrow().size;
        if let (Some(told), Some(total)) = (told, total)
            && told != total
        {
            return Err(
                self.bad(&format!("says the blob has {total} bytes, and said {told} before"))
            );
        }
        self.fills.store.set_link(&self.fill.place, &self.digest, Link::default()).await;
        let size = total.or(told);
        self.fill.progress.send_modify(|p| {
            p.head = true;
            p.size = size;
        });
        Ok((start, size))
    }

    fn bad(&self, what: &str) -> Error {
        Error::new(Kind::BadUpstream, format!("{} {what} ({})", self.upstream.name(), self.digest))
    }

    fn drop_file(&self) {
        self.fills.store.disk().drop_fill(&self.path);
    }
}

/// Tells the followers how it ended, even where the task panics: dropped without an outcome means
/// failed. A transfer that broke leaves its file for the next attempt; wrong bytes do not stay.
struct Ending<'a>(&'a Task);

impl Ending<'_> {
    fn with(self, outcome: Result<()>) {
        let task = self.0;
        std::mem::forget(self);
        Self::end(task, outcome);
    }

    fn end(task: &Task, outcome: Result<()>) {
        if outcome.as_ref().is_err_and(|e| e.kind() != Kind::Unavailable) || task.is_empty() {
            task.drop_file();
        }
        task.fills.under_way.lock().remove(&task.digest);
        task.fills.metrics.fills_in_flight.dec();
        task.fill.progress.send_modify(|p| p.end = Some(outcome));
    }
}

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        Self::end(self.0, Err(Error::new(Kind::Internal, "a download was dropped")));
    }
}

impl Task {
    fn is_empty(&self) -> bool {
        self.fill.file.metadata().is_ok_and(|m| m.len() == 0)
    }
}

/// A piece of content and where it belongs.
struct Piece {
    at: u64,
    bytes: Bytes,
}

/// What is in the file, and its hash so far.
struct Written {
    hasher: Hasher,
    written: u64,
}

impl Written {
    fn read(file: &File, digest: Digest) -> std::io::Result<Self> {
        let mut hasher = Hasher::new(digest.algorithm());
        let mut buffer = vec![0; SLICE_BYTES];
        let mut written = 0;
        loop {
            match file.read_at(&mut buffer, written)? {
                0 => return Ok(Self { hasher, written }),
                n => {
                    hasher.update(&buffer[..n]);
                    written += n as u64;
                }
            }
        }
    }

    /// Writes what comes, until nothing more does. Runs on a blocking thread.
    fn write(mut self, fill: &Fill, mut inbox: mpsc::Receiver<Piece>) -> Result<Self> {
        let full = |e| Error::internal("cannot write a download", e);
        while let Some(piece) = inbox.blocking_recv() {
            let known = self.written.saturating_sub(piece.at).min(piece.bytes.len() as u64);
            let (old, new) =
                piece.bytes.split_at(usize::try_from(known).unwrap_or(piece.bytes.len()));
            if !old.is_empty() && !same(&fill.file, piece.at, old).map_err(full)? {
                return Err(Error::new(
                    Kind::BadUpstream,
                    "the upstream sent other bytes than before the break",
                ));
            }
            fill.file.write_all_at(new, self.written).map_err(full)?;
            self.hasher.update(new);
            self.written += new.len() as u64;
            let written = self.written;
            fill.progress.send_if_modified(|p| {
                let hold = HOLD_BACK_BYTES.min(p.size.unwrap_or(u64::MAX));
                let limit = p.size.map_or(written.saturating_sub(hold), |s| written.min(s - hold));
                let moved = limit > p.ready;
                p.ready = p.ready.max(limit);
                moved
            });
        }
        Ok(self)
    }
}

fn same(file: &File, at: u64, bytes: &[u8]) -> std::io::Result<bool> {
    let mut known = vec![0; bytes.len()];
    file.read_exact_at(&mut known, at)?;
    Ok(known == bytes)
}
