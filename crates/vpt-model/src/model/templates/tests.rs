//! Losses and gradients of tuned weights against PyTorch (`scripts/make_weight_fixtures.py`).

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use safetensors::SafeTensors;

use super::*;
use crate::{
    head::HeadKind,
    loss::CrossEntropy,
    model::ClassifierSpec,
    prompt::{
        PartShape,
        part::Draw,
        weights::{FACTORS, LoraShape, LoraTowers, PREFIX, WeightShape},
    },
};
use vpt_backbone::{OpenOptions, Precision};

const NAMES: [&str; 4] = ["red square", "two small circles", "star", "a drawing of the picture"];
const TEMPLATES: [&str; 2] = ["a photo of a {}.", "the {} in a picture"];

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures")
}

fn recorded() -> BTreeMap<String, Vec<f32>> {
    let bytes = std::fs::read(fixtures().join("tuned-weights.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let values = |data: &[u8]| data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    file.iter().map(|(name, view)| (name.to_owned(), values(view.data()))).collect()
}

fn lora(towers: LoraTowers, texts: bool) -> WeightShape {
    WeightShape::Lora(LoraShape { rank: 2, alpha: 1., towers, texts })
}

fn model(family: &str, shape: WeightShape, head: HeadKind, precision: Precision, threads: usize) -> Model {
    let options = OpenOptions { precision, ..OpenOptions::default() };
    let backbone = Arc::new(Backbone::open(fixtures().join(family).to_str().unwrap(), &options).unwrap());
    let prompts =
        Prompts { classnames: NAMES.map(str::to_owned).to_vec(), templates: TEMPLATES.map(str::to_owned).to_vec() };
    let spec =
        if shape.told_by_texts() { ClassifierSpec::Templates(Some(&prompts)) } else { ClassifierSpec::Head(head) };
    Model::new(backbone, &PartShape::Weights(shape).into(), spec, NAMES.len(), threads).unwrap()
}

/// The model's fresh values, with those of `case` in the place of what the fixture holds.
fn params(model: &Model, recorded: &BTreeMap<String, Vec<f32>>, case: &str) -> Vec<Param> {
    let mut params = model.init(1).unwrap();
    for param in &mut params {
        let name = param.name.strip_prefix(PREFIX).unwrap_or(&param.name);
        if let Some(values) = recorded.get(&format!("{case}.{name}")) {
            param.values.clone_from(values);
        }
    }
    params
}

/// What the fixture keeps of the gradient of a whole matrix: two sums and its length.
fn sums(gradient: &[f32]) -> Vec<f64> {
    let sum = |f: &dyn Fn(f64) -> f64| gradient.iter().enumerate().map(|(i, &g)| f64::from(g) * f(i as f64)).sum();
    let length = gradient.iter().map(|&g| f64::from(g).powi(2)).sum::<f64>().sqrt();
    vec![sum(&f64::sin), sum(&|i: f64| (i * i).cos()), length]
}

fn length(values: &[f64]) -> f64 {
    values.iter().map(|v| v * v).sum::<f64>().sqrt()
}

fn cases() -> Vec<(&'static str, &'static str, WeightShape, HeadKind)> {
    let (linear, image) = (HeadKind::Linear, lora(LoraTowers::Image, false));
    let mut cases = vec![("clip.full.text", "clip", WeightShape::Full, HeadKind::Text)];
    for (case, towers) in [
        ("clip.lora.image", LoraTowers::Image),
        ("clip.lora.text", LoraTowers::Text),
        ("clip.lora.both", LoraTowers::Both),
    ] {
        cases.push((case, "clip", lora(towers, true), linear));
    }
    for (family, names) in [
        ("clip", ["clip.bias", "clip.full", ""]),
        ("vit", ["vit.bias", "vit.full", "vit.lora.image"]),
        ("dinov2-swiglu", ["dinov2-swiglu.bias", "dinov2-swiglu.full", "dinov2-swiglu.lora.image"]),
    ] {
        let kinds = names.into_iter().zip([WeightShape::Bias, WeightShape::Full, image]);
        cases.extend(kinds.filter(|(name, _)| !name.is_empty()).map(|(name, shape)| (name, family, shape, linear)));
    }
    cases
}

/// A step on these images with nothing drawn and nothing that embeddings are tied to.
fn plain<'a>(images: &'a [f32], labels: &'a [u32], loss: &'a Loss) -> StepInput<'a> {
    StepInput { images, blocks: 0, labels, drawn: &[], loss, frozen: None, micro_batch: None }
}

#[test]
fn the_first_step_is_pytorch_s() {
    let recorded = recorded();
    let loss = Loss::CrossEntropy(CrossEntropy { smoothing: 0., weights: None });
    for (case, family, shape, head) in cases() {
        for (precision, bound) in [(Precision::F32, 1e-4), (Precision::Bf16, 6e-2)] {
            let model = model(family, shape, head, precision, 2);
            let params = params(&model, &recorded, case);
            let images = &recorded[&format!("{family}.images")];
            let labels: Vec<u32> = recorded[&format!("{family}.labels")].iter().map(|&l| l as u32).collect();
            let input = StepInput { micro_batch: Some(1), ..plain(images, &labels, &loss) };
            let output = model.step(&params, &input).unwrap();
            let (got, want) = (output.loss / labels.len() as f64, f64::from(recorded[&format!("{case}.loss")][0]));
            assert!((got - want).abs() < bound * want, "{case} {precision}: loss {got}, not {want}");
            assert_eq!(output.gradients.len(), params.len(), "{case}");
            let wanted = recorded.keys().filter(|name| name.starts_with(&format!("{case}.grad."))).count();
            assert_eq!(wanted, params.len(), "{case}: as many tensors learn");
            let (mut errors, mut all) = (Vec::new(), Vec::new());
            for (param, gradient) in params.iter().zip(&output.gradients) {
                let name = param.name.strip_prefix(PREFIX).unwrap_or(&param.name);
                let want: Vec<f64> = recorded[&format!("{case}.grad.{name}")].iter().map(|&v| f64::from(v)).collect();
                let got = match want.len() {
                    n if n == gradient.len() => gradient.iter().map(|&v| f64::from(v)).collect(),
                    _ => sums(gradient),
                };
                assert_eq!(got.len(), want.len(), "{case} {name}");
                let difference: Vec<f64> = got.iter().zip(&want).map(|(g, w)| g - w).collect();
                // Each by itself where rounding is small beside it.
                let error = length(&difference) / length(&want).max(1e-3);
                let by_itself = precision == Precision::F32;
                assert!(!by_itself || error < 1e-3, "{case} {name} off by {error:e}");
                errors.extend(difference);
                all.extend(want);
            }
            let error = length(&errors) / length(&all);
            assert!(error < bound, "{case} {precision}: off by {error:e}");
        }
    }
}

#[test]
fn dropped_channels_are_dropped_on_both_ways() {
    let recorded = recorded();
    let loss = Loss::CrossEntropy(CrossEntropy { smoothing: 0., weights: None });
    let images = &recorded["clip.images"];
    let labels: Vec<u32> = recorded["clip.labels"].iter().map(|&l| l as u32).collect();
    let model = model("clip", lora(LoraTowers::Both, true), HeadKind::Linear, Precision::F32, 1);
    let params = params(&model, &recorded, "clip.lora.both");
    let draw = Draw { seed: 1, epoch: 1, step: 0, indices: &[], dropout: 0., part: 0 };
    let drawn = model.draw(&draw, &[0.4]);
    let mask = drawn[0].mask().unwrap();
    let step = |params: &[Param], drawn: &[Drawn]| {
        let (frozen, micro_batch) = (None, None);
        model
            .step(params, &StepInput { images, blocks: 0, labels: &labels, drawn, loss: &loss, frozen, micro_batch })
            .unwrap()
    };
    // The same by hand: the columns of A times the mask.
    let channels = params.iter().filter(|p| p.name.ends_with(FACTORS[0])).map(|p| p.shape[1]).sum();
    let factors = mask.apply(&vec![1.; channels]);
    let (mut by_hand, mut at) = (params.clone(), 0);
    let mut of_param = Vec::new();
    for param in &mut by_hand {
        let columns = param.name.ends_with(FACTORS[0]).then(|| at..at + param.shape[1]);
        if let Some(columns) = columns.clone() {
            at = columns.end;
            param.values.chunks_exact_mut(columns.len()).for_each(|row| {
                row.iter_mut().zip(&factors[columns.clone()]).for_each(|(v, f)| *v *= f);
            });
        }
        of_param.push(columns);
    }
    assert_eq!(at, factors.len());
    let (masked, want) = (step(&params, &drawn), step(&by_hand, &[]));
    assert!((masked.loss - want.loss).abs() < 1e-9 && (masked.loss - step(&params, &[]).loss).abs() > 1e-6);
    for ((got, want), columns) in masked.gradients.iter().zip(&want.gradients).zip(of_param) {
        for (i, (got, want)) in got.iter().zip(want).enumerate() {
            let factor = columns.as_ref().map_or(1., |c| factors[c.start + i % c.len()]);
            assert!((got - factor * want).abs() < 1e-6, "{got} {want}");
        }
    }
}

#[test]
fn before_the_first_step_nothing_is_changed() {
    let recorded = recorded();
    let images = &recorded["clip.images"];
    for (shape, head) in [
        (WeightShape::Bias, HeadKind::Linear),
        (WeightShape::Full, HeadKind::Text),
        (lora(LoraTowers::Both, true), HeadKind::Linear),
    ] {
        let model = model("clip", shape, head, Precision::F32, 2);
        let params = model.init(1).unwrap();
        let frozen = model.backbone().embed(images, None, 2).unwrap();
        assert_eq!(model.embed(&params, images).unwrap(), frozen, "{shape:?}");
        let texts = ["a cat", "a dog"];
        assert_eq!(
            model.embed_texts(&params, &texts).unwrap(),
            model.backbone().embed_texts(&texts, 2).unwrap(),
            "{shape:?}"
        );
        // A file's values are told in another order.
        let mut file = model.task_params(&params).unwrap();
        let weights = model.part_tensors();
        file[..weights].sort_by(|a, b| a.name.cmp(&b.name));
        model.check(&file).unwrap();
        let adopted = model.adopt(file.clone()).unwrap();
        assert_eq!(model.logits(&adopted, images).unwrap(), model.logits(&params, images).unwrap());
        // Weights that are missing, of another backbone or of another shape.
        let name = file[0].name.clone();
        assert!(model.check(&file[1..]).unwrap_err().to_string().starts_with(&name));
        file[0].shape.push(1);
        assert!(model.check(&file).unwrap_err().to_string().starts_with(&name));
        file.push(Param::new("backbone.other", &[1], vec![0.], Group::Part(0)).unwrap());
        file[0].shape.pop();
        assert!(model.check(&file).unwrap_err().to_string().contains("no place"));
    }
}

#[test]
fn results_depend_on_the_number_of_threads_and_on_nothing_else() {
    let recorded = recorded();
    let loss = Loss::CrossEntropy(CrossEntropy { smoothing: 0., weights: None });
    let images = &recorded["clip.images"];
    let labels: Vec<u32> = recorded["clip.labels"].iter().map(|&l| l as u32).collect();
    for (shape, case) in [(WeightShape::Full, "clip.full"), (lora(LoraTowers::Both, true), "clip.lora.both")] {
        let step = || {
            let model = model("clip", shape, HeadKind::Linear, Precision::F32, 2);
            let params = params(&model, &recorded, case);
            let input = StepInput { micro_batch: None, ..plain(images, &labels, &loss) };
            model.step(&params, &input).unwrap();
            model.step(&params, &input).unwrap()
        };
        assert_eq!(step(), step(), "{case}");
    }
}
