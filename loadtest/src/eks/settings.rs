//! What can be turned while the simulation runs.

use std::time::Duration;

use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::reply::ErrorCode;

const LONGEST_LIFE_SECONDS: u64 = 12 * 3600;
const LONGEST_DELAY_MS: u64 = 24 * 3600 * 1000;

/// All fields are flags of `simulated-eks` and, in camelCase, fields of `/control/settings`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Args)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Settings {
    /// How long EKS Auth takes to answer.
    #[arg(long, value_name = "MS", default_value_t = 0)]
    pub latency_ms: u64,
    /// Up to so much more, evenly distributed.
    #[arg(long, value_name = "MS", default_value_t = 0)]
    pub latency_jitter_ms: u64,
    /// Calls per second that EKS Auth takes (one second's worth at once) before it answers ThrottlingException.
    #[arg(long, value_name = "CALLS")]
    pub throttle_per_second: Option<f64>,
    /// The share of EKS Auth calls, 0 to 1, answered by InternalServerException.
    #[arg(long, value_name = "SHARE", default_value_t = 0.0)]
    pub error_rate: f64,
    /// Answer every EKS Auth call by this error.
    #[arg(long, value_name = "CODE", ignore_case = true)]
    pub forced_error: Option<ErrorCode>,
    /// What EKS Auth's outage looks like.
    #[arg(long, value_enum, default_value_t = Outage::Off)]
    pub outage: Outage,
    /// What the OIDC issuer's outage looks like.
    #[arg(long, value_enum, default_value_t = Outage::Off)]
    pub issuer_outage: Outage,
    /// The life of credentials (with a target role at most 59 minutes).
    #[arg(long, value_name = "SECONDS", default_value_t = 6 * 3600)]
    pub credential_life_seconds: u64,
    /// `cache-control: max-age=…` of the issuer's keys; without it there is no such header.
    #[arg(long, value_name = "SECONDS")]
    pub keys_max_age_seconds: Option<u64>,
    /// How long a change of an association takes to reach EKS Auth.
    #[arg(long, value_name = "MS", default_value_t = 0)]
    pub association_delay_ms: u64,
    /// How many associations the cluster may have.
    #[arg(long, value_name = "COUNT", default_value_t = 5000)]
    pub association_limit: usize,
    /// Whether the node role may call eks-auth:AssumeRoleForPodIdentity.
    #[arg(long, value_name = "true|false", default_value_t = true, action = clap::ArgAction::Set)]
    pub node_permission: bool,
}

/// How a service is down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Outage {
    #[default]
    Off,
    /// Every request gets a 503.
    Refuse,
    /// Requests wait until the outage ends, then are answered: a network that drops packets.
    Hang,
    /// Connections are reset as soon as a request has come in.
    Reset,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            latency_ms: 0,
            latency_jitter_ms: 0,
            throttle_per_second: None,
            error_rate: 0.0,
            forced_error: None,
            outage: Outage::Off,
            issuer_outage: Outage::Off,
            credential_life_seconds: 6 * 3600,
            keys_max_age_seconds: None,
            association_delay_ms: 0,
            association_limit: 5000,
            node_permission: true,
        }
    }
}

impl Settings {
    pub fn check(&self) -> Result<(), String> {
        if !(0.0..=1.0).contains(&self.error_rate) {
            return Err(format!("errorRate is {}; it must be from 0 to 1", self.error_rate));
        }
        if self.credential_life_seconds > LONGEST_LIFE_SECONDS {
            return Err(format!(
                "credentialLifeSeconds is {}; IAM's longest session has {LONGEST_LIFE_SECONDS}",
                self.credential_life_seconds,
            ));
        }
        if self.association_delay_ms > LONGEST_DELAY_MS {
            return Err(format!(
                "associationDelayMs is {}; it must be at most {LONGEST_DELAY_MS}, a day",
                self.association_delay_ms,
            ));
        }
        match self.throttle_per_second {
            Some(rate) if !(rate > 0.0 && rate.is_finite()) => {
                Err(format!("throttlePerSecond is {rate}; it must be above 0, or null for no limit"))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// These settings with the fields of `patch` in place of their own.
    pub(super) fn patched(&self, patch: Value) -> Result<Settings, String> {
        let Value::Object(patch) = patch else { return Err("settings are a JSON object".to_owned()) };
        let mut merged = serde_json::to_value(self).map_err(|error| error.to_string())?;
        if let Value::Object(fields) = &mut merged {
            fields.extend(patch);
        }
        let settings: Settings = serde_json::from_value(merged).map_err(|error| error.to_string())?;
        settings.check()?;
        Ok(settings)
    }

    pub(super) fn latency(&self) -> Duration {
        Duration::from_millis(self.latency_ms.saturating_add(fastrand::u64(0..=self.latency_jitter_ms)))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_patch_changes_only_what_it_names() {
        let before = Settings { latency_ms: 7, ..Settings::default() };
        let after = before.patched(json!({ "outage": "hang", "throttlePerSecond": 2.5 })).unwrap();
        let expected = Settings { outage: Outage::Hang, throttle_per_second: Some(2.5), ..before };
        assert_eq!(after, expected);
        assert_eq!(after.patched(json!({ "throttlePerSecond": null })).unwrap().throttle_per_second, None);
    }

    #[test]
    fn a_wrong_field_or_value_is_named() {
        let settings = Settings::default();
        assert!(settings.patched(json!({ "latency": 1 })).unwrap_err().contains("unknown field `latency`"));
        assert!(settings.patched(json!({ "outage": "fire" })).unwrap_err().contains("`off`, `refuse`"));
        assert!(settings.patched(json!({ "errorRate": 1.5 })).unwrap_err().contains("from 0 to 1"));
        assert!(settings.patched(json!({ "throttlePerSecond": 0 })).unwrap_err().contains("above 0"));
        assert!(settings.patched(json!({ "credentialLifeSeconds": 43_201 })).unwrap_err().contains("43200"));
        assert!(settings.patched(json!({ "associationDelayMs": u64::MAX })).unwrap_err().contains("a day"));
        assert!(settings.patched(json!([1])).unwrap_err().contains("object"));
    }

    #[test]
    fn the_flags_defaults_are_the_settings_defaults() {
        use clap::{Command, FromArgMatches};
        let matches = Settings::augment_args(Command::new("sim")).get_matches_from(["sim"]);
        assert_eq!(Settings::from_arg_matches(&matches).unwrap(), Settings::default());
    }
}
