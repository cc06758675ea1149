//! Weights of the backbone that a task tunes: its biases, its norms, all of them, or low-rank changes.
//!
//! | method | learned | source |
//! |---|---|---|
//! | bias | every bias of the image tower, shifts of norms included | the baseline of VPT (Jia et al., ECCV 2022); `BitFit` (Ben Zaken et al., ACL 2022) |
//! | norm | scale and shift of every layer norm of the image tower | Basu et al., AAAI 2024 ("Strong Baselines for Parameter-Efficient Few-Shot Fine-Tuning") |
//! | lora | `W + s B A` for queries, keys and values, `s = alpha / √r` | `LoRA` (Hu et al., ICLR 2022) as CLIP-LoRA (Zanella and Ben Ayed, CVPRW 2024) has it |
//! | full | every weight of the image tower | |
//!
//! Beside a head, which `lora` on a CLIP backbone does without: classes are told by their texts there.

use std::{
    borrow::Cow,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rand::{Rng, RngCore};
use serde::{Deserialize, Serialize};

use super::part::{Draw, Drawn, FileTensors, Gradients, Inputs, Kind, Part, Site, TensorShape, Work};
use vpt_backbone::{
    clip::{VISUAL_PROJECTION, product},
    text::TunedTexts,
    vit::{OwnWeights, Tune, Tuned},
};
use vpt_base::{
    Error, Message, Result,
    choice::choice,
    params::{self, Group, Param},
    tensor_file,
};
use vpt_kernel::{Init, Mat, MatMut, Panels, matmul};

/// What the names of tuned weights begin with in task files and checkpoints; the name in the backbone follows.
pub const PREFIX: &str = "backbone.";
/// The factors of a low-rank change behind the name of their layer.
pub(crate) const FACTORS: [&str; 2] = ["lora_A", "lora_B"];
/// Larger than any low-rank change makes sense with; bounds what a crafted file can make us allocate.
pub const MAX_RANK: usize = 1024;

choice! {
    /// Which towers have low-rank changes.
    pub enum LoraTowers for "lora_towers" {
        /// The image tower.
        Image = "image",
        /// CLIP's text tower.
        Text = "text",
        /// Both.
        Both = "both",
    }
}

impl LoraTowers {
    /// Whether the image tower has.
    pub fn image(self) -> bool {
        self != Self::Text
    }

    /// Whether the text tower has.
    pub fn text(self) -> bool {
        self != Self::Image
    }
}

/// Which weights are tuned: kind and place, not the values.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "tuned")]
pub enum WeightShape {
    /// Every bias of the image tower.
    Bias,
    /// Scales and shifts of every layer norm of the image tower.
    Norm,
    /// Every weight of the image tower.
    Full,
    /// Low-rank changes to queries, keys and values.
    Lora(LoraShape),
}

/// Low-rank changes to queries, keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoraShape {
    /// Rank r of a change.
    pub rank: usize,
    /// Its factor is `alpha / √r`.
    pub alpha: f32,
    /// Where they are.
    pub towers: LoraTowers,
    /// Whether classes are told by their texts; else by a head that is learned.
    pub texts: bool,
}

impl LoraShape {
    /// The factor on `B A`.
    pub fn scale(&self) -> f32 {
        self.alpha / (self.rank as f32).sqrt()
    }

    /// Fails where values make no sense, or the towers do not go with the way classes are told.
    pub fn check(&self) -> Result<()> {
        if self.rank == 0 || self.rank > MAX_RANK {
            return Err(Error::setting("lora_rank", format!("{} is not between 1 and {MAX_RANK}", self.rank)));
        }
        if !(self.alpha.is_finite() && self.alpha > 0.) {
            return Err(Error::setting("lora_alpha", format!("{} is not a number above 0", self.alpha)));
        }
        if self.towers.text() && !self.texts {
            let message = format!("{} changes texts, which a head of its own does not read; take image", self.towers);
            return Err(Error::setting("lora_towers", message));
        }
        Ok(())
    }
}

impl WeightShape {
    /// The low-rank changes, if these are the kind.
    pub fn lora(&self) -> Option<LoraShape> {
        match self {
            Self::Lora(shape) => Some(*shape),
            _ => None,
        }
    }

    /// Whether weights of the image tower are tuned.
    pub fn tunes_images(&self) -> bool {
        self.lora().is_none_or(|shape| shape.towers.image())
    }

    /// Those of the learned `values` that are of the backbone, by the names that they have there.
    pub(crate) fn own_weights<'a>(&self, values: &'a [Param]) -> OwnWeights<'a> {
        let named = values.iter().filter_map(|param| Some((param.name.strip_prefix(PREFIX)?, &*param.values)));
        OwnWeights { values: named.collect(), low_rank_scale: self.lora().map_or(0., |lora| lora.scale()) }
    }

    /// Whether classes are told by their texts and there is no head to learn.
    pub fn told_by_texts(&self) -> bool {
        self.lora().is_some_and(|shape| shape.texts)
    }
}

impl Kind for WeightShape {
    fn build(&self, site: &Site) -> Result<Arc<dyn Part>> {
        Ok(Arc::new(WeightTuning::new(*self, site)?))
    }

    /// In the order of their names; which they must be only the backbone can tell.
    fn take(&self, tensors: &mut FileTensors, path: &Path) -> Result<Vec<Param>> {
        let mut names: Vec<String> = tensors.keys().filter(|name| name.starts_with(PREFIX)).cloned().collect();
        names.sort();
        let lora = self.lora();
        if let Some(lora) = lora {
            lora.check().map_err(|error| Error::task_file(path, Message::from("task metadata: ").text(error)))?;
        }
        let take = |name: &String| {
            let shape = tensors.get(name).map(|t| t.shape.clone()).unwrap_or_default();
            let group = if lora.is_some() { Group::Part(0) } else { group(name, &shape) };
            Param::new(name, &shape, tensor_file::take(tensors, name, &shape, path)?, group)
        };
        names.iter().map(take).collect()
    }

    fn describe(&self) -> String {
        match self {
            Self::Bias => "the biases of the image tower are tuned".to_owned(),
            Self::Norm => "scales and shifts of the layer norms of the image tower are tuned".to_owned(),
            Self::Full => "every weight of the image tower is tuned".to_owned(),
            Self::Lora(lora) => {
                let towers = match lora.towers {
                    LoraTowers::Both => "both towers".to_owned(),
                    towers => format!("the {towers} tower"),
                };
                let (rank, scale) = (lora.rank, lora.scale());
                format!("changes of rank {rank} to queries, keys and values of {towers}, times {scale:.4}")
            }
        }
    }

    fn changes_features(&self) -> bool {
        self.tunes_images()
    }

    fn add_work(&self, _: usize, _: usize, work: &mut Work) {
        work.weights = Some(*self);
    }
}

/// Tuned weights of a backbone; the values are passed in, as everywhere. The packed towers that they make are kept from call
/// to call, and only what has changed is packed again.
#[derive(Debug)]
pub(crate) struct WeightTuning {
    shape: WeightShape,
    towers: Mutex<Towers>,
    /// Of the image tower, its projection, the text tower.
    tensors: Vec<TensorShape>,
}

/// The towers that the values of the last call made.
#[derive(Debug)]
pub(crate) struct Towers {
    image: Option<Tuned>,
    projection: Option<Projection>,
    texts: Option<TunedTexts>,
}

/// CLIP's projection of image features, tuned with the tower where the head reads what it makes.
pub(crate) struct Projection {
    /// `[E, D]`.
    weight: Vec<f32>,
    /// `[D, E]`.
    packed: Panels,
}

impl Projection {
    fn new(weight: Vec<f32>, width: usize) -> Self {
        let rows = weight.len() / width;
        Self { packed: Panels::pack(Mat::new(&weight, rows, width, width).t()), weight }
    }

    /// The embeddings `[m, E]` that class tokens `[m, D]` stand for.
    pub(crate) fn project(&self, tokens: &[f32]) -> Vec<f32> {
        product(tokens, &self.packed)
    }

    /// Gradients of the tokens `[m, D]` and of the weight, from those of the embeddings `[m, E]`.
    pub(crate) fn vjp(&self, tokens: &[f32], gradient: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let (d, e) = (self.packed.k(), self.packed.n());
        let rows = tokens.len() / d;
        let mut of_weight = vec![0.; e * d];
        let inputs = Panels::pack(Mat::new(tokens, rows, d, d));
        matmul(Mat::new(gradient, rows, e, e).t(), &inputs, MatMut::new(&mut of_weight, e, d, d), Init::Zero);
        (product(gradient, self.packed.t()), of_weight)
    }
}

impl std::fmt::Debug for Projection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Projection {{ weight: {} }}", self.weight.len())
    }
}

impl WeightTuning {
    /// The weights of `backbone` that `shape` names, its projection included where the head reads embeddings.
    ///
    /// # Errors
    /// The shape makes no sense, or the backbone does not have them.
    pub(crate) fn new(shape: WeightShape, site: &Site) -> Result<Self> {
        let backbone = site.backbone;
        let tune = match shape {
            WeightShape::Bias => Tune::Biases,
            WeightShape::Norm => Tune::Norms,
            WeightShape::Full => Tune::All,
            WeightShape::Lora(lora) => {
                lora.check()?;
                Tune::LowRank { rank: lora.rank, scale: lora.scale() }
            }
        };
        let image = shape.tunes_images().then(|| backbone.tuned(tune)).transpose()?;
        let texts = shape.lora().filter(|lora| lora.towers.text());
        let texts = texts.map(|lora| backbone.tuned_texts(lora.rank, lora.scale())).transpose()?;
        let width = backbone.vit.width();
        let projects = site.embeds && backbone.spec.projection.is_some() && shape == WeightShape::Full;
        let projection = projects.then(|| backbone.visual_projection()).transpose()?;
        let mut tensors = image.iter().flat_map(|image| image.tensors().to_vec()).collect::<Vec<_>>();
        tensors.extend(projection.iter().map(|p| (VISUAL_PROJECTION.to_owned(), vec![p.len() / width, width])));
        tensors.extend(texts.iter().flat_map(TunedTexts::tensors));
        for (name, _) in &mut tensors {
            name.insert_str(0, PREFIX);
        }
        let projection = projection.map(|weight| Projection::new(weight, width));
        Ok(Self { shape, towers: Mutex::new(Towers { image, projection, texts }), tensors })
    }

    /// Whether weights of the text tower are tuned.
    pub(crate) fn tunes_texts(&self) -> bool {
        self.shape.lora().is_some_and(|lora| lora.towers.text())
    }

    /// `values`, one for each of the tensors, where channels are dropped: the factors A without their columns. So the change
    /// to a weight is what it would be if these channels were zero for every row, and the gradient of A goes the same way.
    fn masked<'a>(&self, values: Vec<Cow<'a, [f32]>>, drawn: &Drawn) -> Vec<Cow<'a, [f32]>> {
        let Some(mask) = drawn.mask() else { return values };
        let mut from = 0;
        let masked = |((name, shape), values): (&TensorShape, Cow<'a, [f32]>)| {
            if !is_mask_for(name) {
                return values;
            }
            let at = from;
            from += shape[1];
            values.chunks_exact(shape[1]).flat_map(|row| mask.apply_from(at, row)).collect::<Vec<_>>().into()
        };
        self.tensors.iter().zip(values).map(masked).collect()
    }

    /// The gradients of the first tensors, as many as there are, from those of what a mask has left of their values.
    pub(crate) fn unmask(&self, gradients: Vec<Vec<f32>>, drawn: &Drawn) -> Vec<Vec<f32>> {
        let gradients = gradients.into_iter().map(Cow::Owned).collect();
        self.masked(gradients, drawn).into_iter().map(Cow::into_owned).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Towers> {
        self.towers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The towers that `values` make.
    ///
    /// # Errors
    /// They are not the values of these weights.
    pub(crate) fn towers(&self, values: &[Param], drawn: &Drawn, threads: usize) -> Result<MutexGuard<'_, Towers>> {
        params::check(values, &self.tensors)?;
        let values = self.masked(values.iter().map(|param| Cow::from(&param.values)).collect(), drawn);
        let lookup = |name: &str| {
            let at = self.tensors.iter().position(|(own, _)| own.strip_prefix(PREFIX) == Some(name));
            at.map(|at| &*values[at]).ok_or_else(|| Error::invalid(name, "is not among the learned weights"))
        };
        let mut towers = self.lock();
        if let Some(image) = &mut towers.image {
            image.set(&lookup, threads)?;
        }
        if let Some(texts) = &mut towers.texts {
            texts.set(&lookup, threads)?;
        }
        if let Some(projection) = &mut towers.projection {
            let weight = lookup(VISUAL_PROJECTION)?;
            if projection.weight != weight {
                *projection = Projection::new(weight.to_vec(), weight.len() / projection.packed.n());
            }
        }
        Ok(towers)
    }
}

/// Whether dropout is for the columns of the tensor `name`.
fn is_mask_for(name: &str) -> bool {
    name.ends_with(FACTORS[0])
}

impl Part for WeightTuning {
    fn tensors(&self) -> &[TensorShape] {
        &self.tensors
    }

    /// The weights as they are, and fresh low-rank changes.
    fn init(&self, mut rng: &mut dyn RngCore) -> Result<Vec<Param>> {
        if self.shape.lora().is_some() {
            return self.tensors.iter().map(|(name, shape)| init_factor(name, shape, &mut rng)).collect();
        }
        let mut towers = self.lock();
        let mut values = towers.image.as_mut().map(Tuned::values).transpose()?.unwrap_or_default();
        values.extend(towers.projection.as_ref().map(|projection| projection.weight.clone()));
        let param = |((name, shape), values): (&TensorShape, _)| Param::new(name, shape, values, group(name, shape));
        self.tensors.iter().zip(values).map(param).collect()
    }

    /// Channels that go into low-rank changes.
    fn draw(&self, draw: &Draw) -> Drawn {
        draw.mask(self.tensors.iter().filter(|(name, _)| is_mask_for(name)).map(|(_, shape)| shape[1]).sum())
    }

    fn outline<'a>(&'a self, inputs: &mut Inputs<'a>) {
        inputs.want.weights = true;
        inputs.towers = Some(self.lock());
    }

    fn join<'a>(&'a self, values: &'a [Param], drawn: &Drawn, inputs: &mut Inputs<'a>) -> Result<()> {
        inputs.want.weights = true;
        inputs.towers = Some(self.towers(values, drawn, inputs.threads)?);
        Ok(())
    }

    fn take_gradient(&self, _: &[Param], drawn: &Drawn, gradients: &mut Gradients) -> Result<Vec<Vec<f32>>> {
        let mut own = gradients.of_pass.weights.take().unwrap_or_default();
        own.extend(gradients.of_projection.take());
        Ok(self.unmask(own, drawn))
    }
}

impl Towers {
    /// The image tower, if it is tuned.
    pub(crate) fn image(&self) -> Option<&Tuned> {
        self.image.as_ref()
    }

    /// The text tower, if it is tuned.
    pub(crate) fn texts(&self) -> Option<&TunedTexts> {
        self.texts.as_ref()
    }

    /// The projection, if it is tuned with the image tower.
    pub(crate) fn projection(&self) -> Option<&Projection> {
        self.projection.as_ref()
    }
}

/// Fresh factors of a low-rank change, as `LoRA` begins: A `[r, D]` uniform within `1/√D`, B `[D, r]` zero.
fn init_factor(name: &str, shape: &[usize], rng: &mut impl Rng) -> Result<Param> {
    let values = if name.ends_with(FACTORS[0]) {
        let bound = (shape[1] as f32).powf(-0.5);
        (0..shape.iter().product()).map(|_| rng.random_range(-bound..bound)).collect()
    } else {
        vec![0.; shape.iter().product()]
    };
    Param::new(name, shape, values, Group::Part(0))
}

/// Whether weight decay is for this weight of a backbone: matrices, but not what is added to tokens.
fn group(name: &str, shape: &[usize]) -> Group {
    let added = name.contains("embeddings.") && !name.contains("patch_embedding");
    if added || shape.iter().filter(|&&n| n > 1).count() < 2 { Group::PartBias(0) } else { Group::Part(0) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vpt_base::random::stream;

    #[test]
    fn factors_begin_as_no_change_within_their_bound() {
        let rng = &mut stream(1, "lora", 0, 0);
        let a = init_factor("x.lora_A", &[4, 400], rng).unwrap();
        let largest = a.values.iter().fold(0_f32, |a, v| a.max(v.abs()));
        assert!(largest <= 0.05 && largest > 0.049, "{largest}");
        assert!(init_factor("x.lora_B", &[400, 4], rng).unwrap().values.iter().all(|&v| v == 0.));
    }

    #[test]
    fn matrices_decay_and_nothing_else_does() {
        for (name, shape, decays) in [
            ("backbone.encoder.layer.0.attention.attention.query.weight", &[8, 8][..], true),
            ("backbone.embeddings.patch_embeddings.projection.weight", &[8, 3, 2, 2], true),
            ("backbone.embeddings.position_embeddings", &[1, 5, 8], false),
            ("backbone.embeddings.cls_token", &[1, 1, 8], false),
            ("backbone.vision_model.embeddings.position_embedding.weight", &[5, 8], false),
            ("backbone.encoder.layer.0.layer_scale1.lambda1", &[8], false),
            ("backbone.layernorm.weight", &[8], false),
        ] {
            assert_eq!(group(name, shape) == Group::Part(0), decays, "{name}");
        }
    }

    #[test]
    fn shapes_that_make_no_sense_are_refused() {
        let shape = LoraShape { rank: 2, alpha: 1., towers: LoraTowers::Both, texts: true };
        assert!(shape.check().is_ok() && (shape.scale() - 0.5_f32.sqrt()).abs() < 1e-6);
        for (bad, flag) in [
            (LoraShape { rank: 0, ..shape }, "lora_rank"),
            (LoraShape { rank: MAX_RANK + 1, ..shape }, "lora_rank"),
            (LoraShape { alpha: f32::NAN, ..shape }, "lora_alpha"),
            (LoraShape { alpha: 0., ..shape }, "lora_alpha"),
            (LoraShape { texts: false, ..shape }, "lora_towers"),
        ] {
            assert!(bad.check().unwrap_err().to_string().starts_with(flag), "{bad:?}");
        }
    }
}
