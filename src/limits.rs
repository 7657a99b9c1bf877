//! Every hard bound, with its reason. What an operator may tune is in `config`.

use std::time::Duration;

/// A manifest's size. The specification asks for at least 4 MB; distribution and containers/image
/// stop at 4 MiB, containerd at 4·1048·1048.
pub const MANIFEST_BYTES_MAX: usize = 4 * 1024 * 1024;

/// A token service's answer. go-containerregistry takes 64 KiB; some registries send long JWTs.
pub const TOKEN_BYTES_MAX: usize = 256 * 1024;

/// A page of tags or referrers, and an upstream's error body that is read for its message.
pub const PAGE_BYTES_MAX: usize = 8 * 1024 * 1024;

/// An upstream's error body, of which only the message is looked at.
pub const ERROR_BODY_BYTES_MAX: usize = 16 * 1024;

/// Redirects followed for one request; real registries use one or two.
pub const REDIRECTS_MAX: usize = 5;

/// A request's path. The longest lawful one: name (255), tag (128) or sha512 digest, and words.
pub const PATH_BYTES_MAX: usize = 1024;

/// A repository name: what clients allow for host and name together.
pub const NAME_BYTES_MAX: usize = 255;

/// A tag, by the specification's grammar.
pub const TAG_BYTES_MAX: usize = 128;

/// Ranges in one request; more are answered with the whole blob. zstd:chunked asks for dozens.
pub const RANGES_MAX: usize = 200;

/// Pages of referrers followed for one answer, against a `Link` that leads to itself.
pub const REFERRER_PAGES_MAX: usize = 20;

/// JSON nesting in a manifest. Real ones need five levels; `serde_json` itself stops at 128.
pub const MANIFEST_DEPTH_MAX: usize = 24;

/// Names in one page of tags or of the catalog, however many are asked for: more pages follow.
pub const PAGE_NAMES_MAX: usize = 10_000;

/// Descriptors in one page of a hosted repository's referrers.
pub const PAGE_REFERRERS_MAX: usize = 1000;

/// Where a page of referrers ends, as annotations make descriptors large.
pub const PAGE_REFERRERS_BYTES_MAX: usize = 2 * 1024 * 1024;

/// Tags that one push of a manifest may set. The specification asks for 10 at least.
pub const PUSHED_TAGS_MAX: usize = 64;

/// Uploads under way whose file and hash are kept open; others are read anew when they go on.
pub const UPLOADS_OPEN_MAX: usize = 128;

/// Uploads that write at the same moment. Each keeps a thread while its client sends.
pub const WRITERS_MAX: usize = 256;

/// Threads for work that blocks: uploads keep one each, and there must be some left for fills and
/// all the rest. They are made when they are needed, and end when they are not.
pub const BLOCKING_THREADS_MAX: usize = 2048;

/// Uploads begun and not ended, each two small files at least. More are refused.
pub const UPLOADS_MAX: usize = 4096;

/// What is kept back of a blob until its digest is known to be right.
pub const HOLD_BACK_BYTES: u64 = 16 * 1024;

/// Content up to this size is held in memory as bytes; larger content as an open file.
pub const SMALL_BYTES_MAX: u64 = 128 * 1024;

/// One read or send of a file: large enough that a system call is cheap beside it.
pub const SLICE_BYTES: usize = 512 * 1024;

/// What is copied at a time through TLS and HTTP/2, and held while a client's socket is full: with
/// a thousand slow clients, this a thousand times.
pub const COPY_BYTES: u64 = 64 * 1024;

/// The longest wait for an upstream's first word, all attempts together: containerd (2.3 on) gives
/// up after 30 s without a response head, so an error must be out before that.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(25);

/// How long an absence (404) is believed. Signing tools ask, create and ask again: seconds only.
pub const ABSENT_FOR: Duration = Duration::from_secs(3);

/// The same for tags of signatures and the like, which are asked for right after they are made.
pub const ABSENT_ATTACHED_FOR: Duration = Duration::from_secs(1);

/// The floor of a token's life by the token specification, where the answer names none.
pub const TOKEN_LIFE_DEFAULT: Duration = Duration::from_secs(60);

/// What a credential helper has to answer within, and how much it may say. Helpers ask key chains
/// and clouds; a client waits for `ANSWER_WITHIN` all in all.
pub const HELPER_WITHIN: Duration = Duration::from_secs(10);
/// See [`HELPER_WITHIN`].
pub const HELPER_BYTES_MAX: u64 = 64 * 1024;

/// How long a helper's answer is believed. The protocol names no end, and access tokens live for an
/// hour at least; one that is refused earlier is asked for anew at once.
pub const HELPER_ANSWER_FOR: Duration = Duration::from_secs(600);

/// How long a failure to get a login is believed, so that a storm of pulls does not start a storm
/// of helpers.
pub const LOGIN_FAILURE_FOR: Duration = Duration::from_secs(3);

/// How often a held login is dropped because it was refused: it may have ended, or may merely lack
/// a right, and the latter is no reason to ask a cloud each time.
pub const LOGIN_DROPPED_EVERY: Duration = Duration::from_secs(30);

/// Where little is left of a limit, how often the upstream is asked all the same to see whether
/// that is still so, if a `HEAD` does; Docker Hub does not count those.
pub const BUDGET_LOOK_EVERY: Duration = Duration::from_secs(60);

/// How long nobody asks an upstream that said 429 without a time; doubles up to the longest.
pub const LIMIT_PAUSE_FIRST: Duration = Duration::from_secs(2);
/// See [`LIMIT_PAUSE_FIRST`].
pub const LIMIT_PAUSE_MAX: Duration = Duration::from_secs(300);

/// Fills under way at once from one upstream; more wait their turn.
pub const FILLS_MAX: usize = 128;

/// Transfers in all that help others with parts of large blobs.
pub const FILL_HELPERS_MAX: usize = 24;

/// Transfers that may be configured for one blob: beyond this a registry takes it for abuse.
pub const SEGMENTS_MAX: usize = 16;

/// Bytes of one fill that wait to be written; its upstream waits where there are more.
pub const FILL_BYTES_WAITING: u32 = 256 * 1024;

/// Fills that write at the same moment, each on a thread of its own for as long: enough for any
/// disk's queue.
pub const FILLS_WRITING_MAX: usize = 16;

/// Open files held for content; each costs a descriptor.
pub const OPEN_FILES_MAX: u64 = 1024;

/// Tag and link records held in memory, a few hundred bytes each.
pub const RECORDS_MAX: u64 = 100_000;

/// A `Location` with its query that an upstream gives for an upload. Sealed and in letters it still has
/// to fit into a request's query.
pub const LOCATION_BYTES_MAX: usize = 2048;

/// How long an upstream may think about a push once all of it is sent: some put a large blob together
/// from its parts, and hash it, before they answer.
pub const PUSHED_WITHIN: Duration = Duration::from_secs(300);

/// How long the transfers of a process that has handed over may go on. A client that takes nothing is
/// cut off long before; what takes an hour is a slow line, and the next upgrade waits for it.
pub const HANDED_OVER_DRAIN: Duration = Duration::from_secs(3600);
