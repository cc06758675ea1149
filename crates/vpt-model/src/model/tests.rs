//! Losses, logits and every trainable gradient against PyTorch's, for each family and method; see
//! `scripts/make_fixtures.py`.

use std::{collections::BTreeMap, ops::Range, path::PathBuf, sync::Arc};

use safetensors::{Dtype, SafeTensors};

use super::*;
use crate::loss::{CrossEntropy, Loss};
use crate::prompt::{
    PartShape,
    key_values::KeyValueShape,
    pixels::PixelShape,
    text::{Beside, TextShape},
    tokens::{PromptLayers, TokenLayout},
    weights::{LoraShape, LoraTowers, WeightShape},
};
use vpt_backbone::OpenOptions;
use vpt_base::{params::Group, random::normal};

const FAMILIES: [&str; 5] = ["clip", "clip-gelu", "vit", "dinov2", "dinov2-registers"];
/// Border of the fixtures' pad prompts.
const PAD: usize = 4;

struct ModelFixture {
    backbone: Arc<Backbone>,
    tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
    labels: Vec<u32>,
}

impl ModelFixture {
    fn load(family: &str) -> Self {
        let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(family);
        let bytes = std::fs::read(dir.join("expected.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let f32s = |b: &[u8]| b.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        let tensors = file
            .iter()
            .filter(|(_, view)| view.dtype() == Dtype::F32)
            .map(|(name, view)| (name.to_owned(), (view.shape().to_vec(), f32s(view.data()))))
            .collect();
        let labels = file.tensor("labels").unwrap();
        let width = labels.data().len() / labels.shape()[0];
        let labels = labels.data().chunks_exact(width).map(|b| u32::from(b[0])).collect();
        let backbone = Backbone::open(dir.to_str().unwrap(), &OpenOptions::default()).unwrap();
        Self { backbone: Arc::new(backbone), tensors, labels }
    }

    fn get(&self, name: &str) -> &(Vec<usize>, Vec<f32>) {
        &self.tensors[name]
    }

    fn model(&self, parts: impl Into<PartShapes>, threads: usize) -> Model {
        let classes = self.get("head.bias").0[0];
        let spec = ClassifierSpec::Head(HeadKind::Linear);
        Model::new(self.backbone.clone(), &parts.into(), spec, classes, threads).unwrap()
    }

    /// The learned values: `prompt` and the fixture's head.
    fn params(&self, prompt: Option<(&str, Vec<usize>, Vec<f32>)>) -> Vec<Param> {
        let head = ["head.weight", "head.bias"].map(|name| (name, self.get(name).clone(), Group::Head));
        prompt
            .map(|(name, shape, values)| (name, (shape, values), Group::Part(0)))
            .into_iter()
            .chain(head)
            .map(|(name, (shape, values), group)| Param::new(name, &shape, values, group).unwrap())
            .collect()
    }

    fn step(&self, model: &Model, params: &[Param], micro_batch: Option<usize>) -> StepOutput {
        // Around a frame there is less of an image.
        let (side, _) = model.preprocess().unwrap().output_size().unwrap();
        let input = StepInput {
            images: &self.get("images").1[..self.labels.len() * 3 * side * side],
            blocks: 0,
            labels: &self.labels,
            drawn: &[],
            loss: &Loss::CrossEntropy(CrossEntropy::default()),
            frozen: None,
            micro_batch,
        };
        model.step(params, &input).unwrap()
    }

    /// Compares loss, logits and gradients, with the gradient of the prompt given, to those of `case`.
    fn compare(&self, case: &str, model: &Model, params: &[Param], output: &StepOutput, prompt: Option<&[f32]>) {
        let logits = model.logits(params, &self.get("images").1).unwrap();
        assert_close(&logits, &self.get(&format!("{case}.logits")).1, case);
        let mean = output.loss as f32 / self.labels.len() as f32;
        assert_close(&[mean], &self.get(&format!("{case}.loss")).1, case);
        let head = output.gradients.len() - 2;
        assert_close(&output.gradients[head], &self.get(&format!("{case}.grad.head.weight")).1, case);
        assert_close(&output.gradients[head + 1], &self.get(&format!("{case}.grad.head.bias")).1, case);
        if let Some(expected) = prompt {
            assert_close(&output.gradients[0], expected, case);
        }
    }
}

/// The length of the difference is at most 1e-4 of the expected length.
#[track_caller]
pub(super) fn assert_close(found: &[f32], expected: &[f32], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let length = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let difference = length(&mut found.iter().zip(expected).map(|(a, b)| f64::from(a - b)));
    let scale = length(&mut expected.iter().map(|&v| f64::from(v)));
    assert!(scale > 0., "{what}: nothing to tell right from wrong by");
    assert!(difference <= 1e-4 * scale, "{what}: relative error {}", difference / scale);
}

#[test]
fn token_prompts_have_pytorchs_gradients() {
    for family in FAMILIES {
        let fixture = ModelFixture::load(family);
        let depth = fixture.backbone.vit.depth();
        for case in ["vpt-shallow", "vpt-deep", "vpt-deep.first-2", "vpt-deep.last-1", "vpt-deep.last-2"] {
            let layers: PromptLayers = match case.split_once('.') {
                Some((_, layers)) => layers.replace('-', ":").parse().unwrap(),
                None if case == "vpt-shallow" => PromptLayers::First(1),
                None => PromptLayers::All,
            };
            let (start, layers) = layers.resolve(depth).unwrap();
            let (shape, values) = fixture.get(&format!("{case}.prompts")).clone();
            assert_eq!(shape[0], layers, "{family} {case}");
            let model = fixture.model(PartShape::Tokens(TokenLayout { start, layers, tokens: shape[1] }), 2);
            let params = fixture.params(Some(("prompt.tokens", shape, values)));
            model.check(&params).unwrap();
            let expected = &fixture.get(&format!("{case}.grad.prompts")).1;
            for micro_batch in [None, Some(1)] {
                let output = fixture.step(&model, &params, micro_batch);
                fixture.compare(case, &model, &params, &output, Some(expected));
            }
        }
    }
}

#[test]
fn pixel_prompts_have_pytorchs_gradients() {
    for family in FAMILIES {
        let fixture = ModelFixture::load(family);
        let side = fixture.backbone.vit.image_size();
        // The reference holds whole planes of which a mask uses the border.
        let border = |planes: &[f32]| -> Vec<f32> {
            let outside = |i: usize| !(PAD..side - PAD).contains(&i);
            let places = (0..planes.len()).filter(|i| outside(i % side) || outside(i / side % side));
            places.map(|i| planes[i]).collect()
        };
        let model = fixture.model(PartShape::Pixels(PixelShape::Pad { width: PAD }), 2);
        let values = border(&fixture.get("pad.pixels").1);
        let params = fixture.params(Some(("prompt.pixels", vec![3, values.len() / 3], values)));
        model.check(&params).unwrap();
        let output = fixture.step(&model, &params, None);
        fixture.compare("pad", &model, &params, &output, Some(&border(&fixture.get("pad.grad.pixels").1)));
    }
}

#[test]
fn a_head_alone_has_pytorchs_gradients_on_images_and_on_their_features() {
    for family in FAMILIES {
        let fixture = ModelFixture::load(family);
        let model = fixture.model(PartShapes::NONE, 1);
        let params = fixture.params(None);
        let output = fixture.step(&model, &params, None);
        fixture.compare("linear", &model, &params, &output, None);
        let features = model.features(&params, &fixture.get("images").1).unwrap();
        let loss = Loss::CrossEntropy(CrossEntropy::default());
        let again = model.head_step(&params, &[], &features, &fixture.labels, &loss).unwrap();
        assert_eq!(again, output);
    }
}

#[test]
fn fresh_values_fit_and_others_are_refused() {
    let fixture = ModelFixture::load("clip");
    let layout = TokenLayout { start: 0, layers: 2, tokens: 3 };
    let shapes: [PartShapes; 3] =
        [PartShapes::NONE, PartShape::Tokens(layout).into(), PartShape::Pixels(PixelShape::Pad { width: 2 }).into()];
    for prompt in shapes {
        let model = fixture.model(prompt, 1);
        let params = model.init(1).unwrap();
        model.check(&params).unwrap();
        assert_eq!(model.init(1).unwrap(), params);
        assert_ne!(model.init(2).unwrap(), params);
        assert!(model.check(&params[..params.len() - 1]).unwrap_err().to_string().contains("found nothing"));
        let mut wider = params.clone();
        wider[0].shape[0] += 1;
        assert!(model.check(&wider).unwrap_err().to_string().contains("is expected"));
        let mut more = params.clone();
        more.push(params[0].clone());
        assert!(model.check(&more).unwrap_err().to_string().contains("has no place"));
    }
    let deeper = PartShape::Tokens(TokenLayout { start: 2, layers: usize::MAX, tokens: 1 }).into();
    assert!(Model::new(fixture.backbone.clone(), &deeper, ClassifierSpec::Head(HeadKind::Linear), 2, 1).is_err());
}

/// The gradient of the prompt goes through CLIP's projection: against central differences along a direction.
#[test]
fn a_text_head_hands_the_gradient_back_through_the_projection() {
    let fixture = ModelFixture::load("clip");
    let classes = fixture.get("head.bias").0[0];
    for prompt in [
        PartShape::Tokens(TokenLayout { start: 0, layers: 2, tokens: 3 }),
        PartShape::Pixels(PixelShape::Pad { width: PAD }),
    ] {
        let spec = ClassifierSpec::Head(HeadKind::Text);
        let model = Model::new(fixture.backbone.clone(), &prompt.into(), spec, classes, 1).unwrap();
        assert_eq!(model.head().width, fixture.backbone.embedding_width());
        let params = model.init(1).unwrap();
        let gradients = fixture.step(&model, &params, None).gradients;
        let direction: Vec<f32> = {
            let length = gradients[0].iter().map(|g| g * g).sum::<f32>().sqrt();
            gradients[0].iter().enumerate().map(|(i, g)| g / length + if i % 3 == 0 { 0.01 } else { -0.01 }).collect()
        };
        let loss = |step: f32| {
            let mut moved = params.clone();
            moved[0].values.iter_mut().zip(&direction).for_each(|(v, d)| *v += step * d);
            fixture.step(&model, &moved, None).loss / fixture.labels.len() as f64
        };
        let expected: f64 = gradients[0].iter().zip(&direction).map(|(g, d)| f64::from(g * d)).sum();
        let step = 4e-3;
        let found = (loss(step) - loss(-step)) / f64::from(2. * step);
        assert!((found - expected).abs() < 2e-2 * expected.abs(), "{prompt:?}: {found} where {expected} is expected");
    }
}

/// Parts that learn together: the gradient of each, and of the head, against central differences along directions close to
/// it, as a step goes through all of them.
#[test]
fn parts_that_learn_together_have_the_gradients_of_central_differences() {
    let lora = LoraShape { rank: 2, alpha: 1., towers: LoraTowers::Image, texts: false };
    let tokens = |start, layers| PartShape::Tokens(TokenLayout { start, layers, tokens: 3 });
    let [lora, bias, full] = [WeightShape::Lora(lora), WeightShape::Bias, WeightShape::Full].map(PartShape::Weights);
    let (pad, frame) = (PixelShape::Pad { width: PAD }, PixelShape::Frame { inner: 20 });
    let (pad, frame) = (PartShape::Pixels(pad), PartShape::Pixels(frame));
    let all = |depth: usize| tokens(0, depth);
    let keys_values = |start, layers| KeyValueShape { start, layers, tokens: 2, keys_values: 3, pruned: None };
    for (family, heads) in [("clip", HeadKind::ALL), ("vit", &[HeadKind::Linear]), ("dinov2", &[HeadKind::Cosine])] {
        let fixture = ModelFixture::load(family);
        let depth = fixture.backbone.vit.depth();
        let mut together: Vec<Vec<PartShape>> = vec![
            vec![all(depth), lora],
            vec![tokens(0, 1), bias],
            vec![tokens(1, 1), full],
            vec![pad, all(depth)],
            vec![frame, tokens(0, 2)],
            vec![pad, lora],
            vec![full, pad],
            vec![pad, all(depth), lora],
            vec![lora, tokens(0, 1), frame],
            vec![pad, tokens(depth - 1, 1), full],
            vec![PartShape::KeysValues(keys_values(0, depth)), lora],
            vec![pad, PartShape::KeysValues(keys_values(0, 1)), bias],
        ];
        for (parts, &head) in together.drain(..).flat_map(|parts| heads.iter().map(move |head| (parts.clone(), head))) {
            let case = format!("{family} {head} {parts:?}");
            let classes = fixture.get("head.bias").0[0];
            let (shapes, spec) = (parts.into_iter().collect(), ClassifierSpec::Head(head));
            let model = Model::new(fixture.backbone.clone(), &shapes, spec, classes, 2).unwrap();
            let mut params = model.init(1).unwrap();
            // Away from where half of the gradients vanish.
            let mut rng = stream(1, "away", 0, 0);
            for param in &mut params {
                param.values.iter_mut().for_each(|v| *v += 0.02 * normal(&mut rng));
            }
            let gradients = fixture.step(&model, &params, Some(1)).gradients;
            assert_eq!(gradients.len(), params.len(), "{case}");
            let mut ranges: Vec<Range<usize>> = (0..shapes.len()).map(|place| model.parts.range(place)).collect();
            ranges.push(model.part_tensors()..params.len());
            for range in ranges {
                let own = &gradients[range.clone()];
                let length = own.iter().flatten().map(|g| g * g).sum::<f32>().sqrt();
                assert!(length > 0., "{case} {range:?}: learns nothing");
                let noise = 0.1 / (own.iter().map(Vec::len).sum::<usize>() as f32).sqrt();
                let direction: Vec<Vec<f32>> =
                    own.iter().map(|g| g.iter().map(|g| g / length + noise * normal(&mut rng)).collect()).collect();
                let loss = |step: f32| {
                    let mut moved = params.clone();
                    for (param, direction) in moved[range.clone()].iter_mut().zip(&direction) {
                        param.values.iter_mut().zip(direction).for_each(|(v, d)| *v += step * d);
                    }
                    fixture.step(&model, &moved, None).loss / fixture.labels.len() as f64
                };
                let pairs = own.iter().flatten().zip(direction.iter().flatten());
                let expected: f64 = pairs.map(|(g, d)| f64::from(g * d)).sum();
                let step = 2e-3;
                let found = (loss(step) - loss(-step)) / f64::from(2. * step);
                let off = (found - expected).abs();
                assert!(off < 2e-2 * expected.abs() + 1e-4, "{case} {range:?}: {found} where {expected} is expected");
            }
            // A file tells the same model in an order of its own.
            let mut file = model.task_params(&params).unwrap();
            for range in (0..shapes.len()).map(|place| model.parts.range(place)) {
                file[range].sort_by(|a, b| b.name.cmp(&a.name));
            }
            assert_eq!(model.adopt(file).unwrap(), params, "{case}");
            assert_eq!(model.prefix_blocks(), 0, "{case}");
        }
    }
}

#[test]
fn parts_that_do_not_go_together_are_refused() {
    let fixture = ModelFixture::load("clip");
    let tokens = PartShape::Tokens(TokenLayout { start: 0, layers: 1, tokens: 3 });
    let text = PartShape::Text(TextShape { tokens: 4, layers: 1, beside: Beside::Nothing });
    let refused = |parts: &[PartShape], spec| {
        let shapes = parts.iter().copied().collect();
        Model::new(fixture.backbone.clone(), &shapes, spec, 2, 1).unwrap_err().to_string()
    };
    let names = ["a", "b"].map(str::to_owned);
    let texts = ClassifierSpec::Texts { names: &names, words: None };
    let head = ClassifierSpec::Head(HeadKind::Linear);
    assert_eq!(refused(&[tokens, tokens], head), "parts: two of one kind");
    assert_eq!(refused(&[tokens, text], texts), "parts: texts are learned alone");
    assert!(refused(&[tokens], texts).contains("told by texts where texts"));
    let map = ClassifierSpec::LabelMap(LabelMap::Ilm);
    assert!(refused(&[tokens], map).contains("prompt pixels alone"));
}
