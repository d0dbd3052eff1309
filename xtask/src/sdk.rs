//! The AWS SDKs that are driven, and how their programs in `xtask/sdks` are started.

use std::path::PathBuf;

use clap::ValueEnum;

use crate::build::{Binaries, root, target};
use crate::setup::venv;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Sdk {
    Python,
    Cli,
    Js,
    Go,
    Java,
    Rust,
}

impl Sdk {
    pub(crate) const ALL: [Sdk; 6] = [Sdk::Python, Sdk::Cli, Sdk::Js, Sdk::Go, Sdk::Java, Sdk::Rust];

    /// The name of its folder in `xtask/sdks`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Sdk::Python => "python",
            Sdk::Cli => "cli",
            Sdk::Js => "js",
            Sdk::Go => "go",
            Sdk::Java => "java",
            Sdk::Rust => "rust",
        }
    }

    pub(crate) fn title(self) -> &'static str {
        match self {
            Sdk::Python => "boto3",
            Sdk::Cli => "aws CLI",
            Sdk::Js => "JavaScript v3",
            Sdk::Go => "Go v2",
            Sdk::Java => "Java v2",
            Sdk::Rust => "Rust",
        }
    }

    /// Programs without which it can be neither installed nor run.
    pub(crate) fn runtime(self) -> &'static [&'static str] {
        match self {
            Sdk::Python | Sdk::Cli => &["python3"],
            Sdk::Js => &["node", "npm"],
            Sdk::Go => &["go"],
            Sdk::Java => &["java", "javac", "mvn"],
            Sdk::Rust => &["cargo"],
        }
    }

    pub(crate) fn source(self) -> PathBuf {
        root().join("xtask/sdks").join(self.name())
    }

    pub(crate) fn installed(self) -> PathBuf {
        target().join("sdks").join(self.name())
    }

    /// The program and its arguments.
    pub(crate) fn command(self, binaries: &Binaries) -> (String, Vec<String>) {
        let shown = |path: PathBuf| path.display().to_string();
        let installed = |file: &str| shown(self.installed().join(file));
        match self {
            Sdk::Python | Sdk::Cli => {
                (shown(venv().join("bin/python")), vec![shown(self.source().join("client.py"))])
            }
            Sdk::Js => ("node".to_owned(), vec![installed("client.mjs")]),
            Sdk::Go => (installed("client"), Vec::new()),
            Sdk::Java => {
                let class_path = format!("{}:{}", installed("lib/*"), installed("classes"));
                // What a small pod would be given; dozens of default ones each start a thread per core for the collector.
                let flags = ["-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xmx128m", "-cp"];
                let arguments = flags.into_iter().map(str::to_owned);
                ("java".to_owned(), arguments.chain([class_path, "Client".to_owned()]).collect())
            }
            Sdk::Rust => (shown(binaries.sdk_rust.clone()), Vec::new()),
        }
    }

    /// What its user gets to see of a refusal, measured; podcred's message names the service account.
    pub(crate) fn shows_refusal(self) -> Refusal {
        match self {
            Sdk::Python | Sdk::Cli | Sdk::Go => Refusal::Message,
            Sdk::Js => Refusal::Nothing("Could not load credentials from any providers"),
            Sdk::Java => Refusal::Nothing("The requested metadata is not found"),
            Sdk::Rust => Refusal::Nothing("StatusCode(404)"),
        }
    }

    /// Whether a slow EKS Auth shows to it as a 503: Java hangs up after a second and asks again, which joins the call
    /// under way.
    pub(crate) fn waits_for_503(self) -> bool {
        self != Sdk::Java
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The agent's own words.
    Message,
    /// Words of the SDK, which has dropped the agent's.
    Nothing(&'static str),
}
