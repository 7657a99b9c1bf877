//! Answers that are ready to be sent: the head is written once, and the whole leaves in one write.
//!
//! For a second after a small, immutable answer was a hit, the same request gets the same bytes,
//! without being understood again. Each thread has its own table, so no request waits for a lock. A
//! purge and a reload end all of them at once; whatever else leaves is noticed a second later.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode};

use crate::metrics::Counted;

/// How long an answer is ready.
const READY_FOR: Duration = Duration::from_secs(1);

/// Answers a thread keeps ready, and their bytes, which `cache.memory` does not count. A thread that
/// has nothing more to do keeps them.
const ANSWERS_MAX: usize = 1024;
/// See [`ANSWERS_MAX`].
const BYTES_MAX: usize = 2 * 1024 * 1024;

/// Larger bodies gain nothing by one write.
pub const BODY_BYTES_MAX: usize = 64 * 1024;

/// An answer that is ready.
#[derive(Debug)]
pub struct Prepared {
    /// From the status line to `Date: `.
    before_date: String,
    /// The same, for where the head is not ours to write: without length, date and connection.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// All of it.
    pub body: Bytes,
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
        Self { before_date: text, headers, body, counted, upstream, repository, kind }
    }

    /// The memory that it takes under a key, about.
    fn cost(&self, key: &[u8]) -> usize {
        self.body.len() + 2 * self.before_date.len() + key.len() + 512
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
        out.extend_from_slice(b"\r\nconnection: ");
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

/// What a thread keeps ready.
#[derive(Default)]
struct Table {
    answers: HashMap<Arc<[u8]>, (Instant, Arc<Prepared>)>,
    /// Until when, and whose key: who ends first stands first.
    ends: VecDeque<(Instant, Arc<[u8]>)>,
    bytes: usize,
    /// The key of the request that is looked at.
    key: Vec<u8>,
}

impl Table {
    /// Lets go of what has ended.
    fn expire(&mut self, now: Instant) {
        while self.ends.front().is_some_and(|(until, _)| *until <= now)
            && let Some((_, key)) = self.ends.pop_front()
        {
            if let Some((_, prepared)) = self.answers.remove(&key) {
                self.bytes -= prepared.cost(&key);
            }
        }
    }
}

thread_local!(static TABLE: RefCell<Table> = RefCell::default());

/// The ready answer to a request, if there is one.
pub fn get(key: &Key<'_>, now: Instant) -> Option<Arc<Prepared>> {
    TABLE.with_borrow_mut(|table| {
        key.bytes(&mut table.key);
        let (until, prepared) = table.answers.get(table.key.as_slice())?;
        (now < *until).then(|| Arc::clone(prepared))
    })
}

/// Keeps an answer ready, where there is room.
pub fn put(key: &Key<'_>, prepared: Prepared, now: Instant) {
    TABLE.with_borrow_mut(|table| {
        table.expire(now);
        key.bytes(&mut table.key);
        let cost = prepared.cost(&table.key);
        let is_full = table.ends.len() >= ANSWERS_MAX || table.bytes + cost > BYTES_MAX;
        if is_full || table.answers.contains_key(table.key.as_slice()) {
            return;
        }
        let (until, key) = (now + READY_FOR, Arc::from(table.key.as_slice()));
        table.ends.push_back((until, Arc::clone(&key)));
        table.answers.insert(key, (until, Arc::new(prepared)));
        table.bytes += cost;
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
        with_body(Bytes::from_static(b"body"))
    }

    fn with_body(body: Bytes) -> Prepared {
        let counted = Metrics::new().unwrap().counted("u", "blob", "GET", 200, "hit");
        let headers = [(http::header::ETAG, HeaderValue::from_static("\"x\""))];
        Prepared::new(&headers, body, [counted.clone(), counted], "u".into(), "r".into(), "blob")
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
    fn what_is_ready_keeps_its_bound_and_what_has_ended_makes_room() {
        let target = |number: usize| format!("/v2/bound/{number}");
        let ask = |number: usize, now| {
            get(&Key { mirror: 9, host: b"", target: target(number).as_bytes() }, now).is_some()
        };
        let mut now = Instant::now();
        for (length, most) in [(BODY_BYTES_MAX, BYTES_MAX / BODY_BYTES_MAX), (1, ANSWERS_MAX)] {
            now += READY_FOR;
            for number in 0..2 * ANSWERS_MAX {
                let body = Bytes::from(vec![0; length]);
                let key = target(number);
                put(&Key { mirror: 9, host: b"", target: key.as_bytes() }, with_body(body), now);
            }
            let kept = (0..2 * ANSWERS_MAX).filter(|number| ask(*number, now)).count();
            assert!(kept <= most && kept + 2 > most * 9 / 10, "{kept} of {most}");
        }
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
