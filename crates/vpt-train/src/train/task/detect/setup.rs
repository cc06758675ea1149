//! From a configuration to everything a detection run needs: data set, backbone, plan, model.

use std::sync::Arc;

use crate::{
    config::{DetectPlan, Plan, RunConfig, RunContext, Task},
    train::{
        OpenData,
        observer::{Event, Observer},
        progress::Stage,
        task::RunFingerprint,
    },
};
use vpt_backbone::{Backbone, OpenOptions, class_texts::class_embeddings, registry::locate};
use vpt_base::{Error, Result};
use vpt_data::{
    Split,
    boxes::{BoxAugment, BoxDataset, BoxImage, BoxInput, BoxLoaderOptions, Fit},
    check::notes_of_boxes,
};
use vpt_model::{
    head::detect::{ClassLayer, geometry::anchor_side},
    model::{
        detect::{Detector, levels},
        task_file::{DetectMeta, TaskMeta, TaskMetrics},
    },
};

/// Tokens a side that a detector works with unless told otherwise: fewer where patches are so large that the head doubles them.
const GRID: usize = 16;
const COARSE_GRID: usize = 12;
const COARSE_PATCH: usize = 32;

/// A detection run with everything it needs that does not change.
pub(crate) struct DetectTraining {
    pub(super) plan: Plan,
    pub(super) detect: DetectPlan,
    pub(super) model: Detector,
    pub(super) dataset: BoxDataset,
    pub(super) input: BoxInput,
    images: [Arc<[BoxImage]>; 3],
    /// Stands for configuration, data and backbone in checkpoints.
    pub(super) fingerprint: RunFingerprint,
}

/// Side of the images that `backbone` sees in detection unless told otherwise, in pixels: more than in classification, since
/// small objects have to be told apart.
pub(crate) fn working_size(backbone: &str, weights_dir: Option<&std::path::Path>) -> Result<usize> {
    let patch = locate(backbone, weights_dir)?.spec()?.patch_size;
    Ok(patch * if patch >= COARSE_PATCH { COARSE_GRID } else { GRID })
}

impl DetectTraining {
    /// Opens data, unless it is `given`, and backbone.
    pub(super) fn new(config: &RunConfig, given: Option<OpenData>, observer: &mut dyn Observer) -> Result<Self> {
        let mut dataset = match given {
            Some(given) => given.detect()?,
            None => BoxDataset::open(&config.data, config.seed_of_parts())?,
        };
        dataset.refuse_without_objects()?;
        observer.event(&Event::Note(&format!("{}: {}", dataset.name, dataset.split_note)));
        let left_out = dataset.leave_out_unreadable(config.skip_bad_images)?;
        if !left_out.is_empty() {
            observer.event(&Event::Note(&format!("{} unreadable images are left out", left_out.len())));
        }
        for note in notes_of_boxes(&dataset.problems, config.data.as_ref()) {
            observer.event(&Event::Note(&note));
        }

        let weights_dir = config.weights_dir.clone();
        let size = match config.image_size {
            Some(size) => size,
            None => working_size(&config.backbone, weights_dir.as_deref())?,
        };
        let open = OpenOptions {
            weights_dir,
            image_size: Some(size),
            precision: config.precision,
            max_memory: config.max_memory,
            compute: config.compute(),
        };
        let backbone = Arc::new(Backbone::open(&config.backbone, &open)?);
        backbone.note().iter().for_each(|note| observer.event(&Event::Note(note)));
        let plan = config.resolve(&RunContext {
            task: Task::Detect,
            depth: backbone.vit.depth(),
            text_depth: None,
            shots: None,
            image_size: size,
            train_images: dataset.train.len(),
        })?;
        let detect = plan.detect.ok_or_else(|| Error::setting("task", "not detection"))?;
        let classes = dataset.categories.len();
        let texts = if config.open_vocabulary {
            Some(class_embeddings(&backbone, &dataset.names(), plan.threads)?)
        } else {
            None
        };
        let classes = match &texts {
            Some(texts) => ClassLayer::Text { classes, width: texts.len() / classes },
            None => ClassLayer::Linear { classes },
        };
        let shape = Detector::shape(&backbone, classes, anchor(&dataset, detect.fit)?);
        let layout = plan.parts.tokens();
        let input = BoxInput { preprocess: backbone.preprocess.clone(), side: size, grid: shape.grid, fit: detect.fit };
        let blocks = levels(backbone.vit.depth());
        let model = Detector::new(backbone, layout, shape, &blocks, texts, plan.threads)?;
        let fingerprint = RunFingerprint::new(&plan, &[dataset.fingerprint().as_bytes()], model.backbone())?;
        let images = Split::ALL.map(|split| dataset.part(split).into());
        Ok(Self { plan, detect, model, dataset, input, images, fingerprint })
    }

    /// The images of a part, for a loader.
    pub(super) fn images(&self, split: Split) -> Arc<[BoxImage]> {
        self.images[split as usize].clone()
    }

    /// Random changes to the images of a part. A head that prompts will follow learns from features computed once; one that
    /// learns alone to the end sees all that was asked for.
    pub(super) fn augment(&self, split: Split, stage: Stage) -> BoxAugment {
        let augment = self.detect.augment;
        match (split, stage) {
            (Split::Train, Stage::Head) if self.model.layout().is_some() => {
                BoxAugment { flip: augment.flip, ..BoxAugment::default() }
            }
            (Split::Train, _) => augment,
            _ => BoxAugment::default(),
        }
    }

    /// How a part is read when nothing is random; the caller sets what differs.
    pub(super) fn loader_options(&self) -> BoxLoaderOptions {
        let plain = BoxLoaderOptions::plain(self.input.clone(), self.plan.threads);
        BoxLoaderOptions { seed: self.plan.config.seed, ..plain }
    }

    /// Metadata of a task file of this run.
    pub(super) fn task_meta(&self, metrics: TaskMetrics, confidence: Option<f64>) -> Result<TaskMeta> {
        let backbone = self.model.backbone();
        let preprocess = backbone.preprocess.clone();
        let meta = self.plan.task_meta(backbone, self.dataset.names(), preprocess, metrics)?;
        let detect = DetectMeta {
            head: *self.model.head(),
            blocks: self.model.blocks(),
            fit: self.detect.fit,
            category_ids: self.dataset.categories.iter().map(|category| category.id).collect(),
            confidence,
        };
        Ok(meta.with_detector(detect))
    }
}

/// The side of a typical training box, as a share of the network's input.
fn anchor(dataset: &BoxDataset, fit: Fit) -> Result<f32> {
    let boxes: Vec<[f32; 4]> = dataset
        .train
        .iter()
        .flat_map(|image| {
            let (width, height) = match fit {
                Fit::Stretch => (image.width, image.height),
                Fit::Letterbox => (image.width.max(image.height), image.width.max(image.height)),
            };
            image.objects.iter().filter(|object| !object.crowd).map(move |object| {
                let (w, h) = (object.rect.width / width as f64, object.rect.height / height as f64);
                [0., 0., w as f32, h as f32]
            })
        })
        .collect();
    let message = "no training image has a box to learn from";
    anchor_side(&boxes).ok_or_else(|| Error::invalid(format!("data set {}", dataset.name), message))
}
