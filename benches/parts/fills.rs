//! The watermark: how a download hands what has come to those who follow it.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput};
use pierhead::config;
use pierhead::digest::{Algorithm, Digest};
use pierhead::fill::{Fills, Follower, Why};
use pierhead::filling;
use pierhead::keeper::Reason;
use pierhead::metrics::Metrics;
use pierhead::name::Repository;
use pierhead::store::{Place, Store};
use pierhead::upstream::Upstream;
use tokio::runtime::Runtime;

use crate::held;

/// Everything that a download takes, with an upstream on loopback that has one blob.
struct World {
    fills: Arc<Fills>,
    store: Arc<Store>,
    upstream: Arc<Upstream>,
    place: Place,
    digest: Digest,
    size: u64,
    _folder: tempfile::TempDir,
}

impl World {
    fn new(size: usize) -> Self {
        let content = vec![0x5a; size];
        let digest = Digest::of(Algorithm::Sha256, &content);
        let metrics = Arc::new(Metrics::new().unwrap());
        let folder = tempfile::tempdir().unwrap();
        let store = held::empty(&folder, &metrics);
        let settings =
            config::Upstream { endpoints: vec![serve(content)], ..config::Upstream::default() };
        Self {
            fills: Arc::new(Fills::new(Arc::clone(&store), Arc::clone(&metrics))),
            store,
            upstream: Arc::new(Upstream::new("bench.test", &settings, metrics).unwrap()),
            place: Place {
                upstream: "bench.test".into(),
                repository: Repository::parse("a/b").unwrap(),
            },
            digest,
            size: size as u64,
            _folder: folder,
        }
    }

    /// One download with so many followers: from its start until all of them have seen the last byte.
    async fn fill(&self, followers: usize) -> Duration {
        let began = Instant::now();
        let tasks: Vec<_> = (0..followers)
            .map(|_| {
                let (follower, _) = filling::join_or_start(
                    &self.fills,
                    &self.upstream,
                    &self.place,
                    self.digest,
                    (Why::Client, None),
                );
                tokio::spawn(follow(follower, self.size))
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        let took = began.elapsed();
        self.forget().await;
        took
    }

    /// Waits until it is kept, and removes it, so that the next one is a miss again.
    async fn forget(&self) {
        while self.fills.count() > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert!(self.store.keeper().delete(&self.digest, Reason::Purged), "it was kept");
    }
}

/// Goes along with the watermark, as whoever sends does.
async fn follow(mut follower: Follower, size: u64) {
    let mut position = 0;
    while position < size {
        position = follower.ready(position).await.unwrap();
    }
}

pub(crate) fn watermark(c: &mut Criterion) {
    let _ = rustls::crypto::ring::default_provider().install_default(); // the client wants one
    let runtime = Runtime::new().unwrap();
    let mut group = c.benchmark_group("fill");
    group.sample_size(10);
    for size in [1 << 20, 16 << 20] {
        let world = World::new(size);
        group.throughput(Throughput::Bytes(size as u64));
        for followers in [1, 16] {
            let name = BenchmarkId::new(format!("{} MiB, followers", size >> 20), followers);
            group.bench_function(name, |b| {
                b.to_async(&runtime).iter_custom(|times| {
                    let world = &world;
                    async move {
                        let mut took = Duration::ZERO;
                        for _ in 0..times {
                            took += world.fill(followers).await;
                        }
                        took
                    }
                });
            });
        }
    }
}

/// An upstream that answers every request with the same bytes; lives as long as the bench.
fn serve(content: Vec<u8>) -> url::Url {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let content = Arc::new(content);
    std::thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let content = Arc::clone(&content);
            std::thread::spawn(move || answer(&client, &content));
        }
    });
    format!("http://{address}").parse().unwrap()
}

/// Until the client leaves.
fn answer(mut client: &TcpStream, content: &[u8]) {
    let mut lines = BufReader::new(client).lines();
    // The head ends with an empty line; what a request says does not matter here.
    while lines.by_ref().map_while(Result::ok).take_while(|line| !line.is_empty()).count() > 0 {
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", content.len());
        if client.write_all(head.as_bytes()).and_then(|()| client.write_all(content)).is_err() {
            return;
        }
    }
}
