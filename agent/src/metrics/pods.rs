//! The families that tell pods apart: live pods only, and no more of them than the cap.
//!
//! They are made anew for each scrape, so a pod that has ended is in none of them.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use agent_ebpf::{Counters, LATENCY_BOUNDS};
use prometheus::proto::{Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType};

use crate::claims::Claims;
use crate::locks::lock;
use crate::pods::Pod;

/// One pod at the time of a scrape.
#[derive(Clone, Debug, Default)]
pub struct PodSample {
    pub uid: Arc<str>,
    /// None until a token of this pod was verified.
    pub claims: Option<Arc<Claims>>,
    pub connections: usize,
    pub served: u64,
    pub refused: u64,
    /// None where no kernel program counts.
    pub kernel: Option<Counters>,
}

impl PodSample {
    /// Those that have asked this agent, and those that only the kernel has seen.
    pub fn all(pods: &[Arc<Pod>], mut kernel: HashMap<Arc<str>, Counters>) -> Vec<PodSample> {
        let mut samples: Vec<PodSample> = pods
            .iter()
            .map(|pod| PodSample {
                uid: Arc::clone(pod.uid()),
                claims: pod.claims().cloned(),
                connections: lock(&pod.connections).len(),
                served: pod.served.load(Ordering::Relaxed),
                refused: pod.refused.load(Ordering::Relaxed),
                kernel: kernel.remove(pod.uid()),
            })
            .collect();
        samples.extend(kernel.into_iter().map(|(uid, counters)| PodSample {
            uid,
            kernel: Some(counters),
            ..PodSample::default()
        }));
        samples
    }
}

/// The samples that have room under the cap, and how many had none. The same pods stay in from scrape to scrape: those
/// that have asked for credentials come first.
pub(super) fn within(mut samples: Vec<PodSample>, most: usize) -> (Vec<PodSample>, usize) {
    samples.sort_by(|a, b| (a.claims.is_none(), &a.uid).cmp(&(b.claims.is_none(), &b.uid)));
    let left_out = samples.len().saturating_sub(most);
    samples.truncate(most);
    (samples, left_out)
}

/// What a family takes of a pod: none, one or several samples with labels of their own.
type Of<'a> = &'a dyn Fn(&PodSample, &mut Metrics);

struct Metrics {
    pod: Vec<LabelPair>,
    all: Vec<Metric>,
}

impl Metrics {
    fn push(&mut self, labels: &[(&str, &str)], set: impl FnOnce(&mut Metric)) {
        let more = labels.iter().map(|(name, value)| label(name, value));
        let mut metric = Metric::from_label(self.pod.iter().cloned().chain(more).collect());
        set(&mut metric);
        self.all.push(metric);
    }

    fn count<const N: usize>(&mut self, results: [(&str, u64); N]) {
        for (result, number) in results {
            let mut counter = Counter::default();
            #[expect(clippy::cast_precision_loss, reason = "Prometheus has no other numbers")]
            counter.set_value(number as f64);
            self.push(&[("result", result)], |metric| metric.set_counter(counter));
        }
    }
}

pub(super) fn families(samples: &[PodSample]) -> Vec<MetricFamily> {
    let kernel = |take: fn(&Counters, &mut Metrics)| {
        move |pod: &PodSample, to: &mut Metrics| {
            if let Some(counters) = &pod.kernel {
                take(counters, to);
            }
        }
    };
    let families: [(&str, &str, MetricType, Of<'_>); 5] = [
        ("podcred_pod_connections", "Open connections of a pod.", MetricType::GAUGE, &|pod, to| {
            let mut gauge = Gauge::default();
            #[expect(clippy::cast_precision_loss, reason = "Prometheus has no other numbers")]
            gauge.set_value(pod.connections as f64);
            to.push(&[], |metric| metric.set_gauge(gauge));
        }),
        (
            "podcred_pod_requests_total",
            "Requests of a pod by result: ok or refused.",
            MetricType::COUNTER,
            &|pod, to| to.count([("ok", pod.served), ("refused", pod.refused)]),
        ),
        (
            "podcred_pod_connects_total",
            "A pod's connects to the agent by how they ended, also while no agent was there (--pin): established, refused, \
             timed_out, or unattributed (established, but beyond what may be pending of one pod).",
            MetricType::COUNTER,
            &kernel(|counters, to| to.count(connects(counters))),
        ),
        (
            "podcred_pod_connect_duration_seconds",
            "Time from a pod's connect() to the agent until it is established.",
            MetricType::HISTOGRAM,
            &kernel(|counters, to| {
                let histogram = latency(counters);
                to.push(&[], |metric| metric.set_histogram(histogram));
            }),
        ),
        (
            "podcred_pod_imds_connects_total",
            "A pod's connects to IMDS, where the node's own role is: attempted, established, or refused by --imds refuse-pods.",
            MetricType::COUNTER,
            &kernel(|counters, to| to.count(imds_connects(counters))),
        ),
    ];
    let mut made = Vec::new();
    for (name, help, kind, of) in families {
        let mut metrics = Metrics { pod: Vec::new(), all: Vec::new() };
        for sample in samples {
            metrics.pod = labels(sample);
            of(sample, &mut metrics);
        }
        // A family without samples is an error to those who read the text.
        if metrics.all.is_empty() {
            continue;
        }
        let mut family = MetricFamily::default();
        family.set_name(name.to_owned());
        family.set_help(help.to_owned());
        family.set_field_type(kind);
        family.set_metric(metrics.all);
        made.push(family);
    }
    made
}

/// How connects to the agent ended, by the label `result`.
pub(super) fn connects(counters: &Counters) -> [(&'static str, u64); 4] {
    [
        ("established", counters.established),
        ("refused", counters.refused),
        ("timed_out", counters.timed_out),
        ("unattributed", counters.over_share),
    ]
}

/// What became of connects to IMDS, by the label `result`.
pub(super) fn imds_connects(counters: &Counters) -> [(&'static str, u64); 3] {
    [
        ("attempted", counters.imds_connects),
        ("established", counters.imds_established),
        ("refused", counters.imds_refused),
    ]
}

#[expect(clippy::cast_precision_loss, reason = "Prometheus has no other numbers")]
fn latency(counters: &Counters) -> Histogram {
    let mut histogram = Histogram::default();
    let mut count = 0;
    let mut buckets = Vec::with_capacity(LATENCY_BOUNDS.len());
    for (bound, number) in LATENCY_BOUNDS.iter().zip(counters.latency) {
        count += number;
        let mut bucket = Bucket::default();
        bucket.set_upper_bound(*bound as f64 / 1e9);
        bucket.set_cumulative_count(count);
        buckets.push(bucket);
    }
    histogram.set_bucket(buckets);
    histogram.set_sample_count(counters.latency.iter().sum());
    histogram.set_sample_sum(counters.latency_sum as f64 / 1e9);
    histogram
}

/// A pod is its UID; its names come with its first verified token.
fn labels(sample: &PodSample) -> Vec<LabelPair> {
    let claims = sample.claims.as_deref();
    vec![
        label("namespace", claims.map_or("", Claims::namespace)),
        label("pod", claims.map_or("", Claims::pod_name)),
        label("pod_uid", &sample.uid),
    ]
}

fn label(name: &str, value: &str) -> LabelPair {
    let mut label = LabelPair::default();
    label.set_name(name.to_owned());
    label.set_value(value.to_owned());
    label
}
