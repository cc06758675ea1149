//! `vpt predict --to`: what is found as a data set, and the list of images to look at.

use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;
use vpt::files::write_atomic;
use vpt::infer::data_set::{PredictedLayout, ReviewRow, WrittenSet, review_csv};
use vpt::report::table;

use super::{Usage, one_of};

/// Predictions as a data set.
#[derive(Debug, Args)]
#[command(next_help_heading = "A data set of predictions")]
pub(crate) struct SetArgs {
    /// Write the images, as hard links where the file system has them, and what is found in them as a data set into the new or empty
    /// folder --out
    ///
    /// coco, yolo and voc: the boxes that score enough; images without any are images without objects. folder: images of one
    /// class, a folder for each class. voc of a task of pixels: masks, 255 where no class is likely enough. All of it is
    /// one part, train. The gate is --min-score: by default the scores that the task file has for its boxes, and a probability of
    /// 0.5 for classes and pixels.
    #[arg(long, value_name = "LAYOUT", requires = "out", conflicts_with = "input",
          value_parser = one_of::<PredictedLayout>(PredictedLayout::NAMES))]
    to: Option<PredictedLayout>,
    /// Where the images that a person should look at are listed, the most doubtful first, as CSV: image, doubt, whether it is in the data
    /// set, reason [default: DIR-review.csv beside the folder --out]
    ///
    /// Boxes whose score is near the gate, on either side, images in which nothing is found, classes that are hardly likely enough or
    /// not, masks with 5 % or more of their pixels left out.
    #[arg(long, value_name = "FILE", requires = "to")]
    review: Option<PathBuf>,
}

/// The data set that is asked for.
#[derive(Debug)]
pub(crate) struct SetPlan<'a> {
    pub(crate) layout: PredictedLayout,
    pub(crate) out: &'a Path,
    review: PathBuf,
}

/// What was written.
#[derive(Debug, Serialize)]
pub(crate) struct SetOutcome {
    #[serde(flatten)]
    written: WrittenSet,
    /// The list of images to look at, and how many there are.
    review: PathBuf,
    to_review: usize,
}

impl SetArgs {
    /// Whether a data set is asked for.
    pub(crate) fn is_given(&self) -> bool {
        self.to.is_some()
    }

    /// What is asked for, with the folder `out`.
    pub(crate) fn plan<'a>(&self, out: Option<&'a Path>) -> Result<Option<SetPlan<'a>>, Usage> {
        let (Some(layout), Some(out)) = (self.to, out) else { return Ok(None) };
        let review = if let Some(review) = &self.review {
            review.clone()
        } else if let Some(name) = out.file_name() {
            let mut name = name.to_os_string();
            name.push("-review.csv");
            out.with_file_name(name)
        } else {
            return Err(Usage(format!("--review: a file is needed where --out is {}", out.display())));
        };
        if review.starts_with(out) {
            let message = "the list cannot lie in the data set, where it would be taken for labels";
            return Err(Usage(format!("--review {}: {message}", review.display())));
        }
        Ok(Some(SetPlan { layout, out, review }))
    }
}

impl SetPlan<'_> {
    /// Writes the list behind the data set.
    pub(crate) fn finish(&self, (written, rows): (WrittenSet, Vec<ReviewRow>)) -> vpt::Result<SetOutcome> {
        write_atomic(&self.review, &review_csv(&rows)?)?;
        Ok(SetOutcome { written, review: self.review.clone(), to_review: rows.len() })
    }
}

impl SetOutcome {
    /// It in words.
    pub(crate) fn text(&self) -> String {
        let WrittenSet { out, layout, images, objects, left_out } = &self.written;
        let of = objects.map_or_else(String::new, |objects| format!(", {objects} objects"));
        let what = if objects.is_some() { "boxes" } else { "images" };
        let left = if *left_out > 0 { format!("; {left_out} {what} not sure enough") } else { String::new() };
        table::pairs(&[
            ("data set", format!("{} ({layout}): {images} images{of}{left}", out.display())),
            ("to look at", format!("{} images, listed in {}", self.to_review, self.review.display())),
        ])
    }
}
