//! Passes over images with prompts of their own each: to the last bit what each would be alone.

use super::*;

const IMAGES: usize = 4;
/// Mixes of one backbone; there are twenty backbones and two number formats.
const MIXES: u64 = 250;

/// Numbers from 0 on, below what they are asked for.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        // Knuth's constants; the upper bits are the random ones.
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n
    }
}

/// Prompts of all depths and numbers; the last are as many rows of keys and values, by themselves and beside tokens.
fn prompt_sets(data: &[f32]) -> Vec<(Option<TokenPrompts<'_>>, Option<KeyValuePrompts<'_>>)> {
    let mut sets = Vec::new();
    for (i, layers) in LAYERS.into_iter().flatten().enumerate() {
        for tokens in [1, 3, 6] {
            let (start, layers) = layers.resolve(3).unwrap();
            let data = &data[i * 7 + tokens..][..layers * tokens * WIDTH];
            sets.push((Some(TokenPrompts { start, layers, tokens, data }), None));
        }
    }
    for (start, layers, rows) in [(0, 3, 2), (2, 1, 1), (1, 2, 4)] {
        let rows = KeyValuePrompts { start, layers, rows, data: &data[start + 3..][..layers * rows * 2 * WIDTH] };
        sets.push((None, Some(rows)));
        sets.push((sets[start].0, Some(rows)));
    }
    sets
}

#[test]
fn rows_of_a_mix_are_what_they_are_alone() {
    for (at, (spec, size)) in families().into_iter().enumerate() {
        let weights = weights(&spec);
        let readouts: Vec<Readout> =
            [Readout::Features, Readout::Pooled(Pool::Mean)].into_iter().chain(READS.map(Readout::Tokens)).collect();
        for precision in [Precision::F32, Precision::Bf16] {
            let vit = Vit::load(&spec, &weights, size, precision).unwrap();
            let (pixels, data) = (random(100, IMAGES * 3 * size * size), random(102, 20 * 3 * WIDTH));
            let images: Vec<&[f32]> = pixels.chunks_exact(3 * size * size).collect();
            let sets = prompt_sets(&data);
            let ready: Vec<PromptSet> =
                sets.iter().map(|(tokens, rows)| vit.prepare(*tokens, *rows, 2).unwrap()).collect();
            let mut alone: HashMap<[usize; 3], Vec<f32>> = HashMap::new();
            let mut dice = Dice(at as u64 * 1000 + precision.bytes() as u64);
            for mix in 0..MIXES {
                let asked: Vec<[usize; 3]> = (0..=dice.below(9))
                    .map(|_| {
                        let set = if dice.below(4) == 0 { sets.len() } else { dice.below(sets.len()) };
                        // Features most of all, as it is.
                        let readout = if dice.below(3) == 0 { dice.below(readouts.len()) } else { 0 };
                        [dice.below(IMAGES), set, readout]
                    })
                    .collect();
                let rows: Vec<MixedRow> = asked
                    .iter()
                    .map(|&[image, set, readout]| MixedRow {
                        image,
                        prompts: ready.get(set),
                        readout: readouts[readout],
                    })
                    .collect();
                let threads = 1 + dice.below(3);
                let found = vit.read_mixed(&images, &rows, threads).unwrap();
                for (key, found) in asked.iter().zip(found) {
                    let [image, set, readout] = *key;
                    let want = alone.entry(*key).or_insert_with(|| {
                        let (prompts, keys_values) = sets.get(set).copied().unwrap_or_default();
                        let readout = readouts[readout];
                        vit.read(&Pass { prompts, keys_values, readout, ..Pass::forward(images[image], 1) }).unwrap()
                    });
                    let equal =
                        want.len() == found.len() && want.iter().zip(&found).all(|(a, b)| a.to_bits() == b.to_bits());
                    assert!(equal, "{spec:?} {precision:?}: mix {mix}, {threads} threads: {key:?} of {asked:?}");
                }
            }
        }
    }
}

#[test]
fn prompts_that_are_no_numbers_change_no_other_row() {
    for (spec, size) in families() {
        let vit = Vit::load(&spec, &weights(&spec), size, Precision::F32).unwrap();
        let (image, data) = (random(100, 3 * size * size), random(102, 3 * TOKENS * WIDTH));
        let broken: Vec<f32> = [&[f32::NAN], &data[1..]].concat();
        for layers in LAYERS.into_iter().flatten() {
            let set = |data| vit.prepare(prompts(Some(layers), data), None, 1).unwrap();
            let (good, bad) = (set(&data), set(&broken));
            let row = |prompts| MixedRow { image: 0, prompts, readout: Readout::Features };
            let found = vit.read_mixed(&[&image], &[row(Some(&bad)), row(Some(&good)), row(None)], 1).unwrap();
            assert!(found[0].iter().all(|v| v.is_nan()), "{layers:?}");
            assert_eq!(found[1], vit.features(&image, prompts(Some(layers), &data), 1).unwrap(), "{layers:?}");
            assert_eq!(found[2], vit.features(&image, None, 1).unwrap(), "{layers:?}");
        }
    }
}

#[test]
fn what_does_not_fit_the_tower_is_refused() {
    let (spec, size) = families().remove(2);
    let vit = Vit::load(&spec, &weights(&spec), size, Precision::F32).unwrap();
    let image = random(1, 3 * size * size);
    let refusal = |images: &[&[f32]], row: MixedRow| vit.read_mixed(images, &[row], 1).unwrap_err().to_string();
    let row = MixedRow { image: 0, prompts: None, readout: Readout::Features };
    assert!(refusal(&[&image[1..]], row).contains("no image of 3 x 24 x 24"));
    assert!(refusal(&[], row).contains("there is none at 0"));
    let deep = [TokenRead { after: 4, rows: TokenRows::All }];
    assert!(
        refusal(&[&image], MixedRow { readout: Readout::Tokens(&deep), ..row }).contains("of a backbone of 3 blocks")
    );
    assert!(vit.prepare(None, None, 1).unwrap_err().to_string().contains("there are none"));
    assert!(vit.read_mixed(&[&image], &[], 2).unwrap().is_empty());
}
