//! Whoever collects spans: how they are sent, and what is said where they cannot be.

use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderName, HeaderValue, header};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::transform::common::tonic::ResourceAttributesWithSchema;
use opentelemetry_proto::transform::trace::tonic::group_spans_by_resource_and_scope;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::trace::{SpanData, SpanExporter};
use parking_lot::Mutex;
use prost::Message as _;
use tokio::runtime::Handle;
use url::{Host, Url};

use crate::config;
use crate::error::{Error, Result};

/// A collector that takes longer gets nothing.
const WITHIN: Duration = Duration::from_secs(10);

/// What a collector says is a few bytes.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// How often it is said that spans cannot be sent.
const TOLD_EVERY: Duration = Duration::from_secs(60);

/// Sends spans. What cannot be sent is lost: it is worth less than the memory it would take.
#[derive(Debug)]
pub(super) struct Collector {
    client: reqwest::Client,
    url: Url,
    headers: HeaderMap,
    resource: ResourceAttributesWithSchema,
    /// The thread that sends is none of the runtime's.
    runtime: Handle,
    trouble: Mutex<Trouble>,
}

/// What could not be sent.
#[derive(Debug, Default)]
struct Trouble {
    told: Option<Instant>,
    lost: usize,
}

impl Collector {
    /// For a URL; nothing is dialled.
    ///
    /// # Errors
    /// `Internal` where the client cannot be built, or there is no runtime.
    pub(super) fn new(url: Url, config: &config::Traces) -> Result<Self> {
        let failed = "cannot set up the client for traces";
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("pierhead/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .referer(false)
            .timeout(WITHIN);
        if is_here(&url) {
            builder = builder.no_proxy(); // which would look for it on its own machine
        }
        let client = builder.build().map_err(|e| Error::internal(failed, e.without_url()))?;
        let mut headers = HeaderMap::new();
        for (name, value) in &config.headers {
            let value = HeaderValue::from_str(value.reveal());
            let mut value = value.map_err(|e| Error::internal(failed, e))?;
            value.set_sensitive(true);
            let name = HeaderName::try_from(name).map_err(|e| Error::internal(failed, e))?;
            headers.insert(name, value);
        }
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
        let runtime = Handle::try_current().map_err(|e| Error::internal(failed, e))?;
        let resource = ResourceAttributesWithSchema::default();
        Ok(Self { client, url, headers, resource, runtime, trouble: Mutex::default() })
    }

    /// Posts a batch. Why it was not taken is said in words that hold no secret.
    async fn post(&self, body: Vec<u8>) -> std::result::Result<(), String> {
        let request = self.client.post(self.url.clone()).headers(self.headers.clone()).body(body);
        let sent = self.runtime.spawn(async move {
            let mut answer = request.send().await?;
            // Read for the connection to be used again, and not looked at.
            let mut left = ANSWER_BYTES_MAX;
            while let Some(piece) = answer.chunk().await? {
                let Some(rest) = left.checked_sub(piece.len()) else { break };
                left = rest;
            }
            Ok::<_, reqwest::Error>(answer.status())
        });
        match sent.await {
            Ok(Ok(status)) if status.is_success() => Ok(()),
            Ok(Ok(status)) => Err(format!("it answers {status}")),
            Ok(Err(error)) => Err(format!("{:#}", anyhow::Error::new(error.without_url()))),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Says that spans are lost, at once and then now and then, and that they are not any more.
    fn tell(&self, spans: usize, outcome: &std::result::Result<(), String>) {
        let mut trouble = self.trouble.lock();
        let Err(why) = outcome else {
            let Trouble { told: Some(_), lost } = std::mem::take(&mut *trouble) else { return };
            return tracing::info!(lost, "traces are collected again");
        };
        trouble.lost += spans;
        if trouble.told.is_none_or(|told| told.elapsed() >= TOLD_EVERY) {
            trouble.told = Some(Instant::now());
            let (to, lost) = (self.url.authority(), trouble.lost);
            tracing::warn!(to, why, lost, "traces cannot be sent, and are lost; pulls go on");
        }
    }
}

/// Whether a URL names this machine itself.
fn is_here(url: &Url) -> bool {
    match url.host() {
        Some(Host::Ipv4(ip)) => ip.is_loopback(),
        Some(Host::Ipv6(ip)) => ip.is_loopback(),
        Some(Host::Domain(name)) => name == "localhost",
        None => false,
    }
}

impl SpanExporter for Collector {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
        let resource_spans = group_spans_by_resource_and_scope(batch, &self.resource);
        let body = ExportTraceServiceRequest { resource_spans }.encode_to_vec();
        let outcome = self.post(body).await;
        self.tell(spans, &outcome);
        outcome.map_err(OTelSdkError::InternalFailure)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.resource = resource.into();
    }
}
