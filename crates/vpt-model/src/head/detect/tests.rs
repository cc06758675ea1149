//! The head against its textbook form on candle's autograd, in f64, and against central differences of that form.

use candle_core::{DType, Device, Tensor, Var};

use super::shape::GROUPS;
use super::*;
use vpt_base::params::Param;
use vpt_base::random::{normal, stream};

pub(super) fn shape(upsample: bool, classes: ClassLayer) -> DetectShape {
    DetectShape { width: 20, levels: 3, grid: 4, upsample, channels: 16, classes, anchor: 0.25 }
}

/// Parameters away from their initial values, where some gradients vanish.
fn shaken(shape: &DetectShape) -> Vec<Param> {
    let mut rng = stream(5, "test", 0, 0);
    let mut params = shape.init(&mut rng).unwrap();
    for p in &mut params {
        p.values.iter_mut().for_each(|v| *v = 0.7 * *v + 0.2 * normal(&mut rng));
    }
    params
}

fn draws(seed: u64, n: usize) -> Vec<f32> {
    let mut rng = stream(seed, "draws", 0, 0);
    (0..n).map(|_| normal(&mut rng)).collect()
}

struct Textbook {
    shape: DetectShape,
    names: Vec<String>,
    vars: Vec<Var>,
    texts: Option<Tensor>,
}

type Candle<T> = candle_core::Result<T>;

fn wide(values: &[f32], shape: &[usize]) -> Tensor {
    Tensor::from_slice(values, shape, &Device::Cpu).unwrap().to_dtype(DType::F64).unwrap()
}

impl Textbook {
    fn new(shape: DetectShape, params: &[Param], texts: Option<(&[f32], usize)>) -> Self {
        Self {
            shape,
            names: params.iter().map(|p| p.name.clone()).collect(),
            vars: params.iter().map(|p| Var::from_tensor(&wide(&p.values, &p.shape)).unwrap()).collect(),
            texts: texts.map(|(t, width)| wide(t, &[t.len() / width, width])),
        }
    }

    fn var(&self, name: &str) -> &Tensor {
        let at = self.names.iter().position(|n| *n == format!("head.{name}")).unwrap();
        &self.vars[at]
    }

    fn linear(&self, x: &Tensor, name: &str) -> Candle<Tensor> {
        x.matmul(&self.var(&format!("{name}.weight")).t()?)?.broadcast_add(self.var(&format!("{name}.bias")))
    }

    /// Over a map `[1, C, H, W]`.
    fn group_norm_gelu(&self, x: &Tensor, name: &str) -> Candle<Tensor> {
        let (_, c, h, w) = x.dims4()?;
        let groups = x.reshape((GROUPS, c / GROUPS * h * w))?;
        let normalized = normalized(&groups, 1e-5)?.reshape((1, c, h, w))?;
        let affine = |part: &str| self.var(&format!("{name}.{part}")).reshape((1, c, 1, 1));
        normalized.broadcast_mul(&affine("weight")?)?.broadcast_add(&affine("bias")?)?.gelu_erf()
    }

    /// Class `[T, K]`, boxes `[T, 4]` and quality `[T, 1]` of features `[levels, N, D]`.
    fn forward(&self, features: &Tensor) -> Candle<[Tensor; 3]> {
        let DetectShape { levels, grid, channels: c, .. } = self.shape;
        let mut parts = Vec::new();
        for level in 0..levels {
            let part = normalized(&features.get(level)?, 1e-6)?;
            let part = part.broadcast_mul(self.var(&format!("neck.norm{level}.weight")))?;
            parts.push(part.broadcast_add(self.var(&format!("neck.norm{level}.bias")))?);
        }
        let neck = self.linear(&Tensor::cat(&parts, 1)?, "neck")?;
        let mut map = neck.t()?.reshape((1, c, grid, grid))?;
        map = self.group_norm_gelu(&map, "neck.group_norm")?;
        if self.shape.upsample {
            let tokens = map.reshape((c, grid * grid))?.t()?;
            // [y, x, dy, dx, C] to [C, y, dy, x, dx]
            let four = self.linear(&tokens, "upsample")?.reshape((grid, grid, 2, 2, c))?;
            map = four.permute((4, 0, 2, 1, 3))?.reshape((1, c, 2 * grid, 2 * grid))?;
        }
        let t = self.shape.tokens();
        let tower = |name: &str| -> Candle<Tensor> {
            let mut x = map.clone();
            for i in 0..2 {
                let kernel = self.var(&format!("{name}.conv{i}.weight")).permute((0, 3, 1, 2))?.contiguous()?;
                x = self.group_norm_gelu(&x.conv2d(&kernel, 1, 1, 1, 1)?, &format!("{name}.norm{i}"))?;
            }
            x.reshape((c, t))?.t()?.contiguous()
        };
        let class = match &self.texts {
            None => self.linear(&tower("class")?, "class")?,
            Some(texts) => {
                let cosine = unit(&self.linear(&tower("class")?, "class.project")?)?.matmul(&unit(texts)?.t()?)?;
                let scaled = cosine.broadcast_mul(&self.var("class.log_scale").exp()?)?;
                scaled.broadcast_add(self.var("class.shift"))?
            }
        };
        let boxes = tower("box")?;
        Ok([class, self.linear(&boxes, "box")?, self.linear(&boxes, "quality")?])
    }

    /// The sum of all outputs times `gradient`.
    fn along(&self, features: &Tensor, gradient: &RawBoxes) -> Candle<Tensor> {
        let mut sum = Tensor::zeros((), DType::F64, &Device::Cpu)?;
        let outputs = self.forward(features)?;
        for (output, gradient) in outputs.iter().zip([&gradient.class, &gradient.boxes, &gradient.quality]) {
            sum = (sum + (output * wide(gradient, output.dims()))?.sum_all()?)?;
        }
        Ok(sum)
    }
}

/// Rows with mean zero and variance one.
fn normalized(x: &Tensor, eps: f64) -> Candle<Tensor> {
    let centred = x.broadcast_sub(&x.mean_keepdim(1)?)?;
    centred.broadcast_div(&(centred.sqr()?.mean_keepdim(1)? + eps)?.sqrt()?)
}

fn unit(x: &Tensor) -> Candle<Tensor> {
    x.broadcast_div(&(x.sqr()?.sum_keepdim(1)? + 1e-12)?.sqrt()?)
}

#[track_caller]
fn assert_equal(got: &[f32], want: &Tensor, what: &str) {
    let want: Vec<f64> = want.flatten_all().unwrap().to_vec1().unwrap();
    assert_eq!(got.len(), want.len(), "{what}");
    let size = want.iter().fold(0f64, |a, b| a.max(b.abs()));
    for (i, (&got, want)) in got.iter().zip(&want).enumerate() {
        let gap = (f64::from(got) - want).abs();
        assert!(gap <= 2e-5 * size + 1e-9, "{what}[{i}]: {got}, want {want}, largest {size}");
    }
}

fn cases() -> Vec<(DetectShape, Option<Vec<f32>>)> {
    let text = ClassLayer::Text { classes: 5, width: 24 };
    vec![
        (shape(false, ClassLayer::Linear { classes: 3 }), None),
        (shape(true, ClassLayer::Linear { classes: 50 }), None),
        (shape(false, text), Some(draws(8, 5 * 24))),
        (shape(true, text), Some(draws(8, 7 * 24))),
    ]
}

#[test]
fn forward_and_gradients_equal_the_textbook_form_on_autograd() {
    for (shape, texts) in cases() {
        let params = shaken(&shape);
        let n = shape.grid * shape.grid;
        let bound = shape.bind_for_training(&params, texts.as_deref()).unwrap();
        let (k, t) = (bound.classes(), shape.tokens());
        let textbook = Textbook::new(shape, &params, texts.as_deref().map(|t| (t, 24)));

        let mut workspace = Workspace::default();
        let mut grads = HeadGrads::new(&shape);
        // A second image with the same workspace and sums shows that nothing is left over.
        let mut sums: Vec<Tensor> = Vec::new();
        for image in 0..2 {
            let features = draws(20 + image, shape.levels * n * shape.width);
            let var = Var::from_tensor(&wide(&features, &[shape.levels, n, shape.width])).unwrap();
            let raw = bound.forward(&features, &mut workspace);
            let [class, boxes, quality] = textbook.forward(&var).unwrap();
            assert_equal(&raw.class, &class, "class");
            assert_equal(&raw.boxes, &boxes, "boxes");
            assert_equal(&raw.quality, &quality, "quality");

            let gradient = RawBoxes { class: draws(30, t * k), boxes: draws(31, t * 4), quality: draws(32 + image, t) };
            let store = textbook.along(&var, &gradient).unwrap().backward().unwrap();
            for first_level in [0, 2] {
                let mut values = vec![7.; (shape.levels - first_level) * n * shape.width];
                let to = FeatureGradients { first_level, values: &mut values };
                let mut sum = HeadGrads::new(&shape);
                bound.vjp(&gradient, Some(to), &mut sum, &mut workspace);
                if first_level == 0 {
                    grads.add(&sum);
                }
                let want = store.get(&var).unwrap().narrow(0, first_level, shape.levels - first_level).unwrap();
                assert_equal(&values, &want, "features");
            }
            for (i, var) in textbook.vars.iter().enumerate() {
                let gradient = store.get(var).unwrap();
                if image == 0 { sums.push(gradient.clone()) } else { sums[i] = (&sums[i] + gradient).unwrap() }
            }
        }
        let found = bound.gradients(&grads);
        for (i, gradient) in found.iter().enumerate() {
            assert_equal(gradient, &sums[i], &params[i].name);
        }
    }
}

#[test]
fn gradients_equal_central_differences() {
    for (shape, texts) in cases() {
        let params = shaken(&shape);
        let n = shape.grid * shape.grid;
        let features = draws(20, shape.levels * n * shape.width);
        let bound = shape.bind_for_training(&params, texts.as_deref()).unwrap();
        let (k, t) = (bound.classes(), shape.tokens());
        let gradient = RawBoxes { class: draws(30, t * k), boxes: draws(31, t * 4), quality: draws(32, t) };
        let mut workspace = Workspace::default();
        bound.forward(&features, &mut workspace);
        let mut grads = HeadGrads::new(&shape);
        let mut d_features = vec![0.; features.len()];
        let to = FeatureGradients { first_level: 0, values: &mut d_features };
        bound.vjp(&gradient, Some(to), &mut grads, &mut workspace);
        let mut found = bound.gradients(&grads);
        found.push(d_features);

        let textbook = Textbook::new(shape, &params, texts.as_deref().map(|t| (t, 24)));
        let features = Var::from_tensor(&wide(&features, &[shape.levels, n, shape.width])).unwrap();
        let vars: Vec<&Var> = textbook.vars.iter().chain([&features]).collect();
        let h = 1e-5;
        for (var, found) in vars.into_iter().zip(found) {
            let size = found.iter().fold(0f32, |a, b| a.max(b.abs()));
            // The largest one, and one of each quarter.
            let largest = (0..found.len()).max_by(|&a, &b| found[a].abs().total_cmp(&found[b].abs())).unwrap();
            for at in (0..4).map(|i| found.len() * i / 4).chain([largest]) {
                let values: Vec<f64> = var.flatten_all().unwrap().to_vec1().unwrap();
                let value = |by: f64| {
                    let mut moved = values.clone();
                    moved[at] += by;
                    var.set(&Tensor::from_vec(moved, var.dims(), &Device::Cpu).unwrap()).unwrap();
                    textbook.along(&features, &gradient).unwrap().to_scalar::<f64>().unwrap()
                };
                let slope = (value(h) - value(-h)) / (2. * h);
                value(0.);
                let gap = (slope - f64::from(found[at])).abs();
                assert!(gap < 1e-4 * f64::from(size), "{:?}[{at}]: {slope}, got {}", var.dims(), found[at]);
            }
        }
    }
}

#[test]
fn initial_tensors_are_the_ones_a_head_binds() {
    for (shape, texts) in cases() {
        let params = shape.init(&mut stream(1, "head", 0, 0)).unwrap();
        let named: Vec<_> = params.iter().map(|p| (p.name.clone(), p.shape.clone())).collect();
        assert_eq!(named, shape.tensors());
        let bound = shape.bind(&params, texts.as_deref()).unwrap();
        let raw = bound.forward(&draws(1, shape.levels * 16 * shape.width), &mut Workspace::default());
        assert_eq!(raw.boxes, vec![0.; shape.tokens() * 4], "boxes start at the anchor's size");
        let mean = raw.class.iter().sum::<f32>() / raw.class.len() as f32;
        assert!((mean + 99f32.ln()).abs() < 1.5, "class logits start near one in a hundred, not {mean}");

        let wider = DetectShape { width: 21, ..shape };
        assert!(wider.bind(&params, texts.as_deref()).err().unwrap().to_string().contains("[20] where [21]"));
        let other = if texts.is_some() { None } else { Some(&[1.; 24][..]) };
        assert!(shape.bind(&params, other).err().unwrap().to_string().starts_with("texts: "));
    }
}

#[test]
fn shapes_that_no_head_has_are_refused_with_the_field() {
    let good = shape(true, ClassLayer::Linear { classes: 3 });
    good.check().unwrap();
    for (bad, field) in [
        (DetectShape { width: 0, ..good }, "head.width"),
        (DetectShape { levels: 1 << 40, ..good }, "head.levels"),
        (DetectShape { grid: 0, ..good }, "head.grid"),
        (DetectShape { channels: 20, ..good }, "head.channels"),
        (DetectShape { classes: ClassLayer::Linear { classes: 0 }, ..good }, "head.classes"),
        (DetectShape { classes: ClassLayer::Text { classes: 1, width: usize::MAX }, ..good }, "head.text_width"),
        (DetectShape { anchor: f32::NAN, ..good }, "head.anchor"),
    ] {
        assert!(bad.check().unwrap_err().to_string().starts_with(&format!("{field}: ")), "{field}");
        assert!(bad.init(&mut stream(1, "head", 0, 0)).is_err() && bad.bind(&[], None).is_err());
    }
}
