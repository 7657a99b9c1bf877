//! See `pierhead::fuzz::names`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pierhead::fuzz::names(data));
