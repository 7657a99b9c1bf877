//! Large blobs in parallel parts, where one connection is what limits them.

use futures_util::future::join_all;

use crate::support::cold::Cold;
use crate::support::fault::{Fault, Gate};
use crate::support::record::On;

const MIB: usize = 1024 * 1024;
const SIZE: usize = 96 * MIB;

/// A connection's pace: the whole blob would take twelve seconds over one.
const SLOW: Fault = Fault::Throttle(8 * MIB as u64);

async fn slow() -> Cold {
    let cold = Cold::with(SIZE, "").await;
    cold.upstream.always(On::get("/blobs/"), SLOW);
    cold
}

/// Requests for a part, and all bytes sent.
fn parts(cold: &Cold) -> (usize, u64) {
    let asked = cold.upstream.asked(&On::get("/blobs/"));
    let parts = asked.iter().filter(|e| e.header("range").starts_with("bytes=")).count();
    (parts, cold.upstream.sent(&On::get("/blobs/")))
}

#[tokio::test]
async fn a_slow_connection_is_helped_by_others_and_nothing_is_fetched_twice() {
    let cold = slow().await;
    let open = || cold.mirror.get(&cold.path).open();
    let late = async {
        cold.upstream.until_asked(2, &On::get("/blobs/")).await;
        open().await.brings(&cold.blob.bytes).await
    };
    let part = cold.mirror.get(&cold.path).header("range", "bytes=40000000-40000099").answer();
    let (first, late, part) =
        tokio::join!(async { open().await.brings(&cold.blob.bytes).await }, late, part);
    assert!(first && late, "{}", cold.upstream.story());
    assert_eq!(part.body, cold.blob.bytes.slice(40_000_000..40_000_100));
    let (parts, sent) = parts(&cold);
    assert!(parts >= 1, "{}", cold.upstream.story());
    // What was under way on the connection that the first transfer left is read by nobody.
    assert!(sent <= SIZE as u64 * 115 / 100, "{sent}: {}", cold.upstream.story());
    cold.mirror.until_kept(1).await;
    cold.mirror.check_store();
    assert!(cold.mirror.get(&cold.path).answer().await.cache().starts_with("pierhead; hit"));
}

/// Helpers are only that: where they get nothing, the first transfer brings all.
#[tokio::test]
async fn an_upstream_that_gives_no_parts_is_read_as_one() {
    let faults = [
        Fault::IgnoreRange,
        Fault::Status(403),
        Fault::Status(429),
        Fault::CutHead,
        Fault::ShiftContentRange(1),
        Fault::HoldHead(Gate::closed()), // for ever: nobody waits for it in the end
    ];
    // All blobs first: to make one keeps this thread busy for long.
    let mut colds = Vec::new();
    for fault in faults {
        colds.push((fault, Cold::with(SIZE, "").await));
    }
    let read = join_all(colds.into_iter().map(|(fault, cold)| async move {
        cold.upstream.next(1, On::get("/blobs/"), [SLOW]);
        cold.upstream.next(1000, On::get("/blobs/"), [fault.clone()]);
        let whole = cold.mirror.get(&cold.path).open().await.brings(&cold.blob.bytes).await;
        assert!(whole, "{fault:?}: {}", cold.upstream.story());
        assert!(parts(&cold).0 >= 1, "{fault:?}: nobody tried to help");
        (fault, cold)
    }))
    .await;
    for (fault, cold) in read {
        cold.mirror.until_kept(1).await;
        cold.mirror.check_store();
        // What a helper met is told to nobody else.
        cold.upstream.behave();
        let other = cold.upstream.blob("team/app", 2, 1000);
        let path = format!("/v2/team/app/blobs/{}", other.digest);
        assert!(cold.mirror.get(&path).answer().await.is(&other.bytes), "{fault:?}");
    }
}

#[tokio::test]
async fn where_places_are_few_helpers_take_none() {
    let cold = Cold::with(SIZE, "max_connections: 1").await;
    cold.upstream.always(On::get("/blobs/"), SLOW);
    assert!(cold.mirror.get(&cold.path).open().await.brings(&cold.blob.bytes).await);
    assert_eq!(parts(&cold).0, 0, "{}", cold.upstream.story());
}

/// The rest of a slow part is fetched by whoever has nothing else to do; that of a part that is
/// refused, by the first.
#[tokio::test]
async fn slow_and_refused_parts_are_relieved() {
    let crawl = Fault::Throttle(200_000); // a part would take most of a minute
    let rest_refused = Fault::Status(403);
    for fault in [crawl, rest_refused] {
        let cold = Cold::with(SIZE, "").await;
        cold.upstream.next(2, On::get("/blobs/"), [SLOW]);
        cold.upstream.next(1, On::get("/blobs/"), [fault.clone()]);
        cold.upstream.next(1000, On::get("/blobs/"), [SLOW]);
        let whole = cold.mirror.get(&cold.path).open().await.brings(&cold.blob.bytes).await;
        assert!(whole, "{fault:?}: {}", cold.upstream.story());
        cold.mirror.until_kept(1).await;
        cold.mirror.check_store();
    }
}

#[tokio::test]
async fn parts_that_break_are_taken_up_by_others() {
    let cold = Cold::with(SIZE, "").await;
    cold.upstream.next(1, On::get("/blobs/"), [SLOW]);
    for cut in [3_000_001, 17, 1_048_576] {
        cold.upstream.next(1, On::get("/blobs/"), [SLOW, Fault::CutAfter(cut)]);
    }
    cold.upstream.always(On::get("/blobs/"), SLOW);
    assert!(
        cold.mirror.get(&cold.path).open().await.brings(&cold.blob.bytes).await,
        "{}",
        cold.upstream.story()
    );
    cold.mirror.until_kept(1).await;
    cold.mirror.check_store();
}

#[tokio::test]
async fn a_part_with_wrong_bytes_is_never_served_as_whole() {
    let cold = slow().await;
    // The second answer is the first helper's.
    cold.upstream.next(1, On::get("/blobs/"), []);
    cold.upstream.next(1, On::get("/blobs/"), [Fault::CorruptAt(100)]);
    let answer = cold.mirror.get(&cold.path).answer().await;
    assert!(parts(&cold).0 >= 1, "{}", cold.upstream.story());
    assert!(!answer.deceives(&cold.blob.bytes) && !answer.is(&cold.blob.bytes));
    cold.recovers().await;
}

#[tokio::test]
async fn after_a_kill_it_goes_on_from_the_front() {
    let mut cold = slow().await;
    let reading = tokio::spawn(cold.mirror.get(&cold.path).attempt());
    cold.upstream.until_asked(2, &On::get("/blobs/")).await;
    let sent = cold.sent();
    cold.upstream.until_sent(sent + 5_000_000, &On::get("/blobs/")).await;
    cold.mirror.kill().await;
    let _ = reading.await;
    cold.upstream.behave();
    let before = cold.sent();
    cold.mirror.start().await;
    let answer = cold.mirror.get(&cold.path).answer().await;
    assert!(answer.is(&cold.blob.bytes), "{answer:?} {}", cold.upstream.story());
    let resumed =
        cold.upstream.asked(&On::get("/blobs/")).last().map(|e| e.header("range").to_owned());
    assert!(resumed.is_some_and(|range| range.starts_with("bytes=")), "{}", cold.upstream.story());
    assert!(cold.sent() - before < SIZE as u64, "{}", cold.upstream.story());
    cold.mirror.check_store();
}
