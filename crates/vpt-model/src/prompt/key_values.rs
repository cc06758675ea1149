//! Prompt tokens with learned keys and values beside them: E²VPT.
//!
//! Han et al., "E²VPT: An Effective and Efficient Approach for Visual Prompt Tuning", ICCV 2023. Every prompted block has prompt
//! tokens, as in VPT-deep, and N rows `[N, D]` that its attention sees beside the keys and values of the sequence, with no norm
//! or projection before them. As in the public code (`SHARE_PARAM_KV`), one tensor is both: a row is a key and a value. There it
//! is `[heads, N, D / heads]`; here the heads' parts of a row lie side by side.

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
        take_open(expected.map(|(name, rows)| (name, vec![layers, Some(rows), None])).to_vec(), tensors, path)
    }

    fn describe(&self) -> String {
        format!("{}, with {} keys and values beside them", self.layout().describe(), self.keys_values)
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
    tensors: [TensorShape; 2],
}

impl KeysAndValues {
    fn new(shape: KeyValueShape, site: &Site) -> Result<Self> {
        let tokens = PromptTokens::new(shape.layout(), site.backbone)?;
        let width = site.backbone.vit.width();
        let rows = (NAME.to_owned(), vec![shape.layers, shape.keys_values, width]);
        let tensors = [tokens.tensors()[0].clone(), rows];
        Ok(Self { shape, tokens, heads: site.backbone.spec.vision.heads, tensors })
    }

    /// D.
    fn width(&self) -> usize {
        self.tensors[1].1[2]
    }
}

/// The values of the tokens, and those of the keys and values.
fn split(values: &[Param]) -> Result<(&[Param], &Param)> {
    match values {
        [tokens, rows] => Ok((std::slice::from_ref(tokens), rows)),
        _ => Err(Error::invalid(NAME, "no such tensor among the learned ones")),
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
        let (tokens, rows) = split(values)?;
        self.tokens.join(tokens, drawn, inputs)?;
        let both = rows.values.chunks_exact(self.width()).flat_map(|row| [row, row].concat()).collect::<Vec<f32>>();
        inputs.keys_values = Some(self.shape.input(both.into()));
        inputs.want.keys_values = true;
        Ok(())
    }

    fn take_gradient(&self, values: &[Param], drawn: &Drawn, gradients: &mut Gradients) -> Result<Vec<Vec<f32>>> {
        let mut own = self.tokens.take_gradient(split(values)?.0, drawn, gradients)?;
        let of_both = gradients.of_pass.keys_values.take().unwrap_or_default();
        // What a row learns as a key and as a value.
        let of_row = |row: &[f32]| {
            let (key, value) = row.split_at(row.len() / 2);
            key.iter().zip(value).map(|(key, value)| key + value).collect::<Vec<f32>>()
        };
        own.push(of_both.chunks_exact(2 * self.width()).flat_map(of_row).collect());
        Ok(own)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vpt_backbone::{Backbone, OpenOptions};
    use vpt_base::random::stream;

    #[test]
    fn keys_and_values_fill_the_range_of_the_public_code() {
        let backbone = Backbone::open("clip-nano", &OpenOptions::default()).unwrap();
        let site = Site { backbone: &backbone, embeds: false, maps_labels: false, words: None };
        let depth = backbone.vit.depth();
        let shape = KeyValueShape { start: 0, layers: depth, tokens: 2, keys_values: 5 };
        let params = shape.build(&site).unwrap().init(&mut stream(1, "init", 0, 0)).unwrap();
        let width = backbone.vit.width();
        assert_eq!(params[0].shape, [depth, 2, width]);
        assert_eq!(params[1].shape, [depth, 5, width]);
        let bound = (6. / (5 * width / backbone.spec.vision.heads) as f32).sqrt();
        let largest = params[1].values.iter().fold(0f32, |a, v| a.max(v.abs()));
        assert!(largest <= bound && largest > 0.98 * bound, "{largest} and {bound}");
        assert!(KeyValueShape { layers: depth + 1, ..shape }.build(&site).is_err());
    }
}
