//! The whole way from features to gradients and detections, against PyTorch (`scripts/make_detection_fixture.py`).

use std::collections::HashMap;

use safetensors::SafeTensors;

use super::geometry::Grid;
use super::*;
use vpt_base::params::{Group, Param};

struct Fixture {
    tensors: HashMap<String, (Vec<usize>, Vec<f32>)>,
    shapes: HashMap<String, DetectShape>,
}

impl Fixture {
    fn open() -> Self {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/detection.safetensors");
        let bytes = std::fs::read(path).unwrap();
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
        let shapes = serde_json::from_str(&header.metadata().as_ref().unwrap()["shapes"]).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let values = |data: &[u8]| data.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        let tensors = file.iter().map(|(name, t)| (name.to_owned(), (t.shape().to_vec(), values(t.data())))).collect();
        Self { tensors, shapes }
    }

    fn get(&self, name: &str) -> &[f32] {
        &self.tensors[name].1
    }

    #[track_caller]
    fn assert_equal(&self, got: &[f32], name: &str) {
        let want = self.get(name);
        assert_eq!(got.len(), want.len(), "{name}");
        let size = want.iter().fold(0f32, |a, b| a.max(b.abs()));
        for (i, (got, want)) in got.iter().zip(want).enumerate() {
            assert!((got - want).abs() <= 5e-5 * size + 1e-7, "{name}[{i}]: {got}, want {want}, largest {size}");
        }
    }
}

#[test]
fn outputs_losses_gradients_and_detections_equal_pytorch() {
    let fixture = Fixture::open();
    assert!(!fixture.shapes.is_empty());
    for (case, shape) in &fixture.shapes {
        let at = |name: &str| format!("{case}.{name}");
        let params: Vec<Param> = shape
            .tensors()
            .iter()
            .map(|(name, size)| {
                let values = fixture.get(&at(&format!("param.{name}"))).to_vec();
                Param::new(name, size, values, Group::Head).unwrap()
            })
            .collect();
        let texts = fixture.tensors.get(&at("texts")).map(|t| t.1.as_slice());
        let bound = shape.bind_for_training(&params, texts).unwrap();
        let grid = Grid { side: shape.side(), anchor: shape.anchor };
        let image = |i: usize| {
            let flags = fixture.get(&at(&format!("{i}.truth_crowd")));
            let classes = fixture.get(&at(&format!("{i}.truth_class")));
            let rects = fixture.get(&at(&format!("{i}.truth"))).as_chunks::<4>().0;
            let truths: Vec<Truth> = rects
                .iter()
                .zip(classes.iter().zip(flags))
                .map(|(&rect, (&class, &crowd))| Truth { rect, class: class as usize, crowd: crowd > 0. })
                .collect();
            let assignment = Assignment::new(shape.side(), &truths, None);
            (truths, assignment)
        };
        let images = [image(0), image(1)];
        let positives = images.iter().map(|(_, assignment)| assignment.positives()).sum();
        let loss = DetectionLoss { grid, positives };

        let mut workspace = Workspace::default();
        let mut grads = HeadGrads::new(shape);
        let mut sums = LossSums::default();
        for (i, (truths, assignment)) in images.iter().enumerate() {
            let name = |part: &str| at(&format!("{i}.{part}"));
            let number = |role: &Role| match role {
                Role::Ignored => -2.,
                Role::Negative => -1.,
                Role::Positive(index) => *index as f32,
            };
            fixture.assert_equal(&assignment.roles.iter().map(number).collect::<Vec<_>>(), &name("roles"));
            let features = fixture.get(&name("features"));
            let raw = bound.forward(features, &mut workspace);
            fixture.assert_equal(&raw.class, &name("class"));
            fixture.assert_equal(&raw.boxes, &name("boxes"));
            fixture.assert_equal(&raw.quality, &name("quality"));

            let (parts, gradient) = loss.gradients(&raw, truths, assignment);
            sums.add(&parts);
            fixture.assert_equal(&gradient.class, &name("d_class"));
            fixture.assert_equal(&gradient.boxes, &name("d_boxes"));
            fixture.assert_equal(&gradient.quality, &name("d_quality"));

            let mut d_features = vec![0.; features.len()];
            let to = FeatureGradients { first_level: 0, values: &mut d_features };
            bound.vjp(&gradient, Some(to), &mut grads, &mut workspace);
            fixture.assert_equal(&d_features, &name("d_features"));

            let found = decode::decode(&raw, grid, None, &decode::DecodeOptions::default());
            let rows: Vec<f32> =
                found.iter().flat_map(|d| [&[d.class as f32, d.score], d.rect.as_slice()].concat()).collect();
            fixture.assert_equal(&rows, &name("detections"));
        }
        let parts = [sums.class, sums.giou, sums.l1, sums.quality].map(|v| v as f32);
        fixture.assert_equal(&parts, &at("sums"));
        fixture.assert_equal(&[sums.total(positives) as f32], &at("total"));
        for (gradient, param) in bound.gradients(&grads).iter().zip(&params) {
            fixture.assert_equal(gradient, &at(&format!("grad.{}", param.name)));
        }
    }
}
