//! The images that a written file is held against the engine on.

use std::path::PathBuf;
use std::sync::Arc;

use rand::RngCore;
use vpt_base::{Result, random};
use vpt_data::{
    ImageSource,
    boxes::{BoxImage, BoxInput, BoxLoader, BoxLoaderOptions},
    masks::{MaskImage, MaskInput, MaskLoader, MaskLoaderOptions, MaskView},
    visit_batches,
};
use vpt_image::{Preprocess, Rgb8};

/// Side of images that are drawn at random.
const SIDE: usize = 256;
/// Images that are drawn, and that are taken of a run.
pub const COUNT: usize = 8;

/// Windows of an image that are looked at.
const WINDOWS: usize = 2;

/// Images that the written file is run on.
#[derive(Clone, Debug)]
pub struct Samples {
    images: Vec<ImageSource>,
    /// What they are, in words: `images of validation`.
    pub(crate) what: String,
}

impl Samples {
    /// These files; `what` says what they are.
    pub fn files(files: &[PathBuf], what: &str) -> Self {
        Self { images: files.iter().cloned().map(ImageSource::File).collect(), what: what.to_owned() }
    }

    /// Pictures of random squares, where there is nothing else.
    pub fn random() -> Self {
        let image = |i: usize| {
            let mut rng = random::stream(1, "export samples", 0, i as u64);
            let square = 1 << (i % 6);
            let across = SIDE / square;
            let colors: Vec<[u8; 3]> = (0..across * across)
                .map(|_| {
                    let [r, g, b, _] = rng.next_u32().to_le_bytes();
                    [r, g, b]
                })
                .collect();
            let color = |at: usize| colors[at / SIDE / square * across + at % SIDE / square];
            let pixels = (0..SIDE * SIDE).flat_map(color).collect();
            ImageSource::Memory(Arc::new(Rgb8 { width: SIDE, height: SIDE, pixels }))
        };
        Self { images: (0..COUNT).map(image).collect(), what: "random pictures".to_owned() }
    }

    /// What `preprocess` makes of them, `[n, 3, s, s]`.
    ///
    /// # Errors
    /// An image cannot be read; the error names it.
    pub(crate) fn pixels(&self, preprocess: &Preprocess) -> Result<Vec<f32>> {
        let mut pixels = Vec::new();
        for image in &self.images {
            pixels.extend(preprocess.apply(&image.load()?)?);
        }
        Ok(pixels)
    }

    /// What a detector is given of them, `[n, 3, s, s]`.
    ///
    /// # Errors
    /// As [`Self::pixels`].
    pub(crate) fn of_detector(&self, input: &BoxInput, threads: usize) -> Result<Vec<f32>> {
        let open = |image: &ImageSource| {
            let pixels = image.load()?;
            let name = image.file().map(|file| file.display().to_string()).unwrap_or_default();
            let (width, height) = (pixels.width, pixels.height);
            let image = ImageSource::Memory(Arc::new(pixels));
            Ok(BoxImage { id: 0, name, image, width, height, objects: Vec::new() })
        };
        let images = self.images.iter().map(open).collect::<Result<Vec<_>>>()?;
        let count = images.len();
        let loader =
            BoxLoader::new(images.into(), (0..count).collect(), BoxLoaderOptions::plain(input.clone(), threads))?;
        let mut pixels = Vec::new();
        visit_batches(loader, count, &mut |_, _| true, |batch| {
            pixels.extend(batch.pixels);
            Ok(())
        })?;
        Ok(pixels)
    }

    /// The first windows of each of them, `[n, 3, s, s]`.
    ///
    /// # Errors
    /// As [`Self::pixels`].
    pub(crate) fn of_segmenter(&self, input: &MaskInput, threads: usize) -> Result<Vec<f32>> {
        let open = |image: &ImageSource| {
            let name = image.file().map(|file| file.display().to_string()).unwrap_or_default();
            MaskImage::unlabelled(name, image.clone())
        };
        let images = self.images.iter().map(open).collect::<Result<Vec<_>>>()?;
        let count = images.len();
        let options = MaskLoaderOptions {
            input: input.clone(),
            view: MaskView::Windows { mirror: false },
            labels: false,
            seed: 0,
            epoch: 0,
            batch: 1,
            threads,
        };
        let loader = MaskLoader::new(images.into(), (0..count).collect(), options)?;
        let mut pixels = Vec::new();
        visit_batches(loader, count, &mut |_, _| true, |batch| {
            let most = WINDOWS * 3 * input.side * input.side;
            pixels.extend_from_slice(&batch.pixels[..batch.pixels.len().min(most)]);
            Ok(())
        })?;
        Ok(pixels)
    }
}
