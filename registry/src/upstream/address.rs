//! Which addresses a redirect or a token realm may lead to. Pure.
//!
//! Upstream decides where we connect next. Left unchecked it could have the cache speak to the node's metadata service
//! or to a neighbour in the cluster. So whatever upstream names must be no nearer than upstream itself.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::atomic::{AtomicU8, Ordering},
};

/// How near an address is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Nearness {
    /// Anywhere on the Internet.
    Public,
    /// Networks of one's own: RFC 1918, RFC 6598, RFC 4193.
    Private,
    /// This machine or this link, and whatever is no host at all.
    Loopback,
}

impl Nearness {
    /// Classifies an address; IPv4 inside IPv6 counts as IPv4.
    pub fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(v4) => Self::of_v4(v4),
            IpAddr::V6(v6) => {
                let segments = v6.segments();
                if segments[..6] == [0x64, 0xff9b, 0, 0, 0, 0] {
                    // NAT64: the last 32 bits are the IPv4 address that is reached.
                    let [.., a, b, c, d] = v6.octets();
                    return Self::of_v4(Ipv4Addr::new(a, b, c, d));
                }
                if segments[0] == 0x2002 {
                    // 6to4: the IPv4 address of the router is in the middle.
                    let [_, _, a, b, c, d, ..] = v6.octets();
                    return Self::of_v4(Ipv4Addr::new(a, b, c, d));
                }
                if segments[..6] == [0; 6] && !v6.is_loopback() && !v6.is_unspecified() {
                    // IPv4-compatible addresses have no use any more but to be mistaken.
                    return Self::Loopback;
                }
                // Site-local addresses are of old networks; behind Teredo is a host in somebody's home.
                let is_old = (segments[0] & 0xffc0) == 0xfec0 || segments[..2] == [0x2001, 0];
                let is_private = (segments[0] & 0xfe00) == 0xfc00 || segments[..3] == [0x64, 0xff9b, 1] || is_old;
                let is_link_local = (segments[0] & 0xffc0) == 0xfe80;
                if v6.is_loopback() || v6.is_unspecified() || v6.is_multicast() || is_link_local {
                    Self::Loopback
                } else if is_private {
                    Self::Private
                } else {
                    Self::Public
                }
            }
        }
    }

    fn of_v4(v4: Ipv4Addr) -> Self {
        let [a, b, ..] = v4.octets();
        if v4.is_loopback() || v4.is_link_local() || v4.is_multicast() || a == 0 || a >= 240 {
            Self::Loopback
        } else if v4.is_private() || (a == 100 && (64..128).contains(&b)) {
            Self::Private
        } else {
            Self::Public
        }
    }
}

/// The nearness of upstream as last connected to: the bound for all that upstream names.
#[derive(Debug, Default)]
pub struct Boundary(AtomicU8);

impl Boundary {
    /// Remembers where upstream was reached.
    pub fn upstream_is_at(&self, address: IpAddr) {
        self.0.store(Nearness::of(address) as u8, Ordering::Relaxed);
    }

    /// Whether upstream may send us to `address`.
    pub fn allows(&self, address: IpAddr) -> bool {
        Nearness::of(address) as u8 <= self.0.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(address: &str, expected: Nearness) {
        assert_eq!(Nearness::of(address.parse().unwrap()), expected, "{address}");
    }

    #[test]
    fn table() {
        for public in ["1.1.1.1", "100.63.0.1", "172.32.0.1", "2606:4700::1111", "::ffff:1.1.1.1"] {
            check(public, Nearness::Public);
        }
        for private in [
            "10.0.0.1",
            "172.16.0.1",
            "192.168.1.1",
            "100.64.0.1",
            "fd00::1",
            "fec0::1",
            "::ffff:10.0.0.1",
            "64:ff9b::10.0.0.1",
            "2001:0:4136:e378:8000:63bf:3fff:fdd2",
        ] {
            check(private, Nearness::Private);
        }
        for loopback in [
            "127.0.0.1",
            "::1",
            "169.254.169.254",
            "0.0.0.0",
            "::",
            "fe80::1",
            "224.0.0.1",
            "255.255.255.255",
            "::ffff:127.0.0.1",
            "::127.0.0.1",
            "2002:7f00:1::",
        ] {
            check(loopback, Nearness::Loopback);
        }
    }

    #[test]
    fn nothing_nearer_than_upstream() {
        let boundary = Boundary::default();
        let [public, private, metadata] =
            ["1.1.1.1", "10.0.0.1", "169.254.169.254"].map(|a| a.parse::<IpAddr>().unwrap());
        assert!(boundary.allows(public) && !boundary.allows(private) && !boundary.allows(metadata));
        boundary.upstream_is_at(private);
        assert!(boundary.allows(private) && !boundary.allows(metadata));
        boundary.upstream_is_at("127.0.0.1".parse().unwrap());
        assert!(boundary.allows(metadata));
    }
}
