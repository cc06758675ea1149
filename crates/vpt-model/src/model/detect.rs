//! A detector: a backbone with learned prompts or tuned weights, and a dense head on the patch tokens of some of its blocks.
//!
//! What comes before the first prompted block never changes, so it can be computed once an image and kept: see
//! [`TokenInput`]. Training treats one image at a time behind the backbone; sums over images have a fixed order.

use std::{
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
};

use super::token_reader::TokenReader;
pub use super::token_reader::{TokenInput, levels};
use crate::{
    head::detect::{
        BoundDetectHead, BoxScore, ClassLayer, DecodeOptions, DetectShape, FeatureGradients, HeadGrads, LOG_SCALE,
        RawBoxes, SHIFT, Workspace,
        assign::{Assignment, Truth},
        decode::decode,
        geometry::Grid,
        loss::{DetectionLoss, LossSums},
    },
    prompt::{PartShapes, part::Drawn, tokens::TokenLayout},
};
use vpt_backbone::{
    Backbone,
    vit::{AttentionMaps, PromptSet, TokenRead},
};
use vpt_base::{Error, Result, parallel, params::Param, random::stream};

/// Backbones with patches of this side or more get a map with twice as many tokens a side.
const COARSE_PATCH: usize = 32;
/// Channels of the head's map.
const CHANNELS: usize = 128;

/// A batch to learn from.
#[derive(Debug)]
pub struct DetectStep<'a> {
    /// The images.
    pub input: TokenInput<'a>,
    /// What is in each.
    pub truths: &'a [Vec<Truth>],
    /// `[B, G, G]`: tokens that lie on an image; all of them if `None`.
    pub valid: Option<&'a [bool]>,
    /// What was drawn at random for each part ([`TokenReader::draw`]); nothing for those that are not in it.
    pub drawn: &'a [Drawn],
    /// Images whose activations are in memory at once.
    pub micro_batch: Option<usize>,
}

/// The backbone and what is learned put together; the learned values are passed in.
pub struct Detector {
    reader: TokenReader,
    shape: DetectShape,
    /// Embeddings `[K, E]` of the class names, for a head that tells classes by them.
    texts: Option<Vec<f32>>,
    /// Which boxes are kept of an image.
    decode: DecodeOptions,
    /// Sums and buffers, one set a thread, kept from step to step.
    pool: Mutex<Vec<Sums>>,
}

/// What one thread adds up over its images.
struct Sums {
    workspace: Workspace,
    head: HeadGrads,
    losses: LossSums,
}

impl Detector {
    /// The head's sizes for `backbone` at its image size, with boxes of the side `anchor` as the typical ones.
    pub fn shape(backbone: &Backbone, classes: ClassLayer, anchor: f32) -> DetectShape {
        let patch = backbone.spec.patch_size;
        DetectShape {
            width: backbone.vit.width(),
            levels: levels(backbone.vit.depth()).len(),
            grid: backbone.vit.image_size() / patch,
            upsample: patch >= COARSE_PATCH,
            channels: CHANNELS,
            classes,
            anchor,
        }
    }

    /// Puts `backbone`, the parts that are learned and a head together that reads patches behind `blocks`. `texts` are needed by a head that
    /// tells classes by their names' embeddings.
    ///
    /// # Errors
    /// The parts do not fit each other.
    pub fn new(
        backbone: Arc<Backbone>,
        parts: &PartShapes,
        shape: DetectShape,
        blocks: &[usize],
        texts: Option<Vec<f32>>,
        threads: usize,
    ) -> Result<Self> {
        let vit = &backbone.vit;
        shape.check()?;
        let grid = vit.image_size() / backbone.spec.patch_size;
        if (shape.width, shape.grid, shape.levels) != (vit.width(), grid, blocks.len()) {
            let message = format!("made for tokens of {} values on a grid of {}", shape.width, shape.grid);
            return Err(Error::invalid("head", message));
        }
        let reader = TokenReader::new(backbone, parts, blocks, threads)?;
        Ok(Self { reader, shape, texts, decode: DecodeOptions::default(), pool: Mutex::default() })
    }

    /// The frozen part.
    pub fn backbone(&self) -> &Arc<Backbone> {
        self.reader.backbone()
    }

    /// The head's sizes.
    pub fn head(&self) -> &DetectShape {
        &self.shape
    }

    /// What the head reads, and the parts.
    pub fn reader(&self) -> &TokenReader {
        &self.reader
    }

    /// Where the prompts are.
    pub fn layout(&self) -> Option<TokenLayout> {
        self.reader.layout()
    }

    /// Blocks behind which tokens are read, from 1.
    pub fn blocks(&self) -> Vec<usize> {
        self.reader.blocks()
    }

    /// Embeddings `[K, E]` of the class names, where classes are told by them.
    pub fn texts(&self) -> Option<&[f32]> {
        self.texts.as_deref()
    }

    /// Threads a step or a prediction uses.
    pub fn threads(&self) -> usize {
        self.reader.threads()
    }

    /// The same detector for other classes, given by the embeddings `[K, E]` of their names.
    #[must_use]
    pub fn with_texts(self, texts: Vec<f32>) -> Self {
        Self { texts: Some(texts), ..self }
    }

    /// The same detector, which keeps the boxes that `decode` says.
    #[must_use]
    pub fn with_decode(self, decode: DecodeOptions) -> Self {
        Self { decode, ..self }
    }

    /// Which boxes it keeps of an image.
    pub fn decode(&self) -> &DecodeOptions {
        &self.decode
    }

    /// Fresh learned values: those of the parts, then those of the head.
    pub fn init(&self, seed: u64) -> Result<Vec<Param>> {
        let mut params = self.reader.init(seed)?;
        params.extend(self.shape.init(&mut stream(seed, "head init", 0, 0))?);
        // A backbone that was trained by the sigmoid of its logits says how sure a cosine makes.
        if let (ClassLayer::Text { .. }, Some(bias)) = (self.shape.classes, self.backbone().logit_bias()) {
            let log_scale = self.backbone().logit_scale().unwrap_or(1.).ln();
            for param in &mut params {
                match param.name.as_str() {
                    LOG_SCALE => param.values.fill(log_scale),
                    SHIFT => param.values.fill(bias),
                    _ => {}
                }
            }
        }
        Ok(params)
    }

    /// Checks that learned values from a file are the ones this detector has, by name and shape.
    pub fn check(&self, params: &[Param]) -> Result<()> {
        self.reader.check(params, self.shape.tensors())
    }

    /// Values a record of [`Self::features`] has.
    pub fn features_len(&self) -> usize {
        self.reader.features_len()
    }

    /// Values a record of [`Self::prefix`] has.
    pub fn prefix_len(&self) -> usize {
        self.reader.prefix_len()
    }

    /// What the head reads of images, without prompts: [`TokenReader::features`].
    pub fn features(&self, images: &[f32]) -> Result<Vec<f32>> {
        self.reader.features(images)
    }

    /// All that happens to images before the first prompted block: [`TokenReader::prefix`].
    pub fn prefix(&self, images: &[f32]) -> Result<Vec<f32>> {
        self.reader.prefix(images)
    }

    /// Losses of a batch, summed over its images, and the gradient of the batch's loss for each learned tensor, in the order
    /// of [`Self::init`]. On [`TokenInput::Features`] those of the parts are empty.
    pub fn step(&self, params: &[Param], step: &DetectStep) -> Result<(LossSums, Vec<Vec<f32>>)> {
        let head = self.shape.bind_for_training(params, self.texts.as_deref())?;
        let count = step.truths.len();
        let map = self.shape.side();
        let valid: Vec<Option<Vec<bool>>> = (0..count).map(|i| self.valid(step.valid, i)).collect();
        let assign = |i: usize| Assignment::new(map, &step.truths[i], valid[i].as_deref());
        let assignments: Vec<Assignment> =
            parallel::shares(count, self.threads(), |r| r.map(assign).collect::<Vec<_>>())
                .into_iter()
                .flatten()
                .collect();
        let positives = assignments.iter().map(Assignment::positives).sum();
        let loss = DetectionLoss { grid: Grid { side: map, anchor: self.shape.anchor }, positives };

        let ranges: Vec<Range<usize>> = parallel::cut(count, self.threads()).collect();
        let sums: Vec<Mutex<Sums>> = ranges.iter().map(|_| Mutex::new(self.take_sums())).collect();
        // The images of a share are treated in order, by one thread: its sums are only ever asked for by that one.
        let learn = |image: usize, features: &[f32], gradient: Option<FeatureGradients>| {
            let share = ranges.iter().position(|range| range.contains(&image)).unwrap_or_default();
            let sums = &mut *sums[share].lock().unwrap_or_else(PoisonError::into_inner);
            let raw = head.forward(features, &mut sums.workspace);
            let (losses, d_raw) = loss.gradients(&raw, &step.truths[image], &assignments[image]);
            sums.losses.add(&losses);
            head.vjp(&d_raw, gradient, &mut sums.head, &mut sums.workspace);
        };
        let inputs = self.reader.join(params, step.drawn, step.input)?;
        let of_pass = self.reader.visit(&inputs, step.input, step.micro_batch, true, &learn)?;

        let mut total = HeadGrads::new(&self.shape);
        let mut losses = LossSums::default();
        for sums in sums {
            let sums = sums.into_inner().unwrap_or_else(PoisonError::into_inner);
            total.add(&sums.head);
            losses.add(&sums.losses);
            self.pool.lock().unwrap_or_else(PoisonError::into_inner).push(sums);
        }
        let mut gradients = head.gradients(&total);
        gradients.splice(0..0, self.reader.take(params, step.drawn, of_pass)?);
        Ok((losses, gradients))
    }

    fn take_sums(&self) -> Sums {
        let kept = self.pool.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut sums = kept.unwrap_or_else(|| Sums {
            workspace: Workspace::default(),
            head: HeadGrads::new(&self.shape),
            losses: LossSums::default(),
        });
        sums.head.clear();
        sums.losses = LossSums::default();
        sums
    }

    /// The flags of image `i` for the tokens of the head's map, of flags `[B, G, G]` for the backbone's.
    pub(super) fn valid(&self, valid: Option<&[bool]>, i: usize) -> Option<Vec<bool>> {
        let (grid, map) = (self.shape.grid, self.shape.side());
        let flags = &valid?[i * grid * grid..(i + 1) * grid * grid];
        let scale = map / grid;
        Some((0..map * map).map(|t| flags[t / map / scale * grid + t % map / scale]).collect())
    }

    /// The head with its weights, for [`Self::detect`].
    pub fn bind(&self, params: &[Param]) -> Result<BoundDetectHead> {
        self.shape.bind(params, self.texts.as_deref())
    }

    /// What the head says of each of `images` `[B, 3, S, S]`, before any decoding.
    ///
    /// # Errors
    /// As [`Self::detect`].
    pub fn raw(&self, params: &[Param], images: &[f32]) -> Result<Vec<RawBoxes>> {
        let head = self.bind(params)?;
        let look = |_: usize, features: &[f32]| {
            let mut sums = self.take_sums();
            let raw = head.forward(features, &mut sums.workspace);
            self.pool.lock().unwrap_or_else(PoisonError::into_inner).push(sums);
            raw
        };
        let input = TokenInput::Images(images);
        self.reader.each(&self.reader.join(params, &[], input)?, input, look)
    }

    /// The tokens that the head reads.
    pub(super) fn reads(&self) -> &[TokenRead] {
        self.reader.reads()
    }

    /// The prompts among `params` ready for passes with others, if there are any.
    pub(super) fn prompt_set(&self, params: &[Param], threads: usize) -> Result<Option<PromptSet>> {
        self.reader.prompt_set(params, threads)
    }

    /// Where the tower looks in each of `images` `[B, 3, S, S]`, with the parts among `params`.
    ///
    /// # Errors
    /// The values are not those of this detector.
    pub fn attention_maps(&self, params: &[Param], images: &[f32]) -> Result<Vec<AttentionMaps>> {
        self.reader.attention_maps(params, images)
    }

    /// What is found in one image by the `features` that the head reads of it, best first.
    pub(super) fn boxes_in(&self, head: &BoundDetectHead, features: &[f32], valid: Option<&[bool]>) -> Vec<BoxScore> {
        let grid = Grid { side: self.shape.side(), anchor: self.shape.anchor };
        let mut sums = self.take_sums();
        let raw = head.forward(features, &mut sums.workspace);
        self.pool.lock().unwrap_or_else(PoisonError::into_inner).push(sums);
        decode(&raw, grid, self.valid(valid, 0).as_deref(), &self.decode)
    }

    /// What is found in each image, best first. `head` is [`Self::bind`] of the learned values; `params` are the same, or
    /// `None` for what the head finds without the parts.
    pub fn detect(
        &self,
        head: &BoundDetectHead,
        params: Option<&[Param]>,
        input: TokenInput,
        valid: Option<&[bool]>,
    ) -> Result<Vec<Vec<BoxScore>>> {
        let tokens = self.shape.grid * self.shape.grid;
        let look = |image: usize, features: &[f32]| {
            let valid = valid.map(|valid| &valid[image * tokens..(image + 1) * tokens]);
            self.boxes_in(head, features, valid)
        };
        let inputs = params.map_or_else(|| Ok(self.reader.bare()), |params| self.reader.join(params, &[], input))?;
        self.reader.each(&inputs, input, look)
    }
}

impl std::fmt::Debug for Detector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Detector").field("reader", &self.reader).field("head", &self.shape).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
