//! From what was found to the head of its answer.

use std::hint::black_box;
use std::time::Instant;

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion};
use futures_util::FutureExt as _;
use pierhead::answer::{self, Conditions};
use pierhead::blobs::Blob;
use pierhead::cache::Cache;
use pierhead::digest::{Algorithm, Digest};
use pierhead::hot::{self, Key, Prepared};
use pierhead::manifests::Found;
use pierhead::media::OCI_INDEX;
use pierhead::metrics::Metrics;
use pierhead::store::Content;

fn found(content: &Bytes) -> Found {
    Found {
        digest: Digest::of(Algorithm::Sha256, content),
        media_type: OCI_INDEX.into(),
        size: content.len() as u64,
        content: Some(Content::Small(content.clone())),
        cache: Cache::Hit,
    }
}

pub(crate) fn answers(c: &mut Criterion) {
    let mut group = c.benchmark_group("head of a hit");
    let content = Bytes::from_static(&[0x5a; 4096]);
    let digest = Digest::of(Algorithm::Sha256, &content);
    let manifest = found(&content);
    let conditions = Conditions::default();
    group.bench_function("manifest", |b| {
        b.iter(|| answer::manifest(black_box(manifest.clone()), &conditions));
    });
    let range = |text: &str| Conditions { range: Some(text.to_owned()), ..Conditions::default() };
    let same = Conditions { if_none_match: Some(format!("\"{digest}\"")), ..Conditions::default() };
    for (name, conditions) in [
        ("blob", Conditions::default()),
        ("blob, range", range("bytes=1000-1999")),
        ("blob, 3 ranges", range("bytes=0-9,100-109,1000-1009")),
        ("blob, not modified", same),
    ] {
        group.bench_function(name, |b| {
            b.iter(|| {
                let blob = Blob::Held(Content::Small(content.clone()));
                // What is held is answered without waiting.
                let ready = answer::blob(black_box(blob), &digest, &conditions).now_or_never();
                ready.unwrap().unwrap()
            });
        });
    }
}

/// The short way: a ready answer is found, and written as it goes on the wire.
pub(crate) fn ready(c: &mut Criterion) {
    let mut group = c.benchmark_group("ready answer");
    let metrics = Metrics::new().unwrap();
    for size in [1 << 10, hot::BODY_BYTES_MAX] {
        let body = Bytes::from(vec![0x5a; size]);
        let headers = answer::manifest(found(&body), &Conditions::default()).headers;
        let target = format!("/v2/library/alpine/manifests/{}", found(&body).digest);
        let key = Key { mirror: 0, host: b"mirror.test:5000", target: target.as_bytes() };
        let now = Instant::now();
        let counted = ["GET", "HEAD"]
            .map(|method| metrics.counted("docker.io", "manifest", method, 200, "hit"));
        let repository = "library/alpine".to_owned();
        let prepared =
            Prepared::new(&headers, body, counted, "docker.io".into(), repository, "manifest");
        hot::put(&key, prepared, now);
        let mut wire = Vec::new();
        group.bench_function(BenchmarkId::from_parameter(size), |b| {
            b.iter(|| {
                let prepared = hot::get(black_box(&key), now).unwrap();
                wire.clear();
                prepared.write(&mut wire, false, true);
                wire.len()
            });
        });
    }
}
