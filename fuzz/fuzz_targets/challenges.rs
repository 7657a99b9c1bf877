//! See `pierhead::fuzz::challenges`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pierhead::fuzz::challenges(data));
