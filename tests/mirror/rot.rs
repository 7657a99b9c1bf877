//! Rot: one flipped bit anywhere in any kept file is never a whole 200, and is mended.

use std::path::{Path, PathBuf};

use crate::support::image::{self, Content, Image};
use crate::support::mirror::{Mirror, before, files_under};
use crate::support::soon;
use crate::support::upstream::Upstream;

const LARGE: usize = 1_500_000;

/// Small numbers that look random, always the same.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        usize::try_from(self.0 >> 33).unwrap_or_default() % limit
    }
}

/// Flips one bit, and leaves the file as long as it was.
fn flip(file: &Path, bit: usize) {
    use std::os::unix::fs::FileExt as _;
    let handle = std::fs::File::options().read(true).write(true).open(file).expect("a kept file");
    let mut byte = [0];
    handle.read_exact_at(&mut byte, bit as u64 / 8).expect("a bit of the file");
    byte[0] ^= 1 << (bit % 8);
    handle.write_all_at(&byte, bit as u64 / 8).expect("a bit of the file");
}

struct Scene {
    upstream: Upstream,
    mirror: Mirror,
    image: Image,
}

impl Scene {
    /// A mirror that holds an image with a small and a large layer.
    async fn new(options: &str) -> Self {
        let upstream = Upstream::start().await;
        let image = image::oci(1).layers(&[LARGE, 3000]).build();
        upstream.push("team/app", "v1", &image);
        let mirror = before(&upstream).cache(options).with("tag_ttl: 1h").start().await;
        mirror.pull("team/app", "v1", &image).await;
        mirror.until_kept(4).await;
        Self { upstream, mirror, image }
    }

    /// All that is kept: content, checksums, records.
    fn kept(&self) -> Vec<PathBuf> {
        let mut files: Vec<_> = ["blobs", "sums", "repos"]
            .iter()
            .flat_map(|folder| files_under(&self.mirror.cache().join(folder)))
            .collect();
        files.sort();
        assert_eq!(files.len(), 4 + 1 + 1 + 4 + 3, "{files:?}");
        files
    }

    fn asks(&self) -> Vec<(String, &Content)> {
        let image = &self.image;
        let manifest = |reference: &str| format!("/v2/team/app/manifests/{reference}");
        let mut asks = vec![
            (manifest("v1"), &image.manifest),
            (manifest(&image.manifest.digest), &image.manifest),
        ];
        asks.extend(image.blobs().map(|b| (format!("/v2/team/app/blobs/{}", b.digest), b)));
        asks
    }

    /// Asks for everything twice: nothing deceives the first time, all is right the second time.
    async fn heals(&self, what: &str) {
        for (path, content) in self.asks() {
            let answer = self.mirror.get(&path).answer().await;
            assert!(!answer.deceives(&content.bytes), "{what}: {path} {answer:?}");
        }
        for (path, content) in self.asks() {
            let answer = self.mirror.get(&path).answer().await;
            assert!(
                answer.is(&content.bytes),
                "{what}: {path} {} {:?}",
                answer.status,
                answer.headers
            );
        }
    }
}

#[tokio::test]
async fn a_bit_that_flips_in_any_kept_file_while_stopped_is_never_served_and_heals() {
    let mut scene = Scene::new("scrub_rate: 0").await;
    let mut dice = Dice(7);
    for file in scene.kept() {
        for round in 0..3 {
            scene.mirror.stop().await;
            let bits = 8 * usize::try_from(file.metadata().unwrap().len()).unwrap();
            let bit = [0, bits - 1, dice.below(bits)][round];
            flip(&file, bit);
            scene.mirror.start().await;
            scene.heals(&format!("bit {bit} of {}", file.display())).await;
            scene.mirror.until_kept(4).await;
            assert!(file.exists(), "{} is there again", file.display());
        }
    }
}

#[tokio::test]
async fn a_bit_that_flips_in_any_kept_file_while_running_is_never_served_and_heals() {
    let scene = Scene::new("scrub_rate: 0").await;
    let mut dice = Dice(11);
    for file in scene.kept() {
        let bits = 8 * usize::try_from(file.metadata().unwrap().len()).unwrap();
        let bit = dice.below(bits);
        flip(&file, bit);
        scene.heals(&format!("bit {bit} of {}", file.display())).await;
    }
}

/// In the middle of a blob the head is out before the rot is met: the answer breaks off.
#[tokio::test]
async fn rot_behind_the_first_stretch_breaks_the_answer_off_and_heals_on_the_next() {
    let upstream = Upstream::start().await;
    let blob = upstream.blob("team/app", 1, 12_000_000);
    let path = format!("/v2/team/app/blobs/{}", blob.digest);
    let mut mirror = before(&upstream).cache("scrub_rate: 0").start().await;
    assert!(mirror.get(&path).answer().await.is(&blob.bytes));
    mirror.until_kept(1).await;
    mirror.stop().await;
    flip(&mirror.file_of("blobs", &blob.digest), 8 * 11_000_000 + 3);
    mirror.start().await;
    let early = mirror.get(&path).header("range", "bytes=0-999").answer().await;
    assert!(early.status == 206 && early.body == blob.bytes[..1000]);
    let broken = mirror.get(&path).answer().await;
    assert!(!broken.whole, "{} {:?}", broken.status, broken.headers);
    assert!(mirror.get(&path).answer().await.is(&blob.bytes));
    mirror.until_kept(1).await;
    assert!(mirror.get(&path).answer().await.cache().starts_with("pierhead; hit"));
    let found = mirror.metric("pierhead_verify_failures_total", &[]).await;
    assert!((0.5..1.5).contains(&found), "{found}");
}

#[tokio::test]
async fn the_scrubber_finds_rot_that_nobody_asks_for() {
    let mut scene = Scene::new("scrub_rate: 1GiB").await;
    scene.mirror.stop().await;
    let rotten = [&scene.image.layers[0].digest, &scene.image.config.digest];
    for digest in rotten {
        flip(&scene.mirror.file_of("blobs", digest), 1001);
    }
    scene.mirror.start().await;
    soon("the scrubber to find two", async {
        while scene.mirror.metric("pierhead_verify_failures_total", &[]).await < 2.0 {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    })
    .await;
    soon("both to be set aside", async {
        while rotten.iter().any(|digest| scene.mirror.keeps(digest)) {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    })
    .await;
    assert_eq!(files_under(&scene.mirror.cache().join("rotten")).len(), 2);
    scene.heals("found by the scrubber").await;
    assert!(scene.upstream.connections() > 0);
}

/// A leftover that has rotted is found when the whole is hashed: nobody gets it whole.
#[tokio::test]
async fn rot_in_a_broken_download_is_not_built_upon() {
    use crate::support::fault::{Fault, Gate};
    use crate::support::record::On;
    let upstream = Upstream::start().await;
    let blob = upstream.blob("team/app", 1, 4_000_000);
    let path = format!("/v2/team/app/blobs/{}", blob.digest);
    upstream.next(1, On::get("/blobs/"), [Fault::HoldAfter(2_000_000, Gate::closed())]);
    let mut mirror = before(&upstream).start().await;
    let mut reading = mirror.get(&path).open().await;
    reading.at_least(1_900_000).await;
    mirror.kill().await;
    let fills = files_under(&mirror.cache().join("fills"));
    assert_eq!(fills.len(), 1, "{fills:?}");
    flip(&fills[0], 8 * 700_000);
    mirror.start().await;
    let answer = mirror.get(&path).answer().await;
    assert!(!answer.deceives(&blob.bytes), "{} {:?}", answer.status, answer.headers);
    assert!(mirror.get(&path).answer().await.is(&blob.bytes));
    mirror.until_kept(1).await;
}
