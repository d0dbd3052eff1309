//! The initial file system of a guest: a cpio archive (format `newc`) with everything that runs in it.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use tokio::process::Command;

use crate::process::{find_on_path, quietly};

const FOLDER: u32 = 0o040_755;
const EXECUTABLE: u32 = 0o100_755;
const PLAIN: u32 = 0o100_644;

/// An archive that is being written. Parents are added by themselves: the kernel unpacks no file whose folder is not there yet.
#[derive(Debug)]
pub(super) struct Initrd {
    out: BufWriter<File>,
    folders: BTreeSet<PathBuf>,
    files: BTreeSet<PathBuf>,
}

impl Initrd {
    pub(super) fn create(path: &Path) -> Result<Initrd> {
        let file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Initrd { out: BufWriter::new(file), folders: BTreeSet::new(), files: BTreeSet::new() })
    }

    pub(super) fn folder(&mut self, path: &Path) -> Result<()> {
        // Outermost first, without the root itself, which the kernel has made.
        let ancestors: Vec<&Path> = path.ancestors().collect();
        for folder in ancestors.into_iter().rev().filter(|folder| folder.parent().is_some()) {
            if self.folders.insert(folder.to_owned()) {
                self.entry(folder, FOLDER, &[])?;
            }
        }
        Ok(())
    }

    pub(super) fn script(&mut self, path: &str, text: &str) -> Result<()> {
        self.file(Path::new(path), EXECUTABLE, text.as_bytes())
    }

    pub(super) fn text(&mut self, path: &str, text: &str) -> Result<()> {
        self.file(Path::new(path), PLAIN, text.as_bytes())
    }

    /// A file of this machine, executable in the guest.
    pub(super) fn copy(&mut self, from: &Path, to: &Path) -> Result<()> {
        let content = std::fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
        self.file(to, EXECUTABLE, &content)
    }

    /// A program of this machine in `/bin`, and the shared libraries that it loads where they are here.
    pub(super) async fn program(&mut self, name: &str) -> Result<()> {
        let Some(program) = find_on_path(name) else { bail!("{name} is not on the PATH") };
        self.copy(&program, &Path::new("/bin").join(name))?;
        // ldd fails for a static program.
        let libraries = quietly("ldd", Command::new("ldd").arg(&program)).await.unwrap_or_default();
        for library in libraries.lines().filter_map(library) {
            self.copy(library, library)?;
        }
        Ok(())
    }

    pub(super) fn finish(mut self) -> Result<()> {
        self.entry(Path::new("/TRAILER!!!"), 0, &[])?;
        self.out.flush()?;
        Ok(())
    }

    fn file(&mut self, path: &Path, mode: u32, content: &[u8]) -> Result<()> {
        // Programs share libraries; the second copy would only take memory.
        if !self.files.insert(path.to_owned()) {
            return Ok(());
        }
        if let Some(parent) = path.parent() {
            self.folder(parent)?;
        }
        self.entry(path, mode, content)
    }

    fn entry(&mut self, path: &Path, mode: u32, content: &[u8]) -> Result<()> {
        let name = path.to_str().context("a path that is not UTF-8")?.trim_start_matches('/');
        // Files of one inode number would be hard links to each other, were their link count above one.
        let (inode, links, size, name_size) = (0, 1, u32::try_from(content.len())?, name.len() + 1);
        let header = [inode, mode, 0, 0, links, 0, size, 0, 0, 0, 0, u32::try_from(name_size)?, 0];
        write!(self.out, "070701")?;
        for field in header {
            write!(self.out, "{field:08x}")?;
        }
        write!(self.out, "{name}\0")?;
        self.pad(6 + 13 * 8 + name_size)?;
        self.out.write_all(content)?;
        self.pad(content.len())
    }

    /// Names and contents end at a multiple of four.
    fn pad(&mut self, length: usize) -> Result<()> {
        Ok(self.out.write_all(&[0; 3][..length.next_multiple_of(4) - length])?)
    }
}

/// The path in a line of ldd: `libc.so.6 => /lib/libc.so.6 (0x…)`, or the loader's own, which has no arrow.
fn library(line: &str) -> Option<&Path> {
    let path = line.split_whitespace().find(|word| word.starts_with('/'))?;
    Some(Path::new(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_come_before_their_files_and_every_part_ends_at_a_multiple_of_four() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("initrd");
        let mut initrd = Initrd::create(&path).unwrap();
        initrd.text("/etc/hosts", "12345").unwrap();
        initrd.text("/etc/hosts", "once only").unwrap();
        initrd.finish().unwrap();
        let archive = std::fs::read(&path).unwrap();
        let header = |mode: &str, links: &str, size: &str, name: &str| {
            let zeros = "0".repeat(8);
            let fields = [&zeros, mode, &zeros, &zeros, links, &zeros, size, &zeros, &zeros, &zeros, &zeros];
            format!("070701{}{name}{zeros}", fields.concat())
        };
        let wanted = [
            header("000041ed", "00000001", "00000000", "00000004") + "etc\0\0\0",
            header("000081a4", "00000001", "00000005", "0000000a") + "etc/hosts\0" + "12345\0\0\0",
            header("00000000", "00000001", "00000000", "0000000b") + "TRAILER!!!\0\0\0\0",
        ];
        assert_eq!(String::from_utf8_lossy(&archive), wanted.concat());
    }

    #[test]
    fn libraries_are_read_off_the_lines_of_ldd() {
        assert_eq!(
            library("\tlibmnl.so.0 => /lib/libmnl.so.0 (0x00007f)"),
            Some(Path::new("/lib/libmnl.so.0"))
        );
        assert_eq!(library("\t/lib64/ld-linux.so.2 (0x00007f)"), Some(Path::new("/lib64/ld-linux.so.2")));
        assert_eq!(library("\tlinux-vdso.so.1 (0x00007f)"), None);
    }
}
