//! How each AWS SDK asks a container credential endpoint, as it was seen to do.
//!
//! Measured in November 2026 against a recording server: boto3 1.44, JS v3 (credential-provider-http 3.972), Go v2 1.41, Java v2
//! 2.57, Rust aws-config 1.13, and the common runtime (CRT) 0.38 that the SDKs for C++, Swift and others build upon. What is the same in all of them is not here: the request, and the token read anew each time. Left
//! out is what makes no difference to podcred: JS waits as long as Retry-After says, which it never says, and Java's HTTP client
//! sends once more, within an attempt, what a reset cut off.

use std::time::Duration;

use clap::ValueEnum;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(super) enum Client {
    Boto3,
    Js,
    Go,
    Java,
    Rust,
    Crt,
}

#[derive(Debug)]
pub(super) struct Manners {
    pub(super) name: &'static str,
    /// What it sends besides Host and the token.
    pub(super) headers: &'static str,
    /// How it writes the name of the token's header.
    pub(super) authorization: &'static str,
    pub(super) connections: Connections,
    pub(super) connect_timeout: Duration,
    /// How long it waits for the next byte.
    pub(super) read_timeout: Option<Duration>,
    pub(super) attempts: u32,
    backoff: Backoff,
    retried: Retried,
    pub(super) refresh: Refresh,
}

/// What becomes of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Connections {
    /// Kept until the agent closes it.
    Kept,
    /// Closed when the credentials are there.
    ClosedWhenServed,
    /// Kept, but not after a 5xx.
    NewAfterServerError,
}

#[derive(Debug)]
enum Backoff {
    None,
    Fixed(Duration),
    /// At random up to these, in turn; the last one again and again.
    UpTo(&'static [Duration]),
}

/// Statuses that are tried again.
#[derive(Debug)]
struct Retried {
    client_errors: bool,
    too_many: bool,
}

/// When credentials that are still good are asked for anew.
#[derive(Debug)]
pub(super) enum Refresh {
    /// When this much of their life is left.
    Left(Duration),
    /// This long after they were fetched, however long they live.
    After(Duration),
    /// At a random moment from this long after they were fetched until that much is left.
    Between { after: Duration, left: Duration },
}

/// Nothing waits forever here: a run must end.
const AS_GOOD_AS_NEVER: Duration = Duration::from_secs(30);

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

impl Client {
    pub(super) const ALL: [Client; 6] =
        [Client::Boto3, Client::Js, Client::Go, Client::Java, Client::Rust, Client::Crt];

    pub(super) fn manners(self) -> &'static Manners {
        match self {
            Client::Boto3 => &BOTO3,
            Client::Js => &JS,
            Client::Go => &GO,
            Client::Java => &JAVA,
            Client::Rust => &RUST,
            Client::Crt => &CRT,
        }
    }
}

static BOTO3: Manners = Manners {
    name: "boto3",
    headers: "Accept: application/json\r\nUser-Agent: Boto3/1.44.5\r\nAccept-Encoding: identity\r\n",
    authorization: "Authorization",
    connections: Connections::Kept,
    connect_timeout: seconds(2),
    read_timeout: Some(seconds(2)),
    attempts: 3,
    backoff: Backoff::Fixed(seconds(1)),
    retried: Retried { client_errors: true, too_many: true },
    refresh: Refresh::Left(seconds(15 * 60)),
};

static JS: Manners = Manners {
    name: "js",
    headers: "Connection: close\r\n",
    authorization: "Authorization",
    connections: Connections::ClosedWhenServed,
    connect_timeout: seconds(1),
    read_timeout: None,
    attempts: 4,
    backoff: Backoff::Fixed(seconds(1)),
    retried: Retried { client_errors: true, too_many: true },
    refresh: Refresh::Left(seconds(5 * 60)),
};

static GO: Manners = Manners {
    name: "go",
    headers: "User-Agent: aws-sdk-go-v2/1.41.7\r\nAccept: application/json\r\nAccept-Encoding: gzip\r\n",
    authorization: "Authorization",
    connections: Connections::Kept,
    connect_timeout: seconds(30),
    read_timeout: None,
    attempts: 3,
    backoff: Backoff::UpTo(&[seconds(2), seconds(4)]),
    retried: Retried { client_errors: false, too_many: true },
    refresh: Refresh::Left(seconds(5 * 60)),
};

static JAVA: Manners = Manners {
    name: "java",
    headers: "Accept: application/json\r\nUser-Agent: aws-sdk-java/2.57.8\r\nConnection: keep-alive\r\n",
    authorization: "Authorization",
    connections: Connections::Kept,
    connect_timeout: seconds(1),
    read_timeout: Some(seconds(1)),
    attempts: 6,
    backoff: Backoff::None,
    retried: Retried { client_errors: false, too_many: false },
    refresh: Refresh::Between { after: seconds(3600), left: seconds(15 * 60) },
};

static RUST: Manners = Manners {
    name: "rust",
    headers: "accept: application/json\r\nuser-agent: aws-sdk-rust/1.13.0\r\n",
    authorization: "authorization",
    connections: Connections::NewAfterServerError,
    connect_timeout: seconds(2),
    read_timeout: Some(seconds(5)),
    attempts: 3,
    backoff: Backoff::UpTo(&[seconds(1), seconds(2)]),
    retried: Retried { client_errors: false, too_many: false },
    refresh: Refresh::Left(seconds(10)),
};

static CRT: Manners = Manners {
    name: "crt",
    headers: "Accept: application/json\r\nAccept-Encoding: identity\r\nUser-Agent: aws-sdk-crt/ecs-credentials-provider\r\n",
    authorization: "Authorization",
    connections: Connections::Kept,
    connect_timeout: seconds(2),
    read_timeout: None,
    attempts: 4,
    backoff: Backoff::UpTo(&[Duration::from_millis(500), seconds(1), seconds(2)]),
    retried: Retried { client_errors: false, too_many: true },
    refresh: Refresh::After(seconds(15 * 60)),
};

impl Manners {
    pub(super) fn reads_within(&self) -> Duration {
        self.read_timeout.unwrap_or(AS_GOOD_AS_NEVER)
    }

    pub(super) fn tries_again_after(&self, status: u16) -> bool {
        match status {
            429 => self.retried.too_many,
            400..=499 => self.retried.client_errors,
            500..=599 => true,
            _ => false,
        }
    }

    /// The pause after so many attempts; `chance` is from 0 to 1.
    pub(super) fn pause_after(&self, attempts: u32, chance: f64) -> Duration {
        match self.backoff {
            Backoff::None => Duration::ZERO,
            Backoff::Fixed(pause) => pause,
            Backoff::UpTo(longest) => {
                let turn = usize::try_from(attempts.saturating_sub(1)).unwrap_or(usize::MAX);
                let longest = longest.get(turn).or(longest.last()).copied().unwrap_or_default();
                longest.mul_f64(chance)
            }
        }
    }

    pub(super) fn keeps_connection(&self, status: u16) -> bool {
        match self.connections {
            Connections::Kept => true,
            Connections::ClosedWhenServed => !(200..300).contains(&status),
            Connections::NewAfterServerError => status < 500,
        }
    }

    /// How long after the fetch of credentials with this life they are asked for anew, in a world whose time is compressed
    /// by so much.
    pub(super) fn refreshes_after(&self, life: Duration, compression: f64, chance: f64) -> Duration {
        let compressed = |time: Duration| time.div_f64(compression);
        match self.refresh {
            Refresh::Left(left) => life.saturating_sub(compressed(left)),
            Refresh::After(after) => compressed(after).min(life),
            Refresh::Between { after, left } => {
                let latest = life.saturating_sub(compressed(left));
                let earliest = compressed(after).min(latest);
                earliest + (latest - earliest).mul_f64(chance)
            }
        }
    }
}

#[cfg(test)]
mod tests;
