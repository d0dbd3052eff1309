//! A TCP client without a kernel: what a container with CAP_NET_RAW can write itself, past connect().

use std::io::{self, Read};
use std::net::SocketAddrV4;
use std::time::Duration;

use podcred::clock::Clock;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::harness::BROKEN;

const ETH_P_IP: u16 = 0x0800;
const PROTOCOL_TCP: u8 = 6;
const IP_HEADER: usize = 20;
const TCP_HEADER: usize = 20;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const PSH: u8 = 0x08;
const ACK: u8 = 0x10;
/// As long as a kernel waits for the answer to its first SYN.
const RETRANSMIT: Duration = Duration::from_secs(1);

/// An open connection that no socket stands for.
pub(super) struct RawTcp {
    send: Socket,
    receive: Socket,
    from: SocketAddrV4,
    to: SocketAddrV4,
    sequence: u32,
    acknowledged: u32,
}

struct Answer {
    flags: u8,
    sequence: u32,
    acknowledged: u32,
}

impl RawTcp {
    /// Shakes hands from an address that is not the namespace's own: of its own the kernel would reset the connection,
    /// since it knows of none. Like a kernel it repeats a SYN that is lost, and resets what the server still holds under
    /// its address and port: a pod that dies takes the last packets of its connections with it.
    pub(super) fn connect(from: SocketAddrV4, to: SocketAddrV4) -> io::Result<RawTcp> {
        let send = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::TCP))?;
        send.set_header_included_v4(true)?;
        let ip = Protocol::from(i32::from(ETH_P_IP.to_be()));
        let receive = Socket::new(Domain::PACKET, Type::DGRAM, Some(ip))?;
        receive.set_read_timeout(Some(RETRANSMIT))?;
        let mut tcp = RawTcp { send, receive, from, to, sequence: fastrand::u32(..), acknowledged: 0 };
        let server = tcp.synchronize()?;
        tcp.sequence = tcp.sequence.wrapping_add(1);
        tcp.acknowledged = server.wrapping_add(1);
        tcp.send(ACK, &[])?;
        Ok(tcp)
    }

    pub(super) fn say(&mut self, data: &[u8]) -> io::Result<()> {
        self.send(PSH | ACK, data)?;
        self.sequence = self.sequence.wrapping_add(u32::try_from(data.len()).map_err(io::Error::other)?);
        Ok(())
    }

    fn send(&self, flags: u8, data: &[u8]) -> io::Result<()> {
        let packet = self.packet(flags, self.sequence, data);
        self.send.send_to(&packet, &SockAddr::from(self.to)).map(drop)
    }

    /// Asks for a connection until the server agrees; with the sequence number that it begins with.
    fn synchronize(&self) -> io::Result<u32> {
        let clock = Clock::default();
        let deadline = clock.now().mono + BROKEN;
        while clock.now().mono < deadline {
            self.send(SYN, &[])?;
            match self.answer_of_server() {
                Ok(answer) if answer.flags == SYN | ACK => return Ok(answer.sequence),
                Ok(answer) => self.reset(&answer)?,
                Err(late) if late.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::ErrorKind::TimedOut.into())
    }

    /// The server still holds a connection of that name: only an RST where it stands ends it (RFC 5961, 4.2).
    fn reset(&self, challenge: &Answer) -> io::Result<()> {
        let packet = self.packet(RST, challenge.acknowledged, &[]);
        self.send.send_to(&packet, &SockAddr::from(self.to)).map(drop)
    }

    fn answer_of_server(&self) -> io::Result<Answer> {
        let mut buffer = [0; 2_048];
        loop {
            let length = (&self.receive).read(&mut buffer)?;
            let packet = &buffer[..length];
            let Some((ip, tcp)) = packet.split_at_checked(IP_HEADER) else { continue };
            let ours = ip[0] == 0x45
                && ip[9] == PROTOCOL_TCP
                && ip[12..16] == self.to.ip().octets()
                && ip[16..20] == self.from.ip().octets()
                && tcp.len() >= TCP_HEADER
                && tcp[2..4] == self.from.port().to_be_bytes();
            let word = |at: usize| u32::from_be_bytes([tcp[at], tcp[at + 1], tcp[at + 2], tcp[at + 3]]);
            // What else comes belongs to connections that are gone.
            if ours && tcp[13] & RST == 0 && tcp[13] & ACK != 0 {
                return Ok(Answer { flags: tcp[13], sequence: word(4), acknowledged: word(8) });
            }
        }
    }

    fn packet(&self, flags: u8, sequence: u32, data: &[u8]) -> Vec<u8> {
        let mut tcp = Vec::with_capacity(TCP_HEADER + data.len());
        tcp.extend(self.from.port().to_be_bytes());
        tcp.extend(self.to.port().to_be_bytes());
        tcp.extend(sequence.to_be_bytes());
        tcp.extend(self.acknowledged.to_be_bytes());
        // Five words of header, the window, no checksum yet, nothing urgent.
        tcp.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
        tcp.extend(data);
        let checksum = self.checksum(&tcp);
        tcp[16..18].copy_from_slice(&checksum.to_be_bytes());

        // The kernel fills in the length, an identification and the checksum.
        let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, PROTOCOL_TCP, 0, 0];
        packet.extend(self.from.ip().octets());
        packet.extend(self.to.ip().octets());
        packet.extend(tcp);
        packet
    }

    /// Over the pseudo header and the segment.
    fn checksum(&self, tcp: &[u8]) -> u16 {
        let mut bytes = Vec::with_capacity(12 + tcp.len() + 1);
        bytes.extend(self.from.ip().octets());
        bytes.extend(self.to.ip().octets());
        bytes.extend([0, PROTOCOL_TCP, 0, u8::try_from(tcp.len()).unwrap_or(u8::MAX)]);
        bytes.extend(tcp);
        bytes.resize(bytes.len().next_multiple_of(2), 0);
        let sum: u32 = bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
        let folded = (sum & 0xffff) + (sum >> 16);
        !((folded & 0xffff) + (folded >> 16)) as u16
    }
}
