//! One pod's HTTP: a request written whole, an answer read whole.
//!
//! hyper's client would do, and costs more than the server that is measured. What this costs, `cargo xtask bench` holds against
//! wrk.

use std::io;
use std::net::SocketAddr;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::manners::Manners;

/// Where agents serve.
pub(super) const CREDENTIALS: &str = "/v1/credentials";
/// Ends a request, after the token.
const END: &str = "\r\n\r\n";
const HEADERS: usize = 32;
/// An answer has about 1.3 kB.
const ROOM: usize = 2048;
/// The agent's largest answer is far below.
const LONGEST: usize = 64 * 1024;

/// Where credentials are asked for.
#[derive(Clone, Debug)]
pub(super) struct Endpoint {
    pub(super) address: SocketAddr,
    /// As the `Host` header has it.
    pub(super) host: String,
    pub(super) path: String,
}

impl Endpoint {
    pub(super) fn at(address: SocketAddr) -> Endpoint {
        let host = match (address, address.port()) {
            (SocketAddr::V4(v4), 80) => v4.ip().to_string(),
            (SocketAddr::V6(v6), 80) => format!("[{}]", v6.ip()),
            _ => address.to_string(),
        };
        Endpoint { address, host, path: CREDENTIALS.to_owned() }
    }

    pub(super) fn request(&self, manners: &Manners, token: &str) -> Vec<u8> {
        let (path, host) = (&self.path, &self.host);
        let (headers, authorization) = (manners.headers, manners.authorization);
        let parts =
            ["GET ", path, " HTTP/1.1\r\nHost: ", host, "\r\n", headers, authorization, ": ", token, END];
        parts.concat().into_bytes()
    }
}

/// What [`Endpoint::request`] was given: a pod that waits keeps the request, and need not keep the token beside it.
pub(super) fn token_of(request: &[u8]) -> &str {
    let request = str::from_utf8(request).unwrap_or_default();
    request.trim_end_matches(END).rsplit(' ').next().unwrap_or_default()
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoAnswer {
    #[error("cannot connect: {0}")]
    Connect(io::Error),
    #[error("no connection within {0:?}")]
    ConnectTimeout(Duration),
    #[error("the connection ended before anything came: {0}")]
    Ended(io::Error),
    #[error("the connection ended before the answer did: {0}")]
    Cut(io::Error),
    #[error("nothing came for {0:?}")]
    Silence(Duration),
    #[error("the answer is no HTTP: {0}")]
    Malformed(httparse::Error),
    #[error("the answer is longer than {LONGEST} bytes")]
    TooLong,
}

impl NoAnswer {
    /// What it is counted as.
    pub(super) fn class(&self) -> String {
        match self {
            NoAnswer::Connect(error) => format!("connect: {}", reason(error)),
            NoAnswer::ConnectTimeout(after) => format!("no connection within {} s", after.as_secs()),
            NoAnswer::Ended(error) => format!("connection ended: {}", reason(error)),
            NoAnswer::Cut(error) => format!("answer cut short: {}", reason(error)),
            NoAnswer::Silence(after) => format!("no answer within {} s", after.as_secs()),
            NoAnswer::Malformed(_) | NoAnswer::TooLong => "no HTTP".to_owned(),
        }
    }
}

fn reason(error: &io::Error) -> String {
    if error.raw_os_error() == Some(rustix::io::Errno::MFILE.raw_os_error()) {
        return "no file descriptor left".to_owned();
    }
    error.kind().to_string()
}

/// Starts to connect, in the network namespace and the cgroup of the calling thread.
pub(super) fn start_to_connect(to: SocketAddr) -> io::Result<Socket> {
    let socket =
        Socket::new(Domain::for_address(to), Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP))?;
    match socket.connect(&to.into()) {
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => {
            Ok(socket)
        }
        done => done.map(|()| socket),
    }
}

/// A connection that is open.
#[derive(Debug)]
pub(super) struct Connection {
    stream: TcpStream,
}

impl Connection {
    /// What [`start_to_connect`] started.
    pub(super) async fn finish(socket: Socket, within: Duration) -> Result<Connection, NoAnswer> {
        let stream = TcpStream::from_std(socket.into()).map_err(NoAnswer::Connect)?;
        match timeout(within, stream.writable()).await {
            Err(_) => return Err(NoAnswer::ConnectTimeout(within)),
            Ok(ready) => ready.map_err(NoAnswer::Connect)?,
        }
        match stream.take_error() {
            Ok(None) => Ok(Connection { stream }),
            Ok(Some(error)) | Err(error) => Err(NoAnswer::Connect(error)),
        }
    }

    pub(super) async fn ask(&self, request: &[u8], within: Duration) -> Result<Answer, NoAnswer> {
        self.send(request, within).await?;
        self.read(within).await
    }

    /// Ready when the agent has closed, or has said something that is no answer to anything.
    ///
    /// As poll, because a future of its own would take room in every pod.
    pub(super) fn poll_closed(&self, context: &mut Context<'_>) -> Poll<()> {
        loop {
            if ready!(self.stream.poll_read_ready(context)).is_err() {
                return Poll::Ready(());
            }
            // That it is readable may still be said of the last answer; only an attempt to read tells.
            match self.stream.try_read(&mut [0]) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Ok(_) | Err(_) => return Poll::Ready(()),
            }
        }
    }

    async fn send(&self, mut request: &[u8], within: Duration) -> Result<(), NoAnswer> {
        while !request.is_empty() {
            match self.stream.try_write(request) {
                Ok(written) => request = &request[written..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    match timeout(within, self.stream.writable()).await {
                        Err(_) => return Err(NoAnswer::Silence(within)),
                        Ok(ready) => ready.map_err(NoAnswer::Ended)?,
                    }
                }
                Err(error) => return Err(NoAnswer::Ended(error)),
            }
        }
        Ok(())
    }

    async fn read(&self, within: Duration) -> Result<Answer, NoAnswer> {
        let mut received = Vec::new();
        let mut head: Option<Head> = None;
        loop {
            let ended = if received.is_empty() { NoAnswer::Ended } else { NoAnswer::Cut };
            match timeout(within, self.stream.readable()).await {
                Err(_) => return Err(NoAnswer::Silence(within)),
                Ok(ready) => ready.map_err(ended)?,
            }
            // Not before: where the agent is slow thousands wait.
            received.reserve(ROOM);
            match self.stream.try_read_buf(&mut received) {
                // Without a length the end of the connection is the end of the answer.
                Ok(0) => match head {
                    Some(head) if head.length.is_none() => return Ok(Answer { head, received }),
                    Some(_) | None => return Err(ended(io::ErrorKind::UnexpectedEof.into())),
                },
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(error) => return Err(ended(error)),
            }
            if head.is_none() {
                head = Head::parse(&received).map_err(NoAnswer::Malformed)?;
            }
            if head.as_ref().and_then(Head::end).is_some_and(|end| received.len() >= end)
                && let Some(head) = head
            {
                return Ok(Answer { head, received });
            }
            if received.len() > LONGEST {
                return Err(NoAnswer::TooLong);
            }
        }
    }
}

/// What was answered.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) head: Head,
    received: Vec<u8>,
}

impl Answer {
    /// Why others may take another body out of it than this client does.
    pub(super) fn doubt(&self) -> Option<&'static str> {
        let more = self.head.end().is_some_and(|end| self.received.len() > end);
        self.head.doubt.or(more.then_some("more came than its Content-Length says"))
    }

    pub(super) fn body(&self) -> &[u8] {
        &self.received[self.head.size..self.head.end().unwrap_or(self.received.len())]
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) status: u16,
    pub(super) length: Option<usize>,
    pub(super) is_json: bool,
    pub(super) closes: bool,
    doubt: Option<&'static str>,
    size: usize,
}

impl Head {
    /// None as long as it is not whole.
    fn parse(received: &[u8]) -> Result<Option<Head>, httparse::Error> {
        let mut headers = [httparse::EMPTY_HEADER; HEADERS];
        let mut response = httparse::Response::new(&mut headers);
        let httparse::Status::Complete(size) = response.parse(received)? else { return Ok(None) };
        let mut head = Head {
            status: response.code.unwrap_or_default(),
            length: None,
            is_json: false,
            closes: response.version == Some(0),
            doubt: None,
            size,
        };
        for header in response.headers {
            let value = str::from_utf8(header.value).unwrap_or_default().trim();
            if header.name.eq_ignore_ascii_case("content-length") {
                let length = value.parse().map_err(|_| httparse::Error::HeaderValue)?;
                if head.length.replace(length).is_some() {
                    head.doubt = Some("it has more than one Content-Length");
                }
            } else if header.name.eq_ignore_ascii_case("transfer-encoding") {
                head.doubt = Some("it has a Transfer-Encoding, beside which no Content-Length counts");
            } else if header.name.eq_ignore_ascii_case("content-type") {
                head.is_json = value == "application/json";
            } else if header.name.eq_ignore_ascii_case("connection") {
                head.closes = value.eq_ignore_ascii_case("close");
            }
        }
        Ok(Some(head))
    }

    fn end(&self) -> Option<usize> {
        self.length.map(|length| self.size.saturating_add(length))
    }
}

#[cfg(test)]
mod tests;
