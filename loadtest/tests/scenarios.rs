//! Each scenario, short, against podcred: what it says in report.json is what happened.
//!
//! The podcred binary is named by PODCRED_BINARY; without it these tests are left out, which in CI is a failure. As root each
//! pod is a pod to the kernel; without, all is on loopback, and what needs the kernel is left out.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use loadtest::eks::{Config, PodToken, SimulatedEks};
use loadtest::harness::Agent;
use loadtest::report::{Group, Run};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::runtime::Builder;

/// Runs take the machine's processors: one at a time.
static ALONE: Mutex<()> = Mutex::new(());

struct Scenario {
    name: &'static str,
    binary: PathBuf,
    folder: tempfile::TempDir,
    _alone: MutexGuard<'static, ()>,
}

impl Scenario {
    /// None where this test is left out.
    fn new(name: &'static str) -> Option<Scenario> {
        let Some(binary) = std::env::var_os("PODCRED_BINARY") else {
            assert!(
                std::env::var_os("CI").is_none(),
                "in CI these tests must run: build podcred and set PODCRED_BINARY"
            );
            eprintln!("left out: PODCRED_BINARY does not say where podcred is");
            return None;
        };
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        Some(Scenario {
            name,
            binary: binary.into(),
            folder: tempfile::tempdir().expect("a folder"),
            _alone: alone,
        })
    }

    fn command(&self, more: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_loadtest"));
        command.args([self.name, "--short", "--binary"]).arg(&self.binary);
        command.arg("--output").arg(self.folder.path()).args(more);
        command
    }

    fn output(&self, more: &[&str]) -> Output {
        self.command(more).output().expect("the harness starts")
    }

    /// The run, which held what this scenario expects by itself, or what is expected here of a build that is not optimized.
    #[track_caller]
    fn run(&self, more: &[&str]) -> Run {
        let output = self.output(more);
        let said =
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{}: {said}", output.status);
        let run = read(self.folder.path());
        assert_eq!(run.scenario, self.name);
        assert_eq!(run.totals.requests, run.totals.served + run.totals.failed);
        assert_eq!(
            run.totals.requests,
            run.timeline.iter().map(|second| second.requests).sum::<u64>(),
            "{said}"
        );
        assert!(run.expected.iter().all(|expected| expected.held), "{said}");
        assert!(run.totals.agent_cpu_seconds.is_some_and(|cpu| cpu > 0.0), "{said}");
        assert!(self.folder.path().join("goose.html").is_file(), "goose writes its own report");
        run
    }
}

fn read(folder: &Path) -> Run {
    let report = std::fs::read(folder.join("report.json")).expect("a report");
    serde_json::from_slice(&report).expect("a run")
}

#[track_caller]
fn group<'a>(run: &'a Run, name: &str) -> &'a Group {
    run.groups.iter().find(|group| group.name == name).unwrap_or_else(|| panic!("no group {name}"))
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[test]
fn a_rollout_serves_every_pod_by_one_call_a_role() {
    let Some(scenario) = Scenario::new("rollout") else { return };
    let run = scenario.run(&[]);
    assert_eq!((run.totals.pods, run.totals.served, run.totals.failed), (300, 300, 0));
    assert_eq!(run.totals.eks_auth_calls, Some(5));
    assert_eq!(run.timeline.last().unwrap().one_call_a_pod, 300);
    assert_eq!(run.groups.len(), 7, "all pods, and each SDK");
}

#[test]
fn pods_in_networks_of_their_own_are_served_as_well() {
    if !is_root() {
        eprintln!("left out: network namespaces need root");
        return;
    }
    let Some(scenario) = Scenario::new("rollout") else { return };
    let run = scenario.run(&["--netns", "20", "--pods", "40", "--", "--verify", "enforce"]);
    assert_eq!((run.totals.served, run.totals.failed), (40, 0));
}

#[test]
fn everything_works_on_loopback() {
    let Some(scenario) = Scenario::new("rollout") else { return };
    let run = scenario.run(&["--loopback", "--pods", "50"]);
    assert_eq!((run.totals.served, run.totals.failed), (50, 0));
    assert!(run.notes.iter().any(|note| note.contains("loopback")));
}

#[test]
fn a_steady_rate_is_kept() {
    let Some(scenario) = Scenario::new("steady") else { return };
    let run = scenario.run(&["--expect", "failed=0", "--expect", "wrong=0"]);
    // 200 pods, every 2 s of 6.
    assert_eq!(run.totals.requests, 600);
}

#[test]
fn chatty_pods_cost_no_calls() {
    let Some(scenario) = Scenario::new("chatty") else { return };
    let run = scenario.run(&["--expect", "failed=0", "--expect", "eks_auth_calls<=roles"]);
    let of_one = |name| group(&run, name).requests / group(&run, name).pods;
    assert!(of_one("chatty") > 10 * of_one("others"));
}

#[test]
fn saturation_asks_again_at_once() {
    let Some(scenario) = Scenario::new("saturate") else { return };
    let run = scenario.run(&[]);
    assert!(run.totals.requests > 1_000, "{}", run.totals.requests);
}

#[test]
fn no_gap_opens_where_tokens_and_credentials_end() {
    let Some(scenario) = Scenario::new("rotation") else { return };
    let run = scenario.run(&["--expect", "failed=0", "--expect", "wrong=0"]);
    assert!(run.totals.eks_auth_calls.unwrap() > run.totals.roles, "credentials were renewed");
    assert!(run.totals.requests > run.totals.pods, "SDKs refreshed");
}

#[test]
fn known_roles_are_served_through_an_outage() {
    let Some(scenario) = Scenario::new("outage") else { return };
    let expected =
        ["--expect", "failed(known roles)=0", "--expect", "failed(new pods)=0", "--expect", "wrong=0"];
    let run = scenario.run(&expected);
    assert!(group(&run, "new roles").requests > 0);
    let recovered = group(&run, "recovered");
    assert!(recovered.requests > 0 && recovered.failed == 0, "{recovered:?}");
    let steps: Vec<&str> = run.marks.iter().map(|mark| mark.what.as_str()).collect();
    assert_eq!(
        steps,
        [
            "EKS Auth answers 503",
            "EKS Auth does not answer",
            "EKS Auth resets connections",
            "EKS Auth is back",
            "the issuer does not answer",
            "the issuer is back",
        ]
    );
}

#[test]
fn recreated_pods_get_the_new_role() {
    let Some(scenario) = Scenario::new("churn") else { return };
    let run = scenario.run(&[]);
    assert!(group(&run, "recreated").requests > 0);
    assert!(run.totals.eks_auth_calls.unwrap() > run.totals.roles, "roles were asked for anew");
}

#[test]
fn a_restart_is_survived_by_those_that_wait_between_attempts() {
    let Some(scenario) = Scenario::new("restart") else { return };
    let run = scenario.run(&[]);
    assert_eq!(run.marks.len(), 4);
    assert_eq!((group(&run, "boto3").failed, group(&run, "js").failed), (0, 0));
}

#[test]
fn a_node_changes_over_to_podcred_and_back_and_pods_see_nothing_of_it() {
    let Some(scenario) = Scenario::new("changeover") else { return };
    let run = scenario.run(&[]);
    assert_eq!(run.marks.len(), 2);
    for client in ["boto3", "js", "go", "crt"] {
        assert_eq!(group(&run, client).failed, 0, "{client}");
    }
    // The stand-in asks EKS Auth for each of 200 pods, before and after; podcred for each of 5 roles between.
    assert_eq!(run.totals.eks_auth_calls, Some(200 + 5 + 200));
}

#[test]
fn dead_jobs_are_not_renewed() {
    if !is_root() {
        eprintln!("left out: that a pod is dead is known by its cgroup, which needs root");
        return;
    }
    let Some(scenario) = Scenario::new("jobs") else { return };
    let run = scenario.run(&[]);
    assert_eq!(run.totals.served, 300);
}

#[test]
fn others_are_served_beside_a_flood() {
    if !is_root() {
        eprintln!("left out: a pod's share is known by its cgroup, which needs root");
        return;
    }
    let Some(scenario) = Scenario::new("noisy") else { return };
    let run = scenario.run(&[
        "--expect",
        "failed(alone)=0",
        "--expect",
        "failed(beside)=0",
        "--expect",
        "failed(flooded)=0",
    ]);
    assert!(group(&run, "flood").requests > group(&run, "busy").requests);
    assert_eq!(group(&run, "flood").pods, 1);
}

#[test]
fn thieves_get_nothing_and_are_named() {
    let Some(scenario) = Scenario::new("thief") else { return };
    if !is_root() {
        let refused = scenario.output(&[]);
        assert_eq!(refused.status.code(), Some(2));
        assert!(String::from_utf8_lossy(&refused.stderr).contains("as root"));
        return;
    }
    let run = scenario.run(&[]);
    let thieves = group(&run, "thieves");
    assert!(thieves.requests > 0 && thieves.failed == thieves.requests);
    assert!(
        run.failures.iter().all(|failure| failure.class == "refused 403 TokenOfAnotherPod"),
        "{:?}",
        run.failures
    );
}

#[test]
fn what_cannot_be_played_on_the_target_or_in_the_time_is_refused() {
    let foreign = ["--agent", "http://127.0.0.1:1", "--token-dir", "."];
    for (name, flags, why) in [
        ("rollout", &foreign[..], "only an agent of our own"),
        ("jobs", &foreign, "needs pods with cgroups"),
        ("noisy", &["--loopback"], "needs pods with cgroups"),
        ("steady", &["--agent", "http://127.0.0.1:1", "--netns", "3"], "leave out --netns"),
        ("outage", &["--loopback", "--duration", "1s"], "give --duration 8s"),
        ("steady", &["--loopback", "--every", "1ms"], "200000 times a second"),
    ] {
        let Some(scenario) = Scenario::new(name) else { return };
        let refused = scenario.output(flags);
        let said = String::from_utf8_lossy(&refused.stderr);
        assert!(refused.status.code() == Some(2) && said.contains(why), "{name}: {said}");
    }
}

#[test]
fn what_did_not_hold_sets_the_exit_status_and_is_written_down() {
    let Some(scenario) = Scenario::new("rollout") else { return };
    let output =
        scenario.output(&["--loopback", "--pods", "10", "--expect", "p99<1us", "--expect", "failed=0"]);
    assert_eq!(output.status.code(), Some(1));
    let held: Vec<bool> =
        read(scenario.folder.path()).expected.iter().map(|expected| expected.held).collect();
    assert_eq!(held, [false, true]);
}

#[test]
fn a_report_that_cannot_be_written_is_an_error_after_the_figures() {
    let Some(scenario) = Scenario::new("rollout") else { return };
    let mut command = scenario.command(&["--loopback", "--pods", "3"]);
    let mut harness = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdout = BufReader::new(harness.stdout.take().unwrap());
    stdout.read_line(&mut String::new()).unwrap();
    // It has begun, and a former report's files are out of the way. As a disk that fills up meanwhile.
    std::fs::create_dir(scenario.folder.path().join("report.md")).unwrap();
    let [mut said, mut problem] = [String::new(), String::new()];
    stdout.read_to_string(&mut said).unwrap();
    harness.stderr.take().unwrap().read_to_string(&mut problem).unwrap();
    assert_eq!(harness.wait().unwrap().code(), Some(2), "{problem}");
    assert!(said.contains("3 served"), "{said}");
    assert!(problem.contains("cannot write"), "{problem}");

    let output = scenario.output(&["--loopback", "--pods", "3"]);
    let problem = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.code() == Some(2) && problem.contains("cannot remove"),
        "before it begins: {problem}"
    );
}

#[test]
fn the_exit_status_is_the_same_where_nobody_reads_on() {
    let Some(scenario) = Scenario::new("rollout") else { return };
    let mut command = scenario.command(&["--loopback", "--pods", "3", "--expect", "wrong=0"]);
    let mut harness = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(harness.stderr.take());
    // As `| head -1` does it. goose itself panics where that line finds no reader.
    let first = BufReader::new(harness.stdout.take().unwrap()).lines().next();
    assert!(first.unwrap().unwrap().ends_with("users launched."));
    assert_eq!(harness.wait().unwrap().code(), Some(0));
}

#[test]
fn a_signal_is_heard_where_nobody_reads() {
    let Some(scenario) = Scenario::new("steady") else { return };
    let mut command = scenario.command(&["--loopback", "--pods", "20", "--duration", "60s"]);
    let mut harness = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(harness.stderr.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("requests/s")), "it shows its progress");
    drop(lines);
    kill(Pid::from_raw(harness.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
    assert_eq!(harness.wait().unwrap().code(), Some(1));
    assert!(read(scenario.folder.path()).duration_seconds < 60.0, "it did not run on");
}

#[test]
fn a_run_that_is_stopped_tells_what_it_saw_and_leaves_nothing_behind() {
    let Some(scenario) = Scenario::new("steady") else { return };
    let mut command = scenario.command(&["--pods", "20", "--duration", "60s"]);
    let mut harness = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let stderr = BufReader::new(harness.stderr.take().unwrap());
    let mut lines = stderr.lines().map(|line| line.unwrap());
    assert!(
        lines.any(|line| line.contains("20 pods") && line.contains("requests/s")),
        "it shows its progress"
    );
    let id = harness.id();
    kill(Pid::from_raw(id.try_into().unwrap()), Signal::SIGTERM).unwrap();
    let said: Vec<String> = lines.collect();
    assert_eq!(harness.wait().unwrap().code(), Some(1), "{said:?}");
    let run = read(scenario.folder.path());
    assert!(run.totals.served > 0 && run.duration_seconds < 60.0);
    let last = run.expected.last().unwrap();
    assert!(!last.held && last.was.starts_with("stopped by a signal"), "{last:?}");
    for mount in ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"] {
        assert!(!Path::new(&format!("{mount}/podcred-test-{id}")).exists());
    }
}

#[test]
fn a_run_whose_agent_dies_is_an_error_that_leaves_its_report() {
    let Some(scenario) = Scenario::new("steady") else { return };
    let mut command = scenario.command(&["--loopback", "--pods", "20", "--duration", "60s"]);
    let mut harness = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let stderr = BufReader::new(harness.stderr.take().unwrap());
    let mut lines = stderr.lines().map(|line| line.unwrap());
    assert!(lines.any(|line| line.contains("requests/s")), "it shows its progress");
    kill(child_of(harness.id()), Signal::SIGKILL).unwrap();
    let said: Vec<String> = lines.collect();
    assert_eq!(harness.wait().unwrap().code(), Some(2), "{said:?}");
    let run = read(scenario.folder.path());
    assert!(run.totals.served > 0 && run.duration_seconds < 60.0);
    assert_eq!(run.totals.requests, run.timeline.iter().map(|second| second.requests).sum::<u64>());
    let last = run.expected.last().unwrap();
    assert!(!last.held && last.was.contains("the agent has ended by itself"), "{last:?}");
}

/// The process whose parent this is.
#[track_caller]
fn child_of(parent: u32) -> Pid {
    let is_its_child = |pid: &i32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // After the name, which may hold anything: the state, and the parent.
        let parent_of = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1));
        parent_of == Some(&parent.to_string())
    };
    let processes = std::fs::read_dir("/proc").expect("processes");
    let mut pids = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    Pid::from_raw(pids.find(is_its_child).expect("it has a child"))
}

#[test]
fn an_agent_that_somebody_runs_serves_the_tokens_of_a_folder() {
    let Some(scenario) = Scenario::new("steady") else { return };
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let eks = runtime.block_on(SimulatedEks::start(Config::default())).unwrap();
    eks.create_association("load", "app-0", "arn:aws:iam::111122223333:role/app-0");
    let agent = Agent::start(&scenario.binary, &[], &eks, None).unwrap();
    let tokens = tempfile::tempdir().unwrap();
    for pod in 0..5 {
        let minted = eks.mint(PodToken::new("load", "app-0", format!("app-0-{pod}")));
        std::fs::write(tokens.path().join(format!("pod-{pod}")), minted.token).unwrap();
    }
    let folder = tokens.path().to_str().unwrap();
    let output = scenario.output(&["--agent", &agent.url(), "--token-dir", folder, "--pods", "5"]);
    assert!(output.status.success(), "{output:?}");
    let run = read(scenario.folder.path());
    // Every 2 s of 6.
    assert_eq!((run.totals.served, run.totals.failed, run.totals.wrong), (15, 0, 0));
    assert_eq!((run.totals.eks_auth_calls, run.agent_command), (None, None), "neither is known here");
    assert!(run.notes.iter().any(|note| note.contains("--delegate")));
    assert_eq!(eks.counts().total, 1);
}

#[test]
fn what_is_not_there_is_told_apart_from_what_refuses() {
    let Some(scenario) = Scenario::new("steady") else { return };
    let tokens = tempfile::tempdir().unwrap();
    for pod in 0..3 {
        std::fs::write(tokens.path().join(format!("pod-{pod}")), "not.a.token\n").unwrap();
    }
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", nobody.local_addr().unwrap());
    drop(nobody);
    let folder = tokens.path().to_str().unwrap();
    let output =
        scenario.output(&["--agent", &url, "--token-dir", folder, "--pods", "3", "--client", "java"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let run = read(scenario.folder.path());
    assert_eq!(
        (run.totals.pods, run.totals.eks_auth_calls, run.totals.failed),
        (3, None, run.totals.requests)
    );
    assert!(
        run.failures.iter().all(|failure| failure.class == "connect: connection refused"),
        "{:?}",
        run.failures
    );
    assert!(run.versions.podcred.is_empty() && !run.settings.contains_key("roles"), "neither is known here");
    let too_many = scenario.output(&["--agent", &url, "--token-dir", folder, "--pods", "4"]);
    assert_eq!(too_many.status.code(), Some(2));
}
