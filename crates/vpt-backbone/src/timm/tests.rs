//! Against timm, and transformers' `DINOv3`, themselves: `scripts/make_timm_fixture.py` made the embeddings and gradients, from weights
//! that a formula gives.

use std::{collections::BTreeMap, fs, ops::Range};

use safetensors::{Dtype, tensor::TensorView};
use serde::Deserialize;
use serde_json::json;
use tempfile::TempDir;

use super::*;
use crate::formula::{assert_close, picture, values};
use crate::vit::{Pass, Readout, TokenPrompts, Tune, Want};
use crate::weights::SINGLE;
use crate::{Backbone, OpenOptions};

#[derive(Deserialize)]
struct TimmFixture {
    /// `(width, height)` of the pictures.
    sizes: Vec<(usize, usize)>,
    cases: BTreeMap<String, Case>,
}

#[derive(Clone, Deserialize)]
struct Case {
    config: Value,
    preprocessor: Option<Value>,
    /// Shapes by name; a tensor's place is its number in the formula.
    tensors: BTreeMap<String, Vec<usize>>,
    images: Vec<Vec<f32>>,
    gradients: Option<Gradients>,
    /// Of the five classes of a classifier, where there is one.
    logits: Option<Vec<Vec<f32>>>,
}

#[derive(Clone, Deserialize)]
struct Gradients {
    prompts: Vec<f32>,
    /// Of the first of two images.
    pixels: Vec<f32>,
    /// Of the factors A and B of each layer that is changed.
    changes: BTreeMap<String, [Vec<f32>; 2]>,
}

/// A tensor's name, shape and values.
type Named = (String, Vec<usize>, Vec<f32>);

fn fixture() -> TimmFixture {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/timm.json");
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// `fill` of the script.
fn tensors(case: &Case) -> Vec<Named> {
    let filled = |(number, (name, shape)): (usize, (&String, &Vec<usize>))| {
        let center = if name.contains("norm") && name.ends_with("weight") { 1. } else { 0. };
        let values = values(number as u64, shape.iter().product(), 0.3);
        (name.clone(), shape.clone(), values.into_iter().map(|value| value + center).collect())
    };
    case.tensors.iter().enumerate().map(filled).collect()
}

fn folder(config: &Value, preprocessor: Option<&Value>, tensors: &[Named]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    if let Some(preprocessor) = preprocessor {
        fs::write(dir.path().join("preprocessor_config.json"), preprocessor.to_string()).unwrap();
    }
    let bytes: Vec<Vec<u8>> =
        tensors.iter().map(|(.., values)| values.iter().flat_map(|v| v.to_le_bytes()).collect()).collect();
    let views = tensors.iter().zip(&bytes);
    let views =
        views.map(|((name, shape, _), bytes)| (name, TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()));
    fs::write(dir.path().join(SINGLE), safetensors::serialize(views, None).unwrap()).unwrap();
    dir
}

fn folder_of(case: &Case) -> TempDir {
    folder(&case.config, case.preprocessor.as_ref(), &tensors(case))
}

fn opened(dir: &TempDir) -> Result<Backbone> {
    Backbone::open(dir.path().to_str().unwrap(), &OpenOptions::default())
}

/// `‖a - b‖ / ‖b‖`.
fn relative(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let length = |values: &mut dyn Iterator<Item = f32>| values.map(|v| v * v).sum::<f32>().sqrt();
    length(&mut a.iter().zip(b).map(|(a, b)| a - b)) / length(&mut b.iter().copied())
}

#[test]
fn embeddings_equal_those_of_timm_and_transformers() {
    let TimmFixture { sizes, cases } = fixture();
    assert_eq!(cases.len(), 19);
    for (name, case) in &cases {
        let backbone = opened(&folder_of(case)).unwrap();
        for (size, expected) in sizes.iter().zip(&case.images) {
            let pixels = backbone.preprocess.apply(&picture(*size)).unwrap();
            assert_close(&backbone.embed(&pixels, None, 1).unwrap(), expected, &format!("{name} {size:?}"));
        }
    }
    let note = |name: &str| opened(&folder_of(&cases[name])).unwrap().note();
    assert!(note("dinov3").unwrap().contains("features are the class token, where timm's global_pool is avg"));
    assert_eq!((note("vit"), note("mean"), note("siglip"), note("hf-dinov3")), (None, None, None, None));
    let spec = |name: &str| opened(&folder_of(&cases[name])).unwrap().spec;
    assert!(spec("swiglu").vision.gated && spec("dinov3-plus").vision.gated && spec("swiglu").registers == 4);
    assert_eq!(spec("registers").positions.unwrap().prefix, 0);
    assert_eq!(spec("distilled").positions.unwrap().prefix, 2);
    assert_eq!((spec("mean").pool, spec("siglip").pool), (Pool::Mean, Pool::Attention));
    assert_eq!((spec("fc-norm").pool, spec("fc-norm").registers), (Pool::NormOfMean, 4));
    assert_eq!(spec("dinov3-plus").vision.qkv_bias.each(), [true, false, true]);
}

#[test]
fn gradients_of_dinov3_equal_those_of_pytorch() {
    let TimmFixture { sizes, cases } = fixture();
    for name in ["hf-dinov3", "hf-dinov3-gated"] {
        let case = &cases[name];
        let Some(Gradients { prompts: of_prompts, pixels: of_pixels, changes }) = &case.gradients else { panic!() };
        let backbone = opened(&folder_of(case)).unwrap();
        let (width, depth) = (backbone.spec.vision.width, backbone.spec.vision.depth);
        let pixels: Vec<f32> =
            sizes[..2].iter().flat_map(|size| backbone.preprocess.apply(&picture(*size)).unwrap()).collect();
        let (data, slopes) = (values(900, depth * 3 * width, 0.5), values(901, 2 * width, 1.));
        let prompts = Some(TokenPrompts { start: 0, layers: depth, tokens: 3, data: &data });
        let loss = |range: Range<usize>, _: &[f32]| Ok((slopes[range.start * width..range.end * width].to_vec(), ()));
        let want = Want { tokens: true, pixels: true, ..Want::default() };
        let pass = Pass { prompts, ..Pass::forward(&pixels, 2) };
        let (got, _) = backbone.vit.step(&Pass { want, ..pass }, &loss).unwrap();
        assert!(relative(&got.tokens.unwrap(), of_prompts) < 1e-4, "{name}");
        assert!(relative(&got.pixels.unwrap()[..of_pixels.len()], of_pixels) < 1e-4, "{name}");

        let mut tuned = backbone.tuned(Tune::LowRank { rank: 2, scale: 0.5 }).unwrap();
        let names: Vec<String> = tuned.tensors().iter().map(|(name, _)| name.clone()).collect();
        let numbered = |name: &str| 910 + names.iter().position(|own| own == name).unwrap() as u64;
        let factors: BTreeMap<_, _> =
            names.iter().map(|name| (name.clone(), values(numbered(name), 2 * width, 0.4))).collect();
        tuned.set(&|name| Ok(&factors[name]), 1).unwrap();
        let want = Want { weights: true, ..Want::default() };
        let (got, _) = backbone.vit.step(&Pass { want, tuned: Some(&tuned), ..pass }, &loss).unwrap();
        for (name, got) in names.iter().zip(got.weights.unwrap()) {
            let (layer, factor) = name.rsplit_once('.').unwrap();
            let expected = &changes[layer][usize::from(factor == "lora_B")];
            assert!(relative(&got, expected) < 1e-3, "{name}");
        }
        assert_eq!(names.len(), 2 * changes.len());
    }
}

/// The tensors of transformers that hold what `tensor` of timm does.
fn of_transformers((name, shape, values): &Named, dinov3: bool) -> Vec<Named> {
    let beginnings = if dinov3 {
        [("patch_embed.proj", "embeddings.patch_embeddings"), ("norm.", "norm."), ("blocks.", "layer.")]
    } else {
        [
            ("patch_embed.proj", "embeddings.patch_embeddings.projection"),
            ("norm.", "layernorm."),
            ("blocks.", "encoder.layer."),
        ]
    };
    let inner = if dinov3 {
        [("attn.proj", "attention.o_proj"), ("mlp.fc1", "mlp.up_proj"), ("mlp.fc2", "mlp.down_proj")]
    } else {
        [("attn.proj", "attention.output.dense"), ("mlp.fc1", "mlp.fc1"), ("mlp.fc2", "mlp.fc2")]
    };
    let [q, k, v] =
        if dinov3 { ["q_proj", "k_proj", "v_proj"] } else { ["attention.query", "attention.key", "attention.value"] };
    let mut other = name.clone();
    for (from, to) in beginnings {
        if let Some(rest) = other.strip_prefix(from) {
            other = format!("{to}{rest}");
        }
    }
    for (from, to) in inner.into_iter().chain([
        ("gamma_1", "layer_scale1.lambda1"),
        ("gamma_2", "layer_scale2.lambda1"),
        ("ls1.gamma", "layer_scale1.lambda1"),
        ("ls2.gamma", "layer_scale2.lambda1"),
    ]) {
        other = other.replace(from, to);
    }
    match name.as_str() {
        "cls_token" => other = "embeddings.cls_token".to_owned(),
        "reg_token" => other = "embeddings.register_tokens".to_owned(),
        "pos_embed" => other = "embeddings.position_embeddings".to_owned(),
        _ => {}
    }
    if !other.contains("attn.qkv") {
        return vec![(other, shape.clone(), values.clone())];
    }
    let third = values.len() / 3;
    let mut shape = shape.clone();
    shape[0] /= 3;
    let named = |(i, layer): (usize, &str)| {
        (
            other.replace("attn.qkv", &format!("attention.{layer}")),
            shape.clone(),
            values[i * third..(i + 1) * third].to_vec(),
        )
    };
    [q, k, v].into_iter().enumerate().map(named).collect()
}

#[test]
fn the_same_weights_under_transformers_names_give_the_same_bytes() {
    let cases = fixture().cases;
    let sizes = json!({"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2});
    for (name, own) in [
        ("dinov2", json!({"model_type": "dinov2", "image_size": 28, "patch_size": 7})),
        (
            "dinov3",
            json!({
                "model_type": "dinov3_vit", "image_size": 32, "patch_size": 8, "intermediate_size": 128, "num_register_tokens": 4,
                "query_bias": false, "value_bias": false,
            }),
        ),
    ] {
        let case = &cases[name];
        let mut config = sizes.clone();
        config.as_object_mut().unwrap().extend(own.as_object().unwrap().clone());
        let renamed: Vec<Named> = tensors(case).iter().flat_map(|t| of_transformers(t, name == "dinov3")).collect();
        let preprocessor = json!({"image_processor_type": "BitImageProcessor", "crop_size": config["image_size"]});
        let (timm, other) =
            (opened(&folder_of(case)).unwrap(), opened(&folder(&config, Some(&preprocessor), &renamed)).unwrap());
        let pixels = timm.preprocess.apply(&picture((64, 43))).unwrap();
        assert_eq!(timm.embed(&pixels, None, 1).unwrap(), other.embed(&pixels, None, 1).unwrap(), "{name}");
    }
}

#[test]
fn checkpoints_of_the_authors_are_the_same_tensors() {
    let cases = fixture().cases;
    let pixels = |backbone: &Backbone| backbone.preprocess.apply(&picture((35, 32))).unwrap();
    // DINOv2: w12 and w3, other names of registers, whose positions are behind those of the class token. MAE: a decoder beside.
    let case = &cases["swiglu"];
    let plain = opened(&folder_of(case)).unwrap();
    let rename = |(name, shape, values): &Named| {
        let name =
            name.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3").replace("reg_token", "register_tokens");
        (name, shape.clone(), values.clone())
    };
    let mut renamed: Vec<Named> = tensors(case).iter().map(rename).collect();
    renamed.push(("mask_token".into(), vec![1, 32], vec![0.; 32]));
    renamed.push(("decoder_blocks.0.norm1.weight".into(), vec![3], vec![0.; 3]));
    let other = opened(&folder(&case.config, None, &renamed)).unwrap();
    assert_eq!(other.embed(&pixels(&other), None, 1).unwrap(), plain.embed(&pixels(&plain), None, 1).unwrap());
    // Behind another prefix, as in a folder of transformers' `TimmWrapper`.
    let case = &cases["vit"];
    let plain = opened(&folder_of(case)).unwrap();
    let wrapped: Vec<Named> =
        tensors(case).into_iter().map(|(name, shape, values)| (format!("timm_model.{name}"), shape, values)).collect();
    let mut config = case.config.clone();
    config["model_type"] = "timm_wrapper".into();
    let other = opened(&folder(&config, None, &wrapped)).unwrap();
    assert_eq!(other.embed(&pixels(&other), None, 1).unwrap(), plain.embed(&pixels(&plain), None, 1).unwrap());
}

#[test]
fn a_classifier_says_what_timm_says() {
    let TimmFixture { sizes, cases } = fixture();
    let mut found = 0;
    for (name, case) in &cases {
        let dir = folder_of(case);
        let backbone = opened(&dir).unwrap();
        let Some(logits) = &case.logits else {
            assert_eq!(backbone.spec.classifier, None, "{name}");
            continue;
        };
        found += 1;
        let classifier = backbone.classifier().unwrap();
        assert_eq!(classifier.names().unwrap()[4], "class 4");
        for (size, expected) in sizes.iter().zip(logits) {
            let pixels = backbone.preprocess.apply(&picture(*size)).unwrap();
            let pass = Pass { readout: Readout::Pooled(classifier.pool()), ..Pass::forward(&pixels, 1) };
            let read = backbone.vit.read(&pass).unwrap();
            assert_close(&classifier.logits(&read), expected, &format!("{name} {size:?}"));
        }
    }
    assert_eq!(found, 3);
    let message = opened(&folder_of(&cases["vit"])).unwrap().classifier().unwrap_err().to_string();
    assert!(message.ends_with("has no classifier of its own: take a ViT, DeiT or DINOv2 with one"), "{message}");
    // Behind a class token, but of the mean.
    let mut case = cases["vit-classes"].clone();
    case.config["global_pool"] = "avg".into();
    assert_eq!(opened(&folder_of(&case)).unwrap().spec.classifier, None);
}

#[test]
fn a_file_of_the_authors_needs_no_configuration() {
    let TimmFixture { sizes, cases } = fixture();
    for (name, form, before) in
        [("dino", "dino", "module.backbone."), ("dino", "mae", ""), ("authors-dinov2", "dinov2", "backbone.")]
    {
        let case = &cases[name];
        let mut named: Vec<Named> = tensors(case)
            .into_iter()
            .map(|(tensor, shape, values)| (format!("{before}{tensor}"), shape, values))
            .collect();
        // Heads of its training.
        let beside = if form == "dinov2" { "dino_head.mlp.0.weight" } else { "module.head.last_layer.weight_g" };
        named.push((beside.to_owned(), vec![3], vec![0.; 3]));
        let dir = folder(&case.config, None, &named);
        fs::remove_file(dir.path().join("config.json")).unwrap();
        let path = dir.path().join(SINGLE).display().to_string();
        let open = |said: &str| Backbone::open(&format!("{path}:{said}"), &OpenOptions::default());
        let (backbone, of_folder) = (open(form).unwrap(), opened(&folder_of(case)).unwrap());
        assert_eq!((&backbone.spec, &backbone.preprocess), (&of_folder.spec, &of_folder.preprocess), "{name}");
        assert!(backbone.note().unwrap().contains("positions resampled as by timm"));
        for (size, expected) in sizes.iter().zip(&case.images) {
            let pixels = backbone.preprocess.apply(&picture(*size)).unwrap();
            assert_close(&backbone.embed(&pixels, None, 1).unwrap(), expected, &format!("{name} {size:?}"));
        }
        let other = if form == "dinov2" { "dino" } else { "dinov2" };
        let message = open(other).unwrap_err().to_string();
        assert!(message.contains(&format!("is not of {other}: it has ")), "{message}");
        let unsaid = Backbone::open(&path, &OpenOptions::default()).unwrap_err().to_string();
        assert!(unsaid.contains(":dino, ") && unsaid.contains(":mae if it is one of these"), "{unsaid}");
        assert!(open("gelu").unwrap_err().to_string().contains(":mae if it is one of these"));
    }
}

#[test]
fn names_and_tensors_that_are_not_supported_are_refused() {
    for name in [
        "swin_tiny_patch4_window7_224",
        "convnext_tiny",
        "vit_relpos_base_patch16_224",
        "vit_base_r50_s16_224",
        "vit_base_patch16_rope_224",
        "vit_pe_core_base_patch16_224",
        "eva02_base_patch14_224",
        "resnet50",
        "a\nb",
    ] {
        let config = json!({"architecture": name}).to_string();
        let error = Timm::from_json(config.as_bytes(), Path::new("config.json")).err().unwrap().to_string();
        assert!(error.starts_with("config.json: architecture: `") && error.contains("is not supported"), "{error}");
        assert!(!error.contains('\n'), "{error}");
    }
    let case = fixture().cases.remove("vit").unwrap();
    let refused = |change: &dyn Fn(&mut Case)| {
        let mut case = case.clone();
        change(&mut case);
        opened(&folder_of(&case)).unwrap_err().to_string()
    };
    for (name, shape, part) in [
        (
            "blocks.0.attn.q_norm.weight",
            vec![16],
            "has a tensor `blocks.0.attn.q_norm.weight`, which none of those has",
        ),
        ("fc_norm.weight", vec![32], "has a norm of the mean beside a class token or another norm"),
        ("blocks.7.norm1.weight", vec![32], "has a tensor `blocks.7.norm1.weight`"),
        ("pos_embed", vec![1, 19, 32], "has a tensor `pos_embed` of shape [1, 19, 32]"),
        ("reg_token", vec![32], "has a tensor `reg_token` of shape [32]"),
        ("patch_embed.proj.weight", vec![32, 3, 8, 7], "`patch_embed.proj.weight` of shape [32, 3, 8, 7]"),
        ("patch_embed.proj.weight", vec![32, 4, 8, 8], "`patch_embed.proj.weight` of shape"),
        ("blocks.0.mlp.fc2.weight", vec![32], "`blocks.0.mlp.fc2.weight` of shape [32]"),
        ("blocks.1.attn.qkv.weight", vec![95, 32], "[95, 32], which is not shared so"),
        ("norm.weight", vec![31], "tensor `norm.weight` has shape [31]"),
    ] {
        let message = refused(&|case| {
            case.tensors.insert(name.into(), shape.clone());
        });
        assert!(message.contains(part), "{message}");
    }
    let mut pooled = fixture().cases.remove("siglip").unwrap();
    pooled.tensors.insert("reg_token".into(), vec![1, 2, 32]);
    let message = opened(&folder_of(&pooled)).unwrap_err().to_string();
    assert!(message.contains("has tokens before the patches beside a pool by attention"), "{message}");
    for (name, part) in [("pos_embed", "has no tensor `pos_embed`"), ("patch_embed.proj.weight", "has no tensor")] {
        let message = refused(&|case| {
            case.tensors.remove(name);
        });
        assert!(message.contains(part), "{message}");
    }
    for (argument, part) in [
        (json!({"num_heads": 5}), "5 heads do not divide the width 32"),
        (json!({"num_heads": 0}), "0 heads do not divide"),
        (json!({"qk_norm": true}), "model_args.qk_norm: true is not supported"),
        (json!({"act_layer": "relu"}), "model_args.act_layer: \"relu\" is not supported"),
        (json!([]), "model_args: must be an object"),
        (json!({}), "0 heads do not divide the width 32"),
    ] {
        let message = refused(&|case| case.config["model_args"] = argument.clone());
        assert!(message.contains(part), "{message}");
    }
    let message = refused(&|case| case.config["pretrained_cfg"]["input_size"] = json!([3, 44, 44]));
    assert!(message.contains("44 is no multiple of the backbone's patch size 8"), "{message}");
}

#[test]
fn positions_are_counted_from_their_number() {
    assert_eq!(grid(197, 1, 14), Some((1, 14)));
    assert_eq!(grid(196, 5, 14), Some((0, 14)));
    assert_eq!(grid(198, 2, 14), Some((2, 14)));
    assert_eq!(grid(1370, 5, 37), Some((1, 37)));
    assert_eq!((grid(5, 1, 2), grid(5, 5, 1), grid(3, 1, 1), grid(0, 3, 1)), (Some((1, 2)), Some((4, 1)), None, None));
}

#[test]
fn what_no_tensor_tells_follows_from_the_name() {
    let of = |name: &str| {
        let config = json!({"architecture": name}).to_string();
        let timm = Timm::from_json(config.as_bytes(), Path::new("config.json")).unwrap();
        move |width: usize, gated: bool| (timm.heads(width), timm.activation(gated))
    };
    for (name, width, heads, activation) in [
        ("vit_tiny_patch16_224", 192, 3, Activation::Gelu),
        ("vit_huge_patch14_clip_224", 1280, 16, Activation::Gelu),
        ("vit_giant_patch14_clip_224", 1408, 16, Activation::Gelu),
        ("vit_giant_patch14_dinov2", 1536, 24, Activation::Silu),
        ("vit_giant_patch14_reg4_dinov2", 1536, 24, Activation::Silu),
        ("vit_large_patch14_clip_quickgelu_336", 1024, 16, Activation::QuickGelu),
        ("vit_huge_plus_patch16_dinov3", 1280, 20, Activation::Silu),
        ("vit_7b_patch16_dinov3", 4096, 32, Activation::Silu),
        ("vit_so400m_patch14_siglip_gap_378", 1152, 16, Activation::Gelu),
        ("vit_so400m_patch16_siglip_gap_256", 1152, 16, Activation::GeluTanh),
        ("vit_large_patch16_siglip_gap_512", 1024, 16, Activation::GeluTanh),
        ("vit_large_patch16_siglip_gap_384", 1024, 16, Activation::Gelu),
        ("vit_base_patch16_gap_224", 768, 16, Activation::Gelu),
    ] {
        assert_eq!(of(name)(width, activation == Activation::Silu), (heads, activation), "{name}");
    }
}
