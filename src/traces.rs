//! Traces: a span for each request and each fill, sent by OTLP over HTTP to whoever collects them.
//!
//! A client that sends a `traceparent` decides, yes or no; of the others the share `traces.ratio` is
//! traced, by chance. What is not traced has no `Span`, and costs one look at an `Option`. Spans that have
//! ended wait in a queue of bounded length for a thread of their own; nothing waits for that.
//!
//! All of it is behind the feature `otel`. Without it the same names stand for types that have no
//! values, so no line elsewhere knows of the feature.

#[cfg(not(feature = "otel"))]
mod absent;
#[cfg(feature = "otel")]
mod collector;
#[cfg(feature = "otel")]
mod spans;

#[cfg(not(feature = "otel"))]
pub use self::absent::{Span, Traces};
#[cfg(feature = "otel")]
pub use self::spans::{Span, Traces};
