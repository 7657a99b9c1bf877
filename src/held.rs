//! Which content is hosted: a set in memory, so that the eviction of cached content can ask it.

use std::collections::{HashMap, HashSet};

use parking_lot::Mutex;

use crate::digest::Digest;

/// The digests that hosted repositories link to, by their first half. Of a store that hosts nothing
/// it is empty.
#[derive(Debug, Default)]
pub struct Held(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    set: HashSet<u128>,
    /// Whether links are still being read from the disk.
    learning: bool,
    /// Content that is being kept, and whose link is yet to be written.
    arriving: HashMap<u128, usize>,
    /// What has been linked since a collection began to look; `None` while there is none.
    linked_since: Option<HashSet<u128>>,
    /// What has lost a link since the last collection. After a restart that is forgotten: such
    /// content is no longer hosted then, and leaves as cached content does.
    dropped: HashSet<Digest>,
}

/// Content that is being kept: as long as this lives, it is not removed.
#[derive(Debug)]
pub struct Arriving<'a> {
    held: &'a Held,
    short: u128,
}

impl State {
    fn contains(&self, short: u128) -> bool {
        self.learning || self.set.contains(&short) || self.arriving.contains_key(&short)
    }
}

impl Held {
    /// Whether content is hosted. While links are being read all of it counts as such.
    pub fn contains(&self, digest: &Digest) -> bool {
        self.0.lock().contains(digest.short())
    }

    /// Whether links are still being read from the disk.
    pub fn is_learning(&self) -> bool {
        self.0.lock().learning
    }

    /// Runs `remove` unless content is hosted. Whoever announces the same content meanwhile waits.
    pub fn unless_hosted<T>(&self, digest: &Digest, remove: impl FnOnce() -> T) -> Option<T> {
        let state = self.0.lock();
        (!state.contains(digest.short())).then(remove)
    }

    /// Links are going to be read from the disk.
    pub fn learn(&self) {
        self.0.lock().learning = true;
    }

    /// Notes links that were found on disk.
    pub fn found(&self, digests: &[Digest]) {
        self.0.lock().set.extend(digests.iter().map(Digest::short));
    }

    /// Notes that all links on disk have been found.
    pub fn learnt(&self) {
        self.0.lock().learning = false;
    }

    /// Announces content that is about to be kept and linked.
    pub fn arriving(&self, digest: &Digest) -> Arriving<'_> {
        let short = digest.short();
        *self.0.lock().arriving.entry(short).or_default() += 1;
        Arriving { held: self, short }
    }

    /// Notes that a repository no longer links to content; others may.
    pub fn dropped(&self, digest: &Digest) {
        self.0.lock().dropped.insert(*digest);
    }

    /// A collection begins to look for links, to all that has lost one.
    pub fn collection_begins(&self) -> HashSet<Digest> {
        let mut state = self.0.lock();
        state.linked_since = Some(HashSet::new());
        std::mem::take(&mut state.dropped)
    }

    /// A collection has ended.
    pub fn collection_ends(&self) {
        self.0.lock().linked_since = None;
    }

    /// Runs `remove` for content to which no link was found, unless one has come since. Whoever
    /// announces the same content meanwhile waits.
    pub fn release<T>(&self, digest: &Digest, remove: impl FnOnce() -> T) -> Option<T> {
        let short = digest.short();
        let mut state = self.0.lock();
        let linked = state.linked_since.as_ref().is_none_or(|linked| linked.contains(&short));
        if linked || state.arriving.contains_key(&short) {
            return None;
        }
        state.set.remove(&short);
        Some(remove())
    }
}

impl Arriving<'_> {
    /// The link is there.
    pub fn linked(self) {
        let mut state = self.held.0.lock();
        state.set.insert(self.short);
        if let Some(linked) = &mut state.linked_since {
            linked.insert(self.short);
        }
    }
}

impl Drop for Arriving<'_> {
    fn drop(&mut self) {
        let mut state = self.held.0.lock();
        if let Some(count) = state.arriving.get_mut(&self.short) {
            *count -= 1;
            if *count == 0 {
                state.arriving.remove(&self.short);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Algorithm;

    #[test]
    fn what_arrives_or_has_arrived_since_is_not_released() {
        let held = Held::default();
        let digest = Digest::of(Algorithm::Sha256, b"x");
        held.learn();
        assert!(held.contains(&digest), "all counts as hosted until the links are read");
        held.learnt();
        assert!(!held.contains(&digest) && held.unless_hosted(&digest, || ()).is_some());
        held.collection_begins();
        let arriving = held.arriving(&digest);
        assert!(held.contains(&digest) && held.release(&digest, || ()).is_none());
        arriving.linked();
        assert!(held.contains(&digest) && held.release(&digest, || ()).is_none());
        assert!(held.unless_hosted(&digest, || ()).is_none());
        held.collection_ends();
        held.dropped(&digest);
        assert!(held.collection_begins().contains(&digest));
        assert!(held.release(&digest, || ()).is_some() && !held.contains(&digest));
    }
}
