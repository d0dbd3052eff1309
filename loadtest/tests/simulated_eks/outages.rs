use loadtest::eks::{Config, Outage, PodToken, SimulatedEks};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::client::{Answer, HTTP, assume};
use crate::with_cart;

fn cart(eks: &SimulatedEks) -> String {
    eks.mint(PodToken::new("shop", "cart", "cart-1")).token
}

async fn raw_call(url: String) -> reqwest::Result<Answer> {
    let response = HTTP.post(format!("{url}/clusters/demo/assume-role-for-pod-identity")).send();
    Ok(Answer::of(response.await?).await)
}

/// Waits until a state shows; the test's own time limit is the only clock.
async fn until(mut holds: impl FnMut() -> bool) {
    while !holds() {
        tokio::task::yield_now().await;
    }
}

/// Polls `call` until the simulation has it.
async fn in_flight(eks: &SimulatedEks, call: &mut (impl Future<Output = Answer> + Unpin)) {
    tokio::select! {
        answer = call => panic!("an answer came during the outage: {answer:?}"),
        () = until(|| eks.counts().in_flight == 1) => {}
    }
}

#[tokio::test]
async fn a_hanging_call_goes_on_when_the_outage_ends() {
    let eks = with_cart().await;
    eks.settings(|settings| settings.outage = Outage::Hang);
    let token = cart(&eks);
    let mut call = Box::pin(assume(&eks, &token));
    in_flight(&eks, &mut call).await;
    eks.reset_calls();
    assert_eq!((eks.counts().in_flight, eks.counts().total), (1, 0), "a reset keeps what is not answered");
    eks.settings(|settings| settings.outage = Outage::Off);
    assert_eq!(call.await.status, 200);
    assert_eq!((eks.counts().in_flight, eks.counts().total), (0, 1));
}

#[tokio::test]
async fn a_call_whose_client_leaves_is_logged_as_abandoned() {
    let eks = with_cart().await;
    eks.settings(|settings| settings.outage = Outage::Hang);
    let token = cart(&eks);
    let mut call = Box::pin(assume(&eks, &token));
    in_flight(&eks, &mut call).await;
    drop(call);
    until(|| eks.counts().total == 1).await;
    assert_eq!(eks.calls()[0].result, "abandoned");
    assert_eq!(eks.calls()[0].role, "shop/cart");
    assert_eq!(eks.counts().in_flight, 0);
}

#[tokio::test]
async fn a_reset_is_a_reset_of_the_connection() {
    let eks = with_cart().await;
    eks.settings(|settings| settings.outage = Outage::Reset);
    let error = raw_call(eks.url().to_owned()).await.unwrap_err();
    let causes: Vec<_> =
        std::iter::successors(Some(&error as &dyn std::error::Error), |error| error.source()).collect();
    let reset = causes.iter().filter_map(|cause| cause.downcast_ref::<std::io::Error>());
    assert!(reset.into_iter().any(|e| e.kind() == std::io::ErrorKind::ConnectionReset), "{error:?}");
    assert_eq!(eks.counts().result("reset"), 1);
}

#[tokio::test]
async fn a_refusal_is_a_service_unavailable_exception() {
    let eks = with_cart().await;
    eks.settings(|settings| settings.outage = Outage::Refuse);
    assert_eq!(assume(&eks, &cart(&eks)).await.outcome(), (503, "ServiceUnavailableException"));
}

#[tokio::test]
async fn calls_above_the_rate_are_throttled() {
    let eks = with_cart().await;
    eks.settings(|settings| settings.throttle_per_second = Some(0.001));
    let token = cart(&eks);
    assert_eq!(assume(&eks, &token).await.status, 200);
    assert_eq!(assume(&eks, &token).await.outcome(), (429, "ThrottlingException"));
}

#[tokio::test]
async fn the_error_rate_is_a_share_of_calls() {
    let eks = with_cart().await;
    let token = cart(&eks);
    eks.settings(|settings| settings.error_rate = 1.0);
    assert_eq!(assume(&eks, &token).await.outcome(), (500, "InternalServerException"));
    eks.settings(|settings| settings.error_rate = 0.0);
    assert_eq!(assume(&eks, &token).await.status, 200);
}

#[tokio::test]
async fn latency_delays_the_answer() {
    let eks = with_cart().await;
    eks.settings(|settings| settings.latency_ms = 150);
    assume(&eks, &cart(&eks)).await;
    let took = eks.calls()[0].duration_ms;
    assert!(took >= 150.0, "{took} ms");
}

#[tokio::test]
async fn two_thousand_connections_in_bursts_are_all_answered() {
    let eks = with_cart().await;
    eks.settings(|settings| settings.latency_ms = 50);
    // Both ends of a burst must fit into the 1,024 file descriptors that a process has by default.
    for _ in 0..5 {
        let mut calls = JoinSet::new();
        for _ in 0..400 {
            calls.spawn(raw_call(eks.url().to_owned()));
        }
        while let Some(call) = calls.join_next().await {
            assert_eq!(call.unwrap().unwrap().outcome(), (403, "MissingAuthenticationTokenException"));
        }
    }
    assert_eq!(eks.counts().total, 2000);
}

#[tokio::test]
async fn dropping_the_simulation_ends_its_connections_and_frees_its_port() {
    let eks = with_cart().await;
    eks.settings(|settings| settings.outage = Outage::Hang);
    let address = eks.url().strip_prefix("http://").unwrap().to_owned();
    let mut connection = TcpStream::connect(&address).await.unwrap();
    connection.write_all(b"GET /control/counts HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut buffer = [0; 4096];
    assert!(connection.read(&mut buffer).await.unwrap() > 0, "the connection is served");
    let call =
        b"POST /clusters/demo/assume-role-for-pod-identity HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n";
    connection.write_all(call).await.unwrap();
    drop(eks);
    let left = connection.read(&mut buffer).await;
    assert!(matches!(left, Ok(0) | Err(_)), "{left:?} bytes of an answer");

    // The listener goes with its task, which ends when the runtime gets to it.
    let listen = address.parse().unwrap();
    while let Err(error) = SimulatedEks::start(Config { listen, ..Config::default() }).await {
        assert!(error.to_string().contains(&address), "{error}");
        tokio::task::yield_now().await;
    }
}
