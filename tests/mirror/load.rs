//! Fifty clients pull while everything changes: ten reloads, three upgrades, a new certificate. None
//! of them notices.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;

use crate::support::client::{Ask, Lasting};
use crate::support::image;
use crate::support::mirror::{Mirror, before};
use crate::support::secure::{Authority, Client};
use crate::support::soon;
use crate::support::upstream::Upstream;

/// What is asked for, and what has to come.
type Wanted = Vec<(String, Bytes)>;

/// What has become of the requests.
#[derive(Default)]
struct Counts {
    requests: AtomicU64,
    bytes: AtomicU64,
    connections: AtomicU64,
    /// On a connection that was open before: it was closed before a byte of the answer came, and the
    /// request was sent again, as HTTP has it and every client does.
    again: AtomicU64,
    failed: Mutex<Vec<String>>,
}

impl Counts {
    fn note(&self, path: &str, wanted: &Bytes, outcome: Result<(u16, Bytes), String>) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        match outcome {
            Ok((200, body)) if body == *wanted => {
                self.bytes.fetch_add(body.len() as u64, Ordering::Relaxed);
            }
            Ok((status, body)) => {
                self.failed.lock().push(format!("{path}: {status}, {} bytes", body.len()));
            }
            Err(error) => self.failed.lock().push(format!("{path}: {error}")),
        }
    }

    fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }
}

/// How a client connects.
#[derive(Clone)]
enum Kind {
    /// One connection for as long as the mirror keeps it.
    Lasting(SocketAddr),
    /// A connection for each request.
    Fresh(SocketAddr),
    /// The same with TLS.
    Secure(SocketAddr, Client),
}

async fn pull(
    kind: Kind,
    seed: usize,
    wanted: Arc<Wanted>,
    counts: Arc<Counts>,
    stop: Arc<AtomicBool>,
) {
    let mut open: Option<Lasting> = None;
    for turn in 0.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let (path, bytes) = &wanted[(seed * 7 + turn * 13) % wanted.len()];
        let outcome = match &kind {
            Kind::Lasting(address) => lasting(&mut open, *address, path, &counts).await,
            Kind::Fresh(address) => {
                counts.connections.fetch_add(1, Ordering::Relaxed);
                let reading = Ask::new(*address, hyper::Method::GET, path).try_answer().await;
                reading.map(|answer| (answer.status, answer.body))
            }
            Kind::Secure(address, client) => {
                counts.connections.fetch_add(1, Ordering::Relaxed);
                client.get(*address, path, &[]).await
            }
        };
        counts.note(path, bytes, outcome);
    }
}

async fn lasting(
    open: &mut Option<Lasting>,
    address: SocketAddr,
    path: &str,
    counts: &Counts,
) -> Result<(u16, Bytes), String> {
    if let Some(connection) = open {
        if !connection.is_over().await {
            match connection.get(path).await {
                Err(error)
                    if error.contains("before message completed") || error.contains("canceled") =>
                {
                    counts.again.fetch_add(1, Ordering::Relaxed);
                }
                outcome => return outcome,
            }
        }
        *open = None;
    }
    counts.connections.fetch_add(1, Ordering::Relaxed);
    open.insert(Lasting::connect(address).await).get(path).await
}

/// Where the mirror listens with TLS: the second address in its log.
fn secure_address(mirror: &Mirror) -> SocketAddr {
    let log = mirror.log();
    let line = log.lines().find(|line| line.contains("\"serving\"")).unwrap();
    let line: serde_json::Value = serde_json::from_str(line).unwrap();
    let text = line["addresses"].as_str().unwrap().trim_matches(['[', ']']);
    text.split(", ").nth(1).unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_reloads_three_upgrades_and_a_new_certificate_under_50_clients_break_nothing() {
    let (upstream, authority) = (Upstream::start().await, Authority::new());
    let image = image::oci(1).build();
    upstream.push("team/app", "v1", &image);
    let mut wanted: Wanted = (10..40)
        .map(|seed| {
            let blob = upstream.blob("team/app", seed, 20_000 * (seed as usize % 12 + 1));
            (format!("/v2/team/app/blobs/{}", blob.digest), blob.bytes)
        })
        .collect();
    for _ in 0..10 {
        wanted.push(("/v2/team/app/manifests/v1".to_owned(), image.manifest.bytes.clone()));
    }
    let setup = before(&upstream).own_program().cache("max_size: 3MiB").with("tag_ttl: 10s");
    let pair = authority.issue(setup.folder(), "mirror", &["localhost", "127.0.0.1"]);
    let (cert, key) = (pair.cert.display(), pair.key.display());
    let tls = format!("{{address: '127.0.0.1:0', tls: {{cert: {cert}, key: {key}}}}}");
    let mut mirror = setup.listen(&format!("[127.0.0.1:0, {tls}]")).start().await;
    mirror.until_said(1, "\"serving\"").await;
    let (plain, secure) = (mirror.address(), secure_address(&mirror));
    let client = authority.client(None, &["http/1.1"]);

    let (wanted, counts, stop) =
        (Arc::new(wanted), Arc::new(Counts::default()), Arc::new(AtomicBool::new(false)));
    let clients: Vec<_> = (0..50)
        .map(|number| {
            let kind = match number % 5 {
                0 => Kind::Secure(secure, client.clone()),
                1 | 2 => Kind::Fresh(plain),
                _ => Kind::Lasting(plain),
            };
            let (wanted, counts, stop) =
                (Arc::clone(&wanted), Arc::clone(&counts), Arc::clone(&stop));
            tokio::spawn(pull(kind, number, wanted, counts, stop))
        })
        .collect();
    let some_more = async || {
        let from = counts.requests();
        soon("more requests", async {
            while counts.requests() < from + 150 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    };
    some_more().await;
    let (mut reloads, mut upgrades) = (0, 0);
    for round in 0..10 {
        let ttl = format!("tag_ttl: {}s\n    deny: [other/x{round}]", round % 3);
        assert!(mirror.reload(|text| without_deny(&text).replace("tag_ttl: 10s", &ttl)).await);
        reloads += 1;
        some_more().await;
        if round % 3 == 2 {
            let old = mirror.upgrade().await;
            upgrades += 1;
            some_more().await;
            mirror.until_gone(old).await;
        }
        if round == 4 {
            let new = authority.issue(mirror.folder(), "new", &["localhost", "127.0.0.1"]);
            std::fs::rename(&new.cert, &pair.cert).unwrap();
            std::fs::rename(&new.key, &pair.key).unwrap();
            mirror.until_said(1, "new certificates are in force").await;
        }
    }
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        soon("the end of a client", client).await.expect("a client that does not give up");
    }
    let failed = counts.failed.lock();
    eprintln!(
        "{} requests over {} connections, {} bytes; {reloads} reloads, {upgrades} upgrades, 1 new certificate: {} failed, {} sent again",
        counts.requests(),
        counts.connections.load(Ordering::Relaxed),
        counts.bytes.load(Ordering::Relaxed),
        failed.len(),
        counts.again.load(Ordering::Relaxed),
    );
    assert!(failed.is_empty(), "{failed:?}");
    mirror.check_store();
}

fn without_deny(text: &str) -> String {
    let lines = text.lines().filter(|line| !line.contains("deny: [other"));
    let lines = lines.map(|line| if line.contains("tag_ttl:") { "    tag_ttl: 10s" } else { line });
    lines.collect::<Vec<_>>().join("\n") + "\n"
}
