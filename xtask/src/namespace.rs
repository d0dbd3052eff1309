//! Network namespaces that end with their owner.

use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// Named network namespaces; dropped, they are deleted.
#[derive(Debug)]
pub(crate) struct Namespaces {
    names: Vec<String>,
}

impl Namespaces {
    /// `labels` become `podcred-PID-LABEL`, so that two runs do not meet.
    pub(crate) fn add(labels: &[String]) -> Result<Namespaces> {
        let names: Vec<String> =
            labels.iter().map(|label| format!("podcred-{}-{label}", std::process::id())).collect();
        let script: String = names.iter().map(|name| format!("netns add {name}\n")).collect();
        // The owner exists before the first namespace does: a batch that fails half-way is cleaned up as well.
        let namespaces = Namespaces { names };
        batch(None, &script)?;
        Ok(namespaces)
    }

    pub(crate) fn names(&self) -> &[String] {
        &self.names
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        let script: String = self.names.iter().map(|name| format!("netns del {name}\n")).collect();
        // `-force` goes on after a namespace that was never made.
        if let Err(error) = ip(&["-force"], &script) {
            let mine = |name: &&String| std::path::Path::new("/run/netns").join(name.as_str()).exists();
            let left: Vec<&String> = self.names.iter().filter(mine).collect();
            if !left.is_empty() {
                eprintln!("cannot remove the network namespaces {left:?}: {error:#}");
            }
        }
    }
}

/// Runs the commands of `script`, one per line, in one `ip` process inside `namespace`.
pub(crate) fn batch(namespace: Option<&str>, script: &str) -> Result<()> {
    match namespace {
        Some(name) => ip(&["-netns", name], script),
        None => ip(&[], script),
    }
}

fn ip(options: &[&str], script: &str) -> Result<()> {
    let mut child = Command::new("ip")
        .args(options)
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot run ip; it comes with the package iproute2")?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(script.as_bytes()).context("ip ended before it had read its commands")?;
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!("ip {options:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
