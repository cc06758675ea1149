//! `vpt task`: what a task file says.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use vpt::head::label_map;
use vpt::image::preprocess::{Preprocess, Size};
use vpt::metrics::Scores;
use vpt::model::task_file::{DetectMeta, MapMeta, NAMED_SOURCES, SegmentMeta, TaskFile};
use vpt::params;
use vpt::report::table;
use vpt::runs;

use super::output::Output;
use super::printable;
use super::runs::RUNS;

/// Classes that are named; --json has all.
const NAMED: usize = 20;

/// Look into a task file
#[derive(Debug, Args)]
pub(crate) struct TaskArgs {
    #[command(subcommand)]
    command: TaskCommand,
}

#[derive(Debug, Subcommand)]
enum TaskCommand {
    /// Show what a task file was learned on and how, its classes, scores and tensors
    ///
    /// The whole file is checked, except for what would need its backbone.
    #[command(after_help = "Examples:\n  vpt task info best.safetensors\n  vpt task info photos-vpt-deep-1 --json")]
    Info {
        /// Task file, or folder or name of the run that holds it as best.safetensors
        #[arg(value_name = "FILE|RUN")]
        task: String,
    },
}

pub(crate) fn run(args: &TaskArgs, out: Output) -> anyhow::Result<()> {
    let TaskCommand::Info { task } = &args.command;
    let path = if Path::new(task).exists() { PathBuf::from(task) } else { runs::find(Path::new(RUNS), task)?.path };
    let path = TaskFile::path_in(&path);
    let file = TaskFile::open(&path)?;
    let bytes = std::fs::metadata(&path).with_context(|| path.display().to_string())?.len();
    let meta = &file.meta;
    let tensors = file.params.iter();
    let tensors = tensors.map(|p| json!({ "name": p.name, "shape": p.shape, "values": p.values.len() }));
    let result = json!({
        "file": path.display().to_string(),
        "bytes": bytes,
        "format": meta.format(),
        "task": kind(&file),
        "method": meta.method,
        "prompt": meta.parts,
        "head": meta.head,
        "backbone": meta.backbone,
        "classes": meta.classes,
        "classnames": meta.classnames,
        "image_size": meta.image_size,
        "preprocess": meta.preprocess,
        "metrics": meta.metrics,
        "temperature": meta.temperature,
        "label_map": label_map(&file)?,
        "detect": meta.detect,
        "segment": meta.segment,
        "trainable_params": params::count(&file.params),
        "tensors": tensors.collect::<Vec<_>>(),
    });
    out.result(&result, || describe(&file, &path, bytes))
}

fn kind(file: &TaskFile) -> vpt::config::Task {
    if file.meta.segment.is_some() {
        return vpt::config::Task::Segment;
    }
    match (&file.meta.detect, file.meta.multilabel) {
        (Some(_), _) => vpt::config::Task::Detect,
        (None, true) => vpt::config::Task::Multilabel,
        (None, false) => vpt::config::Task::Classify,
    }
}

fn describe(file: &TaskFile, path: &Path, bytes: u64) -> String {
    let meta = &file.meta;
    let names: Vec<String> = meta.classes.iter().take(NAMED).map(|name| printable(name)).collect();
    let more = meta.classes.len() - names.len();
    let more = if more > 0 { format!(", and {more} more") } else { String::new() };
    let mut rows = vec![
        ("file", format!("{}, {}", printable(&path.display().to_string()), table::bytes(bytes))),
        ("format", meta.format().to_string()),
        ("task", kind(file).to_string()),
        ("method", meta.method.to_string()),
        ("prompt", meta.parts.describe()),
        ("head", head(file)),
        ("backbone", printable(&meta.backbone.name)),
        ("BLAKE3", printable(&meta.backbone.hash)),
    ];
    rows.extend(meta.backbone.identity.as_ref().map(|identity| ("identity", printable(&identity.hash))));
    rows.extend([
        ("classes", format!("{}: {}{more}", meta.classes.len(), names.join(", "))),
        ("images", format!("{0}x{0} pixels", meta.image_size)),
        ("preprocessing", preprocessing(&meta.preprocess)),
        ("epoch", meta.metrics.epoch.to_string()),
    ]);
    rows.extend(meta.metrics.val.as_ref().map(|scores| ("val", metrics(scores))));
    rows.extend(meta.metrics.test.as_ref().map(|scores| ("test", metrics(scores))));
    rows.extend(meta.temperature.map(|temperature| ("temperature", format!("{temperature:.4}"))));
    rows.extend(mapping(file));
    rows.push(("learned", format!("{} values", table::count(params::count(&file.params) as u64))));
    let tensor = |p: &params::Param| {
        let shape: Vec<String> = p.shape.iter().map(usize::to_string).collect();
        ("tensor", format!("{} [{}]", p.name, shape.join(", ")))
    };
    rows.extend(file.params.iter().map(tensor));
    table::pairs(&rows)
}

fn head(file: &TaskFile) -> String {
    let meta = &file.meta;
    if let Some(SegmentMeta { head, blocks, tiles, .. }) = &meta.segment {
        let blocks: Vec<String> = blocks.iter().map(usize::to_string).collect();
        let (side, blocks) = (head.side(), blocks.join(", "));
        return format!(
            "{}, on blocks {blocks}; {side}x{side} logits a window, {tiles} along the shorter side",
            head.kind
        );
    }
    match (&meta.detect, &meta.label_map) {
        (Some(detect), _) => dense(detect),
        (_, Some(map)) => {
            format!("none: the backbone's own classifier of {} classes, label map {}", map.sources, map.kind)
        }
        _ => meta.head.to_string(),
    }
}

/// The source classes with the largest parts in each class: number, name and part.
fn label_map(file: &TaskFile) -> vpt::Result<Option<Value>> {
    let Some(MapMeta { kind, sources, names }) = &file.meta.label_map else { return Ok(None) };
    let part = |(source, weight): (usize, f32)| {
        let name = names.as_ref().and_then(|names| names.get(&source));
        json!({ "source": source, "name": name, "weight": weight })
    };
    let classes: Vec<Vec<Value>> = label_map::leading(&file.params, NAMED_SOURCES)?
        .into_iter()
        .map(|parts| parts.into_iter().map(part).collect())
        .collect();
    Ok(Some(json!({ "kind": kind, "sources": sources, "classes": classes })))
}

/// A line a class: what it is told by.
fn mapping(file: &TaskFile) -> Vec<(&'static str, String)> {
    let Some(MapMeta { kind, names, .. }) = &file.meta.label_map else { return Vec::new() };
    let source = |(source, weight): &(usize, f32)| {
        let name = names.as_ref().and_then(|names| names.get(source));
        let name = name.map_or_else(|| format!("class {source}"), |name| format!("{} ({source})", printable(name)));
        if kind.is_injective() { name } else { format!("{name} {weight:.3}") }
    };
    let classes = &file.meta.classes;
    // The file was opened, so the tensor is there.
    let parts = label_map::leading(&file.params, NAMED_SOURCES).unwrap_or_default();
    let line = |(parts, class): (&Vec<(usize, f32)>, &String)| {
        let sources: Vec<String> = parts.iter().map(source).collect();
        ("label map", format!("{} -> {}", sources.join(", "), printable(class)))
    };
    let mut lines: Vec<_> = parts.iter().zip(classes).take(NAMED).map(line).collect();
    if classes.len() > NAMED {
        lines.push(("label map", format!("and {} more", classes.len() - NAMED)));
    }
    lines
}

fn dense(detect: &DetectMeta) -> String {
    let blocks: Vec<String> = detect.blocks.iter().map(usize::to_string).collect();
    let confidence =
        detect.confidence.map_or_else(String::new, |score| format!(", F1 is best at a score of {score:.2}"));
    let fit = format!("{} to {1}x{1} tokens", detect.fit, detect.head.side());
    let tiles = match detect.tiles {
        1 => String::new(),
        tiles => format!(", whole and in tiles, {tiles} along the shorter side"),
    };
    format!("dense, on blocks {}; images {fit}{tiles}{confidence}", blocks.join(", "))
}

fn preprocessing(preprocess: &Preprocess) -> String {
    let filter = format!("{:?}", preprocess.filter).to_lowercase();
    let resize = match preprocess.resize {
        None => "no resizing".to_owned(),
        Some(Size::ShortestEdge(side)) => format!("shorter side to {side}, {filter}"),
        Some(Size::LongestEdge(side)) => format!("longer side to {side}, {filter}"),
        Some(Size::Exact { width, height }) => format!("to {width}x{height}, {filter}"),
    };
    let crop = preprocess.crop.map_or_else(String::new, |(width, height)| format!("; middle {width}x{height}"));
    let unrounded = if preprocess.unrounded { " of unrounded values" } else { "" };
    let numbers = |values: [f32; 3]| values.map(|value| format!("{value:.3}")).join(" ");
    format!("{resize}{unrounded}{crop}; mean {}; std {}", numbers(preprocess.mean), numbers(preprocess.std))
}

/// Every metric in one line.
fn metrics(scores: &Scores) -> String {
    let shown = |(name, value): (String, f64)| match name.as_str() {
        "loss" => format!("loss {value:.4}"),
        _ => format!("{name} {}", table::percent(value)),
    };
    runs::scores(scores).into_iter().map(shown).collect::<Vec<_>>().join(", ")
}
