//! Time of a detector's training step beside that of the plain backbone: with the whole backbone run every step, with what
//! comes before the prompts known already, and with the head alone on features that are known.

use std::sync::Arc;
use std::time::Instant;

use rand::Rng;
use serde::Serialize;

use super::step::StepOptions;
use vpt_backbone::Backbone;
use vpt_base::random::{normal, stream};
use vpt_base::{Error, Result};
use vpt_model::head::detect::{ClassLayer, Truth};
use vpt_model::model::detect::{DetectStep, Detector, TokenInput, levels};
use vpt_model::prompt::part::Drawn;
use vpt_train::config::{RunConfig, RunContext, Task};
use vpt_train::train::results::peak_rss_bytes;

/// Objects in each random image: COCO's mean.
const OBJECTS: usize = 7;
/// Side of the boxes they are around, in units of the input.
const SIDE: f32 = 0.2;

/// The JSON of `vpt bench detect`. Times are medians of wall times, in seconds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DetectReport {
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

/// Times the steps of a detector on `backbone` in turns, so that all see the same machine.
///
/// # Errors
/// A value of the configuration does not fit the backbone.
pub fn detect(
    config: &RunConfig,
    backbone: Backbone,
    options: &StepOptions,
    note: &mut dyn FnMut(&str),
) -> Result<DetectReport> {
    let batch = config.batch_size.unwrap_or(8);
    let (depth, image_size) = (backbone.vit.depth(), backbone.vit.image_size());
    options.check(batch, image_size)?;
    let facts =
        RunContext { task: Task::Detect, depth, text_depth: None, image_size, train_images: batch, shots: None };
    let plan = config.resolve(&facts)?;
    let Some(layout) = plan.parts.tokens() else {
        return Err(Error::setting("method", "a method with prompt tokens is measured here"));
    };
    let shape = Detector::shape(&backbone, ClassLayer::Linear { classes: options.classes }, SIDE);
    let name = backbone.name.clone();
    let detector = Detector::new(Arc::new(backbone), Some(layout), shape, &levels(depth), None, plan.threads)?;
    let params = detector.init(config.seed)?;
    let mut rng = stream(config.seed, "bench detect", 0, 0);
    let images: Vec<f32> = (0..batch * 3 * image_size * image_size).map(|_| normal(&mut rng)).collect();
    let truths: Vec<Vec<Truth>> = (0..batch)
        .map(|_| {
            let object = |_| {
                let rect = [rng.random_range(0.1..0.9), rng.random_range(0.1..0.9), SIDE, SIDE];
                Truth { rect, class: rng.random_range(0..options.classes), crowd: false }
            };
            (0..OBJECTS).map(object).collect()
        })
        .collect();
    let (prefix, features) = (detector.prefix(&images)?, detector.features(&images)?);

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
                detector.features(&images)?;
            } else {
                let micro_batch = config.micro_batch;
                let step = DetectStep { input, truths: &truths, valid: None, drawn: Drawn::Nothing, micro_batch };
                detector.step(&params, &step)?;
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
