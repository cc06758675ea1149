//! A learned task: a small file that turns a frozen backbone into a classifier or a detector.

use std::{path::Path, sync::Arc};

use ndarray::Array2;

use crate::{
    arrays::table,
    frozen::{FrozenBackbone, all_cores},
    images::IntoImages,
};
use vpt_base::{Error, Result};
use vpt_model::{
    methods::Task,
    model::{AnyTask, TaskModel, TaskOptions, task_file::TaskFile},
    predict::{AnswerOptions, ImageAnswer},
};

/// A learned task on its backbone, ready to answer. Nothing is read or written when it is asked, but files that are asked about.
#[derive(Debug)]
pub struct LearnedTask {
    task: AnyTask,
}

impl LearnedTask {
    /// Opens a task file, or the run folder that holds one, with the backbone that it was learned on.
    ///
    /// # Errors
    /// It is no task file, or its backbone is nowhere, or another one than it was learned on.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::open_with(path, &TaskOptions { threads: all_cores(), ..TaskOptions::default() })
    }

    /// As [`Self::open`], where the options say what the backbone is, and how to compute.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_with(path: impl AsRef<Path>, options: &TaskOptions) -> Result<Self> {
        AnyTask::open(path.as_ref(), options).map(|task| Self { task })
    }

    /// Opens a task on a backbone that is open already: many tasks share its weights.
    ///
    /// # Errors
    /// As [`Self::open`], or the backbone is open for images of another size than the task's.
    pub fn on(backbone: &FrozenBackbone, path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let file = TaskFile::open(path)?;
        let task = AnyTask::with_backbone(file, backbone.engine().clone(), backbone.threads());
        task.map(|task| Self { task }).map_err(|error| Error::task_file(path, error))
    }

    /// What it tells of images.
    pub fn kind(&self) -> Task {
        match &self.task {
            AnyTask::Classify(_) => Task::Classify,
            AnyTask::Multilabel(_) => Task::Multilabel,
            AnyTask::Detect(_) => Task::Detect,
            AnyTask::Segment(_) => Task::Segment,
        }
    }

    /// Names of its classes, in the order of the columns of [`Self::probabilities`].
    pub fn classes(&self) -> &[String] {
        &self.task.meta().classes
    }

    /// What it says of each image, in their order: the five likeliest classes, those that are likelier than not where an image may
    /// have any number, or the boxes that it is sure enough of.
    ///
    /// # Errors
    /// An image cannot be read; the error names it, or its place.
    pub fn predict(&self, images: impl IntoImages) -> Result<Vec<ImageAnswer>> {
        self.predict_with(images, &AnswerOptions::default())
    }

    /// As [`Self::predict`], where the options say how much is told.
    ///
    /// # Errors
    /// As [`Self::predict`].
    pub fn predict_with(&self, images: impl IntoImages, options: &AnswerOptions) -> Result<Vec<ImageAnswer>> {
        self.task.answer(&images.into_images()?, options, &mut |_, _| {})
    }

    /// Probabilities `[N, C]` of the classes: they add up to one where an image has one class, and stand for themselves where it may
    /// have any number.
    ///
    /// # Errors
    /// An image cannot be read, or the task is a detector.
    pub fn probabilities(&self, images: impl IntoImages) -> Result<Array2<f32>> {
        let (task, images) = (self.classifier()?, images.into_images()?);
        let values = task.probabilities(&images, &mut |_, _| {})?;
        table(values, images.len(), self.classes().len())
    }

    /// Boxes of each image, surest first: rows `[x, y, width, height, score, class]`, in pixels of the image.
    ///
    /// # Errors
    /// An image cannot be read, or the task is no detector.
    pub fn boxes(&self, images: impl IntoImages) -> Result<Vec<Array2<f64>>> {
        if !matches!(self.task, AnyTask::Detect(_)) {
            return Err(Error::invalid("task", "tells classes, not boxes"));
        }
        let rows = |answer| {
            let ImageAnswer::Boxes(boxes) = answer else { return Ok(Array2::zeros((0, 6))) };
            let row = |found: &vpt_model::predict::PredictedBox| {
                let [x, y, width, height] = found.bbox;
                [x, y, width, height, found.score, found.class as f64]
            };
            let values = boxes.iter().flat_map(row).collect();
            Array2::from_shape_vec((boxes.len(), 6), values).map_err(|error| Error::invalid("boxes", error.to_string()))
        };
        self.predict(images)?.into_iter().map(rows).collect()
    }

    /// Embeddings `[N, D]` of images through what was learned, not normalised.
    ///
    /// # Errors
    /// An image cannot be read, or the task is a detector.
    pub fn embed_images(&self, images: impl IntoImages) -> Result<Array2<f32>> {
        let (task, images) = (self.classifier()?, images.into_images()?);
        let width = task.model().backbone().embedding_width();
        table(task.embed_images(&images, &mut |_, _| {})?, images.len(), width)
    }

    /// The same task for other classes, by their names, where it was learned to tell classes by these: with the methods that learn
    /// texts, and detectors of an open vocabulary.
    ///
    /// # Errors
    /// It was not.
    pub fn with_classes<S: ToString>(self, names: &[S]) -> Result<Self> {
        let names = names.iter().map(ToString::to_string).collect();
        self.task.with_classes(names).map(|task| Self { task })
    }

    /// What is below.
    pub fn engine(&self) -> &AnyTask {
        &self.task
    }

    /// The backbone that it is on, for more tasks.
    pub fn backbone(&self) -> FrozenBackbone {
        FrozenBackbone::of(Arc::clone(self.task.backbone()))
    }

    fn classifier(&self) -> Result<&TaskModel> {
        match &self.task {
            AnyTask::Classify(task) | AnyTask::Multilabel(task) => Ok(task),
            AnyTask::Detect(_) => Err(Error::invalid("task", "tells boxes, not classes of images")),
            AnyTask::Segment(_) => Err(Error::invalid("task", "tells classes of pixels, not of images")),
        }
    }
}
