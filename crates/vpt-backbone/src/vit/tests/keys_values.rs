//! Key and value prompts against the textbook form in f64 and against central differences, alone and with what else learns.

use super::*;
use crate::vit::tuned::Tune;

const ROWS: usize = 2;
/// Blocks with key and value prompts: first and number.
const BLOCKS: [(usize, usize); 4] = [(0, 3), (0, 1), (1, 2), (2, 1)];

fn rows((start, layers): (usize, usize), data: &[f32]) -> KeyValuePrompts<'_> {
    KeyValuePrompts { start, layers, rows: ROWS, data: &data[..layers * ROWS * 2 * WIDTH] }
}

#[test]
fn features_and_gradients_equal_the_textbook_form() {
    for (spec, size) in families() {
        let RandomTower { weights, vit, images, each, slopes } = RandomTower::new(&spec, size, BATCH);
        let data = random(102, 3 * TOKENS * WIDTH);
        let own = random(103, 3 * ROWS * 2 * WIDTH);
        for (layers, blocks) in LAYERS.into_iter().flat_map(|layers| BLOCKS.map(|blocks| (layers, blocks))) {
            let case = format!("{spec:?} {layers:?} {blocks:?}");
            let (prompts, rows) = (prompts(layers, &data), rows(blocks, &own));
            let image_var = Var::from_tensor(&f64_tensor(&images, &[BATCH, 3, size, size])).unwrap();
            let row_var = Var::from_tensor(&f64_tensor(rows.data, &[rows.layers, ROWS, 2 * WIDTH])).unwrap();
            let prompt_var =
                prompts.map(|p| Var::from_tensor(&f64_tensor(p.data, &[p.layers, p.tokens, WIDTH])).unwrap());
            let reference = Reference::new(&spec, &weights, size, DType::F64, &Device::Cpu).unwrap();
            let reference = reference.with_keys_values(blocks.0, row_var.as_tensor().clone());
            let pair = layers.zip(prompt_var.as_ref().map(Var::as_tensor));
            let want = reference.features(&image_var, spec.pool, pair).unwrap();
            let weighted = (&want * f64_tensor(&slopes, &[BATCH, each])).unwrap().sum_all().unwrap();
            let grads = weighted.backward().unwrap();

            let pass = Pass { prompts, keys_values: Some(rows), ..Pass::forward(&images, 2) };
            assert!(relative_error(&vit.read(&pass).unwrap(), &values(&want)) < 2e-6, "{case}: features");
            let loss = |range: Range<usize>, _: &[f32]| Ok((slopes[range.start * each..range.end * each].to_vec(), ()));
            for (tokens, pixels) in [(false, false), (true, false), (true, true)] {
                let want = Want { tokens, keys_values: true, pixels, ..Want::default() };
                let (got, _) = vit.step(&Pass { want, micro_batch: Some(2), ..pass }, &loss).unwrap();
                let error = relative_error(&got.keys_values.unwrap(), &values(grads.get(&row_var).unwrap()));
                assert!(error < 1e-5, "{case}: gradient of keys and values off by {error:e}");
                assert_eq!(got.tokens.is_some(), tokens && layers.is_some());
                if let (Some(got), Some(var)) = (&got.tokens, &prompt_var) {
                    let error = relative_error(got, &values(grads.get(var).unwrap()));
                    assert!(error < 1e-5, "{case}: prompt gradient off by {error:e}");
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
fn gradients_equal_central_differences() {
    for (spec, size) in families() {
        let RandomTower { weights, vit, images, each, slopes } = RandomTower::new(&spec, size, 2);
        let own = random(103, 3 * ROWS * 2 * WIDTH);
        let rows = rows((1, 2), &own);
        let shape = [2, ROWS, 2 * WIDTH];
        let value = |rows: Tensor| {
            let reference = Reference::new(&spec, &weights, size, DType::F64, &Device::Cpu).unwrap();
            let features = reference.with_keys_values(1, rows).features(
                &f64_tensor(&images, &[2, 3, size, size]),
                spec.pool,
                None,
            );
            values(&(features.unwrap() * f64_tensor(&slopes, &[2, each])).unwrap().sum_all().unwrap())[0]
        };
        let loss = |range: Range<usize>, _: &[f32]| Ok((slopes[range.start * each..range.end * each].to_vec(), ()));
        let want = Want { keys_values: true, ..Want::default() };
        let pass = Pass { keys_values: Some(rows), want, ..Pass::forward(&images, 1) };
        let gradient = vit.step(&pass, &loss).unwrap().0.keys_values.unwrap();
        for seed in 0..3 {
            let direction = random(200 + seed, rows.data.len());
            let (at, step) = (f64_tensor(rows.data, &shape), (f64_tensor(&direction, &shape) * 1e-5).unwrap());
            let want = (value((&at + &step).unwrap()) - value((&at - &step).unwrap())) / 2e-5;
            let got: f64 = direction.iter().zip(&gradient).map(|(&d, &g)| f64::from(d) * f64::from(g)).sum();
            assert!((got - want).abs() < 1e-4 * want.abs().max(1.0), "{got} and {want}");
        }
    }
}

#[test]
fn blocks_that_are_run_again_and_tuned_weights_change_no_gradient() {
    let (spec, size) = families().remove(2);
    let weights = weights(&spec);
    let mut vit = Vit::load(&spec, &weights, size, Precision::F32).unwrap();
    let images = random(100, BATCH * 3 * size * size);
    let (data, own) = (random(102, 3 * TOKENS * WIDTH), random(103, 3 * ROWS * 2 * WIDTH));
    let loss = |_: Range<usize>, features: &[f32]| Ok((features.to_vec(), ()));
    for blocks in BLOCKS {
        let (prompts, keys_values) = (prompts(Some(PromptLayers::First(2)), &data), Some(rows(blocks, &own)));
        let want = Want { tokens: true, keys_values: true, ..Want::default() };
        let pass = Pass { prompts, keys_values, want, ..Pass::forward(&images, 2) };
        vit.limit_memory(None);
        let (kept, _) = vit.step(&Pass { micro_batch: Some(1), ..pass }, &loss).unwrap();
        let least = vit.bytes(&pass, BATCH, MemoryPlan { micro_batch: 1, recompute: true });
        vit.limit_memory(Some(least as u64));
        let (again, _) = vit.step(&pass, &loss).unwrap();
        assert_eq!((&kept.tokens, &kept.keys_values), (&again.tokens, &again.keys_values), "{blocks:?}");

        // Weights tuned beside them, as they are in the checkpoint.
        vit.limit_memory(None);
        let tuned = vit.tuned(&spec, &weights, Tune::Biases).unwrap();
        let want = Want { weights: true, ..want };
        let (beside, _) = vit.step(&Pass { tuned: Some(&tuned), want, micro_batch: Some(1), ..pass }, &loss).unwrap();
        for (got, want) in [(beside.tokens, kept.tokens), (beside.keys_values, kept.keys_values)] {
            let want: Vec<f64> = want.unwrap().iter().map(|&x| f64::from(x)).collect();
            assert!(relative_error(&got.unwrap(), &want) < 1e-5, "{blocks:?}");
        }
    }
}

#[test]
fn shapes_that_do_not_fit_are_errors() {
    let (spec, size) = families().remove(0);
    let vit = Vit::load(&spec, &weights(&spec), size, Precision::F32).unwrap();
    let images = random(1, 3 * size * size);
    for (start, layers, rows, len) in
        [(0, 4, 2, 384), (3, 1, 2, 96), (0, 0, 2, 0), (0, 1, 0, 0), (0, 1, 2, 95), (usize::MAX, 2, 1, 96)]
    {
        let data = vec![0.0; len];
        let keys_values = Some(KeyValuePrompts { start, layers, rows, data: &data });
        let error = vit.read(&Pass { keys_values, ..Pass::forward(&images, 1) }).unwrap_err().to_string();
        assert!(error.starts_with("key and value prompts: "), "{error}");
    }
    let data = random(2, ROWS * 2 * WIDTH);
    let tokens = random(3, vit.tokens() * WIDTH);
    let input = Input::Tokens { blocks: 1, tokens: &tokens };
    let keys_values = Some(rows((0, 1), &data));
    assert!(vit.read(&Pass { input, keys_values, ..Pass::forward(&[], 1) }).is_err());
}
