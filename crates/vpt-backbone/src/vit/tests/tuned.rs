//! Gradients of tuned weights against the textbook form in f64, whose weights are variables of candle's autograd.

use super::super::tuned::{Tune, Tuned};
use super::*;

const RANK: usize = 3;
const SCALE: f32 = 0.7;

/// The learned tensors of `tuned`, moved away from where they begin.
fn moved(tuned: &mut Tuned) -> Vec<(String, Vec<usize>, Vec<f32>)> {
    let mut begin = tuned.values().unwrap().into_iter();
    let tensors = tuned.tensors().to_vec().into_iter().enumerate();
    tensors
        .map(|(i, (name, shape))| {
            let n = shape.iter().product();
            let at = begin.next().unwrap_or_else(|| vec![0.0; n]);
            let values = at.iter().zip(random(500 + i as u64, n)).map(|(a, b)| a + 0.1 * b).collect();
            (name, shape, values)
        })
        .collect()
}

fn set(tuned: &mut Tuned, values: &[(String, Vec<usize>, Vec<f32>)]) {
    let lookup = |name: &str| Ok(&values.iter().find(|(n, ..)| n == name).unwrap().2[..]);
    tuned.set(&lookup, 2).unwrap();
}

/// The reference with these values, and its variables in the same order.
fn reference<'a>(
    (spec, size): (&'a Spec, usize),
    weights: &'a Weights,
    values: &[(String, Vec<usize>, Vec<f32>)],
) -> (Reference<'a>, Vec<Var>) {
    let vars: Vec<Var> =
        values.iter().map(|(_, shape, values)| Var::from_tensor(&f64_tensor(values, shape)).unwrap()).collect();
    let mut own = HashMap::new();
    for (i, (name, ..)) in values.iter().enumerate() {
        if let Some(layer) = name.strip_suffix(".lora_A") {
            let name = format!("{layer}.weight");
            let frozen = f64_tensor(&weights.get(&name, &[WIDTH, WIDTH]).unwrap(), &[WIDTH, WIDTH]);
            let change = (vars[i + 1].matmul(&vars[i]).unwrap() * f64::from(SCALE)).unwrap();
            own.insert(name, (frozen + change).unwrap());
        } else if !name.ends_with(".lora_B") {
            own.insert(name.clone(), vars[i].as_tensor().clone());
        }
    }
    let reference = Reference::new(spec, weights, size, DType::F64, &Device::Cpu).unwrap();
    (reference.with(own), vars)
}

const KINDS: [Tune; 4] = [Tune::Biases, Tune::Norms, Tune::All, Tune::LowRank { rank: RANK, scale: SCALE }];

#[test]
fn gradients_of_weights_equal_the_textbook_form() {
    for (spec, size) in families() {
        let weights = weights(&spec);
        for (precision, bound) in [(Precision::F32, 1e-5), (Precision::Bf16, 3e-2)] {
            let vit = Vit::load(&spec, &weights, size, precision).unwrap();
            for tune in KINDS {
                let (case, each) = (format!("{spec:?} {tune:?} {precision}"), feature_len(&spec));
                let mut tuned = vit.tuned(&spec, &weights, tune).unwrap();
                let values = moved(&mut tuned);
                set(&mut tuned, &values);
                let (reference, vars) = reference((&spec, size), &weights, &values);
                let images = random(100, BATCH * 3 * size * size);
                let slopes = random(101, BATCH * each);
                let image = f64_tensor(&images, &[BATCH, 3, size, size]);
                let features = reference.features(&image, spec.pool, None).unwrap();
                let pass = Pass { tuned: Some(&tuned), ..Pass::forward(&images, 2) };
                let error = relative_error(&vit.read(&pass).unwrap(), &super::values(&features));
                assert!(error < bound / 2., "{case}: features off by {error:e}");

                let weighted = (&features * f64_tensor(&slopes, &[BATCH, each])).unwrap().sum_all().unwrap();
                let grads = weighted.backward().unwrap();
                let loss =
                    |range: Range<usize>, _: &[f32]| Ok((slopes[range.start * each..range.end * each].to_vec(), ()));
                let want = Want { weights: true, ..Want::default() };
                let (got, _) = vit.step(&Pass { want, micro_batch: Some(2), ..pass }, &loss).unwrap();
                let got = got.weights.unwrap();
                assert_eq!(got.len(), vars.len());
                let lengths: Vec<f64> = vars.iter().map(|var| norm(&super::values(grads.get(var).unwrap()))).collect();
                let mut errors = Vec::new();
                for (((name, ..), var), got) in values.iter().zip(&vars).zip(&got) {
                    let want = super::values(grads.get(var).unwrap());
                    assert_eq!(got.len(), want.len(), "{case}: {name}");
                    let difference: Vec<f64> = got.iter().zip(&want).map(|(&g, w)| f64::from(g) - w).collect();
                    errors.push(norm(&difference));
                    let floor = floor(name, &lengths);
                    let error = norm(&difference) / norm(&want).max(floor);
                    assert!(precision == Precision::Bf16 || error < bound, "{case}: {name} off by {error:e}");
                }
                let error = norm(&errors) / norm(&lengths);
                assert!(error < bound, "{case}: off by {error:e}");
            }
        }
    }
}

/// The least length that errors of the gradient called `name` are measured by, where all gradients have these `lengths`. That
/// of a key's bias is zero but for the rounding of terms as long as the others.
fn floor(name: &str, lengths: &[f64]) -> f64 {
    let share = if name.ends_with("key.bias") || name.ends_with("k_proj.bias") { 0.3 } else { 0.03 };
    share * lengths.iter().sum::<f64>() / lengths.len() as f64
}

/// Prompts, pixels and weights that learn at once: every gradient, as features depend on all of them together.
#[test]
fn gradients_of_weights_prompts_and_pixels_together_equal_the_textbook_form() {
    for (spec, size) in families() {
        let RandomTower { weights, vit, images, each, slopes } = RandomTower::new(&spec, size, BATCH);
        let data = random(102, 3 * TOKENS * WIDTH);
        for (tune, layers) in KINDS.into_iter().flat_map(|tune| LAYERS.map(|layers| (tune, layers))) {
            let case = format!("{spec:?} {tune:?} {layers:?}");
            let mut tuned = vit.tuned(&spec, &weights, tune).unwrap();
            let values = moved(&mut tuned);
            set(&mut tuned, &values);
            let (reference, vars) = reference((&spec, size), &weights, &values);
            let prompts = prompts(layers, &data);
            let image = Var::from_tensor(&f64_tensor(&images, &[BATCH, 3, size, size])).unwrap();
            let prompt =
                prompts.as_ref().map(|p| Var::from_tensor(&f64_tensor(p.data, &[p.layers, p.tokens, WIDTH])).unwrap());
            let features =
                reference.features(&image, spec.pool, layers.zip(prompt.as_ref().map(Var::as_tensor))).unwrap();
            let pass = Pass { prompts, tuned: Some(&tuned), ..Pass::forward(&images, 2) };
            let error = relative_error(&vit.read(&pass).unwrap(), &super::values(&features));
            assert!(error < 5e-6, "{case}: features off by {error:e}");

            let weighted = (&features * f64_tensor(&slopes, &[BATCH, each])).unwrap().sum_all().unwrap();
            let grads = weighted.backward().unwrap();
            let gradient = |var: &Var| super::values(grads.get(var).unwrap());
            let lengths: Vec<f64> = vars.iter().map(|var| norm(&gradient(var))).collect();
            let loss = |range: Range<usize>, _: &[f32]| Ok((slopes[range.start * each..range.end * each].to_vec(), ()));
            for (tokens, pixels) in [(true, false), (true, true), (false, true)] {
                let want = Want { tokens, pixels, weights: true, ..Want::default() };
                let (got, _) = vit.step(&Pass { want, micro_batch: Some(2), ..pass }, &loss).unwrap();
                assert_eq!(
                    (got.tokens.is_some(), got.pixels.is_some()),
                    (tokens && layers.is_some(), pixels),
                    "{case}"
                );
                for ((name, ..), (var, got)) in values.iter().zip(vars.iter().zip(got.weights.unwrap())) {
                    let want = gradient(var);
                    let difference: Vec<f64> = got.iter().zip(&want).map(|(&g, w)| f64::from(g) - w).collect();
                    let error = norm(&difference) / norm(&want).max(floor(name, &lengths));
                    assert!(error < 1e-5, "{case}: {name} off by {error:e}");
                }
                for (what, got, var) in [("prompts", got.tokens, prompt.as_ref()), ("pixels", got.pixels, Some(&image))]
                {
                    if let Some((got, var)) = got.zip(var) {
                        let error = relative_error(&got, &gradient(var));
                        assert!(error < 1e-5, "{case}: {what} off by {error:e}");
                    }
                }
            }
        }
    }
}

/// Patches behind several blocks, as a dense head reads them: every gradient, of weights and of prompts beside them. What comes behind the
/// last block that is read has none.
#[test]
fn gradients_of_weights_by_tokens_that_are_read_equal_the_textbook_form() {
    let patches = |after| TokenRead { after, rows: TokenRows::Patches };
    let all = [patches(1), patches(2), patches(3)];
    let early = [TokenRead { after: 0, rows: TokenRows::All }, patches(2)];
    for (spec, size) in families() {
        let RandomTower { weights, vit, images, .. } = RandomTower::new(&spec, size, BATCH);
        let data = random(102, 3 * TOKENS * WIDTH);
        let count = vit.tower.embedding.patches();
        for tune in KINDS {
            let mut tuned = vit.tuned(&spec, &weights, tune).unwrap();
            let values = moved(&mut tuned);
            set(&mut tuned, &values);
            let (reference, vars) = reference((&spec, size), &weights, &values);
            for (reads, layers) in [(&all[..], None), (&all, Some(PromptLayers::Last(2))), (&early, None)] {
                let case = format!("{spec:?} {tune:?} {layers:?} {reads:?}");
                let prompts = prompts(layers, &data);
                let image = f64_tensor(&images, &[BATCH, 3, size, size]);
                let prompt = prompts
                    .as_ref()
                    .map(|p| Var::from_tensor(&f64_tensor(p.data, &[p.layers, p.tokens, WIDTH])).unwrap());
                let tokens = reference.tokens(&image, layers.zip(prompt.as_ref().map(Var::as_tensor))).unwrap();
                let read = |read: &TokenRead| match read.rows {
                    TokenRows::All => tokens[read.after].clone(),
                    TokenRows::Patches => tokens[read.after].narrow(1, vit.tokens() - count, count).unwrap(),
                };
                let expected = Tensor::cat(&reads.iter().map(read).collect::<Vec<_>>(), 1).unwrap();
                let readout = Readout::Tokens(reads);
                let pass = Pass { prompts, readout, tuned: Some(&tuned), ..Pass::forward(&images, 2) };
                let error = relative_error(&vit.read(&pass).unwrap(), &super::values(&expected));
                assert!(error < 5e-6, "{case}: tokens off by {error:e}");

                let each = vit.feature_rows(readout) * WIDTH;
                let slopes = random(101, BATCH * each);
                let weighted = (&expected * f64_tensor(&slopes, expected.dims())).unwrap().sum_all().unwrap();
                let grads = weighted.backward().unwrap();
                let gradient = |var: &Var| grads.get(var).map(super::values);
                let lengths: Vec<f64> = vars.iter().map(|var| gradient(var).map_or(0., |g| norm(&g))).collect();
                let loss =
                    |range: Range<usize>, _: &[f32]| Ok((slopes[range.start * each..range.end * each].to_vec(), ()));
                let want = Want { weights: true, tokens: layers.is_some(), ..Want::default() };
                let (got, _) = vit.step(&Pass { want, micro_batch: Some(2), ..pass }, &loss).unwrap();
                for ((name, ..), (var, got)) in values.iter().zip(vars.iter().zip(got.weights.unwrap())) {
                    let want = gradient(var).unwrap_or_else(|| vec![0.; got.len()]);
                    let difference: Vec<f64> = got.iter().zip(&want).map(|(&g, w)| f64::from(g) - w).collect();
                    let error = norm(&difference) / norm(&want).max(floor(name, &lengths));
                    assert!(error < 1e-5, "{case}: {name} off by {error:e}");
                }
                if let Some((got, var)) = got.tokens.zip(prompt.as_ref()) {
                    let error = relative_error(&got, &gradient(var).unwrap());
                    assert!(error < 1e-5, "{case}: prompts off by {error:e}");
                }
            }
        }
    }
}

fn norm(values: &[f64]) -> f64 {
    values.iter().map(|v| v * v).sum::<f64>().sqrt()
}

#[test]
fn weights_that_are_not_changed_change_no_byte_and_blocks_can_be_run_again() {
    let (spec, size) = families().remove(0);
    let weights = weights(&spec);
    let mut vit = Vit::load(&spec, &weights, size, Precision::F32).unwrap();
    let images = random(100, BATCH * 3 * size * size);
    let frozen = vit.features(&images, None, 2).unwrap();
    let loss = |_: Range<usize>, features: &[f32]| Ok((features.to_vec(), ()));
    for tune in KINDS {
        let mut tuned = vit.tuned(&spec, &weights, tune).unwrap();
        let begin = tuned.values().unwrap();
        let mut values = moved(&mut tuned);
        set(&mut tuned, &values);
        let pass = Pass { tuned: Some(&tuned), ..Pass::forward(&images, 2) };
        let changed = vit.read(&pass).unwrap();
        assert_ne!(changed, frozen, "{tune:?}");

        let want = Want { weights: true, ..Want::default() };
        let (kept, _) = vit.step(&Pass { want, micro_batch: Some(1), ..pass }, &loss).unwrap();
        assert!(kept.weights.as_ref().unwrap().iter().flatten().any(|&g| g != 0.), "{tune:?}");
        let least = vit.bytes(&Pass { want, ..pass }, BATCH, MemoryPlan { micro_batch: 1, recompute: true });
        vit.limit_memory(Some(least as u64));
        let (again, _) = vit.step(&Pass { want, ..pass }, &loss).unwrap();
        assert_eq!(kept.weights, again.weights, "{tune:?}");
        vit.limit_memory(None);

        // Back to where they began: low-rank changes of one factor alone are none.
        for (i, (name, _, values)) in values.iter_mut().enumerate() {
            match begin.get(i) {
                Some(begin) => values.clone_from(begin),
                None if name.ends_with("lora_B") => values.fill(0.0),
                None => {}
            }
        }
        set(&mut tuned, &values);
        let pass = Pass { tuned: Some(&tuned), ..Pass::forward(&images, 2) };
        assert_eq!(vit.read(&pass).unwrap(), frozen, "{tune:?}");
    }
}

#[test]
fn what_tuned_weights_are_not_for_is_an_error() {
    let (spec, size) = families().remove(0);
    let weights = weights(&spec);
    let vit = Vit::load(&spec, &weights, size, Precision::F32).unwrap();
    let other = Vit::load(&spec, &weights, size + 8, Precision::F32).unwrap();
    let images = random(100, 3 * size * size);
    let tuned = vit.tuned(&spec, &weights, Tune::Biases).unwrap();
    let pass = Pass { tuned: Some(&tuned), ..Pass::forward(&images, 1) };
    assert!(vit.read(&pass).is_ok());
    let reads = [TokenRead { after: 1, rows: TokenRows::All }];
    let tokens = vit.read(&Pass { readout: Readout::Tokens(&reads), ..pass }).unwrap();
    // Of tokens that are known nobody knows which weights made them.
    assert!(vit.read(&Pass { input: Input::Tokens { blocks: 1, tokens: &tokens }, ..pass }).is_err());
    let larger = random(100, 3 * (size + 8) * (size + 8));
    assert!(other.read(&Pass { tuned: Some(&tuned), ..Pass::forward(&larger, 1) }).is_err());
    for rank in [0, WIDTH + 1] {
        let error = vit.tuned(&spec, &weights, Tune::LowRank { rank, scale: 1. }).unwrap_err().to_string();
        assert!(error.starts_with("lora_rank: "), "{error}");
    }
}
