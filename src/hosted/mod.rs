//! Repositories that live here: what is read of them, and what every change to them goes by.
//!
//! Content lies in the store, once, whoever else holds it; here is only who contains what. All records
//! of a repository change under its lock, on a blocking thread that holds it to the end. A link is
//! the last thing that is written of what is pushed and the first that is removed: whatever has no
//! link is not there.

mod change;
pub mod events;
pub mod folder;
pub mod gc;
mod lists;

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use moka::sync::Cache;
use tokio::sync::{Notify, RwLock};

use crate::cache;
use crate::config;
use crate::digest::Digest;
use crate::disk::Turn;
use crate::error::{Error, Kind, Result};
use crate::held::Held;
use crate::keeper::Company;
use crate::limits::RECORDS_MAX;
use crate::manifests::Found;
use crate::name::{Reference, Repository, Tag};
use crate::patterns;
use crate::store::{Content, Store, TagRecord, is_full};

pub use change::Kept;
use events::{Events, Happening};
use folder::{Folder, Member};
pub use lists::Page;

/// Locks for the records of repositories; each stands for many. More would only be more memory.
const LOCKS: usize = 64;

/// How long a lease that was begun anew is left alone: `HEAD`s come in crowds.
const TOUCHED_FOR: Duration = Duration::from_secs(60);

/// The repositories that live here.
#[derive(Debug)]
pub struct Hosted {
    store: Arc<Store>,
    settings: ArcSwap<config::Hosted>,
    /// Each counts the changes made under it.
    locks: Vec<Arc<RwLock<u64>>>,
    members: Cache<(Repository, Digest), Member>,
    tags: Cache<(Repository, Tag), Arc<TagRecord>>,
    touched: Cache<(Repository, Digest), ()>,
    usage: Cache<Repository, u64>,
    collecting: tokio::sync::Mutex<()>,
    /// Settings have changed.
    changed: Notify,
    /// Who is told what happens.
    pub events: Events,
}

impl Hosted {
    /// The repositories in a store's folder. Their links are yet to be read: see `learn`.
    pub fn new(store: Arc<Store>, settings: config::Hosted) -> Self {
        store.keeper().held.learn();
        let events = Events::new(&settings.events);
        Self {
            store,
            settings: ArcSwap::from_pointee(settings),
            locks: (0..LOCKS).map(|_| Arc::default()).collect(),
            members: Cache::new(RECORDS_MAX),
            tags: Cache::new(RECORDS_MAX),
            touched: Cache::builder().max_capacity(RECORDS_MAX).time_to_live(TOUCHED_FOR).build(),
            usage: Cache::new(10_000),
            collecting: tokio::sync::Mutex::default(),
            changed: Notify::new(),
            events,
        }
    }

    /// Which content is hosted, for whoever evicts.
    fn held(&self) -> &Held {
        &self.store.keeper().held
    }

    /// What the configuration says of hosted repositories.
    pub fn settings(&self) -> Arc<config::Hosted> {
        self.settings.load_full()
    }

    /// Goes by these settings from now on.
    pub fn set_settings(&self, settings: &config::Hosted) {
        self.events.set_sinks(&settings.events);
        self.settings.store(Arc::new(settings.clone()));
        self.changed.notify_one();
    }

    /// Waits for the next time that garbage is looked for. A change of the interval begins it anew.
    pub async fn until_collection(&self) {
        loop {
            let interval = self.settings().gc_interval.get();
            tokio::select! {
                () = tokio::time::sleep(interval), if !interval.is_zero() => return,
                () = self.changed.notified() => {}
            }
        }
    }

    /// Whether another process may change the records too, so that they are read from the disk each
    /// time, and in turns.
    fn is_shared(&self) -> bool {
        self.store.keeper().company() != Company::Alone
    }

    /// The other process's turn, or ours.
    fn turn(&self, exclusive: bool) -> Result<Option<Turn>> {
        let shared = self.is_shared().then(|| self.store.disk().turn(exclusive));
        shared.transpose().map_err(unreadable)
    }

    /// Waits until nobody else may change the records. Cancel safe.
    pub async fn unshared(&self) {
        self.store.keeper().alone().await;
    }

    /// Waits for the changes that have begun when nobody else was at work on the records.
    pub async fn settle(&self) {
        for lock in &self.locks {
            drop(lock.write().await);
        }
    }

    /// Forgets what was read of the records while another process might change them.
    pub fn forget(&self) {
        self.members.invalidate_all();
        self.tags.invalidate_all();
        self.touched.invalidate_all();
        self.usage.invalidate_all();
    }

    /// Reads which content is hosted. Until that is done all content counts as such.
    ///
    /// # Errors
    /// `Internal` where the disk fails: nothing may be evicted then.
    pub async fn learn(self: &Arc<Self>) -> Result<()> {
        let me = Arc::clone(self);
        self.store
            .blocking(move |store| {
                let mut listed = Ok(());
                folder::repositories(store.disk(), None, |repository| {
                    let mut found = Vec::new();
                    listed = me.folder(&repository).members(|digest| found.push(digest));
                    me.held().found(&found);
                    listed.is_ok()
                })?;
                listed?;
                me.held().learnt();
                // Until now nothing could leave.
                store.keeper().make_room();
                Ok(())
            })
            .await
            .map_err(|e| Error::internal("cannot read which content is hosted", e))
    }

    fn folder(&self, repository: &Repository) -> Folder {
        Folder::of(self.store.disk(), repository)
    }

    fn lock(&self, repository: &Repository) -> Arc<RwLock<u64>> {
        let mut hasher = DefaultHasher::new();
        repository.hash(&mut hasher);
        let index = usize::try_from(hasher.finish() % LOCKS as u64).unwrap_or_default();
        Arc::clone(&self.locks[index])
    }

    /// Looks at a repository's records, while nobody changes them.
    async fn look<T: Send + 'static>(
        self: &Arc<Self>,
        repository: &Repository,
        work: impl FnOnce(&Self, &Folder) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let guard = self.lock(repository).read_owned().await;
        let (me, folder) = (Arc::clone(self), self.folder(repository));
        // The guard goes along: whoever asked may be gone before the work is done.
        tokio::task::spawn_blocking(move || {
            let turn = me.turn(false)?;
            let done = work(&me, &folder);
            drop((turn, guard));
            done
        })
        .await
        .map_err(|e| Error::internal("reading a repository was broken off", e))?
    }

    /// Changes a repository's records, while nobody else looks at them.
    async fn change<T: Send + 'static>(
        self: &Arc<Self>,
        repository: &Repository,
        work: impl FnOnce(&Self, &Folder) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let mut guard = self.lock(repository).write_owned().await;
        let (me, folder) = (Arc::clone(self), self.folder(repository));
        tokio::task::spawn_blocking(move || {
            let turn = me.turn(true)?;
            *guard += 1;
            let done = work(&me, &folder);
            drop((turn, guard));
            done
        })
        .await
        .map_err(|e| Error::internal("changing a repository was broken off", e))?
    }

    /// Whether a repository contains a digest, and as what.
    ///
    /// # Errors
    /// `Internal` where the disk fails.
    pub async fn member(
        self: &Arc<Self>,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Option<Member>> {
        let key = (repository.clone(), *digest);
        if let Some(member) = self.members.get(&key).filter(|_| !self.is_shared()) {
            return Ok(Some(member));
        }
        self.look(repository, move |me, folder| {
            let member = folder.member(&key.1).map_err(unreadable)?;
            if let Some(member) = &member {
                me.members.insert(key, member.clone());
            }
            Ok(member)
        })
        .await
    }

    async fn tag(
        self: &Arc<Self>,
        repository: &Repository,
        tag: &Tag,
    ) -> Result<Option<Arc<TagRecord>>> {
        let key = (repository.clone(), tag.clone());
        if let Some(record) = self.tags.get(&key).filter(|_| !self.is_shared()) {
            return Ok(Some(record));
        }
        self.look(repository, move |me, folder| {
            let record = folder.tag(&key.1).map_err(unreadable)?.map(Arc::new);
            if let Some(record) = &record {
                me.tags.insert(key, Arc::clone(record));
            }
            Ok(record)
        })
        .await
    }

    /// A manifest by tag or digest. With `lease` the caller may be about to push something that
    /// refers to it.
    ///
    /// # Errors
    /// `ManifestUnknown`, or `Internal` where the disk fails.
    pub async fn manifest(
        self: &Arc<Self>,
        repository: &Repository,
        reference: &Reference,
        lease: bool,
    ) -> Result<Found> {
        let unknown = || unknown_manifest(repository, reference);
        let digest = match reference {
            Reference::Digest(digest) => *digest,
            Reference::Tag(tag) => self.tag(repository, tag).await?.ok_or_else(unknown)?.digest,
        };
        let member = self.member(repository, &digest).await?.ok_or_else(unknown)?;
        let media_type = member.media_type.ok_or_else(unknown)?;
        let by_digest = matches!(reference, Reference::Digest(_));
        if lease && by_digest && !self.lease(repository, digest).await? {
            return Err(unknown());
        }
        let content = self.content(digest).await?.ok_or_else(unknown)?;
        if !lease && !member.pulled && self.events.are_wanted() {
            self.pulled(repository, reference, digest).await?;
        }
        Ok(Found {
            digest,
            media_type,
            size: content.size(),
            content: Some(content),
            cache: cache::Cache::None,
        })
    }

    /// Notes the first pull of a manifest, and tells of it.
    async fn pulled(
        self: &Arc<Self>,
        repository: &Repository,
        reference: &Reference,
        digest: Digest,
    ) -> Result<()> {
        let (r, reference) = (repository.clone(), reference.clone());
        self.change(repository, move |me, folder| {
            let Some(member) = folder.member(&digest).map_err(unreadable)?.filter(|m| !m.pulled)
            else {
                return Ok(()); // another pull was faster
            };
            let member = Member { pulled: true, ..member };
            folder.set_member(me.store.disk(), &digest, &member).map_err(unwritable)?;
            me.members.insert((r.clone(), digest), member);
            let tag = match &reference {
                Reference::Tag(tag) => Some(tag),
                Reference::Digest(_) => None,
            };
            me.events.tell(Happening::FirstPull, &r, tag, Some(&digest));
            Ok(())
        })
        .await
    }

    /// A blob. With `lease` the caller is about to push something that refers to it.
    ///
    /// # Errors
    /// `BlobUnknown`, or `Internal` where the disk fails.
    pub async fn blob(
        self: &Arc<Self>,
        repository: &Repository,
        digest: Digest,
        lease: bool,
    ) -> Result<Content> {
        let unknown =
            || Error::new(Kind::BlobUnknown, format!("{repository} has no blob {digest}"));
        self.member(repository, &digest).await?.ok_or_else(unknown)?;
        if lease && !self.lease(repository, digest).await? {
            return Err(unknown());
        }
        self.content(digest).await?.ok_or_else(unknown)
    }

    /// Begins the lease of what a repository contains anew; `false`: it no longer does.
    async fn lease(self: &Arc<Self>, repository: &Repository, digest: Digest) -> Result<bool> {
        let key = (repository.clone(), digest);
        if self.touched.contains_key(&key) && !self.is_shared() {
            return Ok(true);
        }
        self.look(repository, move |me, folder| {
            if folder.touched(&digest).map_err(unreadable)?.is_none() {
                return Ok(false);
            }
            folder.touch(&digest).map_err(unwritable)?;
            me.touched.insert(key, ());
            Ok(true)
        })
        .await
    }

    /// What is linked is there. If not, the disk has lost it; whoever pushes it again mends that.
    async fn content(&self, digest: Digest) -> Result<Option<Content>> {
        let content = self.store.find(digest).await?;
        if content.is_none() {
            tracing::error!(%digest, "hosted content is lost; push it again");
        }
        Ok(content)
    }

    fn is_immutable(&self, repository: &Repository, tag: &Tag) -> bool {
        self.settings.load().immutable.iter().any(|rule| {
            fits(&rule.repositories, repository.as_str())
                && rule.tags.iter().any(|pattern| patterns::matches(pattern, tag.as_str()))
        })
    }

    /// The least of the quotas that a repository fits.
    fn quota(&self, repository: &Repository) -> Option<u64> {
        let settings = self.settings.load();
        let quotas = settings.quotas.iter();
        let fitting = quotas.filter(|quota| fits(&quota.repositories, repository.as_str()));
        fitting.map(|quota| quota.max_size.bytes()).min()
    }
}

fn fits(all: &[String], name: &str) -> bool {
    all.iter().any(|pattern| patterns::matches(pattern, name))
}

fn unknown_manifest(repository: &Repository, reference: &Reference) -> Error {
    Error::new(Kind::ManifestUnknown, format!("{repository} has no manifest {reference}"))
}

fn unreadable(error: io::Error) -> Error {
    Error::internal("cannot read a hosted repository", error)
}

/// The disk refused to keep something.
pub fn unwritable(error: io::Error) -> Error {
    if is_full(&error) {
        return no_room().because(error);
    }
    Error::internal("cannot write to a hosted repository", error)
}

/// Nothing more can be kept within the bounds, with all cached content gone.
pub fn no_room() -> Error {
    let text =
        "there is no room for more; delete something and run `pierhead gc`, or raise max_size";
    Error::new(Kind::StorageFull, text)
}
