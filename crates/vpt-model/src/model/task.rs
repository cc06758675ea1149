//! A learned task on its backbone, ready to classify.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{ClassifierSpec, DetectTask, Model, SegmentTask, run_origin::RunOrigin, segment_task::tells_pixels};
use crate::{
    head::{LOGIT_BIAS, cache::KEYS},
    model::task_file::{TaskFile, TaskMeta, TaskMetrics},
};
use vpt_backbone::{Backbone, Compute, Device, Engine, OpenOptions, Precision, registry::KNOWN};
use vpt_base::{Error, Message, Result, params::Param};
use vpt_image::Preprocess;

/// How to open a task.
#[derive(Debug, Clone, Default)]
pub struct TaskOptions {
    /// Name or folder of the backbone, when it is neither under the name in the task file nor where the configuration in
    /// the run folder says.
    pub backbone: Option<String>,
    /// Where to look for known backbones first.
    pub weights_dir: Option<PathBuf>,
    /// Number format to compute in: that of the run the task is from, if it lies in its folder, or f32 if `None`.
    pub precision: Option<Precision>,
    /// Engine for the image tower: that of the run the task is from, if it lies in its folder, or the native one if `None`.
    pub engine: Option<Engine>,
    /// What it computes on: as in that run, if the engine is that of the run, or the processor if `None`.
    pub device: Option<Device>,
    /// Bytes that the process should take at most.
    pub max_memory: Option<u64>,
    /// Threads; 1 if 0.
    pub threads: usize,
}

/// Where a task says that its backbone is.
#[derive(Debug, Clone)]
pub struct BackboneOrigin {
    /// Name or folder.
    pub backbone: String,
    /// Where to look for known backbones first.
    pub weights_dir: Option<PathBuf>,
    /// Number format of the run that it lies in.
    pub precision: Option<Precision>,
    /// What computed that run.
    pub compute: Compute,
}

impl BackboneOrigin {
    /// By the configuration of the run that the task file, or run folder, `path` lies in; by the file itself if it lies in none.
    pub fn of(file: &TaskFile, path: &Path) -> Self {
        let Some(RunOrigin { backbone, weights_dir, precision, engine, device }) = RunOrigin::beside(path) else {
            let backbone = file.meta.backbone.name.clone();
            return Self { backbone, weights_dir: None, precision: None, compute: Compute::default() };
        };
        Self { backbone, weights_dir, precision: Some(precision), compute: Compute { engine, device } }
    }

    fn is_of_run(&self) -> bool {
        self.precision.is_some()
    }
}

/// The task of a task file or run folder on the backbone that it says, made by `with_backbone` with the number of threads.
pub(super) fn open_task<T>(
    path: &Path,
    options: &TaskOptions,
    with_backbone: impl FnOnce(TaskFile, Arc<Backbone>, usize) -> Result<T>,
) -> Result<T> {
    let file = TaskFile::open(path)?;
    let origin = BackboneOrigin::of(&file, path);
    let name = options.backbone.as_ref().unwrap_or(&origin.backbone);
    let weights_dir =
        options.weights_dir.clone().or_else(|| origin.weights_dir.clone().filter(|_| options.backbone.is_none()));
    let precision = options.precision.or(origin.precision).unwrap_or_default();
    let engine = options.engine.unwrap_or(origin.compute.engine);
    let of_run = Some(origin.compute.device).filter(|_| engine == origin.compute.engine);
    let compute = Compute { engine, device: options.device.or(of_run).unwrap_or_default() };
    let (image_size, max_memory) = (Some(file.meta.image_size), options.max_memory);
    let open = OpenOptions { weights_dir, image_size, precision, max_memory, compute };
    let backbone = Backbone::open(name, &open);
    let is_typed = options.backbone.is_some() || origin.is_of_run();
    let of_folder = !is_typed && !name.contains('/') && KNOWN.iter().all(|known| known.name != name.as_str());
    let backbone = backbone.map_err(|error| match &error {
        // Nobody typed it.
        Error::Setting { field, .. } if field == "image_size" => error.in_file(path),
        // Nor a name that is nothing but what a folder was called.
        Error::Setting { field, .. } if field == "backbone" && of_folder => {
            let message = format!("was learned on a folder called {name}, which is not here; name it with ");
            Error::task_file(path, Message::from(message).field("backbone"))
        }
        _ => error,
    })?;
    with_backbone(file, Arc::new(backbone), options.threads.max(1)).map_err(|error| Error::task_file(path, error))
}

/// A learned task of any kind.
#[derive(Debug)]
pub enum AnyTask {
    /// One class an image.
    Classify(TaskModel),
    /// Any number of classes an image.
    Multilabel(TaskModel),
    /// Boxes.
    Detect(DetectTask),
    /// A class for each pixel.
    Segment(SegmentTask),
}

impl AnyTask {
    /// Opens the task file, or run folder, `path` together with its backbone.
    ///
    /// # Errors
    /// As [`TaskModel::open`], whatever the task is.
    pub fn open(path: &Path, options: &TaskOptions) -> Result<Self> {
        open_task(path, options, Self::with_backbone)
    }

    /// A task on a backbone that is open already, at the task's image size: many tasks can share one.
    ///
    /// # Errors
    /// As [`TaskModel::with_backbone`].
    pub fn with_backbone(file: TaskFile, backbone: Arc<Backbone>, threads: usize) -> Result<Self> {
        if file.meta.detect.is_some() {
            return DetectTask::with_backbone(file, backbone, threads).map(Self::Detect);
        }
        if file.meta.segment.is_some() {
            return SegmentTask::with_backbone(file, backbone, threads).map(Self::Segment);
        }
        let kind = if file.meta.multilabel { Self::Multilabel } else { Self::Classify };
        TaskModel::with_backbone(file, backbone, threads).map(kind)
    }

    /// What the task file says; the classes are those asked for last.
    pub fn meta(&self) -> &TaskMeta {
        match self {
            Self::Classify(task) | Self::Multilabel(task) => task.meta(),
            Self::Detect(task) => task.meta(),
            Self::Segment(task) => task.meta(),
        }
    }

    /// The frozen part.
    pub fn backbone(&self) -> &Arc<Backbone> {
        match self {
            Self::Classify(task) | Self::Multilabel(task) => task.model().backbone(),
            Self::Detect(task) => task.backbone(),
            Self::Segment(task) => task.backbone(),
        }
    }

    /// The task for other classes, given by their names.
    ///
    /// # Errors
    /// Its classes are not told by their names.
    pub fn with_classes(self, names: Vec<String>) -> Result<Self> {
        match self {
            Self::Classify(task) => task.with_classes(names).map(Self::Classify),
            Self::Multilabel(task) => task.with_classes(names).map(Self::Multilabel),
            Self::Detect(task) => task.with_classes(names).map(Self::Detect),
            Self::Segment(_) => Err(tells_pixels("classes that are told by their names")),
        }
    }
}

/// A learned task on its backbone.
#[derive(Debug, Clone)]
pub struct TaskModel {
    model: Model,
    params: Vec<Param>,
    meta: TaskMeta,
}

impl TaskModel {
    /// Opens the task file, or run folder, `path` together with its backbone.
    ///
    /// # Errors
    /// As [`TaskFile::open`] and [`Backbone::open`], and when the backbone's weights are not the ones the task was learned
    /// on, or the task is a detector.
    pub fn open(path: &Path, options: &TaskOptions) -> Result<Self> {
        open_task(path, options, Self::with_backbone)
    }

    /// A task on a backbone that is open already, at the task's image size: many tasks can share one.
    pub fn with_backbone(file: TaskFile, backbone: Arc<Backbone>, threads: usize) -> Result<Self> {
        file.check_backbone(&backbone)?;
        let TaskFile { meta, params } = file;
        if meta.detect.is_some() {
            return Err(Error::invalid("task", "learned to detect, not to classify"));
        }
        if meta.segment.is_some() {
            return Err(Error::invalid("task", "learned to tell pixels apart, not to classify"));
        }
        let side = backbone.vit.image_size();
        if side != meta.image_size {
            let message =
                format!("the task was learned on images of {} pixels, the backbone is open at {side}", meta.image_size);
            return Err(Error::setting("image_size", message));
        }
        let names = meta.names_in_texts();
        let classifier = match &meta.label_map {
            Some(map) => ClassifierSpec::LabelMap(map.kind),
            None if meta.parts.text().is_some() => ClassifierSpec::Texts { names: &names, words: None },
            None if meta.parts.told_by_texts() => ClassifierSpec::Templates(None),
            None if meta.method.on_embeddings() => {
                let keys = params.iter().find(|param| param.name == KEYS).map_or(0, |param| param.shape[0]);
                ClassifierSpec::OnEmbeddings { kind: meta.head, keys }
            }
            None => ClassifierSpec::Head(meta.head),
        };
        let model = Model::new(backbone, &meta.parts, classifier, meta.classes.len(), threads)?;
        let model = if params.iter().any(|param| param.name == LOGIT_BIAS) { model.with_logit_bias() } else { model };
        let params = model.adopt(params)?;
        let input = model.preprocess()?.output_size();
        if meta.preprocess.output_size() != input {
            let message = format!("makes images of {:?}, not {input:?}", meta.preprocess.output_size());
            return Err(Error::invalid("preprocessing", message));
        }
        Ok(Self { model, params, meta })
    }

    /// What the task file says.
    pub fn meta(&self) -> &TaskMeta {
        &self.meta
    }

    /// Backbone, prompt and head.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The learned values.
    pub fn params(&self) -> &[Param] {
        &self.params
    }

    /// How images are made ready for [`Self::logits`] and [`Self::predict`].
    pub fn preprocess(&self) -> &Preprocess {
        &self.meta.preprocess
    }

    /// Whether classes are told by texts with their names in them, so that others can be asked for.
    pub fn is_open_vocabulary(&self) -> bool {
        self.meta.parts.text().is_some()
    }

    /// The same learned texts with other names in them: a classifier for classes that nothing was learned of, as in the
    /// field's base-to-new and cross-data-set protocols. It says nothing of how well it does.
    ///
    /// # Errors
    /// The task's classes are not told by texts, or the tokenizer fails on a name.
    pub fn with_classes(&self, classes: Vec<String>) -> Result<Self> {
        self.with_named_classes(classes, None)
    }

    /// As [`Self::with_classes`] for classes that texts call by other names, one each.
    ///
    /// # Errors
    /// As [`Self::with_classes`], or the names are too many or too few.
    pub fn with_named_classes(&self, classes: Vec<String>, classnames: Option<Vec<String>>) -> Result<Self> {
        if !self.is_open_vocabulary() {
            let message = format!("{} learned its classes one by one, so no others can be asked for", self.meta.method);
            return Err(Error::invalid("task", message));
        }
        if classes.is_empty() {
            return Err(Error::invalid("classes", "there are none"));
        }
        let Self { model, params, meta } = self;
        let mut meta = meta.clone();
        meta.metrics = TaskMetrics { epoch: meta.metrics.epoch, ..TaskMetrics::default() };
        (meta.classes, meta.classnames) = (classes, classnames);
        let backbone = model.backbone().clone();
        let (names, threads) = (meta.names_in_texts(), model.threads());
        let classifier = ClassifierSpec::Texts { names: &names, words: None };
        let model = Model::new(backbone, &meta.parts, classifier, meta.classes.len(), threads)?;
        let params = model.task_params(params.get(..model.part_tensors()).unwrap_or_default())?;
        Ok(Self { model, params, meta })
    }

    /// Logits `[B, C]` of images `[B, 3, s, s]` as [`Self::preprocess`] makes them.
    pub fn logits(&self, images: &[f32]) -> Result<Vec<f32>> {
        self.model.logits(&self.params, images)
    }

    /// [`Self::logits`], which do not depend on how many images there are: a product of one row and one of many add up in different
    /// orders, so the head is given one image at a time. The backbone is not, as its sums do not depend on it.
    ///
    /// # Errors
    /// As [`Self::logits`].
    pub fn logits_by_image(&self, images: &[f32]) -> Result<Vec<f32>> {
        let features = self.model.features(&self.params, images)?;
        let side = self.model.preprocess()?.output_size().map_or(1, |(width, height)| 3 * width * height);
        let classifier = self.model.classifier(&self.params)?;
        let each = features.len() / (images.len() / side).max(1);
        let rows = features.chunks_exact(each.max(1)).map(|row| classifier.logits(row));
        Ok(rows.collect::<Result<Vec<_>>>()?.concat())
    }

    /// Probabilities `[B, C]` of the classes: the softmax of [`Self::logits`] at the task's temperature, or the logistic function of each where an
    /// image has any number of classes.
    pub fn predict(&self, images: &[f32]) -> Result<Vec<f32>> {
        let mut logits = self.logits_by_image(images)?;
        if self.meta.multilabel {
            for v in &mut logits {
                *v = sigmoid(*v);
            }
            return Ok(logits);
        }
        let temperature = self.meta.temperature() as f32;
        for row in logits.chunks_exact_mut(self.meta.classes.len()) {
            let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            for v in row.iter_mut() {
                *v = ((*v - max) / temperature).exp();
            }
            let sum: f32 = row.iter().sum();
            for v in row {
                *v /= sum;
            }
        }
        Ok(logits)
    }
}

/// The probability that a logit stands for where each class stands for itself.
pub fn sigmoid(logit: f32) -> f32 {
    1. / (1. + (-logit).exp())
}
