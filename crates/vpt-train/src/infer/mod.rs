//! A backbone or a learned task at work on images: features for other programs ([`embed`]), classes ([`predict`],
//! [`multilabel`]), boxes ([`detect`]), pixels ([`segment`]); data sets made of what was said ([`data_set`]); examples of what to look for
//! ([`exemplars`]); which files are meant
//! ([`inputs`]); arrays in files of `NumPy` ([`npy`]).

pub mod data_set;
pub mod detect;
pub mod embed;
pub mod exemplars;
pub mod inputs;
pub mod multilabel;
pub mod npy;
pub mod predict;
pub mod segment;

use std::path::Path;

use vpt_base::{Progress, Result};
use vpt_data::{Batch, Loader, Sample, visit_batches};
use vpt_image::Preprocess;
use vpt_model::predict::BATCH;

/// Batches of `samples` in their order, decoded ahead by `threads` threads, without augmentation.
pub fn batches(samples: Vec<Sample>, preprocess: &Preprocess, threads: usize) -> Result<Loader> {
    Loader::plain(samples, preprocess, BATCH, threads)
}

/// Calls `take` with each batch of `samples`, as [`batches`] makes them.
pub(crate) fn each_batch(
    samples: Vec<Sample>,
    preprocess: &Preprocess,
    threads: usize,
    progress: Progress,
    mut take: impl FnMut(&Batch) -> Result<()>,
) -> Result<()> {
    let total = samples.len();
    let go_on = &mut |done, total| {
        progress(done, total);
        true
    };
    visit_batches(batches(samples, preprocess, threads)?, total, go_on, |batch| take(&batch)).map(|_| ())
}

/// A path as text.
fn name(path: &Path) -> String {
    path.display().to_string()
}
