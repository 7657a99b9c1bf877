//! A disk that takes no more. Here without privileges: files may not grow beyond a size, so that
//! writing fails in the middle of a fill. `tests/e2e/full_disk.sh` does it with a real file system.

use crate::support::image::{self, Content};
use crate::support::mirror::{Setup, before};
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
    use crate::support::fault::{Fault, Gate};
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
    assert!(mirror.log().contains("the disk takes content again"), "{}", mirror.log());
    mirror.stop().await;
}
