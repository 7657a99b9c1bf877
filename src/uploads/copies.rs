//! Copies of what is pushed through to an upstream, kept once the upstream has taken it.
//!
//! A copy is an upload like any other, but of a place upstream. It may fail and be dropped at any time: it
//! only spares the next pull a download.

use std::io;
use std::sync::Arc;

use bytes::Bytes;

use super::{State, Upload, Uploads, Writer, unwritable};
use crate::blocks::Large;
use crate::digest::{Algorithm, Digest};
use crate::error::{Error, Kind, Result};
use crate::limits::SMALL_BYTES_MAX;
use crate::name::{Repository, UploadId};
use crate::store::{Place, Store};

impl Uploads {
    /// Begins a copy; `None` where there is no room for one, or the folder is still being read.
    pub async fn begin_copy(
        self: &Arc<Self>,
        place: &Place,
        algorithm: Algorithm,
        user: &str,
    ) -> Option<Arc<Upload>> {
        self.store.scanned().await.ok()?;
        let begun = self.start(&owner(place)?, algorithm, Some(user)).await;
        begun.inspect_err(|error| tracing::debug!(?error, "a push is not kept")).ok()
    }

    /// The copy of an upload under way.
    pub async fn find_copy(
        self: &Arc<Self>,
        place: &Place,
        id: &str,
        user: &str,
    ) -> Option<Arc<Upload>> {
        let id = UploadId::parse(id).ok()?;
        self.find(&owner(place)?, &id, Some(user)).await.ok()
    }

    /// Keeps a copy whose upload the upstream has taken for `digest`. Whether it is that.
    ///
    /// # Errors
    /// `StorageFull` or `Internal`.
    pub async fn keep_copy(self: &Arc<Self>, copy: &Arc<Upload>, digest: Digest) -> Result<bool> {
        let mut state = copy.turn().await?;
        let is_right = state.digest(digest.algorithm()).await? == digest;
        if is_right {
            let publish = publishing(&state, copy, digest);
            self.store.blocking(publish).await.map_err(unwritable)?;
        }
        self.remove(copy, &mut state).await;
        Ok(is_right)
    }

    /// Gives a copy up.
    pub async fn drop_copy(self: &Arc<Self>, copy: &Arc<Upload>) {
        if let Err(error) = self.cancel(copy).await {
            tracing::debug!(?error, "a copy of a push was given up before");
        }
    }
}

/// The name that a copy lies under: a repository's, since nobody else can have it here.
fn owner(place: &Place) -> Option<Repository> {
    let upstream = place.upstream.replace([':', '[', ']'], "-").to_ascii_lowercase();
    Repository::parse(&format!("{upstream}/{}", place.repository)).ok()
}

/// Writes a copy while its upload is passed on.
#[derive(Debug)]
pub struct Copying {
    copy: Arc<Upload>,
    writer: Option<Writer>,
}

impl Copying {
    /// Goes on with a copy, at `start` where the client says so.
    pub async fn go_on(copy: Arc<Upload>, start: Option<u64>) -> Self {
        let writer = copy.writer(start).await.ok();
        Self { copy, writer }
    }

    /// Takes a piece in; once that fails, no more.
    pub async fn piece(&mut self, piece: &Bytes) {
        if let Some(writer) = &self.writer
            && !writer.write(piece.clone()).await
        {
            self.writer = None;
        }
    }

    /// Waits until all is written; the copy, where it is whole.
    ///
    /// # Errors
    /// Why it is not, with the copy to be dropped.
    pub async fn end(self) -> Result<Arc<Upload>, (Arc<Upload>, Error)> {
        let gone = || Error::new(Kind::StorageFull, "a copy could not be written");
        let Some(writer) = self.writer else { return Err((self.copy, gone())) };
        match writer.end(None).await {
            Ok(_) => Ok(self.copy),
            Err(error) => Err((self.copy, error)),
        }
    }
}

/// Puts what has come in its place among all content; its digest is known to be right.
pub(super) fn publishing(
    state: &State,
    upload: &Upload,
    digest: Digest,
) -> impl FnOnce(&Store) -> io::Result<()> + Send + use<> {
    let (size, path) = (state.so_far.written, upload.path.clone());
    let (file, summing) = (Arc::clone(&state.file), state.so_far.summing.clone());
    move |store| {
        let sums = summing.finish();
        if size > SMALL_BYTES_MAX {
            store.disk().put_sums(&digest, &sums.encode())?;
        }
        store.disk().publish(&file, &path, &digest)?;
        store.keeper().published(&digest, size, None);
        if size > SMALL_BYTES_MAX {
            store.hold(Large::written(digest, file, sums)?);
        }
        Ok(())
    }
}
