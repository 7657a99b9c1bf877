//! A server that answers by a function, commits faults by rules and remembers everything.

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::Method;
use hyper::http::request::Parts;

use super::fault::{Fault, Rules};
use super::listener::Listener;
use super::record::{Exchange, On, Recorder};
use super::reply::Reply;

/// The body of what posts or puts something, for the answering function, among the request's extensions.
#[derive(Clone)]
pub(crate) struct Posted(pub(crate) Bytes);

/// The body of what posts or puts something; empty for other requests.
pub(crate) fn posted(request: &Parts) -> Bytes {
    request.extensions.get::<Posted>().map(|body| body.0.clone()).unwrap_or_default()
}

pub(crate) struct Scripted {
    listener: Listener,
    recorder: Arc<Recorder>,
    rules: Arc<Rules>,
}

impl Scripted {
    pub(crate) async fn start(answer: impl Fn(&Parts) -> Reply + Send + Sync + 'static) -> Self {
        let answer = Arc::new(answer);
        let recorder = Arc::new(Recorder::new());
        let rules = Arc::new(Rules::default());
        let (notes, faults) = (Arc::clone(&recorder), Arc::clone(&rules));
        let listener = Listener::start(Arc::new(move |request| {
            let (mut parts, body) = request.into_parts();
            let number = notes.begin(&parts);
            let faults = faults.take(&parts.method, parts.uri.path());
            let (answer, notes) = (Arc::clone(&answer), Arc::clone(&notes));
            Box::pin(async move {
                if [Method::POST, Method::PATCH, Method::PUT].contains(&parts.method) {
                    let body = body.collect().await.map_err(std::io::Error::other)?.to_bytes();
                    notes.update(number, |exchange| exchange.body = body.clone());
                    parts.extensions.insert(Posted(body));
                }
                answer(&parts).send(&parts, faults, notes, number).await
            })
        }))
        .await;
        Self { listener, recorder, rules }
    }

    /// `127.0.0.1:PORT`.
    pub(crate) fn host(&self) -> String {
        self.listener.address().to_string()
    }

    /// `http://127.0.0.1:PORT`.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.host())
    }

    /// From now on, answers to these requests have this fault, besides those of earlier rules.
    pub(crate) fn always(&self, on: On, fault: Fault) {
        self.rules.add(on, None, [fault]);
    }

    /// The next `times` answers to these requests, after those of earlier calls, have these faults.
    pub(crate) fn next(&self, times: usize, on: On, faults: impl Into<Vec<Fault>>) {
        self.rules.add(on, Some(times), faults);
    }

    /// Behaves again.
    pub(crate) fn behave(&self) {
        self.rules.clear();
    }

    pub(crate) fn asked(&self, on: &On) -> Vec<Exchange> {
        self.recorder.matching(on)
    }

    /// How many such requests came.
    pub(crate) fn count(&self, on: &On) -> usize {
        self.recorder.matching(on).len()
    }

    /// How many body bytes went out in answer to such requests.
    pub(crate) fn sent(&self, on: &On) -> u64 {
        self.recorder.matching(on).iter().map(|exchange| exchange.sent).sum()
    }

    /// Waits until so many such requests came.
    pub(crate) async fn until_asked(&self, times: usize, on: &On) {
        let what = format!("request number {times} of {on:?}");
        self.recorder.wait(&what, on, |picked| picked.len() >= times).await;
    }

    /// Waits until so many body bytes went out in answer to such requests.
    pub(crate) async fn until_sent(&self, bytes: u64, on: &On) {
        let what = format!("byte {bytes} of {on:?}");
        let sent = |picked: &[Exchange]| picked.iter().map(|one| one.sent).sum::<u64>();
        self.recorder.wait(&what, on, |picked| sent(picked) >= bytes).await;
    }

    /// Waits until there was such a request and all such answers are at their end.
    pub(crate) async fn until_ended(&self, on: &On) -> Vec<Exchange> {
        let ended = |all: &[Exchange]| !all.is_empty() && all.iter().all(|one| one.ended);
        self.recorder.wait(&format!("the end of {on:?}"), on, ended).await
    }

    pub(crate) fn connections(&self) -> usize {
        self.listener.connections()
    }

    /// Cuts every connection and refuses new ones.
    pub(crate) async fn stop(&self) {
        self.listener.stop().await;
    }

    pub(crate) fn restart(&self) {
        self.listener.restart();
    }

    /// Every request so far, for the message of a failed assertion.
    pub(crate) fn story(&self) -> String {
        let line = |one: &Exchange| {
            let range = one.header("range");
            format!(
                "  {} {}?{} {range} -> {:?}, {} bytes\n",
                one.method, one.path, one.query, one.status, one.sent
            )
        };
        self.recorder.all().iter().map(line).collect()
    }
}
