//! Backbones without a task: embeddings of images and, of CLIP and its kin, of texts.

use std::path::{Path, PathBuf};

use crate::block::{BlockReader, leave_tower};
use crate::classify::{inputs, project, run};
use crate::graph::{Dim, Element, NamedTensor};
use crate::interpret::{Program, Tensor};
use crate::metadata::Facts;
use crate::parity::Parity;
use crate::prompts::ImagePrompts;
use crate::text::TextGraph;
use crate::vit::{ImageTower, TowerOutput, TowerRead};
use crate::{ExportOptions, Exported, Samples, finish, write};
use vpt_backbone::{Backbone, vit::OwnWeights};
use vpt_base::{Error, Result};

/// Texts that a text tower is held against the engine on.
const TEXTS: [&str; 4] =
    ["a photo of a cat.", "two red squares", "A long street with many houses, seen from above", "7"];

/// Writes the image tower of `backbone` to `path`: images to `image_embeds` `[B, E]`, as `vpt embed` makes them.
///
/// # Errors
/// As [`crate::export_classifier`].
pub fn export_backbone(
    backbone: &Backbone,
    options: &ExportOptions,
    path: &Path,
    samples: &Samples,
) -> Result<Exported> {
    let tower = backbone.plain(OwnWeights::default());
    let prompts = ImagePrompts::new(&tower, None, None)?;
    let blocks = BlockReader::new(|index| tower.block(index));
    let mut graph = options.graph();
    let preprocess = &backbone.preprocess;
    let form = options.layout.form();
    let image_tower = ImageTower { tower: &tower, blocks: &blocks, preprocess, form, pixels: None, prompts: &prompts };
    let side = image_tower.input_side();
    let read = TowerRead::Pooled(backbone.spec.pool);
    let TowerOutput::Features(features) = image_tower.build(&mut graph, options.layout.input(), read)? else {
        return Err(Error::invalid("features", "were not read"));
    };
    let embeds = project(&mut graph, features, &tower)?;
    let embeds = leave_tower(&mut graph, embeds);
    let width = backbone.embedding_width();
    graph.scope("");
    graph.output("image_embeds", &embeds, &[Dim::Named("batch"), Dim::Fixed(width)]);
    let facts = Facts::new("embed", backbone, (side, preprocess), options, &graph)?;
    let written = write(&graph, &facts, path, options.external)?;
    let program = Program::open(written.paths().0, written.paths().1)?;
    let pixels = samples.pixels(preprocess)?;
    let engine = backbone.embed(&pixels, None, options.threads)?;
    let mut reference = inputs(options, preprocess, side, &pixels, &graph);
    let found = run(&program, &reference, options.threads)?;
    let found = found.first().map(Tensor::as_floats).transpose().map_err(|why| Error::file(path, why))?;
    let rows = (&engine[..], found.unwrap_or_default());
    let parity = Parity::of_rows("embeddings", rows, width, options.half, &samples.what);
    reference.push(embeddings("image_embeds", engine, width));
    finish(written, path, parity, &graph, reference)
}

/// The file of the text tower beside that of the image tower: `FILE.text.onnx`, or `text_model.onnx` beside `vision_model.onnx`.
pub fn text_path(path: &Path) -> PathBuf {
    let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    let name = if stem == "vision_model" { "text_model.onnx".to_owned() } else { format!("{stem}.text.onnx") };
    path.with_file_name(name)
}

/// Writes the text tower of `backbone` to `path`: token ids `input_ids` `[B, context]`, padded behind their end token, to
/// `text_embeds` `[B, E]`.
///
/// # Errors
/// As [`export_backbone`], or the backbone has no text tower.
pub fn export_texts(backbone: &Backbone, options: &ExportOptions, path: &Path) -> Result<Exported> {
    let tower = backbone.plain_texts()?;
    let blocks = BlockReader::new(|index| tower.block(index));
    let spec = backbone.text_spec()?;
    let mut graph = options.graph();
    let dims = [Dim::Named("batch"), Dim::Fixed(spec.context)];
    let ids = graph.input("input_ids", Element::I64, &dims);
    let texts = TextGraph { tower: &tower, blocks: &blocks };
    let embeds = texts.embeddings(&mut graph, &ids)?;
    let embeds = leave_tower(&mut graph, embeds);
    graph.scope("");
    graph.output("text_embeds", &embeds, &[Dim::Named("batch"), Dim::Fixed(spec.projection)]);
    let seen = (backbone.vit.image_size(), &backbone.preprocess);
    let facts = Facts::new("embed-text", backbone, seen, options, &graph)?;
    let written = write(&graph, &facts, path, options.external)?;
    let program = Program::open(written.paths().0, written.paths().1)?;
    let engine = backbone.embed_texts(&TEXTS, options.threads)?;
    let mut ids = Vec::new();
    for text in backbone.token_ids(&TEXTS)? {
        let padding = spec.context.saturating_sub(text.len());
        ids.extend(text.into_iter().map(i64::from));
        ids.extend(std::iter::repeat_n(0, padding));
    }
    let shape = vec![TEXTS.len(), spec.context];
    let values = ids.iter().map(|&id| id as f32).collect();
    let given = NamedTensor { name: "input_ids".to_owned(), shape: shape.clone(), values };
    let input = Tensor::ints(&shape, ids);
    let found = program.run(vec![("input_ids", input)], options.threads)?;
    let found = found.first().map(Tensor::as_floats).transpose().map_err(|why| Error::file(path, why))?;
    let rows = (&engine[..], found.unwrap_or_default());
    let parity = Parity::of_rows("embeddings", rows, spec.projection, options.half, "texts");
    finish(written, path, parity, &graph, vec![given, embeddings("text_embeds", engine, spec.projection)])
}

fn embeddings(name: &str, values: Vec<f32>, width: usize) -> NamedTensor {
    NamedTensor { name: name.to_owned(), shape: vec![values.len() / width, width], values }
}
