//! What a process has cost, by /proc.

use std::fs;

/// USER_HZ: what /proc counts processor time in, on every architecture that Linux has an EKS node for.
const TICKS_PER_SECOND: f64 = 100.0;

/// Processor time since it started, in seconds.
pub(super) fn cpu_seconds(pid: &str) -> Option<f64> {
    of_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn of_stat(stat: &str) -> Option<f64> {
    // The name, in parentheses, may hold anything.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_ascii_whitespace().collect();
    let (user, system): (f64, f64) = (fields.get(11)?.parse().ok()?, fields.get(12)?.parse().ok()?);
    Some((user + system) / TICKS_PER_SECOND)
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Memory {
    pub(super) resident: u64,
    pub(super) peak: u64,
}

pub(super) fn memory(pid: &str) -> Option<Memory> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    Some(Memory { resident: field(&status, "VmRSS:")?, peak: field(&status, "VmHWM:")? })
}

fn field(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_read_whatever_its_name() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 100 0 0 0 150 50 0 0 20 0 1 0 5 6 7";
        assert_eq!(of_stat(stat), Some(2.0));
        assert_eq!(of_stat("nonsense"), None);
    }

    #[test]
    fn this_process_has_memory() {
        let memory = memory("self").unwrap();
        assert!(memory.resident > 0 && memory.peak >= memory.resident);
        assert!(cpu_seconds("self").is_some());
    }
}
