//! Energy: what a stretch of work took, and what that means in CO2.
//!
//! Where the kernel shows the processor's counters (powercap, or performance events), they are read every few seconds; elsewhere, as in most virtual
//! machines, the answer is a range, marked as an estimate. Nothing here ever fails a run: what could not be read is said in
//! [`Energy::why_not`].

mod carbon;
mod codecarbon;
mod counters;
mod estimate;
mod gpu;
mod meter;
mod perf;
mod process;

pub use carbon::{Carbon, Co2};
pub use codecarbon::{COLUMNS, row};
pub use meter::EnergyMeter;

use gpu::GpuEnergy;
use serde::{Deserialize, Serialize};
use vpt_base::choice::choice;

/// What a stretch of work took. Several stretches of one run add up ([`Energy::add`]).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Energy {
    /// How it was told. Where only some stretches were measured it is an estimate as a whole.
    pub method: EnergyMethod,
    /// Whether counters cover all of it.
    pub measured: bool,
    /// What packages and memory of the whole machine took meanwhile, in kWh.
    pub machine_kwh: Option<f64>,
    /// The share of that which goes with this process's share of the busy processor time, in kWh.
    pub attributed_kwh: Option<f64>,
    /// Estimates: what the work added, at the least, in kWh.
    pub low_kwh: Option<f64>,
    /// Estimates: the whole machine while it ran, at the most, in kWh.
    pub high_kwh: Option<f64>,
    /// Of all these, what GPUs took that the process computes on, in kWh; measured, where it is there at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu_kwh: Option<f64>,
    /// Processor time of this process and of those it has waited for, in seconds.
    pub cpu_seconds: f64,
    /// Wall time in seconds.
    pub wall_seconds: f64,
    /// The counters that were read, by their names.
    pub domains: Vec<String>,
    /// How often.
    pub polls: u64,
    /// How often one of them had begun anew.
    pub wraps: u64,
    /// Why it is an estimate, or what may be missing.
    pub why_not: Option<String>,
}

choice! {
    /// How energy was told.
    pub enum EnergyMethod for "energy" {
        /// From counters of the processor, by the kernel's powercap.
        Powercap = "powercap",
        /// From the same counters by the kernel's performance events.
        Perf = "perf",
        /// From processor time and memory, as a range.
        Estimate = "estimate",
        /// Not at all: the system tells no processor time.
        None = "none",
    }
}

impl Energy {
    /// A stretch of `wall_seconds` of which nothing else is known.
    pub fn unmeasured(wall_seconds: f64, why: &str) -> Self {
        Self {
            method: EnergyMethod::None,
            measured: false,
            machine_kwh: None,
            attributed_kwh: None,
            low_kwh: None,
            high_kwh: None,
            gpu_kwh: None,
            cpu_seconds: 0.,
            wall_seconds,
            domains: Vec::new(),
            polls: 0,
            wraps: 0,
            why_not: Some(why.to_owned()),
        }
    }

    /// Adds what a later stretch took.
    pub fn add(&mut self, later: &Self) {
        let sum = |a: &mut Option<f64>, b: Option<f64>| {
            if let Some(b) = b {
                *a = Some(a.unwrap_or(0.) + b);
            }
        };
        sum(&mut self.machine_kwh, later.machine_kwh);
        sum(&mut self.attributed_kwh, later.attributed_kwh);
        sum(&mut self.low_kwh, later.low_kwh);
        sum(&mut self.high_kwh, later.high_kwh);
        sum(&mut self.gpu_kwh, later.gpu_kwh);
        if self.measured != later.measured {
            let seconds = if self.measured { later.wall_seconds } else { self.wall_seconds };
            self.also(&format!("{seconds:.0} seconds were not measured"));
        }
        if self.method != later.method {
            self.method = EnergyMethod::Estimate;
        }
        self.measured &= later.measured;
        if let Some(why) = &later.why_not {
            self.also(why);
        }
        self.cpu_seconds += later.cpu_seconds;
        self.wall_seconds += later.wall_seconds;
        self.polls += later.polls;
        self.wraps += later.wraps;
        for domain in &later.domains {
            if !self.domains.contains(domain) {
                self.domains.push(domain.clone());
            }
        }
    }

    /// Adds what GPUs took meanwhile to each of its numbers.
    fn add_gpus(&mut self, gpus: GpuEnergy) {
        let kwh = gpus.joules / 3.6e6;
        for number in [&mut self.machine_kwh, &mut self.attributed_kwh, &mut self.low_kwh, &mut self.high_kwh] {
            *number = number.map(|number| number + kwh);
        }
        self.gpu_kwh = Some(kwh);
        self.domains.extend(gpus.domains);
        self.wraps += gpus.wraps;
        if let Some(but) = gpus.but {
            self.also(&but);
        }
    }

    /// Adds what another process took at the same time, on this machine or on another: all adds up but the wall time. Counters are those of
    /// a whole machine, so the machine's of processes that share one are there several times, which [`Self::why_not`] says.
    pub fn add_beside(&mut self, other: &Self) {
        let wall_seconds = self.wall_seconds.max(other.wall_seconds);
        self.add(other);
        self.wall_seconds = wall_seconds;
        self.also("summed over the processes of the run: machine_kwh and high_kwh count a machine once for each process on it");
    }

    /// The least and the most that the work itself may have taken, in kWh: twice the same number where it was measured.
    pub fn range_kwh(&self) -> Option<[f64; 2]> {
        let measured = self.attributed_kwh;
        match (measured, self.low_kwh, self.high_kwh) {
            (None, Some(low), Some(high)) => Some([low, high]),
            (Some(kwh), low, high) => Some([kwh + low.unwrap_or(0.), kwh + high.unwrap_or(0.)]),
            _ => None,
        }
    }

    /// In words: `0.0123 kWh measured (machine 0.02 kWh)`, `0.4 to 1.9 Wh (an estimate)`.
    pub fn in_words(&self) -> String {
        match (self.range_kwh(), self.measured) {
            (Some([kwh, _]), true) => match self.machine_kwh {
                Some(machine) => format!("{} measured ({} by the machine)", amount(kwh), amount(machine)),
                None => format!("{} measured", amount(kwh)),
            },
            (Some([low, high]), false) => format!("{} to {} (an estimate)", amount(low), amount(high)),
            (None, _) => "not known".to_owned(),
        }
    }

    fn also(&mut self, why: &str) {
        match &mut self.why_not {
            Some(said) if said.split("; ").any(|part| part == why) => {}
            Some(said) => {
                said.push_str("; ");
                said.push_str(why);
            }
            None => self.why_not = Some(why.to_owned()),
        }
    }
}

/// `kwh` with two or three digits and its unit.
pub fn amount(kwh: f64) -> String {
    let (value, unit) = if kwh < 1e-3 {
        (kwh * 1e6, "mWh")
    } else if kwh < 1. {
        (kwh * 1e3, "Wh")
    } else {
        (kwh, "kWh")
    };
    let digits = if value < 10. { 2 } else { usize::from(value < 100.) };
    format!("{value:.digits$} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(kwh: f64, seconds: f64) -> Energy {
        Energy {
            method: EnergyMethod::Powercap,
            measured: true,
            machine_kwh: Some(2. * kwh),
            attributed_kwh: Some(kwh),
            low_kwh: None,
            high_kwh: None,
            gpu_kwh: None,
            cpu_seconds: seconds,
            wall_seconds: seconds,
            domains: vec!["package-0".to_owned()],
            polls: 3,
            wraps: 1,
            why_not: None,
        }
    }

    #[test]
    fn stretches_add_up_and_what_was_not_measured_is_said() {
        let mut energy = measured(0.5, 10.);
        energy.add(&measured(0.25, 5.));
        assert_eq!(energy, Energy { polls: 6, wraps: 2, ..measured(0.75, 15.) });
        let guess = Energy {
            method: EnergyMethod::Estimate,
            measured: false,
            machine_kwh: None,
            attributed_kwh: None,
            low_kwh: Some(0.125),
            high_kwh: Some(0.5),
            why_not: Some("no counters".to_owned()),
            domains: Vec::new(),
            ..measured(0., 4.)
        };
        energy.add(&guess);
        assert_eq!((energy.method, energy.measured), (EnergyMethod::Estimate, false));
        assert_eq!(energy.range_kwh(), Some([0.875, 1.25]));
        let why = "4 seconds were not measured; no counters";
        assert_eq!(energy.why_not.as_deref(), Some(why));
        energy.add(&guess);
        assert_eq!(energy.why_not.as_deref(), Some(why), "said once");
        let json = serde_json::to_string(&energy).unwrap();
        assert_eq!(serde_json::from_str::<Energy>(&json).unwrap(), energy);
    }

    #[test]
    fn processes_side_by_side_take_one_time_and_all_their_energy() {
        let mut energy = measured(0.5, 10.);
        energy.add_beside(&measured(0.25, 12.));
        assert_eq!((energy.wall_seconds, energy.cpu_seconds, energy.attributed_kwh), (12., 22., Some(0.75)));
        assert!(energy.measured && energy.why_not.unwrap().contains("once for each process"));
    }

    #[test]
    fn amounts_are_told_with_the_digits_they_deserve() {
        let words: Vec<String> = [1.5e-6, 0.000_42, 0.0123, 0.5, 2.25, 31.25].map(amount).to_vec();
        assert_eq!(words, ["1.50 mWh", "420 mWh", "12.3 Wh", "500 Wh", "2.25 kWh", "31.2 kWh"]);
        assert_eq!(measured(0.5, 1.).in_words(), "500 Wh measured (1.00 kWh by the machine)");
    }
}
