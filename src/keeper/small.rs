//! Small content in memory, within a bound that a reload may change.

use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use arc_swap::ArcSwap;
use bytes::Bytes;
use moka::sync::Cache;

use crate::digest::Digest;

/// Small content in memory.
#[derive(Debug)]
pub struct Small {
    /// The content.
    pub bytes: Bytes,
    /// When it was last asked for, in seconds; 0 where the order knows of that.
    pub used: AtomicU32,
}

/// All of it. Clones are the same memory.
#[derive(Clone, Debug)]
pub struct Smalls(Arc<ArcSwap<Cache<Digest, Arc<Small>>>>);

impl Smalls {
    /// Room for so many bytes.
    pub fn new(room: u64) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(cache(room))))
    }

    /// Begins anew with another room, unless it is the same. What was held is read again from the
    /// disk as it is asked for: copied, some of it might outlive its removal meanwhile.
    pub fn set_room(&self, room: u64) {
        if self.0.load().policy().max_capacity() != Some(room) {
            self.0.store(Arc::new(cache(room)));
        }
    }

    /// What is held of a digest.
    pub fn get(&self, digest: &Digest) -> Option<Arc<Small>> {
        self.0.load().get(digest)
    }

    /// Holds it.
    pub fn insert(&self, digest: Digest, bytes: Bytes) {
        self.0.load().insert(digest, Arc::new(Small { bytes, used: AtomicU32::new(0) }));
    }

    /// Forgets it.
    pub fn invalidate(&self, digest: &Digest) {
        self.0.load().invalidate(digest);
    }

    /// Everything, one after the other.
    pub fn each(&self, mut look: impl FnMut(&Digest, &Small)) {
        self.0.load().iter().for_each(|(digest, small)| look(&digest, &small));
    }

    /// Bytes held, nearly.
    pub fn bytes(&self) -> u64 {
        self.0.load().weighted_size()
    }
}

fn cache(room: u64) -> Cache<Digest, Arc<Small>> {
    let weigh = |_: &Digest, s: &Arc<Small>| u32::try_from(s.bytes.len() + 256).unwrap_or(u32::MAX);
    Cache::builder().max_capacity(room).weigher(weigh).build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_room_begins_anew_and_the_same_one_does_not() {
        let small = Smalls::new(1 << 20);
        let digest = Digest::of(crate::digest::Algorithm::Sha256, b"x");
        small.insert(digest, Bytes::from_static(b"x"));
        let clone = small.clone();
        clone.set_room(1 << 20);
        assert!(small.get(&digest).is_some());
        clone.set_room(1 << 21);
        assert!(small.get(&digest).is_none(), "clones are the same memory");
    }
}
