//! The one loader: batches of whatever a task's images become, made ahead on threads.
//!
//! The content of a batch depends on its images, the order, the seed and the epoch alone: each item is made from its own random
//! stream and put in its place, whichever thread makes it and whenever.

use std::{fmt, path::Path, sync::Arc};

use super::prefetch::{Prefetch, blaming};
use vpt_base::{Error, Result};

/// Batches that are made ahead.
const AHEAD: usize = 2;

/// Some images, of a part or of a batch.
pub trait ImageCount {
    /// How many there are.
    fn images(&self) -> usize;
}

impl<T: ImageCount> ImageCount for Arc<T> {
    fn images(&self) -> usize {
        T::images(self)
    }
}

/// The one loop over images that nothing is learned from: calls `take` with each of `batches`, which are of `total` images, and
/// then `go_on` with how many images are done, and with `total`; `false` as soon as that says not to.
///
/// # Errors
/// Those of the batches and of `take`.
pub fn visit_batches<B: ImageCount>(
    batches: impl Iterator<Item = Result<B>>,
    total: usize,
    go_on: &mut dyn FnMut(usize, usize) -> bool,
    mut take: impl FnMut(B) -> Result<()>,
) -> Result<bool> {
    let mut done = 0;
    for batch in batches {
        let batch = batch?;
        done += batch.images();
        take(batch)?;
        if !go_on(done, total) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Makes the items of a data set, and batches of them.
pub trait MakeBatch: Send + Sync + 'static {
    /// One image, ready for its batch.
    type Item: Send + 'static;
    /// Some of them.
    type Batch;

    /// Number of images.
    fn images(&self) -> usize;

    /// The file, or what stands for it, that an error of the image at `index` names.
    fn path(&self, index: usize) -> &Path;

    /// Decodes the image at `index` and changes it as its task does.
    ///
    /// # Errors
    /// It cannot be read.
    fn make(&self, index: usize) -> Result<Self::Item>;

    /// The batch of `items`, which are the images at `indices`.
    fn batch(&self, indices: Vec<usize>, items: Vec<Self::Item>) -> Self::Batch;
}

/// An iterator over the batches of one pass. Dropping it early stops its threads.
pub struct BatchLoader<M: MakeBatch> {
    pub(super) maker: Arc<M>,
    items: Prefetch<M::Item>,
    size: usize,
}

impl<M: MakeBatch> BatchLoader<M> {
    /// The images at the positions in `order`, in that order, as batches of `size`, made on `threads` threads.
    ///
    /// # Errors
    /// The batch size is 0, a position is none, or no thread can be started. An image that cannot be made ready is an error of
    /// its batch, after which the iterator ends.
    pub(super) fn start(maker: M, order: Vec<usize>, size: usize, threads: usize) -> Result<Self> {
        if size == 0 {
            return Err(Error::invalid("batch size", "0"));
        }
        let images = maker.images();
        if let Some(bad) = order.iter().find(|&&index| index >= images) {
            return Err(Error::invalid("order", format!("position {bad} of {images} samples")));
        }
        let maker = Arc::new(maker);
        let making = maker.clone();
        let items = Prefetch::new(order, AHEAD * size, threads, move |index| {
            blaming(making.path(index), || making.make(index))
        })?;
        Ok(Self { maker, items, size })
    }

    /// Number of batches in the whole pass.
    pub fn batches(&self) -> usize {
        self.items.len().div_ceil(self.size)
    }
}

impl<M: MakeBatch> Iterator for BatchLoader<M> {
    type Item = Result<M::Batch>;

    fn next(&mut self) -> Option<Self::Item> {
        let taken = self.items.batch(self.size)?;
        Some(taken.map(|(indices, items)| self.maker.batch(indices, items)))
    }
}

impl<M: MakeBatch> fmt::Debug for BatchLoader<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BatchLoader").field("items", &self.items).field("size", &self.size).finish_non_exhaustive()
    }
}
