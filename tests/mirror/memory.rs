//! The bound on memory: clients that stand still and downloads under way cost a fixed amount each.

use futures_util::future::join_all;

use crate::support::fault::{Fault, Gate};
use crate::support::mirror::{Mirror, before};
use crate::support::record::On;
use crate::support::upstream::Upstream;

const MB: usize = 1_000_000;

/// The most memory that the process ever had, in bytes.
fn peak(mirror: &Mirror) -> u64 {
    let path = format!("/proc/{}/status", mirror.id());
    let status = std::fs::read_to_string(path).expect("our own child");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("Linux tells it");
    let kilobytes = line.trim().trim_end_matches(" kB").parse::<u64>();
    1024 * kilobytes.expect("a number of kB")
}

/// Show 6 of the issue. Not met yet: 70 MB with the blob held, 80 MB with the readers, which cost
/// next to nothing, and 330 MB with the fills, nearly all of it in the allocator's arena, with 340
/// threads (a debug build, whose code alone is 38 MB of that).
#[tokio::test]
#[ignore = "fails: 64 fills take some 4 MB each"]
async fn three_hundred_stalled_readers_and_sixty_four_fills_cost_less_than_100_mb() {
    let upstream = Upstream::start().await;
    let large = upstream.blob("team/app", 1, 100 * MB);
    let path = format!("/v2/team/app/blobs/{}", large.digest);
    let mirror = before(&upstream).cache("memory: 1MiB").start().await;
    assert!(mirror.get(&path).open().await.brings(&large.bytes).await);
    mirror.until_kept(1).await;
    eprintln!("held: {} MB", peak(&mirror) / MB as u64);
    let gate = Gate::closed();
    let fills: Vec<_> = (0..64).map(|n| upstream.blob("team/app", 100 + n, 3 * MB)).collect();
    upstream.behave();
    for blob in &fills {
        upstream.always(On::get(&blob.digest), Fault::HoldAfter(2 * MB as u64, gate.clone()));
    }
    let mut stalled = join_all((0..300).map(|_| mirror.get(&path).open())).await;
    for reading in &mut stalled {
        assert!(reading.next().await.is_some());
    }
    eprintln!("stalled: {} MB", peak(&mirror) / MB as u64);
    let filling = fills.iter().map(async |blob| {
        let path = format!("/v2/team/app/blobs/{}", blob.digest);
        let mut reading = mirror.get(&path).open().await;
        reading.at_least(MB as u64).await;
        reading
    });
    let filling = join_all(filling).await;
    eprintln!("filling: {} MB", peak(&mirror) / MB as u64);
    gate.open();
    for reading in filling {
        assert!(reading.rest().await.whole);
    }
    let peak = peak(&mirror);
    eprintln!("peak: {} MB", peak / MB as u64);
    assert!(peak < 101 * MB as u64, "{peak} bytes");
    drop(stalled);
}
