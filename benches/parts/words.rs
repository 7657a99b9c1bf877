//! Understanding: a request's target, names, digests, ranges; and hashing, which is what a miss costs.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput};
use http::Method;
use pierhead::digest::{Algorithm, Digest, Hasher};
use pierhead::name::{Reference, Repository};
use pierhead::range::Ranges;
use pierhead::route::Table;

/// The first of the blobs that are asked for here.
const DIGEST: &str = "sha256:6c3c624b58dbbcd3c0dd82b4c53f04194d1247c6eebdaab7c610cf7d66709b3b";

/// A table as large as the built-in configuration's, with names that live here.
fn table() -> Table {
    let mut table = Table::new(Some("docker.io"));
    for (name, _, aliases) in pierhead::config::WELL_KNOWN {
        let aliases: Vec<String> = aliases.iter().map(ToString::to_string).collect();
        table.add(name, &aliases, &[]);
    }
    table.host(&["team/**".to_owned()]);
    table
}

pub(crate) fn routes(c: &mut Criterion) {
    let table = table();
    let mut group = c.benchmark_group("route");
    let blob = format!("/v2/library/alpine/blobs/{DIGEST}");
    let prefixed = format!("/v2/ghcr.io/org/team/app/blobs/{DIGEST}");
    let encoded = format!("/v2/library%2Falpine/blobs/{DIGEST}");
    for (name, path, query) in [
        ("ping", "/v2/", None),
        ("manifest by tag", "/v2/library/alpine/manifests/3.20", None),
        ("blob", blob.as_str(), None),
        ("blob, ns", blob.as_str(), Some("ns=docker.io")),
        ("blob, upstream in the path", prefixed.as_str(), None),
        ("blob, percent-encoded", encoded.as_str(), None),
        ("hosted", "/v2/team/app/manifests/latest", None),
    ] {
        group.bench_function(name, |b| {
            b.iter(|| {
                let host = Some("mirror.test:5000");
                table.route(&Method::GET, black_box(path), query, host).unwrap()
            });
        });
    }
    let unknown = format!("/v2/library/alpine/blubs/{DIGEST}");
    group.bench_function("refused", |b| {
        b.iter(|| table.route(&Method::GET, black_box(&unknown), None, None).unwrap_err());
    });
}

pub(crate) fn names(c: &mut Criterion) {
    let mut group = c.benchmark_group("name");
    let deep = ["part"; 40].join("/");
    for name in ["library/alpine", "organisation/team/project/service", &deep] {
        group.bench_with_input(BenchmarkId::new("repository", name.len()), name, |b, name| {
            b.iter(|| Repository::parse(black_box(name)).unwrap());
        });
    }
    group.bench_function("tag", |b| b.iter(|| Reference::parse(black_box("3.20.1-r0")).unwrap()));
}

pub(crate) fn digests(c: &mut Criterion) {
    let mut group = c.benchmark_group("digest");
    let long = Digest::of(Algorithm::Sha512, b"pierhead").to_string();
    for (name, text) in [("sha256", DIGEST), ("sha512", &long)] {
        group.bench_function(format!("parse {name}"), |b| {
            b.iter(|| Digest::parse(black_box(text)).unwrap());
        });
    }
    let digest = Digest::parse(DIGEST).unwrap();
    group.bench_function("write sha256", |b| b.iter(|| black_box(&digest).to_string()));
}

pub(crate) fn ranges(c: &mut Criterion) {
    let mut group = c.benchmark_group("range");
    for count in [1_u64, 4, 16] {
        let spans: Vec<String> =
            (0..count).map(|n| format!("{}-{}", n * 9_000, n * 9_000 + 999)).collect();
        let header = format!("bytes={}", spans.join(","));
        group.bench_with_input(BenchmarkId::from_parameter(count), &header, |b, header| {
            b.iter(|| Ranges::parse(black_box(header)).unwrap().unwrap().select(1 << 30).unwrap());
        });
    }
}

pub(crate) fn hashing(c: &mut Criterion) {
    let mut group = c.benchmark_group("hash");
    for size in [4 << 10, 64 << 10, 1 << 20] {
        let content = vec![0x5a_u8; size];
        group.throughput(Throughput::Bytes(size as u64));
        group.bench_with_input(BenchmarkId::new("sha256", size), &content, |b, content| {
            b.iter(|| {
                let mut hasher = Hasher::new(Algorithm::Sha256);
                hasher.update(black_box(content));
                hasher.finish()
            });
        });
    }
}
