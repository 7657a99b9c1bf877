//! Answers that are ready to be sent: the head is written once, and the whole leaves in one write.
//!
//! For a second after a small, immutable answer was a hit, the same request gets the same bytes,
//! without being understood again. Each thread has its own table, so no request
//! waits for a lock. A second is short: what is purged, denied or moved is noticed as soon.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode};

use crate::cache::Cache;
use crate::metrics::Counted;
use crate::respond::{Answer, Body};

/// How long an answer is ready.
const READY_FOR: Duration = Duration::from_secs(1);

/// Answers a thread keeps ready.
const ANSWERS_MAX: usize = 1024;

/// Larger bodies gain nothing by one write.
pub const BODY_BYTES_MAX: usize = 64 * 1024;

/// An answer that is ready.
#[derive(Debug)]
pub struct Prepared {
    /// From the status line to `Date: `.
    before_date: String,
    /// From behind the date to `Connection: `.
    after_date: &'static str,
    /// The same, for where the head is not ours to write.
    headers: Vec<(HeaderName, HeaderValue)>,
    body: Bytes,
    /// The metrics that it counts in, for `GET` and for `HEAD`.
    counted: [Counted; 2],
    /// For the access log.
    pub upstream: Arc<str>,
    /// For the access log.
    pub repository: String,
    /// For the access log and metrics.
    pub kind: &'static str,
}

impl Prepared {
    /// An answer with 200 and these headers.
    pub fn new(
        headers: &[(HeaderName, HeaderValue)],
        body: Bytes,
        counted: [Counted; 2],
        upstream: Arc<str>,
        repository: String,
        kind: &'static str,
    ) -> Self {
        let mut headers = headers.to_vec();
        for (_, value) in headers.iter_mut().filter(|(name, _)| name.as_str() == "server-timing") {
            *value = HeaderValue::from_static("mirror;desc=ready"); // that one's time is not this one's
        }
        let mut text = format!("HTTP/1.1 {}\r\n", StatusCode::OK);
        for (name, value) in &headers {
            if let Ok(value) = value.to_str() {
                let _ = write!(text, "{name}: {value}\r\n"); // a String takes all
            }
        }
        let _ = write!(text, "content-length: {}\r\ndate: ", body.len());
        Self {
            before_date: text,
            after_date: "\r\nconnection: ",
            headers,
            body,
            counted,
            upstream,
            repository,
            kind,
        }
    }

    /// The answer, for whoever writes it in a form of its own.
    pub fn answer(&self) -> Answer {
        let (headers, body) = (self.headers.clone(), Body::Bytes(self.body.clone()));
        Answer { status: StatusCode::OK, headers, body, cache: Cache::Hit }
    }

    /// The body's length.
    pub fn length(&self) -> u64 {
        self.body.len() as u64
    }

    /// Accounts for its being sent.
    pub fn served(&self, head_only: bool, bytes: u64, took: Duration) {
        self.counted[usize::from(head_only)].served(bytes, took);
    }

    /// Appends the answer as it goes on the wire.
    pub fn write(&self, out: &mut Vec<u8>, head_only: bool, keep_alive: bool) {
        out.extend_from_slice(self.before_date.as_bytes());
        date(out);
        out.extend_from_slice(self.after_date.as_bytes());
        out.extend_from_slice(if keep_alive { b"keep-alive\r\n\r\n" } else { b"close\r\n\r\n" });
        if !head_only {
            out.extend_from_slice(&self.body);
        }
    }
}

/// A request, as far as it decides on a ready answer.
#[derive(Debug)]
pub struct Key<'a> {
    /// Which mirror: a process may run several.
    pub mirror: u64,
    /// `Host`, where it may decide on the upstream.
    pub host: &'a [u8],
    /// Path and query as they came.
    pub target: &'a [u8],
}

impl Key<'_> {
    fn bytes(&self, out: &mut Vec<u8>) {
        out.clear();
        out.extend_from_slice(&self.mirror.to_le_bytes());
        out.extend_from_slice(self.host);
        out.push(0);
        out.extend_from_slice(self.target);
    }
}

#[derive(Default)]
struct Table {
    answers: HashMap<Vec<u8>, (Instant, Arc<Prepared>)>,
    key: Vec<u8>,
}

thread_local!(static TABLE: RefCell<Table> = RefCell::default());

/// The ready answer to a request, if there is one.
pub fn get(key: &Key<'_>, now: Instant) -> Option<Arc<Prepared>> {
    TABLE.with_borrow_mut(|Table { answers, key: buffer }| {
        key.bytes(buffer);
        let (until, prepared) = answers.get(buffer.as_slice())?;
        if now < *until {
            return Some(Arc::clone(prepared));
        }
        answers.remove(buffer.as_slice());
        None
    })
}

/// Keeps an answer ready.
pub fn put(key: &Key<'_>, prepared: Prepared, now: Instant) {
    TABLE.with_borrow_mut(|Table { answers, key: buffer }| {
        if answers.len() >= ANSWERS_MAX {
            answers.retain(|_, (until, _)| now < *until);
            if answers.len() >= ANSWERS_MAX {
                return;
            }
        }
        key.bytes(buffer);
        answers.insert(buffer.clone(), (now + READY_FOR, Arc::new(prepared)));
    });
}

/// Appends the date in HTTP's form, made once a second.
fn date(out: &mut Vec<u8>) {
    thread_local!(static SECOND: RefCell<(u64, String)> = const { RefCell::new((u64::MAX, String::new())) });
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    SECOND.with_borrow_mut(|(second, text)| {
        if *second != since.as_secs() {
            *second = since.as_secs();
            let now = jiff::Timestamp::now();
            *text = now.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
        }
        out.extend_from_slice(text.as_bytes());
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;

    fn prepared() -> Prepared {
        let counted = Metrics::new().unwrap().counted("u", "blob", "GET", 200, "hit");
        let headers = [(http::header::ETAG, HeaderValue::from_static("\"x\""))];
        Prepared::new(
            &headers,
            Bytes::from_static(b"body"),
            [counted.clone(), counted],
            "u".into(),
            "r".into(),
            "blob",
        )
    }

    #[test]
    fn an_answer_is_ready_for_a_second_and_for_its_request_only() {
        let key =
            |mirror, target: &'static str| Key { mirror, host: b"", target: target.as_bytes() };
        let now = Instant::now();
        put(&key(1, "/v2/a"), prepared(), now);
        assert!(get(&key(1, "/v2/a"), now).is_some());
        assert!(get(&key(2, "/v2/a"), now).is_none() && get(&key(1, "/v2/b"), now).is_none());
        assert!(get(&key(1, "/v2/a"), now + READY_FOR).is_none());
    }

    #[test]
    fn the_wire_form_is_http() {
        let mut out = Vec::new();
        prepared().write(&mut out, false, true);
        let text = String::from_utf8(out).unwrap();
        assert!(
            text.starts_with("HTTP/1.1 200 OK\r\netag: \"x\"\r\ncontent-length: 4\r\ndate: "),
            "{text}"
        );
        assert!(text.ends_with(" GMT\r\nconnection: keep-alive\r\n\r\nbody"), "{text}");
        let mut head = Vec::new();
        prepared().write(&mut head, true, false);
        assert!(head.ends_with(b"connection: close\r\n\r\n"));
    }
}
