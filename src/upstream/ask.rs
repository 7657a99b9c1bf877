//! What is asked of an upstream, and how its answers are read.

use std::ops::Range;
use std::time::{Duration, SystemTime};

use http::header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, Method, StatusCode};

use super::token::Bearer;
use crate::digest::Digest;
use crate::error::{Error, Kind};
use crate::media::{ACCEPT_MANIFESTS, OCI_INDEX};
use crate::name::{Reference, Repository};

/// The kinds of request, as they stand in logs and metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Object {
    /// A manifest.
    Manifest,
    /// A blob.
    Blob,
    /// A list of tags.
    Tags,
    /// What is attached to a manifest.
    Referrers,
    /// Whether it lets us in at all.
    Ping,
    /// A push on its way.
    Upload,
}

/// What a token has to be good for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Needs {
    /// Reading.
    #[default]
    Pull,
    /// Writing, and reading where something is mounted from.
    Push(Option<Repository>),
    /// Removing.
    Delete,
}

impl Object {
    /// The word for logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Manifest => "manifest",
            Self::Blob => "blob",
            Self::Tags => "tags",
            Self::Referrers => "referrers",
            Self::Ping => "ping",
            Self::Upload => "upload",
        }
    }
}

/// One question to an upstream.
#[derive(Clone, Debug)]
pub struct Ask {
    /// `GET` or `HEAD`.
    pub method: Method,
    /// What kind of thing it is about.
    pub object: Object,
    /// Whose it is; the token's scope follows from it.
    pub repository: Repository,
    /// Path behind `/v2/`, with its query.
    pub path: String,
    /// The `Accept` header.
    pub accept: &'static str,
    /// From which byte on, and up to which one where only part is wanted.
    pub range: Option<(u64, Option<u64>)>,
    /// What its token has to be good for.
    pub needs: Needs,
}

impl Ask {
    fn new(method: Method, object: Object, repository: &Repository, path: String) -> Self {
        let accept = match object {
            Object::Manifest => ACCEPT_MANIFESTS,
            Object::Referrers => OCI_INDEX,
            Object::Tags | Object::Ping => "application/json",
            Object::Blob | Object::Upload => "*/*",
        };
        let (repository, needs) = (repository.clone(), Needs::Pull);
        Self { method, object, repository, path, accept, range: None, needs }
    }

    /// Something that changes a repository, by its path and query behind `/v2/`.
    pub fn change(
        method: Method,
        object: Object,
        repository: &Repository,
        path: String,
        needs: Needs,
    ) -> Self {
        Self { needs, ..Self::new(method, object, repository, path) }
    }

    /// A manifest, or with `HEAD` only what it is.
    pub fn manifest(method: Method, repository: &Repository, reference: &Reference) -> Self {
        Self::new(
            method,
            Object::Manifest,
            repository,
            format!("{repository}/manifests/{reference}"),
        )
    }

    /// A blob, or with `HEAD` only its size.
    pub fn blob(method: Method, repository: &Repository, digest: &Digest) -> Self {
        Self::new(method, Object::Blob, repository, format!("{repository}/blobs/{digest}"))
    }

    /// A blob from byte `from` on.
    pub fn blob_from(repository: &Repository, digest: &Digest, from: u64) -> Self {
        let mut ask = Self::blob(Method::GET, repository, digest);
        ask.range = (from > 0).then_some((from, None));
        ask
    }

    /// A part of a blob, which is not empty.
    pub fn blob_part(repository: &Repository, digest: &Digest, part: Range<u64>) -> Self {
        let mut ask = Self::blob(Method::GET, repository, digest);
        ask.range = Some((part.start, Some(part.end.saturating_sub(1))));
        ask
    }

    /// One byte of a blob: proof that it is there where `HEAD` is no proof, as with presigned
    /// redirects and ECR Public.
    pub fn blob_proof(repository: &Repository, digest: &Digest) -> Self {
        let mut ask = Self::blob(Method::GET, repository, digest);
        ask.range = Some((0, Some(0)));
        ask
    }

    /// Whether the upstream lets us in at all; for no repository in particular.
    pub fn ping(repository: &Repository) -> Self {
        Self::new(Method::GET, Object::Ping, repository, String::new())
    }

    /// The scope of a token that opens this; empty for none. Who is about to push reads with the
    /// same token, since what does not exist yet is shown to nobody else.
    pub(super) fn scope(&self, bearer: &Bearer, pushes: bool) -> String {
        let actions = match &self.needs {
            _ if self.object == Object::Ping => return String::new(),
            Needs::Delete => "delete",
            Needs::Push(_) => "pull,push",
            Needs::Pull if pushes => "pull,push",
            Needs::Pull => "pull",
        };
        let scope = bearer.scope_for(self.repository.as_str(), actions);
        match &self.needs {
            Needs::Push(Some(from)) => {
                format!("{scope} {}", bearer.scope_for(from.as_str(), "pull"))
            }
            _ => scope,
        }
    }

    /// A page of a list, by its path and query behind `/v2/`.
    pub fn page(object: Object, repository: &Repository, path: String) -> Self {
        Self::new(Method::GET, object, repository, path)
    }

    /// The value of the `Range` header.
    pub fn range_header(&self) -> Option<String> {
        self.range.map(|(from, to)| match to {
            Some(to) => format!("bytes={from}-{to}"),
            None => format!("bytes={from}-"),
        })
    }

    /// What an upstream's 404 means for this question.
    fn absent(&self) -> Kind {
        match self.object {
            Object::Manifest | Object::Referrers => Kind::ManifestUnknown,
            Object::Blob => Kind::BlobUnknown,
            Object::Upload => Kind::BlobUploadUnknown,
            Object::Tags | Object::Ping => Kind::NameUnknown,
        }
    }

    /// Turns a status that is no success into an error that names the upstream. `said` is the
    /// upstream's own message.
    pub fn failure(
        &self,
        upstream: &str,
        status: StatusCode,
        headers: &HeaderMap,
        said: Option<&str>,
    ) -> Error {
        let what = format!("{} of {}", self.object.as_str(), self.repository);
        let said = said.map(|s| format!(": {s}")).unwrap_or_default();
        let act = match self.needs {
            Needs::Pull => "read",
            Needs::Push(_) => "push",
            Needs::Delete => "delete",
        };
        let error = match status.as_u16() {
            404 | 410 => Error::new(self.absent(), format!("{upstream} has no such {what}")),
            401 | 403 => Error::new(
                Kind::Denied,
                format!(
                    "{upstream} does not let this mirror {act} the {what} (it answered {status}{said}); it does not exist, or the upstream's `auth` needs credentials that may {act} it"
                ),
            ),
            429 => Error::new(
                Kind::TooManyRequests,
                format!("{upstream} limits requests (429{said}), and the {what} is not held"),
            ),
            408 | 500..=599 => Error::new(
                Kind::Unavailable,
                format!("{upstream} answered {status} for the {what}{said}"),
            ),
            _ => Error::new(
                Kind::BadUpstream,
                format!("{upstream} answered {status} for the {what}{said}, which is not expected"),
            ),
        };
        match retry_after(headers, SystemTime::now()) {
            Some(wait) => error.retry_after(wait),
            None => error,
        }
    }
}

/// `Retry-After`, in seconds or as a date.
pub fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse::<u64>() {
        return Some(Duration::from_secs(seconds.min(3600)));
    }
    let date = jiff::fmt::rfc2822::parse(text).ok()?;
    Some(
        SystemTime::from(date.timestamp())
            .duration_since(now)
            .unwrap_or_default()
            .min(Duration::from_secs(3600)),
    )
}

/// Where a blob's body begins, and how long the whole blob is, where the answer says so.
///
/// # Errors
/// A sentence for an answer to `range` that is neither the part asked for nor the whole.
pub fn extent(
    status: StatusCode,
    headers: &HeaderMap,
    range: Option<(u64, Option<u64>)>,
) -> Result<(u64, Option<u64>), String> {
    let number = |v: &str| v.trim().parse::<u64>().ok();
    if status == StatusCode::PARTIAL_CONTENT {
        let text = headers.get(CONTENT_RANGE).and_then(|v| v.to_str().ok()).unwrap_or_default();
        let (span, total) = text
            .strip_prefix("bytes ")
            .and_then(|s| s.split_once('/'))
            .ok_or("206 without a Content-Range")?;
        let start = span
            .split_once('-')
            .and_then(|(s, _)| number(s))
            .ok_or("206 with a malformed Content-Range")?;
        if Some(start) != range.map(|(from, _)| from) {
            return Err(format!("206 for another range ({text})"));
        }
        return Ok((start, number(total)));
    }
    let length = headers.get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()).and_then(number);
    Ok((0, length))
}

/// Whether an answer is meant for people: a wrong path on some registries gives their web
/// interface with 200.
pub fn is_web_page(headers: &HeaderMap) -> bool {
    headers
        .get(CONTENT_TYPE)
        .and_then(|v| v.to_str().ok())
        .is_some_and(|t| t.starts_with("text/html"))
}

/// The message of an error body in the specification's form, cut and cleaned for a log line.
pub fn message(body: &[u8]) -> Option<String> {
    let json: serde_json::Value = serde_json::from_slice(body).ok()?;
    let error = &json["errors"][0];
    let text = error["message"]
        .as_str()
        .filter(|m| !m.is_empty())
        .or(error["code"].as_str())
        .or(json["message"].as_str())
        .or(json["details"].as_str())?;
    Some(text.chars().filter(|c| !c.is_control()).take(200).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(http::HeaderName, &str)]) -> HeaderMap {
        pairs.iter().map(|(k, v)| (k.clone(), v.parse().unwrap())).collect()
    }

    #[test]
    fn retry_after_comes_in_two_forms() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        let wait = |v| retry_after(&headers(&[(RETRY_AFTER, v)]), now);
        assert_eq!(wait("7"), Some(Duration::from_secs(7)));
        assert_eq!(wait("Sun, 06 Nov 1994 08:49:47 GMT"), Some(Duration::from_secs(10)));
        assert_eq!(wait("Sun, 06 Nov 1994 08:49:07 GMT"), Some(Duration::ZERO));
        assert_eq!(wait("99999999"), Some(Duration::from_secs(3600)));
        assert_eq!(wait("soon"), None);
    }

    #[test]
    fn an_answer_to_a_range_must_be_that_range_or_the_whole() {
        let partial = |v| {
            extent(StatusCode::PARTIAL_CONTENT, &headers(&[(CONTENT_RANGE, v)]), Some((10, None)))
        };
        assert_eq!(partial("bytes 10-19/20"), Ok((10, Some(20))));
        assert_eq!(partial("bytes 10-19/*"), Ok((10, None)));
        assert!(partial("bytes 9-19/20").is_err() && partial("rubbish").is_err());
        let whole = extent(StatusCode::OK, &headers(&[(CONTENT_LENGTH, "20")]), Some((10, None)));
        assert_eq!(whole, Ok((0, Some(20))));
    }

    #[test]
    fn upstream_messages_are_cleaned() {
        let body = br#"{"errors":[{"code":"X","message":"a\r\nb"}]}"#;
        assert_eq!(message(body).unwrap(), "ab");
        assert_eq!(message(b"<html>"), None);
    }
}
