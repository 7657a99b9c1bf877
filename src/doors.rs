//! One address as its clients see it: what is served there, and under which name.

use std::collections::HashSet;

use crate::config;

/// One address that clients connect to.
#[derive(Clone, Debug, Default)]
pub struct Door {
    serves: HashSet<String>,
    tls: bool,
    url: Option<String>,
}

impl Door {
    /// As configured.
    pub fn new(listen: &config::Listen) -> Self {
        Self {
            serves: listen.serves.iter().cloned().collect(),
            tls: listen.tls.is_some(),
            url: listen.url.as_ref().map(|url| url.as_str().trim_end_matches('/').to_owned()),
        }
    }

    /// Whether an upstream is reached through this address.
    pub fn serves(&self, upstream: &str) -> bool {
        self.serves.is_empty() || self.serves.contains(upstream)
    }
}
