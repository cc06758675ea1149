//! Pictures of curves and of matrices, as SVG. Without the feature `plots` there are none, and run folders do without.

#[cfg(feature = "plots")]
mod canvas;
#[cfg(feature = "plots")]
mod confusion;
#[cfg(feature = "plots")]
mod curves;
#[cfg(feature = "plots")]
mod pr_curve;

#[cfg(feature = "plots")]
use plotters::{
    chart::MeshStyle,
    coord::{cartesian::Cartesian2d, types::RangedCoordf64},
    prelude::{ChartContext, DrawingBackend, RGBColor, TRANSPARENT},
    style::Color,
};

#[cfg(feature = "plots")]
use super::label;
use vpt_base::Result;
use vpt_model::metrics::{Confusion, coco::CocoEval};

/// Colour of training curves: blue, distinct from [`VAL`] for colour-blind readers too (Okabe and Ito's palette).
#[cfg(feature = "plots")]
const TRAIN: RGBColor = RGBColor(0, 114, 178);
/// Colour of validation curves: vermilion.
#[cfg(feature = "plots")]
const VAL: RGBColor = RGBColor(213, 94, 0);
/// Colour of axes, marks and secondary text.
#[cfg(feature = "plots")]
const GREY: RGBColor = RGBColor(120, 120, 120);

/// The grid and axes of every chart, called `x` and `y`.
#[cfg(feature = "plots")]
fn mesh<'c, 'a, DB: DrawingBackend>(
    chart: &'c mut ChartContext<'a, DB, Cartesian2d<RangedCoordf64, RangedCoordf64>>,
    [x, y]: [&str; 2],
) -> MeshStyle<'a, 'c, RangedCoordf64, RangedCoordf64, DB> {
    let mut mesh = chart.configure_mesh();
    mesh.light_line_style(TRANSPARENT)
        .bold_line_style(GREY.mix(0.2))
        .axis_style(GREY)
        .x_desc(x)
        .y_desc(y)
        .axis_desc_style(("sans-serif", 15))
        .label_style(("sans-serif", 13));
    mesh
}

/// A value over epochs.
#[derive(Debug, Clone, PartialEq)]
pub struct Curve {
    name: &'static str,
    /// Epoch, counted from 1, and value.
    points: Vec<(f64, f64)>,
}

impl Curve {
    /// A curve called `name` through these epochs and values. A value that is not finite has no place on the axis and is left
    /// out.
    pub fn new(name: &'static str, points: impl IntoIterator<Item = (usize, f64)>) -> Self {
        let points = points.into_iter().map(|(epoch, value)| (epoch as f64, value));
        Self { name, points: points.filter(|point| point.1.is_finite()).collect() }
    }
}

/// The name of an axis, and the curves along it.
pub type PlotAxis<'a> = (&'a str, &'a [Curve]);

/// What a function that draws makes of its arguments; nothing where nothing is drawn.
macro_rules! drawn {
    ($module:ident::$draw:ident($($argument:ident),*)) => {{
        #[cfg(feature = "plots")]
        let picture = Some($module::$draw($($argument),*)?);
        #[cfg(not(feature = "plots"))]
        let picture = {
            let _ = ($($argument),*);
            None
        };
        Ok(picture)
    }};
}

/// Draws `losses` (left) and `scores` (right; fractions of one), each with the name of its axis; `selected` is the epoch that
/// the run selected, `title` stands above.
///
/// # Errors
/// Only if the drawing library fails, which it does not on a picture in memory.
pub fn curves_svg(title: &str, losses: PlotAxis<'_>, scores: PlotAxis<'_>, selected: usize) -> Result<Option<String>> {
    drawn!(curves::curves_svg(title, losses, scores, selected))
}

/// Draws the matrix: a row for each true class, a column for each predicted one, darkness = share of the row's images.
/// `classes` are the names in class order, `title` stands above.
///
/// # Errors
/// If there are not as many names as classes.
pub fn confusion_svg(title: &str, confusion: &Confusion, classes: &[String]) -> Result<Option<String>> {
    drawn!(confusion::confusion_svg(title, confusion, classes))
}

/// Draws precision over recall at IoU .5: a line for each category with objects, in bold their mean if there are several.
/// `names` are those of the categories in order, `title` stands above.
///
/// # Errors
/// If there are not as many names as categories.
pub fn pr_curve_svg(title: &str, eval: &CocoEval, names: &[String]) -> Result<Option<String>> {
    drawn!(pr_curve::pr_curve_svg(title, eval, names))
}

/// Draws F1 at IoU .5 over the confidence from which detections are kept: a line for each category with objects, in bold their
/// mean if there are several, a mark where the mean is best. `names` are those of the categories in order, `title` stands above.
///
/// # Errors
/// If there are not as many names as categories.
pub fn f1_curve_svg(title: &str, eval: &CocoEval, names: &[String]) -> Result<Option<String>> {
    drawn!(pr_curve::f1_curve_svg(title, eval, names))
}
