//! `curves.svg`: loss and accuracy of every epoch, training beside validation.

use std::ops::Range;

use plotters::prelude::*;

use super::canvas::{PlotArea, PlotResult, two_parts};
use super::{Curve, GREY, PlotAxis, TRAIN, VAL, mesh};
use vpt_base::Result;

/// See [`super::curves_svg`].
pub(super) fn curves_svg(title: &str, losses: PlotAxis<'_>, scores: PlotAxis<'_>, selected: usize) -> Result<String> {
    let points = |axis: PlotAxis<'_>| axis.1.iter().flat_map(|curve| curve.points.clone()).collect::<Vec<_>>();
    let epochs = points(losses).into_iter().chain(points(scores)).map(|p| p.0).fold(1., f64::max) as usize;
    let highest = points(losses).into_iter().map(|p| p.1).fold(0., f64::max);
    let top = if highest > 0. { highest * 1.05 } else { 1. };
    two_parts("curves.svg", title, (1000, 420), 500, |left, right| {
        panel(left, losses, epochs, 0. ..top, selected, SeriesLabelPosition::UpperRight)?;
        panel(right, scores, epochs, 0. ..1.02, selected, SeriesLabelPosition::LowerRight)
    })
}

fn panel(
    area: &PlotArea,
    (name, curves): PlotAxis<'_>,
    epochs: usize,
    range: Range<f64>,
    selected: usize,
    legend: SeriesLabelPosition,
) -> PlotResult {
    let mut chart = ChartBuilder::on(area)
        .margin(12)
        .margin_right(20)
        .x_label_area_size(38)
        .y_label_area_size(58)
        .build_cartesian_2d(0.5..epochs as f64 + 0.5, range.clone())?;
    mesh(&mut chart, ["epoch", name])
        .x_labels(epochs.clamp(1, 10))
        // Ticks between two epochs say nothing.
        .x_label_formatter(&|x| if x.fract() == 0. { format!("{x:.0}") } else { String::new() })
        .draw()?;
    let at = selected as f64;
    // What was there before the first epoch is none of them.
    if selected > 0 {
        chart
            .draw_series([PathElement::new([(at, range.start), (at, range.end)], GREY.mix(0.6))])?
            .label("selected")
            .legend(|(x, y)| PathElement::new([(x, y), (x + 20, y)], GREY.mix(0.6)));
    }
    for (Curve { name, points }, colour) in curves.iter().zip([TRAIN, VAL]) {
        // A single epoch has no line: its mark shows it.
        let size = if points.len() > 60 { 0 } else { 3 };
        chart
            .draw_series(LineSeries::new(points.clone(), colour.stroke_width(2)).point_size(size))?
            .label(*name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], colour.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .position(legend)
        .background_style(WHITE.mix(0.85))
        .border_style(GREY.mix(0.4))
        .label_font(("sans-serif", 13))
        .draw()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn svg(title: &str, epochs: usize, value: impl Fn(usize) -> f64) -> String {
        let curve = |name, scale: f64| Curve::new(name, (1..=epochs).map(|epoch| (epoch, scale * value(epoch))));
        let losses = [curve("train", 2.), curve("validation", 2.2)];
        curves_svg(title, ("loss", &losses), ("accuracy", &[curve("validation", 0.5)]), epochs).unwrap()
    }

    #[test]
    fn any_number_of_epochs_draws_and_equal_input_gives_equal_bytes() {
        for epochs in [0, 1, 2, 7, 200] {
            let value = |epoch| 1. / epoch as f64;
            let drawn = svg("run", epochs, value);
            assert!(drawn.starts_with("<svg") && drawn.trim_end().ends_with("</svg>"), "{epochs} epochs");
            assert_eq!(drawn, svg("run", epochs, value));
        }
    }

    #[test]
    fn a_diverged_epoch_is_left_out_and_the_title_is_escaped() {
        let diverged = |epoch| if epoch == 3 { f64::NAN } else { f64::INFINITY };
        let drawn = svg("<b> & co", 5, diverged);
        assert!(!drawn.contains("NaN") && !drawn.contains("inf"), "{drawn}");
        assert!(drawn.contains("&lt;b&gt; &amp; co"));
    }
}
