//! Which content leaves first: an access order in memory, bounded in bytes per object. Pure.
//!
//! A segmented LRU. What has been used once waits in `probation` and leaves first, so that a scan
//! over many images pushes out nothing that is used again and again; what is used a second time
//! moves to `protected`. Small objects, which manifests and configs are, are worth more than their
//! bytes (a layer without its manifest is useless, and each costs a counted request) and leave
//! last, as long as they take no more than a tenth of the room.

use hashbrown::HashTable;

use crate::digest::Digest;
use crate::limits::SMALL_BYTES_MAX;

/// Objects up to this size count as small.
const SMALL_BYTES: u64 = 64 * 1024;

/// The share of the room that protected objects may take, in percent. The rest is for newcomers,
/// which would otherwise leave before they are seen a second time.
const PROTECTED_PERCENT: u64 = 80;

/// The share of the room within which small objects leave last, in percent.
const SMALL_PERCENT: u64 = 10;

/// File systems give out room in blocks of this size.
const FILE_BLOCK: u64 = 4096;

const NONE: u32 = u32::MAX;

/// The lists, in the order in which they are emptied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum List {
    Probation = 0,
    Protected = 1,
    Small = 2,
}

/// One object: 56 bytes, and five more in the table.
#[derive(Debug)]
struct Entry {
    /// The first half of a sha512, whose rest is in `Index::tails`.
    key: [u8; 32],
    bytes: u64,
    used: u32,
    newer: u32,
    older: u32,
    list: List,
    long: bool,
    pinned: bool,
}

/// Head and tail of a list, with what it holds.
#[derive(Clone, Copy, Debug)]
struct Ends {
    newest: u32,
    oldest: u32,
    bytes: u64,
}

const EMPTY: Ends = Ends { newest: NONE, oldest: NONE, bytes: 0 };

/// The access order of all that is held on disk.
#[derive(Debug)]
pub struct Index {
    entries: Vec<Entry>,
    free: Vec<u32>,
    table: HashTable<u32>,
    tails: std::collections::HashMap<u32, [u8; 32]>,
    lists: [Ends; 3],
    room: u64,
    on_disk: u64,
    pinned: u64,
}

impl Index {
    /// An index for `room` bytes.
    pub fn new(room: u64) -> Self {
        Self {
            entries: Vec::new(),
            free: Vec::new(),
            table: HashTable::new(),
            tails: std::collections::HashMap::new(),
            lists: [EMPTY; 3],
            room,
            on_disk: 0,
            pinned: 0,
        }
    }

    /// Changes the room; nothing leaves by that.
    pub fn set_room(&mut self, room: u64) {
        self.room = room;
    }

    /// Bytes of all objects.
    pub fn bytes(&self) -> u64 {
        self.lists.iter().map(|l| l.bytes).sum()
    }

    /// What they take on disk: whole file blocks, and their checksums.
    pub fn on_disk(&self) -> u64 {
        self.on_disk
    }

    /// What the pinned ones of them take.
    pub fn pinned(&self) -> u64 {
        self.pinned
    }

    /// How many objects.
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// Takes in an object that was last used at `used` (seconds), or notes its new size. `again`:
    /// it has been used since it came.
    pub fn insert(&mut self, digest: &Digest, bytes: u64, used: u32, again: bool) {
        self.learn(digest, bytes, used, again);
        self.settle();
    }

    /// As `insert`, for many objects that come in no order: `order` is called when all are known.
    pub fn learn(&mut self, digest: &Digest, bytes: u64, used: u32, again: bool) {
        if let Some(at) = self.find(digest) {
            let entry = &mut self.entries[at as usize];
            let (list, pinned) = (entry.list as usize, entry.pinned);
            let before = std::mem::replace(&mut entry.bytes, bytes);
            self.lists[list].bytes = self.lists[list].bytes - before + bytes;
            self.on_disk = self.on_disk - footprint(before) + footprint(bytes);
            if pinned {
                self.pinned = self.pinned - footprint(before) + footprint(bytes);
            }
            return;
        }
        let (key, tail) = halves(digest);
        let list = match (bytes <= SMALL_BYTES, again) {
            (true, _) => List::Small,
            (false, true) => List::Protected,
            (false, false) => List::Probation,
        };
        let long = tail.is_some();
        let entry = Entry { key, bytes, used, newer: NONE, older: NONE, list, long, pinned: false };
        let at = self.place(entry);
        if let Some(tail) = tail {
            self.tails.insert(at, tail);
        }
        let entries = &self.entries;
        self.table.insert_unique(hash(&key), at, |&i| hash(&entries[i as usize].key));
        self.on_disk += footprint(bytes);
        self.link(at, list);
    }

    /// Moves all last uses by so many seconds.
    pub fn shift(&mut self, seconds: u32) {
        for entry in &mut self.entries {
            entry.used = entry.used.saturating_add(seconds);
        }
    }

    /// Puts all objects in the order of their last use. Costs four bytes an object meanwhile.
    pub fn order(&mut self) {
        for list in [List::Probation, List::Protected, List::Small] {
            let mut members = Vec::new();
            let mut at = self.lists[list as usize].oldest;
            while at != NONE {
                members.push(at);
                at = self.entries[at as usize].newer;
            }
            members.sort_by_key(|at| self.entries[*at as usize].used);
            self.lists[list as usize] = EMPTY;
            for at in members {
                self.link(at, list);
            }
        }
        self.settle();
    }

    fn place(&mut self, entry: Entry) -> u32 {
        if let Some(at) = self.free.pop() {
            self.entries[at as usize] = entry;
            return at;
        }
        let at =
            u32::try_from(self.entries.len()).expect("fewer than four thousand million objects");
        if self.entries.len() == self.entries.capacity() {
            // An eighth more, not twice as much: a million objects should not cost two.
            self.entries.reserve_exact((self.entries.len() / 8).max(1024));
        }
        self.entries.push(entry);
        at
    }

    /// Notes a use.
    pub fn touch(&mut self, digest: &Digest, used: u32) {
        let Some(at) = self.find(digest) else { return };
        let entry = &mut self.entries[at as usize];
        entry.used = entry.used.max(used);
        let list = if entry.list == List::Small { List::Small } else { List::Protected };
        self.unlink(at);
        self.link(at, list);
        self.settle();
    }

    /// Bytes and last use of an object.
    pub fn about(&self, digest: &Digest) -> Option<(u64, u32)> {
        let entry = &self.entries[self.find(digest)? as usize];
        Some((entry.bytes, entry.used))
    }

    /// Whether an object is known.
    pub fn contains(&self, digest: &Digest) -> bool {
        self.find(digest).is_some()
    }

    /// Pins an object, or lets it go.
    pub fn pin(&mut self, digest: &Digest, pinned: bool) {
        let Some(at) = self.find(digest) else { return };
        let entry = &mut self.entries[at as usize];
        if std::mem::replace(&mut entry.pinned, pinned) != pinned {
            let bytes = footprint(entry.bytes);
            self.pinned = if pinned { self.pinned + bytes } else { self.pinned - bytes };
        }
    }

    /// Whether an object is pinned.
    pub fn is_pinned(&self, digest: &Digest) -> bool {
        self.find(digest).is_some_and(|at| self.entries[at as usize].pinned)
    }

    /// Forgets an object, and says how many bytes it had.
    pub fn remove(&mut self, digest: &Digest) -> Option<u64> {
        let at = self.find(digest)?;
        let key = self.entries[at as usize].key;
        self.unlink(at);
        if let Ok(slot) = self.table.find_entry(hash(&key), |&i| i == at) {
            slot.remove();
        }
        self.tails.remove(&at);
        self.free.push(at);
        let Entry { bytes, pinned, .. } = self.entries[at as usize];
        self.on_disk -= footprint(bytes);
        self.pinned -= if pinned { footprint(bytes) } else { 0 };
        Some(bytes)
    }

    /// The objects that should leave first, at most `n`, with their last use. Pinned ones are left
    /// out. Proposes only: the caller removes what it has deleted, and touches what it has spared.
    pub fn candidates(&self, n: usize) -> Vec<(Digest, u64, u32)> {
        let small_first = self.lists[List::Small as usize].bytes > self.room / 100 * SMALL_PERCENT;
        let order = if small_first {
            [List::Small, List::Probation, List::Protected]
        } else {
            [List::Probation, List::Protected, List::Small]
        };
        let mut found = Vec::with_capacity(n);
        for list in order {
            let mut at = self.lists[list as usize].oldest;
            while at != NONE && found.len() < n {
                let entry = &self.entries[at as usize];
                if !entry.pinned {
                    found.push((self.digest(at), entry.bytes, entry.used));
                }
                at = entry.newer;
            }
        }
        found
    }

    /// All objects from `from` on, at most `n`, and where to go on; for the scrubber and for lists.
    pub fn walk(&self, from: usize, n: usize) -> (Vec<(Digest, u64, u32)>, usize) {
        let mut at = from;
        let mut found = Vec::new();
        while at < self.entries.len() && found.len() < n {
            let index = u32::try_from(at).unwrap_or(NONE);
            let entry = &self.entries[at];
            if self.find_at(index) {
                found.push((self.digest(index), entry.bytes, entry.used));
            }
            at += 1;
        }
        (found, at)
    }

    fn find_at(&self, at: u32) -> bool {
        let key = &self.entries[at as usize].key;
        self.table.find(hash(key), |&i| i == at).is_some()
    }

    fn digest(&self, at: u32) -> Digest {
        let entry = &self.entries[at as usize];
        Digest::from_halves(&entry.key, self.tails.get(&at).filter(|_| entry.long))
    }

    fn find(&self, digest: &Digest) -> Option<u32> {
        let (key, tail) = halves(digest);
        self.table
            .find(hash(&key), |&i| {
                let entry = &self.entries[i as usize];
                entry.key == key
                    && entry.long == tail.is_some()
                    && self.tails.get(&i) == tail.as_ref()
            })
            .copied()
    }

    /// Moves protected objects back to probation while there are too many bytes of them.
    fn settle(&mut self) {
        let limit = self.room / 100 * PROTECTED_PERCENT;
        while self.lists[List::Protected as usize].bytes > limit {
            let at = self.lists[List::Protected as usize].oldest;
            if at == NONE || at == self.lists[List::Protected as usize].newest {
                return;
            }
            self.unlink(at);
            self.link(at, List::Probation);
        }
    }

    fn link(&mut self, at: u32, list: List) {
        let ends = self.lists[list as usize];
        let entry = &mut self.entries[at as usize];
        (entry.list, entry.newer, entry.older) = (list, NONE, ends.newest);
        let bytes = entry.bytes;
        if ends.newest == NONE {
            self.lists[list as usize].oldest = at;
        } else {
            self.entries[ends.newest as usize].newer = at;
        }
        self.lists[list as usize].newest = at;
        self.lists[list as usize].bytes += bytes;
    }

    fn unlink(&mut self, at: u32) {
        let Entry { newer, older, list, bytes, .. } = self.entries[at as usize];
        let list = list as usize;
        if newer == NONE {
            self.lists[list].newest = older;
        } else {
            self.entries[newer as usize].older = older;
        }
        if older == NONE {
            self.lists[list].oldest = newer;
        } else {
            self.entries[older as usize].newer = newer;
        }
        self.lists[list].bytes -= bytes;
    }
}

/// What an object of `bytes` takes on disk: whole blocks, and those of its checksums, which are 4
/// bytes for each 256 KiB.
pub fn footprint(bytes: u64) -> u64 {
    let blocks = |bytes: u64| bytes.div_ceil(FILE_BLOCK) * FILE_BLOCK;
    let sums = if bytes > SMALL_BYTES_MAX { blocks(bytes / (64 * 1024) + 16) } else { 0 };
    blocks(bytes) + sums
}

/// Digests are random already: eight bytes of one are as good a hash as any. They are chosen by
/// whoever makes content, but making many that agree there costs 2⁶⁴ work for each.
fn hash(key: &[u8; 32]) -> u64 {
    let mut eight = [0; 8];
    eight.copy_from_slice(&key[..8]);
    u64::from_le_bytes(eight)
}

fn halves(digest: &Digest) -> ([u8; 32], Option<[u8; 32]>) {
    digest.halves()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Algorithm;

    const MB: u64 = 1 << 20;

    fn digest(n: u32) -> Digest {
        Digest::of(Algorithm::Sha256, &n.to_le_bytes())
    }

    fn order(index: &Index) -> Vec<Digest> {
        index.candidates(100).into_iter().map(|(d, ..)| d).collect()
    }

    #[test]
    fn what_was_used_once_leaves_before_what_was_used_twice() {
        let mut index = Index::new(1000 * MB);
        for n in 0..4 {
            index.insert(&digest(n), MB, n, false);
        }
        index.touch(&digest(0), 10);
        assert_eq!(order(&index), [1, 2, 3, 0].map(digest));
        assert_eq!((index.bytes(), index.len()), (4 * MB, 4));
    }

    #[test]
    fn small_objects_leave_last_while_they_take_little() {
        let mut index = Index::new(100 * MB);
        index.insert(&digest(0), 1000, 0, false);
        index.insert(&digest(1), MB, 1, false);
        assert_eq!(order(&index), [1, 0].map(digest));
        for n in 2..400 {
            index.insert(&digest(n), SMALL_BYTES, n, false);
        }
        assert_eq!(order(&index)[0], digest(0));
    }

    #[test]
    fn the_protected_do_not_take_all_the_room() {
        let mut index = Index::new(10 * MB);
        for n in 0..10 {
            index.insert(&digest(n), MB, n, true);
        }
        index.insert(&digest(10), MB, 10, false);
        assert_eq!(
            order(&index)[0],
            digest(0),
            "the oldest protected goes back before the newcomer"
        );
    }

    #[test]
    fn what_is_learned_in_no_order_is_put_in_order() {
        let mut index = Index::new(1000 * MB);
        for (n, used) in [(0, 7), (1, 3), (2, 9), (3, 1)] {
            index.learn(&digest(n), MB, used, false);
        }
        index.order();
        assert_eq!(order(&index), [3, 1, 0, 2].map(digest));
        assert_eq!((index.bytes(), index.len()), (4 * MB, 4));
    }

    #[test]
    fn pins_and_removals_hold_and_places_are_used_again() {
        let mut index = Index::new(10 * MB);
        let long = Digest::of(Algorithm::Sha512, b"x");
        index.insert(&long, MB, 0, false);
        index.insert(&digest(1), MB, 1, false);
        index.pin(&long, true);
        assert_eq!(order(&index), [digest(1)]);
        index.pin(&long, false);
        assert_eq!(order(&index), [long, digest(1)]);
        assert_eq!(index.remove(&long), Some(MB));
        assert_eq!(index.remove(&long), None);
        index.insert(&digest(2), MB, 2, false);
        assert_eq!((index.entries.len(), index.walk(0, 10).0.len(), index.bytes()), (2, 2, 2 * MB));
    }

    #[test]
    fn an_object_costs_less_than_a_hundred_bytes() {
        assert!(size_of::<Entry>() <= 64, "{}", size_of::<Entry>());
        let mut index = Index::new(u64::MAX);
        for n in 0..200_000 {
            index.insert(&digest(n), MB, n, false);
        }
        let bytes = index.entries.capacity() * size_of::<Entry>() + index.table.allocation_size();
        assert!(bytes / 200_000 < 100, "{}", bytes / 200_000);
    }
}
