//! Classes that are shown, not told: what a head sees in boxes of a few images stands where the embeddings of class names do.
//!
//! A head of an open vocabulary turns each token into a vector that lies near the text embedding of what is there. The mean over the
//! tokens that answer for a box is a vector of what is in it; what these have in common with tokens that answer for nothing is taken
//! away, as it would be found everywhere.

use std::sync::Arc;

use super::{
    DetectTask,
    detect::{Detector, TokenInput},
};
use crate::head::detect::{Assignment, BoundDetectHead, Role, Truth, Workspace};
use crate::model::task_file::{EXEMPLARS, TaskFile};
use vpt_base::{
    Error, Message, Result,
    linear_algebra::normalize_l2,
    params::{Group, Param},
};
use vpt_data::boxes::{BoxImage, BoxLoader, BoxLoaderOptions};

/// Images that go through the backbone at a time.
const BATCH: usize = 16;

/// Sums of vectors of tokens, and how many there are.
#[derive(Clone, Debug)]
struct VectorSum {
    values: Vec<f64>,
    count: usize,
}

impl VectorSum {
    fn new(width: usize) -> Self {
        Self { values: vec![0.; width], count: 0 }
    }

    fn add(&mut self, vector: &[f32]) {
        self.values.iter_mut().zip(vector).for_each(|(sum, v)| *sum += f64::from(*v));
        self.count += 1;
    }

    fn join(&mut self, other: &Self) {
        self.values.iter_mut().zip(&other.values).for_each(|(sum, v)| *sum += v);
        self.count += other.count;
    }

    fn mean(&self) -> Vec<f64> {
        self.values.iter().map(|sum| sum / self.count.max(1) as f64).collect()
    }
}

impl Detector {
    /// Sums of the vectors of tokens that answer for the objects of each of `classes` classes in one image, then that of tokens
    /// that answer for none.
    fn sums_in(
        &self,
        head: &BoundDetectHead,
        features: &[f32],
        (truths, valid): (&[Truth], Option<&[bool]>),
        classes: usize,
        workspace: &mut Workspace,
    ) -> Option<Vec<VectorSum>> {
        let vectors = head.vectors(features, workspace)?;
        let shape = self.head();
        let width = vectors.len() / shape.tokens();
        let assignment = Assignment::new(shape.side(), truths, valid);
        let mut sums = vec![VectorSum::new(width); classes + 1];
        for (role, vector) in assignment.roles.iter().zip(vectors.chunks_exact(width)) {
            match role {
                Role::Positive(object) => sums[truths[*object].class].add(vector),
                Role::Negative => sums[classes].add(vector),
                Role::Ignored => {}
            }
        }
        Some(sums)
    }
}

impl DetectTask {
    /// The same detector for classes called `names`, which the objects of `images` show.
    ///
    /// # Errors
    /// It was not learned to tell classes by their names; a class is not shown, an image cannot be read, or a box lies outside of its image.
    pub fn with_exemplars(self, images: &[BoxImage], names: Vec<String>) -> Result<Self> {
        if !self.is_open_vocabulary() {
            let message =
                "the detector's classes are rows of a layer, which examples cannot take the place of; train it with ";
            let message = Message::from(message).field("open_vocabulary");
            return Err(Error::setting("exemplars", message));
        }
        let classes = names.len();
        let detector = self.detector();
        let head = detector.bind(self.params())?;
        let options =
            BoxLoaderOptions { batch: BATCH, ..BoxLoaderOptions::plain(self.input().clone(), detector.threads()) };
        let shared: Arc<[BoxImage]> = images.into();
        let mut sums: Option<Vec<VectorSum>> = None;
        for batch in BoxLoader::new(shared, (0..images.len()).collect(), options)? {
            let batch = batch?;
            let truths: Vec<Vec<Truth>> = batch
                .targets
                .iter()
                .map(|targets| {
                    let truth = |t: &vpt_data::boxes::Target| Truth { rect: t.bbox, class: t.category, crowd: t.crowd };
                    targets.iter().map(truth).collect()
                })
                .collect();
            let look = |image: usize, features: &[f32]| {
                let valid = detector.valid(batch.valid.as_deref(), image);
                let own = (&truths[image][..], valid.as_deref());
                detector.sums_in(&head, features, own, classes, &mut Workspace::default())
            };
            let input = TokenInput::Images(&batch.pixels);
            let inputs = detector.reader().join(self.params(), &[], input)?;
            for own in detector.reader().each(&inputs, input, look)?.into_iter().flatten() {
                match &mut sums {
                    Some(sums) => sums.iter_mut().zip(&own).for_each(|(sum, own)| sum.join(own)),
                    None => sums = Some(own),
                }
            }
        }
        let sums = sums.ok_or_else(|| Error::invalid("exemplars", "there are none"))?;
        let background = sums[classes].mean();
        let mut vectors = Vec::with_capacity(classes * background.len());
        for (sum, name) in sums.iter().zip(&names) {
            if sum.count == 0 {
                let message =
                    format!("no box of '{name}' lies in its image and is a pixel or more wide and high there");
                return Err(Error::setting("exemplars", message));
            }
            let apart = sum.mean().into_iter().zip(&background).map(|(own, other)| (own - other) as f32);
            vectors.extend(apart);
        }
        if vectors.iter().any(|value| !value.is_finite()) {
            return Err(Error::invalid("exemplars", "not finite: the task's values hold NaN or infinity"));
        }
        normalize_l2(&mut vectors, background.len());
        self.with_vectors(vectors, names)
    }

    /// The task as a file, which keeps the vectors of classes that were shown.
    ///
    /// # Errors
    /// They do not fit the task.
    pub fn to_file(&self) -> Result<TaskFile> {
        let (mut meta, mut params) = (self.meta().clone(), self.params().to_vec());
        if let (Some(detect), Some(vectors)) = (&mut meta.detect, self.shown()) {
            let classes = meta.classes.len();
            detect.exemplars = true;
            detect.head.classes = detect.head.classes.with_count(classes);
            params.push(Param::new(EXEMPLARS, &[classes, vectors.len() / classes], vectors.to_vec(), Group::Fixed)?);
        }
        Ok(TaskFile { meta, params })
    }
}
