//! What Prometheus is told: what is counted here, and what is counted elsewhere as it is now.

use crate::attribute::probe::ProbeError;
use crate::attribute::{Attribution, Counted};
use crate::authenticate::keys::Keys;
use crate::causes::chain;
use crate::config::Switch;
use crate::metrics::{Kernel, PodSample, Snapshot};
use crate::request::Service;

pub(super) fn scrape(service: &Service, keys: &Keys) -> String {
    let now = service.clock.now();
    let limits = service.pods.limits();
    let (counted, kernel) = counted_in_the_kernel(&service.attribution);
    let snapshot = Snapshot {
        census: service.credentials.census(now),
        tokens_verified: service.authenticator.tokens_verified(),
        jwks_keys: keys.count(),
        jwks_age: keys.age_at(now),
        jwks_fetches: keys.fetches(),
        kernel,
        pods: (limits.metrics == Switch::On)
            .then(|| (PodSample::all(&service.pods.all(), counted.pods), limits.metrics_max)),
    };
    service.metrics.render(&snapshot).unwrap_or_else(|error| {
        tracing::error!(event = "metrics_failed", %error, "cannot write the metrics");
        String::new()
    })
}

fn counted_in_the_kernel(attribution: &Attribution) -> (Counted, Option<Kernel>) {
    let Some(probed) = attribution.probed() else { return (Counted::default(), None) };
    let read = || {
        let counted = probed.counters.read(&probed.probe, &probed.cgroups)?;
        let kernel = Kernel { node: counted.node, lost: probed.probe.lost()? };
        Ok::<_, ProbeError>((counted, Some(kernel)))
    };
    read().unwrap_or_else(|error| {
        let error = chain(&error);
        tracing::error!(event = "metrics_failed", %error, "cannot read the kernel's counters");
        (Counted::default(), None)
    })
}
