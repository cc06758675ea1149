//! Energy without counters: a range from processor time, the kind of processor and memory.
//!
//! Watts a virtual processor draws idle and at full load are Cloud Carbon Footprint's coefficients, from measured servers; of a
//! processor that is not among them only wide bounds are known. Memory draws 0.37 W a gigabyte (Green Algorithms). What a data
//! centre needs beside its machines (PUE) is not in it.

use crate::process::Machine;

/// Watts a gigabyte of memory.
const MEMORY_WATTS: f64 = 0.37;

/// Watts of one virtual processor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Watts {
    pub(crate) idle: f64,
    pub(crate) full: f64,
    /// Whose they are.
    pub(crate) of: &'static str,
}

/// Those of `machine`.
pub(crate) fn watts(machine: &Machine) -> Watts {
    let known = |idle, full, of| Watts { idle, full, of };
    match (machine.vendor.as_str(), machine.family, machine.model) {
        ("GenuineIntel", 6, 85) if machine.stepping <= 4 => known(0.64, 4.19, "Skylake"),
        ("GenuineIntel", 6, 85) if machine.stepping <= 7 => known(0.64, 3.97, "Cascade Lake"),
        ("AuthenticAMD", 23, 49) => known(0.47, 1.69, "EPYC 2"),
        ("AuthenticAMD", 25, 1) => known(0.45, 2.02, "EPYC 3"),
        _ if machine.part == "0xd0c" => known(0.47, 1.69, "Graviton 2"),
        _ => known(0.5, 6., "an unknown processor"),
    }
}

/// The least and the most that `cpu_seconds` of work took in `wall_seconds`, in kWh. The least is what it adds to a machine that
/// runs anyway; the most is the whole machine, its memory included, while the work ran.
pub(crate) fn range_kwh(machine: &Machine, cpu_seconds: f64, wall_seconds: f64) -> [f64; 2] {
    let watts = watts(machine);
    let cpus = machine.cpus.max(1) as f64;
    let busy = cpu_seconds.min(wall_seconds * cpus);
    let kwh = |joules: f64| joules / 3.6e6;
    let unknown = watts.of == "an unknown processor";
    let low = if unknown { watts.idle * busy } else { (watts.full - watts.idle) * busy };
    let idle =
        if unknown { watts.full * (wall_seconds * cpus - busy) } else { watts.idle * (wall_seconds * cpus - busy) };
    let high = watts.full * busy + idle + MEMORY_WATTS * machine.memory_gb * wall_seconds;
    [kwh(low), kwh(high)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(vendor: &str, family: u32, model: u32, stepping: u32) -> Machine {
        let (vendor, part) = (vendor.to_owned(), String::new());
        Machine { vendor, name: String::new(), family, model, stepping, part, cpus: 2, memory_gb: 10. }
    }

    #[test]
    fn a_known_processor_is_told_by_its_coefficients() {
        let skylake = machine("GenuineIntel", 6, 85, 4);
        let [low, high] = range_kwh(&skylake, 3600., 3600.);
        assert!((low - 3.55e-3).abs() < 1e-12, "{low}");
        assert!((high - (4.19e-3 + 0.64e-3 + 3.7e-3)).abs() < 1e-12, "{high}");
        let names = [(6, 85, 7), (6, 207, 2)].map(|(f, m, s)| watts(&machine("GenuineIntel", f, m, s)).of);
        assert_eq!(names, ["Cascade Lake", "an unknown processor"]);
        assert_eq!([(23, 49), (25, 1)].map(|(f, m)| watts(&machine("AuthenticAMD", f, m, 0)).of), ["EPYC 2", "EPYC 3"]);
    }

    #[test]
    fn an_unknown_one_has_wide_bounds_and_the_least_is_never_above_the_most() {
        let unknown = machine("GenuineIntel", 6, 207, 2);
        let [low, high] = range_kwh(&unknown, 3600., 3600.);
        assert!((low - 0.5e-3).abs() < 1e-12 && (high - (12e-3 + 3.7e-3)).abs() < 1e-12, "{low} {high}");
        for cpu in [0., 1., 7200., 1e9] {
            let [low, high] = range_kwh(&unknown, cpu, 3600.);
            assert!(0. <= low && low <= high && high.is_finite());
        }
    }
}
