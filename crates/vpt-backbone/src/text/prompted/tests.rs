//! The tower against its textbook form in f64: whole sequences, a causal mask, fresh vectors put in the place of old ones.

use std::path::PathBuf;

use candle_core::{D, DType, Device, Tensor, Var};
use candle_nn::ops::softmax;

use super::*;
use crate::registry::locate;
use crate::spec::{Activation, TextSpec};
use crate::weights::Weights;
use vpt_base::testing::random;
use vpt_kernel::Precision;

const N: usize = 3;

struct PromptedFixture {
    spec: TextSpec,
    weights: Weights,
    tower: TextTower,
    texts: PromptedTexts,
    ids: Vec<Vec<u32>>,
}

fn fixture(name: &str) -> PromptedFixture {
    fixture_in(name, Precision::F32)
}

fn fixture_in(name: &str, precision: Precision) -> PromptedFixture {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(name);
    let location = locate(dir.to_str().unwrap(), None).unwrap();
    let (spec, weights) = (location.spec().unwrap().text.unwrap(), location.weights().unwrap());
    let names = location.spec().unwrap().family.joint.text.unwrap();
    let tower = TextTower::load(&spec, names, &weights, precision).unwrap();
    if !spec.causal {
        return of_siglip(spec, weights, tower);
    }
    let (start, end) = (598, 599);
    let ids: Vec<Vec<u32>> = [&[17, 300, 4][..], &[511], &[9, 8, 7, 6, 5, 4, 590], &[], &[17, 301]]
        .iter()
        .map(|words| [&[start], *words, &[end]].concat())
        .collect();
    let texts = PromptedTexts::new(&spec, &ids, Path::new("tokenizer.json")).unwrap();
    PromptedFixture { spec, weights, tower, texts, ids }
}

/// Texts without a start token, padded to the room that the vectors leave.
fn of_siglip(spec: TextSpec, weights: Weights, tower: TextTower) -> PromptedFixture {
    let pad = |words: &[u32]| {
        let mut ids = [words, &[1]].concat();
        ids.resize(spec.context - N, 1);
        ids
    };
    let ids: Vec<Vec<u32>> = [&[17, 30, 4][..], &[9, 8, 7, 6, 5, 4, 50], &[], &[17, 31]].map(pad).to_vec();
    let texts = PromptedTexts::new(&spec, &ids, Path::new("tokenizer.json")).unwrap();
    PromptedFixture { spec, weights, tower, texts, ids }
}

impl PromptedFixture {
    fn get(&self, name: &str, shape: &[usize]) -> Tensor {
        let values = self.weights.get(name, shape).unwrap();
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap().to_dtype(DType::F64).unwrap()
    }

    fn linear(&self, x: &Tensor, name: &str, out: usize) -> Tensor {
        let inputs = x.dim(D::Minus1).unwrap();
        let weight = self.get(&format!("{name}.weight"), &[out, inputs]);
        let y = x.matmul(&weight.t().unwrap()).unwrap();
        y.broadcast_add(&self.get(&format!("{name}.bias"), &[out])).unwrap()
    }

    fn norm(&self, x: &Tensor, name: &str) -> Tensor {
        let d = x.dim(D::Minus1).unwrap();
        let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1).unwrap()).unwrap();
        let variance = centred.sqr().unwrap().mean_keepdim(D::Minus1).unwrap();
        let deviation = (variance + f64::from(self.spec.tower.eps)).unwrap().sqrt().unwrap();
        let scaled = centred.broadcast_div(&deviation).unwrap();
        let scaled = scaled.broadcast_mul(&self.get(&format!("{name}.weight"), &[d])).unwrap();
        scaled.broadcast_add(&self.get(&format!("{name}.bias"), &[d])).unwrap()
    }

    fn block(&self, x: &Tensor, index: usize) -> Tensor {
        let (rows, d) = x.dims2().unwrap();
        let at = |name: &str| format!("text_model.encoder.layers.{index}.{name}");
        let heads = self.spec.tower.heads;
        let y = self.norm(x, &at("layer_norm1"));
        let [q, k, v] = ["q_proj", "k_proj", "v_proj"].map(|name| {
            let y = self.linear(&y, &at(&format!("self_attn.{name}")), d);
            y.reshape((rows, heads, d / heads)).unwrap().transpose(0, 1).unwrap().contiguous().unwrap()
        });
        let unseen = |i: usize| self.spec.causal && i % rows > i / rows;
        let mask = (0..rows * rows).map(|i| if unseen(i) { f64::NEG_INFINITY } else { 0.0 });
        let mask = Tensor::from_vec(mask.collect(), (1, rows, rows), &Device::Cpu).unwrap();
        let scores = (q.matmul(&k.transpose(1, 2).unwrap().contiguous().unwrap()).unwrap()
            / ((d / heads) as f64).sqrt())
        .unwrap();
        let mixed = softmax(&scores.broadcast_add(&mask).unwrap(), D::Minus1).unwrap().matmul(&v).unwrap();
        let mixed = mixed.transpose(0, 1).unwrap().contiguous().unwrap().reshape((rows, d)).unwrap();
        let x = (x + self.linear(&mixed, &at("self_attn.out_proj"), d)).unwrap();
        let hidden = self.linear(&self.norm(&x, &at("layer_norm2")), &at("mlp.fc1"), self.spec.tower.mlp);
        let hidden = match self.spec.tower.activation {
            Activation::QuickGelu => (&hidden * candle_nn::ops::sigmoid(&(&hidden * 1.702).unwrap()).unwrap()).unwrap(),
            Activation::GeluTanh => {
                let inner = (&hidden + (hidden.powf(3.).unwrap() * 0.044_715).unwrap()).unwrap();
                let inner = (inner * (8. / std::f64::consts::PI).sqrt()).unwrap();
                (&hidden * candle_nn::ops::sigmoid(&inner).unwrap()).unwrap()
            }
            _ => hidden.gelu_erf().unwrap(),
        };
        (&x + self.linear(&hidden, &at("mlp.fc2"), d)).unwrap()
    }

    /// Embeddings `[C, projection]` with prompts `[layers, n, D]`.
    fn embeds(&self, prompts: &Tensor) -> Tensor {
        let d = self.spec.tower.width;
        let tokens = self.get("text_model.embeddings.token_embedding.weight", &[self.spec.vocab, d]);
        let positions = self.get("text_model.embeddings.position_embedding.weight", &[self.spec.context, d]);
        let layers = prompts.dim(0).unwrap();
        let embed = |ids: &Vec<u32>| {
            let words = Tensor::from_slice(ids, ids.len(), &Device::Cpu).unwrap();
            let words = tokens.index_select(&words, 0).unwrap();
            let first = usize::from(self.spec.causal);
            let around = |x: &Tensor, vectors: Tensor, behind: usize| {
                let tail = x.narrow(0, behind, ids.len() - first).unwrap();
                let start = (first > 0).then(|| x.narrow(0, 0, first).unwrap());
                Tensor::cat(&start.into_iter().chain([vectors, tail]).collect::<Vec<_>>(), 0).unwrap()
            };
            let x = around(&words, prompts.get(0).unwrap(), first);
            let mut x = (x + positions.narrow(0, 0, ids.len() + N).unwrap()).unwrap();
            for i in 0..self.spec.tower.depth {
                if i > 0 && i < layers {
                    x = around(&x, prompts.get(i).unwrap(), first + N);
                }
                x = self.block(&x, i);
            }
            self.norm(&x, "text_model.final_layer_norm").narrow(0, ids.len() + N - 1, 1).unwrap()
        };
        let ends = Tensor::cat(&self.ids.iter().map(embed).collect::<Vec<_>>(), 0).unwrap();
        if self.spec.projection_bias {
            return self.linear(&ends, "text_model.head", self.spec.projection);
        }
        let projection = self.get("text_projection.weight", &[self.spec.projection, d]);
        ends.matmul(&projection.t().unwrap()).unwrap()
    }

    fn prompts(&self, layers: usize) -> Vec<f32> {
        random(5, layers * N * self.spec.tower.width)
    }

    fn tensor(&self, prompts: &[f32]) -> Tensor {
        let d = self.spec.tower.width;
        let shape = (prompts.len() / N / d, N, d);
        Tensor::from_slice(prompts, shape, &Device::Cpu).unwrap().to_dtype(DType::F64).unwrap()
    }
}

fn values(t: &Tensor) -> Vec<f64> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

#[track_caller]
fn assert_near(got: &[f32], want: &[f64], tolerance: f64, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    let difference: f64 = got.iter().zip(want).map(|(&g, w)| (f64::from(g) - w).powi(2)).sum();
    let error = (difference / want.iter().map(|w| w * w).sum::<f64>()).sqrt();
    assert!(error < tolerance, "{what}: off by {error:e}");
}

#[test]
fn embeddings_and_gradients_equal_the_textbook_form() {
    for name in ["clip", "clip-gelu", "siglip"] {
        let fixture = fixture(name);
        let slopes = random(6, fixture.texts.len() * fixture.spec.projection);
        let weight = Tensor::from_slice(&slopes, (fixture.texts.len(), fixture.spec.projection), &Device::Cpu).unwrap();
        let weight = weight.to_dtype(DType::F64).unwrap();
        let sum = |prompts: &Tensor| (fixture.embeds(prompts) * &weight).unwrap().sum_all().unwrap();
        for layers in 1..=fixture.tower.depth() {
            let data = fixture.prompts(layers);
            let prompts = TextPrompts { layers, tokens: N, data: &data };
            let var = Var::from_tensor(&fixture.tensor(&data)).unwrap();
            let want = values(&fixture.embeds(&var));
            let gradients = sum(&var).backward().unwrap();
            let want_gradient = values(gradients.get(&var).unwrap());
            // Kept and computed anew; by one thread, by fewer than there are texts, and by more.
            for (keep, threads) in [(KEEP_BYTES, 1), (0, 2), (KEEP_BYTES, 2), (KEEP_BYTES, 9)] {
                let case = format!("{name}, {layers} layers, {threads} threads, {keep} bytes");
                let (got, tape) = fixture.tower.prompted_within(&prompts, &fixture.texts, threads, keep).unwrap();
                assert_near(&got, &want, 2e-6, &case);
                let gradient = fixture.tower.prompted_vjp(tape, &fixture.texts, &slopes).unwrap();
                assert_near(&gradient, &want_gradient, 1e-5, &case);
            }
            // And central differences, along one direction a layer.
            let step = 1e-5;
            for layer in 0..layers {
                let each = data.len() / layers;
                let mut direction = vec![0.0; data.len()];
                direction[layer * each..(layer + 1) * each].copy_from_slice(&random(7, each));
                let along = (fixture.tensor(&direction) * step).unwrap();
                let at = |t: Tensor| sum(&t).to_scalar::<f64>().unwrap();
                let slope =
                    (at((var.as_tensor() + &along).unwrap()) - at((var.as_tensor() - &along).unwrap())) / step / 2.0;
                let expected: f64 = want_gradient.iter().zip(&direction).map(|(g, &d)| g * f64::from(d)).sum();
                assert!((slope - expected).abs() < 1e-6 * expected.abs().max(1.0), "{layer}: {slope} {expected}");
            }
        }
    }
}

#[test]
fn in_bfloat16_embeddings_and_gradients_are_near_and_the_same_kept_or_computed_anew() {
    let fixture = fixture_in("clip", Precision::Bf16);
    let slopes = random(6, fixture.texts.len() * fixture.spec.projection);
    let weight = Tensor::from_slice(&slopes, (fixture.texts.len(), fixture.spec.projection), &Device::Cpu).unwrap();
    let weight = weight.to_dtype(DType::F64).unwrap();
    for layers in 1..=fixture.tower.depth() {
        let data = fixture.prompts(layers);
        let prompts = TextPrompts { layers, tokens: N, data: &data };
        let var = Var::from_tensor(&fixture.tensor(&data)).unwrap();
        let want = fixture.embeds(&var);
        let gradients = (&want * &weight).unwrap().sum_all().unwrap().backward().unwrap();
        let mut seen = Vec::new();
        for keep in [KEEP_BYTES, 0] {
            let (got, tape) = fixture.tower.prompted_within(&prompts, &fixture.texts, 1, keep).unwrap();
            assert_near(&got, &values(&want), 2e-2, "embeddings");
            let gradient = fixture.tower.prompted_vjp(tape, &fixture.texts, &slopes).unwrap();
            assert_near(&gradient, &values(gradients.get(&var).unwrap()), 5e-2, "gradient");
            seen.push((got, gradient));
        }
        assert_eq!(seen[0], seen[1], "{layers} layers");
    }
}

#[test]
fn words_as_vectors_are_the_text_itself() {
    let fixture = fixture("clip");
    let words = [40, 41, 500];
    let origin = Path::new("tokenizer.json");
    let data = fixture.tower.word_embeddings(&[&[598], &words[..], &[599]].concat(), origin).unwrap();
    let (got, _) =
        fixture.tower.prompted(&TextPrompts { layers: 1, tokens: N, data: &data }, &fixture.texts, 1).unwrap();
    let texts: Vec<Vec<u32>> = fixture.ids.iter().map(|ids| [&ids[..1], &words, &ids[1..]].concat()).collect();
    let want = fixture.tower.embed(&texts, origin, 1).unwrap();
    assert_near(&got, &want.iter().map(|&v| f64::from(v)).collect::<Vec<_>>(), 1e-6, "texts");
}

#[test]
fn many_texts_are_done_in_pieces_that_add_up() {
    let fixture = fixture("clip");
    let ids: Vec<Vec<u32>> = (0..150).map(|i| [&[598][..], &vec![i; 1 + i as usize % 7], &[599]].concat()).collect();
    let texts = PromptedTexts::new(&fixture.spec, &ids, Path::new("tokenizer.json")).unwrap();
    assert!(micro_batches(&texts.tails, 0..150).len() > 1);
    let data = fixture.prompts(2);
    let prompts = TextPrompts { layers: 2, tokens: N, data: &data };
    let slopes = random(6, 150 * fixture.spec.projection);
    let run = |threads| {
        let (embeds, tape) = fixture.tower.prompted(&prompts, &texts, threads).unwrap();
        (embeds, fixture.tower.prompted_vjp(tape, &texts, &slopes).unwrap())
    };
    let (embeds, gradient) = run(1);
    let each = fixture.spec.projection;
    let alone = PromptedTexts::new(&fixture.spec, &ids[149..], Path::new("tokenizer.json")).unwrap();
    let (last, _) = fixture.tower.prompted(&prompts, &alone, 1).unwrap();
    assert_near(&embeds[149 * each..], &last.iter().map(|&v| f64::from(v)).collect::<Vec<_>>(), 1e-6, "last");
    let wide: Vec<f64> = gradient.iter().map(|&v| f64::from(v)).collect();
    let (again, other) = (run(3), run(3));
    assert_near(&again.1, &wide, 1e-5, "threads");
    assert_eq!(again, other);
}

#[test]
fn prompts_and_texts_that_do_not_fit_are_refused() {
    let fixture = fixture("clip");
    let origin = Path::new("tokenizer.json");
    let refused = |layers, tokens, len: usize| {
        let data = vec![0.0; len];
        fixture
            .tower
            .prompted(&TextPrompts { layers, tokens, data: &data }, &fixture.texts, 1)
            .err()
            .unwrap()
            .to_string()
    };
    assert!(refused(0, 3, 0).contains("3 vectors in 0 blocks"));
    assert!(refused(4, 3, 4 * 3 * 32).contains("a text tower of 3 blocks"));
    assert!(refused(1, 3, 5).contains("5 values where 96 are"));
    // Start, 68 vectors, seven words and the end fill 77 places.
    assert!(refused(1, 69, 69 * 32).contains("prompt_tokens: 69 vectors leave no room for the longest class name: 68"));
    let data = vec![0.1; 68 * 32];
    assert!(fixture.tower.prompted(&TextPrompts { layers: 1, tokens: 68, data: &data }, &fixture.texts, 1).is_ok());
    for (ids, message) in [(vec![598, 4], "without a start or an end"), (vec![598, 600, 599], "token 600")] {
        assert!(PromptedTexts::new(&fixture.spec, &[ids], origin).unwrap_err().to_string().contains(message));
    }
}
