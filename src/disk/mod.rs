//! The cache folder, format 1. The file system is the truth: there is no index to lose.
//!
//! Whatever is kept is staged under `fills/` and renamed. Large content is synced before that, and its
//! folder after; small files a moment later, since they are checked whenever they are read.
//! Everything here blocks and belongs on a blocking thread.

#![expect(clippy::disallowed_methods, reason = "this is the room that touches the file system")]

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;

use crate::digest::Digest;

mod fills;
mod records;
mod shared;

pub use fills::Filling;
use shared::Lock;
pub use shared::{Turn, lock_soon};

/// The format this program reads and writes.
const FORMAT: &str = "1";

/// A cache folder that is ours.
#[derive(Debug)]
pub struct Disk {
    root: PathBuf,
    /// Held for as long as we live, so that a second Pierhead on the folder is refused.
    lock: Lock,
    staged: AtomicU64,
    /// Small files that are still to be synced.
    unsynced: Mutex<Vec<PathBuf>>,
}

/// Why a folder cannot be used; one sentence each.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The file system said no.
    #[error("cache folder {0} cannot be used; give Pierhead a folder that it may write to")]
    Unusable(PathBuf, #[source] io::Error),
    /// Written by a later version.
    #[error(
        "cache folder {0} has format {1}, this version of Pierhead reads up to {FORMAT}; use the version that wrote it, or another folder"
    )]
    Newer(PathBuf, String),
    /// Another Pierhead is at work on it.
    #[error("cache folder {0} is in use by another Pierhead; stop that one, or use another folder")]
    InUse(PathBuf),
}

impl Disk {
    /// Opens a cache folder, and makes it where it is not there.
    ///
    /// # Errors
    /// See `OpenError`.
    pub fn open(root: &Path) -> Result<Self, OpenError> {
        Self::open_with(root, None)
    }

    /// The same with a lock that the process before has handed over, which may still be at work on
    /// the folder. It is taken only where it is this folder's.
    ///
    /// # Errors
    /// See `OpenError`.
    pub fn open_with(
        root: &Path,
        handed: Option<(OwnedFd, (u64, u64))>,
    ) -> Result<Self, OpenError> {
        let unusable = |e| OpenError::Unusable(root.to_owned(), e);
        fs::create_dir_all(root).map_err(unusable)?;
        let format = root.join("format");
        match fs::read_to_string(&format) {
            Ok(text) if text.trim() == FORMAT => {}
            Ok(text) => {
                return Err(OpenError::Newer(
                    root.to_owned(),
                    text.trim().chars().take(20).collect(),
                ));
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(unusable(e)),
        }
        let lock = Lock::take(root, handed)?;
        let disk = Self {
            root: root.to_owned(),
            lock,
            staged: AtomicU64::new(0),
            unsynced: Mutex::default(),
        };
        for folder in ["blobs", "fills", "repos"] {
            fs::create_dir_all(root.join(folder)).map_err(unusable)?;
        }
        disk.sweep().map_err(unusable)?;
        if !format.exists() {
            disk.put(&format, FORMAT.as_bytes()).map_err(unusable)?;
        }
        Ok(disk)
    }

    /// Whether the folder can be written to, for `/readyz`.
    ///
    /// # Errors
    /// What the file system says.
    pub fn probe(&self) -> io::Result<()> {
        let path = self.stage_name();
        File::create(&path)?.write_all(b"probe")?;
        fs::remove_file(path)
    }

    /// The folder itself, for the rooms that keep files of their own in it.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where a digest's content lies.
    pub fn blob_path(&self, digest: &Digest) -> PathBuf {
        let hex = digest.hex();
        let mut path = self.root.join("blobs");
        path.extend([digest.algorithm().as_str(), &hex[..2], &hex]);
        path
    }

    /// Opens held content; `None` where it is not held.
    ///
    /// # Errors
    /// What the file system says.
    pub fn open_blob(&self, digest: &Digest) -> io::Result<Option<File>> {
        // Our own reading, the scrubber's above all, shall not pass for a use after a restart.
        let quiet = libc::O_NOATIME;
        let path = self.blob_path(digest);
        match OpenOptions::new().read(true).custom_flags(quiet).open(&path) {
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => found(File::open(path)),
            opened => found(opened),
        }
    }

    /// Keeps content that is wholly in memory. Its digest must have been checked.
    ///
    /// # Errors
    /// What the file system says; nothing half-written is left.
    pub fn put_blob(&self, digest: &Digest, content: &[u8]) -> io::Result<()> {
        self.put_soon(&self.blob_path(digest), content)
    }

    /// Sets content aside that does not have its digest, so that it is fetched again and can be
    /// looked at, and says where it is then. `None` where it has gone already.
    ///
    /// # Errors
    /// What the file system says.
    pub fn set_aside(&self, digest: &Digest) -> io::Result<Option<PathBuf>> {
        let folder = self.root.join("rotten");
        fs::create_dir_all(&folder)?;
        let aside = folder.join(digest.hex());
        let moved = found(fs::rename(self.blob_path(digest), &aside))?;
        found(fs::remove_file(self.sums_path(digest)))?;
        Ok(moved.map(|()| aside))
    }

    /// Removes held content and its checksums; none there is as good.
    ///
    /// # Errors
    /// What the file system says.
    pub fn remove_blob(&self, digest: &Digest) -> io::Result<()> {
        found(fs::remove_file(self.blob_path(digest)))?;
        found(fs::remove_file(self.sums_path(digest)))?;
        Ok(())
    }

    /// The block checksums of held content, as they were recorded.
    ///
    /// # Errors
    /// What the file system says.
    pub fn sums(&self, digest: &Digest) -> io::Result<Option<Vec<u8>>> {
        found(fs::read(self.sums_path(digest)))
    }

    /// Records the block checksums of content. Not synced: they carry a checksum of their own, and
    /// where they are lost the content is hashed as a whole.
    ///
    /// # Errors
    /// What the file system says.
    pub fn put_sums(&self, digest: &Digest, sums: &[u8]) -> io::Result<()> {
        let (stage, path) = (self.stage_name(), self.sums_path(digest));
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::write(&stage, sums).and_then(|()| fs::rename(&stage, path)).inspect_err(|_| {
            let _ = fs::remove_file(&stage); // the error that counts is the first one
        })
    }

    fn sums_path(&self, digest: &Digest) -> PathBuf {
        let hex = digest.hex();
        let mut path = self.root.join("sums");
        path.extend([digest.algorithm().as_str(), &hex[..2], &hex]);
        path
    }

    /// Notes when content was last used, in its file's access time, which is ours: a reader's
    /// own access is not written to it on most file systems.
    ///
    /// # Errors
    /// What the file system says.
    pub fn set_used(&self, digest: &Digest, when: SystemTime) -> io::Result<()> {
        let file = File::open(self.blob_path(digest))?;
        file.set_times(fs::FileTimes::new().set_accessed(when))
    }

    /// Moves the times of held content by so much, as if it had been kept and used later.
    ///
    /// # Errors
    /// What the file system says.
    pub fn shift_times(&self, digest: &Digest, by: Duration) -> io::Result<()> {
        let file = File::open(self.blob_path(digest))?;
        let about = file.metadata()?;
        let times = fs::FileTimes::new().set_accessed(about.accessed()? + by);
        file.set_times(times.set_modified(about.modified()? + by))
    }

    /// Free bytes for us, and all bytes of the file system.
    ///
    /// # Errors
    /// What the file system says.
    pub fn space(&self) -> io::Result<(u64, u64)> {
        let s = nix::sys::statvfs::statvfs(&self.root)?;
        Ok((s.blocks_available() * s.fragment_size(), s.blocks() * s.fragment_size()))
    }

    /// Looks at all held content, and says how many files there are that do not belong.
    ///
    /// # Errors
    /// What the file system says.
    pub fn each_blob(&self, mut look: impl FnMut(Digest, fs::Metadata)) -> io::Result<usize> {
        let mut strangers = 0;
        for algorithm in fs::read_dir(self.root.join("blobs"))? {
            let algorithm = algorithm?;
            for prefix in folder(&algorithm.path(), &mut strangers)? {
                for entry in folder(&prefix?.path(), &mut strangers)? {
                    let entry = entry?;
                    let name = format!(
                        "{}:{}",
                        algorithm.file_name().display(),
                        entry.file_name().display()
                    );
                    let here = |digest: &Digest| self.blob_path(digest) == entry.path();
                    match (Digest::parse(&name), entry.metadata()) {
                        (Ok(digest), Ok(about)) if about.is_file() && here(&digest) => {
                            look(digest, about);
                        }
                        // What has left since the folder was read is no stranger.
                        (_, Err(e)) if e.kind() == io::ErrorKind::NotFound => {}
                        _ => strangers += 1,
                    }
                }
            }
        }
        Ok(strangers)
    }

    /// Makes the folder for what is on its way again, where somebody has removed it under us.
    fn anew(&self, error: io::Error) -> io::Result<()> {
        if error.kind() != io::ErrorKind::NotFound {
            return Err(error);
        }
        fs::create_dir_all(self.root.join("fills"))
    }

    fn stage_name(&self) -> PathBuf {
        let n = self.staged.fetch_add(1, Ordering::Relaxed);
        self.root.join("fills").join(format!("tmp-{}-{n}", std::process::id()))
    }

    /// Writes a small file as a whole or not at all.
    ///
    /// # Errors
    /// What the file system says; the file is as it was.
    pub fn put(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        let stage = self.stage_name();
        let write = || {
            let create = || File::create_new(&stage);
            let mut file = create().or_else(|e| self.anew(e).and_then(|()| create()))?;
            file.write_all(content)?;
            file.sync_all()?;
            rename_synced(&stage, path)
        };
        write().inspect_err(|_| {
            let _ = fs::remove_file(&stage); // the error that counts is the first one
        })
    }

    /// Writes a small file as a whole or not at all, and has it synced a moment later, by `sync`:
    /// what an upstream can be asked for again, and is checked when it is read, nobody has to wait
    /// for. kill -9 loses nothing of it, a power loss at worst what is half a second old.
    fn put_soon(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        let stage = self.stage_name();
        let write = || {
            let create = || File::create_new(&stage);
            create().or_else(|e| self.anew(e).and_then(|()| create()))?.write_all(content)?;
            rename(&stage, path)
        };
        write().inspect_err(|_| {
            let _ = fs::remove_file(&stage); // the error that counts is the first one
        })?;
        self.unsynced.lock().push(path.to_owned());
        Ok(())
    }

    /// Syncs the small files written since the last call, and their folders.
    pub fn sync(&self) {
        let paths = std::mem::take(&mut *self.unsynced.lock());
        let mut folders: Vec<&Path> = paths.iter().filter_map(|p| p.parent()).collect();
        folders.sort_unstable();
        folders.dedup();
        // What has been replaced or removed meanwhile needs no sync.
        for path in paths.iter().map(PathBuf::as_path).chain(folders) {
            if let Err(error) = File::open(path).and_then(|f| f.sync_all())
                && error.kind() != io::ErrorKind::NotFound
            {
                tracing::warn!(%error, path = %path.display(), "cannot sync");
            }
        }
    }
}

/// Renames and syncs the folder, so that the new name survives a power loss.
fn rename_synced(from: &Path, to: &Path) -> io::Result<()> {
    rename(from, to)?;
    File::open(to.parent().ok_or(io::ErrorKind::InvalidInput)?)?.sync_all()
}

/// Renames, and makes the folder where it is not there.
fn rename(from: &Path, to: &Path) -> io::Result<()> {
    let folder = to.parent().ok_or(io::ErrorKind::InvalidInput)?;
    match fs::rename(from, to) {
        Err(e) if e.kind() == io::ErrorKind::NotFound && !folder.exists() => {
            create_synced(folder)?;
            fs::rename(from, to)
        }
        renamed => renamed,
    }
}

/// Makes a folder and syncs each one that has got a new entry.
fn create_synced(folder: &Path) -> io::Result<()> {
    if folder.exists() {
        return Ok(());
    }
    let parent = folder.parent().ok_or(io::ErrorKind::InvalidInput)?;
    create_synced(parent)?;
    match fs::create_dir(folder) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
        _ => {}
    }
    File::open(parent)?.sync_all()
}

/// The entries of a folder; a file in its place, or a folder that is not ours, is a stranger.
fn folder(path: &Path, strangers: &mut usize) -> io::Result<Vec<io::Result<fs::DirEntry>>> {
    match fs::read_dir(path) {
        Ok(entries) => Ok(entries.collect()),
        Err(e)
            if matches!(
                e.kind(),
                io::ErrorKind::NotADirectory | io::ErrorKind::PermissionDenied
            ) =>
        {
            *strangers += 1;
            Ok(Vec::new())
        }
        Err(e) => Err(e),
    }
}

/// Removes a file, so that it stays gone after a power loss. `false`: it was not there.
///
/// # Errors
/// What the file system says.
pub fn remove_synced(path: &Path) -> io::Result<bool> {
    if found(fs::remove_file(path))?.is_none() {
        return Ok(false);
    }
    let folder = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    File::open(folder)?.sync_all()?;
    Ok(true)
}

/// `None` for what is not there.
///
/// # Errors
/// What the file system says.
pub fn found<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        // A repository's folder where a tag's file is looked for: not a record.
        Err(e)
            if matches!(e.kind(), io::ErrorKind::NotADirectory | io::ErrorKind::IsADirectory) =>
        {
            Ok(None)
        }
        Err(e) => Err(e),
    }
}

/// Reads a file of a known, small size.
///
/// # Errors
/// What the file system says.
pub fn read_whole(file: &mut File, size: u64) -> io::Result<Vec<u8>> {
    let mut content = Vec::with_capacity(usize::try_from(size).unwrap_or_default());
    file.read_to_end(&mut content)?;
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Algorithm;
    use crate::name::{Repository, Tag};

    fn open() -> (tempfile::TempDir, Disk) {
        let folder = tempfile::tempdir().unwrap();
        let disk = Disk::open(folder.path()).unwrap();
        (folder, disk)
    }

    #[test]
    fn what_is_put_is_there_after_a_new_start() {
        let (folder, disk) = open();
        let digest = Digest::of(Algorithm::Sha256, b"x");
        let (repository, tag) = (Repository::parse("a/b").unwrap(), Tag::parse("v1").unwrap());
        disk.put_blob(&digest, b"x").unwrap();
        disk.put_tag("docker.io", &repository, &tag, b"{}").unwrap();
        drop(disk);
        let disk = Disk::open(folder.path()).unwrap();
        assert!(disk.open_blob(&digest).unwrap().is_some());
        assert_eq!(disk.tag("docker.io", &repository, &tag).unwrap().unwrap(), b"{}");
        disk.drop_tag("docker.io", &repository, &tag).unwrap();
        disk.drop_tag("docker.io", &repository, &tag).unwrap();
        assert!(disk.tag("docker.io", &repository, &tag).unwrap().is_none());
    }

    #[test]
    fn a_second_pierhead_and_a_newer_format_are_refused() {
        let (folder, disk) = open();
        assert!(matches!(Disk::open(folder.path()), Err(OpenError::InUse(_))));
        drop(disk);
        fs::write(folder.path().join("format"), "2\n").unwrap();
        assert!(matches!(Disk::open(folder.path()), Err(OpenError::Newer(..))));
    }

    #[test]
    fn leftovers_of_a_crash_go_but_fills_stay() {
        let (folder, disk) = open();
        drop(disk);
        fs::write(folder.path().join("fills/tmp-1-1"), "x").unwrap();
        fs::write(folder.path().join("fills/sha256-aa"), "x").unwrap();
        drop(Disk::open(folder.path()).unwrap());
        assert!(!folder.path().join("fills/tmp-1-1").exists());
        assert!(folder.path().join("fills/sha256-aa").exists());
    }

    #[test]
    fn a_fill_becomes_a_blob_by_publishing_only() {
        let (_folder, disk) = open();
        let digest = Digest::of(Algorithm::Sha256, b"abc");
        let Filling { mut file, path, .. } = disk.open_fill(&digest).unwrap();
        file.write_all(b"abc").unwrap();
        assert!(disk.open_blob(&digest).unwrap().is_none());
        disk.publish(&file, &path, &digest).unwrap();
        assert!(disk.open_blob(&digest).unwrap().is_some() && !path.exists());
    }
}
