//! Small records in the cache folder: tags, links, pins. Each is a file of its own, written whole or
//! not at all.

#![expect(clippy::disallowed_methods, reason = "this is the room that touches the file system")]

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Disk, found};
use crate::digest::Digest;
use crate::name::{Repository, Tag};

/// A link younger than this may belong to content that is still on its way.
const LINK_YOUNG: Duration = Duration::from_secs(3600);

impl Disk {
    /// The record of a tag, as bytes; `None` where there is none.
    ///
    /// # Errors
    /// What the file system says.
    pub fn tag(
        &self,
        upstream: &str,
        repository: &Repository,
        tag: &Tag,
    ) -> io::Result<Option<Vec<u8>>> {
        found(fs::read(self.tag_path(upstream, repository, tag)))
    }

    /// Keeps the record of a tag.
    ///
    /// # Errors
    /// What the file system says.
    pub fn put_tag(
        &self,
        upstream: &str,
        repository: &Repository,
        tag: &Tag,
        record: &[u8],
    ) -> io::Result<()> {
        self.put_soon(&self.tag_path(upstream, repository, tag), record)
    }

    /// Removes the record of a tag.
    ///
    /// # Errors
    /// What the file system says.
    pub fn drop_tag(&self, upstream: &str, repository: &Repository, tag: &Tag) -> io::Result<()> {
        found(fs::remove_file(self.tag_path(upstream, repository, tag))).map(|_| ())
    }

    /// The record that a repository was shown to contain a digest.
    ///
    /// # Errors
    /// What the file system says.
    pub fn link(
        &self,
        upstream: &str,
        repository: &Repository,
        digest: &Digest,
    ) -> io::Result<Option<Vec<u8>>> {
        found(fs::read(self.link_path(upstream, repository, digest)))
    }

    /// Keeps the record that a repository was shown to contain a digest.
    ///
    /// # Errors
    /// What the file system says.
    pub fn put_link(
        &self,
        upstream: &str,
        repository: &Repository,
        digest: &Digest,
        record: &[u8],
    ) -> io::Result<()> {
        self.put_soon(&self.link_path(upstream, repository, digest), record)
    }

    pub(crate) fn repository_path(&self, upstream: &str, repository: &Repository) -> PathBuf {
        let mut path = self.root.join("repos");
        path.push(upstream);
        path.push(repository.as_str());
        path
    }

    fn tag_path(&self, upstream: &str, repository: &Repository, tag: &Tag) -> PathBuf {
        let mut path = self.repository_path(upstream, repository);
        path.extend(["_tags", tag.as_str()]);
        path
    }

    pub(crate) fn link_path(
        &self,
        upstream: &str,
        repository: &Repository,
        digest: &Digest,
    ) -> PathBuf {
        let mut path = self.repository_path(upstream, repository);
        path.extend(["_links", digest.algorithm().as_str(), &digest.hex()]);
        path
    }

    /// Whether a link was recorded long enough ago for its content to have come.
    pub fn is_old_link(&self, upstream: &str, repository: &Repository, digest: &Digest) -> bool {
        let written = fs::metadata(self.link_path(upstream, repository, digest))
            .and_then(|about| about.modified());
        written.is_ok_and(|at| at.elapsed().is_ok_and(|age| age > LINK_YOUNG))
    }

    /// Removes a record. Whether there was one.
    ///
    /// # Errors
    /// What the file system says.
    pub fn remove(&self, path: &Path) -> io::Result<bool> {
        found(fs::remove_file(path)).map(|removed| removed.is_some())
    }

    /// The files of a folder, at most `n`; none where there is no such folder.
    ///
    /// # Errors
    /// What the file system says.
    pub fn read_all(&self, folder: &Path, n: usize) -> io::Result<Vec<Vec<u8>>> {
        let Some(entries) = found(fs::read_dir(folder))? else { return Ok(Vec::new()) };
        let mut files = Vec::new();
        for entry in entries.take(n) {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                files.push(fs::read(entry.path())?);
            }
        }
        Ok(files)
    }
}
