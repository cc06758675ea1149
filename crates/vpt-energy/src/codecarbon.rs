//! Energy as `CodeCarbon`'s `emissions.csv` has it, which other tools read: its columns in its order.
//!
//! There is room for one number where energy is a range; it gets the middle. What is not known is left empty, zero where `CodeCarbon` would
//! have zero on a machine without graphics cards.

use std::path::Path;

use crate::gpu::GPU;
use crate::process::{Machine, PROC};
use crate::{Co2, Energy};

/// Columns of `emissions.csv`, as `CodeCarbon` 3 writes them.
pub const COLUMNS: [&str; 38] = [
    "timestamp",
    "project_name",
    "run_id",
    "experiment_id",
    "duration",
    "emissions",
    "emissions_rate",
    "cpu_power",
    "gpu_power",
    "ram_power",
    "cpu_energy",
    "gpu_energy",
    "ram_energy",
    "energy_consumed",
    "water_consumed",
    "country_name",
    "country_iso_code",
    "region",
    "cloud_provider",
    "cloud_region",
    "os",
    "python_version",
    "codecarbon_version",
    "cpu_count",
    "cpu_model",
    "gpu_count",
    "gpu_model",
    "longitude",
    "latitude",
    "ram_total_size",
    "tracking_mode",
    "cpu_utilization_percent",
    "gpu_utilization_percent",
    "ram_utilization_percent",
    "ram_used_gb",
    "on_cloud",
    "pue",
    "wue",
];

/// The values of a row: what a stretch of work called `run` took, which ended at `timestamp` (`2026-11-29T07:41:01`), and the CO2 of that.
/// Seconds, kilograms, watts and kilowatt hours, as `CodeCarbon` counts.
pub fn row(timestamp: &str, run: &str, energy: &Energy, co2: Option<&Co2>) -> [String; 38] {
    let machine = Machine::read(Path::new(PROC));
    let kwh = energy.range_kwh().map(|[low, high]| f64::midpoint(low, high));
    let seconds = energy.wall_seconds;
    let per_second = |value: f64| if seconds > 0. { value / seconds } else { 0. };
    let kg = co2.and_then(|co2| match (co2.g, co2.low_g, co2.high_g) {
        (Some(g), ..) => Some(g / 1e3),
        (None, Some(low), Some(high)) => Some(f64::midpoint(low, high) / 1e3),
        _ => None,
    });
    let text = |value: Option<f64>| value.map(|value| value.to_string()).unwrap_or_default();
    let load = per_second(energy.cpu_seconds) / machine.cpus.max(1) as f64;
    let zero = || "0".to_owned();
    let watts = |kwh: f64| per_second(kwh * 3.6e6);
    let gpu = energy.gpu_kwh.unwrap_or(0.);
    let cpu = kwh.map(|kwh| kwh - gpu);
    let gpus: Vec<&str> = energy
        .domains
        .iter()
        .filter_map(|name| name.strip_prefix(GPU)?.split_once(' '))
        .map(|(_, name)| name)
        .collect();
    COLUMNS.map(|column| match column {
        "timestamp" => timestamp.to_owned(),
        "project_name" => "vpt".to_owned(),
        "run_id" => run.to_owned(),
        "duration" => seconds.to_string(),
        "emissions" => text(kg),
        "emissions_rate" => text(kg.map(per_second)),
        "cpu_power" => text(cpu.map(watts)),
        "cpu_energy" => text(cpu),
        "gpu_power" => watts(gpu).to_string(),
        "gpu_energy" => gpu.to_string(),
        "energy_consumed" => text(kwh),
        "gpu_count" => gpus.len().to_string(),
        "gpu_model" => gpus.join(" | "),
        "gpu_utilization_percent" if gpus.is_empty() => zero(),
        "water_consumed" | "wue" => zero(),
        "country_iso_code" => co2.and_then(|co2| co2.country.clone()).unwrap_or_default(),
        "os" => std::env::consts::OS.to_owned(),
        "cpu_count" => machine.cpus.to_string(),
        "cpu_model" => machine.name.clone(),
        "ram_total_size" => machine.memory_gb.to_string(),
        "tracking_mode" => "process".to_owned(),
        "cpu_utilization_percent" => (100. * load).to_string(),
        "on_cloud" => "N".to_owned(),
        "pue" => co2.map_or(1., |co2| co2.pue).to_string(),
        // Memory is in what is measured, or in the range.
        _ => String::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Carbon, EnergyMethod};

    #[test]
    fn a_row_has_what_is_known_and_nothing_else() {
        let energy = Energy {
            method: EnergyMethod::Estimate,
            low_kwh: Some(0.25),
            high_kwh: Some(0.75),
            cpu_seconds: 10.,
            ..Energy::unmeasured(1_000., "no counters")
        };
        let co2 = Carbon::of_country("FRA").unwrap().of(&energy);
        let row = row("2026-11-29T07:41:01", "runs/a", &energy, co2.as_ref());
        let of = |name: &str| row[COLUMNS.iter().position(|column| *column == name).unwrap()].as_str();
        assert_eq!((of("run_id"), of("duration"), of("energy_consumed")), ("runs/a", "1000", "0.5"));
        assert_eq!((of("emissions"), of("emissions_rate")), ("0.028", "0.000028"));
        assert_eq!((of("cpu_power"), of("country_iso_code"), of("pue")), ("1800", "FRA", "1"));
        assert_eq!((of("gpu_model"), of("python_version"), of("gpu_energy")), ("", "", "0"));
    }

    #[test]
    fn gpus_have_columns_of_their_own() {
        let energy = Energy {
            method: EnergyMethod::Powercap,
            measured: true,
            attributed_kwh: Some(0.75),
            gpu_kwh: Some(0.5),
            domains: vec!["package-0".to_owned(), "gpu-1 NVIDIA H".to_owned()],
            ..Energy::unmeasured(1_000., "")
        };
        let row = row("2026-11-29T07:41:01", "runs/a", &energy, None);
        let of = |name: &str| row[COLUMNS.iter().position(|column| *column == name).unwrap()].as_str();
        assert_eq!((of("cpu_energy"), of("gpu_energy"), of("energy_consumed")), ("0.25", "0.5", "0.75"));
        assert_eq!((of("gpu_power"), of("gpu_count"), of("gpu_model")), ("1800", "1", "NVIDIA H"));
    }
}
