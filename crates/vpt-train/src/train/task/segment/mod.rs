//! Segmentation: a class for each pixel. Evaluation is over whole images at their own resolution, put together of windows.

mod files;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use super::{
    Batches, FinishedRun, Scored,
    dense::{
        Change, DenseBatch, DenseData, DenseDraw, DenseEvaluator, DenseRequest, DenseStep, DenseSummary, DenseTask,
        DenseTraining, DrawnRecord, LearnedValues, Look,
    },
};
use crate::{
    config::{Plan, RunConfig, SegmentPlan, Task},
    train::{
        OpenData,
        observer::{Event, Observer},
        progress::Stage,
    },
};
use rand::Rng;
use vpt_backbone::Backbone;
use vpt_base::{Error, Result, params::Param, random::stream};
use vpt_data::{
    ChosenTiles, Split,
    masks::{
        MaskAugment, MaskBatch, MaskDataset, MaskImage, MaskInput, MaskLoader, MaskLoaderOptions, MaskShots, MaskView,
    },
    visit_batches,
};
use vpt_model::{
    head::segment::DecodeHead,
    metrics::{
        PixelTally, Scores, SegmentMetrics,
        bootstrap::Interval,
        segment::{ClassPixels, miou_difference},
    },
    model::{
        segment::{SegmentStep, Segmenter, TokenStatistics},
        task_file::{SegmentMeta, TaskMeta},
        token_reader::TokenReader,
    },
};

/// Training images whose tokens say mean and variance to a linear head.
const NORM_IMAGES: usize = 128;

/// Notes on the data that are told.
const TOLD: usize = 5;

/// A segmentation run.
pub(crate) type SegmentTraining = DenseTraining<Masks>;

/// Masks to be learned, and a model that learns them.
pub(crate) struct Masks {
    segment: SegmentPlan,
    model: Segmenter,
    dataset: MaskDataset,
    input: MaskInput,
    images: [Arc<[MaskImage]>; 3],
    views: usize,
}

/// Counts over the images of a part.
pub(crate) struct PartTally {
    pixels: PixelTally,
    /// Positions of images, and the share of their pixels that is told rightly; of those that have pixels of a class.
    images: Vec<(usize, f64)>,
    /// The pixels of each class in each image, in the order of the images.
    of_images: Vec<Vec<ClassPixels>>,
}

/// What was found in the images of a part.
pub(crate) struct PixelsFound {
    tally: PartTally,
    metrics: SegmentMetrics,
}

impl Scored for PixelsFound {
    fn scores(&self) -> Scores {
        Scores::Segment(self.metrics.clone())
    }
}

impl DenseData for MaskDataset {
    fn images(&self, split: Split) -> usize {
        self.part(split).len()
    }

    fn summary(&self) -> DenseSummary {
        let (name, classes) = (self.name.clone(), self.classes.names.clone());
        let draw = self.draw.clone().map(DenseDraw::Masks);
        DenseSummary { name, classes, fingerprint: self.fingerprint(), split_file: self.split_file(), draw }
    }

    fn fold(&self, fold: (usize, usize), seed: u64) -> Result<Self> {
        self.fold(fold, seed)
    }
}

impl DenseTask for Masks {
    const TASK: Task = Task::Segment;
    const EVAL_BATCH: usize = 8;
    const MEANS: &'static [&'static str] = &["train_pixel_acc"];
    type Data = MaskDataset;
    /// The classes in the cells of a window, `[L, L]`; none where nothing is learned.
    type Target = Vec<u16>;
    /// Of each image, its place in the part and what was made of its pixels.
    type Output = Vec<(usize, PixelTally)>;
    type Tally = PartTally;
    type Evaluation = PixelsFound;

    fn open(config: &RunConfig, given: Option<OpenData>, observer: &mut dyn Observer) -> Result<MaskDataset> {
        let mut dataset = match given {
            Some(given) => given.segment()?,
            None => MaskDataset::open_with(&config.data, config.seed_of_parts(), config.made_parts())?,
        };
        let draw = match (&config.draw, config.shots) {
            (Some(path), _) => Some(MaskShots::read(path)?),
            (None, shots) => shots.map(|shots| MaskShots::draw(&dataset, shots, config.seed)).transpose()?,
        };
        let faults = dataset.refuse_faults(config.skip_bad_images)?;
        if let Some(draw) = draw {
            dataset = draw.apply(&dataset)?;
            for (class, images) in draw.short_classes() {
                observer.event(&Event::Note(&format!("class {class} has only {images} images to draw from")));
            }
        }
        observer.event(&Event::Note(&format!("{}: {}", dataset.name, dataset.split_note)));
        let left_out = faults + dataset.leave_out_unreadable(config.skip_bad_images)?.len();
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
        Ok(dataset)
    }

    fn choose_tiles(dataset: &MaskDataset, _: &RunConfig, backbone: &Backbone) -> ChosenTiles {
        ChosenTiles::of_masks(&dataset.train, backbone.vit.image_size())
    }

    fn new(dataset: MaskDataset, backbone: Arc<Backbone>, plan: &Plan) -> Result<Self> {
        let Plan { dense: Some(dense), segment: Some(segment), .. } = *plan else {
            return Err(Error::setting("task", "not segmentation"));
        };
        let (shape, blocks) = Segmenter::shape(&backbone, segment.decode_head, dataset.classes.names.len());
        let (preprocess, side) = (backbone.preprocess.clone(), backbone.vit.image_size());
        let input = MaskInput { preprocess, side, cells: shape.cells(), tiles: segment.tiles };
        input.check()?;
        let model = Segmenter::new(backbone, &plan.parts, shape, &blocks, plan.threads)?;
        let images = Split::ALL.map(|split| dataset.part(split).into());
        let views = dense.views(dataset.train.len(), model.reader().both_len());
        Ok(Self { segment, model, dataset, input, images, views })
    }

    fn dataset(&self) -> &MaskDataset {
        &self.dataset
    }

    fn reader(&self) -> &TokenReader {
        self.model.reader()
    }

    fn init(&self, seed: u64) -> Result<Vec<Param>> {
        self.model.init(seed)
    }

    /// Gives a linear head the statistics of the training images.
    fn begin(&self, plan: &Plan, params: &mut [Param], observer: &mut dyn Observer) -> Result<bool> {
        if self.model.head().kind != DecodeHead::Linear {
            return Ok(true);
        }
        let count = self.dataset.train.len();
        let total = count.min(NORM_IMAGES);
        let rng = &mut stream(plan.config.seed, "norm of tokens", 0, 0);
        let mut order = rand::seq::index::sample(rng, count, total).into_vec();
        order.sort_unstable();
        let loader = MaskLoader::new(self.images(Split::Train), order, self.loader_options(plan))?;
        let mut statistics = TokenStatistics::new(self.model.head().width);
        let go_on = &mut |done, total| observer.goes_on(&Event::Features { split: Split::Train, done, total });
        let all = visit_batches(loader, total, go_on, |batch| {
            statistics.add(&self.model.reader().features(&batch.pixels)?);
            Ok(())
        })?;
        if all {
            self.model.set_norm(params, &statistics)?;
        }
        Ok(all)
    }

    fn change(&self, split: Split, stage: Stage) -> Change {
        match self.augment(split, stage) {
            MaskAugment { scale: Some(_), .. } => Change::Any,
            MaskAugment { flip: true, .. } => Change::Flip,
            MaskAugment { .. } => Change::Nothing,
        }
    }

    fn views(&self) -> usize {
        self.views
    }

    fn windows(&self, split: Split) -> Result<Vec<usize>> {
        let windows = |image: &MaskImage| Ok(self.input.windows(image.width, image.height)?.len());
        self.dataset.part(split).iter().map(windows).collect()
    }

    fn load(&self, plan: &Plan, request: DenseRequest) -> Result<Batches<'static, DenseBatch<Vec<u16>>>> {
        let DenseRequest { split, order, look, size } = request;
        let plain = MaskLoaderOptions { labels: split == Split::Train, batch: size, ..self.loader_options(plan) };
        let options = match look {
            Look::Plain { mirror } => MaskLoaderOptions { view: MaskView::Windows { mirror }, ..plain },
            Look::Random { stage, epoch } => {
                MaskLoaderOptions { view: MaskView::Random(self.augment(split, stage)), epoch, ..plain }
            }
        };
        let loader = MaskLoader::new(self.images(split), order, options)?;
        let cells = self.input.cells * self.input.cells;
        Ok(Box::new(loader.map(move |batch| {
            let MaskBatch { pixels, labels, windows, indices } = batch?;
            let count = windows.iter().sum();
            let of_window =
                |window: usize| labels.get(window * cells..(window + 1) * cells).unwrap_or_default().to_vec();
            Ok(DenseBatch::of_images(pixels, (0..count).map(of_window).collect(), windows, indices))
        })))
    }

    fn draw_record(&self, plan: &Plan, drawn: DrawnRecord) -> usize {
        let DrawnRecord { index, epoch, windows, looks } = drawn;
        let rng = &mut stream(plan.config.seed, "cached window", epoch, index as u64);
        rng.random_range(windows) * looks + rng.random_range(0..looks)
    }

    fn step(&self, step: DenseStep<Vec<u16>>) -> Result<(Vec<f64>, f64, Vec<Vec<f32>>)> {
        let DenseStep { params, batch, drawn, micro_batch } = step;
        let labels = batch.targets.concat();
        let step = SegmentStep { input: batch.input(), labels: &labels, drawn, micro_batch };
        let (loss, gradients) = self.model.step(params, &step)?;
        let cells = loss.cells.max(1) as f64;
        Ok((vec![loss.sum / cells, loss.right as f64 / cells], loss.cells as f64, gradients))
    }

    fn tally(&self) -> PartTally {
        let pixels = PixelTally::new(self.dataset.classes.names.len());
        PartTally { pixels, images: Vec::new(), of_images: Vec::new() }
    }

    fn evaluator<'a>(&'a self, split: Split, learned: LearnedValues<'a>) -> Result<DenseEvaluator<'a, Self>> {
        let LearnedValues { params, with_parts } = learned;
        let part = self.dataset.part(split);
        let head = self.model.bind(params)?;
        Ok(Box::new(move |batch| {
            let images: Vec<&MaskImage> = batch.indices.iter().map(|&index| &part[index]).collect();
            let sizes: Vec<_> = images.iter().map(|image| [image.width, image.height]).collect();
            let found = self.model.masks(&head, with_parts, batch.input(), &batch.windows, &sizes, &self.input)?;
            let each = batch.indices.iter().zip(images).zip(found).map(|((&index, image), found)| {
                let mut own = PixelTally::new(self.dataset.classes.names.len());
                own.add(&image.mask()?.classes, &found.classes)?;
                Ok((index, own))
            });
            each.collect()
        }))
    }

    fn add(&self, tally: &mut PartTally, output: Self::Output) {
        for (index, own) in output {
            tally.images.extend(own.right().map(|share| (index, share)));
            tally.of_images.push(own.of_classes());
            tally.pixels.merge(&own);
        }
    }

    fn conclude(&self, tally: PartTally, _: Split) -> Result<PixelsFound> {
        let metrics = tally.pixels.metrics(&self.dataset.classes.names);
        Ok(PixelsFound { tally, metrics })
    }

    fn moved(&self, learned: &PixelsFound, alone: &PixelsFound, rng: &mut impl Rng) -> Result<Option<Interval>> {
        Ok(miou_difference([&learned.tally.of_images, &alone.tally.of_images], rng))
    }

    fn describe(&self, _: &Plan, meta: TaskMeta, _: Option<&PixelsFound>) -> TaskMeta {
        meta.with_segmenter(SegmentMeta {
            head: *self.model.head(),
            blocks: self.model.reader().blocks(),
            tiles: self.segment.tiles,
            indices: self.dataset.classes.indices(),
        })
    }

    fn write_files(&self, plan: &Plan, title: &str, run: &FinishedRun<PixelsFound>) -> Result<()> {
        files::write(self, plan, title, run)
    }
}

impl Masks {
    /// The images of a part, for a loader.
    fn images(&self, split: Split) -> Arc<[MaskImage]> {
        self.images[split as usize].clone()
    }

    /// Random changes to the images of a part. Without views that are computed once, a head that something else will follow sees none.
    fn augment(&self, split: Split, stage: Stage) -> MaskAugment {
        let augment = self.segment.augment;
        match (split, stage) {
            (Split::Train, Stage::Head) if self.views == 0 && !self.model.reader().shapes().is_empty() => {
                MaskAugment { scale: None, ..augment }
            }
            (Split::Train, _) => augment,
            _ => MaskAugment::default(),
        }
    }

    /// How a part is read when nothing is random and nothing is learned; the caller sets what differs.
    fn loader_options(&self, plan: &Plan) -> MaskLoaderOptions {
        MaskLoaderOptions {
            input: self.input.clone(),
            view: MaskView::Windows { mirror: false },
            labels: false,
            seed: plan.config.seed,
            epoch: 0,
            batch: Self::EVAL_BATCH,
            threads: plan.threads,
        }
    }
}
