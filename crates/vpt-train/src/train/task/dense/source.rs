//! Where batches come from: images made ahead of the model, or features that were computed once.

use std::{ops::Range, path::Path};

use super::{Change, DenseData, DenseTask, token_store::Store};
use crate::{
    config::Plan,
    train::{
        observer::{Event, Observer},
        progress::Stage,
        task::Batches,
    },
};
use vpt_base::{Error, Result};
use vpt_data::{ImageCount, Split, visit_batches};
use vpt_model::model::token_reader::{TokenInput, TokenReader};

/// Kind of input that is read of every window of a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum InputForm {
    /// The pixels, every time.
    Images,
    /// Tokens in front of the first prompted block, computed once.
    Prefix,
    /// All that the head reads of it, once.
    Features,
}

/// How images are seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Look {
    /// As they are, all windows of them.
    Plain {
        /// Left and right exchanged.
        mirror: bool,
    },
    /// Changed at random, as they are in `epoch` of `stage`.
    Random {
        /// What is changed.
        stage: Stage,
        /// Seed of how.
        epoch: u64,
    },
}

/// What there is to draw from of a training image whose features are computed once.
#[derive(Debug)]
pub(crate) struct DrawnRecord {
    /// The image.
    pub(crate) index: usize,
    /// The epoch that it is drawn for.
    pub(crate) epoch: u64,
    /// Its windows; of each there are records for `looks`, one behind the other.
    pub(crate) windows: Range<usize>,
    /// The image as it is and, if there are two, its mirrored form.
    pub(crate) looks: usize,
}

/// A part of a data set.
pub(crate) struct DenseSource<T> {
    split: Split,
    images: usize,
    cache: Option<TokenCache<T>>,
}

/// Values computed once, for each window of each image and, where the flip is wanted, for its mirrored form behind it.
struct TokenCache<T> {
    form: InputForm,
    store: Store,
    looks: usize,
    /// The first window of each image, and behind it how many there are in all.
    first: Vec<usize>,
    /// Of each record.
    targets: Vec<Option<T>>,
}

/// Images, or windows of them, in one form or another.
pub(crate) struct DenseBatch<T> {
    form: InputForm,
    values: Vec<f32>,
    /// Of each window.
    pub(crate) targets: Vec<T>,
    /// How many windows each image has.
    pub(crate) windows: Vec<usize>,
    /// Positions of the images in the part.
    pub(crate) indices: Vec<usize>,
}

impl<T> ImageCount for DenseSource<T> {
    fn images(&self) -> usize {
        self.images
    }
}

impl<T> ImageCount for DenseBatch<T> {
    fn images(&self) -> usize {
        self.indices.len()
    }
}

impl<T> DenseBatch<T> {
    /// The images at `indices`, each with so many `windows`, whose `pixels` are `[W, 3, S, S]`.
    pub(crate) fn of_images(pixels: Vec<f32>, targets: Vec<T>, windows: Vec<usize>, indices: Vec<usize>) -> Self {
        Self { form: InputForm::Images, values: pixels, targets, windows, indices }
    }

    /// Input of the model.
    pub(crate) fn input(&self) -> TokenInput<'_> {
        match self.form {
            InputForm::Images => TokenInput::Images(&self.values),
            InputForm::Prefix => TokenInput::Prefix(&self.values),
            InputForm::Features => TokenInput::Features(&self.values),
        }
    }
}

impl InputForm {
    /// What `stage` can compute once of images that do not change.
    fn of(stage: Stage, reader: &TokenReader) -> Self {
        match stage {
            Stage::Whole | Stage::Head => Self::Features,
            Stage::Prompts if reader.layout().is_some_and(|layout| layout.start > 0) => Self::Prefix,
            // There are no other stages.
            _ => Self::Images,
        }
    }

    /// Values of a window.
    fn width(self, reader: &TokenReader) -> usize {
        if self == Self::Features { reader.features_len() } else { reader.prefix_len() }
    }

    /// What is computed of `images` `[W, 3, S, S]`.
    fn compute(self, reader: &TokenReader, images: &[f32]) -> Result<Vec<f32>> {
        if self == Self::Features { reader.features(images) } else { reader.prefix(images) }
    }
}

impl<T: Clone + 'static> DenseSource<T> {
    /// The part.
    pub(super) fn split(&self) -> Split {
        self.split
    }

    /// The images of `split`, to be read as they are every time.
    pub(super) fn of_images<D: DenseTask<Target = T>>(task: &D, split: Split) -> Self {
        Self { split, images: task.dataset().images(split), cache: None }
    }

    /// The images of `split` with what `stage` can compute once; `folder` has room for what memory has none for. `None` when
    /// the observer asked to stop.
    pub(super) fn new<D: DenseTask<Target = T>>(
        task: &D,
        plan: &Plan,
        (split, stage): (Split, Stage),
        folder: &Path,
        observer: &mut dyn Observer,
    ) -> Result<Option<Self>> {
        let form = InputForm::of(stage, task.reader());
        let looks = match task.change(split, stage) {
            Change::Nothing => vec![Look::Plain { mirror: false }],
            Change::Flip => [false, true].map(|mirror| Look::Plain { mirror }).to_vec(),
            Change::Any => Vec::new(),
        };
        if looks.is_empty() || form == InputForm::Images {
            return Ok(Some(Self::of_images(task, split)));
        }
        let cache = TokenCache::compute(task, plan, split, form, &looks, folder, observer)?;
        Ok(cache.map(|cache| Self { cache: Some(cache), ..Self::of_images(task, split) }))
    }

    /// The images at `order` in batches of `size`; the last may be smaller. Of a training image a window is drawn, by `epoch`.
    pub(super) fn batches<'a, D: DenseTask<Target = T>>(
        &'a self,
        task: &'a D,
        plan: &'a Plan,
        stage: Stage,
        order: &'a [usize],
        epoch: usize,
        size: usize,
    ) -> Result<Batches<'a, DenseBatch<T>>> {
        let learned = self.split == Split::Train;
        let epoch = epoch as u64;
        if let Some(cache) = &self.cache {
            let record = move |index| {
                let windows = cache.first[index]..cache.first[index + 1];
                learned.then(|| task.draw_record(plan, DrawnRecord { index, epoch, windows, looks: cache.looks }))
            };
            return Ok(Box::new(order.chunks(size).map(move |images| cache.batch(images, record))));
        }
        let look = if learned { Look::Random { stage, epoch } } else { Look::Plain { mirror: false } };
        task.load(plan, self.split, order.to_vec(), look, size)
    }
}

impl<T: Clone> TokenCache<T> {
    /// Computes `form` of the images of `split`, seen in each of `looks`.
    fn compute<D: DenseTask<Target = T>>(
        task: &D,
        plan: &Plan,
        split: Split,
        form: InputForm,
        looks: &[Look],
        folder: &Path,
        observer: &mut dyn Observer,
    ) -> Result<Option<Self>> {
        let (reader, count) = (task.reader(), task.dataset().images(split));
        let width = form.width(reader);
        let mut first = vec![0];
        for windows in task.windows(split)? {
            first.push(first[first.len() - 1] + windows);
        }
        let records = first[count] * looks.len();
        let store = Store::new(records, width, folder)?;
        let mut cache = Self { form, store, looks: looks.len(), first, targets: vec![None; records] };
        for (number, &look) in looks.iter().enumerate() {
            let loader = task.load(plan, split, (0..count).collect(), look, D::EVAL_BATCH)?;
            let go_on = &mut |done, _| {
                let (done, total) = (number * count + done, looks.len() * count);
                observer.goes_on(&Event::Features { split, done, total })
            };
            let all = visit_batches(loader, count, go_on, |batch| {
                let computed = form.compute(reader, &batch.values)?;
                let windows = batch.indices.iter().zip(&batch.windows);
                let windows = windows.flat_map(|(&index, &count)| (0..count).map(move |window| (index, window)));
                for (((index, window), values), target) in windows.zip(computed.chunks_exact(width)).zip(batch.targets) {
                    let record = (cache.first[index] + window) * looks.len() + number;
                    cache.store.put(record, values)?;
                    cache.targets[record] = Some(target);
                }
                Ok(())
            })?;
            if !all {
                return Ok(None);
            }
        }
        Ok(Some(cache))
    }

    /// Of each of `images` the record that is drawn; all of its windows as they are if there is none.
    fn batch(&self, images: &[usize], drawn: impl Fn(usize) -> Option<usize>) -> Result<DenseBatch<T>> {
        let mut batch = DenseBatch {
            form: self.form,
            values: Vec::new(),
            targets: Vec::new(),
            windows: Vec::new(),
            indices: images.to_vec(),
        };
        for &index in images {
            let records = match drawn(index) {
                Some(record) => vec![record],
                None => (self.first[index]..self.first[index + 1]).map(|window| window * self.looks).collect(),
            };
            batch.windows.push(records.len());
            for record in records {
                self.store.get(record, &mut batch.values)?;
                batch.targets.extend(self.targets[record].clone());
            }
        }
        if batch.values.is_empty() {
            return Err(Error::invalid("batch", "empty"));
        }
        Ok(batch)
    }
}
