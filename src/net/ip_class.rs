//! The kinds of networks that addresses belong to. Pure.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Addresses that answer to any neighbour with secrets, though their networks look harmless: the metadata
/// servers of Alibaba, Oracle, Azure and, by IPv6, AWS, with its agent for pods. The usual 169.254.169.254 is
/// link-local.
const METADATA: [IpAddr; 5] = [
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V4(Ipv4Addr::new(192, 0, 0, 192)),
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
];

/// What kind of network an address belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// The Internet.
    Global,
    /// This machine.
    Loopback,
    /// A site's own network: RFC 1918, unique-local, benchmark nets.
    Private,
    /// Carrier-grade NAT, also used by overlay networks.
    Shared,
    /// This link; where metadata servers are.
    LinkLocal,
    /// A metadata server elsewhere.
    Metadata,
    /// Unspecified, multicast, reserved, or an IPv4 address in IPv6's clothes.
    Reserved,
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Global => "global",
            Self::Loopback => "loopback",
            Self::Private => "private",
            Self::Shared => "carrier-grade NAT",
            Self::LinkLocal => "link-local",
            Self::Metadata => "metadata server's",
            Self::Reserved => "reserved",
        })
    }
}

impl Class {
    /// The class of `ip`.
    pub(crate) fn of(ip: IpAddr) -> Self {
        if METADATA.contains(&ip) {
            return Self::Metadata;
        }
        match ip {
            IpAddr::V4(ip) => Self::of_v4(ip),
            IpAddr::V6(ip) => Self::of_v6(ip),
        }
    }

    fn of_v4(ip: Ipv4Addr) -> Self {
        match ip.octets() {
            [127, ..] => Self::Loopback,
            [10, ..] | [172, 16..=31, ..] | [192, 168, ..] | [198, 18..=19, ..] => Self::Private,
            [100, 64..=127, ..] => Self::Shared,
            [169, 254, ..] => Self::LinkLocal,
            [0 | 224..=255, ..] | [192, 0, 0 | 2, _] | [198, 51, 100, _] | [203, 0, 113, _] => Self::Reserved,
            _ => Self::Global,
        }
    }

    fn of_v6(ip: Ipv6Addr) -> Self {
        match ip.segments() {
            [0, 0, 0, 0, 0, 0, 0, 1] => Self::Loopback,
            // NAT64: how an IPv6-only site reaches IPv4. What counts is the address behind it.
            [0x64, 0xff9b, 0, 0, 0, 0, high, low] => {
                let [a, b] = high.to_be_bytes();
                let [c, d] = low.to_be_bytes();
                Self::of(IpAddr::V4(Ipv4Addr::new(a, b, c, d)))
            }
            [0xfc00..=0xfdff, ..] => Self::Private,
            [0xfe80..=0xfebf, ..] => Self::LinkLocal,
            // Teredo, 6to4 and documentation lie inside the global range, but are not for dialling.
            [0x2001, 0 | 0xdb8, ..] | [0x2002, ..] => Self::Reserved,
            [0x2000..=0x3fff, ..] => Self::Global,
            _ => Self::Reserved,
        }
    }

    /// Whether an upstream that is itself in such a network may point into it.
    pub(crate) fn may_be_home(self) -> bool {
        matches!(self, Self::Loopback | Self::Private | Self::Shared)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_a_class() {
        let check = |text: &str, class: Class| assert_eq!(Class::of(text.parse().unwrap()), class, "{text}");
        check("8.8.8.8", Class::Global);
        check("172.15.0.1", Class::Global);
        check("172.32.0.1", Class::Global);
        check("100.128.0.1", Class::Global);
        check("2606:4700::1111", Class::Global);
        check("127.0.0.1", Class::Loopback);
        check("127.255.255.254", Class::Loopback);
        check("::1", Class::Loopback);
        check("10.1.2.3", Class::Private);
        check("172.16.0.1", Class::Private);
        check("172.31.255.255", Class::Private);
        check("192.168.1.1", Class::Private);
        check("fd12::1", Class::Private);
        check("100.64.0.1", Class::Shared);
        check("169.254.169.254", Class::LinkLocal);
        check("fe80::1", Class::LinkLocal);
        check("fd00:ec2::254", Class::Metadata);
        check("fd00:ec2::23", Class::Metadata);
        check("100.100.100.200", Class::Metadata);
        check("168.63.129.16", Class::Metadata);
        for reserved in
            ["0.0.0.0", "0.1.2.3", "::", "224.0.0.1", "255.255.255.255", "ff02::1", "192.0.2.1", "240.0.0.1"]
        {
            check(reserved, Class::Reserved);
        }
        for dressed_up in
            ["::ffff:127.0.0.1", "::ffff:8.8.8.8", "::127.0.0.1", "2002:7f00:1::", "2001:0:1::", "fec0::1"]
        {
            check(dressed_up, Class::Reserved);
        }
        check("64:ff9b::7f00:1", Class::Loopback);
        check("64:ff9b::a9fe:a9fe", Class::LinkLocal);
        check("64:ff9b::808:808", Class::Global);
        check("64:ff9b:1::1", Class::Reserved);
    }
}
