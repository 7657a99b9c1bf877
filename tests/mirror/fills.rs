//! Blobs on their way in, and the many who want them: early, late, slow, gone.

use futures_util::future::join_all;

use crate::support::client::Reading;
use crate::support::cold::{Cold, MIB, blobs};
use crate::support::fault::{Fault, Gate};
use crate::support::record::On;

#[tokio::test]
async fn sixty_four_clients_on_one_cold_blob_cost_one_download() {
    let cold = Cold::with(32 * MIB, "").await;
    let clients = (0..64).map(async |_| {
        let reading = cold.mirror.get(&cold.path).open().await;
        let status = reading.status;
        (status, reading.brings(&cold.blob.bytes).await)
    });
    let answers = join_all(clients).await;
    assert!(answers.iter().all(|answer| *answer == (200, true)), "{answers:?}");
    assert_eq!(cold.sent(), 32 * MIB as u64, "{}", cold.upstream.story());
}

#[tokio::test]
async fn those_who_join_a_fill_are_told_so() {
    let cold = Cold::with(MIB, "").await;
    let gate = Gate::closed();
    cold.upstream.always(blobs(), Fault::HoldAfter(500_000, gate.clone()));
    let first = cold.mirror.get(&cold.path).open().await;
    let second = cold.mirror.get(&cold.path).open().await;
    let word = |reading: &Reading| reading.headers["cache-status"].to_str().unwrap().to_owned();
    assert!(word(&first).starts_with("pierhead; fwd=miss"), "{}", word(&first));
    assert!(word(&first).contains("stored"), "{}", word(&first));
    assert!(word(&second).contains("collapsed"), "{}", word(&second));
    gate.open();
    assert!(first.brings(&cold.blob.bytes).await && second.brings(&cold.blob.bytes).await);
}

#[tokio::test]
async fn the_first_bytes_come_while_the_upstream_is_still_sending() {
    let cold = Cold::with(MIB, "").await;
    let gate = Gate::closed();
    cold.upstream.always(blobs(), Fault::HoldAfter(100_000, gate.clone()));
    let mut reading = cold.mirror.get(&cold.path).open().await;
    assert_eq!(reading.headers["content-length"], MIB.to_string());
    let early = reading.at_least(50_000).await;
    assert!(!cold.upstream.asked(&blobs())[0].ended);
    gate.open();
    let rest = reading.rest().await;
    assert!(rest.whole && [early, rest.body].concat() == cold.blob.bytes);
}

#[tokio::test]
async fn one_who_joins_half_way_has_the_first_half_at_once() {
    let cold = Cold::with(8 * MIB, "").await;
    let gate = Gate::closed();
    cold.upstream.always(blobs(), Fault::HoldAfter(4 * MIB as u64, gate.clone()));
    let first = cold.mirror.get(&cold.path).open().await;
    cold.upstream.until_sent(4 * MIB as u64, &blobs()).await;
    let mut late = cold.mirror.get(&cold.path).open().await;
    // All that came, but for what may be kept back until the digest is known.
    let half = late.at_least(4 * MIB as u64 - 64 * 1024).await;
    assert!(half == cold.blob.bytes[..half.len()]);
    gate.open();
    let rest = late.rest().await;
    assert!(rest.whole && rest.body == cold.blob.bytes[half.len()..]);
    assert!(first.brings(&cold.blob.bytes).await);
    assert_eq!(cold.sent(), 8 * MIB as u64, "{}", cold.upstream.story());
}

#[tokio::test]
async fn a_client_that_leaves_stops_nothing() {
    let cold = Cold::with(4 * MIB, "").await;
    let gate = Gate::closed();
    cold.upstream.always(blobs(), Fault::HoldAfter(MIB as u64, gate.clone()));
    let mut leaver = cold.mirror.get(&cold.path).open().await;
    leaver.at_least(1000).await;
    let stayer = cold.mirror.get(&cold.path).open().await;
    drop(leaver);
    gate.open();
    assert!(stayer.brings(&cold.blob.bytes).await);
    assert_eq!(cold.sent(), 4 * MIB as u64, "{}", cold.upstream.story());
}

#[tokio::test]
async fn the_last_client_that_leaves_does_not_stop_what_the_next_pull_will_want() {
    let cold = Cold::with(4 * MIB, "").await;
    let gate = Gate::closed();
    cold.upstream.always(blobs(), Fault::HoldAfter(MIB as u64, gate.clone()));
    let mut leaver = cold.mirror.get(&cold.path).open().await;
    leaver.at_least(1000).await;
    drop(leaver);
    gate.open();
    cold.upstream.until_ended(&blobs()).await;
    assert_eq!(cold.sent(), 4 * MIB as u64, "{}", cold.upstream.story());
    assert!(cold.get().await.is(&cold.blob.bytes));
    assert_eq!(cold.upstream.count(&blobs()), 1, "{}", cold.upstream.story());
}

#[tokio::test]
async fn a_client_that_reads_nothing_slows_nobody() {
    let cold = Cold::with(16 * MIB, "").await;
    // Stands still with all socket buffers full while the others read.
    let mut idle = cold.mirror.get(&cold.path).open().await;
    let first = idle.next().await.unwrap();
    let reading = cold.mirror.get(&cold.path).open().await;
    assert!(reading.brings(&cold.blob.bytes).await);
    cold.upstream.until_ended(&blobs()).await;
    let rest = idle.rest().await;
    assert!(rest.whole && rest.body == cold.blob.bytes[first.len()..]);
    assert_eq!(cold.sent(), 16 * MIB as u64, "{}", cold.upstream.story());
}

#[tokio::test]
async fn fills_of_different_blobs_do_not_wait_for_each_other() {
    let cold = Cold::with(MIB, "").await;
    let other = cold.upstream.blob("team/app", 2, MIB);
    let gate = Gate::closed();
    cold.upstream.always(On::get(&cold.blob.digest), Fault::HoldAfter(1, gate.clone()));
    let held = cold.mirror.get(&cold.path).open();
    let held = tokio::spawn(held);
    cold.upstream.until_asked(1, &blobs()).await;
    let path = format!("/v2/team/app/blobs/{}", other.digest);
    assert!(cold.mirror.get(&path).answer().await.is(&other.bytes));
    gate.open();
    assert!(held.await.unwrap().brings(&cold.blob.bytes).await);
}
