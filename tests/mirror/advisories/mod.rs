//! Published attacks, each a test that bears its name.

mod cases;
mod clients;
mod pingora;
mod registries;
