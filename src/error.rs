//! The one error type: what failed, whose fault it was, and what the client is told.
//!
//! `Kind` is the whole vocabulary. One table turns it into the distribution specification's code
//! and an HTTP status; the message is for the person who reads it, the source only for the log.

use std::fmt;
use std::time::Duration;

use http::StatusCode;

/// `Retry-After` where an upstream is down and named no time itself.
const RETRY_AFTER_OUTAGE: Duration = Duration::from_secs(5);

/// `Retry-After` where an upstream limits requests and named no time itself.
const RETRY_AFTER_LIMIT: Duration = Duration::from_secs(60);

/// The result of everything that can fail while a request is served.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Who has to do something about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The request was wrong, or is not allowed.
    Client,
    /// The registry behind the mirror failed, lied or refused.
    Upstream,
    /// The mirror itself failed: disk, memory, a bug.
    Mirror,
}

/// What went wrong, in as many kinds as there are different answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A repository name outside the specification's grammar.
    NameInvalid,
    /// No such repository, or no upstream configured for it.
    NameUnknown,
    /// A tag outside the specification's grammar.
    TagInvalid,
    /// A digest outside the grammar, or of an unknown algorithm.
    DigestInvalid,
    /// No such manifest.
    ManifestUnknown,
    /// A manifest that must not be served: ambiguous, too deep, of an old schema.
    ManifestInvalid,
    /// No such blob.
    BlobUnknown,
    /// A manifest that is pushed and names content which its repository does not have.
    ManifestBlobUnknown,
    /// No such upload, or somebody else's.
    BlobUploadUnknown,
    /// A length that is not the announced one.
    SizeInvalid,
    /// A body larger than what is taken.
    TooLarge,
    /// A range that cannot be met.
    RangeInvalid,
    /// A page size or position that makes no sense.
    PaginationInvalid,
    /// A request that is not understood.
    BadRequest,
    /// A path under `/v2/` that the specification does not know.
    PathUnknown,
    /// A method that is not allowed here.
    Unsupported,
    /// The caller has not shown who he is, or not in a way that is believed.
    Unauthorized,
    /// The caller may not do this.
    Denied,
    /// The upstream's rate limit is used up and nothing is held.
    TooManyRequests,
    /// The upstream cannot be reached, or answers with 5xx, and nothing is held.
    Unavailable,
    /// The mirror's own login for the upstream cannot be had: a helper, a file or a cloud fails.
    NoLogin,
    /// The upstream answered with something that cannot be used.
    BadUpstream,
    /// The mirror cannot keep this: its disk is full or fails. Those who wait go on without it.
    DiskFailed,
    /// The disk is full.
    StorageFull,
    /// The mirror failed.
    Internal,
}

impl Kind {
    /// The specification's error code and the HTTP status. The codes outside the specification
    /// (`RANGE_INVALID`, `PAGINATION_NUMBER_INVALID`, `UNAVAILABLE`, `UNKNOWN`) are distribution's.
    pub fn answer(self) -> (&'static str, StatusCode) {
        match self {
            Self::NameInvalid => ("NAME_INVALID", StatusCode::BAD_REQUEST),
            Self::NameUnknown => ("NAME_UNKNOWN", StatusCode::NOT_FOUND),
            Self::TagInvalid => ("TAG_INVALID", StatusCode::BAD_REQUEST),
            Self::DigestInvalid => ("DIGEST_INVALID", StatusCode::BAD_REQUEST),
            Self::ManifestUnknown => ("MANIFEST_UNKNOWN", StatusCode::NOT_FOUND),
            Self::ManifestInvalid => ("MANIFEST_INVALID", StatusCode::BAD_REQUEST),
            Self::BlobUnknown => ("BLOB_UNKNOWN", StatusCode::NOT_FOUND),
            Self::ManifestBlobUnknown => ("MANIFEST_BLOB_UNKNOWN", StatusCode::BAD_REQUEST),
            Self::BlobUploadUnknown => ("BLOB_UPLOAD_UNKNOWN", StatusCode::NOT_FOUND),
            Self::SizeInvalid => ("SIZE_INVALID", StatusCode::BAD_REQUEST),
            Self::TooLarge => ("SIZE_INVALID", StatusCode::PAYLOAD_TOO_LARGE),
            Self::RangeInvalid => ("RANGE_INVALID", StatusCode::RANGE_NOT_SATISFIABLE),
            Self::PaginationInvalid => ("PAGINATION_NUMBER_INVALID", StatusCode::BAD_REQUEST),
            Self::BadRequest => ("UNSUPPORTED", StatusCode::BAD_REQUEST),
            Self::PathUnknown => ("NAME_UNKNOWN", StatusCode::NOT_FOUND),
            Self::Unsupported => ("UNSUPPORTED", StatusCode::METHOD_NOT_ALLOWED),
            Self::Unauthorized => ("UNAUTHORIZED", StatusCode::UNAUTHORIZED),
            Self::Denied => ("DENIED", StatusCode::FORBIDDEN),
            Self::TooManyRequests => ("TOOMANYREQUESTS", StatusCode::TOO_MANY_REQUESTS),
            Self::Unavailable | Self::NoLogin => ("UNAVAILABLE", StatusCode::SERVICE_UNAVAILABLE),
            Self::BadUpstream => ("UNKNOWN", StatusCode::BAD_GATEWAY),
            Self::StorageFull => ("UNAVAILABLE", StatusCode::INSUFFICIENT_STORAGE),
            Self::DiskFailed | Self::Internal => ("UNKNOWN", StatusCode::INTERNAL_SERVER_ERROR),
        }
    }

    /// When trying again may help, where nobody told.
    pub fn retry_after(self) -> Option<Duration> {
        match self {
            Self::TooManyRequests => Some(RETRY_AFTER_LIMIT),
            Self::Unavailable | Self::NoLogin => Some(RETRY_AFTER_OUTAGE),
            _ => None,
        }
    }

    /// Whose fault it is.
    pub fn fault(self) -> Fault {
        match self {
            Self::TooManyRequests | Self::Unavailable | Self::NoLogin | Self::BadUpstream => {
                Fault::Upstream
            }
            Self::DiskFailed | Self::StorageFull | Self::Internal => Fault::Mirror,
            _ => Fault::Client,
        }
    }
}

/// An error with its kind, a sentence for the client, and its cause for the log.
#[derive(Clone)]
pub struct Error(Box<Inner>);

#[derive(Clone)]
struct Inner {
    kind: Kind,
    message: String,
    retry_after: Option<Duration>,
    allow: Option<&'static str>,
    source: Option<std::sync::Arc<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error of `kind`; `message` is shown to the client: lower case, no full stop, names the object.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self(Box::new(Inner {
            kind,
            message: message.into(),
            retry_after: None,
            allow: None,
            source: None,
        }))
    }

    /// The mirror's own failure; the cause goes to the log, never to the client.
    pub fn internal(
        message: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::new(Kind::Internal, message).because(source)
    }

    /// Adds the cause.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.0.source = Some(source.into().into());
        self
    }

    /// The same, told as another kind; when to try again stays.
    #[must_use]
    pub fn with_kind(mut self, kind: Kind) -> Self {
        self.0.retry_after = self.wait().or_else(|| self.kind().retry_after());
        self.0.kind = kind;
        self
    }

    /// Adds when trying again may help.
    #[must_use]
    pub fn retry_after(mut self, wait: Duration) -> Self {
        self.0.retry_after = Some(wait);
        self
    }

    /// Adds which methods are possible here, for `Allow` beside 405.
    #[must_use]
    pub fn allowing(mut self, methods: &'static str) -> Self {
        self.0.allow = Some(methods);
        self
    }

    /// Which methods are possible here; those of reading where nothing else was said.
    pub fn allowed(&self) -> &'static str {
        self.0.allow.unwrap_or("GET, HEAD")
    }

    /// What went wrong.
    pub fn kind(&self) -> Kind {
        self.0.kind
    }

    /// The sentence for the client.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// When trying again may help.
    pub fn wait(&self) -> Option<Duration> {
        self.0.retry_after
    }

    /// Whether held content may stand in: the upstream could not answer, as opposed to having
    /// answered with a refusal (401, 403) or an absence (404).
    pub fn is_outage(&self) -> bool {
        self.kind().fault() == Fault::Upstream
    }

    /// Whether it is about whoever asked as much as about what was asked for: with other credentials
    /// the answer may be another.
    pub fn is_personal(&self) -> bool {
        let refusal = matches!(
            self.kind(),
            Kind::Denied | Kind::Unauthorized | Kind::TooManyRequests | Kind::NoLogin
        );
        refusal || self.is_absence() // that it is not there is said of what is secret, too
    }

    /// Whether the upstream said that the thing is not there.
    pub fn is_absence(&self) -> bool {
        matches!(self.kind(), Kind::ManifestUnknown | Kind::BlobUnknown | Kind::NameUnknown)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.0.kind, self.0.message)?;
        let mut cause = self.0.source.as_deref().map(|e| e as &dyn std::error::Error);
        while let Some(e) = cause {
            write!(f, ": {e}")?;
            cause = e.source();
        }
        Ok(())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_deref().map(|e| e as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_one_pointer_wide() {
        assert_eq!(size_of::<Error>(), size_of::<usize>());
    }

    #[test]
    fn only_upstream_faults_count_as_outages() {
        assert!(Error::new(Kind::Unavailable, "x").is_outage());
        assert!(!Error::new(Kind::Denied, "x").is_outage());
        assert!(!Error::new(Kind::ManifestUnknown, "x").is_outage());
    }

    #[test]
    fn the_source_stays_out_of_the_message() {
        let e = Error::internal("cannot read blob", std::io::Error::other("secret path"));
        assert_eq!(e.to_string(), "cannot read blob");
        assert!(format!("{e:?}").contains("secret path"));
    }
}
