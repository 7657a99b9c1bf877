//! An answer of a scripted server, and the body that sends it as slowly and badly as asked.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame};
use hyper::header::{CONTENT_LENGTH, CONTENT_RANGE, HeaderMap, HeaderName, RANGE};
use hyper::http::request::Parts;
use hyper::{Method, Response, StatusCode};
use tokio::sync::mpsc;

use super::fault::{Fault, Gate, value};
use super::record::Recorder;

/// What is said, and how.
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    /// The whole content, where `body` is a range of it.
    whole: Option<Bytes>,
    pub(crate) head_gate: Option<Gate>,
    pub(crate) body_delay: Option<Duration>,
    pub(crate) body_gate: Option<(u64, Gate)>,
    pub(crate) rate: Option<u64>,
    pub(crate) chunked: bool,
    pub(crate) end: End,
}

/// How an answer ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Whole,
    CutAfter(u64),
    CutHead,
}

impl Reply {
    pub(crate) fn new(status: StatusCode, body: Bytes) -> Self {
        Self {
            status,
            headers: HeaderMap::new(),
            body,
            whole: None,
            head_gate: None,
            body_delay: None,
            body_gate: None,
            rate: None,
            chunked: false,
            end: End::Whole,
        }
    }

    pub(crate) fn header(mut self, name: HeaderName, text: &str) -> Self {
        self.set(name, text);
        self
    }

    pub(crate) fn set(&mut self, name: HeaderName, text: &str) {
        self.headers.insert(name, value(text));
    }

    pub(crate) fn remove(&mut self, name: &HeaderName) {
        self.headers.remove(name);
    }

    /// Cuts the body down to `first..=last` and makes this a 206.
    fn range(mut self, first: usize, last: usize) -> Self {
        let whole = self.body.clone();
        self.set(CONTENT_RANGE, &format!("bytes {first}-{last}/{}", whole.len()));
        self.body = whole.slice(first..=last);
        self.whole = Some(whole);
        self.status = StatusCode::PARTIAL_CONTENT;
        self
    }

    /// Honours a single range, as plain static servers do; several ranges count as none.
    pub(crate) fn ranged(self, request: &HeaderMap) -> Self {
        let Some(range) = request.get(RANGE).and_then(|value| value.to_str().ok()) else {
            return self;
        };
        let length = self.body.len();
        let (first, last) = match range.trim_start_matches("bytes=").split_once('-') {
            Some((_, last)) if last.contains(',') => return self,
            Some(("", suffix)) => {
                let suffix: usize = suffix.parse().unwrap_or(length);
                (length.saturating_sub(suffix), length)
            }
            Some((first, last)) => {
                (first.parse().unwrap_or(length), last.parse().unwrap_or(length))
            }
            None => return self,
        };
        if first >= length {
            let mut reply = Self::new(StatusCode::RANGE_NOT_SATISFIABLE, Bytes::new());
            reply.set(CONTENT_RANGE, &format!("bytes */{length}"));
            return reply;
        }
        self.range(first, last.min(length - 1))
    }

    /// Forgets about the range.
    pub(crate) fn whole_again(&mut self) {
        if let Some(whole) = self.whole.take() {
            self.body = whole;
            self.status = StatusCode::OK;
            self.headers.remove(CONTENT_RANGE);
        }
    }

    /// Commits the faults, waits as long as they say, and hands the answer to hyper, or an error
    /// that cuts the connection. What happens is noted in the record under `number`.
    pub(crate) async fn send(
        mut self,
        request: &Parts,
        faults: Vec<Fault>,
        recorder: Arc<Recorder>,
        number: usize,
    ) -> io::Result<Response<PacedBody>> {
        for fault in faults {
            fault.apply(&mut self);
        }
        if let Some(gate) = &self.head_gate {
            gate.passed().await;
        }
        if self.end == End::CutHead {
            recorder.update(number, |exchange| exchange.ended = true);
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        let status = self.status;
        recorder.update(number, |exchange| exchange.status = Some(status));
        let mut response = Response::new(());
        *response.status_mut() = status;
        *response.headers_mut() = self.headers.clone();
        let bodiless = status == StatusCode::NO_CONTENT || status == StatusCode::NOT_MODIFIED;
        if !self.chunked && !bodiless {
            response.headers_mut().insert(CONTENT_LENGTH, self.body.len().into());
        }
        let (sender, receiver) = mpsc::channel(1);
        if request.method == Method::HEAD || bodiless {
            recorder.update(number, |exchange| exchange.ended = true);
        } else {
            tokio::spawn(async move {
                self.pour(sender, &recorder, number).await;
                recorder.update(number, |exchange| exchange.ended = true);
            });
        }
        Ok(response.map(|()| PacedBody(receiver)))
    }

    async fn pour(self, sender: Sender, recorder: &Recorder, number: usize) {
        if let Some(time) = self.body_delay {
            tokio::time::sleep(time).await;
        }
        let mut rest = self.body;
        let mut sent = 0;
        loop {
            let mut stops = vec![rest.len() as u64, CHUNK];
            if let Some((at, gate)) = &self.body_gate {
                if sent == *at {
                    // The client may go away meanwhile.
                    tokio::select! {
                        () = gate.passed() => {}
                        () = sender.closed() => return,
                    }
                } else if sent < *at {
                    stops.push(at - sent);
                }
            }
            if let End::CutAfter(at) = self.end {
                if sent == at {
                    // Only what hyper flushed before the error reaches the client, and it
                    // flushes when it finds no more to send.
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    let _gone = sender.send(Err(io::ErrorKind::ConnectionAborted.into())).await;
                    return;
                }
                stops.push(at - sent);
            }
            if rest.is_empty() {
                return;
            }
            let step = stops.into_iter().min().unwrap_or_default();
            let piece = rest.split_to(usize::try_from(step).expect("no longer than a chunk"));
            if let Some(rate) = self.rate {
                tokio::time::sleep(Duration::from_micros(step * 1_000_000 / rate)).await;
            }
            if sender.send(Ok(Frame::data(piece))).await.is_err() {
                return;
            }
            sent += step;
            recorder.update(number, |exchange| exchange.sent = sent);
        }
    }
}

/// Bytes handed to hyper at once.
const CHUNK: u64 = 64 * 1024;

type Piece = Result<Frame<Bytes>, io::Error>;
type Sender = mpsc::Sender<Piece>;

/// A body that comes through a channel.
pub(crate) struct PacedBody(mpsc::Receiver<Piece>);

impl Body for PacedBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Piece>> {
        self.get_mut().0.poll_recv(context)
    }
}
