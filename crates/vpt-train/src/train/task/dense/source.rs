//! Where batches come from: images made ahead of the model, or features that were computed once.

use std::{ops::Range, path::Path, sync::Arc};

use rand::seq::SliceRandom;
use serde::{Serialize, de::DeserializeOwned};

use super::{
    Change, DenseTask, DenseTraining,
    token_cache::{Computed, TokenCache},
};
use crate::{
    config::Plan,
    train::{
        observer::Observer,
        progress::Stage,
        task::{BatchRequest, Batches},
    },
};
use vpt_base::{Result, random::stream};
use vpt_data::{ImageCount, Split};
use vpt_model::model::token_reader::{TokenInput, TokenReader};

/// Kind of input that is read of every window of a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum InputForm {
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

/// Images that are to be read.
#[derive(Debug)]
pub(crate) struct DenseRequest {
    /// The part they are of.
    pub(crate) split: Split,
    /// Their positions in it, in their order.
    pub(crate) order: Vec<usize>,
    /// How they are seen.
    pub(crate) look: Look,
    /// Images of a batch.
    pub(crate) size: usize,
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

impl DrawnRecord {
    /// The record of a random view: all of them are seen once before any is seen again.
    fn view(&self, plan: &Plan) -> usize {
        let (round, place) = (self.epoch / self.looks as u64, self.epoch % self.looks as u64);
        let mut order: Vec<usize> = (0..self.looks).collect();
        order.shuffle(&mut stream(plan.config.seed, "cached view", round, self.index as u64));
        self.windows.start * self.looks + order[place as usize]
    }
}

/// A part of a data set.
pub(crate) struct DenseSource<T> {
    split: Split,
    images: usize,
    /// Values computed once, and which of them the model is given.
    cache: Option<(InputForm, Arc<TokenCache<T>>)>,
}

/// Images, or windows of them, in one form or another.
pub(crate) struct DenseBatch<T> {
    pub(super) form: InputForm,
    pub(super) values: Vec<f32>,
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
    /// What `stage` takes of images that do not change.
    fn of(stage: Stage, reader: &TokenReader) -> Self {
        match stage {
            Stage::Whole | Stage::Head => Self::Features,
            Stage::Prompts if reader.has_prefix() => Self::Prefix,
            // There are no other stages.
            _ => Self::Images,
        }
    }
}

/// The ways in which the images of `split` are seen in `stage`; none where they are too many.
fn looks<D: DenseTask>(task: &D, split: Split, stage: Stage) -> Vec<Look> {
    match task.change(split, stage) {
        Change::Nothing => vec![Look::Plain { mirror: false }],
        Change::Flip => [false, true].map(|mirror| Look::Plain { mirror }).to_vec(),
        Change::Any => (1..=task.views() as u64).map(|epoch| Look::Random { stage, epoch }).collect(),
    }
}

/// Whether `looks` show the same of images as `others`.
fn same(looks: &[Look], others: &[Look]) -> bool {
    let pixels = |look: &Look| match *look {
        Look::Plain { mirror } => (0, mirror),
        // There are views only where every stage has the same changes.
        Look::Random { epoch, .. } => (epoch, false),
    };
    looks.iter().map(pixels).eq(others.iter().map(pixels))
}

impl<T: Clone + Serialize + DeserializeOwned + 'static> DenseSource<T> {
    /// The part.
    pub(super) fn split(&self) -> Split {
        self.split
    }

    /// The images of `split`, to be read as they are every time.
    pub(super) fn of_images<D: DenseTask<Target = T>>(task: &D, split: Split) -> Self {
        Self { split, images: task.seen(split), cache: None }
    }

    /// The images of `split` with what `stage` can compute once, unless an earlier one has; `folder` has room for what memory
    /// has none for. `None` when the observer asked to stop.
    pub(super) fn new<D: DenseTask<Target = T>>(
        training: &DenseTraining<D>,
        (split, stage): (Split, Stage),
        folder: &Path,
        observer: &mut dyn Observer,
    ) -> Result<Option<Self>> {
        let DenseTraining { own: task, kept, .. } = training;
        let form = InputForm::of(stage, task.reader());
        let looks = looks(task, split, stage);
        if looks.is_empty() || form == InputForm::Images {
            return Ok(Some(Self::of_images(task, split)));
        }
        let with = |cache| Self { cache: Some((form, cache)), ..Self::of_images(task, split) };
        if let Some(cache) = kept.get(split).filter(|cache| cache.computed.has(form) && same(&cache.looks, &looks)) {
            return Ok(Some(with(cache)));
        }
        kept.clear(split);
        let follows = stage == Stage::Head && InputForm::of(Stage::Prompts, task.reader()) == InputForm::Prefix;
        let computed = match form {
            InputForm::Features if follows && same(&looks, &self::looks(task, split, Stage::Prompts)) => Computed::Both,
            InputForm::Features => Computed::Features,
            _ => Computed::Prefix,
        };
        let cache = TokenCache::compute(training, split, computed, looks, folder, observer)?;
        Ok(cache.map(|cache| with(kept.keep(split, cache))))
    }

    /// The batches that are asked for. Of a training image a window is drawn, by the epoch.
    pub(super) fn batches<'a, D: DenseTask<Target = T>>(
        &'a self,
        task: &'a D,
        plan: &'a Plan,
        BatchRequest { stage, order, epoch, size }: BatchRequest<'a>,
    ) -> Result<Batches<'a, DenseBatch<T>>> {
        let learned = self.split == Split::Train;
        let epoch = epoch as u64;
        if let Some((form, cache)) = &self.cache {
            let ranges = cache.computed.ranges(*form, task.reader());
            let record = move |index| {
                let drawn = DrawnRecord { index, epoch, windows: cache.windows(index), looks: cache.looks.len() };
                let draw = || if cache.is_random() { drawn.view(plan) } else { task.draw_record(plan, drawn) };
                learned.then(draw)
            };
            return Ok(Box::new(order.chunks(size).map(move |images| cache.batch(images, *form, &ranges, record))));
        }
        let look = if learned { Look::Random { stage, epoch } } else { Look::Plain { mirror: false } };
        task.load(plan, DenseRequest { split: self.split, order: order.to_vec(), look, size })
    }
}
