//! Garbage: what no tag and no referrer holds, once nobody has had a use for it for a while.
//!
//! Each repository is looked through without a lock, and what was found is removed under its lock,
//! provided that nothing has changed meanwhile: otherwise it is looked through again. Content goes last,
//! when no repository links to it; what a mirrored repository links to stays, as cached content.

use std::collections::HashSet;
use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::Serialize;

use super::folder::{self, Folder};
use super::{Hosted, unreadable, unwritable};
use crate::catalog;
use crate::digest::Digest;
use crate::error::{Error, Kind, Result};
use crate::limits::{MANIFEST_BYTES_MAX, PAGE_NAMES_MAX};
use crate::name::Repository;
use crate::pushed::Pushed;

/// How often a busy repository is looked through before its pushes have to wait for us.
const ATTEMPTS: usize = 3;

/// How long a collection waits, after a start, until it is known what is hosted.
const LEARNING_MOMENT: Duration = Duration::from_millis(50);
const LEARNING_MOMENTS: u32 = 400;

/// What a collection removed, or would remove.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// Whether nothing was removed in truth.
    pub dry_run: bool,
    /// How many repositories were looked through.
    pub repositories: u64,
    /// Manifests that left their repository.
    pub manifests: u64,
    /// Blobs that left their repository.
    pub blobs: u64,
    /// Uploads that nobody went on with.
    pub uploads: u64,
    /// Bytes that the disk got back, or would get at most.
    pub bytes: u64,
    /// Each of them; of many, the first.
    pub items: Vec<Item>,
    /// Repositories of which something cannot be read, so that they keep all that they have.
    pub unreadable: u64,
}

/// One thing that goes.
#[derive(Debug, Serialize)]
pub struct Item {
    /// From where.
    pub repository: String,
    /// What.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// Why.
    pub why: &'static str,
}

/// Something that nothing holds.
#[derive(Clone, Copy, Debug)]
struct Garbage {
    digest: Digest,
    size: u64,
    is_manifest: bool,
}

impl Hosted {
    /// Looks for garbage that is older than `grace`, and removes it unless this is a dry run.
    ///
    /// # Errors
    /// `Unavailable` where a collection is under way or the links are still being read, `Internal`
    /// where the disk fails.
    pub async fn collect(self: &Arc<Self>, grace: Duration, dry_run: bool) -> Result<Report> {
        let busy = |text| Error::new(Kind::Unavailable, text);
        let _turn = self
            .collecting
            .try_lock()
            .map_err(|_| busy("garbage is being collected already; wait for its end"))?;
        // The links of a million blobs are read in seconds.
        for _moment in 0..LEARNING_MOMENTS {
            if !self.held().is_learning() {
                break;
            }
            tokio::time::sleep(LEARNING_MOMENT).await;
        }
        if self.held().is_learning() {
            return Err(busy("what is hosted is still being read; try again in a moment"));
        }
        let mut report = Report { dry_run, ..Report::default() };
        let lost = self.held().collection_begins();
        let mut removed = lost.clone();
        let done = self.collect_all(grace, &mut report, &mut removed).await;
        let done = match done {
            Ok(()) if !dry_run => self.remove_content(removed, &mut report).await,
            done => {
                for digest in &lost {
                    self.held().dropped(digest);
                }
                done
            }
        };
        self.held().collection_ends();
        done.map(|()| report)
    }

    async fn collect_all(
        self: &Arc<Self>,
        grace: Duration,
        report: &mut Report,
        removed: &mut HashSet<Digest>,
    ) -> Result<()> {
        let mut last = None;
        loop {
            let page = self.list_repositories(None, last.take()).await?;
            for repository in &page.items {
                report.repositories += 1;
                // A repository of which anything cannot be read keeps all that it has.
                match self.collect_one(repository, grace, report.dry_run).await {
                    Ok(all) => all.into_iter().for_each(|found| {
                        removed.insert(found.digest);
                        report.note(repository, &found);
                    }),
                    Err(error) => {
                        tracing::error!(%repository, ?error, "no garbage is collected here");
                        report.unreadable += 1;
                    }
                }
            }
            last = page.items.last().cloned().filter(|_| page.more);
            if last.is_none() {
                return Ok(());
            }
        }
    }

    /// Collects the garbage of one repository.
    async fn collect_one(
        self: &Arc<Self>,
        repository: &Repository,
        grace: Duration,
        dry_run: bool,
    ) -> Result<Vec<Garbage>> {
        let lock = self.lock(repository);
        for attempt in 0..=ATTEMPTS {
            let waiting = attempt == ATTEMPTS;
            let held = if waiting { Some(Arc::clone(&lock).write_owned().await) } else { None };
            let before = match &held {
                Some(guard) => **guard,
                None => *lock.read().await,
            };
            let (me, folder) = (Arc::clone(self), self.folder(repository));
            let found = blocking(move || me.mark(&folder, grace)).await?;
            if dry_run || found.is_empty() {
                return Ok(found);
            }
            let guard = match held {
                Some(guard) => guard,
                None => Arc::clone(&lock).write_owned().await,
            };
            if *guard != before {
                continue;
            }
            let (me, folder, r) = (Arc::clone(self), self.folder(repository), repository.clone());
            let swept = blocking(move || {
                let swept = me.sweep(&folder, &r, found, grace);
                drop(guard);
                swept
            });
            if let Some(swept) = swept.await? {
                return Ok(swept);
            }
        }
        Ok(Vec::new())
    }

    /// Finds what nothing holds: neither a tag, nor anything of the grace period, nor what either of
    /// them holds or has attached to it.
    fn mark(&self, folder: &Folder, grace: Duration) -> Result<Vec<Garbage>> {
        let (mut queue, mut old) = (Vec::new(), Vec::new());
        // What cannot be read holds who knows what: then nothing of this repository may go.
        let mut unread = Ok(());
        folder
            .tags(|tag| match folder.tag(&tag) {
                Ok(record) => queue.extend(record.map(|record| record.digest)),
                Err(error) => unread = Err(error),
            })
            .and(unread)
            .map_err(unreadable)?;
        folder
            .members(|digest| {
                if is_young(folder, &digest, grace) { queue.push(digest) } else { old.push(digest) }
            })
            .map_err(unreadable)?;
        let mut live = HashSet::new();
        while let Some(digest) = queue.pop() {
            if !live.insert(digest) {
                continue;
            }
            if let Some(pushed) = self.read_pushed(folder, &digest).map_err(unreadable)? {
                queue.extend(pushed.holds());
            }
            folder.referrers(&digest, |attached| queue.push(attached)).map_err(unreadable)?;
        }
        old.retain(|digest| !live.contains(digest));
        let mut garbage = Vec::new();
        for digest in old {
            if let Some(member) = folder.member(&digest).map_err(unreadable)? {
                let is_manifest = member.media_type.is_some();
                garbage.push(Garbage { digest, size: member.size, is_manifest });
            }
        }
        // What refers leaves before what is referred to.
        garbage.sort_unstable_by_key(|garbage| !garbage.is_manifest);
        Ok(garbage)
    }

    /// Removes what was found, unless somebody has had a use for any of it since.
    fn sweep(
        &self,
        folder: &Folder,
        repository: &Repository,
        found: Vec<Garbage>,
        grace: Duration,
    ) -> Result<Option<Vec<Garbage>>> {
        if found.iter().any(|garbage| is_young(folder, &garbage.digest, grace)) {
            return Ok(None);
        }
        for garbage in &found {
            self.remove(folder, repository, &garbage.digest)?;
        }
        Ok(Some(found))
    }

    /// Removes the content to which no repository links any more.
    async fn remove_content(
        self: &Arc<Self>,
        mut lost: HashSet<Digest>,
        report: &mut Report,
    ) -> Result<()> {
        if lost.is_empty() {
            return Ok(());
        }
        let me = Arc::clone(self);
        report.bytes = blocking(move || {
            let disk = me.store.disk();
            let mut listed = Ok(());
            folder::repositories(disk, None, |repository| {
                listed = me.folder(&repository).members(|digest| {
                    lost.remove(&digest);
                });
                listed.is_ok() && !lost.is_empty()
            })
            .and(listed)
            .map_err(unreadable)?;
            let mut cached = HashSet::new();
            catalog::each_place(disk, None, &mut |place| {
                let links = catalog::links(disk, &place)?;
                cached.extend(links.into_iter().filter(|digest| lost.contains(digest)));
                Ok(ControlFlow::Continue(()))
            })
            .map_err(unreadable)?;
            let mut bytes = 0;
            for digest in &lost {
                let size = folder::content_size(disk, digest).map_err(unreadable)?;
                let is_cached = cached.contains(digest);
                let remove = || if is_cached { Ok(()) } else { disk.remove_blob(digest) };
                match me.held().release(digest, remove).transpose().map_err(unwritable)? {
                    Some(()) if is_cached => me.store.keeper().pin(digest, false),
                    Some(()) => {
                        me.store.keeper().forget(digest);
                        bytes += size.unwrap_or_default();
                    }
                    None => {}
                }
            }
            me.store.keeper().close_gone();
            Ok(bytes)
        })
        .await?;
        Ok(())
    }

    /// What a manifest of a repository refers to; `None` for a blob and for what has gone.
    ///
    /// # Errors
    /// Where it cannot be read, so that nobody knows what it refers to.
    pub(super) fn read_pushed(
        &self,
        folder: &Folder,
        digest: &Digest,
    ) -> io::Result<Option<Pushed>> {
        let Some(member) = folder.member(digest)? else { return Ok(None) };
        let Some(media_type) = member.media_type else { return Ok(None) };
        let Some(mut file) = self.store.disk().open_blob(digest)? else { return Ok(None) };
        let size = member.size.min(MANIFEST_BYTES_MAX as u64);
        let bytes = crate::disk::read_whole(&mut file, size)?;
        Pushed::read(&bytes, Some(&media_type)).map(Some).map_err(io::Error::other)
    }
}

impl Report {
    fn note(&mut self, repository: &Repository, garbage: &Garbage) {
        let why = if garbage.is_manifest {
            self.manifests += 1;
            "no tag and no index holds it, and it is attached to nothing that is held"
        } else {
            self.blobs += 1;
            "no manifest that is held refers to it"
        };
        if self.dry_run {
            self.bytes += garbage.size;
        }
        if self.items.len() < PAGE_NAMES_MAX {
            self.items.push(Item {
                repository: repository.to_string(),
                digest: garbage.digest,
                size: garbage.size,
                why,
            });
        }
    }
}

/// Whether somebody has pushed it, asked for it by `HEAD` or let go of it within the grace period.
/// What cannot be told counts as young, and so does a lease from the future.
fn is_young(folder: &Folder, digest: &Digest, grace: Duration) -> bool {
    match folder.touched(digest) {
        Ok(Some(touched)) => {
            SystemTime::now().duration_since(touched).map_or(!grace.is_zero(), |age| age < grace)
        }
        Ok(None) => false,
        Err(_) => true,
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|e| Error::internal("collecting garbage was broken off", e))?
}
