//! Every metric, in one place; nothing else names prometheus. No label carries a repository, tag,
//! digest or user, so the number of series is bounded by the configuration.

use std::collections::BTreeMap;
use std::time::Duration;

use http::{HeaderMap, StatusCode};
use prometheus::core::Collector;
use prometheus::proto::LabelPair;
use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};

/// The metrics of one Pierhead.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    request_seconds: HistogramVec,
    response_bytes: IntCounterVec,
    upstream_requests: IntCounterVec,
    upstream_bytes: IntCounterVec,
    /// The sum over all upstreams, for the demo; not exported, since the sum is a query.
    upstream_bytes_sum: IntCounter,
    upstream_seconds: HistogramVec,
    upstream_up: IntGaugeVec,
    ratelimit_limit: IntGaugeVec,
    ratelimit_remaining: IntGaugeVec,
    /// Fills under way.
    pub fills_in_flight: IntGauge,
    /// Requests that follow a fill.
    pub fill_waiters: IntGauge,
    fills: IntCounterVec,
    /// Bytes held on disk.
    pub cache_bytes: IntGauge,
    /// Objects held on disk.
    pub cache_objects: IntGauge,
    /// Whether the disk takes what is to be kept.
    pub cache_writable: IntGauge,
    /// Bytes that the disk may hold.
    pub cache_limit_bytes: IntGauge,
    /// Bytes held in memory.
    pub memory_bytes: IntGauge,
    configured: Configured,
    evictions: IntCounterVec,
    evicted_bytes: IntCounter,
    /// Content that was found not to have its digest.
    pub verify_failures: IntCounter,
    auth_decisions: IntCounterVec,
    /// Connections that clients hold open.
    pub connections: IntGauge,
}

/// What was asked for, and what of it was held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Manifests and blobs asked for.
    pub requests: u64,
    /// Those of them that were held.
    pub hits: u64,
    /// Body bytes sent.
    pub bytes: u64,
    /// Those of them that were held.
    pub hit_bytes: u64,
}

impl Tally {
    /// Both together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            requests: self.requests + other.requests,
            hits: self.hits + other.hits,
            bytes: self.bytes + other.bytes,
            hit_bytes: self.hit_bytes + other.hit_bytes,
        }
    }

    /// With the ratios, which are nothing where nothing was asked for.
    pub fn json(&self) -> serde_json::Value {
        let ratio = |part: u64, all: u64| (all > 0).then(|| part as f64 / all as f64);
        serde_json::json!({
            "requests": self.requests, "hits": self.hits, "hit_ratio": ratio(self.hits, self.requests),
            "bytes": self.bytes, "hit_bytes": self.hit_bytes,
            "hit_byte_ratio": ratio(self.hit_bytes, self.bytes),
        })
    }
}

/// Looks at each series of a counter, with its labels.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "counters of whole things"
)]
fn each(counters: &IntCounterVec, mut look: impl FnMut(&[LabelPair], u64)) {
    for family in counters.collect() {
        for metric in family.get_metric() {
            look(metric.get_label(), metric.get_counter().get_value() as u64);
        }
    }
}

fn label<'l>(labels: &'l [LabelPair], name: &str) -> &'l str {
    labels.iter().find(|label| label.name() == name).map_or("", |label| label.value())
}

fn is_hit(cache: &str) -> bool {
    matches!(cache, "hit" | "revalidated" | "stale")
}

/// The metrics that answers of one kind count in, found once.
#[derive(Clone, Debug)]
pub struct Counted {
    requests: IntCounter,
    seconds: Histogram,
    bytes: IntCounter,
}

impl Counted {
    /// Accounts for one answer.
    pub fn served(&self, bytes: u64, took: Duration) {
        self.requests.inc();
        self.seconds.observe(took.as_secs_f64());
        self.bytes.inc_by(bytes);
    }
}

/// One answered request, as the access log and the metrics see it.
#[derive(Debug)]
pub struct Served<'a> {
    /// The upstream's name, empty where none was concerned.
    pub upstream: &'a str,
    /// `manifest`, `blob`, `tags`, `referrers`, `ping` or `none`.
    pub kind: &'static str,
    /// The method, or `OTHER`.
    pub method: &'static str,
    /// The status that was sent.
    pub status: u16,
    /// The cache word.
    pub cache: &'static str,
    /// Body bytes sent.
    pub bytes: u64,
    /// From the request's last byte to the answer's.
    pub took: Duration,
}

impl Metrics {
    /// Registers everything.
    ///
    /// # Errors
    /// Never in practice: only where two metrics bear one name.
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let r = &registry;
        let metrics = Self {
            requests: counters(
                r,
                "requests_total",
                "Requests answered.",
                &["upstream", "kind", "method", "status", "cache"],
            )?,
            request_seconds: histogram(
                r,
                "request_seconds",
                "Time from request to the end of its answer.",
                &["kind", "cache"],
            )?,
            response_bytes: counters(
                r,
                "response_bytes_total",
                "Body bytes sent to clients.",
                &["upstream", "cache"],
            )?,
            upstream_requests: counters(
                r,
                "upstream_requests_total",
                "Requests sent upstream.",
                &["upstream", "endpoint", "kind", "status"],
            )?,
            upstream_bytes_sum: IntCounter::new("upstream_bytes_sum", "Bytes from upstream.")?,
            upstream_bytes: counters(
                r,
                "upstream_bytes_total",
                "Body bytes received from upstream.",
                &["upstream"],
            )?,
            upstream_seconds: histogram(
                r,
                "upstream_seconds",
                "Time to the head of an upstream's answer.",
                &["upstream", "kind"],
            )?,
            upstream_up: gauges(
                r,
                "upstream_up",
                "Whether the endpoint answered when last asked.",
                &["upstream", "endpoint"],
            )?,
            ratelimit_limit: gauges(
                r,
                "upstream_ratelimit_limit",
                "The upstream's request limit.",
                &["upstream"],
            )?,
            ratelimit_remaining: gauges(
                r,
                "upstream_ratelimit_remaining",
                "What is left of the upstream's request limit.",
                &["upstream"],
            )?,
            fills_in_flight: gauge(r, "fills_in_flight", "Downloads from upstream under way.")?,
            fill_waiters: gauge(r, "fill_waiters", "Requests that follow a download.")?,
            fills: counters(r, "fills_total", "Downloads ended, by result.", &["result"])?,
            cache_bytes: gauge(r, "cache_bytes", "Bytes held on disk.")?,
            cache_objects: gauge(r, "cache_objects", "Objects held on disk.")?,
            cache_writable: gauge(
                r,
                "cache_writable",
                "Whether the last write to the cache folder went well; 0 passes content on unkept.",
            )?,
            cache_limit_bytes: gauge(r, "cache_limit_bytes", "Bytes that the disk may hold.")?,
            memory_bytes: gauge(r, "memory_bytes", "Bytes of content held in memory.")?,
            configured: Configured::new(r)?,
            evictions: counters(
                r,
                "evictions_total",
                "Objects that have left the cache, by reason.",
                &["reason"],
            )?,
            evicted_bytes: counter(r, "evicted_bytes_total", "Bytes that have left the cache.")?,
            verify_failures: counter(
                r,
                "verify_failures_total",
                "Held content found not to have its digest.",
            )?,
            auth_decisions: counters(
                r,
                "auth_decisions_total",
                "Decisions on who may come in, by result.",
                &["result"],
            )?,
            connections: gauge(r, "connections", "Connections that clients hold open.")?,
            registry: registry.clone(),
        };
        metrics.cache_writable.set(1);
        metrics.begin_series();
        #[cfg(target_os = "linux")]
        registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
        Ok(metrics)
    }

    /// Alerts are on rates, which want a series to be there before its first event.
    fn begin_series(&self) {
        for result in ["stored", "broken", "bad_upstream", "not_kept", "failed", "refused"] {
            self.fills.with_label_values(&[result]);
        }
        for reason in ["size", "free", "age", "purged", "rotten"] {
            self.evictions.with_label_values(&[reason]);
        }
    }

    /// The text that Prometheus scrapes.
    pub fn render(&self) -> String {
        TextEncoder::new().encode_to_string(&self.registry.gather()).unwrap_or_default()
    }

    /// Accounts for one answered request.
    pub fn served(&self, s: &Served<'_>) {
        self.counted(s.upstream, s.kind, s.method, s.status, s.cache).served(s.bytes, s.took);
    }

    /// The metrics that answers of one kind count in.
    pub fn counted(
        &self,
        upstream: &str,
        kind: &str,
        method: &str,
        status: u16,
        cache: &str,
    ) -> Counted {
        let status = status_text(status);
        Counted {
            requests: self.requests.with_label_values(&[upstream, kind, method, status, cache]),
            seconds: self.request_seconds.with_label_values(&[kind, cache]),
            bytes: self.response_bytes.with_label_values(&[upstream, cache]),
        }
    }

    /// Accounts for one answer from upstream.
    pub fn upstream_request(
        &self,
        upstream: &str,
        endpoint: &str,
        kind: &str,
        status: StatusCode,
        took: Duration,
    ) {
        self.upstream_requests
            .with_label_values(&[upstream, endpoint, kind, status_text(status.as_u16())])
            .inc();
        self.upstream_seconds.with_label_values(&[upstream, kind]).observe(took.as_secs_f64());
    }

    /// Accounts for a request upstream that got no answer.
    pub fn upstream_error(&self, upstream: &str, endpoint: &str, kind: &str) {
        self.upstream_requests.with_label_values(&[upstream, endpoint, kind, "error"]).inc();
    }

    /// Accounts for body bytes from upstream.
    pub fn upstream_bytes(&self, upstream: &str, bytes: usize) {
        self.upstream_bytes.with_label_values(&[upstream]).inc_by(bytes as u64);
        self.upstream_bytes_sum.inc_by(bytes as u64);
    }

    /// Body bytes received from all upstreams.
    pub fn upstream_bytes_total(&self) -> u64 {
        self.upstream_bytes_sum.get()
    }

    /// Notes whether an endpoint answered.
    pub fn upstream_up(&self, upstream: &str, endpoint: &str, up: bool) {
        self.upstream_up.with_label_values(&[upstream, endpoint]).set(i64::from(up));
    }

    /// Reads Docker Hub's `ratelimit-limit: 100;w=21600` and `ratelimit-remaining`.
    pub fn rate_limit(&self, upstream: &str, headers: &HeaderMap) {
        for (name, gauge) in [
            ("ratelimit-limit", &self.ratelimit_limit),
            ("ratelimit-remaining", &self.ratelimit_remaining),
        ] {
            let value = headers.get(name).and_then(|v| v.to_str().ok());
            if let Some(n) =
                value.and_then(|v| v.split(';').next()).and_then(|v| v.trim().parse().ok())
            {
                gauge.with_label_values(&[upstream]).set(n);
            }
        }
    }

    /// What was asked for and what was held, by upstream.
    pub fn tallies(&self) -> BTreeMap<String, Tally> {
        let mut tallies = BTreeMap::<String, Tally>::new();
        each(&self.requests, |labels, n| {
            if matches!(label(labels, "kind"), "manifest" | "blob") {
                let tally = tallies.entry(label(labels, "upstream").to_owned()).or_default();
                tally.requests += n;
                tally.hits += if is_hit(label(labels, "cache")) { n } else { 0 };
            }
        });
        each(&self.response_bytes, |labels, n| {
            let tally = tallies.entry(label(labels, "upstream").to_owned()).or_default();
            tally.bytes += n;
            tally.hit_bytes += if is_hit(label(labels, "cache")) { n } else { 0 };
        });
        tallies
    }

    /// Notes that the configuration was read: put into force at `now`, in seconds since 1970, or
    /// `None` where it is faulty and the one before stays.
    pub fn configured(&self, now: Option<u64>) {
        self.configured.successful.set(i64::from(now.is_some()));
        if let Some(now) = now {
            self.configured.timestamp.set(i64::try_from(now).unwrap_or(i64::MAX));
        }
    }

    /// Counts content that has left.
    pub fn evicted(&self, reason: &str, bytes: u64) {
        self.evictions.with_label_values(&[reason]).inc();
        self.evicted_bytes.inc_by(bytes);
    }

    /// Counts a decision: `allowed`, `challenged` (nothing was shown), `refused` (what was shown is not
    /// believed or not enough) or `denied`.
    pub fn auth_decided(&self, result: &str) {
        self.auth_decisions.with_label_values(&[result]).inc();
    }

    /// Counts the end of a fill.
    pub fn fill_ended(&self, result: &str) {
        self.fills.with_label_values(&[result]).inc();
    }
}

/// How the configuration was when it was last read.
#[derive(Debug)]
struct Configured {
    successful: IntGauge,
    timestamp: IntGauge,
}

impl Configured {
    fn new(r: &Registry) -> Result<Self, prometheus::Error> {
        const SUCCESSFUL: &str = "config_last_reload_successful";
        const TIMESTAMP: &str = "config_last_reload_success_timestamp_seconds";
        let when_read =
            "Whether the configuration was good when last read, at a start or a reload.";
        let in_force = "When a configuration was last put into force.";
        let successful = gauge(r, SUCCESSFUL, when_read)?;
        Ok(Self { successful, timestamp: gauge(r, TIMESTAMP, in_force)? })
    }
}

const PREFIX: &str = "pierhead";

fn options(name: &str, help: &str) -> Opts {
    Opts::new(name, help).namespace(PREFIX)
}

fn counters(
    r: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> Result<IntCounterVec, prometheus::Error> {
    let metric = IntCounterVec::new(options(name, help), labels)?;
    r.register(Box::new(metric.clone())).map(|()| metric)
}

fn counter(r: &Registry, name: &str, help: &str) -> Result<IntCounter, prometheus::Error> {
    let metric = IntCounter::with_opts(options(name, help))?;
    r.register(Box::new(metric.clone())).map(|()| metric)
}

fn gauges(
    r: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> Result<IntGaugeVec, prometheus::Error> {
    let metric = IntGaugeVec::new(options(name, help), labels)?;
    r.register(Box::new(metric.clone())).map(|()| metric)
}

fn gauge(r: &Registry, name: &str, help: &str) -> Result<IntGauge, prometheus::Error> {
    let metric = IntGauge::with_opts(options(name, help))?;
    r.register(Box::new(metric.clone())).map(|()| metric)
}

fn histogram(
    r: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> Result<HistogramVec, prometheus::Error> {
    let buckets = vec![
        0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
        60.0, 300.0,
    ];
    let metric =
        HistogramVec::new(HistogramOpts::from(options(name, help)).buckets(buckets), labels)?;
    r.register(Box::new(metric.clone())).map(|()| metric)
}

/// The statuses that occur, without an allocation; others are grouped.
fn status_text(status: u16) -> &'static str {
    match status {
        200 => "200",
        201 => "201",
        202 => "202",
        204 => "204",
        206 => "206",
        301 => "301",
        302 => "302",
        303 => "303",
        304 => "304",
        307 => "307",
        308 => "308",
        400 => "400",
        401 => "401",
        403 => "403",
        404 => "404",
        405 => "405",
        408 => "408",
        413 => "413",
        416 => "416",
        429 => "429",
        500 => "500",
        502 => "502",
        503 => "503",
        504 => "504",
        _ => ["0xx", "1xx", "2xx", "3xx", "4xx", "5xx"][usize::from(status / 100).min(5)],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_is_rendered() {
        let metrics = Metrics::new().unwrap();
        metrics.served(&Served {
            upstream: "docker.io",
            kind: "blob",
            method: "GET",
            status: 200,
            cache: "hit",
            bytes: 7,
            took: Duration::ZERO,
        });
        let text = metrics.render();
        assert!(text.contains(r#"pierhead_requests_total{cache="hit",kind="blob",method="GET",status="200",upstream="docker.io"} 1"#), "{text}");
        assert!(
            text.contains(r#"pierhead_response_bytes_total{cache="hit",upstream="docker.io"} 7"#)
        );
    }

    #[test]
    fn the_rate_limit_is_read_from_the_headers_of_docker_hub() {
        let metrics = Metrics::new().unwrap();
        let mut headers = HeaderMap::new();
        headers.insert("ratelimit-limit", "100;w=21600".parse().unwrap());
        headers.insert("ratelimit-remaining", "76;w=21600".parse().unwrap());
        metrics.rate_limit("docker.io", &headers);
        assert!(
            metrics
                .render()
                .contains(r#"pierhead_upstream_ratelimit_remaining{upstream="docker.io"} 76"#)
        );
    }
}
