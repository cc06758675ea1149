//! The same counters by `perf_event_open`: the device `power` under `/sys/bus/event_source/devices`, with an event for packages
//! (`energy-pkg`), memory (`energy-ram`), parts of a package and the whole platform (`energy-psys`), which is counted for one processor
//! of each package (`cpumask`). The kernel sees to it that none runs over. It needs `CAP_PERFMON`, or `kernel.perf_event_paranoid` of 0 or
//! less, where powercap needs root.

use std::{fmt, fs, io, path::Path, thread, time::Duration};

/// Where the kernel describes them.
pub(crate) const PERF: &str = "/sys/bus/event_source/devices";
/// The device.
const DEVICE: &str = "power";

/// How often, and after which time, counters are looked at to see whether they move; the kernel's do every few milliseconds.
const LOOKS: usize = 5;
const LOOK: Duration = Duration::from_millis(3);

/// A counter that is open.
pub(crate) trait Count: Send {
    /// What it has counted since it was opened.
    ///
    /// # Errors
    /// The system's word.
    fn count(&mut self) -> io::Result<u64>;
}

/// Opens an event of the device on a processor.
pub(crate) type OpenEvent<'a> = &'a dyn Fn(&str, usize) -> io::Result<Box<dyn Count>>;

/// One counter.
struct PerfCounter {
    name: String,
    count: Box<dyn Count>,
    /// Joules of one.
    scale: f64,
    last: u64,
}

/// The counters that are summed.
pub(crate) struct PerfCounters {
    summed: Vec<PerfCounter>,
    /// What may be missing.
    pub(crate) missing: Option<String>,
}

impl fmt::Debug for PerfCounters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PerfCounters").field("names", &self.names()).finish_non_exhaustive()
    }
}

impl PerfCounters {
    /// Those that `devices` describes, each opened by `open`.
    ///
    /// # Errors
    /// Why none can be read.
    pub(crate) fn open(devices: &Path, open: OpenEvent<'_>) -> Result<Self, String> {
        let device = devices.join(DEVICE);
        if !device.is_dir() {
            return Err(format!("no {}", device.display()));
        }
        let is_event = |name: &&str| device.join("events").join(name).is_file();
        let packages: Vec<&str> = ["energy-pkg", "energy-ram"].into_iter().filter(is_event).collect();
        let names = if packages.contains(&"energy-pkg") {
            packages
        } else {
            ["energy-psys"].into_iter().filter(is_event).collect()
        };
        if names.is_empty() {
            return Err(format!("{} has no events", device.display()));
        }
        let processors = processors(&fs::read_to_string(device.join("cpumask")).unwrap_or_default());
        let mut summed = Vec::new();
        for name in names {
            let scale = fs::read_to_string(device.join("events").join(format!("{name}.scale"))).ok();
            let scale =
                scale.and_then(|text| text.trim().parse::<f64>().ok()).filter(|scale| *scale > 0. && *scale < 1.);
            let Some(scale) = scale else { return Err(format!("{name} of {} has no scale", device.display())) };
            for &processor in &processors {
                let mut count = open(name, processor).map_err(|error| match error.kind() {
                    io::ErrorKind::PermissionDenied => format!(
                        "{name} of {}: permission denied; it takes CAP_PERFMON or kernel.perf_event_paranoid of 0",
                        device.display()
                    ),
                    _ => format!("{name} of {}: {error}", device.display()),
                })?;
                let last = count.count().map_err(|error| format!("{name} of {}: {error}", device.display()))?;
                let name = format!("{name} of processor {processor}");
                summed.push(PerfCounter { name, count, scale, last });
            }
        }
        Ok(Self { summed, missing: None })
    }

    /// The same, if all of them move: virtual machines may show events that count nothing.
    ///
    /// # Errors
    /// One stands still.
    pub(crate) fn moving(mut self) -> Result<Self, String> {
        let mut moved = vec![false; self.summed.len()];
        for _ in 0..LOOKS {
            thread::sleep(LOOK);
            for (moved, counter) in moved.iter_mut().zip(&mut self.summed) {
                *moved |= counter.count.count().is_ok_and(|now| now != counter.last);
            }
            if moved.iter().all(|&moved| moved) {
                return Ok(self);
            }
        }
        let still = self.summed.iter().zip(moved).find(|(_, moved)| !moved).map(|(counter, _)| counter.name.clone());
        Err(format!("{} stands still, as in virtual machines", still.unwrap_or_default()))
    }

    /// Names of what is summed.
    pub(crate) fn names(&self) -> Vec<String> {
        self.summed.iter().map(|counter| counter.name.clone()).collect()
    }

    /// Joules since the last call.
    pub(crate) fn poll(&mut self) -> f64 {
        let mut joules = 0.;
        for counter in &mut self.summed {
            let Ok(now) = counter.count.count() else {
                self.missing = Some(format!("{} could not be read any more", counter.name));
                continue;
            };
            joules += now.saturating_sub(counter.last) as f64 * counter.scale;
            counter.last = now;
        }
        joules
    }
}

/// The processors of a mask like `0,18-19`; the first where it says nothing.
fn processors(mask: &str) -> Vec<usize> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.trim().parse::<usize>().ok()?..=last.trim().parse::<usize>().ok()?.min(1 << 16))
    };
    let all: Vec<usize> = mask.trim().split(',').filter_map(range).flatten().collect();
    if all.is_empty() { vec![0] } else { all }
}

#[cfg(target_os = "linux")]
impl Count for perf_event::Counter {
    fn count(&mut self) -> io::Result<u64> {
        self.read()
    }
}

/// Opens an event of this machine's device.
#[cfg(target_os = "linux")]
pub(crate) fn open_event(name: &str, processor: usize) -> io::Result<Box<dyn Count>> {
    use perf_event::{Builder, events::Dynamic};

    let event = Dynamic::builder(DEVICE)?.event(name)?.build().map_err(|error| io::Error::other(error.to_string()))?;
    let mut builder = Builder::new(event);
    // The whole package, whoever uses it: the device refuses to leave anything out.
    builder.any_pid().one_cpu(processor).exclude_kernel(false).exclude_hv(false);
    let mut counter = builder.build()?;
    counter.enable()?;
    Ok(Box::new(counter))
}

/// There is none elsewhere.
#[cfg(not(target_os = "linux"))]
pub(crate) fn open_event(_: &str, _: usize) -> io::Result<Box<dyn Count>> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    };

    use super::*;

    /// A counter that moves by itself.
    struct Moving(u64);

    impl Count for Moving {
        fn count(&mut self) -> io::Result<u64> {
            self.0 += 1;
            Ok(self.0)
        }
    }

    #[test]
    fn counters_that_stand_still_are_none() {
        let dir = devices(&["energy-psys"], "0");
        let moving = |_: &str, _: usize| Ok(Box::new(Moving(0)) as Box<dyn Count>);
        assert!(PerfCounters::open(dir.path(), &moving).unwrap().moving().is_ok());
        let still = |_: &str, _: usize| Ok(Box::new(Given(Arc::default())) as Box<dyn Count>);
        let why = PerfCounters::open(dir.path(), &still).unwrap().moving().unwrap_err();
        assert_eq!(why, "energy-psys of processor 0 stands still, as in virtual machines");
    }

    /// A counter that holds what a test puts there.
    struct Given(Arc<AtomicU64>);

    impl Count for Given {
        fn count(&mut self) -> io::Result<u64> {
            match self.0.load(Ordering::SeqCst) {
                u64::MAX => Err(io::ErrorKind::NotFound.into()),
                count => Ok(count),
            }
        }
    }

    fn devices(events: &[&str], mask: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("power/events");
        fs::create_dir_all(&folder).unwrap();
        for event in events {
            fs::write(folder.join(event), "event=0x02\n").unwrap();
            fs::write(folder.join(format!("{event}.scale")), "2.3283064365386962890625e-10\n").unwrap();
        }
        fs::write(dir.path().join("power/cpumask"), mask).unwrap();
        dir
    }

    #[test]
    fn packages_and_memory_of_every_socket_are_summed() {
        let dir = devices(&["energy-pkg", "energy-ram", "energy-cores", "energy-psys"], "0,18\n");
        let value = Arc::new(AtomicU64::new(7));
        let opened = std::sync::Mutex::new(Vec::new());
        let open = |name: &str, processor: usize| {
            opened.lock().unwrap().push((name.to_owned(), processor));
            Ok(Box::new(Given(value.clone())) as Box<dyn Count>)
        };
        let mut counters = PerfCounters::open(dir.path(), &open).unwrap();
        let names: Vec<(String, usize)> =
            [("energy-pkg", 0), ("energy-pkg", 18), ("energy-ram", 0), ("energy-ram", 18)]
                .map(|(n, p)| (n.to_owned(), p))
                .to_vec();
        assert_eq!(*opened.lock().unwrap(), names);
        // Two to the 32nd is a joule.
        value.store(7 + (3 << 32), Ordering::SeqCst);
        assert!((counters.poll() - 12.).abs() < 1e-9);
        assert!(counters.poll().abs() < 1e-12);
        value.store(u64::MAX, Ordering::SeqCst);
        assert!(counters.poll().abs() < 1e-12);
        assert!(counters.missing.unwrap().contains("could not be read any more"));
    }

    #[test]
    fn why_there_are_none_is_said() {
        let open = |_: &str, _: usize| Err(io::Error::from(io::ErrorKind::PermissionDenied));
        let why = |dir: &Path| PerfCounters::open(dir, &open).unwrap_err();
        let dir = devices(&["energy-pkg"], "");
        assert!(why(dir.path()).contains("CAP_PERFMON"), "{}", why(dir.path()));
        assert!(why(devices(&["energy-cores"], "0").path()).ends_with("has no events"));
        assert!(why(&dir.path().join("gone")).starts_with("no "));
        fs::write(dir.path().join("power/events/energy-pkg.scale"), "x").unwrap();
        assert!(why(dir.path()).contains("has no scale"));
    }

    #[test]
    fn masks_are_lists_of_ranges() {
        assert_eq!(processors("0\n"), [0]);
        assert_eq!(processors("0,18-19\n"), [0, 18, 19]);
        assert_eq!(processors("nonsense"), [0]);
    }
}
