//! The page of a run's worst mistakes: which images go on it, and in which order.

use std::fmt::Write;

use super::{ImageLabels, ImageTask};
use crate::{
    report::{self, MistakePart, table},
    train::{run_folder, task::FinishedRun},
};
use vpt_base::Result;
use vpt_data::Split;

/// Images of validation on the page, and of test.
const SHOWN: [usize; 2] = [60, 30];
/// Classes below a picture beside those that it is wrong about.
pub(crate) const GUESSES: usize = 3;

/// Writes the page of what `run` is wrong about in validation and test.
pub(super) fn write<L: ImageLabels>(task: &ImageTask<L>, run: &FinishedRun<L::Evaluation>) -> Result<()> {
    let (dataset, labels) = (&task.setup.dataset, &task.labels);
    let parts = [
        labels.mistakes(dataset, Split::Val, run.val, run.val)?,
        labels.mistakes(dataset, Split::Test, run.test, run.val)?,
    ];
    let page = report::mistakes_html(&task.title_of(run.record), L::MISTAKES, &parts, false)?;
    run.folder.write(run_folder::MISTAKES, page)
}

/// A part of the page in which nothing stands yet: `wrong` of `total` images are to be told of, of which some are shown.
pub(crate) fn empty_part(split: Split, total: usize, wrong: usize) -> (MistakePart, usize) {
    let shown = wrong.min(SHOWN[usize::from(split == Split::Test)]);
    let share = table::percent((total > 0).then(|| wrong as f64 / total as f64));
    let mut summary = format!("{wrong} of {total} images are wrong ({share})");
    if shown < wrong {
        let _ = write!(summary, "; the {shown} surest are shown");
    }
    summary.push('.');
    let heading = match split {
        Split::Test => {
            summary +=
                " Choose nothing by these: the result on test is honest only as long as nothing follows from it.";
            "Test images".to_owned()
        }
        _ => "Validation images".to_owned(),
    };
    let folded = split == Split::Test;
    (MistakePart { heading, summary, folded, pairs: Vec::new(), mistakes: Vec::new() }, shown)
}
