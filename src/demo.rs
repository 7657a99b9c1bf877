//! The main job where there is no network: an upstream of our own with a sample image, a mirror
//! before it, two pulls, and a table of what happened.

use std::collections::HashMap;
use std::net::TcpListener;
use std::os::fd::IntoRawFd;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, bail};
use async_trait::async_trait;
use bytes::Bytes;
use pingora::apps::{HttpServerApp, ReusedHttpStream};
use pingora::http::ResponseHeader;
use pingora::listeners::{ListenerConfig, Listeners};
use pingora::protocols::http::ServerSession;
use pingora::server::{Fds, ShutdownWatch};
use pingora::services::Service as _;
use pingora::services::listening::Service;
use serde_json::json;
use tokio::sync::watch;

use crate::config::Config;
use crate::digest::{Algorithm, Digest};
use crate::respond::{self, Sent};
use crate::run::{self, Running};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// What was asked in the demo, in order.
#[derive(Debug)]
pub struct Report(Vec<Row>);

#[derive(Debug)]
struct Row {
    pull: u8,
    what: String,
    cache: String,
    bytes: usize,
    upstream_bytes: u64,
    milliseconds: f64,
}

impl Report {
    /// For people.
    pub fn table(&self) -> String {
        use std::fmt::Write;
        let mut text = format!(
            "{:<5} {:<34} {:<22} {:>10} {:>14} {:>9}\n",
            "pull", "asked", "cache", "bytes", "from upstream", "ms"
        );
        for r in &self.0 {
            let _ = writeln!(
                text,
                "{:<5} {:<34} {:<22} {:>10} {:>14} {:>9.2}",
                r.pull, r.what, r.cache, r.bytes, r.upstream_bytes, r.milliseconds
            );
        }
        let total =
            |pull| self.0.iter().filter(|r| r.pull == pull).map(|r| r.upstream_bytes).sum::<u64>();
        let _ = writeln!(
            text,
            "\nfirst pull: {} bytes from upstream; second pull: {} bytes from upstream",
            total(1),
            total(2)
        );
        text
    }

    /// For machines.
    pub fn json(&self) -> String {
        let rows: Vec<_> = self
            .0
            .iter()
            .map(|r| {
                json!({
                    "pull": r.pull, "asked": r.what, "cache": r.cache, "bytes": r.bytes,
                    "upstream_bytes": r.upstream_bytes, "milliseconds": r.milliseconds,
                })
            })
            .collect();
        format!("{:#}\n", json!(rows))
    }
}

/// Runs the demo.
///
/// # Errors
/// Where the upstream or the mirror cannot be started, or an answer is not as it should be.
pub async fn run() -> anyhow::Result<Report> {
    let image = Arc::new(Image::generate());
    let (_stop, stopped) = watch::channel(false);
    let upstream = start_upstream(Arc::clone(&image), stopped)?;
    let folder = std::env::temp_dir().join(format!("pierhead-demo-{}", std::process::id()));
    let config = config(&upstream, &folder)?;
    let running = run::start(&config)?;
    let mut rows = Vec::new();
    for pull in [1, 2] {
        rows.extend(pull_image(&running, pull).await?);
    }
    running.stop().await;
    remove(&folder);
    Ok(Report(rows))
}

#[expect(
    clippy::disallowed_methods,
    reason = "the demo's cache folder is its own, and goes with it"
)]
fn remove(folder: &std::path::Path) {
    let _ = std::fs::remove_dir_all(folder); // nothing else can be done about a left-over
}

fn config(upstream: &str, folder: &std::path::Path) -> anyhow::Result<Config> {
    let text = format!(
        "listen: 127.0.0.1:0\nadmin: 127.0.0.1:0\ncache: {{path: {:?}, max_size: 64MiB}}\nlog: {{access: false}}\nupstreams: {{docker.io: {{endpoints: [\"{upstream}\"], prefetch: false}}}}\n",
        folder.display().to_string(),
    );
    match Config::parse("demo", &text) {
        Ok(loaded) => Ok(loaded.config),
        Err(faults) => bail!("{faults}"),
    }
}

/// Pulls as a client does: the index by tag, the manifest of one platform, its config and layers.
async fn pull_image(running: &Running, pull: u8) -> anyhow::Result<Vec<Row>> {
    let client = Client {
        base: format!("http://{}/v2/library/hello", running.addresses[0]),
        http: reqwest::Client::new(),
        running,
        pull,
    };
    let mut rows = Vec::new();
    let index = client.get(&mut rows, "manifests/latest", "index latest").await?;
    let manifest = pick(&index, "/manifests/0/digest")?;
    let manifest =
        client.get(&mut rows, &format!("manifests/{manifest}"), "manifest linux/amd64").await?;
    client
        .get(&mut rows, &format!("blobs/{}", pick(&manifest, "/config/digest")?), "config")
        .await?;
    for n in 0..2 {
        let layer = pick(&manifest, &format!("/layers/{n}/digest"))?;
        client.get(&mut rows, &format!("blobs/{layer}"), &format!("layer {}", n + 1)).await?;
    }
    Ok(rows)
}

fn pick(document: &[u8], pointer: &str) -> anyhow::Result<String> {
    let json: serde_json::Value = serde_json::from_slice(document)?;
    let text = json
        .pointer(pointer)
        .and_then(|v| v.as_str())
        .context("the sample image is not as it should be")?;
    Ok(text.to_owned())
}

struct Client<'a> {
    base: String,
    http: reqwest::Client,
    running: &'a Running,
    pull: u8,
}

impl Client<'_> {
    async fn get(&self, rows: &mut Vec<Row>, path: &str, what: &str) -> anyhow::Result<Bytes> {
        let before = self.running.mirror().metrics.upstream_bytes_total();
        let started = Instant::now();
        let response =
            self.http.get(format!("{}/{path}", self.base)).send().await?.error_for_status()?;
        let cache =
            response.headers().get("cache-status").and_then(|v| v.to_str().ok()).unwrap_or("-");
        let cache = cache.trim_start_matches("pierhead; ").to_owned();
        let body = response.bytes().await?;
        rows.push(Row {
            pull: self.pull,
            what: what.to_owned(),
            cache,
            bytes: body.len(),
            upstream_bytes: self.running.mirror().metrics.upstream_bytes_total() - before,
            milliseconds: started.elapsed().as_secs_f64() * 1e3,
        });
        Ok(body)
    }
}

/// An image of two layers for two platforms, as paths behind `/v2/library/hello/` and their bodies.
struct Image(HashMap<String, (&'static str, Bytes)>);

impl Image {
    fn generate() -> Self {
        let mut files = HashMap::new();
        let mut blob = |content: Vec<u8>, media_type: &str| {
            let digest = Digest::of(Algorithm::Sha256, &content).to_string();
            let size = content.len();
            files.insert(
                format!("blobs/{digest}"),
                ("application/octet-stream", Bytes::from(content)),
            );
            json!({"mediaType": media_type, "digest": digest, "size": size})
        };
        let layers: Vec<_> = [3_000_000, 200_000]
            .into_iter()
            .map(|size| blob(noise(size), "application/vnd.oci.image.layer.v1.tar"))
            .collect();
        let images: Vec<_> = ["amd64", "arm64"].into_iter().map(|architecture| {
            let config = json!({"architecture": architecture, "os": "linux", "rootfs": {"type": "layers", "diff_ids": [layers[0]["digest"], layers[1]["digest"]]}});
            let config = blob(config.to_string().into(), "application/vnd.oci.image.config.v1+json");
            (architecture, json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers}))
        }).collect();
        let mut manifests = Vec::new();
        for (architecture, manifest) in images {
            let bytes = Bytes::from(manifest.to_string());
            let digest = Digest::of(Algorithm::Sha256, &bytes).to_string();
            manifests.push(json!({"mediaType": MANIFEST, "digest": digest, "size": bytes.len(), "platform": {"os": "linux", "architecture": architecture}}));
            files.insert(format!("manifests/{digest}"), (MANIFEST, bytes));
        }
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests});
        files.insert("manifests/latest".to_owned(), (INDEX, index.to_string().into()));
        Self(files)
    }
}

/// Bytes that look random and are the same each time (xorshift).
fn noise(size: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64 ^ size as u64;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    })
    .flatten()
    .take(size)
    .collect()
}

fn start_upstream(image: Arc<Image>, stopped: ShutdownWatch) -> anyhow::Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").context("cannot start the demo's upstream")?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?.to_string();
    let mut listeners = Listeners::new();
    listeners.add_listener(ListenerConfig::tcp(&address));
    let mut fds = Fds::new();
    fds.add(address.clone(), listener.into_raw_fd());
    let mut service = Service::with_listeners("demo".to_owned(), listeners, Registry(image));
    let fds = Arc::new(parking_lot::Mutex::new(fds));
    tokio::spawn(async move { service.start_service(Some(fds), stopped, 1).await });
    Ok(format!("http://{address}"))
}

/// The smallest registry that a mirror can stand before.
struct Registry(Arc<Image>);

#[async_trait]
impl HttpServerApp for Registry {
    async fn process_new_http(
        self: &Arc<Self>,
        mut session: ServerSession,
        _: &ShutdownWatch,
    ) -> Option<ReusedHttpStream> {
        if !matches!(session.read_request().await, Ok(true)) {
            return None;
        }
        let path =
            session.req_header().uri.path().trim_start_matches("/v2/library/hello/").to_owned();
        let (status, kind, body) = match self.0.0.get(&path) {
            Some((kind, body)) => (200, *kind, body.clone()),
            None => (404, "application/json", Bytes::from_static(br#"{"errors":[]}"#)),
        };
        let mut head = ResponseHeader::build(status, Some(3)).ok()?;
        head.insert_header("Content-Type", kind).ok()?;
        head.insert_header("Content-Length", body.len()).ok()?;
        if path.starts_with("manifests/") {
            head.insert_header(
                "Docker-Content-Digest",
                Digest::of(Algorithm::Sha256, &body).to_string(),
            )
            .ok()?;
        }
        session.write_response_header(Box::new(head)).await.ok()?;
        session.write_response_body(body, true).await.ok()?;
        respond::finish(session, &Sent::default()).await
    }
}
