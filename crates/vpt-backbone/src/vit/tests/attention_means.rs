//! What attention works with, against sums by hand in f64.

use super::*;

const IMAGES: usize = 3;

#[test]
fn means_are_those_of_the_textbook_form() {
    for (spec, size) in families() {
        let weights = weights(&spec);
        let vit = Vit::load(&spec, &weights, size, Precision::F32).unwrap();
        let images = random(100, IMAGES * 3 * size * size);
        let reads = [TokenRead { after: 1, rows: TokenRows::All }];
        let pass = Pass { readout: Readout::Tokens(&reads), ..Pass::forward(&images, 1) };
        let tokens = vit.read(&pass).unwrap();
        let found = vit.attention_means(1, &tokens, 2).unwrap();
        let plain = PlainTower::new(&spec, &weights, size, OwnWeights::default());
        let block = plain.block(1).unwrap();
        let (d, t, heads) = (spec.vision.width, vit.tokens(), spec.vision.heads);
        let layer = |layer: &PlainLayer, row: &[f64]| -> Vec<f64> {
            let bias = |i: usize| layer.bias.get(i).map_or(0., |&b| f64::from(b));
            let dot = |w: &[f32]| w.iter().zip(row).map(|(&w, x)| f64::from(w) * x).sum::<f64>();
            layer.weight.chunks_exact(d).enumerate().map(|(i, w)| dot(w) + bias(i)).collect()
        };
        let turned = |row: Vec<f64>, token: usize| -> Vec<f64> {
            let Some(angles) = plain.rotary_angles() else { return row };
            let (width, prefix) = (d / heads, t - plain.grid() * plain.grid());
            let Some(patch) = token.checked_sub(prefix) else { return row };
            let mut out = row.clone();
            for head in 0..heads {
                for j in 0..width / 2 {
                    let (sin, cos) = angles[patch * (width / 2) + j].sin_cos();
                    let (a, b) = (head * width + j, head * width + j + width / 2);
                    (out[a], out[b]) = (row[a] * cos - row[b] * sin, row[b] * cos + row[a] * sin);
                }
            }
            out
        };
        let (mut keys, mut mixed) = (vec![0.; t * d], vec![0.; t * d]);
        for image in tokens.chunks_exact(t * d) {
            let rows: Vec<Vec<f64>> = image
                .chunks_exact(d)
                .map(|row| {
                    let mean = row.iter().map(|&x| f64::from(x)).sum::<f64>() / d as f64;
                    let square = row.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / d as f64;
                    row.iter().map(|&x| (f64::from(x) - mean) / (square + f64::from(spec.vision.eps)).sqrt()).collect()
                })
                .collect();
            let plain_keys: Vec<Vec<f64>> = rows.iter().map(|row| layer(&block.k, row)).collect();
            let q: Vec<Vec<f64>> = rows.iter().zip(0..).map(|(row, i)| turned(layer(&block.q, row), i)).collect();
            let k: Vec<Vec<f64>> = plain_keys.iter().zip(0..).map(|(row, i)| turned(row.clone(), i)).collect();
            let v: Vec<Vec<f64>> = rows.iter().map(|row| layer(&block.v, row)).collect();
            for i in 0..t {
                (0..d).for_each(|j| keys[i * d + j] += plain_keys[i][j] / IMAGES as f64);
                for head in 0..heads {
                    let part = head * d / heads..(head + 1) * d / heads;
                    let score = |j: usize| -> f64 { part.clone().map(|c| q[i][c] * k[j][c]).sum::<f64>().exp() };
                    let scores: Vec<f64> = (0..t).map(score).collect();
                    let sum: f64 = scores.iter().sum();
                    for c in part.clone() {
                        let value: f64 = (0..t).map(|j| scores[j] / sum * v[j][c]).sum();
                        mixed[i * d + c] += value / IMAGES as f64;
                    }
                }
            }
        }
        for (ours, theirs) in [(&found.keys, &keys), (&found.found, &mixed)] {
            let largest = theirs.iter().fold(0f64, |most, value| most.max(value.abs()));
            let apart = ours.iter().zip(theirs).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0., f64::max);
            assert!(apart < 1e-5 * largest, "{spec:?}: {apart} of {largest}");
        }
        assert!(vit.attention_means(vit.depth(), &tokens, 1).is_err());
        assert!(vit.attention_means(0, &tokens[1..], 1).is_err());
    }
}
