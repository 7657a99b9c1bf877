//! What of a blob is in its file: the front, without a gap and hashed as it grows, and what parallel
//! transfers have written ahead of it.
//!
//! Pieces come through a `Sink`, which lets so many bytes wait and no more. They are written in
//! batches on blocking threads: a fill that waits for its upstream keeps no thread.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::blocks::Summing;
use crate::digest::{Digest, Hasher};
use crate::error::{Error, Kind, Result};
use crate::fill::{Fill, Fills};
use crate::keeper::Lease;
use crate::limits::{FILL_BYTES_WAITING, HOLD_BACK_BYTES, SLICE_BYTES};
use crate::store::{self, Store};

/// Pieces written by one call to a blocking thread.
const BATCH_MAX: usize = 64;

/// How large the HTTP client's buffers become: what one read may bring.
const BUFFER_BYTES: usize = 8192 + 4096 * 100;

/// How far the front goes before it is noted anew beside a file that has more in it.
const NOTED_EVERY: u64 = 4 * 1024 * 1024;

/// What the writer is told.
enum Piece {
    /// Content, where it belongs, and its share of what may wait.
    Bytes(u64, Bytes, OwnedSemaphorePermit),
    /// The room that it takes.
    Lease(Lease),
}

/// Where transfers put what they receive.
pub(super) struct Sink {
    pieces: mpsc::Sender<Piece>,
    room: Arc<Semaphore>,
}

/// The other end of a sink.
pub(super) struct Inbox(mpsc::Receiver<Piece>);

/// A sink and where it leads.
pub(super) fn sink() -> (Sink, Inbox) {
    let (pieces, inbox) = mpsc::channel(BATCH_MAX);
    (Sink { pieces, room: Arc::new(Semaphore::new(FILL_BYTES_WAITING as usize)) }, Inbox(inbox))
}

impl Sink {
    /// Hands over content; waits while too much is waiting. `false` where the writer has ended,
    /// with an error that counts more than any other.
    pub(super) async fn put(&self, at: u64, bytes: Bytes) -> bool {
        let share = u32::try_from(bytes.len()).unwrap_or(u32::MAX).min(FILL_BYTES_WAITING);
        // A small piece keeps the whole of the large buffer that it was read into.
        let is_small = bytes.len() < BUFFER_BYTES / 3;
        let bytes = if is_small { Bytes::copy_from_slice(&bytes) } else { bytes };
        let Ok(permit) = Arc::clone(&self.room).acquire_many_owned(share).await else {
            return false;
        };
        self.pieces.send(Piece::Bytes(at, bytes, permit)).await.is_ok()
    }

    /// Hands over the room that the content takes. `false` as with `put`.
    pub(super) async fn lease(&self, lease: Lease) -> bool {
        self.pieces.send(Piece::Lease(lease)).await.is_ok()
    }

    /// Whether the writer has ended.
    pub(super) fn is_closed(&self) -> bool {
        self.pieces.is_closed()
    }
}

/// What is in the file, with its hash and checksums so far.
pub(super) struct Front {
    pub(super) hasher: Hasher,
    pub(super) summing: Summing,
    /// Its end: all before it is there and hashed.
    pub(super) bytes: u64,
    pub(super) lease: Option<Lease>,
    /// What lies beyond it, start to end.
    ahead: BTreeMap<u64, u64>,
    /// Where it was when last noted beside the file; 0 where nothing was ever ahead of it.
    noted: u64,
}

impl Front {
    /// Hashes what an earlier attempt has left. Blocks the thread.
    ///
    /// # Errors
    /// What the file system says.
    pub(super) fn read(file: &File, digest: Digest) -> io::Result<Self> {
        let mut front = Self {
            hasher: Hasher::new(digest.algorithm()),
            summing: Summing::default(),
            bytes: 0,
            lease: None,
            ahead: BTreeMap::new(),
            noted: 0,
        };
        front.hash_to(file, file.metadata()?.len())?;
        Ok(front)
    }

    /// Hashes what is in the file from the front on, up to `end`, which is not before it, or the file's
    /// own end.
    fn hash_to(&mut self, file: &File, end: u64) -> io::Result<()> {
        let slice = |left: u64| usize::try_from(left).unwrap_or(SLICE_BYTES).min(SLICE_BYTES);
        let mut buffer = vec![0; slice(end - self.bytes)];
        while self.bytes < end {
            let most = slice(end - self.bytes);
            match file.read_at(&mut buffer[..most], self.bytes)? {
                0 => break,
                n => self.take(&buffer[..n]),
            }
        }
        Ok(())
    }

    fn take(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
        self.summing.update(bytes);
        self.bytes += bytes.len() as u64;
    }

    /// Writes what comes, until nothing more does.
    ///
    /// # Errors
    /// `DiskFailed`, or `BadUpstream` where a resumed transfer brings other bytes than before.
    pub(super) async fn write(
        mut self,
        fills: &Fills,
        fill: &Arc<Fill>,
        Inbox(mut inbox): Inbox,
    ) -> Result<Self> {
        let mut batch = Vec::new();
        while inbox.recv_many(&mut batch, BATCH_MAX).await > 0 {
            let pieces = std::mem::take(&mut batch);
            let (fill, store) = (Arc::clone(fill), Arc::clone(&fills.store));
            let _turn = fills.writers.acquire().await;
            let written = tokio::task::spawn_blocking(move || {
                for piece in pieces {
                    self.accept(&fill, &store, piece)?;
                }
                Ok(self)
            });
            self = written.await.map_err(|e| Error::internal("the writer of a fill died", e))??;
        }
        Ok(self)
    }

    fn accept(&mut self, fill: &Fill, store: &Store, piece: Piece) -> Result<()> {
        let (Some(file), Some(path)) = (fill.file.get(), fill.path.get()) else {
            return Err(Error::internal("a fill has no file", "it was not opened"));
        };
        let (at, bytes, _share) = match piece {
            Piece::Bytes(at, bytes, share) => (at, bytes, share),
            Piece::Lease(mut lease) => {
                lease.wrote(self.bytes);
                self.lease = Some(lease);
                return Ok(());
            }
        };
        let failed =
            |e| Error::new(Kind::DiskFailed, format!("{} cannot be kept", fill.digest)).because(e);
        let known = self.bytes.saturating_sub(at).min(bytes.len() as u64);
        let (old, new) = bytes.split_at(usize::try_from(known).unwrap_or(bytes.len()));
        if !old.is_empty() && !same(file, at, old).map_err(failed)? {
            let upstream = fill.upstream.name();
            let text =
                format!("{upstream} sent other bytes than before the break ({})", fill.digest);
            return Err(Error::new(Kind::BadUpstream, text));
        }
        let stored = self.store(path, file, store, at + known, new);
        let keeper = store.keeper();
        keeper.wrote(stored.as_ref().map_or_else(|e| Err(e.kind().into()), |()| Ok(())));
        stored.map_err(failed)?;
        self.release(fill);
        Ok(())
    }

    fn store(
        &mut self,
        path: &Path,
        file: &File,
        store: &Store,
        at: u64,
        new: &[u8],
    ) -> io::Result<()> {
        let (length, keeper) = (new.len() as u64, store.keeper());
        let leased = self.lease.as_ref().map_or(0, Lease::bytes);
        if at + length > leased {
            let grown = if let Some(lease) = &mut self.lease {
                lease.grow(length)
            } else {
                self.lease = keeper.reserve(at + length);
                self.lease.is_some()
            };
            if !grown {
                return Err(io::ErrorKind::StorageFull.into());
            }
        }
        if at > self.bytes {
            self.note(path, store)?;
        }
        file.write_all_at(new, at).or_else(|e| {
            let rest = self.lease.as_ref().map_or(0, Lease::unwritten);
            let room = store::is_full(&e) && keeper.relieve(length.max(rest));
            if room { file.write_all_at(new, at) } else { Err(e) }
        })?;
        if let Some(lease) = &mut self.lease {
            lease.wrote(length);
        }
        if at > self.bytes {
            self.put_ahead(at, length);
            return Ok(());
        }
        self.take(new);
        self.absorb(file)?;
        if self.noted > 0 { self.note(path, store) } else { Ok(()) }
    }

    /// Notes what lies ahead; a transfer writes piece after piece.
    fn put_ahead(&mut self, at: u64, length: u64) {
        let growing = self.ahead.range_mut(..=at).next_back().filter(|(_, end)| **end >= at);
        if let Some((_, end)) = growing {
            *end = (*end).max(at + length);
        } else {
            self.ahead.insert(at, at + length);
        }
    }

    /// Takes in what the front has reached.
    fn absorb(&mut self, file: &File) -> io::Result<()> {
        while let Some(entry) = self.ahead.first_entry().filter(|entry| *entry.key() <= self.bytes)
        {
            let end = entry.remove();
            self.hash_to(file, end.max(self.bytes))?;
        }
        Ok(())
    }

    /// Notes beside the file how far its front goes, before and while something lies ahead: after
    /// kill -9 the file's length would be taken for it.
    fn note(&mut self, path: &Path, store: &Store) -> io::Result<()> {
        if self.noted == 0 || self.bytes >= self.noted + NOTED_EVERY {
            store.disk().note_front(path, self.bytes)?;
            self.noted = self.bytes.max(1);
        }
        Ok(())
    }

    /// Moves the watermark.
    fn release(&self, fill: &Fill) {
        let written = self.bytes;
        let ahead = self.ahead.iter().map(|(start, end)| end - start).sum();
        fill.progress.send_if_modified(|p| {
            let hold = HOLD_BACK_BYTES.min(p.size.unwrap_or(u64::MAX));
            let limit = p.size.map_or(written.saturating_sub(hold), |s| written.min(s - hold));
            let moved = limit > p.ready;
            p.written = written;
            p.ahead = ahead;
            p.ready = p.ready.max(limit);
            moved
        });
    }
}

fn same(file: &File, at: u64, bytes: &[u8]) -> io::Result<bool> {
    let mut known = vec![0; bytes.len()];
    file.read_exact_at(&mut known, at)?;
    Ok(known == bytes)
}
