//! One base URL of an upstream, with what was learnt of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use parking_lot::RwLock;
use url::Url;

use super::address::Reach;
use super::health::Health;
use super::redirect;
use super::token::Challenge;
use crate::error::{Error, Result};

/// One base URL of an upstream, with what was learnt of it.
#[derive(Debug)]
pub(super) struct Endpoint {
    pub(super) url: Url,
    /// `host:port`, for messages and metrics.
    pub(super) authority: String,
    /// What it challenged with first. Kept: nvcr.io names another realm once a token has expired,
    /// and that one refuses anonymous callers.
    pub(super) challenge: RwLock<Option<Challenge>>,
    /// How far away it is, by the last address connected to.
    reach: AtomicU8,
    /// Whether that was configured, so that no address changes it.
    fixed: bool,
    pub(super) health: Arc<Health>,
    /// Whether it has answered a push, so that its challenge, if any, is known.
    pub(super) has_spoken: AtomicBool,
}

impl Endpoint {
    pub(super) fn new(url: &Url, private: Option<bool>) -> Self {
        // Until it was connected to, a name is taken for public: the cautious guess.
        let literal = redirect::literal(url).and_then(Reach::of);
        let reach = match private {
            Some(true) => literal.unwrap_or(Reach::Private).max(Reach::Private),
            Some(false) => Reach::Public,
            None => literal.unwrap_or(Reach::Public),
        };
        Self {
            url: url.clone(),
            authority: redirect::authority(url),
            challenge: RwLock::new(None),
            reach: AtomicU8::new(reach as u8),
            fixed: private.is_some(),
            health: Arc::default(),
            has_spoken: AtomicBool::new(false),
        }
    }

    pub(super) fn reach(&self) -> Reach {
        match self.reach.load(Ordering::Relaxed) {
            2 => Reach::Loopback,
            1 => Reach::Private,
            _ => Reach::Public,
        }
    }

    /// Notes how far away it was when last connected to.
    pub(super) fn set_reach(&self, reach: Reach) {
        if self.fixed {
            return;
        }
        self.reach.store(reach as u8, Ordering::Relaxed);
    }

    /// The URL of a path behind `/v2/`; an endpoint may have a path of its own.
    pub(super) fn join(&self, path: &str) -> Result<Url> {
        let base = self.url.as_str().trim_end_matches('/');
        Url::parse(&format!("{base}/v2/{path}"))
            .map_err(|e| Error::internal("cannot build the upstream's URL", e))
    }
}
