//! The host that blob downloads are redirected to: signed URLs, and S3's manners.

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::Arc;

use bytes::Bytes;
use hyper::Method;
use hyper::header::{AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, COOKIE, ETAG, SET_COOKIE};
use hyper::http::request::Parts;
use parking_lot::Mutex;

use super::fault::status;
use super::reply::Reply;
use super::scripted::Scripted;

/// Answers 400 to `Authorization`, 403 to HEAD and to URLs that have expired.
pub(crate) struct Cdn {
    server: Scripted,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    objects: HashMap<String, Bytes>,
    signatures: u64,
    expired: u64,
}

impl Cdn {
    pub(crate) async fn start() -> Arc<Self> {
        let state = Arc::new(Mutex::new(State::default()));
        let server = Scripted::start({
            let state = Arc::clone(&state);
            move |request| state.lock().answer(request)
        });
        Arc::new(Self { server: server.await, state })
    }

    /// Stores the bytes and returns a URL that opens until [`Cdn::expire`].
    pub(crate) fn sign(&self, digest: &str, bytes: &Bytes) -> String {
        let mut state = self.state.lock();
        state.signatures += 1;
        let path = format!("/objects/{}", digest.replace(':', "/"));
        let url = format!(
            "{}{path}?X-Amz-Expires=300&X-Amz-Signature={}",
            self.server.url(),
            state.signatures
        );
        state.objects.insert(path, bytes.clone());
        url
    }

    /// No URL signed so far opens any more.
    pub(crate) fn expire(&self) {
        let mut state = self.state.lock();
        state.expired = state.signatures;
    }
}

impl State {
    fn answer(&self, request: &Parts) -> Reply {
        let refusal = |code| Reply::text(code, "application/xml", "<Error><Code>No</Code></Error>");
        if request.headers.contains_key(AUTHORIZATION) || request.headers.contains_key(COOKIE) {
            return refusal(400);
        }
        let query = request.uri.query().unwrap_or_default();
        let signature = query.rsplit('=').next().and_then(|number| number.parse::<u64>().ok());
        if request.method != Method::GET || signature.is_none_or(|number| number <= self.expired) {
            return refusal(403);
        }
        let Some(bytes) = self.objects.get(request.uri.path()) else {
            return refusal(404);
        };
        let mut reply = Reply::new(status(200), bytes.clone()).ranged(&request.headers);
        reply.set(CONTENT_TYPE, "binary/octet-stream");
        reply.set(ETAG, "\"the-cdn's-own\"");
        reply.set(CACHE_CONTROL, "public, max-age=14400");
        reply.set(SET_COOKIE, "__cf_bm=tracking; HttpOnly");
        reply.set("age".parse().expect("a header name"), "4711");
        reply.set("x-amz-request-id".parse().expect("a header name"), "4TB0HBQ1X");
        reply
    }
}

impl Deref for Cdn {
    type Target = Scripted;

    fn deref(&self) -> &Scripted {
        &self.server
    }
}
