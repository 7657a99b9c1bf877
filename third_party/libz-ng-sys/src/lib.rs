//! A stand-in for `libz-ng-sys`: stock zlib under zlib-ng's name.
//!
//! Pingora asks for `flate2` with `zlib-ng`, whose build script runs cmake (cloudflare/pingora#704).
//! Pierhead never calls Pingora's compression, so stock zlib, which builds with the C compiler alone,
//! serves as well. It can go when Pingora lets its users choose the back end.
pub use libz_sys::*;
