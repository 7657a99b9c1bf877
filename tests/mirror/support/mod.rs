//! What the tests drive the mirror with: images, a scripted registry, a CDN behind it, the
//! mirror itself as a child process, and clients that behave well or badly.
//!
//! - [`image`] makes content, always the same for the same seed;
//! - [`listener`], [`record`], [`fault`] and [`reply`] are the pieces every scripted server is
//!   made of: a socket that can go away, a memory of what was asked, a list of faults to
//!   commit, and an answer that can be slow, short or wrong;
//! - [`scripted`] puts them together; [`registry`] and [`auth`] say what a registry answers;
//! - [`upstream`] and [`cdn`] are the servers that tests start;
//! - [`cloud`] are the token services of clouds; [`collector`] is who collects traces;
//! - [`mirror`] runs the real binary;
//! - [`secure`] has certificates, and clients that speak TLS;
//! - [`push`] pushes to it; [`pushed`] is a scripted registry that is pushed to, [`raw`] one of bare sockets;
//! - [`client`] asks it; [`cold`] is where most tests of fills begin.

pub(crate) mod auth;
pub(crate) mod cdn;
pub(crate) mod client;
pub(crate) mod cloud;
pub(crate) mod cold;
#[cfg(feature = "otel")]
pub(crate) mod collector;
pub(crate) mod fault;
pub(crate) mod image;
pub(crate) mod listener;
pub(crate) mod mirror;
pub(crate) mod push;
pub(crate) mod pushed;
pub(crate) mod raw;
pub(crate) mod record;
pub(crate) mod registry;
pub(crate) mod reply;
pub(crate) mod scripted;
pub(crate) mod secure;
pub(crate) mod upstream;

use std::time::Duration;

/// How long anything may take before a test calls it a hang. Not a measure of speed.
pub(crate) const HANG: Duration = Duration::from_secs(30);

/// Runs `work` and fails the test with `what` if it hangs.
pub(crate) async fn soon<T>(what: &str, work: impl Future<Output = T>) -> T {
    let done = tokio::time::timeout(HANG, work).await;
    done.unwrap_or_else(|_elapsed| panic!("waited {HANG:?} for {what}"))
}
