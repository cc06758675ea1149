//! The families of backbones, a file each: how a family's `config.json` says what a backbone is, with the defaults of
//! transformers 5.23 for the fields it lacks, and what its checkpoints call the tensors.
//!
//! To add a family, write its file and put it into [`FAMILIES`]; what the engine does, it asks the [`Spec`] for.

pub mod clip;
pub mod deit;
pub mod dinov2;
pub mod dinov2_with_registers;
pub mod dinov3;
pub mod mae;
pub(crate) mod native;
pub mod siglip;
pub mod timm;
pub mod vit;

use serde::{Serialize, Serializer};

use super::spec::{Fields, Spec};
use super::tensor_slot::TensorSlot;
use vpt_base::Result;
use vpt_image::preprocess::Preprocess;

/// Every family.
pub static FAMILIES: [&Family; 10] = [
    &clip::FAMILY,
    &vit::FAMILY,
    &deit::FAMILY,
    &mae::FAMILY,
    &dinov2::FAMILY,
    &dinov2_with_registers::FAMILY,
    &siglip::FAMILY,
    &siglip::NAFLEX,
    &dinov3::FAMILY,
    &timm::FAMILY,
];

/// The family whose `config.json` says this `model_type`.
pub fn by_model_type(model_type: &str) -> Option<&'static Family> {
    FAMILIES.into_iter().find(|family| family.model_types.contains(&model_type))
}

/// A family of backbones: how its configuration is read and what its tensors are called.
///
/// Names are those of the plain model of the family (`ViTModel`, `CLIPModel`), whatever class a checkpoint was saved from. Those
/// of layers and norms lack `.weight` and `.bias`. A name is empty where the family has no such tensor; its [`Spec`] then
/// does not ask for one.
#[derive(Clone, Copy)]
pub struct Family {
    /// What it is called in lists and messages. A family that is published in the form of another goes by that one's name.
    pub name: &'static str,
    /// What is done in another way than its authors do it, and a user should know; empty where there is nothing.
    pub note: &'static str,
    /// The `model_type`s of `config.json` that it is told by.
    pub model_types: &'static [&'static str],
    /// What a backbone is, by its configuration.
    pub(super) spec: fn(&Fields) -> Result<Spec>,
    /// How images of a side are prepared where no file says so; `None`: a guess could be silently wrong.
    pub(super) preprocess: Option<fn(usize) -> Preprocess>,
    /// Where the plain model's names begin in a checkpoint.
    pub(super) anchor: Anchor,
    /// The image tower.
    pub(super) vision: VisionNames,
    /// Tensors that its checkpoints hold in another form than the one that their names here stand for.
    pub(super) stored: &'static [StoredTensor],
    /// The linear layer that makes classes of images.
    pub(super) classifier: &'static str,
    /// What joins images and texts.
    pub(super) joint: JointNames,
}

/// A tensor that every checkpoint of a family has: what stands before its name in a file stands before all names.
#[derive(Debug, Clone, Copy)]
pub(super) struct Anchor {
    /// What the plain model's names of the image tower begin with. A checkpoint of that tower alone may lack it.
    pub(super) tower: &'static str,
    /// The rest of the tensor's name.
    pub(super) tensor: &'static str,
}

/// A tensor of a checkpoint that holds others.
#[derive(Debug, Clone, Copy)]
pub(super) struct StoredTensor {
    /// Its name, or the end of that.
    pub(super) name: &'static str,
    /// What it holds: the names, or ends of names that stand in the place of its own, and how it holds them.
    pub(super) holds: &'static [(&'static str, TensorSlot)],
}

/// A tensor that is no layer, with the number of its dimensions: the first ones of those beyond its own are 1.
#[derive(Debug, Clone, Copy)]
pub(super) struct TensorName {
    pub(super) name: &'static str,
    pub(super) dimensions: usize,
}

impl TensorName {
    /// Of a family without that tensor.
    pub(super) const NONE: Self = Self { name: "", dimensions: 0 };

    /// The shape of it in the checkpoint, where it would be `own` without dimensions of 1.
    pub(super) fn shape(&self, own: &[usize]) -> Vec<usize> {
        let ones = self.dimensions.saturating_sub(own.len());
        std::iter::repeat_n(1, ones).chain(own.iter().copied()).collect()
    }
}

/// The tensors of an image tower.
#[derive(Debug, Clone, Copy)]
pub(super) struct VisionNames {
    /// `[D]`.
    pub(super) class_token: TensorName,
    /// `[R, D]`.
    pub(super) registers: TensorName,
    /// `[prefix + G*G, D]`, see [`super::spec::Positions`].
    pub(super) positions: TensorName,
    /// The patch embedding, a convolution `[D, 3, p, p]`.
    pub(super) patch: &'static str,
    /// The norm before the first block.
    pub(super) pre_norm: &'static str,
    /// The blocks.
    pub(super) blocks: BlockNames,
    /// The norm behind the last block.
    pub(super) post_norm: &'static str,
    /// Attention pooling, where there is one.
    pub(super) attention_pool: Option<AttentionPoolNames>,
}

/// The tensors of attention pooling, see [`super::spec::Pool::Attention`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct AttentionPoolNames {
    /// The learned query, `[D]`.
    pub(super) query: TensorName,
    /// Queries, keys and values.
    pub(super) qkv: [&'static str; 3],
    /// The projection behind attention.
    pub(super) out: &'static str,
    /// The norm before the MLP.
    pub(super) norm: &'static str,
    /// The layers of the MLP.
    pub(super) mlp: [&'static str; 2],
}

/// The tensors of a transformer's blocks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BlockNames {
    /// What stands before the number of a block.
    pub(super) prefix: &'static str,
    /// The norm before attention.
    pub(super) norm1: &'static str,
    /// Queries, keys and values.
    pub(super) qkv: [&'static str; 3],
    /// The projection behind attention.
    pub(super) out: &'static str,
    /// The norm before the MLP.
    pub(super) norm2: &'static str,
    /// The layers of the MLP.
    pub(super) mlp: [&'static str; 2],
    /// Those of a gated MLP.
    pub(super) gated_mlp: GatedNames,
    /// The vectors `[D]` that the branches are multiplied by.
    pub(super) layer_scale: [&'static str; 2],
}

/// The layers of a gated MLP.
#[derive(Debug, Clone, Copy)]
pub(crate) struct GatedNames {
    /// What makes both halves of the hidden units, those behind the activation first: one layer, or one each.
    pub(super) halves: &'static [&'static str],
    /// The layer behind them.
    pub(super) out: &'static str,
}

impl GatedNames {
    /// Of a family without gated MLPs.
    pub(super) const NONE: Self = Self { halves: &[], out: "" };
}

impl BlockNames {
    /// The name of a tensor or layer of block `index`.
    pub(super) fn at(&self, index: usize, name: &str) -> String {
        format!("{}.{index}.{name}", self.prefix)
    }

    /// What the query, key and value layers of block `index` are called.
    pub(super) fn qkv_of(&self, index: usize) -> [String; 3] {
        self.qkv.map(|name| self.at(index, name))
    }
}

/// What joins images and texts.
#[derive(Debug, Clone, Copy)]
pub(super) struct JointNames {
    /// The projection of image features, `[E, D]`.
    pub(super) projection: &'static str,
    /// The logarithm of the factor between cosine and logit, a scalar.
    pub(super) logit_scale: &'static str,
    /// What is added to every logit, a scalar.
    pub(super) logit_bias: &'static str,
    /// The text tower.
    pub(super) text: Option<&'static TextNames>,
}

impl JointNames {
    /// Of a family without texts.
    pub(super) const NONE: Self = Self { projection: "", logit_scale: "", logit_bias: "", text: None };
}

/// The tensors of a text tower.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TextNames {
    /// Token embeddings `[vocab, D]`.
    pub(super) tokens: &'static str,
    /// Position embeddings `[context, D]`.
    pub(super) positions: &'static str,
    /// The blocks.
    pub(super) blocks: BlockNames,
    /// The norm behind the last block.
    pub(super) final_norm: &'static str,
    /// The projection of a text's features, `[E, D]`.
    pub(super) projection: &'static str,
    /// Its bias `[E]`, where it has one.
    pub(super) projection_bias: &'static str,
}

impl PartialEq for Family {
    /// No two families share a `model_type`.
    fn eq(&self, other: &Self) -> bool {
        self.model_types == other.model_types
    }
}

impl Eq for Family {}

impl std::fmt::Debug for Family {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.model_types[0])
    }
}

impl std::fmt::Display for Family {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

impl Serialize for Family {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.name.serialize(serializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_model_type_is_of_one_family() {
        for family in FAMILIES {
            for model_type in family.model_types {
                assert_eq!(by_model_type(model_type), Some(family));
            }
        }
        assert_eq!(by_model_type("swin"), None);
    }

    #[test]
    fn dimensions_of_one_stand_in_front() {
        let tensor = TensorName { name: "x", dimensions: 3 };
        assert_eq!((tensor.shape(&[5]), tensor.shape(&[4, 5])), (vec![1, 1, 5], vec![1, 4, 5]));
        assert_eq!(TensorName { dimensions: 1, ..tensor }.shape(&[5]), [5]);
    }
}
