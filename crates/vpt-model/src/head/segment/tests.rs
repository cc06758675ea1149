//! The heads against central differences, and what windows become.

use super::*;
use crate::head::detect::FeatureGradients;
use vpt_base::params::{Group, Param};
use vpt_base::random::{normal, stream};

fn shape(kind: DecodeHead) -> SegmentShape {
    let levels = if kind == DecodeHead::Linear { 1 } else { 2 };
    SegmentShape { kind, width: 12, levels, grid: 3, channels: 8, classes: 3 }
}

/// Parameters away from their initial values, where some gradients vanish.
fn shaken(shape: &SegmentShape) -> Vec<Param> {
    let mut rng = stream(5, "test", 0, 0);
    let mut params = shape.init(&mut rng).unwrap();
    for p in &mut params {
        p.values.iter_mut().for_each(|v| *v = 0.7 * *v + 0.3 * normal(&mut rng));
    }
    params
}

fn draws(seed: u64, n: usize) -> Vec<f32> {
    let mut rng = stream(seed, "draws", 0, 0);
    (0..n).map(|_| normal(&mut rng)).collect()
}

/// Labels of a window, some of no class.
fn labels(shape: &SegmentShape) -> Vec<u16> {
    let cells = shape.cells() * shape.cells();
    (0..cells).map(|i| if i % 7 == 0 { u16::MAX } else { (i * 5 / 3 % 3) as u16 }).collect()
}

fn loss(shape: &SegmentShape, params: &[Param], features: &[f32]) -> f64 {
    let labels = labels(shape);
    let valid = labels.iter().filter(|label| **label < 3).count() as u64;
    let logits = shape.bind(params).unwrap().forward(features, &mut SegmentWorkspace::default());
    let (found, _) = CellLoss::new(shape, valid).gradients(&logits, &labels);
    assert_eq!(found.cells, valid);
    found.sum / valid as f64
}

#[test]
fn gradients_are_those_of_central_differences() {
    for kind in [DecodeHead::Linear, DecodeHead::MultiBlock] {
        let shape = shape(kind);
        let params = shaken(&shape);
        let features = draws(3, shape.levels * 9 * 12);
        let labels = labels(&shape);
        let valid = labels.iter().filter(|label| **label < 3).count() as u64;
        let head = shape.bind_for_training(&params).unwrap();
        let workspace = &mut SegmentWorkspace::default();
        let mut sums = vec![0.; params.iter().map(|p| p.values.len()).sum()];
        let mut of_features = vec![f32::NAN; features.len()];
        let logits = head.forward(&features, workspace);
        assert_eq!(logits.len(), shape.side() * shape.side() * 3);
        let (_, d_logits) = CellLoss::new(&shape, valid).gradients(&logits, &labels);
        let to = FeatureGradients { first_level: 0, values: &mut of_features };
        head.vjp(&d_logits, Some(to), &mut sums, workspace);
        let gradients = head.gradients(&sums);
        let step = 2e-2_f32;
        let close = |found: f32, expected: f64, scale: f64, what: &str| {
            assert!(
                (f64::from(found) - expected).abs() <= 2e-3 * scale.max(1e-3),
                "{what}: {found} {expected} of {scale}"
            );
        };
        for (at, (param, gradient)) in params.iter().zip(&gradients).enumerate() {
            if param.group == Group::Fixed {
                assert!(gradient.iter().all(|value| *value == 0.), "{}", param.name);
                continue;
            }
            let scale = gradient.iter().map(|g| f64::from(g.abs())).fold(0., f64::max);
            for i in (0..param.values.len()).step_by(1 + param.values.len() / 25) {
                let moved = |by: f32| {
                    let mut params = params.clone();
                    params[at].values[i] += by;
                    loss(&shape, &params, &features)
                };
                let expected = (moved(step) - moved(-step)) / (2. * f64::from(step));
                close(gradient[i], expected, scale, &param.name);
            }
        }
        let scale = of_features.iter().map(|g| f64::from(g.abs())).fold(0., f64::max);
        for i in (0..features.len()).step_by(7) {
            let moved = |by: f32| {
                let mut features = features.clone();
                features[i] += by;
                loss(&shape, &params, &features)
            };
            let expected = (moved(step) - moved(-step)) / (2. * f64::from(step));
            close(of_features[i], expected, scale, "features");
        }
        // The later level alone is the same.
        if kind == DecodeHead::MultiBlock {
            let mut late = vec![f32::NAN; 9 * 12];
            let to = FeatureGradients { first_level: 1, values: &mut late };
            head.vjp(&d_logits, Some(to), &mut sums, workspace);
            assert_eq!(late, of_features[9 * 12..]);
        }
    }
}

#[test]
fn a_shape_out_of_a_file_is_checked() {
    let good = shape(DecodeHead::MultiBlock);
    good.check().unwrap();
    for bad in [
        SegmentShape { width: 0, ..good },
        SegmentShape { levels: 65, ..good },
        SegmentShape { grid: 1 << 10, ..good },
        SegmentShape { channels: 12, ..good },
        SegmentShape { classes: 0, ..good },
        SegmentShape { kind: DecodeHead::Linear, ..good },
    ] {
        assert!(bad.check().is_err(), "{bad:?}");
    }
    assert!(good.bind(&shaken(&SegmentShape { classes: 4, ..good })).is_err());
}

#[test]
fn classes_of_windows_are_put_together_where_they_lie() {
    // Two windows of 4 pixels beside each other that overlap by two, in an image of 6 x 4 that is shown at twice the size.
    let composer = Composer { window: 4, side: 2, classes: 2 };
    let logits = |left: f32, right: f32| [left, 0., right, 0., left, 0., right, 0.];
    let all = [logits(1., 1.), logits(-3., -3.)].concat();
    let windows = WindowLogits { logits: &all, corners: &[[0, 0], [2, 0]], scaled: [6, 4] };
    let classes = composer.classes(windows, 12, 8).unwrap();
    // Where both lie the sum is -2.
    assert_eq!(classes[..12], [0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1]);
    assert!(classes.chunks_exact(12).all(|row| row == &classes[..12]));
    // Between two logits it is as near as it lies.
    let all = logits(1., -1.);
    let windows = WindowLogits { logits: &all, corners: &[[0, 0]], scaled: [4, 4] };
    assert_eq!(composer.classes(windows, 4, 1).unwrap(), [0, 0, 1, 1]);
    // The mean of 1 and -3 where both lie, so the second class has 1 / (1 + e^-1) there, 1 / (1 + e^-3) on its own.
    let all = [logits(1., 1.), logits(-3., -3.)].concat();
    let windows = WindowLogits { logits: &all, corners: &[[0, 0], [2, 0]], scaled: [6, 4] };
    let none = vpt_data::masks::IGNORED;
    let sure = |least| composer.sure_classes(windows, 6, 1, least).unwrap();
    assert_eq!(sure(0.73), [0, 0, 1, 1, 1, 1]);
    assert_eq!(sure(0.74), [none, none, none, none, 1, 1]);
    assert_eq!(sure(0.96), [none; 6]);
    let all = logits(1., -1.);
    let short = WindowLogits { logits: &all[1..], corners: &[[0, 0]], scaled: [4, 4] };
    assert!(composer.classes(short, 4, 1).is_err());
}

#[test]
fn the_loss_of_upsampled_logits_is_bilinear() {
    let taps = super::loss::taps(2, 8);
    let places: Vec<f32> = taps.iter().map(|(first, weight)| *first as f32 + weight).collect();
    assert_eq!(places, [0., 0., 0.125, 0.375, 0.625, 0.875, 1., 1.]);
}
