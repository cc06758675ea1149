//! A detector on the small random CLIP: the ways to compute one step agree with each other and with central differences.

use std::path::Path;

use super::*;
use crate::{
    head::detect::{
        ClassLayer,
        geometry::{self, corners},
    },
    prompt::{
        PartShape,
        tokens::{DropoutMask, PromptLayers},
        weights::{LoraShape, LoraTowers, WeightShape},
    },
};
use vpt_backbone::{OpenOptions, class_texts::class_embeddings};
use vpt_base::random::normal;
use vpt_data::boxes::{BoxInput, Fit};
use vpt_image::Rgb8;

const IMAGES: usize = 5;
const CLASSES: usize = 3;
const ANCHOR: f32 = 0.3;
const DEPTH: usize = 3;

fn backbone(side: usize) -> Arc<Backbone> {
    backbone_of("clip", side)
}

fn backbone_of(family: &str, side: usize) -> Arc<Backbone> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(family);
    let options = OpenOptions { image_size: Some(side), ..OpenOptions::default() };
    Arc::new(Backbone::open(dir.to_str().unwrap(), &options).unwrap())
}

fn layout(layers: &str) -> TokenLayout {
    let (start, layers) = layers.parse::<PromptLayers>().unwrap().resolve(DEPTH).unwrap();
    TokenLayout { start, layers, tokens: 4 }
}

/// Prompt tokens in these blocks.
fn prompts(layers: Option<&str>) -> PartShapes {
    layers.map_or(PartShapes::NONE, |layers| PartShape::Tokens(layout(layers)).into())
}

/// A detector with fewer channels than real ones have, for images of `side` pixels.
fn detector(side: usize, layers: Option<&str>, upsample: bool, threads: usize) -> Detector {
    detector_of(side, &prompts(layers), upsample, threads)
}

fn detector_of(side: usize, parts: &PartShapes, upsample: bool, threads: usize) -> Detector {
    let backbone = backbone(side);
    let classes = ClassLayer::Linear { classes: CLASSES };
    let shape = DetectShape { channels: 16, upsample, ..Detector::shape(&backbone, classes, ANCHOR) };
    let blocks = levels(backbone.vit.depth());
    Detector::new(backbone, parts, shape, &blocks, None, threads).unwrap()
}

fn normals(purpose: &str, n: usize) -> Vec<f32> {
    let rng = &mut stream(7, purpose, 0, 0);
    (0..n).map(|_| normal(rng)).collect()
}

fn images(side: usize) -> Vec<f32> {
    normals("images", IMAGES * 3 * side * side)
}

/// None, one and two boxes in an image, and a crowd.
fn truths() -> Vec<Vec<Truth>> {
    let truth = |rect: [f32; 4], class: usize| Truth { rect, class, crowd: false };
    let crowd = Truth { crowd: true, ..truth([0.75, 0.75, 0.5, 0.5], 0) };
    vec![
        vec![truth([0.3, 0.35, 0.4, 0.3], 1), truth([0.72, 0.6, 0.2, 0.45], 2)],
        vec![truth([0.3, 0.35, 0.4, 0.3], 1), truth([0.72, 0.6, 0.2, 0.45], 2)],
        vec![],
        vec![truth([0.2, 0.3, 0.31, 0.37], 0), crowd],
        vec![truth([0.55, 0.52, 0.9, 0.83], 2)],
    ]
}

/// Learned values away from their beginning, where whole layers are zero.
fn learned(detector: &Detector) -> Vec<Param> {
    let mut params = detector.init(3).unwrap();
    for param in &mut params {
        let noise = normals(&param.name, param.values.len());
        let scale = if param.name.contains("class") || param.name.contains("box") { 0.1 } else { 0.05 };
        param.values.iter_mut().zip(noise).for_each(|(v, n)| *v += scale * n);
    }
    detector.check(&params).unwrap();
    params
}

fn step<'a>(input: TokenInput<'a>, truths: &'a [Vec<Truth>]) -> DetectStep<'a> {
    DetectStep { input, truths, valid: None, drawn: &[], micro_batch: None }
}

type Stepped = (LossSums, Vec<Vec<f32>>);

/// Losses agree to `tolerance`, as do gradients by the length of their difference.
#[track_caller]
fn assert_same(found: &Stepped, expected: &Stepped, tolerance: f64, what: &str) {
    let parts = |sums: &LossSums| [sums.class, sums.giou, sums.l1, sums.quality];
    assert_eq!(found.0.positives, expected.0.positives, "{what}");
    for (a, b) in parts(&found.0).into_iter().zip(parts(&expected.0)) {
        assert!((a - b).abs() <= tolerance * b.abs(), "{what}: {:?}, {:?}", found.0, expected.0);
    }
    assert_eq!(found.1.len(), expected.1.len(), "{what}");
    for (i, (a, b)) in found.1.iter().zip(&expected.1).enumerate() {
        assert_eq!(a.len(), b.len(), "{what}");
        let difference = length(a.iter().zip(b).map(|(a, b)| a - b));
        let expected = length(b.iter().copied());
        assert!(expected > 0., "{what}: tensor {i} learns nothing");
        assert!(difference <= tolerance * expected, "{what}: tensor {i} is {} off", difference / expected);
    }
}

fn length(values: impl Iterator<Item = f32>) -> f64 {
    values.map(|v| f64::from(v) * f64::from(v)).sum::<f64>().sqrt()
}

#[test]
fn a_prefix_stands_for_its_images() {
    for (side, layers) in [(32, "last:1"), (32, "last:2"), (64, "last:1"), (64, "last:2"), (32, "first:2")] {
        let detector = detector(side, Some(layers), false, 2);
        let (params, truths, images) = (learned(&detector), truths(), images(side));
        let prefix = detector.prefix(&images).unwrap();
        assert_eq!(prefix.len(), IMAGES * detector.prefix_len());
        for micro_batch in [None, Some(1)] {
            for rate in [0., 0.5] {
                let run = |input: TokenInput| {
                    let mask = DropoutMask::draw(params[0].values.len(), rate, &mut stream(5, "mask", 0, 0));
                    let drawn = &[Drawn::Mask(mask)];
                    let step = DetectStep { drawn, micro_batch, ..step(input, &truths) };
                    detector.step(&params, &step).unwrap()
                };
                let what = format!("{layers} at {side} pixels, dropout {rate}");
                let (of_images, of_prefix) = (run(TokenInput::Images(&images)), run(TokenInput::Prefix(&prefix)));
                assert_same(&of_prefix, &of_images, 1e-6, &what);
                let dropped = of_images.1[0].iter().filter(|&&g| g == 0.).count();
                assert_eq!(dropped > 0, rate > 0., "{what}: {dropped} prompt values got no gradient");
            }
        }
        let head = detector.bind(&params).unwrap();
        let found = |input| detector.detect(&head, Some(&params), input, None).unwrap();
        assert_eq!(found(TokenInput::Prefix(&prefix)), found(TokenInput::Images(&images)));
    }
}

#[test]
fn features_stand_for_images_that_see_no_prompt() {
    for side in [32, 64] {
        let plain = detector(side, None, false, 2);
        let (params, truths, images) = (learned(&plain), truths(), images(side));
        let features = plain.features(&images).unwrap();
        assert_eq!(features.len(), IMAGES * plain.features_len());
        let of_images = plain.step(&params, &step(TokenInput::Images(&images), &truths)).unwrap();
        let of_features = plain.step(&params, &step(TokenInput::Features(&features), &truths)).unwrap();
        assert_same(&of_features, &of_images, 1e-6, "without prompts");

        // A detector with prompts that does not use them yet: the head learns the same, the prompts nothing.
        let prompted = detector(side, Some("last:2"), false, 2);
        let all = learned(&prompted);
        assert_eq!(all[1..], params);
        assert_eq!(prompted.features(&images).unwrap(), features);
        let (losses, gradients) = prompted.step(&all, &step(TokenInput::Features(&features), &truths)).unwrap();
        assert_eq!((&losses, &gradients[1..]), (&of_features.0, &of_features.1[..]));
        assert!(gradients[0].is_empty());
        let head = prompted.bind(&all).unwrap();
        let found = |params, input| prompted.detect(&head, params, input, None).unwrap();
        let without = found(None, TokenInput::Features(&features));
        assert_eq!(found(None, TokenInput::Images(&images)), without);
        assert_ne!(found(Some(&all), TokenInput::Images(&images)), without, "prompts change something");
    }
}

/// The loss of a batch, pieced together from what the head says of each image. The quality's targets count as constants:
/// they are those of `targets`, if it is filled, else they are put there.
fn loss(
    detector: &Detector,
    params: &[Param],
    images: &[f32],
    valid: Option<&[bool]>,
    targets: &mut Vec<Vec<f64>>,
) -> f64 {
    let (side, truths) = (detector.head().side(), truths());
    let grid = Grid { side, anchor: ANCHOR };
    let assignments: Vec<Assignment> = (0..IMAGES)
        .map(|i| {
            let valid = valid.map(|valid| {
                let coarse = detector.head().grid;
                let of_image = &valid[i * coarse * coarse..(i + 1) * coarse * coarse];
                // The backbone's token in whose square the centre lies.
                (0..side * side)
                    .map(|t| grid.centre(t).map(|c| (c * coarse as f64) as usize))
                    .map(|[x, y]| of_image[y * coarse + x])
                    .collect::<Vec<_>>()
            });
            Assignment::new(side, &truths[i], valid.as_deref())
        })
        .collect();
    let positives = assignments.iter().map(Assignment::positives).sum();
    let head = detector.bind(params).unwrap();
    let input = TokenInput::Images(images);
    let inputs = detector.reader().join(params, &[], input).unwrap();
    let look = |_: usize, features: &[f32]| head.forward(features, &mut Workspace::default());
    let raws: Vec<RawBoxes> = detector.reader().each(&inputs, input, look).unwrap();
    let fresh = targets.is_empty();
    let mut sum = 0.;
    for (i, (raw, assignment)) in raws.iter().zip(&assignments).enumerate() {
        let (sums, _) = DetectionLoss { grid, positives }.gradients(raw, &truths[i], assignment);
        sum += sums.class + 2. * sums.giou + 5. * sums.l1;
        let owned = assignment.roles.iter().enumerate().filter_map(|(token, role)| match role {
            crate::head::detect::Role::Positive(index) => Some((token, truths[i][*index].rect.map(f64::from))),
            _ => None,
        });
        if fresh {
            targets.push(Vec::new());
        }
        for (n, (token, truth)) in owned.enumerate() {
            if fresh {
                let offsets = [0, 1, 2, 3].map(|k| raw.boxes[4 * token + k]);
                targets[i].push(geometry::iou(corners(grid.decode(token, offsets)), corners(truth)));
            }
            let x = f64::from(raw.quality[token]);
            sum += 0.5 * ((1. + x.exp()).ln() - targets[i][n] * x);
        }
    }
    sum / positives as f64
}

#[test]
fn gradients_are_those_of_the_loss() {
    let cases = [(Some("last:1"), false), (Some("last:2"), true), (Some("all"), false), (None, true)];
    for (layers, upsample) in cases {
        let detector = detector(32, layers, upsample, 2);
        let (params, truths, images) = (learned(&detector), truths(), images(32));
        let (sums, gradients) = detector.step(&params, &step(TokenInput::Images(&images), &truths)).unwrap();
        let mut targets = Vec::new();
        let total = loss(&detector, &params, &images, None, &mut targets);
        assert!((total - sums.total(sums.positives)).abs() < 1e-6 * total, "{total}, {sums:?}");

        for (i, (param, gradient)) in params.iter().zip(&gradients).enumerate() {
            // Half along the gradient, which says whether its length is right, half anywhere.
            let scale = length(gradient.iter().copied());
            let anywhere = normals(&format!("direction {}", param.name), gradient.len());
            let unit = length(anywhere.iter().copied());
            let direction: Vec<f64> =
                gradient.iter().zip(&anywhere).map(|(&g, &r)| f64::from(g) / scale + f64::from(r) / unit).collect();
            let expected: f64 = direction.iter().zip(gradient).map(|(d, &g)| d * f64::from(g)).sum();
            let h = 5e-4 * length(param.values.iter().copied()).max(1.);
            let mut moved = |by: f64| {
                let mut params = params.clone();
                params[i].values.iter_mut().zip(&direction).for_each(|(v, d)| *v += (by * d) as f32);
                loss(&detector, &params, &images, None, &mut targets)
            };
            let slope = (moved(h) - moved(-h)) / (2. * h);
            let error = (slope - expected).abs() / scale;
            assert!(error < 5e-3, "{layers:?} {}: slope {slope}, gradient {expected}", param.name);
        }
    }
}

/// Weights of every kind, alone and beside prompts.
fn weights() -> Vec<PartShapes> {
    let lora = LoraShape { rank: 2, alpha: 2., towers: LoraTowers::Image, texts: false };
    let alone =
        [WeightShape::Bias, WeightShape::Norm, WeightShape::Full, WeightShape::Lora(lora)].map(PartShape::Weights);
    let beside = alone.map(|weights| [PartShape::Tokens(layout("last:2")), weights].into_iter().collect());
    alone.map(PartShapes::from).into_iter().chain(beside).collect()
}

#[test]
fn gradients_of_weights_are_those_of_the_loss() {
    for parts in weights() {
        let detector = detector_of(32, &parts, false, 2);
        let (params, truths, images) = (learned(&detector), truths(), images(32));
        let (sums, gradients) = detector.step(&params, &step(TokenInput::Images(&images), &truths)).unwrap();
        let mut targets = Vec::new();
        let total = loss(&detector, &params, &images, None, &mut targets);
        assert!((total - sums.total(sums.positives)).abs() < 1e-6 * total, "{total}, {sums:?}");
        let own = params.len() - detector.reader().without_parts(&params).len();
        let lengths = |tensors: &[Vec<f32>]| tensors.iter().map(Vec::len).collect::<Vec<_>>();
        assert_eq!(lengths(&gradients), params.iter().map(|param| param.values.len()).collect::<Vec<_>>());
        // All tensors of the parts at once, half along the gradient, half anywhere.
        let scale = length(gradients[..own].iter().flatten().copied());
        let anywhere: Vec<Vec<f32>> =
            params[..own].iter().map(|p| normals(&format!("direction {}", p.name), p.values.len())).collect();
        let unit = length(anywhere.iter().flatten().copied());
        let both = |(gradient, anywhere): (&Vec<f32>, &Vec<f32>)| -> Vec<f64> {
            gradient.iter().zip(anywhere).map(|(&g, &r)| f64::from(g) / scale + f64::from(r) / unit).collect()
        };
        let direction: Vec<Vec<f64>> = gradients.iter().zip(&anywhere).map(both).collect();
        let expected: f64 =
            direction.iter().flatten().zip(gradients.iter().flatten()).map(|(d, &g)| d * f64::from(g)).sum();
        let mut moved = |by: f64| {
            let mut params = params.clone();
            for (param, direction) in params.iter_mut().zip(&direction) {
                param.values.iter_mut().zip(direction).for_each(|(v, d)| *v += (by * d) as f32);
            }
            loss(&detector, &params, &images, None, &mut targets)
        };
        let h = 7e-4;
        let slope = (moved(h) - moved(-h)) / (2. * h);
        let error = (slope - expected).abs() / scale;
        assert!(error < 5e-3, "{parts:?}: slope {slope}, gradient {expected}");
    }
}

#[test]
fn weights_learn_nothing_from_features_that_are_known_and_do_not_change_what_is_found_before_they_learn() {
    let plain = detector(32, None, false, 2);
    let (truths, images) = (truths(), images(32));
    let features = plain.features(&images).unwrap();
    for parts in weights().into_iter().filter(|parts| parts.tokens().is_none()) {
        let detector = detector_of(32, &parts, false, 2);
        let params = detector.init(3).unwrap();
        let head = detector.reader().without_parts(&params);
        let input = TokenInput::Features(&features);
        let (losses, gradients) = detector.step(&params, &step(input, &truths)).unwrap();
        let (expected, of_head) = plain.step(&head, &step(input, &truths)).unwrap();
        let own = params.len() - head.len();
        assert_eq!((losses, &gradients[own..]), (expected, &of_head[..]));
        assert!(gradients[..own].iter().all(Vec::is_empty));
        let found = |detector: &Detector, params: &[Param]| {
            let head = detector.bind(params).unwrap();
            detector.detect(&head, Some(params), TokenInput::Images(&images), None).unwrap()
        };
        assert_eq!(found(&detector, &params), found(&plain, &head), "{parts:?}");
        assert_ne!(found(&detector, &learned(&detector)), found(&plain, &head), "{parts:?}");
        assert!(!detector.reader().has_prefix());
    }
}

#[test]
fn threads_and_micro_batches_change_nothing_but_the_order_of_sums() {
    let (truths, images) = (truths(), images(32));
    let alone = detector(32, Some("last:2"), true, 1);
    let params = learned(&alone);
    let prefix = alone.prefix(&images).unwrap();
    let features = alone.features(&images).unwrap();
    for input in [TokenInput::Images(&images), TokenInput::Prefix(&prefix), TokenInput::Features(&features)] {
        let one = alone.step(&params, &step(input, &truths)).unwrap();
        for threads in [1, 2, 3, 9] {
            let detector = detector(32, Some("last:2"), true, threads);
            let run =
                |micro_batch| detector.step(&params, &DetectStep { micro_batch, ..step(input, &truths) }).unwrap();
            for micro_batch in [None, Some(1), Some(2), Some(100)] {
                let found = run(micro_batch);
                let what = format!("{threads} threads, {micro_batch:?} images at a time");
                if matches!(input, TokenInput::Features(_)) {
                    assert_same(&(found.0, found.1[1..].to_vec()), &(one.0, one.1[1..].to_vec()), 1e-5, &what);
                } else {
                    assert_same(&found, &one, 1e-5, &what);
                }
                // Twice on one detector, whose buffers have been used by then.
                assert_eq!(run(micro_batch), found, "{what}");
            }
        }
    }
}

#[test]
fn what_is_found_does_not_depend_on_threads() {
    let images = images(32);
    let found = |threads| {
        let detector = detector(32, Some("last:1"), false, threads);
        let params = learned(&detector);
        let head = detector.bind(&params).unwrap();
        detector.detect(&head, Some(&params), TokenInput::Images(&images), None).unwrap()
    };
    let alone = found(1);
    assert_eq!(alone.len(), IMAGES);
    assert!(alone.iter().all(|boxes| !boxes.is_empty()));
    assert_eq!(found(2), alone);
    assert_eq!(found(9), alone);
}

/// What letter-boxing makes of a picture of `width` x `height`: pixels, tokens on the picture, and where it lies.
fn letterboxed(detector: &Detector, width: usize, height: usize) -> (Vec<f32>, Vec<bool>, vpt_data::boxes::View) {
    let backbone = detector.backbone();
    let grid = detector.head().grid;
    let input = BoxInput {
        preprocess: backbone.preprocess.clone(),
        side: backbone.vit.image_size(),
        grid,
        fit: Fit::Letterbox,
    };
    let picture = Rgb8 { width, height, pixels: (0..width * height * 3).map(|i| (i * 37 % 251) as u8).collect() };
    let viewed = input.view(&picture, &[]);
    let valid = viewed.valid_tokens(grid).unwrap_or_else(|| vec![true; grid * grid]);
    (input.normalised(&viewed), valid, viewed.view)
}

#[test]
fn nothing_is_found_in_padding() {
    for upsample in [false, true] {
        let detector = detector(64, None, upsample, 2);
        let mut params = learned(&detector);
        for param in &mut params {
            // All tokens are sure of something, right where they are and of a size that overlaps no other.
            match param.name.as_str() {
                "head.box.weight" => param.values.fill(0.),
                "head.box.bias" => param.values.copy_from_slice(&[0., 0., -2., -2.]),
                "head.class.bias" => param.values.fill(1.),
                _ => {}
            }
        }
        let head = detector.bind(&params).unwrap();
        let sizes = [(60, 20), (20, 60), (64, 33), (50, 50)];
        let (mut pixels, mut valid, mut views) = (Vec::new(), Vec::new(), Vec::new());
        for (width, height) in sizes {
            let (p, v, view) = letterboxed(&detector, width, height);
            pixels.extend(p);
            valid.extend(v);
            views.push(view);
        }
        let input = TokenInput::Images(&pixels);
        let found = detector.detect(&head, None, input, Some(&valid)).unwrap();
        let everywhere = detector.detect(&head, None, input, None).unwrap();
        let centres = |boxes: &[BoxScore]| -> Vec<[f32; 2]> {
            boxes.iter().map(|b| [f32::midpoint(b.rect[0], b.rect[2]), f32::midpoint(b.rect[1], b.rect[3])]).collect()
        };
        for (i, view) in views.iter().enumerate() {
            let inside = |[x, y]: [f32; 2]| {
                let (x, y) = (f64::from(x) - view.offset_x, f64::from(y) - view.offset_y);
                (0. ..=view.scale_x * view.width as f64).contains(&x)
                    && (0. ..=view.scale_y * view.height as f64).contains(&y)
            };
            assert!(!found[i].is_empty());
            assert!(centres(&found[i]).into_iter().all(inside), "{:?}: {:?}", sizes[i], found[i]);
            assert!(found[i].iter().all(|b| b.in_original(view).is_some()));
            let padded = sizes[i].0 != sizes[i].1;
            assert_eq!(centres(&everywhere[i]).into_iter().all(inside), !padded, "the mask makes the difference");
        }
    }
}

#[test]
fn tokens_in_padding_are_not_learned_from() {
    for upsample in [false, true] {
        let detector = detector(32, Some("last:1"), upsample, 2);
        let (params, truths, images) = (learned(&detector), truths(), images(32));
        let grid = detector.head().grid;
        let all = vec![true; IMAGES * grid * grid];
        let run = |valid| {
            let step = DetectStep { valid, ..step(TokenInput::Images(&images), &truths) };
            detector.step(&params, &step).unwrap()
        };
        assert_eq!(run(Some(&all)), run(None));
        // Every image has another part in the padding: columns on the left, lines below.
        let some: Vec<bool> = (0..all.len())
            .map(|i| {
                let (image, y, x) = (i / grid / grid, i / grid % grid, i % grid);
                x >= image % 3 && y + image / 2 < grid
            })
            .collect();
        let (sums, gradients) = run(Some(&some));
        let expected = loss(&detector, &params, &images, Some(&some), &mut Vec::new());
        assert!((sums.total(sums.positives) - expected).abs() < 1e-6 * expected, "{sums:?}, {expected}");
        assert_ne!(gradients, run(None).1);
        // With nothing but padding there is nothing to learn.
        let (sums, gradients) = run(Some(&vec![false; all.len()]));
        assert_eq!(sums, LossSums::default());
        assert!(gradients.iter().flatten().all(|&g| g == 0.));
    }
}

#[test]
fn classes_told_by_their_names_can_be_exchanged() {
    let backbone = backbone(32);
    let names = |names: &[&str]| names.iter().map(|&n| n.to_owned()).collect::<Vec<_>>();
    let texts = |list: &[&str]| class_embeddings(&backbone, &names(list), 1).unwrap();
    let three = texts(&["circle", "star", "ring"]);
    let classes = ClassLayer::Text { classes: 3, width: three.len() / 3 };
    let shape = DetectShape { channels: 16, ..Detector::shape(&backbone, classes, ANCHOR) };
    let make =
        |texts| Detector::new(backbone.clone(), &prompts(Some("last:1")), shape, &levels(DEPTH), texts, 2).unwrap();
    let detector = make(Some(three));
    let (params, truths, images) = (learned(&detector), truths(), images(32));
    let prefix = detector.prefix(&images).unwrap();
    let of_images = detector.step(&params, &step(TokenInput::Images(&images), &truths)).unwrap();
    let of_prefix = detector.step(&params, &step(TokenInput::Prefix(&prefix), &truths)).unwrap();
    assert_same(&of_prefix, &of_images, 1e-6, "open vocabulary");

    let found = |detector: &Detector| {
        let head = detector.bind(&params).unwrap();
        detector.detect(&head, Some(&params), TokenInput::Prefix(&prefix), None).unwrap()
    };
    let before = found(&detector);
    // One more name takes nothing from the others; their order is that of the names.
    let boxes = |all: Vec<Vec<BoxScore>>, class: usize| -> Vec<Vec<BoxScore>> {
        all.into_iter()
            .map(|b| b.into_iter().filter(|b| b.class == class).map(|b| BoxScore { class: 0, ..b }).collect())
            .collect()
    };
    let one = found(&detector.with_texts(texts(&["star"])));
    assert!(one.iter().flatten().count() > 0);
    let two = found(&make(Some(texts(&["circle", "star"]))));
    assert!(before.iter().chain(&two).all(|b| b.len() < 100), "no image has so many that some are left out");
    assert_eq!(boxes(two, 1), one);
    assert_eq!(boxes(before, 1), one);
    assert!(make(None).bind(&params).is_err(), "a head that needs names got none");
}

#[test]
fn parts_that_do_not_fit_are_refused() {
    let backbone = backbone(32);
    let shape = Detector::shape(&backbone, ClassLayer::Linear { classes: CLASSES }, ANCHOR);
    let none = &PartShapes::NONE;
    let make = |parts: &_, shape, blocks: &[usize]| Detector::new(backbone.clone(), parts, shape, blocks, None, 1);
    let error = |parts: &_, shape, blocks: &[usize]| make(parts, shape, blocks).unwrap_err().to_string();
    make(none, shape, &[1, 2, 3]).unwrap();
    assert!(error(none, DetectShape { grid: 8, ..shape }, &[1, 2, 3]).contains("grid of 8"));
    assert!(error(none, DetectShape { width: 64, ..shape }, &[1, 2, 3]).contains("64 values"));
    assert!(error(none, shape, &[1, 2]).contains("head"));
    assert!(error(none, shape, &[1, 2, 4]).contains("[1, 2, 4] of 3"));
    assert!(error(none, shape, &[2, 1, 3]).contains("[2, 1, 3]"));
    let deeper = TokenLayout { start: 2, layers: usize::MAX, tokens: 1 };
    assert!(error(&PartShape::Tokens(deeper).into(), shape, &[1, 2, 3]).contains("prompt_layers"));
    let lora = LoraShape { rank: 2, alpha: 1., towers: LoraTowers::Both, texts: true };
    let texts = PartShape::Weights(WeightShape::Lora(lora)).into();
    assert!(error(&texts, shape, &[1, 2, 3]).contains("weights of the image tower beside it, nothing else"));
}

#[test]
fn tokens_are_read_at_the_quarters_of_the_depth() {
    assert_eq!(levels(12), [3, 6, 9, 12]);
    assert_eq!(levels(6), [2, 3, 5, 6]);
    assert_eq!(levels(3), [1, 2, 3]);
    assert_eq!(levels(1), [1]);
}

#[test]
fn cosines_with_texts_begin_as_those_of_a_backbone_that_was_trained_by_their_sigmoid() {
    let first = |family: &str, classes: ClassLayer| {
        let backbone = backbone_of(family, 32);
        let shape = Detector::shape(&backbone, classes, ANCHOR);
        let texts = matches!(classes, ClassLayer::Text { .. }).then(|| vec![1.; 3 * backbone.embedding_width()]);
        let detector = Detector::new(backbone, &PartShapes::NONE, shape, &levels(DEPTH), texts, 1).unwrap();
        let params = detector.init(1).unwrap();
        let value = |name| params.iter().find(|param| param.name == name).map(|param| param.values[0]);
        (value(LOG_SCALE), value(SHIFT))
    };
    let texts = ClassLayer::Text { classes: 3, width: 32 };
    let (scale, shift) = first("siglip", texts);
    assert!((scale.unwrap() - 2.5).abs() < 1e-6 && shift == Some(-3.25), "{scale:?} {shift:?}");
    let (scale, shift) = first("clip", ClassLayer::Text { classes: 3, width: 24 });
    assert!((scale.unwrap() - 16f32.ln()).abs() < 1e-6 && (shift.unwrap() + 99f32.ln()).abs() < 1e-5);
    assert_eq!(first("siglip", ClassLayer::Linear { classes: 3 }), (None, None));
}
