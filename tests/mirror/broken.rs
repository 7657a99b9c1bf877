//! Blobs on their way in from an upstream that lies or breaks.

use bytes::Bytes;
use futures_util::future::join_all;

use crate::support::client::Answer;
use crate::support::cold::{Cold, MIB, blobs};
use crate::support::fault::Fault;
use crate::support::mirror::{NAME, Setup, until};
use crate::support::record::On;
use crate::support::upstream::Upstream;

/// Small content, which fits into one piece, and large, which streams; every reader at once.
async fn never_deceives(faults: impl Fn(usize) -> Vec<Fault>) {
    for size in [10_000, 3 * MIB] {
        let cold = Cold::start(size).await;
        for fault in faults(size) {
            cold.upstream.always(blobs(), fault);
        }
        let range = cold.mirror.get(&cold.path).header("range", "bytes=0-");
        let (one, two, part) = tokio::join!(cold.get(), cold.get(), range.answer());
        for answer in [&one, &two] {
            let seen = format!("{size}: {} {:?}", answer.status, answer.headers);
            assert!(!answer.deceives(&cold.blob.bytes), "{seen}");
            assert!(!answer.is(&cold.blob.bytes), "right bytes out of thin air? {seen}");
            if answer.status != 200 {
                let (_, message) = answer.error();
                assert!(answer.status >= 500, "{seen}");
                assert!(message.contains(NAME), "who is at fault? {message}");
            }
        }
        assert!(part.status != 206 || !part.whole, "{:?}", part.headers);
        assert!(!cold.mirror.keeps(&cold.blob.digest));
        cold.recovers().await;
    }
}

#[tokio::test]
async fn wrong_bytes_never_make_a_whole_answer() {
    never_deceives(|size| vec![Fault::CorruptAt(size / 2)]).await;
}

#[tokio::test]
async fn a_wrong_last_byte_never_makes_a_whole_answer() {
    never_deceives(|size| vec![Fault::CorruptAt(size - 1)]).await;
}

#[tokio::test]
async fn wrong_bytes_without_a_length_never_make_a_whole_answer() {
    never_deceives(|size| vec![Fault::CorruptAt(size - 1), Fault::NoLength]).await;
}

#[tokio::test]
async fn too_few_bytes_never_make_a_whole_answer() {
    never_deceives(|size| vec![Fault::IgnoreRange, Fault::Truncate(size / 2)]).await;
    never_deceives(|size| vec![Fault::IgnoreRange, Fault::Truncate(size / 2), Fault::NoLength])
        .await;
}

#[tokio::test]
async fn too_many_bytes_never_make_a_whole_answer() {
    never_deceives(|_| vec![Fault::Extra(1)]).await;
    never_deceives(|_| vec![Fault::Extra(500_000), Fault::NoLength]).await;
}

#[tokio::test]
async fn a_web_page_is_no_blob() {
    never_deceives(|_| vec![Fault::Html]).await;
}

#[tokio::test]
async fn an_empty_body_is_no_blob() {
    never_deceives(|_| vec![Fault::Body(Bytes::new())]).await;
}

#[tokio::test]
async fn a_blob_without_a_length_is_served_whole_and_kept() {
    for size in [0, 10_000, 3 * MIB] {
        let cold = Cold::start(size).await;
        cold.upstream.always(blobs(), Fault::NoLength);
        assert!(cold.get().await.is(&cold.blob.bytes));
        let again = cold.get().await;
        assert!(again.is(&cold.blob.bytes));
        assert_eq!(again.header("content-length"), size.to_string());
        assert!(again.cache().starts_with("pierhead; hit"));
        assert_eq!(cold.upstream.count(&blobs()), 1, "{}", cold.upstream.story());
    }
}

#[tokio::test]
async fn a_blob_inside_gzip_is_unpacked_or_refused_and_never_kept_packed() {
    let cold = Cold::start(10_000).await;
    cold.upstream.always(blobs(), Fault::Gzip);
    for _ in 0..2 {
        let answer = cold.get().await;
        assert!(answer.is(&cold.blob.bytes) || answer.status >= 500 || !answer.whole, "{answer:?}");
        assert_eq!(answer.header("content-encoding"), "");
    }
    cold.recovers().await;
}

#[tokio::test]
async fn an_upstream_that_always_fails_yields_an_error_that_names_it() {
    let faults = [Fault::Status(500), Fault::Status(503), Fault::Plain(502), Fault::CutHead];
    join_all(faults.map(async |fault| {
        let cold = Cold::start(10_000).await;
        cold.upstream.always(On::any(""), fault.clone());
        let answer = cold.get().await;
        let (_, message) = answer.error();
        assert_eq!(answer.status, 503, "{fault:?}: {message}");
        assert!(message.contains(NAME), "{fault:?}: {message}");
        assert!(answer.header("retry-after").parse::<u32>().is_ok(), "{answer:?}");
        cold.upstream.behave();
        let whole = |answer: &Answer| answer.is(&cold.blob.bytes);
        until("the upstream to be believed again", || cold.mirror.get(&cold.path), whole).await;
    }))
    .await;
}

#[tokio::test]
async fn an_upstream_that_breaks_in_the_middle_is_resumed_where_it_broke() {
    let cold = Cold::start(4 * MIB).await;
    cold.upstream.next(1, blobs(), [Fault::CutAfter(3_000_000)]);
    assert!(cold.get().await.is(&cold.blob.bytes), "{}", cold.upstream.story());
    assert!(cold.sent() <= 4 * MIB as u64 * 105 / 100, "{}", cold.upstream.story());
    let asked = cold.upstream.asked(&blobs());
    assert!(asked[1].header("range").starts_with("bytes="), "{}", cold.upstream.story());
    assert!(cold.get().await.cache().starts_with("pierhead; hit"));
}

#[tokio::test]
async fn an_upstream_that_breaks_again_and_again_is_resumed_again_and_again() {
    let cold = Cold::start(8 * MIB).await;
    for cut in [0, 700_000, 1, 333_333, 1_500_000, 65_536, 12, 999_999] {
        cold.upstream.next(1, blobs(), [Fault::CutAfter(cut)]);
    }
    let answer = cold.get().await;
    assert!(answer.is(&cold.blob.bytes), "{}", cold.upstream.story());
    assert!(cold.sent() <= 8 * MIB as u64 * 105 / 100, "{}", cold.upstream.story());
}

#[tokio::test]
async fn an_upstream_that_ignores_range_is_read_again_and_the_known_part_skipped() {
    let cold = Cold::start(2 * MIB).await;
    cold.upstream.next(1, blobs(), [Fault::CutAfter(MIB as u64)]);
    cold.upstream.always(blobs(), Fault::IgnoreRange);
    assert!(cold.get().await.is(&cold.blob.bytes), "{}", cold.upstream.story());
    cold.recovers().await;
}

#[tokio::test]
async fn a_transfer_that_stalls_counts_as_broken() {
    let cold = Cold::start(2 * MIB).await;
    cold.upstream.next(1, blobs(), [Fault::StallAfter(MIB as u64)]);
    assert!(cold.get().await.is(&cold.blob.bytes), "{}", cold.upstream.story());
    assert!(cold.upstream.count(&blobs()) >= 2);
}

#[tokio::test]
async fn a_resumed_answer_with_a_wrong_content_range_is_not_believed() {
    let cold = Cold::start(2 * MIB).await;
    cold.upstream.next(1, blobs(), [Fault::CutAfter(MIB as u64)]);
    cold.upstream.always(blobs(), Fault::ShiftContentRange(100));
    assert!(!cold.get().await.deceives(&cold.blob.bytes), "{}", cold.upstream.story());
    cold.recovers().await;
}

#[tokio::test]
async fn a_blob_that_changed_before_it_was_resumed_is_not_believed() {
    let cold = Cold::start(2 * MIB).await;
    cold.upstream.next(1, blobs(), [Fault::CutAfter(MIB as u64)]);
    cold.upstream.next(1000, blobs(), [Fault::CorruptAt(10)]);
    assert!(!cold.get().await.deceives(&cold.blob.bytes), "{}", cold.upstream.story());
    cold.recovers().await;
}

#[tokio::test]
async fn the_next_endpoint_goes_on_where_the_first_one_died() {
    let (first, second) = (Upstream::start().await, Upstream::start().await);
    let blob = first.blob("team/app", 1, 4 * MIB);
    second.push_blob("team/app", &blob);
    first.next(1, blobs(), [Fault::CutAfter(3_000_000)]);
    first.next(1000, blobs(), [Fault::Status(503)]);
    let setup = Setup::new().endpoints(NAME, &[&first.url(), &second.url()]);
    let mirror = setup.start().await;
    let answer = mirror.get(&format!("/v2/team/app/blobs/{}", blob.digest)).answer().await;
    assert!(answer.is(&blob.bytes), "{}{}", first.story(), second.story());
    assert!(first.sent(&blobs()) + second.sent(&blobs()) <= 4 * MIB as u64 * 105 / 100);
}
