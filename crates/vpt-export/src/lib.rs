//! Tasks and backbones as ONNX: prompts and head are constants of the graph, and what was written is run again and held against the
//! engine before it gets its name.

mod backbone;
mod block;
mod classify;
mod dense;
mod detect;
mod file;
mod graph;
mod head;
mod hugging_face;
pub mod interpret;
mod metadata;
mod parity;
mod prompts;
mod proto;
mod samples;
mod segment;
mod text;
mod vit;

use std::path::{Path, PathBuf};

use serde::Serialize;

pub use self::backbone::{export_backbone, export_texts, text_path};
pub use self::classify::{export_classifier, task_tensors};
pub use self::detect::export_detector;
pub use self::graph::{NamedTensor, Opset};
pub use self::metadata::{KEY, PARITY};
pub use self::parity::Parity;
pub use self::samples::{COUNT, Samples};
pub use self::segment::export_segmenter;
pub use self::vit::PixelForm;
use crate::{
    file::Written,
    graph::{Element, Graph},
    metadata::Facts,
};
use vpt_base::{Error, Result, choice::choice};

choice! {
    /// Names of inputs and outputs, and what images are when they come in.
    #[derive(Default)]
    pub enum Layout for "layout" {
        /// As Ultralytics' readers expect it: `images`, RGB from 0 to 1; probabilities first.
        #[default]
        Ultralytics = "ultralytics",
        /// As transformers' and Transformers.js: `pixel_values`, normalised; logits first; configurations beside.
        Hf = "hf",
    }
}

impl Layout {
    /// The name of the input of images.
    fn input(self) -> &'static str {
        match self {
            Self::Ultralytics => "images",
            Self::Hf => "pixel_values",
        }
    }

    /// What images are when they come in.
    pub fn form(self) -> PixelForm {
        match self {
            Self::Ultralytics => PixelForm::Unit,
            Self::Hf => PixelForm::Normalized,
        }
    }
}

/// How to export.
#[derive(Clone, Copy, Debug, Default)]
#[allow(clippy::struct_excessive_bools, reason = "choices that do not depend on each other")]
pub struct ExportOptions {
    /// Names and form of inputs and outputs.
    pub layout: Layout,
    /// Operators.
    pub opset: Opset,
    /// Whether the tower's weights and values are of 16 bits; what comes in and goes out is of 32.
    pub half: bool,
    /// Whether boxes are suppressed by the graph.
    pub nms: bool,
    /// Whether prompts and head are inputs.
    pub task_input: bool,
    /// Whether weights are in a file beside, also where one file could hold them.
    pub external: bool,
    /// Threads that compute.
    pub threads: usize,
}

impl ExportOptions {
    fn element(&self) -> Element {
        if self.half { Element::F16 } else { Element::F32 }
    }

    fn graph<'a>(&self) -> Graph<'a> {
        Graph::new(self.opset, self.element(), self.task_input)
    }
}

/// What was written.
#[derive(Clone, Debug, Serialize)]
pub struct Exported {
    /// The files, the model first.
    pub files: Vec<PathBuf>,
    /// Bytes of the model, weights beside it included.
    pub bytes: u64,
    /// Names of the inputs.
    pub inputs: Vec<String>,
    /// Names of the outputs.
    pub outputs: Vec<String>,
    /// How far the written file and the engine are apart.
    pub parity: Parity,
    /// What went into the graph when it was held against the engine, and what the engine made of it.
    #[serde(skip)]
    pub reference: Vec<NamedTensor>,
}

/// Gives the written file its name if it answers as the engine does.
///
/// # Errors
/// It does not: it is kept under another name then.
fn finish(
    mut written: Written,
    path: &Path,
    parity: Parity,
    graph: &Graph,
    reference: Vec<NamedTensor>,
) -> Result<Exported> {
    if let Some(why) = parity.fault() {
        let aside = written.put_aside()?;
        return Err(Error::file(path, format!("{why}; it is kept as {}", aside.display())));
    }
    written.add_entry(PARITY, &serde_json::to_string(&parity).unwrap_or_default())?;
    let beside = written.beside().map(Path::to_path_buf);
    let bytes = written.keep()?;
    let files = [path.to_path_buf()].into_iter().chain(beside).collect();
    let (inputs, outputs) = (graph.input_names(), graph.output_names());
    Ok(Exported { files, bytes, inputs, outputs, parity, reference })
}

/// Writes a graph with what its metadata tells.
fn write(graph: &Graph, facts: &Facts, path: &Path, external: bool) -> Result<Written> {
    file::write(graph, &facts.entries(), path, external)
}

/// BLAKE3 of a file, in hexadecimal: what says which task a model was made of.
///
/// # Errors
/// It cannot be read.
pub fn hash_of(path: &Path) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    std::fs::File::open(path).and_then(|file| hasher.update_reader(file).map(drop)).map_err(Error::io(path))?;
    Ok(hasher.finalize().to_hex().to_string())
}
