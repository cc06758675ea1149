//! Time of a training step of detection or segmentation beside that of the plain backbone: with the whole backbone run every step, with what
//! comes before the prompts known already, and with the head alone on features that are known.

use std::sync::Arc;
use std::time::Instant;

use rand::Rng;
use serde::Serialize;

use super::step::StepOptions;
use vpt_backbone::Backbone;
use vpt_base::random::{normal, stream};
use vpt_base::{Error, Result, params::Param};
use vpt_model::head::detect::{ClassLayer, Truth};
use vpt_model::model::detect::{DetectStep, Detector, TokenInput, levels};
use vpt_model::model::segment::{SegmentStep, Segmenter};
use vpt_model::model::token_reader::TokenReader;
use vpt_train::config::{Plan, RunConfig, RunContext, Task};
use vpt_train::train::results::peak_rss_bytes;

/// Objects in each random image: COCO's mean.
const OBJECTS: usize = 7;
/// Side of the boxes they are around, in units of the input.
const SIDE: f32 = 0.2;

/// The JSON of `vpt bench detect`. Times are medians of wall times, in seconds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DetectReport {
    /// What is learned: boxes, or pixels.
    pub task: Task,
    /// The backbone.
    pub backbone: String,
    /// Images in a step.
    pub batch_size: usize,
    /// Prompt tokens a block.
    pub prompt_tokens: usize,
    /// Prompted blocks.
    pub prompt_layers: usize,
    /// Side of the images in pixels.
    pub image_size: usize,
    /// Threads that computed.
    pub threads: usize,
    /// Rounds that were timed.
    pub repeats: usize,
    /// The backbone's forward pass alone, without prompts.
    pub forward_s: f64,
    /// A step that runs the whole backbone.
    pub step_s: f64,
    /// A step from what comes before the first prompt.
    pub prefix_step_s: f64,
    /// A step of the head alone, on known features.
    pub head_step_s: f64,
    /// `step_s` by `forward_s`.
    pub step_ratio: f64,
    /// `prefix_step_s` by `forward_s`.
    pub prefix_ratio: f64,
    /// Most memory the process held, in bytes; `None` where the system does not tell.
    pub peak_rss_bytes: Option<u64>,
}

/// A model with what it learns from.
enum Stepper {
    Boxes { model: Box<Detector>, params: Vec<Param>, truths: Vec<Vec<Truth>> },
    Pixels { model: Box<Segmenter>, params: Vec<Param>, labels: Vec<u16> },
}

impl Stepper {
    /// Of `task`, for `batch` images with random objects, or pixels, of so many classes.
    fn new(task: Task, backbone: Arc<Backbone>, plan: &Plan, batch: usize, classes: usize) -> Result<Self> {
        let (seed, parts) = (plan.config.seed, &plan.parts);
        let mut rng = stream(seed, "bench truth", 0, 0);
        if let Some(segment) = plan.segment {
            let (shape, blocks) = Segmenter::shape(&backbone, segment.decode_head, classes);
            let model = Segmenter::new(backbone, parts, shape, &blocks, plan.threads)?;
            let cells = batch * shape.cells() * shape.cells();
            let labels = (0..cells).map(|_| rng.random_range(0..classes) as u16).collect();
            return Ok(Self::Pixels { params: model.init(seed)?, model: Box::new(model), labels });
        }
        if task != Task::Detect {
            return Err(Error::setting("task", format!("{task} has no head on patch tokens")));
        }
        let blocks = levels(backbone.vit.depth());
        let shape = Detector::shape(&backbone, ClassLayer::Linear { classes }, SIDE);
        let model = Detector::new(backbone, parts, shape, &blocks, None, plan.threads)?;
        let mut object = || {
            let rect = [rng.random_range(0.1..0.9), rng.random_range(0.1..0.9), SIDE, SIDE];
            Truth { rect, class: rng.random_range(0..classes), crowd: false }
        };
        let truths = (0..batch).map(|_| (0..OBJECTS).map(|_| object()).collect()).collect();
        Ok(Self::Boxes { params: model.init(seed)?, model: Box::new(model), truths })
    }

    fn reader(&self) -> &TokenReader {
        match self {
            Self::Boxes { model, .. } => model.reader(),
            Self::Pixels { model, .. } => model.reader(),
        }
    }

    fn step(&self, input: TokenInput, micro_batch: Option<usize>) -> Result<()> {
        let drawn = &[];
        match self {
            Self::Boxes { model, params, truths } => {
                model.step(params, &DetectStep { input, truths, valid: None, drawn, micro_batch }).map(|_| ())
            }
            Self::Pixels { model, params, labels } => {
                model.step(params, &SegmentStep { input, labels, drawn, micro_batch }).map(|_| ())
            }
        }
    }
}

/// Times the steps of a detector, or of segmentation, on `backbone` in turns, so that all see the same machine.
///
/// # Errors
/// A value of the configuration does not fit the backbone, or the task has no head on patch tokens.
pub fn detect(
    config: &RunConfig,
    task: Task,
    backbone: Backbone,
    options: &StepOptions,
    note: &mut dyn FnMut(&str),
) -> Result<DetectReport> {
    let batch = config.batch_size.unwrap_or(8);
    let (depth, image_size) = (backbone.vit.depth(), backbone.vit.image_size());
    options.check(batch, image_size)?;
    let facts = RunContext { task, depth, text_depth: None, image_size, train_images: batch, shots: None };
    let plan = config.resolve(&facts)?;
    let Some(layout) = plan.parts.tokens().filter(|_| plan.parts.weights().is_none()) else {
        return Err(Error::setting("method", "a method with prompt tokens alone is measured here"));
    };
    let name = backbone.name.clone();
    let images: Vec<f32> = {
        let mut rng = stream(config.seed, "bench detect", 0, 0);
        (0..batch * 3 * image_size * image_size).map(|_| normal(&mut rng)).collect()
    };
    let stepper = Stepper::new(task, Arc::new(backbone), &plan, batch, options.classes)?;
    let reader = stepper.reader();
    let (prefix, features) = (reader.prefix(&images)?, reader.features(&images)?);

    let mut times: [Vec<f64>; 4] = Default::default();
    for repeat in 0..=options.repeats {
        let mut taken = [0.; 4];
        for (which, taken) in taken.iter_mut().enumerate() {
            let input = match which {
                0 | 1 => TokenInput::Images(&images),
                2 => TokenInput::Prefix(&prefix),
                _ => TokenInput::Features(&features),
            };
            let begin = Instant::now();
            if which == 0 {
                reader.features(&images)?;
            } else {
                stepper.step(input, config.micro_batch)?;
            }
            *taken = begin.elapsed().as_secs_f64();
        }
        // The first round fills caches and buffers.
        if repeat > 0 {
            times.iter_mut().zip(taken).for_each(|(times, taken)| times.push(taken));
        }
        let [forward, step, prefix, head] = taken;
        note(&format!("forward {forward:.3} s, step {step:.3} s, from the prefix {prefix:.3} s, head {head:.3} s"));
    }
    let [forward_s, step_s, prefix_step_s, head_step_s] = times.map(|mut times| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    });
    Ok(DetectReport {
        task,
        backbone: name,
        batch_size: batch,
        prompt_tokens: layout.tokens,
        prompt_layers: layout.layers,
        image_size,
        threads: plan.threads,
        repeats: options.repeats,
        forward_s,
        step_s,
        prefix_step_s,
        head_step_s,
        step_ratio: step_s / forward_s,
        prefix_ratio: prefix_step_s / forward_s,
        peak_rss_bytes: peak_rss_bytes(),
    })
}
