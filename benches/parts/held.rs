//! Looking for what is held: in the index, which knows all of it, and in memory.

use std::hint::black_box;
use std::sync::Arc;

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion};
use futures_util::FutureExt as _;
use pierhead::config::units::Free;
use pierhead::digest::{Algorithm, Digest};
use pierhead::disk::Disk;
use pierhead::index::Index;
use pierhead::keeper::Bounds;
use pierhead::limits::SMALL_BYTES_MAX;
use pierhead::metrics::Metrics;
use pierhead::name::Repository;
use pierhead::store::{Link, Place, Store};
use tokio::runtime::Runtime;

/// Digests that are not alike.
fn digests(count: usize) -> Vec<Digest> {
    (0..count).map(|n| Digest::of(Algorithm::Sha256, &n.to_le_bytes())).collect()
}

pub(crate) fn index(c: &mut Criterion) {
    let mut group = c.benchmark_group("index");
    for count in [1_000, 100_000] {
        let digests = digests(count);
        let mut index = Index::new(u64::MAX);
        for digest in &digests {
            index.insert(digest, 200_000, 1, false);
        }
        let mut next = digests.iter().cycle().step_by(7919);
        group.bench_function(BenchmarkId::new("look and touch", count), |b| {
            b.iter(|| {
                let digest = next.next().unwrap();
                assert!(index.contains(black_box(digest)));
                index.touch(digest, 2);
            });
        });
    }
}

/// A store over a folder of its own, with nothing in it.
pub(crate) fn empty(folder: &tempfile::TempDir, metrics: &Arc<Metrics>) -> Arc<Store> {
    // However full the disk of this machine may be.
    let bounds = Bounds { max_size: 1 << 30, min_free: Free::percent(0), max_age: None };
    let disk = Disk::open(folder.path()).unwrap();
    let store = Arc::new(Store::new(disk, 64 << 20, bounds, Arc::clone(metrics)));
    store.keeper().scan();
    store
}

pub(crate) fn store(c: &mut Criterion) {
    let runtime = Runtime::new().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let store = empty(&folder, &Arc::new(Metrics::new().unwrap()));
    let repository = Repository::parse("library/alpine").unwrap();
    let place = Place { upstream: "docker.io".into(), repository };
    let mut group = c.benchmark_group("store");
    for (name, size) in [("small", 4096), ("large", SMALL_BYTES_MAX + 1)] {
        let content = Bytes::from(vec![0x5a; usize::try_from(size).unwrap()]);
        let digest = Digest::of(Algorithm::Sha256, &content);
        runtime.block_on(async {
            store.put(digest, content).await.unwrap();
            store.set_link(&place, &digest, Link::default()).await;
            store.find(digest).await.unwrap().unwrap();
        });
        group.bench_function(format!("hit, {name}"), |b| {
            b.iter(|| {
                // Neither waits where both are in memory, as they are for what was just asked for.
                let link = store.link(&place, black_box(&digest)).now_or_never();
                assert!(link.unwrap().is_some());
                store.find(digest).now_or_never().unwrap().unwrap().unwrap()
            });
        });
    }
    let absent = Digest::of(Algorithm::Sha256, b"absent");
    group.bench_function("not in memory", |b| {
        b.iter(|| assert!(store.find_in_memory(black_box(&absent)).is_none()));
    });
}
