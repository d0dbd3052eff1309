//! A pod's connection, which epoll hears of only once there is something to wait for.
//!
//! Most SDKs open a connection for each retrieval. While the agent is busy, the request is there by the time that the agent
//! comes to read it: such a connection is read, answered and closed without epoll, which saves three system calls.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{self, Shutdown};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// A token and the headers around it are less, and a buffer is zeroed before std reads into it.
const FIRST_READ: usize = 2 * 1024;

#[derive(Debug)]
pub(super) enum Stream {
    /// `None` where the socket could not be handed over to be watched. `asked`: it had nothing to read once, and the other
    /// connections went first.
    Unwatched {
        socket: Option<net::TcpStream>,
        asked: bool,
    },
    Watched(TcpStream),
}

impl Stream {
    /// `socket` must not block.
    pub(super) fn new(socket: net::TcpStream) -> Self {
        Stream::Unwatched { socket: Some(socket), asked: false }
    }

    /// What this gives at once; None if it has to be waited for.
    fn at_once<T>(
        &mut self,
        operation: impl FnOnce(&mut net::TcpStream) -> io::Result<T>,
    ) -> Option<io::Result<T>> {
        let Stream::Unwatched { socket: Some(socket), .. } = self else { return None };
        match operation(socket) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => None,
            result => Some(result),
        }
    }

    /// A client sends its request some microseconds after its connect(), and the agent accepts at once. Twice is enough: more
    /// attempts cost more than they save.
    fn asks_again(&mut self) -> bool {
        match self {
            Stream::Unwatched { asked, .. } => !std::mem::replace(asked, true),
            Stream::Watched(_) => false,
        }
    }

    fn watched(&mut self) -> io::Result<Pin<&mut TcpStream>> {
        if let Stream::Unwatched { socket, .. } = self {
            let socket = socket.take().ok_or(ErrorKind::NotConnected)?;
            *self = Stream::Watched(TcpStream::from_std(socket)?);
        }
        match self {
            Stream::Watched(stream) => Ok(Pin::new(stream)),
            Stream::Unwatched { .. } => Err(ErrorKind::NotConnected.into()),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let room = buffer.remaining().min(FIRST_READ);
        if let Some(read) = self.at_once(|socket| socket.read(buffer.initialize_unfilled_to(room))) {
            buffer.advance(read?);
            return Poll::Ready(Ok(()));
        }
        if self.asks_again() {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.watched()?.poll_read(context, buffer)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.at_once(|socket| socket.write(bytes)) {
            Some(written) => Poll::Ready(written),
            None => self.watched()?.poll_write(context, bytes),
        }
    }

    /// TCP keeps nothing back.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.at_once(|socket| socket.shutdown(Shutdown::Write)) {
            Some(shut) => Poll::Ready(shut),
            None => self.watched()?.poll_shutdown(context),
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// A client, and the stream of the server that accepted it.
    fn pair() -> (net::TcpStream, Stream) {
        let listener = net::TcpListener::bind("127.0.0.1:0").unwrap();
        let client = net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        accepted.set_nonblocking(true).unwrap();
        (client, Stream::new(accepted))
    }

    #[tokio::test]
    async fn what_is_there_is_read_and_answered_without_epoll() {
        let (mut client, mut stream) = pair();
        client.write_all(b"question").unwrap();
        let mut question = [0; 8];
        stream.read_exact(&mut question).await.unwrap();
        assert_eq!(&question, b"question");
        stream.write_all(b"answer").await.unwrap();
        stream.shutdown().await.unwrap();
        assert!(matches!(stream, Stream::Unwatched { socket: Some(_), asked: false }));
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "answer");
    }

    #[tokio::test]
    async fn what_comes_while_others_go_first_is_read_without_epoll() {
        let (mut client, mut stream) = pair();
        let mut question = [0; 8];
        let (read, ()) = tokio::join!(stream.read_exact(&mut question), async {
            client.write_all(b"question").unwrap();
        });
        read.unwrap();
        assert!(matches!(stream, Stream::Unwatched { socket: Some(_), asked: true }));
    }

    #[tokio::test]
    async fn what_comes_later_is_waited_for() {
        let (mut client, mut stream) = pair();
        let mut question = [0; 8];
        let (read, ()) = tokio::join!(stream.read_exact(&mut question), async {
            for _ in 0..3 {
                tokio::task::yield_now().await;
            }
            client.write_all(b"question").unwrap();
        });
        read.unwrap();
        assert_eq!(&question, b"question");
        assert!(matches!(stream, Stream::Watched(_)));
        drop(client);
        assert_eq!(stream.read(&mut question).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn an_answer_that_is_larger_than_the_socket_takes_arrives_whole() {
        let (mut client, mut stream) = pair();
        let answer: Vec<u8> = (0..32_000_000_u32).map(|number| number.to_le_bytes()[1]).collect();
        let mut writing = Box::pin(stream.write_all(&answer));
        assert!((&mut writing).now_or_never().is_none(), "nobody reads yet");
        let reading = tokio::task::spawn_blocking(move || {
            let mut read = Vec::new();
            client.read_to_end(&mut read).map(|_| read)
        });
        writing.await.unwrap();
        stream.shutdown().await.unwrap();
        assert!(matches!(stream, Stream::Watched(_)));
        assert!(reading.await.unwrap().unwrap() == answer);
    }

    #[tokio::test]
    async fn a_read_takes_no_more_than_there_is_room_for() {
        let (mut client, mut stream) = pair();
        client.write_all(b"question").unwrap();
        for part in [&b"que"[..], b"sti", b"on"] {
            let mut room = [0; 3];
            let read = stream.read(&mut room).await.unwrap();
            assert_eq!(&room[..read], part);
        }
    }
}
