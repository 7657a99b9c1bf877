//! What goes on in the background: learning the folder, keeping the order, looking for rot.

use std::io;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use crate::blocks;
use crate::digest::Digest;
use crate::keeper::Company;
use crate::store::Store;
use crate::{pins, purge};

/// How long a small file may be unsynced.
const SYNC_WITHIN: Duration = Duration::from_millis(500);

/// How often it is asked whether it is known what is hosted.
const LEARNING_PAUSE: Duration = Duration::from_millis(200);

/// How often uses are written back to file times and old content is looked for.
const ROUND: Duration = Duration::from_secs(60);

/// The pause between two walks of the scrubber over everything.
const SCRUB_PAUSE: Duration = Duration::from_secs(3600);

/// The pause between two searches for records of content that has left.
const COLLECT_PAUSE: Duration = Duration::from_secs(24 * 3600);

/// Objects taken from the index at a time.
const BATCH: usize = 256;

/// Starts the background work. It ends with the store.
pub fn start(store: &Arc<Store>) {
    let scanner = Arc::clone(store);
    tokio::spawn(async move {
        // What is pinned has to be known before anything may leave.
        pins::apply(&scanner).await;
        let store = Arc::downgrade(&scanner);
        let _ = scanner
            .blocking(|store| {
                store.keeper().scan();
                Ok(())
            })
            .await; // a panic is told
        drop(scanner);
        expire_once_known(store).await;
    });
    tokio::spawn(rounds(Arc::downgrade(store)));
    tokio::spawn(collect_daily(Arc::downgrade(store)));
    tokio::spawn(sync_forever(Arc::downgrade(store)));
    tokio::spawn(scrub_forever(Arc::downgrade(store)));
}

/// Lets old content go once it is known what is hosted; till then nothing may leave.
async fn expire_once_known(store: Weak<Store>) {
    loop {
        let Some(store) = store.upgrade() else { return };
        if !store.keeper().held.is_learning() {
            let expired = store.blocking(|store| {
                store.keeper().expire();
                store.keeper().make_room();
                Ok(())
            });
            let _ = expired.await; // the rounds go on
            return;
        }
        drop(store);
        tokio::time::sleep(LEARNING_PAUSE).await;
    }
}

/// Syncs what was written without waiting for the disk.
async fn sync_forever(store: Weak<Store>) {
    loop {
        tokio::time::sleep(SYNC_WITHIN).await;
        let Some(store) = store.upgrade() else { return };
        let synced = store.blocking(|store| {
            store.disk().sync();
            Ok(())
        });
        let _ = synced.await; // what fails is told there
    }
}

async fn rounds(store: Weak<Store>) {
    loop {
        tokio::time::sleep(ROUND).await;
        let Some(store) = store.upgrade() else { return };
        pins::apply(&store).await;
        let done = store.blocking(|store| {
            store.keeper().flush();
            store.keeper().expire();
            store.keeper().make_room();
            Ok(())
        });
        if let Err(error) = done.await {
            tracing::error!(%error, "the upkeep of the cache failed");
        }
    }
}

async fn collect_daily(store: Weak<Store>) {
    loop {
        tokio::time::sleep(COLLECT_PAUSE).await;
        let Some(store) = store.upgrade() else { return };
        store.keeper().alone().await;
        match purge::collect(&store).await {
            Ok(0) => {}
            Ok(records) => tracing::info!(records, "removed records of content that has left"),
            Err(error) => tracing::error!(%error, "records of content that has left stay"),
        }
    }
}

/// How often it is asked whether scrubbing has been turned on.
const SCRUB_ASKED: Duration = Duration::from_secs(10);

async fn scrub_forever(store: Weak<Store>) {
    if let Some(store) = store.upgrade() {
        store.keeper().scanned().await;
    }
    loop {
        let rate = store.upgrade().map(|store| match store.keeper().company() {
            Company::Alone => store.scrub_rate(),
            Company::Before | Company::Behind => 0,
        });
        match rate {
            None => return,
            Some(0) => {
                tokio::time::sleep(SCRUB_ASKED).await;
                continue;
            }
            Some(_) => {}
        }
        if scrub(&store, None, |_| {}).await.is_none() {
            return;
        }
        tokio::time::sleep(SCRUB_PAUSE).await;
    }
}

/// How far a scrub has come.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
pub struct Scrubbed {
    /// Objects read.
    pub objects: u64,
    /// Bytes read.
    pub bytes: u64,
    /// Objects that did not have their digest; they were set aside.
    pub rotten: u64,
}

/// Reads everything that is held at `rate` bytes a second (0: as fast as it goes; `None`: as is
/// configured, and to be turned off at any time) and compares it with its digest. `None` where the store has gone.
pub async fn scrub(
    store: &Weak<Store>,
    rate: Option<u64>,
    mut tell: impl FnMut(&Scrubbed),
) -> Option<Scrubbed> {
    let mut so_far = Scrubbed::default();
    let mut from = 0;
    loop {
        let (batch, next) = store.upgrade()?.keeper().walk(from, BATCH);
        if batch.is_empty() {
            return Some(so_far);
        }
        from = next;
        for (digest, ..) in batch {
            let began = Instant::now();
            let (checked, rate) = {
                let store = store.upgrade()?;
                let configured = Some(store.scrub_rate()).filter(|rate| *rate > 0);
                let Some(rate) = rate.or(configured) else { return Some(so_far) };
                (store.blocking(move |store| verify(store, &digest)).await, rate)
            };
            match checked {
                Ok(Some((bytes, right))) => {
                    so_far.objects += 1;
                    so_far.bytes += bytes;
                    so_far.rotten += u64::from(!right);
                    pace(bytes, rate, began).await;
                }
                Ok(None) => {}
                Err(error) => tracing::warn!(%error, %digest, "held content cannot be read"),
            }
            tell(&so_far);
        }
    }
}

async fn pace(bytes: u64, rate: u64, began: Instant) {
    if rate > 0 {
        let due = Duration::from_secs_f64(bytes as f64 / rate as f64);
        tokio::time::sleep(due.saturating_sub(began.elapsed())).await;
    }
}

/// Reads one object; how many bytes it has, and whether they are right. `None` where it has left.
fn verify(store: &Store, digest: &Digest) -> io::Result<Option<(u64, bool)>> {
    let Some(file) = store.disk().open_blob(digest)? else { return Ok(None) };
    let bytes = file.metadata()?.len();
    let (found, _) = blocks::hash(&file, digest.algorithm())?;
    if found != *digest {
        store.rotten(digest)?;
    }
    Ok(Some((bytes, found == *digest)))
}
