//! `cargo xtask kernels`: the tests that speak to the kernel, on Debian's kernels under qemu.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use clap::Args;
use futures_util::stream::{self, StreamExt};
use serde::Deserialize;

mod guest;
mod initrd;
mod packages;

use crate::build::{cargo, target};
use crate::clock::Stopwatch;
use crate::process::tail;
use crate::report::{Counts, step, table};
use crate::setup;
use guest::{Guest, Outcome};
use initrd::Initrd;
use packages::{Archive, Unpacked};

/// The integration tests of podcred that a kernel decides.
const TESTS: [&str; 4] = ["initialize", "kernel", "node", "probe"];

/// Left to the host: how long something takes, of which an emulator says nothing, and what no kernel decides.
const HOST_ONLY: &str = "--skip fairness:: --skip delegates:: --skip limits::";

/// Statically linked: a guest has no libraries but those of the few programs below.
const TRIPLE: &str = "x86_64-unknown-linux-gnu";

/// What tests call, as it is on this machine; the rest is busybox's. Its shell would take its own `unshare` before any other.
const PROGRAMS: [&str; 7] = ["busybox", "sh", "ip", "nsenter", "unshare", "setpriv", "sysctl"];

/// The AWS client of an agent that starts without any certificate authority panics, though it never speaks TLS there.
const AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// By their places in the kernel's source, each after those that it needs.
const MODULES: [&str; 7] = [
    "net/llc/llc",
    "net/802/stp",
    "net/bridge/bridge",
    "drivers/net/dummy",
    "drivers/net/veth",
    "net/ipv4/inet_diag",
    "net/ipv4/tcp_diag",
];

/// Guests at one time. Each has one processor, so a second one is nearly free on two cores.
const AT_ONCE: usize = 2;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Only these kernels
    #[arg(long, value_name = "KERNEL", value_delimiter = ',', value_parser = kernel)]
    pub(crate) only: Vec<&'static Kernel>,
    /// Continue with the other kernels after a failure
    #[arg(long)]
    pub(crate) keep_going: bool,
    /// Number of connections that the attribution tests make
    #[arg(long, value_name = "N", default_value_t = CONNECTIONS)]
    pub(crate) connections: u32,
    /// Only tests whose names contain one of these
    #[arg(value_name = "TEST")]
    pub(crate) filters: Vec<String>,
}

/// An emulated processor is some twenty times slower than this machine, where the same tests make 20,000.
pub(crate) const CONNECTIONS: u32 = 2_000;

#[derive(Debug)]
pub(crate) struct Kernel {
    name: &'static str,
    /// Debian's metapackage, which names the present version.
    package: &'static str,
    series: Option<&'static str>,
}

/// The oldest first: it is the hardest.
static KERNELS: [Kernel; 4] = [
    Kernel { name: "5.10", package: "linux-image-cloud-amd64", series: Some("5.10.") },
    Kernel { name: "6.1", package: "linux-image-cloud-amd64", series: Some("6.1.") },
    Kernel { name: "6.12", package: "linux-image-6.12-cloud-amd64", series: Some("6.12.") },
    Kernel { name: "newest", package: "linux-image-cloud-amd64", series: None },
];

pub(crate) fn oldest() -> &'static Kernel {
    &KERNELS[0]
}

pub(crate) async fn run(arguments: &Arguments) -> Result<Counts> {
    if let Some(reason) = setup::emulator().await? {
        bail!("{reason}");
    }
    Box::pin(run_here(arguments)).await
}

/// `run` on a machine that has what `setup::emulator` looks for.
pub(crate) async fn run_here(arguments: &Arguments) -> Result<Counts> {
    let wanted = if arguments.only.is_empty() { KERNELS.iter().collect() } else { arguments.only.clone() };
    let archive = Archive::open().await?;
    let mut unpacked = Vec::new();
    for &kernel in &wanted {
        unpacked.push((kernel, archive.unpack(kernel).await?));
    }
    let built = build().await?;
    let (clock, mut rows, mut failures, mut total) =
        (Stopwatch::start(), Vec::new(), String::new(), Counts::default());
    step(&format!("Starting {} kernels under qemu, {AT_ONCE} at a time", wanted.len()));
    {
        let mut guests = stream::iter(&unpacked)
            .map(|(kernel, unpacked)| test(kernel, unpacked, &built, arguments))
            .buffered(AT_ONCE);
        while let Some(tested) = guests.next().await {
            let (log, outcome) = tested?;
            let kernel = wanted[rows.len()].name;
            total.add(outcome.counts);
            rows.push(row(kernel, &outcome));
            if outcome.counts.failed > 0 {
                failures += &describe(kernel, &outcome, &log);
                if !arguments.keep_going {
                    break;
                }
            }
        }
    }
    for kernel in &wanted[rows.len()..] {
        total.skipped += 1;
        rows.push(vec![
            kernel.name.to_owned(),
            "not tested: --keep-going goes on after a failure".to_owned(),
        ]);
    }
    let header = ["kernel", "passed", "failed", "left out", "boot s", "tests s", "release"];
    println!("\n{}{failures}\n{total} in {:.0} s", table(&header, &rows), clock.elapsed().as_secs_f32());
    Ok(total)
}

fn kernel(name: &str) -> Result<&'static Kernel, String> {
    let names = || KERNELS.each_ref().map(|kernel| kernel.name).join(", ");
    KERNELS.iter().find(|kernel| kernel.name == name).ok_or_else(|| format!("not one of {}", names()))
}

/// Where the console was logged, and what it told.
async fn test(
    kernel: &Kernel,
    unpacked: &Unpacked,
    built: &Built,
    arguments: &Arguments,
) -> Result<(PathBuf, Outcome)> {
    let logs = target().join("xtask/kernels");
    std::fs::create_dir_all(&logs)?;
    let initrd = logs.join(format!("{}.initrd", kernel.name));
    pack(&initrd, unpacked, built, arguments).await?;
    let log = logs.join(format!("{}.log", unpacked.version));
    let guest = Guest { name: kernel.name, image: &unpacked.image, initrd: &initrd, log };
    let outcome = guest.run().await?;
    std::fs::remove_file(&initrd)?;
    Ok((guest.log, outcome))
}

/// Binaries by the names of their targets.
#[derive(Debug)]
struct Built {
    podcred: PathBuf,
    tests: BTreeMap<String, PathBuf>,
}

/// A line of what cargo tells with `--message-format=json`.
#[derive(Debug, Deserialize)]
struct Message {
    target: Option<Target>,
    executable: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

async fn build() -> Result<Built> {
    step("Building podcred and its tests, statically linked (cargo)");
    let clock = Stopwatch::start();
    let mut command = cargo();
    command
        .args(["test", "--no-run", "--quiet", "--package", "podcred", "--target", TRIPLE])
        .args(["--message-format", "json-render-diagnostics"])
        // Emulated, unoptimized cryptography takes minutes.
        .args(["--config", "profile.dev.package.aws-lc-sys.opt-level=2"])
        .args(TESTS.map(|test| ["--test", test]).concat())
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        // The guests' file system is their memory, and symbols would be most of it.
        .env("CARGO_PROFILE_DEV_DEBUG", "none")
        .env("CARGO_PROFILE_DEV_STRIP", "symbols")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true);
    // Not `output()`, which would take stderr as well: there cargo shows what does not compile.
    let cargo = command.spawn().context("cannot run cargo")?;
    let output = cargo.wait_with_output().await?;
    if !output.status.success() {
        bail!("cargo test --no-run ended with {}", output.status);
    }
    let mut podcred = None;
    let mut tests = BTreeMap::new();
    for line in output.stdout.split(|&byte| byte == b'\n').filter(|line| line.starts_with(b"{")) {
        let message: Message = serde_json::from_slice(line).context("what cargo says is not JSON")?;
        let (Some(target), Some(executable)) = (message.target, message.executable) else { continue };
        match target.kind.first().map(String::as_str) {
            Some("bin") if target.name == "podcred" => podcred = Some(executable),
            Some("test") => {
                tests.insert(target.name, executable);
            }
            Some(_) | None => {}
        }
    }
    step(&format!("Built in {:.0} s", clock.elapsed().as_secs_f32()));
    Ok(Built { podcred: podcred.context("cargo names no binary podcred")?, tests })
}

async fn pack(path: &Path, unpacked: &Unpacked, built: &Built, arguments: &Arguments) -> Result<()> {
    let mut initrd = Initrd::create(path)?;
    for folder in ["/bin", "/proc", "/sys", "/dev", "/run", "/tmp", "/modules"] {
        initrd.folder(Path::new(folder))?;
    }
    initrd.script("/init", include_str!("kernels/init.sh"))?;
    initrd.text("/etc/hosts", "127.0.0.1 localhost\n::1 localhost\n")?;
    initrd.text("/etc/passwd", "root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n")?;
    // The agent's AWS client must know an authority, though all that it talks to in here is plain HTTP. One: to read them
    // all takes an emulated processor seconds.
    let authorities =
        std::fs::read_to_string(AUTHORITIES).with_context(|| format!("cannot read {AUTHORITIES}"))?;
    let end = "-----END CERTIFICATE-----\n";
    let first = authorities.split_inclusive(end).next().unwrap_or_default();
    initrd.text(AUTHORITIES, first)?;
    for program in PROGRAMS {
        initrd.program(program).await?;
    }
    for (index, place) in MODULES.iter().enumerate() {
        if let Some(module) = unpacked.module(place)? {
            let name = module.file_name().unwrap_or_default().to_string_lossy();
            initrd.copy(&module, Path::new(&format!("/modules/{index}-{name}")))?;
        }
    }
    // Where the tests were compiled to look for it.
    initrd.copy(&built.podcred, &built.podcred)?;
    let filters = arguments.filters.join(" ");
    let mut tests = String::new();
    for (name, binary) in &built.tests {
        let to = format!("/tests/{name}");
        initrd.copy(binary, Path::new(&to))?;
        tests += &format!("{name} {to} --test-threads=1 --show-output {HOST_ONLY} {filters}\n");
    }
    initrd.text("/tests/list", &tests)?;
    let connections = arguments.connections;
    // Emulated, on a machine that has more to do, a first fetch has taken two seconds.
    let environment =
        format!("export PODCRED_TEST_CONNECTIONS={connections}\nexport PODCRED_EKS_AUTH_WAIT=6s\n");
    initrd.text("/environment", &environment)?;
    initrd.finish()
}

fn row(kernel: &str, outcome: &Outcome) -> Vec<String> {
    let Counts { passed, failed, skipped } = outcome.counts;
    let seconds = [outcome.boot, outcome.tests].map(|time| format!("{:.0}", time.as_secs_f32()));
    let numbers = [passed, failed, skipped].map(|number| number.to_string());
    let [before, after] = [kernel.to_owned(), outcome.release.clone()].map(|cell| vec![cell]);
    [before, numbers.to_vec(), seconds.to_vec(), after].concat()
}

fn describe(kernel: &str, outcome: &Outcome, log: &Path) -> String {
    let failures = outcome.failures.join("\n  ");
    let mut text = format!("\nFAILED on {kernel}:\n  {failures}\n{}", outcome.output);
    if !outcome.done {
        let console = std::fs::read(log).unwrap_or_default();
        text += &format!("Its console ended with\n{}\n", tail(&String::from_utf8_lossy(&console), 40));
    }
    text + &format!("All of its console: {}\n", log.display())
}
