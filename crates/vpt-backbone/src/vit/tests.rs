//! The engine against the textbook form in f64: features, every gradient, and central differences, for every family.

mod attention_maps;
mod attention_means;
mod engines;
mod keys_values;
mod mixed;
mod reference;
mod tuned;

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor, Var};
use safetensors::tensor::{Dtype, TensorView};

use self::reference::Reference;
use super::attention_pool::AttentionPoolWeights;
use super::embed::EmbeddingWeights;
use super::load::visit_norm;
use super::*;
use crate::names::{Family, VisionNames, siglip};
use crate::spec::{Positions, QkvBias, Rotary, Spec, TowerSpec};
use crate::weights::Weights;
use vpt_base::testing::random;
use vpt_kernel::Precision;

const WIDTH: usize = 24;
const BATCH: usize = 5;

fn spec(model_type: &str, activation: &str) -> Spec {
    let image = if model_type.starts_with("dinov2") { 40 } else { 24 };
    // A gated MLP that is done in several pieces.
    let (gated, activation, ratio) = if activation == "swiglu" { (true, "gelu", 30) } else { (false, activation, 2) };
    let tower = format!(
        r#""hidden_size": {WIDTH}, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 40,
           "image_size": {image}, "patch_size": 8, "hidden_act": "{activation}",
           "mlp_ratio": {ratio}, "num_register_tokens": 2, "use_swiglu_ffn": {gated}, "use_gated_mlp": {}"#,
        activation == "silu"
    );
    let config = match model_type {
        "clip" => format!(r#"{{"model_type": "clip", "vision_config": {{{tower}}}}}"#),
        _ => format!(r#"{{"model_type": "{model_type}", {tower}}}"#),
    };
    Spec::from_json(config.as_bytes(), Path::new("config.json")).unwrap()
}

/// A checkpoint of seeded random tensors, large enough everywhere to tell right from wrong.
fn weights(spec: &Spec) -> Weights {
    let mut shapes: Vec<(String, Vec<usize>)> = Vec::new();
    let mut note = |name: &str, shape: &[usize], _: &mut Vec<f32>| {
        shapes.push((name.to_owned(), shape.to_vec()));
        Ok(())
    };
    let names = &spec.family.vision;
    EmbeddingWeights::default().visit(spec, &mut note).unwrap();
    for i in 0..spec.vision.depth {
        let layer_scale = spec.vision.layer_scale.then(Default::default);
        let mut block = BlockWeights { layer_scale, ..BlockWeights::default() };
        block.visit(&names.blocks, i, &spec.vision, &mut note).unwrap();
    }
    visit_norm(&mut Default::default(), names.post_norm, WIDTH, &mut note).unwrap();
    if let Some(names) = names.attention_pool.filter(|_| spec.pool == Pool::Attention) {
        AttentionPoolWeights::default().visit(&names, &spec.vision, &mut note).unwrap();
    }
    let tensors: HashMap<String, (Vec<usize>, Vec<u8>)> = shapes
        .into_iter()
        .enumerate()
        .map(|(i, (name, shape))| {
            let offset = if shape.len() == 1 && name.contains("norm") && name.ends_with("weight") { 1.0 } else { 0.0 };
            let scale = if shape.len() == 1 { 0.3 } else { 2.0 / (*shape.last().unwrap() as f32).sqrt() };
            let values = random(i as u64, shape.iter().product());
            let bytes = values.iter().flat_map(|v| (v * scale + offset).to_le_bytes()).collect();
            (name, (shape, bytes))
        })
        .collect();
    let views = tensors.iter().map(|(n, (s, b))| (n, TensorView::new(Dtype::F32, s.clone(), b).unwrap()));
    let bytes = safetensors::serialize(views, None).unwrap();
    Weights::from_static(Box::leak(bytes.into_boxed_slice()), Path::new("random")).unwrap()
}

/// Backbones and sizes of their images: those of every family, and such as differ from a family in some facts.
fn families() -> Vec<(Spec, usize)> {
    let families = [
        ("clip", "quick_gelu", 24),
        ("clip", "gelu", 24),
        ("vit", "gelu", 24),
        ("vit", "gelu_new", 32),
        ("deit", "gelu", 32),
        ("dinov2", "gelu", 24),
        ("dinov2", "swiglu", 24),
        ("dinov2_with_registers", "gelu", 24),
        ("siglip_vision_model", "gelu_pytorch_tanh", 24),
        ("dinov3_vit", "gelu", 24),
        ("dinov3_vit", "silu", 40),
    ];
    let families = families.map(|(model_type, activation, size)| (spec(model_type, activation), size));
    // The image has pixels behind its last whole patches.
    let floor = Spec { image_size: 30, ..spec("siglip_vision_model", "gelu") };
    let others = other_facts().map(|spec| (spec, 32));
    families.into_iter().chain([(floor, 30)]).chain(others).collect()
}

/// Facts in combinations that no family has today.
fn other_facts() -> [Spec; 10] {
    let with_bias =
        |spec: &Spec, [q, k, v]: [bool; 3]| TowerSpec { qkv_bias: QkvBias { q, k, v }, ..spec.vision.clone() };
    let without_prefix = |spec: &Spec| spec.positions.map(|positions| Positions { prefix: 0, ..positions });
    let distilled = spec("dinov2_with_registers", "swiglu");
    let (vit, clip, dinov2) = (spec("vit", "gelu_new"), spec("clip", "gelu"), spec("dinov2_with_registers", "gelu"));
    [
        // As SigLIP without its attention pooling.
        Spec { class_token: false, positions: without_prefix(&vit), pool: Pool::Mean, ..vit.clone() },
        // A norm of the mean, not the mean of what a norm made.
        Spec { class_token: false, positions: without_prefix(&dinov2), pool: Pool::NormOfMean, ..dinov2.clone() },
        // Registers before the patches and no class token; no bias of q, k and v at all.
        Spec {
            class_token: false,
            positions: without_prefix(&dinov2),
            pool: Pool::Mean,
            vision: with_bias(&dinov2, [false; 3]),
            ..dinov2.clone()
        },
        // Tokens before the patches have no position, keys no bias.
        Spec { positions: without_prefix(&dinov2), vision: with_bias(&dinov2, [true, false, true]), ..dinov2.clone() },
        // Rotary positions beside learned ones.
        Spec { rotary: Some(Rotary { theta: 30. }), ..dinov2 },
        // Rotary positions, no token before the patches, a norm before the first block.
        Spec {
            class_token: false,
            positions: None,
            rotary: Some(Rotary { theta: 100. }),
            pool: Pool::Mean,
            ..clip.clone()
        },
        // The mean of patches behind a norm before the first block and beside a class token.
        Spec { pool: Pool::Mean, patch_bias: true, vision: with_bias(&clip, [false, false, true]), ..clip },
        Spec { pool: Pool::ClassTokenAndMean, pre_norm: false, ..vit.clone() },
        // Attention pooling that looks at a class token, at registers and at patches.
        Spec { family: with_attention_pool(vit.family), pool: Pool::Attention, ..vit },
        Spec { family: with_attention_pool(distilled.family), pool: Pool::Attention, ..distilled },
    ]
}

/// `family` with tensors of attention pooling, called as SigLIP's.
fn with_attention_pool(family: &'static Family) -> &'static Family {
    let vision = VisionNames { attention_pool: siglip::FAMILY.vision.attention_pool, ..family.vision };
    Box::leak(Box::new(Family { vision, ..*family }))
}

/// Values of the features of an image.
fn feature_len(spec: &Spec) -> usize {
    spec.pool.vectors() * WIDTH
}

/// A tower of random weights, images for it, and a loss that is linear in their features.
struct RandomTower {
    weights: Weights,
    vit: Vit,
    /// `[B, 3, S, S]`.
    images: Vec<f32>,
    /// Values of the features of an image.
    each: usize,
    /// The gradient of the loss `[B, each]`.
    slopes: Vec<f32>,
}

impl RandomTower {
    fn new(spec: &Spec, size: usize, batch: usize) -> Self {
        let weights = weights(spec);
        let vit = Vit::load(spec, &weights, size, Precision::F32).unwrap();
        let each = feature_len(spec);
        let (images, slopes) = (random(100, batch * 3 * size * size), random(101, batch * each));
        Self { weights, vit, images, each, slopes }
    }
}

const LAYERS: [Option<PromptLayers>; 6] = [
    None,
    Some(PromptLayers::All),
    Some(PromptLayers::First(1)),
    Some(PromptLayers::First(2)),
    Some(PromptLayers::Last(1)),
    Some(PromptLayers::Last(2)),
];
const TOKENS: usize = 3;

fn prompts(layers: Option<PromptLayers>, data: &[f32]) -> Option<TokenPrompts<'_>> {
    let (start, layers) = layers?.resolve(3).unwrap();
    Some(TokenPrompts { start, layers, tokens: TOKENS, data: &data[..layers * TOKENS * WIDTH] })
}

fn f64_tensor(data: &[f32], shape: &[usize]) -> Tensor {
    Tensor::from_slice(data, shape, &Device::Cpu).unwrap().to_dtype(DType::F64).unwrap()
}

fn values(t: &Tensor) -> Vec<f64> {
    t.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1().unwrap()
}

fn relative_error(got: &[f32], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    let difference: f64 = got.iter().zip(want).map(|(&g, w)| (f64::from(g) - w).powi(2)).sum();
    (difference / want.iter().map(|w| w * w).sum::<f64>()).sqrt()
}

#[test]
fn features_and_gradients_equal_the_textbook_form() {
    for (spec, size) in families() {
        let RandomTower { weights, vit, images, each, slopes } = RandomTower::new(&spec, size, BATCH);
        let reference = Reference::new(&spec, &weights, size, DType::F64, &Device::Cpu).unwrap();
        let data = random(102, 3 * TOKENS * WIDTH);
        for layers in LAYERS {
            let case = format!("{spec:?} {size} {layers:?}");
            let prompts = prompts(layers, &data);
            let image_var = Var::from_tensor(&f64_tensor(&images, &[BATCH, 3, size, size])).unwrap();
            let prompt_var =
                prompts.as_ref().map(|p| Var::from_tensor(&f64_tensor(p.data, &[p.layers, p.tokens, WIDTH])).unwrap());
            let pair = layers.zip(prompt_var.as_ref().map(Var::as_tensor));
            let want = reference.features(&image_var, spec.pool, pair).unwrap();
            let got = vit.features(&images, prompts, 2).unwrap();
            assert!(relative_error(&got, &values(&want)) < 2e-6, "{case}: features");

            let weighted = (&want * f64_tensor(&slopes, &[BATCH, each])).unwrap().sum_all().unwrap();
            let grads = weighted.backward().unwrap();
            let loss = |range: Range<usize>, _: &[f32]| Ok((slopes[range.start * each..range.end * each].to_vec(), ()));
            for want_pixels in [false, true] {
                let want = Want { tokens: true, pixels: want_pixels, ..Want::default() };
                let (got, _) = vit
                    .step(&Pass { prompts, want, micro_batch: Some(2), ..Pass::forward(&images, 2) }, &loss)
                    .unwrap();
                assert_eq!(got.tokens.is_some(), layers.is_some());
                if let (Some(got), Some(var)) = (&got.tokens, &prompt_var) {
                    let error = relative_error(got, &values(grads.get(var).unwrap()));
                    assert!(error < 1e-5, "{case}: prompt gradient off by {error:e}");
                }
                assert_eq!(got.pixels.is_some(), want_pixels);
                if let Some(got) = &got.pixels {
                    let error = relative_error(got, &values(grads.get(&image_var).unwrap()));
                    assert!(error < 1e-5, "{case}: pixel gradient off by {error:e}");
                }
            }
        }
    }
}

const READS: [&[TokenRead]; 4] = [
    &[TokenRead { after: 3, rows: TokenRows::Patches }],
    &[TokenRead { after: 1, rows: TokenRows::Patches }, TokenRead { after: 3, rows: TokenRows::Patches }],
    &[TokenRead { after: 0, rows: TokenRows::Patches }, TokenRead { after: 2, rows: TokenRows::All }],
    &[
        TokenRead { after: 1, rows: TokenRows::Patches },
        TokenRead { after: 2, rows: TokenRows::All },
        TokenRead { after: 2, rows: TokenRows::Patches },
        TokenRead { after: 3, rows: TokenRows::All },
    ],
];

#[test]
fn tokens_of_several_blocks_and_their_gradients_equal_the_textbook_form() {
    for (spec, size) in families() {
        let weights = weights(&spec);
        let vit = Vit::load(&spec, &weights, size, Precision::F32).unwrap();
        let reference = Reference::new(&spec, &weights, size, DType::F64, &Device::Cpu).unwrap();
        let images = random(100, BATCH * 3 * size * size);
        let data = random(102, 3 * TOKENS * WIDTH);
        let patches = (size / 8) * (size / 8);
        for (layers, reads) in LAYERS.into_iter().flat_map(|layers| READS.map(|reads| (layers, reads))) {
            let case = format!("{spec:?} {layers:?} {reads:?}");
            let prompts = prompts(layers, &data);
            let readout = Readout::Tokens(reads);
            let image_var = Var::from_tensor(&f64_tensor(&images, &[BATCH, 3, size, size])).unwrap();
            let prompt_var =
                prompts.as_ref().map(|p| Var::from_tensor(&f64_tensor(p.data, &[p.layers, p.tokens, WIDTH])).unwrap());
            let tokens = reference.tokens(&image_var, layers.zip(prompt_var.as_ref().map(Var::as_tensor))).unwrap();
            let parts: Vec<_> = reads
                .iter()
                .map(|read| match read.rows {
                    TokenRows::All => tokens[read.after].clone(),
                    TokenRows::Patches => tokens[read.after].narrow(1, vit.tokens() - patches, patches).unwrap(),
                })
                .collect();
            let want = Tensor::cat(&parts, 1).unwrap();
            let rows = vit.feature_rows(readout);
            assert_eq!(want.dims(), [BATCH, rows, WIDTH], "{case}");
            let pass = Pass { prompts, readout, ..Pass::forward(&images, 2) };
            assert!(relative_error(&vit.read(&pass).unwrap(), &values(&want)) < 2e-6, "{case}: features");

            let slopes = random(101, BATCH * rows * WIDTH);
            let weighted = (&want * f64_tensor(&slopes, want.dims())).unwrap().sum_all().unwrap();
            let grads = weighted.backward().unwrap();
            let each = rows * WIDTH;
            let loss = |range: Range<usize>, _: &[f32]| Ok((slopes[range.start * each..range.end * each].to_vec(), ()));
            for pixels in [false, true] {
                let want = Want { tokens: true, pixels, ..Want::default() };
                let (got, _) = vit.step(&Pass { want, micro_batch: Some(2), ..pass }, &loss).unwrap();
                assert_eq!((got.tokens.is_some(), got.pixels.is_some()), (prompts.is_some(), pixels), "{case}");
                if let (Some(got), Some(prompts), Some(var)) = (&got.tokens, prompts, &prompt_var) {
                    if reads.iter().any(|read| read.after > prompts.start) {
                        let error = relative_error(got, &values(grads.get(var).unwrap()));
                        assert!(error < 1e-5, "{case}: prompt gradient off by {error:e}");
                    } else {
                        // Prompts behind the last read learn nothing.
                        assert!(grads.get(var).is_none_or(|want| values(want).iter().all(|&w| w == 0.)), "{case}");
                        assert!(got.iter().all(|&g| g == 0.), "{case}: prompts that nothing reads have a gradient");
                    }
                }
                if let Some(got) = &got.pixels {
                    let error = relative_error(got, &values(grads.get(&image_var).unwrap()));
                    assert!(error < 1e-5, "{case}: pixel gradient off by {error:e}");
                }
            }
        }
    }
}

#[test]
fn a_pass_goes_on_from_tokens_as_if_it_had_come_from_images() {
    for (spec, size) in families() {
        let weights = weights(&spec);
        let vit = Vit::load(&spec, &weights, size, Precision::F32).unwrap();
        let images = random(100, BATCH * 3 * size * size);
        let data = random(102, 3 * TOKENS * WIDTH);
        for blocks in 0..3 {
            let before = [TokenRead { after: blocks, rows: TokenRows::All }];
            let tokens = vit.read(&Pass { readout: Readout::Tokens(&before), ..Pass::forward(&images, 2) }).unwrap();
            let input = Input::Tokens { blocks, tokens: &tokens };
            let after =
                [TokenRead { after: blocks, rows: TokenRows::Patches }, TokenRead { after: 3, rows: TokenRows::All }];
            for readout in [Readout::Features, Readout::Tokens(&after)] {
                let prompts = prompts(Some(PromptLayers::Last(3 - blocks)), &data);
                // Block 0 of CLIP has its prompts before `ln_pre`, which is no matter to the other tokens.
                let want = Want { tokens: true, ..Want::default() };
                let loss = |_: Range<usize>, features: &[f32]| Ok((features.to_vec(), features.to_vec()));
                let pass = Pass { prompts, readout, want, ..Pass::forward(&images, 2) };
                let (whole, features) = vit.step(&pass, &loss).unwrap();
                let (rest, features_of_rest) = vit.step(&Pass { input, ..pass }, &loss).unwrap();
                assert_eq!(features, features_of_rest, "{blocks} blocks, {readout:?}");
                assert!(whole.tokens.as_ref().unwrap().iter().any(|&g| g != 0.), "{blocks} blocks, {readout:?}");
                assert_eq!(whole.tokens, rest.tokens, "{blocks} blocks, {readout:?}");
            }
        }
    }
}

#[test]
fn blocks_that_are_run_again_give_the_same_gradients() {
    for (spec, size) in families() {
        let weights = weights(&spec);
        for precision in [Precision::F32, Precision::Bf16] {
            let mut vit = Vit::load(&spec, &weights, size, precision).unwrap();
            let images = random(100, BATCH * 3 * size * size);
            let data = random(102, 3 * TOKENS * WIDTH);
            for (layers, pixels) in [
                (Some(PromptLayers::All), false),
                (Some(PromptLayers::First(2)), true),
                (Some(PromptLayers::Last(2)), false),
                (None, true),
            ] {
                let want = Want { tokens: layers.is_some(), pixels, ..Want::default() };
                let pass = Pass { prompts: prompts(layers, &data), want, ..Pass::forward(&images, 2) };
                let loss = |_: Range<usize>, features: &[f32]| Ok((features.to_vec(), ()));
                vit.limit_memory(None);
                let one = Some(1);
                let (kept, _) = vit.step(&Pass { micro_batch: one, ..pass }, &loss).unwrap();

                let least = vit.bytes(&pass, BATCH, MemoryPlan { micro_batch: 1, recompute: true });
                vit.limit_memory(Some(least as u64));
                assert_eq!(vit.memory_plan(&pass, BATCH).unwrap(), MemoryPlan { micro_batch: 1, recompute: true });
                let (again, _) = vit.step(&pass, &loss).unwrap();
                for (given, gradient) in [(layers.is_some(), &kept.tokens), (pixels, &kept.pixels)] {
                    assert_eq!(given, gradient.as_ref().is_some_and(|g| g.iter().any(|&g| g != 0.)), "{layers:?}");
                }
                assert_eq!((kept.tokens, kept.pixels), (again.tokens, again.pixels), "{layers:?}");

                vit.limit_memory(Some(least as u64 - 1));
                let error = vit.step(&pass, &loss).unwrap_err().to_string();
                assert!(error.starts_with("max_memory: "), "{error}");
                vit.limit_memory(Some(u64::MAX));
                assert!(!vit.memory_plan(&pass, BATCH).unwrap().recompute);
            }
        }
    }
}

#[test]
fn gradients_equal_central_differences() {
    for (spec, size) in families() {
        let weights = weights(&spec);
        let vit = Vit::load(&spec, &weights, size, Precision::F32).unwrap();
        let reference = Reference::new(&spec, &weights, size, DType::F64, &Device::Cpu).unwrap();
        let (images, each) = (random(100, 2 * 3 * size * size), feature_len(&spec));
        let slopes = random(101, 2 * each);
        let data = random(102, 3 * TOKENS * WIDTH);
        for layers in [PromptLayers::All, PromptLayers::First(2), PromptLayers::Last(2)] {
            let prompts = prompts(Some(layers), &data).unwrap();
            let shape = [prompts.layers, prompts.tokens, WIDTH];
            let value = |images: &Tensor, prompts: &Tensor| {
                let features = reference.features(images, spec.pool, Some((layers, prompts))).unwrap();
                values(&(features * f64_tensor(&slopes, &[2, each])).unwrap().sum_all().unwrap())[0]
            };
            let (image, prompt) = (f64_tensor(&images, &[2, 3, size, size]), f64_tensor(prompts.data, &shape));
            let loss = |range: Range<usize>, _: &[f32]| Ok((slopes[range.start * each..range.end * each].to_vec(), ()));
            let want = Want { tokens: true, pixels: true, ..Want::default() };
            let (grads, _) =
                vit.step(&Pass { prompts: Some(prompts), want, ..Pass::forward(&images, 1) }, &loss).unwrap();
            // Along random directions: each checks every entry of the gradient at once.
            let mut steepest = [0_f64; 2];
            for seed in 0..3 {
                let h = 1e-5;
                let along = |direction: &[f32], grad: &[f32]| {
                    direction.iter().zip(grad).map(|(&d, &g)| f64::from(d) * f64::from(g)).sum::<f64>()
                };
                let direction = random(200 + seed, prompts.data.len());
                let step = (f64_tensor(&direction, &shape) * h).unwrap();
                let up = value(&image, &(&prompt + &step).unwrap());
                let down = value(&image, &(&prompt - &step).unwrap());
                let (got, want) = (along(&direction, &grads.tokens.clone().unwrap()), (up - down) / (2.0 * h));
                steepest[0] = steepest[0].max(want.abs());
                assert!((got - want).abs() < 1e-4 * want.abs().max(1.0), "{layers}: {got} and {want}");

                let direction = random(300 + seed, images.len());
                let step = (f64_tensor(&direction, image.dims()) * h).unwrap();
                let up = value(&(&image + &step).unwrap(), &prompt);
                let down = value(&(&image - &step).unwrap(), &prompt);
                let (got, want) = (along(&direction, &grads.pixels.clone().unwrap()), (up - down) / (2.0 * h));
                steepest[1] = steepest[1].max(want.abs());
                assert!((got - want).abs() < 1e-4 * want.abs().max(1.0), "pixels: {got} and {want}");
            }
            assert!(steepest.iter().all(|&slope| slope > 1e-2), "{layers}: no slope to tell right from wrong by");
        }
    }
}

#[test]
fn another_pool_is_read_as_if_it_were_the_backbones_own() {
    let (spec, size) = (spec("dinov2_with_registers", "gelu"), 24);
    let weights = weights(&spec);
    let vit = Vit::load(&spec, &weights, size, Precision::F32).unwrap();
    let images = random(100, BATCH * 3 * size * size);
    let data = random(102, 3 * TOKENS * WIDTH);
    for pool in [Pool::ClassToken, Pool::Mean, Pool::NormOfMean, Pool::ClassTokenAndMean] {
        let own = Vit::load(&Spec { pool, ..spec.clone() }, &weights, size, Precision::F32).unwrap();
        // Prompts that travel are in the rows behind the last block, and in no feature.
        let pass = Pass { prompts: prompts(Some(PromptLayers::First(2)), &data), ..Pass::forward(&images, 2) };
        let features = vit.read(&Pass { readout: Readout::Pooled(pool), ..pass }).unwrap();
        assert_eq!(features, own.read(&pass).unwrap(), "{pool:?}");
        assert_eq!(features.len(), BATCH * pool.vectors() * WIDTH);
    }
    let bare = &other_facts()[0];
    let vit = Vit::load(bare, &self::weights(bare), size, Precision::F32).unwrap();
    for pool in [Pool::ClassToken, Pool::ClassTokenAndMean, Pool::Attention] {
        let error = vit.read(&Pass { readout: Readout::Pooled(pool), ..Pass::forward(&images, 1) }).unwrap_err();
        assert!(error.to_string().starts_with("readout: "), "{error}");
    }
}

#[test]
fn threads_and_micro_batches_change_nothing_but_the_order_of_sums() {
    let (spec, size) = families().remove(0);
    let weights = weights(&spec);
    let vit = Vit::load(&spec, &weights, size, Precision::F32).unwrap();
    let images = random(100, BATCH * 3 * size * size);
    let data = random(102, 3 * TOKENS * WIDTH);
    let loss = |range: Range<usize>, features: &[f32]| Ok((features.to_vec(), range));
    let want = Want { tokens: true, pixels: true, ..Want::default() };
    let run = |micro_batch, threads| {
        let prompts = prompts(LAYERS[3], &data);
        vit.step(&Pass { prompts, want, micro_batch, ..Pass::forward(&images, threads) }, &loss).unwrap()
    };
    let (first, ranges) = run(Some(BATCH), 1);
    assert_eq!((ranges.len(), ranges[0].clone()), (1, 0..BATCH));
    for (micro, threads) in [(Some(1), 1), (Some(2), 2), (None, 3), (Some(1), 20), (Some(100), 2)] {
        let (grads, ranges) = run(micro, threads);
        assert_eq!(ranges.iter().flat_map(Clone::clone).collect::<Vec<_>>(), (0..BATCH).collect::<Vec<_>>());
        let wide = |x: &Option<Vec<f32>>| x.as_ref().unwrap().iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
        assert!(relative_error(grads.tokens.as_ref().unwrap(), &wide(&first.tokens)) < 1e-6);
        assert!(relative_error(grads.pixels.as_ref().unwrap(), &wide(&first.pixels)) < 1e-6);
        let (again, _) = run(micro, threads);
        assert_eq!((again.tokens, again.pixels), (grads.tokens, grads.pixels));
    }
    let (none, ranges) = vit.step(&Pass { want, ..Pass::forward(&[], 2) }, &loss).unwrap();
    assert!(none.tokens.is_none() && none.pixels.unwrap().is_empty() && ranges.is_empty());
}

#[test]
fn shapes_that_do_not_fit_are_errors() {
    let (spec, size) = families().remove(0);
    let weights = weights(&spec);
    assert!(Vit::load(&spec, &weights, size + 1, Precision::F32).is_err());
    let vit = Vit::load(&spec, &weights, size, Precision::F32).unwrap();
    let images = random(1, 3 * size * size);
    let message = |r: Result<Vec<f32>>| r.unwrap_err().to_string();
    assert!(message(vit.features(&images[1..], None, 1)).starts_with("images: "));
    for (start, layers, tokens, len) in
        [(0, 4, 3, 288), (3, 1, 3, 72), (0, 0, 3, 0), (0, 1, 3, 71), (usize::MAX, 2, 1, 48)]
    {
        let data = vec![0.0; len];
        let prompts = TokenPrompts { start, layers, tokens, data: &data };
        assert!(message(vit.features(&images, Some(prompts), 1)).starts_with("prompts: "));
    }
    let read = |after: usize| [TokenRead { after, rows: TokenRows::Patches }];
    for reads in [&read(4)[..], &[], &[read(2), read(1)].concat()] {
        let pass = Pass { readout: Readout::Tokens(reads), ..Pass::forward(&images, 1) };
        assert!(message(vit.read(&pass)).starts_with("readout: "), "{reads:?}");
    }
    let tokens = random(2, vit.tokens() * WIDTH);
    for (blocks, readout) in [(3, Readout::Features), (4, Readout::Features), (2, Readout::Tokens(&read(1)))] {
        let pass = Pass { input: Input::Tokens { blocks, tokens: &tokens }, readout, ..Pass::forward(&images, 1) };
        assert!(message(vit.read(&pass)).starts_with("tokens: "), "{blocks} {readout:?}");
    }
    let short = |_: Range<usize>, _: &[f32]| Ok((vec![0.0], ()));
    let want = Want { pixels: true, ..Want::default() };
    assert!(vit.step(&Pass { want, ..Pass::forward(&images, 1) }, &short).is_err());
}
