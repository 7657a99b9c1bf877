//! Spans, by OpenTelemetry's own kit: who is traced, and what is said.

use std::time::Duration;

use http::HeaderMap;
use opentelemetry::propagation::{Extractor, TextMapPropagator as _};
use opentelemetry::trace::{Span as _, TracerProvider as _};
use opentelemetry::trace::{SpanBuilder, SpanKind, Status, TraceContextExt as _, Tracer as _};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracer, SdkTracerProvider,
};

use super::collector::Collector;
use crate::config;
use crate::error::Result;

/// Spans that have ended and are not sent yet; more are dropped rather than kept.
const WAITING_MAX: usize = 2048;

/// Spans sent in one request.
const BATCH_MAX: usize = 512;

/// How long a span waits for others.
const EVERY: Duration = Duration::from_secs(1);

/// How long the end of the process waits for the last spans to be sent.
const FLUSH_WITHIN: Duration = Duration::from_secs(3);

/// The longest text that a span tells: clients choose some of them.
const TEXT_BYTES_MAX: usize = 1024;

/// Where spans are made.
#[derive(Clone, Debug)]
pub struct Traces {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
}

impl Traces {
    /// As configured; `None` where nothing is traced. Nothing is dialled. Has to be called within the
    /// runtime, by which spans are sent.
    ///
    /// # Errors
    /// `Internal` where the client cannot be built.
    pub fn start(config: &config::Traces) -> Result<Option<Self>> {
        let Some(url) = config.collector() else { return Ok(None) };
        let collector = Collector::new(url, config)?;
        let batches = BatchConfigBuilder::default()
            .with_max_queue_size(WAITING_MAX)
            .with_max_export_batch_size(BATCH_MAX)
            .with_scheduled_delay(EVERY)
            .build();
        let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
        let by_chance = Sampler::TraceIdRatioBased(config.ratio.get());
        let provider = SdkTracerProvider::builder()
            .with_span_processor(
                BatchSpanProcessor::builder(collector).with_batch_config(batches).build(),
            )
            .with_sampler(Sampler::ParentBased(Box::new(by_chance)))
            .with_resource(
                Resource::builder().with_service_name("pierhead").with_attribute(version).build(),
            )
            .build();
        let tracer = provider.tracer("pierhead");
        Ok(Some(Self { provider, tracer }))
    }

    /// The span of a request that begins now, as part of what its client traces; `None` where this
    /// one is not traced.
    pub fn request(&self, headers: &HeaderMap) -> Option<Span> {
        let none = Context::new();
        let client = TraceContextPropagator::new().extract_with_context(&none, &Parent(headers));
        let about = SpanBuilder::from_name("request").with_kind(SpanKind::Server);
        Span::begin(&self.tracer, about, &client)
    }

    /// Has all spans that have ended sent, for the end of the process: within some seconds, or not
    /// at all.
    pub async fn flush(&self) {
        let provider = self.provider.clone();
        // It blocks. What fails is told by the collector.
        let flushed =
            tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(FLUSH_WITHIN));
        let _ = flushed.await;
    }
}

/// The header that names the client's span. Its companion, `tracestate`, is for those who pass traces
/// on, which we do not.
struct Parent<'a>(&'a HeaderMap);

impl Extractor for Parent<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        (key == "traceparent").then(|| self.0.get(key)?.to_str().ok())?
    }

    fn keys(&self) -> Vec<&str> {
        vec!["traceparent"]
    }
}

/// Something that takes time, being traced. Its clones are the same span; it ends with `end`, or with
/// the last of them.
#[derive(Clone, Debug)]
pub struct Span {
    context: Context,
    tracer: SdkTracer,
}

impl Span {
    fn begin(tracer: &SdkTracer, about: SpanBuilder, parent: &Context) -> Option<Self> {
        let span = tracer.build_with_context(about, parent);
        let is_traced = span.span_context().is_sampled();
        is_traced.then(|| Self { context: Context::new().with_span(span), tracer: tracer.clone() })
    }

    /// A span that this one has begun. It may end later.
    pub fn child(&self, name: &'static str) -> Self {
        let about = SpanBuilder::from_name(name).with_kind(SpanKind::Internal);
        // What is part of something traced is traced.
        Self::begin(&self.tracer, about, &self.context).unwrap_or_else(|| self.clone())
    }

    /// Notes that this one waits for another, which somebody else has begun.
    pub fn link(&self, other: &Self) {
        let other = other.context.span().span_context().clone();
        self.context.span().add_link(other, Vec::new());
    }

    /// What names the trace, in the log too.
    pub fn trace_id(&self) -> String {
        self.context.span().span_context().trace_id().to_string()
    }

    /// Names it by what it turned out to be.
    pub fn name(&self, name: String) {
        self.context.span().update_name(name);
    }

    /// Says something of it; what is empty is not said.
    pub fn text(&self, key: &'static str, text: &str) {
        if !text.is_empty() {
            let text = &text[..text.floor_char_boundary(TEXT_BYTES_MAX)];
            self.context.span().set_attribute(KeyValue::new(key, text.to_owned()));
        }
    }

    /// Says how many of something there were.
    pub fn number(&self, key: &'static str, number: u64) {
        let number = i64::try_from(number).unwrap_or(i64::MAX);
        self.context.span().set_attribute(KeyValue::new(key, number));
    }

    /// Says how much of something there was.
    pub fn decimal(&self, key: &'static str, number: f64) {
        self.context.span().set_attribute(KeyValue::new(key, number));
    }

    /// Marks it as failed, by a word of which there are few, and says why.
    pub fn failed(&self, word: &str, why: &str) {
        self.text("error.type", word);
        let why = &why[..why.floor_char_boundary(TEXT_BYTES_MAX)];
        self.context.span().set_status(Status::error(why.to_owned()));
    }

    /// It has ended, and is sent when its turn comes. Never waits.
    pub fn end(&self) {
        self.context.span().end();
    }
}
