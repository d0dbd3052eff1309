//! The pods of a run as the kubelet makes them: a cgroup and a network where the stage has them, and a token.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::time::Instant;
use uuid::Uuid;

use super::agent::NODE_NAME;
use super::check::{NAMESPACE, service_account};
use super::plan::{Plan, TokenLife, Visit};
use crate::clock;
use crate::eks::{PodToken, SimulatedEks};
use crate::node::{Node, Pod, PodSpec, Qos};

/// One pod, as long as it lives.
#[derive(Debug)]
pub(super) struct Tenant {
    pub(super) uid: Uuid,
    /// Boxed, as pods without cgroups have none.
    pub(super) place: Option<Box<Pod>>,
    pub(super) role: u32,
    token: Token,
}

impl Tenant {
    /// The content of the pod's token file at this moment.
    pub(super) fn token(&self) -> Result<Arc<str>> {
        match &self.token {
            Token::Minted { by, pod, slip } => {
                let mut slip = slip.lock().unwrap_or_else(PoisonError::into_inner);
                if slip.until.is_some_and(|until| until <= clock::mono()) {
                    let minted = by.mint(*pod, self.uid, self.role);
                    *slip = minted.context("the file of the pods' tokens")?;
                }
                Ok(by.spool.get(*slip)?.into())
            }
            Token::File(file) => file.read(),
        }
    }
}

/// All of them, each at the place of its number.
pub(super) fn tenants(
    eks: &Arc<SimulatedEks>,
    node: Option<&Node>,
    plan: &Plan,
    own_networks: u32,
) -> Result<Vec<Option<Arc<Tenant>>>> {
    let mut first_visits = vec![None; plan.pods() as usize];
    for visit in plan.visits.iter().rev() {
        first_visits[visit.pod as usize] = Some(visit);
    }
    let first_visits: Vec<&Visit> = first_visits.into_iter().flatten().collect();
    let mint = Arc::new(Mint { eks: Arc::clone(eks), life: plan.tokens, spool: Spool::new()? });
    let make = |visit: &&Visit| {
        Tenant::minted(&mint, node, visit, visit.pod < own_networks).map(|tenant| Some(Arc::new(tenant)))
    };
    let tenants: Vec<Option<Arc<Tenant>>> = first_visits.iter().map(make).collect::<Result<_>>()?;
    // Signing takes most of the time: all processors do it. What dies within the run is made in it, and its token with it.
    let early = tenants.iter().zip(first_visits).filter(|(_, visit)| !visit.dies);
    let early: Vec<&Tenant> = early.filter_map(|(tenant, _)| tenant.as_deref()).collect();
    let share = early.len().div_ceil(thread::available_parallelism()?.get()).max(1);
    thread::scope(|scope| {
        let sign = |tenants: &[&Tenant]| tenants.iter().try_for_each(|tenant| tenant.token().map(drop));
        let threads: Vec<_> = early.chunks(share).map(|tenants| scope.spawn(move || sign(tenants))).collect();
        let join = |thread: thread::ScopedJoinHandle<'_, Result<()>>| {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        threads.into_iter().try_for_each(join)
    })?;
    Ok(tenants)
}

/// Pods that run elsewhere: one for each file.
pub(super) fn tenants_of(files: impl Iterator<Item = PathBuf>) -> Vec<Option<Arc<Tenant>>> {
    let tenant = |path: PathBuf| {
        let token = Token::File(Box::new(TokenFile { path, read: Mutex::default() }));
        Some(Arc::new(Tenant { uid: Uuid::nil(), role: 0, place: None, token }))
    };
    files.map(tenant).collect()
}

pub(super) fn token_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder).with_context(|| format!("--token-dir {}", folder.display()))?;
    let mut files = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

impl Tenant {
    fn minted(mint: &Arc<Mint>, node: Option<&Node>, visit: &Visit, own_network: bool) -> Result<Tenant> {
        let Visit { pod, role, .. } = *visit;
        let spec = PodSpec::new([Qos::Guaranteed, Qos::Burstable, Qos::BestEffort][pod as usize % 3]);
        let spec = if own_network { spec } else { spec.host_network() };
        let uid = spec.own_uid().parse()?;
        let place = node.map(|node| node.pod(spec).map(Box::new)).transpose()?;
        let token = Token::Minted { by: Arc::clone(mint), pod, slip: Mutex::new(Slip::none()) };
        Ok(Tenant { uid, place, role, token })
    }
}

#[derive(Debug)]
enum Token {
    Minted {
        by: Arc<Mint>,
        pod: u32,
        slip: Mutex<Slip>,
    },
    /// Of a pod that runs elsewhere.
    File(Box<TokenFile>),
}

#[derive(Debug)]
struct Mint {
    eks: Arc<SimulatedEks>,
    life: TokenLife,
    spool: Spool,
}

impl Mint {
    fn mint(&self, pod: u32, uid: Uuid, role: u32) -> io::Result<Slip> {
        let account = service_account(role);
        let name = format!("{account}-{pod}");
        let token = PodToken::new(NAMESPACE, account, name).pod_uid(uid.to_string()).node_name(NODE_NAME);
        let (token, until) = match self.life {
            TokenLife::Usual => (token, None),
            TokenLife::Short(life) => {
                let token = token.expires_in_seconds(i64::try_from(life.as_secs()).unwrap_or(i64::MAX));
                // Pods whose tokens were made together do not get the next ones together.
                (token, Some(clock::mono() + life.mul_f64(0.6 + 0.2 * fastrand::f64())))
            }
        };
        Ok(Slip { until, ..self.spool.put(&self.eks.mint(token).token)? })
    }
}

/// Where a token lies in the [`Spool`].
#[derive(Clone, Copy, Debug)]
struct Slip {
    at: u64,
    length: u32,
    /// When the kubelet has another one for the pod.
    until: Option<Instant>,
}

impl Slip {
    /// There is none yet.
    fn none() -> Slip {
        Slip { at: 0, length: 0, until: Some(clock::mono()) }
    }
}

/// The tokens of all pods, in a file without a name: those of ten thousand would be 12 MB of memory, and a pod needs its own for a
/// moment at a time.
#[derive(Debug)]
struct Spool {
    file: File,
    end: AtomicU64,
}

impl Spool {
    fn new() -> Result<Spool> {
        let file = tempfile::tempfile().context("a file for the pods' tokens")?;
        Ok(Spool { file, end: AtomicU64::new(0) })
    }

    fn put(&self, text: &str) -> io::Result<Slip> {
        let length = u32::try_from(text.len()).map_err(io::Error::other)?;
        let at = self.end.fetch_add(u64::from(length), Ordering::Relaxed);
        self.file.write_all_at(text.as_bytes(), at)?;
        Ok(Slip { at, length, until: None })
    }

    fn get(&self, slip: Slip) -> Result<String> {
        let mut text = vec![0; slip.length as usize];
        self.file.read_exact_at(&mut text, slip.at).context("the file of the pods' tokens")?;
        Ok(String::from_utf8(text)?)
    }
}

/// Far above what EKS gives out, and what an agent takes.
const LONGEST_TOKEN: u64 = 64 * 1024;

fn read_token(path: &Path) -> Result<String> {
    let mut text = Vec::new();
    File::open(path)?.take(LONGEST_TOKEN + 1).read_to_end(&mut text)?;
    ensure!(text.len() as u64 <= LONGEST_TOKEN, "longer than {LONGEST_TOKEN} bytes: this is no token");
    let text = text.trim_ascii_end();
    // A line break would end the header that the token is sent in.
    ensure!(!text.is_empty() && text.iter().all(u8::is_ascii_graphic), "not one line of a token");
    Ok(String::from_utf8(text.to_vec())?)
}

struct TokenFile {
    path: PathBuf,
    read: Mutex<Option<(Arc<str>, Instant)>>,
}

impl TokenFile {
    /// The kubelet replaces a file when a fifth of its token's life is left, two minutes at the least. SDKs read it at each
    /// retrieval, a few times a day; a harness that did so a thousand times a second would measure that.
    const FRESH: Duration = Duration::from_secs(10);

    fn read(&self) -> Result<Arc<str>> {
        let now = clock::mono();
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((text, at)) = &*read
            && now < *at + TokenFile::FRESH
        {
            return Ok(Arc::clone(text));
        }
        let text: Arc<str> = read_token(&self.path).with_context(|| self.path.display().to_string())?.into();
        *read = Some((Arc::clone(&text), now));
        Ok(text)
    }
}

/// Without the token.
impl std::fmt::Debug for TokenFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenFile").field("path", &self.path).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_pod_gets_its_own_text_out_of_the_spool() {
        let spool = Spool::new().unwrap();
        let texts = ["one", "", "another", "the last of them"];
        let slips: Vec<Slip> = texts.iter().map(|text| spool.put(text).unwrap()).collect();
        let got: Vec<String> = slips.iter().rev().map(|slip| spool.get(*slip).unwrap()).collect();
        assert!(got.iter().eq(texts.iter().rev()), "{got:?}");
    }

    #[test]
    fn what_is_no_token_is_not_sent() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        let read = |text: &[u8]| {
            std::fs::write(&path, text).unwrap();
            read_token(&path)
        };
        assert_eq!(read(b"t.o.k\r\n").unwrap(), "t.o.k");
        for wrong in [&b""[..], b"\n", b"t.o.k\r\nX-Other: header", b"t o k", b"\xff\x00", &[b'a'; 100_000]] {
            assert!(read(wrong).is_err(), "{}", wrong.len());
        }
    }

    #[test]
    fn a_token_file_is_read_again_when_it_is_no_longer_fresh() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        std::fs::write(&path, "first\n").unwrap();
        let file = TokenFile { path: path.clone(), read: Mutex::default() };
        assert_eq!(&*file.read().unwrap(), "first");
        std::fs::write(&path, "second").unwrap();
        assert_eq!(&*file.read().unwrap(), "first");
        if let Some((_, at)) = file.read.lock().unwrap().as_mut() {
            *at -= TokenFile::FRESH;
        }
        assert_eq!(&*file.read().unwrap(), "second");
        assert!(!format!("{file:?}").contains("second"));
    }
}
