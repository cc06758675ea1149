//! Where the tower looks against the textbook form in f64, where prompts are tokens of every sequence.

use super::*;

const ROWS: usize = 2;
/// Blocks with keys and values of their own: first and number.
const BLOCKS: [Option<(usize, usize)>; 3] = [None, Some((0, 3)), Some((0, 1))];

/// The mean over heads of the attention of an image `[B, heads, T, keys]`.
fn mean_of_heads(attention: &Tensor, image: usize) -> Vec<Vec<f64>> {
    attention.get(image).unwrap().mean(0).unwrap().to_vec2().unwrap()
}

/// The same as `want`, what is given to keys of their own, tokens before the patches, prompts, and patches.
fn assert_same(got: &AttentionMap, want: &[f64], [rows, prefix, prompts]: [usize; 3], case: &str) {
    let sum = |values: &[f64]| values.iter().sum::<f64>();
    let (of_rows, rest) = want.split_at(rows);
    let (of_prefix, rest) = rest.split_at(prefix);
    let (of_prompts, patches) = rest.split_at(prompts);
    assert!(relative_error(&got.patches, patches) < 1e-5, "{case}: patches");
    let shares = [(got.prefix, sum(of_prefix)), (got.prompts, sum(of_rows) + sum(of_prompts))];
    for (got, want) in shares {
        assert!((f64::from(got) - want).abs() < 1e-5, "{case}: {got} and {want}");
    }
    let all = got.of_patches() + got.prefix + got.prompts;
    assert!((all - 1.).abs() < 1e-5, "{case}: {all} in all");
}

#[test]
fn maps_equal_the_textbook_form() {
    for (spec, size) in families() {
        let weights = weights(&spec);
        let vit = Vit::load(&spec, &weights, size, Precision::F32).unwrap();
        let images = random(100, BATCH * 3 * size * size);
        let (data, own) = (random(102, 3 * TOKENS * WIDTH), random(103, 3 * ROWS * 2 * WIDTH));
        let image = f64_tensor(&images, &[BATCH, 3, size, size]);
        let prefix = spec.prefix_tokens();
        for (layers, blocks) in LAYERS.into_iter().flat_map(|layers| BLOCKS.map(|blocks| (layers, blocks))) {
            let case = format!("{spec:?} {layers:?} {blocks:?}");
            let prompts = prompts(layers, &data);
            let rows = blocks.map(|(start, layers)| {
                let data = &own[..layers * ROWS * 2 * WIDTH];
                KeyValuePrompts { start, layers, rows: ROWS, data }
            });
            let mut reference = Reference::new(&spec, &weights, size, DType::F64, &Device::Cpu).unwrap();
            if let Some(rows) = rows {
                let values = f64_tensor(rows.data, &[rows.layers, ROWS, 2 * WIDTH]);
                reference = reference.with_keys_values(rows.start, values);
            }
            let values = prompts.map(|p| f64_tensor(p.data, &[p.layers, p.tokens, WIDTH]));
            let (attention, pooled) = reference.attention(&image, layers.zip(values.as_ref())).unwrap();

            let pass = Pass { prompts, keys_values: rows, ..Pass::forward(&images, 2) };
            let maps = vit.attention_maps(&pass).unwrap();
            assert_eq!(maps.len(), BATCH);
            let count = if prompts.is_some() { TOKENS } else { 0 };
            let in_last = if rows.is_some_and(|rows| rows.layers == 3) { ROWS } else { 0 };
            let parts = [in_last, prefix, count];
            for (i, maps) in maps.iter().enumerate() {
                let case = format!("{case} image {i}");
                let want = mean_of_heads(&attention, i);
                match (&maps.features, spec.pool) {
                    (Some(map), Pool::ClassToken | Pool::ClassTokenAndMean) => {
                        assert_eq!(map.query, "class token");
                        assert_same(map, &want[0], parts, &case);
                    }
                    (Some(map), Pool::Attention) => {
                        assert_eq!(map.query, "pooling query");
                        let want = mean_of_heads(pooled.as_ref().unwrap(), i);
                        assert_same(map, &want[0], [0, prefix, 0], &case);
                    }
                    (None, Pool::Mean | Pool::NormOfMean) => {}
                    other => panic!("{case}: {other:?}"),
                }
                assert_eq!(maps.prompts.is_some(), prompts.is_some(), "{case}");
                if let Some(map) = &maps.prompts {
                    let looking = &want[prefix..prefix + count];
                    let mean = |key: usize| looking.iter().map(|row| row[key]).sum::<f64>() / count as f64;
                    let want: Vec<f64> = (0..want[0].len()).map(mean).collect();
                    assert_same(map, &want, parts, &case);
                }
            }
        }
    }
}

#[test]
fn a_map_that_is_not_there_is_refused_with_the_reason() {
    let maps = AttentionMaps { features: None, prompts: None };
    let refused = |of| maps.clone().into_one(of).unwrap_err().to_string();
    assert!(refused(AttentionOf::Features).starts_with("attention: this backbone has no class token"));
    assert!(refused(AttentionOf::Prompts).starts_with("attention: the task has no prompt tokens"));
}
