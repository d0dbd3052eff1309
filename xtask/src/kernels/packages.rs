//! Debian's kernels, as packages that are unpacked and never installed. apt gets a configuration of its own, so that the machine's
//! package lists, pins and cache stay as they are; its mirrors and its proxy are the machine's.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use tokio::process::Command;

use super::Kernel;
use crate::build::target;
use crate::process::quietly;
use crate::report::step;

/// The key ring comes with the package debian-archive-keyring, which every Debian has.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// A kernel's release is split over packages of these names; what else it depends on is for installing it.
const PARTS: [&str; 3] = ["linux-image-", "linux-binary-", "linux-modules-"];

#[derive(Debug)]
pub(super) struct Archive {
    configuration: PathBuf,
}

/// A kernel's packages, unpacked.
#[derive(Debug)]
pub(super) struct Unpacked {
    pub(super) version: String,
    pub(super) image: PathBuf,
    modules: PathBuf,
}

impl Archive {
    /// Fetches what the archive has at present.
    pub(super) async fn open() -> Result<Archive> {
        let folder = folder().join("apt");
        std::fs::create_dir_all(folder.join("state/lists/partial"))?;
        std::fs::create_dir_all(folder.join("cache/archives/partial"))?;
        std::fs::write(folder.join("status"), "")?;
        std::fs::write(folder.join("debian.sources"), sources(&mirrors().await?))?;
        let configuration = folder.join("apt.conf");
        std::fs::write(&configuration, configuration_in(&folder))?;
        let archive = Archive { configuration };
        step("Asking Debian's archive for its kernels");
        archive.apt("apt-get", &["update", "-q"]).await?;
        Ok(archive)
    }

    pub(super) async fn unpack(&self, kernel: &Kernel) -> Result<Unpacked> {
        let offered = self.apt("apt-cache", &["madison", kernel.package]).await?;
        let version = newest(&offered, kernel.series).with_context(|| {
            format!("Debian's archive has no {} for Linux {}", kernel.package, kernel.name)
        })?;
        let folder = folder().join(kernel.name).join(version);
        if !folder.is_dir() {
            step(&format!("Fetching Linux {version} (Debian's packages, unpacked only)"));
            let partial = folder.with_extension("partial");
            let _nothing_half_made = std::fs::remove_dir_all(&partial);
            std::fs::create_dir_all(&partial)?;
            self.fetch(&partial, &format!("{}={version}", kernel.package)).await?;
            // Whole or not at all.
            std::fs::rename(&partial, &folder)?;
        }
        // Since /usr was merged, and since the image has a package of its own, they are where they were not before.
        let modules = only_entry(&[folder.join("lib/modules"), folder.join("usr/lib/modules")])?;
        let release = modules.file_name().unwrap_or_default().to_string_lossy();
        let images = [folder.join(format!("boot/vmlinuz-{release}")), modules.join("vmlinuz")];
        let image = images.into_iter().find(|image| image.is_file());
        let image = image.with_context(|| format!("no vmlinuz in the packages of Linux {version}"))?;
        Ok(Unpacked { version: version.to_owned(), image, modules })
    }

    /// What the metapackage `named` (`name=version`) stands for.
    async fn fetch(&self, into: &Path, named: &str) -> Result<()> {
        let mut wanted = parts(&self.apt("apt-cache", &["show", named]).await?);
        let mut next = 0;
        while let Some(package) = wanted.get(next) {
            let more = parts(&self.apt("apt-cache", &["show", package]).await?);
            wanted.extend(more);
            next += 1;
        }
        let mut download = self.command("apt-get");
        quietly("apt-get download", download.args(["download", "-q"]).args(&wanted).current_dir(into))
            .await?;
        for entry in std::fs::read_dir(into)? {
            let package = entry?.path();
            if package.extension().is_some_and(|extension| extension == "deb") {
                let mut unpack = Command::new("dpkg-deb");
                quietly("dpkg-deb -x", unpack.arg("-x").arg(&package).arg(into)).await?;
                std::fs::remove_file(&package)?;
            }
        }
        Ok(())
    }

    async fn apt(&self, program: &str, arguments: &[&str]) -> Result<String> {
        quietly(program, self.command(program).args(arguments)).await
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.arg("-c").arg(&self.configuration).env("LC_ALL", "C");
        command
    }
}

impl Unpacked {
    /// The file of a module, by its place in the kernel's source; none where it is built in.
    pub(super) fn module(&self, place: &str) -> Result<Option<PathBuf>> {
        for suffix in ["ko", "ko.xz"] {
            let file = self.modules.join(format!("kernel/{place}.{suffix}"));
            if file.is_file() {
                return Ok(Some(file));
            }
        }
        let builtin = std::fs::read_to_string(self.modules.join("modules.builtin"))?;
        match builtin.lines().any(|line| line == format!("kernel/{place}.ko")) {
            true => Ok(None),
            false => bail!("Linux {} has no module {place}", self.version),
        }
    }
}

fn folder() -> PathBuf {
    target().join("kernels")
}

#[derive(Debug, Default)]
struct Mirrors {
    main: Option<String>,
    security: Option<String>,
}

/// Where this machine has its Debian packages from, as apt itself reads its sources.
async fn mirrors() -> Result<Mirrors> {
    let mut apt = Command::new("apt-get");
    apt.args(["indextargets", "--format", "$(ORIGIN)|$(LABEL)|$(REPO_URI)", "Created-By: Packages"]);
    let mut mirrors = Mirrors::default();
    for line in quietly("apt-get indextargets", &mut apt).await?.lines() {
        let [origin, label, uri] = line.splitn(3, '|').collect::<Vec<_>>()[..] else { continue };
        match (origin, label) {
            ("Debian", "Debian") => mirrors.main = Some(uri.to_owned()),
            ("Debian", "Debian-Security") => mirrors.security = Some(uri.to_owned()),
            (_, _) => {}
        }
    }
    Ok(mirrors)
}

fn sources(mirrors: &Mirrors) -> String {
    let source = |uri: &str, suites: &str| {
        format!("Types: deb\nURIs: {uri}\nSuites: {suites}\nComponents: main\nSigned-By: {KEYRING}\n\n")
    };
    // What was released stays in the security archive for as long as anybody maintains it.
    let main = mirrors.main.iter().map(|uri| source(uri, "sid"));
    let security = mirrors.security.iter().map(|uri| source(uri, "bullseye-security bookworm-security"));
    main.chain(security).collect()
}

fn configuration_in(folder: &Path) -> String {
    let folder = folder.display();
    // Hooks of the machine's own updates, to clear its caches or to refresh desktop catalogues, have no business here.
    format!(
        r#"Dir::State "{folder}/state";
Dir::State::status "{folder}/status";
Dir::Cache "{folder}/cache";
Dir::Etc::sourcelist "{folder}/debian.sources";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
APT::Architecture "amd64";
APT::Sandbox::User "root";
Acquire::Languages "none";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
"#
    )
}

/// The first version of `series` in apt's list `package | version | where`, which begins with the newest.
fn newest<'a>(madison: &'a str, series: Option<&str>) -> Option<&'a str> {
    let mut versions = madison.lines().filter_map(|line| line.split('|').nth(1)).map(str::trim);
    versions.find(|version| series.is_none_or(|series| version.starts_with(series)))
}

/// Those packages, as `name=version`, that `apt-cache show` names as dependencies and that are parts of the kernel.
fn parts(shown: &str) -> Vec<String> {
    let depends = shown.lines().filter_map(|line| line.strip_prefix("Depends: "));
    let part = |dependency: &str| {
        let (name, version) = dependency.trim().split_once(" (= ")?;
        let ours = PARTS.iter().any(|prefix| name.starts_with(prefix));
        ours.then(|| format!("{name}={}", version.trim_end_matches(')')))
    };
    depends.flat_map(|line| line.split(',')).filter_map(part).collect()
}

/// The one entry of the first of these folders that is there.
fn only_entry(folders: &[PathBuf]) -> Result<PathBuf> {
    let entries = folders.iter().find_map(|folder| std::fs::read_dir(folder).ok());
    let mut entries = entries.with_context(|| format!("none of {folders:?} is there"))?;
    Ok(entries.next().context("a kernel without modules")??.path())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_version_of_a_series_is_taken() {
        let madison = " linux-image | 7.2.13-1 | sid\n linux-image | 6.1.192-2 | security\n linux-image | 6.1.176-1 | main\n";
        assert_eq!(newest(madison, None), Some("7.2.13-1"));
        assert_eq!(newest(madison, Some("6.1.")), Some("6.1.192-2"));
        assert_eq!(newest(madison, Some("6.12.")), None);
    }

    #[test]
    fn only_the_parts_of_the_kernel_are_followed() {
        let shown = "Package: linux-image-7\nDepends: dracut | initramfs-tools (>= 0.1), linux-base-7 (= 7-1), \
                     linux-binary-7 (= 7-1), linux-modules-7 (= 7-1)\nDescription: a kernel\n";
        assert_eq!(parts(shown), ["linux-binary-7=7-1", "linux-modules-7=7-1"]);
    }
}
