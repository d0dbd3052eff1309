//! What has to be seen to beside the requests: pods that have ended, kernel programs that somebody detached, addresses that
//! somebody took away, memory that is free.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::attribute::probe::Upkeep;
use crate::config::{Imds, ImdsConfig};
use crate::listeners::Ports;
use crate::memory;
use crate::node_pods::NodePods;
use crate::request::Service;

/// Connections are unattributed from when somebody detaches a program until this is noticed; a pod that may reach IMDS
/// must not wait long for it, and its container that was started anew is a new cgroup.
const OFTEN: Duration = Duration::from_secs(1);
const SWEEP_EVERY: Duration = Duration::from_secs(10);

/// Until `cancel`led. What asks the kernel hundreds of times does so on a thread of its own.
pub async fn run(
    service: Arc<Service>,
    ports: Arc<Ports>,
    imds: ImdsConfig,
    pods: Arc<NodePods>,
    cancel: CancellationToken,
) {
    let often = every(OFTEN, || {
        let (service, imds, pods) = (Arc::clone(&service), imds.clone(), Arc::clone(&pods));
        move || {
            maintain(&service);
            if imds.mode == Imds::RefusePods
                && let Some(probed) = service.attribution.probed()
            {
                probed.except_from_imds(&imds.except, &pods);
            }
        }
    });
    let sweeps = every(SWEEP_EVERY, || {
        let (service, ports) = (Arc::clone(&service), Arc::clone(&ports));
        move || {
            ports.look_after_addresses(&service.metrics);
            sweep(&service);
            memory::give_back();
        }
    });
    let messages = async {
        if let Err(error) = service.attribution.forward_log().await {
            tracing::warn!(event = "probe_log_failed", %error, "cannot read the kernel programs' messages");
        }
    };
    cancel.run_until_cancelled(async { tokio::join!(often, sweeps, messages) }).await;
}

async fn every<W: FnOnce() + Send + 'static>(period: Duration, work: impl Fn() -> W) {
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if let Err(error) = tokio::task::spawn_blocking(work()).await {
            tracing::error!(event = "upkeep_failed", %error, "a sweep ended early; the next one goes on");
        }
    }
}

fn sweep(service: &Service) {
    service.attribution.follow_pods();
    let pods = service.pods.all();
    let live = match service.attribution.live_pods() {
        Ok(live) => live,
        Err(error) => {
            tracing::debug!(event = "cgroups_unreadable", %error, "cannot list the pods' cgroups");
            return;
        }
    };
    let ended = service.pods.forget_ended(&pods, &live);
    let Some(probed) = service.attribution.probed() else { return };
    service.authenticator.pods_ended(&ended, &live, service.clock.now());
    service.credentials.pods_ended(&ended);
    probed.cgroups.forget_dead();
    let swept = probed.counters.sweep(&probed.probe, &probed.cgroups, &live);
    if let Err(error) = swept.and_then(|()| probed.forget_namespaces()) {
        service.logged.probe_failed(&error, service.clock.now());
    }
}

fn maintain(service: &Service) {
    let Some(probe) = service.attribution.probe() else { return };
    for found in probe.maintain() {
        match found {
            Upkeep::Reattached { program, cgroup } => {
                service.metrics.link_mended();
                tracing::warn!(
                    event = "probe_reattached",
                    program,
                    cgroup = %cgroup.display(),
                    "a kernel program was detached by something else, or its cgroup was recreated. It is attached again; \
                     connections made in between are unattributed"
                );
            }
            Upkeep::Failed { error } => service.logged.probe_failed(&error, service.clock.now()),
            Upkeep::Expired { connections } => {
                tracing::debug!(
                    event = "pending_expired",
                    connections,
                    "handshakes that never reached the agent"
                );
            }
        }
    }
}
