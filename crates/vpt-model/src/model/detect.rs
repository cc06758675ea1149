//! A detector: a frozen backbone with learned prompts, and a dense head on the patch tokens of some of its blocks.
//!
//! What comes before the first prompted block never changes, so it can be computed once an image and kept: see
//! [`DetectInput`]. Training treats one image at a time behind the backbone; sums over images have a fixed order.

use std::{
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
};

use crate::{
    head::detect::{
        BoundDetectHead, BoxScore, ClassLayer, DetectShape, FeatureGradients, HeadGrads, LOG_SCALE, RawBoxes, SHIFT,
        Workspace,
        assign::{Assignment, Truth},
        decode::decode,
        geometry::Grid,
        loss::{DetectionLoss, LossSums},
    },
    prompt::{
        part::{Draw, Drawn, Gradients, Part, TensorShape},
        tokens::{self, PromptTokens, TokenLayout},
    },
};
use vpt_backbone::{
    Backbone,
    vit::{Grads, Input, Pass, PromptSet, Readout, TokenPrompts, TokenRead, TokenRows, Want},
};
use vpt_base::{
    Error, Result, parallel,
    params::{self, Param},
    random::stream,
};

/// Backbones with patches of this side or more get a map with twice as many tokens a side.
const COARSE_PATCH: usize = 32;
/// Channels of the head's map.
const CHANNELS: usize = 128;
/// Depths at which tokens are read: quarters of the backbone.
const LEVELS: usize = 4;

/// Images, or what is known of them already.
#[derive(Debug, Clone, Copy)]
pub enum DetectInput<'a> {
    /// Images `[B, 3, S, S]`.
    Images(&'a [f32]),
    /// What [`Detector::prefix`] computed: `[B, R, D]`.
    Prefix(&'a [f32]),
    /// All that the head reads, without prompts, as [`Detector::features`] computed it: `[B, levels, N, D]`.
    Features(&'a [f32]),
}

/// A batch to learn from.
#[derive(Debug)]
pub struct DetectStep<'a> {
    /// The images.
    pub input: DetectInput<'a>,
    /// What is in each.
    pub truths: &'a [Vec<Truth>],
    /// `[B, G, G]`: tokens that lie on an image; all of them if `None`.
    pub valid: Option<&'a [bool]>,
    /// What was drawn at random for the prompt tokens ([`Detector::draw`]).
    pub drawn: Drawn,
    /// Images whose activations are in memory at once.
    pub micro_batch: Option<usize>,
}

/// The frozen and the learned parts put together; the learned values are passed in.
pub struct Detector {
    backbone: Arc<Backbone>,
    tokens: Option<PromptTokens>,
    shape: DetectShape,
    reads: Vec<TokenRead>,
    /// Embeddings `[K, E]` of the class names, for a head that tells classes by them.
    texts: Option<Vec<f32>>,
    threads: usize,
    /// Sums and buffers, one set a thread, kept from step to step.
    pool: Mutex<Vec<Sums>>,
}

/// What one thread adds up over its images.
struct Sums {
    workspace: Workspace,
    head: HeadGrads,
    losses: LossSums,
}

/// Blocks of a backbone of `depth` blocks behind which tokens are read, counted from 1: ceil(L i / 4), each once.
pub fn levels(depth: usize) -> Vec<usize> {
    let mut blocks: Vec<usize> = (1..=LEVELS).map(|i| (depth * i).div_ceil(LEVELS)).collect();
    blocks.dedup();
    blocks
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

    /// Puts `backbone`, prompts and a head together that reads patches behind `blocks`. `texts` are needed by a head that
    /// tells classes by their names' embeddings.
    ///
    /// # Errors
    /// The parts do not fit each other.
    pub fn new(
        backbone: Arc<Backbone>,
        layout: Option<TokenLayout>,
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
        if blocks.last().is_none_or(|&last| last > vit.depth()) || !blocks.is_sorted() {
            return Err(Error::invalid("head", format!("reads behind blocks {blocks:?} of {}", vit.depth())));
        }
        let tokens = layout.map(|layout| PromptTokens::new(layout, &backbone)).transpose()?;
        let reads = blocks.iter().map(|&after| TokenRead { after, rows: TokenRows::Patches }).collect();
        Ok(Self { backbone, tokens, shape, reads, texts, threads, pool: Mutex::default() })
    }

    /// The frozen part.
    pub fn backbone(&self) -> &Arc<Backbone> {
        &self.backbone
    }

    /// The head's sizes.
    pub fn head(&self) -> &DetectShape {
        &self.shape
    }

    /// Where the prompts are.
    pub fn layout(&self) -> Option<TokenLayout> {
        self.tokens.as_ref().map(PromptTokens::layout)
    }

    /// What the prompt tokens draw at random for a step.
    pub fn draw(&self, draw: &Draw) -> Drawn {
        self.tokens.as_ref().map_or(Drawn::Nothing, |tokens| tokens.draw(draw))
    }

    /// The learned values without those of prompt tokens: what is known of a detector whose head has learned alone.
    pub fn without_prompts(&self, params: &[Param]) -> Vec<Param> {
        params.iter().skip(self.prompt_tensors().len()).cloned().collect()
    }

    /// Name and shape of the prompt tokens, which come before the head.
    fn prompt_tensors(&self) -> &[TensorShape] {
        self.tokens.as_ref().map_or(&[], |tokens| tokens.tensors())
    }

    /// The prompt tokens and their values among `params`, if there are any.
    fn prompts<'a>(&'a self, params: &'a [Param]) -> Result<Option<(&'a PromptTokens, &'a [Param])>> {
        let Some(tokens) = &self.tokens else { return Ok(None) };
        let own = params.get(..self.prompt_tensors().len());
        own.map(|own| Some((tokens, own))).ok_or_else(|| Error::invalid("parameters", "not those of this detector"))
    }

    /// Blocks behind which tokens are read, from 1.
    pub fn blocks(&self) -> Vec<usize> {
        self.reads.iter().map(|read| read.after).collect()
    }

    /// Embeddings `[K, E]` of the class names, where classes are told by them.
    pub fn texts(&self) -> Option<&[f32]> {
        self.texts.as_deref()
    }

    /// Threads a step or a prediction uses.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// The same detector for other classes, given by the embeddings `[K, E]` of their names.
    #[must_use]
    pub fn with_texts(self, texts: Vec<f32>) -> Self {
        Self { texts: Some(texts), ..self }
    }

    /// Fresh learned values: the prompts, if there are any, then the head.
    pub fn init(&self, seed: u64) -> Result<Vec<Param>> {
        let mut params = Vec::new();
        if let Some(tokens) = &self.tokens {
            params.extend(tokens.init(&mut stream(seed, "prompt init", 0, 0))?);
        }
        params.extend(self.shape.init(&mut stream(seed, "head init", 0, 0))?);
        // A backbone that was trained by the sigmoid of its logits says how sure a cosine makes.
        if let (ClassLayer::Text { .. }, Some(bias)) = (self.shape.classes, self.backbone.logit_bias()) {
            let log_scale = self.backbone.logit_scale().unwrap_or(1.).ln();
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
        params::check(params, &[self.prompt_tensors(), &self.shape.tensors()].concat())
    }

    /// The reads that prompts have no part in, and those that they have.
    fn split_reads(&self) -> (&[TokenRead], &[TokenRead]) {
        let start = self.tokens.as_ref().map_or(self.backbone.vit.depth(), Part::prefix_blocks);
        self.reads.split_at(self.reads.partition_point(|read| read.after <= start))
    }

    /// Blocks before the first prompted one.
    fn prefix_blocks(&self) -> usize {
        self.tokens.as_ref().map_or(0, Part::prefix_blocks)
    }

    /// Values a record of [`Self::features`] has.
    pub fn features_len(&self) -> usize {
        self.shape.levels * self.level_len()
    }

    fn level_len(&self) -> usize {
        self.shape.grid * self.shape.grid * self.shape.width
    }

    /// Values a record of [`Self::prefix`] has.
    pub fn prefix_len(&self) -> usize {
        self.split_reads().0.len() * self.level_len() + self.tokens_len()
    }

    fn tokens_len(&self) -> usize {
        self.backbone.vit.tokens() * self.shape.width
    }

    /// What the head reads of images `[B, 3, S, S]` without prompts, `[B, levels, N, D]`.
    pub fn features(&self, images: &[f32]) -> Result<Vec<f32>> {
        let pass = Pass { readout: Readout::Tokens(&self.reads), ..Pass::forward(images, self.threads) };
        self.backbone.vit.read(&pass)
    }

    /// All that happens to images `[B, 3, S, S]` before the first prompted block, `[B, R, D]`: what the head reads of it,
    /// then all tokens as they enter that block.
    pub fn prefix(&self, images: &[f32]) -> Result<Vec<f32>> {
        let mut reads = self.split_reads().0.to_vec();
        reads.push(TokenRead { after: self.prefix_blocks(), rows: TokenRows::All });
        let pass = Pass { readout: Readout::Tokens(&reads), ..Pass::forward(images, self.threads) };
        self.backbone.vit.read(&pass)
    }

    /// Losses of a batch, summed over its images, and the gradient of the batch's loss for each learned tensor, in the order
    /// of [`Self::init`]. Without prompts, or on [`DetectInput::Features`], the prompts' gradient is zero.
    pub fn step(&self, params: &[Param], step: &DetectStep) -> Result<(LossSums, Vec<Vec<f32>>)> {
        let head = self.shape.bind_for_training(params, self.texts.as_deref())?;
        let count = step.truths.len();
        let map = self.shape.side();
        let valid: Vec<Option<Vec<bool>>> = (0..count).map(|i| self.valid(step.valid, i)).collect();
        let assign = |i: usize| Assignment::new(map, &step.truths[i], valid[i].as_deref());
        let assignments: Vec<Assignment> = parallel::shares(count, self.threads, |r| r.map(assign).collect::<Vec<_>>())
            .into_iter()
            .flatten()
            .collect();
        let positives = assignments.iter().map(Assignment::positives).sum();
        let loss = DetectionLoss { grid: Grid { side: map, anchor: self.shape.anchor }, positives };

        let ranges: Vec<Range<usize>> = parallel::cut(count, self.threads).collect();
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
        let prompts = self.prompts(params)?;
        let values = prompts.map(|(_, own)| tokens::masked(own, &step.drawn)).transpose()?;
        let tokens = prompts.zip(values.as_ref()).map(|((tokens, _), values)| tokens.layout().prompts(values));
        let d_prompts = self.visit(tokens, step.input, step.micro_batch, true, &learn)?;

        let mut total = HeadGrads::new(&self.shape);
        let mut losses = LossSums::default();
        for sums in sums {
            let sums = sums.into_inner().unwrap_or_else(PoisonError::into_inner);
            total.add(&sums.head);
            losses.add(&sums.losses);
            self.pool.lock().unwrap_or_else(PoisonError::into_inner).push(sums);
        }
        let mut gradients = head.gradients(&total);
        if let Some(((tokens, own), values)) = prompts.zip(values) {
            let of_tokens = d_prompts.unwrap_or_else(|| vec![0.; values.len()]);
            let of_pass = Grads { tokens: Some(of_tokens), ..Grads::default() };
            let gradient = &mut Gradients { of_pass, of_projection: None };
            gradients.splice(0..0, tokens.take_gradient(own, &step.drawn, gradient)?);
        }
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
    fn valid(&self, valid: Option<&[bool]>, i: usize) -> Option<Vec<bool>> {
        let (grid, map) = (self.shape.grid, self.shape.side());
        let flags = &valid?[i * grid * grid..(i + 1) * grid * grid];
        let scale = map / grid;
        Some((0..map * map).map(|t| flags[t / map / scale * grid + t % map / scale]).collect())
    }

    /// Calls `f` with the number of each image, the features `[levels, N, D]` that the head reads of it, and, if `train`ing
    /// makes a difference to them, where their gradient goes. Returns the gradient of the prompts then.
    fn visit(
        &self,
        prompts: Option<TokenPrompts>,
        input: DetectInput,
        micro_batch: Option<usize>,
        train: bool,
        f: &(impl Fn(usize, &[f32], Option<FeatureGradients>) + Sync),
    ) -> Result<Option<Vec<f32>>> {
        let each = self.features_len();
        if let DetectInput::Features(features) = input {
            parallel::shares(features.len() / each, self.threads, |range| {
                range.for_each(|image| f(image, &features[image * each..(image + 1) * each], None));
            });
            return Ok(None);
        }
        let (early, late) = self.split_reads();
        let early_len = early.len() * self.level_len();
        let late_len = late.len() * self.level_len();
        let record = self.prefix_len();
        let tokens: Vec<f32>;
        // Of images all levels come out of the pass; of a prefix the early ones are there already.
        let (input, reads, known) = match input {
            DetectInput::Prefix(records) => {
                tokens = records.chunks_exact(record).flat_map(|r| &r[early_len..]).copied().collect();
                (Input::Tokens { blocks: self.prefix_blocks(), tokens: &tokens }, late, Some(records))
            }
            DetectInput::Images(images) => (Input::Images(images), &self.reads[..], None),
            DetectInput::Features(_) => return Ok(None),
        };
        let want = Want { tokens: train && prompts.is_some() && !late.is_empty(), ..Want::default() };
        let loss = |range: Range<usize>, read: &[f32]| {
            let read_len = read.len() / range.len();
            let mut gradient = vec![0.; if want.tokens { read.len() } else { 0 }];
            let mut features = vec![0.; each];
            for (i, image) in range.enumerate() {
                let read = &read[i * read_len..(i + 1) * read_len];
                if let Some(records) = known {
                    features[..early_len].copy_from_slice(&records[image * record..][..early_len]);
                    features[early_len..].copy_from_slice(read);
                } else {
                    features.copy_from_slice(read);
                }
                let to = want.tokens.then(|| {
                    let of_image = &mut gradient[i * read_len..(i + 1) * read_len];
                    FeatureGradients { first_level: early.len(), values: &mut of_image[read_len - late_len..] }
                });
                f(image, &features, to);
            }
            Ok((gradient, ()))
        };
        let readout = Readout::Tokens(reads);
        let pass = Pass { input, prompts, readout, want, micro_batch, ..Pass::forward(&[], self.threads) };
        Ok(self.backbone.vit.step(&pass, &loss)?.0.tokens)
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
        let said: Mutex<Vec<(usize, RawBoxes)>> = Mutex::default();
        let look = |image: usize, features: &[f32], _: Option<FeatureGradients>| {
            let mut sums = self.take_sums();
            let raw = head.forward(features, &mut sums.workspace);
            self.pool.lock().unwrap_or_else(PoisonError::into_inner).push(sums);
            said.lock().unwrap_or_else(PoisonError::into_inner).push((image, raw));
        };
        let prompts = self.prompts(params)?;
        let values = prompts.map(|(_, own)| tokens::masked(own, &Drawn::Nothing)).transpose()?;
        let tokens = prompts.zip(values.as_ref()).map(|((tokens, _), values)| tokens.layout().prompts(values));
        self.visit(tokens, DetectInput::Images(images), None, false, &look)?;
        let mut said = said.into_inner().unwrap_or_else(PoisonError::into_inner);
        said.sort_by_key(|(image, _)| *image);
        Ok(said.into_iter().map(|(_, raw)| raw).collect())
    }

    /// The tokens that the head reads.
    pub(super) fn reads(&self) -> &[TokenRead] {
        &self.reads
    }

    /// The prompts among `params` ready for passes with others, if there are any.
    pub(super) fn prompt_set(&self, params: &[Param], threads: usize) -> Result<Option<PromptSet>> {
        let Some((tokens, own)) = self.prompts(params)? else { return Ok(None) };
        let values = tokens::masked(own, &Drawn::Nothing)?;
        self.backbone.vit.prepare(Some(tokens.layout().prompts(&values)), None, threads).map(Some)
    }

    /// What is found in one image by the `features` that the head reads of it, best first.
    pub(super) fn boxes_in(&self, head: &BoundDetectHead, features: &[f32], valid: Option<&[bool]>) -> Vec<BoxScore> {
        let grid = Grid { side: self.shape.side(), anchor: self.shape.anchor };
        let mut sums = self.take_sums();
        let raw = head.forward(features, &mut sums.workspace);
        self.pool.lock().unwrap_or_else(PoisonError::into_inner).push(sums);
        decode(&raw, grid, self.valid(valid, 0).as_deref())
    }

    /// What is found in each image, best first. `head` is [`Self::bind`] of the learned values; `params` are the same, or
    /// `None` for what the head finds without prompts.
    pub fn detect(
        &self,
        head: &BoundDetectHead,
        params: Option<&[Param]>,
        input: DetectInput,
        valid: Option<&[bool]>,
    ) -> Result<Vec<Vec<BoxScore>>> {
        let found: Mutex<Vec<(usize, Vec<BoxScore>)>> = Mutex::default();
        let tokens = self.shape.grid * self.shape.grid;
        let look = |image: usize, features: &[f32], _: Option<FeatureGradients>| {
            let valid = valid.map(|valid| &valid[image * tokens..(image + 1) * tokens]);
            let boxes = self.boxes_in(head, features, valid);
            found.lock().unwrap_or_else(PoisonError::into_inner).push((image, boxes));
        };
        let prompts = params.map(|params| self.prompts(params)).transpose()?.flatten();
        let values = prompts.map(|(_, own)| tokens::masked(own, &Drawn::Nothing)).transpose()?;
        let tokens = prompts.zip(values.as_ref()).map(|((tokens, _), values)| tokens.layout().prompts(values));
        self.visit(tokens, input, None, false, &look)?;
        let mut found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
        found.sort_by_key(|(image, _)| *image);
        Ok(found.into_iter().map(|(_, boxes)| boxes).collect())
    }
}

impl std::fmt::Debug for Detector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { backbone, tokens, shape, .. } = self;
        f.debug_struct("Detector").field("backbone", backbone).field("tokens", tokens).field("head", shape).finish()
    }
}

#[cfg(test)]
mod tests;
