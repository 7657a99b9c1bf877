//! See `pierhead::fuzz::heads`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pierhead::fuzz::heads(data));
