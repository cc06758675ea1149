//! A backbone or a learned task at work on images: features for other programs ([`embed`]), classes ([`predict`],
//! [`multilabel`]), boxes ([`detect`]); which files are meant ([`inputs`]).

pub mod detect;
pub mod embed;
pub mod inputs;
pub mod multilabel;
pub mod predict;

use std::path::{Path, PathBuf};

use vpt_base::{Progress, Result};
use vpt_data::{Augment, Batch, ImageSource, Loader, LoaderOptions, Sample, visit_batches};
use vpt_image::Preprocess;

/// Images that go through the backbone at a time.
pub(crate) const BATCH: usize = 64;

/// Files as samples of no class.
pub(crate) fn samples(images: &[PathBuf]) -> Vec<Sample> {
    let sample = |path: &PathBuf| Sample { image: ImageSource::File(path.clone()), label: 0, id: name(path) };
    images.iter().map(sample).collect()
}

/// Batches of `samples` in their order, decoded ahead by `threads` threads, without augmentation.
pub fn batches(samples: Vec<Sample>, preprocess: &Preprocess, threads: usize) -> Result<Loader> {
    let order = (0..samples.len()).collect();
    let options = LoaderOptions {
        preprocess: preprocess.clone(),
        augment: Augment::default(),
        seed: 0,
        epoch: 0,
        batch: BATCH,
        threads,
        cache: None,
        digests: None,
    };
    Loader::new(samples.into(), order, options)
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
