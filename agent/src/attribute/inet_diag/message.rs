//! The two messages of socket diagnosis that are needed, as linux/inet_diag.h has them. All numbers are in the
//! machine's order but those of the addresses.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const IPPROTO_TCP: u8 = 6;
const INET_DIAG_CGROUP_ID: u16 = 21;

/// struct nlmsghdr
const HEADER: usize = 16;
/// struct inet_diag_req_v2
const REQUEST: usize = HEADER + 56;
/// struct inet_diag_msg
const SOCKET: usize = 72;

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Found(Found),
    Error(i32),
    OfAnotherQuestion,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) local: SocketAddr,
    pub(super) remote: SocketAddr,
    pub(super) cgroup_id: Option<u64>,
}

/// Asks for the TCP socket with these addresses, as its own side sees them.
pub(super) fn encode(local: SocketAddr, remote: SocketAddr, sequence: u32) -> [u8; REQUEST] {
    let mut message = Vec::with_capacity(REQUEST);
    message.extend((REQUEST as u32).to_ne_bytes());
    message.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    message.extend(NLM_F_REQUEST.to_ne_bytes());
    message.extend(sequence.to_ne_bytes());
    message.extend(0_u32.to_ne_bytes()); // from: the kernel knows
    // The kernel finds v4-mapped sockets by their IPv4 addresses.
    let (source, destination) = (local.ip().to_canonical(), remote.ip().to_canonical());
    let family = if source.is_ipv4() { AF_INET } else { AF_INET6 };
    message.extend([family, IPPROTO_TCP, 0, 0]); // no extensions: the cgroup is told unasked
    message.extend(u32::MAX.to_ne_bytes()); // in any state
    message.extend(local.port().to_be_bytes());
    message.extend(remote.port().to_be_bytes());
    message.extend(octets(source));
    message.extend(octets(destination));
    message.extend(0_u32.to_ne_bytes()); // on any device
    message.extend([0xff; 8]); // with any cookie
    let mut request = [0; REQUEST];
    request.copy_from_slice(&message);
    request
}

pub(super) fn decode(message: &[u8], sequence: u32) -> io::Result<Answer> {
    parse(message, sequence).ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidData, "the kernel's answer on a socket is not as it should be")
    })
}

fn parse(message: &[u8], sequence: u32) -> Option<Answer> {
    let length = usize::try_from(u32::from_ne_bytes(array(message, 0)?)).ok()?;
    if u32::from_ne_bytes(array(message, 8)?) != sequence {
        return Some(Answer::OfAnotherQuestion);
    }
    let body = message.get(HEADER..length)?;
    match u16::from_ne_bytes(array(message, 4)?) {
        NLMSG_ERROR => Some(Answer::Error(i32::from_ne_bytes(array(body, 0)?).checked_neg()?)),
        SOCK_DIAG_BY_FAMILY => Some(Answer::Found(parse_socket(body)?)),
        _ => None,
    }
}

fn parse_socket(body: &[u8]) -> Option<Found> {
    let address = |port: usize, ip: usize| {
        let ip = match *body.first()? {
            AF_INET => IpAddr::V4(Ipv4Addr::from(array::<4>(body, ip)?)),
            AF_INET6 => IpAddr::V6(Ipv6Addr::from(array::<16>(body, ip)?)),
            _ => return None,
        };
        Some(SocketAddr::new(ip, u16::from_be_bytes(array(body, port)?)))
    };
    Some(Found { local: address(4, 8)?, remote: address(6, 24)?, cgroup_id: cgroup_id(body.get(SOCKET..)?) })
}

/// Among the attributes: each a length, a kind, a value, and bytes up to a multiple of four.
fn cgroup_id(mut attributes: &[u8]) -> Option<u64> {
    loop {
        let length = usize::from(u16::from_ne_bytes(array(attributes, 0)?));
        if u16::from_ne_bytes(array(attributes, 2)?) == INET_DIAG_CGROUP_ID {
            return Some(u64::from_ne_bytes(array(attributes, 4)?));
        }
        attributes = attributes.get(length.max(4).next_multiple_of(4)..)?;
    }
}

fn octets(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(ip) => {
            let mut octets = [0; 16];
            octets[..4].copy_from_slice(&ip.octets());
            octets
        }
        IpAddr::V6(ip) => ip.octets(),
    }
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As a 6.18 kernel answered, for a connection on loopback.
    fn answer(sequence: u32, attributes: &[u8]) -> Vec<u8> {
        let mut body = vec![0; SOCKET];
        body[..2].copy_from_slice(&[AF_INET6, 1]);
        body[4..8].copy_from_slice(&[0xc3, 0x50, 0, 80]);
        body[8..24].copy_from_slice(&Ipv4Addr::new(10, 0, 0, 7).to_ipv6_mapped().octets());
        body[24..40].copy_from_slice(&Ipv4Addr::new(169, 254, 170, 23).to_ipv6_mapped().octets());
        body.extend(attributes);
        message(SOCK_DIAG_BY_FAMILY, sequence, &body)
    }

    fn message(kind: u16, sequence: u32, body: &[u8]) -> Vec<u8> {
        let mut message = ((HEADER + body.len()) as u32).to_ne_bytes().to_vec();
        message.extend(kind.to_ne_bytes());
        message.extend([0, 0]);
        message.extend(sequence.to_ne_bytes());
        message.extend([0; 4]);
        message.extend(body);
        message
    }

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut attribute = ((4 + value.len()) as u16).to_ne_bytes().to_vec();
        attribute.extend(kind.to_ne_bytes());
        attribute.extend(value);
        attribute.resize(attribute.len().next_multiple_of(4), 0);
        attribute
    }

    #[test]
    fn the_cgroup_is_found_among_the_attributes() {
        let mut attributes = attribute(8, &[0]);
        attributes.extend(attribute(4, b"cubic\0"));
        attributes.extend(attribute(INET_DIAG_CGROUP_ID, &4711_u64.to_ne_bytes()));
        let Answer::Found(found) = decode(&answer(9, &attributes), 9).unwrap() else { panic!() };
        assert_eq!(found.cgroup_id, Some(4711));
        assert_eq!(found.local, "[::ffff:10.0.0.7]:50000".parse().unwrap());
        assert_eq!(found.remote, "[::ffff:169.254.170.23]:80".parse().unwrap());
    }

    #[test]
    fn an_older_kernel_tells_no_cgroup() {
        let Answer::Found(found) = decode(&answer(9, &attribute(8, &[0])), 9).unwrap() else { panic!() };
        assert_eq!(found.cgroup_id, None);
    }

    #[test]
    fn errors_and_late_answers_are_told_apart() {
        let error = message(NLMSG_ERROR, 9, &(-2_i32).to_ne_bytes());
        assert_eq!(decode(&error, 9).unwrap(), Answer::Error(2));
        assert_eq!(decode(&error, 10).unwrap(), Answer::OfAnotherQuestion);
    }

    #[test]
    fn a_message_that_is_cut_anywhere_is_refused_or_read_without_its_attributes() {
        let whole = answer(9, &attribute(INET_DIAG_CGROUP_ID, &4711_u64.to_ne_bytes()));
        for length in 0..whole.len() {
            let mut cut = whole[..length].to_vec();
            assert!(decode(&cut, 9).is_err(), "{length}");
            if length >= HEADER {
                cut[..4].copy_from_slice(&(length as u32).to_ne_bytes());
                assert_ne!(decode(&cut, 9).ok(), decode(&whole, 9).ok(), "{length}");
            }
        }
    }
}
