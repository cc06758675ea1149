//! The meter: a thread that reads the counters often enough that none runs over unseen.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use crate::{
    Energy, EnergyMethod,
    counters::{Counters, POWERCAP},
    estimate,
    gpu::GpuMeter,
    perf::{PERF, PerfCounters, open_event},
    process::{CpuTime, Machine, PROC},
};

/// Between two readings. The counters that run over soonest last 164 seconds at 400 W.
const BETWEEN: Duration = Duration::from_secs(10);

/// Measures the energy from its start on, until it is dropped.
#[derive(Debug)]
pub struct EnergyMeter {
    shared: Arc<SharedMeter>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct SharedMeter {
    state: Mutex<MeterState>,
    ended: Condvar,
}

#[derive(Debug)]
struct MeterState {
    proc: PathBuf,
    machine: Machine,
    counters: Result<Readings, String>,
    gpus: Option<GpuMeter>,
    started: Instant,
    first: Option<CpuTime>,
    polled: Instant,
    last: Option<CpuTime>,
    polls: u64,
    machine_joules: f64,
    own_joules: f64,
    over: bool,
}

impl EnergyMeter {
    /// Begins to measure.
    pub fn start() -> Self {
        Self::at(Path::new(POWERCAP), Path::new(PERF), Path::new(PROC), GpuMeter::start())
    }

    /// Begins to measure by what these folders and GPUs say.
    fn at(powercap: &Path, perf: &Path, proc: &Path, gpus: Option<GpuMeter>) -> Self {
        let machine = Machine::read(proc);
        let counters = Readings::open(powercap, perf, machine.is_amd());
        let (now, cpu) = (Instant::now(), CpuTime::read(proc));
        let state = MeterState {
            proc: proc.to_path_buf(),
            machine,
            started: now,
            first: cpu,
            polled: now,
            last: cpu,
            polls: 0,
            machine_joules: 0.,
            own_joules: 0.,
            over: false,
            counters,
            gpus,
        };
        let counts = state.counters.is_ok() || state.gpus.is_some();
        let shared = Arc::new(SharedMeter { state: Mutex::new(state), ended: Condvar::new() });
        // Estimates need nothing between start and end.
        let thread = if counts { spawn(&shared) } else { None };
        Self { shared, thread }
    }

    /// What it took so far.
    pub fn energy(&self) -> Energy {
        let mut state = self.shared.lock();
        state.poll();
        state.energy()
    }

    /// Wall time since the start, in seconds.
    pub fn wall_seconds(&self) -> f64 {
        self.shared.lock().started.elapsed().as_secs_f64()
    }
}

/// The counters of this machine, by one of two ways to them.
#[derive(Debug)]
enum Readings {
    Powercap(Counters),
    Perf(PerfCounters),
}

impl Readings {
    /// Those of powercap; where they cannot be read, those of perf.
    ///
    /// # Errors
    /// Why neither can be read.
    fn open(powercap: &Path, perf: &Path, amd: bool) -> Result<Self, String> {
        let why = match Counters::open(powercap, amd) {
            Ok(counters) => return Ok(Self::Powercap(counters)),
            Err(why) => why,
        };
        match PerfCounters::open(perf, &open_event).and_then(PerfCounters::moving) {
            Ok(counters) => Ok(Self::Perf(counters)),
            Err(also) => Err(format!("{why}; {also}")),
        }
    }

    fn method(&self) -> EnergyMethod {
        match self {
            Self::Powercap(_) => EnergyMethod::Powercap,
            Self::Perf(_) => EnergyMethod::Perf,
        }
    }

    fn names(&self) -> Vec<String> {
        match self {
            Self::Powercap(counters) => counters.names(),
            Self::Perf(counters) => counters.names(),
        }
    }

    /// Joules since the last call, of which `seconds` have passed.
    fn poll(&mut self, seconds: f64) -> f64 {
        match self {
            Self::Powercap(counters) => counters.poll(seconds),
            Self::Perf(counters) => counters.poll(),
        }
    }

    /// How often one of them ran over, where that is seen at all.
    fn wraps(&self) -> u64 {
        match self {
            Self::Powercap(counters) => counters.wraps,
            Self::Perf(_) => 0,
        }
    }

    fn missing(&self) -> Option<String> {
        match self {
            Self::Powercap(counters) => counters.missing.clone(),
            Self::Perf(counters) => counters.missing.clone(),
        }
    }
}

impl Drop for EnergyMeter {
    fn drop(&mut self) {
        self.shared.lock().over = true;
        self.shared.ended.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Without a thread, where the system has none to give, the counters are read at the end only.
fn spawn(shared: &Arc<SharedMeter>) -> Option<JoinHandle<()>> {
    let shared = Arc::clone(shared);
    let run = move || {
        let mut state = shared.lock();
        while !state.over {
            state = shared.ended.wait_timeout(state, BETWEEN).unwrap_or_else(PoisonError::into_inner).0;
            if state.polled.elapsed() >= BETWEEN {
                state.poll();
            }
        }
    };
    thread::Builder::new().name("energy".to_owned()).spawn(run).ok()
}

impl SharedMeter {
    fn lock(&self) -> MutexGuard<'_, MeterState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl MeterState {
    fn poll(&mut self) {
        let now = Instant::now();
        let cpu = CpuTime::read(&self.proc);
        if let Ok(counters) = &mut self.counters {
            let joules = counters.poll((now - self.polled).as_secs_f64());
            self.machine_joules += joules;
            let share = match (self.last, cpu) {
                (Some(last), Some(cpu)) if cpu.busy > last.busy => (cpu.own - last.own) / (cpu.busy - last.busy),
                _ => 0.,
            };
            self.own_joules += joules * share.clamp(0., 1.);
            self.polls += 1;
        }
        if let Some(gpus) = &mut self.gpus {
            gpus.poll(std::process::id());
        }
        self.polled = now;
        self.last = cpu.or(self.last);
    }

    /// That of processors and memory, and that of the GPUs this process computes on.
    fn energy(&self) -> Energy {
        let mut energy = self.processor_energy();
        if let Some(gpus) = self.gpus.as_ref().and_then(|gpus| gpus.energy(&self.proc)) {
            energy.add_gpus(gpus);
        }
        energy
    }

    fn processor_energy(&self) -> Energy {
        let wall_seconds = (self.polled - self.started).as_secs_f64();
        let cpu_seconds = match (self.first, self.last) {
            (Some(first), Some(last)) => (last.own - first.own).max(0.),
            _ => 0.,
        };
        let kwh = |joules: f64| Some(joules / 3.6e6);
        let none = Energy { cpu_seconds, polls: self.polls, why_not: None, ..Energy::unmeasured(wall_seconds, "") };
        match &self.counters {
            Ok(counters) => Energy {
                method: counters.method(),
                measured: true,
                machine_kwh: kwh(self.machine_joules),
                attributed_kwh: kwh(self.own_joules),
                domains: counters.names(),
                wraps: counters.wraps(),
                why_not: counters.missing(),
                ..none
            },
            Err(why) if self.first.is_some() => {
                let [low, high] = estimate::range_kwh(&self.machine, cpu_seconds, wall_seconds);
                let watts = estimate::watts(&self.machine);
                let why = format!("{why}; {} to {} W a processor, of {}", watts.idle, watts.full, watts.of);
                Energy {
                    method: EnergyMethod::Estimate,
                    low_kwh: Some(low),
                    high_kwh: Some(high),
                    why_not: Some(why),
                    ..none
                }
            }
            Err(why) => Energy { why_not: Some(format!("{why}; the system tells no processor time")), ..none },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::gpu::tests::TwoGpus;

    /// Folders like the kernel's with one package, whose counter and times are set by `tick`.
    struct Kernel(tempfile::TempDir);

    impl Kernel {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            fs::create_dir_all(dir.path().join("powercap/intel-rapl:0")).unwrap();
            fs::create_dir_all(dir.path().join("proc/self")).unwrap();
            let kernel = Self(dir);
            fs::write(kernel.powercap().join("intel-rapl:0/name"), "package-0\n").unwrap();
            fs::write(kernel.powercap().join("intel-rapl:0/max_energy_range_uj"), "1000000000\n").unwrap();
            kernel.tick(0, 0, 0);
            kernel
        }

        fn powercap(&self) -> PathBuf {
            self.0.path().join("powercap")
        }

        fn proc(&self) -> PathBuf {
            self.0.path().join("proc")
        }

        fn tick(&self, joules: u64, own: u64, busy: u64) {
            fs::write(self.powercap().join("intel-rapl:0/energy_uj"), (joules * 1_000_000).to_string()).unwrap();
            fs::write(self.proc().join("self/stat"), format!("1 (vpt) R 1 2 3 4 5 6 7 8 9 10 {} 0 0 0", own * 100))
                .unwrap();
            fs::write(self.proc().join("stat"), format!("cpu  {} 0 0 99 0 0 0 0 0 0\n", busy * 100)).unwrap();
        }
    }

    #[test]
    fn what_the_machine_takes_is_shared_by_processor_time_at_each_reading() {
        let kernel = Kernel::new();
        let meter = EnergyMeter::at(&kernel.powercap(), &kernel.0.path().join("none"), &kernel.proc(), None);
        // All of it is ours, then half of it, then nothing.
        for (joules, own, busy) in [(36, 10, 10), (108, 20, 30), (500, 20, 60)] {
            kernel.tick(joules, own, busy);
            meter.energy();
        }
        let energy = meter.energy();
        assert_eq!((energy.method, energy.measured, energy.polls), (EnergyMethod::Powercap, true, 4));
        assert!((energy.machine_kwh.unwrap() - 500. / 3.6e6).abs() < 1e-15);
        assert!((energy.attributed_kwh.unwrap() - 72. / 3.6e6).abs() < 1e-15);
        assert!((energy.cpu_seconds - 20.).abs() < 1e-9);
        assert_eq!((energy.domains, energy.why_not), (vec!["package-0".to_owned()], None));
    }

    #[test]
    fn without_counters_there_is_a_range_and_a_reason() {
        let kernel = Kernel::new();
        let none = kernel.0.path().join("none");
        let meter = EnergyMeter::at(&none, &none, &kernel.proc(), None);
        kernel.tick(0, 5, 5);
        let energy = meter.energy();
        assert_eq!((energy.method, energy.measured), (EnergyMethod::Estimate, false));
        assert!(energy.low_kwh.unwrap() <= energy.high_kwh.unwrap());
        let why = energy.why_not.unwrap();
        assert!(why.contains("none/power; 0.5 to 6 W a processor, of an unknown processor"), "{why}");
        let nothing = EnergyMeter::at(&none, &none, &none, None).energy();
        assert_eq!((nothing.method, nothing.range_kwh()), (EnergyMethod::None, None));
    }

    #[test]
    fn gpus_are_added_to_what_the_processors_take() {
        let own = std::process::id();
        let kernel = Kernel::new();
        let none = kernel.0.path().join("none");
        let gpus = TwoGpus::default();
        gpus.set([Some(1_000), Some(0)], [&[own], &[]]);
        let start = |powercap: &Path| {
            let gpus = GpuMeter::of(Box::new(gpus.clone()));
            EnergyMeter::at(powercap, &none, &kernel.proc(), Some(gpus))
        };
        let (measured, estimated) = (start(&kernel.powercap()), start(&none));
        kernel.tick(36, 10, 10);
        gpus.set([Some(73_000), Some(0)], [&[own], &[]]);
        let energy = measured.energy();
        assert!((energy.gpu_kwh.unwrap() - 72. / 3.6e6).abs() < 1e-15);
        assert!((energy.machine_kwh.unwrap() - 108. / 3.6e6).abs() < 1e-15);
        assert!((energy.attributed_kwh.unwrap() - 108. / 3.6e6).abs() < 1e-15);
        assert_eq!(energy.domains, ["package-0", "gpu-0 H"]);
        let energy = estimated.energy();
        assert_eq!((energy.method, energy.measured), (EnergyMethod::Estimate, false));
        assert!(energy.low_kwh.unwrap() >= 72. / 3.6e6 && energy.low_kwh <= energy.high_kwh);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn this_machine_is_measured_or_estimated() {
        let meter = EnergyMeter::start();
        let begun = Instant::now();
        let mut x = 1_u64;
        while begun.elapsed() < Duration::from_millis(200) {
            x = std::hint::black_box(x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
        }
        let energy = meter.energy();
        assert!(energy.wall_seconds >= 0.2 && energy.cpu_seconds > 0.0, "{energy:?}");
        let [low, high] = energy.range_kwh().unwrap();
        assert!(0. <= low && low <= high, "{energy:?}");
    }
}
