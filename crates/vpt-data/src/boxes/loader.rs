//! Batches of images with boxes, decoded, augmented with their boxes and normalised ahead of whoever trains on them.

use std::path::Path;
use std::sync::Arc;

use super::super::batch_loader::{BatchLoader, ImageCount, MakeBatch};
use super::super::loader::PixelCache;
use super::BoxImage;
use super::augment::BoxAugment;
use super::view::{BoxInput, Target, View, Viewed};
use vpt_base::{Error, Result, random};

/// A batch of `B` images as `S` x `S` pixels, of which the network makes `G` x `G` tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct BoxBatch {
    /// `[B, 3, S, S]`, normalised; 0 in padding.
    pub pixels: Vec<f32>,
    /// The objects in each image.
    pub targets: Vec<Vec<Target>>,
    /// Where each image lies in its input.
    pub views: Vec<View>,
    /// `[B, G, G]`: whether a token's centre lies on an image and not on padding; `None` if all do.
    pub valid: Option<Vec<bool>>,
    /// Position of each image in the loader's images.
    pub indices: Vec<usize>,
}

impl ImageCount for BoxBatch {
    fn images(&self) -> usize {
        self.indices.len()
    }
}

/// How a [`BoxLoader`] makes its batches.
#[derive(Clone, Debug)]
pub struct BoxLoaderOptions {
    /// What the network is given.
    pub input: BoxInput,
    /// Random changes; the default for evaluation.
    pub augment: BoxAugment,
    /// Exchange left and right in every image, where the features of both forms are wanted; not beside a random flip.
    pub mirror: bool,
    /// Seed of the random changes.
    pub seed: u64,
    /// Epoch of the random changes.
    pub epoch: u64,
    /// Images in a batch; the last one may have fewer.
    pub batch: usize,
    /// Threads that make images; at least one is used.
    pub threads: usize,
    /// Where resized pixels are kept from one epoch to the next, `3 S S` bytes each; used where nothing but a flip is random.
    pub cache: Option<Arc<PixelCache<BoxInput>>>,
}

impl BoxLoaderOptions {
    /// One image at a time, as it is; the caller sets what differs.
    pub fn plain(input: BoxInput, threads: usize) -> Self {
        let augment = BoxAugment::default();
        Self { input, augment, mirror: false, seed: 0, epoch: 0, batch: 1, threads, cache: None }
    }
}

/// An iterator over the batches of one pass over images with boxes.
pub type BoxLoader = BatchLoader<BoxedImages>;

/// Images with boxes, and how they are made ready.
#[derive(Debug)]
pub struct BoxedImages {
    images: Arc<[BoxImage]>,
    options: BoxLoaderOptions,
}

/// One image of a batch.
#[derive(Debug)]
pub struct BoxItem {
    pixels: Vec<f32>,
    targets: Vec<Target>,
    view: View,
    valid: Option<Vec<bool>>,
}

impl BoxLoader {
    /// The images at the positions in `order`, in that order, as batches.
    ///
    /// # Errors
    /// The batch size is 0, a position is none, input or augmentation make no sense, the cache is for others, or no thread
    /// can be started. An image that cannot be read, or is of another size than its annotation says, is an error of its
    /// batch, after which the iterator ends.
    pub fn new(images: Arc<[BoxImage]>, order: Vec<usize>, options: BoxLoaderOptions) -> Result<Self> {
        let BoxLoaderOptions { input, augment, batch, threads, .. } = &options;
        let (batch, threads) = (*batch, *threads);
        input.check()?;
        augment.check()?;
        if options.mirror && augment.flip {
            return Err(Error::invalid("mirror", "cannot be combined with a random flip"));
        }
        if let Some(cache) = &options.cache {
            cache.check(images.len(), input)?;
        }
        Self::start(BoxedImages { images, options }, order, batch, threads)
    }
}

impl MakeBatch for BoxedImages {
    type Item = BoxItem;
    type Batch = BoxBatch;

    fn images(&self) -> usize {
        self.images.len()
    }

    fn path(&self, index: usize) -> &Path {
        self.images[index].file()
    }

    fn make(&self, index: usize) -> Result<BoxItem> {
        make(&self.images, index, &self.options)
    }

    fn batch(&self, indices: Vec<usize>, items: Vec<BoxItem>) -> BoxBatch {
        BoxBatch::of(indices, items, self.options.input.grid)
    }
}

impl BoxBatch {
    fn of(indices: Vec<usize>, made: Vec<BoxItem>, grid: usize) -> Self {
        let padded = made.iter().any(|m| m.valid.is_some());
        let mut batch = Self {
            pixels: Vec::with_capacity(made.iter().map(|m| m.pixels.len()).sum()),
            targets: Vec::with_capacity(made.len()),
            views: Vec::with_capacity(made.len()),
            valid: padded.then(Vec::new),
            indices,
        };
        for BoxItem { pixels, targets, view, valid } in made {
            batch.pixels.extend_from_slice(&pixels);
            batch.targets.push(targets);
            batch.views.push(view);
            if let Some(all) = &mut batch.valid {
                all.extend(valid.unwrap_or_else(|| vec![true; grid * grid]));
            }
        }
        batch
    }
}

/// The image at `index`, ready for its batch.
fn make(images: &[BoxImage], index: usize, options: &BoxLoaderOptions) -> Result<BoxItem> {
    let BoxLoaderOptions { input, augment, mirror, seed, epoch, cache, .. } = options;
    let mut rng = random::stream(*seed, "augment", *epoch, index as u64);
    let mut viewed: Viewed = if augment.only_flip() {
        let image = &images[index];
        let cache = cache.as_deref();
        let mut viewed = if let Some(kept) = cache.and_then(|c| c.get(index)) {
            input.view_again(kept, image.width, image.height, &image.objects)
        } else {
            let viewed = input.view(&image.load_checked()?, &image.objects);
            if let Some(cache) = cache {
                cache.keep(index, &viewed.pixels.pixels);
            }
            viewed
        };
        augment.flip(&mut viewed, &mut rng);
        viewed
    } else {
        augment.view(input, images, index, &mut rng, |i| images[i].load_checked())?
    };
    if *mirror {
        viewed.mirror();
    }
    let (pixels, valid) = (input.normalised(&viewed), viewed.valid_tokens(input.grid));
    Ok(BoxItem { pixels, targets: viewed.targets, view: viewed.view, valid })
}

#[cfg(test)]
mod tests {
    use super::super::super::loader::epoch_order;
    use super::super::view::Fit;
    use super::super::view::tests::{input, painted};
    use super::*;
    use crate::ImageSource;
    use std::path::Path;
    use vpt_base::files::write_atomic;

    /// `n` images of changing sizes in `folder`.
    fn images(folder: &Path, n: usize) -> Arc<[BoxImage]> {
        let one = |i: usize| {
            let (width, height) = (30 + 7 * (i % 3), 40 - 5 * (i % 4));
            let (image, object) = painted([width, height], [2 + i % 5, 3, 12, 15], i % 5);
            let name = format!("{i}.png");
            let path = folder.join(&name);
            let mut png = std::io::Cursor::new(Vec::new());
            image::RgbImage::from_raw(width as u32, height as u32, image.pixels)
                .unwrap()
                .write_to(&mut png, image::ImageFormat::Png)
                .unwrap();
            write_atomic(&path, png.get_ref()).unwrap();
            BoxImage { id: i as u64 + 1, name, image: ImageSource::File(path), width, height, objects: vec![object] }
        };
        (0..n).map(one).collect()
    }

    fn options(threads: usize, fit: Fit) -> BoxLoaderOptions {
        let augment = BoxAugment { flip: true, scale: Some([0.5, 2.]), crop: true, mosaic: 0.3 };
        let input = input(32, fit);
        BoxLoaderOptions { input, augment, mirror: false, seed: 5, epoch: 2, batch: 4, threads, cache: None }
    }

    fn all(images: &Arc<[BoxImage]>, options: BoxLoaderOptions) -> Vec<BoxBatch> {
        let order = epoch_order(images.len(), options.seed, options.epoch);
        BoxLoader::new(images.clone(), order, options).unwrap().collect::<Result<_>>().unwrap()
    }

    #[test]
    fn any_number_of_threads_gives_the_same_batches() {
        let dir = tempfile::tempdir().unwrap();
        let images = images(dir.path(), 11);
        for fit in [Fit::Stretch, Fit::Letterbox] {
            let one = all(&images, options(1, fit));
            assert_eq!(one.iter().map(|b| b.indices.len()).collect::<Vec<_>>(), [4, 4, 3]);
            assert_eq!(one.iter().flat_map(|b| b.indices.clone()).collect::<Vec<_>>(), epoch_order(11, 5, 2));
            for batch in &one {
                let n = batch.indices.len();
                assert_eq!((batch.pixels.len(), batch.targets.len(), batch.views.len()), (n * 3 * 32 * 32, n, n));
                assert!(batch.valid.as_ref().is_none_or(|v| v.len() == n * 4 * 4));
            }
            for threads in [2, 7] {
                assert_eq!(all(&images, options(threads, fit)), one, "{threads} threads");
            }
            let other = all(&images, BoxLoaderOptions { epoch: 3, ..options(1, fit) });
            assert_ne!(other, one);
        }
    }

    #[test]
    fn a_cache_changes_nothing_whether_it_holds_all_or_some() {
        let dir = tempfile::tempdir().unwrap();
        let images = images(dir.path(), 10);
        for fit in [Fit::Stretch, Fit::Letterbox] {
            let augment = BoxAugment { flip: true, ..BoxAugment::default() };
            let plain = BoxLoaderOptions { augment, ..options(3, fit) };
            for kept in [0, 4, 1000] {
                let cache = Arc::new(PixelCache::new(10, plain.input.clone(), kept * 32 * 32 * 3));
                for epoch in 0..3 {
                    let plain = BoxLoaderOptions { epoch, ..plain.clone() };
                    let cached = BoxLoaderOptions { cache: Some(cache.clone()), ..plain.clone() };
                    assert_eq!(all(&images, cached), all(&images, plain));
                }
                assert_eq!((0..10).filter(|&i| cache.get(i).is_some()).count(), kept.min(10));
            }
            let cache = Some(Arc::new(PixelCache::new(10, input(33, fit), 0)));
            assert!(BoxLoader::new(images.clone(), vec![0], BoxLoaderOptions { cache, ..plain }).is_err());
        }
    }

    #[test]
    fn mirror_exchanges_left_and_right_in_every_image() {
        let dir = tempfile::tempdir().unwrap();
        let images = images(dir.path(), 3);
        let plain = BoxLoaderOptions { augment: BoxAugment::default(), ..options(2, Fit::Letterbox) };
        let mirror = BoxLoaderOptions { mirror: true, ..plain.clone() };
        let (plain, mirrored) = (all(&images, plain), all(&images, mirror.clone()));
        assert!(mirrored[0].views.iter().all(View::is_mirrored) && !plain[0].views.iter().any(View::is_mirrored));
        for (a, b) in plain[0].pixels.chunks(32).zip(mirrored[0].pixels.chunks(32)) {
            assert!(a.iter().eq(b.iter().rev()));
        }
        let flip = BoxAugment { flip: true, ..BoxAugment::default() };
        assert!(BoxLoader::new(images, vec![0], BoxLoaderOptions { augment: flip, ..mirror }).is_err());
    }

    #[test]
    fn an_image_that_cannot_be_used_is_an_error_that_names_it_and_ends_the_pass() {
        let dir = tempfile::tempdir().unwrap();
        let good = images(dir.path(), 6);
        let name = good[4].file().display().to_string();
        let mut absent = good.to_vec();
        absent[4].image = ImageSource::File("/no/such/image.png".into());
        let mut other_size = good.to_vec();
        other_size[4].width += 1;
        for (images, message) in
            [(absent, "/no/such/image.png: ".into()), (other_size, format!("{name}: 37x40 pixels"))]
        {
            let options = BoxLoaderOptions { augment: BoxAugment::default(), ..options(3, Fit::Stretch) };
            let mut loader = BoxLoader::new(images.into(), (0..6).collect(), options).unwrap();
            assert_eq!(loader.batches(), 2);
            assert!(loader.next().unwrap().is_ok());
            let error = loader.next().unwrap().unwrap_err().to_string();
            assert!(error.starts_with(&message), "{error}");
            assert!(loader.next().is_none());
        }
    }
}
