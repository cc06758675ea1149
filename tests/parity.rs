//! Equality with PyTorch: losses and gradients of prompts and heads, and embeddings, on small checkpoints of every family.
//!
//! `scripts/make_fixtures.py` and `scripts/make_siglip_fixtures.py` made the checkpoints and what is expected of them,
//! `scripts/make_e2vpt_fixture.py` what is of keys and values. The bars are what f32 allows in another
//! order of summation, far below the 1e-3 (gradients) and 1e-4 (embeddings) that the project promises.

// The lint's exception for tests does not reach the functions they share.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use common::relative;
use vpt::backbone::vit::{Pass, PromptLayers, TokenPrompts, Vit, Want};
use vpt::backbone::{Backbone, OpenOptions, Precision};
use vpt::head::HeadKind;
use vpt::image::decode::decode;
use vpt::loss::{CrossEntropy, Loss};
use vpt::model::{ClassifierSpec, Model, StepInput};
use vpt::params::{Group, Param};
use vpt::prompt::PartShape;
use vpt::prompt::key_values::{KeyValueShape, importance};

/// Those with gradients in their fixtures.
const LEARNED: [&str; 6] = ["clip", "clip-gelu", "vit", "dinov2", "dinov2-registers", "siglip"];
/// Those with embeddings in them: also a distilled DeiT, a SigLIP 2 whose patches do not fill its images, and a NaFlex one.
const FAMILIES: [&str; 9] =
    ["clip", "clip-gelu", "vit", "dinov2", "dinov2-registers", "siglip", "deit", "siglip-v2", "siglip2"];
const SIDE: usize = 32;
/// An image size other than the stored one.
const LARGE: usize = 48;
const CLASSES: usize = 7;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

fn open(family: &str, image_size: Option<usize>) -> Backbone {
    let options = OpenOptions { image_size, ..OpenOptions::default() };
    Backbone::open(fixtures().join(family).to_str().unwrap(), &options).unwrap()
}

/// The numbers PyTorch computed.
struct Expected(HashMap<String, Tensor>);

impl Expected {
    fn open(family: &str) -> Self {
        let path = fixtures().join(family).join("expected.safetensors");
        Self(candle_core::safetensors::load(path, &Device::Cpu).unwrap())
    }

    fn get(&self, name: &str) -> Vec<f32> {
        let tensor = self.0.get(name).unwrap_or_else(|| panic!("no {name} in the fixture"));
        tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    fn shape(&self, name: &str) -> Vec<usize> {
        self.0[name].dims().to_vec()
    }
}

/// Softmax cross-entropy of a linear head, by hand.
struct Head {
    weight: Vec<f32>,
    bias: Vec<f32>,
    labels: Vec<usize>,
}

/// What the head finds for some consecutive images.
struct Part {
    logits: Vec<f32>,
    loss: f32,
    weight: Vec<f32>,
    bias: Vec<f32>,
}

impl Head {
    fn loss(&self, images: Range<usize>, features: &[f32]) -> (Vec<f32>, Part) {
        let d = self.weight.len() / CLASSES;
        let batch = self.labels.len() as f32;
        let mut part = Part { logits: vec![], loss: 0.0, weight: vec![0.0; CLASSES * d], bias: vec![0.0; CLASSES] };
        let mut gradient = vec![0.0; features.len()];
        for ((feature, gradient), &label) in
            features.chunks(d).zip(gradient.chunks_mut(d)).zip(&self.labels[images.clone()])
        {
            let dot = |row: &[f32]| row.iter().zip(feature).map(|(w, x)| w * x).sum::<f32>();
            let logits: Vec<f32> = self.weight.chunks(d).zip(&self.bias).map(|(row, b)| dot(row) + b).collect();
            let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum: f32 = logits.iter().map(|z| (z - largest).exp()).sum();
            part.loss += (sum.ln() + largest - logits[label]) / batch;
            for (class, z) in logits.iter().enumerate() {
                let dz = ((z - largest).exp() / sum - if class == label { 1.0 } else { 0.0 }) / batch;
                part.bias[class] += dz;
                for i in 0..d {
                    part.weight[class * d + i] += dz * feature[i];
                    gradient[i] += dz * self.weight[class * d + i];
                }
            }
            part.logits.extend(logits);
        }
        (gradient, part)
    }
}

/// 1 on a border of 4 pixels, 0 within.
fn border(index: usize) -> f32 {
    let (x, y) = (index % SIDE, index / SIDE % SIDE);
    if (4..SIDE - 4).contains(&x) && (4..SIDE - 4).contains(&y) { 0.0 } else { 1.0 }
}

/// Runs one case in one way of dividing the work and returns the largest relative error of all it computes.
fn error(vit: &Vit, expected: &Expected, case: &str, threads: usize, micro_batch: Option<usize>) -> f64 {
    let labels = expected.get("labels").iter().map(|&l| l as usize).collect();
    let head = Head { weight: expected.get("head.weight"), bias: expected.get("head.bias"), labels };
    let mut images = expected.get("images");
    if case == "pad" {
        let pixels = expected.get("pad.pixels");
        for image in images.chunks_mut(pixels.len()) {
            for (i, (x, p)) in image.iter_mut().zip(&pixels).enumerate() {
                *x += p * border(i);
            }
        }
    }
    let data = case.starts_with("vpt").then(|| expected.get(&format!("{case}.prompts")));
    let prompts = data.as_deref().map(|data| {
        let shape = expected.shape(&format!("{case}.prompts"));
        let layers = match case {
            "vpt-shallow" => PromptLayers::First(1),
            "vpt-deep" => PromptLayers::All,
            "vpt-deep.first-2" => PromptLayers::First(2),
            "vpt-deep.last-2" => PromptLayers::Last(2),
            "vpt-deep.last-1" => PromptLayers::Last(1),
            other => panic!("no such case: {other}"),
        };
        let (start, layers) = layers.resolve(vit.depth()).unwrap();
        assert_eq!((layers, vit.width()), (shape[0], shape[2]));
        TokenPrompts { start, layers, tokens: shape[1], data }
    });
    let want = Want { tokens: prompts.is_some(), pixels: case == "pad", ..Want::default() };
    let pass = Pass { prompts, want, micro_batch, ..Pass::forward(&images, threads) };
    let (grads, parts) = vit.step(&pass, &|range, features| Ok(head.loss(range, features))).unwrap();

    assert_eq!((grads.tokens.is_some(), grads.pixels.is_some()), (data.is_some(), case == "pad"), "{case}");
    let sum = |of: fn(&Part) -> &[f32]| {
        parts
            .iter()
            .map(of)
            .fold(vec![0.0; of(&parts[0]).len()], |sum, part| sum.iter().zip(part).map(|(a, b)| a + b).collect())
    };
    let want = |name: &str| expected.get(&format!("{case}.{name}"));
    let loss: f32 = parts.iter().map(|p| p.loss).sum();
    let logits: Vec<f32> = parts.iter().flat_map(|p| p.logits.clone()).collect();
    let mut errors = vec![
        relative(&[loss], &want("loss")),
        relative(&logits, &want("logits")),
        relative(&sum(|p| &p.weight), &want("grad.head.weight")),
        relative(&sum(|p| &p.bias), &want("grad.head.bias")),
    ];
    if let Some(tokens) = grads.tokens {
        errors.push(relative(&tokens, &want("grad.prompts")));
    }
    if let Some(pixels) = grads.pixels {
        let want = want("grad.pixels");
        let mut sum = vec![0.0; want.len()];
        for image in pixels.chunks(want.len()) {
            sum.iter_mut().zip(image).enumerate().for_each(|(i, (sum, g))| *sum += g * border(i));
        }
        errors.push(relative(&sum, &want));
    }
    // Or the largest would be that of the others.
    assert!(errors.iter().all(|error| error.is_finite()), "{case}: {errors:?}");
    errors.into_iter().fold(0.0, f64::max)
}

#[test]
fn losses_and_gradients_equal_pytorch() {
    for family in LEARNED {
        let vit = open(family, None).vit;
        let expected = Expected::open(family);
        for case in
            ["linear", "vpt-shallow", "vpt-deep", "vpt-deep.first-2", "vpt-deep.last-2", "vpt-deep.last-1", "pad"]
        {
            for (threads, micro_batch) in [(1, None), (2, None), (1, Some(2)), (3, Some(1))] {
                let error = error(&vit, &expected, case, threads, micro_batch);
                println!("{family} {case} {threads} {micro_batch:?}: {error:.1e}");
                assert!(error < 1e-5, "{family} {case}, {threads} threads, micro-batch {micro_batch:?}: {error:.1e}");
            }
        }
    }
}

#[test]
fn keys_and_values_beside_tokens_have_pytorchs_loss_and_gradients() {
    let path = fixtures().join("e2vpt.safetensors");
    let expected = Expected(candle_core::safetensors::load(path, &Device::Cpu).unwrap());
    for (family, case) in
        ["clip", "vit", "dinov2", "dinov2-registers"].into_iter().flat_map(|f| [(f, "all"), (f, "last")])
    {
        let name = |tensor: &str| format!("{family}.{case}.{tensor}");
        let backbone = Arc::new(open(family, None));
        let [layers, tokens, _] = expected.shape(&name("prompt.tokens"))[..] else { panic!("three dimensions") };
        let keys_values = expected.shape(&name("prompt.keys_values"))[1];
        let start = backbone.vit.depth() - layers;
        let shape = PartShape::KeysValues(KeyValueShape { start, layers, tokens, keys_values, pruned: None });
        let (head, classes) = (ClassifierSpec::Head(HeadKind::Linear), expected.shape(&name("head.bias"))[0]);
        let model = Model::new(backbone, &shape.into(), head, classes, 2).unwrap();
        let param = |(tensor, shape): &(String, Vec<usize>)| {
            Param::new(tensor, shape, expected.get(&name(tensor)), Group::Part(0)).unwrap()
        };
        let params: Vec<_> = model.tensors().iter().map(param).collect();
        let labels: Vec<u32> = expected.get(&format!("{family}.labels")).iter().map(|&label| label as u32).collect();
        let images = expected.get(&format!("{family}.images"));
        for micro_batch in [None, Some(1)] {
            let input = StepInput {
                images: &images,
                blocks: 0,
                labels: &labels,
                drawn: &[],
                loss: &Loss::CrossEntropy(CrossEntropy::default()),
                frozen: None,
                micro_batch,
            };
            let output = model.step(&params, &input).unwrap();
            let loss = output.loss as f32 / labels.len() as f32;
            let mut errors = vec![relative(&[loss], &expected.get(&name("loss")))];
            for (gradient, (tensor, _)) in output.gradients.iter().zip(model.tensors()) {
                errors.push(relative(gradient, &expected.get(&name(&format!("grad.{tensor}")))));
            }
            assert!(errors.len() == 5 && errors.iter().all(|&error| error < 1e-4), "{family} {case}: {errors:?}");
            // What decides which token values are pruned.
            let shape = [layers, tokens, model.backbone().vit.width()];
            let (of_tokens, of_segments) = importance(shape, &params[0].values, &output.gradients[0]);
            // A token as a whole hardly matters, as the next norm takes its length away: what is left of a sum is small.
            let largest = of_segments.iter().fold(0f64, |most, score| most.max(score.abs()));
            for (found, tensor) in [(of_tokens, "tokens"), (of_segments, "segments")] {
                let expected = expected.get(&name(&format!("importance.{tensor}")));
                assert_eq!(found.len(), expected.len());
                let apart = found.iter().zip(&expected).map(|(a, b)| (a - f64::from(*b)).abs()).fold(0., f64::max);
                assert!(apart < 1e-4 * largest, "{family} {case}, {tensor}: {apart:.1e} of {largest:.1e}");
            }
        }
    }
}

#[test]
fn bfloat16_is_near_pytorch_in_f32() {
    for family in LEARNED {
        let options = OpenOptions { precision: Precision::Bf16, ..OpenOptions::default() };
        let vit = Backbone::open(fixtures().join(family).to_str().unwrap(), &options).unwrap().vit;
        let expected = Expected::open(family);
        for case in ["linear", "vpt-shallow", "vpt-deep", "vpt-deep.last-2", "pad"] {
            let error = error(&vit, &expected, case, 2, None);
            println!("{family} {case}: {error:.1e}");
            // Not f32 in disguise, and within what the format's 8 bits allow.
            assert!((1e-5..3e-2).contains(&error), "{family} {case}: {error:.1e}");
        }
    }
}

#[test]
fn image_embeddings_equal_transformers() {
    for family in FAMILIES {
        let (backbone, expected) = (open(family, None), Expected::open(family));
        let mut pixels = Vec::new();
        for name in ["a.png", "b.png"] {
            pixels.extend(backbone.preprocess.apply(&decode(&fixtures().join("images").join(name)).unwrap()).unwrap());
        }
        let error = relative(&pixels, &expected.get("pixels"));
        assert!(error < 1e-6, "{family}: pixels: {error:.1e}");
        let error = relative(&backbone.embed(&pixels, None, 2).unwrap(), &expected.get("image_embeds"));
        println!("{family} image embeddings: {error:.1e}");
        assert!(error < 1e-5, "{family}: {error:.1e}");

        let got = open(family, Some(LARGE)).embed(&expected.get("large.pixels"), None, 2).unwrap();
        let error = relative(&got, &expected.get("large.image_embeds"));
        println!("{family} image embeddings, interpolated positions: {error:.1e}");
        assert!(error < 1e-5, "{family}, interpolated positions: {error:.1e}");
    }
}

/// Checkpoints of which only embeddings are stored, and the families that have the pixels they were made from.
const SMALL: [(&str, &str); 2] = [("dinov2-swiglu", "dinov2"), ("mae", "vit")];

#[test]
fn embeddings_of_gated_mlps_and_auto_encoders_equal_transformers() {
    for (family, like) in SMALL {
        let (expected, pixels) = (Expected::open(family), Expected::open(like));
        for (size, prefix) in [(None, ""), (Some(LARGE), "large.")] {
            let got = open(family, size).embed(&pixels.get(&format!("{prefix}pixels")), None, 2).unwrap();
            let error = relative(&got, &expected.get(&format!("{prefix}image_embeds")));
            println!("{family} {prefix}image embeddings: {error:.1e}");
            assert!(error < 1e-5, "{family} {prefix}: {error:.1e}");
        }
    }
}

/// A text and its ids by transformers.
#[derive(serde::Deserialize)]
struct TextIds {
    text: String,
    ids: Vec<u32>,
}

#[test]
fn ids_and_logits_of_siglip_equal_transformers() {
    let texts: Vec<String> = serde_json::from_slice(&std::fs::read(fixtures().join("prompted.json")).unwrap()).unwrap();
    for family in ["siglip", "siglip-v2", "siglip2"] {
        let (backbone, expected) = (open(family, None), Expected::open(family));
        let cases = std::fs::read(fixtures().join(family).join("texts.json")).unwrap();
        let cases: Vec<TextIds> = serde_json::from_slice(&cases).unwrap();
        let strings: Vec<&str> = cases.iter().map(|case| case.text.as_str()).collect();
        let padding = cases.iter().find(|case| case.text.is_empty()).unwrap().ids.last().unwrap();
        assert!(cases.iter().any(|case| case.ids.last() != Some(padding) || *padding == 1));
        for (case, ids) in cases.iter().zip(backbone.token_ids(&strings).unwrap()) {
            assert_eq!(ids, case.ids, "{family}: {:?}", case.text);
        }

        let images = backbone.embed(&expected.get("pixels"), None, 1).unwrap();
        let texts = backbone.embed_texts(&texts, 1).unwrap();
        let (scale, bias) = (backbone.logit_scale().unwrap(), backbone.logit_bias().unwrap());
        let unit = |row: &[f32]| {
            let length = row.iter().map(|x| x * x).sum::<f32>().sqrt();
            row.iter().map(|x| x / length).collect::<Vec<_>>()
        };
        let texts: Vec<_> = texts.chunks(backbone.embedding_width()).map(unit).collect();
        let logits: Vec<f32> = images
            .chunks(backbone.embedding_width())
            .map(unit)
            .flat_map(|image| {
                texts
                    .iter()
                    .map(move |text| text.iter().zip(&image).map(|(t, i)| t * i).sum::<f32>())
                    .collect::<Vec<_>>()
            })
            .map(|cosine| scale * cosine + bias)
            .collect();
        let error = relative(&logits, &expected.get("logits_per_image"));
        assert!(error < 1e-5, "{family}: {error:.1e}");
    }
}

#[test]
fn text_embeddings_equal_transformers() {
    let texts: Vec<String> = serde_json::from_slice(&std::fs::read(fixtures().join("prompted.json")).unwrap()).unwrap();
    for family in ["clip", "clip-gelu", "siglip", "siglip-v2", "siglip2"] {
        let error =
            relative(&open(family, None).embed_texts(&texts, 2).unwrap(), &Expected::open(family).get("text_embeds"));
        println!("{family} text embeddings: {error:.1e}");
        assert!(error < 1e-5, "{family}: {error:.1e}");
    }
    let message = open("vit", None).embed_texts(&texts, 1).unwrap_err().to_string();
    assert!(message.contains("vit (vit) has no text tower"), "{message}");
}
