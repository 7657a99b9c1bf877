//! One hosted repository on disk: its tags, what it contains, and what is attached to what.
//!
//! ```text
//! repos/_hosted/<repository>/_tags/<tag>                         digest, media type, size
//! repos/_hosted/<repository>/_links/<algorithm>/<hex>            it contains this: size, type
//! repos/_hosted/<repository>/_referrers/<subject>/<digest>       a descriptor, as it is listed
//! ```
//! Everything here blocks. A link's file time is its lease: garbage is what nothing holds and nobody
//! has pushed, asked for by `HEAD` or let go of for the grace period.

#![expect(clippy::disallowed_methods, reason = "this is the room that touches these files")]

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::disk::{Disk, found, remove_synced};
use crate::name::{Repository, Tag};
use crate::route::HOSTED;
use crate::store::{self, TagRecord};

/// A repository contains a digest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its content's size in bytes.
    pub size: u64,
    /// The type it is served with as a manifest; `None` for a blob.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<Arc<str>>,
    /// Whether it was pulled since it was pushed; only known where somebody wants to.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub pulled: bool,
}

/// The folder of a repository.
#[derive(Clone, Debug)]
pub struct Folder {
    path: PathBuf,
}

impl Folder {
    /// Where a repository lies.
    pub fn of(disk: &Disk, repository: &Repository) -> Self {
        Self { path: root(disk).join(repository.as_str()) }
    }

    fn tag_path(&self, tag: &Tag) -> PathBuf {
        self.path.join("_tags").join(tag.as_str())
    }

    fn member_path(&self, digest: &Digest) -> PathBuf {
        let mut path = self.path.join("_links");
        path.extend([digest.algorithm().as_str(), &digest.hex()]);
        path
    }

    fn referrers_path(&self, subject: &Digest) -> PathBuf {
        self.path.join("_referrers").join(flat(subject))
    }

    /// What a tag is.
    ///
    /// # Errors
    /// What the file system says, or that the record is beyond reading.
    pub fn tag(&self, tag: &Tag) -> io::Result<Option<TagRecord>> {
        record(&self.tag_path(tag))
    }

    /// Sets a tag.
    ///
    /// # Errors
    /// What the file system says; the tag is as it was.
    pub fn set_tag(&self, disk: &Disk, tag: &Tag, record: &TagRecord) -> io::Result<()> {
        disk.put(&self.tag_path(tag), &store::write_record(record))
    }

    /// Removes a tag; `false`: it was not there.
    ///
    /// # Errors
    /// What the file system says.
    pub fn drop_tag(&self, tag: &Tag) -> io::Result<bool> {
        remove_synced(&self.tag_path(tag))
    }

    /// Whether it contains a digest, and as what.
    ///
    /// # Errors
    /// What the file system says, or that the record is beyond reading.
    pub fn member(&self, digest: &Digest) -> io::Result<Option<Member>> {
        record(&self.member_path(digest))
    }

    /// Notes that it contains a digest; the lease begins anew.
    ///
    /// # Errors
    /// What the file system says.
    pub fn set_member(&self, disk: &Disk, digest: &Digest, member: &Member) -> io::Result<()> {
        disk.put(&self.member_path(digest), &store::write_record(member))
    }

    /// Removes a digest; `false`: it was not there.
    ///
    /// # Errors
    /// What the file system says.
    pub fn drop_member(&self, digest: &Digest) -> io::Result<bool> {
        remove_synced(&self.member_path(digest))
    }

    /// Begins the lease of a digest anew. Nothing is synced: after a power loss it counts from before.
    ///
    /// # Errors
    /// What the file system says.
    pub fn touch(&self, digest: &Digest) -> io::Result<()> {
        let file = found(OpenOptions::new().append(true).open(self.member_path(digest)))?;
        file.map_or(Ok(()), |file| file.set_modified(SystemTime::now()))
    }

    /// When the lease of a digest began.
    ///
    /// # Errors
    /// What the file system says.
    pub fn touched(&self, digest: &Digest) -> io::Result<Option<SystemTime>> {
        found(fs::metadata(self.member_path(digest)))?.map(|m| m.modified()).transpose()
    }

    /// Notes that a manifest is attached to another.
    ///
    /// # Errors
    /// What the file system says.
    pub fn set_referrer(
        &self,
        disk: &Disk,
        subject: &Digest,
        digest: &Digest,
        descriptor: &[u8],
    ) -> io::Result<()> {
        disk.put(&self.referrers_path(subject).join(flat(digest)), descriptor)
    }

    /// The descriptor of a manifest that is attached to another.
    ///
    /// # Errors
    /// What the file system says.
    pub fn referrer(&self, subject: &Digest, digest: &Digest) -> io::Result<Option<Vec<u8>>> {
        found(fs::read(self.referrers_path(subject).join(flat(digest))))
    }

    /// Notes that a manifest is no longer attached to another.
    ///
    /// # Errors
    /// What the file system says.
    pub fn drop_referrer(&self, subject: &Digest, digest: &Digest) -> io::Result<bool> {
        let folder = self.referrers_path(subject);
        let dropped = remove_synced(&folder.join(flat(digest)))?;
        let _ = fs::remove_dir(folder); // stays where others are attached
        Ok(dropped)
    }

    /// Calls `each` with every tag, in no order.
    ///
    /// # Errors
    /// What the file system says.
    pub fn tags(&self, mut each: impl FnMut(Tag)) -> io::Result<()> {
        names(&self.path.join("_tags"), |name| {
            if let Ok(tag) = Tag::parse(name) {
                each(tag);
            }
        })
    }

    /// Calls `each` with every digest that it contains, in no order.
    ///
    /// # Errors
    /// What the file system says.
    pub fn members(&self, mut each: impl FnMut(Digest)) -> io::Result<()> {
        let links = self.path.join("_links");
        let mut unread = Ok(());
        names(&links.clone(), |algorithm| {
            let listed = names(&links.join(algorithm), |hex| {
                if let Ok(digest) = Digest::parse(&format!("{algorithm}:{hex}")) {
                    each(digest);
                }
            });
            if listed.is_err() {
                unread = listed;
            }
        })
        .and(unread)
    }

    /// Calls `each` with every digest that is attached to `subject`, in no order.
    ///
    /// # Errors
    /// What the file system says.
    pub fn referrers(&self, subject: &Digest, mut each: impl FnMut(Digest)) -> io::Result<()> {
        names(&self.referrers_path(subject), |name| {
            if let Some(digest) = unflat(name) {
                each(digest);
            }
        })
    }

    /// Whether there is a tag or any content in it.
    pub fn is_there(&self) -> bool {
        let mut found = false;
        for part in ["_tags", "_links/sha256", "_links/sha512"] {
            found = found
                || fs::read_dir(self.path.join(part))
                    .is_ok_and(|mut entries| entries.next().is_some());
        }
        found
    }
}

/// Where the hosted repositories lie.
fn root(disk: &Disk) -> PathBuf {
    disk.root().join("repos").join(HOSTED)
}

/// The hosted repositories in the order of their names, from behind `last` on, until `each` says enough.
///
/// # Errors
/// What the file system says.
pub fn repositories(
    disk: &Disk,
    last: Option<&Repository>,
    mut each: impl FnMut(Repository) -> bool,
) -> io::Result<()> {
    walk(&root(disk), "", last.map(Repository::as_str), &mut each).map(|_| ())
}

/// Walks one folder of names. One folder at a time is in memory.
fn walk(
    folder: &Path,
    prefix: &str,
    last: Option<&str>,
    each: &mut impl FnMut(Repository) -> bool,
) -> io::Result<bool> {
    let mut below = Vec::new();
    names(folder, |name| {
        if !name.starts_with('_') {
            below.push(name.to_owned());
        }
    })?;
    // A name and those below it stand together: the order is that of names with a `/` behind them.
    below.sort_unstable_by(|a, b| a.bytes().chain([b'/']).cmp(b.bytes().chain([b'/'])));
    for name in below {
        let full = format!("{prefix}{name}");
        let path = folder.join(&name);
        let behind = last.is_none_or(|last| format!("{full}/") > format!("{last}/"));
        if behind
            && let Ok(repository) = Repository::parse(&full)
            && (Folder { path: path.clone() }).is_there()
            && !each(repository)
        {
            return Ok(false);
        }
        let may_hold_more = last.is_none_or(|last| format!("{full}0") > format!("{last}/"));
        if may_hold_more && !walk(&path, &format!("{full}/"), last, each)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn names(folder: &Path, mut each: impl FnMut(&str)) -> io::Result<()> {
    let Some(entries) = found(fs::read_dir(folder))? else { return Ok(()) };
    for entry in entries {
        if let Some(name) = entry?.file_name().to_str() {
            each(name);
        }
    }
    Ok(())
}

fn record<T: serde::de::DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    let Some(bytes) = found(fs::read(path))? else { return Ok(None) };
    store::check_record(&bytes).map(Some).map_err(io::Error::other)
}

/// A digest as one file name.
fn flat(digest: &Digest) -> String {
    format!("{}-{}", digest.algorithm().as_str(), digest.hex())
}

fn unflat(name: &str) -> Option<Digest> {
    Digest::parse(&name.replacen('-', ":", 1)).ok()
}

/// The size of content, by its file.
///
/// # Errors
/// What the file system says.
pub fn content_size(disk: &Disk, digest: &Digest) -> io::Result<Option<u64>> {
    Ok(found(File::open(disk.blob_path(digest)))?
        .map(|f| f.metadata())
        .transpose()?
        .map(|m| m.len()))
}
