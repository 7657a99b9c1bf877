//! Large held content, and the block checksums that keep rot from going out.
//!
//! A checksum for each block is recorded when content is published, beside it under `sums/`. A
//! block is compared when it is first read after a start, or after its file has changed; from then
//! on it is served without a look. That costs one pass at memory speed over what is really read,
//! once, where hashing the whole content would delay its first byte.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering};

use crate::digest::{Algorithm, Digest, Hasher};
use crate::limits::SLICE_BYTES;

/// Bytes under one checksum.
pub const BLOCK_BYTES: u64 = 256 * 1024;

/// What is compared at a time, before it is sent.
const STRETCH_BYTES: u64 = 4 * 1024 * 1024;

const MAGIC: &[u8; 4] = b"PHS1";

/// The checksums of content, as they grow.
#[derive(Clone, Debug, Default)]
pub struct Summing {
    sums: Vec<u32>,
    block: crc32fast::Hasher,
    filled: u64,
    bytes: u64,
}

impl Summing {
    /// Takes in the next piece.
    pub fn update(&mut self, mut piece: &[u8]) {
        self.bytes += piece.len() as u64;
        while !piece.is_empty() {
            let room = usize::try_from(BLOCK_BYTES - self.filled).unwrap_or(usize::MAX);
            let (now, later) = piece.split_at(room.min(piece.len()));
            self.block.update(now);
            self.filled += now.len() as u64;
            piece = later;
            if self.filled == BLOCK_BYTES {
                self.close();
            }
        }
    }

    fn close(&mut self) {
        self.sums.push(std::mem::take(&mut self.block).finalize());
        self.filled = 0;
    }

    /// The checksums of all pieces.
    pub fn finish(mut self) -> Sums {
        if self.filled > 0 {
            self.close();
        }
        Sums { bytes: self.bytes, sums: self.sums.into() }
    }
}

/// The checksums of content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sums {
    bytes: u64,
    sums: Arc<[u32]>,
}

impl Sums {
    /// As it lies on disk: magic, size, checksums, and a checksum of all that.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(16 + 4 * self.sums.len());
        out.extend(MAGIC);
        out.extend(self.bytes.to_le_bytes());
        for sum in self.sums.iter() {
            out.extend(sum.to_le_bytes());
        }
        let own = crc32fast::hash(&out);
        out.extend(own.to_le_bytes());
        out
    }

    /// Reads what `encode` wrote for content of `bytes`; `None` where it is not that.
    pub fn decode(text: &[u8], bytes: u64) -> Option<Self> {
        let (body, own) = text.split_last_chunk::<4>()?;
        if crc32fast::hash(body) != u32::from_le_bytes(*own) {
            return None;
        }
        let rest = body.strip_prefix(MAGIC)?;
        let (size, sums) = rest.split_first_chunk::<8>()?;
        let fits = u64::from_le_bytes(*size) == bytes
            && sums.len() as u64 == 4 * bytes.div_ceil(BLOCK_BYTES);
        let sums = sums.as_chunks::<4>().0.iter().map(|c| u32::from_le_bytes(*c)).collect();
        fits.then_some(Self { bytes, sums })
    }
}

/// Hashes a whole file, and sums its blocks on the way. Blocks the thread.
///
/// # Errors
/// What the file system says.
pub fn hash(file: &File, algorithm: Algorithm) -> io::Result<(Digest, Sums)> {
    let (mut hasher, mut summing, mut at) = (Hasher::new(algorithm), Summing::default(), 0);
    let mut buffer = vec![0; SLICE_BYTES];
    loop {
        match file.read_at(&mut buffer, at)? {
            0 => return Ok((hasher.finish(), summing.finish())),
            n => {
                hasher.update(&buffer[..n]);
                summing.update(&buffer[..n]);
                at += n as u64;
            }
        }
    }
}

/// Held content that is too large for memory: an open file that many transfers share.
#[derive(Debug)]
pub struct Large {
    /// Its name.
    pub digest: Digest,
    /// For positioned reads.
    pub file: Arc<File>,
    /// Its size in bytes.
    pub size: u64,
    /// When it was last asked for, in seconds.
    pub used: AtomicU32,
    sums: Sums,
    /// One bit a block: it has been compared since the file was last seen to change.
    compared: Box<[AtomicU64]>,
    /// The file's modification time, in nanoseconds, that `compared` holds for.
    modified: AtomicI64,
    rotten: AtomicBool,
}

impl Large {
    /// Opened content, of which nothing has been compared yet.
    ///
    /// # Errors
    /// What the file system says.
    pub fn open(digest: Digest, file: Arc<File>, sums: Sums) -> io::Result<Self> {
        let about = file.metadata()?;
        let words = sums.sums.len().div_ceil(64);
        Ok(Self {
            digest,
            size: sums.bytes,
            used: AtomicU32::new(0),
            compared: (0..words).map(|_| AtomicU64::new(0)).collect(),
            modified: AtomicI64::new(modified(&about)),
            rotten: AtomicBool::new(about.len() != sums.bytes),
            file,
            sums,
        })
    }

    /// Content that this process has just written and hashed: nothing needs to be compared.
    ///
    /// # Errors
    /// What the file system says.
    pub fn written(digest: Digest, file: Arc<File>, sums: Sums) -> io::Result<Self> {
        let large = Self::open(digest, file, sums)?;
        for word in &large.compared {
            word.store(u64::MAX, Ordering::Relaxed);
        }
        Ok(large)
    }

    /// Whether a comparison has failed, or the file is not what it was; such content is set aside
    /// and fetched again. One system call.
    pub fn is_rotten(&self) -> bool {
        let Ok(about) = self.file.metadata() else { return true };
        if about.len() != self.size {
            self.rotten.store(true, Ordering::Relaxed);
        }
        let now = modified(&about);
        if self.modified.swap(now, Ordering::Relaxed) != now {
            for word in &self.compared {
                word.store(0, Ordering::Relaxed);
            }
        }
        self.rotten.load(Ordering::Relaxed)
    }

    /// Makes sure of `from..to`, or of a first part of it, and says how far. At once where all has
    /// been compared before.
    ///
    /// # Errors
    /// `InvalidData` for rot, else what the file system says.
    pub async fn ensure(self: &Arc<Self>, from: u64, to: u64) -> io::Result<u64> {
        let to = to.min(self.size);
        let Some(first) = self.first_unknown(from, to) else { return Ok(to) };
        let known = first * BLOCK_BYTES;
        if known > from {
            return Ok(known);
        }
        let end = to.min(known + STRETCH_BYTES);
        let me = Arc::clone(self);
        tokio::task::spawn_blocking(move || me.compare(first, end.div_ceil(BLOCK_BYTES)))
            .await
            .map_err(io::Error::other)??;
        Ok(end)
    }

    /// The first block of a span that has not been compared.
    fn first_unknown(&self, from: u64, to: u64) -> Option<u64> {
        (from / BLOCK_BYTES..to.div_ceil(BLOCK_BYTES)).find(|block| {
            let (word, bit) = place(*block);
            self.compared.get(word).is_none_or(|w| w.load(Ordering::Relaxed) >> bit & 1 == 0)
        })
    }

    fn compare(&self, from: u64, to: u64) -> io::Result<()> {
        let mut buffer = vec![0; usize::try_from(BLOCK_BYTES).map_err(io::Error::other)?];
        for block in from..to {
            let start = block * BLOCK_BYTES;
            let length =
                usize::try_from(BLOCK_BYTES.min(self.size - start)).map_err(io::Error::other)?;
            let read = self.file.read_exact_at(&mut buffer[..length], start);
            let index = usize::try_from(block).map_err(io::Error::other)?;
            let right =
                self.sums.sums.get(index).copied() == Some(crc32fast::hash(&buffer[..length]));
            if read.is_err() || !right {
                self.rotten.store(true, Ordering::Relaxed);
                let text = format!("held content {} has rotted at byte {start}", self.digest);
                return Err(io::Error::new(io::ErrorKind::InvalidData, text));
            }
            let (word, bit) = place(block);
            self.compared[word].fetch_or(1 << bit, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// A block's word and bit.
fn place(block: u64) -> (usize, u32) {
    (usize::try_from(block / 64).unwrap_or(usize::MAX), u32::try_from(block % 64).unwrap_or(0))
}

fn modified(about: &std::fs::Metadata) -> i64 {
    about.mtime().wrapping_mul(1_000_000_000).wrapping_add(about.mtime_nsec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn sums(content: &[u8]) -> Sums {
        let mut summing = Summing::default();
        for piece in content.chunks(100_001) {
            summing.update(piece);
        }
        summing.finish()
    }

    fn large(content: &[u8]) -> Arc<Large> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        let digest = Digest::of(Algorithm::Sha256, content);
        Arc::new(Large::open(digest, Arc::new(file), sums(content)).unwrap())
    }

    #[test]
    fn checksums_survive_the_disk_and_notice_a_flipped_bit() {
        for size in [0, 1, 256 * 1024, 256 * 1024 + 1, 700_000] {
            let sums = sums(&vec![7; size]);
            let mut text = sums.encode();
            assert_eq!(Sums::decode(&text, size as u64), Some(sums));
            assert_eq!(Sums::decode(&text, size as u64 + 1), None);
            let middle = text.len() / 2;
            text[middle] ^= 4;
            assert_eq!(Sums::decode(&text, size as u64), None);
        }
        assert_eq!(Sums::decode(b"", 0), None);
    }

    #[tokio::test]
    async fn rot_is_found_before_it_is_sent() {
        let content: Vec<u8> = (0..3_000_000u32).map(|i| (i % 253) as u8).collect();
        let large = large(&content);
        assert_eq!(large.ensure(10, 2_000_000).await.unwrap(), 2_000_000);
        assert!(!large.is_rotten());
        large.file.write_all_at(b"!", 2_900_000).unwrap();
        assert!(!large.is_rotten(), "not looked at yet");
        assert_eq!(large.ensure(0, 1000).await.unwrap(), 1000);
        let error = large.ensure(2_800_000, 3_000_000).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert!(large.is_rotten());
    }

    #[tokio::test]
    async fn a_change_of_the_file_is_looked_at_again() {
        let large = large(&vec![1; 600_000]);
        large.ensure(0, 600_000).await.unwrap();
        std::thread::sleep(std::time::Duration::from_millis(20)); // a tick of the file system's clock
        large.file.write_all_at(b"!", 5).unwrap();
        assert!(!large.is_rotten());
        assert!(large.ensure(0, 10).await.is_err() && large.is_rotten());
    }
}
