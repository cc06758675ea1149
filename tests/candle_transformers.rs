//! An independent witness: the forward passes of candle-transformers on the same tensors, beside both engines.
//!
//! It shares no code with what is tested, here or in PyTorch. Its DINOv2 has sizes, activation and classifier built in, so that a small
//! checkpoint is drawn for it whose `config.json` says the same; all others are the fixtures' checkpoints as they lie. `--nocapture`
//! prints the table.

// The lint's exception for tests does not reach the functions they share.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Module, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::clip::text_model::{Activation, ClipTextConfig};
use candle_transformers::models::clip::vision_model::ClipVisionConfig;
use candle_transformers::models::clip::{ClipConfig, ClipModel};
use candle_transformers::models::{dinov2, dinov2reg4, siglip, vit};
use common::relative;
use serde_json::{Value, json};
use vpt::backbone::spec::Pool;
use vpt::backbone::vit::{Pass, Readout};
use vpt::backbone::{Backbone, Compute, Engine, OpenOptions};
use vpt_base::testing::random;

type Tensors = HashMap<String, Tensor>;

/// Images of a batch.
const BATCH: usize = 2;
/// Largest relative difference of two f32 programs that sum in other orders.
const BOUND: f64 = 1e-5;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn config(folder: &Path) -> Value {
    serde_json::from_slice(&fs::read(folder.join("config.json")).unwrap()).unwrap()
}

/// All tensors of a checkpoint in f32.
fn tensors(folder: &Path) -> Tensors {
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let is_weights = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_str().unwrap();
        name.starts_with("model") && name.ends_with(".safetensors")
    };
    let mut all = Tensors::new();
    for file in files.filter(is_weights) {
        for (name, tensor) in candle_core::safetensors::load(file, &Device::Cpu).unwrap() {
            all.insert(name, tensor.to_dtype(DType::F32).unwrap());
        }
    }
    all
}

fn var_builder(tensors: Tensors) -> VarBuilder<'static> {
    VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu)
}

/// The matrix `[rows, columns]` with ones on its diagonal, and a bias of zeros: a classifier that shows what it is given.
fn shown(tensors: &mut Tensors, name: &str, rows: usize, columns: usize) {
    let mut matrix = vec![0f32; rows * columns];
    (0..rows.min(columns)).for_each(|i| matrix[i * columns + i] = 1.);
    let matrix = Tensor::from_vec(matrix, (rows, columns), &Device::Cpu).unwrap();
    tensors.insert(format!("{name}.weight"), matrix);
    tensors.insert(format!("{name}.bias"), Tensor::zeros(rows, DType::F32, &Device::Cpu).unwrap());
}

fn images(side: usize) -> Vec<f32> {
    random(7, BATCH * 3 * side * side).iter().map(|x| x * 2.).collect()
}

fn tensor(images: &[f32], side: usize) -> Tensor {
    Tensor::from_slice(images, (BATCH, 3, side, side), &Device::Cpu).unwrap()
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// The backbone in `folder` on each engine that is built in.
fn engines(folder: &Path, image_size: Option<usize>) -> Vec<(Engine, Backbone)> {
    let engines = if Compute::HAS_CANDLE { Engine::ALL } else { &[Engine::Native] };
    let open = |&engine: &Engine| {
        let compute = Compute { engine, ..Compute::default() };
        let options = OpenOptions { image_size, compute, ..OpenOptions::default() };
        (engine, Backbone::open(folder.to_str().unwrap(), &options).unwrap())
    };
    engines.iter().map(open).collect()
}

/// A line of the table for each engine: how far what `read` gives is from what candle-transformers gave.
fn compare(
    what: &str,
    folder: &Path,
    image_size: Option<usize>,
    expected: &[f32],
    read: impl Fn(&Backbone) -> Vec<f32>,
) {
    for (engine, backbone) in engines(folder, image_size) {
        let error = relative(&read(&backbone), expected);
        println!("{what:<36} {engine:<7} {error:.1e}");
        assert!(error < BOUND, "{what} on {engine}: off by {error:.1e}");
    }
}

fn embed(backbone: &Backbone) -> Vec<f32> {
    backbone.embed(&images(backbone.vit.image_size()), None, 2).unwrap()
}

fn number(config: &Value, name: &str) -> usize {
    usize::try_from(config[name].as_u64().unwrap()).unwrap()
}

#[test]
fn clip_embeds_images_and_texts_as_candle_transformers_does() {
    let folder = fixture("clip");
    let config = config(&folder);
    let (vision, text) = (&config["vision_config"], &config["text_config"]);
    let clip = ClipConfig {
        vision_config: ClipVisionConfig {
            embed_dim: number(vision, "hidden_size"),
            activation: Activation::QuickGelu,
            intermediate_size: number(vision, "intermediate_size"),
            num_hidden_layers: number(vision, "num_hidden_layers"),
            num_attention_heads: number(vision, "num_attention_heads"),
            projection_dim: number(&config, "projection_dim"),
            num_channels: 3,
            image_size: number(vision, "image_size"),
            patch_size: number(vision, "patch_size"),
        },
        text_config: ClipTextConfig {
            vocab_size: number(text, "vocab_size"),
            embed_dim: number(text, "hidden_size"),
            activation: Activation::QuickGelu,
            intermediate_size: number(text, "intermediate_size"),
            max_position_embeddings: number(text, "max_position_embeddings"),
            pad_with: None,
            num_hidden_layers: number(text, "num_hidden_layers"),
            num_attention_heads: number(text, "num_attention_heads"),
            projection_dim: number(&config, "projection_dim"),
        },
        logit_scale_init_value: 0.,
        image_size: number(vision, "image_size"),
    };
    let side = clip.image_size;
    let model = ClipModel::new(var_builder(tensors(&folder)), &clip).unwrap();
    let expected = model.get_image_features(&tensor(&images(side), side)).unwrap();
    compare("clip, images", &folder, None, &values(&expected), embed);

    let texts = ["a photo of a cat", "two dogs"];
    let (_, backbone) = engines(&folder, None).remove(0);
    let expected: Vec<f32> = backbone
        .token_ids(&texts)
        .unwrap()
        .into_iter()
        .flat_map(|ids| {
            let ids = Tensor::from_slice(&ids, (1, ids.len()), &Device::Cpu).unwrap();
            values(&model.get_text_features(&ids).unwrap())
        })
        .collect();
    compare("clip, texts", &folder, None, &expected, |backbone| backbone.embed_texts(&texts, 2).unwrap());
}

#[test]
fn vit_and_mae_embed_images_as_candle_transformers_does() {
    for family in ["vit", "mae"] {
        let folder = fixture(family);
        let config: vit::Config = serde_json::from_value(config(&folder)).unwrap();
        let (side, width) = (config.image_size, config.hidden_size);
        let mut tensors = tensors(&folder);
        shown(&mut tensors, "classifier", width, width);
        let model = vit::Model::new(&config, width, var_builder(tensors)).unwrap();
        let expected = model.forward(&tensor(&images(side), side)).unwrap();
        compare(family, &folder, None, &values(&expected), embed);
    }
}

#[test]
fn siglip_embeds_images_as_candle_transformers_does() {
    // The second has images that its patches do not fill.
    for family in ["siglip", "siglip-v2"] {
        let folder = fixture(family);
        let config: siglip::VisionConfig = serde_json::from_value(config(&folder)["vision_config"].clone()).unwrap();
        let side = config.image_size;
        let weights = var_builder(tensors(&folder)).pp("vision_model");
        let model = siglip::VisionModel::new(&config, true, weights).unwrap();
        let expected = model.forward(&tensor(&images(side), side)).unwrap();
        compare(family, &folder, None, &values(&expected), embed);
    }
}

/// What candle-transformers has built into its DINOv2.
const SIDE: usize = 518;
const PATCH: usize = 14;
const WIDTH: usize = 32;
const HEADS: usize = 2;
const DEPTH: usize = 2;

/// A small DINOv2 in the Hugging Face layout, drawn at random, with what candle-transformers takes for granted: sizes, `eps`, and
/// the approximate GELU.
fn write_dinov2(folder: &Path, registers: usize, eps: f64) {
    let grid = SIDE / PATCH;
    let mut shapes = vec![
        ("embeddings.cls_token".to_owned(), vec![1, 1, WIDTH]),
        ("embeddings.position_embeddings".to_owned(), vec![1, 1 + grid * grid, WIDTH]),
        ("embeddings.patch_embeddings.projection.weight".to_owned(), vec![WIDTH, 3, PATCH, PATCH]),
        ("embeddings.patch_embeddings.projection.bias".to_owned(), vec![WIDTH]),
        ("layernorm.weight".to_owned(), vec![WIDTH]),
        ("layernorm.bias".to_owned(), vec![WIDTH]),
    ];
    if registers > 0 {
        shapes.push(("embeddings.register_tokens".to_owned(), vec![1, registers, WIDTH]));
    }
    for i in 0..DEPTH {
        let at = |name: &str| format!("encoder.layer.{i}.{name}");
        for (layer, outputs, inputs) in [
            ("attention.attention.query", WIDTH, WIDTH),
            ("attention.attention.key", WIDTH, WIDTH),
            ("attention.attention.value", WIDTH, WIDTH),
            ("attention.output.dense", WIDTH, WIDTH),
            ("mlp.fc1", 4 * WIDTH, WIDTH),
            ("mlp.fc2", WIDTH, 4 * WIDTH),
        ] {
            shapes.push((at(&format!("{layer}.weight")), vec![outputs, inputs]));
            shapes.push((at(&format!("{layer}.bias")), vec![outputs]));
        }
        for norm in ["norm1", "norm2"] {
            shapes.push((at(&format!("{norm}.weight")), vec![WIDTH]));
            shapes.push((at(&format!("{norm}.bias")), vec![WIDTH]));
        }
        shapes.extend(["layer_scale1.lambda1", "layer_scale2.lambda1"].map(|name| (at(name), vec![WIDTH])));
    }
    let tensors: Tensors = shapes
        .into_iter()
        .enumerate()
        .map(|(i, (name, shape))| {
            let is_scale = shape.len() == 1 && (name.contains("norm") && name.ends_with("weight"));
            let fan_in: usize = shape[1..].iter().product();
            let scale = if shape.len() == 1 { 0.3 } else { 2. / (fan_in as f32).sqrt() };
            let values: Vec<f32> = random(i as u64, shape.iter().product())
                .into_iter()
                .map(|value| value * scale + f32::from(u8::from(is_scale)))
                .collect();
            (name, Tensor::from_vec(values, shape, &Device::Cpu).unwrap())
        })
        .collect();
    candle_core::safetensors::save(&tensors, folder.join("model.safetensors")).unwrap();
    let model_type = if registers > 0 { "dinov2_with_registers" } else { "dinov2" };
    let config = json!({
        "model_type": model_type, "hidden_size": WIDTH, "num_hidden_layers": DEPTH, "num_attention_heads": HEADS,
        "mlp_ratio": 4, "image_size": SIDE, "patch_size": PATCH, "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": eps, "num_register_tokens": registers,
    });
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
    fs::copy(fixture("dinov2").join("preprocessor_config.json"), folder.join("preprocessor_config.json")).unwrap();
}

/// The same tensors under the names of DINOv2's own code, which candle-transformers has; queries, keys and values are one there.
fn under_own_names(mut tensors: Tensors) -> Tensors {
    let mut renamed = Tensors::new();
    for i in 0..DEPTH {
        for kind in ["weight", "bias"] {
            let parts = ["query", "key", "value"]
                .map(|name| tensors.remove(&format!("encoder.layer.{i}.attention.attention.{name}.{kind}")).unwrap());
            renamed.insert(format!("blocks.{i}.attn.qkv.{kind}"), Tensor::cat(&parts, 0).unwrap());
        }
    }
    let names = [
        ("embeddings.cls_token", "cls_token"),
        ("embeddings.position_embeddings", "pos_embed"),
        ("embeddings.register_tokens", "reg_token"),
        ("embeddings.patch_embeddings.projection", "patch_embed.proj"),
        ("layernorm", "norm"),
        ("encoder.layer", "blocks"),
        ("attention.output.dense", "attn.proj"),
        ("layer_scale1.lambda1", "ls1.gamma"),
        ("layer_scale2.lambda1", "ls2.gamma"),
    ];
    for (name, tensor) in tensors {
        let name = names.iter().fold(name, |name, (theirs, own)| name.replace(theirs, own));
        renamed.insert(name, tensor);
    }
    renamed
}

/// What `model` makes of each image by itself: it has no batches.
fn one_by_one(model: &dyn Module, width: usize) -> Vec<f32> {
    let images = tensor(&images(SIDE), SIDE);
    let logits = |i| model.forward(&images.narrow(0, i, 1).unwrap()).unwrap().narrow(1, 0, width).unwrap();
    (0..BATCH).flat_map(|i| values(&logits(i))).collect()
}

#[test]
fn dinov2_embeds_images_as_candle_transformers_does() {
    let folder = tempfile::tempdir().unwrap();
    write_dinov2(folder.path(), 0, 1e-5);
    let mut own = under_own_names(tensors(folder.path()));
    shown(&mut own, "head", 1000, 2 * WIDTH);
    let model = dinov2::DinoVisionTransformer::new(var_builder(own), DEPTH, WIDTH, HEADS).unwrap();
    let expected = one_by_one(&model, 2 * WIDTH);
    compare("dinov2, class token and mean", folder.path(), Some(SIDE), &expected, |backbone| {
        let images = images(SIDE);
        let pass = Pass { readout: Readout::Pooled(Pool::ClassTokenAndMean), ..Pass::forward(&images, 2) };
        backbone.vit.read(&pass).unwrap()
    });
}

#[test]
fn dinov2_with_registers_embeds_images_as_candle_transformers_does() {
    let folder = tempfile::tempdir().unwrap();
    write_dinov2(folder.path(), 4, 1e-6);
    let mut own = under_own_names(tensors(folder.path()));
    // Its positions are of patches alone; that of the class token goes into the token.
    let positions = own.remove("pos_embed").unwrap();
    let patches = positions.dim(1).unwrap() - 1;
    own.insert("pos_embed".to_owned(), positions.narrow(1, 1, patches).unwrap().contiguous().unwrap());
    let class = (own["cls_token"].clone() + positions.narrow(1, 0, 1).unwrap()).unwrap();
    own.insert("cls_token".to_owned(), class);
    shown(&mut own, "head", 7806, WIDTH);
    let model = dinov2reg4::DinoVisionTransformer::new(var_builder(own), DEPTH, WIDTH, HEADS).unwrap();
    let expected = one_by_one(&model, WIDTH);
    compare("dinov2 with registers", folder.path(), Some(SIDE), &expected, embed);
}
