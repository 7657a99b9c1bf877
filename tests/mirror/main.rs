//! Drives the real binary over real sockets, against a scripted upstream.
//!
//! A test that waits, waits for something that was recorded or for a gate it opens itself; times
//! are only guards against hangs. `scripts` tests the scripted upstream.

#![expect(
    clippy::disallowed_methods,
    reason = "tests look into files; they serve nobody meanwhile"
)]
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::large_stack_arrays,
    clippy::assigning_clones,
    reason = "a test that cannot go on says so, and its sizes are small"
)]
#![expect(clippy::print_stderr, reason = "the mirror's log is shown where a test failed")]

mod admin;
mod advisories;
mod attacks;
mod bounds;
mod broken;
mod clients;
mod crash;
mod crowds;
mod docs;
mod fills;
mod fills_seen;
mod full_disk;
mod hosted_crash;
mod hosted_events;
mod hosted_gc;
mod hosted_manifests;
mod hosted_push;
mod hosted_rights;
mod hosted_rules;
mod joined;
mod keys;
mod life;
mod limits;
mod listeners;
mod load;
mod logins;
mod malformed;
mod manifests;
mod many;
mod memory;
mod ops;
mod outages;
mod pages;
mod passthrough;
mod prefetch;
mod pull;
mod ranges;
mod redirects;
mod registries;
mod reload;
mod rot;
mod routing;
mod scripts;
mod segments;
mod smuggling;
mod support;
mod tags;
mod through;
mod tls;
mod tokens;
#[cfg(feature = "otel")]
mod traces;
mod upgrade;
mod upstreams;
