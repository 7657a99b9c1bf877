//! From bytes on the wire to a request's body: piece by piece, within deadlines, never more than asked.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{self, HeaderName};
use pingora::protocols::http::ServerSession;

use crate::error::{Error, Kind, Result};

/// A request's body, yet to be read.
#[expect(missing_debug_implementations, reason = "a session has none")]
pub struct Incoming<'a> {
    session: &'a mut ServerSession,
    patience: Duration,
    /// Whether the client still waits to be told that the body is wanted.
    waits: bool,
    /// Who sends it, where callers log in.
    user: Option<Arc<str>>,
}

impl<'a> Incoming<'a> {
    /// Notes who sends it.
    pub fn set_user(&mut self, user: Option<Arc<str>>) {
        self.user = user;
    }

    /// Who sends it, where callers log in.
    pub fn user(&self) -> Option<&str> {
        self.user.as_deref()
    }

    /// The body of the request that a session has just read. A client that sends nothing for
    /// `patience` is given up.
    pub fn new(session: &'a mut ServerSession, patience: Duration) -> Self {
        let waits = waits_to_go_on(session);
        Self { session, patience, waits, user: None }
    }

    /// A header of the request, as text.
    pub fn header(&self, name: &HeaderName) -> Option<&str> {
        self.session.req_header().headers.get(name)?.to_str().ok()
    }

    /// How long the body says it is.
    pub fn length(&self) -> Option<u64> {
        self.header(&header::CONTENT_LENGTH)?.trim().parse().ok()
    }

    /// Whether there is none.
    pub fn is_empty(&mut self) -> bool {
        self.length() == Some(0) || self.session.is_body_empty()
    }

    /// The next piece; `None` at the end.
    ///
    /// # Errors
    /// `SizeInvalid` where the client breaks off or falls silent.
    pub async fn piece(&mut self) -> Result<Option<Bytes>> {
        let broken = |why: String| Error::new(Kind::SizeInvalid, "the body broke off").because(why);
        if std::mem::take(&mut self.waits) {
            // Pingora would count this as an answer that came before the body, and close.
            self.session.set_close_on_response_before_downstream_finish(false);
            let told = self.session.write_continue_response().await;
            self.session.set_close_on_response_before_downstream_finish(true);
            told.map_err(|e| broken(e.to_string()))?;
        }
        match tokio::time::timeout(self.patience, self.session.read_request_body()).await {
            Ok(Ok(piece)) => Ok(piece),
            Ok(Err(error)) => Err(broken(error.to_string())),
            Err(elapsed) => Err(broken(elapsed.to_string())),
        }
    }

    /// All of it, in memory.
    ///
    /// # Errors
    /// `TooLarge` beyond `bytes_max`, or as for a piece.
    pub async fn whole(&mut self, bytes_max: usize) -> Result<Bytes> {
        let too_large =
            || Error::new(Kind::TooLarge, format!("more than {bytes_max} bytes are not taken"));
        if self.length().is_some_and(|length| length > bytes_max as u64) {
            return Err(too_large());
        }
        let mut whole = BytesMut::new();
        while let Some(piece) = self.piece().await? {
            if whole.len() + piece.len() > bytes_max {
                return Err(too_large());
            }
            whole.extend_from_slice(&piece);
        }
        Ok(whole.freeze())
    }
}

/// Reads on for a moment after an answer that came before the body's end: closing at once would reset
/// the connection, and the client might never see the answer.
pub async fn linger(session: &mut ServerSession) {
    // Who was never told to go on has sent nothing, and will not.
    let is_silent = waits_to_go_on(session) && session.body_bytes_read() == 0;
    if !session.is_body_done() && !is_silent {
        let _ = session.drain_request_body().await; // within the total drain timeout
    }
}

fn waits_to_go_on(session: &ServerSession) -> bool {
    let expect = session.req_header().headers.get(header::EXPECT);
    !session.is_http2()
        && expect.is_some_and(|e| e.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}
