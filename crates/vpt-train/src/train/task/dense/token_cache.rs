//! What is computed of the images of a part once, and stays from one stage of a run to the next.

use std::{
    ops::Range,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use super::{
    DenseTask, DenseTraining,
    source::{DenseBatch, DenseRequest, InputForm, Look},
    token_store::Store,
};
use crate::train::observer::{Event, Observer};
use serde::{Serialize, de::DeserializeOwned};
use vpt_base::{Error, Result};
use vpt_data::Split;
use vpt_model::model::token_reader::TokenReader;

/// What is computed of a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Computed {
    /// All that the head reads of it.
    Features,
    /// Tokens in front of the first prompted block, and what the head reads of the blocks before.
    Prefix,
    /// Both, in one pass.
    Both,
}

/// Values computed once, for each window of each image: of it as it is and, where the flip is wanted, of its mirrored form behind
/// it, or else of random views, each of which is one window.
pub(super) struct TokenCache<T> {
    pub(super) computed: Computed,
    pub(super) looks: Vec<Look>,
    store: Store,
    /// The first window of each image, and behind it how many there are in all.
    first: Vec<usize>,
    /// Of each record.
    targets: Vec<Option<T>>,
}

/// What was computed last of the images of each part.
pub(super) struct KeptTokens<T>([Mutex<Option<Arc<TokenCache<T>>>>; 3]);

impl<T> Default for KeptTokens<T> {
    fn default() -> Self {
        Self(Default::default())
    }
}

impl<T> KeptTokens<T> {
    /// What was computed of the images of `split`.
    pub(super) fn get(&self, split: Split) -> Option<Arc<TokenCache<T>>> {
        self.0[split as usize].lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Lets go of it.
    pub(super) fn clear(&self, split: Split) {
        *self.0[split as usize].lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Keeps `cache` for later stages.
    pub(super) fn keep(&self, split: Split, cache: TokenCache<T>) -> Arc<TokenCache<T>> {
        let cache = Arc::new(cache);
        *self.0[split as usize].lock().unwrap_or_else(PoisonError::into_inner) = Some(cache.clone());
        cache
    }
}

impl Computed {
    /// Whether `form` is part of it.
    pub(super) fn has(self, form: InputForm) -> bool {
        match form {
            InputForm::Images => false,
            InputForm::Prefix => self != Self::Features,
            InputForm::Features => self != Self::Prefix,
        }
    }

    /// Where in a record `form` is, in two pieces of which the second may be empty.
    pub(super) fn ranges(self, form: InputForm, reader: &TokenReader) -> [Range<usize>; 2] {
        let whole = match (self, form) {
            (Self::Both, InputForm::Features) => return reader.features_in_both(),
            (Self::Both, _) => reader.prefix_in_both(),
            _ => 0..self.width(reader),
        };
        [whole.clone(), whole.end..whole.end]
    }

    /// Values of a window.
    fn width(self, reader: &TokenReader) -> usize {
        match self {
            Self::Features => reader.features_len(),
            Self::Prefix => reader.prefix_len(),
            Self::Both => reader.both_len(),
        }
    }

    /// What is computed of `images` `[W, 3, S, S]`.
    fn of(self, reader: &TokenReader, images: &[f32]) -> Result<Vec<f32>> {
        match self {
            Self::Features => reader.features(images),
            Self::Prefix => reader.prefix(images),
            Self::Both => reader.both(images),
        }
    }
}

impl<T: Clone + Serialize + DeserializeOwned> TokenCache<T> {
    /// Computes `computed` of the images of `split`, seen in each of `looks`, each rank a part of them; `None` when the observer asked to
    /// stop.
    pub(super) fn compute<D: DenseTask<Target = T>>(
        training: &DenseTraining<D>,
        split: Split,
        computed: Computed,
        looks: Vec<Look>,
        folder: &Path,
        observer: &mut dyn Observer,
    ) -> Result<Option<Self>> {
        let DenseTraining { own: task, plan, group, .. } = training;
        let (reader, count) = (task.reader(), task.seen(split));
        let width = computed.width(reader);
        let random = matches!(looks.first(), Some(Look::Random { .. }));
        let mut first = vec![0];
        for windows in if random { vec![1; count] } else { task.windows(split)? } {
            first.push(first[first.len() - 1] + windows);
        }
        let (ways, records) = (looks.len(), first[count] * looks.len());
        if random {
            let size = (records * width * size_of::<f32>()) as f64 / f64::from(1 << 30);
            let note = format!(
                "{ways} random views of each training image are computed once ({size:.1} GiB) and seen in turn"
            );
            observer.event(&Event::Note(&note));
        }
        let store = Store::new(records, width, folder)?;
        let mut cache = Self { computed, looks, store, first, targets: vec![None; records] };
        for (number, look) in cache.looks.clone().into_iter().enumerate() {
            let order = group.own_images(&(0..count).collect::<Vec<_>>(), D::EVAL_BATCH);
            let loader = task.load(plan, DenseRequest { split, order, look, size: D::EVAL_BATCH })?;
            let go_on = &mut |done, _| {
                observer.goes_on(&Event::Features { split, done: number * count + done, total: ways * count })
            };
            let compute = |batch: DenseBatch<T>| {
                let values = computed.of(reader, &batch.values)?;
                Ok((batch.indices, batch.windows, values, batch.targets))
            };
            let all = group.visit(
                loader,
                (count, D::EVAL_BATCH),
                go_on,
                compute,
                |(indices, windows, values, targets)| {
                    let windows = indices.iter().zip(&windows);
                    let windows = windows.flat_map(|(&index, &count)| (0..count).map(move |window| (index, window)));
                    for (((index, window), values), target) in windows.zip(values.chunks_exact(width)).zip(targets) {
                        let record = (cache.first[index] + window) * ways + number;
                        cache.store.put(record, values)?;
                        cache.targets[record] = Some(target);
                    }
                    Ok(())
                },
            )?;
            if !all {
                return Ok(None);
            }
        }
        Ok(Some(cache))
    }

    /// The windows of image `index`.
    pub(super) fn windows(&self, index: usize) -> Range<usize> {
        self.first[index]..self.first[index + 1]
    }

    /// Whether images were seen at random.
    pub(super) fn is_random(&self) -> bool {
        matches!(self.looks.first(), Some(Look::Random { .. }))
    }

    /// What lies at `ranges`, which is `form`, in the record of each of `images` that is drawn; of all of its windows as they are
    /// if there is none.
    pub(super) fn batch(
        &self,
        images: &[usize],
        form: InputForm,
        ranges: &[Range<usize>],
        drawn: impl Fn(usize) -> Option<usize>,
    ) -> Result<DenseBatch<T>> {
        let (values, targets, windows) = (Vec::new(), Vec::new(), Vec::new());
        let mut batch = DenseBatch { form, values, targets, windows, indices: images.to_vec() };
        for &index in images {
            let records = match drawn(index) {
                Some(record) => vec![record],
                None => self.windows(index).map(|window| window * self.looks.len()).collect(),
            };
            batch.windows.push(records.len());
            for record in records {
                for range in ranges {
                    self.store.get(record, range.clone(), &mut batch.values)?;
                }
                batch.targets.extend(self.targets[record].clone());
            }
        }
        if batch.values.is_empty() {
            return Err(Error::invalid("batch", "empty"));
        }
        Ok(batch)
    }
}
