//! An OCI image layout in one tar file, as `ctr images import`, `podman load` and `skopeo` take it. The same contents give the same bytes.
//!
//! Its three kinds of JSON are written by hand: the types of the crate oci-spec keep labels and annotations in an order that changes.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::{Context, Result};
use flate2::{Compression, GzBuilder};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

use super::Arch;
use super::contents::{Contents, Entry, Kind, PROGRAM};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// With the registry that containerd thinks of where none is named.
pub(crate) const REFERENCE: &str = concat!("docker.io/library/podcred:", env!("CARGO_PKG_VERSION"));
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The image of each processor, and what they are made of by its digest.
#[derive(Debug)]
pub(super) struct Archive {
    reference: &'static str,
    /// How a container of it is started, and its labels.
    config: Value,
    blobs: BTreeMap<String, Vec<u8>>,
    manifests: Vec<Value>,
}

#[derive(Clone, Debug)]
pub(crate) struct Layer {
    pub(crate) digest: String,
    pub(crate) compressed: u64,
}

impl Archive {
    pub(super) fn new(reference: &'static str, config: Value) -> Archive {
        Archive { reference, config, blobs: BTreeMap::new(), manifests: Vec::new() }
    }

    pub(super) fn of_podcred() -> Archive {
        let mut config = started();
        config["Labels"] = json!({
            "org.opencontainers.image.title": "podcred",
            "org.opencontainers.image.version": VERSION,
            "org.opencontainers.image.licenses": env!("CARGO_PKG_LICENSE"),
            "org.opencontainers.image.source": env!("CARGO_PKG_REPOSITORY"),
        });
        Archive::new(REFERENCE, config)
    }

    /// One layer, its configuration and its manifest.
    pub(super) fn add(&mut self, arch: Arch, contents: &Contents) -> Result<Layer> {
        let plain = layer(contents)?;
        let diff = digest(&plain);
        // No file name and no time.
        let mut gzip = GzBuilder::new().write(Vec::new(), Compression::best());
        gzip.write_all(&plain)?;
        let layer = self.blob(LAYER, gzip.finish()?);
        let config = self.json(
            CONFIG,
            &json!({
                "architecture": arch.name(),
                "os": "linux",
                "config": self.config.clone(),
                "rootfs": { "type": "layers", "diff_ids": [diff] },
            }),
        )?;
        let compressed = Layer {
            digest: layer["digest"].as_str().unwrap_or_default().to_owned(),
            compressed: layer["size"].as_u64().unwrap_or_default(),
        };
        let mut manifest = self.json(
            MANIFEST,
            &json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer] }),
        )?;
        manifest["platform"] = json!({ "architecture": arch.name(), "os": "linux" });
        self.manifests.push(manifest);
        Ok(compressed)
    }

    pub(super) fn write(mut self, to: &Path) -> Result<()> {
        let all = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": self.manifests });
        let mut all = self.json(INDEX, &all)?;
        // The first for podman and skopeo, the second for containerd.
        all["annotations"] = json!({
            "org.opencontainers.image.ref.name": self.reference.rsplit(':').next(),
            "io.containerd.image.name": self.reference,
        });
        let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [all] });

        let write = || -> Result<()> {
            let mut tar = Builder::new(BufWriter::new(File::create(to)?));
            file(&mut tar, "oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
            file(&mut tar, "index.json", 0o644, &serde_json::to_vec(&index)?)?;
            for (hash, blob) in &self.blobs {
                file(&mut tar, &format!("blobs/sha256/{hash}"), 0o644, blob)?;
            }
            tar.into_inner()?.flush()?;
            Ok(())
        };
        write().with_context(|| format!("cannot write {}", to.display()))
    }

    /// Keeps it and says how to refer to it.
    fn blob(&mut self, media_type: &str, content: Vec<u8>) -> Value {
        let digest = digest(&content);
        let descriptor = json!({ "mediaType": media_type, "digest": digest, "size": content.len() });
        self.blobs.insert(digest.trim_start_matches("sha256:").to_owned(), content);
        descriptor
    }

    fn json(&mut self, media_type: &str, content: &Value) -> Result<Value> {
        Ok(self.blob(media_type, serde_json::to_vec(content)?))
    }
}

/// How a container of it is started.
fn started() -> Value {
    // The path for `kubectl exec`.
    json!({ "Entrypoint": [PROGRAM], "Cmd": ["server"], "User": "0:0", "Env": ["PATH=/"] })
}

fn layer(contents: &Contents) -> Result<Vec<u8>> {
    let mut tar = Builder::new(Vec::new());
    for Entry { path, kind } in contents.entries() {
        match kind {
            Kind::Folder => {
                let mut header = header(EntryType::Directory, 0o755, 0);
                tar.append_data(&mut header, format!("{path}/"), &[][..])?;
            }
            Kind::File { mode, content } => file(&mut tar, path, *mode, content)?,
            Kind::Link { to } => {
                let mut header = header(EntryType::Link, 0o755, 0);
                tar.append_link(&mut header, path, to)?;
            }
        }
    }
    Ok(tar.into_inner()?)
}

fn file(tar: &mut Builder<impl Write>, path: &str, mode: u32, content: &[u8]) -> Result<()> {
    Ok(tar.append_data(&mut header(EntryType::Regular, mode, content.len()), path, content)?)
}

/// Root's, and of no time.
fn header(kind: EntryType, mode: u32, size: usize) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size as u64);
    header
}

fn digest(content: &[u8]) -> String {
    let hash: String = Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hash}")
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn archive(folder: &Path, name: &str) -> Vec<u8> {
        let mut archive = Archive::of_podcred();
        for arch in [Arch::Amd64, Arch::Arm64] {
            archive.add(arch, &Contents::for_test(b"binary")).unwrap();
        }
        let file = folder.join(name);
        archive.write(&file).unwrap();
        std::fs::read(file).unwrap()
    }

    #[test]
    fn the_dockerfile_starts_the_same() {
        let dockerfile = include_str!("../../../deploy/Dockerfile");
        let line = |name: &str| {
            let of = |line: &'static str| line.strip_prefix(name)?.strip_prefix(' ');
            dockerfile.lines().filter_map(of).next_back().unwrap_or_default()
        };
        let Value::Object(started) = started() else { panic!("not an object") };
        assert_eq!(line("ENTRYPOINT"), started["Entrypoint"].to_string());
        assert_eq!(line("CMD"), started["Cmd"].to_string());
        assert_eq!(line("USER"), started["User"]);
        assert_eq!(line("ENV"), started["Env"][0]);
    }

    #[test]
    fn the_same_contents_give_the_same_bytes() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(archive(folder.path(), "one"), archive(folder.path(), "two"));
    }

    #[test]
    fn everything_that_is_referred_to_is_there_by_its_digest() {
        let folder = tempfile::tempdir().unwrap();
        let bytes = archive(folder.path(), "one");
        let mut tar = tar::Archive::new(&bytes[..]);
        let mut files = BTreeMap::new();
        for entry in tar.entries().unwrap() {
            let mut entry = entry.unwrap();
            let path = entry.path().unwrap().display().to_string();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            files.insert(path, content);
        }
        let read = |descriptor: &Value| -> Value {
            let digest = descriptor["digest"].as_str().unwrap();
            let blob = &files[&format!("blobs/{}", digest.replace(':', "/"))];
            assert_eq!(super::digest(blob), digest);
            assert_eq!(descriptor["size"].as_u64().unwrap(), blob.len() as u64);
            serde_json::from_slice(blob).unwrap_or_default()
        };
        let index: Value = serde_json::from_slice(&files["index.json"]).unwrap();
        let platforms = read(&index["manifests"][0]);
        for (place, arch) in ["amd64", "arm64"].into_iter().enumerate() {
            let manifest = read(&platforms["manifests"][place]);
            let config = read(&manifest["config"]);
            assert_eq!(config["architecture"], arch);
            assert_eq!(config["config"]["Entrypoint"], json!(["/podcred"]));
            read(&manifest["layers"][0]);
            let layer = manifest["layers"][0]["digest"].as_str().unwrap().replace(':', "/");
            let mut plain = Vec::new();
            flate2::read::GzDecoder::new(&files[&format!("blobs/{layer}")][..])
                .read_to_end(&mut plain)
                .unwrap();
            assert_eq!(config["rootfs"]["diff_ids"][0], super::digest(&plain));
        }
    }
}
