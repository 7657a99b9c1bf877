//! Does the access order pay, and does it stay cheap? Prints tables; `cargo bench --bench eviction`.
//!
//! 1. Hit ratio of `pierhead::index` on a Zipf trace with scans, against plain LRU: the same trace,
//!    the same room (a tenth of all bytes), deterministic.
//! 2. A start over a folder with many objects: `PIERHEAD_OBJECTS=1000000`, 100000 without it. The
//!    files are sparse. Time until `/readyz`, time until the first hit, median latency of hits, and
//!    resident memory per object, beside those of a thousand objects.
//!
//! Figures of the last run, with machine and date, are in `benches/README.md`.

#![expect(clippy::print_stdout, reason = "a bench prints its figures")]
#![expect(clippy::disallowed_methods, reason = "a bench makes its own files and blocks nobody")]
#![expect(clippy::unwrap_used, reason = "a bench that fails shall say where")]

use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use pierhead::digest::{Algorithm, Digest};
use pierhead::index::{Index, footprint};

fn main() {
    let began = Instant::now();
    hit_ratios();
    let many = std::env::var("PIERHEAD_OBJECTS").ok().and_then(|n| n.parse().ok());
    starts(many.unwrap_or(100_000));
    println!("\n({:.0} s)", began.elapsed().as_secs_f64());
}

/// xorshift64*, always the same.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    #[expect(clippy::cast_precision_loss, reason = "a chance needs no more")]
    fn chance(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

const OBJECTS: usize = 20_000;

struct Trace {
    sizes: Vec<u64>,
    requests: Vec<u32>,
}

/// Zipf over 20 000 objects of 4 KiB to 64 MiB, and every 20 000 requests a scan over `scan`
/// objects that nobody asks for again.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "a trace is a rough thing"
)]
fn trace(skew: f64, scan: usize) -> Trace {
    let mut dice = Dice(0x5EED);
    let mut size = || (4096.0 * 16384_f64.powf(dice.chance())) as u64;
    let mut sizes: Vec<u64> = (0..OBJECTS).map(|_| size()).collect();
    let weights: Vec<f64> = (1..=OBJECTS).map(|rank| (rank as f64).powf(-skew)).collect();
    let all: f64 = weights.iter().sum();
    let mut so_far = 0.0;
    let steps: Vec<f64> = weights
        .iter()
        .map(|w| {
            so_far += w / all;
            so_far
        })
        .collect();
    let mut requests = Vec::new();
    let mut dice = Dice(0xD1CE);
    for round in 0..20 {
        for _ in 0..20_000 {
            let at = dice.chance();
            requests.push(steps.partition_point(|step| *step < at).min(OBJECTS - 1) as u32);
        }
        for n in 0..scan {
            requests.push((OBJECTS + round * scan + n) as u32);
        }
    }
    let mut dice = Dice(0xCA7);
    sizes.extend((0..20 * scan).map(|_| (4096.0 * 16384_f64.powf(dice.chance())) as u64));
    Trace { sizes, requests }
}

#[derive(Default)]
struct Score {
    hits: u64,
    bytes: u64,
}

fn with_index(trace: &Trace, digests: &[Digest], room: u64) -> Score {
    let mut index = Index::new(room);
    let mut score = Score::default();
    for (time, request) in (0..).zip(&trace.requests) {
        let (digest, bytes) = (&digests[*request as usize], trace.sizes[*request as usize]);
        if index.contains(digest) {
            score.hits += 1;
            score.bytes += bytes;
            index.touch(digest, time);
            continue;
        }
        while index.on_disk() + footprint(bytes) > room {
            let (oldest, ..) = index.candidates(1)[0];
            index.remove(&oldest);
        }
        index.insert(digest, bytes, time, false);
    }
    score
}

fn with_lru(trace: &Trace, room: u64) -> Score {
    let (mut order, mut held) = (BTreeMap::<u32, u32>::new(), HashMap::<u32, u32>::new());
    let (mut used, mut score) = (0, Score::default());
    for (time, request) in (0..).zip(&trace.requests) {
        let bytes = trace.sizes[*request as usize];
        if let Some(before) = held.insert(*request, time) {
            score.hits += 1;
            score.bytes += bytes;
            order.remove(&before);
        } else {
            while used + footprint(bytes) > room {
                let (_, oldest) = order.pop_first().unwrap();
                held.remove(&oldest);
                used -= footprint(trace.sizes[oldest as usize]);
            }
            used += footprint(bytes);
        }
        order.insert(time, *request);
    }
    score
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn hit_ratios() {
    println!("hit ratio, room for a tenth of all bytes: objects / bytes\n");
    println!("{:<28} {:>17} {:>17}", "trace", "pierhead", "plain LRU");
    for (skew, scan) in [(0.7, 0), (0.7, 2000), (0.9, 0), (0.9, 2000), (0.9, 5000), (1.1, 2000)] {
        let trace = trace(skew, scan);
        let digests: Vec<_> = (0..trace.sizes.len())
            .map(|n| Digest::of(Algorithm::Sha256, &n.to_le_bytes()))
            .collect();
        let room = trace.sizes[..OBJECTS].iter().sum::<u64>() / 10;
        let wanted = trace.requests.len() as f64;
        let bytes: u64 = trace.requests.iter().map(|r| trace.sizes[*r as usize]).sum();
        let show = |s: &Score| {
            format!(
                "{:.1} % / {:.1} %",
                100.0 * s.hits as f64 / wanted,
                100.0 * s.bytes as f64 / bytes as f64
            )
        };
        let (ours, lru) = (with_index(&trace, &digests, room), with_lru(&trace, room));
        let name = format!("Zipf {skew}, scans of {scan}");
        println!("{name:<28} {:>17} {:>17}", show(&ours), show(&lru));
        assert!(ours.hits >= lru.hits, "worse than plain LRU");
    }
}

/// A running mirror over a folder.
struct Mirror {
    child: Child,
    pull: String,
    admin: String,
    /// From the start of the process until it said where it listens.
    bound: Duration,
    began: Instant,
}

impl Mirror {
    fn start(folder: &Path) -> Self {
        let config = folder.join("pierhead.yaml");
        let text = format!(
            "listen: 127.0.0.1:0\nadmin: 127.0.0.1:0\ncache: {{path: {}, max_size: 10TiB, min_free: 0%, scrub_rate: 0}}\n\
             default_upstream: bench.test\nupstreams: {{bench.test: {{endpoints: [\"http://127.0.0.1:9\"], tag_ttl: 1h}}}}\n\
             log: {{access: false}}\n",
            folder.join("cache").display()
        );
        std::fs::write(&config, text).unwrap();
        let began = Instant::now();
        let mut child = Command::new(env!("CARGO_BIN_EXE_pierhead"))
            .args(["serve", "--config"])
            .arg(&config)
            .env_remove("PIERHEAD_OBJECTS") // no key of the configuration
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (mut pull, mut admin) = (String::new(), String::new());
        for line in lines.map_while(Result::ok) {
            let mut words = line.split_whitespace();
            match (words.next(), words.next()) {
                (Some("mirror"), Some(url)) => {
                    url.trim_start_matches("http://").clone_into(&mut pull);
                }
                (Some("admin"), Some(url)) => {
                    url.trim_start_matches("http://").clone_into(&mut admin);
                }
                _ => {}
            }
            if !pull.is_empty() && !admin.is_empty() {
                break;
            }
        }
        Self { child, pull, admin, bound: began.elapsed(), began }
    }

    fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|l| l.starts_with("VmRSS")).unwrap();
        1024 * line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Asks over a connection that stays, and reads a body of a told length.
fn get(stream: &mut TcpStream, path: &str) -> (u16, Vec<u8>) {
    write!(stream, "GET {path} HTTP/1.1\r\nHost: bench\r\n\r\n").unwrap();
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
    let length = head.lines().find_map(|l| l.strip_prefix("content-length: ")).unwrap();
    let mut body = vec![0; length.parse().unwrap()];
    stream.read_exact(&mut body).unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body)
}

struct Figures {
    ready: Duration,
    first_hit: Duration,
    learned: Duration,
    small: Duration,
    large: Duration,
    resident: u64,
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn starts(many: usize) {
    println!("\na start over many objects (sparse files)\n");
    let folder = tempfile::tempdir().unwrap();
    let wanted = seed(folder.path());
    let few = measure(folder.path(), &wanted, 1000);
    let many_figures = measure(folder.path(), &wanted, many);
    println!("{:<34} {:>12} {:>12}", "objects", 1000, many);
    let row = |name: &str, value: fn(&Figures) -> Duration| {
        let show = |f: &Figures| format!("{:.3} ms", value(f).as_secs_f64() * 1e3);
        println!("{name:<34} {:>12} {:>12}", show(&few), show(&many_figures));
    };
    row("until /readyz answers 200", |f| f.ready);
    row("until the first hit is whole", |f| f.first_hit);
    row("until the folder is known", |f| f.learned);
    row("median hit, 4 KB, from memory", |f| f.small);
    row("median hit, 1 MB, from a file", |f| f.large);
    let each = (many_figures.resident.saturating_sub(few.resident)) as f64 / (many - 1000) as f64;
    println!(
        "{:<34} {:>12} {:>12}",
        "resident memory, MiB",
        few.resident >> 20,
        many_figures.resident >> 20
    );
    println!("{:<34} {:>25}", "resident bytes for each object", format!("{each:.0}"));
}

/// Puts two real blobs with their links into the folder, as a mirror would.
fn seed(folder: &Path) -> [(String, Vec<u8>); 2] {
    let mut dice = Dice(7);
    [4_000, 1_000_000].map(|size| {
        let content: Vec<u8> =
            std::iter::repeat_with(|| dice.next().to_le_bytes()[0]).take(size).collect();
        let digest = Digest::of(Algorithm::Sha256, &content);
        let hex = digest.hex();
        let blob = folder.join("cache/blobs/sha256").join(&hex[..2]).join(&hex);
        let link = folder.join("cache/repos/bench.test/a/b/_links/sha256").join(&hex);
        for (path, bytes) in [(blob, content.as_slice()), (link, b"{}\na3a6bf43\n".as_slice())] {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        }
        (format!("/v2/a/b/blobs/{digest}"), content)
    })
}

fn measure(folder: &Path, wanted: &[(String, Vec<u8>); 2], objects: usize) -> Figures {
    let root = folder.join("cache/blobs/sha256");
    for n in 0..objects {
        let hex = Digest::of(Algorithm::Sha256, &(n as u64).to_le_bytes()).hex();
        let file = root.join(&hex[..2]).join(&hex);
        if n < 256 * 64 {
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        }
        if let Ok(file) = std::fs::File::create_new(file) {
            file.set_len(200_000).unwrap();
        }
    }
    let mirror = Mirror::start(folder);
    let mut admin = TcpStream::connect(&mirror.admin).unwrap();
    while get(&mut admin, "/readyz").0 != 200 {}
    let ready = mirror.began.elapsed();
    let mut pull = TcpStream::connect(&mirror.pull).unwrap();
    pull.set_nodelay(true).unwrap();
    for (path, content) in wanted {
        assert!(get(&mut pull, path) == (200, content.clone()), "{path} is a hit");
    }
    let first_hit = mirror.began.elapsed();
    while !String::from_utf8_lossy(&get(&mut admin, "/api/status").1).contains("\"ready\":true") {
        std::thread::sleep(Duration::from_millis(5));
    }
    let learned = mirror.began.elapsed();
    let [small, large] = wanted.each_ref().map(|(path, _)| {
        let mut times: Vec<_> = (0..3000)
            .map(|_| {
                let began = Instant::now();
                get(&mut pull, path);
                began.elapsed()
            })
            .collect();
        times.sort_unstable();
        times[times.len() / 2]
    });
    assert!(mirror.bound <= ready);
    Figures { ready, first_hit, learned, small, large, resident: mirror.resident() }
}
