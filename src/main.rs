//! Arguments in, library called, exit code out.

use std::process::ExitCode;

use clap::Parser;
use pierhead::cli::{self, Cli};

/// Many small, short-lived allocations on several threads: measured against the system's own in
/// `benches/README.md`.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // The allocator asks for huge pages, and then each thread's first small object costs 2 MiB: with
    // 64 fills under way that was 192 MB of memory in place of 107, and at rest 23 in place of 17.
    let _ = nix::sys::prctl::set_thp_disable(true);
    // The first provider wins, and reqwest panics without one. Pingora hard-wires ring.
    let _ = rustls::crypto::ring::default_provider().install_default();
    cli::run(Cli::parse())
}
