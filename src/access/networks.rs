//! Networks, and what of an address counts as one client.

use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;

/// The network that counts as one client: an IPv4 address, or an IPv6 /64, in which a host picks its own addresses.
pub fn client_network(client: IpAddr) -> IpAddr {
    match client.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
        IpAddr::V4(address) => IpAddr::V4(address),
    }
}

/// Whether an address is in one of `networks`. An IPv4 address counts as such also where it is written as IPv6.
pub fn contain(networks: &[IpNet], address: IpAddr) -> bool {
    let address = address.to_canonical();
    networks.iter().any(|network| network.contains(&address))
}

/// Whether a list of networks keeps anybody out: it is not empty, and none of them is the whole Internet.
pub fn are_restricted(networks: &[IpNet]) -> bool {
    !networks.is_empty() && networks.iter().all(|network| network.prefix_len() > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv6_network_and_an_ipv4_address_are_one_client() {
        let check = |client: &str, expected: &str| {
            let client: IpAddr = client.parse().unwrap();
            assert_eq!(client_network(client), expected.parse::<IpAddr>().unwrap(), "{client}");
        };
        check("2001:db8::1", "2001:db8::");
        check("2001:db8:0:0:ffff::1", "2001:db8::");
        check("2001:db8:0:1::1", "2001:db8:0:1::");
        check("::ffff:10.0.0.1", "10.0.0.1");
        check("10.0.0.1", "10.0.0.1");
    }

    #[test]
    fn an_empty_list_or_the_whole_internet_restricts_nobody() {
        let check = |networks: &[&str], expected: bool| {
            let networks: Vec<IpNet> = networks.iter().map(|network| network.parse().unwrap()).collect();
            assert_eq!(are_restricted(&networks), expected, "{networks:?}");
        };
        check(&[], false);
        check(&["10.0.0.0/8"], true);
        check(&["10.0.0.0/8", "0.0.0.0/0"], false);
        check(&["::/0"], false);
    }
}
