//! Pixels told apart on the small random CLIP: the ways to compute one step agree with each other and with central differences.

use std::path::Path;

use super::*;
use crate::prompt::{
    PartShape,
    tokens::{PromptLayers, TokenLayout},
    weights::WeightShape,
};
use vpt_backbone::OpenOptions;
use vpt_base::{params, random::normal};

const WINDOWS: usize = 5;
const CLASSES: usize = 3;
const SIDE: usize = 32;

fn segmenter(kind: DecodeHead, layers: Option<&str>, threads: usize) -> Segmenter {
    segmenter_of(kind, threads, |depth| {
        let layers = layers?.parse::<PromptLayers>().unwrap();
        let (start, layers) = layers.resolve(depth).unwrap();
        Some(PartShape::Tokens(TokenLayout { start, layers, tokens: 4 }))
    })
}

fn segmenter_of(kind: DecodeHead, threads: usize, part: impl Fn(usize) -> Option<PartShape>) -> Segmenter {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/clip");
    let options = OpenOptions { image_size: Some(SIDE), ..OpenOptions::default() };
    let backbone = Arc::new(Backbone::open(dir.to_str().unwrap(), &options).unwrap());
    let parts: PartShapes = part(backbone.vit.depth()).into_iter().collect();
    let (shape, blocks) = Segmenter::shape(&backbone, kind, CLASSES);
    let shape = SegmentShape { channels: 16, ..shape };
    Segmenter::new(backbone, &parts, shape, &blocks, threads).unwrap()
}

fn images() -> Vec<f32> {
    let rng = &mut stream(7, "images", 0, 0);
    (0..WINDOWS * 3 * SIDE * SIDE).map(|_| normal(rng)).collect()
}

fn labels(model: &Segmenter) -> Vec<u16> {
    let cells = model.head().cells() * model.head().cells();
    (0..WINDOWS * cells).map(|i| if i % 11 == 0 { u16::MAX } else { (i / 3 % CLASSES) as u16 }).collect()
}

fn shaken(model: &Segmenter) -> Vec<Param> {
    let mut params = model.init(3).unwrap();
    let rng = &mut stream(9, "shake", 0, 0);
    params.iter_mut().flat_map(|p| &mut p.values).for_each(|v| *v = 0.8 * *v + 0.1 * normal(rng));
    params
}

fn step(
    model: &Segmenter,
    params: &[Param],
    input: TokenInput,
    micro_batch: Option<usize>,
) -> (SegmentLoss, Vec<Vec<f32>>) {
    let labels = labels(model);
    model.step(params, &SegmentStep { input, labels: &labels, drawn: &[], micro_batch }).unwrap()
}

#[test]
fn a_step_from_the_prefix_is_the_step_from_images() {
    for (kind, layers) in [(DecodeHead::MultiBlock, "last:1"), (DecodeHead::Linear, "last:2")] {
        let model = segmenter(kind, Some(layers), 2);
        let (params, images) = (shaken(&model), images());
        let whole = step(&model, &params, TokenInput::Images(&images), None);
        let prefix = model.reader().prefix(&images).unwrap();
        assert_eq!(step(&model, &params, TokenInput::Prefix(&prefix), None), whole);
        assert_eq!(step(&model, &params, TokenInput::Images(&images), Some(1)).0, whole.0);
        // Without prompts features are all that there is.
        let plain = segmenter(kind, None, 2);
        let own = model.reader().without_parts(&params);
        let features = plain.reader().features(&images).unwrap();
        let of_features = step(&plain, &own, TokenInput::Features(&features), None);
        assert_eq!(of_features, step(&plain, &own, TokenInput::Images(&images), None));
        assert_ne!(of_features.0.sum.to_bits(), whole.0.sum.to_bits());
    }
}

#[test]
fn gradients_of_biases_are_those_of_central_differences() {
    for kind in [DecodeHead::MultiBlock, DecodeHead::Linear] {
        let model = segmenter_of(kind, 2, |_| Some(PartShape::Weights(WeightShape::Bias)));
        let (params, images) = (shaken(&model), images());
        let (loss, gradients) = step(&model, &params, TokenInput::Images(&images), None);
        let own = params.len() - model.reader().without_parts(&params).len();
        let squares = gradients[..own].iter().flatten().map(|g| f64::from(*g) * f64::from(*g)).sum::<f64>();
        let moved = |by: f64| {
            let mut params = params.clone();
            for (param, gradient) in params[..own].iter_mut().zip(&gradients) {
                let towards = gradient.iter().map(|g| (by * f64::from(*g) / squares.sqrt()) as f32);
                param.values.iter_mut().zip(towards).for_each(|(value, by)| *value += by);
            }
            step(&model, &params, TokenInput::Images(&images), None).0.sum / loss.cells as f64
        };
        let slope = (moved(1e-2) - moved(-1e-2)) / 2e-2;
        assert!((slope / squares.sqrt() - 1.).abs() < 5e-3, "{kind}: {slope} {}", squares.sqrt());
    }
}

#[test]
fn gradients_of_prompts_are_those_of_central_differences() {
    for kind in [DecodeHead::MultiBlock, DecodeHead::Linear] {
        let model = segmenter(kind, Some("all"), 2);
        let (params, images) = (shaken(&model), images());
        let (loss, gradients) = step(&model, &params, TokenInput::Images(&images), None);
        assert_eq!(
            gradients.iter().map(Vec::len).collect::<Vec<_>>(),
            params.iter().map(|p| p.values.len()).collect::<Vec<_>>()
        );
        let scale = gradients[0].iter().map(|g| g.abs()).fold(0., f32::max);
        assert!(scale > 0.);
        for i in (0..params[0].values.len()).step_by(37) {
            let moved = |by: f32| {
                let mut params = params.clone();
                params[0].values[i] += by;
                step(&model, &params, TokenInput::Images(&images), None).0.sum / loss.cells as f64
            };
            let expected = (moved(2e-2) - moved(-2e-2)) / 4e-2;
            assert!(
                (f64::from(gradients[0][i]) - expected).abs() < 5e-3 * f64::from(scale),
                "{} {expected}",
                gradients[0][i]
            );
        }
    }
}

#[test]
fn statistics_make_tokens_of_mean_zero_and_variance_one() {
    let model = segmenter(DecodeHead::Linear, None, 1);
    let features = model.reader().features(&images()).unwrap();
    let mut statistics = TokenStatistics::new(model.head().width);
    let (first, second) = features.split_at(features.len() / WINDOWS);
    statistics.add(first);
    statistics.add(second);
    let mut params = model.init(1).unwrap();
    model.set_norm(&mut params, &statistics).unwrap();
    let width = model.head().width;
    let (mean, scale) = (params::find(&params, NORM_MEAN).unwrap(), params::find(&params, NORM_SCALE).unwrap());
    for at in 0..width {
        let values: Vec<f64> =
            features.chunks_exact(width).map(|t| f64::from((t[at] - mean.values[at]) * scale.values[at])).collect();
        let n = values.len() as f64;
        let (own, square) = (values.iter().sum::<f64>() / n, values.iter().map(|v| v * v).sum::<f64>() / n);
        assert!(own.abs() < 1e-3 && (square - 1.).abs() < 1e-2, "{own} {square}");
    }
    assert!(model.set_norm(&mut params[..1].to_vec(), &statistics).is_err());
}

#[test]
fn parts_that_do_not_fit_are_refused() {
    let model = segmenter(DecodeHead::MultiBlock, None, 1);
    let backbone = model.reader().backbone().clone();
    let (shape, blocks) = Segmenter::shape(&backbone, DecodeHead::MultiBlock, CLASSES);
    let other = SegmentShape { grid: shape.grid + 1, ..shape };
    assert!(Segmenter::new(backbone.clone(), &PartShapes::NONE, other, &blocks, 1).is_err());
    assert!(Segmenter::new(backbone.clone(), &PartShapes::NONE, shape, &[99], 1).is_err());
    assert!(model.check(&model.init(1).unwrap()).is_ok());
    assert!(model.check(&segmenter(DecodeHead::Linear, None, 1).init(1).unwrap()).is_err());
}
