//! A scripted collector of traces: OTLP over HTTP, and what it was sent, decoded.

use std::ops::Deref;
use std::time::Duration;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, Span};
use prost::Message as _;

use super::mirror::Setup;
use super::record::On;
use super::reply::Reply;
use super::scripted::Scripted;
use super::soon;

pub(crate) struct Collector(Scripted);

impl Deref for Collector {
    type Target = Scripted;

    fn deref(&self) -> &Scripted {
        &self.0
    }
}

impl Collector {
    pub(crate) async fn start() -> Self {
        let taken = |_: &_| Reply::text(200, "application/x-protobuf", "");
        Self(Scripted::start(taken).await)
    }

    /// Has a mirror send its traces here; `more` are further keys of the section.
    pub(crate) fn of(&self, setup: Setup, more: &str) -> Setup {
        setup.raw(&format!("traces: {{otlp: \"{}\", {more}}}", self.url()))
    }

    /// What has come, by who sent it.
    pub(crate) fn sent(&self) -> Vec<ResourceSpans> {
        let posted = self.asked(&On::any("/v1/traces"));
        let decode = |body| ExportTraceServiceRequest::decode(body).expect("a batch of spans");
        posted.into_iter().flat_map(|exchange| decode(exchange.body).resource_spans).collect()
    }

    pub(crate) fn spans(&self) -> Vec<Span> {
        let scopes = self.sent().into_iter().flat_map(|resource| resource.scope_spans);
        scopes.flat_map(|scope| scope.spans).collect()
    }

    /// The spans, once so many have come.
    pub(crate) async fn until_spans(&self, count: usize) -> Vec<Span> {
        let come = async {
            loop {
                let spans = self.spans();
                if spans.len() >= count {
                    return spans;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        soon(&format!("{count} spans"), come).await
    }
}

/// What a span says under a name, as text.
pub(crate) fn said(span: &Span, key: &str) -> String {
    let attribute = span.attributes.iter().find(|attribute| attribute.key == key);
    match attribute.and_then(|attribute| attribute.value.clone()?.value) {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        Some(Value::DoubleValue(number)) => number.to_string(),
        Some(other) => panic!("{key} is {other:?}"),
        None => String::new(),
    }
}

/// An id as headers and logs have it.
pub(crate) fn hex(id: &[u8]) -> String {
    id.iter().map(|byte| format!("{byte:02x}")).collect()
}
