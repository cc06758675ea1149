//! Processor time, by `/proc`: of this process, and of all that the machine did.

use std::{fs, path::Path};

/// Where the kernel tells it.
pub(crate) const PROC: &str = "/proc";

/// What `/proc` counts in a second, on every Linux that programs see.
const TICKS: f64 = 100.;

/// Processor time so far, in seconds.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct CpuTime {
    /// Of this process, all its threads, and the processes that it has waited for.
    pub(crate) own: f64,
    /// Of the machine, all processors together, but for idling.
    pub(crate) busy: f64,
}

impl CpuTime {
    /// As `proc` tells it now.
    pub(crate) fn read(proc: &Path) -> Option<Self> {
        let own = fs::read_to_string(proc.join("self/stat")).ok()?;
        // The name in parentheses may hold anything. After it: state, and eleven more before the times.
        let own: f64 = own.rsplit_once(')')?.1.split_whitespace().skip(11).take(4).filter_map(number).sum();
        let all = fs::read_to_string(proc.join("stat")).ok()?;
        let fields: Vec<f64> =
            all.lines().next()?.strip_prefix("cpu ")?.split_whitespace().filter_map(number).collect();
        // user nice system idle iowait irq softirq; what guests use is in user.
        let busy = fields.get(..7)?.iter().sum::<f64>() - fields[3] - fields[4];
        Some(Self { own: own / TICKS, busy: busy / TICKS })
    }
}

fn number(field: &str) -> Option<f64> {
    field.parse().ok()
}

/// What the machine is, as far as estimates depend on it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Machine {
    pub(crate) vendor: String,
    /// What its maker calls it.
    pub(crate) name: String,
    pub(crate) family: u32,
    pub(crate) model: u32,
    pub(crate) stepping: u32,
    /// Arm: the part number of the core.
    pub(crate) part: String,
    pub(crate) cpus: usize,
    pub(crate) memory_gb: f64,
}

impl Machine {
    /// As `proc` tells it; what it does not tell is empty or zero.
    pub(crate) fn read(proc: &Path) -> Self {
        let cpuinfo = fs::read_to_string(proc.join("cpuinfo")).unwrap_or_default();
        let field = |name: &str| {
            let value = cpuinfo.lines().find_map(|line| line.strip_prefix(name)?.trim_start().strip_prefix(':'));
            value.map(str::trim).unwrap_or_default().to_owned()
        };
        let meminfo = fs::read_to_string(proc.join("meminfo")).unwrap_or_default();
        let memory = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix("kB"));
        Self {
            vendor: field("vendor_id"),
            name: field("model name"),
            family: field("cpu family").parse().unwrap_or(0),
            model: field("model").parse().unwrap_or(0),
            stepping: field("stepping").parse().unwrap_or(0),
            part: field("CPU part"),
            cpus: cpuinfo.lines().filter(|line| line.starts_with("processor")).count(),
            memory_gb: memory.and_then(|kb| kb.trim().parse::<f64>().ok()).unwrap_or(0.) / f64::from(1 << 20),
        }
    }

    /// Whether AMD makes the processor.
    pub(crate) fn is_amd(&self) -> bool {
        self.vendor == "AuthenticAMD"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_the_process_and_of_the_machine_are_read() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("self")).unwrap();
        let stat = "4321 (a (odd) name) R 1 2 3 4 5 6 7 8 9 10 1000 200 30 4 20 0 3 0 5 6";
        fs::write(dir.path().join("self/stat"), stat).unwrap();
        fs::write(dir.path().join("stat"), "cpu  5000 100 900 70000 300 20 80 0 40 0\ncpu0 1 2 3\n").unwrap();
        assert_eq!(CpuTime::read(dir.path()), Some(CpuTime { own: 12.34, busy: 61. }));
        fs::write(dir.path().join("stat"), "cpu  5000\n").unwrap();
        assert_eq!(CpuTime::read(dir.path()), None);
    }

    #[test]
    fn the_machine_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let cpuinfo = "processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel\t\t: 1\nmodel name\t: AMD EPYC 7763\nstepping\t: 1\n\nprocessor\t: 1\n";
        fs::write(dir.path().join("cpuinfo"), cpuinfo).unwrap();
        fs::write(dir.path().join("meminfo"), "MemTotal:       16777216 kB\nMemFree: 1 kB\n").unwrap();
        let machine = Machine::read(dir.path());
        assert!(machine.is_amd());
        assert_eq!((machine.family, machine.model, machine.stepping, machine.cpus), (25, 1, 1, 2));
        assert!((machine.memory_gb - 16.).abs() < 1e-9);
    }
}
