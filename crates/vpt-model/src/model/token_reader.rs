//! What a dense head reads: patch tokens behind some blocks of a frozen backbone, with prompt tokens learned beside the head.
//!
//! What comes before the first prompted block never changes, so it can be computed once an image and kept: see
//! [`TokenInput`]. Heads treat one image at a time behind the backbone.

use std::{
    borrow::Cow,
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
};

use crate::{
    head::detect::FeatureGradients,
    prompt::{
        part::{Draw, Drawn, Gradients, Part, TensorShape},
        tokens::{self, PromptTokens, TokenLayout},
    },
};
use vpt_backbone::{
    Backbone,
    vit::{AttentionMaps, Grads, Input, Pass, PromptSet, Readout, TokenPrompts, TokenRead, TokenRows, Want},
};
use vpt_base::{Error, Result, parallel, params::Param, random::stream};

/// Depths at which tokens are read: quarters of the backbone.
const LEVELS: usize = 4;

/// Images, or what is known of them already.
#[derive(Debug, Clone, Copy)]
pub enum TokenInput<'a> {
    /// Images `[B, 3, S, S]`.
    Images(&'a [f32]),
    /// What [`TokenReader::prefix`] computed: `[B, R, D]`.
    Prefix(&'a [f32]),
    /// All that the head reads, without prompts, as [`TokenReader::features`] computed it: `[B, levels, N, D]`.
    Features(&'a [f32]),
}

/// Blocks of a backbone of `depth` blocks behind which tokens are read, counted from 1: ceil(L i / 4), each once.
pub fn levels(depth: usize) -> Vec<usize> {
    let mut blocks: Vec<usize> = (1..=LEVELS).map(|i| (depth * i).div_ceil(LEVELS)).collect();
    blocks.dedup();
    blocks
}

/// A backbone, the prompt tokens in it, and the blocks whose patch tokens are read.
#[derive(Debug)]
pub struct TokenReader {
    backbone: Arc<Backbone>,
    tokens: Option<PromptTokens>,
    reads: Vec<TokenRead>,
    threads: usize,
}

/// Prompt tokens as a pass takes them: their values, of which some may be dropped.
pub(super) struct BoundPrompts<'a> {
    tokens: &'a PromptTokens,
    own: &'a [Param],
    values: Cow<'a, [f32]>,
}

impl TokenReader {
    /// Reads patches behind `blocks` of `backbone`, ascending and counted from 1.
    ///
    /// # Errors
    /// There are no such blocks, or the prompts do not fit the backbone.
    pub fn new(backbone: Arc<Backbone>, layout: Option<TokenLayout>, blocks: &[usize], threads: usize) -> Result<Self> {
        let vit = &backbone.vit;
        if blocks.last().is_none_or(|&last| last > vit.depth()) || !blocks.is_sorted() {
            return Err(Error::invalid("head", format!("reads behind blocks {blocks:?} of {}", vit.depth())));
        }
        let tokens = layout.map(|layout| PromptTokens::new(layout, &backbone)).transpose()?;
        let reads = blocks.iter().map(|&after| TokenRead { after, rows: TokenRows::Patches }).collect();
        Ok(Self { backbone, tokens, reads, threads })
    }

    /// The frozen part.
    pub fn backbone(&self) -> &Arc<Backbone> {
        &self.backbone
    }

    /// Patches along the side of an image.
    pub fn grid(&self) -> usize {
        self.backbone.vit.image_size() / self.backbone.spec.patch_size
    }

    /// Where the prompts are.
    pub fn layout(&self) -> Option<TokenLayout> {
        self.tokens.as_ref().map(PromptTokens::layout)
    }

    /// What the prompt tokens draw at random for a step.
    pub fn draw(&self, draw: &Draw) -> Drawn {
        self.tokens.as_ref().map_or(Drawn::Nothing, |tokens| tokens.draw(draw))
    }

    /// Fresh values of the prompts, if there are any.
    pub fn init(&self, seed: u64) -> Result<Vec<Param>> {
        match &self.tokens {
            Some(tokens) => tokens.init(&mut stream(seed, "prompt init", 0, 0)),
            None => Ok(Vec::new()),
        }
    }

    /// The learned values without those of prompt tokens: what is known where the head has learned alone.
    pub fn without_prompts(&self, params: &[Param]) -> Vec<Param> {
        params.iter().skip(self.prompt_tensors().len()).cloned().collect()
    }

    /// Name and shape of the prompt tokens, which come before the head.
    pub(super) fn prompt_tensors(&self) -> &[TensorShape] {
        self.tokens.as_ref().map_or(&[], |tokens| tokens.tensors())
    }

    /// The prompts among `params`, if there are any, with what was `drawn` for them.
    pub(super) fn prompts<'a>(&'a self, params: &'a [Param], drawn: &Drawn) -> Result<Option<BoundPrompts<'a>>> {
        let Some(tokens) = &self.tokens else { return Ok(None) };
        let own = params.get(..self.prompt_tensors().len());
        let own = own.ok_or_else(|| Error::invalid("parameters", "not those of this model"))?;
        Ok(Some(BoundPrompts { tokens, own, values: tokens::masked(own, drawn)? }))
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

    /// Where the tower looks in each of `images` `[B, 3, S, S]`, with the prompts among `params`.
    ///
    /// # Errors
    /// The values are not those of this reader.
    pub(super) fn attention_maps(&self, params: &[Param], images: &[f32]) -> Result<Vec<AttentionMaps>> {
        let prompts = self.prompts(params, &Drawn::Nothing)?;
        let prompts = prompts.as_ref().map(BoundPrompts::of_pass);
        self.backbone.vit.attention_maps(&Pass { prompts, ..Pass::forward(images, self.threads) })
    }

    /// The prompts among `params` ready for passes with others, if there are any.
    pub(super) fn prompt_set(&self, params: &[Param], threads: usize) -> Result<Option<PromptSet>> {
        let Some(prompts) = self.prompts(params, &Drawn::Nothing)? else { return Ok(None) };
        self.backbone.vit.prepare(Some(prompts.of_pass()), None, threads).map(Some)
    }

    /// Calls `f` with the number of each image, the features `[levels, N, D]` that the head reads of it, and, if `train`ing
    /// makes a difference to them, where their gradient goes. Returns the gradient of the prompts then.
    pub(super) fn visit(
        &self,
        prompts: Option<&BoundPrompts>,
        input: TokenInput,
        micro_batch: Option<usize>,
        train: bool,
        f: &(impl Fn(usize, &[f32], Option<FeatureGradients>) + Sync),
    ) -> Result<Option<Vec<f32>>> {
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
        let prompts = prompts.map(BoundPrompts::of_pass);
        let pass = Pass { input, prompts, readout, want, micro_batch, ..Pass::forward(&[], self.threads) };
        Ok(self.backbone.vit.step(&pass, &loss)?.0.tokens)
    }

    /// What `look` makes of the features of each image of `input`, in the order of the images.
    pub(super) fn each<T: Send>(
        &self,
        prompts: Option<&BoundPrompts>,
        input: TokenInput,
        look: impl Fn(usize, &[f32]) -> T + Sync,
    ) -> Result<Vec<T>> {
        let made: Mutex<Vec<(usize, T)>> = Mutex::default();
        let visit = |image: usize, features: &[f32], _: Option<FeatureGradients>| {
            let one = look(image, features);
            made.lock().unwrap_or_else(PoisonError::into_inner).push((image, one));
        };
        self.visit(prompts, input, None, false, &visit)?;
        let mut made = made.into_inner().unwrap_or_else(PoisonError::into_inner);
        made.sort_by_key(|(image, _)| *image);
        Ok(made.into_iter().map(|(_, one)| one).collect())
    }
}

impl BoundPrompts<'_> {
    fn of_pass(&self) -> TokenPrompts<'_> {
        self.tokens.layout().prompts(&self.values)
    }

    /// The gradients of the prompts' tensors by that of the values in a pass; zeros if they had no part in it.
    pub(super) fn gradients(&self, drawn: &Drawn, of_values: Option<Vec<f32>>) -> Result<Vec<Vec<f32>>> {
        let of_tokens = of_values.unwrap_or_else(|| vec![0.; self.values.len()]);
        let of_pass = Grads { tokens: Some(of_tokens), ..Grads::default() };
        self.tokens.take_gradient(self.own, drawn, &mut Gradients { of_pass, of_projection: None })
    }
}
