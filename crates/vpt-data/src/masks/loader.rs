//! Batches of windows with the classes in them, made ahead of whoever trains on them.

use std::path::Path;
use std::sync::Arc;

use rand::Rng;
use rand_chacha::ChaCha8Rng;

use super::window::SeenWindow;
use super::{MaskImage, MaskInput};
use crate::batch_loader::{BatchLoader, ImageCount, MakeBatch};
use vpt_base::{Error, Result, random};
use vpt_image::decode::Rgb8;

/// Random changes to training images.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct MaskAugment {
    /// Mirror half of them.
    pub flip: bool,
    /// Zoom by a factor between these, and see a window anywhere.
    pub scale: Option<[f32; 2]>,
}

impl MaskAugment {
    /// # Errors
    /// The factors are no range of positive numbers.
    pub fn check(&self) -> Result<()> {
        match self.scale {
            Some([least, most]) if !(0.1 <= least && least <= most && most <= 10.) => {
                let message = format!("{least} to {most} are not factors with 0.1 <= least <= most <= 10");
                Err(Error::setting("scale_jitter", message))
            }
            _ => Ok(()),
        }
    }
}

/// What is seen of an image.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum MaskView {
    /// All of its windows.
    Windows {
        /// Left and right exchanged.
        mirror: bool,
    },
    /// One window, drawn by seed, epoch and index.
    Random(MaskAugment),
}

/// How images are read.
#[derive(Clone, Debug)]
pub struct MaskLoaderOptions {
    /// What the network takes.
    pub input: MaskInput,
    /// What is seen.
    pub view: MaskView,
    /// Whether masks are read.
    pub labels: bool,
    /// Seed of what is random.
    pub seed: u64,
    /// The epoch, which changes it.
    pub epoch: u64,
    /// Images in a batch.
    pub batch: usize,
    /// Threads that make them.
    pub threads: usize,
}

/// Windows of some images, one image behind the other.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MaskBatch {
    /// `[W, 3, S, S]`.
    pub pixels: Vec<f32>,
    /// `[W, L, L]`; empty if masks are not read.
    pub labels: Vec<u16>,
    /// How many windows each image has.
    pub windows: Vec<usize>,
    /// Positions of the images.
    pub indices: Vec<usize>,
}

impl ImageCount for MaskBatch {
    fn images(&self) -> usize {
        self.indices.len()
    }
}

/// Makes batches of the images of a part.
pub type MaskLoader = BatchLoader<MaskMaker>;

/// What a [`MaskLoader`] makes items with.
#[derive(Debug)]
pub struct MaskMaker {
    images: Arc<[MaskImage]>,
    options: MaskLoaderOptions,
}

impl MaskLoader {
    /// The images at the positions in `order`, in that order.
    ///
    /// # Errors
    /// The options make no sense, or a position is none.
    pub fn new(images: Arc<[MaskImage]>, order: Vec<usize>, options: MaskLoaderOptions) -> Result<Self> {
        options.input.check()?;
        if let MaskView::Random(augment) = &options.view {
            augment.check()?;
        }
        let (batch, threads) = (options.batch, options.threads);
        Self::start(MaskMaker { images, options }, order, batch, threads)
    }
}

impl MakeBatch for MaskMaker {
    type Item = Vec<SeenWindow>;
    type Batch = MaskBatch;

    fn images(&self) -> usize {
        self.images.len()
    }

    fn path(&self, index: usize) -> &Path {
        self.images[index].file()
    }

    fn make(&self, index: usize) -> Result<Vec<SeenWindow>> {
        let MaskLoaderOptions { input, view, labels, seed, epoch, .. } = &self.options;
        let image = &self.images[index];
        let pixels = image.image.load()?;
        let mask = labels.then(|| image.mask()).transpose()?;
        let Rgb8 { width, height, .. } = pixels;
        if (width, height) != (image.width, image.height) {
            let message = format!("{width}x{height} pixels, but its mask is for {}x{}", image.width, image.height);
            return Err(Error::image(image.file(), message));
        }
        match *view {
            MaskView::Windows { mirror } => {
                let see = |at| Ok(input.see(&pixels, mask.as_ref(), input.place(width, height, at)?, mirror));
                input.windows(width, height)?.into_iter().map(see).collect()
            }
            MaskView::Random(MaskAugment { flip, scale }) => {
                let mut rng: ChaCha8Rng = random::stream(*seed, "augment", *epoch, index as u64);
                let place = input.random_place(width, height, scale.unwrap_or([1.; 2]), &mut rng)?;
                let mirror = flip && rng.random_bool(0.5);
                Ok(vec![input.see(&pixels, mask.as_ref(), place, mirror)])
            }
        }
    }

    fn batch(&self, indices: Vec<usize>, items: Vec<Vec<SeenWindow>>) -> MaskBatch {
        let MaskInput { preprocess, side, .. } = &self.options.input;
        let each = 3 * side * side;
        let windows: Vec<usize> = items.iter().map(Vec::len).collect();
        let count: usize = windows.iter().sum();
        let mut out = MaskBatch { pixels: vec![0.; count * each], labels: Vec::new(), windows, indices };
        for (seen, to) in items.into_iter().flatten().zip(out.pixels.chunks_exact_mut(each)) {
            preprocess.normalise_into(&seen.pixels, to);
            out.labels.extend(seen.labels);
        }
        out
    }
}
