//! How far away an address is, and that nothing upstream says leads us nearer than it is itself.
//!
//! A public registry that redirects to, or names a token service at, a private or loopback address
//! is an attack on what stands beside the mirror. The decision falls on the address actually
//! connected to, so a name that resolves to something else the second time changes nothing.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};

/// How far away an address is. The order matters: farther is smaller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reach {
    /// Anywhere on the internet.
    Public,
    /// A private network.
    Private,
    /// This machine.
    Loopback,
}

impl Reach {
    /// Judges an address; `None` for those that no registry has: link-local, multicast, unspecified,
    /// and wherever else clouds keep their metadata services.
    pub fn of(ip: IpAddr) -> Option<Self> {
        match ip {
            IpAddr::V4(v4) => Self::of_v4(v4),
            IpAddr::V6(v6) => match embedded_v4(v6) {
                Some(v4) => Self::of_v4(v4),
                None => Self::of_v6(v6),
            },
        }
    }

    fn of_v4(ip: Ipv4Addr) -> Option<Self> {
        // What Alibaba, Azure and Oracle say of a machine to whoever asks from it.
        if matches!(ip.octets(), [100, 100, 100, 200] | [168, 63, 129, 16] | [192, 0, 0, 192]) {
            return None;
        }
        let [a, b, ..] = ip.octets();
        match (a, b) {
            (127, _) => Some(Self::Loopback),
            (10, _) | (192, 168) => Some(Self::Private),
            (172, 16..=31) | (100, 64..=127) | (198, 18..=19) => Some(Self::Private),
            (0 | 224..=255, _) | (169, 254) => None,
            _ => Some(Self::Public),
        }
    }

    fn of_v6(ip: Ipv6Addr) -> Option<Self> {
        let first = ip.segments()[0];
        // The same of AWS and Google: private by their form.
        if matches!(ip.segments(), [0xfd00, 0x0ec2, ..] | [0xfd20, 0x00ce, ..]) {
            return None;
        }
        if ip.is_loopback() {
            Some(Self::Loopback)
        } else if ip.is_unspecified() || ip.is_multicast() || first & 0xffc0 == 0xfe80 {
            None
        } else if first & 0xfe00 == 0xfc00 || first & 0xffc0 == 0xfec0 {
            Some(Self::Private)
        } else {
            Some(Self::Public)
        }
    }

    /// Whether someone at this distance may send us to `target`.
    pub fn may_name(self, target: IpAddr) -> bool {
        Self::of(target).is_some_and(|t| t <= self)
    }
}

/// IPv4 in IPv6's clothes: mapped, compatible, and the translation prefix `64:ff9b::/96`.
fn embedded_v4(ip: Ipv6Addr) -> Option<Ipv4Addr> {
    let s = ip.segments();
    let low = || Ipv4Addr::from((u32::from(s[6]) << 16) | u32::from(s[7]));
    match s {
        [0, 0, 0, 0, 0, 0xffff, ..] | [0x64, 0xff9b, 0, 0, 0, 0, ..] => Some(low()),
        [0, 0, 0, 0, 0, 0, hi, lo] if hi != 0 || lo > 1 => Some(low()),
        _ => None,
    }
}

/// Resolves names, leaving out what someone at this distance may not name. Our own proxies are
/// named by nobody else.
#[derive(Debug)]
pub struct Guarded {
    reach: Reach,
    proxies: Vec<String>,
}

impl Resolve for Guarded {
    fn resolve(&self, name: Name) -> Resolving {
        let reach = self.reach;
        let host = name.as_str().to_owned();
        let trusted = self.proxies.contains(&host);
        Box::pin(async move {
            let found: Vec<SocketAddr> =
                tokio::net::lookup_host((host.as_str(), 0)).await?.collect();
            let allowed: Vec<SocketAddr> =
                found.into_iter().filter(|a| trusted || reach.may_name(a.ip())).collect();
            if allowed.is_empty() {
                return Err(format!(
                    "{host} resolves only to addresses that must not be reached from there"
                )
                .into());
            }
            Ok(Box::new(allowed.into_iter()) as Addrs)
        })
    }
}

/// The resolver for redirects and realms named by someone at `reach`.
pub fn resolver(reach: Reach, proxies: &[String]) -> Arc<Guarded> {
    Arc::new(Guarded { reach, proxies: proxies.to_vec() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reach(text: &str) -> Option<Reach> {
        Reach::of(text.parse().unwrap())
    }

    #[test]
    fn addresses_are_told_apart() {
        for public in ["1.1.1.1", "172.32.0.1", "2606:4700::1111", "::ffff:8.8.8.8"] {
            assert_eq!(reach(public), Some(Reach::Public), "{public}");
        }
        for private in
            ["10.0.0.1", "172.16.0.1", "192.168.1.1", "100.64.0.1", "fd00::1", "::ffff:10.0.0.1"]
        {
            assert_eq!(reach(private), Some(Reach::Private), "{private}");
        }
        for loopback in ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1"] {
            assert_eq!(reach(loopback), Some(Reach::Loopback), "{loopback}");
        }
        for never in [
            "169.254.169.254",
            "0.0.0.0",
            "::",
            "fe80::1",
            "224.0.0.1",
            "::ffff:169.254.169.254",
            "100.100.100.200",
            "168.63.129.16",
            "192.0.0.192",
            "fd00:ec2::254",
            "fd20:ce::254",
        ] {
            assert_eq!(reach(never), None, "{never}");
        }
    }

    #[test]
    fn nobody_leads_us_nearer_than_himself() {
        let may = |from: Reach, to: &str| from.may_name(to.parse().unwrap());
        assert!(may(Reach::Public, "1.1.1.1"));
        assert!(!may(Reach::Public, "10.0.0.1") && !may(Reach::Public, "127.0.0.1"));
        assert!(may(Reach::Private, "10.0.0.1") && !may(Reach::Private, "127.0.0.1"));
        assert!(may(Reach::Loopback, "127.0.0.2"));
        assert!(!may(Reach::Loopback, "169.254.169.254"));
    }
}
