//! What a scripted server was asked and what it sent.

use bytes::Bytes;
use hyper::header::{AsHeaderName, HeaderMap};
use hyper::http::request::Parts;
use hyper::{Method, StatusCode};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::soon;

/// One request and how far its answer got.
#[derive(Clone, Debug)]
pub(crate) struct Exchange {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) query: String,
    pub(crate) headers: HeaderMap,
    /// What was posted.
    pub(crate) body: Bytes,
    /// None until the head of the answer goes out.
    pub(crate) status: Option<StatusCode>,
    /// Body bytes handed to the connection.
    pub(crate) sent: u64,
    /// Nothing more will be sent: the body ended, was cut, or the client has gone.
    pub(crate) ended: bool,
}

impl Exchange {
    /// A header's value, empty if it is absent or no text.
    pub(crate) fn header(&self, name: impl AsHeaderName) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }
}

/// Picks requests, for a rule or for counting: by method and by a part of the path.
#[derive(Clone, Debug)]
pub(crate) struct On {
    method: Option<Method>,
    part: String,
}

impl On {
    /// Any method; the path contains `part`.
    pub(crate) fn any(part: &str) -> Self {
        Self { method: None, part: part.to_owned() }
    }

    pub(crate) fn get(part: &str) -> Self {
        Self { method: Some(Method::GET), part: part.to_owned() }
    }

    pub(crate) fn head(part: &str) -> Self {
        Self { method: Some(Method::HEAD), part: part.to_owned() }
    }

    pub(crate) fn matches(&self, method: &Method, path: &str) -> bool {
        self.method.as_ref().is_none_or(|wanted| wanted == method) && path.contains(&self.part)
    }
}

#[derive(Debug)]
pub(crate) struct Recorder {
    exchanges: Mutex<Vec<Exchange>>,
    changes: watch::Sender<u64>,
}

impl Recorder {
    pub(crate) fn new() -> Self {
        Self { exchanges: Mutex::default(), changes: watch::Sender::new(0) }
    }

    /// Notes a request; the number returned names it from then on.
    pub(crate) fn begin(&self, request: &Parts) -> usize {
        let mut exchanges = self.exchanges.lock();
        exchanges.push(Exchange {
            method: request.method.clone(),
            path: request.uri.path().to_owned(),
            query: request.uri.query().unwrap_or_default().to_owned(),
            headers: request.headers.clone(),
            body: Bytes::new(),
            status: None,
            sent: 0,
            ended: false,
        });
        let number = exchanges.len() - 1;
        drop(exchanges);
        self.changes.send_modify(|version| *version += 1);
        number
    }

    pub(crate) fn update(&self, number: usize, change: impl FnOnce(&mut Exchange)) {
        change(&mut self.exchanges.lock()[number]);
        self.changes.send_modify(|version| *version += 1);
    }

    pub(crate) fn all(&self) -> Vec<Exchange> {
        self.exchanges.lock().clone()
    }

    pub(crate) fn matching(&self, on: &On) -> Vec<Exchange> {
        let exchanges = self.exchanges.lock();
        exchanges.iter().filter(|one| on.matches(&one.method, &one.path)).cloned().collect()
    }

    /// Waits until the exchanges picked by `on` satisfy `done`, and returns them.
    pub(crate) async fn wait(
        &self,
        what: &str,
        on: &On,
        done: impl Fn(&[Exchange]) -> bool,
    ) -> Vec<Exchange> {
        let mut changes = self.changes.subscribe();
        soon(what, async {
            loop {
                changes.borrow_and_update();
                let picked = self.matching(on);
                if done(&picked) {
                    return picked;
                }
                changes.changed().await.expect("the sender is part of self");
            }
        })
        .await
    }
}
