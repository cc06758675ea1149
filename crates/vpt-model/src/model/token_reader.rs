//! What a dense head reads: patch tokens behind some blocks of a backbone, with prompt tokens, or weights of it, learned beside the
//! head.
//!
//! What comes before the first block that something is learned of never changes, so it can be computed once an image and kept: see
//! [`TokenInput`]. Heads treat one image at a time behind the backbone.

use std::{
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
};

use super::parts::ModelParts;
use crate::{
    head::detect::FeatureGradients,
    prompt::{
        PartShape, PartShapes,
        part::{Draw, Drawn, Gradients, Inputs, Site, TensorShape},
        tokens::TokenLayout,
    },
};
use vpt_backbone::{
    Backbone,
    vit::{AttentionMaps, Grads, Input, OwnWeights, Pass, PromptSet, Readout, TokenRead, TokenRows, Want},
};
use vpt_base::{Error, Result, parallel, params::Param};

/// Depths at which tokens are read: quarters of the backbone.
const LEVELS: usize = 4;

/// Images, or what is known of them already.
#[derive(Debug, Clone, Copy)]
pub enum TokenInput<'a> {
    /// Images `[B, 3, S, S]`.
    Images(&'a [f32]),
    /// What [`TokenReader::prefix`] computed: `[B, R, D]`; not where weights of the backbone are learned.
    Prefix(&'a [f32]),
    /// All that the head reads, of the frozen backbone without prompts, as [`TokenReader::features`] computed it: `[B, levels, N, D]`.
    Features(&'a [f32]),
}

/// Blocks of a backbone of `depth` blocks behind which tokens are read, counted from 1: ceil(L i / 4), each once.
pub fn levels(depth: usize) -> Vec<usize> {
    let mut blocks: Vec<usize> = (1..=LEVELS).map(|i| (depth * i).div_ceil(LEVELS)).collect();
    blocks.dedup();
    blocks
}

/// A backbone, the parts that are learned of it or in it, and the blocks whose patch tokens are read.
#[derive(Debug)]
pub struct TokenReader {
    backbone: Arc<Backbone>,
    shapes: PartShapes,
    parts: ModelParts,
    reads: Vec<TokenRead>,
    threads: usize,
}

impl TokenReader {
    /// Reads patches behind `blocks` of `backbone`, ascending and counted from 1, with parts of these `shapes`.
    ///
    /// # Errors
    /// There are no such blocks, a part does not fit the backbone, or it is neither prompt tokens nor weights of the image tower.
    pub fn new(backbone: Arc<Backbone>, shapes: &PartShapes, blocks: &[usize], threads: usize) -> Result<Self> {
        let vit = &backbone.vit;
        if blocks.last().is_none_or(|&last| last > vit.depth()) || !blocks.is_sorted() {
            return Err(Error::invalid("head", format!("reads behind blocks {blocks:?} of {}", vit.depth())));
        }
        shapes.check()?;
        if shapes.told_by_texts() || !shapes.iter().all(|shape| takes(*shape)) {
            let message =
                "a head on patch tokens has prompt tokens or weights of the image tower beside it, nothing else";
            return Err(Error::invalid("parts", message));
        }
        let site = Site { backbone: &backbone, embeds: false, maps_labels: false, words: None };
        let parts = ModelParts::new(shapes, &site)?;
        let reads = blocks.iter().map(|&after| TokenRead { after, rows: TokenRows::Patches }).collect();
        Ok(Self { backbone, shapes: shapes.clone(), parts, reads, threads })
    }

    /// What is read of.
    pub fn backbone(&self) -> &Arc<Backbone> {
        &self.backbone
    }

    /// Patches along the side of an image.
    pub fn grid(&self) -> usize {
        self.backbone.vit.image_size() / self.backbone.spec.patch_size
    }

    /// What is learned beside the head.
    pub fn shapes(&self) -> &PartShapes {
        &self.shapes
    }

    /// Where the prompts are.
    pub fn layout(&self) -> Option<TokenLayout> {
        self.shapes.tokens()
    }

    /// Whether what comes before the first prompted block can be computed once: there are prompts, none in the first block, and no
    /// weights of the backbone are learned.
    pub fn has_prefix(&self) -> bool {
        self.parts.prefix_blocks().is_some_and(|blocks| blocks > 0)
    }

    /// What the parts draw at random for a step, each with its own rate of `dropout`.
    pub fn draw(&self, draw: &Draw, dropout: &[f32]) -> Vec<Drawn> {
        self.parts.draw(draw, dropout)
    }

    /// Fresh values of the parts.
    pub fn init(&self, seed: u64) -> Result<Vec<Param>> {
        self.parts.init(seed)
    }

    /// The learned values without those of the parts: what is known where the head has learned alone.
    pub fn without_parts(&self, params: &[Param]) -> Vec<Param> {
        params.iter().skip(self.parts.tensor_count()).cloned().collect()
    }

    /// Weights of the backbone that are learned, among `params`.
    pub fn own_weights<'a>(&self, params: &'a [Param]) -> OwnWeights<'a> {
        self.shapes.weights().map_or_else(OwnWeights::default, |shape| shape.own_weights(params))
    }

    /// Checks that `params` are those of the parts, then those of a head of these `tensors`.
    pub(super) fn check(&self, params: &[Param], tensors: Vec<TensorShape>) -> Result<()> {
        self.parts.check(params, [self.parts.tensors(), tensors].concat())
    }

    /// The values of a file, which [`Self::check`] has seen, in the order of [`Self::init`].
    pub(super) fn in_order(&self, params: Vec<Param>) -> Vec<Param> {
        self.parts.in_order(params)
    }

    /// What goes into a pass that reads `input` with the parts among `params`; no part where it is known what comes out.
    pub(super) fn join<'a>(&'a self, params: &'a [Param], drawn: &[Drawn], input: TokenInput) -> Result<Inputs<'a>> {
        match input {
            TokenInput::Features(_) => Ok(self.bare()),
            _ => self.parts.join(params, self.bare(), drawn),
        }
    }

    /// What goes into a pass without any part.
    pub(super) fn bare(&self) -> Inputs<'static> {
        Inputs::new(&[], self.threads)
    }

    /// The gradients of the parts' tensors from those of a pass; empty ones where there was no pass.
    pub(super) fn take(&self, params: &[Param], drawn: &[Drawn], of_pass: Option<Grads>) -> Result<Vec<Vec<f32>>> {
        match of_pass {
            Some(of_pass) => self.parts.take(params, drawn, Gradients { of_pass, of_projection: None }),
            None => Ok(vec![Vec::new(); self.parts.tensor_count()]),
        }
    }

    /// Blocks behind which tokens are read, from 1.
    pub fn blocks(&self) -> Vec<usize> {
        self.reads.iter().map(|read| read.after).collect()
    }

    /// Threads of a pass.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// The tokens that the head reads.
    pub(super) fn reads(&self) -> &[TokenRead] {
        &self.reads
    }

    /// The reads that no part changes, and those that one does.
    fn split_reads(&self) -> (&[TokenRead], &[TokenRead]) {
        let start = self.parts.prefix_blocks().unwrap_or(self.backbone.vit.depth());
        self.reads.split_at(self.reads.partition_point(|read| read.after <= start))
    }

    /// Blocks before the first that a part changes.
    fn prefix_blocks(&self) -> usize {
        self.parts.prefix_blocks().unwrap_or(0)
    }

    /// Values a record of [`Self::features`] has.
    pub fn features_len(&self) -> usize {
        self.reads.len() * self.level_len()
    }

    fn level_len(&self) -> usize {
        self.grid() * self.grid() * self.backbone.vit.width()
    }

    /// Values a record of [`Self::prefix`] has.
    pub fn prefix_len(&self) -> usize {
        self.split_reads().0.len() * self.level_len() + self.tokens_len()
    }

    fn tokens_len(&self) -> usize {
        self.backbone.vit.tokens() * self.backbone.vit.width()
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

    /// [`Self::features`] and [`Self::prefix`] of images `[B, 3, S, S]` in one pass, without saying twice what both have: `[B, R, D]`, of
    /// which [`Self::features_in_both`] and [`Self::prefix_in_both`] are the one and the other.
    pub fn both(&self, images: &[f32]) -> Result<Vec<f32>> {
        let (early, late) = self.split_reads();
        let tokens = TokenRead { after: self.prefix_blocks(), rows: TokenRows::All };
        let reads = [early, &[tokens], late].concat();
        let pass = Pass { readout: Readout::Tokens(&reads), ..Pass::forward(images, self.threads) };
        self.backbone.vit.read(&pass)
    }

    /// Values a record of [`Self::both`] has.
    pub fn both_len(&self) -> usize {
        self.features_len() + self.tokens_len()
    }

    /// Where in a record of [`Self::both`] that of [`Self::features`] is, piece by piece.
    pub fn features_in_both(&self) -> [Range<usize>; 2] {
        let early = self.split_reads().0.len() * self.level_len();
        [0..early, early + self.tokens_len()..self.both_len()]
    }

    /// Where in a record of [`Self::both`] that of [`Self::prefix`] is.
    pub fn prefix_in_both(&self) -> Range<usize> {
        0..self.prefix_len()
    }

    /// Where the tower looks in each of `images` `[B, 3, S, S]`, with the parts among `params`.
    ///
    /// # Errors
    /// The values are not those of this reader.
    pub(super) fn attention_maps(&self, params: &[Param], images: &[f32]) -> Result<Vec<AttentionMaps>> {
        let input = TokenInput::Images(images);
        let inputs = self.join(params, &[], input)?;
        self.backbone.vit.attention_maps(&Pass { input: Input::Images(images), ..inputs.pass(0, None) })
    }

    /// Embeddings of `images` `[B, 3, S, S]`, as [`Backbone::embed`] makes them without the parts among `params`.
    ///
    /// # Errors
    /// The values are not those of this reader.
    pub(super) fn embed(&self, params: &[Param], images: &[f32]) -> Result<Vec<f32>> {
        let inputs = self.join(params, &[], TokenInput::Images(images))?;
        let pass = Pass { input: Input::Images(images), ..inputs.pass(0, None) };
        Ok(self.backbone.project(self.backbone.vit.read(&pass)?))
    }

    /// The prompts among `params` ready for passes with others, if there are any.
    pub(super) fn prompt_set(&self, params: &[Param], threads: usize) -> Result<Option<PromptSet>> {
        let inputs = self.parts.join(params, self.bare(), &[])?;
        let Some(prompts) = inputs.pass(0, None).prompts else { return Ok(None) };
        self.backbone.vit.prepare(Some(prompts), None, threads).map(Some)
    }

    /// Calls `f` with the number of each image, the features `[levels, N, D]` that the head reads of it, and, if `train`ing
    /// makes a difference to them, where their gradient goes. Returns the gradients of the parts in `inputs` then; `None` where the
    /// features are known.
    pub(super) fn visit(
        &self,
        inputs: &Inputs,
        input: TokenInput,
        micro_batch: Option<usize>,
        train: bool,
        f: &(impl Fn(usize, &[f32], Option<FeatureGradients>) + Sync),
    ) -> Result<Option<Grads>> {
        let each = self.features_len();
        if let TokenInput::Features(features) = input {
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
            TokenInput::Prefix(records) => {
                tokens = records.chunks_exact(record).flat_map(|r| &r[early_len..]).copied().collect();
                (Input::Tokens { blocks: self.prefix_blocks(), tokens: &tokens }, late, Some(records))
            }
            TokenInput::Images(images) => (Input::Images(images), &self.reads[..], None),
            TokenInput::Features(_) => return Ok(None),
        };
        let want = if train && !late.is_empty() { inputs.want } else { Want::default() };
        let learns = want != Want::default();
        let loss = |range: Range<usize>, read: &[f32]| {
            let read_len = read.len() / range.len();
            let mut gradient = vec![0.; if learns { read.len() } else { 0 }];
            let mut features = vec![0.; each];
            for (i, image) in range.enumerate() {
                let read = &read[i * read_len..(i + 1) * read_len];
                if let Some(records) = known {
                    features[..early_len].copy_from_slice(&records[image * record..][..early_len]);
                    features[early_len..].copy_from_slice(read);
                } else {
                    features.copy_from_slice(read);
                }
                let to = learns.then(|| {
                    let of_image = &mut gradient[i * read_len..(i + 1) * read_len];
                    FeatureGradients { first_level: early.len(), values: &mut of_image[read_len - late_len..] }
                });
                f(image, &features, to);
            }
            Ok((gradient, ()))
        };
        let pass = Pass { input, readout: Readout::Tokens(reads), want, ..inputs.pass(0, micro_batch) };
        Ok(Some(self.backbone.vit.step(&pass, &loss)?.0))
    }

    /// What `look` makes of the features of each image of `input`, in the order of the images.
    pub(super) fn each<T: Send>(
        &self,
        inputs: &Inputs,
        input: TokenInput,
        look: impl Fn(usize, &[f32]) -> T + Sync,
    ) -> Result<Vec<T>> {
        let made: Mutex<Vec<(usize, T)>> = Mutex::default();
        let visit = |image: usize, features: &[f32], _: Option<FeatureGradients>| {
            let one = look(image, features);
            made.lock().unwrap_or_else(PoisonError::into_inner).push((image, one));
        };
        self.visit(inputs, input, None, false, &visit)?;
        let mut made = made.into_inner().unwrap_or_else(PoisonError::into_inner);
        made.sort_by_key(|(image, _)| *image);
        Ok(made.into_iter().map(|(_, one)| one).collect())
    }
}

/// Whether a dense head can have such a part beside it.
fn takes(shape: PartShape) -> bool {
    match shape {
        PartShape::Tokens(_) => true,
        PartShape::Weights(shape) => shape.tunes_images(),
        PartShape::KeysValues(_) | PartShape::Pixels(_) | PartShape::Text(_) => false,
    }
}
