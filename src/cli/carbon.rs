//! Flags that say what a kWh of electricity costs in CO2.

use clap::Args;
use vpt::energy::Carbon;

/// Energy is always told; CO2 only where it is known whose electricity it was.
#[derive(Debug, Args)]
#[command(next_help_heading = "CO2")]
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
}

fn needs_electricity() -> vpt::Error {
    let message = vpt::Message::from("says nothing without ").field("country").text(" or ").field("carbon_intensity");
    vpt::Error::setting("pue", message)
}
