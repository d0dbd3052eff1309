use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex};

use tempfile::TempDir;
use tokio::task::{JoinHandle, spawn_blocking};

use super::*;

struct Agent {
    directory: TempDir,
    requests: Arc<Mutex<Vec<FlushRequest>>>,
    cancel: CancellationToken,
    serving: JoinHandle<()>,
}

impl Agent {
    async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = ControlListener::bind(&directory.path().join("podcred/control.sock")).await.unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let cancel = CancellationToken::new();
        let handler = {
            let requests = Arc::clone(&requests);
            move |request| {
                requests.lock().unwrap().push(request);
                7
            }
        };
        let serving = tokio::spawn(serve_control(listener, handler, cancel.clone()));
        Agent { directory, requests, cancel, serving }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("podcred/control.sock")
    }

    async fn flush(&self, account: Option<ServiceAccount>) -> Result<String, String> {
        let path = self.path();
        spawn_blocking(move || flush(&path, account.as_ref())).await.unwrap()
    }

    /// What the agent says to these bytes.
    async fn say(&self, bytes: Vec<u8>) -> String {
        let mut stream = UnixStream::connect(self.path()).await.unwrap();
        stream.write_all(&bytes).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }
}

fn account() -> ServiceAccount {
    ServiceAccount { namespace: "prod".to_owned(), name: "db".to_owned() }
}

#[tokio::test]
async fn a_flush_of_all_and_of_one_reach_the_agent_and_its_count_comes_back() {
    let agent = Agent::start().await;
    assert_eq!(agent.flush(None).await.as_deref(), Ok("dropped 7"));
    assert_eq!(agent.flush(Some(account())).await.as_deref(), Ok("dropped 7"));
    assert_eq!(*agent.requests.lock().unwrap(), [FlushRequest::All, FlushRequest::Of(account())]);
}

#[tokio::test]
async fn the_socket_and_its_directory_are_the_agents_alone() {
    let agent = Agent::start().await;
    let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
    assert_eq!(mode(&agent.path()), 0o600);
    assert_eq!(mode(agent.path().parent().unwrap()), 0o700);
}

#[tokio::test]
async fn a_request_that_is_not_understood_is_answered_with_what_is_allowed() {
    let agent = Agent::start().await;
    for (bytes, part) in [
        (b"FLUSH\n".to_vec(), "error: the only request is"),
        (b"flush all pods\n".to_vec(), "error: \"all pods\" is not NAMESPACE/SERVICEACCOUNT"),
        (b"flush */*\n".to_vec(), "is not NAMESPACE/SERVICEACCOUNT"),
        (b"flush".to_vec(), "error: a request is one line"),
        (vec![b'x'; LONGEST_LINE as usize], "error: a request is one line"),
    ] {
        let answer = agent.say(bytes).await;
        assert!(answer.contains(part) && answer.ends_with('\n'), "{answer}");
    }
    assert!(agent.requests.lock().unwrap().is_empty(), "nothing was flushed");
}

#[tokio::test]
async fn a_live_agents_socket_is_not_replaced() {
    let agent = Agent::start().await;
    let problem = ControlListener::bind(&agent.path()).await.expect_err("it is in use");
    assert!(matches!(problem, BindError::InUse(_)), "{problem}");
    assert_eq!(agent.flush(None).await.as_deref(), Ok("dropped 7"), "the first agent still answers");
}

#[tokio::test]
async fn a_dead_agents_socket_is_replaced_and_its_unfinished_one_too() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("control.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    drop(std::os::unix::net::UnixListener::bind(directory.path().join("control.sock.new")).unwrap());
    let _listener = ControlListener::bind(&path).await.expect("nobody listens on either");
    assert!(UnixStream::connect(&path).await.is_ok());
}

#[tokio::test]
async fn a_file_that_is_no_socket_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("control.sock");
    fs::write(&path, "precious").unwrap();
    let problem = ControlListener::bind(&path).await.expect_err("it is a file").to_string();
    assert!(problem.contains("not a socket") && problem.contains("--control-socket"), "{problem}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
}

#[tokio::test]
async fn the_file_goes_when_serving_ends() {
    let Agent { directory, cancel, serving, .. } = Agent::start().await;
    cancel.cancel();
    serving.await.unwrap();
    assert_eq!(fs::read_dir(directory.path().join("podcred")).unwrap().count(), 0);
}

#[tokio::test]
async fn an_agent_that_fails_at_start_leaves_no_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("control.sock");
    drop(ControlListener::bind(&path).await.unwrap());
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[test]
fn flush_says_that_no_agent_is_running() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("control.sock");
    for _ in 0..2 {
        let problem = flush(&path, None).expect_err("there is no agent");
        assert!(problem.contains("no agent is running here"), "{problem}");
        // The second time a dead agent's socket is there.
        drop(std::os::unix::net::UnixListener::bind(&path));
    }
}

#[test]
fn root_and_the_agents_own_user_are_permitted_and_nobody_else() {
    let own = rustix::process::geteuid().as_raw();
    assert!(permitted(0) && permitted(own));
    assert!(!permitted(own + 1));
}

#[tokio::test(start_paused = true)]
async fn a_silent_client_does_not_keep_the_next_one_waiting_for_ever() {
    let agent = Agent::start().await;
    let _silent = UnixStream::connect(agent.path()).await.unwrap();
    assert_eq!(agent.say(b"flush\n".to_vec()).await, "ok: dropped 7\n");
}
