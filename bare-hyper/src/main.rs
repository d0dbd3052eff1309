//! What serving costs with hyper alone: the reference of `cargo xtask bench`.
//!
//! It has the agent's runtime, socket options and hyper settings (`agent/src/server.rs`), and answers every request with a body of
//! as many bytes as its argument says. It prints its address once it listens, and runs until it is killed.
#![forbid(unsafe_code)]

use std::convert::Infallible;
use std::error::Error;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::Response;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let mut next = |what: &'static str| arguments.next().ok_or(what);
    let address: SocketAddr = next("which address?")?.parse()?;
    let size: usize = next("how many bytes?")?.parse()?;
    let workers: usize = next("how many threads?")?.parse()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(workers).enable_all().build()?;
    // On a worker, as the agent accepts: from the main thread each connection would cost a wake-up more.
    runtime.block_on(runtime.spawn(serve(address, Bytes::from(vec![b'x'; size]))))??;
    Ok(())
}

async fn serve(address: SocketAddr, body: Bytes) -> io::Result<()> {
    let listener = listen(address)?;
    let mut stdout = io::stdout();
    writeln!(stdout, "{}", listener.local_addr()?)?;
    stdout.flush()?;
    loop {
        let (stream, _) = listener.accept().await?;
        tokio::spawn(serve_one(stream, body.clone()));
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_tcp_user_timeout(Some(Duration::from_secs(5)))?;
    socket.set_send_buffer_size(8 * 1024)?;
    socket.set_recv_buffer_size(8 * 1024)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(4_096)?;
    TcpListener::from_std(socket.into())
}

async fn serve_one(stream: TcpStream, body: Bytes) {
    let respond = service_fn(async |_request| {
        let mut response = Response::new(Full::new(body.clone()));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        Ok::<_, Infallible>(response)
    });
    let serving = http1::Builder::new()
        .max_buf_size(32 * 1024)
        .writev(false)
        .serve_connection(TokioIo::new(stream), respond);
    // wrk goes in the middle of an answer when its time is over.
    let _broken_off = serving.await;
}
