//! A disk that takes no more. Here without privileges: files may not grow beyond a size, so that
//! writing fails in the middle of a fill; and with a file system of 16 MiB in a mount namespace of
//! its own, where the kernel lets us have one.

use crate::support::fault::{Fault, Gate};
use crate::support::image::{self, Content};
use crate::support::mirror::{Mirror, Setup, before};
use crate::support::record::On;
use crate::support::upstream::Upstream;

/// No file larger than 1 MiB; writing on fails with EFBIG.
fn small_files(setup: Setup) -> Setup {
    setup.after("trap '' XFSZ; ulimit -f 2048")
}

fn path(blob: &Content) -> String {
    format!("/v2/team/app/blobs/{}", blob.digest)
}

#[tokio::test]
async fn what_the_disk_does_not_take_comes_through_whole_and_what_is_held_stays() {
    let upstream = Upstream::start().await;
    let small = image::oci(1).build();
    upstream.push("team/app", "small", &small);
    let large = image::oci(500).layers(&[3_000_000, 2_500_000]).build();
    upstream.push("team/app", "large", &large);
    let mirror = small_files(before(&upstream)).start().await;
    mirror.pull("team/app", "small", &small).await;
    for _ in 0..3 {
        let words = mirror.pull("team/app", "large", &large).await;
        assert!(!words[2].starts_with("pierhead; hit"), "{words:?}");
        let words = mirror.pull("team/app", "small", &small).await;
        assert!(words.iter().all(|word| word.starts_with("pierhead; hit")), "{words:?}");
    }
    assert!(mirror.metric("pierhead_fills_total", &[("result", "not_kept")]).await >= 6.0);
    let ready = mirror.admin("/readyz").answer().await;
    assert_eq!(ready.status, 200);
    assert!(mirror.log().contains("the disk takes no more"), "{}", mirror.log());
    assert_eq!(std::fs::read_dir(mirror.cache().join("fills")).unwrap().count(), 0);
    mirror.check_store();
}

/// The write fails while several clients are in the middle, each at its own place.
#[tokio::test]
async fn each_waiting_client_goes_on_from_its_own_place() {
    let upstream = Upstream::start().await;
    let blob = upstream.blob("team/app", 1, 4_000_000);
    let gate = Gate::closed();
    upstream.next(1, On::get("/blobs/"), [Fault::HoldAfter(900_000, gate.clone())]);
    let mirror = small_files(before(&upstream)).start().await;
    let mut readings = Vec::new();
    for bytes in [1, 400_000, 800_000] {
        let mut reading = mirror.get(&path(&blob)).open().await;
        let first = reading.at_least(bytes).await;
        readings.push((first, reading));
    }
    let mut range = mirror.get(&path(&blob)).header("range", "bytes=3000000-3999999").open().await;
    gate.open();
    for (first, reading) in readings {
        let rest = reading.rest().await;
        assert!(rest.whole && [first, rest.body].concat() == blob.bytes);
    }
    let mut part = Vec::new();
    while let Some(piece) = range.next().await {
        part.extend_from_slice(&piece);
    }
    assert!(part == blob.bytes[3_000_000..]);
}

/// Larger than the cache: nothing of it is kept, and the upstream is asked twice all the same: once
/// until that is known, and once for all.
#[tokio::test]
async fn who_comes_at_the_same_moment_shares_what_cannot_be_kept() {
    let upstream = Upstream::start().await;
    let blob = upstream.blob("team/app", 1, 6_000_000);
    let gate = Gate::closed();
    upstream.always(On::get("/blobs/"), Fault::HoldAfter(1_000_000, gate.clone()));
    let mirror = before(&upstream).cache("max_size: 2MB").start().await;
    let mut readings = Vec::new();
    for _ in 0..16 {
        let mut reading = mirror.get(&path(&blob)).open().await;
        let first = reading.at_least(1).await;
        readings.push((first, reading));
    }
    gate.open();
    for (first, reading) in readings {
        let rest = reading.rest().await;
        assert!(rest.whole && [first, rest.body].concat() == blob.bytes);
    }
    assert_eq!(upstream.count(&On::get("/blobs/")), 2, "{}", upstream.story());
}

/// A client that reads nothing holds nobody up, and has the rest for himself when he does.
#[tokio::test]
async fn a_client_that_stands_still_holds_nobody_up_where_nothing_is_kept() {
    let upstream = Upstream::start().await;
    let blob = upstream.blob("team/app", 1, 24_000_000);
    let gate = Gate::closed();
    upstream.always(On::get("/blobs/"), Fault::HoldAfter(1_000_000, gate.clone()));
    let mirror = before(&upstream).cache("max_size: 2MB").start().await;
    let mut still = mirror.get(&path(&blob)).open().await;
    let first = still.at_least(1).await;
    let mut swift = mirror.get(&path(&blob)).open().await;
    let begun = swift.at_least(1).await;
    gate.open();
    let rest = swift.rest().await;
    assert!(rest.whole && [begun, rest.body].concat() == blob.bytes);
    let rest = still.rest().await;
    assert!(rest.whole && [first, rest.body].concat() == blob.bytes);
}

/// One that all have joined and that breaks is gone on with for all of them.
#[tokio::test]
async fn what_is_shared_and_breaks_goes_on_and_wrong_bytes_are_whole_for_nobody() {
    for (fault, whole) in [(Fault::CutAfter(3_000_000), true), (Fault::CorruptAt(5_000_000), false)]
    {
        let upstream = Upstream::start().await;
        let blob = upstream.blob("team/app", 1, 6_000_000);
        upstream.always(On::get("/blobs/"), fault);
        let mirror = before(&upstream).cache("max_size: 2MB").start().await;
        let ask = || async { mirror.get(&path(&blob)).open().await.rest().await };
        let (one, two, three) = tokio::join!(ask(), ask(), ask());
        for read in [one, two, three] {
            assert_eq!(read.whole && read.body == blob.bytes, whole, "{}", upstream.story());
        }
    }
}

#[tokio::test]
async fn it_keeps_again_when_there_is_room_again() {
    let upstream = Upstream::start().await;
    let blob = upstream.blob("team/app", 1, 2_000_000);
    let mut mirror = small_files(before(&upstream)).start().await;
    assert!(mirror.get(&path(&blob)).answer().await.is(&blob.bytes));
    assert!(mirror.metric("pierhead_cache_writable", &[]).await < 0.5);
    let ready = mirror.admin("/readyz").answer().await;
    let text = String::from_utf8_lossy(&ready.body).into_owned();
    assert!(ready.status == 200 && text.contains("without being kept"), "{text}");
    assert!(!mirror.keeps(&blob.digest));
    // Small content still fits, and so the trouble is over.
    let small = upstream.blob("team/app", 2, 200_000);
    assert!(mirror.get(&path(&small)).answer().await.is(&small.bytes));
    mirror.until_kept(1).await;
    assert!(mirror.metric("pierhead_cache_writable", &[]).await > 0.5);
    mirror.stop().await;
    assert!(mirror.log().contains("the disk takes content again"), "{}", mirror.log());
}

const MIB: usize = 1024 * 1024;

/// A mirror whose cache folder is a file system of 16 MiB; `None` where that is not allowed here.
async fn on_16_mib(setup: Setup) -> Option<Mirror> {
    let allowed = std::process::Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"])
        .output();
    if !allowed.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: no mount namespace to be had");
        return None;
    }
    let cache = setup.cache_folder();
    std::fs::create_dir_all(&cache).expect("the temporary folder takes a folder");
    let inner =
        format!("mount -t tmpfs -o size=16m none {} && exec \"$0\" \"$@\"", cache.display());
    let setup = setup.after(&format!(
        "exec unshare --user --map-root-user --mount sh -c '{inner}' \"$0\" \"$@\""
    ));
    Some(setup.start().await)
}

/// The cache folder as the mirror sees it.
fn inside(mirror: &Mirror) -> std::path::PathBuf {
    let cache = mirror.cache();
    let below = cache.strip_prefix("/").expect("an absolute path");
    std::path::Path::new("/proc").join(mirror.id().to_string()).join("root").join(below)
}

#[tokio::test]
async fn thirty_megabytes_go_over_a_disk_of_sixteen_and_the_small_image_stays() {
    let upstream = Upstream::start().await;
    let small = image::oci(1).build();
    upstream.push("team/app", "small", &small);
    let large = image::oci(500).layers(&[20 * MIB, 10 * MIB]).build();
    upstream.push("team/app", "large", &large);
    let Some(mirror) = on_16_mib(before(&upstream)).await else { return };
    mirror.pull("team/app", "small", &small).await;
    for _ in 0..3 {
        mirror.pull("team/app", "large", &large).await;
        let words = mirror.pull("team/app", "small", &small).await;
        assert!(words.iter().all(|word| word.starts_with("pierhead; hit")), "{words:?}");
    }
    // Somebody else fills the disk, but for some pages, while a fill is under way.
    let blob = upstream.blob("team/app", 700, 4 * MIB);
    let gate = Gate::closed();
    upstream.next(1, On::get(&blob.digest), [Fault::HoldAfter(MIB as u64, gate.clone())]);
    let mut reading = mirror.get(&path(&blob)).open().await;
    let first = reading.at_least(MIB as u64 / 2).await;
    let filler = inside(&mirror).join("somebody-elses");
    let mut file = std::fs::File::create(&filler).unwrap();
    while std::io::Write::write_all(&mut file, &[1; 4096]).is_ok() {}
    gate.open();
    let rest = reading.rest().await;
    assert!(rest.whole && [first, rest.body].concat() == blob.bytes);
    let other = upstream.blob("team/app", 701, 14 * MIB);
    assert!(mirror.get(&path(&other)).answer().await.is(&other.bytes), "passed on");
    mirror.pull("team/app", "small", &small).await;
    // Room is made, and the next pull is kept.
    drop(file);
    std::fs::remove_file(&filler).unwrap();
    assert!(mirror.get(&path(&blob)).answer().await.is(&blob.bytes));
    crate::support::mirror::until(
        "the blob to be kept",
        || mirror.get(&path(&blob)),
        |answer| answer.cache().starts_with("pierhead; hit"),
    )
    .await;
    assert!(mirror.metric("pierhead_cache_writable", &[]).await > 0.5);
}
