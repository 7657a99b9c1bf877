//! Pins: images that never leave, by a small record each under `pins/`. A pin holds the manifest and
//! all that it refers to, as far as it is held; the pin of a tag goes with the tag.

use std::collections::HashSet;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::catalog;
use crate::digest::{Algorithm, Digest};
use crate::error::{Error, Kind, Result};
use crate::keeper;
use crate::name::{Reference, Repository, Tag};
use crate::store::{self, Place, Store};

/// Pins of one mirror.
const PINS_MAX: usize = 10_000;

/// One pin, as it is recorded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    /// Whose repository.
    pub upstream: String,
    /// The repository.
    pub repository: String,
    /// Tag or digest.
    pub reference: String,
    /// What it was when it was last looked at.
    pub digest: Digest,
    /// When it was set, in seconds since 1970.
    pub since: u32,
}

impl Pin {
    fn place(&self) -> Option<Place> {
        let repository = Repository::parse(&self.repository).ok()?;
        Some(Place { upstream: self.upstream.as_str().into(), repository })
    }
}

fn path(store: &Store, place: &Place, reference: &str) -> PathBuf {
    let name = format!("{}/{} {reference}", place.upstream, place.repository);
    let digest = Digest::of(Algorithm::Sha256, name.as_bytes());
    store.disk().root().join("pins").join(digest.hex())
}

/// All pins. A record that cannot be read is said, and counts as none.
pub async fn all(store: &Arc<Store>) -> Vec<Pin> {
    let read = store.blocking(|store| {
        let folder = store.disk().root().join("pins");
        let mut pins = Vec::new();
        for bytes in store.disk().read_all(&folder, PINS_MAX)? {
            pins.extend(store::read_record::<Pin>(Ok(Some(bytes)), "pin"));
        }
        Ok(pins)
    });
    let mut pins = read.await.unwrap_or_else(|error| {
        tracing::error!(%error, "the pins cannot be read");
        Vec::new()
    });
    pins.sort_by(|a, b| {
        (&a.upstream, &a.repository, &a.reference).cmp(&(&b.upstream, &b.repository, &b.reference))
    });
    pins
}

/// Pins an image that is held.
///
/// # Errors
/// `ManifestUnknown` where it is not, `Internal` where the disk fails.
pub async fn add(store: &Arc<Store>, place: &Place, reference: &Reference) -> Result<Pin> {
    let digest = match reference {
        Reference::Digest(digest) => Some(*digest),
        Reference::Tag(tag) => store.tag(place, tag).await.map(|record| record.digest),
    };
    let held = match digest {
        Some(digest) => catalog::manifest(store, digest).await.map(|_| digest),
        None => None,
    };
    let Some(digest) = held else {
        let text = format!(
            "{} of {} is not held; pull it first, for example with 'pierhead warm'",
            reference, place.repository
        );
        return Err(Error::new(Kind::ManifestUnknown, text));
    };
    let pin = Pin {
        upstream: place.upstream.to_string(),
        repository: place.repository.to_string(),
        reference: reference.to_string(),
        digest,
        since: keeper::now(),
    };
    write(store, place, &pin).await.map_err(|e| Error::internal("the pin cannot be kept", e))?;
    apply(store).await;
    Ok(pin)
}

async fn write(store: &Arc<Store>, place: &Place, pin: &Pin) -> io::Result<()> {
    let path = path(store, place, &pin.reference);
    let record = store::write_record(pin);
    store.blocking(move |store| store.disk().put(&path, &record)).await
}

/// Takes a pin away. Whether there was one.
///
/// # Errors
/// `Internal` where the disk fails.
pub async fn remove(store: &Arc<Store>, place: &Place, reference: &Reference) -> Result<bool> {
    let path = path(store, place, &reference.to_string());
    let removed = store
        .blocking(move |store| store.disk().remove(&path))
        .await
        .map_err(|e| Error::internal("the pin cannot be removed", e))?;
    apply(store).await;
    Ok(removed)
}

/// Works out what all pins hold, and has the keeper keep it.
pub async fn apply(store: &Arc<Store>) {
    let mut held = HashSet::new();
    for mut pin in all(store).await {
        let Some(place) = pin.place() else { continue };
        if let Some(moved) = moved(store, &place, &pin).await {
            pin.digest = moved;
            if let Err(error) = write(store, &place, &pin).await {
                tracing::warn!(%error, "a pin that went with its tag cannot be kept");
            }
        }
        held.extend(catalog::closure(store, pin.digest).await);
    }
    store.keeper().set_pinned(held);
}

/// Where a pinned tag has moved to, once that is held.
async fn moved(store: &Arc<Store>, place: &Place, pin: &Pin) -> Option<Digest> {
    let tag = Tag::parse(&pin.reference).ok()?;
    let record = store.tag(place, &tag).await?;
    let is_new = record.digest != pin.digest;
    (is_new && catalog::manifest(store, record.digest).await.is_some()).then_some(record.digest)
}
