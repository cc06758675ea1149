//! An SVG in memory with a title above two parts.

use plotters::coord::Shift;
use plotters::prelude::*;

use super::label;
use vpt_base::{Error, Result};

/// A part of a picture.
pub(super) type PlotArea<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// What drawing gives: nothing, or the drawing library's error.
pub(super) type PlotResult = std::result::Result<(), Box<dyn std::error::Error>>;

/// The picture `file` of `size` pixels, `title` above, whose parts `draw` fills; the left one is `left` pixels wide.
pub(super) fn two_parts(
    file: &str,
    title: &str,
    size: (u32, u32),
    left: u32,
    draw: impl FnOnce(&PlotArea, &PlotArea) -> PlotResult,
) -> Result<String> {
    let mut svg = String::new();
    let drawn = |svg: &mut String| -> PlotResult {
        let root = SVGBackend::with_string(svg, size).into_drawing_area();
        root.fill(&WHITE)?;
        let root = root.titled(&label(title, 90), ("sans-serif", 20))?;
        let (left, right) = root.split_horizontally(left);
        draw(&left, &right)?;
        root.present()?;
        Ok(())
    };
    drawn(&mut svg).map_err(|error| Error::invalid(file, error.to_string()))?;
    Ok(svg)
}
