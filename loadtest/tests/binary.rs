//! `simulated-eks` as a process.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking, too")]

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};

use serde_json::Value;

fn simulated_eks() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_simulated-eks"));
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).env_remove("SIMULATED_NODE_SECRET_ACCESS_KEY");
    command
}

/// Ends with the test, also with one that fails.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It has ended already where the test went well.
        self.0.kill().unwrap_or_default();
    }
}

fn ready(stdout: &mut impl BufRead) -> Value {
    let mut line = String::new();
    stdout.read_line(&mut line).unwrap();
    serde_json::from_str(&line).unwrap()
}

fn refusal(arguments: &[&str]) -> String {
    let output = simulated_eks().args(arguments).output().unwrap();
    assert!(!output.status.success(), "{arguments:?}");
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn it_tells_when_it_is_ready_serves_and_ends_on_sigterm() {
    let folder = tempfile::tempdir().unwrap();
    let ca = folder.path().join("ca.pem");
    let mut command = simulated_eks();
    command
        .args(["--https-listen", "127.0.0.1:0", "--cluster-name", "prod", "--latency-ms", "7"])
        .args(["--node-access-key-id", "AKIANODE", "--ca-out"])
        .arg(&ca)
        .env("SIMULATED_NODE_SECRET_ACCESS_KEY", "given");
    let mut child = Running(command.spawn().unwrap());
    let mut stdout = BufReader::new(child.0.stdout.take().unwrap());
    let ready = ready(&mut stdout);
    assert_eq!((&ready["clusterName"], &ready["nodeAccessKeyId"]), (&"prod".into(), &"AKIANODE".into()));
    assert_eq!(ready["nodeSecretAccessKey"], "given");
    assert!(ready["issuer"].as_str().unwrap().starts_with(ready["url"].as_str().unwrap()), "{ready}");
    assert!(std::fs::read_to_string(ca).unwrap().contains("BEGIN CERTIFICATE"));

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let settings = format!("{}/control/settings", ready["url"].as_str().unwrap());
    let settings: Value =
        runtime.block_on(async { reqwest::get(settings).await.unwrap().json().await.unwrap() });
    assert_eq!(settings["latencyMs"], 7);

    let killed = Command::new("kill").args(["-TERM", &child.0.id().to_string()]).status().unwrap();
    assert!(killed.success());
    assert!(child.0.wait().unwrap().success());
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "", "stdout has the ready line only");
}

#[test]
fn an_api_server_can_sign_tokens_with_its_key() {
    let folder = tempfile::tempdir().unwrap();
    let key = folder.path().join("key.pem");
    let issuer = "https://kubernetes.default.svc";
    let mut command = simulated_eks();
    command.args(["--issuer", issuer, "--signing-key-out"]).arg(&key);
    let mut child = Running(command.spawn().unwrap());
    let ready = ready(&mut BufReader::new(child.0.stdout.take().unwrap()));
    assert_eq!(ready["issuer"], issuer);
    assert!(std::fs::read_to_string(key).unwrap().starts_with("-----BEGIN PRIVATE KEY-----"));
}

#[test]
fn bad_arguments_are_named() {
    let error = refusal(&["--cluster-name", "a b"]);
    assert!(error.contains("--cluster-name"), "{error}");
    let error = refusal(&["--error-rate", "2"]);
    assert!(error.contains("errorRate is 2"), "{error}");
    let error = refusal(&["--node-access-key-id", "AKIANODE"]);
    assert!(error.contains("SIMULATED_NODE_SECRET_ACCESS_KEY"), "{error}");
    let error = refusal(&["--ca-out", "x"]);
    assert!(error.contains("--https-listen"), "{error}");
    let error = refusal(&["--issuer", "https://x"]);
    assert!(error.contains("--signing-key-out"), "{error}");
}
