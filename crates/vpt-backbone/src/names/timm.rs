//! Vision transformers of timm, in its names: whatever combination of facts a checkpoint has, which `timm.rs` finds out.
//! Queries, keys and values, which lie in one tensor there, and halves of a gated MLP have names of their own here.

use super::{Anchor, AttentionPoolNames, BlockNames, Family, GatedNames, JointNames, TensorName, VisionNames};
use crate::tensor_slot::TensorSlot;

/// The family.
pub static FAMILY: Family = family("norm");

/// Those whose last norm is one of the mean of the patches.
pub static WITH_FC_NORM: Family = family("fc_norm");

const fn family(post_norm: &'static str) -> Family {
    Family {
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
            post_norm,
            attention_pool: Some(AttentionPoolNames {
                query: TensorName { name: "attn_pool.latent", dimensions: 3 },
                qkv: ["attn_pool.q", "attn_pool.k", "attn_pool.v"],
                out: "attn_pool.proj",
                norm: "attn_pool.norm",
                mlp: ["attn_pool.mlp.fc1", "attn_pool.mlp.fc2"],
            }),
        },
        stored: &[],
        classifier: "head",
        joint: JointNames::NONE,
    }
}

/// The tensors that timm's `name` holds, by the names of [`FAMILY`]; `packed`: the first layer of an MLP makes both halves of it. Those
/// that have no counterpart keep their names.
pub(crate) fn slots(name: &str, packed: bool) -> Vec<(String, TensorSlot)> {
    let whole = |name: String| vec![(name, TensorSlot::Whole)];
    let bare = name.strip_prefix("module.").unwrap_or(name);
    let at = bare.find("blocks.").filter(|&at| at == 0 || bare[..at].ends_with('.'));
    let Some((number, tensor)) = at.and_then(|at| bare[at + "blocks.".len()..].split_once('.')) else {
        for token in ["register_tokens", "dist_token"] {
            if let Some(before) = bare.strip_suffix(token).filter(|before| before.is_empty() || before.ends_with('.')) {
                return whole(format!("{before}reg_token"));
            }
        }
        if let Some((before, value)) = bare.split_once("attn_pool.kv.") {
            let of = |(half, layer)| (format!("{before}attn_pool.{layer}.{value}"), TensorSlot::Half(half));
            return ["k", "v"].into_iter().enumerate().map(of).collect();
        }
        return whole(bare.to_owned());
    };
    let block = format!("{}blocks.{number}", &bare[..at.unwrap_or(0)]);
    let halves = |value: &str| {
        let of = |(half, layer)| (format!("{block}.mlp.{layer}.{value}"), TensorSlot::Half(half));
        ["fc1_g", "fc1_x"].into_iter().enumerate().map(of).collect()
    };
    let (layer, value) = tensor.rsplit_once('.').unwrap_or((tensor, ""));
    match (layer, value) {
        ("attn.qkv", value) => {
            let of = |(third, layer)| (format!("{block}.attn.{layer}.{value}"), TensorSlot::Third(third));
            ["q", "k", "v"].into_iter().enumerate().map(of).collect()
        }
        ("attn", "q_bias") => whole(format!("{block}.attn.q.bias")),
        ("attn", "v_bias") => whole(format!("{block}.attn.v.bias")),
        ("attn.q_proj", value) => whole(format!("{block}.attn.q.{value}")),
        ("attn.k_proj", value) => whole(format!("{block}.attn.k.{value}")),
        ("attn.v_proj", value) => whole(format!("{block}.attn.v.{value}")),
        ("gamma_1", "") => whole(format!("{block}.ls1.gamma")),
        ("gamma_2", "") => whole(format!("{block}.ls2.gamma")),
        ("mlp.w12", value) => halves(value),
        ("mlp.fc1", value) if packed => halves(value),
        ("mlp.w3", value) => whole(format!("{block}.mlp.fc2.{value}")),
        _ => whole(bare.to_owned()),
    }
}
