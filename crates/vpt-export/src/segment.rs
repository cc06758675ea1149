//! Tasks that tell pixels apart: the head behind some blocks of the tower, logits of one window, and the class of each of its pixels.

use std::path::Path;

use crate::classify::{inputs, run};
use crate::dense::{DenseLayers, with_levels};
use crate::graph::{Attr, Dim, Element, Graph, NamedTensor, Value};
use crate::interpret::{Program, Tensor, resize};
use crate::metadata::{Facts, Windows};
use crate::parity::{Parity, PixelsApart};
use crate::{ExportOptions, Exported, Layout, Samples, finish, write};
use vpt_base::{Error, Result};
use vpt_model::{
    head::{
        detect::LAYER_EPS,
        segment::{CELLS, Composer, DecodeHead, SegmentShape, WindowLogits},
    },
    model::{SegmentTask, segment::TokenInput},
};

/// Writes `task` to `path`, and holds it against the engine on windows of `samples`. `task_file` is the hash of its file.
///
/// # Errors
/// As [`crate::export_classifier`].
pub fn export_segmenter(
    task: &SegmentTask,
    options: &ExportOptions,
    path: &Path,
    task_file: &str,
    samples: &Samples,
) -> Result<Exported> {
    if options.layout == Layout::Hf {
        return Err(Error::setting("layout", "hf is for classes; a task of pixels has the layout ultralytics"));
    }
    if options.nms {
        return Err(Error::setting("nms", "the task has pixels, not boxes"));
    }
    if options.task_input {
        return Err(Error::setting("task_input", "is for classes; the head of a task of pixels is part of the graph"));
    }
    let (segmenter, params, preprocess) = (task.segmenter(), task.params(), &task.input().preprocess);
    with_levels((segmenter.reader(), params), preprocess, options, |mut graph, levels, side| {
        let shape = *segmenter.head();
        let (m, k) = (shape.side(), shape.classes);
        let head = PixelHead { shape, layers: DenseLayers { params, channels: shape.channels } };
        let logits = head.logits(&mut graph, &levels)?;
        let masks = head.masks(&mut graph, &logits, side);
        graph.scope("");
        graph.output("logits", &logits, &[Dim::Named("batch"), Dim::Fixed(k), Dim::Fixed(m), Dim::Fixed(m)]);
        graph.output_of("masks", Element::I64, &masks, &[Dim::Named("batch"), Dim::Fixed(side), Dim::Fixed(side)]);
        let windows = Some(Windows { tiles: task.input().tiles, indices: task.indices() });
        let facts = Facts::new("segment", task.backbone(), (side, preprocess), options, &graph)?;
        let facts = Facts { windows, ..facts.of_task(task.meta(), task_file) };
        let written = write(&graph, &facts, path, options.external)?;
        let program = Program::open(written.paths().0, written.paths().1)?;
        let pixels = samples.of_segmenter(task.input(), options.threads)?;
        let bound = segmenter.bind(params)?;
        let composer = Composer { window: side, side: m, classes: k };
        let mut reference = inputs(options, preprocess, side, &pixels, &graph);
        let (mut all_logits, mut all_masks, mut apart) = (Vec::new(), Vec::new(), PixelsApart::new(options.half));
        // One by one: logits of many classes at every pixel are large.
        for window in pixels.chunks_exact(3 * side * side) {
            let own = inputs(options, preprocess, side, window, &graph);
            let made = run(&program, &own, options.threads)?;
            let [of_file, masks] = &made[..] else { return Err(Error::file(path, "has other outputs")) };
            let fault = |why| Error::file(path, why);
            let engine = segmenter.logits(&bound, Some(params), TokenInput::Images(window))?.concat();
            let windows = WindowLogits { logits: &engine, corners: &[[0, 0]], scaled: [side, side] };
            let classes = composer.classes(windows, side, side)?;
            let engine: Vec<f32> = (0..k).flat_map(|class| engine[class..].iter().step_by(k).copied()).collect();
            let large = resize(&Tensor::floats(&[1, k, m, m], engine.clone()), side, side).map_err(fault)?;
            let found = (of_file.as_floats().map_err(fault)?, masks.as_ints().map_err(fault)?);
            apart.add((&engine, &classes, large.as_floats().map_err(fault)?), found);
            all_masks.extend(classes.into_iter().map(f32::from));
            all_logits.extend(engine);
        }
        let count = all_masks.len() / (side * side).max(1);
        reference.push(NamedTensor { name: "logits".to_owned(), shape: vec![count, k, m, m], values: all_logits });
        reference.push(NamedTensor { name: "masks".to_owned(), shape: vec![count, side, side], values: all_masks });
        finish(written, path, Parity::of_pixels(count, &apart, &samples.what), &graph, reference)
    })
}

/// A head of pixels that is being put into a graph.
struct PixelHead<'h> {
    shape: SegmentShape,
    layers: DenseLayers<'h>,
}

impl PixelHead<'_> {
    /// Logits `[B, K, M, M]` of the tokens of some blocks.
    fn logits(&self, graph: &mut Graph, levels: &[Value]) -> Result<Value> {
        let SegmentShape { width: d, grid, channels: c, classes: k, .. } = self.shape;
        let (layers, m) = (self.layers, self.shape.side() as i64);
        if self.shape.kind == DecodeHead::Linear {
            graph.scope("norm");
            let [last] = levels else { return Err(Error::invalid("head", "reads more than one block")) };
            let [mean, scale] = ["mean", "scale"].map(|name| layers.values(&format!("norm.{name}")));
            let (mean, scale) =
                (graph.floats("mean", &[d], mean?.to_vec()), graph.floats("scale", &[d], scale?.to_vec()));
            let x = graph.node("Sub", &[last, &mean]);
            let x = graph.mul(&x, &scale);
            graph.scope("class");
            let rows = layers.linear(graph, &x, "class", d)?;
            let by_class = graph.transpose(&rows, &[0, 2, 1]);
            return Ok(graph.reshape(&by_class, &[0, k as i64, m, m]));
        }
        graph.scope("neck");
        let normalized: Vec<Value> = levels.iter().map(|level| graph.layer_norm(level, d, None, LAYER_EPS)).collect();
        let joined = graph.concat(&normalized.iter().collect::<Vec<_>>(), -1);
        let x = layers.linear(graph, &joined, "neck", self.shape.levels * d)?;
        let x = graph.transpose(&x, &[0, 2, 1]);
        let x = layers.norm_and_gelu(graph, &x, "neck.group_norm", grid * grid)?;
        let map = graph.reshape(&x, &[0, c as i64, grid as i64, grid as i64]);
        graph.scope("tower");
        let x = layers.two_convolutions(graph, &map, grid, |i| ["conv", "norm"].map(|layer| format!("{layer}{i}")))?;
        graph.scope("class");
        let tokens = graph.transpose(&x, &[0, 2, 1]);
        let parts = layers.linear(graph, &tokens, "class", c)?;
        let (g, cells) = (grid as i64, CELLS as i64);
        let parts = graph.reshape(&parts, &[-1, g, g, k as i64, cells, cells]);
        let beside = graph.transpose(&parts, &[0, 3, 1, 4, 2, 5]);
        Ok(graph.reshape(&beside, &[0, k as i64, m, m]))
    }

    /// The class `[B, S, S]` of each pixel, whose logits are interpolated between the four nearest.
    fn masks(&self, graph: &mut Graph, logits: &Value, side: usize) -> Value {
        graph.scope("masks");
        let factor = side as f32 / self.shape.side() as f32;
        let factors = graph.floats("factors", &[4], vec![1., 1., factor, factor]);
        let attributes =
            vec![("mode", Attr::Text("linear")), ("coordinate_transformation_mode", Attr::Text("half_pixel"))];
        let none = Value::new();
        let large = graph.node_with("Resize", &[logits, &none, &factors], attributes);
        graph.node_with("ArgMax", &[&large], vec![("axis", Attr::Int(1)), ("keepdims", Attr::Int(0))])
    }
}
