//! Where a redirect may lead, and whether credentials go along. Pure.

use std::net::IpAddr;

use url::{Host, Url};

use super::address::Reach;
use crate::error::{Error, Kind, Result};

/// The next request of a chain.
#[derive(Debug)]
pub struct Hop {
    /// Where to.
    pub url: Url,
    /// Whether it is still the same scheme, host and port. Once false it stays false for the rest
    /// of the chain (the class of CVE-2024-45336).
    pub same_origin: bool,
}

/// Judges a `Location` that `from`, at distance `reach`, answered with.
///
/// # Errors
/// `BadUpstream` for one that is missing, is no URL, goes from https to http or to a scheme that
/// is not HTTP, or names an address nearer than its author.
pub fn next(upstream: &str, from: &Url, reach: Reach, location: Option<&str>) -> Result<Hop> {
    let refuse = |why: &str| {
        Error::new(Kind::BadUpstream, format!("{upstream} ({}) redirects {why}", authority(from)))
    };
    let location = location.ok_or_else(|| refuse("without a Location"))?;
    let url = from.join(location).map_err(|_| refuse("to something that is no URL"))?;
    match (from.scheme(), url.scheme()) {
        ("https", "http") => return Err(refuse("from https to http, which is not followed")),
        (_, "http" | "https") => {}
        _ => return Err(refuse("to a scheme that is not HTTP")),
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(refuse("to a URL with credentials in it"));
    }
    if let Some(ip) = literal(&url)
        && url.host() != from.host()
        && !reach.may_name(ip)
    {
        return Err(refuse(&format!("to {ip}, an address that it must not lead to")));
    }
    Ok(Hop { same_origin: url.origin() == from.origin(), url })
}

/// The address in a URL, where it is written as one. `Url` has normalised decimal and octal forms.
pub fn literal(url: &Url) -> Option<IpAddr> {
    match url.host()? {
        Host::Ipv4(ip) => Some(ip.into()),
        Host::Ipv6(ip) => Some(ip.into()),
        Host::Domain("localhost") => Some(std::net::Ipv4Addr::LOCALHOST.into()),
        Host::Domain(_) => None,
    }
}

/// `host:port` for messages.
pub fn authority(url: &Url) -> String {
    match url.port() {
        Some(port) => format!("{}:{port}", url.host_str().unwrap_or_default()),
        None => url.host_str().unwrap_or_default().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn go(from: &str, reach: Reach, to: &str) -> Result<Hop> {
        next("x", &Url::parse(from).unwrap(), reach, Some(to))
    }

    #[test]
    fn credentials_stay_with_their_origin() {
        let same = |to| go("https://a.test/v2/x", Reach::Public, to).unwrap().same_origin;
        assert!(same("/v2/y") && same("https://a.test:443/z"));
        assert!(!same("https://b.test/") && !same("https://a.test:8443/"));
    }

    #[test]
    fn hostile_targets_are_refused() {
        for to in [
            "http://a.test/",
            "file:///etc/passwd",
            "https://169.254.169.254/",
            "https://127.0.0.1/",
            "https://[::ffff:127.0.0.1]/",
            "https://2130706433/",
            "https://0x7f.1/",
            "https://localhost/",
            "https://10.0.0.1/",
            "https://user:pw@b.test/",
            "https://",
        ] {
            assert!(go("https://a.test/v2/", Reach::Public, to).is_err(), "{to}");
        }
        assert!(next("x", &Url::parse("https://a.test").unwrap(), Reach::Public, None).is_err());
    }

    #[test]
    fn a_registry_of_ones_own_may_redirect_within_its_network() {
        assert!(go("http://10.0.0.1/v2/", Reach::Private, "http://10.0.0.2/x").is_ok());
        assert!(go("http://10.0.0.1/v2/", Reach::Private, "http://127.0.0.1/x").is_err());
        assert!(go("http://127.0.0.1:1/v2/", Reach::Loopback, "http://127.0.0.2:2/x").is_ok());
        assert!(go("http://127.0.0.1:1/v2/", Reach::Loopback, "http://169.254.169.254/x").is_err());
    }
}
