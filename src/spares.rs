//! Files in the cache folder that nobody reads and that count all the same: downloads that broke
//! off and may be resumed, and rotten content that was set aside to be looked at. Pure: which there
//! are, and which leaves first.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};

/// How many are kept; the oldest leave.
const FILES_MAX: usize = 1000;

/// How long one is kept, in seconds: a pull that broke is tried again within a day.
const AGE_MAX: u32 = 24 * 3600;

/// One file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spare {
    /// Where it lies.
    pub path: PathBuf,
    /// What it takes on disk.
    pub bytes: u64,
    /// When it was last written, in seconds.
    pub since: u32,
}

/// All of them, oldest first.
#[derive(Debug, Default)]
pub struct Spares {
    files: VecDeque<Spare>,
    bytes: u64,
}

impl Spares {
    /// Bytes of all.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Takes one in.
    pub fn add(&mut self, spare: Spare) {
        self.take(&spare.path);
        self.bytes += spare.bytes;
        let place = self.files.partition_point(|s| s.since <= spare.since);
        self.files.insert(place, spare);
    }

    /// Takes one out, since it is used again.
    pub fn take(&mut self, path: &Path) -> Option<Spare> {
        let at = self.files.iter().position(|s| s.path == path)?;
        let spare = self.files.remove(at)?;
        self.bytes -= spare.bytes;
        Some(spare)
    }

    /// Takes the oldest out.
    pub fn pop(&mut self) -> Option<Spare> {
        let spare = self.files.pop_front()?;
        self.bytes -= spare.bytes;
        Some(spare)
    }

    /// Takes the oldest out, if it is too old or there are too many.
    pub fn pop_old(&mut self, now: u32) -> Option<Spare> {
        let oldest = self.files.front()?;
        let old = oldest.since.saturating_add(AGE_MAX) < now || self.files.len() > FILES_MAX;
        if old { self.pop() } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spare(name: &str, bytes: u64, since: u32) -> Spare {
        Spare { path: name.into(), bytes, since }
    }

    #[test]
    fn the_oldest_leaves_first_and_one_that_is_used_again_stays() {
        let mut spares = Spares::default();
        for (name, since) in [("b", 20), ("a", 10), ("c", 30), ("b", 25)] {
            spares.add(spare(name, 5, since));
        }
        assert_eq!(spares.bytes(), 15);
        assert_eq!(spares.take(Path::new("b")), Some(spare("b", 5, 25)));
        assert_eq!(spares.pop_old(10 + AGE_MAX), None);
        assert_eq!(spares.pop_old(11 + AGE_MAX), Some(spare("a", 5, 10)));
        assert_eq!(
            (spares.pop(), spares.pop(), spares.bytes()),
            (Some(spare("c", 5, 30)), None, 0)
        );
    }
}
