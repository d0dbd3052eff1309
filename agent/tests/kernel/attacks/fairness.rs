//! Whether a pod is served as fast while another one attacks.
//!
//! The attacker costs its node processor time whatever it attacks, so it never pauses: in one arm it aims at the agent's
//! port, in the other it does the same to a port that nobody watches. Both arms take turns of a few dozen
//! milliseconds, so that what else the machine does falls on both. A turn of each arm is a block, and the result is the
//! median of the blocks' ratios of their 99th percentiles: a disturbance spoils its block and no other.
//!
//! How many blocks that takes depends on the machine: with both arms aimed at the unwatched port, runs of 400 blocks gave
//! medians from 0.92 to 1.06 on two cores with a load of nine. So it goes on until the median's interval is clear of the
//! goal, on either side, or the blocks are used up; then the median alone decides. Looking after each batch makes the
//! interval less certain than its 99.9 %.

use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use loadtest::node::{CREDENTIALS_V4, Pod};
use podcred::clock::Clock;
use socket2::SockRef;

use super::Poisoned;
use super::flood::{Attack, Flood, HELD};
use crate::harness::{Watched, connections, until};
use crate::load::{ask, while_served};

const REQUESTS_PER_TURN: usize = 150;
const BATCH: usize = 100;
const GOAL: f64 = 1.10;
const ATTACKS: [Flood; 4] = [Flood::Handshakes, Flood::Held, Flood::Nested, Flood::Repair];

#[test]
fn an_attacked_pods_p99_stays_within_a_tenth() {
    let Some(node) = Watched::alone() else { return };
    let [attacker, victim] = node.pods();
    let poisoned = Poisoned::made_by(&attacker, &[CREDENTIALS_V4.into()]);
    let most = (connections() / 10).max(BATCH);
    let mut ratios: Vec<f64> = Vec::new();
    while_served(&node, |[v4, ..]| {
        let elsewhere = SocketAddr::new(v4.ip(), node.port());
        let (aimed, idle) = (Attack::default(), Attack::default());
        std::thread::scope(|threads| {
            threads.spawn(|| aimed.run(&ATTACKS, &attacker, &poisoned.place, *v4));
            threads.spawn(|| idle.run(&ATTACKS, &attacker, &poisoned.place, elsewhere));
            let _both_end = (aimed.ends_with_this(), idle.ends_with_this());
            until("both attacks run", || aimed.attempts().min(idle.attempts()) > HELD);
            let turn = |attacked: bool| {
                aimed.pause(!attacked);
                idle.pause(attacked);
                p99(&victim, *v4)
            };
            while ratios.len() < most && !is_clear(&ratios) {
                for block in 0..BATCH {
                    // Who comes first takes turns as well.
                    let attacked_first = block % 2 == 0;
                    let (first, second) = (turn(attacked_first), turn(!attacked_first));
                    ratios.push(if attacked_first { first / second } else { second / first });
                }
                ratios.sort_unstable_by(f64::total_cmp);
            }
        });
    });
    let (low, ratio, high) = interval(&ratios);
    eprintln!(
        "an attacked pod's p99 is {ratio:.3} ({low:.3} to {high:.3}) times what it is otherwise, by {} blocks",
        ratios.len()
    );
    assert!(ratio <= GOAL, "an attacked pod's p99 is {ratio:.3} times what it is otherwise");
}

/// Of sorted values: their median, between the bounds that hold it with 99.9 % (by the binomial distribution of how many
/// values lie below it).
fn interval(sorted: &[f64]) -> (f64, f64, f64) {
    let count = sorted.len();
    let half = (1.65 * (count as f64).sqrt()).ceil() as usize;
    let at = |index: usize| sorted[index.min(count - 1)];
    (at((count / 2).saturating_sub(half)), at(count / 2), at(count / 2 + half))
}

fn is_clear(sorted: &[f64]) -> bool {
    if sorted.is_empty() {
        return false;
    }
    let (low, _, high) = interval(sorted);
    high <= GOAL || low > GOAL
}

/// In seconds, from connect() to the answer.
fn p99(pod: &Pod, to: SocketAddr) -> f64 {
    let turn = || {
        let clock = Clock::default();
        let mut times: Vec<Duration> = (0..REQUESTS_PER_TURN)
            .map(|_| {
                let begun = clock.now().mono;
                let mut stream = TcpStream::connect(to).unwrap();
                ask(&mut stream, pod.cgroup_id());
                let time = clock.now().mono - begun;
                // Thousands of ports in TIME_WAIT would make each connect() slower than the one before.
                SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
                time
            })
            .collect();
        times.sort_unstable();
        times[REQUESTS_PER_TURN * 99 / 100].as_secs_f64()
    };
    pod.run(turn).unwrap()
}
