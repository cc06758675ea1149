//! Learned vectors in the texts that name the classes, and what some methods learn beside them.
//!
//! | method | vectors | beside them |
//! |---|---|---|
//! | CoOp (Zhou et al., IJCV 2022) | in the place of words | nothing |
//! | CoCoOp (Zhou et al., CVPR 2022) | the same | a small network of the image's embedding that shifts them |
//! | IVLP (Rasheed et al., CVPR 2023), PromptSRC (Khattak et al., ICCV 2023) | fresh ones in several blocks | prompt tokens of the image tower |
//! | MaPLe (Khattak et al., CVPR 2023) | fresh ones in several blocks | a linear map of each block's vectors to the image tower's |
//!
//! A class is the text "vectors, name, full stop"; images are told apart by the cosine to these texts.

use std::{path::Path, sync::Arc};

use candle_core::{Device, Tensor, Var};
use rand::{Rng, RngCore};
use serde::{Deserialize, Serialize};

use super::{
    part::{Drawn, FileTensors, Gradients, Inputs, Kind, OpenTensor, Part, Site, TensorShape, Work, take_open},
    tokens::{self, TokenLayout},
};
use vpt_backbone::Backbone;
use vpt_base::candle::Fault;
use vpt_base::{
    Error, Result,
    params::{self, Group, Param},
    random::normal,
};

/// Standard deviation of vectors that begin as no words, as in CoOp and MaPLe; about that of CLIP's own words.
const STD: f32 = 0.02;
/// The meta-network's hidden units are this part of its inputs.
const META_SHARE: usize = 16;

/// The learned vectors, in the order text, beside: names in files.
const TEXT: &str = "prompt.text";
const TOKENS: &str = tokens::NAME;
const MAP: [&str; 2] = ["prompt.map.weight", "prompt.map.bias"];
const META: [&str; 4] =
    ["prompt.meta.fc1.weight", "prompt.meta.fc1.bias", "prompt.meta.fc2.weight", "prompt.meta.fc2.bias"];

/// Where text vectors are, how many, and what is learned beside them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextShape {
    /// Vectors in the text of a class.
    pub tokens: usize,
    /// Blocks of the text tower that get vectors of their own, from the first on; 1: the input only.
    pub layers: usize,
    /// What is learned beside them.
    pub beside: Beside,
}

/// What is learned beside the vectors of the texts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Beside {
    /// Nothing.
    Nothing,
    /// A network that shifts the vectors by what is in the image.
    MetaNet,
    /// Prompt tokens of the image tower.
    Tokens(TokenLayout),
    /// Maps of each block's vectors to prompt tokens of the image tower.
    Map,
}

/// Widths of the backbone that learned tensors depend on.
#[derive(Debug, Clone, Copy)]
struct Widths {
    /// Of a token of the text tower.
    text: usize,
    /// Of a token of the image tower.
    image: usize,
    /// Of an embedding.
    embedding: usize,
}

impl Kind for TextShape {
    fn build(&self, site: &Site) -> Result<Arc<dyn Part>> {
        Ok(Arc::new(TextVectors::new(*self, site.backbone, site.words)?))
    }

    fn take(&self, tensors: &mut FileTensors, path: &Path) -> Result<Vec<Param>> {
        take_open(self.tensors(), tensors, path)
    }

    fn describe(&self) -> String {
        let Self { tokens, layers, beside } = *self;
        let vectors = match layers {
            1 => format!("{tokens} vectors in the texts of the classes"),
            _ => format!("{tokens} vectors in the texts of the classes, in each of the first {layers} blocks"),
        };
        match beside {
            Beside::Nothing => vectors,
            Beside::MetaNet => format!("{vectors}; a network that shifts them by the image"),
            Beside::Map => format!("{vectors}, mapped to tokens of the image tower"),
            Beside::Tokens(layout) => format!("{vectors}; in the image tower {}", layout.describe()),
        }
    }

    fn changes_features(&self) -> bool {
        self.image_tokens().is_some()
    }

    fn add_work(&self, _: usize, _: usize, work: &mut Work) {
        work.tokens = self.image_tokens();
    }
}

/// Learned vectors in texts, and what is learned beside them; the values are passed in.
#[derive(Debug)]
struct TextVectors {
    shape: TextShape,
    widths: Widths,
    /// Embeddings `[k, D]` of the words that the vectors begin as.
    words: Option<Vec<f32>>,
    tensors: Vec<TensorShape>,
}

impl TextVectors {
    fn new(shape: TextShape, backbone: &Backbone, words: Option<&[f32]>) -> Result<Self> {
        let text = backbone.text_spec()?;
        if shape.layers == 0 || shape.layers > text.tower.depth {
            let message = format!("{} blocks of a text tower that has {}", shape.layers, text.tower.depth);
            return Err(Error::setting("prompt_layers", message));
        }
        if let Some(layout) = shape.image_tokens() {
            layout.check(backbone.vit.depth())?;
        }
        let widths = Widths { text: text.tower.width, image: backbone.vit.width(), embedding: text.projection };
        let tensors = shape.tensors_on(widths).into_iter().map(|(name, shape)| (name.to_owned(), shape));
        Ok(Self { shape, widths, words: words.map(<[f32]>::to_vec), tensors: tensors.collect() })
    }
}

impl Part for TextVectors {
    fn tensors(&self) -> &[TensorShape] {
        &self.tensors
    }

    fn init(&self, mut rng: &mut dyn RngCore) -> Result<Vec<Param>> {
        self.shape.init(self.widths, self.words.as_deref(), &mut rng)
    }

    fn outline<'a>(&'a self, inputs: &mut Inputs<'a>) {
        if let Some(layout) = self.shape.image_tokens() {
            inputs.tokens = Some((layout, Vec::new().into()));
            inputs.want.tokens = true;
        }
    }

    fn join<'a>(&'a self, values: &'a [Param], _: &Drawn, inputs: &mut Inputs<'a>) -> Result<()> {
        self.outline(inputs);
        if let (Some(layout), Some(made)) = (self.shape.image_tokens(), image_tokens(&self.shape, values)?) {
            inputs.tokens = Some((layout, made.values.into()));
        }
        Ok(())
    }

    /// Of what the image tower's prompts are made of; what texts teach the vectors comes from elsewhere. Empty where no
    /// image tower's prompt has a part in it.
    fn take_gradient(&self, values: &[Param], _: &Drawn, gradients: &mut Gradients) -> Result<Vec<Vec<f32>>> {
        let mut own = match image_tokens(&self.shape, values)? {
            Some(made) => chain(&made.vars, &made.tokens, gradients.of_pass.tokens.take().unwrap_or_default())?,
            None => Vec::new(),
        };
        if self.shape.beside != Beside::Map {
            own.insert(0, Vec::new());
        }
        own.resize(self.tensors.len(), Vec::new());
        Ok(own)
    }
}

impl TextShape {
    /// The prompt tokens that the image tower gets.
    pub fn image_tokens(&self) -> Option<TokenLayout> {
        match self.beside {
            Beside::Tokens(layout) => Some(layout),
            Beside::Map => Some(TokenLayout { start: 0, layers: self.layers, tokens: self.tokens }),
            Beside::Nothing | Beside::MetaNet => None,
        }
    }

    /// Whether the texts of the classes make a head, which task files keep: not where each image makes its own.
    pub fn keeps_head(&self) -> bool {
        self.beside != Beside::MetaNet
    }

    /// Name and shape of every learned tensor; a dimension that depends on the backbone is `None`.
    fn tensors(&self) -> Vec<OpenTensor> {
        let Self { tokens, layers, beside } = *self;
        let mut tensors = vec![(TEXT, vec![Some(layers), Some(tokens), None])];
        match beside {
            Beside::Nothing => {}
            Beside::MetaNet => {
                tensors.extend(META.into_iter().zip([vec![None; 2], vec![None], vec![None; 2], vec![None]]));
            }
            Beside::Tokens(layout) => tensors.push((TOKENS, vec![Some(layout.layers), Some(layout.tokens), None])),
            Beside::Map => {
                tensors.extend(MAP.into_iter().zip([vec![Some(layers), None, None], vec![Some(layers), None]]));
            }
        }
        tensors
    }

    /// Name and shape of every learned tensor on a backbone of these widths.
    fn tensors_on(&self, widths: Widths) -> Vec<(&'static str, Vec<usize>)> {
        let Widths { text, image, embedding } = widths;
        let hidden = (embedding / META_SHARE).max(1);
        let open: &[&[usize]] = match self.beside {
            Beside::Nothing => &[&[text]],
            Beside::MetaNet => &[&[text], &[hidden, embedding], &[hidden], &[text, hidden], &[text]],
            Beside::Tokens(_) => &[&[text], &[image]],
            Beside::Map => &[&[text], &[image, text], &[image]],
        };
        let fill = |shape: Vec<Option<usize>>, open: &[usize]| {
            let mut open = open.iter().copied();
            shape.into_iter().map(|n| n.or_else(|| open.next()).unwrap_or(0)).collect()
        };
        self.tensors().into_iter().zip(open).map(|((name, shape), open)| (name, fill(shape, open))).collect()
    }

    /// Fresh values: the vectors at the input are the embeddings `words` `[k, D]`, k at least their number, if there are any;
    /// all else is drawn: vectors and prompt tokens from N(0, .02²), layers as PyTorch does, uniform in ±1/√inputs.
    fn init(&self, widths: Widths, words: Option<&[f32]>, rng: &mut impl Rng) -> Result<Vec<Param>> {
        let mut inputs = 1;
        let mut made = Vec::new();
        for (name, shape) in self.tensors_on(widths) {
            let len = shape.iter().product();
            let values = if name == TEXT || name == TOKENS {
                (0..len).map(|_| STD * normal(rng)).collect()
            } else {
                // A bias follows its weight.
                inputs = if name.ends_with("weight") { shape[shape.len() - 1] } else { inputs };
                let bound = (inputs as f32).powf(-0.5);
                (0..len).map(|_| rng.random_range(-bound..bound)).collect()
            };
            made.push(Param::new(name, &shape, values, Group::Part(0))?);
        }
        for (value, word) in made[0].values.iter_mut().take(self.tokens * widths.text).zip(words.unwrap_or_default()) {
            *value = *word;
        }
        Ok(made)
    }
}

/// The vectors of the texts `[layers, n, D]` among the learned values.
pub(crate) fn vectors(params: &[Param]) -> Result<&Param> {
    params::find(params, TEXT)
}

/// Weights and biases of the meta-network among the learned values, in their order.
pub(crate) fn network(params: &[Param]) -> Result<[&Param; 4]> {
    let [a, b, c, d] = META.map(|name| params::find(params, name));
    Ok([a?, b?, c?, d?])
}

/// Prompt tokens of the image tower, `[layers, P, D]`, and what they are made of.
struct ImageTokens {
    values: Vec<f32>,
    /// The variables whose gradients [`chain`] gives.
    vars: Vec<Var>,
    /// The values again, made of the variables.
    tokens: Tensor,
}

/// The image tower's prompt tokens among the learned values, or made of them.
fn image_tokens(shape: &TextShape, params: &[Param]) -> Result<Option<ImageTokens>, Fault> {
    let names: &[&str] = match shape.beside {
        Beside::Nothing | Beside::MetaNet => return Ok(None),
        Beside::Tokens(_) => &[TOKENS],
        Beside::Map => &[TEXT, MAP[0], MAP[1]],
    };
    let vars = variables(params, names)?;
    let tokens = match vars.as_slice() {
        [vectors, weight, bias] => {
            vectors.matmul(&weight.transpose(1, 2)?.contiguous()?)?.broadcast_add(&bias.unsqueeze(1)?)?
        }
        vars => vars[0].as_tensor().clone(),
    };
    Ok(Some(ImageTokens { values: tokens.flatten_all()?.to_vec1()?, vars, tokens }))
}

/// The shift `[m, D]` of the vectors by the meta-network: two linear layers with a rectifier between them, of the unit embeddings `[m, E]`
/// of m images; and the variables behind it.
pub(crate) fn shifts(params: &[Param], embeds: &[f32]) -> Result<(Vec<Var>, Tensor), Fault> {
    let vars = variables(params, &META)?;
    let width = vars[0].dim(1)?;
    let embeds = Tensor::from_slice(embeds, (embeds.len() / width, width), &Device::Cpu)?;
    let hidden = embeds.matmul(&vars[0].t()?)?.broadcast_add(&vars[1])?.relu()?;
    let shifts = hidden.matmul(&vars[2].t()?)?.broadcast_add(&vars[3])?;
    Ok((vars, shifts))
}

/// The gradients of `vars` from the gradient of `made`, which was made of them.
pub(crate) fn chain(vars: &[Var], made: &Tensor, gradient: Vec<f32>) -> Result<Vec<Vec<f32>>, Fault> {
    let gradient = Tensor::from_vec(gradient, made.shape(), &Device::Cpu)?;
    let gradients = (made * gradient)?.sum_all()?.backward()?;
    let flat = |var: &Var| match gradients.get(var) {
        Some(gradient) => Ok(gradient.flatten_all()?.to_vec1()?),
        None => Ok(vec![0.; var.elem_count()]),
    };
    vars.iter().map(flat).collect()
}

fn variables(params: &[Param], names: &[&str]) -> Result<Vec<Var>, Fault> {
    let var = |name: &&str| {
        let param = params::find(params, name)?;
        Ok(Var::from_slice(&param.values, param.shape.as_slice(), &Device::Cpu)?)
    };
    names.iter().map(var).collect()
}
