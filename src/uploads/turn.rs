//! An upload for one writer, in this process or in the one that hands over to it.

use std::io;
use std::ops::{Deref, DerefMut};
use std::path::Path;

use tokio::sync::OwnedMutexGuard;

use super::{SoFar, State};
use crate::digest::Algorithm;
use crate::disk::lock_soon;

/// An upload, while nobody else writes to it.
/// Within this process by a guard, and for another one, which may have it open, by a lock.
#[derive(Debug)]
pub(super) struct Turn {
    pub(super) state: OwnedMutexGuard<State>,
}

impl Turn {
    /// Takes up what another process may have added meanwhile; `None` where it has ended the upload.
    pub(super) fn take_up(
        mut state: OwnedMutexGuard<State>,
        path: &Path,
        algorithm: &str,
    ) -> io::Result<Option<Self>> {
        lock_soon(&state.file)?;
        let length = state.file.metadata()?.len();
        let turn = |state| Self { state };
        if !path.try_exists()? {
            state.is_over = true;
            drop(turn(state));
            return Ok(None);
        }
        if length != state.so_far.written
            && let Some(algorithm) = Algorithm::parse(algorithm)
        {
            state.so_far = SoFar::read(&state.file, algorithm)?;
            let missing = state.so_far.written.saturating_sub(state.room.bytes());
            if missing > 0 && !state.room.grow(missing) {
                return Err(io::ErrorKind::StorageFull.into());
            }
            state.room.wrote(missing);
        }
        Ok(Some(turn(state)))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let _ = self.state.file.unlock(); // closed with the upload at the latest
    }
}

impl Deref for Turn {
    type Target = State;

    fn deref(&self) -> &State {
        &self.state
    }
}

impl DerefMut for Turn {
    fn deref_mut(&mut self) -> &mut State {
        &mut self.state
    }
}
