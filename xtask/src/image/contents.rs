//! The files of the image: the program and what it cannot do without.

use std::fmt::Write as _;
use std::fs::{File, FileTimes};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::SystemTime;

use anyhow::{Context, Result};

use super::PACKAGE;
use super::binary::Built;
use crate::build::root;

pub(super) const PROGRAM: &str = "/podcred";

/// The paths by which the official chart starts its agent; the program knows them by what it is called.
const OFFICIAL: [&str; 2] = ["go-runner", "eks-pod-identity-agent"];

#[derive(Debug)]
pub(super) struct Contents {
    entries: Vec<Entry>,
}

/// By its path without a leading slash; after the folder that it is in.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) path: String,
    pub(super) kind: Kind,
}

#[derive(Debug)]
pub(super) enum Kind {
    Folder,
    File {
        mode: u32,
        content: Vec<u8>,
    },
    /// Another name of a file that was there before.
    Link {
        to: &'static str,
    },
}

impl Contents {
    pub(super) fn of(built: &Built) -> Result<Contents> {
        let program = built.program(PACKAGE);
        let program =
            std::fs::read(&program).with_context(|| format!("cannot read {}", program.display()))?;
        let license = std::fs::read(root().join("LICENSE")).context("cannot read LICENSE")?;
        Ok(Contents::with(program, license))
    }

    /// This alone, in the root folder by its own name.
    pub(super) fn of_program(program: &Path) -> Result<Contents> {
        let content = std::fs::read(program).with_context(|| format!("cannot read {}", program.display()))?;
        let name = program.file_name().and_then(|name| name.to_str()).context("a program has a name")?;
        Ok(Contents { entries: vec![file(name, 0o755, content)] })
    }

    #[cfg(test)]
    pub(super) fn for_test(program: &[u8]) -> Contents {
        Contents::with(program.to_vec(), b"license".to_vec())
    }

    fn with(program: Vec<u8>, license: Vec<u8>) -> Contents {
        let program_path = PROGRAM.trim_start_matches('/');
        let mut entries = vec![file(program_path, 0o755, program)];
        entries
            .extend(OFFICIAL.map(|path| Entry { path: path.to_owned(), kind: Kind::Link { to: "podcred" } }));
        entries.push(file("LICENSE", 0o644, license));
        entries.extend(["etc", "etc/ssl", "etc/ssl/certs"].map(folder));
        entries.push(file("etc/ssl/certs/ca-certificates.crt", 0o644, authorities().into_bytes()));
        // Where the agent makes its control socket, unless something is mounted there.
        entries.extend(["run", "run/podcred"].map(folder));
        Contents { entries }
    }

    pub(super) fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The same as files, for a Dockerfile to copy.
    pub(super) fn write(&self, to: &Path) -> Result<()> {
        for Entry { path, kind } in &self.entries {
            let path = to.join(path);
            let write = || -> Result<()> {
                match kind {
                    Kind::Folder => std::fs::create_dir_all(&path)?,
                    Kind::File { mode, content } => {
                        std::fs::create_dir_all(path.parent().unwrap_or(to))?;
                        std::fs::write(&path, content)?;
                        std::fs::set_permissions(&path, PermissionsExt::from_mode(*mode))?;
                    }
                    Kind::Link { to: program } => {
                        let _replaced = std::fs::remove_file(&path);
                        std::fs::hard_link(to.join(program), &path)?;
                    }
                }
                Ok(())
            };
            write().with_context(|| format!("cannot write {}", path.display()))?;
        }
        // As in the archive: a Dockerfile takes these times into its layer. Folders last, what is put into them changes theirs.
        let times = FileTimes::new().set_modified(SystemTime::UNIX_EPOCH);
        for Entry { path, .. } in self.entries.iter().rev() {
            let path = to.join(path);
            let set = || File::open(&path)?.set_times(times);
            set().with_context(|| format!("cannot set the time of {}", path.display()))?;
        }
        Ok(())
    }
}

fn folder(path: &str) -> Entry {
    Entry { path: path.to_owned(), kind: Kind::Folder }
}

fn file(path: &str, mode: u32, content: Vec<u8>) -> Entry {
    Entry { path: path.to_owned(), kind: Kind::File { mode, content } }
}

/// Mozilla's certificate authorities, of the version that Cargo.lock names: those of the machine that builds may be any.
fn authorities() -> String {
    let mut text = String::new();
    for authority in webpki_root_certs::TLS_SERVER_ROOT_CERTS {
        let pem = pem::Pem::new("CERTIFICATE", authority.as_ref());
        let _infallible = write!(text, "{pem}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_dockerfile_copies_is_what_the_archive_has() {
        let folder = tempfile::tempdir().unwrap();
        let contents = Contents::for_test(b"binary");
        contents.write(folder.path()).unwrap();
        for entry in contents.entries() {
            let path = folder.path().join(&entry.path);
            assert_eq!(path.metadata().unwrap().modified().unwrap(), SystemTime::UNIX_EPOCH, "{path:?}");
            match &entry.kind {
                Kind::Folder => assert!(path.is_dir()),
                Kind::File { content, .. } => assert_eq!(&std::fs::read(path).unwrap(), content),
                Kind::Link { .. } => assert_eq!(std::fs::read(path).unwrap(), b"binary"),
            }
        }
    }

    #[test]
    fn the_authorities_that_sign_for_aws_are_known() {
        let text = authorities();
        assert!(text.matches("BEGIN CERTIFICATE").count() > 100);
        let amazon = webpki_root_certs::TLS_SERVER_ROOT_CERTS
            .iter()
            .filter(|authority| authority.windows(16).any(|bytes| bytes == b"Amazon Root CA 1"));
        assert_eq!(amazon.count(), 1);
    }
}
