//! What the kernel programs counted, by pod.
//!
//! The kernel counts by groups of cgroups, which come and go with containers. A pod's numbers must not fall when one of its
//! containers is started anew, and the node's must not when a pod ends.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};

use agent_ebpf::Counters;

use super::cgroup::Cgroups;
use super::probe::{Probe, ProbeError};
use crate::locks::lock;

#[derive(Debug, Default)]
pub struct PerPod {
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    /// Whose group it is, remembered beyond the cgroup's end.
    owners: HashMap<u64, Arc<str>>,
    /// From groups that are gone, of pods that are not (as of the last sweep).
    of_ended_groups: HashMap<Arc<str>, Counters>,
    /// From all groups that are gone.
    of_all_ended: Counters,
}

/// One reading.
#[derive(Debug, Default)]
pub struct Counted {
    pub pods: HashMap<Arc<str>, Counters>,
    pub node: Counters,
}

impl PerPod {
    /// Reads the kernel's counters as they are now.
    pub fn read(&self, probe: &Probe, cgroups: &Cgroups) -> Result<Counted, ProbeError> {
        // Held while the kernel is read: what a sweep takes out of the kernel meanwhile would count twice.
        let mut known = lock(&self.known);
        Ok(known.sum(&probe.counters()?, |group| owner(cgroups, group)))
    }

    /// Gives the kernel back the room of the groups whose cgroups are gone, and keeps what they had counted for the pods
    /// that are `live` still.
    pub fn sweep(
        &self,
        probe: &Probe,
        cgroups: &Cgroups,
        live: &HashSet<Arc<str>>,
    ) -> Result<(), ProbeError> {
        let mut known = lock(&self.known);
        let groups = probe.counters()?;
        // Remembers the owners of new groups while they can be had.
        let _ = known.sum(&groups, |group| owner(cgroups, group));
        for (group, counters) in groups {
            if !cgroups.is_alive(group) {
                probe.forget_group(group)?;
                known.ended(group, &counters);
            }
        }
        known.of_ended_groups.retain(|pod, _| live.contains(pod));
        Ok(())
    }
}

fn owner(cgroups: &Cgroups, group: u64) -> Option<Arc<str>> {
    cgroups.pod_of(group).ok().map(|pod| pod.pod_uid)
}

impl Known {
    fn sum(&mut self, groups: &HashMap<u64, Counters>, owner: impl Fn(u64) -> Option<Arc<str>>) -> Counted {
        let mut counted = Counted { pods: self.of_ended_groups.clone(), node: self.of_all_ended };
        for (group, counters) in groups {
            add(&mut counted.node, counters);
            let owner = match self.owners.get(group) {
                Some(owner) => Some(Arc::clone(owner)),
                None => owner(*group),
            };
            let Some(owner) = owner else { continue };
            self.owners.insert(*group, Arc::clone(&owner));
            add(counted.pods.entry(owner).or_default(), counters);
        }
        counted
    }

    fn ended(&mut self, group: u64, counters: &Counters) {
        add(&mut self.of_all_ended, counters);
        if let Some(owner) = self.owners.remove(&group) {
            add(self.of_ended_groups.entry(owner).or_default(), counters);
        }
    }
}

fn add(to: &mut Counters, more: &Counters) {
    to.connects += more.connects;
    to.established += more.established;
    to.refused += more.refused;
    to.timed_out += more.timed_out;
    to.over_share += more.over_share;
    to.imds_connects += more.imds_connects;
    to.imds_established += more.imds_established;
    to.imds_refused += more.imds_refused;
    to.latency_sum += more.latency_sum;
    for (to, more) in to.latency.iter_mut().zip(&more.latency) {
        *to += more;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(number: u64) -> Counters {
        Counters { refused: number, ..Counters::default() }
    }

    #[test]
    fn a_pods_numbers_survive_its_containers_and_the_nodes_survive_its_pods() {
        let owner = |group: u64| Some(Arc::from(if group < 10 { "a" } else { "b" }));
        let mut known = Known::default();
        let seen = known.sum(&[(1, refused(5)), (2, refused(7)), (10, refused(100))].into(), owner);
        assert_eq!((seen.pods["a"].refused, seen.pods["b"].refused, seen.node.refused), (12, 100, 112));

        known.ended(1, &refused(6));
        let seen = known.sum(&[(2, refused(7)), (10, refused(100))].into(), |_| None);
        assert_eq!((seen.pods["a"].refused, seen.node.refused), (13, 113), "its owner is remembered");

        // Its last container has ended, and the next one has not connected yet.
        known.ended(2, &refused(7));
        let seen = known.sum(&[(10, refused(100))].into(), owner);
        assert_eq!((seen.pods["a"].refused, seen.node.refused), (13, 113));
    }

    #[test]
    fn a_group_that_came_and_went_between_two_looks_is_the_nodes_alone() {
        let mut known = Known::default();
        known.ended(1, &refused(3));
        let seen = known.sum(&HashMap::new(), |_| None);
        assert_eq!((seen.pods.len(), seen.node.refused), (0, 3));
    }
}
