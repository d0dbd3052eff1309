//! The command line as a process sees it: environment variables, exit codes, and who may flush.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output};

use podcred::admin::control::{ControlListener, serve_control};
use tokio_util::sync::CancellationToken;

fn podcred() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_podcred"));
    command.env_clear();
    command
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Starts nothing: the last flag is always wrong.
fn refused(args: &[&str], environment: &[(&str, &str)]) -> String {
    let output = podcred()
        .arg("server")
        .args(args)
        .envs(environment.iter().copied())
        .output()
        .expect("podcred starts");
    assert_eq!(output.status.code(), Some(2), "{}", errors(&output));
    errors(&output)
}

#[test]
fn a_bad_value_from_the_environment_is_refused_with_the_variables_name() {
    for (name, value, parts) in [
        ("PODCRED_PORT", "http", ["--port", "\"http\""]),
        ("PODCRED_BIND_HOSTS", "127.0.0.1,node", ["--bind-hosts", "\"node\""]),
        ("PODCRED_POD_SCOPED", "a/b,c", ["--pod-scoped", "\"c\""]),
        ("PODCRED_VERIFY", "yes", ["--verify", "off, audit, enforce"]),
        ("PODCRED_VERBOSITY", "loud", ["--verbosity", "error, warn, info, debug, trace"]),
        ("PODCRED_ROTATE_CREDENTIALS", "maybe", ["--rotate-credentials", "true or false"]),
    ] {
        let problem = refused(&["-c", "c"], &[(name, value)]);
        for part in parts.into_iter().chain([name, "environment variable"]) {
            assert!(problem.contains(part), "{name} lacks {part}: {problem}");
        }
    }
}

#[test]
fn a_service_link_of_kubernetes_is_recognised_as_one() {
    let problem = refused(&["-c", "c"], &[("PODCRED_METRICS_PORT", "tcp://10.100.0.7:2705")]);
    assert!(problem.contains("PODCRED_METRICS_PORT") && problem.contains("enableServiceLinks"), "{problem}");
}

#[test]
fn a_flag_goes_before_its_environment_variable() {
    let problem = refused(&["-c", "c", "--port", "flag"], &[("PODCRED_PORT", "variable")]);
    assert!(problem.contains("\"flag\"") && !problem.contains("variable"), "{problem}");
}

#[test]
fn the_environment_can_give_what_the_flags_must() {
    let problem = refused(&[], &[]);
    assert!(problem.contains("--cluster-name"), "{problem}");
    let problem = refused(&["--workers", "0"], &[("PODCRED_CLUSTER_NAME", "c")]);
    assert!(problem.contains("--workers") && !problem.contains("--cluster-name <"), "{problem}");
}

#[test]
fn version_names_the_program_and_its_version() {
    let output = podcred().arg("version").output().unwrap();
    assert!(output.status.success());
    assert_eq!(String::from_utf8_lossy(&output.stdout), format!("podcred {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn flush_without_an_agent_fails_and_says_so() {
    let output = podcred().args(["flush", "--control-socket", "/nonexistent/control.sock"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(errors(&output).contains("no agent is running here"), "{}", errors(&output));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn flush_reaches_a_running_agent_and_another_user_is_refused_twice_over() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("run/control.sock");
    let listener = ControlListener::bind(&socket).await.unwrap();
    tokio::spawn(serve_control(listener, |_| 3, CancellationToken::new()));

    let output = flush(env!("CARGO_BIN_EXE_podcred").as_ref(), &socket, None);
    assert!(output.status.success(), "{}", errors(&output));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "dropped 3\n");

    // Becoming another user needs it.
    if loadtest::left_out_without_root() {
        return;
    }
    // The checkout may lie where another user cannot look.
    let copy = directory.path().join("podcred");
    fs::copy(env!("CARGO_BIN_EXE_podcred"), &copy).unwrap();
    let open = |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    open(directory.path(), 0o755);
    const NOBODY: u32 = 65534;
    let output = flush(&copy, &socket, Some(NOBODY));
    assert!(errors(&output).contains("only root may flush"), "{}", errors(&output));

    open(socket.parent().unwrap(), 0o755);
    open(&socket, 0o666);
    let output = flush(&copy, &socket, Some(NOBODY));
    assert_eq!(output.status.code(), Some(1));
    assert!(errors(&output).contains("the agent refused: only root"), "{}", errors(&output));
}

fn flush(program: &Path, socket: &Path, uid: Option<u32>) -> Output {
    let mut command = Command::new(program);
    command.env_clear().args(["flush", "prod/db", "--control-socket"]).arg(socket);
    if let Some(uid) = uid {
        command.uid(uid).gid(uid);
    }
    command.output().expect("podcred starts")
}
