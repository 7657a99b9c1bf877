//! Content as it is read to be sent: stretch after stretch, as far as it is there.

use std::fs::File;
use std::sync::Arc;

use bytes::Bytes;

use super::{Content, text};
use crate::error::Kind;
use crate::limits::COPY_BYTES;
use crate::range::Span;
use crate::sendfile;

/// What can be sent next.
pub(super) enum Stretch {
    /// Of a file, from one byte up to another.
    File(Arc<File>, u64, u64),
    Bytes(Bytes),
}

/// Walks over a span of content, no further than a fill has come and rot has been looked for.
pub(super) struct Reader {
    content: Content,
    at: u64,
    end: u64,
    /// How far a fill is known to be there.
    ready: u64,
}

impl Reader {
    pub(super) fn new(content: Content, span: Span) -> Self {
        let mut reader = Self { content, at: 0, end: 0, ready: 0 };
        reader.seek(span);
        reader
    }

    pub(super) fn seek(&mut self, span: Span) {
        (self.at, self.end) = (span.start, span.end);
        if let Content::Relay(relay) = &mut self.content
            && !span.is_empty()
        {
            relay.only(span);
        }
    }

    /// Whether what comes next was just written.
    pub(super) fn is_fresh(&self) -> bool {
        matches!(self.content, Content::Fill(_))
    }

    pub(super) fn is_done(&self) -> bool {
        self.at >= self.end
    }

    /// The next stretch that can be sent.
    pub(super) async fn next(&mut self) -> Result<Option<Stretch>, String> {
        if self.is_done() {
            return Ok(None);
        }
        if let Content::Fill(follower) = &mut self.content
            && self.ready <= self.at
        {
            match follower.ready(self.at).await {
                Ok(ready) => self.ready = ready,
                Err(error) if error.kind() == Kind::DiskFailed => {
                    let relay = follower.relay(self.at).await.map_err(text)?;
                    self.content = Content::Relay(Box::new(relay));
                }
                Err(error) => return Err(error.to_string()),
            }
        }
        let (file, to) = match &mut self.content {
            Content::Relay(relay) => {
                let bytes = relay.next().await.map_err(text)?;
                return Ok(bytes.map(|b| self.cut(b)));
            }
            Content::Bytes(bytes) => {
                let Some(bytes) = slice(bytes, self.at, self.end) else { return Ok(None) };
                return Ok(Some(self.cut(bytes)));
            }
            Content::Fill(_) if self.ready <= self.at => {
                self.end = self.at; // the end of a fill whose size nobody had told
                return Ok(None);
            }
            Content::Fill(follower) => {
                (Arc::clone(follower.file().map_err(text)?), self.end.min(self.ready))
            }
            Content::Held(large) => {
                (Arc::clone(&large.file), large.ensure(self.at, self.end).await.map_err(text)?)
            }
        };
        let from = std::mem::replace(&mut self.at, to);
        Ok(Some(Stretch::File(file, from, to)))
    }

    /// Cuts bytes off at the end of the span.
    fn cut(&mut self, mut bytes: Bytes) -> Stretch {
        let left = usize::try_from(self.end - self.at).unwrap_or(usize::MAX);
        bytes.truncate(left);
        self.at += bytes.len() as u64;
        Stretch::Bytes(bytes)
    }

    /// The next bytes, at most a slice.
    pub(super) async fn bytes(&mut self) -> Result<Option<Bytes>, String> {
        let end = self.end;
        let limit = end.min(self.at.saturating_add(COPY_BYTES));
        if !matches!(self.content, Content::Bytes(_) | Content::Relay(_)) {
            self.end = limit;
        }
        let stretch = self.next().await?;
        if self.end == limit {
            self.end = end; // where the fill's own end was found, that stays
        }
        match stretch {
            None => Ok(None),
            Some(Stretch::Bytes(bytes)) => Ok(Some(bytes)),
            Some(Stretch::File(file, from, to)) => {
                let length = usize::try_from(to - from).map_err(text)?;
                sendfile::read(&file, from, length).await.map(Some).map_err(text)
            }
        }
    }
}

fn slice(bytes: &Bytes, from: u64, to: u64) -> Option<Bytes> {
    let (from, to) = (usize::try_from(from).ok()?, usize::try_from(to).ok()?);
    (from <= to && to <= bytes.len()).then(|| bytes.slice(from..to))
}
