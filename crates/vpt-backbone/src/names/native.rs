//! The names that transformers 5 gives the tensors of ViT and its kin while they are in memory: what `torch.save` of a state
//! dictionary writes, and `save_pretrained` where it is told to keep them. Files on the hub have the older names, which the
//! families here are told by.
//!
//! In memory the blocks are `layers.N` (`encoder.layer.N` in `DINOv2`), attention is `q_proj`, `k_proj`, `v_proj` and `o_proj`, and the
//! two layers that lead to the units of a gated MLP are apart.

/// How a tensor of memory holds one of the older names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NativeSlot {
    /// It is the same.
    Whole,
    /// Its rows are the upper half.
    Upper,
    /// Its rows are the lower half.
    Lower,
}

/// The older name of the tensor `name`, if it is one of memory; `has` tells which others are beside it.
pub(crate) fn older(name: &str, has: impl Fn(&str) -> bool) -> Option<(String, NativeSlot)> {
    let (begin, block, rest) = block_of(name)?;
    let (layer, kind) = rest.rsplit_once('.')?;
    // Blocks of DINOv2 call these layers so in files, too.
    let of_vit = || has(&format!("{begin}{block}.layernorm_before.weight"));
    let (layer, slot) = match layer {
        "attention.q_proj" => ("attention.attention.query", NativeSlot::Whole),
        "attention.k_proj" => ("attention.attention.key", NativeSlot::Whole),
        "attention.v_proj" => ("attention.attention.value", NativeSlot::Whole),
        "attention.o_proj" => ("attention.output.dense", NativeSlot::Whole),
        "mlp.fc1" if of_vit() => ("intermediate.dense", NativeSlot::Whole),
        "mlp.fc2" if of_vit() => ("output.dense", NativeSlot::Whole),
        "mlp.gate_proj" => ("mlp.weights_in", NativeSlot::Upper),
        "mlp.up_proj" => ("mlp.weights_in", NativeSlot::Lower),
        "mlp.down_proj" => ("mlp.weights_out", NativeSlot::Whole),
        other => (other, NativeSlot::Whole),
    };
    let number = block.rsplit('.').next()?;
    let older = format!("{begin}encoder.layer.{number}.{layer}.{kind}");
    (older != name).then_some((older, slot))
}

/// What stands before a block, the block (`layers.N` or `encoder.layer.N`), and what stands behind it.
fn block_of(name: &str) -> Option<(&str, &str, &str)> {
    for blocks in ["encoder.layer.", "layers."] {
        let Some(at) = name.find(blocks) else { continue };
        let (begin, rest) = name.split_at(at);
        // Not the `encoder.layers.N` of CLIP.
        if !(begin.is_empty() || begin.ends_with('.')) || begin.ends_with("encoder.") {
            continue;
        }
        let digits = rest[blocks.len()..].find('.')?;
        let (number, behind) = rest[blocks.len()..].split_at(digits);
        if number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit()) {
            continue;
        }
        return Some((begin, &rest[..blocks.len() + digits], &behind[1..]));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    // Of the state dictionaries of transformers 5.24, beside what its save_pretrained writes.
    #[test]
    fn names_of_memory_have_older_ones() {
        for (name, expected) in [
            ("layers.1.attention.k_proj.bias", "encoder.layer.1.attention.attention.key.bias"),
            ("vit.layers.11.attention.q_proj.weight", "vit.encoder.layer.11.attention.attention.query.weight"),
            ("layers.0.attention.o_proj.weight", "encoder.layer.0.attention.output.dense.weight"),
            ("deit.layers.0.mlp.fc1.weight", "deit.encoder.layer.0.intermediate.dense.weight"),
            ("layers.0.mlp.fc2.bias", "encoder.layer.0.output.dense.bias"),
            ("layers.0.layernorm_after.bias", "encoder.layer.0.layernorm_after.bias"),
            ("dinov2.encoder.layer.1.attention.v_proj.bias", "dinov2.encoder.layer.1.attention.attention.value.bias"),
            ("encoder.layer.1.mlp.down_proj.weight", "encoder.layer.1.mlp.weights_out.weight"),
        ] {
            assert_eq!(older(name, |_| true), Some((expected.to_owned(), NativeSlot::Whole)), "{name}");
        }
        let halves = ["gate_proj", "up_proj"].map(|half| older(&format!("encoder.layer.1.mlp.{half}.bias"), |_| false));
        let name = || "encoder.layer.1.mlp.weights_in.bias".to_owned();
        assert_eq!(halves, [Some((name(), NativeSlot::Upper)), Some((name(), NativeSlot::Lower))]);
    }

    #[test]
    fn other_names_stay() {
        for name in [
            "embeddings.cls_token",
            "layernorm.weight",
            "encoder.layer.1.attention.attention.key.bias",
            "encoder.layer.1.mlp.fc1.weight",
            "encoder.layer.1.layer_scale1.lambda1",
            "encoder.layer.x.attention.q_proj.weight",
            "vision_model.encoder.layers.1.self_attn.q_proj.weight",
            "encoder.layers.1.mlp.fc1.bias",
            "layer.1.attention.q_proj.weight",
            "multilayers.1.attention.q_proj.weight",
            "layers.",
            "layers.1",
        ] {
            assert_eq!(older(name, |_| false), None, "{name}");
        }
    }
}
