//! The table of what was measured, row by row.

use super::*;

const LIFE: Duration = seconds(6 * 3600);

/// Statuses: 400 401 403 404, 429, 500 503.
#[track_caller]
fn retries(client: Client, client_errors: bool, too_many: bool) {
    let manners = client.manners();
    for status in [400, 401, 403, 404] {
        assert_eq!(manners.tries_again_after(status), client_errors, "{status}");
    }
    assert_eq!(manners.tries_again_after(429), too_many);
    assert!(manners.tries_again_after(500) && manners.tries_again_after(503));
    assert!(!manners.tries_again_after(200) && !manners.tries_again_after(301));
}

#[track_caller]
fn pauses(client: Client, shortest: [u64; 2], longest: [u64; 2]) {
    for (attempts, (shortest, longest)) in (1..).zip(shortest.into_iter().zip(longest)) {
        assert_eq!(client.manners().pause_after(attempts, 0.0), seconds(shortest));
        assert_eq!(client.manners().pause_after(attempts, 1.0), seconds(longest));
    }
}

#[test]
fn boto3_keeps_its_connection_and_retries_everything_a_second_later() {
    let manners = Client::Boto3.manners();
    assert_eq!((manners.connect_timeout, manners.reads_within()), (seconds(2), seconds(2)));
    assert_eq!(manners.attempts, 3);
    retries(Client::Boto3, true, true);
    pauses(Client::Boto3, [1, 1], [1, 1]);
    assert!(manners.keeps_connection(200) && manners.keeps_connection(503));
    assert_eq!(manners.refreshes_after(LIFE, 1.0, 0.5), LIFE - seconds(900));
}

#[test]
fn js_closes_when_served_and_has_no_response_timeout() {
    let manners = Client::Js.manners();
    assert_eq!((manners.connect_timeout, manners.read_timeout), (seconds(1), None));
    assert_eq!(manners.attempts, 4);
    retries(Client::Js, true, true);
    pauses(Client::Js, [1, 1], [1, 1]);
    assert!(!manners.keeps_connection(200) && manners.keeps_connection(503));
    assert_eq!(manners.refreshes_after(LIFE, 1.0, 0.5), LIFE - seconds(300));
}

#[test]
fn go_waits_at_random_and_takes_client_errors_for_final() {
    let manners = Client::Go.manners();
    assert_eq!((manners.connect_timeout, manners.read_timeout), (seconds(30), None));
    assert_eq!(manners.attempts, 3);
    retries(Client::Go, false, true);
    pauses(Client::Go, [0, 0], [2, 4]);
    assert!(manners.keeps_connection(200) && manners.keeps_connection(503));
    assert_eq!(manners.refreshes_after(LIFE, 1.0, 0.5), LIFE - seconds(300));
}

#[test]
fn java_spends_six_attempts_without_a_pause() {
    let manners = Client::Java.manners();
    assert_eq!((manners.connect_timeout, manners.reads_within()), (seconds(1), seconds(1)));
    assert_eq!(manners.attempts, 6);
    retries(Client::Java, false, false);
    pauses(Client::Java, [0, 0], [0, 0]);
    assert!(manners.keeps_connection(200));
    assert_eq!(manners.refreshes_after(LIFE, 1.0, 0.0), seconds(3600));
    assert_eq!(manners.refreshes_after(LIFE, 1.0, 1.0), LIFE - seconds(900));
}

#[test]
fn rust_connects_anew_after_a_server_error_and_asks_again_at_the_very_end() {
    let manners = Client::Rust.manners();
    assert_eq!((manners.connect_timeout, manners.reads_within()), (seconds(2), seconds(5)));
    assert_eq!(manners.attempts, 3);
    retries(Client::Rust, false, false);
    pauses(Client::Rust, [0, 0], [1, 2]);
    assert!(manners.keeps_connection(200) && manners.keeps_connection(404) && !manners.keeps_connection(503));
    assert_eq!(manners.refreshes_after(LIFE, 1.0, 0.5), LIFE - seconds(10));
}

#[test]
fn crt_waits_at_random_and_refreshes_each_quarter_of_an_hour() {
    let manners = Client::Crt.manners();
    assert_eq!((manners.connect_timeout, manners.read_timeout), (seconds(2), None));
    assert_eq!(manners.attempts, 4);
    retries(Client::Crt, false, true);
    for (attempts, longest) in [(1, 500), (2, 1_000), (3, 2_000), (4, 2_000)] {
        assert_eq!(manners.pause_after(attempts, 0.0), Duration::ZERO);
        assert_eq!(manners.pause_after(attempts, 1.0), Duration::from_millis(longest));
    }
    assert!(manners.keeps_connection(200) && manners.keeps_connection(503));
    assert_eq!(manners.refreshes_after(LIFE, 1.0, 0.5), seconds(900));
    assert_eq!(manners.refreshes_after(seconds(600), 1.0, 0.5), seconds(600));
}

#[test]
fn compressed_time_compresses_the_thresholds_as_well() {
    let life = LIFE.div_f64(360.0);
    assert_eq!(
        Client::Boto3.manners().refreshes_after(life, 360.0, 0.5),
        seconds(60) - Duration::from_millis(2500)
    );
    let java = Client::Java.manners();
    assert_eq!(java.refreshes_after(life, 360.0, 0.0), seconds(10));
    // Java's hour is longer than this life: it asks at the last moment that it has.
    assert_eq!(java.refreshes_after(seconds(1200), 1.0, 0.0), seconds(300));
}
