//! Pierhead is a pull-through caching mirror for container registries.
//!
//! # The life of one pull
//!
//! A client asks for `/v2/library/alpine/manifests/3.20`. [`server`] reads the request; [`route`]
//! turns it into one enum, purely: which upstream, which repository, what of it. The server admits
//! it or not, before anything is looked up. A tag is turned into a digest by [`manifests`]: from a fresh
//! record, by a `HEAD` upstream, or from a stale record where the upstream fails. Content is found in
//! [`store`], in memory or on [`disk`], or it is filled: a [`fill`] is one detached task per digest
//! that asks its [`upstream`], hashes while it writes, and is followed by all who wait ([`blobs`]). [`answer`]
//! makes headers of what was found, and [`respond`] sends it.
//!
//! # Floors
//!
//! A file uses only files of its own floor that are listed before it, and lower floors;
//! `tests/tidy.rs` keeps it so.

// Words: pure, no I/O, no clock, no log.
pub mod error;

pub mod limits;

pub mod digest;

pub mod name;

pub mod range;

pub mod media;

pub mod pushed;

pub mod patterns;

pub mod cache;

// The configuration is read by all floors above the words.
pub mod config;

// Decisions: pure, time is passed in.
pub mod route;

pub mod freshness;

pub mod index;

pub mod spares;

pub mod rules;

pub mod pass;

pub mod scope;

// Machines: they wait, they touch disk and network; they do not know Pingora.
pub mod metrics;

pub mod traces;

pub mod flight;

pub mod disk;

pub mod blocks;

pub mod held;

pub mod keeper;

pub mod store;

pub mod sendfile;

pub mod catalog;

pub mod pins;

pub mod purge;

pub mod upstream;

pub mod relay;

pub mod fill;

pub mod filling;

pub mod upkeep;

pub mod prefetch;

pub mod manifests;

pub mod begun;

pub mod blobs;

pub mod pages;

pub mod hosted;

pub mod uploads;

pub mod watched;

pub mod certificates;

pub mod people;

pub mod steward;

pub mod issuer;

pub mod rights;

pub mod handover;

// Shell: sockets, answers, commands.
pub mod telemetry;

pub mod hot;

pub mod respond;

pub mod account;

pub mod express;

pub mod answer;

pub mod receive;

pub mod doors;

pub mod hosting;

pub mod through;

pub mod pacing;

pub mod transport;

pub mod server;

pub mod ops;

pub mod admin;

pub mod run;

pub mod client;

pub mod demo;

pub mod cli;

// Called by fuzzers alone.
#[doc(hidden)]
pub mod fuzz;
