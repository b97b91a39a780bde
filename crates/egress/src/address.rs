//! Which addresses are of the public internet.
//!
//! Pure. The tables are IANA's special-purpose registries (RFC 6890 and its updates), read with suspicion: what is not known to
//! be public is not.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::de::{Deserialize, Deserializer, Error as _};

/// A text that is no network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a network such as 10.0.0.0/8, fd00::/8 or 127.0.0.1")]
pub struct ParseNetworkError(String);

/// A network: an address and how many of its bits count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    bits: u8,
}

impl Network {
    const fn v4(a: u8, b: u8, c: u8, d: u8, bits: u8) -> Self {
        let address = IpAddr::V4(Ipv4Addr::new(a, b, c, d));
        Self { address, bits }
    }

    const fn v6(a: u16, b: u16, c: u16, bits: u8) -> Self {
        let address = IpAddr::V6(Ipv6Addr::new(a, b, c, 0, 0, 0, 0, 0));
        Self { address, bits }
    }

    /// Whether an address lies in it. Addresses of one kind lie in no network of the other.
    pub fn contains(&self, address: IpAddr) -> bool {
        let same = |one: u128, other: u128, width: u8| {
            let rest = u32::from(width - self.bits);
            one.checked_shr(rest) == other.checked_shr(rest)
        };
        match (self.address, address) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                same(u32::from(own).into(), u32::from(other).into(), 32)
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => same(own.into(), other.into(), 128),
            _ => false,
        }
    }
}

impl FromStr for Network {
    type Err = ParseNetworkError;

    /// Reads `10.0.0.0/8`, or an address, which is a network of one.
    fn from_str(text: &str) -> Result<Self, ParseNetworkError> {
        let error = || ParseNetworkError(text.to_owned());
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| error())?;
        let width = if address.is_ipv4() { 32 } else { 128 };
        let bits = match bits {
            Some(bits) => bits.parse().ok().filter(|bits| *bits <= width),
            None => Some(width),
        };
        let bits = bits.ok_or_else(error)?;
        Ok(Self { address, bits })
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.bits)
    }
}

impl<'de> Deserialize<'de> for Network {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

/// IPv4 that is not public.
const SPECIAL_V4: &[Network] = &[
    // This network: Linux takes 0.0.0.0 for itself.
    Network::v4(0, 0, 0, 0, 8),
    // Private (RFC 1918).
    Network::v4(10, 0, 0, 0, 8),
    Network::v4(172, 16, 0, 0, 12),
    Network::v4(192, 168, 0, 0, 16),
    // Carriers' own (RFC 6598); some clouds keep their metadata there.
    Network::v4(100, 64, 0, 0, 10),
    // This machine.
    Network::v4(127, 0, 0, 0, 8),
    // This link; most clouds keep their metadata there.
    Network::v4(169, 254, 0, 0, 16),
    // Public by number, but within one cloud its machines' own host.
    Network::v4(168, 63, 129, 16, 32),
    // Protocols' own; one cloud keeps its metadata there.
    Network::v4(192, 0, 0, 0, 24),
    // Documentation.
    Network::v4(192, 0, 2, 0, 24),
    Network::v4(198, 51, 100, 0, 24),
    Network::v4(203, 0, 113, 0, 24),
    // Relays of 6to4, given up (RFC 7526).
    Network::v4(192, 88, 99, 0, 24),
    // Benchmarks.
    Network::v4(198, 18, 0, 0, 15),
    // Multicast, and all above it: reserved, broadcast.
    Network::v4(224, 0, 0, 0, 3),
];

/// IPv6 that is given out to anyone so far. Private, link-local, multicast and the rest lie elsewhere.
const GLOBAL_V6: Network = Network::v6(0x2000, 0, 0, 3);

/// What is not public within [`GLOBAL_V6`].
const SPECIAL_V6: &[Network] = &[
    // Protocols' own: Teredo (whose embedded address is a relay's client), ORCHID, benchmarks.
    Network::v6(0x2001, 0, 0, 23),
    // Documentation.
    Network::v6(0x2001, 0xdb8, 0, 32),
    Network::v6(0x3fff, 0, 0, 20),
    // 6to4, given up (RFC 7526), with an IPv4 address inside.
    Network::v6(0x2002, 0, 0, 16),
];

/// Whether an address is one of the public internet, and, where it carries another inside, that one too.
pub fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(_) => !SPECIAL_V4.iter().any(|network| network.contains(address)),
        IpAddr::V6(v6) => match embedded(v6) {
            Some(Embedded::Other(inner)) => is_public(inner.into()),
            Some(Embedded::Interface(inner)) => is_public(inner.into()) && is_global(address),
            None => is_global(address),
        },
    }
}

fn is_global(address: IpAddr) -> bool {
    let special = SPECIAL_V6.iter().any(|network| network.contains(address));
    GLOBAL_V6.contains(address) && !special
}

/// An IPv4 address that an IPv6 one carries, and packets may go on to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Embedded {
    /// The whole address is another way to write it.
    Other(Ipv4Addr),
    /// Its last half, the interface, says so; the network is one of its own.
    Interface(Ipv4Addr),
}

fn embedded(address: Ipv6Addr) -> Option<Embedded> {
    let v4 = |high: u16, low: u16| Ipv4Addr::from((u32::from(high) << 16) | u32::from(low));
    match address.segments() {
        // IPv4-mapped: the same address to the operating system.
        [0, 0, 0, 0, 0, 0xffff, high, low] => Some(Embedded::Other(v4(high, low))),
        // NAT64 (RFC 6052).
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => Some(Embedded::Other(v4(high, low))),
        // ISATAP (RFC 5214), whether or not the address is said to be unique.
        [_, _, _, _, 0 | 0x200, 0x5efe, high, low] => Some(Embedded::Interface(v4(high, low))),
        _ => None,
    }
}

/// The addresses that one stands for: itself, and the one that it carries.
pub(crate) fn faces(address: IpAddr) -> impl Iterator<Item = IpAddr> {
    let inner = match address {
        IpAddr::V4(_) => None,
        IpAddr::V6(v6) => embedded(v6),
    };
    let inner = inner.map(|(Embedded::Other(inner) | Embedded::Interface(inner))| inner.into());
    std::iter::once(address).chain(inner)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_not_public_is_known_by_its_number() {
        for text in [
            "0.0.0.0",
            "0.1.2.3",
            "10.0.0.1",
            "10.255.255.255",
            "100.64.0.1",
            "100.100.100.200",
            "100.127.255.255",
            "127.0.0.1",
            "127.255.255.255",
            "168.63.129.16",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.192",
            "192.0.2.1",
            "192.88.99.1",
            "192.168.0.1",
            "198.18.0.1",
            "198.19.255.255",
            "198.51.100.7",
            "203.0.113.7",
            "224.0.0.1",
            "239.255.255.250",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::7f00:1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::ffff:0:127.0.0.1",
            "64:ff9b::7f00:1",
            "64:ff9b::a9fe:a9fe",
            "64:ff9b:1::808:808",
            "100::1",
            "2001::1",
            "2001:0:808:808::1",
            "2001:2::1",
            "2001:10::1",
            "2001:20::1",
            "2001:db8::1",
            "2002:7f00:1::1",
            "2002:808:808::1",
            "3fff::1",
            "5f00::1",
            "fc00::1",
            "fd00:ec2::254",
            "fe80::1",
            "fec0::1",
            "ff02::1",
            "ff0e::1",
            "4000::1",
            "2606:4700::5efe:a00:1",
            "2606:4700::200:5efe:7f00:1",
            "fe80::5efe:808:808",
        ] {
            assert!(!is_public(text.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn what_is_public_stays_so_however_it_is_written() {
        for text in [
            "1.1.1.1",
            "8.8.8.8",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "126.255.255.255",
            "128.0.0.0",
            "169.253.255.255",
            "172.15.255.255",
            "172.32.0.0",
            "192.167.255.255",
            "192.169.0.0",
            "198.17.255.255",
            "198.20.0.0",
            "223.255.255.255",
            "2606:4700:4700::1111",
            "2a00:1450:4001::200e",
            "2400:3200::1",
            "2001:200::1",
            "2001:4860:4860::8888",
            "::ffff:8.8.8.8",
            "64:ff9b::808:808",
            "2606:4700::5efe:808:808",
        ] {
            assert!(is_public(text.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn a_network_is_read_and_contains_what_it_should() {
        let network = |text: &str| text.parse::<Network>().unwrap();
        assert!(network("10.0.0.0/8").contains("10.9.8.7".parse().unwrap()));
        assert!(!network("10.0.0.0/8").contains("11.0.0.0".parse().unwrap()));
        assert!(network("127.0.0.1").contains("127.0.0.1".parse().unwrap()));
        assert!(network("0.0.0.0/0").contains("255.0.0.1".parse().unwrap()));
        assert!(!network("0.0.0.0/0").contains("::1".parse().unwrap()));
        assert!(network("::/0").contains("ff02::1".parse().unwrap()));
        assert!(network("fd00::/8").contains("fdff::1".parse().unwrap()));
        for bad in [
            "",
            "x",
            "10.0.0.0/33",
            "::/129",
            "10.0.0.0/",
            "10.0.0.0/-1",
            "10/8",
        ] {
            let error = bad.parse::<Network>().unwrap_err();
            assert!(error.to_string().contains("10.0.0.0/8"), "{error}");
        }
    }

    fn v4() -> impl Strategy<Value = Ipv4Addr> {
        any::<u32>().prop_map(Ipv4Addr::from)
    }

    proptest! {
        #[test]
        fn an_address_inside_another_is_never_more_public_than_alone(inner in v4(), net: u64, low: u64) {
            let alone = is_public(inner.into());
            let [a, b, c, d] = inner.octets().map(u128::from);
            let bits = (a << 24) | (b << 16) | (c << 8) | d;
            let mapped = Ipv6Addr::from((0xffff << 32) | bits);
            let nat64 = Ipv6Addr::from((0x64_ff9b << 96) | bits);
            let six_to_four = Ipv6Addr::from((0x2002 << 112) | (bits << 80) | u128::from(low));
            prop_assert!(!is_public(six_to_four.into()));
            for other in [mapped, nat64] {
                prop_assert_eq!(is_public(other.into()), alone, "{}", other);
                prop_assert_eq!(faces(other.into()).last(), Some(inner.into()));
            }
            let isatap = Ipv6Addr::from((u128::from(net) << 64) | (0x5efe << 32) | bits);
            prop_assert!(alone || !is_public(isatap.into()));
        }

        #[test]
        fn the_standard_librarys_idea_of_private_is_never_public(bits: u32, wide: u128) {
            let v4 = Ipv4Addr::from(bits);
            if v4.is_private() || v4.is_loopback() || v4.is_link_local() || v4.is_multicast() || v4.is_broadcast()
                || v4.is_documentation() || v4.is_unspecified() {
                prop_assert!(!is_public(v4.into()));
            }
            let v6 = Ipv6Addr::from(wide);
            if v6.is_loopback() || v6.is_multicast() || v6.is_unspecified() || v6.is_unique_local()
                || v6.is_unicast_link_local() {
                prop_assert!(!is_public(v6.into()));
            }
        }

        #[test]
        fn a_network_contains_exactly_what_agrees_in_its_bits(own: u32, other: u32, bits in 0u8..=32) {
            let network = Network { address: Ipv4Addr::from(own).into(), bits };
            let agree = (own ^ other).leading_zeros() >= u32::from(bits);
            prop_assert_eq!(network.contains(Ipv4Addr::from(other).into()), agree);
            let again: Network = network.to_string().parse().unwrap();
            prop_assert_eq!(again, network);
        }
    }
}
