//! Time and memory of one training step: forward, loss, backward to the prompts and the head, on random images; or of the
//! forward pass alone.

use std::sync::Arc;
use std::time::Instant;

use rand::Rng;
use serde::Serialize;

use super::flop::Step;
use vpt_backbone::{Backbone, Device, Engine, Precision};
use vpt_base::random::{normal, stream};
use vpt_base::{Error, Result};
use vpt_model::loss::{CrossEntropy, Loss};
use vpt_model::methods::Method;
use vpt_model::model::{ClassifierSpec, Model, StepInput};
use vpt_model::prompt::part::Draw;
use vpt_train::config::{RunConfig, RunContext, Task};
use vpt_train::train::results::peak_rss_bytes;

/// What is measured, beside what a [`RunConfig`] says (method, prompts, batch, micro-batch, threads, seed).
#[derive(Debug, Clone, Copy)]
pub struct StepOptions {
    /// Steps that are timed, after one that is not.
    pub repeats: usize,
    /// Classes of the head.
    pub classes: usize,
    /// The forward pass alone, as evaluation and prediction run it.
    pub forward: bool,
}

/// Most steps to time, most classes, and most values of a batch of images, which take four bytes each: far beyond what is
/// measured, and little enough to be computed with.
const MAX_REPEATS: usize = 100_000;
const MAX_CLASSES: usize = 1 << 16;
const MAX_VALUES: usize = 1 << 32;

impl StepOptions {
    /// Checks them, and a batch of `batch` images of `side` x `side` pixels, before memory is taken.
    pub(super) fn check(&self, batch: usize, side: usize) -> Result<()> {
        for (field, value, most) in [("repeats", self.repeats, MAX_REPEATS), ("classes", self.classes, MAX_CLASSES)] {
            if !(1..=most).contains(&value) {
                let message = if value == 0 { "must be at least 1".to_owned() } else { format!("more than {most}") };
                return Err(Error::setting(field, message));
            }
        }
        if side.checked_pow(2).and_then(|n| n.checked_mul(3)?.checked_mul(batch)).is_none_or(|n| n > MAX_VALUES) {
            let message = format!("{batch} images of {side} x {side} pixels are too many for one step");
            return Err(Error::setting("batch_size", message));
        }
        Ok(())
    }
}

/// The JSON of `vpt bench step`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StepReport {
    /// What is learned.
    pub method: Method,
    /// On which backbone.
    pub backbone: String,
    /// Number format of the computation.
    pub precision: Precision,
    /// What computed the image tower.
    pub engine: Engine,
    /// On what, if not on the processor.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<Device>,
    /// Whether the forward pass alone was timed.
    pub forward: bool,
    /// Images in a step.
    pub batch_size: usize,
    /// Images a thread works on at a time.
    pub micro_batch: usize,
    /// Whether blocks are run again in the backward pass to save memory.
    pub recompute: bool,
    /// Prompt tokens a block; 0 for methods without.
    pub prompt_tokens: usize,
    /// Side of the images in pixels.
    pub image_size: usize,
    /// Threads that computed.
    pub threads: usize,
    /// Steps that were timed.
    pub repeats: usize,
    /// Median wall time of a step, in seconds.
    pub median_s: f64,
    /// Images in a second at that time.
    pub img_per_s: f64,
    /// Least work of a step in 10⁹ floating point operations, see [`super::flop`].
    pub gflop: f64,
    /// `gflop` in a second.
    pub gflop_per_s: f64,
    /// Most memory the process held, in bytes, loading the weights included; `None` where the system does not tell.
    pub peak_rss_bytes: Option<u64>,
}

/// Times a step of `config` on `backbone`. Images, labels and prompts are drawn at random; nothing is dropped out.
///
/// # Errors
/// A value of the configuration does not fit the backbone.
pub fn step(
    config: &RunConfig,
    backbone: Backbone,
    options: &StepOptions,
    note: &mut dyn FnMut(&str),
) -> Result<StepReport> {
    if config.method.on_embeddings() {
        let message = format!("{} takes no step through the backbone", config.method);
        return Err(Error::setting("method", message));
    }
    if config.method.has_texts() {
        let message = format!(
            "{} learns texts: what a step costs depends on the names of classes, and there are none here; time `vpt train`",
            config.method
        );
        return Err(Error::setting("method", message));
    }
    let batch = config.batch_size.unwrap_or(32);
    let (depth, image_size) = (backbone.vit.depth(), backbone.vit.image_size());
    options.check(batch, image_size)?;
    let facts =
        RunContext { task: Task::Classify, depth, text_depth: None, image_size, train_images: batch, shots: None };
    let plan = config.resolve(&facts)?;
    let model =
        Model::new(Arc::new(backbone), &plan.parts, ClassifierSpec::Head(plan.head), options.classes, plan.threads)?;
    let params = model.init(config.seed)?;
    let side = model.preprocess()?.output_size().map_or(facts.image_size, |(width, _)| width);
    let mut rng = stream(config.seed, "bench step", 0, 0);
    let images: Vec<f32> = (0..batch * 3 * side * side).map(|_| normal(&mut rng)).collect();
    let labels: Vec<u32> = (0..batch).map(|_| rng.random_range(0..options.classes as u32)).collect();
    let indices: Vec<usize> = (0..batch).collect();

    let loss = Loss::CrossEntropy(CrossEntropy { smoothing: config.label_smoothing, weights: None });
    let mut seconds = Vec::with_capacity(options.repeats);
    for repeat in 0..=options.repeats {
        let draw = Draw { seed: config.seed, epoch: repeat, step: 0, indices: &indices, dropout: 0., part: 0 };
        let drawn = model.draw(&draw, &[]);
        let input = StepInput {
            images: &images,
            blocks: 0,
            labels: &labels,
            drawn: &drawn,
            loss: &loss,
            frozen: None,
            micro_batch: config.micro_batch,
        };
        let begin = Instant::now();
        let loss = if options.forward {
            model.logits(&params, &images).map(|_| None)?
        } else {
            Some(model.step(&params, &input)?.loss)
        };
        let taken = begin.elapsed().as_secs_f64();
        // The first one fills caches and buffers.
        if repeat > 0 {
            seconds.push(taken);
        }
        let which = if repeat == 0 { "warm-up".to_owned() } else { format!("{repeat}/{}", options.repeats) };
        let loss = loss.map_or_else(String::new, |loss| format!(", loss {:.3}", loss / batch as f64));
        note(&format!("{} {which}: {taken:.3} s{loss}", if options.forward { "pass" } else { "step" }));
    }
    seconds.sort_by(f64::total_cmp);
    let median_s = seconds[seconds.len() / 2];
    let backbone = model.backbone();
    let work = Step {
        spec: &backbone.spec,
        image_size: facts.image_size,
        learned: plan.parts.work(facts.image_size, backbone.spec.patch_size),
        batch,
        classes: options.classes,
    };
    let gflop = if options.forward { work.forward_flop() } else { work.flop() } / 1e9;
    let course = model.memory_plan(config.micro_batch, batch)?;
    let compute = backbone.vit.compute();
    Ok(StepReport {
        method: config.method,
        backbone: backbone.name.clone(),
        precision: backbone.vit.precision(),
        engine: compute.engine,
        device: Some(compute.device).filter(|&device| device != Device::default()),
        forward: options.forward,
        batch_size: batch,
        micro_batch: course.micro_batch,
        recompute: course.recompute,
        prompt_tokens: plan.config.options.tokens.prompt_tokens.unwrap_or(0),
        image_size: facts.image_size,
        threads: plan.threads,
        repeats: options.repeats,
        median_s,
        img_per_s: batch as f64 / median_s,
        gflop,
        gflop_per_s: gflop / median_s,
        peak_rss_bytes: peak_rss_bytes(),
    })
}
