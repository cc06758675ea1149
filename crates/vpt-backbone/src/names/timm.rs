//! Vision transformers of timm, in its names: whatever combination of facts a checkpoint has, which [`crate::timm`] finds out.
//! Queries, keys and values, which lie in one tensor there, and halves of a gated MLP have names of their own here.

use super::{Anchor, AttentionPoolNames, BlockNames, Family, GatedNames, JointNames, TensorName, VisionNames};

/// The family.
pub static FAMILY: Family = Family {
    name: "timm",
    note: "",
    // What transformers calls a model of timm. Its sizes are in no configuration, but in the tensors.
    model_types: &["timm_wrapper"],
    spec: |root| Err(root.error("architecture", "missing: which model of timm it is")),
    preprocess: None,
    anchor: Anchor { tower: "", tensor: "patch_embed.proj.weight" },
    vision: VisionNames {
        class_token: TensorName { name: "cls_token", dimensions: 3 },
        registers: TensorName { name: "reg_token", dimensions: 3 },
        positions: TensorName { name: "pos_embed", dimensions: 3 },
        patch: "patch_embed.proj",
        pre_norm: "norm_pre",
        blocks: BlockNames {
            prefix: "blocks",
            norm1: "norm1",
            qkv: ["attn.q", "attn.k", "attn.v"],
            out: "attn.proj",
            norm2: "norm2",
            mlp: ["mlp.fc1", "mlp.fc2"],
            gated_mlp: GatedNames { halves: &["mlp.fc1_g", "mlp.fc1_x"], out: "mlp.fc2" },
            layer_scale: ["ls1.gamma", "ls2.gamma"],
        },
        post_norm: "norm",
        attention_pool: Some(AttentionPoolNames {
            query: TensorName { name: "attn_pool.latent", dimensions: 3 },
            qkv: ["attn_pool.q", "attn_pool.k", "attn_pool.v"],
            out: "attn_pool.proj",
            norm: "attn_pool.norm",
            mlp: ["attn_pool.mlp.fc1", "attn_pool.mlp.fc2"],
        }),
    },
    stored: &[],
    classifier: "",
    joint: JointNames::NONE,
};
