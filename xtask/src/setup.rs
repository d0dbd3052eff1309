//! What the other tasks need and cargo does not bring: a few packages of the system, and the AWS SDKs under `target/`.

pub(crate) mod deploy;
pub(crate) mod node;

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use tokio::process::Command;

use crate::build::{root, target};
use crate::clock::Stopwatch;
use crate::image::Arch;
use crate::process::{find_on_path, is_root, on_path, quietly};
use crate::report::step;
use crate::sdk::Sdk;

/// boto3 and the aws CLI, for SDK clients, tests and calls of our own.
pub(crate) fn venv() -> PathBuf {
    target().join("sdks/venv")
}

pub(crate) async fn all() -> Result<()> {
    promtool().await?;
    for program in [chromium().await?, wrk().await?].into_iter().flatten() {
        step(&format!("Left out: {program}"));
    }
    for arch in Arch::value_variants().iter().filter(|arch| !arch.is_here()) {
        if let Some(reason) = cross_compiler(arch.cpu()).await? {
            step(&format!("Left out: {reason}"));
        }
    }
    if let Some(reason) = emulator().await? {
        step(&format!("Left out: {reason}"));
    }
    if let Err(reason) = node::tools().await? {
        step(&format!("Left out: {reason}"));
    }
    for reason in deploy::all().await? {
        step(&format!("Left out: {reason}"));
    }
    let (_, left_out) = sdks(&Sdk::ALL).await?;
    for (sdk, reason) in left_out {
        step(&format!("{} is left out: {reason}", sdk.title()));
    }
    Ok(())
}

/// Installs those whose runtime is here; the others come back with the reason.
pub(crate) async fn sdks(wanted: &[Sdk]) -> Result<(Vec<Sdk>, Vec<(Sdk, String)>)> {
    system_packages().await?;
    let (mut here, mut left_out) = (Vec::new(), Vec::new());
    for &sdk in wanted {
        let missing: Vec<&str> = sdk.runtime().iter().copied().filter(|program| !on_path(program)).collect();
        match missing.is_empty() {
            true => here.push(sdk),
            false => left_out.push((sdk, format!("{} not on the PATH", missing.join(", ")))),
        }
    }
    // Associations are created with the aws CLI, whichever SDKs are wanted.
    let python = async {
        if !on_path("python3") {
            bail!("python3 is not on the PATH; the aws CLI, which creates the associations, needs it");
        }
        install("boto3 and the aws CLI", &venv(), &python_manifests(), "python3", python_venv()).await
    };
    let js = on_demand(&here, Sdk::Js, &["package.json", "package-lock.json", "client.mjs"], "node", npm());
    let go = on_demand(&here, Sdk::Go, &["go.mod", "go.sum", "main.go"], "go", go_build());
    let java = on_demand(&here, Sdk::Java, &["pom.xml", "Client.java"], "javac", maven());
    Box::pin(async { tokio::try_join!(python, js, go, java) }).await?;
    Ok((here, left_out))
}

/// Debian's promtool, unpacked under `target/`: installing its package would start a Prometheus server.
pub(crate) async fn promtool() -> Result<Option<PathBuf>> {
    if let Some(promtool) = find_on_path("promtool") {
        return Ok(Some(promtool));
    }
    let promtool = target().join("tools/prometheus/usr/bin/promtool");
    if promtool.is_file() {
        return Ok(Some(promtool));
    }
    if !on_path("apt-get") {
        return Ok(None);
    }
    unpacked("prometheus", &["prometheus"]).await?;
    Ok(promtool.is_file().then_some(promtool))
}

/// The folder `name` of the tools with Debian's packages, unpacked and not installed.
async fn unpacked(name: &str, packages: &[&str]) -> Result<PathBuf> {
    let folder = target().join("tools").join(name);
    if folder.is_dir() {
        return Ok(folder);
    }
    step(&format!("Fetching {} (Debian's packages, unpacked only)", packages.join(", ")));
    made_whole(&folder, async |folder| {
        let download = || {
            let mut apt = Command::new("apt-get");
            apt.args(["download", "-q"]).args(packages).current_dir(folder);
            apt
        };
        if quietly("apt-get download", &mut download()).await.is_err() && is_root() {
            apt(&["update", "-q"]).await?;
            quietly("apt-get download", &mut download()).await?;
        }
        for entry in std::fs::read_dir(folder)? {
            let package = entry?.path();
            if package.extension().is_some_and(|extension| extension == "deb") {
                let mut unpack = Command::new("dpkg-deb");
                quietly("dpkg-deb -x", unpack.arg("-x").arg(&package).arg(folder)).await?;
                std::fs::remove_file(package)?;
            }
        }
        Ok(())
    })
    .await?;
    Ok(folder)
}

/// What was interrupted half-way must not look complete: `make` fills a folder that gets its name when it is full.
async fn made_whole(folder: &Path, make: impl AsyncFnOnce(&Path) -> Result<()>) -> Result<()> {
    let tools = folder.parent().context("a folder of tools")?;
    std::fs::create_dir_all(tools)?;
    let half = tempfile::tempdir_in(tools)?;
    make(half.path()).await.with_context(|| format!("making {}", folder.display()))?;
    std::fs::rename(half.keep(), folder)?;
    Ok(())
}

/// Sees to it that there is a browser for the tests of reports; returns why not.
pub(crate) async fn chromium() -> Result<Option<String>> {
    program("chromium", "chromium", "the look at reports in a browser").await
}

/// Sees to it that there is a client that costs less than the servers; returns why not.
pub(crate) async fn wrk() -> Result<Option<String>> {
    program("wrk", "wrk", "benchmarks of requests").await
}

async fn program(program: &str, package: &str, what: &str) -> Result<Option<String>> {
    if !on_path(program) {
        install_packages(vec![package]).await?;
    }
    Ok((!on_path(program))
        .then(|| format!("{what}: no {program} on the PATH, and only root on Debian can have it installed")))
}

/// Sees to it that guests can be run here; returns why not.
pub(crate) async fn emulator() -> Result<Option<String>> {
    let what = "the tests on other kernels under qemu";
    if !cfg!(all(target_arch = "x86_64", target_env = "gnu")) {
        return Ok(Some(format!(
            "{what}: those kernels are x86-64 and this machine is not, or its Rust is not for glibc"
        )));
    }
    let programs = [
        ("qemu-system-x86_64", "qemu-system-x86"),
        ("busybox", "busybox-static"),
        ("ip", "iproute2"),
        ("nsenter", "util-linux"),
        ("sysctl", "procps"),
        ("update-ca-certificates", "ca-certificates"),
    ];
    let missing = || programs.into_iter().filter(|(program, _)| !on_path(program));
    install_packages(missing().map(|(_, package)| package).collect()).await?;
    let missing =
        missing().map(|(program, _)| program).chain(["apt-get"].into_iter().filter(|apt| !on_path(apt)));
    let missing: Vec<&str> = missing.collect();
    Ok((!missing.is_empty()).then(|| {
        format!(
            "{what}: {} not on the PATH, and only root on Debian can have it installed",
            missing.join(", ")
        )
    }))
}

/// Sees to it that C can be compiled and linked for another processor, and its programs started; returns why not.
pub(crate) async fn cross_compiler(cpu: &str) -> Result<Option<String>> {
    let (compiler, emulator) = (format!("{cpu}-linux-gnu-gcc"), format!("qemu-{cpu}-static"));
    // As Debian names its packages.
    let (gcc, libc) = match cpu {
        "aarch64" => ("gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross"),
        _ => ("gcc-x86-64-linux-gnu", "libc6-dev-amd64-cross"),
    };
    if !on_path(&compiler) {
        install_packages(vec![gcc, libc]).await?;
    }
    if !on_path(&emulator) {
        install_packages(vec!["qemu-user-static"]).await?;
    }
    let missing: Vec<&str> =
        [&compiler, &emulator].into_iter().map(String::as_str).filter(|program| !on_path(program)).collect();
    Ok((!missing.is_empty()).then(|| {
        format!(
            "podcred for {cpu}: {} not on the PATH, and only root on Debian can have it installed",
            missing.join(", ")
        )
    }))
}

async fn system_packages() -> Result<()> {
    let mut packages = Vec::new();
    if !on_path("ip") {
        packages.push("iproute2");
    }
    if !on_path("nsenter") {
        packages.push("util-linux");
    }
    let ensurepip =
        quietly("ensurepip", Command::new("python3").args(["-c", "import ensurepip, venv"])).await;
    if ensurepip.is_err() {
        packages.push("python3-venv");
    }
    install_packages(packages).await
}

/// As root, on Debian and its kin; elsewhere whoever needs a package says so.
async fn install_packages(packages: Vec<&str>) -> Result<()> {
    if packages.is_empty() || !is_root() || !on_path("apt-get") {
        return Ok(());
    }
    step(&format!("Installing {} (apt)", packages.join(", ")));
    apt(&["update", "-q"]).await?;
    apt(&[&["install", "-q", "-y", "--no-install-recommends"], packages.as_slice()].concat()).await
}

async fn apt(arguments: &[&str]) -> Result<()> {
    let mut apt = Command::new("apt-get");
    quietly("apt-get", apt.args(arguments).env("DEBIAN_FRONTEND", "noninteractive")).await?;
    Ok(())
}

async fn on_demand(
    here: &[Sdk],
    sdk: Sdk,
    files: &[&str],
    runtime: &str,
    work: impl Future<Output = Result<()>>,
) -> Result<()> {
    if !here.contains(&sdk) {
        return Ok(());
    }
    let manifests: Vec<PathBuf> = files.iter().map(|file| sdk.source().join(file)).collect();
    install(&format!("the SDK for {}", sdk.title()), &sdk.installed(), &manifests, runtime, work).await
}

/// Does `work` unless a stamp beside the folder says that it was done for the same files and the same runtime.
async fn install(
    what: &str,
    folder: &Path,
    manifests: &[PathBuf],
    runtime: &str,
    work: impl Future<Output = Result<()>>,
) -> Result<()> {
    let mut hash = DefaultHasher::new();
    for file in manifests {
        std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?.hash(&mut hash);
    }
    // Where a runtime was replaced by another, what was made with the former need not work.
    let version = if runtime == "go" { "version" } else { "--version" };
    quietly(runtime, Command::new(runtime).arg(version)).await?.hash(&mut hash);
    let stamp = folder.with_extension("stamp");
    let wanted = format!("{:016x}", hash.finish());
    if std::fs::read_to_string(&stamp).is_ok_and(|found| found == wanted) {
        return Ok(());
    }
    step(&format!("Installing {what} …"));
    let clock = Stopwatch::start();
    if folder.exists() {
        std::fs::remove_dir_all(folder)?;
    }
    std::fs::create_dir_all(folder)?;
    work.await.with_context(|| format!("installing {what}"))?;
    std::fs::write(&stamp, wanted)?;
    step(&format!("Installed {what} in {:.0} s", clock.elapsed().as_secs_f32()));
    Ok(())
}

fn python_manifests() -> [PathBuf; 3] {
    let test = root().join("loadtest/tests/requirements.txt");
    [Sdk::Python.source().join("requirements.txt"), Sdk::Cli.source().join("requirements.txt"), test]
}

async fn python_venv() -> Result<()> {
    let venv = venv();
    quietly("python3 -m venv", Command::new("python3").args(["-m", "venv"]).arg(&venv)).await?;
    let mut pip = Command::new(venv.join("bin/python"));
    pip.args(["-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-input"]);
    for manifest in python_manifests() {
        pip.arg("-r").arg(manifest);
    }
    quietly("pip install", &mut pip).await?;
    Ok(())
}

async fn npm() -> Result<()> {
    let folder = Sdk::Js.installed();
    // Node looks for packages beside the file that imports them, so the program goes where the packages are.
    for file in ["package.json", "package-lock.json", "client.mjs"] {
        std::fs::copy(Sdk::Js.source().join(file), folder.join(file))?;
    }
    let mut npm = Command::new("npm");
    npm.args(["ci", "--no-audit", "--no-fund", "--omit-lockfile-registry-resolved"]).current_dir(folder);
    quietly("npm ci", &mut npm).await?;
    Ok(())
}

async fn go_build() -> Result<()> {
    let mut go = Command::new("go");
    go.args(["build", "-mod=readonly", "-o"]).arg(Sdk::Go.installed().join("client")).arg(".");
    quietly("go build", go.current_dir(Sdk::Go.source())).await?;
    Ok(())
}

async fn maven() -> Result<()> {
    let folder = Sdk::Java.installed();
    let mut mvn = Command::new("mvn");
    mvn.args(["-B", "-q", "dependency:copy-dependencies", "-DincludeScope=runtime"])
        .arg(format!("-DoutputDirectory={}", folder.join("lib").display()))
        .arg("-f")
        .arg(Sdk::Java.source().join("pom.xml"));
    quietly("mvn dependency:copy-dependencies", &mut mvn).await?;
    let mut javac = Command::new("javac");
    javac.arg("-cp").arg(folder.join("lib/*")).arg("-d").arg(folder.join("classes"));
    quietly("javac", javac.arg(Sdk::Java.source().join("Client.java"))).await?;
    Ok(())
}
