//! Prompt tokens with learned keys and values beside them: E²VPT.
//!
//! Han et al., "E²VPT: An Effective and Efficient Approach for Visual Prompt Tuning", ICCV 2023. Every prompted block has prompt
//! tokens, as in VPT-deep, and N rows `[N, D]` that its attention sees beside the keys and values of the sequence, with no norm
//! or projection before them. As in the public code (`SHARE_PARAM_KV`), one tensor is both: a row is a key and a value. There it
//! is `[heads, N, D / heads]`; here the heads' parts of a row lie side by side.
//!
//! Pruning, as in the public code (`MASK_CLS_TOKEN`, `CLS_TOKEN_MASK_PIECES`): every prompt token, the same in all blocks, has a
//! mask of [`SEGMENTS`] values, of which the s-th multiplies its values d with d mod 16 = s. How much a token or a segment matters
//! is the gradient of the loss by its mask, mean over the training images; those with the smallest, signed, become 0, and all else
//! learns again from its first values (Frankle and Carbin 2019). A token that is gone still stands in the sequence, as zeros.

use std::{borrow::Cow, path::Path, sync::Arc};

use rand::{Rng, RngCore};
use serde::{Deserialize, Serialize};

use super::{
    part::{Draw, Drawn, FileTensors, Gradients, Inputs, KeysValues, Kind, Part, Site, TensorShape, Work, take_open},
    tokens::{self, PromptTokens, TokenLayout},
};
use vpt_base::{
    Error, Result,
    params::{Group, Param},
};

/// The name of the tensor of keys and values.
const NAME: &str = "prompt.keys_values";
/// The name of the tensor of masks, `[P, SEGMENTS]`.
const MASK: &str = "prompt.mask";
/// Segments of a prompt token.
pub const SEGMENTS: usize = 16;

/// Prompt tokens and segments that are taken away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pruning {
    /// Tokens, fewer than there are.
    pub tokens: usize,
    /// Segments of each token that is left, fewer than [`SEGMENTS`].
    pub segments: usize,
}

impl Pruning {
    /// By shares of `tokens` and of [`SEGMENTS`], rounded down, beside the names of their settings; `None` without shares.
    ///
    /// # Errors
    /// A share is given and stands for nothing.
    pub fn of_shares(tokens: usize, shares: [(&'static str, Option<f32>); 2]) -> Result<Option<Self>> {
        let mut counts = [0; 2];
        for ((count, of), (name, share)) in counts.iter_mut().zip([tokens, SEGMENTS]).zip(shares) {
            let Some(share) = share.filter(|&share| share > 0.) else { continue };
            *count = (of as f64 * f64::from(share)) as usize;
            if *count == 0 {
                return Err(Error::setting(name, format!("{share} of {of} is none")));
            }
        }
        let [tokens, segments] = counts;
        Ok((counts != [0, 0]).then_some(Self { tokens, segments }))
    }
}

/// How much the tokens `[P]` and their segments `[P, SEGMENTS]` matter: the derivative of the loss by their masks, from the
/// `values` of the tokens of this `shape` `[layers, P, D]` and the gradient of the loss by them, at masks of 1.
pub fn importance(shape: [usize; 3], values: &[f32], gradient: &[f32]) -> (Vec<f64>, Vec<f64>) {
    let [_, tokens, width] = shape;
    let mut of_segments = vec![0.; tokens * SEGMENTS];
    for (at, (value, gradient)) in values.iter().zip(gradient).enumerate() {
        let (token, d) = (at / width % tokens, at % width);
        of_segments[token * SEGMENTS + d % SEGMENTS] += f64::from(*value) * f64::from(*gradient);
    }
    let of_tokens = of_segments.chunks_exact(SEGMENTS).map(|segments| segments.iter().sum()).collect();
    (of_tokens, of_segments)
}

/// Places of the `count` smallest `scores`; of equals the first.
fn smallest(scores: &[f64], count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[a].total_cmp(&scores[b]));
    order.truncate(count);
    order
}

/// Prompt tokens and rows of keys and values: where, and how many.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyValueShape {
    /// First prompted block.
    pub start: usize,
    /// Number of prompted blocks from there on.
    pub layers: usize,
    /// Prompt tokens a block.
    pub tokens: usize,
    /// Rows of keys and values a block, N.
    pub keys_values: usize,
    /// Token values that are taken away after training, where it is pruned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pruned: Option<Pruning>,
}

impl KeyValueShape {
    /// Where the prompt tokens are.
    fn layout(&self) -> TokenLayout {
        TokenLayout { start: self.start, layers: self.layers, tokens: self.tokens }
    }

    /// `data` `[layers, N, 2D]` as keys and values of a pass.
    fn input<'a>(&self, data: Cow<'a, [f32]>) -> KeysValues<'a> {
        KeysValues { start: self.start, layers: self.layers, rows: self.keys_values, data }
    }
}

impl Kind for KeyValueShape {
    fn build(&self, site: &Site) -> Result<Arc<dyn Part>> {
        Ok(Arc::new(KeysAndValues::new(*self, site)?))
    }

    fn take(&self, tensors: &mut FileTensors, path: &Path) -> Result<Vec<Param>> {
        let layers = Some(self.layers);
        let expected = [(tokens::NAME, self.tokens), (NAME, self.keys_values)];
        let mut expected = expected.map(|(name, rows)| (name, vec![layers, Some(rows), None])).to_vec();
        if self.pruned.is_some() {
            expected.push((MASK, vec![Some(self.tokens), Some(SEGMENTS)]));
        }
        let mut params = take_open(expected, tensors, path)?;
        params.iter_mut().filter(|param| param.name == MASK).for_each(|mask| mask.group = Group::Fixed);
        Ok(params)
    }

    fn describe(&self) -> String {
        let pruned = match self.pruned {
            Some(Pruning { tokens, segments }) => {
                format!("; {tokens} tokens and {segments} of {SEGMENTS} segments of the others pruned")
            }
            None => String::new(),
        };
        format!("{}, with {} keys and values beside them{pruned}", self.layout().describe(), self.keys_values)
    }

    fn prunes(&self) -> bool {
        self.pruned.is_some()
    }

    /// The keys and values cost next to nothing.
    fn add_work(&self, side: usize, patch: usize, work: &mut Work) {
        self.layout().add_work(side, patch, work);
    }
}

/// Prompt tokens, keys and values of a backbone; the learned values are passed in.
#[derive(Debug)]
struct KeysAndValues {
    shape: KeyValueShape,
    tokens: PromptTokens,
    heads: usize,
    tensors: Vec<TensorShape>,
}

impl KeysAndValues {
    fn new(shape: KeyValueShape, site: &Site) -> Result<Self> {
        let tokens = PromptTokens::new(shape.layout(), site.backbone)?;
        let width = site.backbone.vit.width();
        let rows = (NAME.to_owned(), vec![shape.layers, shape.keys_values, width]);
        let mut tensors = vec![tokens.tensors()[0].clone(), rows];
        if let Some(Pruning { tokens, segments }) = shape.pruned {
            if tokens >= shape.tokens || segments >= SEGMENTS || !width.is_multiple_of(SEGMENTS) {
                let message = format!(
                    "{tokens} of {} tokens and {segments} of {SEGMENTS} segments of {width} values cannot be taken away",
                    shape.tokens
                );
                return Err(Error::setting("prune_tokens", message));
            }
            tensors.push((MASK.to_owned(), vec![shape.tokens, SEGMENTS]));
        }
        Ok(Self { shape, tokens, heads: site.backbone.spec.vision.heads, tensors })
    }

    /// D.
    fn width(&self) -> usize {
        self.tensors[1].1[2]
    }
}

/// The values of the tokens, those of the keys and values, and the masks, if there are any.
fn split(values: &[Param]) -> Result<(&[Param], &Param, Option<&Param>)> {
    match values {
        [tokens, rows] => Ok((std::slice::from_ref(tokens), rows, None)),
        [tokens, rows, mask] => Ok((std::slice::from_ref(tokens), rows, Some(mask))),
        _ => Err(Error::invalid(NAME, "no such tensor among the learned ones")),
    }
}

/// Token values, or their gradient, `[layers, P, D]` times the masks `[P, SEGMENTS]`.
fn apply_mask(values: &mut [f32], mask: &Param, width: usize) {
    let tokens = mask.values.len() / SEGMENTS;
    for (at, value) in values.iter_mut().enumerate() {
        *value *= mask.values[at / width % tokens * SEGMENTS + at % width % SEGMENTS];
    }
}

impl Part for KeysAndValues {
    fn tensors(&self) -> &[TensorShape] {
        &self.tensors
    }

    /// Keys and values begin as the public code's do (`ORIGIN_INIT` 2, Kaiming's uniform distribution), whose fan in is
    /// N D / heads.
    fn init(&self, rng: &mut dyn RngCore) -> Result<Vec<Param>> {
        let mut params = self.tokens.init(rng)?;
        let (name, shape) = &self.tensors[1];
        let fan_in = self.shape.keys_values * self.width() / self.heads;
        let bound = (6. / fan_in as f64).sqrt() as f32;
        let values = (0..shape.iter().product()).map(|_| rng.random_range(-bound..bound)).collect();
        params.push(Param::new(name, shape, values, Group::Part(0))?);
        if let Some((name, shape)) = self.tensors.get(2) {
            params.push(Param::new(name, shape, vec![1.; shape.iter().product()], Group::Fixed)?);
        }
        Ok(params)
    }

    /// Of the tokens; keys and values are not dropped.
    fn draw(&self, draw: &Draw) -> Drawn {
        self.tokens.draw(draw)
    }

    fn prefix_blocks(&self) -> usize {
        self.shape.start
    }

    fn outline<'a>(&'a self, inputs: &mut Inputs<'a>) {
        self.tokens.outline(inputs);
        inputs.keys_values = Some(self.shape.input(Cow::default()));
        inputs.want.keys_values = true;
    }

    fn join<'a>(&'a self, values: &'a [Param], drawn: &Drawn, inputs: &mut Inputs<'a>) -> Result<()> {
        let (tokens, rows, mask) = split(values)?;
        self.tokens.join(tokens, drawn, inputs)?;
        if let (Some(mask), Some((_, values))) = (mask, &mut inputs.tokens) {
            apply_mask(values.to_mut(), mask, self.width());
        }
        let both = rows.values.chunks_exact(self.width()).flat_map(|row| [row, row].concat()).collect::<Vec<f32>>();
        inputs.keys_values = Some(self.shape.input(both.into()));
        inputs.want.keys_values = true;
        Ok(())
    }

    fn take_gradient(&self, values: &[Param], drawn: &Drawn, gradients: &mut Gradients) -> Result<Vec<Vec<f32>>> {
        let (tokens, _, mask) = split(values)?;
        let mut own = self.tokens.take_gradient(tokens, drawn, gradients)?;
        if let Some(mask) = mask {
            for gradient in &mut own {
                apply_mask(gradient, mask, self.width());
            }
        }
        let of_both = gradients.of_pass.keys_values.take().unwrap_or_default();
        // What a row learns as a key and as a value.
        let of_row = |row: &[f32]| {
            let (key, value) = row.split_at(row.len() / 2);
            key.iter().zip(value).map(|(key, value)| key + value).collect::<Vec<f32>>()
        };
        own.push(of_both.chunks_exact(2 * self.width()).flat_map(of_row).collect());
        own.extend(mask.map(|mask| vec![0.; mask.values.len()]));
        Ok(own)
    }

    fn prune(&self, learned: &[Param], gradients: &[Vec<f32>], again: &mut [Param]) -> Result<()> {
        let Some(Pruning { tokens, segments }) = self.shape.pruned else { return Ok(()) };
        split(learned)?;
        let (Some(gradient), Some(mask)) = (gradients.first(), again.get_mut(2)) else {
            return Err(Error::invalid(MASK, "no such tensor among the learned ones"));
        };
        let shape = [self.shape.layers, self.shape.tokens, self.width()];
        let (by_token, by_segment) = importance(shape, &learned[0].values, gradient);
        mask.values.fill(1.);
        for (token, scores) in by_segment.chunks_exact(SEGMENTS).enumerate() {
            for s in smallest(scores, segments) {
                mask.values[token * SEGMENTS + s] = 0.;
            }
        }
        for token in smallest(&by_token, tokens) {
            mask.values[token * SEGMENTS..][..SEGMENTS].fill(0.);
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::float_cmp, reason = "masks are 0 or 1")]
mod tests {
    use super::*;
    use vpt_backbone::{Backbone, OpenOptions};
    use vpt_base::random::stream;

    #[test]
    fn keys_and_values_fill_the_range_of_the_public_code() {
        let backbone = Backbone::open("clip-nano", &OpenOptions::default()).unwrap();
        let site = Site { backbone: &backbone, embeds: false, maps_labels: false, words: None };
        let depth = backbone.vit.depth();
        let shape = KeyValueShape { start: 0, layers: depth, tokens: 2, keys_values: 5, pruned: None };
        let params = shape.build(&site).unwrap().init(&mut stream(1, "init", 0, 0)).unwrap();
        let width = backbone.vit.width();
        assert_eq!(params[0].shape, [depth, 2, width]);
        assert_eq!(params[1].shape, [depth, 5, width]);
        let bound = (6. / (5 * width / backbone.spec.vision.heads) as f32).sqrt();
        let largest = params[1].values.iter().fold(0f32, |a, v| a.max(v.abs()));
        assert!(largest <= bound && largest > 0.98 * bound, "{largest} and {bound}");
        assert!(KeyValueShape { layers: depth + 1, ..shape }.build(&site).is_err());
    }

    #[test]
    fn the_tokens_and_segments_with_the_smallest_gradient_of_their_mask_are_taken_away() {
        let backbone = Backbone::open("clip-nano", &OpenOptions::default()).unwrap();
        let site = Site { backbone: &backbone, embeds: false, maps_labels: false, words: None };
        let pruned = Some(Pruning { tokens: 1, segments: 3 });
        let shape = KeyValueShape { start: 0, layers: 2, tokens: 3, keys_values: 2, pruned };
        let part = shape.build(&site).unwrap();
        let width = backbone.vit.width();
        let first = part.init(&mut stream(1, "init", 0, 0)).unwrap();
        assert!(first[2].values.iter().all(|&v| v == 1.) && first[2].group == Group::Fixed);
        // Values of 1 and a gradient that says what matters: token 1 least, and of each token segments 4, 9 and 2.
        let mut learned = first.clone();
        learned[0].values.fill(1.);
        let of_segment = |s: usize| if [4, 9, 2].contains(&s) { -1. } else { s as f32 };
        let gradient: Vec<f32> = (0..2 * 3 * width)
            .map(|at| of_segment(at % width % SEGMENTS) - if at / width % 3 == 1 { 100. } else { 0. })
            .collect();
        let mut again = first.clone();
        part.prune(&learned, &[gradient, vec![0.; first[1].values.len()], vec![0.; 3 * SEGMENTS]], &mut again).unwrap();
        assert_eq!((&again[0], &again[1]), (&first[0], &first[1]));
        for (token, mask) in again[2].values.chunks_exact(SEGMENTS).enumerate() {
            for (s, &value) in mask.iter().enumerate() {
                assert_eq!(value == 0., token == 1 || [4, 9, 2].contains(&s), "token {token}, segment {s}");
            }
        }
        // What is gone stays zero in a pass and has no gradient.
        let mut inputs = Inputs::new(&[], 1);
        part.join(&again, &Drawn::Nothing, &mut inputs).unwrap();
        let (_, values) = inputs.tokens.as_ref().unwrap();
        let zeros = values.iter().filter(|&&v| v == 0.).count();
        assert_eq!(zeros, 2 * (width + 2 * width * 3 / SEGMENTS));
        assert!(KeyValueShape { pruned: Some(Pruning { tokens: 3, segments: 0 }), ..shape }.build(&site).is_err());
    }

    #[test]
    fn shares_become_counts() {
        let of = |tokens, segments| Pruning::of_shares(10, [("prune_tokens", tokens), ("prune_segments", segments)]);
        assert_eq!(of(None, Some(0.)).unwrap(), None);
        assert_eq!(of(Some(0.35), Some(0.5)).unwrap(), Some(Pruning { tokens: 3, segments: 8 }));
        assert_eq!(of(Some(0.05), None).unwrap_err().to_string(), "prune_tokens: 0.05 of 10 is none");
    }
}
