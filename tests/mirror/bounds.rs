//! The bounds of the cache: what leaves, what stays, and that the folder is never too large.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use futures_util::StreamExt as _;
use futures_util::stream;

use crate::support::client::Answer;
use crate::support::image::{self, Content};
use crate::support::mirror::{Mirror, before, bytes_under, until};
use crate::support::record::On;
use crate::support::soon;
use crate::support::upstream::Upstream;

const MB: usize = 1_000_000;

fn path(blob: &Content) -> String {
    format!("/v2/team/app/blobs/{}", blob.digest)
}

/// Looks at the folder all the time, and tells the most that it ever held.
struct Sampler {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<(u64, u32)>,
}

impl Sampler {
    fn of(folder: PathBuf) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let (mut most, mut looks) = (0, 0);
            while !stopped.load(Ordering::Relaxed) {
                most = most.max(bytes_under(&folder));
                looks += 1;
                std::thread::yield_now();
            }
            (most, looks)
        });
        Self { stop, thread }
    }

    fn most(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        let (most, looks) = self.thread.join().expect("a sampler that does not panic");
        assert!(looks > 10, "{looks} looks only");
        most
    }
}

async fn pull(mirror: &Mirror, blob: &Content) {
    let answer = mirror.get(&path(blob)).answer().await;
    assert!(answer.is(&blob.bytes), "{} {:?}", answer.status, answer.headers);
}

async fn is_hit(mirror: &Mirror, blob: &Content) -> bool {
    let answer = mirror.get(&path(blob)).answer().await;
    assert!(answer.is(&blob.bytes), "{} {:?}", answer.status, answer.headers);
    answer.cache().starts_with("pierhead; hit")
}

/// Three pulls at a time.
#[tokio::test]
async fn eighty_megabytes_go_through_twenty_within_the_bound_at_every_moment() {
    let upstream = Upstream::start().await;
    let blobs: Vec<_> = (0..40).map(|n| upstream.blob("team/app", n, 2 * MB)).collect();
    let mirror = before(&upstream).cache("max_size: 20MB").start().await;
    let sampler = Sampler::of(mirror.cache());
    stream::iter(&blobs).for_each_concurrent(3, |blob| pull(&mirror, blob)).await;
    let most = sampler.most();
    assert!(most <= 22 * MB as u64, "{most} bytes in the folder");
    soon("85 % of the bound to be used", async {
        // The last ones may still be on their way into their places.
        while mirror.metric("pierhead_cache_bytes", &[]).await < 0.85 * 20e6 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    assert!(mirror.metric("pierhead_evictions_total", &[("reason", "size")]).await >= 30.0);
    assert!(mirror.metric("pierhead_evicted_bytes_total", &[]).await >= 60e6);
    assert_eq!(upstream.sent(&On::get("/blobs/")), 80 * MB as u64);
    mirror.check_store();
}

#[tokio::test]
async fn what_is_used_again_outlives_a_scan_and_manifests_outlive_layers() {
    let upstream = Upstream::start().await;
    let image = image::oci(900).layers(&[2 * MB]).build();
    upstream.push("team/app", "v1", &image);
    let hot = upstream.blob("team/app", 500, 3 * MB);
    let mirror = before(&upstream).cache("max_size: 12MB").with("tag_ttl: 1h").start().await;
    mirror.pull("team/app", "v1", &image).await;
    pull(&mirror, &hot).await;
    mirror.until_kept(4).await;
    assert!(is_hit(&mirror, &hot).await);
    for n in 0..20 {
        pull(&mirror, &upstream.blob("team/app", n, 2 * MB)).await;
    }
    assert!(is_hit(&mirror, &hot).await);
    assert!(!is_hit(&mirror, &image.layers[0]).await, "a layer that was used once has left");
    let manifest = mirror.get("/v2/team/app/manifests/v1").answer().await;
    assert!(manifest.cache().starts_with("pierhead; hit"), "{manifest:?}");
}

/// Nothing leaves for what can never be kept.
#[tokio::test]
async fn a_blob_larger_than_the_cache_passes_through_and_pushes_nothing_out() {
    let upstream = Upstream::start().await;
    let image = image::oci(900).build();
    upstream.push("team/app", "v1", &image);
    let large = upstream.blob("team/app", 1, 5 * MB);
    let mirror = before(&upstream).cache("max_size: 2MB").start().await;
    mirror.pull("team/app", "v1", &image).await;
    let sampler = Sampler::of(mirror.cache());
    for _ in 0..3 {
        let answer = mirror.get(&path(&large)).answer().await;
        assert!(answer.is(&large.bytes), "{} {:?}", answer.status, answer.headers);
        assert!(!answer.cache().contains("stored"), "{}", answer.cache());
    }
    let range = mirror.get(&path(&large)).header("range", "bytes=4000000-4000999").answer().await;
    assert!(range.status == 206 && range.body == large.bytes[4_000_000..4_001_000]);
    let most = sampler.most();
    assert!(most <= 2 * MB as u64, "{most} bytes in the folder");
    let words = mirror.pull("team/app", "v1", &image).await;
    assert!(words.iter().all(|word| word.starts_with("pierhead; hit")), "{words:?}");
}

/// The same where the upstream does not say how large it is.
#[tokio::test]
async fn a_blob_of_untold_size_larger_than_the_cache_comes_through_whole() {
    let upstream = Upstream::start().await;
    let large = upstream.blob("team/app", 1, 5 * MB);
    upstream.always(On::get("/blobs/"), crate::support::fault::Fault::NoLength);
    let mirror = before(&upstream).cache("max_size: 2MB").start().await;
    for _ in 0..2 {
        pull(&mirror, &large).await;
    }
    assert!(mirror.folder_bytes() <= 2 * MB as u64);
}

/// Wrong bytes that are passed on without being kept are no less wrong.
#[tokio::test]
async fn what_is_passed_on_unkept_is_checked_all_the_same() {
    use crate::support::fault::Fault;
    for length in [true, false] {
        let upstream = Upstream::start().await;
        let large = upstream.blob("team/app", 1, 3 * MB);
        upstream.always(On::get("/blobs/"), Fault::CorruptAt(2 * MB));
        if !length {
            upstream.always(On::get("/blobs/"), Fault::NoLength);
        }
        let mirror = before(&upstream).cache("max_size: 2MB").start().await;
        let answer = mirror.get(&path(&large)).answer().await;
        assert!(!answer.deceives(&large.bytes), "{} {:?}", answer.status, answer.headers);
    }
}

#[tokio::test]
async fn the_order_survives_a_restart() {
    let upstream = Upstream::start().await;
    let blobs: Vec<_> = (0..4).map(|n| upstream.blob("team/app", n, 2 * MB)).collect();
    let mut mirror = before(&upstream).cache("max_size: 9MB").start().await;
    for blob in &blobs {
        pull(&mirror, blob).await;
    }
    mirror.until_kept(4).await;
    mirror.stop().await;
    // As if they had been used once each, long ago, the first one last.
    for (n, blob) in blobs.iter().enumerate() {
        let long_ago = SystemTime::now() - Duration::from_secs(10_000 + 100 * n as u64);
        set_times(&mirror.file_of("blobs", &blob.digest), long_ago);
    }
    mirror.start().await;
    pull(&mirror, &upstream.blob("team/app", 10, 2 * MB)).await;
    assert!(!mirror.keeps(&blobs[3].digest), "the one unused for longest has left");
    assert!(blobs[..3].iter().all(|blob| mirror.keeps(&blob.digest)));
}

fn set_times(file: &std::path::Path, when: SystemTime) {
    let times = std::fs::FileTimes::new().set_accessed(when).set_modified(when);
    let file = std::fs::File::options().write(true).open(file).expect("a file of the store");
    file.set_times(times).expect("our own file");
}

#[tokio::test]
async fn what_nobody_asks_for_leaves_after_max_age_but_not_for_a_clock_that_jumps() {
    let upstream = Upstream::start().await;
    let old = upstream.blob("team/app", 1, MB);
    let new = upstream.blob("team/app", 2, MB);
    let mut mirror = before(&upstream).cache("max_age: 2d").start().await;
    for blob in [&old, &new] {
        pull(&mirror, blob).await;
    }
    mirror.until_kept(2).await;
    mirror.stop().await;
    let ago = |days: u64| SystemTime::now() - Duration::from_secs(days * 86400);
    // The mirror was off for a year, or its clock was wrong: that is nobody's age.
    set_times(&mirror.file_of("blobs", &old.digest), ago(366));
    set_times(&mirror.file_of("blobs", &new.digest), ago(365));
    for _ in 0..2 {
        mirror.start().await;
        let objects = mirror.metric("pierhead_cache_objects", &[]).await;
        assert!(is_hit(&mirror, &new).await && objects <= 2.0);
        let ready = |answer: &Answer| answer.json()["cache"]["ready"] == true;
        until("the folder to be known", || mirror.admin("/api/status"), ready).await;
        mirror.stop().await;
        assert!(mirror.keeps(&old.digest));
    }
    // Times in the future are no reason to stay for ever.
    set_times(
        &mirror.file_of("blobs", &new.digest),
        SystemTime::now() + Duration::from_secs(86400),
    );
    set_times(&mirror.file_of("blobs", &old.digest), ago(3));
    mirror.start().await;
    soon("the old one to leave", async {
        while mirror.keeps(&old.digest) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    assert!(is_hit(&mirror, &new).await);
    let aged = mirror.metric("pierhead_evictions_total", &[("reason", "age")]).await;
    assert!((0.5..1.5).contains(&aged), "{aged}");
}

#[tokio::test]
async fn strangers_in_the_folder_are_left_alone_and_told_once() {
    let upstream = Upstream::start().await;
    let mut mirror = before(&upstream).cache("max_size: 5MB").start().await;
    let first = upstream.blob("team/app", 100, MB);
    pull(&mirror, &first).await;
    mirror.until_kept(1).await;
    mirror.stop().await;
    let hex = "ab".repeat(32);
    let strangers = [
        "notes.txt".to_owned(),
        "blobs/README".to_owned(),
        "blobs/sha256/file".to_owned(),
        "blobs/sha256/ab/too-short".to_owned(),
        format!("blobs/sha256/zz/{hex}"),
        format!("blobs/md5/ab/{hex}"),
        "fills/mine".to_owned(),
        "repos/registry.test/team/app/_tags/.hidden".to_owned(),
    ]
    .map(|name| mirror.cache().join(name));
    for stranger in &strangers {
        std::fs::create_dir_all(stranger.parent().unwrap()).unwrap();
        std::fs::write(stranger, "mine").unwrap();
    }
    mirror.start().await;
    for n in 0..8 {
        pull(&mirror, &upstream.blob("team/app", n, MB)).await;
    }
    mirror.stop().await;
    for stranger in &strangers {
        assert_eq!(std::fs::read(stranger).unwrap(), b"mine", "{}", stranger.display());
    }
    let told = mirror.log().matches("do not belong").count();
    assert_eq!(told, 1, "{}", mirror.log());
}

/// What a crash has left counts, and leaves before content does.
#[tokio::test]
async fn broken_downloads_count_and_leave_first() {
    let upstream = Upstream::start().await;
    let mut mirror = before(&upstream).cache("max_size: 10MB").start().await;
    let held = upstream.blob("team/app", 100, 2 * MB);
    pull(&mirror, &held).await;
    mirror.until_kept(1).await;
    mirror.kill().await;
    for n in 0..3 {
        let name = format!("fills/sha256-{n:064x}");
        std::fs::write(mirror.cache().join(name), vec![0; 2 * MB]).unwrap();
    }
    mirror.start().await;
    let sampler = Sampler::of(mirror.cache());
    for n in 0..3 {
        pull(&mirror, &upstream.blob("team/app", n, 2 * MB)).await;
    }
    let most = sampler.most();
    assert!(most <= 12 * MB as u64, "{most} bytes in the folder");
    assert!(is_hit(&mirror, &held).await);
}

#[tokio::test]
async fn a_second_pierhead_on_the_folder_is_refused() {
    let upstream = Upstream::start().await;
    let mirror = before(&upstream).start().await;
    let cache = mirror.cache().display().to_string();
    let arguments =
        ["serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--cache", &cache];
    let output = crate::support::mirror::run(&arguments).await;
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("in use by another Pierhead"), "{said}");
    assert_eq!(mirror.admin("/readyz").answer().await.status, 200);
}
