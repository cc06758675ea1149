//! From a configuration to everything a segmentation run needs: data set, backbone, plan, model.

use std::sync::Arc;

use crate::{
    config::{Plan, RunConfig, RunContext, SegmentPlan, Task},
    train::{
        OpenData,
        observer::{Event, Observer},
        progress::Stage,
        task::{RunFingerprint, detect::working_size},
    },
};
use vpt_backbone::{Backbone, OpenOptions};
use vpt_base::{Error, Result};
use vpt_data::{
    Split,
    masks::{MaskAugment, MaskDataset, MaskImage, MaskInput, MaskLoaderOptions, MaskView},
};
use vpt_model::model::{
    segment::Segmenter,
    task_file::{SegmentMeta, TaskMeta, TaskMetrics},
};

/// Notes on the data that are told.
const TOLD: usize = 5;

/// A segmentation run with everything it needs that does not change.
pub(crate) struct SegmentTraining {
    pub(super) plan: Plan,
    pub(super) segment: SegmentPlan,
    pub(super) model: Segmenter,
    pub(super) dataset: MaskDataset,
    pub(super) input: MaskInput,
    images: [Arc<[MaskImage]>; 3],
    /// Stands for configuration, data and backbone in checkpoints.
    pub(super) fingerprint: RunFingerprint,
}

impl SegmentTraining {
    /// Opens data, unless it is `given`, and backbone.
    pub(super) fn new(config: &RunConfig, given: Option<OpenData>, observer: &mut dyn Observer) -> Result<Self> {
        let mut dataset = match given {
            Some(given) => given.segment()?,
            None => MaskDataset::open(&config.data, config.seed_of_parts())?,
        };
        observer.event(&Event::Note(&format!("{}: {}", dataset.name, dataset.split_note)));
        let left_out = dataset.refuse_faults(config.skip_bad_images)?
            + dataset.leave_out_unreadable(config.skip_bad_images)?.len();
        if left_out > 0 {
            observer.event(&Event::Note(&format!("{left_out} images and masks that cannot be used are left out")));
        }
        for note in dataset.notes.iter().take(TOLD) {
            observer.event(&Event::Note(&note.to_string()));
        }
        if let Some(more) = dataset.notes.len().checked_sub(TOLD).filter(|more| *more > 0) {
            let note = format!("{more} more findings in the data: see `vpt data check {}`", config.data);
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
            task: Task::Segment,
            depth: backbone.vit.depth(),
            text_depth: None,
            shots: None,
            image_size: size,
            train_images: dataset.train.len(),
        })?;
        let segment = plan.segment.ok_or_else(|| Error::setting("task", "not segmentation"))?;
        let (shape, blocks) = Segmenter::shape(&backbone, segment.decode_head, dataset.classes.names.len());
        let preprocess = backbone.preprocess.clone();
        let input = MaskInput { preprocess, side: size, cells: shape.cells(), tiles: segment.tiles };
        input.check()?;
        let model = Segmenter::new(backbone, plan.parts.tokens(), shape, &blocks, plan.threads)?;
        let fingerprint = RunFingerprint::new(&plan, &[dataset.fingerprint().as_bytes()], model.reader().backbone())?;
        let images = Split::ALL.map(|split| dataset.part(split).into());
        Ok(Self { plan, segment, model, dataset, input, images, fingerprint })
    }

    /// The images of a part, for a loader.
    pub(super) fn images(&self, split: Split) -> Arc<[MaskImage]> {
        self.images[split as usize].clone()
    }

    /// Random changes to the images of a part. A head that prompts will follow learns from features computed once; one that
    /// learns alone to the end sees all that was asked for.
    pub(super) fn augment(&self, split: Split, stage: Stage) -> MaskAugment {
        let augment = self.segment.augment;
        match (split, stage) {
            (Split::Train, Stage::Head) if self.model.reader().layout().is_some() => {
                MaskAugment { scale: None, ..augment }
            }
            (Split::Train, _) => augment,
            _ => MaskAugment::default(),
        }
    }

    /// How a part is read when nothing is random; the caller sets what differs.
    pub(super) fn loader_options(&self) -> MaskLoaderOptions {
        MaskLoaderOptions {
            input: self.input.clone(),
            view: MaskView::Windows { mirror: false },
            labels: false,
            seed: self.plan.config.seed,
            epoch: 0,
            batch: super::source::EVAL_BATCH,
            threads: self.plan.threads,
        }
    }

    /// Metadata of a task file of this run.
    pub(super) fn task_meta(&self, metrics: TaskMetrics) -> Result<TaskMeta> {
        let backbone = self.model.reader().backbone();
        let preprocess = backbone.preprocess.clone();
        let meta = self.plan.task_meta(backbone, self.dataset.classes.names.clone(), preprocess, metrics)?;
        Ok(meta.with_segmenter(SegmentMeta {
            head: *self.model.head(),
            blocks: self.model.reader().blocks(),
            tiles: self.segment.tiles,
            indices: self.dataset.classes.indices(),
        }))
    }
}
