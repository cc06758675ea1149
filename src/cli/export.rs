//! `vpt export`: a learned task, or a backbone, as an ONNX file.

use std::path::{Path, PathBuf};

use clap::{ArgGroup, Args};
use serde_json::json;
use vpt::backbone::{Backbone, Compute, Engine, OpenOptions, Precision};
use vpt::export::{
    COUNT, ExportOptions, Exported, Layout, NamedTensor, Opset, Samples, export_backbone, export_classifier,
    export_detector, export_segmenter, export_texts, hash_of, task_tensors, text_path,
};
use vpt::infer::inputs::{expand, validation_images};
use vpt::infer::npy::{NpyArray, write_npz};
use vpt::model::task_file::TaskFile;
use vpt::model::{AnyTask, TaskOptions};

use super::output::{Output, message};
use super::{Global, NumberFormat, Usage, model, one_of};

/// Write a learned task, or a backbone, as an ONNX file
///
/// The file needs nothing else: prompts are baked into it as keys and values, tuned weights are merged, the normalisation is part of
/// the first layer and the temperature of the last. Before it gets its name it is run again, by an interpreter of its operators, and held
/// against this program's own answers; where they differ by more than rounding, the command fails and keeps the file aside.
///
/// Resizing and cropping stay outside. What goes in and comes out, and how images are prepared, stands in the file's metadata under
/// `vpt`, and in the keys that Ultralytics' readers look for. With --backbone and without --model a backbone's image tower is
/// written, images to `image_embeds`; of CLIP also its text tower, into FILE.text.onnx.
#[derive(Debug, Args)]
#[command(
    group(ArgGroup::new("what").args(["model", "backbone"]).required(true).multiple(true)),
    group(ArgGroup::new("where").args(["out", "task_tensors"]).required(true).multiple(true)),
    after_help = "Examples:\n  vpt export --model runs/classify/photos-vpt-deep-1 --out photos.onnx\n  \
                  vpt export --model best.safetensors --out photos.onnx --verify photos/*.jpg\n  \
                  vpt export --model runs/classify/photos-vpt-deep-1 --layout hf --out photos/onnx/model.onnx\n  \
                  vpt export --model runs/detect/cells-vpt-deep-1 --nms --out cells.onnx\n  \
                  vpt export --backbone clip-vit-b32 --out clip.onnx"
)]
pub(crate) struct Export {
    /// Task file, or the run folder that holds it as best.safetensors
    #[arg(long, value_name = "RUN|FILE")]
    model: Option<PathBuf>,
    /// Its backbone, where neither the task file nor its run folder says where it is; without --model the backbone to write
    #[arg(long, value_name = "NAME|DIR")]
    backbone: Option<String>,
    /// Folder to look for known backbones in, before the local Hugging Face cache
    #[arg(long, value_name = "DIR")]
    weights_dir: Option<PathBuf>,
    /// Side of the images in pixels, of a backbone without a task; a multiple of its patch size [default: the backbone's]
    #[arg(long, allow_negative_numbers = true, value_name = "PIXELS", conflicts_with = "model")]
    image_size: Option<usize>,
    /// The file to write
    #[arg(long, value_name = "FILE.onnx")]
    out: Option<PathBuf>,
    /// Names and form of what goes in and comes out: `images`, RGB from 0 to 1, to `probs` and `logits`, of a detector to `output0`, of a task of pixels to `logits` and `masks`;
    /// or `pixel_values`, normalised, to `logits` and `probs`, with config.json and `preprocessor_config.json` beside
    #[arg(long, value_name = "LAYOUT", default_value = "ultralytics", value_parser = one_of::<Layout>(Layout::NAMES))]
    layout: Layout,
    /// Operators: 17 is read by everything, 23 has attention as one
    #[arg(long, value_name = "VERSION", default_value = "17", value_parser = one_of::<Opset>(Opset::NAMES))]
    opset: Opset,
    /// Detection: leave boxes out that a better one covers; rows of left, top, right, bottom, score, class
    #[arg(long)]
    nms: bool,
    /// Make prompts and head inputs of the graph, so that one file serves every task of the same shape
    #[arg(long, requires = "model")]
    task_input: bool,
    /// Write what this task puts into such a graph
    #[arg(long, value_name = "FILE.npz", requires = "model")]
    task_tensors: Option<PathBuf>,
    /// Put weights into a file beside, FILE.onnx.data, also where one file could hold them
    #[arg(long)]
    external_data: bool,
    /// Write what went into the file when it was held against this program, and what this program made of it, by the names of inputs
    /// and outputs: what another runtime can be held against
    #[arg(long, value_name = "FILE.npz", requires = "out")]
    reference: Option<PathBuf>,
    /// Images to hold the file against this program on [default: eight of the run's validation images, else random pictures]
    #[arg(long, value_name = "IMAGE", num_args = 1..)]
    verify: Vec<PathBuf>,
}

pub(crate) fn run(args: &Export, global: &Global, out: Output) -> anyhow::Result<()> {
    for path in args.out.iter().chain(&args.task_tensors).chain(&args.reference) {
        if path.is_dir() {
            return Err(Usage(format!("{} is a folder; give a file", path.display())).into());
        }
    }
    if global.precision == Some(NumberFormat::Bf16) {
        return Err(Usage("--precision: of an ONNX file f32 or f16".to_owned()).into());
    }
    let options = ExportOptions {
        layout: args.layout,
        opset: args.opset,
        half: global.precision == Some(NumberFormat::F16),
        nms: args.nms,
        task_input: args.task_input,
        external: args.external_data,
        threads: global.threads(),
    };
    match &args.model {
        Some(path) => of_task(args, path, &options, global, out),
        None => of_backbone(args, &options, global, out),
    }
}

/// Writes a task.
fn of_task(args: &Export, path: &Path, options: &ExportOptions, global: &Global, out: Output) -> anyhow::Result<()> {
    let open = TaskOptions {
        precision: Some(Precision::F32),
        engine: Some(Engine::Native),
        ..model::options(args.backbone.as_deref(), args.weights_dir.as_deref(), global)
    };
    let task = AnyTask::open(path, &open)?;
    let (meta, tensors) = match &task {
        AnyTask::Segment(_) if args.task_tensors.is_some() => {
            return Err(Usage("--task-tensors: of a task of pixels the head is part of the graph".to_owned()).into());
        }
        AnyTask::Segment(task) => (task.meta(), None),
        AnyTask::Detect(task) if args.task_tensors.is_some() => {
            return Err(Usage(format!(
                "--task-tensors: {} is a detector, whose head is part of the graph",
                task.meta().method
            ))
            .into());
        }
        AnyTask::Detect(task) => (task.meta(), None),
        AnyTask::Classify(task) | AnyTask::Multilabel(task) => {
            (task.meta(), args.task_tensors.as_ref().map(|_| task_tensors(task, options)).transpose()?)
        }
    };
    let mut result = json!({ "model": path, "method": meta.method, "backbone": meta.backbone.name });
    let mut lines = Vec::new();
    if let Some(to) = &args.out {
        let hash = hash_of(&TaskFile::path_in(path))?;
        let samples = samples(args, Some(path), global)?;
        let exported = match &task {
            AnyTask::Segment(task) => export_segmenter(task, options, to, &hash, &samples)?,
            AnyTask::Detect(task) => export_detector(task, options, to, &hash, &samples)?,
            AnyTask::Classify(task) | AnyTask::Multilabel(task) => {
                export_classifier(task, options, to, &hash, &samples)?
            }
        };
        keep_reference(args.reference.as_deref(), &exported)?;
        tell(&mut result, &exported, to, args, options);
        lines.push(describe(&format!("{} on {}", meta.method, meta.backbone.name), &exported, to));
        if let AnyTask::Segment(_) = &task {
            lines.push(
                "the file sees one window: resizing images and cutting them into windows is left to the caller"
                    .to_owned(),
            );
        }
        if let AnyTask::Detect(task) = &task
            && task.tiles() > 1
        {
            let tiles = task.tiles();
            lines.push(format!("the file sees one view: cutting images into tiles, {tiles} along the shorter side, is left to the caller"));
        }
    }
    if let (Some(to), Some(tensors)) = (&args.task_tensors, tensors) {
        keep(to, &tensors)?;
        let names: Vec<&str> = tensors.iter().map(|NamedTensor { name, .. }| name.as_str()).collect();
        lines.push(format!("{} in {}", names.join(", "), to.display()));
        result["task_tensors"] = json!({ "file": to, "names": names });
    }
    out.result(&result, || lines.join("\n"))
}

/// Writes a backbone.
fn of_backbone(args: &Export, options: &ExportOptions, global: &Global, out: Output) -> anyhow::Result<()> {
    if args.nms {
        return Err(Usage("--nms: a backbone finds no boxes".to_owned()).into());
    }
    let (Some(name), Some(to)) = (&args.backbone, &args.out) else {
        return Err(Usage("--out is missing".to_owned()).into());
    };
    let open = OpenOptions {
        weights_dir: args.weights_dir.clone(),
        image_size: args.image_size,
        precision: Precision::F32,
        max_memory: global.max_memory(),
        compute: Compute::default(),
    };
    let backbone = Backbone::open(name, &open)?;
    if let Some(note) = backbone.note().filter(|_| !global.quiet) {
        message(&note);
    }
    let exported = export_backbone(&backbone, options, to, &samples(args, None, global)?)?;
    keep_reference(args.reference.as_deref(), &exported)?;
    let mut result = json!({ "model": null, "method": null, "backbone": backbone.name });
    tell(&mut result, &exported, to, args, options);
    let mut lines = vec![describe(&backbone.name, &exported, to)];
    if backbone.has_text_tower() {
        let to = text_path(to);
        let exported = export_texts(&backbone, options, &to)?;
        keep_reference(args.reference.as_deref().map(|path| path.with_extension("text.npz")).as_deref(), &exported)?;
        let mut texts = json!({});
        tell(&mut texts, &exported, &to, args, options);
        result["texts"] = texts;
        lines.push(describe(&format!("texts of {}", backbone.name), &exported, &to));
    }
    out.result(&result, || lines.join("\n"))
}

/// Writes what the file was held against, where that is asked for.
fn keep_reference(path: Option<&Path>, exported: &Exported) -> vpt::Result<()> {
    path.map_or(Ok(()), |path| keep(path, &exported.reference))
}

/// Writes tensors as an archive of arrays.
fn keep(path: &Path, tensors: &[NamedTensor]) -> vpt::Result<()> {
    let array = |tensor: &'_ NamedTensor| NpyArray::new(&tensor.shape, tensor.values.clone());
    let arrays = tensors.iter().map(|tensor| Ok((tensor.name.as_str(), array(tensor)?)));
    write_npz(path, &arrays.collect::<vpt::Result<Vec<_>>>()?)
}

/// What was written, as JSON.
fn tell(result: &mut serde_json::Value, exported: &Exported, to: &Path, args: &Export, options: &ExportOptions) {
    let Exported { files, bytes, inputs, outputs, parity, .. } = exported;
    result["out"] = json!(to);
    result["files"] = json!(files);
    result["bytes"] = json!(bytes);
    result["layout"] = json!(args.layout);
    result["opset"] = json!(args.opset.version());
    result["precision"] = json!(if options.half { "f16" } else { "f32" });
    result["inputs"] = json!(inputs);
    result["outputs"] = json!(outputs);
    result["parity"] = json!(parity);
}

fn describe(what: &str, exported: &Exported, to: &Path) -> String {
    let Exported { bytes, inputs, outputs, parity, .. } = exported;
    let (inputs, outputs) = (inputs.join(", "), outputs.join(", "));
    format!("{what}, {bytes} bytes in {}: {inputs} to {outputs}\n{}", to.display(), parity.describe())
}

/// The images to hold the file against this program on.
fn samples(args: &Export, model: Option<&Path>, global: &Global) -> vpt::Result<Samples> {
    if !args.verify.is_empty() {
        return Ok(Samples::files(&expand(&args.verify)?.images, "given images"));
    }
    let files = model.map(|model| validation_images(model, COUNT)).unwrap_or_default();
    if files.is_empty() {
        if model.is_some() && !global.quiet {
            message("no validation images of a run are at hand: the file is verified on random pictures");
        }
        return Ok(Samples::random());
    }
    Ok(Samples::files(&files, "validation images"))
}
