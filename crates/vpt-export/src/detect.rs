//! Detectors: the dense head behind some blocks of the tower, boxes in pixels of the input, and, if asked for, without their
//! duplicates.

use std::path::Path;

use crate::classify::{inputs, run};
use crate::dense::{DenseLayers, with_levels};
use crate::graph::{Attr, Dim, Graph, NamedTensor, Value, transposed};
use crate::head::{EPSILON, unit_times};
use crate::interpret::{Program, Tensor};
use crate::metadata::Facts;
use crate::parity::Parity;
use crate::{ExportOptions, Exported, Layout, Samples, finish, write};
use vpt_base::{Error, Result, params::Param};
use vpt_model::{
    head::detect::{
        ClassLayer, DecodeOptions, DetectShape, Grid, LAYER_EPS, RawBoxes, decode,
        decode::{CANDIDATES, DUPLICATE, KEPT, MIN_SCORE},
        geometry,
    },
    model::DetectTask,
};

/// Writes the detector `task` to `path`, and holds it against the engine on `samples`. `task_file` is the hash of its file.
///
/// # Errors
/// As [`crate::export_classifier`].
pub fn export_detector(
    task: &DetectTask,
    options: &ExportOptions,
    path: &Path,
    task_file: &str,
    samples: &Samples,
) -> Result<Exported> {
    if options.layout == Layout::Hf {
        return Err(Error::setting("layout", "hf is for classes; a detector has the layout ultralytics"));
    }
    if options.task_input {
        return Err(Error::setting("task_input", "is for classes; the head of a detector is part of the graph"));
    }
    let (detector, params, preprocess) = (task.detector(), task.params(), &task.input().preprocess);
    with_levels((detector.reader(), params), preprocess, options, |mut graph, levels, side| {
        let shape = *detector.head();
        let classes = task.meta().classes.len();
        let head = DenseHead { shape, params, texts: detector.texts(), classes, pixels: side };
        let raw = head.build(&mut graph, &levels)?;
        let tokens = shape.tokens();
        graph.scope("");
        if options.nms {
            let found = head.without_duplicates(&mut graph, &raw);
            graph.output("output0", &found, &[Dim::Named("batch"), Dim::Fixed(head.most()), Dim::Fixed(6)]);
        } else {
            let [centre, size, scores] = &raw;
            let all = graph.concat(&[centre, size, scores], 1);
            graph.output("output0", &all, &[Dim::Named("batch"), Dim::Fixed(4 + classes), Dim::Fixed(tokens)]);
        }
        let fit = Some(task.input().fit.to_string());
        let facts = Facts::new("detect", detector.backbone(), (side, preprocess), options, &graph)?;
        let facts = Facts { fit, nms: options.nms, ..facts.of_task(task.meta(), task_file) };
        let written = write(&graph, &facts, path, options.external)?;
        let program = Program::open(written.paths().0, written.paths().1)?;
        let pixels = samples.of_detector(task.input(), options.threads)?;
        let mut reference = inputs(options, preprocess, side, &pixels, &graph);
        let found = run(&program, &reference, options.threads)?;
        let found = found.first().map(Tensor::as_floats).transpose().map_err(|why| Error::file(path, why))?;
        let engine = detector.raw(params, &pixels)?;
        let found = found.unwrap_or_default();
        let (difference, agree) =
            if options.nms { head.compare_found(&engine, found) } else { head.compare(&engine, found) };
        let parity = Parity::of_boxes(engine.len(), difference, agree, options.half, &samples.what);
        reference.push(if options.nms { head.all_found(&engine) } else { head.all_said(&engine) });
        finish(written, path, parity, &graph, reference)
    })
}

/// A dense head that is being put into a graph.
struct DenseHead<'h> {
    shape: DetectShape,
    params: &'h [Param],
    texts: Option<&'h [f32]>,
    classes: usize,
    /// Side of the input.
    pixels: usize,
}

impl DenseHead<'_> {
    fn layers(&self) -> DenseLayers<'_> {
        DenseLayers { params: self.params, channels: self.shape.channels }
    }

    /// Detections that are left of an image.
    fn most(&self) -> usize {
        KEPT.min(self.classes * self.shape.tokens())
    }

    /// Centres `[B, 2, T]` and sizes `[B, 2, T]` in pixels, and scores `[B, K, T]`, of the tokens of some blocks.
    fn build(&self, graph: &mut Graph, levels: &[Value]) -> Result<[Value; 3]> {
        let DetectShape { width: d, grid, channels: c, .. } = self.shape;
        let (side, tokens) = (self.shape.side(), self.shape.tokens());
        let layers = self.layers();
        graph.scope("neck");
        let mut normalized = Vec::new();
        for (i, level) in levels.iter().enumerate() {
            let norm =
                ["weight", "bias"].map(|which| layers.values(&format!("neck.norm{i}.{which}")).map(<[f32]>::to_vec));
            let [scale, shift] = norm;
            let norm = [graph.floats("norm.weight", &[d], scale?), graph.floats("norm.bias", &[d], shift?)];
            normalized.push(graph.layer_norm(level, d, Some(norm), LAYER_EPS));
        }
        let joined = graph.concat(&normalized.iter().collect::<Vec<_>>(), -1);
        let x = layers.linear(graph, &joined, "neck", self.shape.levels * d)?;
        let x = graph.transpose(&x, &[0, 2, 1]);
        let x = layers.norm_and_gelu(graph, &x, "neck.group_norm", grid * grid)?;
        let map = if self.shape.upsample {
            let rows = graph.transpose(&x, &[0, 2, 1]);
            let four = layers.linear(graph, &rows, "upsample", c)?;
            let (g, c) = (grid as i64, c as i64);
            let four = graph.reshape(&four, &[0, g, g, 2, 2, c]);
            graph.transpose(&four, &[0, 5, 1, 3, 2, 4])
        } else {
            x
        };
        let map = graph.reshape(&map, &[0, c as i64, side as i64, side as i64]);
        let mut towers = Vec::new();
        for tower in ["class", "box"] {
            graph.scope(tower);
            let names = |i| ["conv", "norm"].map(|layer| format!("{tower}.{layer}{i}"));
            let x = layers.two_convolutions(graph, &map, side, names)?;
            towers.push(graph.transpose(&x, &[0, 2, 1]));
        }
        let [of_class, of_box] = &towers[..] else { return Err(Error::invalid("head", "without towers")) };
        graph.scope("class");
        let logits = match (self.shape.classes, self.texts) {
            (ClassLayer::Linear { .. }, _) => layers.linear(graph, of_class, "class", c)?,
            (ClassLayer::Text { width, .. }, Some(texts)) => {
                let projected = layers.linear(graph, of_class, "class.project", c)?;
                let unit = graph.unit_rows(&projected, EPSILON);
                let scale = f64::from(layers.values("class.log_scale")?[0]).exp();
                let texts = transposed(&unit_times(texts, width, scale), width);
                let texts = graph.floats("texts", &[width, self.classes], texts);
                let cosine = graph.matmul(&unit, &texts);
                let shift = graph.scalar(layers.values("class.shift")?[0]);
                graph.add(&cosine, &shift)
            }
            (ClassLayer::Text { .. }, None) => return Err(Error::invalid("head", "without the texts of its classes")),
        };
        graph.scope("box");
        let boxes = layers.linear(graph, of_box, "box", c)?;
        let quality = layers.linear(graph, of_box, "quality", c)?;
        let [class, quality] = [&logits, &quality].map(|x| graph.node("Sigmoid", &[x]));
        let product = graph.mul(&class, &quality);
        let scores = graph.node("Sqrt", &[&product]);
        let [boxes, scores] = [&boxes, &scores].map(|x| graph.transpose(x, &[0, 2, 1]));
        let two = graph.ints(&[2, 2]);
        let [offset, size] = graph.nodes_with("Split", &[&boxes, &two], vec![("axis", Attr::Int(1))]);
        let grid = Grid { side, anchor: self.shape.anchor };
        let pixels = self.pixels as f64;
        let centres = (0..2).flat_map(|axis| (0..tokens).map(move |t| (grid.centre(t)[axis] * pixels) as f32));
        let centres = graph.floats("centres", &[1, 2, tokens], centres.collect::<Vec<_>>());
        let offset = graph.scaled(&offset, (pixels / side as f64) as f32);
        let centre = graph.add(&centres, &offset);
        let [low, high] = geometry::SIZE_RANGE.map(|v| graph.scalar(v as f32));
        let size = graph.node("Clip", &[&size, &low, &high]);
        let size = graph.node("Exp", &[&size]);
        let size = graph.scaled(&size, (f64::from(self.shape.anchor) * pixels) as f32);
        Ok([centre, size, scores])
    }

    /// Boxes without their duplicates, best first, `[B, most, 6]`: left, top, right, bottom, score, class; zeros behind the last.
    fn without_duplicates(&self, graph: &mut Graph, [centre, size, scores]: &[Value; 3]) -> Value {
        graph.scope("nms");
        let tokens = self.shape.tokens();
        let all = self.classes * tokens;
        let half = graph.scaled(size, 0.5);
        let (low, high) = (graph.node("Sub", &[centre, &half]), graph.add(centre, &half));
        let corners = graph.concat(&[&low, &high], 1);
        let corners = graph.transpose(&corners, &[0, 2, 1]);
        let largest = |graph: &mut Graph, x: &Value, k: usize| -> [Value; 2] {
            let flat = graph.reshape(x, &[0, -1]);
            let k = graph.ints(&[k as i64]);
            graph.nodes_with("TopK", &[&flat, &k], vec![("axis", Attr::Int(-1))])
        };
        // Candidates are the best pairs of token and class.
        let candidates = CANDIDATES.min(all);
        let [best, _] = largest(graph, scores, candidates);
        let last = graph.slice(&best, 1, candidates - 1, candidates);
        let last = graph.reshape(&last, &[-1, 1, 1]);
        let kept = graph.node("GreaterOrEqual", &[scores, &last]);
        let zero = graph.scalar(0.);
        let scores = graph.node("Where", &[&kept, scores, &zero]);
        let most = graph.ints(&[self.most() as i64]);
        let [overlap, least] = [DUPLICATE, MIN_SCORE].map(|v| graph.scalar(v as f32));
        let rows = graph.node("NonMaxSuppression", &[&corners, &scores, &most, &overlap, &least]);
        let of_rows = graph.node("GatherND", &[&scores, &rows]);
        let none = graph.mul(&scores, &zero);
        let scores = graph.node("ScatterND", &[&none, &rows, &of_rows]);
        let [score, place] = largest(graph, &scores, self.most());
        let count = graph.ints(&[tokens as i64]);
        let (class, token) = (graph.node("Div", &[&place, &count]), graph.node("Mod", &[&place, &count]));
        let token = graph.reshape(&token, &[0, 0, 1]);
        let corners = graph.node_with("GatherND", &[&corners, &token], vec![("batch_dims", Attr::Int(1))]);
        let class = graph.cast(&class, crate::graph::Element::F32);
        let found = graph.node("GreaterOrEqual", &[&score, &least]);
        let found = graph.cast(&found, crate::graph::Element::F32);
        let [score, class, found] = [&score, &class, &found].map(|x| graph.reshape(x, &[0, 0, 1]));
        let all = graph.concat(&[&corners, &score, &class], 2);
        graph.mul(&all, &found)
    }

    fn grid(&self) -> Grid {
        Grid { side: self.shape.side(), anchor: self.shape.anchor }
    }

    /// What the engine's head says, as the graph has it: `[n, 4 + K, T]`.
    fn all_said(&self, engine: &[RawBoxes]) -> NamedTensor {
        let (tokens, rows) = (self.shape.tokens(), 4 + self.classes);
        let mut values = vec![0.; engine.len() * rows * tokens];
        for (raw, to) in engine.iter().zip(values.chunks_exact_mut(rows * tokens)) {
            for t in 0..tokens {
                let offsets = std::array::from_fn(|i| raw.boxes[4 * t + i]);
                for (i, v) in self.grid().decode(t, offsets).into_iter().enumerate() {
                    to[i * tokens + t] = (v * self.pixels as f64) as f32;
                }
                let quality = sigmoid(raw.quality[t]);
                for k in 0..self.classes {
                    to[(4 + k) * tokens + t] = (sigmoid(raw.class[t * self.classes + k]) * quality).sqrt() as f32;
                }
            }
        }
        NamedTensor { name: "output0".to_owned(), shape: vec![engine.len(), rows, tokens], values }
    }

    /// What the engine finds, as the graph has it: `[n, most, 6]`.
    fn all_found(&self, engine: &[RawBoxes]) -> NamedTensor {
        let mut values = vec![0.; engine.len() * self.most() * 6];
        for (raw, to) in engine.iter().zip(values.chunks_exact_mut(self.most() * 6)) {
            for (found, row) in
                decode(raw, self.grid(), None, &DecodeOptions::default()).iter().zip(to.chunks_exact_mut(6))
            {
                let rect = found.rect.map(|v| v * self.pixels as f32);
                row.copy_from_slice(&[rect[0], rect[1], rect[2], rect[3], found.score, found.class as f32]);
            }
        }
        NamedTensor { name: "output0".to_owned(), shape: vec![engine.len(), self.most(), 6], values }
    }

    /// The largest difference of boxes, in sides of the image, and of scores, between what the engine's head says and `[n, 4 + K,
    /// T]`; and how many boxes are alike.
    fn compare(&self, engine: &[RawBoxes], found: &[f32]) -> (f64, (usize, usize)) {
        let (tokens, classes, grid) = (self.shape.tokens(), self.classes, self.grid());
        let side = self.pixels as f64;
        let (mut difference, mut agree) = (0_f64, 0);
        let each = (4 + classes) * tokens;
        if found.len() != engine.len() * each {
            return (f64::INFINITY, (0, engine.len() * tokens));
        }
        for (raw, found) in engine.iter().zip(found.chunks_exact(each)) {
            for t in 0..tokens {
                let offsets = std::array::from_fn(|i| raw.boxes[4 * t + i]);
                let at = |row: usize| f64::from(found[row * tokens + t]);
                let boxes = grid.decode(t, offsets).into_iter().enumerate().map(|(i, v)| (v - at(i) / side).abs());
                let quality = sigmoid(raw.quality[t]);
                let score = |k: usize| ((sigmoid(raw.class[t * classes + k]) * quality).sqrt() - at(4 + k)).abs();
                let largest = boxes
                    .chain((0..classes).map(score))
                    .fold(0_f64, |max, v| if v.is_nan() { f64::INFINITY } else { max.max(v) });
                agree += usize::from(largest <= 1e-3);
                difference = difference.max(largest);
            }
        }
        (difference, (agree, engine.len() * tokens))
    }

    /// The same of what is found in each image, `[n, most, 6]`.
    fn compare_found(&self, engine: &[RawBoxes], found: &[f32]) -> (f64, (usize, usize)) {
        let side = self.pixels as f32;
        let each = self.most() * 6;
        if found.len() != engine.len() * each {
            return (f64::INFINITY, (0, engine.len()));
        }
        let (mut difference, mut agree, mut total) = (0_f64, 0, 0);
        for (raw, found) in engine.iter().zip(found.chunks_exact(each)) {
            let rows: Vec<&[f32]> = found.chunks_exact(6).filter(|row| row[4] > 0.).collect();
            let boxes = decode(raw, self.grid(), None, &DecodeOptions::default());
            total += boxes.len().max(rows.len());
            for own in boxes {
                let apart = |row: &&&[f32]| {
                    let rect = own.rect.iter().zip(row.iter()).map(|(a, b)| (a - b / side).abs());
                    rect.fold((own.score - row[4]).abs(), f32::max)
                };
                let same = rows.iter().filter(|row| row[5] as usize == own.class);
                let nearest = same.map(|row| apart(&row)).fold(f32::INFINITY, f32::min);
                if nearest <= 1e-3 {
                    agree += 1;
                    difference = difference.max(f64::from(nearest));
                }
            }
        }
        (difference, (agree, total))
    }
}

fn sigmoid(x: f32) -> f64 {
    1. / (1. + (-f64::from(x)).exp())
}
