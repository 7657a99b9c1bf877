//! What do the parts of a pull cost, each by itself? `cargo bench --bench parts`, one of them with
//! `cargo bench --bench parts -- digest`. The gate runs each once (`cargo test --bench parts`), which shows that it works.
//!
//! Times of a shared machine drift: compare runs that follow each other (`--save-baseline`, `--baseline`). What
//! must not grow unseen is counted in instructions, by `benches/instructions.py`.

#![expect(clippy::unwrap_used, reason = "a bench that fails shall say where")]

use criterion::{criterion_group, criterion_main};

mod fills;
mod heads;
mod held;
mod words;

criterion_group!(
    parts,
    words::routes,
    words::names,
    words::digests,
    words::ranges,
    words::hashing,
    heads::answers,
    heads::ready,
    held::index,
    held::store,
    fills::watermark,
);
criterion_main!(parts);
