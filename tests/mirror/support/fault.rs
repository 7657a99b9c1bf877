//! The ways in which an upstream misbehaves, and when.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::header::{
    CONTENT_ENCODING, CONTENT_RANGE, CONTENT_TYPE, HeaderName, HeaderValue, LOCATION,
};
use hyper::{Method, StatusCode};
use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::watch;

use super::record::On;
use super::reply::{End, Reply};

/// A door in the way of an answer. The test opens it, once for all.
#[derive(Clone, Debug)]
pub(crate) struct Gate(Arc<watch::Sender<bool>>);

impl Gate {
    pub(crate) fn closed() -> Self {
        Self(Arc::new(watch::Sender::new(false)))
    }

    pub(crate) fn open(&self) {
        self.0.send_replace(true);
    }

    pub(crate) async fn passed(&self) {
        let mut door = self.0.subscribe();
        door.wait_for(|open| *open).await.expect("the sender is part of self");
    }
}

/// One way to misbehave. Several may be put on one answer.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// Nothing is answered until the gate opens.
    HoldHead(Gate),
    /// The head goes out at once, the body after this time.
    DelayBody(Duration),
    /// So many body bytes, then nothing more until the gate opens.
    HoldAfter(u64, Gate),
    /// So many body bytes, then nothing more, ever.
    StallAfter(u64),
    /// Bytes a second.
    Throttle(u64),
    /// The connection is cut after so many body bytes.
    CutAfter(u64),
    /// The connection is cut in place of a head.
    CutHead,
    /// Only so many bytes, and a head that says so.
    Truncate(usize),
    /// So many bytes more than there should be.
    Extra(usize),
    /// The byte at this place is another.
    CorruptAt(usize),
    /// Another body altogether.
    Body(Bytes),
    /// Chunked, without a length.
    NoLength,
    /// This status with a registry's JSON error.
    Status(u16),
    /// This status with a plain text body.
    Plain(u16),
    /// 200 with a page in HTML.
    Html,
    /// This status with a Location.
    Redirect(u16, String),
    Header(&'static str, String),
    NoHeader(&'static str),
    /// 200 and everything, whatever range was asked for.
    IgnoreRange,
    /// A 206 that claims to start this many bytes later than what it sends.
    ShiftContentRange(u64),
    /// The body inside gzip, and a head that says so.
    Gzip,
}

impl Fault {
    pub(crate) fn apply(&self, reply: &mut Reply) {
        match self {
            Self::HoldHead(gate) => reply.head_gate = Some(gate.clone()),
            Self::DelayBody(time) => reply.body_delay = Some(*time),
            Self::HoldAfter(bytes, gate) => reply.body_gate = Some((*bytes, gate.clone())),
            Self::StallAfter(bytes) => reply.body_gate = Some((*bytes, Gate::closed())),
            Self::Throttle(rate) => reply.rate = Some(*rate),
            Self::CutAfter(bytes) => reply.end = End::CutAfter(*bytes),
            Self::CutHead => reply.end = End::CutHead,
            Self::Truncate(bytes) => reply.body.truncate(*bytes),
            Self::Extra(bytes) => {
                let mut body = reply.body.to_vec();
                body.resize(body.len() + bytes, b'x');
                reply.body = body.into();
            }
            Self::CorruptAt(place) => {
                let mut body = reply.body.to_vec();
                if let Some(byte) = body.get_mut(*place) {
                    *byte ^= 0xFF;
                }
                reply.body = body.into();
            }
            Self::Body(body) => reply.body = body.clone(),
            Self::NoLength => reply.chunked = true,
            Self::Status(status) => reply.replace(error(*status)),
            Self::Plain(status) => reply.replace(Reply::text(*status, "text/plain", "go away\n")),
            Self::Html => reply.replace(Reply::text(200, "text/html; charset=utf-8", PAGE)),
            Self::Redirect(status, to) => {
                reply.replace(
                    Reply::text(*status, "text/html", "<a>moved</a>").header(LOCATION, to),
                );
            }
            Self::Header(name, value) => reply.set(HeaderName::from_static(name), value),
            Self::NoHeader(name) => reply.remove(&HeaderName::from_static(name)),
            Self::IgnoreRange => reply.whole_again(),
            Self::ShiftContentRange(by) => shift_content_range(reply, *by),
            Self::Gzip => {
                reply.body = gzip(&reply.body);
                reply.set(CONTENT_ENCODING, "gzip");
            }
        }
    }
}

const PAGE: &str = "<!DOCTYPE html><html><body><h1>Welcome to our registry</h1></body></html>";

/// A registry's error of this status.
pub(crate) fn error(status: u16) -> Reply {
    let code = match status {
        401 => "UNAUTHORIZED",
        403 => "DENIED",
        404 => "MANIFEST_UNKNOWN",
        405 => "UNSUPPORTED",
        429 => "TOOMANYREQUESTS",
        503 => "UNAVAILABLE",
        _ => "UNKNOWN",
    };
    let body = json!({"errors": [{"code": code, "message": "said the upstream", "detail": null}]});
    Reply::text(status, "application/json", &body.to_string())
}

fn shift_content_range(reply: &mut Reply, by: u64) {
    let Some(range) = reply.headers.get(CONTENT_RANGE).and_then(|value| value.to_str().ok()) else {
        return;
    };
    let numbers: Vec<u64> = range
        .trim_start_matches("bytes ")
        .split(['-', '/'])
        .map(|number| number.parse().expect("our own Content-Range"))
        .collect();
    let shifted = format!("bytes {}-{}/{}", numbers[0] + by, numbers[1] + by, numbers[2] + by);
    reply.set(CONTENT_RANGE, &shifted);
}

/// The bytes as a gzip file of stored, not compressed, blocks.
fn gzip(bytes: &[u8]) -> Bytes {
    let mut file = vec![0x1F, 0x8B, 8, 0, 0, 0, 0, 0, 0, 255];
    let mut blocks = bytes.chunks(0xFFFF).peekable();
    while let Some(block) = blocks.next() {
        let length = u16::try_from(block.len()).expect("a chunk is no longer than asked for");
        file.push(u8::from(blocks.peek().is_none()));
        file.extend(length.to_le_bytes());
        file.extend((!length).to_le_bytes());
        file.extend(block);
    }
    file.extend(crc32(bytes).to_le_bytes());
    file.extend(u32::try_from(bytes.len()).expect("a small document").to_le_bytes());
    file.into()
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| {
            (sum >> 1) ^ (0xEDB8_8320 & (sum & 1).wrapping_neg())
        })
    })
}

struct Rule {
    on: On,
    faults: Vec<Fault>,
    /// None: until the rules are cleared.
    left: Option<usize>,
}

/// Which requests meet which faults. Of the rules for a number of requests the first that fits and
/// is not used up applies, so they make a sequence; of the rules without a number all apply.
#[derive(Default)]
pub(crate) struct Rules(Mutex<Vec<Rule>>);

impl Rules {
    pub(crate) fn add(&self, on: On, left: Option<usize>, faults: impl Into<Vec<Fault>>) {
        self.0.lock().push(Rule { on, faults: faults.into(), left });
    }

    pub(crate) fn clear(&self) {
        self.0.lock().clear();
    }

    /// The faults for this request, which thereby counts against the rules that name a number.
    pub(crate) fn take(&self, method: &Method, path: &str) -> Vec<Fault> {
        let mut faults = Vec::new();
        let mut numbered = false;
        for rule in self.0.lock().iter_mut().filter(|rule| rule.on.matches(method, path)) {
            if let Some(left) = &mut rule.left {
                if *left == 0 || numbered {
                    continue;
                }
                numbered = true;
                *left -= 1;
            }
            faults.extend(rule.faults.iter().cloned());
        }
        faults
    }
}

/// The status as hyper knows it.
pub(crate) fn status(code: u16) -> StatusCode {
    StatusCode::from_u16(code).expect("a status between 100 and 999")
}

/// The value as hyper knows it.
pub(crate) fn value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).expect("a header value of a test is printable")
}

impl Reply {
    /// Replaces what is said, and keeps how slowly it is said.
    fn replace(&mut self, other: Self) {
        self.status = other.status;
        self.headers = other.headers;
        self.body = other.body;
    }

    pub(crate) fn text(code: u16, media_type: &str, body: &str) -> Self {
        let body = Bytes::copy_from_slice(body.as_bytes());
        Self::new(status(code), body).header(CONTENT_TYPE, media_type)
    }
}
