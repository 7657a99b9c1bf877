//! What the keeper learns from the folder at a start, and what leaves for its age. Times are file
//! times here, which clocks and people change: a jump of either ages nothing.

use std::io;
use std::time::Duration;

use crate::spares::Spare;

use super::{BATCH, Company, Keeper, Reason, now, seconds};

/// A time in which nothing was used, ended by a start, that is no age: the mirror was off, or its
/// clock was wrong.
const GAP: u32 = 3600;

impl Keeper {
    /// Waits until the folder has been read. Cancel safe.
    pub async fn scanned(&self) {
        // The sender lives as long as we do.
        let _ = self.scanned.subscribe().wait_for(|done| *done).await;
    }

    /// Whether the folder has been read.
    pub fn is_scanned(&self) -> bool {
        *self.scanned.borrow()
    }

    /// Reads the folder: sizes, and the access order from the files' times.
    pub fn scan(&self) {
        let (now, mut newest) = (now(), 0);
        let strangers = self.disk.each_blob(|digest, about| {
            let came = seconds(about.modified().ok());
            let used = seconds(about.accessed().ok()).max(came).min(now);
            newest = newest.max(used);
            let again = used > came.saturating_add(1);
            self.index.lock().learn(&digest, about.len(), used, again);
        });
        let gap = now.saturating_sub(newest);
        {
            let pinned = self.pinned.lock();
            let mut index = self.index.lock();
            index.order();
            for digest in pinned.iter() {
                index.pin(digest, true);
            }
            if self.bounds().max_age.is_some() && gap > GAP {
                index.shift(gap);
            }
            self.report(&index);
        }
        self.scan_spares();
        Self::tell_strangers(strangers);
        if self.bounds().max_age.is_some() && gap > GAP && newest > 0 {
            self.shift_times(gap);
        }
        self.scanned.send_replace(true);
        self.make_room();
    }

    pub(super) fn scan_spares(&self) {
        match self.disk.spares() {
            Ok(found) => {
                let mut spares = self.spares.lock();
                for (path, bytes, written) in found {
                    spares.add(Spare { path, bytes, since: seconds(Some(written)).min(now()) });
                }
            }
            Err(error) => tracing::error!(%error, "broken downloads cannot be looked at"),
        }
    }

    /// Writes back that a time did not count, so that it does not count at the next start either.
    fn shift_times(&self, gap: u32) {
        tracing::info!(
            seconds = gap,
            "nothing was used for a while before this start: that does not count for max_age"
        );
        let mut from = 0;
        loop {
            let (batch, next) = self.walk(from, BATCH);
            if batch.is_empty() {
                return;
            }
            for (digest, ..) in batch {
                let by = Duration::from_secs(gap.into());
                if let Err(error) = self.disk.shift_times(&digest, by) {
                    tracing::debug!(%error, %digest, "cannot move a file's times");
                }
            }
            from = next;
        }
    }

    fn tell_strangers(strangers: io::Result<usize>) {
        match strangers {
            Ok(0) => {}
            Ok(n) => tracing::warn!(
                files = n,
                "files in the cache folder do not belong there; they are left alone"
            ),
            Err(error) => tracing::error!(%error, "the cache folder cannot be read"),
        }
    }

    /// Lets content go that nobody has asked for in `max_age`, and spares that are old.
    pub fn expire(&self) {
        if self.company() == Company::Behind {
            return;
        }
        loop {
            let spare = self.spares.lock().pop_old(now());
            let Some(spare) = spare else { break };
            self.disk.drop_fill(&spare.path);
        }
        let Some(age) = self.bounds().max_age else { return };
        let before = now().saturating_sub(u32::try_from(age.as_secs()).unwrap_or(u32::MAX));
        let mut from = 0;
        loop {
            let (batch, next) = self.index.lock().walk(from, BATCH);
            if batch.is_empty() {
                return;
            }
            for (digest, _, used) in batch.iter().filter(|(.., used)| *used < before) {
                self.let_go(digest, *used, Reason::Age);
            }
            from = next;
        }
    }
}
