//! See `pierhead::fuzz::digests`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pierhead::fuzz::digests(data));
