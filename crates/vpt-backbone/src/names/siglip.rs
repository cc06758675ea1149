//! SigLIP (Zhai et al. 2023) and SigLIP 2 (Tschannen et al. 2025): both towers, or the image tower published on its own. No
//! class token: attention with a learned query pools the patches.
//!
//! Both generations at fixed sizes are `siglip`. `siglip2` are the models that see images at their own aspect ratio (NaFlex), read
//! here as what they are for square images: a grid of all their positions.

use super::{
    Anchor, AttentionPoolNames, BlockNames, Family, JointNames, StoredTensor, TensorName, TextNames, VisionNames, clip,
};
use crate::spec::{
    Fields, MAX_CONTEXT, MAX_MLP, MAX_PATCHES, MAX_VOCAB, MlpWidth, Pool, Positions, Resampling, Spec, TextPool,
    TextSpec,
};
use crate::tensor_slot::TensorSlot;
use vpt_base::Result;
use vpt_image::preprocess::Preprocess;

/// The family at fixed sizes.
pub static FAMILY: Family = Family {
    name: "siglip",
    note: "",
    model_types: &["siglip", "siglip_vision_model"],
    spec: |root| spec(root, &FAMILY),
    // Every SigLIP is prepared alike.
    preprocess: Some(Preprocess::siglip),
    anchor: ANCHOR,
    vision: NAMES,
    stored: &STORED,
    classifier: "classifier",
    joint: JOINT,
};

/// The family for images of any aspect ratio.
pub static NAFLEX: Family = Family {
    name: "siglip2",
    note: "images that are not square become so here, where the model was made for their own aspect ratio",
    model_types: &["siglip2", "siglip2_vision_model"],
    spec: |root| spec(root, &NAFLEX),
    preprocess: Some(Preprocess::siglip_naflex),
    anchor: ANCHOR,
    vision: NAMES,
    stored: &[],
    classifier: "classifier",
    joint: JOINT,
};

/// The text tower has no tensor of this name, CLIP no such bias.
const ANCHOR: Anchor = Anchor { tower: "vision_model.", tensor: "embeddings.patch_embedding.bias" };

const NAMES: VisionNames = VisionNames {
    class_token: TensorName::NONE,
    pre_norm: "",
    attention_pool: Some(AttentionPoolNames {
        query: TensorName { name: "vision_model.head.probe", dimensions: 3 },
        qkv: [
            "vision_model.head.attention.q_proj",
            "vision_model.head.attention.k_proj",
            "vision_model.head.attention.v_proj",
        ],
        out: "vision_model.head.attention.out_proj",
        norm: "vision_model.head.layernorm",
        mlp: ["vision_model.head.mlp.fc1", "vision_model.head.mlp.fc2"],
    }),
    blocks: BlockNames { prefix: "vision_model.encoder.layers", ..clip::BLOCKS },
    ..clip::NAMES
};

/// Image features have no projection: attention pooling makes what texts are held against.
const JOINT: JointNames =
    JointNames { projection: "", logit_scale: "logit_scale", logit_bias: "logit_bias", text: Some(&TEXT) };

static TEXT: TextNames =
    TextNames { projection: "text_model.head.weight", projection_bias: "text_model.head.bias", ..clip::TEXT_NAMES };

/// torch's attention has the three layers of the pooling in one; NaFlex has its patches' layer with channels last.
static STORED: [StoredTensor; 3] = [
    StoredTensor {
        name: "head.attention.in_proj_weight",
        holds: &[
            ("head.attention.q_proj.weight", TensorSlot::Third(0)),
            ("head.attention.k_proj.weight", TensorSlot::Third(1)),
            ("head.attention.v_proj.weight", TensorSlot::Third(2)),
        ],
    },
    StoredTensor {
        name: "head.attention.in_proj_bias",
        holds: &[
            ("head.attention.q_proj.bias", TensorSlot::Third(0)),
            ("head.attention.k_proj.bias", TensorSlot::Third(1)),
            ("head.attention.v_proj.bias", TensorSlot::Third(2)),
        ],
    },
    StoredTensor {
        name: "embeddings.patch_embedding.weight",
        holds: &[("embeddings.patch_embedding.weight", TensorSlot::PatchRows)],
    },
];

fn spec(root: &Fields, family: &'static Family) -> Result<Spec> {
    let both = matches!(root.text("model_type")?, Some("siglip" | "siglip2"));
    if !both {
        return image_tower(root, family);
    }
    let images = image_tower(&root.section("vision_config", "vision_config.")?, family)?;
    // A classifier is saved with what its model is made of, and without the texts.
    let classifier = root.names_architecture("SiglipForImageClassification")
        || root.names_architecture("Siglip2ForImageClassification");
    if classifier {
        return Ok(images);
    }
    let text = text_tower(&root.section("text_config", "text_config.")?, images.vision.width)?;
    Ok(Spec { text: Some(text), ..images })
}

/// The text tower beside images of this `width`.
fn text_tower(f: &Fields, width: usize) -> Result<TextSpec> {
    let tower = f.tower((768, 12, 12), "gelu_pytorch_tanh", 1e-6, &MlpWidth::Size(3072))?;
    let projection = f.size("projection_size", Some(tower.width), MAX_MLP)?;
    if projection != width {
        let message = format!("texts of width {projection} beside images of width {width}");
        return Err(f.error("projection_size", &message));
    }
    let context = f.size("max_position_embeddings", Some(64), MAX_CONTEXT)?;
    if context < 3 {
        return Err(f.error("max_position_embeddings", "must be at least 3: end token and two more"));
    }
    Ok(TextSpec {
        tower,
        causal: false,
        vocab: f.size("vocab_size", Some(32000), MAX_VOCAB)?,
        context,
        pool: TextPool::LastPosition,
        // What the configuration says is CLIP's and was never right.
        eos_token_id: 1,
        projection,
        projection_bias: true,
    })
}

fn image_tower(f: &Fields, family: &'static Family) -> Result<Spec> {
    let naflex = *family == NAFLEX;
    let (image_size, patch_size) = if naflex { naflex_sizes(f)? } else { f.image_and_whole_patches(224, 16)? };
    let pool = if f.flag("vision_use_head", true)? { Pool::Attention } else { Pool::Mean };
    let resampling = if naflex { Resampling::AntialiasedBilinear } else { Resampling::Bicubic };
    Ok(Spec {
        family,
        vision: f.tower((768, 12, 12), "gelu_pytorch_tanh", 1e-6, &MlpWidth::Size(3072))?,
        image_size,
        patch_size,
        patch_bias: true,
        class_token: false,
        registers: 0,
        positions: Some(Positions { prefix: 0, resampling }),
        rotary: None,
        pre_norm: false,
        pool,
        classifier: Some(Pool::Mean),
        projection: None,
        text: None,
    })
}

/// The side of a square image that has as many patches as there are positions, and that of a patch.
fn naflex_sizes(f: &Fields) -> Result<(usize, usize)> {
    let patches = f.size("num_patches", Some(256), MAX_PATCHES)?;
    let grid = patches.isqrt();
    if grid * grid != patches {
        return Err(f.error("num_patches", &format!("{patches} patches are no square grid")));
    }
    let patch = f.patch(16)?;
    Ok((grid * patch, patch))
}
