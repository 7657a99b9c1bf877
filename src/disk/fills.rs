//! The files of downloads under way, which the next process may go on with.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::{Disk, found, rename_synced};
use crate::digest::Digest;

/// Beside a file with a gap: how far it has none.
const FRONT: &str = "front";

impl Disk {
    /// Opens the file that a fill writes to, with what an earlier attempt has left in it.
    ///
    /// # Errors
    /// What the file system says.
    pub fn open_fill(&self, digest: &Digest) -> io::Result<(File, PathBuf)> {
        let path = self.fill_path(digest);
        let open =
            || OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&path);
        let file = open().or_else(|e| self.anew(e).and_then(|()| open()))?;
        Ok((file, path))
    }

    /// Makes a finished fill visible: sync, rename, sync the folder.
    ///
    /// # Errors
    /// What the file system says; the fill stays where it was.
    pub fn publish(&self, file: &File, from: &Path, digest: &Digest) -> io::Result<()> {
        file.sync_all()?;
        rename_synced(from, &self.blob_path(digest))?;
        found(fs::remove_file(front_path(from))).map(|_| ())
    }

    /// Removes a fill that came to nothing, or other content that nobody needs.
    pub fn drop_fill(&self, path: &Path) {
        for path in [path, &front_path(path)] {
            if let Err(error) = found(fs::remove_file(path)) {
                tracing::warn!(%error, path = %path.display(), "cannot remove a broken fill");
            }
        }
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
    pub fn note_front(&self, digest: &Digest, bytes: u64) -> io::Result<()> {
        let path = front_path(&self.fill_path(digest));
        let note = OpenOptions::new().create(true).truncate(false).write(true).open(path)?;
        note.write_all_at(&bytes.to_le_bytes(), 0)
    }

    /// Cuts the file of a fill to what is without a gap, where more was written; `front` is where
    /// that ends, by one who knows better than the note.
    ///
    /// # Errors
    /// What the file system says.
    pub fn cut_to_front(&self, digest: &Digest, file: &File, front: Option<u64>) -> io::Result<()> {
        let path = front_path(&self.fill_path(digest));
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
