//! What each flag's value may be, and the errors that say so.

use std::ffi::OsStr;
use std::fmt::Display;
use std::marker::PhantomData;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::ValueEnum;
use clap::builder::{PossibleValue, TypedValueParser};
use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{Arg, Command, Error};

use super::duration;

use crate::authenticate::keys::check_url;

/// A flag's value by a function whose error continues the sentence `--flag: "value" …`.
///
/// clap's own errors do not tell a flag from its environment variable, and a DaemonSet's author who set one of them
/// has to know which.
#[derive(Clone, Copy, Debug)]
pub(super) struct Checked<F>(pub(super) F);

impl<F, T> TypedValueParser for Checked<F>
where
    F: Fn(&str) -> Result<T, String> + Clone + Send + Sync + 'static,
    T: Clone + Send + Sync + 'static,
{
    type Value = T;

    fn parse_ref(&self, cmd: &Command, arg: Option<&Arg>, value: &OsStr) -> Result<T, Error> {
        self.parse_ref_(cmd, arg, value, ValueSource::CommandLine)
    }

    fn parse_ref_(
        &self,
        cmd: &Command,
        arg: Option<&Arg>,
        value: &OsStr,
        source: ValueSource,
    ) -> Result<T, Error> {
        let text = value.to_str().ok_or_else(|| "is not UTF-8".to_owned());
        text.and_then(&self.0).map_err(|problem| error(cmd, arg, value, source, &problem))
    }
}

/// A flag's value out of a fixed list, in any case.
#[derive(Clone, Debug)]
pub(super) struct Choice<E>(PhantomData<fn() -> E>);

impl<E> Default for Choice<E> {
    fn default() -> Self {
        Choice(PhantomData)
    }
}

impl<E: ValueEnum + Clone + Send + Sync + 'static> TypedValueParser for Choice<E> {
    type Value = E;

    fn parse_ref(&self, cmd: &Command, arg: Option<&Arg>, value: &OsStr) -> Result<E, Error> {
        self.parse_ref_(cmd, arg, value, ValueSource::CommandLine)
    }

    fn parse_ref_(
        &self,
        cmd: &Command,
        arg: Option<&Arg>,
        value: &OsStr,
        source: ValueSource,
    ) -> Result<E, Error> {
        value.to_str().and_then(|text| E::from_str(text, true).ok()).ok_or_else(|| {
            let allowed: Vec<_> = names::<E>().map(|n| n.get_name().to_owned()).collect();
            error(cmd, arg, value, source, &format!("is not one of {}", allowed.join(", ")))
        })
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new(names::<E>()))
    }
}

fn names<E: ValueEnum + 'static>() -> impl Iterator<Item = PossibleValue> {
    E::value_variants().iter().filter_map(E::to_possible_value)
}

fn error(cmd: &Command, arg: Option<&Arg>, value: &OsStr, source: ValueSource, problem: &str) -> Error {
    let positional = || arg.and_then(Arg::get_value_names).map_or("argument", |names| names[0].as_str());
    let flag = match arg.and_then(Arg::get_long) {
        Some(long) => format!("--{long}"),
        None => positional().to_owned(),
    };
    let origin = match arg.and_then(Arg::get_env) {
        Some(name) if source == ValueSource::EnvVariable => {
            format!(" (from the environment variable {})", name.to_string_lossy())
        }
        _ => String::new(),
    };
    let message = format!("{flag}{origin}: {:?} {problem}\n", without_userinfo(&value.to_string_lossy()));
    Error::raw(ErrorKind::ValueValidation, message).with_cmd(cmd)
}

/// A password in a URL is refused, and the refusal must not write it to the log.
fn without_userinfo(text: &str) -> String {
    match (text.split_once("://"), text.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, rest))) => format!("{scheme}://…@{rest}"),
        _ => text.to_owned(),
    }
}

/// The pattern that EKS itself holds cluster names to.
pub(super) fn cluster_name(text: &str) -> Result<String, String> {
    let valid = (1..=100).contains(&text.len())
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_');
    if valid {
        return Ok(text.to_owned());
    }
    Err("is not an EKS cluster name: 1 to 100 letters, digits, '-' and '_', the first a letter or digit"
        .to_owned())
}

/// Node names, instance ids and zones: what EKS Auth is told about this node.
pub(super) fn identifier(text: &str) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | ':');
    if (1..=253).contains(&text.len()) && text.chars().all(allowed) {
        return Ok(text.to_owned());
    }
    Err("is not a name: 1 to 253 letters, digits, '-', '_', '.' and ':'".to_owned())
}

/// What Kubernetes takes as the key of a taint: a name, with or without a domain before it.
pub(super) fn taint_key(text: &str) -> Result<String, String> {
    let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let part = |part: &str, longest: usize| {
        (1..=longest).contains(&part.len())
            && part.chars().all(inner)
            && part.starts_with(|c: char| c.is_ascii_alphanumeric())
            && part.ends_with(|c: char| c.is_ascii_alphanumeric())
    };
    let valid = match text.split_once('/') {
        Some((domain, name)) => part(domain, 253) && part(name, 63),
        None => part(text, 63),
    };
    if valid {
        return Ok(text.to_owned());
    }
    Err("is not the key of a taint: give the key alone, such as podcred/agent-not-ready, without value and effect"
        .to_owned())
}

pub(super) fn port(text: &str) -> Result<u16, String> {
    // The kubelet gives every pod PODCRED_METRICS_PORT=tcp://… where its namespace has a Service named podcred-metrics.
    if text.starts_with("tcp://") {
        return Err("is set by Kubernetes for a Service of that name: set enableServiceLinks: false in the agent's pod \
                    spec, or rename the Service"
            .to_owned());
    }
    text.parse().map_err(|_| "is not a port: 1 to 65535, or 0 for any free port".to_owned())
}

/// Go's net package wants IPv6 hosts in brackets, so the official agent's flags carry them.
pub(super) fn ip_address(text: &str) -> Result<IpAddr, String> {
    let bare = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')).unwrap_or(text);
    bare.parse().map_err(|_| {
        "is not an IP address: give IPv4 (169.254.170.23) or IPv6 (fd00:ec2::23, [fd00:ec2::23]), not a host name"
            .to_owned()
    })
}

/// What Go's `strconv.ParseBool` takes, in any case.
pub(super) fn boolean(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "t" | "1" => Ok(true),
        "false" | "f" | "0" => Ok(false),
        _ => Err("is not true or false".to_owned()),
    }
}

pub(super) fn number<T>(range: RangeInclusive<T>) -> Checked<impl Fn(&str) -> Result<T, String> + Clone>
where
    T: FromStr + PartialOrd + Display + Clone,
{
    Checked(move |text: &str| match text.parse() {
        Ok(n) if range.contains(&n) => Ok(n),
        _ => Err(format!("is not a whole number from {} to {}", range.start(), range.end())),
    })
}

/// A duration of at least `least` and at most `most`; `why` tells what the bounds are good for.
pub(super) fn bounded(
    least: Duration,
    most: Duration,
    why: &'static str,
) -> Checked<impl Fn(&str) -> Result<Duration, String> + Clone> {
    Checked(move |text: &str| {
        let value = duration::parse(text)?;
        if value < least {
            return Err(format!("is shorter than {least:?}: {why}"));
        }
        if value > most {
            return Err(format!("is longer than {most:?}: {why}"));
        }
        Ok(value)
    })
}

pub(super) fn any_duration(text: &str) -> Result<Duration, String> {
    duration::parse(text)
}

/// Kept as the text that was given: the issuer must equal the token's `iss` to the byte, and a `Url` would add a slash.
pub(super) fn trusted_url(text: &str) -> Result<String, String> {
    check_url(text).map(|_| text.to_owned())
}

pub(super) fn issuer(text: &str) -> Result<String, String> {
    if text.contains('?') {
        return Err("has a query, which an issuer cannot have".to_owned());
    }
    trusted_url(text)
}

pub(super) fn file(text: &str) -> Result<PathBuf, String> {
    if text.is_empty() {
        return Err("is empty: give the path of a file".to_owned());
    }
    Ok(PathBuf::from(text))
}

pub(super) fn socket_path(text: &str) -> Result<PathBuf, String> {
    // sockaddr_un holds 108 bytes with the final zero.
    if !text.starts_with('/') || text.len() > 107 || text.ends_with('/') {
        return Err("is not a path for a unix socket: give an absolute path of at most 107 bytes".to_owned());
    }
    Ok(PathBuf::from(text))
}
