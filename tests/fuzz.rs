//! The fuzz targets without a fuzzer: on a stable compiler, over the corpora under `fuzz/corpus` and
//! what becomes of them by chance.
//!
//! A plain `cargo test` tries some thousand inputs, always the same. `FUZZ_SECONDS=60` tries for so long with each
//! target, from another seed each time (`FUZZ_SEED` names one). What breaks a promise is printed, and
//! belongs into the corpus once it is mended.

#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test that reads its corpora, cannot go on without them, and tells what it found"
)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use pierhead::fuzz::{TARGETS, Target};

/// Inputs tried with each target where no time is given.
const TRIES: u64 = 3_000;

/// The longest input.
const BYTES_MAX: usize = 16 * 1024;

/// Words that parsers of ours look for.
const WORDS: [&str; 40] = [
    "/",
    "..",
    "%2f",
    "%00",
    "\r\n",
    "\n",
    ":",
    "=",
    ",",
    "-",
    "\"",
    "\\",
    "{",
    "}",
    "[",
    "]",
    "null",
    "18446744073709551615",
    "-1",
    "0",
    "sha256:",
    "sha512:",
    "bytes=",
    "bytes 7-9/10",
    "Bearer realm=\"https://",
    "Basic ",
    "ns=",
    "_catalog",
    "/v2/",
    "manifests",
    "blobs/uploads/",
    "Content-Length: 5\r\n",
    "Transfer-Encoding: chunked\r\n",
    "Host: a\r\n",
    "library",
    "mediaType",
    "schemaVersion",
    "upstreams:",
    "  ",
    "é",
];

/// A generator that is the same everywhere (xorshift64*).
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end.max(1) as u64).unwrap()
    }
}

fn corpus(name: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
    let mut files: Vec<_> =
        std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 5, "{} is too small a corpus", folder.display());
    files.iter().map(|file| std::fs::read(file).unwrap()).collect()
}

/// One input from another: some bytes changed, cut, doubled, taken from elsewhere.
fn mutated(chance: &mut Chance, corpus: &[Vec<u8>]) -> Vec<u8> {
    let mut data = corpus[chance.below(corpus.len())].clone();
    for _ in 0..=chance.below(4) {
        let place = chance.below(data.len() + 1);
        let end = (place + 1 + chance.below(8)).min(data.len());
        match chance.below(7) {
            0 if place < data.len() => data[place] ^= 1 << chance.below(8),
            1 if place < data.len() => data[place] = u8::try_from(chance.below(256)).unwrap(),
            2 => drop(data.drain(place.min(end)..end)),
            3 => drop(data.splice(place..place, WORDS[chance.below(WORDS.len())].bytes())),
            4 => data.truncate(place),
            5 => {
                let other = &corpus[chance.below(corpus.len())];
                let from = chance.below(other.len() + 1);
                let piece = &other[from..(from + 1 + chance.below(64)).min(other.len())];
                drop(data.splice(place..place, piece.iter().copied()));
            }
            _ => {
                let piece = data[place.min(end)..end].repeat(1 + chance.below(40));
                drop(data.splice(place..place, piece));
            }
        }
    }
    data.truncate(BYTES_MAX);
    data
}

/// Whether the target's promises hold for this input.
fn holds(name: &str, target: Target, data: &[u8]) -> bool {
    let tried = catch_unwind(AssertUnwindSafe(|| target(data)));
    if tried.is_err() {
        eprintln!("{name} breaks on {:?}", String::from_utf8_lossy(data));
        eprintln!("in bytes: {data:02x?}");
    }
    tried.is_ok()
}

fn run(name: &str) {
    let (_, target) = TARGETS.into_iter().find(|(one, _)| *one == name).unwrap();
    let variable = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seconds = variable("FUZZ_SECONDS").map(Duration::from_secs);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_nanos();
    let seed = variable("FUZZ_SEED").unwrap_or(seconds.map_or(1, |_| u64::from(now)));
    let mut corpus = corpus(name);
    for data in &corpus {
        assert!(holds(name, target, data), "an input of the corpus breaks {name}");
    }
    let (mut chance, began, mut tries) = (Chance(seed | 1), Instant::now(), 0);
    while seconds.map_or(tries < TRIES, |seconds| began.elapsed() < seconds) {
        let data = mutated(&mut chance, &corpus);
        assert!(holds(name, target, &data), "{name} is broken; the seed was {seed}");
        // Some of what came of it is where the next begins, so that changes add up.
        if tries % 64 == 0 && corpus.len() < 4096 {
            corpus.push(data);
        }
        tries += 1;
    }
    if seconds.is_some() {
        eprintln!("{name}: {tries} inputs from seed {seed}, no finding");
    }
}

#[test]
fn heads() {
    run("heads");
}

#[test]
fn names() {
    run("names");
}

#[test]
fn digests() {
    run("digests");
}

#[test]
fn ranges() {
    run("ranges");
}

#[test]
fn challenges() {
    run("challenges");
}

#[test]
fn manifests() {
    run("manifests");
}

#[test]
fn tokens() {
    run("tokens");
}

#[test]
fn configuration() {
    run("configuration");
}

/// A harness that finds nothing must be able to find something.
#[test]
fn a_broken_promise_is_found() {
    fn broken(data: &[u8]) {
        assert!(!data.windows(2).any(|two| two == b".."), "two dots");
    }
    let corpus = corpus("names");
    let mut chance = Chance(1);
    let found = (0..TRIES).any(|_| !holds("broken", broken, &mutated(&mut chance, &corpus)));
    assert!(found);
}
