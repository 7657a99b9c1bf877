//! From what was found to an answer: headers, ranges, conditions. No I/O but waiting for a size.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use http::{Method, StatusCode};

use crate::blobs::Blob;
use crate::blocks::Large;
use crate::cache::Cache;
use crate::digest::Digest;
use crate::error::{Error, Kind, Result};
use crate::fill::Follower;
use crate::manifests::Found;
use crate::pages::Tags;
use crate::range::{Ranges, Selection, Span};
use crate::respond::{Answer, Body, Content, Part};
use crate::store;

const DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
const API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");
const FILTERS: HeaderName = HeaderName::from_static("oci-filters-applied");
const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// What of a request decides how content is sent.
#[derive(Debug, Default)]
pub struct Conditions {
    /// `GET` or `HEAD`.
    pub head: bool,
    /// `Range`.
    pub range: Option<String>,
    /// `If-Range`.
    pub if_range: Option<String>,
    /// `If-None-Match`.
    pub if_none_match: Option<String>,
}

/// `GET /v2/`: yes, a registry. Old clients look for the version header.
pub fn ping() -> Answer {
    let mut answer =
        Answer::new(StatusCode::OK, Body::Bytes(Bytes::from_static(b"{}")), Cache::None);
    answer.header(header::CONTENT_TYPE, JSON);
    answer.header(API_VERSION, HeaderValue::from_static("registry/2.0"));
    answer
}

/// A manifest.
pub fn manifest(found: Found, conditions: &Conditions) -> Answer {
    if let Some(answer) = not_modified(&found.digest, conditions, found.cache) {
        return answer;
    }
    let body = match found.content {
        Some(store::Content::Small(bytes)) => Body::Bytes(bytes),
        Some(store::Content::Large(large)) => whole(&large),
        None => Body::Empty(Some(found.size)),
    };
    let mut answer = Answer::new(StatusCode::OK, body, found.cache);
    answer.text(header::CONTENT_TYPE, &*found.media_type);
    answer.header(header::VARY, HeaderValue::from_static("Accept"));
    named(&mut answer, &found.digest);
    answer
}

fn whole(large: &Arc<Large>) -> Body {
    let span = Span { start: 0, end: large.size };
    Body::Parts(Content::Held(Arc::clone(large)), vec![Part { head: Bytes::new(), span }])
}

/// A blob, or the parts of it that were asked for.
///
/// # Errors
/// `RangeInvalid` with the size told by the caller's answer, or the fill's where it failed before
/// its first byte.
pub async fn blob(blob: Blob, digest: &Digest, conditions: &Conditions) -> Result<Answer> {
    let cache = match &blob {
        Blob::Held(_) | Blob::Whole(..) => Cache::Hit,
        Blob::Filling(_, true) => Cache::Collapsed,
        Blob::Filling(_, false) => Cache::Miss,
        Blob::Passing(_) => Cache::Passed,
        Blob::Size(_) => Cache::Bypass,
    };
    if let Some(answer) = not_modified(digest, conditions, cache) {
        return Ok(answer);
    }
    let (content, size, cache) = match blob {
        Blob::Held(store::Content::Small(bytes)) => {
            (Content::Bytes(bytes.clone()), Some(bytes.len() as u64), cache)
        }
        Blob::Held(store::Content::Large(large)) => {
            (Content::Held(Arc::clone(&large)), Some(large.size), cache)
        }
        Blob::Whole(follower, size) => (Content::Fill(Box::new(follower)), Some(size), cache),
        Blob::Size(size) => {
            let answer = Answer::new(StatusCode::OK, Body::Empty(Some(size)), cache);
            return Ok(described(answer, digest));
        }
        Blob::Filling(follower, _) => follow(follower, conditions, cache).await?,
        Blob::Passing(passing) => {
            let size = passing.size();
            (Content::Relay(Box::new(passing)), size, cache)
        }
    };
    let Some(size) = size else {
        let answer = Answer::new(StatusCode::OK, Body::Unsized(content), cache);
        return Ok(described(answer, digest));
    };
    let answer = match selection(conditions, digest, size) {
        Ok(selection) => select(content, size, selection, cache),
        Err(error) => return Ok(unsatisfiable(&error, size)),
    };
    Ok(described(answer, digest))
}

/// Waits until a fill's size is known and its first byte may go out, so that one that fails before
/// that is answered with an error and not with a broken body. Where the upstream is slow, or a
/// range lies far ahead, the client still gets its head in time. Where the disk takes no more, the
/// client's own transfer takes the fill's place.
async fn follow(
    mut follower: Follower,
    conditions: &Conditions,
    cache: Cache,
) -> Result<(Content, Option<u64>, Cache)> {
    const HEAD_WITHIN: std::time::Duration = std::time::Duration::from_secs(5);
    let begun = async {
        let size = size_of(&mut follower, conditions).await?;
        match tokio::time::timeout(HEAD_WITHIN, follower.ready(0)).await {
            Ok(Err(error)) => Err(error),
            Ok(Ok(_)) | Err(_) => Ok(size),
        }
    };
    match begun.await {
        Ok(size) => Ok((Content::Fill(Box::new(follower)), size, cache)),
        Err(error) if error.kind() == Kind::DiskFailed => {
            let relay = follower.relay(0).await?;
            let size = relay.size();
            Ok((Content::Relay(Box::new(relay)), size, Cache::Passed))
        }
        Err(error) => Err(error),
    }
}

/// The size of a fill. Where the upstream does not tell it, a range has to wait for the end: no
/// client can use a part of something whose size it does not learn.
async fn size_of(follower: &mut Follower, conditions: &Conditions) -> Result<Option<u64>> {
    match follower.size().await? {
        Some(size) => Ok(Some(size)),
        None if conditions.range.is_some() || conditions.head => {
            follower.end().await.map(|p| p.size)
        }
        None => Ok(None),
    }
}

fn selection(conditions: &Conditions, digest: &Digest, size: u64) -> Result<Selection> {
    let fits =
        conditions.if_range.as_ref().is_none_or(|tag| tag.trim_matches('"') == digest.to_string());
    match &conditions.range {
        Some(range) if !conditions.head && fits => match Ranges::parse(range)? {
            Some(ranges) => ranges.select(size),
            None => Ok(Selection::Whole),
        },
        _ => Ok(Selection::Whole),
    }
}

fn select(content: Content, size: u64, selection: Selection, cache: Cache) -> Answer {
    let part = |span| Part { head: Bytes::new(), span };
    match selection {
        Selection::Whole => Answer::new(
            StatusCode::OK,
            Body::Parts(content, vec![part(Span { start: 0, end: size })]),
            cache,
        ),
        Selection::One(span) => {
            let mut answer = Answer::new(
                StatusCode::PARTIAL_CONTENT,
                Body::Parts(content, vec![part(span)]),
                cache,
            );
            answer.text(
                header::CONTENT_RANGE,
                format!("bytes {}-{}/{size}", span.start, span.end - 1),
            );
            answer
        }
        Selection::Many(spans) => multipart(content, size, &spans, cache),
    }
}

/// The boundary needs no randomness: nobody searches for it who has the parts' lengths, and
/// clients that do (containers/image) accept letters and digits only.
const BOUNDARY: &str = "pierhead3d6b6a416f9b5part";

fn multipart(content: Content, size: u64, spans: &[Span], cache: Cache) -> Answer {
    let mut parts: Vec<Part> = spans.iter().map(|span| Part {
        head: format!(
            "\r\n--{BOUNDARY}\r\nContent-Type: application/octet-stream\r\nContent-Range: bytes {}-{}/{size}\r\n\r\n",
            span.start, span.end - 1
        ).into(),
        span: *span,
    }).collect();
    parts.push(Part {
        head: format!("\r\n--{BOUNDARY}--\r\n").into(),
        span: Span { start: 0, end: 0 },
    });
    let mut answer = Answer::new(StatusCode::PARTIAL_CONTENT, Body::Parts(content, parts), cache);
    answer.text(header::CONTENT_TYPE, format!("multipart/byteranges; boundary={BOUNDARY}"));
    answer
}

/// Gives a blob's answer the headers that every client is pleased by.
fn described(mut answer: Answer, digest: &Digest) -> Answer {
    if !answer.headers.iter().any(|(name, _)| name == header::CONTENT_TYPE) {
        answer.header(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    }
    answer.header(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    named(&mut answer, digest);
    answer
}

fn named(answer: &mut Answer, digest: &Digest) {
    let text = digest.to_string();
    answer.text(header::ETAG, format!("\"{text}\""));
    answer.text(DIGEST, text);
    answer.header(API_VERSION, HeaderValue::from_static("registry/2.0"));
}

/// 304 for a true match only: digests are strong validators, so weak ones match as well.
fn not_modified(digest: &Digest, conditions: &Conditions, cache: Cache) -> Option<Answer> {
    let tags = conditions.if_none_match.as_ref()?;
    let own = format!("\"{digest}\"");
    let matches = tags
        .split(',')
        .map(str::trim)
        .any(|t| t == "*" || t.strip_prefix("W/").unwrap_or(t) == own);
    matches.then(|| {
        let mut answer = Answer::new(StatusCode::NOT_MODIFIED, Body::Empty(None), cache);
        named(&mut answer, digest);
        answer
    })
}

fn unsatisfiable(error: &Error, size: u64) -> Answer {
    let mut answer = Answer::error(error);
    answer.text(header::CONTENT_RANGE, format!("bytes */{size}"));
    answer
}

/// A page of tags.
pub fn tags(tags: Tags) -> Answer {
    let mut answer = Answer::new(StatusCode::OK, Body::Bytes(tags.body), Cache::Bypass);
    answer.header(header::CONTENT_TYPE, JSON);
    answer.header(API_VERSION, HeaderValue::from_static("registry/2.0"));
    if let Some(link) = tags.link {
        answer.text(header::LINK, link);
    }
    answer
}

/// An index of referrers.
pub fn referrers(index: Bytes, filtered: bool) -> Answer {
    let mut answer = Answer::new(StatusCode::OK, Body::Bytes(index), Cache::Bypass);
    answer.header(header::CONTENT_TYPE, HeaderValue::from_static(crate::media::OCI_INDEX));
    answer.header(API_VERSION, HeaderValue::from_static("registry/2.0"));
    if filtered {
        answer.header(FILTERS, HeaderValue::from_static("artifactType"));
    }
    answer
}

/// `Cache-Status` (RFC 9211).
pub fn cache_status(cache: Cache) -> Option<&'static str> {
    match cache {
        Cache::None => None,
        Cache::Hit => Some("pierhead; hit"),
        Cache::Revalidated => Some("pierhead; hit; detail=revalidated"),
        Cache::Stale => Some("pierhead; hit; fwd=stale; detail=upstream-failed"),
        Cache::Miss => Some("pierhead; fwd=miss; stored"),
        Cache::Passed => Some("pierhead; fwd=miss; detail=not-kept"),
        Cache::Collapsed => Some("pierhead; fwd=miss; collapsed"),
        Cache::Bypass => Some("pierhead; fwd=bypass"),
    }
}

/// An error as this client makes the best of it. containerd and dockerd come back at once on 429
/// or leave for the registry that is limiting them; those who wait as told are told.
pub fn error(error: &Error, user_agent: &str, method: &Method) -> Answer {
    const PATIENT: [&str; 7] =
        ["containers/", "skopeo", "Buildah", "oras", "go-containerregistry", "crane", "Helm"];
    let heeds = PATIENT.iter().any(|p| user_agent.starts_with(p))
        || user_agent.contains("go-containerregistry");
    let mut answer = match error.kind() {
        Kind::TooManyRequests if !heeds => {
            Answer::error(&error.clone().with_kind(Kind::Unavailable))
        }
        _ => Answer::error(error),
    };
    if *method == Method::HEAD
        && let Body::Bytes(bytes) = &answer.body
    {
        answer.body = Body::Empty(Some(bytes.len() as u64));
    }
    answer
}
