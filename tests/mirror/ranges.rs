//! Parts of blobs: of held ones, of missing ones, and of ones that are still arriving.

use bytes::Bytes;
use futures_util::future::join_all;

use crate::support::client::Answer;
use crate::support::fault::{Fault, Gate};
use crate::support::image::Content;
use crate::support::mirror::{Mirror, before};
use crate::support::record::On;
use crate::support::upstream::Upstream;

struct Held {
    upstream: Upstream,
    mirror: Mirror,
    blob: Content,
    path: String,
}

impl Held {
    /// A mirror before a registry with one blob that is not held yet.
    async fn cold(size: usize) -> Self {
        let upstream = Upstream::start().await;
        let blob = upstream.blob("team/app", 1, size);
        let mirror = before(&upstream).start().await;
        let path = format!("/v2/team/app/blobs/{}", blob.digest);
        Self { upstream, mirror, blob, path }
    }

    async fn warm(size: usize) -> Self {
        let held = Self::cold(size).await;
        assert!(held.mirror.get(&held.path).answer().await.is(&held.blob.bytes));
        held
    }

    async fn range(&self, range: &str) -> Answer {
        self.mirror.get(&self.path).header("range", range).answer().await
    }

    /// Asserts that `answer` is exactly this part, in all its headers.
    fn is_part(&self, answer: &Answer, first: usize, last: usize) {
        let size = self.blob.bytes.len();
        assert_eq!(answer.status, 206, "{:?}", answer.headers);
        assert_eq!(answer.header("content-range"), format!("bytes {first}-{last}/{size}"));
        assert_eq!(answer.header("content-length"), (last - first + 1).to_string());
        assert_eq!(answer.header("docker-content-digest"), self.blob.digest);
        assert_eq!(answer.header("accept-ranges"), "bytes");
        assert_eq!(answer.header("etag"), format!("\"{}\"", self.blob.digest));
        assert!(answer.whole);
        assert!(answer.body == self.blob.bytes[first..=last], "wrong bytes for {first}-{last}");
    }
}

#[tokio::test]
async fn single_ranges_of_a_held_blob_are_exact() {
    for size in [2048, 400_000] {
        let held = Held::warm(size).await;
        let end = size - 1;
        let cases = [
            ("bytes=0-0".to_owned(), 0, 0),
            ("bytes=500-1499".to_owned(), 500, 1499),
            ("bytes=500-".to_owned(), 500, end),
            ("bytes=0-".to_owned(), 0, end),
            ("bytes=-500".to_owned(), size - 500, end),
            (format!("bytes=-{}", size + 1), 0, end),
            (format!("bytes=2000-{}", size + 5000), 2000, end),
            (format!("bytes={end}-"), end, end),
            (format!("bytes=1-{}", u64::MAX), 1, end),
        ];
        for (range, first, last) in cases {
            let answer = held.range(&range).await;
            held.is_part(&answer, first, last);
            assert!(answer.cache().starts_with("pierhead; hit"), "{range}");
        }
        assert_eq!(held.upstream.count(&On::get("/blobs/")), 1);
    }
}

#[tokio::test]
async fn a_range_that_cannot_be_met_is_a_416_with_the_size() {
    let held = Held::warm(2048).await;
    for range in ["bytes=2048-", "bytes=5000-10000", "bytes=500-0", "bytes=-0", "bytes=9000-,8000-"]
    {
        let answer = held.range(range).await;
        assert_eq!(answer.status, 416, "{range}");
        assert_eq!(answer.header("content-range"), "bytes */2048", "{range}");
        answer.error();
    }
}

#[tokio::test]
async fn a_range_header_that_makes_no_sense_yields_no_part() {
    let held = Held::warm(2048).await;
    for range in [
        "bytes=abc",
        "bytes=",
        "bytes",
        "bytes=1-2-3",
        "bytes=--5",
        "bytes=99999999999999999999999-",
    ] {
        let answer = held.range(range).await;
        let ignored = answer.is(&held.blob.bytes);
        let refused = [400, 416].contains(&answer.status);
        assert!(ignored || refused, "{range}: {} {:?}", answer.status, answer.headers);
    }
    assert!(held.range("items=0-5").await.is(&held.blob.bytes), "an unknown unit is ignored");
}

/// The parts of a multipart body: Content-Range and bytes of each.
fn parts(answer: &Answer) -> Vec<(String, Bytes)> {
    let kind = answer.header("content-type");
    let boundary = kind.strip_prefix("multipart/byteranges; boundary=");
    let boundary = boundary.unwrap_or_else(|| panic!("not multipart: {kind}"));
    assert!(boundary.chars().all(|c| c.is_ascii_alphanumeric()), "{boundary}");
    let find = |from: usize, text: &str| {
        let all = &answer.body[from..];
        all.windows(text.len()).position(|window| window == text.as_bytes()).map(|at| from + at)
    };
    let delimiter = format!("--{boundary}");
    let mut found = Vec::new();
    let mut at = find(0, &delimiter).expect("a first delimiter") + delimiter.len();
    while !answer.body[at..].starts_with(b"--") {
        let body = find(at, "\r\n\r\n").expect("the end of a part's head") + 4;
        let head = String::from_utf8_lossy(&answer.body[at..body]).to_lowercase();
        let range = head.lines().find_map(|line| line.strip_prefix("content-range: "));
        let end = find(body, &format!("\r\n{delimiter}")).expect("the end of a part");
        found.push((
            range.expect("a part says where it is from").to_owned(),
            answer.body.slice(body..end),
        ));
        at = end + 2 + delimiter.len();
    }
    found
}

#[tokio::test]
async fn several_ranges_come_as_multipart() {
    let held = Held::warm(300_000).await;
    let answer = held.range("bytes=0-9, 1000-1999,-100").await;
    assert_eq!((answer.status, answer.whole), (206, true));
    assert_eq!(answer.header("content-length"), answer.body.len().to_string());
    assert_eq!(answer.header("content-range"), "", "ranges stand in the parts");
    let bytes = &held.blob.bytes;
    let expected = [
        ("bytes 0-9/300000".to_owned(), bytes.slice(..10)),
        ("bytes 1000-1999/300000".to_owned(), bytes.slice(1000..2000)),
        ("bytes 299900-299999/300000".to_owned(), bytes.slice(299_900..)),
    ];
    assert_eq!(parts(&answer), expected);
}

#[tokio::test]
async fn of_several_ranges_those_that_cannot_be_met_are_left_out() {
    let held = Held::warm(2048).await;
    let answer = held.range("bytes=100-199,5000-6000").await;
    if answer.header("content-type").starts_with("multipart") {
        assert_eq!(
            parts(&answer),
            [("bytes 100-199/2048".to_owned(), held.blob.bytes.slice(100..200))]
        );
    } else {
        held.is_part(&answer, 100, 199);
    }
}

/// containers/image would make a corrupt layer of a single part, and dies of a 416.
#[tokio::test]
async fn t8_more_ranges_than_anyone_needs_do_not_multiply_the_answer() {
    let held = Held::warm(50_000).await;
    let many = |part: &str, times: usize| format!("bytes={}", vec![part; times].join(","));
    for range in [many("0-", 150), many("0-49999", 150), many("-49999", 20), many("1-1", 1000)] {
        let answer = held.range(&range).await;
        assert!([200, 206, 400].contains(&answer.status), "{range:.30}: {}", answer.status);
        assert!(answer.body.len() < 150_000, "{range:.30}: {} bytes", answer.body.len());
        assert!(answer.status != 206 || answer.header("content-type").starts_with("multipart"));
        assert!(answer.status != 200 || answer.is(&held.blob.bytes));
    }
    let far_too_many = many("0-0", 10_000);
    let answer = held.range(&far_too_many).await;
    assert!(
        answer.is(&held.blob.bytes) || (400..500).contains(&answer.status),
        "{}",
        answer.status
    );
}

#[tokio::test]
async fn t8_head_ignores_a_range() {
    let held = Held::warm(2048).await;
    let answer = held.mirror.head(&held.path).header("range", "bytes=5-9").answer().await;
    assert_eq!((answer.status, answer.header("content-length")), (200, "2048"));
    assert_eq!(answer.header("content-range"), "");
}

#[tokio::test]
async fn a_range_of_a_missing_blob_starts_one_fill_of_all_of_it() {
    let held = Held::cold(1_000_000).await;
    held.is_part(&held.range("bytes=600000-600099").await, 600_000, 600_099);
    assert!(held.mirror.get(&held.path).answer().await.is(&held.blob.bytes));
    held.is_part(&held.range("bytes=-10").await, 999_990, 999_999);
    assert_eq!(held.upstream.sent(&On::get("/blobs/")), 1_000_000, "{}", held.upstream.story());
}

#[tokio::test]
async fn a_missing_blob_answers_every_form_of_range() {
    let cases = [
        ("bytes=0-", 0, 99_999),
        ("bytes=-500", 99_500, 99_999),
        ("bytes=99000-500000", 99_000, 99_999),
        ("bytes=99999-", 99_999, 99_999),
    ];
    for (range, first, last) in cases {
        let held = Held::cold(100_000).await;
        held.is_part(&held.range(range).await, first, last);
    }
    let held = Held::cold(100_000).await;
    let answer = held.range("bytes=100000-").await;
    assert_eq!((answer.status, answer.header("content-range")), (416, "bytes */100000"));
    let held = Held::cold(100_000).await;
    let answer = held.range("bytes=0-9,99990-").await;
    assert_eq!(parts(&answer)[1].1, held.blob.bytes.slice(99_990..));
}

/// dockerd, stargz and containerd's parallel chunks depend on it.
#[tokio::test]
async fn ranges_of_a_blob_that_is_still_arriving_are_right_and_do_not_wait_for_the_rest() {
    let held = Held::cold(4_000_000).await;
    let gate = Gate::closed();
    held.upstream.always(On::get("/blobs/"), Fault::HoldAfter(2_000_000, gate.clone()));
    let whole = held.mirror.get(&held.path).open().await;
    held.upstream.until_sent(2_000_000, &On::get("/blobs/")).await;

    held.is_part(&held.range("bytes=0-99").await, 0, 99);
    held.is_part(&held.range("bytes=1000000-1499999").await, 1_000_000, 1_499_999);
    let answer = held.range("bytes=0-9,1000000-1000009").await;
    assert_eq!(parts(&answer)[1].1, held.blob.bytes.slice(1_000_000..1_000_010));
    let beyond = held.range("bytes=4000000-").await;
    assert_eq!((beyond.status, beyond.header("content-range")), (416, "bytes */4000000"));
    // The size is known, so the head of a part that has not arrived need not wait either.
    let mut tail = held.mirror.get(&held.path).header("range", "bytes=-1000").open().await;
    assert_eq!(tail.status, 206);
    assert_eq!(tail.headers["content-range"], "bytes 3999000-3999999/4000000");

    gate.open();
    assert_eq!(tail.at_least(1000).await, held.blob.bytes.slice(3_999_000..));
    assert!(whole.brings(&held.blob.bytes).await);
    assert_eq!(held.upstream.sent(&On::get("/blobs/")), 4_000_000, "{}", held.upstream.story());
}

/// containerd reads chunks as open-ended ranges and hangs up after each.
#[tokio::test]
async fn open_ended_readers_that_hang_up_neither_stop_nor_multiply_the_fill() {
    let held = Held::cold(4_000_000).await;
    let readers = (0..8).map(async |chunk| {
        let first = chunk * 500_000;
        let ask = held.mirror.get(&held.path).header("range", &format!("bytes={first}-"));
        let mut reading = ask.open().await;
        assert_eq!(reading.status, 206);
        let bytes = reading.at_least(500_000).await;
        assert!(bytes[..500_000] == held.blob.bytes[first..first + 500_000]);
    });
    join_all(readers).await;
    held.upstream.until_ended(&On::get("/blobs/")).await;
    assert_eq!(held.upstream.sent(&On::get("/blobs/")), 4_000_000, "{}", held.upstream.story());
    assert!(held.mirror.get(&held.path).answer().await.is(&held.blob.bytes));
    assert_eq!(held.upstream.count(&On::get("/blobs/")), 1);
}

#[tokio::test]
async fn t9_a_matching_etag_is_a_304() {
    let held = Held::warm(2048).await;
    let etag = format!("\"{}\"", held.blob.digest);
    let matching = [etag.clone(), format!("W/{etag}"), format!("\"x\", {etag}"), "*".to_owned()];
    for tag in matching {
        for ask in [held.mirror.get(&held.path), held.mirror.head(&held.path)] {
            let answer = ask.header("if-none-match", &tag).answer().await;
            assert_eq!((answer.status, answer.body.len()), (304, 0), "{tag}");
            assert_eq!(answer.header("etag"), etag);
        }
    }
    let digest = &held.blob.digest;
    let others = [
        "\"x\"".to_owned(),
        "W/\"x\"".to_owned(),
        "x".to_owned(),
        format!("\"{}\"", &digest[..20]),
        format!("\"{digest}0\""),
        format!("{}0", &digest[..digest.len() - 1]),
        format!("\"{}\"", digest.to_uppercase()),
        "\"*\"".to_owned(),
    ];
    for tag in others {
        let answer = held.mirror.get(&held.path).header("if-none-match", &tag).answer().await;
        assert!(answer.is(&held.blob.bytes), "{tag}");
    }
}

#[tokio::test]
async fn t9_a_matching_etag_of_a_manifest_is_a_304_too() {
    let upstream = Upstream::start().await;
    let image = crate::support::image::oci(1).build();
    upstream.push("team/app", "v1", &image);
    let mirror = before(&upstream).start().await;
    mirror.pull("team/app", "v1", &image).await;
    let etag = format!("\"{}\"", image.manifest.digest);
    let ask = mirror.get("/v2/team/app/manifests/v1").header("if-none-match", &etag);
    assert_eq!(ask.answer().await.status, 304);
    let ask = mirror.get("/v2/team/app/manifests/v1").header("if-none-match", "\"sha256:0\"");
    assert!(ask.answer().await.is(&image.manifest.bytes));
}

#[tokio::test]
async fn if_range_with_another_etag_yields_the_whole() {
    let held = Held::warm(2048).await;
    let ask = |etag: &str| {
        held.mirror.get(&held.path).header("range", "bytes=0-9").header("if-range", etag)
    };
    held.is_part(&ask(&format!("\"{}\"", held.blob.digest)).answer().await, 0, 9);
    assert!(ask("\"another\"").answer().await.is(&held.blob.bytes));
}
