//! Who listens on the pods' port in this network namespace. The kernel's table of sockets says it without a connection
//! to anybody's agent, and to a process without any capability.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The port that EKS writes into pods.
const PORT: u16 = 80;
/// `TCP_LISTEN`, as the table spells it.
const LISTEN: &str = "0A";

/// An address that is listened on at the pods' port; an unspecified one stands for all.
pub(super) fn listening() -> io::Result<Vec<IpAddr>> {
    let mut addresses = addresses_in(&fs::read_to_string("/proc/thread-self/net/tcp")?);
    match fs::read_to_string("/proc/thread-self/net/tcp6") {
        Ok(table) => addresses.extend(addresses_in(&table)),
        // A kernel without IPv6.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    Ok(addresses)
}

fn addresses_in(table: &str) -> Vec<IpAddr> {
    let listener = |line: &str| {
        let mut columns = line.split_whitespace().skip(1);
        let (local, _peer, state) = (columns.next()?, columns.next()?, columns.next()?);
        let (address, port) = local.split_once(':')?;
        let wanted = state == LISTEN && u16::from_str_radix(port, 16) == Ok(PORT);
        wanted.then(|| parse(address)).flatten()
    };
    table.lines().filter_map(listener).collect()
}

/// The table has each 32 bits of an address as a number of this machine, though they are bytes in the network's order.
fn parse(hex: &str) -> Option<IpAddr> {
    if hex.len() == 8 {
        let word = u32::from_str_radix(hex, 16).ok()?;
        return Some(IpAddr::V4(Ipv4Addr::from(word.to_ne_bytes())));
    }
    let mut octets = [0; 16];
    for (word, octets) in octets.chunks_exact_mut(4).enumerate() {
        let digits = hex.get(word * 8..word * 8 + 8)?;
        octets.copy_from_slice(&u32::from_str_radix(digits, 16).ok()?.to_ne_bytes());
    }
    Some(Ipv6Addr::from(octets).to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_is_none_is_passed_over() {
        let table = "  sl  local_address rem_address   st\n\n   0: 0:0050\n   1: XX:0050 0:0 0A\n   2: 00000000:0050 \
                     00000000:0000 06\n   3: 00000000:0051 00000000:0000 0A\n";
        assert_eq!(addresses_in(table), Vec::<IpAddr>::new());
    }

    #[cfg(target_endian = "little")]
    #[test]
    fn listeners_are_read_in_both_families_also_as_ipv6_writes_ipv4() {
        let table = "   0: 17AAFEA9:0050 00000000:0000 0A\n   1: C20E00FD000000000000000023000000:0050 0:0 0A\n   \
                     2: 0000000000000000FFFF000017AAFEA9:0050 0:0 0A\n";
        let addresses = ["169.254.170.23", "fd00:ec2::23", "169.254.170.23"];
        assert_eq!(addresses_in(table), addresses.map(|address| address.parse::<IpAddr>().unwrap()));
    }
}
