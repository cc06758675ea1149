//! Where a tower looks in an image: what softmax gives to each patch in the last block, for the class token and for prompts.
//!
//! A map is the mean of the heads. Deep prompts are keys that every token sees beside those of the image, so a part of what a token
//! looks at is no part of the image: each map says how much. Deep prompts have no queries in the engine, as nothing reads
//! what they would find; here these are made as the textbook form has them. Nothing of this is needed for an answer, so it is
//! written for clarity, an image at a time.

use super::attention_pool::AttentionPoolTape;
use super::block::{Queries, Sequences};
use super::encoder::TowerWorkspace;
use super::pool::PooledRows;
use super::prompts::PreparedPrompts;
use super::tower::Tower;
use super::{Pass, Readout, SharedStep, TokenRead, TokenRows, Tuned, Vit, Want};
use crate::spec::Pool;
use vpt_base::choice::choice;
use vpt_base::{Error, Result};
use vpt_kernel::attention::AttentionScratch;
use vpt_kernel::{Attention, Kept, Mat, MatMut, Precision, layer_norm, row_stride, with_team};

choice! {
    /// Whose attention a map shows.
    pub enum AttentionOf for "attention_of" {
        /// What makes the features of an image: its class token, or the query of attention pooling.
        Features = "features",
        /// Prompt tokens.
        Prompts = "prompts",
    }
}

/// What softmax gives to the tokens of an image, mean of the heads and, of prompts, of these. All of it adds up to one.
#[derive(Clone, Debug, PartialEq)]
pub struct AttentionMap {
    /// What looks: `class token`, `pooling query` or `prompts`.
    pub query: &'static str,
    /// To each patch, row by row of the image, `[N]`.
    pub patches: Vec<f32>,
    /// To the tokens before the patches: class token and registers.
    pub prefix: f32,
    /// To prompts: tokens, and keys of their own.
    pub prompts: f32,
}

/// Where the tower looks in one image.
#[derive(Clone, Debug, PartialEq)]
pub struct AttentionMaps {
    /// What makes the features; `None` where these are the mean of the patches.
    pub features: Option<AttentionMap>,
    /// Prompt tokens, as they are in the last block; `None` without any.
    pub prompts: Option<AttentionMap>,
}

impl AttentionMap {
    /// The share of the patches.
    pub fn of_patches(&self) -> f32 {
        self.patches.iter().sum()
    }
}

impl AttentionMaps {
    /// The one that is asked for.
    ///
    /// # Errors
    /// There is none.
    pub fn into_one(self, of: AttentionOf) -> Result<AttentionMap> {
        let (found, why) = match of {
            AttentionOf::Features => (
                self.features,
                "this backbone has no class token and no pooling query that would look: it reads the mean of the patches",
            ),
            AttentionOf::Prompts => (self.prompts, "the task has no prompt tokens that would look"),
        };
        found.ok_or_else(|| Error::invalid("attention", why))
    }
}

impl Vit {
    /// Where the tower looks in each image of a pass, whose readout and gradients do not matter.
    ///
    /// # Errors
    /// The images are no whole number of images of this size, the prompts do not fit the tower, or it is on another engine.
    pub fn attention_maps(&self, pass: &Pass) -> Result<Vec<AttentionMaps>> {
        let pass = Pass { readout: Readout::Features, want: Want::default(), ..*pass };
        let batch = self.check(&pass)?;
        if self.other.is_some() {
            return Err(self.native_only("tells where the tower looks"));
        }
        let plan = self.memory_plan(&pass, 1)?;
        let tower = pass.tuned.map_or(&self.tower, Tuned::tower);
        let prepared = PreparedPrompts::new(&pass, tower);
        let reads = [TokenRead { after: self.depth() - 1, rows: TokenRows::All }];
        let Pass { input, tuned, want, .. } = pass;
        let job = SharedStep {
            input,
            readout: Readout::Tokens(&reads),
            tower,
            tuned,
            prepared: prepared.as_ref(),
            want,
            plan,
        };
        let mut workspace = self.take_workspace();
        let maps = with_team(pass.threads, || {
            (0..batch)
                .map(|image| {
                    self.forward(&job, image..image + 1, &mut workspace);
                    self.maps_of_last_block(tower, job.prepared, &mut workspace)
                })
                .collect()
        });
        self.keep_workspace(workspace);
        Ok(maps)
    }

    /// The maps of one image whose tokens, as they enter the last block, are in the workspace.
    fn maps_of_last_block(
        &self,
        tower: &Tower,
        prepared: Option<&PreparedPrompts>,
        workspace: &mut TowerWorkspace,
    ) -> AttentionMaps {
        let (d, last) = (self.width(), self.depth() - 1);
        let (stride, kv_stride) = (row_stride(d), row_stride(2 * d));
        let (rows, block) = (self.tokens_in(last, prepared), &tower.blocks[last]);
        let x = Mat::new(&workspace.x, rows, d, stride);
        let (mut normalized, mut inverse) = (vec![0.; rows * stride], vec![0.; rows]);
        layer_norm(x, block.eps(), &mut MatMut::new(&mut normalized, rows, d, stride), &mut inverse);
        let normalized = Mat::new(&normalized, rows, d, stride);
        let mut keys = vec![0.; rows * kv_stride];
        block.keys_values().apply(normalized, MatMut::new(&mut keys, rows, 2 * d, kv_stride));
        if let Some(turn) = tower.turn.as_deref() {
            let patches = &mut keys[turn.prefix * kv_stride..];
            turn.rotation.turn(MatMut::new(patches, turn.rotation.rows(), d, kv_stride), false);
        }
        let shared = prepared.and_then(|prepared| prepared.keys_values(last, d));
        // Neither the class token nor prompts are turned.
        let look = |query, looking: Mat| {
            let count = looking.rows();
            let mut queries = vec![0.; count * stride];
            block.queries().apply(looking, MatMut::new(&mut queries, count, d, stride));
            let attention = Attention {
                heads: block.heads(),
                queries: Mat::new(&queries, count, d, stride),
                keys_values: Mat::new(&keys, rows, 2 * d, kv_stride),
                prompts: shared,
                causal: false,
                precision: self.precision,
            };
            self.map(query, &mean_probabilities(&attention))
        };
        let travelling = rows - self.tokens();
        let prompts = match prepared.and_then(|prepared| prepared.normalized(last, d)) {
            Some(prompts) => Some(prompts),
            None => (travelling > 0).then(|| normalized.row_range(self.tokens(), travelling)),
        };
        let prompts = prompts.map(|prompts| look("prompts", prompts));
        let features = if self.pool.reads_class_token() {
            Some(look("class token", normalized.row_range(0, 1)))
        } else {
            self.pooled_map(tower, rows, shared, workspace)
        };
        AttentionMaps { features, prompts }
    }

    /// Where the query of attention pooling looks, if the tower has one, behind the last block.
    fn pooled_map(
        &self,
        tower: &Tower,
        rows: usize,
        shared: Option<Mat>,
        workspace: &mut TowerWorkspace,
    ) -> Option<AttentionMap> {
        let attention = tower.attention_pool.as_ref().filter(|_| self.pool == Pool::Attention)?;
        let TowerWorkspace { x, scratch, .. } = workspace;
        let starts = [0, rows];
        let sequences = Sequences { starts: &starts, causal: false, turn: tower.turn.as_deref() };
        tower.blocks[self.depth() - 1].forward(x, sequences, shared, Queries::All, None, scratch);
        let (d, stride, own) = (self.width(), row_stride(self.width()), self.tokens());
        let (mut normalized, mut inverse) = (vec![0.; own * stride], vec![0.; own]);
        let view = &mut MatMut::new(&mut normalized, own, d, stride);
        layer_norm(Mat::new(x, own, d, stride), tower.eps, view, &mut inverse);
        let mut tape = AttentionPoolTape::default();
        attention.forward(&normalized, PooledRows { images: 1, each: own, own }, &mut tape);
        // Prompts are no keys of it.
        Some(self.map("pooling query", &attention.attended(own, &tape)))
    }

    /// What is given to `keys`: the tokens of an image, and prompts behind them.
    fn map(&self, query: &'static str, keys: &[f32]) -> AttentionMap {
        let (own, prompts) = keys.split_at(self.tokens());
        let (prefix, patches) = own.split_at(self.tokens() - self.tower.embedding.patches());
        // From zero on: the sum of nothing is -0.
        let sum = |shares: &[f32]| shares.iter().fold(0., |sum, share| sum + share);
        AttentionMap { query, patches: patches.to_vec(), prefix: sum(prefix), prompts: sum(prompts) }
    }
}

/// The mean over heads and queries of the probabilities of each key.
fn mean_probabilities(attention: &Attention) -> Vec<f32> {
    let (queries, d) = (attention.queries.rows(), attention.queries.cols());
    let stride = row_stride(d);
    let mut mixed = vec![0.; queries * stride];
    let mut kept = Kept::new(Precision::F32);
    let scratch = &mut AttentionScratch::default();
    attention.forward(&mut MatMut::new(&mut mixed, queries, d, stride), Some((&mut kept, 0)), scratch);
    let keys = attention.keys_values.rows() + attention.prompts.map_or(0, |prompts| prompts.rows());
    mean_of_rows(kept.read(0..attention.probability_len(), &mut Vec::new()), keys)
}

/// The mean of rows of `columns` values, at stride [`row_stride`]`(columns)`.
pub(super) fn mean_of_rows(rows: &[f32], columns: usize) -> Vec<f32> {
    let rows = rows.chunks_exact(row_stride(columns));
    let count = rows.len().max(1) as f32;
    let mut mean = vec![0.; columns];
    for row in rows {
        mean.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
    }
    mean.into_iter().map(|sum| sum / count).collect()
}
