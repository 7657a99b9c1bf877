//! Uploads under way: each a file that grows under `uploads/`, hashed while it is written, and
//! resumable after a restart.
//!
//! ```text
//! uploads/<id>                 what has come so far
//! uploads/<id>.json            whose it is
//! ```
//! An upload belongs to the repository that began it; under another one it does not exist.

#![expect(clippy::disallowed_methods, reason = "this is the room that touches these files")]

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use ring::rand::SecureRandom;
use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, mpsc};

use self::copies::publishing;
use crate::blocks::Summing;
use crate::digest::{Algorithm, Digest, Hasher};
use crate::disk::found;
use crate::error::{Error, Kind, Result};
use crate::hosted::{Hosted, no_room, unwritable};
use crate::keeper::{Company, Lease};
use crate::limits::{SLICE_BYTES, UPLOADS_MAX, UPLOADS_OPEN_MAX, WRITERS_MAX};
use crate::name::{Repository, UploadId};
use crate::store::{Store, is_full};

pub mod copies;
mod turn;
mod writer;

use turn::Turn;
pub use writer::Writer;

/// Pieces that wait to be written; each is what one read of the client's socket gave.
const PIECES_WAITING_MAX: usize = 8;

/// Room is taken for an upload in steps of so many bytes.
const ROOM_STEP_BYTES: u64 = 1024 * 1024;

/// How long a request waits for the one before it to let go of the same upload.
const TURN_WITHIN: Duration = Duration::from_secs(10);

/// The uploads under way.
#[derive(Debug)]
pub struct Uploads {
    store: Arc<Store>,
    hosted: Arc<Hosted>,
    open: Mutex<HashMap<UploadId, Arc<Upload>>>,
    /// Who may write at the same moment.
    writers: Arc<Semaphore>,
}

/// One upload.
#[derive(Debug)]
pub struct Upload {
    /// Its name.
    pub id: UploadId,
    owner: Owner,
    path: PathBuf,
    size_max: u64,
    store: Arc<Store>,
    state: Arc<tokio::sync::Mutex<State>>,
    writers: Arc<Semaphore>,
}

/// Whose an upload is, and how it is hashed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Owner {
    repository: String,
    algorithm: String,
    /// Who began it; `None` where nobody logs in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    user: Option<String>,
}

#[derive(Debug)]
struct State {
    file: Arc<File>,
    so_far: SoFar,
    /// Room within the cache's bounds.
    room: Lease,
    /// It is a blob by now, or was given up.
    is_over: bool,
}

/// What has come, in figures; copied to be able to take the last of it back.
#[derive(Clone, Debug)]
struct SoFar {
    hasher: Hasher,
    summing: Summing,
    written: u64,
}

impl Uploads {
    /// The uploads in a store's folder.
    pub fn new(store: Arc<Store>, hosted: Arc<Hosted>) -> Self {
        Self {
            store,
            hosted,
            open: Mutex::default(),
            writers: Arc::new(Semaphore::new(WRITERS_MAX)),
        }
    }

    fn path(&self, id: &UploadId) -> PathBuf {
        self.store.disk().root().join("uploads").join(id.as_str())
    }

    /// Begins an upload.
    ///
    /// # Errors
    /// `StorageFull` or `Internal`.
    pub async fn start(
        self: &Arc<Self>,
        repository: &Repository,
        algorithm: Algorithm,
        user: Option<&str>,
    ) -> Result<Arc<Upload>> {
        let mut random = [0; 16];
        ring::rand::SystemRandom::new()
            .fill(&mut random)
            .map_err(|_| Error::new(Kind::Internal, "the system gives no random numbers"))?;
        let id = UploadId::new(random);
        let owner = Owner {
            repository: repository.to_string(),
            algorithm: algorithm.as_str().to_owned(),
            user: user.map(str::to_owned),
        };
        self.store.keeper().scanned().await; // room is only known from then on
        let (path, record) = (self.path(&id), serde_json::to_vec(&owner).unwrap_or_default());
        let p = path.clone();
        let made = self.store.blocking(move |store| {
            refuse_a_flood(&p)?;
            let room = store.keeper().reserve(0).ok_or(io::ErrorKind::StorageFull)?;
            let file = create(&p, &record)?;
            Ok(State { file: Arc::new(file), so_far: SoFar::new(algorithm), room, is_over: false })
        });
        let made = made.await.map_err(|error| match error.kind() {
            io::ErrorKind::QuotaExceeded => {
                Error::new(Kind::TooManyRequests, "too many uploads are under way").because(error)
            }
            _ => unwritable(error),
        });
        Ok(self.keep_open(id, owner, path, made?))
    }

    fn keep_open(&self, id: UploadId, owner: Owner, path: PathBuf, state: State) -> Arc<Upload> {
        let size_max = match self.hosted.settings().max_blob_size.bytes() {
            0 => u64::MAX,
            size => size,
        };
        let state = Arc::new(tokio::sync::Mutex::new(state));
        let writers = Arc::clone(&self.writers);
        let store = Arc::clone(&self.store);
        let upload =
            Arc::new(Upload { id: id.clone(), owner, path, size_max, store, state, writers });
        let mut open = self.open.lock();
        if open.len() >= UPLOADS_OPEN_MAX {
            // Only those that no request holds: two writers must never meet.
            open.retain(|_, upload| is_in_use(upload));
        }
        Arc::clone(open.entry(id).or_insert(upload))
    }

    /// An upload under way, of this repository and begun by this user (CVE-2026-32589).
    ///
    /// # Errors
    /// `BlobUploadUnknown`, or `Internal`.
    pub async fn find(
        self: &Arc<Self>,
        repository: &Repository,
        id: &UploadId,
        user: Option<&str>,
    ) -> Result<Arc<Upload>> {
        let known = self.open.lock().get(id).cloned();
        let upload = match known {
            Some(upload) => upload,
            None => self.reopen(id).await?.ok_or_else(|| unknown(id))?,
        };
        // The same answer as for one that never was: an id tells nothing to others.
        let owner = &upload.owner;
        let own = owner.repository == repository.as_str() && owner.user.as_deref() == user;
        if own { Ok(upload) } else { Err(unknown(id)) }
    }

    /// Takes up what an earlier process has left.
    async fn reopen(self: &Arc<Self>, id: &UploadId) -> Result<Option<Arc<Upload>>> {
        let path = self.path(id);
        let p = path.clone();
        self.store.keeper().scanned().await;
        let left = self.store.blocking(move |store| reopen(store, &p)).await.map_err(unwritable)?;
        Ok(left.map(|(owner, state)| self.keep_open(id.clone(), owner, path, state)))
    }

    /// Makes a blob of an upload.
    ///
    /// # Errors
    /// `DigestInvalid` where it is not what it should be: it is given up then. What `Hosted::adopt`
    /// says otherwise.
    pub async fn finish(
        self: &Arc<Self>,
        repository: &Repository,
        upload: &Arc<Upload>,
        digest: Digest,
    ) -> Result<u64> {
        let mut state = upload.turn().await?;
        let is_right = state.digest(digest.algorithm()).await? == digest;
        if !is_right {
            self.remove(upload, &mut state).await;
            let text = format!("the {} bytes uploaded are not {digest}", state.so_far.written);
            return Err(Error::new(Kind::DigestInvalid, text));
        }
        let size = state.so_far.written;
        self.hosted.adopt(repository, digest, size, publishing(&state, upload, digest)).await?;
        self.remove(upload, &mut state).await;
        Ok(size)
    }

    /// Gives an upload up.
    ///
    /// # Errors
    /// `BlobUploadUnknown` where it is over already.
    pub async fn cancel(self: &Arc<Self>, upload: &Arc<Upload>) -> Result<()> {
        let mut state = upload.turn().await?;
        self.remove(upload, &mut state).await;
        Ok(())
    }

    async fn remove(self: &Arc<Self>, upload: &Upload, state: &mut State) {
        state.is_over = true;
        let path = upload.path.clone();
        let removed = self.store.blocking(move |_| remove(&path)).await;
        if let Err(error) = removed {
            tracing::warn!(%error, upload = %upload.id, "cannot remove an upload that is over");
        }
        // Forgotten only now, so that nobody takes up what was left.
        self.open.lock().remove(&upload.id);
    }

    /// Forgets uploads that nobody writes to: another process may have gone on with them.
    pub fn forget(&self) {
        self.open.lock().retain(|_, upload| is_in_use(upload));
    }

    /// Gives up the uploads that have rested for longer than `age`; how many.
    ///
    /// # Errors
    /// `Internal` where the disk fails.
    pub async fn expire(self: &Arc<Self>, age: Duration) -> Result<u64> {
        let me = Arc::clone(self);
        let expired = self.store.blocking(move |store| {
            let mut expired = 0;
            let folder = store.disk().root().join("uploads");
            for entry in found(fs::read_dir(folder))?.into_iter().flatten() {
                let entry = entry?;
                let rested = entry.metadata()?.modified()?.elapsed().unwrap_or_default();
                let name = entry.file_name();
                if rested < age || name.to_string_lossy().ends_with(".json") {
                    continue;
                }
                let Ok(id) = UploadId::parse(&name.to_string_lossy()) else { continue };
                // One that a request holds is not at rest, whatever its file says.
                let mut open = me.open.lock();
                if open.get(&id).is_some_and(is_in_use) {
                    continue;
                }
                open.remove(&id);
                remove(&entry.path())?;
                expired += 1;
            }
            Ok(expired)
        });
        expired.await.map_err(unwritable)
    }
}

impl Upload {
    /// Waits for the request before to let go of it.
    async fn turn(&self) -> Result<Turn> {
        let turn = tokio::time::timeout(TURN_WITHIN, Arc::clone(&self.state).lock_owned()).await;
        let state = turn.map_err(|_| {
            let text = "another request is still adding to this upload; try again in a moment";
            Error::new(Kind::TooManyRequests, text).retry_after(Duration::from_secs(1))
        })?;
        if state.is_over {
            return Err(unknown(&self.id));
        }
        // Locked in any case: who hands over cannot know which of its requests go on.
        if self.store.keeper().company() == Company::Alone && state.file.try_lock().is_ok() {
            return Ok(Turn { state });
        }
        let (path, algorithm) = (self.path.clone(), self.owner.algorithm.clone());
        let taken = self.store.blocking(move |_| Turn::take_up(state, &path, &algorithm)).await;
        taken.map_err(unwritable)?.ok_or_else(|| unknown(&self.id))
    }

    /// How many bytes have come.
    ///
    /// # Errors
    /// `BlobUploadUnknown` where it is over.
    pub async fn size(&self) -> Result<u64> {
        self.turn().await.map(|state| state.so_far.written)
    }

    /// Begins to add to it, at `start` where the client says so.
    ///
    /// # Errors
    /// `RangeInvalid` where that is not where it ends.
    pub async fn writer(&self, start: Option<u64>) -> Result<Writer> {
        let state = self.turn().await?;
        let permit = Arc::clone(&self.writers).try_acquire_owned().map_err(|_| {
            Error::new(
                Kind::Unavailable,
                "too many uploads are being written; try again in a moment",
            )
        })?;
        if let Some(start) = start
            && start != state.so_far.written
        {
            let written = state.so_far.written;
            let text = format!("the upload goes on at byte {written}, not {start}");
            return Err(Error::new(Kind::RangeInvalid, text));
        }
        let (before, size_max) = (state.so_far.clone(), self.size_max);
        let (pieces, inbox) = mpsc::channel(PIECES_WAITING_MAX);
        let task = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            writer::write(state, inbox, size_max)
        });
        Ok(Writer::new(pieces, task, before))
    }
}

impl SoFar {
    fn new(algorithm: Algorithm) -> Self {
        Self { hasher: Hasher::new(algorithm), summing: Summing::default(), written: 0 }
    }

    fn update(&mut self, piece: &[u8]) {
        self.hasher.update(piece);
        self.summing.update(piece);
        self.written += piece.len() as u64;
    }

    /// Takes in a file, from its beginning.
    fn read(file: &File, algorithm: Algorithm) -> io::Result<Self> {
        let mut so_far = Self::new(algorithm);
        let mut buffer = vec![0; SLICE_BYTES];
        loop {
            match file.read_at(&mut buffer, so_far.written)? {
                0 => return Ok(so_far),
                n => so_far.update(&buffer[..n]),
            }
        }
    }
}

impl State {
    /// The digest of what has come; read again where it was hashed by another algorithm.
    async fn digest(&self, algorithm: Algorithm) -> Result<Digest> {
        let digest = self.so_far.hasher.clone().finish();
        if digest.algorithm() == algorithm {
            return Ok(digest);
        }
        let file = Arc::clone(&self.file);
        let read = tokio::task::spawn_blocking(move || SoFar::read(&file, algorithm))
            .await
            .map_err(|e| Error::internal("hashing an upload was broken off", e))?;
        Ok(read.map_err(unwritable)?.hasher.finish())
    }

    /// Writes and hashes a piece, and takes room for it.
    fn take(&mut self, piece: &[u8]) -> Result<()> {
        let (at, bytes) = (self.so_far.written, piece.len() as u64);
        let missing = (at + bytes).saturating_sub(self.room.bytes());
        if missing > 0 && !self.room.grow(missing.max(ROOM_STEP_BYTES)) {
            return Err(no_room());
        }
        let keeper = Arc::clone(self.room.keeper());
        let written = self.file.write_all_at(piece, at).or_else(|error| {
            if is_full(&error) && keeper.relieve(bytes) {
                self.file.write_all_at(piece, at)
            } else {
                Err(error)
            }
        });
        keeper.wrote(written.as_ref().map_or_else(|e| Err(e.kind().into()), |()| Ok(())));
        written.map_err(unwritable)?;
        self.room.wrote(bytes);
        self.so_far.update(piece);
        Ok(())
    }
}

/// Whether a request holds an upload, or is still writing to it.
fn is_in_use(upload: &Arc<Upload>) -> bool {
    Arc::strong_count(upload) > 1 || Arc::strong_count(&upload.state) > 1
}

fn create(path: &std::path::Path, record: &[u8]) -> io::Result<File> {
    let folder = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    fs::create_dir_all(folder)?;
    // Not synced: after a power loss the upload is not known, and the client begins a new one.
    fs::write(path.with_extension("json"), record)?;
    OpenOptions::new().create_new(true).read(true).write(true).open(path)
}

fn reopen(store: &Store, path: &std::path::Path) -> io::Result<Option<(Owner, State)>> {
    let Some(record) = found(fs::read(path.with_extension("json")))? else { return Ok(None) };
    let Ok(owner) = serde_json::from_slice::<Owner>(&record) else { return Ok(None) };
    let Some(algorithm) = Algorithm::parse(&owner.algorithm) else { return Ok(None) };
    let Some(file) = found(OpenOptions::new().read(true).write(true).open(path))? else {
        return Ok(None);
    };
    let so_far = SoFar::read(&file, algorithm)?;
    let mut room = store.keeper().reserve(so_far.written).ok_or(io::ErrorKind::StorageFull)?;
    room.wrote(so_far.written);
    Ok(Some((owner, State { file: Arc::new(file), so_far, room, is_over: false })))
}

fn remove(path: &std::path::Path) -> io::Result<()> {
    found(fs::remove_file(path))?;
    found(fs::remove_file(path.with_extension("json"))).map(|_| ())
}

fn unknown(id: &UploadId) -> Error {
    Error::new(Kind::BlobUploadUnknown, format!("there is no upload {id}; begin a new one"))
}
/// Whoever may push may begin uploads without end; they are counted where they lie.
fn refuse_a_flood(upload: &std::path::Path) -> io::Result<()> {
    let Some(folder) = upload.parent() else { return Ok(()) };
    let files = fs::read_dir(folder).map_or(0, Iterator::count);
    // Two files an upload.
    if files / 2 < UPLOADS_MAX { Ok(()) } else { Err(io::ErrorKind::QuotaExceeded.into()) }
}
