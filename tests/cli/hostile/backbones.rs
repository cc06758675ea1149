//! Backbones: weights, their index, configurations, tokenizers.

use std::fs;

use serde_json::{Value, json};

use super::{copied, deep, entry, parts, patch, refused, safetensors};
use crate::util::{Sandbox, fixture};

const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// `backbone`, a damaged one, is refused with a line that names it and contains `parts`.
fn refuse(sandbox: &Sandbox, backbone: &str, parts: &[&str]) {
    let image = fixture("images/a.png");
    let args = ["embed", "--backbone", backbone, "--out", "e.safetensors", &image, "--texts", "a dog"];
    refused(sandbox, &args, &[&[backbone], parts].concat());
    sandbox.holds(backbone, || assert!(!sandbox.path("e.safetensors").exists()));
    let _ = fs::remove_file(sandbox.path("e.safetensors"));
}

#[test]
fn weights() {
    let sandbox = Sandbox::new();
    let whole = fs::read(fixture("clip/model.safetensors")).unwrap();
    let (header, data) = parts(&whole);
    let length = u64::from_le_bytes(whole[..8].try_into().unwrap());
    let name = "vision_model.embeddings.class_embedding";
    let [start, end] = [0, 1].map(|i| header[name]["data_offsets"][i].as_u64().unwrap());
    let changed = |change: &dyn Fn(&mut Value)| {
        let mut header = header.clone();
        change(&mut header);
        safetensors(&header.to_string(), data)
    };
    let field = |field: &str, value: Value| changed(&|header| header[name][field] = value.clone());
    let with_length = |length: u64| [&length.to_le_bytes(), &whole[8..]].concat();
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("empty", vec![], "shorter than 8 bytes"),
        ("seven-bytes", whole[..7].to_vec(), "shorter than 8 bytes"),
        ("cut-in-the-header", whole[..100].to_vec(), "truncated"),
        ("cut-behind-the-header", whole[..8 + length as usize].to_vec(), "truncated"),
        ("cut-in-the-middle", whole[..whole.len() / 2].to_vec(), "truncated"),
        ("cut-by-a-byte", whole[..whole.len() - 1].to_vec(), "truncated"),
        ("a-byte-too-long", [&whole[..], b"x"].concat(), "1 bytes too long"),
        ("header-of-no-bytes", with_length(0), "not a safetensors file"),
        ("header-as-long-as-the-file", with_length(whole.len() as u64), "not a safetensors file"),
        ("header-of-4-gigabytes", with_length(1 << 32), "4294967296 bytes"),
        ("header-of-2-to-the-64", with_length(u64::MAX), "18446744073709551615 bytes"),
        ("header-with-an-end-elsewhere", with_length(length / 2), "not a safetensors file: header"),
        ("header-not-json", safetensors("what?", b""), "not a safetensors file: header"),
        ("header-not-utf-8", [&[2, 0, 0, 0, 0, 0, 0, 0], &b"{\xff"[..]].concat(), "header"),
        ("header-a-list", safetensors("[]", b""), "header"),
        ("header-nested", safetensors(&deep(100_000), b""), "tensor `a`"),
        ("header-without-tensors", safetensors("{}", b""), "has no tensor"),
        ("overlap", field("data_offsets", json!([0, end - start])), "overlaps"),
        ("beyond-the-file", field("data_offsets", json!([1_u64 << 40, (1_u64 << 40) + end - start])), name),
        ("offsets-of-2-to-the-64", field("data_offsets", json!([u64::MAX - 1, u64::MAX])), name),
        ("end-before-start", field("data_offsets", json!([end, start])), name),
        ("negative-offset", field("data_offsets", json!([-1, 5])), name),
        ("one-offset", field("data_offsets", json!([5])), name),
        ("gap", changed(&|header| drop(header.as_object_mut().unwrap().remove(name))), "a gap"),
        ("shape-of-another-size", field("shape", json!([31])), name),
        ("shape-that-overflows", field("shape", json!([1_u64 << 40, 1_u64 << 40])), name),
        ("negative-shape", field("shape", json!([-32])), name),
        ("shape-of-fractions", field("shape", json!([32.5])), name),
        ("shape-no-list", field("shape", json!("32")), name),
        ("shape-nested", field("shape", json!([[32]])), name),
        ("another-shape", field("shape", json!([4, 8])), "the configuration asks for [32]"),
        ("no-dtype", field("dtype", Value::Null), name),
        ("unknown-dtype", field("dtype", json!("F17")), "F17"),
        ("dtype-of-a-megabyte", field("dtype", json!("F".repeat(1 << 20))), "type FFFF"),
        ("whole-numbers", field("dtype", json!("I16")), "type I16"),
        (
            "two-models",
            changed(&|header| {
                header["other.embeddings.cls_token"] = entry("F32", &json!([0]), [data.len() as u64; 2]);
            }),
            "several models",
        ),
        (
            "name-of-a-megabyte",
            changed(&|header| header[&"x".repeat(1 << 20)] = entry("F32", &json!([1]), [0, 4])),
            WEIGHTS,
        ),
    ];
    copied(&sandbox, "clip", "whole");
    for (name, bytes, part) in cases {
        copied(&sandbox, "clip", name);
        sandbox.write(&format!("{name}/{WEIGHTS}"), bytes);
        refuse(&sandbox, name, &[part]);
    }
    // A file of zeros, half a gigabyte of them, that takes no room.
    copied(&sandbox, "clip", "zeros");
    let file = fs::File::create(sandbox.path("zeros/model.safetensors")).unwrap();
    file.set_len(600 << 20).unwrap();
    refuse(&sandbox, "zeros", &[WEIGHTS]);
    std::io::Write::write_all(&mut &file, &(99_u64 << 20).to_le_bytes()).unwrap();
    refuse(&sandbox, "zeros", &[WEIGHTS, "header"]);
}

#[test]
fn a_header_of_many_small_things_takes_no_memory() {
    let sandbox = Sandbox::new();
    for (name, header) in [
        ("lists", format!("{{\"a\": [{}0]}}", "[],".repeat(20_000_000))),
        (
            "shape",
            format!(
                "{{\"a\": {{\"dtype\": \"F32\", \"data_offsets\": [0, 0], \"shape\": [{}0]}}}}",
                "1,".repeat(40_000_000)
            ),
        ),
        ("metadata", format!("{{\"__metadata__\": {{\"a\": [{}0]}}}}", "{},".repeat(20_000_000))),
    ] {
        copied(&sandbox, "vit", name);
        sandbox.write(&format!("{name}/{WEIGHTS}"), safetensors(&header, b""));
        // What is in the metadata is nobody's business.
        let part = if name == "metadata" { "has no tensor" } else { WEIGHTS };
        refuse(&sandbox, name, &[part]);
    }
}

#[test]
#[cfg(unix)]
fn weights_that_are_no_files() {
    use std::os::unix::fs::symlink;

    let sandbox = Sandbox::new();
    for name in ["missing", "folder", "broken-link", "loop", "device"] {
        copied(&sandbox, "clip", name);
        fs::remove_file(sandbox.path(name).join(WEIGHTS)).unwrap();
    }
    let weights = |name: &str| sandbox.path(name).join(WEIGHTS);
    fs::create_dir(weights("folder")).unwrap();
    symlink("nowhere", weights("broken-link")).unwrap();
    symlink(WEIGHTS, weights("loop")).unwrap();
    symlink("/dev/zero", weights("device")).unwrap();
    for name in ["missing", "folder", "broken-link", "loop", "device"] {
        refuse(&sandbox, name, &[WEIGHTS]);
    }
}

#[test]
fn indices_of_shards() {
    let sandbox = Sandbox::new();
    let shard = "model-00001-of-00003.safetensors";
    let index: Value = serde_json::from_slice(&fs::read(fixture("vit") + "/" + INDEX).unwrap()).unwrap();
    let tensor = index["weight_map"].as_object().unwrap().keys().next().unwrap().clone();
    let names = |file: &str| {
        let mut index = index.clone();
        index["weight_map"][&tensor] = json!(file);
        index.to_string()
    };
    let cases = [
        ("garbage", "{\"weight_map\": {".to_owned(), "not a safetensors index"),
        ("empty", String::new(), "not a safetensors index"),
        ("no-map", "{\"metadata\": {}}".to_owned(), "weight_map"),
        ("map-of-numbers", json!({"weight_map": {"a": 1}}).to_string(), "not a safetensors index"),
        ("map-a-list", json!({"weight_map": ["a"]}).to_string(), "not a safetensors index"),
        ("nested", format!("{{\"weight_map\": {}}}", deep(50_000)), "not a safetensors index"),
        ("names-nothing", json!({"weight_map": {}}).to_string(), "has no tensor"),
        ("names-a-shard-that-is-missing", names("model-00009-of-00003.safetensors"), "model-00009-of-00003"),
        ("names-a-file-outside", names("../outside.safetensors"), "not a file name"),
        ("names-a-file-by-its-path", names("/etc/passwd"), "not a file name"),
        ("names-a-file-in-a-folder", names("a/b.safetensors"), "not a file name"),
        ("names-the-folder", names("."), "not a file name"),
        ("names-the-folder-above", names(".."), "not a file name"),
        ("names-no-file", names(""), "not a file name"),
        ("names-with-zeros", names("a\0b"), "not a file name"),
        ("names-a-long-name", names(&"a".repeat(1 << 20)), "not a file name"),
        ("names-itself", names(INDEX), INDEX),
        ("names-another-shard", names("model-00003-of-00003.safetensors"), "no such tensor"),
    ];
    for (name, text, part) in cases {
        copied(&sandbox, "vit", name);
        sandbox.write(&format!("{name}/{INDEX}"), text);
        refuse(&sandbox, name, &[INDEX, part][usize::from(name == "names-nothing" || name == "names-itself")..]);
    }
    copied(&sandbox, "vit", "empty-shard");
    sandbox.write(&format!("empty-shard/{shard}"), "");
    refuse(&sandbox, "empty-shard", &[shard]);
    #[cfg(unix)]
    {
        copied(&sandbox, "vit", "loop");
        fs::remove_file(sandbox.path("loop").join(shard)).unwrap();
        std::os::unix::fs::symlink(shard, sandbox.path("loop").join(shard)).unwrap();
        refuse(&sandbox, "loop", &[shard]);
    }
}

#[test]
fn configurations() {
    let sandbox = Sandbox::new();
    let clip = [
        ("/model_type", Value::Null, "model_type"),
        ("/model_type", json!("resnet"), "resnet"),
        ("/model_type", json!(7), "model_type"),
        ("/model_type", json!("x".repeat(100_000)), "model_type"),
        ("/projection_dim", json!(0), "projection_dim"),
        ("/projection_dim", json!(1_u64 << 60), "projection_dim"),
        ("/vision_config", json!("big"), "vision_config"),
        ("/vision_config/hidden_size", json!(0), "hidden_size"),
        ("/vision_config/hidden_size", json!(-32), "hidden_size"),
        ("/vision_config/hidden_size", json!(32.5), "hidden_size"),
        ("/vision_config/hidden_size", json!(1e300), "hidden_size"),
        ("/vision_config/hidden_size", json!(1 << 30), "hidden_size"),
        ("/vision_config/hidden_size", json!("32"), "hidden_size"),
        ("/vision_config/hidden_size", json!([32]), "hidden_size"),
        ("/vision_config/hidden_size", json!(16384), "shape"),
        ("/vision_config/num_hidden_layers", json!(0), "num_hidden_layers"),
        ("/vision_config/num_hidden_layers", json!(u64::MAX), "num_hidden_layers"),
        ("/vision_config/num_hidden_layers", json!(256), "layers.3"),
        ("/vision_config/num_attention_heads", json!(0), "num_attention_heads"),
        ("/vision_config/num_attention_heads", json!(5), "num_attention_heads"),
        ("/vision_config/intermediate_size", json!(0), "intermediate_size"),
        ("/vision_config/intermediate_size", json!(1_u64 << 40), "intermediate_size"),
        ("/vision_config/patch_size", json!(0), "patch_size"),
        ("/vision_config/patch_size", json!(-8), "patch_size"),
        ("/vision_config/patch_size", json!(1 << 20), "patch_size"),
        ("/vision_config/patch_size", json!([8, 4]), "patch_size"),
        ("/vision_config/patch_size", json!(5), "patch_size"),
        ("/vision_config/image_size", json!(0), "image_size"),
        ("/vision_config/image_size", json!(1_u64 << 50), "image_size"),
        ("/vision_config/image_size", json!(8192), "position_embedding"),
        ("/vision_config/num_channels", json!(1), "num_channels"),
        ("/vision_config/layer_norm_eps", json!(0), "layer_norm_eps"),
        ("/vision_config/layer_norm_eps", json!(-1), "layer_norm_eps"),
        ("/vision_config/layer_norm_eps", json!(1e60), "layer_norm_eps"),
        ("/vision_config/layer_norm_eps", json!("NaN"), "layer_norm_eps"),
        ("/vision_config/hidden_act", json!("tanh"), "hidden_act"),
        ("/vision_config/hidden_act", json!({}), "hidden_act"),
        ("/text_config/vocab_size", json!(0), "vocab_size"),
        ("/text_config/vocab_size", json!(1 << 22), "token_embedding"),
        ("/text_config/max_position_embeddings", json!(2), "max_position_embeddings"),
        ("/text_config/max_position_embeddings", json!(1_u64 << 40), "max_position_embeddings"),
        ("/text_config/eos_token_id", json!(-1), "eos_token_id"),
        ("/text_config/eos_token_id", json!([1, 2]), "eos_token_id"),
        ("/text_config/head_dim", json!(7), "head_dim"),
    ];
    let clip = clip.into_iter().map(|(at, value, part)| ("clip", at, value, part));
    let dino = [
        ("/mlp_ratio", json!(0), "mlp_ratio"),
        ("/mlp_ratio", json!(-4), "mlp_ratio"),
        ("/mlp_ratio", json!(1e300), "mlp_ratio"),
        ("/mlp_ratio", json!("4"), "mlp_ratio"),
        ("/num_register_tokens", json!(1_000_000), "num_register_tokens"),
        ("/num_register_tokens", json!(-1), "num_register_tokens"),
        ("/use_swiglu_ffn", json!("yes"), "use_swiglu_ffn"),
        ("/qkv_bias", json!(1), "qkv_bias"),
    ];
    let dino = dino.into_iter().map(|(at, value, part)| ("dinov2-registers", at, value, part));
    let siglip = [
        ("/text_config/projection_size", json!(16), "projection_size"),
        ("/text_config/projection_size", json!(1_u64 << 40), "projection_size"),
        ("/text_config/max_position_embeddings", json!(2), "max_position_embeddings"),
        ("/text_config/max_position_embeddings", json!(64), "position_embedding"),
        ("/text_config/vocab_size", json!(1 << 22), "token_embedding"),
        ("/text_config/num_hidden_layers", json!(3), "layers.2"),
        ("/vision_config/vision_use_head", json!("yes"), "vision_use_head"),
        ("/vision_config/intermediate_size", json!(64), "shape"),
        ("/vision_config/image_size", json!(7), "image_size"),
        ("/vision_config/image_size", json!(47), "position_embedding"),
        ("/vision_config/patch_size", json!(1 << 20), "patch_size"),
    ];
    let siglip = siglip.into_iter().map(|(at, value, part)| ("siglip", at, value, part));
    let naflex = [
        ("/vision_config/num_patches", json!(0), "num_patches"),
        ("/vision_config/num_patches", json!(17), "num_patches"),
        ("/vision_config/num_patches", json!(1_u64 << 60), "num_patches"),
        ("/vision_config/num_patches", json!(25), "position_embedding"),
        ("/vision_config/patch_size", json!(4), "patch_embedding"),
    ];
    let naflex = naflex.into_iter().map(|(at, value, part)| ("siglip2", at, value, part));
    for (number, (family, at, value, part)) in clip.chain(dino).chain(siglip).chain(naflex).enumerate() {
        let name = format!("config-{number}");
        copied(&sandbox, family, &name);
        patch(&sandbox.path(&name).join("config.json"), at, value);
        refuse(&sandbox, &name, &[part]);
    }
    for (name, text, part) in [
        ("empty", String::new(), "not a JSON file"),
        ("zeros", "\0".repeat(100), "not a JSON file"),
        ("list", "[1, 2]".to_owned(), "no JSON object"),
        ("not-a-number", "{\"model_type\": \"vit\", \"hidden_size\": NaN}".to_owned(), "not a JSON file"),
        ("nested", deep(100_000), "recursion limit"),
        ("nested-lists", "[".repeat(1_000_000), "recursion limit"),
        ("large", " ".repeat(5 << 20), "limit"),
    ] {
        copied(&sandbox, "clip", name);
        sandbox.write(&format!("{name}/config.json"), text);
        refuse(&sandbox, name, &["config.json", part]);
    }
}

#[test]
fn preprocessing() {
    let sandbox = Sandbox::new();
    let cases = [
        ("/feature_extractor_type", json!("SamImageProcessor"), "SamImageProcessor"),
        ("/feature_extractor_type", json!(3), "feature_extractor_type"),
        ("/size", json!(0), "size"),
        ("/size", json!(-5), "size"),
        ("/size", json!(1_u64 << 40), "size"),
        ("/size", json!({"longest_edge": 4}), "size"),
        ("/size", json!({"height": 32}), "size"),
        ("/size", json!({"shortest_edge": "32"}), "size"),
        ("/size", json!([1, 2, 3]), "size"),
        ("/crop_size", json!(0), "crop_size"),
        ("/crop_size", json!({"height": 32, "width": 16}), "only squares"),
        ("/crop_size", json!(1_u64 << 62), "crop_size"),
        ("/crop_size", json!(33), "33"),
        ("/resample", json!(9), "resample"),
        ("/resample", json!("bicubic"), "resample"),
        ("/do_resize", json!("no"), "do_resize"),
        ("/do_center_crop", json!(1), "do_center_crop"),
        ("/do_center_crop", json!(false), "no fixed size"),
        ("/rescale_factor", json!("1/255"), "rescale_factor"),
        ("/rescale_factor", json!(0), "rescale_factor"),
        ("/rescale_factor", json!(1e308), "rescale_factor"),
        ("/image_mean", json!([0.5]), "image_mean"),
        ("/image_mean", json!(["a", 0, 0]), "image_mean"),
        ("/image_mean", json!([1e300, 0, 0]), "image_mean"),
        ("/image_mean", json!(vec![0; 1_000_000]), "image_mean"),
        ("/image_std", json!([0, 0, 0]), "image_std"),
        ("/image_std", json!([-1, 1, 1]), "image_std"),
    ];
    for (number, (at, value, part)) in cases.into_iter().enumerate() {
        let name = format!("preprocessor-{number}");
        copied(&sandbox, "clip", &name);
        patch(&sandbox.path(&name).join("preprocessor_config.json"), at, value);
        refuse(&sandbox, &name, &[part]);
    }
    for (name, text) in [("empty", String::new()), ("number", "7".to_owned()), ("nested", deep(100_000))] {
        copied(&sandbox, "clip", name);
        sandbox.write(&format!("{name}/preprocessor_config.json"), text);
        refuse(&sandbox, name, &["preprocessor_config.json"]);
    }
}

#[test]
fn tokenizers() {
    let sandbox = Sandbox::new();
    let file = "tokenizer.json";
    let patches = [
        ("/model", Value::Null),
        ("/model", json!(3)),
        ("/model", json!({"type": "GPT"})),
        ("/model/vocab", json!({})),
        ("/model/vocab", json!({"a": -1})),
        ("/model/vocab", json!({"a": 1_u64 << 40})),
        ("/model/vocab", json!(["a"])),
        ("/model/merges", json!(["a"])),
        ("/model/merges", json!([["no", "such"]])),
        ("/pre_tokenizer", json!({"type": "Split", "pattern": {"Regex": "(("}, "behavior": "Removed", "invert": true})),
        ("/normalizer", json!({"type": "Precompiled", "precompiled_charsmap": "AAAA"})),
        ("/normalizer", json!({"type": "Replace", "pattern": {"Regex": "[z-a]"}, "content": ""})),
        ("/added_tokens", json!([{"id": -1, "content": "x"}])),
        ("/added_tokens", json!("x")),
        (
            "/post_processor",
            json!({"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "X", "type_id": 0}}], "pair": [],
                   "special_tokens": {}}),
        ),
        ("/version", json!("9.9")),
    ];
    for (number, (at, value)) in patches.into_iter().enumerate() {
        let name = format!("tokenizer-{number}");
        copied(&sandbox, "clip", &name);
        patch(&sandbox.path(&name).join(file), at, value);
        refuse(&sandbox, &name, &[file]);
    }
    let normal = |levels: usize| {
        let open = "{\"type\": \"Sequence\", \"normalizers\": [";
        format!("{{\"normalizer\": {}{}}}", open.repeat(levels), "]}".repeat(levels))
    };
    for (name, bytes) in [
        ("empty", Vec::new()),
        ("garbage", b"\x00\xff\xfe{}".to_vec()),
        ("list", b"[]".to_vec()),
        ("object", b"{}".to_vec()),
        ("nested", deep(100_000).into_bytes()),
        ("nested-normalizers", normal(50).into_bytes()),
        ("nested-normalizers-without-end", normal(100_000).into_bytes()),
    ] {
        copied(&sandbox, "clip", name);
        sandbox.write(&format!("{name}/{file}"), bytes);
        refuse(&sandbox, name, &[file]);
    }
    for (name, vocab, merges, part) in [
        ("pair-no-json", "a", "a b", "vocab.json"),
        ("pair-no-ends", "{\"a\": 1}", "", "vocab.json"),
        ("pair-merges", "{\"<|startoftext|>\": 0, \"<|endoftext|>\": 1}", "a b", "vocab.json"),
        ("pair-ids", "{\"<|startoftext|>\": 0, \"<|endoftext|>\": -1}", "", "vocab.json"),
    ] {
        copied(&sandbox, "clip", name);
        fs::remove_file(sandbox.path(name).join(file)).unwrap();
        sandbox.write(&format!("{name}/vocab.json"), vocab);
        sandbox.write(&format!("{name}/merges.txt"), merges);
        refuse(&sandbox, name, &[part]);
    }
}
