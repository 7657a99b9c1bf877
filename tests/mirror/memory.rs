//! The bound on memory: clients that stand still cost next to nothing.

use futures_util::future::join_all;

use crate::support::mirror::{Mirror, before};
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

#[tokio::test]
async fn three_hundred_stalled_readers_cost_next_to_nothing() {
    let upstream = Upstream::start().await;
    let large = upstream.blob("team/app", 1, 100 * MB);
    let path = format!("/v2/team/app/blobs/{}", large.digest);
    let mirror = before(&upstream).cache("memory: 1MiB").start().await;
    assert!(mirror.get(&path).open().await.brings(&large.bytes).await);
    mirror.until_kept(1).await;
    let before = peak(&mirror);
    let mut stalled = join_all((0..300).map(|_| mirror.get(&path).open())).await;
    for reading in &mut stalled {
        assert!(reading.next().await.is_some());
    }
    let cost = peak(&mirror) - before;
    assert!(cost < 300 * MB as u64 / 5, "{cost} bytes: more than 200 kB each");
}
