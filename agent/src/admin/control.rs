//! The control socket: `podcred flush` speaks to the running agent over it.
//!
//! One line each way: `flush` or `flush NAMESPACE/SERVICEACCOUNT`, then `ok: …` or `error: …`.

use std::fs::{self, DirBuilder, Permissions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream as BlockingStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader as AsyncBufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::config::ServiceAccount;

/// `flush ` and the two longest names that Kubernetes allows, with room.
const LONGEST_LINE: u64 = 512;

/// Longest that one client may hold the socket, and that `podcred flush` waits.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FlushRequest {
    All,
    Of(ServiceAccount),
}

#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error(
        "another agent answers on the control socket {}: stop it, or give this one another --control-socket",
        .0.display()
    )]
    InUse(PathBuf),
    #[error("{} exists and is not a socket: give another --control-socket, or remove it", .0.display())]
    NotASocket(PathBuf),
    #[error("cannot make the control socket {}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
}

/// The bound control socket; its file goes with it.
#[derive(Debug)]
pub struct ControlListener {
    listener: UnixListener,
    path: PathBuf,
}

impl ControlListener {
    /// Makes the socket, and its directory when missing, for the agent's own user alone. A socket that a dead agent
    /// left behind is replaced; a live agent's is not.
    pub async fn bind(path: &Path) -> Result<Self, BindError> {
        let failed = |source| BindError::Io { path: path.to_owned(), source };
        if let Some(directory) = path.parent() {
            DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(failed)?;
        }
        refuse_to_replace(path).await?;

        // Under another name first: between bind and chmod the socket has the umask's permissions, and the rename
        // puts it in a stale one's place without a moment in which there is none.
        let mut unfinished = path.as_os_str().to_owned();
        unfinished.push(".new");
        match fs::remove_file(&unfinished) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed(e)),
            _ => {}
        }
        let listener = UnixListener::bind(&unfinished).map_err(failed)?;
        fs::set_permissions(&unfinished, Permissions::from_mode(0o600)).map_err(failed)?;
        fs::rename(&unfinished, path).map_err(failed)?;
        Ok(ControlListener { listener, path: path.to_owned() })
    }
}

async fn refuse_to_replace(path: &Path) -> Result<(), BindError> {
    let failed = |source| BindError::Io { path: path.to_owned(), source };
    match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(failed(e)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(BindError::NotASocket(path.to_owned()));
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path).await {
        Ok(_) => Err(BindError::InUse(path.to_owned())),
        // A live agent whose queue is full.
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => Err(BindError::InUse(path.to_owned())),
        Err(e) if matches!(e.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound) => Ok(()),
        Err(e) => Err(failed(e)),
    }
}

/// Answers one client after another until `cancel`; `handler` drops credentials and tells how many.
pub async fn serve_control(
    control: ControlListener,
    handler: impl Fn(FlushRequest) -> usize + Send + Sync,
    cancel: CancellationToken,
) {
    let serving = async {
        loop {
            match control.listener.accept().await {
                Ok((stream, _)) => match tokio::time::timeout(PATIENCE, converse(stream, &handler)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => debug!(%error, "a client of the control socket went away"),
                    Err(_) => warn!("a client of the control socket sent no request in time"),
                },
                Err(error) => {
                    // Out of file descriptors, most likely: accept fails until one is free, and must not spin.
                    warn!(%error, "cannot accept a connection on the control socket");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    };
    tokio::select! {
        () = serving => {}
        () = cancel.cancelled() => {}
    }
}

impl Drop for ControlListener {
    fn drop(&mut self) {
        // Before the listener closes: while it answers, no successor takes the path, so the file is still this agent's.
        if let Err(error) = fs::remove_file(&self.path) {
            debug!(%error, "the control socket's file was gone already");
        }
    }
}

async fn converse(mut stream: UnixStream, handler: &impl Fn(FlushRequest) -> usize) -> io::Result<()> {
    // Read before anything is refused: closing on unread bytes resets the connection, and the client would see that
    // instead of the reason.
    let mut line = String::new();
    AsyncBufReader::new((&mut stream).take(LONGEST_LINE)).read_line(&mut line).await?;
    let answer = match answer(&line, stream.peer_cred()?.uid(), handler) {
        Ok(dropped) => format!("ok: dropped {dropped}\n"),
        Err(problem) => format!("error: {problem}\n"),
    };
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await
}

fn answer(line: &str, uid: u32, handler: &impl Fn(FlushRequest) -> usize) -> Result<usize, String> {
    if !permitted(uid) {
        warn!(uid, "refused on the control socket: the caller is neither root nor the agent's own user");
        return Err("only root may do this".to_owned());
    }
    let line = line
        .strip_suffix('\n')
        .ok_or_else(|| format!("a request is one line of at most {LONGEST_LINE} bytes"))?;
    let request = parse(line)?;
    let of = match &request {
        FlushRequest::All => "all".to_owned(),
        FlushRequest::Of(account) => format!("{}/{}", account.namespace, account.name),
    };
    let dropped = handler(request);
    info!(event = "flushed", uid, of, dropped, "an operator dropped credentials from the cache");
    Ok(dropped)
}

/// The kernel's word on who connected; the socket's permissions are only the first lock.
fn permitted(uid: u32) -> bool {
    uid == 0 || uid == rustix::process::geteuid().as_raw()
}

fn parse(line: &str) -> Result<FlushRequest, String> {
    match line.split_once(' ') {
        None if line == "flush" => Ok(FlushRequest::All),
        Some(("flush", account)) => {
            let account =
                ServiceAccount::parse(account).map_err(|problem| format!("{account:?} {problem}"))?;
            Ok(FlushRequest::Of(account))
        }
        _ => Err("the only request is: flush [NAMESPACE/SERVICEACCOUNT]".to_owned()),
    }
}

/// `podcred flush`: has the agent behind the socket drop the credentials of one service account, or of all, and gives
/// its answer to be shown.
pub fn flush(path: &Path, account: Option<&ServiceAccount>) -> Result<String, String> {
    let place = path.display();
    let stream = BlockingStream::connect(path).map_err(|e| {
        if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) {
            format!(
                "no agent is running here (nothing answers on {place}): run this in the agent's container, and with \
                 the agent's --control-socket"
            )
        } else if e.kind() == io::ErrorKind::PermissionDenied {
            format!("only root may flush: no access to {place}")
        } else {
            format!("cannot reach the agent on {place}: {e}")
        }
    })?;
    let line = exchange(stream, account).map_err(|e| {
        if e.kind() == io::ErrorKind::WouldBlock {
            format!("the agent on {place} gave no answer in {PATIENCE:?}")
        } else {
            format!("the agent on {place} went away: {e}")
        }
    })?;
    match line.trim_end().split_once(": ") {
        Some(("ok", answer)) => Ok(answer.to_owned()),
        Some(("error", problem)) => Err(format!("the agent refused: {problem}")),
        _ => Err(format!("the agent on {place} ended without an answer")),
    }
}

fn exchange(mut stream: BlockingStream, account: Option<&ServiceAccount>) -> io::Result<String> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let request = match account {
        None => "flush\n".to_owned(),
        Some(account) => format!("flush {}/{}\n", account.namespace, account.name),
    };
    stream.write_all(request.as_bytes())?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    Ok(line)
}

#[cfg(test)]
mod tests;
