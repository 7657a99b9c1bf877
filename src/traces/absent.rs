//! What stands for traces where they are not built in: types of which there are no values.

use http::HeaderMap;

use crate::config;
use crate::error::Result;

/// Where spans are made: nowhere.
#[derive(Clone, Debug)]
pub enum Traces {}

/// A span, of which there are none.
#[derive(Clone, Debug)]
pub enum Span {}

impl Traces {
    /// None: `check` refuses a configuration that wants any.
    ///
    /// # Errors
    /// Never.
    pub fn start(_: &config::Traces) -> Result<Option<Self>> {
        Ok(None)
    }

    /// See `spans`.
    pub fn request(&self, _: &HeaderMap) -> Option<Span> {
        match *self {}
    }

    /// See `spans`.
    #[expect(clippy::unused_async, reason = "as where there are traces")]
    pub async fn flush(&self) {
        match *self {}
    }
}

impl Span {
    /// See `spans`.
    pub fn child(&self, _: &'static str) -> Self {
        match *self {}
    }

    /// See `spans`.
    pub fn link(&self, _: &Self) {
        match *self {}
    }

    /// See `spans`.
    pub fn trace_id(&self) -> String {
        match *self {}
    }

    /// See `spans`.
    pub fn name(&self, _: String) {
        match *self {}
    }

    /// See `spans`.
    pub fn text(&self, _: &'static str, _: &str) {
        match *self {}
    }

    /// See `spans`.
    pub fn number(&self, _: &'static str, _: u64) {
        match *self {}
    }

    /// See `spans`.
    pub fn decimal(&self, _: &'static str, _: f64) {
        match *self {}
    }

    /// See `spans`.
    pub fn failed(&self, _: &str, _: &str) {
        match *self {}
    }

    /// See `spans`.
    pub fn end(&self) {
        match *self {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_built_in_takes_no_room() {
        assert_eq!(size_of::<Option<Span>>() + size_of::<Option<Traces>>(), 0);
        assert!(Traces::start(&config::Traces::default()).unwrap().is_none());
    }
}
