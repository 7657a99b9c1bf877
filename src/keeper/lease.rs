//! Room in the cache that somebody writes to: counted before it is there, and until it is published or
//! given up.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Company, Keeper};

/// Room that a fill has taken; given back when dropped.
#[derive(Debug)]
pub struct Lease {
    pub(super) keeper: Arc<Keeper>,
    pub(super) bytes: u64,
    pub(super) unwritten: u64,
}

impl Lease {
    /// Notes bytes that have been written.
    pub fn wrote(&mut self, bytes: u64) {
        let bytes = bytes.min(self.unwritten);
        self.unwritten -= bytes;
        self.keeper.unwritten.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Takes more room, for content whose size was not told. Whether there is some.
    pub fn grow(&mut self, bytes: u64) -> bool {
        self.bytes += bytes;
        self.unwritten += bytes;
        self.keeper.reserved.fetch_add(bytes, Ordering::Relaxed);
        self.keeper.unwritten.fetch_add(bytes, Ordering::Relaxed);
        if !self.keeper.could_fit() {
            return false;
        }
        // Who fills alone may go beyond while the rest is being read: the one object of slack.
        // Not beside another process, whose downloads nobody counts here.
        let alone = || {
            self.keeper.company() == Company::Alone
                && self.keeper.reserved.load(Ordering::Relaxed) == self.bytes
                && self.keeper.has_free(0)
        };
        self.keeper.make_room() || alone()
    }

    /// How much of it has not been written.
    pub fn unwritten(&self) -> u64 {
        self.unwritten
    }

    /// Who gave it.
    pub fn keeper(&self) -> &Arc<Keeper> {
        &self.keeper
    }

    /// How much it is.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.keeper.reserved.fetch_sub(self.bytes, Ordering::Relaxed);
        self.keeper.unwritten.fetch_sub(self.unwritten, Ordering::Relaxed);
    }
}
