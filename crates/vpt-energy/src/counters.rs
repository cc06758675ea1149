//! Counters of the processor as Linux's powercap shows them: `intel-rapl:N` under `/sys/class/powercap`, on AMD's processors
//! too. What is summed are packages and, beside them, memory; `core` and `uncore` are parts of a package, and `psys` is the
//! whole platform, which counts only where there are no packages.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// Where the kernel shows them.
pub(crate) const POWERCAP: &str = "/sys/class/powercap";

/// More than a domain can draw, in watts: a counter that went back and would have drawn this much began anew, and did not
/// run over.
const MOST_WATTS: f64 = 2_000.;

/// One counter.
#[derive(Debug)]
struct Counter {
    name: String,
    file: PathBuf,
    /// Where it begins again from zero, in microjoules.
    range: u64,
    /// What it said last.
    last: u64,
}

/// The counters that are summed.
#[derive(Debug)]
pub(crate) struct Counters {
    summed: Vec<Counter>,
    /// How often one of them ran over.
    pub(crate) wraps: u64,
    /// What may be missing.
    pub(crate) missing: Option<String>,
}

/// A folder of powercap.
struct Zone {
    name: String,
    path: PathBuf,
}

impl Counters {
    /// Those below `root`; `amd`: the processor is AMD's, whose dies each show the counter of their package.
    ///
    /// # Errors
    /// Why none can be read.
    pub(crate) fn open(root: &Path, amd: bool) -> Result<Self, String> {
        let zones = zones(root)?;
        let mut chosen: Vec<&Zone> = Vec::new();
        for zone in &zones {
            let Some(package) = zone.name.strip_prefix("package-") else { continue };
            let number = package.split("-die-").next().unwrap_or(package);
            let of_same = |other: &&Zone| {
                other.name.strip_prefix("package-").and_then(|n| n.split("-die-").next()) == Some(number)
            };
            if !(amd && chosen.iter().any(of_same)) {
                chosen.push(zone);
            }
        }
        if chosen.is_empty() {
            chosen.extend(zones.iter().filter(|zone| zone.name == "psys"));
        } else {
            chosen.extend(zones.iter().filter(|zone| zone.name == "dram"));
        }
        if chosen.is_empty() {
            return Err(format!("{} names no package", root.display()));
        }
        let summed = chosen.into_iter().map(Counter::open).collect::<Result<_, _>>()?;
        Ok(Self { summed, wraps: 0, missing: None })
    }

    /// Names of what is summed.
    pub(crate) fn names(&self) -> Vec<String> {
        self.summed.iter().map(|counter| counter.name.clone()).collect()
    }

    /// Joules since the last call, of which `seconds` have passed.
    pub(crate) fn poll(&mut self, seconds: f64) -> f64 {
        let mut joules = 0.;
        for counter in &mut self.summed {
            let Ok(now) = read(&counter.file) else {
                self.missing = Some(format!("{} could not be read any more", counter.file.display()));
                continue;
            };
            let micro = if now >= counter.last {
                now - counter.last
            } else {
                let around = now.saturating_add(counter.range.saturating_sub(counter.last));
                if around as f64 * 1e-6 <= MOST_WATTS * seconds.max(1.) {
                    self.wraps += 1;
                    around
                } else {
                    self.missing = Some(format!("{} began anew; what it held before is lost", counter.name));
                    now
                }
            };
            counter.last = now;
            joules += micro as f64 * 1e-6;
        }
        joules
    }
}

impl Counter {
    fn open(zone: &Zone) -> Result<Self, String> {
        let file = zone.path.join("energy_uj");
        let last = read(&file).map_err(|error| match error.kind() {
            io::ErrorKind::PermissionDenied => format!(
                "{}: permission denied; since Linux 5.10 root alone reads it (`chmod a+r` until the next start, or a line in \
                 /etc/sysfs.conf)",
                file.display()
            ),
            _ => format!("{}: {error}", file.display()),
        })?;
        let range = read(&zone.path.join("max_energy_range_uj")).unwrap_or(u64::from(u32::MAX));
        Ok(Self { name: zone.name.clone(), file, range, last })
    }
}

/// All zones below `root`, packages before what is in them; memory is told with the package that it belongs to, by the path.
fn zones(root: &Path) -> Result<Vec<Zone>, String> {
    let listed = fs::read_dir(root).map_err(|_| format!("no {}, as in most virtual machines", root.display()))?;
    let mut paths: Vec<PathBuf> = listed.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    // `intel-rapl-mmio:0` shows a package for the second time.
    let is_zone =
        |path: &PathBuf| path.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.starts_with("intel-rapl:"));
    paths.retain(is_zone);
    let mut hidden = false;
    let (mut zones, mut seen) = (Vec::new(), Vec::new());
    for path in paths {
        let Ok(name) = fs::read_to_string(path.join("name")) else {
            hidden |= fs::symlink_metadata(&path).is_ok();
            continue;
        };
        // A zone of a package stands in its folder and, as a link, beside it.
        let real = fs::canonicalize(&path).unwrap_or_else(|_| path.clone());
        if !seen.contains(&real) {
            seen.push(real);
            zones.push(Zone { name: name.trim().to_owned(), path });
        }
    }
    match (zones.is_empty(), hidden) {
        (true, true) => Err(format!("what {} shows is hidden, as in a container", root.display())),
        (true, false) => Err(format!("no counters in {}, as in most virtual machines", root.display())),
        _ => Ok(zones),
    }
}

fn read(file: &Path) -> io::Result<u64> {
    fs::read_to_string(file)?.trim().parse().map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder of counters: each a path, its name, what it holds and where it runs over.
    fn folder(counters: &[(&str, &str, u64, u64)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for &(path, name, value, range) in counters {
            let zone = dir.path().join(path);
            fs::create_dir_all(&zone).unwrap();
            fs::write(zone.join("name"), format!("{name}\n")).unwrap();
            fs::write(zone.join("energy_uj"), format!("{value}\n")).unwrap();
            fs::write(zone.join("max_energy_range_uj"), format!("{range}\n")).unwrap();
        }
        dir
    }

    fn set(dir: &tempfile::TempDir, path: &str, value: u64) {
        fs::write(dir.path().join(path).join("energy_uj"), format!("{value}\n")).unwrap();
    }

    const RANGE: u64 = 262_143_328_850;

    #[test]
    fn two_sockets_and_their_memory_are_summed_and_parts_of_a_package_are_not() {
        let dir = folder(&[
            ("intel-rapl:0", "package-0", 1_000, RANGE),
            ("intel-rapl:0:0", "core", 5, RANGE),
            ("intel-rapl:0:1", "dram", 70, RANGE),
            ("intel-rapl:1", "package-1", 2_000, RANGE),
            ("intel-rapl:1:0", "dram", 80, RANGE),
            ("intel-rapl:2", "psys", 9, RANGE),
            ("intel-rapl-mmio:0", "package-0", 1_000, RANGE),
        ]);
        let mut counters = Counters::open(dir.path(), false).unwrap();
        assert_eq!(counters.names(), ["package-0", "package-1", "dram", "dram"]);
        for (path, more) in [
            ("intel-rapl:0", 3_000_000),
            ("intel-rapl:0:0", 777_000_000),
            ("intel-rapl:0:1", 500_000),
            ("intel-rapl:1", 2_000_000),
            ("intel-rapl:1:0", 250_000),
            ("intel-rapl:2", 900_000_000),
            ("intel-rapl-mmio:0", 900_000_000),
        ] {
            let now = read(&dir.path().join(path).join("energy_uj")).unwrap();
            set(&dir, path, now + more);
        }
        let joules = counters.poll(1.);
        assert!((joules - 5.75).abs() < 1e-9, "{joules}");
        assert!(counters.poll(1.).abs() < 1e-12, "nothing more");
        assert_eq!((counters.wraps, &counters.missing), (0, &None));
    }

    #[test]
    fn dies_are_summed_but_for_those_of_amd_which_show_their_package() {
        let dies = [("intel-rapl:0", "package-0-die-0", 0, RANGE), ("intel-rapl:1", "package-0-die-1", 0, RANGE)];
        let dir = folder(&dies);
        for (amd, sum) in [(false, 3.), (true, 1.)] {
            for (path, ..) in dies {
                set(&dir, path, 0);
            }
            let mut counters = Counters::open(dir.path(), amd).unwrap();
            set(&dir, "intel-rapl:0", 1_000_000);
            set(&dir, "intel-rapl:1", 2_000_000);
            assert!((counters.poll(1.) - sum).abs() < 1e-9, "{amd}");
        }
        let only = folder(&[("intel-rapl:0", "psys", 0, RANGE)]);
        assert_eq!(Counters::open(only.path(), false).unwrap().names(), ["psys"]);
    }

    #[test]
    fn a_counter_that_runs_over_goes_on_and_one_that_begins_anew_is_said() {
        let dir = folder(&[("intel-rapl:0", "package-0", RANGE - 4_000_000, RANGE)]);
        let mut counters = Counters::open(dir.path(), false).unwrap();
        set(&dir, "intel-rapl:0", 6_000_000);
        assert!((counters.poll(10.) - 10.).abs() < 1e-9);
        assert_eq!((counters.wraps, &counters.missing), (1, &None));
        // By running over it would have drawn 26 kilowatts.
        set(&dir, "intel-rapl:0", 2_000_000);
        assert!((counters.poll(10.) - 2.).abs() < 1e-9);
        assert_eq!(
            (counters.wraps, counters.missing.as_deref()),
            (1, Some("package-0 began anew; what it held before is lost"))
        );
        fs::remove_file(dir.path().join("intel-rapl:0/energy_uj")).unwrap();
        assert!(counters.poll(10.).abs() < 1e-12);
        assert!(counters.missing.unwrap().contains("could not be read any more"));
    }

    #[test]
    fn why_nothing_can_be_read_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let why = |root: &Path| Counters::open(root, false).unwrap_err();
        assert!(why(&dir.path().join("none")).ends_with("as in most virtual machines"));
        assert!(why(dir.path()).contains("no counters in"));
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink(dir.path().join("masked"), dir.path().join("intel-rapl:0")).unwrap();
            assert!(why(dir.path()).ends_with("is hidden, as in a container"));
        }
        let odd = folder(&[("intel-rapl:0", "package-0", 0, RANGE)]);
        fs::write(odd.path().join("intel-rapl:0/energy_uj"), "a lot").unwrap();
        assert!(why(odd.path()).contains("energy_uj: invalid digit"));
    }
}
