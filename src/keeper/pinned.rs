//! What never leaves: what the operator's pins hold, and what is hosted.

use std::collections::HashSet;

use super::Keeper;
use crate::digest::Digest;

impl Keeper {
    /// Lets content be let go, or not; what an operator has pinned stays.
    pub fn pin(&self, digest: &Digest, pinned: bool) {
        let pinned = pinned || self.pinned.lock().contains(digest);
        self.index.lock().pin(digest, pinned);
    }

    /// Takes over what the pins hold, now and when it comes.
    pub fn set_pinned(&self, held: HashSet<Digest>) {
        let mut pinned = self.pinned.lock();
        let mut index = self.index.lock();
        for digest in pinned.difference(&held) {
            index.pin(digest, false);
        }
        for digest in &held {
            index.pin(digest, true);
        }
        *pinned = held;
    }

    /// Whether content is pinned.
    pub fn is_pinned(&self, digest: &Digest) -> bool {
        self.index.lock().is_pinned(digest)
    }

    /// Bytes that pinned content takes on disk.
    pub fn pinned_bytes(&self) -> u64 {
        self.index.lock().pinned()
    }
}
