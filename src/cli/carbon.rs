//! What a command took: flags that say what a kWh of electricity costs in CO2, and a table in `CodeCarbon`'s form.

use std::io::Write;
use std::path::PathBuf;
use std::time::SystemTime;

use anyhow::Context;
use clap::Args;
use serde_json::{Value, json};
use vpt::energy::{COLUMNS, Carbon, Co2, Energy, EnergyMeter, row};
use vpt::report::table;

/// Energy is always told; CO2 only where it is known whose electricity it was.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Energy and CO2")]
pub(crate) struct CarbonArgs {
    /// Tell CO2 by the electricity of this country: a code of three letters (FRA) or an English name
    ///
    /// The table has the grams a kWh of 212 countries and the year they are of. There is no default, and nothing is looked up by network.
    #[arg(long, value_name = "CODE", conflicts_with = "carbon_intensity")]
    country: Option<String>,
    /// Tell CO2 by this many grams a kWh
    #[arg(long, value_name = "GRAMS", allow_negative_numbers = true)]
    carbon_intensity: Option<f64>,
    /// What the energy is multiplied by for the building around the machine (power usage effectiveness) [default: 1]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pue: Option<f64>,
    /// Add a row with what it took to this table, in the columns of `CodeCarbon`'s emissions.csv
    #[arg(long, value_name = "FILE")]
    energy_csv: Option<PathBuf>,
}

/// What a command took, for its result.
pub(crate) struct Took {
    energy: Energy,
    co2: Option<Co2>,
}

impl CarbonArgs {
    /// What a kWh costs, if that was said.
    pub(crate) fn carbon(&self) -> vpt::Result<Option<Carbon>> {
        let carbon = match (&self.country, self.carbon_intensity) {
            (Some(country), _) => Carbon::of_country(country)?,
            (None, Some(grams)) => Carbon::of_intensity(grams)?,
            (None, None) => return if self.pue.is_none() { Ok(None) } else { Err(needs_electricity()) },
        };
        carbon.with_pue(self.pue.unwrap_or(1.)).map(Some)
    }

    /// What `what` took so far, by `meter`.
    pub(crate) fn took(&self, meter: &EnergyMeter, what: &str) -> anyhow::Result<Took> {
        let energy = meter.energy();
        let co2 = self.carbon()?.and_then(|carbon| carbon.of(&energy));
        self.keep(what, Some(&energy), co2.as_ref())?;
        Ok(Took { energy, co2 })
    }

    /// Adds a row for `what` to the table, if one is asked for.
    pub(crate) fn keep(&self, what: &str, energy: Option<&Energy>, co2: Option<&Co2>) -> anyhow::Result<()> {
        let (Some(file), Some(energy)) = (&self.energy_csv, energy) else { return Ok(()) };
        let now = table::utc(SystemTime::now()).replace(' ', "T");
        let line = |values: &[String]| values.iter().map(|value| cell(value)).collect::<Vec<_>>().join(",") + "\n";
        let mut text = line(&row(&now, what, energy, co2));
        let mut options = std::fs::OpenOptions::new();
        let mut out = options.create(true).append(true).open(file).with_context(|| file.display().to_string())?;
        if out.metadata().is_ok_and(|meta| meta.len() == 0) {
            text.insert_str(0, &line(&COLUMNS.map(str::to_owned)));
        }
        // At once, so that rows of processes that write together stay whole.
        out.write_all(text.as_bytes()).with_context(|| file.display().to_string())
    }
}

fn needs_electricity() -> vpt::Error {
    let message = vpt::Message::from("says nothing without ").field("country").text(" or ").field("carbon_intensity");
    vpt::Error::setting("pue", message)
}

/// A value as tables of commas have it.
fn cell(value: &str) -> String {
    if value.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", value.replace('"', "\"\""))
    } else {
        value.to_owned()
    }
}

impl Took {
    /// Puts it into a result.
    pub(crate) fn tell(&self, result: &mut Value) {
        result["energy"] = json!(self.energy);
        if let Some(co2) = &self.co2 {
            result["co2"] = json!(co2);
        }
    }

    /// A row for people, where CO2 was asked for; of single evaluations the rest is in their JSON.
    pub(crate) fn if_asked(&self) -> Option<(&'static str, String)> {
        self.co2.is_some().then(|| ("energy", self.in_words()))
    }

    /// The same for people.
    pub(crate) fn in_words(&self) -> String {
        match &self.co2 {
            Some(co2) => format!("{}; {}", self.energy.in_words(), co2.in_words()),
            None => self.energy.in_words(),
        }
    }
}
