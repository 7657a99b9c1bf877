//! See `pierhead::fuzz::ranges`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pierhead::fuzz::ranges(data));
