//! `confusion.svg`: how often each class was taken for each other one, as a row-normalised heat map.

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::{GREY, TRAIN, label};
use vpt_base::{Error, Result};
use vpt_model::metrics::Confusion;

/// Up to this many classes, names stand beside rows and columns; beyond it they would be a smear.
const MOST_NAMED: usize = 64;
/// Up to this many classes, cells hold their percentage.
const MOST_NUMBERED: usize = 32;
/// Longest class name shown, in characters.
const NAME: usize = 24;

/// See [`super::confusion_svg`].
pub(super) fn confusion_svg(title: &str, confusion: &Confusion, classes: &[String]) -> Result<String> {
    if classes.len() != confusion.classes() {
        let message = format!("{} class names for {} classes", classes.len(), confusion.classes());
        return Err(Error::invalid("confusion.svg", message));
    }
    let mut svg = String::new();
    draw(&mut svg, title, confusion, classes).map_err(|error| Error::invalid("confusion.svg", error.to_string()))?;
    Ok(svg)
}

fn draw(
    svg: &mut String,
    title: &str,
    confusion: &Confusion,
    classes: &[String],
) -> Result<(), Box<dyn std::error::Error>> {
    let n = classes.len() as i32;
    // Small matrices get large cells; a thousand classes still fit a screen.
    let cell = (720 / n.max(1)).clamp(1, 48).max(if classes.len() <= MOST_NAMED { 14 } else { 1 });
    let side = cell * n;
    let font = f64::from(cell).mul_add(0.62, 3.).clamp(10., 14.);
    let named = classes.len() <= MOST_NAMED;
    let longest = classes.iter().map(|name| name.chars().count().min(NAME)).max().unwrap_or(0);
    // Average glyph width of a sans-serif font, generously.
    let names = if named { (longest as f64 * font * 0.5) as i32 + 14 } else { 14 };
    let (left, top) = (names + 30, 44);
    let (width, height) = ((left + side + 24).max(420), top + side + names + 34);
    let root = SVGBackend::with_string(svg, (width as u32, height as u32)).into_drawing_area();
    root.fill(&WHITE)?;

    let text = |size: f64, h, v| ("sans-serif", size).into_font().color(&BLACK).pos(Pos::new(h, v));
    let middle = (left + side / 2, top + side / 2);
    root.draw_text(&label(title, 80), &text(17., HPos::Left, VPos::Top), (12, 14))?;
    let axis = text(14., HPos::Center, VPos::Center).color(&GREY);
    root.draw_text("predicted", &axis, (middle.0, height - 16))?;
    root.draw_text("true", &axis.transform(FontTransform::Rotate270), (14, middle.1))?;

    for truth in 0..classes.len() {
        let total: u64 = confusion.row(truth).iter().sum();
        // Empty cells are the background: a thousand classes stay a small file.
        for (predicted, &count) in confusion.row(truth).iter().enumerate().filter(|(_, count)| **count > 0) {
            let share = count as f64 / total as f64;
            let (x, y) = (left + predicted as i32 * cell, top + truth as i32 * cell);
            let fill = TRAIN.mix(0.04 + 0.96 * share).filled();
            root.draw(&Rectangle::new([(x, y), (x + cell, y + cell)], fill))?;
            if classes.len() <= MOST_NUMBERED {
                let colour = if share > 0.5 { WHITE } else { BLACK };
                let style = text(font.min(f64::from(cell) * 0.42), HPos::Center, VPos::Center).color(&colour);
                root.draw_text(&format!("{:.0}", share * 100.), &style, (x + cell / 2, y + cell / 2))?;
            }
        }
    }
    root.draw(&Rectangle::new([(left, top), (left + side, top + side)], GREY.stroke_width(1)))?;
    if named {
        for (class, name) in classes.iter().enumerate() {
            let name = label(name, NAME);
            let at = class as i32 * cell + cell / 2;
            root.draw_text(&name, &text(font, HPos::Right, VPos::Center), (left - 6, top + at))?;
            let upright = text(font, HPos::Right, VPos::Center).transform(FontTransform::Rotate270);
            root.draw_text(&name, &upright, (left + at, top + side + 6))?;
        }
    }
    root.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use vpt_model::metrics::Tally;

    fn example(classes: usize) -> (Confusion, Vec<String>) {
        let mut tally = Tally::new(classes);
        for i in 0..classes * 6 {
            let mut logits = vec![0.; classes];
            logits[if i % 5 == 0 { i * 7 % classes } else { i % classes }] = 1.;
            tally.add(&logits, &[(i % classes) as u32]).unwrap();
        }
        (tally.confusion().clone(), (0..classes).map(|class| format!("class number {class}")).collect())
    }

    #[test]
    fn names_and_numbers_are_shown_while_they_can_be_read() {
        for (classes, named, numbered) in [(2, true, true), (10, true, true), (64, true, false), (300, false, false)] {
            let (confusion, names) = example(classes);
            let svg = confusion_svg("test", &confusion, &names).unwrap();
            assert_eq!(svg.contains("class number 1\n"), named, "{classes} classes");
            assert_eq!(svg.matches("<text").count() > 3 + 2 * classes, numbered, "{classes} classes");
        }
    }

    #[test]
    fn names_must_fit_the_matrix() {
        assert!(confusion_svg("test", &Confusion::new(3), &["a".to_owned()]).is_err());
    }
}
