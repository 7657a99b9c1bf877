//! What the span of a fill says. Names that OpenTelemetry has none for begin with ours.

use super::word;
use crate::error::Result;
use crate::fill::{Fill, Why};

/// What is fetched, and why.
pub(super) fn begun(fill: &Fill) {
    let Some(span) = &fill.trace else { return };
    span.text("pierhead.upstream", &fill.place.upstream);
    span.text("pierhead.repository", fill.place.repository.as_str());
    span.text("pierhead.digest", &fill.digest.to_string());
    span.text(
        "pierhead.why",
        match fill.why {
            Why::Client => "client",
            Why::Prefetch => "prefetch",
        },
    );
}

/// How long it has waited for its turn.
pub(super) fn has_turn(fill: &Fill) {
    let Some(span) = &fill.trace else { return };
    span.decimal("pierhead.queued_ms", fill.begun.elapsed().as_secs_f64() * 1e3);
}

/// How it ended, and how much had come by then.
pub(super) fn ended(fill: &Fill, outcome: &Result<()>) {
    let Some(span) = &fill.trace else { return };
    span.text("pierhead.result", word(outcome));
    span.number("pierhead.bytes", fill.progress.borrow().written);
    if let Err(error) = outcome {
        span.failed(word(outcome), error.message());
    }
    span.end();
}
