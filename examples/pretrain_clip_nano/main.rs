//! Pre-trains `clip-nano`, the bundled backbone: a small CLIP, from scratch, on procedurally drawn scenes with captions.
//!
//! ```text
//! RUSTFLAGS="-C target-cpu=native -C opt-level=3" cargo run --release --example pretrain_clip_nano -- --out pretrain --minutes 80
//! ```
//!
//! The flags let the compiler use the machine's vector instructions, in full; without them the result is the same, later. The run
//! can be ended and continued at any time: it goes on from the last checkpoint in its folder. A file called `stop` in
//! the folder, or the end of the given minutes, starts the last phase, in which the learning rate falls to zero; then
//! the model stands in the folder's `export`.

mod export;
mod layout;
mod loss;
mod model;
mod ops;
mod tokenizer;
mod tower;

use std::fmt::Write;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Result, ensure};
use clap::Parser;
use tokenizers::Tokenizer;
use vpt::data::shapes::{self, Caption, Colour, Curriculum, Pairs, Scene, Shape, Style};

use crate::export::{MEAN, STD, SavedState};
use crate::layout::{NanoClip, NanoConfig, ParamSlot, TowerConfig};
use crate::loss::contrastive;
use crate::tower::{Tape, ThreadBuffers};

/// Pre-trains a small CLIP on drawn scenes.
#[derive(Parser)]
struct Args {
    /// Folder of the run: checkpoint, log lines go to stderr, `export/` holds the model.
    #[arg(long)]
    out: PathBuf,
    /// Minutes of training before the learning rate falls.
    #[arg(long, default_value_t = 80.0)]
    minutes: f64,
    /// Images seen before the learning rate falls, in place of minutes.
    #[arg(long)]
    samples: Option<u64>,
    /// Images per step.
    #[arg(long, default_value_t = 64)]
    batch: usize,
    /// Threads.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// The learning rate after warm-up.
    #[arg(long, default_value_t = 1e-3)]
    lr: f32,
    /// Seed of the data and the start.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Width of the image tower.
    #[arg(long, default_value_t = 160)]
    width: usize,
    /// Blocks of the image tower.
    #[arg(long, default_value_t = 4)]
    depth: usize,
    /// Attention heads of the image tower; one for every 32 values of its width by default.
    #[arg(long)]
    heads: Option<usize>,
}

/// Images of a work item: few enough for the activations of a layer to stay in cache.
const CHUNK: usize = 8;
/// Texts of a work item.
const TEXT_CHUNK: usize = 16;
/// Samples that are easy.
const EASY_SAMPLES: u64 = 40_000;
/// Samples before those with several objects.
const SINGLE_SAMPLES: u64 = 120_000;
const WARMUP: u64 = 200;
const WEIGHT_DECAY: f32 = 0.1;
const BETAS: (f32, f32) = (0.9, 0.98);
/// Gradients longer than this are shortened to it.
const CLIP_NORM: f32 = 1.0;
/// Share of the steps so far that the decay takes.
const DECAY_SHARE: f64 = 0.12;
const LONGEST_DECAY_SECONDS: f64 = 480.0;

fn main() -> Result<()> {
    let args = Args::parse();
    std::fs::create_dir_all(&args.out)?;
    let heads = args.heads.unwrap_or(args.width / 32);
    ensure!(heads > 0 && args.width.is_multiple_of(heads), "--heads {heads} does not divide a width of {}", args.width);
    let tokenizer = open_tokenizer(&args)?;
    let config = NanoConfig {
        image: 64,
        patch: 8,
        vision: TowerConfig { width: args.width, depth: args.depth, heads },
        text: TowerConfig { width: 128, depth: 3, heads: 4 },
        vocab: tokenizer.get_vocab_size(true),
        context: 32,
        projection: 128,
    };
    let model = NanoClip::new(config);
    Pretraining::new(args, model, tokenizer)?.run()
}

/// The tokenizer of the run: learned from captions at the first start.
fn open_tokenizer(args: &Args) -> Result<Tokenizer> {
    let path = args.out.join("tokenizer.json");
    if !path.exists() {
        let captions: Vec<String> =
            (0..40_000).map(|index| shapes::pretraining_item(args.seed, index, Curriculum::Full).1.text).collect();
        let learned = tokenizer::learn(&captions, 768)?;
        learned.save(&path, true).map_err(|error| anyhow::anyhow!("{}: {error}", path.display()))?;
    }
    Tokenizer::from_file(&path).map_err(|error| anyhow::anyhow!("{}: {error}", path.display()))
}

/// One step's images and captions.
struct CaptionedBatch {
    /// `[B, 3, S, S]` in pieces of [`CHUNK`] images.
    images: Vec<Vec<f32>>,
    /// Token ids of the distinct captions, in pieces of [`TEXT_CHUNK`].
    texts: Vec<Vec<Vec<u32>>>,
    /// Which distinct caption is true of which image, `[B, captions]`.
    truth: Vec<Option<bool>>,
}

/// The pixels of some scenes, and the scenes with their captions.
type DrawnScenes = (Vec<f32>, Vec<(Scene, Caption)>);

/// Draws a scene as normalised pixels `[3, S, S]`, added to `out`.
fn pixels(scene: &Scene, side: usize, out: &mut Vec<f32>) {
    let drawn = shapes::draw(scene, side).image.pixels;
    for channel in 0..3 {
        let values = drawn.iter().skip(channel).step_by(3);
        out.extend(values.map(|&value| (f32::from(value) / 255.0 - MEAN[channel]) / STD[channel]));
    }
}

/// Runs `f(item, state)` for every item on `states.len()` threads, each item on whichever is free.
fn each<S: Send, T: Send>(items: &mut [T], states: &mut [S], f: impl Fn(usize, &mut T, &mut S) + Sync) {
    let next = AtomicUsize::new(0);
    let items: Vec<Mutex<&mut T>> = items.iter_mut().map(Mutex::new).collect();
    let (items, next, f) = (&items, &next, &f);
    std::thread::scope(|scope| {
        for state in states {
            scope.spawn(move || {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(item) = items.get(index) else { break };
                    if let Ok(mut item) = item.lock() {
                        f(index, &mut item, state);
                    }
                }
            });
        }
    });
}

/// Pieces of one step: texts first, since an image piece is smaller and evens the threads' ends out.
enum TapePiece {
    Texts(Tape),
    Images(Tape),
}

struct Pretraining {
    args: Args,
    model: NanoClip,
    tokenizer: Tokenizer,
    state: SavedState,
    workers: Vec<ThreadBuffers>,
    pieces: Vec<TapePiece>,
    decays: Vec<bool>,
    started: Instant,
    before: u64,
}

impl Pretraining {
    fn new(args: Args, model: NanoClip, tokenizer: Tokenizer) -> Result<Self> {
        ensure!(args.batch.is_multiple_of(CHUNK), "--batch must be a multiple of {CHUNK}");
        let path = args.out.join("checkpoint.safetensors");
        let n = model.len();
        let state = if path.exists() {
            export::load(&path, n)?
        } else {
            let theta = model.start(&mut shapes::rng(args.seed, 0, 0));
            SavedState { theta, first: vec![0.0; n], second: vec![0.0; n], counters: [0; 5] }
        };
        let workers = (0..args.threads).map(|_| ThreadBuffers::new(n)).collect();
        let decays = model.slots.iter().flat_map(|slot: &ParamSlot| slot.range.clone().map(|_| NanoClip::decays(slot)));
        let decays = decays.collect();
        let before = state.counters[2];
        eprintln!("{n} parameters, step {}, {} tokens", state.counters[0], tokenizer.get_vocab_size(true));
        Ok(Self { args, model, tokenizer, state, workers, pieces: Vec::new(), decays, started: Instant::now(), before })
    }

    fn run(mut self) -> Result<()> {
        let (mut loss_sum, mut counted, mut last_log, mut last_save) = (0.0, 0_u32, Instant::now(), Instant::now());
        let stop = self.args.out.join("stop");
        loop {
            let seconds = self.before as f64 + self.started.elapsed().as_secs_f64();
            self.state.counters[2] = seconds as u64;
            let [step, samples, _, decay_from, decay_steps] = self.state.counters;
            let enough = self.args.samples.map_or(seconds > self.args.minutes * 60.0, |enough| samples >= enough);
            if decay_from == 0 && (stop.exists() || enough) && step > 0 {
                let share = step as f64 * DECAY_SHARE;
                let fitting = LONGEST_DECAY_SECONDS / (seconds / step as f64);
                let steps = if self.args.samples.is_some() { share } else { share.min(fitting) };
                let steps = steps.max(1.0) as u64;
                self.state.counters[3..].copy_from_slice(&[step + 1, steps]);
                eprintln!("step {step}: the learning rate falls over {steps} steps");
                continue;
            }
            if decay_from > 0 && step >= decay_from - 1 + decay_steps {
                break;
            }
            loss_sum += f64::from(self.step()?);
            counted += 1;
            if self.state.counters[0].is_multiple_of(50) {
                let rate = f64::from(counted) * self.args.batch as f64 / last_log.elapsed().as_secs_f64();
                let scale = self.state.theta[self.model.logit_scale.start].exp();
                let loss = loss_sum / f64::from(counted);
                let samples = samples + self.args.batch as u64;
                eprintln!(
                    "step {} samples {samples} seconds {seconds:.0} loss {loss:.4} scale {scale:.1} images/s {rate:.1}",
                    step + 1
                );
                (loss_sum, counted, last_log) = (0.0, 0, Instant::now());
            }
            if self.state.counters[0].is_multiple_of(400) {
                self.report(2)?;
                last_log = Instant::now();
            }
            if last_save.elapsed().as_secs() > 180 {
                self.save()?;
                last_save = Instant::now();
            }
        }
        self.save()?;
        self.report(8)
    }

    fn save(&self) -> Result<()> {
        export::save(&self.args.out.join("checkpoint.safetensors"), &self.state)?;
        export::export(&self.args.out.join("export"), &self.model, &self.state.theta, &self.tokenizer)
    }

    fn learning_rate(&self) -> f32 {
        let [step, _, _, decay_from, decay_steps] = self.state.counters;
        let warm = ((step + 1) as f32 / WARMUP as f32).min(1.0);
        let left = if decay_from == 0 { 1.0 } else { 1.0 - (step + 1 - decay_from) as f32 / decay_steps as f32 };
        self.args.lr * warm * left
    }

    /// The batch that starts at sample `first`.
    fn batch(&mut self, first: u64) -> Result<CaptionedBatch> {
        let (seed, side) = (self.args.seed, self.model.config.image);
        let stage = match first {
            0..EASY_SAMPLES => Curriculum::Easy,
            EASY_SAMPLES..SINGLE_SAMPLES => Curriculum::Single,
            _ => Curriculum::Full,
        };
        let mut drawn: Vec<DrawnScenes> = Vec::new();
        drawn.resize_with(self.args.batch / CHUNK, Default::default);
        each(&mut drawn, &mut self.workers, |piece, (images, items), _| {
            for index in piece * CHUNK..(piece + 1) * CHUNK {
                let item = shapes::pretraining_item(seed, first + index as u64, stage);
                pixels(&item.0, side, images);
                items.push(item);
            }
        });
        let items = || drawn.iter().flat_map(|(_, items)| items);
        let mut captions: Vec<&Caption> = Vec::new();
        for (_, caption) in items() {
            if captions.iter().all(|other| other.text != caption.text) {
                captions.push(caption);
            }
        }
        let context = self.model.config.context;
        let ids = captions.iter().map(|caption| tokenizer::encode(&self.tokenizer, &caption.text, context));
        let ids = ids.collect::<Result<Vec<_>>>()?;
        let truth = items().flat_map(|(scene, _)| captions.iter().map(|caption| caption.holds(scene))).collect();
        let texts = ids.chunks(TEXT_CHUNK).map(<[_]>::to_vec).collect();
        Ok(CaptionedBatch { texts, truth, images: drawn.into_iter().map(|(images, _)| images).collect() })
    }

    /// One optimisation step; returns the loss.
    fn step(&mut self) -> Result<f32> {
        let batch = self.batch(self.state.counters[1])?;
        let e = self.model.config.projection;
        let texts = batch.texts.len();
        // Tapes keep their memory, so those of the last step are used again.
        let (mut text_tapes, mut image_tapes) = (vec![], vec![]);
        for piece in self.pieces.drain(..) {
            match piece {
                TapePiece::Texts(tape) => text_tapes.push(tape),
                TapePiece::Images(tape) => image_tapes.push(tape),
            }
        }
        text_tapes.resize_with(texts, Tape::default);
        image_tapes.resize_with(batch.images.len(), Tape::default);
        self.pieces.extend(text_tapes.into_iter().map(TapePiece::Texts));
        self.pieces.extend(image_tapes.into_iter().map(TapePiece::Images));
        let (model, theta) = (&self.model, &self.state.theta);
        each(&mut self.pieces, &mut self.workers, |index, piece, worker| match piece {
            TapePiece::Texts(tape) => model.embed_texts(theta, &batch.texts[index], tape, &mut worker.scratch),
            TapePiece::Images(tape) => {
                model.embed_images(theta, &batch.images[index - texts], tape, &mut worker.scratch);
            }
        });
        let (mut image_rows, mut text_rows) = (vec![], vec![]);
        let mut starts = vec![];
        for piece in &self.pieces {
            let (rows, tape) = match piece {
                TapePiece::Texts(tape) => (&mut text_rows, tape),
                TapePiece::Images(tape) => (&mut image_rows, tape),
            };
            starts.push(rows.len());
            rows.extend_from_slice(&tape.embeddings);
        }
        let at_scale = self.model.logit_scale.start;
        let (loss, dimages, dtexts, dscale) = contrastive(&image_rows, &text_rows, &batch.truth, e, theta[at_scale]);
        ensure!(loss.is_finite(), "step {}: the loss is not finite", self.state.counters[0]);
        self.workers.iter_mut().for_each(|worker| worker.gradient.fill(0.0));
        each(&mut self.pieces, &mut self.workers, |index, piece, worker| match piece {
            TapePiece::Texts(tape) => {
                let rows = &dtexts[starts[index]..][..tape.embeddings.len()];
                model.texts_backward(theta, tape, rows, worker);
            }
            TapePiece::Images(tape) => {
                let rows = &dimages[starts[index]..][..tape.embeddings.len()];
                model.images_backward(theta, tape, rows, worker);
            }
        });
        let (first, rest) = self.workers.split_at_mut(1);
        let gradient = &mut first[0].gradient;
        for other in rest {
            gradient.iter_mut().zip(&other.gradient).for_each(|(sum, value)| *sum += value);
        }
        gradient[at_scale] = dscale;
        self.update();
        self.state.counters[0] += 1;
        self.state.counters[1] += self.args.batch as u64;
        Ok(loss)
    }

    /// AdamW with clipped gradients.
    fn update(&mut self) {
        let lr = self.learning_rate();
        let SavedState { theta, first, second, counters } = &mut self.state;
        let gradient = &self.workers[0].gradient;
        let length = ops::dot(gradient, gradient).sqrt();
        let shorten = (CLIP_NORM / length.max(1e-12)).min(1.0);
        let step = counters[0] as i32 + 1;
        let (b1, b2) = BETAS;
        let (fix1, fix2) = (1.0 / (1.0 - b1.powi(step)), 1.0 / (1.0 - b2.powi(step)));
        for i in 0..theta.len() {
            let g = gradient[i] * shorten;
            first[i] = b1 * first[i] + (1.0 - b1) * g;
            second[i] = b2 * second[i] + (1.0 - b2) * g * g;
            let decay = if self.decays[i] { WEIGHT_DECAY } else { 0.0 };
            theta[i] -= lr * (first[i] * fix1 / ((second[i] * fix2).sqrt() + 1e-8) + decay * theta[i]);
        }
        let scale = &mut theta[self.model.logit_scale.start];
        *scale = scale.min(100.0_f32.ln());
    }

    /// Zero-shot accuracy among all 64 pairs, on `each` images per pair that pre-training never drew.
    fn report(&mut self, each_pair: u64) -> Result<()> {
        let pairs = Pairs::All.list();
        let context = self.model.config.context;
        let texts: Vec<Vec<u32>> = pairs
            .iter()
            .map(|&(colour, shape)| {
                let name = shapes::name(colour, shape);
                let article = if name.starts_with('o') { "an" } else { "a" };
                tokenizer::encode(&self.tokenizer, &format!("a photo of {article} {name}."), context)
            })
            .collect::<Result<_>>()?;
        let (model, theta, seed) = (&self.model, &self.state.theta, self.args.seed);
        let mut tape = Tape::default();
        model.embed_texts(theta, &texts, &mut tape, &mut self.workers[0].scratch);
        let texts = tape.embeddings;
        let e = model.config.projection;
        // Per pair: hits of the pair, of the colour, of the shape.
        let mut hits = vec![[0_u32; 3]; pairs.len()];
        each(&mut hits, &mut self.workers, |index, hits, worker| {
            let (colour, shape) = pairs[index];
            let mut images = vec![];
            for k in 0..each_pair {
                // Purpose 1 is pre-training's.
                let mut rng = shapes::rng(seed, 2, index as u64 * 1000 + k);
                pixels(&Scene::single(&mut rng, Style::Plain, colour, shape), model.config.image, &mut images);
            }
            let mut tape = Tape::default();
            model.embed_images(theta, &images, &mut tape, &mut worker.scratch);
            for image in tape.embeddings.chunks_exact(e) {
                let scores: Vec<f32> = texts.chunks_exact(e).map(|text| ops::dot(image, text)).collect();
                let best = (0..scores.len()).max_by(|&a, &b| scores[a].total_cmp(&scores[b])).unwrap_or(0);
                let (c, s): (Colour, Shape) = pairs[best];
                for (hit, right) in hits.iter_mut().zip([best == index, c == colour, s == shape]) {
                    *hit += u32::from(right);
                }
            }
        });
        let mut line = format!("zero-shot step {}:", self.state.counters[0]);
        for (name, choice) in [("seen", Pairs::Seen), ("unseen", Pairs::Unseen)] {
            let mine = pairs.iter().zip(&hits).filter(|((colour, shape), _)| choice.contains(*colour, *shape));
            let sums = mine.fold([0; 3], |sum, (_, hit)| [sum[0] + hit[0], sum[1] + hit[1], sum[2] + hit[2]]);
            let total = (choice.list().len() as u64 * each_pair) as f64;
            let [pair, colour, shape] = sums.map(|sum| f64::from(sum) / total);
            write!(line, "  {name} {pair:.3} (colour {colour:.3}, shape {shape:.3})")?;
        }
        eprintln!("{line}");
        Ok(())
    }
}
