//! Arguments in, library called, exit code out.

use std::process::ExitCode;

use clap::Parser;
use pierhead::cli::{self, Cli};

/// Many small, short-lived allocations on several threads: measured against the system's own in
/// `benches/README.md`.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // The first provider wins, and reqwest panics without one. Pingora hard-wires ring.
    let _ = rustls::crypto::ring::default_provider().install_default();
    cli::run(Cli::parse())
}
