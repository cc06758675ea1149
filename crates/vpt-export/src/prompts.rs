//! What a task puts into the blocks of an image tower, as the blocks of a graph see it.
//!
//! Prompts whose outputs nobody reads are keys and values, the same for every image: they are computed here, once and for all
//! (`[K, V] = LN1(P) [Wk, Wv] + [bk, bv]`), and stand in the graph as constants. Where outputs are read, prompts are tokens
//! behind those of the image and go through all further blocks.

use vpt_backbone::{
    clip::product,
    vit::{PlainBlock, PlainLayer, PlainTower},
};
use vpt_base::Result;
use vpt_kernel::{Mat, MatMut, Panels, layer_norm};
use vpt_model::{model::constants::KeyValueRows, prompt::tokens::TokenLayout};

/// Prompts of an image tower.
#[derive(Debug, Default)]
pub(crate) struct ImagePrompts {
    /// Keys and values that all images share, of each block.
    pub(crate) shared: Vec<Option<SharedKeysValues>>,
    /// The block at whose input tokens `[P, D]` enter, and these.
    pub(crate) inserted: Option<(usize, Vec<f32>)>,
}

/// Keys and values that all images share in one block.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct SharedKeysValues {
    /// `[R, D]`.
    pub(crate) keys: Vec<f32>,
    /// `[R, D]`.
    pub(crate) values: Vec<f32>,
}

impl ImagePrompts {
    /// Those of tokens `[layers, P, D]` and of rows in `tower`.
    ///
    /// # Errors
    /// The checkpoint cannot be read any more.
    pub(crate) fn new(
        tower: &PlainTower,
        tokens: Option<(TokenLayout, &[f32])>,
        rows: Option<&KeyValueRows>,
    ) -> Result<Self> {
        let (depth, d) = (tower.spec().vision.depth, tower.spec().vision.width);
        let mut prompts = Self { shared: vec![None; depth], inserted: None };
        if let Some((layout, values)) = tokens {
            let each = layout.tokens * d;
            let travels = layout.start + layout.layers < depth;
            for layer in 0..layout.layers - usize::from(travels) {
                let at = layout.start + layer;
                let values = &values[layer * each..(layer + 1) * each];
                prompts.shared[at] = Some(of_tokens(tower, at, values)?);
            }
            if travels {
                let last = layout.layers - 1;
                prompts.inserted = Some((layout.start + last, values[last * each..].to_vec()));
            }
        }
        if let Some(rows) = rows {
            for (layer, data) in rows.data.chunks_exact(rows.rows * 2 * d).enumerate() {
                let shared = &mut prompts.shared[rows.start + layer];
                let shared = shared.get_or_insert_with(|| SharedKeysValues { keys: Vec::new(), values: Vec::new() });
                for row in data.chunks_exact(2 * d) {
                    shared.keys.extend(&row[..d]);
                    shared.values.extend(&row[d..]);
                }
            }
        }
        Ok(prompts)
    }
}

/// Keys and values that block `index` makes of prompt tokens `[P, D]`.
fn of_tokens(tower: &PlainTower, index: usize, tokens: &[f32]) -> Result<SharedKeysValues> {
    let (d, eps) = (tower.spec().vision.width, tower.spec().vision.eps);
    let mut x = tokens.to_vec();
    if let (0, Some([scale, shift])) = (index, tower.embedding()?.pre_norm) {
        x = normalized(&x, d, eps);
        for row in x.chunks_exact_mut(d) {
            row.iter_mut().zip(scale.iter().zip(&shift)).for_each(|(x, (scale, shift))| *x = *x * scale + shift);
        }
    }
    let x = normalized(&x, d, eps);
    let PlainBlock { k, v, .. } = tower.block(index)?;
    Ok(SharedKeysValues { keys: applied(&k, &x, d), values: applied(&v, &x, d) })
}

/// Rows `[n, D]` at mean 0 and variance 1.
fn normalized(x: &[f32], d: usize, eps: f32) -> Vec<f32> {
    let n = x.len() / d;
    let (mut out, mut inverse) = (vec![0.; x.len()], vec![0.; n]);
    layer_norm(Mat::new(x, n, d, d), eps, &mut MatMut::new(&mut out, n, d, d), &mut inverse);
    out
}

/// `x Wᵀ + b` of rows `[n, inputs]`.
pub(crate) fn applied(layer: &PlainLayer, x: &[f32], inputs: usize) -> Vec<f32> {
    let out = layer.bias.len();
    let mut y = product(x, &Panels::pack(Mat::new(&layer.weight, out, inputs, inputs).t()));
    for row in y.chunks_exact_mut(out) {
        row.iter_mut().zip(&layer.bias).for_each(|(y, b)| *y += b);
    }
    y
}
