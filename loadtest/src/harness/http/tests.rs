use std::future::poll_fn;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;
use crate::harness::manners::Client;

const SOON: Duration = Duration::from_millis(200);

async fn closed(connection: &Connection) {
    poll_fn(|context| connection.poll_closed(context)).await;
}

/// A server that answers each connection by these pieces, one write each, and what a client makes of it.
async fn answered(pieces: &'static [&'static str], close: bool) -> Result<Answer, NoAnswer> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = Endpoint::at(listener.local_addr().unwrap());
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = [0; 1024];
        let read = stream.read(&mut request).await.unwrap();
        for piece in pieces {
            stream.write_all(piece.as_bytes()).await.unwrap();
            tokio::task::yield_now().await;
        }
        if !close {
            // Until the client is done.
            let _gone = stream.read(&mut request[read..]).await;
        }
        String::from_utf8(request[..read].to_vec()).unwrap()
    });
    let socket = start_to_connect(endpoint.address).unwrap();
    let connection = Connection::finish(socket, SOON).await?;
    let answer = connection.ask(&endpoint.request(Client::Boto3.manners(), "t.o.k"), SOON).await;
    drop(connection);
    let request = server.await.unwrap();
    assert!(request.starts_with("GET /v1/credentials HTTP/1.1\r\n"), "{request}");
    assert!(request.contains("\r\nAuthorization: t.o.k\r\n"), "{request}");
    answer
}

#[tokio::test]
async fn an_answer_in_pieces_is_read_whole() {
    let pieces =
        &["HTTP/1.1 200 OK\r\ncontent-", "length: 4\r\nContent-Type: application/json\r\n\r", "\n{", "  }"];
    let answer = answered(pieces, false).await.unwrap();
    assert_eq!(answer.body(), b"{  }");
    let head = answer.head;
    assert_eq!((head.status, head.length, head.is_json, head.closes), (200, Some(4), true, false));
}

#[tokio::test]
async fn an_answer_that_others_may_read_otherwise_is_in_doubt() {
    let doubt = async |pieces| answered(pieces, false).await.unwrap().doubt();
    assert_eq!(doubt(&["HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n{  }"]).await, None);
    let twice = doubt(&["HTTP/1.1 200 OK\r\nContent-Length: 9\r\nContent-Length: 4\r\n\r\n{  }"]).await;
    assert!(twice.is_some_and(|doubt| doubt.contains("more than one")));
    let chunked =
        doubt(&["HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n{  }"]).await;
    assert!(chunked.is_some_and(|doubt| doubt.contains("Transfer-Encoding")));
    let longer = doubt(&["HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n{  } and more"]).await;
    assert!(longer.is_some_and(|doubt| doubt.contains("more came")));
}

#[tokio::test]
async fn an_answer_without_a_length_ends_with_its_connection() {
    let answer = answered(&["HTTP/1.1 503 No\r\nConnection: close\r\n\r\nno"], true).await.unwrap();
    assert_eq!(answer.body(), b"no");
    assert_eq!((answer.head.status, answer.head.length, answer.head.closes), (503, None, true));
}

#[tokio::test]
async fn an_answer_that_is_cut_or_never_comes_has_a_class_of_its_own() {
    let cut = answered(&["HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12345"], true).await.unwrap_err();
    assert_eq!(cut.class(), "answer cut short: unexpected end of file");
    let nothing = answered(&[], true).await.unwrap_err();
    assert_eq!(nothing.class(), "connection ended: unexpected end of file");
    let silent = answered(&[], false).await.unwrap_err();
    assert!(matches!(silent, NoAnswer::Silence(SOON)), "{silent}");
    let nonsense = answered(&["SSH-2.0-OpenSSH_9.9\r\n\r\n"], false).await.unwrap_err();
    assert_eq!(nonsense.class(), "no HTTP");
}

#[tokio::test]
async fn a_closed_port_is_refused_and_told_apart() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let failure = match start_to_connect(address) {
        Ok(socket) => Connection::finish(socket, SOON).await.unwrap_err(),
        Err(error) => NoAnswer::Connect(error),
    };
    assert_eq!(failure.class(), "connect: connection refused");
}

#[tokio::test]
async fn a_connection_is_closed_when_the_server_says_so_and_not_before() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = Endpoint::at(listener.local_addr().unwrap());
    let (close, closing) = tokio::sync::oneshot::channel::<()>();
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        for _ in 0..2 {
            let read = stream.read(&mut [0; 1024]).await.unwrap();
            assert!(read > 0);
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
        }
        closing.await.unwrap();
    });
    let connection = Connection::finish(start_to_connect(endpoint.address).unwrap(), SOON).await.unwrap();
    let request = endpoint.request(Client::Go.manners(), "t.o.k");
    for _ in 0..2 {
        connection.ask(&request, SOON).await.unwrap();
        assert!(timeout(SOON / 4, closed(&connection)).await.is_err(), "it is kept");
    }
    close.send(()).unwrap();
    timeout(10 * SOON, closed(&connection)).await.unwrap();
    server.await.unwrap();
}

#[test]
fn a_request_has_its_token_in_it() {
    let endpoint = Endpoint::at(([127, 0, 0, 1], 80).into());
    for client in Client::ALL {
        assert_eq!(token_of(&endpoint.request(client.manners(), "t.o.k")), "t.o.k");
    }
}
