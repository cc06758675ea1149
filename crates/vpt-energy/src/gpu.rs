//! Energy of NVIDIA's GPUs, as their management library counts it since the driver was loaded (Volta and later), for those that this
//! process computes on.
//!
//! The library (NVML) is the driver's and is looked for when a meter starts, with the feature `nvml`; without either there are no GPUs. Which of
//! them are this process's it says by process numbers. In a container these are others than the process itself knows; if it has CUDA loaded
//! then, all GPUs are counted, which is said.

use std::{fmt, fs, path::Path};

/// What the names of their counters begin with; their numbers follow.
pub(crate) const GPU: &str = "gpu-";

/// The GPUs of a machine.
pub(crate) trait Gpus: Send {
    /// Their names, in NVML's order.
    fn names(&self) -> Vec<String>;

    /// Millijoules of one of them since the driver was loaded; none where it does not count them.
    fn millijoules(&self, gpu: usize) -> Option<u64>;

    /// Numbers of the processes that compute on one of them.
    fn processes(&self, gpu: usize) -> Vec<u32>;
}

/// One GPU.
#[derive(Debug)]
struct Gpu {
    name: String,
    /// None where it does not count.
    last: Option<u64>,
    joules: f64,
    ours: bool,
}

/// What the GPUs of a machine took since a meter began.
pub(crate) struct GpuMeter {
    gpus: Box<dyn Gpus>,
    each: Vec<Gpu>,
    /// How often a counter began anew.
    wraps: u64,
}

impl fmt::Debug for GpuMeter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GpuMeter").field("each", &self.each).finish_non_exhaustive()
    }
}

/// What those of one process took.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct GpuEnergy {
    pub(crate) joules: f64,
    /// Names of the counters.
    pub(crate) domains: Vec<String>,
    pub(crate) wraps: u64,
    /// What may be missing, or counted too much.
    pub(crate) but: Option<String>,
}

impl GpuMeter {
    /// Those of this machine; none without its driver.
    pub(crate) fn start() -> Option<Self> {
        library::open().map(Self::of)
    }

    /// Those of `gpus`.
    pub(crate) fn of(gpus: Box<dyn Gpus>) -> Self {
        let one = |(at, name): (usize, String)| Gpu {
            name: format!("{GPU}{at} {name}"),
            last: gpus.millijoules(at),
            joules: 0.,
            ours: false,
        };
        let each = gpus.names().into_iter().enumerate().map(one).collect();
        Self { gpus, each, wraps: 0 }
    }

    /// Reads all counters, and which GPUs the process `own` computes on.
    pub(crate) fn poll(&mut self, own: u32) {
        for (at, gpu) in self.each.iter_mut().enumerate() {
            gpu.ours |= self.gpus.processes(at).contains(&own);
            if let (Some(last), Some(now)) = (gpu.last, self.gpus.millijoules(at)) {
                // The driver was loaded anew: what it counted before is lost.
                self.wraps += u64::from(now < last);
                gpu.joules += (if now < last { now } else { now - last }) as f64 / 1e3;
                gpu.last = Some(now);
            }
        }
    }

    /// What those took that the process of `proc`'s folder `self` computes on; none if it uses none.
    pub(crate) fn energy(&self, proc: &Path) -> Option<GpuEnergy> {
        let known = self.each.iter().any(|gpu| gpu.ours);
        if !known && !has_cuda(proc) {
            return None;
        }
        let ours: Vec<&Gpu> = self.each.iter().filter(|gpu| gpu.ours || !known).collect();
        let mut but = Vec::new();
        if !known {
            but.push("which GPU is this process's is not told, as in containers: all are counted".to_owned());
        }
        but.extend(ours.iter().filter(|gpu| gpu.last.is_none()).map(|gpu| format!("{} counts no energy", gpu.name)));
        Some(GpuEnergy {
            joules: ours.iter().map(|gpu| gpu.joules).sum(),
            domains: ours.iter().filter(|gpu| gpu.last.is_some()).map(|gpu| gpu.name.clone()).collect(),
            wraps: self.wraps,
            but: (!but.is_empty()).then(|| but.join("; ")),
        })
    }
}

/// Whether the process has CUDA's library loaded.
fn has_cuda(proc: &Path) -> bool {
    fs::read_to_string(proc.join("self/maps")).is_ok_and(|maps| maps.contains("/libcuda.so"))
}

#[cfg(not(feature = "nvml"))]
mod library {
    pub(super) fn open() -> Option<Box<dyn super::Gpus>> {
        None
    }
}

#[cfg(feature = "nvml")]
mod library {
    use nvml_wrapper::{Device, Nvml};

    use super::Gpus;

    struct Library(Nvml);

    pub(super) fn open() -> Option<Box<dyn Gpus>> {
        Nvml::init().ok().map(|nvml| Box::new(Library(nvml)) as Box<dyn Gpus>)
    }

    impl Library {
        fn gpu(&self, gpu: usize) -> Option<Device<'_>> {
            self.0.device_by_index(u32::try_from(gpu).ok()?).ok()
        }
    }

    impl Gpus for Library {
        fn names(&self) -> Vec<String> {
            let name = |at: u32| self.0.device_by_index(at).and_then(|device| device.name()).unwrap_or_default();
            (0..self.0.device_count().unwrap_or(0)).map(name).collect()
        }

        fn millijoules(&self, gpu: usize) -> Option<u64> {
            self.gpu(gpu)?.total_energy_consumption().ok()
        }

        fn processes(&self, gpu: usize) -> Vec<u32> {
            let processes = self.gpu(gpu).and_then(|device| device.running_compute_processes().ok());
            processes.unwrap_or_default().iter().map(|process| process.pid).collect()
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// Millijoules, if they are counted, and processes.
    type Read = (Option<u64>, Vec<u32>);

    /// Two GPUs whose counters and processes are set by hand; the second may count nothing.
    #[derive(Clone, Default)]
    pub(crate) struct TwoGpus(Arc<Mutex<[Read; 2]>>);

    impl Gpus for TwoGpus {
        fn names(&self) -> Vec<String> {
            vec!["H".to_owned(), "P".to_owned()]
        }

        fn millijoules(&self, gpu: usize) -> Option<u64> {
            self.0.lock().unwrap()[gpu].0
        }

        fn processes(&self, gpu: usize) -> Vec<u32> {
            self.0.lock().unwrap()[gpu].1.clone()
        }
    }

    impl TwoGpus {
        pub(crate) fn set(&self, millijoules: [Option<u64>; 2], processes: [&[u32]; 2]) {
            let [first, second] = processes.map(<[u32]>::to_vec);
            *self.0.lock().unwrap() = [(millijoules[0], first), (millijoules[1], second)];
        }
    }

    #[test]
    fn only_gpus_that_this_process_computes_on_are_counted_from_the_start_on() {
        let gpus = TwoGpus::default();
        gpus.set([Some(5_000), Some(70_000)], [&[1], &[]]);
        let mut meter = GpuMeter::of(Box::new(gpus.clone()));
        gpus.set([Some(6_500), Some(71_000)], [&[1, 7], &[2]]);
        meter.poll(7);
        // The process has left it, and the driver is loaded anew.
        gpus.set([Some(250), Some(0)], [&[], &[]]);
        meter.poll(7);
        let none = Path::new("/no/such/folder");
        let expected = GpuEnergy { joules: 1.75, domains: vec!["gpu-0 H".to_owned()], wraps: 2, but: None };
        assert_eq!(meter.energy(none), Some(expected));
        meter.each.iter_mut().for_each(|gpu| gpu.ours = false);
        assert_eq!(meter.energy(none), None, "no GPU is used");
    }

    #[test]
    fn in_a_container_all_are_counted_and_one_that_cannot_count_is_named() {
        let proc = tempfile::tempdir().unwrap();
        fs::create_dir_all(proc.path().join("self")).unwrap();
        fs::write(proc.path().join("self/maps"), "7f00-7f10 r-xp 0 00:00 1  /usr/lib/libcuda.so.580.1\n").unwrap();
        let gpus = TwoGpus::default();
        gpus.set([Some(0), None], [&[4711], &[]]);
        let mut meter = GpuMeter::of(Box::new(gpus.clone()));
        gpus.set([Some(3_000), None], [&[4711], &[]]);
        meter.poll(7);
        let energy = meter.energy(proc.path()).unwrap();
        assert_eq!((energy.joules, energy.domains), (3., vec!["gpu-0 H".to_owned()]));
        let but = energy.but.unwrap();
        assert!(but.contains("all are counted") && but.ends_with("gpu-1 P counts no energy"), "{but}");
    }

    /// The machine of the tests has a driver or none; with one, its counters can be read.
    #[test]
    fn this_machine_has_gpus_or_none() {
        if let Some(meter) = GpuMeter::start() {
            assert!(meter.each.iter().all(|gpu| gpu.name.starts_with(GPU)), "{meter:?}");
        }
    }
}
