//! See `pierhead::fuzz::manifests`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pierhead::fuzz::manifests(data));
