//! Traces: what is told of requests and fills, to whom, and what it costs when nobody listens.

use nix::sys::signal::Signal;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use serde_json::Value;

use crate::support::client::Ask;
use crate::support::cold::blobs;
use crate::support::collector::{Collector, hex, said};
use crate::support::fault::{Fault, Gate};
use crate::support::image::Content;
use crate::support::mirror::{Mirror, NAME, before, run};
use crate::support::record::On;
use crate::support::upstream::Upstream;

const ALL: &str = "ratio: 1";
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

struct Scene {
    collector: Collector,
    upstream: Upstream,
    mirror: Mirror,
    blob: Content,
    path: String,
}

impl Scene {
    /// A mirror that holds nothing, and one blob upstream.
    async fn new(size: usize, traces: &str) -> Self {
        let (collector, upstream) = (Collector::start().await, Upstream::start().await);
        let blob = upstream.blob("team/app", 1, size);
        let mirror = collector.of(before(&upstream), traces).start().await;
        let path = format!("/v2/team/app/blobs/{}", blob.digest);
        Self { collector, upstream, mirror, blob, path }
    }

    fn get(&self) -> Ask {
        self.mirror.get(&self.path)
    }

    /// Pulls the blob and checks it.
    async fn pull(&self) {
        self.pulled(self.get()).await;
    }

    async fn pulled(&self, ask: Ask) {
        let answer = ask.answer().await;
        assert!(answer.is(&self.blob.bytes), "{} {:?}", answer.status, answer.headers);
    }

    /// The access log, once it has so many lines.
    async fn lines(&self, count: usize) -> Vec<Value> {
        self.mirror.until_said(count, "\"target\":\"access\"").await;
        let log = self.mirror.log();
        let lines = log.lines().filter(|line| line.contains("\"target\":\"access\""));
        lines.map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

fn traceparent(ask: Ask, flags: &str) -> Ask {
    ask.header("traceparent", &format!("00-{TRACE}-{PARENT}-{flags}"))
        .header("tracestate", "vendor=secret")
        .header("baggage", "user=secret")
}

fn is_request(span: &Span) -> bool {
    span.kind == SpanKind::Server as i32
}

/// The only request among the spans, and the only fill.
fn one_of_each(spans: &[Span]) -> (&Span, &Span) {
    let (requests, fills): (Vec<_>, Vec<_>) = spans.iter().partition(|span| is_request(span));
    assert_eq!((requests.len(), fills.len()), (1, 1), "{spans:?}");
    assert_eq!(fills[0].name, "fill");
    (requests[0], fills[0])
}

#[tokio::test]
async fn a_request_has_a_span_and_so_has_the_fill_that_it_begins() {
    let scene = Scene::new(300_000, ALL).await;
    scene.pulled(scene.get().header("user-agent", "puller/1")).await;
    let spans = scene.collector.until_spans(2).await;
    let (request, fill) = one_of_each(&spans);
    assert_eq!(request.name, "GET /v2/{name}/blobs/{digest}");
    for (key, wanted) in [
        ("http.request.method", "GET"),
        ("http.route", "/v2/{name}/blobs/{digest}"),
        ("http.response.status_code", "200"),
        ("http.response.body.size", "300000"),
        ("url.path", &*scene.path),
        ("url.scheme", "http"),
        ("network.protocol.version", "1.1"),
        ("client.address", "127.0.0.1"),
        ("user_agent.original", "puller/1"),
        ("pierhead.upstream", NAME),
        ("pierhead.repository", "team/app"),
        ("pierhead.kind", "blob"),
        ("pierhead.cache", "miss"),
        ("error.type", ""),
    ] {
        assert_eq!(said(request, key), wanted, "{key}");
    }
    for (key, wanted) in [
        ("pierhead.upstream", NAME),
        ("pierhead.repository", "team/app"),
        ("pierhead.digest", &*scene.blob.digest),
        ("pierhead.why", "client"),
        ("pierhead.result", "stored"),
        ("pierhead.bytes", "300000"),
    ] {
        assert_eq!(said(fill, key), wanted, "{key}");
    }
    assert!(!said(fill, "pierhead.queued_ms").is_empty());
    assert_eq!((&fill.trace_id, &fill.parent_span_id), (&request.trace_id, &request.span_id));
    assert!(request.parent_span_id.is_empty(), "nobody else traces this");
    assert!(request.end_time_unix_nano > request.start_time_unix_nano);
    let line = &scene.lines(1).await[0];
    assert_eq!(line["trace_id"], hex(&request.trace_id), "{line}");
    let sent = scene.collector.sent().remove(0).resource.unwrap();
    let named = sent.attributes.iter().find(|a| a.key == "service.name").unwrap();
    assert!(format!("{named:?}").contains("pierhead"), "{named:?}");
}

/// What is answered the short way is traced like everything else.
#[tokio::test]
async fn ready_answers_are_traced_as_well() {
    let scene = Scene::new(1000, ALL).await;
    for _ in 0..5 {
        scene.pull().await;
    }
    let spans = scene.collector.until_spans(6).await;
    let requests: Vec<_> = spans.iter().filter(|span| is_request(span)).collect();
    assert_eq!((requests.len(), spans.len()), (5, 6));
    let hits = requests.iter().filter(|span| said(span, "pierhead.cache") == "hit");
    assert!(hits.count() >= 3, "{requests:?}");
    assert!(requests.iter().all(|span| said(span, "http.response.body.size") == "1000"));
    let mut traces: Vec<_> = requests.iter().map(|span| hex(&span.trace_id)).collect();
    traces.sort_unstable();
    traces.dedup();
    assert_eq!(traces.len(), 5, "each is a trace of its own");
}

#[tokio::test]
async fn a_clients_trace_is_taken_up_and_never_passed_upstream() {
    let scene = Scene::new(300_000, "ratio: 0").await;
    scene.pulled(traceparent(scene.get(), "01")).await;
    let spans = scene.collector.until_spans(2).await;
    let (request, fill) = one_of_each(&spans);
    assert_eq!(
        (hex(&request.trace_id), hex(&request.parent_span_id)),
        (TRACE.into(), PARENT.into())
    );
    assert_eq!((&fill.trace_id, &fill.parent_span_id), (&request.trace_id, &request.span_id));
    assert_eq!(request.trace_state, "", "it is for those who pass traces on");
    assert_eq!(scene.lines(1).await[0]["trace_id"], TRACE);
    // Every kind of request that goes upstream.
    let digest = &scene.blob.digest;
    for path in ["manifests/none", "tags/list", &format!("referrers/{digest}")] {
        traceparent(scene.mirror.get(&format!("/v2/team/app/{path}")), "01").answer().await;
    }
    traceparent(scene.mirror.head("/v2/team/other/manifests/none"), "01").answer().await;
    let asked = scene.upstream.asked(&On::any(""));
    assert!(asked.len() >= 5, "{}", scene.upstream.story());
    for exchange in asked {
        for name in ["traceparent", "tracestate", "baggage"] {
            assert_eq!(exchange.header(name), "", "{} {}", exchange.method, exchange.path);
        }
    }
}

#[tokio::test]
async fn a_client_that_wants_no_trace_and_chance_decide_on_who_is_traced() {
    let all = Scene::new(1000, ALL).await;
    all.pulled(traceparent(all.get(), "00")).await;
    all.pulled(all.get().header("traceparent", "00-nonsense")).await;
    let spans = all.collector.until_spans(1).await;
    assert_eq!(spans.len(), 1, "the second alone: {spans:?}");
    assert_ne!(hex(&spans[0].trace_id), TRACE);
    let lines = all.lines(2).await;
    assert!(lines[0].get("trace_id").is_none() && lines[1].get("trace_id").is_some(), "{lines:?}");

    let mut none = Scene::new(1000, "ratio: 0").await;
    none.pull().await;
    none.mirror.stop().await;
    assert_eq!(none.collector.count(&On::any("")), 0);
    assert!(none.lines(1).await[0].get("trace_id").is_none());
}

#[tokio::test]
async fn who_joins_a_fill_has_a_link_to_it() {
    let scene = Scene::new(300_000, ALL).await;
    let gate = Gate::closed();
    scene.upstream.always(blobs(), Fault::HoldAfter(100_000, gate.clone()));
    let first = scene.get().open().await;
    let second = scene.get().open().await;
    gate.open();
    assert!(first.brings(&scene.blob.bytes).await && second.brings(&scene.blob.bytes).await);
    let spans = scene.collector.until_spans(3).await;
    let fill = spans.iter().find(|span| span.name == "fill").unwrap();
    let (began, joined): (Vec<_>, Vec<_>) =
        spans.iter().filter(|s| is_request(s)).partition(|s| s.span_id == fill.parent_span_id);
    assert_eq!((began.len(), joined.len()), (1, 1), "{spans:?}");
    assert!(began[0].links.is_empty());
    let links: Vec<_> =
        joined[0].links.iter().map(|link| (&link.trace_id, &link.span_id)).collect();
    assert_eq!(links, [(&fill.trace_id, &fill.span_id)]);
    assert_eq!(said(joined[0], "pierhead.cache"), "collapsed");
}

#[tokio::test]
async fn what_fails_is_marked_and_a_client_that_errs_is_not() {
    let scene = Scene::new(300_000, ALL).await;
    scene.upstream.always(blobs(), Fault::Status(500));
    let failed = scene.get().answer().await;
    let spans = scene.collector.until_spans(2).await;
    let (request, fill) = one_of_each(&spans);
    assert_eq!(said(request, "http.response.status_code"), failed.status.to_string());
    assert_eq!(said(request, "error.type"), failed.status.to_string());
    assert_eq!(request.status.as_ref().unwrap().code, StatusCode::Error as i32);
    assert_eq!(fill.status.as_ref().unwrap().code, StatusCode::Error as i32);
    assert_eq!(said(fill, "error.type"), said(fill, "pierhead.result"));
    scene.mirror.get("/v2/UPPER/manifests/x").answer().await;
    let spans = scene.collector.until_spans(3).await;
    let wrong = spans.iter().find(|span| said(span, "http.response.status_code").starts_with('4'));
    let status = wrong.unwrap().status.clone().unwrap_or_default();
    assert_eq!(status.code, StatusCode::Unset as i32, "{wrong:?}");
}

#[tokio::test]
async fn what_has_ended_is_sent_before_the_process_ends() {
    let mut scene = Scene::new(1000, ALL).await;
    scene.pull().await;
    assert!(scene.mirror.stop().await.success());
    assert_eq!(scene.collector.spans().len(), 2);
}

#[tokio::test]
async fn a_collector_that_refuses_costs_one_line_and_no_pull() {
    let scene = Scene::new(1000, ALL).await;
    scene.collector.always(On::any(""), Fault::Status(503));
    // One batch after the other, each refused.
    for batch in 1..=3 {
        scene.pull().await;
        scene.collector.until_asked(batch, &On::any("/v1/traces")).await;
    }
    scene.mirror.until_said(1, "traces cannot be sent").await;
    assert_eq!(scene.mirror.says("traces cannot be sent"), 1);
    assert!(scene.mirror.log().contains("503 Service Unavailable"), "it says why");
    scene.collector.behave();
    let before = scene.collector.count(&On::any("/v1/traces"));
    scene.pull().await;
    scene.collector.until_asked(before + 1, &On::any("/v1/traces")).await;
    scene.mirror.until_said(1, "traces are collected again").await;
}

#[tokio::test]
async fn a_collector_that_is_dead_or_hangs_stops_nothing() {
    let mut scene = Scene::new(1000, ALL).await;
    scene.collector.always(On::any(""), Fault::HoldHead(Gate::closed()));
    scene.pull().await;
    scene.collector.until_asked(1, &On::any("/v1/traces")).await;
    for _ in 0..200 {
        scene.pull().await;
    }
    scene.mirror.signal(Signal::SIGTERM);
    assert!(scene.mirror.ended().await.success(), "it does not wait for the collector for ever");

    let mut scene = Scene::new(1000, ALL).await;
    scene.collector.stop().await;
    scene.pull().await;
    scene.mirror.until_said(1, "traces cannot be sent").await;
    scene.pull().await;
    assert!(scene.mirror.stop().await.success());
}

#[tokio::test]
async fn the_collector_is_shown_its_headers_and_nobody_else_is() {
    let scene = Scene::new(1000, "ratio: 1, headers: {authorization: Bearer collectors-own}").await;
    scene.pull().await;
    scene.collector.until_spans(2).await;
    let posted = &scene.collector.asked(&On::any("/v1/traces"))[0];
    assert_eq!(posted.header("authorization"), "Bearer collectors-own");
    assert_eq!(posted.header("content-type"), "application/x-protobuf");
    let config = scene.mirror.folder().join("pierhead.yaml").display().to_string();
    let shown = run(&["config", "show", "--config", &config]).await;
    assert!(shown.status.success(), "{shown:?}");
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(shown.contains("otlp") && !shown.contains("collectors-own"), "{shown}");
    assert!(!scene.mirror.log().contains("collectors-own"));
    assert!(
        scene.upstream.asked(&On::any("")).iter().all(|e| e.header("authorization").is_empty())
    );
}

#[tokio::test]
async fn without_a_collector_nothing_is_traced_whatever_a_client_says() {
    let upstream = Upstream::start().await;
    let blob = upstream.blob("team/app", 1, 1000);
    let mirror = before(&upstream).start().await;
    let path = format!("/v2/team/app/blobs/{}", blob.digest);
    let answer = traceparent(mirror.get(&path), "01").answer().await;
    assert!(answer.is(&blob.bytes));
    mirror.until_said(1, "\"target\":\"access\"").await;
    assert!(!mirror.log().contains("trace_id") && !mirror.log().contains(TRACE));
    assert!(upstream.asked(&On::any("")).iter().all(|e| e.header("traceparent").is_empty()));
}
