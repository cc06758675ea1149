//! Detection: boxes of objects, by COCO's metric.

mod files;
mod mistakes;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, sync::Arc};

use super::{
    Batches, FinishedRun, Scored,
    dense::{
        Change, DenseBatch, DenseData, DenseDraw, DenseEvaluator, DenseRequest, DenseStep, DenseSummary, DenseTask,
        DenseTraining, DrawnRecord, LearnedValues, Look,
    },
};
use crate::{
    config::{DetectPlan, Plan, RunConfig, Task},
    train::{
        OpenData,
        observer::{Event, Observer},
        progress::Stage,
    },
};
use rand::Rng;
use serde::{Deserialize, Serialize};
use vpt_backbone::{Backbone, class_texts::class_embeddings};
use vpt_base::{Error, Result, params::Param, random::stream};
use vpt_data::{
    ChosenTiles, SeenAt, Split,
    boxes::{
        BoxAugment, BoxBatch, BoxDataset, BoxImage, BoxInput, BoxLoader, BoxLoaderOptions, BoxShots, Fit, Target, Tile,
        TiledImages, View,
    },
    check::notes_of_boxes,
};
use vpt_model::{
    head::detect::{ClassLayer, LossSums, Truth, geometry::anchor_side},
    metrics::{
        Scores,
        bootstrap::{self, Interval},
        coco::{self, Detected, Detection, MatchedDetections},
    },
    model::{
        detect::{DetectStep, Detector, levels},
        task_file::{DetectMeta, TaskMeta},
        token_reader::TokenReader,
    },
};

/// A detection run.
pub(crate) type DetectTraining = DenseTraining<Boxes>;

/// Boxes to be learned, and a detector that learns them.
pub(crate) struct Boxes {
    detect: DetectPlan,
    model: Detector,
    dataset: BoxDataset,
    input: BoxInput,
    /// The images of each part as they are seen: whole, or beside that in tiles.
    images: [Arc<[BoxImage]>; 3],
    tiles: [Vec<Tile>; 3],
    views: usize,
}

/// What is known of an image.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct ImageBoxes {
    truths: Vec<Truth>,
    /// `[G, G]`: tokens that lie on the image; all of them if `None`.
    valid: Option<Vec<bool>>,
    view: View,
}

impl Scored for Detected {
    fn scores(&self) -> Scores {
        Scores::Detect(self.eval.metrics)
    }
}

impl DenseData for BoxDataset {
    fn images(&self, split: Split) -> usize {
        self.part(split).len()
    }

    fn summary(&self) -> DenseSummary {
        let (name, classes) = (self.name.clone(), self.names());
        let (fingerprint, split_file, draw) =
            (self.fingerprint(), self.split_file(), self.draw.clone().map(DenseDraw::Boxes));
        DenseSummary { name, classes, fingerprint, split_file, draw }
    }

    fn fold(&self, fold: (usize, usize), seed: u64) -> Result<Self> {
        self.fold(fold, seed)
    }
}

impl DenseTask for Boxes {
    const TASK: Task = Task::Detect;
    const EVAL_BATCH: usize = 16;
    const MEANS: &'static [&'static str] = &["class_loss", "giou_loss", "l1_loss", "quality_loss"];
    type Data = BoxDataset;
    type Target = ImageBoxes;
    type Output = Vec<Detection>;
    type Tally = Vec<Detection>;
    type Evaluation = Detected;

    fn open(config: &RunConfig, given: Option<OpenData>, observer: &mut dyn Observer) -> Result<BoxDataset> {
        let mut dataset = match given {
            Some(given) => given.detect()?,
            None => BoxDataset::open_with(&config.data, config.seed_of_parts(), config.made_parts())?,
        };
        dataset.refuse_without_objects()?;
        let draw = match (&config.draw, config.shots) {
            (Some(path), _) => Some(BoxShots::read(path)?),
            (None, shots) => {
                let draw = |shots| BoxShots::draw(&dataset, config.data.as_ref(), shots, config.seed);
                shots.map(draw).transpose()?
            }
        };
        if let Some(draw) = draw {
            dataset = draw.apply(&dataset)?;
            for (class, boxes) in draw.short_classes() {
                observer.event(&Event::Note(&format!("class {class} has only {boxes} boxes to draw from")));
            }
        }
        observer.event(&Event::Note(&format!("{}: {}", dataset.name, dataset.split_note)));
        let left_out = dataset.leave_out_unreadable(config.skip_bad_images)?;
        if !left_out.is_empty() {
            observer.event(&Event::Note(&format!("{} unreadable images are left out", left_out.len())));
        }
        for note in notes_of_boxes(&dataset.problems, config.data.as_ref()) {
            observer.event(&Event::Note(&note));
        }
        Ok(dataset)
    }

    fn choose_tiles(dataset: &BoxDataset, config: &RunConfig, backbone: &Backbone) -> ChosenTiles {
        let (side, patch) = (backbone.vit.image_size(), backbone.spec.patch_size);
        ChosenTiles::of_boxes(&dataset.train, SeenAt { side, patch, fit: config.fit.unwrap_or_default() })
    }

    fn new(dataset: BoxDataset, backbone: Arc<Backbone>, plan: &Plan) -> Result<Self> {
        let Plan { dense: Some(dense), detect: Some(detect), .. } = *plan else {
            return Err(Error::setting("task", "not detection"));
        };
        let classes = dataset.categories.len();
        let texts = if plan.config.open_vocabulary {
            Some(class_embeddings(&backbone, &dataset.names(), plan.threads)?)
        } else {
            None
        };
        let classes = match &texts {
            Some(texts) => ClassLayer::Text { classes, width: texts.len() / classes },
            None => ClassLayer::Linear { classes },
        };
        let seen = Split::ALL.map(|split| seen(&dataset, split, detect.tiles, plan.config.seed));
        let [train, val, test] = seen;
        let (train, val, test) = (train?, val?, test?);
        let shape = Detector::shape(&backbone, classes, anchor(&dataset.name, &train.views, detect.fit)?);
        let side = backbone.vit.image_size();
        let input = BoxInput { preprocess: backbone.preprocess.clone(), side, grid: shape.grid, fit: detect.fit };
        let blocks = levels(backbone.vit.depth());
        let model = Detector::new(backbone, &plan.parts, shape, &blocks, texts, plan.threads)?;
        let views = dense.views(train.views.len(), model.reader().both_len());
        let tiles = [train.tiles, val.tiles, test.tiles];
        let images = [train.views, val.views, test.views].map(Arc::from);
        Ok(Self { detect, model, dataset, input, images, tiles, views })
    }

    fn learned_from(dataset: &BoxDataset, config: &RunConfig, observer: &mut dyn Observer) -> Result<usize> {
        let tiles = config.tile_count()?;
        let views = seen(dataset, Split::Train, tiles, config.seed)?.views.len();
        if tiles > 1 {
            let images = dataset.train.len();
            let note = format!(
                "{views} views of {images} training images: each whole, and tiles, {tiles} along its shorter side; as many without an \
                 object as with one"
            );
            observer.event(&Event::Note(&note));
        }
        Ok(views)
    }

    fn dataset(&self) -> &BoxDataset {
        &self.dataset
    }

    fn reader(&self) -> &TokenReader {
        self.model.reader()
    }

    fn init(&self, seed: u64) -> Result<Vec<Param>> {
        self.model.init(seed)
    }

    fn change(&self, split: Split, stage: Stage) -> Change {
        match self.augment(split, stage) {
            augment if !augment.only_flip() => Change::Any,
            augment if augment.flip => Change::Flip,
            _ => Change::Nothing,
        }
    }

    fn views(&self) -> usize {
        self.views
    }

    fn seen(&self, split: Split) -> usize {
        self.images[split as usize].len()
    }

    fn windows(&self, split: Split) -> Result<Vec<usize>> {
        Ok(vec![1; self.seen(split)])
    }

    fn load(&self, plan: &Plan, request: DenseRequest) -> Result<Batches<'static, DenseBatch<ImageBoxes>>> {
        let DenseRequest { split, order, look, size } = request;
        let plain = BoxLoaderOptions::plain(self.input.clone(), plan.threads);
        let plain = BoxLoaderOptions { seed: plan.config.seed, batch: size, ..plain };
        let options = match look {
            Look::Plain { mirror } => BoxLoaderOptions { mirror, ..plain },
            Look::Random { stage, epoch } => BoxLoaderOptions { augment: self.augment(split, stage), epoch, ..plain },
        };
        let loader = BoxLoader::new(self.images[split as usize].clone(), order, options)?;
        Ok(Box::new(loader.map(|batch| Ok(batch_of(batch?)))))
    }

    fn draw_record(&self, plan: &Plan, drawn: DrawnRecord) -> usize {
        let DrawnRecord { index, epoch, windows, looks } = drawn;
        let mirrored = looks == 2 && stream(plan.config.seed, "cached flip", epoch, index as u64).random_bool(0.5);
        windows.start * looks + usize::from(mirrored)
    }

    fn step(&self, step: DenseStep<ImageBoxes>) -> Result<(Vec<f64>, f64, Vec<Vec<f32>>)> {
        let DenseStep { params, batch, drawn, micro_batch } = step;
        let truths: Vec<Vec<Truth>> = batch.targets.iter().map(|target| target.truths.clone()).collect();
        let valid = self.valid(batch);
        let step = DetectStep { input: batch.input(), truths: &truths, valid: valid.as_deref(), drawn, micro_batch };
        let (sums, gradients) = self.model.step(params, &step)?;
        let LossSums { positives, class, giou, l1, quality, .. } = sums;
        let n = positives.max(1) as f64;
        let losses = vec![sums.total(positives), class / n, giou / n, l1 / n, quality / n];
        Ok((losses, positives as f64, gradients))
    }

    fn tally(&self) -> Vec<Detection> {
        Vec::new()
    }

    fn evaluator<'a>(&'a self, split: Split, learned: LearnedValues<'a>) -> Result<DenseEvaluator<'a, Self>> {
        let LearnedValues { params, with_parts } = learned;
        let (images, tiles) = (self.dataset.part(split), &self.tiles[split as usize]);
        let head = self.model.bind(params)?;
        Ok(Box::new(move |batch| {
            let boxes = self.model.detect(&head, with_parts, batch.input(), self.valid(batch).as_deref())?;
            let mut detections = Vec::new();
            for ((&index, target), boxes) in batch.indices.iter().zip(&batch.targets).zip(boxes) {
                detections.extend(boxes.iter().filter_map(|found| {
                    let rect = tiles[index].in_image(found.in_original(&target.view)?)?;
                    let category = self.dataset.categories[found.class].id;
                    let image = images[tiles[index].image].id;
                    Some(Detection { image, category, rect, score: f64::from(found.score) })
                }));
            }
            Ok(detections)
        }))
    }

    fn add(&self, tally: &mut Vec<Detection>, output: Vec<Detection>) {
        tally.extend(output);
    }

    fn conclude(&self, mut detections: Vec<Detection>, split: Split) -> Result<Detected> {
        if self.detect.tiles > 1 {
            let mut by_image: BTreeMap<u64, Vec<Detection>> = BTreeMap::new();
            for found in detections {
                by_image.entry(found.image).or_default().push(found);
            }
            let classes: BTreeMap<u64, usize> =
                self.dataset.categories.iter().map(|category| category.id).zip(0..).collect();
            let of = |found: &Detection| (classes[&found.category], found.score, found.rect);
            detections = by_image.into_values().flat_map(|found| self.model.decode().merged(found, of)).collect();
        }
        let eval = coco::evaluate(self.dataset.part(split), &self.dataset.categories, &detections)?;
        Ok(Detected { detections, eval })
    }

    fn moved(&self, learned: &Detected, alone: &Detected, rng: &mut impl Rng) -> Result<Option<Interval>> {
        let BoxDataset { test, categories, .. } = &self.dataset;
        let matched = |found: &Detected| MatchedDetections::new(test, categories, &found.detections);
        let (learned, alone) = (matched(learned)?, matched(alone)?);
        let difference = |_, times: &[u32]| Some([learned.precision(times)?[0] - alone.precision(times)?[0]]);
        Ok(bootstrap::paired_statistics(1, test.len(), difference, rng).map(|[interval]| interval))
    }

    fn describe(&self, _: &Plan, meta: TaskMeta, val: Option<&Detected>) -> TaskMeta {
        let detect = DetectMeta {
            head: *self.model.head(),
            blocks: self.model.blocks(),
            fit: self.detect.fit,
            category_ids: self.dataset.categories.iter().map(|category| category.id).collect(),
            confidence: val.and_then(|val| val.eval.best_confidence()).map(|(confidence, _)| confidence),
            thresholds: val.and_then(|val| val.eval.best_confidences()),
            tiles: self.detect.tiles,
            exemplars: false,
        };
        meta.with_detector(detect)
    }

    fn write_files(&self, plan: &Plan, title: &str, run: &FinishedRun<Detected>) -> Result<()> {
        files::write(self, plan, title, run)
    }
}

impl Boxes {
    /// Random changes to the images of a part. Without views that are computed once, a head that something else will follow sees none.
    fn augment(&self, split: Split, stage: Stage) -> BoxAugment {
        let augment = self.detect.augment;
        match (split, stage) {
            (Split::Train, Stage::Head) if self.views == 0 && !self.model.reader().shapes().is_empty() => {
                BoxAugment { flip: augment.flip, ..BoxAugment::default() }
            }
            (Split::Train, _) => augment,
            _ => BoxAugment::default(),
        }
    }

    /// `[B, G, G]`: the tokens that lie on an image; all of them if `None`.
    fn valid(&self, batch: &DenseBatch<ImageBoxes>) -> Option<Vec<bool>> {
        if batch.targets.iter().all(|target| target.valid.is_none()) {
            return None;
        }
        let tokens = self.input.grid * self.input.grid;
        let valid = |target: &ImageBoxes| target.valid.clone().unwrap_or_else(|| vec![true; tokens]);
        Some(batch.targets.iter().flat_map(valid).collect())
    }
}

/// A batch of images as they come from a loader.
fn batch_of(batch: BoxBatch) -> DenseBatch<ImageBoxes> {
    let BoxBatch { pixels, targets, views, valid, indices } = batch;
    let each = valid.as_ref().map_or(0, |all| all.len() / indices.len());
    let target = |(i, (targets, view)): (usize, (Vec<Target>, View))| ImageBoxes {
        truths: targets.iter().map(truth).collect(),
        valid: valid.as_ref().map(|all| all[i * each..(i + 1) * each].to_vec()),
        view,
    };
    let targets = targets.into_iter().zip(views).enumerate().map(target).collect();
    DenseBatch::of_images(pixels, targets, vec![1; indices.len()], indices)
}

/// Objects that are not to be learned are treated as crowds are: nothing is learned in them.
fn truth(target: &Target) -> Truth {
    Truth { rect: target.bbox, class: target.category, crowd: target.crowd || target.ignore }
}

/// The images of `split` as a run sees them.
fn seen(dataset: &BoxDataset, split: Split, tiles: usize, seed: u64) -> Result<TiledImages> {
    let images = dataset.part(split).to_vec();
    if split == Split::Train { TiledImages::to_learn(images, tiles, seed) } else { TiledImages::new(images, tiles) }
}

/// The side of a typical training box, as a share of the network's input.
fn anchor(name: &str, images: &[BoxImage], fit: Fit) -> Result<f32> {
    let boxes: Vec<[f32; 4]> = images
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
    anchor_side(&boxes).ok_or_else(|| Error::invalid(format!("data set {name}"), message))
}
