//! What the book, the README and the other pages say must be so: each configuration is accepted, each command
//! understood, each link leads somewhere, each message is one that the program gives, and the reference of the
//! configuration is what the program has.
//!
//! `UPDATE=1 cargo test --test docs` writes the reference anew.

#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a test that reads the pages, and cannot go on where they are not there"
)]

mod commands;
mod examples;
mod links;
mod messages;
mod page;
mod reference;
