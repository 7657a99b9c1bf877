//! What changes a hosted repository: content comes in, manifests and tags are set, things are removed.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use serde_json::json;

use super::events::Happening;
use super::folder::{self, Folder, Member};
use super::{Hosted, no_room, unknown_manifest, unreadable, unwritable};
use crate::digest::{Algorithm, Digest};
use crate::error::{Error, Kind, Result};
use crate::name::{Reference, Repository, Tag};
use crate::pushed::Pushed;
use crate::store::{Store, TagRecord};

/// A manifest that was kept.
#[derive(Clone, Debug)]
pub struct Kept {
    /// Its name.
    pub digest: Digest,
    /// What it is attached to.
    pub subject: Option<Digest>,
    /// The tags that were set.
    pub tags: Vec<Tag>,
}

impl Hosted {
    /// Takes a blob into a repository. `publish` puts its content, whose digest has been checked, in
    /// its place.
    ///
    /// # Errors
    /// `Denied` where the quota is used up, `StorageFull`, or `Internal`.
    pub async fn adopt(
        self: &Arc<Self>,
        repository: &Repository,
        digest: Digest,
        size: u64,
        publish: impl FnOnce(&Store) -> io::Result<()> + Send + 'static,
    ) -> Result<()> {
        let arriving = self.held().arriving(&digest);
        self.store.blocking(publish).await.map_err(unwritable)?;
        let (key, r) = ((repository.clone(), digest), repository.clone());
        self.change(repository, move |me, folder| {
            let member = match folder.member(&digest).map_err(unreadable)? {
                Some(member) => member, // what is known as a manifest stays so
                None => Member { size, media_type: None, pulled: false },
            };
            me.add(folder, &r, &digest, &member)?;
            me.touched.invalidate(&key);
            Ok(())
        })
        .await?;
        arriving.linked();
        Ok(())
    }

    /// Takes a blob of another repository into one; `false`: the other does not have it. `from`
    /// whichever has it, if no one is named: only for callers who may read them all.
    ///
    /// # Errors
    /// `Denied` where the quota is used up, `StorageFull`, or `Internal`.
    pub async fn mount(
        self: &Arc<Self>,
        repository: &Repository,
        from: Option<&Repository>,
        digest: Digest,
    ) -> Result<bool> {
        if from.is_none() && !self.held().contains(&digest) {
            return Ok(false); // without a look at every folder
        }
        // Announced first: what is found now is not removed before it is linked.
        let arriving = self.held().arriving(&digest);
        let is_there = match from {
            Some(from) => self.member(from, &digest).await?.is_some(),
            None => self.is_anywhere(digest).await?,
        };
        if !is_there {
            return Ok(false);
        }
        let size = self.store.blocking(move |s| folder::content_size(s.disk(), &digest)).await;
        let Some(size) = size.map_err(unreadable)? else { return Ok(false) };
        self.adopt(repository, digest, size, |_| Ok(())).await?;
        arriving.linked();
        Ok(true)
    }

    /// Whether any repository contains a digest, found by reading their folders.
    async fn is_anywhere(&self, digest: Digest) -> Result<bool> {
        let found = self.store.blocking(move |store| {
            let mut found = Ok(None);
            folder::repositories(store.disk(), None, |repository| {
                found = Folder::of(store.disk(), &repository).member(&digest);
                matches!(found, Ok(None))
            })?;
            found
        });
        Ok(found.await.map_err(unreadable)?.is_some())
    }

    /// Keeps a manifest and sets its tags.
    ///
    /// # Errors
    /// What is wrong with the manifest, `Denied` where a tag cannot be moved or the quota is used
    /// up, `StorageFull`, or `Internal`. Nothing has changed then.
    pub async fn put_manifest(
        self: &Arc<Self>,
        repository: &Repository,
        reference: &Reference,
        more_tags: Vec<Tag>,
        content_type: Option<&str>,
        bytes: Bytes,
    ) -> Result<Kept> {
        let (algorithm, mut tags) = match reference {
            Reference::Digest(digest) => (digest.algorithm(), Vec::new()),
            Reference::Tag(tag) => (Algorithm::Sha256, vec![tag.clone()]),
        };
        for tag in more_tags {
            if !tags.contains(&tag) {
                tags.push(tag);
            }
        }
        let digest = Digest::of(algorithm, &bytes);
        if let Reference::Digest(told) = reference
            && *told != digest
        {
            let text = format!("the manifest's digest is {digest}, not {told}");
            return Err(Error::new(Kind::DigestInvalid, text));
        }
        let pushed = Pushed::read(&bytes, content_type)?;
        self.store.keeper().scanned().await; // room is only known from then on
        let arriving = self.held().arriving(&digest);
        let kept = Kept { digest, subject: pushed.subject, tags };
        let (r, done) = (repository.clone(), kept.clone());
        self.change(repository, move |me, folder| {
            me.check(folder, &r, &pushed, &kept)?;
            me.write(folder, &r, &pushed, &kept, &bytes)
        })
        .await?;
        arriving.linked();
        for tag in &done.tags {
            self.events.tell(Happening::Push, repository, Some(tag), Some(&digest));
        }
        if done.tags.is_empty() {
            self.events.tell(Happening::Push, repository, None, Some(&digest));
        }
        Ok(done)
    }

    /// Whether a manifest may be kept.
    fn check(
        &self,
        folder: &Folder,
        repository: &Repository,
        pushed: &Pushed,
        kept: &Kept,
    ) -> Result<()> {
        for tag in &kept.tags {
            if self.is_immutable(repository, tag)
                && folder.tag(tag).map_err(unreadable)?.is_some_and(|r| r.digest != kept.digest)
            {
                return Err(immutable(tag));
            }
        }
        let missing = |digest: &Digest, what: &str| {
            let text = format!("{repository} has no {what} {digest}; push it first");
            Error::new(Kind::ManifestBlobUnknown, text)
        };
        let mut seen = HashSet::new();
        for digest in pushed.blobs.iter().filter(|digest| seen.insert(**digest)) {
            if !self.settings().sparse && folder.member(digest).map_err(unreadable)?.is_none() {
                return Err(missing(digest, "blob"));
            }
        }
        for digest in pushed.manifests.iter().filter(|digest| seen.insert(**digest)) {
            let member = folder.member(digest).map_err(unreadable)?;
            if !self.settings().sparse && member.is_none_or(|member| member.media_type.is_none()) {
                return Err(missing(digest, "manifest"));
            }
        }
        Ok(())
    }

    /// Writes a manifest that was found good: content, what it is attached to, the link that makes
    /// it visible, and last its tags.
    fn write(
        &self,
        folder: &Folder,
        repository: &Repository,
        pushed: &Pushed,
        kept: &Kept,
        bytes: &Bytes,
    ) -> Result<()> {
        let (disk, digest, size) = (self.store.disk(), &kept.digest, bytes.len() as u64);
        // What it holds has its lease begun anew, so that no collection that looked before removes it.
        for held in pushed.holds() {
            folder.touch(held).map_err(unwritable)?;
        }
        let lease = self.store.keeper().reserve(size).ok_or_else(no_room)?;
        disk.put(&disk.blob_path(digest), bytes).map_err(unwritable)?;
        self.store.keeper().published(digest, size, Some(lease));
        if let Some(subject) = &pushed.subject {
            let descriptor = descriptor(pushed, digest, size);
            folder.set_referrer(disk, subject, digest, &descriptor).map_err(unwritable)?;
        }
        let member =
            Member { size, media_type: Some(pushed.media_type.as_str().into()), pulled: false };
        self.add(folder, repository, digest, &member)?;
        for tag in &kept.tags {
            let_go(folder, tag, digest)?;
            let record =
                TagRecord::new(*digest, pushed.media_type.clone(), size, SystemTime::now());
            folder.set_tag(disk, tag, &record).map_err(unwritable)?;
            self.tags.insert((repository.clone(), tag.clone()), Arc::new(record));
        }
        Ok(())
    }

    /// Notes that a repository contains something, within its quota.
    fn add(
        &self,
        folder: &Folder,
        repository: &Repository,
        digest: &Digest,
        member: &Member,
    ) -> Result<()> {
        let new = folder.member(digest).map_err(unreadable)?.is_none();
        if new && let Some(quota) = self.quota(repository) {
            let used = self.usage(folder, repository)?;
            if used.saturating_add(member.size) > quota {
                let text = format!(
                    "{repository} holds {used} of {quota} bytes, and {} more do not fit; remove \
                     something, or have its quota raised",
                    member.size
                );
                return Err(Error::new(Kind::Denied, text));
            }
            self.usage.insert(repository.clone(), used + member.size);
        }
        folder.set_member(self.store.disk(), digest, member).map_err(unwritable)?;
        self.members.insert((repository.clone(), *digest), member.clone());
        Ok(())
    }

    /// How much a repository contains. Read once, then kept up.
    fn usage(&self, folder: &Folder, repository: &Repository) -> Result<u64> {
        if let Some(used) = self.usage.get(repository).filter(|_| !self.is_shared()) {
            return Ok(used);
        }
        let mut used = 0;
        folder
            .members(|digest| {
                used += folder.member(&digest).ok().flatten().map_or(0, |member| member.size);
            })
            .map_err(unreadable)?;
        self.usage.insert(repository.clone(), used);
        Ok(used)
    }

    /// Removes a tag, or a manifest with all its tags.
    ///
    /// # Errors
    /// `ManifestUnknown`, `Denied` where a tag cannot be removed, or `Internal`.
    pub async fn delete_manifest(
        self: &Arc<Self>,
        repository: &Repository,
        reference: &Reference,
    ) -> Result<()> {
        let (tag, digest) = match reference {
            Reference::Tag(tag) => (Some(tag), None),
            Reference::Digest(digest) => (None, Some(digest)),
        };
        self.drop_manifest(repository, reference.clone()).await?;
        self.events.tell(Happening::Delete, repository, tag, digest);
        Ok(())
    }

    async fn drop_manifest(
        self: &Arc<Self>,
        repository: &Repository,
        reference: Reference,
    ) -> Result<()> {
        let r = repository.clone();
        self.change(repository, move |me, folder| match &reference {
            Reference::Tag(tag) => {
                if folder.tag(tag).map_err(unreadable)?.is_none() {
                    return Err(unknown_manifest(&r, &reference));
                }
                me.delete_tag(folder, &r, tag)
            }
            Reference::Digest(digest) => {
                let member = folder.member(digest).map_err(unreadable)?;
                if member.is_none_or(|member| member.media_type.is_none()) {
                    return Err(unknown_manifest(&r, &reference));
                }
                let mut tags = Vec::new();
                folder
                    .tags(|tag| {
                        if folder.tag(&tag).ok().flatten().is_some_and(|r| r.digest == *digest) {
                            tags.push(tag);
                        }
                    })
                    .map_err(unreadable)?;
                if let Some(tag) = tags.iter().find(|tag| me.is_immutable(&r, tag)) {
                    return Err(immutable(tag));
                }
                me.remove(folder, &r, digest)?;
                tags.iter().try_for_each(|tag| me.delete_tag(folder, &r, tag))
            }
        })
        .await
    }

    fn delete_tag(&self, folder: &Folder, repository: &Repository, tag: &Tag) -> Result<()> {
        if self.is_immutable(repository, tag) {
            return Err(immutable(tag));
        }
        if let Some(record) = folder.tag(tag).map_err(unreadable)? {
            folder.touch(&record.digest).map_err(unwritable)?;
        }
        folder.drop_tag(tag).map_err(unwritable)?;
        self.tags.invalidate(&(repository.clone(), tag.clone()));
        Ok(())
    }

    /// Removes a blob from a repository.
    ///
    /// # Errors
    /// `BlobUnknown`, or `Internal`.
    pub async fn delete_blob(
        self: &Arc<Self>,
        repository: &Repository,
        digest: Digest,
    ) -> Result<()> {
        let r = repository.clone();
        self.change(repository, move |me, folder| {
            match folder.member(&digest).map_err(unreadable)? {
                None => Err(Error::new(Kind::BlobUnknown, format!("{r} has no blob {digest}"))),
                Some(Member { media_type: Some(_), .. }) => Err(Error::new(
                    Kind::Unsupported,
                    format!("{digest} is a manifest; delete it under manifests/"),
                )),
                Some(_) => me.remove(folder, &r, &digest),
            }
        })
        .await
    }

    /// Removes what a repository contains. Its content goes with a collection, if nobody else links
    /// to it.
    pub(super) fn remove(
        &self,
        folder: &Folder,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<()> {
        let subject =
            self.read_pushed(folder, digest).ok().flatten().and_then(|pushed| pushed.subject);
        folder.drop_member(digest).map_err(unwritable)?;
        let key = (repository.clone(), *digest);
        self.members.invalidate(&key);
        self.touched.invalidate(&key);
        self.usage.invalidate(repository);
        self.held().dropped(digest);
        if let Some(subject) = subject {
            folder.drop_referrer(&subject, digest).map_err(unwritable)?;
        }
        Ok(())
    }
}

/// A tag is about to be another manifest's: what it held is let go of only now.
fn let_go(folder: &Folder, tag: &Tag, digest: &Digest) -> Result<()> {
    match folder.tag(tag).map_err(unreadable)? {
        Some(before) if before.digest != *digest => {
            folder.touch(&before.digest).map_err(unwritable)
        }
        _ => Ok(()),
    }
}

/// What the list of referrers says of a manifest.
fn descriptor(pushed: &Pushed, digest: &Digest, size: u64) -> Vec<u8> {
    let mut descriptor = json!({"mediaType": pushed.media_type, "digest": digest, "size": size});
    if let Some(artifact_type) = &pushed.artifact_type {
        descriptor["artifactType"] = artifact_type.as_str().into();
    }
    if let Some(annotations) = &pushed.annotations {
        descriptor["annotations"] = annotations.clone().into();
    }
    descriptor.to_string().into_bytes()
}

fn immutable(tag: &Tag) -> Error {
    Error::new(Kind::Denied, format!("the tag {tag} cannot be moved or deleted; push another one"))
}
