//! Batches of labelled images, decoded, augmented and normalised ahead of whoever trains on them.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use rand::seq::SliceRandom;

use super::augment::Augment;
use super::batch_loader::{BatchLoader, ImageCount, MakeBatch};
use super::dataset::Sample;
use super::examine::digest;
use vpt_base::{Error, Result, random};
use vpt_image::decode::Rgb8;
use vpt_image::preprocess::Preprocess;

/// The positions `0..n` in the order in which epoch `epoch` visits them.
pub fn epoch_order(n: usize, seed: u64, epoch: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..n).collect();
    order.shuffle(&mut random::stream(seed, "epoch order", epoch, 0));
    order
}

/// A batch of `B` images of `H` x `W` pixels.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// `[B, 3, H, W]`, normalised.
    pub pixels: Vec<f32>,
    /// Class of each image.
    pub labels: Vec<u32>,
    /// Position of each image in the loader's samples.
    pub indices: Vec<usize>,
}

impl ImageCount for Batch {
    fn images(&self) -> usize {
        self.indices.len()
    }
}

/// How a [`Loader`] makes its batches.
#[derive(Clone, Debug)]
pub struct LoaderOptions {
    /// What the backbone expects.
    pub preprocess: Preprocess,
    /// Random changes; the default for evaluation.
    pub augment: Augment,
    /// Seed of the random changes.
    pub seed: u64,
    /// Epoch of the random changes.
    pub epoch: u64,
    /// Images in a batch; the last one may have fewer.
    pub batch: usize,
    /// Threads that make images; at least one is used.
    pub threads: usize,
    /// Where resized pixels are kept from one epoch to the next.
    pub cache: Option<Arc<PixelCache>>,
    /// Where digests of the decoded images are put, by position.
    pub digests: Option<Arc<[OnceLock<[u8; 32]>]>>,
}

/// Pixels of a set of samples as `made` makes them, a [`Preprocess`] here, kept while there is room. What is kept is what
/// would be computed again, so it never changes a batch.
#[derive(Debug)]
pub struct PixelCache<M = Preprocess> {
    made: M,
    slots: Vec<OnceLock<Box<[u8]>>>,
    room: AtomicUsize,
}

impl<M: PartialEq> PixelCache<M> {
    /// An empty cache for `samples` images behind `made` that keeps at most `bytes`.
    pub fn new(samples: usize, made: M, bytes: usize) -> Self {
        Self { made, slots: (0..samples).map(|_| OnceLock::new()).collect(), room: AtomicUsize::new(bytes) }
    }

    /// Whether it is for `samples` images behind `made`.
    pub(super) fn check(&self, samples: usize, made: &M) -> Result<()> {
        if self.slots.len() != samples || self.made != *made {
            return Err(Error::invalid("cache", "made for other samples or another preprocessing"));
        }
        Ok(())
    }

    /// The same where what was at `order[i]` is at `i`.
    #[must_use]
    pub fn reordered(mut self, order: &[usize]) -> Self {
        self.slots =
            order.iter().map(|&from| self.slots.get_mut(from).map(std::mem::take).unwrap_or_default()).collect();
        self
    }

    pub(super) fn get(&self, index: usize) -> Option<&[u8]> {
        self.slots.get(index)?.get().map(AsRef::as_ref)
    }

    pub(super) fn keep(&self, index: usize, pixels: &[u8]) {
        let Some(slot) = self.slots.get(index) else { return };
        let take = |room: usize| room.checked_sub(pixels.len());
        if slot.get().is_none() && self.room.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok() {
            let _ = slot.set(pixels.into());
        }
    }
}

/// An iterator over the batches of one pass over labelled images.
pub type Loader = BatchLoader<LabelledImages>;

/// Labelled images, and how they are made ready.
#[derive(Debug)]
pub struct LabelledImages {
    samples: Arc<[Sample]>,
    /// Width and height of each.
    size: (usize, usize),
    options: LoaderOptions,
}

impl Loader {
    /// The samples at the positions in `order`, in that order, as batches.
    ///
    /// # Errors
    /// The batch size is 0, a position is none, the augmentation makes no sense, the preprocessing does not give all images
    /// the same size, or no thread can be started. An image that cannot be read is an error of its batch, after which the
    /// iterator ends.
    pub fn new(samples: Arc<[Sample]>, order: Vec<usize>, options: LoaderOptions) -> Result<Self> {
        options.augment.check()?;
        let size = options.preprocess.output_size().ok_or_else(|| {
            Error::invalid(
                "preprocessing",
                "gives images of different sizes, which cannot be one batch; a crop is missing",
            )
        })?;
        if let Some(cache) = &options.cache {
            cache.check(samples.len(), &options.preprocess)?;
        }
        let (batch, threads) = (options.batch, options.threads);
        Self::start(LabelledImages { samples, size, options }, order, batch, threads)
    }

    /// Batches of `batch` of `samples` in their order, as they are, made ahead by `threads` threads.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn plain(samples: Vec<Sample>, preprocess: &Preprocess, batch: usize, threads: usize) -> Result<Self> {
        let order = (0..samples.len()).collect();
        let options = LoaderOptions {
            preprocess: preprocess.clone(),
            augment: Augment::default(),
            seed: 0,
            epoch: 0,
            batch,
            threads,
            cache: None,
            digests: None,
        };
        Self::new(samples.into(), order, options)
    }
}

impl MakeBatch for LabelledImages {
    /// `[3, H, W]`.
    type Item = Vec<f32>;
    type Batch = Batch;

    fn images(&self) -> usize {
        self.samples.len()
    }

    fn path(&self, index: usize) -> &Path {
        self.samples[index].path()
    }

    fn make(&self, index: usize) -> Result<Vec<f32>> {
        let (sample, size) = (&self.samples[index], self.size);
        let LoaderOptions { preprocess, augment, seed, epoch, cache, digests, .. } = &self.options;
        let mut rng = random::stream(*seed, "augment", *epoch, index as u64);
        let cache = cache.as_deref().filter(|_| augment.keeps_crop());
        let load = || {
            let whole = sample.load()?;
            if let Some(slot) = digests.as_deref().and_then(|digests| digests.get(index)) {
                let _ = slot.set(digest(&whole));
            }
            Ok::<_, Error>(whole)
        };
        if preprocess.unrounded && augment.keeps_values() {
            // What is kept may be bytes, of another pass with other changes.
            let kept = cache.and_then(|c| c.get(index)).filter(|kept| kept.len() == 4 * 3 * size.0 * size.1);
            let mut values = if let Some(kept) = kept {
                kept.as_chunks().0.iter().map(|&value| f32::from_ne_bytes(value)).collect()
            } else {
                let values = preprocess.apply(&load()?)?;
                if let Some(cache) = cache {
                    cache.keep(index, &values.iter().flat_map(|value| value.to_ne_bytes()).collect::<Vec<u8>>());
                }
                values
            };
            augment.flip_rows(&mut values, size.0, &mut rng);
            return Ok(values);
        }
        let kept = cache.and_then(|c| c.get(index)).filter(|kept| kept.len() == 3 * size.0 * size.1);
        let mut image = if let Some(kept) = kept {
            Rgb8 { width: size.0, height: size.1, pixels: kept.to_vec() }
        } else {
            let image = augment.pixels(&load()?, preprocess, &mut rng)?;
            if let Some(cache) = cache {
                cache.keep(index, &image.pixels);
            }
            image
        };
        augment.change(&mut image, &mut rng);
        let mut out = vec![0.0; image.pixels.len()];
        preprocess.normalise_into(&image.pixels, &mut out);
        Ok(out)
    }

    fn batch(&self, indices: Vec<usize>, items: Vec<Vec<f32>>) -> Batch {
        let labels = indices.iter().map(|&i| self.samples[i].label).collect();
        Batch { pixels: items.concat(), labels, indices }
    }
}

#[cfg(test)]
mod tests {
    use super::super::augment::AugmentPolicy;
    use super::super::dataset::ImageSource;
    use super::*;
    use std::time::{Duration, Instant};
    use vpt_image::{preprocess::Size, resize::Filter};

    fn samples(n: usize) -> Arc<[Sample]> {
        let sample = |i: usize| {
            let grey: Vec<u8> = (0..20 * 16).map(|p| (p * 31 + i * 97) as u8).collect();
            let image = ImageSource::Memory(Arc::new(Rgb8::from_grey(20, 16, &grey)));
            Sample { image, label: i as u32 % 3, id: format!("image {i}") }
        };
        (0..n).map(sample).collect()
    }

    fn options(threads: usize) -> LoaderOptions {
        let augment = Augment { flip: true, random_resized_crop: Some((0.2, 1.0)), ..Augment::default() };
        LoaderOptions {
            preprocess: Preprocess::clip(8),
            augment,
            seed: 5,
            epoch: 2,
            batch: 4,
            threads,
            cache: None,
            digests: None,
        }
    }

    fn all(n: usize, options: LoaderOptions) -> Vec<Batch> {
        let order = epoch_order(n, options.seed, options.epoch);
        Loader::new(samples(n), order, options).unwrap().collect::<Result<_>>().unwrap()
    }

    #[test]
    fn any_number_of_threads_gives_the_same_bytes() {
        let one = all(23, options(1));
        assert_eq!(one.iter().map(|b| b.labels.len()).collect::<Vec<_>>(), [4, 4, 4, 4, 4, 3]);
        assert_eq!(one.iter().flat_map(|b| b.indices.clone()).collect::<Vec<_>>(), epoch_order(23, 5, 2));
        assert!(one.iter().all(|b| b.pixels.len() == b.labels.len() * 3 * 8 * 8));
        assert!(one.iter().all(|b| b.indices.iter().zip(&b.labels).all(|(&i, &l)| l == i as u32 % 3)));
        for threads in [2, 3, 8, 100] {
            assert_eq!(all(23, options(threads)), one, "{threads} threads");
        }
    }

    #[test]
    fn an_image_changes_with_the_epoch_and_not_with_its_place() {
        let of = |epoch: u64, order: Vec<usize>| {
            let options = LoaderOptions { epoch, ..options(2) };
            Loader::new(samples(6), order, options).unwrap().next().unwrap().unwrap()
        };
        let size = 3 * 8 * 8;
        assert_eq!(of(1, vec![4, 2]).pixels[size..], of(1, vec![2, 5]).pixels[..size]);
        assert_ne!(of(1, vec![2]).pixels, of(2, vec![2]).pixels);
        assert_ne!(epoch_order(50, 1, 0), epoch_order(50, 1, 1));
    }

    #[test]
    fn a_cache_changes_nothing_whether_it_holds_all_or_some() {
        let augment = Augment { flip: true, policy: AugmentPolicy::Trivial, ..Augment::default() };
        let plain = LoaderOptions { augment, ..options(3) };
        for images in [0, 4, 1000] {
            let cache = Arc::new(PixelCache::new(10, Preprocess::clip(8), images * 8 * 8 * 3));
            for epoch in 0..3 {
                let plain = LoaderOptions { epoch, ..plain.clone() };
                let cached = LoaderOptions { cache: Some(cache.clone()), ..plain.clone() };
                assert_eq!(all(10, cached), all(10, plain));
            }
            let kept = cache.slots.iter().filter(|s| s.get().is_some()).count();
            assert_eq!(kept, images.min(10));
        }
        let other = LoaderOptions { cache: Some(Arc::new(PixelCache::new(10, Preprocess::clip(9), 0))), ..plain };
        assert!(Loader::new(samples(10), vec![0], other).is_err());
    }

    #[test]
    fn what_is_kept_moves_with_its_image() {
        let cache = PixelCache::new(3, (), 100);
        cache.keep(0, &[1]);
        cache.keep(2, &[3]);
        let cache = cache.reordered(&[2, 0, 1]);
        assert_eq!([0, 1, 2].map(|i| cache.get(i)), [Some(&[3][..]), Some(&[1][..]), None]);
    }

    #[test]
    fn an_unreadable_image_is_an_error_that_names_it_and_ends_the_pass() {
        let mut broken = samples(9).to_vec();
        broken[5].image = ImageSource::File("/no/such/image.png".into());
        let order = vec![0, 1, 2, 3, 4, 5, 6];
        let mut loader = Loader::new(broken.into(), order, options_plain()).unwrap();
        assert!(loader.next().unwrap().is_ok());
        let message = loader.next().unwrap().unwrap_err().to_string();
        assert!(message.starts_with("/no/such/image.png: "), "{message}");
        assert!(loader.next().is_none());
    }

    #[test]
    fn values_that_are_not_rounded_are_kept_so() {
        let exact = Some(Size::Exact { width: 8, height: 8 });
        let preprocess =
            Preprocess { unrounded: true, crop: None, resize: exact, filter: Filter::Bilinear, ..Preprocess::clip(8) };
        let samples = samples(6);
        let each = 4 * 3 * 8 * 8;
        let cache = Some(Arc::new(PixelCache::new(6, preprocess.clone(), 4 * each)));
        let flip = Augment { flip: true, ..Augment::default() };
        let drawn = Augment { policy: AugmentPolicy::Trivial, ..flip };
        for augment in [Augment::default(), flip, drawn, flip, Augment::default()] {
            let plain = LoaderOptions { preprocess: preprocess.clone(), augment, ..options(1) };
            let cached = LoaderOptions { cache: cache.clone(), ..plain.clone() };
            let all = |options| Loader::new(samples.clone(), (0..6).collect(), options).unwrap().map(|b| b.unwrap());
            let pixels: Vec<f32> = all(plain).flat_map(|batch| batch.pixels).collect();
            assert_eq!(pixels, all(cached).flat_map(|batch| batch.pixels).collect::<Vec<f32>>());
            if augment.is_none() {
                let whole = samples.iter().flat_map(|sample| preprocess.apply(&sample.load().unwrap()).unwrap());
                assert_eq!(pixels, whole.collect::<Vec<f32>>());
            }
        }
    }

    fn options_plain() -> LoaderOptions {
        LoaderOptions { augment: Augment::default(), ..options(3) }
    }

    #[test]
    fn dropping_it_early_stops_its_threads() {
        let start = Instant::now();
        for taken in [0, 1] {
            let mut loader = Loader::new(samples(10), (0..10).cycle().take(100_000).collect(), options(4)).unwrap();
            assert_eq!(loader.by_ref().take(taken).count(), taken);
            let samples = Arc::downgrade(&loader.maker.samples);
            drop(loader);
            assert_eq!(samples.strong_count(), 0);
        }
        // All of it would take minutes.
        assert!(start.elapsed() < Duration::from_secs(20));
    }

    #[test]
    fn nothing_and_nonsense() {
        assert!(Loader::new(samples(3), vec![], options(2)).unwrap().next().is_none());
        assert!(Loader::new(samples(3), vec![3], options(2)).is_err());
        assert!(Loader::new(samples(3), vec![0], LoaderOptions { batch: 0, ..options(2) }).is_err());
        let preprocess = Preprocess { crop: None, ..Preprocess::clip(8) };
        let message = Loader::new(samples(3), vec![0], LoaderOptions { preprocess, ..options(2) }).unwrap_err();
        assert!(message.to_string().contains("different sizes"));
    }
}
