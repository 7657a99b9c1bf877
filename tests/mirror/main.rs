//! Drives the real binary over real sockets, against a scripted upstream.
//!
//! A test that waits, waits for something that was recorded or for a gate it opens itself; times
//! are only guards against hangs. `scripts` tests the scripted upstream.

#![expect(
    clippy::disallowed_methods,
    reason = "tests look into files; they serve nobody meanwhile"
)]
#![expect(clippy::print_stderr, reason = "the mirror's log is shown where a test failed")]

mod advisories;
mod broken;
mod clients;
mod fills;
mod life;
mod limits;
mod malformed;
mod manifests;
mod pages;
mod passthrough;
mod pull;
mod ranges;
mod redirects;
mod routing;
mod scripts;
mod smuggling;
mod support;
mod tags;
mod tls;
mod tokens;
mod upstreams;
