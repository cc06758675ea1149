//! Candle's engine against the native one: features, and gradients of prompts, keys, values and pixels, in f32 and bf16.

use super::*;
use crate::engine::{Compute, Device as On, Engine};
use crate::vit::Tune;

const CANDLE: Compute = Compute { engine: Engine::Candle, device: On::Cpu };
const ROWS: usize = 2;

/// The same tower on both engines.
fn both(spec: &Spec, weights: &Weights, size: usize, precision: Precision) -> [Vit; 2] {
    [Compute::default(), CANDLE].map(|compute| Vit::load_on(spec, weights, size, precision, compute).unwrap())
}

fn off(got: &[f32], want: &[f32]) -> f64 {
    let want: Vec<f64> = want.iter().map(|&x| f64::from(x)).collect();
    relative_error(got, &want)
}

/// Off by how much the gradients of a pass are, where there is one.
fn gradients_off(got: &Grads, want: &Grads, case: &str) -> f64 {
    let of = |grads: &Grads| [grads.tokens.clone(), grads.keys_values.clone(), grads.pixels.clone()];
    let pairs = of(got).into_iter().zip(of(want));
    let errors = pairs.filter_map(|(got, want)| {
        assert_eq!(got.is_some(), want.is_some(), "{case}");
        let (got, want) = got.zip(want)?;
        if want.iter().all(|&x| x == 0.) {
            assert!(got.iter().all(|&x| x == 0.), "{case}: a gradient of what nothing reads");
            return None;
        }
        Some(off(&got, &want))
    });
    errors.fold(0., f64::max)
}

#[test]
fn both_engines_read_the_same_features_and_give_the_same_gradients() {
    for (spec, size) in families() {
        let weights = weights(&spec);
        let [native, candle] = both(&spec, &weights, size, Precision::F32);
        assert_eq!(native.tokens(), candle.tokens());
        let images = random(100, BATCH * 3 * size * size);
        let data = random(102, 3 * TOKENS * WIDTH);
        let own = random(103, 2 * ROWS * 2 * WIDTH);
        let keys_values = KeyValuePrompts { start: 1, layers: 2, rows: ROWS, data: &own };
        let readouts = [Readout::Features, Readout::Tokens(READS[1]), Readout::Tokens(READS[2])];
        for (layers, readout) in LAYERS.into_iter().flat_map(|layers| readouts.map(|readout| (layers, readout))) {
            let case = format!("{spec:?} {layers:?} {readout:?}");
            let pass = Pass { prompts: prompts(layers, &data), readout, ..Pass::forward(&images, 2) };
            let (got, want) = (candle.read(&pass).unwrap(), native.read(&pass).unwrap());
            assert!(off(&got, &want) < 1e-5, "{case}: features off by {:e}", off(&got, &want));
            let loss = |range: Range<usize>, features: &[f32]| {
                let slopes = random(200, features.len() / range.len() * BATCH);
                let each = features.len() / range.len();
                Ok((slopes[range.start * each..range.end * each].to_vec(), range))
            };
            let plain = Want { tokens: true, ..Want::default() };
            let all = Want { keys_values: true, pixels: true, ..plain };
            for (want, keys_values, micro_batch) in [(plain, None, None), (all, Some(keys_values), Some(2))] {
                let pass = Pass { keys_values, want, micro_batch, ..pass };
                let (of_native, _) = native.step(&pass, &loss).unwrap();
                let (of_candle, ranges) = candle.step(&pass, &loss).unwrap();
                let images: Vec<usize> = ranges.into_iter().flatten().collect();
                assert_eq!(images, (0..BATCH).collect::<Vec<_>>());
                let error = gradients_off(&of_candle, &of_native, &case);
                assert!(error < 1e-5, "{case}: gradients off by {error:e}");
            }
        }
    }
}

#[test]
fn candle_goes_on_from_tokens_behind_blocks() {
    for (spec, size) in families() {
        let weights = weights(&spec);
        let [native, candle] = both(&spec, &weights, size, Precision::F32);
        let images = random(100, BATCH * 3 * size * size);
        let data = random(102, 3 * TOKENS * WIDTH);
        for blocks in 0..3 {
            let before = [TokenRead { after: blocks, rows: TokenRows::All }];
            let pass = Pass { readout: Readout::Tokens(&before), ..Pass::forward(&images, 2) };
            let tokens = native.read(&pass).unwrap();
            let input = Input::Tokens { blocks, tokens: &tokens };
            let prompts = prompts(Some(PromptLayers::Last(3 - blocks)), &data);
            let want = Want { tokens: true, ..Want::default() };
            let pass = Pass { input, prompts, want, ..Pass::forward(&[], 2) };
            let loss = |_: Range<usize>, features: &[f32]| Ok((features.to_vec(), features.to_vec()));
            let ((want, features), (got, of_candle)) =
                (native.step(&pass, &loss).unwrap(), candle.step(&pass, &loss).unwrap());
            let case = format!("{spec:?} {blocks}");
            assert!(off(&of_candle.concat(), &features.concat()) < 1e-5, "{case}");
            // The gradient begins as the features, which differ by as much.
            assert!(gradients_off(&got, &want, &case) < 2e-5, "{case}");
        }
    }
}

#[test]
fn bfloat16_differs_from_f32_by_its_rounding() {
    for (spec, size) in families() {
        let weights = weights(&spec);
        let exact = Vit::load(&spec, &weights, size, Precision::F32).unwrap();
        let rounded = both(&spec, &weights, size, Precision::Bf16);
        let images = random(100, BATCH * 3 * size * size);
        let data = random(102, 3 * TOKENS * WIDTH);
        let want = Want { tokens: true, pixels: true, ..Want::default() };
        let pass = Pass { prompts: prompts(Some(PromptLayers::All), &data), want, ..Pass::forward(&images, 2) };
        let slopes = random(200, BATCH * feature_len(&spec));
        let each = feature_len(&spec);
        let loss = |range: Range<usize>, _: &[f32]| Ok((slopes[range.start * each..range.end * each].to_vec(), ()));
        let (of_exact, _) = exact.step(&pass, &loss).unwrap();
        let features = exact.read(&pass).unwrap();
        let errors = rounded.map(|vit| {
            let (grads, _) = vit.step(&pass, &loss).unwrap();
            [off(&vit.read(&pass).unwrap(), &features), gradients_off(&grads, &of_exact, "bf16")]
        });
        let [native, candle] = errors;
        for (candle, native) in candle.iter().zip(native) {
            assert!(*candle > 1e-4, "{spec:?}: nothing was rounded");
            assert!(*candle < 3e-2 && *candle < 4. * native, "{spec:?}: off by {candle:e}, native by {native:e}");
        }
    }
}

#[test]
fn what_candle_does_not_do_is_refused_in_one_line() {
    let (spec, size) = families().remove(0);
    let weights = weights(&spec);
    let [_, candle] = both(&spec, &weights, size, Precision::F32);
    let images = random(1, 3 * size * size);
    let message = candle.tuned(&spec, &weights, Tune::All).unwrap_err().to_string();
    assert!(message.starts_with("engine: candle is not for this; native"), "{message}");
    let data = random(2, 3 * TOKENS * WIDTH);
    let prompts = prompts(Some(PromptLayers::All), &data);
    assert!(candle.prepare(prompts, None, 1).unwrap_err().to_string().starts_with("engine: "));
    assert!(candle.read_mixed(&[&images], &[], 1).unwrap_err().to_string().starts_with("engine: "));
    let cuda = Compute { engine: Engine::Candle, device: On::Cuda(0) };
    if !On::HAS_CUDA {
        let error = Vit::load_on(&spec, &weights, size, Precision::F32, cuda).unwrap_err().to_string();
        assert!(error.starts_with("device: CUDA is not built"), "{error}");
    }
    let short = |_: Range<usize>, _: &[f32]| Ok((vec![0.0], ()));
    let want = Want { pixels: true, ..Want::default() };
    let error = candle.step(&Pass { want, ..Pass::forward(&images, 1) }, &short).unwrap_err().to_string();
    assert!(error.starts_with("gradient of the features: "), "{error}");
    assert!(candle.features(&images[1..], None, 1).is_err());
    let (none, ranges) = candle.step(&Pass { want, ..Pass::forward(&[], 2) }, &|range, _| Ok((vec![], range))).unwrap();
    assert!(none.pixels.unwrap().is_empty() && ranges.is_empty());
}

/// Gradients of `QuickGELU` where its exponential has no f32.
#[test]
fn gradients_are_finite_far_from_zero() {
    let (spec, size) = families().remove(0);
    let weights = weights(&spec);
    let [native, candle] = both(&spec, &weights, size, Precision::F32);
    let images = random(100, 3 * size * size);
    let data: Vec<f32> = random(102, 3 * TOKENS * WIDTH).iter().map(|x| x * 1e4).collect();
    let want = Want { tokens: true, pixels: true, ..Want::default() };
    let pass = Pass { prompts: prompts(Some(PromptLayers::First(1)), &data), want, ..Pass::forward(&images, 1) };
    let loss = |_: Range<usize>, features: &[f32]| Ok((vec![1.; features.len()], ()));
    let (got, _) = candle.step(&pass, &loss).unwrap();
    let (expected, _) = native.step(&pass, &loss).unwrap();
    assert!(got.tokens.iter().chain(&got.pixels).flatten().all(|x| x.is_finite()));
    assert!(gradients_off(&got, &expected, "large prompts") < 1e-4);
}
