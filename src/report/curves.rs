//! `curves.svg`: loss and accuracy of every epoch, training beside validation.

use std::ops::Range;

use plotters::coord::Shift;
use plotters::prelude::*;

use super::{GREY, TRAIN, VAL, label};
use crate::{Error, Result};

/// What the curves need of one epoch. Accuracies are fractions of one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EpochPoint {
    /// Epoch, counted from 1.
    pub epoch: usize,
    /// Mean training loss of the epoch.
    pub train_loss: f64,
    /// Top-1 accuracy on the training images as they were seen during the epoch, where it was counted.
    pub train_acc1: Option<f64>,
    /// Loss on the validation images after the epoch.
    pub val_loss: f64,
    /// Top-1 accuracy on the validation images after the epoch.
    pub val_acc1: f64,
}

/// Draws loss (left) and accuracy (right) over `points`; `selected` is the epoch that the run selected, `title` stands above.
///
/// # Errors
/// Only if the drawing library fails, which it does not on a picture in memory.
pub fn curves_svg(title: &str, points: &[EpochPoint], selected: usize) -> Result<String> {
    let mut svg = String::new();
    draw(&mut svg, title, points, selected).map_err(|error| Error::invalid("curves.svg", error.to_string()))?;
    Ok(svg)
}

type Curve<'a> = (&'a str, RGBColor, Vec<(f64, f64)>);

fn draw(
    svg: &mut String,
    title: &str,
    points: &[EpochPoint],
    selected: usize,
) -> Result<(), Box<dyn std::error::Error>> {
    let root = SVGBackend::with_string(svg, (1000, 420)).into_drawing_area();
    root.fill(&WHITE)?;
    let root = root.titled(&label(title, 90), ("sans-serif", 20))?;
    let (left, right) = root.split_horizontally(500);
    let curve = |value: &dyn Fn(&EpochPoint) -> Option<f64>| -> Vec<(f64, f64)> {
        // A diverged epoch has no place on the axis.
        let finite = points.iter().filter_map(|p| Some((p.epoch as f64, value(p).filter(|v| v.is_finite())?)));
        finite.collect()
    };
    let loss = [("train", TRAIN, curve(&|p| Some(p.train_loss))), ("validation", VAL, curve(&|p| Some(p.val_loss)))];
    let accuracy = [("train", TRAIN, curve(&|p| p.train_acc1)), ("validation", VAL, curve(&|p| Some(p.val_acc1)))];
    let epochs = points.iter().map(|p| p.epoch).max().unwrap_or(1);
    let highest = loss.iter().flat_map(|c| &c.2).map(|p| p.1).fold(0., f64::max);
    let top = if highest > 0. { highest * 1.05 } else { 1. };
    panel(&left, "loss", &loss, epochs, 0. ..top, selected)?;
    panel(&right, "accuracy (top 1)", &accuracy, epochs, 0. ..1.02, selected)?;
    root.present()?;
    Ok(())
}

fn panel<DB: DrawingBackend>(
    area: &DrawingArea<DB, Shift>,
    name: &str,
    curves: &[Curve<'_>],
    epochs: usize,
    range: Range<f64>,
    selected: usize,
) -> Result<(), Box<dyn std::error::Error>>
where
    DB::ErrorType: 'static,
{
    let mut chart = ChartBuilder::on(area)
        .margin(12)
        .margin_right(20)
        .x_label_area_size(38)
        .y_label_area_size(58)
        .build_cartesian_2d(0.5..epochs as f64 + 0.5, range.clone())?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(GREY.mix(0.2))
        .axis_style(GREY)
        .x_desc("epoch")
        .y_desc(name)
        .axis_desc_style(("sans-serif", 15))
        .label_style(("sans-serif", 13))
        .x_labels(epochs.clamp(1, 10))
        // Ticks between two epochs say nothing.
        .x_label_formatter(&|x| if x.fract() == 0. { format!("{x:.0}") } else { String::new() })
        .draw()?;
    let at = selected as f64;
    chart
        .draw_series([PathElement::new([(at, range.start), (at, range.end)], GREY.mix(0.6))])?
        .label("selected")
        .legend(|(x, y)| PathElement::new([(x, y), (x + 20, y)], GREY.mix(0.6)));
    for (name, colour, points) in curves {
        let colour = *colour;
        // A single epoch has no line: its mark shows it.
        let size = if points.len() > 60 { 0 } else { 3 };
        chart
            .draw_series(LineSeries::new(points.clone(), colour.stroke_width(2)).point_size(size))?
            .label(*name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], colour.stroke_width(2)));
    }
    let position = if name == "loss" { SeriesLabelPosition::UpperRight } else { SeriesLabelPosition::LowerRight };
    chart
        .configure_series_labels()
        .position(position)
        .background_style(WHITE.mix(0.85))
        .border_style(GREY.mix(0.4))
        .label_font(("sans-serif", 13))
        .draw()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn points(epochs: usize) -> Vec<EpochPoint> {
        (1..=epochs)
            .map(|epoch| {
                let x = epoch as f64;
                EpochPoint {
                    epoch,
                    train_loss: 2. / x,
                    train_acc1: Some(1. - 0.6 / x),
                    val_loss: 2.2 / x + 0.1,
                    val_acc1: 1. - 0.7 / x,
                }
            })
            .collect()
    }

    #[test]
    fn any_number_of_epochs_draws_and_equal_input_gives_equal_bytes() {
        for epochs in [0, 1, 2, 7, 200] {
            let svg = curves_svg("run", &points(epochs), epochs).unwrap();
            assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"), "{epochs} epochs");
            assert_eq!(svg, curves_svg("run", &points(epochs), epochs).unwrap());
        }
    }

    #[test]
    fn a_diverged_epoch_is_left_out_and_the_title_is_escaped() {
        let mut points = points(5);
        points[3].train_loss = f64::NAN;
        points[4].val_loss = f64::INFINITY;
        let svg = curves_svg("<b> & co", &points, 2).unwrap();
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        assert!(svg.contains("&lt;b&gt; &amp; co"));
    }
}
