//! Two processes on one folder, while one hands over to the other: who may remove, and what the other
//! one still writes.

use std::sync::atomic::Ordering;

use super::{Keeper, seconds};

/// Who else is at work on the folder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Company {
    /// Nobody.
    #[default]
    Alone,
    /// The process that has handed over to this one. It finishes what it has begun.
    Before,
    /// The process that this one hands over to. It is its business now what leaves.
    Behind,
}

impl Keeper {
    /// Who else is at work on the folder.
    pub fn company(&self) -> Company {
        *self.company.borrow()
    }

    /// Waits until nobody else is. Cancel safe.
    pub async fn alone(&self) {
        // The sender lives as long as we do.
        let _ = self.company.subscribe().wait_for(|company| *company == Company::Alone).await;
    }

    /// Notes who else is at work on the folder.
    pub fn set_company(&self, company: Company) {
        self.company.send_replace(company);
        if company != Company::Before {
            self.elsewhere.store(0, Ordering::Relaxed);
        }
    }

    /// Notes how many bytes the process before will still keep.
    pub fn set_elsewhere(&self, bytes: u64) {
        self.elsewhere.store(bytes, Ordering::Relaxed);
    }

    /// Bytes of downloads and uploads that are under way.
    pub fn reserved(&self) -> u64 {
        self.reserved.load(Ordering::Relaxed)
    }

    /// Takes in what another process has kept, where it has not been known; and what it has left behind.
    pub fn learn_again(&self) {
        let read = self.disk.each_blob(|digest, about| {
            let came = seconds(about.modified().ok());
            let used = seconds(about.accessed().ok()).max(came).min(super::now());
            let pinned = self.pinned.lock().contains(&digest);
            let mut index = self.index.lock();
            if !index.contains(&digest) {
                index.insert(&digest, about.len(), used, used > came.saturating_add(1));
                index.pin(&digest, pinned);
                self.report(&index);
            }
        });
        if let Err(error) = read {
            tracing::error!(%error, "what the process before has kept cannot be read");
        }
        self.scan_spares();
    }
}
