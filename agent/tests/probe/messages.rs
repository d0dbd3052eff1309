//! The programs' own messages.

use std::net::TcpStream;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, PoisonError};

use log::{LevelFilter, Log, Metadata, Record};
use podcred::attribute::probe::ProbeConfig;

use crate::cgroups::{DEADLINE, Node};
use crate::loader::{CONTAINER, V4, listener};

/// Sends every message on. The log crate has one logger in each process; no other test wants it.
struct Collector(Mutex<Sender<String>>);

impl Log for Collector {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        // The receiver ends with its test.
        let _ = self.0.lock().unwrap_or_else(PoisonError::into_inner).send(record.args().to_string());
    }

    fn flush(&self) {}
}

#[tokio::test]
async fn the_programs_tell_whom_they_attributed_a_connection_to() {
    let Some(node) = Node::new() else { return };
    let (sender, messages) = channel();
    log::set_boxed_logger(Box::new(Collector(Mutex::new(sender)))).unwrap();
    log::set_max_level(LevelFilter::Debug);
    let probe = node.load_with(&ProbeConfig { log: true, ..node.config() });
    let forward = tokio::spawn(probe.take_log().expect("the first one gets it").forward());
    assert!(probe.take_log().is_none(), "once");

    let (listener, address) = listener(&probe, V4);
    let client = node.inside(CONTAINER, || TcpStream::connect(address).unwrap());
    listener.accept().unwrap();
    let expected =
        format!("port {}: opened by cgroup {}", client.local_addr().unwrap().port(), node.id(CONTAINER));
    let wait = tokio::task::spawn_blocking(move || {
        while messages.recv_timeout(DEADLINE).expect("the message comes") != expected {}
    });
    wait.await.unwrap();
    forward.abort();
}
