//! `pr_curve.svg` and `f1_curve.svg`: how well each category is detected, and at which confidence to cut.

use std::cmp::Reverse;

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::canvas::{PlotArea, PlotResult, two_parts};
use super::{GREY, TRAIN, label, mesh};
use vpt_base::{Error, Result};
use vpt_model::metrics::coco::{CategoryEval, CocoEval};

/// More categories than this are not told apart: those with the most objects are, the others are thin and grey.
const MOST_NAMED: usize = 20;
/// Longest category name shown, in characters.
const NAME: usize = 24;
/// The picture, in pixels.
const SIZE: (u32, u32) = (960, 560);
/// Width of the legend, on the right.
const LEGEND: u32 = 280;

/// See [`super::pr_curve_svg`].
pub(super) fn pr_curve_svg(title: &str, eval: &CocoEval, names: &[String]) -> Result<String> {
    let points = |precision: &[f64]| {
        // Behind the last recall that is reached the line falls to the axis and ends.
        let end = precision.iter().rposition(|&value| value > 0.).map_or(0, |last| last + 1);
        let mut points: Vec<_> = (0..end).map(|i| (i as f64 / 100., precision[i])).collect();
        points.extend(points.last().filter(|_| end < precision.len()).copied().map(|(recall, _)| (recall, 0.)));
        points
    };
    let mean = eval.mean_precision();
    let figure = Figure {
        axes: ("recall", "precision"),
        categories: lines(eval, names, |category| (category.ap50, points(&category.precision)))?,
        mean: CurveLine { name: "mean".into(), value: eval.metrics.ap50, points: points(&mean) },
        heading: "AP50".into(),
        mark: None,
    };
    figure.svg("pr_curve.svg", title)
}

/// See [`super::f1_curve_svg`].
pub(super) fn f1_curve_svg(title: &str, eval: &CocoEval, names: &[String]) -> Result<String> {
    // Every fifth value is as fine as the picture.
    let points =
        |f1: &[f64]| eval.confidences.iter().copied().zip(f1.iter().copied()).step_by(5).collect::<Vec<(f64, f64)>>();
    let mean = eval.mean_f1();
    let best = eval.best_confidence();
    // The categories at the confidence that is chosen for all of them.
    let at = |f1: &[f64]| {
        let chosen = eval.confidences.iter().position(|&c| best.is_some_and(|(confidence, _)| c >= confidence));
        chosen.and_then(|i| f1.get(i)).copied().unwrap_or(0.)
    };
    let figure = Figure {
        axes: ("confidence", "F1"),
        categories: lines(eval, names, |category| (at(&category.f1), points(&category.f1)))?,
        mean: CurveLine { name: "mean".into(), value: at(&mean), points: points(&mean) },
        heading: best.map_or_else(|| "F1".into(), |(confidence, _)| format!("F1 at confidence {confidence:.3}")),
        mark: best,
    };
    figure.svg("f1_curve.svg", title)
}

/// A curve and its entry in the legend.
struct CurveLine {
    name: String,
    value: f64,
    points: Vec<(f64, f64)>,
}

/// The categories with objects as lines, those with the most objects first.
fn lines(
    eval: &CocoEval,
    names: &[String],
    line: impl Fn(&CategoryEval) -> (f64, Vec<(f64, f64)>),
) -> Result<Vec<CurveLine>> {
    if names.len() != eval.categories.len() {
        let message = format!("{} names for {} categories", names.len(), eval.categories.len());
        return Err(Error::invalid("category names", message));
    }
    let present = eval.categories.iter().zip(names).filter_map(|(category, name)| Some((category.as_ref()?, name)));
    let mut present: Vec<_> = present.collect();
    present.sort_by_key(|(category, _)| Reverse(category.objects));
    let line = |(category, name): (&CategoryEval, &String)| {
        let (value, points) = line(category);
        CurveLine { name: label(name, NAME), value, points }
    };
    Ok(present.into_iter().map(line).collect())
}

struct Figure {
    axes: (&'static str, &'static str),
    /// Those with the most objects first.
    categories: Vec<CurveLine>,
    mean: CurveLine,
    /// Heading of the legend's values.
    heading: String,
    mark: Option<(f64, f64)>,
}

impl Figure {
    fn svg(mut self, file: &str, title: &str) -> Result<String> {
        let others = self.categories.split_off(self.categories.len().min(MOST_NAMED));
        self.categories.sort_by(|a, b| b.value.total_cmp(&a.value));
        if self.categories.len() == 1 {
            // It is its own mean.
            self.mean.points.clear();
        }
        two_parts(file, title, SIZE, SIZE.0 - LEGEND, |left, right| {
            self.chart(left, &others)?;
            self.legend(right, others.len())
        })
    }

    fn chart(&self, area: &PlotArea, others: &[CurveLine]) -> PlotResult {
        let mut chart = ChartBuilder::on(area)
            .margin(12)
            .x_label_area_size(38)
            .y_label_area_size(58)
            .build_cartesian_2d(0. ..1.01, 0. ..1.02)?;
        mesh(&mut chart, [self.axes.0, self.axes.1]).draw()?;
        for line in others {
            chart.draw_series(LineSeries::new(line.points.clone(), GREY.mix(0.35)))?;
        }
        for (i, line) in self.categories.iter().enumerate() {
            chart.draw_series(LineSeries::new(line.points.clone(), self.style(i)))?;
        }
        chart.draw_series(LineSeries::new(self.mean.points.clone(), BLACK.stroke_width(4)))?;
        if let Some((x, y)) = self.mark {
            chart.draw_series([PathElement::new([(x, 0.), (x, y)], BLACK.mix(0.6))])?;
            chart
                .draw_series([Circle::new((x, y), 6, WHITE.filled()), Circle::new((x, y), 6, BLACK.stroke_width(2))])?;
        }
        Ok(())
    }

    /// A line for each named category with its value, the best first.
    fn legend(&self, area: &PlotArea, others: usize) -> PlotResult {
        let text = |colour: &RGBColor, h| ("sans-serif", 14).into_font().color(colour).pos(Pos::new(h, VPos::Center));
        let value_at = LEGEND as i32 - 24;
        let mut y = 22;
        area.draw_text(&self.heading, &text(&GREY, HPos::Right), (value_at, y))?;
        let mut entry = |style: ShapeStyle, name: &str, value: Option<f64>| {
            y += 21;
            area.draw(&PathElement::new([(8, y), (32, y)], style))?;
            area.draw_text(name, &text(&BLACK, HPos::Left), (40, y))?;
            value.map_or(Ok(()), |value| {
                area.draw_text(&format!("{value:.3}"), &text(&BLACK, HPos::Right), (value_at, y))
            })
        };
        if !self.mean.points.is_empty() {
            entry(BLACK.stroke_width(4), &self.mean.name, Some(self.mean.value))?;
        }
        for (i, line) in self.categories.iter().enumerate() {
            entry(self.style(i), &line.name, Some(line.value))?;
        }
        if others > 0 {
            entry(GREY.mix(0.35).stroke_width(1), &format!("{others} with fewer objects"), None)?;
        }
        Ok(())
    }

    /// Colours around the wheel, light and dark in turn.
    fn style(&self, line: usize) -> ShapeStyle {
        if self.categories.len() == 1 {
            return TRAIN.stroke_width(4);
        }
        let hue = line as f64 / self.categories.len() as f64;
        let (r, g, b) = HSLColor(hue, 0.7, if line.is_multiple_of(2) { 0.55 } else { 0.36 }).rgb();
        RGBColor(r, g, b).stroke_width(2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vpt_model::metrics::coco::{CocoMetrics, evaluate};

    /// Categories of falling quality; every seventh has no objects.
    fn example(categories: usize) -> (CocoEval, Vec<String>) {
        let confidences: Vec<f64> = (0..=1000).map(|i| f64::from(i) / 1000.).collect();
        let category = |k: usize| {
            let quality = 1. - k as f64 / categories as f64;
            let precision: Vec<f64> = (0..=100)
                .map(|r| f64::from(r) / 100.)
                .map(|r| if r <= quality.sqrt() { (1. - r * r * (1. - quality)).max(0.) } else { 0. })
                .collect();
            let peak = 0.2 + 0.4 * quality;
            let f1 = |c: &f64| quality * (1. - ((c - peak) / 0.6).powi(2)).max(0.);
            let ap50 = precision.iter().sum::<f64>() / 101.;
            let f1 = confidences.iter().map(f1).collect();
            (k % 7 != 6).then_some(CategoryEval { objects: 100 + k * 37 % 101, ap: ap50 / 2., ap50, precision, f1 })
        };
        let mut eval = evaluate(&[], &[], &[]).unwrap();
        eval.categories = (0..categories).map(category).collect();
        let ap50: Vec<f64> = eval.categories.iter().flatten().map(|c| c.ap50).collect();
        eval.metrics = CocoMetrics { ap50: ap50.iter().sum::<f64>() / ap50.len().max(1) as f64, ..eval.metrics };
        (eval, (0..categories).map(|k| format!("category number {k}")).collect())
    }

    #[test]
    fn the_categories_with_the_most_objects_are_named_and_the_others_counted() {
        for (categories, named, others) in [(0, 0, 0), (1, 1, 0), (3, 3, 0), (20, 18, 0), (80, 20, 49)] {
            let (eval, names) = example(categories);
            for svg in [pr_curve_svg("run", &eval, &names).unwrap(), f1_curve_svg("run", &eval, &names).unwrap()] {
                assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"), "{categories} categories");
                assert_eq!(svg.matches("category number").count(), named, "{categories} categories");
                assert_eq!(
                    svg.contains(&format!("{others} with fewer objects")),
                    others > 0,
                    "{categories} categories"
                );
                assert!(!svg.contains("NaN") && !svg.contains("category number 6\n"), "{categories} categories");
            }
        }
    }

    #[test]
    fn the_best_confidence_is_marked() {
        let (eval, names) = example(1);
        let svg = f1_curve_svg("run", &eval, &names).unwrap();
        assert!(svg.contains("F1 at confidence 0.600") && svg.contains("<circle"), "{svg}");
        assert!(!pr_curve_svg("run", &eval, &names).unwrap().contains("<circle"));
    }

    #[test]
    fn names_must_fit_the_categories() {
        let (eval, names) = example(3);
        assert!(pr_curve_svg("run", &eval, &names[1..]).is_err());
    }
}
