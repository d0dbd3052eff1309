//! Where something runs: on this machine's own network, or in a network namespace.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;

#[derive(Clone, Debug)]
pub(crate) enum Place {
    Host,
    Namespace(String),
}

impl Place {
    pub(crate) fn command(&self, program: &str) -> Command {
        match self.file() {
            None => Command::new(program),
            // Unlike `ip netns exec` it leaves mounts alone: the program sees the machine's own /sys.
            Some(file) => {
                let mut command = Command::new("nsenter");
                command.arg(format!("--net={}", file.display())).arg("--").arg(program);
                command
            }
        }
    }

    /// As [`Place::command`], in a cgroup from its first moment on.
    pub(crate) fn command_in(&self, cgroup: Option<&Path>, program: &str) -> Command {
        let Some(cgroup) = cgroup else { return self.command(program) };
        let inner = self.command(program);
        let mut command = Command::new("sh");
        command.args(["-c", r#"echo $$ > "$0/cgroup.procs" && exec "$@""#]).arg(cgroup);
        command.arg(inner.as_std().get_program()).args(inner.as_std().get_args());
        command
    }

    /// `command` as a person types it to run it here, without single quotes.
    pub(crate) fn shell(&self, cgroup: Option<&Path>, command: &str) -> String {
        let command = match self.file() {
            None => command.to_owned(),
            Some(file) => format!("nsenter --net={} {command}", file.display()),
        };
        match cgroup {
            None => command,
            Some(cgroup) => format!("sh -c 'echo $$ > {}/cgroup.procs && exec {command}'", cgroup.display()),
        }
    }

    pub(crate) async fn connect(&self, address: SocketAddr) -> Result<TcpStream> {
        let stream = self
            .inside(move || std::net::TcpStream::connect_timeout(&address, Duration::from_secs(5)))
            .await
            .with_context(|| format!("cannot connect to {address}"))?;
        stream.set_nonblocking(true)?;
        Ok(TcpStream::from_std(stream)?)
    }

    pub(crate) async fn listen(&self, address: SocketAddr) -> Result<TcpListener> {
        let listener = self
            .inside(move || std::net::TcpListener::bind(address))
            .await
            .with_context(|| format!("cannot listen on {address}"))?;
        listener.set_nonblocking(true)?;
        Ok(TcpListener::from_std(listener)?)
    }

    /// A socket belongs for good to the namespace of the thread that made it, so it is made by a thread that goes there
    /// and ends: threads of a pool would stay in the wrong namespace.
    async fn inside<T: Send + 'static>(
        &self,
        make: impl FnOnce() -> std::io::Result<T> + Send + 'static,
    ) -> Result<T> {
        let file = self.file();
        let (done, made) = tokio::sync::oneshot::channel();
        std::thread::spawn(move || {
            let result = || -> std::io::Result<T> {
                if let Some(file) = file {
                    let namespace = std::fs::File::open(file)?;
                    let network = Some(LinkNameSpaceType::Network);
                    move_into_link_name_space(std::os::fd::AsFd::as_fd(&namespace), network)?;
                }
                make()
            };
            let _nobody_waits = done.send(result());
        });
        Ok(made.await.context("the thread that makes the socket panicked")??)
    }

    fn file(&self) -> Option<PathBuf> {
        match self {
            Place::Host => None,
            Place::Namespace(name) => Some(PathBuf::from("/run/netns").join(name)),
        }
    }
}
