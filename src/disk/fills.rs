//! Downloads under way: a file for each, which has one writer. A second process that wants the same,
//! while the first hands over to it, writes to a file of its own.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::{Disk, found, rename_synced};
use crate::digest::Digest;

/// Beside a file with a gap: how far it has none.
const FRONT: &str = "front";

/// Tries to get hold of a file that others publish or remove meanwhile.
const TRIES_MAX: usize = 100;

/// A file that is filled by us alone.
#[derive(Debug)]
pub struct Filling {
    /// The file, locked for as long as it is open, or until it is unlocked.
    pub file: File,
    /// Where it lies.
    pub path: PathBuf,
    /// Whether the next attempt, perhaps of the next process, finds it there again.
    pub is_resumable: bool,
}

impl Disk {
    /// What lies under `fills/` and `rotten/`, and nobody writes to: path, bytes, and when it was last
    /// written.
    ///
    /// # Errors
    /// What the file system says.
    pub fn spares(&self) -> io::Result<Vec<(PathBuf, u64, SystemTime)>> {
        let mut all = Vec::new();
        for name in ["fills", "rotten"] {
            let Some(entries) = found(fs::read_dir(self.root.join(name)))? else { continue };
            for entry in entries {
                let entry = entry?;
                let text = entry.file_name().to_string_lossy().replacen('-', ":", 1);
                let ours = name == "rotten" || Digest::parse(&text).is_ok();
                if let Ok(about) = entry.metadata()
                    && ours
                    && about.is_file()
                    && !is_written(&entry.path())
                {
                    all.push((entry.path(), about.len(), about.modified()?));
                }
            }
        }
        Ok(all)
    }

    /// Opens the file that a fill writes to, with what an earlier attempt has left in it; an empty one,
    /// where another process writes to that.
    ///
    /// # Errors
    /// What the file system says.
    pub fn open_fill(&self, digest: &Digest) -> io::Result<Filling> {
        let path = self.fill_path(digest);
        let open =
            || OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&path);
        for _ in 0..TRIES_MAX {
            let file = open().or_else(|e| self.anew(e).and_then(|()| open()))?;
            match file.try_lock() {
                Err(TryLockError::WouldBlock) => return self.open_own(),
                // A file system without locks has no second process either: the folder's is needed.
                Ok(()) | Err(TryLockError::Error(_)) => {}
            }
            // Whoever had it may have published it before he let go: it is content then, and whoever
            // writes to it would spoil that.
            if is_at(&file, &path)? {
                return Ok(Filling { file, path, is_resumable: true });
            }
        }
        self.open_own()
    }

    /// A file that nobody else knows.
    fn open_own(&self) -> io::Result<Filling> {
        let path = self.stage_name();
        let open = || OpenOptions::new().create_new(true).read(true).write(true).open(&path);
        let file = open().or_else(|e| self.anew(e).and_then(|()| open()))?;
        Ok(Filling { file, path, is_resumable: false })
    }

    /// Removes a fill that came to nothing, or other content that nobody needs.
    pub fn drop_fill(&self, path: &Path) {
        for path in [path, &front_path(path)] {
            if let Err(error) = found(fs::remove_file(path)) {
                tracing::warn!(%error, path = %path.display(), "cannot remove a broken fill");
            }
        }
    }

    /// Makes a finished fill visible: sync, rename, sync the folder.
    ///
    /// # Errors
    /// What the file system says; the fill stays where it was.
    pub fn publish(&self, file: &File, from: &Path, digest: &Digest) -> io::Result<()> {
        file.sync_all()?;
        rename_synced(from, &self.blob_path(digest))?;
        let _ = fs::remove_file(front_path(from)); // as a rule there is none; a lost one goes at the next start
        Ok(())
    }

    /// Where the file lies that a fill writes to.
    pub fn fill_path(&self, digest: &Digest) -> PathBuf {
        let name = format!("{}-{}", digest.algorithm().as_str(), digest.hex());
        self.root.join("fills").join(name)
    }

    /// Notes how far the file of a fill is without a gap, since there is more behind. Not synced: what
    /// a power loss leaves wrong is found when all of it is hashed.
    ///
    /// # Errors
    /// What the file system says.
    pub fn note_front(&self, fill: &Path, bytes: u64) -> io::Result<()> {
        let path = front_path(fill);
        let note = OpenOptions::new().create(true).truncate(false).write(true).open(path)?;
        note.write_all_at(&bytes.to_le_bytes(), 0)
    }

    /// Cuts the file of a fill to what is without a gap, where more was written; `front` is where
    /// that ends, by one who knows better than the note.
    ///
    /// # Errors
    /// What the file system says.
    pub fn cut_to_front(&self, fill: &Path, file: &File, front: Option<u64>) -> io::Result<()> {
        let path = front_path(fill);
        let Some(note) = found(fs::read(&path))? else { return Ok(()) };
        // A note that cannot be read promises nothing.
        let noted = note.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        let front = front.unwrap_or(noted);
        if file.metadata()?.len() > front {
            file.set_len(front)?;
        }
        found(fs::remove_file(path)).map(|_| ())
    }
}

fn front_path(fill: &Path) -> PathBuf {
    fill.with_extension(FRONT)
}

/// Whether this is a note whose file has gone.
pub(super) fn is_lost_note(path: &Path) -> bool {
    path.extension() == Some(FRONT.as_ref()) && !path.with_extension("").exists()
}

/// Whether a path leads to this very file.
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let ours = file.metadata()?;
    let there = found(fs::metadata(path))?;
    Ok(there.is_some_and(|there| (there.dev(), there.ino()) == (ours.dev(), ours.ino())))
}

/// Whether some process fills a file.
fn is_written(path: &Path) -> bool {
    let held = |file: File| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock));
    File::open(path).is_ok_and(held)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Algorithm;

    #[test]
    fn a_file_that_is_filled_by_another_is_left_to_him() {
        let folder = tempfile::tempdir().unwrap();
        let disk = Disk::open(folder.path()).unwrap();
        let digest = Digest::of(Algorithm::Sha256, b"content");
        let one = disk.open_fill(&digest).unwrap();
        one.file.write_all_at(b"cont", 0).unwrap();
        let two = disk.open_fill(&digest).unwrap();
        assert!(one.is_resumable && !two.is_resumable && one.path != two.path);
        assert_eq!(two.file.metadata().unwrap().len(), 0);
        assert!(disk.spares().unwrap().is_empty(), "it is no spare, and must not leave");
        one.file.unlock().unwrap();
        assert_eq!(disk.spares().unwrap().len(), 1);
        let again = disk.open_fill(&digest).unwrap();
        assert!(again.is_resumable && again.file.metadata().unwrap().len() == 4);
    }

    #[test]
    fn what_has_been_published_is_not_taken_for_a_fill() {
        let folder = tempfile::tempdir().unwrap();
        let disk = Disk::open(folder.path()).unwrap();
        let digest = Digest::of(Algorithm::Sha256, b"content");
        let one = disk.open_fill(&digest).unwrap();
        let late = OpenOptions::new().write(true).open(&one.path).unwrap();
        one.file.write_all_at(b"content", 0).unwrap();
        disk.publish(&one.file, &one.path, &digest).unwrap();
        assert!(!is_at(&late, &one.path).unwrap());
        let two = disk.open_fill(&digest).unwrap();
        assert!(two.is_resumable && two.file.metadata().unwrap().len() == 0);
    }
}
