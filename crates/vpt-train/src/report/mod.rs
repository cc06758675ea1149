//! Reports of a run: the pictures of the run folder, the description of the machine, and the tables on the
//! console. Everything here turns numbers into text or pixels; nothing is computed or decided.

mod boxes;
mod contact_sheet;
mod environment;
mod masks;
mod mistakes;
mod picture_page;
mod pictures;
mod plots;
mod prompt_sheet;
pub mod table;
mod text;

pub use boxes::{BoxTile, DrawnBox, box_sheet_jpeg, draw_boxes};
pub use contact_sheet::{SheetTile, contact_sheet_jpeg};
pub use environment::environment;
pub use masks::{MaskTile, draw_mask, mask_sheet_jpeg};
pub use mistakes::{ConfusedPair, MistakePart, mistakes_html};
pub use picture_page::{CardLine, PagePart, PageTable, PictureCard, picture_page};
pub use pictures::picture_paths;
pub use plots::{Curve, PlotAxis, confusion_svg, curves_svg, f1_curve_svg, pr_curve_svg};
pub use prompt_sheet::prompt_sheet_png;
pub use vpt_image::encode::picture_bytes;

/// Text for a picture: control characters, which SVG cannot hold, become U+FFFD, and what is longer than `max`
/// characters ends in an ellipsis.
fn label(text: &str, max: usize) -> String {
    let clean = |c: char| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c };
    if text.chars().count() <= max {
        text.chars().map(clean).collect()
    } else {
        text.chars().take(max.saturating_sub(1)).map(clean).chain(['…']).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::label;

    #[test]
    fn labels_are_cut_at_characters_and_hold_no_control_characters() {
        assert_eq!(label("naïve café", 10), "naïve café");
        assert_eq!(label("naïve cafés", 10), "naïve caf…");
        assert_eq!(label("a\tb\u{1b}", 5), "a\u{fffd}b\u{fffd}");
    }
}
