//! What an operator has leave: an image, a repository, an upstream, a digest; and the records of
//! content that has left.

use std::collections::HashSet;
use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;

use serde::Serialize;

use crate::catalog;
use crate::digest::Digest;
use crate::keeper::Reason;
use crate::name::{Reference, Tag};
use crate::store::{Place, Store};

/// What is to leave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// An image with what no other tag of its repository refers to.
    Image(Place, Reference),
    /// A repository with all its records.
    Repository(Place),
    /// All repositories of an upstream.
    Upstream(Arc<str>),
    /// One object, whoever has it.
    Digest(Digest),
}

/// What has left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Purged {
    /// Objects deleted.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Records of tags and links removed.
    pub records: u64,
    /// Objects that stayed because they are pinned.
    pub pinned: u64,
    /// Objects that stayed because another repository has them.
    pub shared: u64,
}

/// Has it leave. Content that another repository was shown to contain stays; so does what is pinned.
///
/// # Errors
/// What the file system says.
pub async fn purge(store: &Arc<Store>, what: What) -> io::Result<Purged> {
    let mut purged = Purged::default();
    let mut gone = HashSet::new();
    let mut places = Vec::new();
    match what {
        What::Digest(digest) => {
            gone.insert(digest);
        }
        What::Image(place, reference) => {
            purged.records += drop_image(store, &place, &reference, &mut gone).await?;
            places.push(place);
        }
        What::Repository(place) => {
            places = drop_places(store, vec![place], &mut gone, &mut purged).await?;
        }
        What::Upstream(upstream) => {
            let found = store.blocking(move |store| all_places(store, Some(&upstream))).await?;
            places = drop_places(store, found, &mut gone, &mut purged).await?;
        }
    }
    if !places.is_empty() {
        for place in &places {
            for digest in &gone {
                purged.records += u64::from(store.drop_link(place, digest).await?);
            }
        }
        let before = gone.len();
        gone = store.blocking(move |store| without_shared(store, &places, gone)).await?;
        purged.shared = (before - gone.len()) as u64;
    }
    store
        .blocking(move |store| {
            for digest in gone {
                delete(store, &digest, &mut purged);
            }
            // Where all of the content stays, its repository's right to it has gone all the same.
            store.keeper().withdraw();
            Ok(purged)
        })
        .await
}

fn delete(store: &Store, digest: &Digest, purged: &mut Purged) {
    let keeper = store.keeper();
    let Some((bytes, _)) = keeper.about(digest) else { return };
    if keeper.is_pinned(digest) {
        purged.pinned += 1;
    } else if keeper.delete(digest, Reason::Purged) {
        purged.objects += 1;
        purged.bytes += bytes;
    }
}

/// Drops the tags that mean an image, and notes what only they referred to.
async fn drop_image(
    store: &Arc<Store>,
    place: &Place,
    reference: &Reference,
    gone: &mut HashSet<Digest>,
) -> io::Result<u64> {
    let root = match reference {
        Reference::Digest(digest) => *digest,
        Reference::Tag(tag) => match store.tag(place, tag).await {
            Some(record) => record.digest,
            None => return Ok(0),
        },
    };
    let mut dropped = 0;
    let mut others = HashSet::new();
    for tag in tags(store, place).await? {
        let Some(record) = store.tag(place, &tag).await else { continue };
        let meant = match reference {
            Reference::Digest(_) => record.digest == root,
            Reference::Tag(wanted) => *wanted == tag,
        };
        if meant {
            store.drop_tag(place, &tag).await;
            dropped += 1;
        } else {
            others.insert(record.digest);
        }
    }
    gone.extend(catalog::closure(store, root).await);
    for other in others {
        for digest in catalog::closure(store, other).await {
            gone.remove(&digest);
        }
    }
    Ok(dropped)
}

/// Drops all tags of repositories, and notes all that these were shown to contain.
async fn drop_places(
    store: &Arc<Store>,
    places: Vec<Place>,
    gone: &mut HashSet<Digest>,
    purged: &mut Purged,
) -> io::Result<Vec<Place>> {
    for place in &places {
        for tag in tags(store, place).await? {
            store.drop_tag(place, &tag).await;
            purged.records += 1;
        }
        let p = place.clone();
        gone.extend(store.blocking(move |store| catalog::links(store.disk(), &p)).await?);
    }
    Ok(places)
}

async fn tags(store: &Arc<Store>, place: &Place) -> io::Result<Vec<Tag>> {
    let place = place.clone();
    store.blocking(move |store| catalog::tags(store.disk(), &place)).await
}

fn all_places(store: &Store, upstream: Option<&str>) -> io::Result<Vec<Place>> {
    let mut places = Vec::new();
    catalog::each_place(store.disk(), upstream, &mut |place| {
        places.push(place);
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(places)
}

/// Takes out what repositories other than these were shown to contain.
fn without_shared(
    store: &Store,
    places: &[Place],
    mut gone: HashSet<Digest>,
) -> io::Result<HashSet<Digest>> {
    catalog::each_place(store.disk(), None, &mut |place| {
        if !places.contains(&place) {
            for digest in catalog::links(store.disk(), &place)? {
                gone.remove(&digest);
            }
        }
        Ok(if gone.is_empty() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    })?;
    Ok(gone)
}

/// Removes the links of content that is no longer held: with the content gone, the next request
/// asks the upstream anyway. Those written within the hour stay, since their content may be on its
/// way. Says how many went.
///
/// # Errors
/// What the file system says.
pub async fn collect(store: &Arc<Store>) -> io::Result<u64> {
    store.keeper().scanned().await;
    let mut places = store.blocking(|store| all_places(store, None)).await?;
    let public: HashSet<Place> = places.iter().map(Place::anyones).collect();
    places.extend(public);
    let mut removed = 0;
    for place in places {
        let p = place.clone();
        let idle = store
            .blocking(move |store| {
                let mut links = catalog::links(store.disk(), &p)?;
                links.retain(|digest| {
                    store.keeper().about(digest).is_none()
                        && store.disk().is_old_link(&p.upstream, &p.repository, digest)
                });
                Ok(links)
            })
            .await?;
        for digest in idle {
            removed += u64::from(store.drop_link(&place, &digest).await?);
        }
    }
    Ok(removed)
}
