//! `podcred initialize` in network namespaces of its own. Needs root; without it the tests say that they were left out.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use loadtest::left_out_without_root;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

const LINK: &str = "pod-id-link0";

/// A network namespace that ends with its guard.
struct Namespace(String);

impl Namespace {
    fn new() -> Option<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        if left_out_without_root() {
            return None;
        }
        let name = format!("pc-init-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        run(Command::new("ip").args(["netns", "add", &name]));
        let namespace = Namespace(name);
        namespace.ip("link set lo up");
        Some(namespace)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.0, program]);
        command
    }

    fn ip(&self, args: &str) -> String {
        run(self.command("ip").args(args.split(' ')))
    }

    fn initialize(&self, args: &[&str]) -> Output {
        self.command(env!("CARGO_BIN_EXE_podcred"))
            .arg("initialize")
            .args(args)
            .output()
            .expect("podcred starts")
    }

    fn initialized(&self, args: &[&str]) -> String {
        let output = self.initialize(args);
        let log = log_of(&output);
        assert!(output.status.success(), "{log}");
        log
    }

    fn refused(&self, args: &[&str]) -> String {
        let output = self.initialize(args);
        let log = log_of(&output);
        assert_eq!(output.status.code(), Some(1), "{log}");
        log
    }

    fn listen(&self, address: SocketAddr) -> std::io::Result<TcpListener> {
        let namespace = File::open(format!("/run/netns/{}", self.0))?;
        // The namespace is a thread's, and this one ends with it.
        let listen = move || {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
            TcpListener::bind(address)
        };
        std::thread::spawn(listen).join().expect("the thread that listens")
    }

    fn exists(&self) -> bool {
        self.ip("link show").contains(LINK)
    }

    /// Everything about addresses and routes that `initialize` could change.
    fn state(&self) -> String {
        ["addr show", "-4 route show table all", "-6 route show table all"].map(|args| self.ip(args)).concat()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "delete", &self.0]).status();
    }
}

fn run(command: &mut Command) -> String {
    let output = command.output().expect("iproute2 is installed");
    assert!(output.status.success(), "{command:?}: {}", log_of(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn log_of(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn the_device_has_both_addresses_and_a_route_each() {
    let Some(ns) = Namespace::new() else { return };
    ns.initialized(&[]);
    let link = ns.ip(&format!("addr show dev {LINK}"));
    assert!(link.contains("UP"), "{link}");
    assert!(link.contains("inet 169.254.170.23/32"), "{link}");
    let inet6 = link.lines().find(|line| line.contains("inet6 fd00:ec2::23/128")).unwrap_or_default();
    assert!(inet6.contains("nodad") && !inet6.contains("tentative"), "{link}");
    assert!(ns.ip("-4 route").contains(&format!("169.254.170.23 dev {LINK}")), "{}", ns.ip("-4 route"));
    assert!(ns.ip("-6 route").contains(&format!("fd00:ec2::23 dev {LINK}")), "{}", ns.ip("-6 route"));
}

#[test]
fn both_addresses_can_be_bound_at_once() {
    let Some(ns) = Namespace::new() else { return };
    ns.initialized(&[]);
    for address in ["169.254.170.23:80", "[fd00:ec2::23]:80"] {
        let listener = ns.listen(address.parse().unwrap());
        assert!(listener.is_ok(), "{address}: {listener:?}");
    }
}

#[test]
fn a_second_run_changes_nothing_and_says_so() {
    let Some(ns) = Namespace::new() else { return };
    assert!(ns.initialized(&[]).contains("set up"));
    let before = ns.state();
    let log = ns.initialized(&[]);
    assert!(log.contains("nothing to do"), "{log}");
    assert_eq!(ns.state(), before);
}

#[test]
fn what_is_missing_is_added_again() {
    let Some(ns) = Namespace::new() else { return };
    ns.initialized(&[]);
    ns.ip(&format!("addr del 169.254.170.23/32 dev {LINK}"));
    let log = ns.initialized(&[]);
    assert!(log.contains("added the address 169.254.170.23") && !log.contains("fd00"), "{log}");

    ns.ip(&format!("link set {LINK} down"));
    let log = ns.initialized(&[]);
    assert!(log.contains("brought it up") && log.contains("added the route to 169.254.170.23"), "{log}");
    assert!(ns.initialized(&[]).contains("nothing to do"));
}

#[test]
fn remove_takes_the_device_away_and_may_be_repeated() {
    let Some(ns) = Namespace::new() else { return };
    let before = ns.state();
    ns.initialized(&[]);
    assert!(ns.exists());
    assert!(ns.initialized(&["--remove"]).contains("removed"));
    assert_eq!(ns.state(), before);
    assert!(ns.initialized(&["--remove"]).contains("nothing to remove"));
}

#[test]
fn without_ipv6_in_the_namespace_auto_leaves_it_out_and_on_fails() {
    let Some(ns) = Namespace::new() else { return };
    for name in ["all", "default"] {
        run(ns.command("sysctl").args(["-w", &format!("net.ipv6.conf.{name}.disable_ipv6=1")]));
    }
    let log = ns.initialized(&[]);
    assert!(log.contains("no IPv6") && log.contains("fd00:ec2::23"), "{log}");
    assert!(ns.ip("addr").contains("169.254.170.23/32"));
    assert!(ns.initialized(&[]).contains("nothing to do"), "a second run is still a no-op");

    let log = ns.refused(&["--ipv6", "on"]);
    assert!(log.contains("disable_ipv6") && log.contains("--ipv6"), "{log}");
}

#[test]
fn ipv6_off_sets_up_ipv4_alone() {
    let Some(ns) = Namespace::new() else { return };
    ns.initialized(&["--ipv6", "off"]);
    let addresses = ns.ip("addr");
    assert!(addresses.contains("169.254.170.23/32") && !addresses.contains("fd00:ec2"), "{addresses}");
}

#[test]
fn a_device_of_another_kind_is_left_alone() {
    let Some(ns) = Namespace::new() else { return };
    ns.ip(&format!("link add {LINK} type veth peer name other"));
    for args in [[].as_slice(), &["--remove"]] {
        let log = ns.refused(args);
        assert!(log.contains("veth") && log.contains(&format!("ip link delete {LINK}")), "{log}");
    }
    assert!(ns.exists() && !ns.ip("addr").contains("169.254.170.23"));
}

#[test]
fn an_address_on_another_device_is_a_conflict_that_names_it() {
    for address in ["169.254.170.23/32", "fd00:ec2::23/128"] {
        let Some(ns) = Namespace::new() else { return };
        ns.ip("link add foreign0 type bridge");
        ns.ip("link set foreign0 up");
        ns.ip(&format!("addr add {address} dev foreign0"));
        let log = ns.refused(&[]);
        assert!(log.contains("foreign0") && log.contains(address.split('/').next().unwrap()), "{log}");
        assert!(!ns.exists(), "a refused run changes nothing");
    }
}

#[test]
fn a_route_over_another_device_is_a_conflict_that_names_it() {
    let Some(ns) = Namespace::new() else { return };
    ns.ip("link add foreign0 type bridge");
    ns.ip("link set foreign0 up");
    ns.ip("route add 169.254.170.23/32 dev foreign0");
    let log = ns.refused(&[]);
    assert!(log.contains("foreign0") && log.contains("routed"), "{log}");
    assert!(!ns.exists());
}

#[test]
fn an_agent_that_serves_already_is_found_and_the_way_to_change_over_named() {
    let Some(ns) = Namespace::new() else { return };
    assert!(!ns.initialized(&[]).contains("port_taken"), "nobody listens yet");
    for (address, advice) in [
        ("169.254.170.23:80", "docs/migrate.md"),
        ("[fd00:ec2::23]:80", "docs/migrate.md"),
        ("0.0.0.0:80", "an ingress"),
        ("[::]:80", "an ingress"),
    ] {
        let other = ns.listen(address.parse().unwrap()).unwrap();
        let log = ns.initialized(&[]);
        assert!(log.contains("port_taken") && log.contains(advice), "{address}: {log}");
        drop(other);
        assert!(!ns.initialized(&[]).contains("port_taken"), "{address}: nobody listens any more");
    }
}

#[test]
fn the_device_is_not_taken_from_an_agent_that_serves_on_it() {
    let Some(ns) = Namespace::new() else { return };
    ns.initialized(&[]);
    for address in ["169.254.170.23:80", "[fd00:ec2::23]:80"] {
        let other = ns.listen(address.parse().unwrap()).unwrap();
        let log = ns.refused(&["--remove"]);
        assert!(log.contains("stop that agent") && ns.exists(), "{address}: {log}");
        drop(other);
    }
    let _ingress = ns.listen("0.0.0.0:80".parse().unwrap()).unwrap();
    assert!(ns.initialized(&["--remove"]).contains("removed"), "an ingress does not need the device");
}

/// As the pods of a DaemonSet do that cleans up.
#[test]
fn who_stays_removes_the_device_when_nobody_serves_on_it_any_more_and_ends_by_sigterm() {
    let Some(ns) = Namespace::new() else { return };
    ns.initialized(&[]);
    let other = ns.listen("169.254.170.23:80".parse().unwrap()).unwrap();
    let mut stays = ns.command(env!("CARGO_BIN_EXE_podcred"));
    stays.args(["initialize", "--remove", "--stay"]).stderr(Stdio::piped());
    let mut stays = stays.spawn().expect("podcred starts");
    let mut told = BufReader::new(stays.stderr.take().expect("stderr is piped")).lines();
    let mut until_told = |event: &str| told.find(|line| line.as_ref().is_ok_and(|line| line.contains(event)));
    assert!(until_told("link_in_use").is_some() && ns.exists());
    drop(other);
    assert!(until_told("removed").is_some() && !ns.exists());
    assert!(stays.try_wait().unwrap().is_none(), "it stays");
    rustix::process::kill_process(rustix::process::Pid::from_child(&stays), rustix::process::Signal::TERM)
        .unwrap();
    assert_eq!(stays.wait().unwrap().code(), Some(0));
}

#[test]
fn a_missing_privilege_is_named() {
    let Some(ns) = Namespace::new() else { return };
    let output = ns
        .command("setpriv")
        .args([
            "--bounding-set=-net_admin",
            "--inh-caps=-net_admin",
            env!("CARGO_BIN_EXE_podcred"),
            "initialize",
        ])
        .output()
        .expect("util-linux is installed");
    let log = log_of(&output);
    assert_eq!(output.status.code(), Some(1), "{log}");
    assert!(log.contains("CAP_NET_ADMIN") && log.contains("hostNetwork"), "{log}");
}
