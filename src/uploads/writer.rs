//! What a request adds to an upload, on a thread of its own.

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::{SoFar, Turn};
use crate::error::{Error, Kind, Result};
use crate::hosted::unwritable;

/// Adds to an upload. Dropped before its end, it leaves what has come: the client may go on there.
#[derive(Debug)]
pub struct Writer {
    pieces: mpsc::Sender<Bytes>,
    task: JoinHandle<(Turn, Result<()>)>,
    before: SoFar,
}

impl Writer {
    pub(super) fn new(
        pieces: mpsc::Sender<Bytes>,
        task: JoinHandle<(Turn, Result<()>)>,
        before: SoFar,
    ) -> Self {
        Self { pieces, task, before }
    }

    /// Hands over the next piece; `false`: no more are taken, and `end` says why.
    pub async fn write(&self, piece: Bytes) -> bool {
        self.pieces.send(piece).await.is_ok()
    }

    /// Waits until all is written, and says how far the upload has come.
    ///
    /// # Errors
    /// `SizeInvalid` where not exactly `length` bytes came: they are taken back then. `TooLarge`,
    /// `StorageFull` or `Internal`.
    pub async fn end(self, length: Option<u64>) -> Result<u64> {
        let Self { pieces, task, before } = self;
        drop(pieces);
        let (mut state, written) =
            task.await.map_err(|e| Error::internal("the writer of an upload died", e))?;
        written?;
        let came = state.so_far.written - before.written;
        match length {
            Some(length) if length != came => {
                state.file.set_len(before.written).map_err(unwritable)?;
                state.so_far = before;
                let text = format!("{came} bytes came where Content-Range says {length}");
                Err(Error::new(Kind::SizeInvalid, text))
            }
            _ => Ok(state.so_far.written),
        }
    }
}

/// Writes and hashes what comes, until nothing more does. Runs on a blocking thread.
pub(super) fn write(
    mut state: Turn,
    mut inbox: mpsc::Receiver<Bytes>,
    size_max: u64,
) -> (Turn, Result<()>) {
    while let Some(piece) = inbox.blocking_recv() {
        if state.so_far.written + piece.len() as u64 > size_max {
            let text = format!("blobs of more than {size_max} bytes are not taken");
            return (state, Err(Error::new(Kind::TooLarge, text)));
        }
        if let Err(error) = state.take(&piece) {
            let _ = state.file.set_len(state.so_far.written); // else it is written over later
            return (state, Err(error));
        }
    }
    (state, Ok(()))
}
