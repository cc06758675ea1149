//! Classifiers: one class an image, or any number.

use std::path::Path;

use crate::block::{BlockReader, leave_tower};
use crate::graph::{Dim, Graph, NamedTensor, Value, transposed};
use crate::head::{head, probabilities};
use crate::hugging_face;
use crate::interpret::{Program, Tensor};
use crate::metadata::Facts;
use crate::parity::Parity;
use crate::prompts::ImagePrompts;
use crate::text::TextGraph;
use crate::vit::{ImageTower, PixelForm, TowerOutput, TowerRead};
use crate::{ExportOptions, Exported, Layout, Samples, finish, write};
use vpt_backbone::vit::PlainTower;
use vpt_base::{Error, Result};
use vpt_image::Preprocess;
use vpt_model::model::{TaskModel, constants::ClassifierConstants};

/// The output that is held against the engine.
const LOGITS: &str = "logits";

/// Writes `task` to `path`, and holds it against the engine on `samples`. `task_file` is the hash of its file.
///
/// # Errors
/// The task cannot be exported so, the file cannot be written, or it answers otherwise than the engine; it is kept under another
/// name then.
pub fn export_classifier(
    task: &TaskModel,
    options: &ExportOptions,
    path: &Path,
    task_file: &str,
    samples: &Samples,
) -> Result<Exported> {
    let (model, meta) = (task.model(), task.meta());
    let (backbone, classes, temperature) = (model.backbone(), meta.classes.len(), meta.temperature());
    with_graph(task, options, |graph, side| {
        let kind = if meta.multilabel { "multilabel" } else { "classify" };
        let facts = Facts::new(kind, backbone, (side, task.preprocess()), options, &graph)?.of_task(meta, task_file);
        let written = write(&graph, &facts, path, options.external)?;
        let program = Program::open(written.paths().0, written.paths().1)?;
        let pixels = samples.pixels(task.preprocess())?;
        let mut engine = task.logits(&pixels)?;
        for logit in &mut engine {
            *logit = (f64::from(*logit) / temperature) as f32;
        }
        let mut reference = inputs(options, task.preprocess(), side, &pixels, &graph);
        let found = run(&program, &reference, options.threads)?;
        let at = graph.output_names().iter().position(|name| name == LOGITS);
        let found = at.and_then(|at| found.get(at)).map(Tensor::as_floats).transpose();
        let found = found.map_err(|why| Error::file(path, why))?.unwrap_or_default();
        let parity = Parity::of_rows("logits", (&engine, found), classes, options.half, &samples.what);
        let shape = vec![engine.len() / classes, classes];
        reference.push(NamedTensor { name: LOGITS.to_owned(), shape, values: engine });
        let mut exported = finish(written, path, parity, &graph, reference)?;
        if options.layout == Layout::Hf {
            exported.files.extend(hugging_face::write(path, &backbone.spec, &meta.classes, side, task.preprocess())?);
        }
        Ok(exported)
    })
}

/// What `task` puts into a graph of its shape that serves many.
///
/// # Errors
/// As [`export_classifier`], but for what is written.
pub fn task_tensors(task: &TaskModel, options: &ExportOptions) -> Result<Vec<NamedTensor>> {
    let options = ExportOptions { task_input: true, ..*options };
    with_graph(task, &options, |graph, _| Ok(graph.task))
}

/// Calls `f` with the graph of `task` and the side of the images that come in.
fn with_graph<T>(task: &TaskModel, options: &ExportOptions, f: impl FnOnce(Graph, usize) -> Result<T>) -> Result<T> {
    if options.nms {
        return Err(Error::setting("nms", "the task has classes, not boxes"));
    }
    let (model, meta) = (task.model(), task.meta());
    let backbone = model.backbone();
    let constants = model.constants(task.params())?;
    if options.task_input && !constants.weights.values.is_empty() {
        let message = format!("{} has weights of its own in all of the backbone, which are no inputs", meta.method);
        return Err(Error::setting("task_input", message));
    }
    let tower = backbone.plain(constants.weights.clone());
    let tokens = constants.tokens.as_ref().map(|(layout, values)| (*layout, &values[..]));
    let prompts = ImagePrompts::new(&tower, tokens, constants.keys_values.as_ref())?;
    let blocks = BlockReader::new(|index| tower.block(index));
    let texts = backbone.plain_texts();
    let text_blocks = BlockReader::new(|index| match &texts {
        Ok(texts) => texts.block(index),
        Err(error) => Err(Error::invalid("texts", error.to_string())),
    });
    let mut graph = options.graph();
    let image_tower = ImageTower {
        tower: &tower,
        blocks: &blocks,
        preprocess: task.preprocess(),
        form: options.layout.form(),
        pixels: constants.pixels.as_ref().map(|(prompt, values)| (prompt, *values)),
        prompts: &prompts,
    };
    let side = image_tower.input_side();
    let read = TowerRead::Pooled(constants.pool);
    let TowerOutput::Features(features) = image_tower.build(&mut graph, options.layout.input(), read)? else {
        return Err(Error::invalid("features", "were not read"));
    };
    let features = if constants.embeds { project(&mut graph, features, &tower)? } else { features };
    let features = leave_tower(&mut graph, features);
    let (classes, temperature) = (meta.classes.len(), meta.temperature());
    let logits = match (&constants.classifier, &texts) {
        (ClassifierConstants::Head(tensors), _) => head(&mut graph, &features, tensors, classes, temperature)?,
        (ClassifierConstants::ImageTexts(_), _) if options.task_input => {
            let message = format!("{} makes texts of each image's own, which are part of the graph", meta.method);
            return Err(Error::setting("task_input", message));
        }
        (ClassifierConstants::ImageTexts(own), Ok(tower)) => {
            let texts = TextGraph { tower, blocks: &text_blocks };
            texts.image_texts(&mut graph, &features, own, temperature)?
        }
        (ClassifierConstants::ImageTexts(_), Err(error)) => return Err(Error::invalid("texts", error.to_string())),
    };
    let probs = probabilities(&mut graph, &logits, meta.multilabel);
    let by_class = [Dim::Named("batch"), if options.task_input { Dim::Named("classes") } else { Dim::Fixed(classes) }];
    graph.scope("");
    let both = [("probs", &probs), (LOGITS, &logits)];
    let order = if options.layout == Layout::Hf { [both[1], both[0]] } else { both };
    for (name, value) in order {
        graph.output(name, value, &by_class);
    }
    f(graph, side)
}

/// The embeddings `[B, E]` that features `[B, D]` stand for, where there is a projection.
pub(crate) fn project(graph: &mut Graph, features: Value, tower: &PlainTower) -> Result<Value> {
    let width = tower.spec().vision.width;
    let Some(projection) = tower.projection()? else { return Ok(features) };
    graph.scope("projection");
    let shape = [width, projection.len() / width];
    let weight = graph.floats("weight", &shape, transposed(&projection, width));
    Ok(graph.matmul(&features, &weight))
}

/// What goes into `graph` for normalised pixels `[n, 3, side, side]`.
pub(crate) fn inputs(
    options: &ExportOptions,
    preprocess: &Preprocess,
    side: usize,
    pixels: &[f32],
    graph: &Graph,
) -> Vec<NamedTensor> {
    let values = match options.layout.form() {
        PixelForm::Normalized => pixels.to_vec(),
        PixelForm::Unit => unit(pixels, preprocess, side * side),
    };
    let shape = vec![values.len() / (3 * side * side), 3, side, side];
    let images = NamedTensor { name: options.layout.input().to_owned(), shape, values };
    [images].into_iter().chain(graph.task.iter().cloned()).collect()
}

/// What the written file makes of these inputs.
pub(crate) fn run(program: &Program, inputs: &[NamedTensor], threads: usize) -> Result<Vec<Tensor>> {
    let tensor = |input: &'_ NamedTensor| Tensor::floats(&input.shape, input.values.clone());
    program.run(inputs.iter().map(|input| (&*input.name, tensor(input))).collect(), threads)
}

/// Normalised pixels as RGB from 0 to 1.
fn unit(pixels: &[f32], preprocess: &Preprocess, plane: usize) -> Vec<f32> {
    let mut pixels = pixels.to_vec();
    for (i, channel) in pixels.chunks_exact_mut(plane.max(1)).enumerate() {
        let (mean, std) = (f64::from(preprocess.mean[i % 3]), f64::from(preprocess.std[i % 3]));
        let full = 255. * preprocess.rescale;
        for v in channel {
            *v = ((f64::from(*v) * std + mean) / full) as f32;
        }
    }
    pixels
}
