//! CO2 of energy: by a number that the user gives or by a country's electricity. Nothing is looked up by network, and there is no
//! default country: without either, energy is told alone.
//!
//! The table holds grams of CO2 equivalents a kWh over the life cycle: Ember (2024) and Energy Institute (2024), processed by
//! Our World in Data, CC BY 4.0.

use serde::{Deserialize, Serialize};
use vpt_base::{Error, Result, suggest};

use crate::Energy;

/// Country code, grams a kWh, year and name, a line each.
const TABLE: &str = include_str!("carbon_intensity.tsv");
const SOURCE: &str = "Ember and Energy Institute by Our World in Data, CC BY 4.0";

/// What a kWh of electricity costs in CO2.
#[derive(Debug, Clone, PartialEq)]
pub struct Carbon {
    intensity: f64,
    source: String,
    year: Option<u16>,
    country: Option<String>,
    pue: f64,
}

/// The CO2 of some work: operation only, neither what making the machine cost nor an SCI score.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Co2 {
    /// Grams of CO2 equivalents, where the energy was measured.
    pub g: Option<f64>,
    /// The least that it may be, where it was estimated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub low_g: Option<f64>,
    /// The most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub high_g: Option<f64>,
    /// Grams a kWh.
    pub intensity: f64,
    /// Who says so.
    pub source: String,
    /// For which year.
    pub year: Option<u16>,
    /// For which country, as a code of three letters.
    pub country: Option<String>,
    /// What the energy is multiplied by for the building around the machine.
    pub pue: f64,
}

impl Carbon {
    /// `grams` a kWh, as the user says.
    ///
    /// # Errors
    /// [`Error::Setting`] `carbon_intensity`: it is no number from 0 to 5,000.
    pub fn of_intensity(grams: f64) -> Result<Self> {
        if !(0. ..=5_000.).contains(&grams) {
            return Err(Error::setting("carbon_intensity", format!("{grams} is not between 0 and 5000 grams a kWh")));
        }
        Ok(Self { intensity: grams, source: "given".to_owned(), year: None, country: None, pue: 1. })
    }

    /// The electricity of the country `code`, three letters by ISO 3166, or of that with this English name.
    ///
    /// # Errors
    /// [`Error::Setting`] `country`: the table does not have it.
    pub fn of_country(code: &str) -> Result<Self> {
        let row = rows().find(|row| row.code.eq_ignore_ascii_case(code) || row.name.eq_ignore_ascii_case(code));
        let Some(row) = row else {
            let hint = suggest::hint(code, rows().flat_map(|row| [row.code, row.name]));
            let message = format!("`{}` is no country of the table, like FRA or France{hint}", code.escape_debug());
            return Err(Error::setting("country", message));
        };
        Ok(Self {
            intensity: row.grams,
            source: SOURCE.to_owned(),
            year: Some(row.year),
            country: Some(row.code.to_owned()),
            pue: 1.,
        })
    }

    /// With the energy of the building around the machine: its PUE.
    ///
    /// # Errors
    /// [`Error::Setting`] `pue`: it is no number from 1 to 5.
    pub fn with_pue(self, pue: f64) -> Result<Self> {
        if !(1. ..=5.).contains(&pue) {
            return Err(Error::setting("pue", format!("{pue} is not between 1 and 5")));
        }
        Ok(Self { pue, ..self })
    }

    /// What `energy` means; `None` where it is not known.
    pub fn of(&self, energy: &Energy) -> Option<Co2> {
        let [low, high] = energy.range_kwh()?.map(|kwh| kwh * self.intensity * self.pue);
        let (g, low_g, high_g) = if energy.measured { (Some(low), None, None) } else { (None, Some(low), Some(high)) };
        Some(Co2 {
            g,
            low_g,
            high_g,
            intensity: self.intensity,
            source: self.source.clone(),
            year: self.year,
            country: self.country.clone(),
            pue: self.pue,
        })
    }
}

impl Co2 {
    /// In words: `1.24 g CO2 (56 g/kWh, FRA 2023)`.
    pub fn in_words(&self) -> String {
        let grams = |g: f64| if g < 1e-3 { format!("{:.2} mg", g * 1e3) } else { format!("{} g", short(g)) };
        let amount = match (self.g, self.low_g, self.high_g) {
            (Some(g), ..) => grams(g),
            (None, Some(low), Some(high)) => format!("{} to {}", grams(low), grams(high)),
            _ => "unknown".to_owned(),
        };
        let place = match (&self.country, self.year) {
            (Some(country), Some(year)) => format!("{country} {year}"),
            _ => self.source.clone(),
        };
        let pue = if self.pue > 1. { format!(", PUE {}", self.pue) } else { String::new() };
        format!("{amount} CO2 ({} g/kWh, {place}{pue})", self.intensity)
    }
}

fn short(value: f64) -> String {
    let digits = if value < 1. {
        3
    } else if value < 10. {
        2
    } else {
        usize::from(value < 100.)
    };
    format!("{value:.digits$}")
}

struct Row {
    code: &'static str,
    grams: f64,
    year: u16,
    name: &'static str,
}

fn rows() -> impl Iterator<Item = Row> {
    TABLE.lines().filter_map(|line| {
        let mut fields = line.split('\t');
        let (code, grams) = (fields.next()?, fields.next()?.parse().ok()?);
        Some(Row { code, grams, year: fields.next()?.parse().ok()?, name: fields.next()? })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::EnergyMethod;

    fn energy(measured: bool) -> Energy {
        Energy {
            method: if measured { EnergyMethod::Powercap } else { EnergyMethod::Estimate },
            measured,
            machine_kwh: measured.then_some(1.),
            attributed_kwh: measured.then_some(0.5),
            low_kwh: (!measured).then_some(0.25),
            high_kwh: (!measured).then_some(0.75),
            gpu_kwh: None,
            cpu_seconds: 1.,
            wall_seconds: 1.,
            domains: Vec::new(),
            polls: 0,
            wraps: 0,
            why_not: None,
        }
    }

    #[test]
    fn every_line_of_the_table_is_read() {
        assert_eq!(rows().count(), TABLE.lines().count());
        assert!(rows().count() > 200);
        let mut codes: Vec<&str> = rows().map(|row| row.code).collect();
        codes.dedup();
        assert_eq!(codes.len(), rows().count());
        assert!(rows().all(|row| row.code.len() == 3 && row.grams < 2_000. && row.year >= 2015));
    }

    #[test]
    fn a_country_or_a_number_makes_grams_of_kilowatt_hours() {
        let france = Carbon::of_country("fra").unwrap();
        assert_eq!(france, Carbon::of_country("France").unwrap());
        let co2 = france.of(&energy(true)).unwrap();
        assert_eq!((co2.g, co2.intensity, co2.country.as_deref()), (Some(28.), 56., Some("FRA")));
        let given = Carbon::of_intensity(100.).unwrap().with_pue(1.5).unwrap();
        let co2 = given.of(&energy(false)).unwrap();
        assert_eq!((co2.g, co2.low_g, co2.high_g), (None, Some(37.5), Some(112.5)));
        assert_eq!(co2.in_words(), "37.5 g to 112 g CO2 (100 g/kWh, given, PUE 1.5)");
        let error = Carbon::of_country("Frence").unwrap_err().to_string();
        assert!(error.starts_with("country: `Frence` is no country") && error.contains("France"), "{error}");
        for wrong in [f64::NAN, -1., f64::INFINITY] {
            assert!(Carbon::of_intensity(wrong).is_err());
        }
        assert!(Carbon::of_intensity(1.).unwrap().with_pue(0.9).is_err());
    }
}
