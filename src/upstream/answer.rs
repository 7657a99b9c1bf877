//! An upstream's answer, read piece by piece and never without a bound.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, StatusCode};

use super::health::Health;
use super::manners::{Pace, Place};
use crate::error::{Error, Kind, Result};
use crate::metrics::Metrics;

/// An upstream's answer with a status of success.
#[derive(Debug)]
pub struct Answer {
    pub(super) response: reqwest::Response,
    pub(super) stall_timeout: Duration,
    pub(super) upstream: Arc<str>,
    pub(super) metrics: Arc<Metrics>,
    /// The health of the endpoint that it came through.
    pub(super) health: Arc<Health>,
    pub(super) pace: Option<Arc<Pace>>,
    /// A piece that has come and waits for its turn.
    pub(super) waiting: Option<Bytes>,
    /// The place among the requests under way, until the end.
    pub(super) place: Place,
}

impl Answer {
    /// 200 or 206.
    pub fn status(&self) -> StatusCode {
        self.response.status()
    }

    /// The upstream's headers: hostile input.
    pub fn headers(&self) -> &HeaderMap {
        self.response.headers()
    }

    /// The next piece of the body, `None` at its end. Cancel safe: a piece is either returned or
    /// still to come.
    ///
    /// # Errors
    /// `Unavailable` where the transfer breaks or stalls.
    pub async fn piece(&mut self) -> Result<Option<Bytes>> {
        let broken = |why: &str| {
            self.health.broke(Instant::now());
            Error::new(Kind::Unavailable, format!("the transfer from {} {why}", self.upstream))
        };
        if let Some(piece) = self.waiting.take() {
            return Ok(Some(piece)); // the wait for its turn was given up
        }
        match tokio::time::timeout(self.stall_timeout, self.response.chunk()).await {
            Err(_) => Err(broken("stalled")),
            Ok(Err(e)) => Err(broken("broke off").because(e.without_url())),
            Ok(Ok(piece)) => {
                let bytes = piece.as_ref().map_or(0, Bytes::len);
                self.metrics.upstream_bytes(&self.upstream, bytes);
                if let Some(pace) = &self.pace {
                    self.waiting = piece;
                    pace.spend(bytes).await;
                    return Ok(self.waiting.take());
                }
                Ok(piece)
            }
        }
    }

    /// The whole body, if it is no longer than `max` bytes.
    ///
    /// # Errors
    /// `BadUpstream` for a longer one, `Unavailable` where the transfer breaks.
    pub async fn whole(mut self, max: usize) -> Result<Bytes> {
        let mut body = BytesMut::new();
        while let Some(piece) = self.piece().await? {
            if body.len() + piece.len() > max {
                return Err(Error::new(
                    Kind::BadUpstream,
                    format!("{} sent more than {max} bytes where less was expected", self.upstream),
                ));
            }
            body.extend_from_slice(&piece);
        }
        Ok(body.freeze())
    }
}

/// Reads a body that only matters for its message or its token.
pub(super) async fn read_up_to(
    mut response: reqwest::Response,
    max: usize,
    within: Duration,
) -> Result<Vec<u8>, Box<dyn std::error::Error + Send + Sync>> {
    tokio::time::timeout(within, async {
        let mut body = Vec::new();
        while let Some(piece) = response.chunk().await.map_err(reqwest::Error::without_url)? {
            if body.len() + piece.len() > max {
                return Err("the answer is too long".into());
            }
            body.extend_from_slice(&piece);
        }
        Ok(body)
    })
    .await?
}
