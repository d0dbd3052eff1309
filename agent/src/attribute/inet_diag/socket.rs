//! A netlink socket for questions about sockets.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::sync::Mutex;

use rustix::io::Errno;
use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, sendto, socket_with};

use super::InetDiagProblem;
use super::message::{Answer, Found, decode, encode};
use crate::locks::lock;

/// The kernel's own address.
const KERNEL: SocketAddrNetlink = SocketAddrNetlink::new(0, 0);
/// An answer takes about 150 bytes.
const ANSWER: usize = 1024;

#[derive(Debug)]
pub(super) struct DiagSocket {
    socket: OwnedFd,
    /// The number of the last question. One at a time, so that each asker reads the answer to its own.
    last: Mutex<u32>,
}

impl DiagSocket {
    /// In the network namespace of the calling thread, for good.
    pub(super) fn open() -> io::Result<Self> {
        let socket = socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            Some(netlink::SOCK_DIAG),
        )?;
        Ok(DiagSocket { socket, last: Mutex::new(0) })
    }

    /// Asks for a socket that is there: of one that is not, and where the kernel's module is missing, the answer is the
    /// same.
    pub(super) fn check(&self) -> Result<(), InetDiagProblem> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(InetDiagProblem::Query)?;
        let local = listener.local_addr().map_err(InetDiagProblem::Query)?;
        let remote = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        match self.ask(local, remote).map_err(InetDiagProblem::Query)? {
            Some(Found { cgroup_id: Some(_), .. }) => Ok(()),
            Some(Found { cgroup_id: None, .. }) => Err(InetDiagProblem::NoCgroups),
            None => Err(InetDiagProblem::NoModule),
        }
    }

    pub(super) fn cgroup_of(&self, local: SocketAddr, remote: SocketAddr) -> io::Result<Option<u64>> {
        let canonical = |address: SocketAddr| (address.ip().to_canonical(), address.port());
        let found = self.ask(local, remote)?;
        // Where nothing is connected so, the kernel answers with a listener on the port.
        let found = found.filter(|found| {
            canonical(found.local) == canonical(local) && canonical(found.remote) == canonical(remote)
        });
        Ok(found.and_then(|found| found.cgroup_id))
    }

    fn ask(&self, local: SocketAddr, remote: SocketAddr) -> io::Result<Option<Found>> {
        let mut last = lock(&self.last);
        *last = last.wrapping_add(1);
        sendto(&self.socket, &encode(local, remote, *last), SendFlags::empty(), &KERNEL)?;
        loop {
            let mut answer = [0; ANSWER];
            // The kernel has answered before the question's call returned, so nothing is waited for.
            let (received, _) = recv(&self.socket, &mut answer[..], RecvFlags::DONTWAIT)?;
            match decode(&answer[..received], *last)? {
                Answer::Found(found) => return Ok(Some(found)),
                Answer::Error(errno) if errno == Errno::NOENT.raw_os_error() => return Ok(None),
                Answer::Error(errno) => return Err(io::Error::from_raw_os_error(errno)),
                Answer::OfAnotherQuestion => {}
            }
        }
    }
}
