//! `vpt eval`: metrics of a task file on a data set.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use serde_json::json;
use vpt::data::boxes::BoxDataset;
use vpt::data::masks::MaskDataset;
use vpt::energy::EnergyMeter;
use vpt::eval;
use vpt::metrics::coco::results_json;
use vpt::model::task_file::TaskMeta;
use vpt::model::{AnyTask, DetectTask, SegmentTask, TaskModel};
use vpt::report::table;
use vpt::{
    data::{Dataset, MadeParts, MeasuredPart, MultilabelDataset, Split, SplitFile},
    files::write_atomic,
};

use super::box_args::BoxArgs;
use super::carbon::CarbonArgs;
use super::model::ModelArgs;
use super::output::Output;
use super::progress::ProgressDisplay;
use super::{Global, Usage, metrics, multilabel_metrics, split};

/// Measure a trained task file on a data set
///
/// Prints accuracy for a classifier, for a detector COCO's 12 numbers with the AP of each class, and for segmentation mIoU, accuracy of
/// pixels and of classes, and the IoU of each class, over whole images at their own resolution. Classes are matched by name. The backbone
/// is looked for by the name in the task file, and must be the one that the task was trained on.
///
/// A detector that tells classes by their names (--open-vocabulary) looks for the categories of the data, if they are others
/// than it was trained on.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  vpt eval --model runs/classify/photos-vpt-deep-1 --data photos/ --split test")]
pub(crate) struct Eval {
    #[command(flatten)]
    model: ModelArgs,
    /// Image folder, CSV/TSV file, folder of IDX files, or `shapes`; for a detector COCO, YOLO or Pascal VOC; for
    /// segmentation Pascal VOC, ADE20k, images/ and masks/, or COCO with polygons
    #[arg(long, value_name = "PATH|shapes")]
    data: PathBuf,
    /// The part to measure: train, val or test
    #[arg(long, value_name = "SPLIT", default_value = "test", value_parser = split)]
    split: Split,
    /// Detection: write what was found as COCO results JSON
    #[arg(long, value_name = "FILE")]
    detections: Option<PathBuf>,
    #[command(flatten)]
    boxes: BoxArgs,
    #[command(flatten)]
    carbon: CarbonArgs,
}

pub(crate) fn run(args: &Eval, global: &Global, out: Output) -> anyhow::Result<()> {
    args.carbon.carbon()?;
    let out = MeteredOutput { out, meter: EnergyMeter::start() };
    let task = args.model.open(global)?;
    args.boxes.check(&task)?;
    match task {
        AnyTask::Classify(task) => classify(args, &task, global, &out),
        AnyTask::Multilabel(task) => multilabel(args, &task, global, &out),
        AnyTask::Detect(task) => detect(args, task, global, &out),
        AnyTask::Segment(task) => segment(args, task, global, &out),
    }
}

/// Where the result goes, and what meters the work on it.
struct MeteredOutput {
    out: Output,
    meter: EnergyMeter,
}

impl Eval {
    /// The part to measure, of a data set that is not the one in the file `learned`, or is.
    fn measured<'a>(&self, learned: Option<&'a SplitFile>) -> MadeParts<'a> {
        MadeParts::Measured(MeasuredPart { split: self.split, learned })
    }

    /// The parts of the data set that the task was learned from.
    fn learned(&self) -> Option<SplitFile> {
        SplitFile::of_run(self.model.path())
    }
}

/// What a task without boxes cannot write.
fn refuse_detections(args: &Eval) -> Result<(), Usage> {
    args.detections
        .as_ref()
        .map_or(Ok(()), |file| Err(Usage(format!("--detections {}: the task has classes, not boxes", file.display()))))
}

fn multilabel(args: &Eval, task: &TaskModel, global: &Global, out: &MeteredOutput) -> anyhow::Result<()> {
    refuse_detections(args)?;
    let mut progress = ProgressDisplay::new(global.quiet);
    let learned = args.learned();
    let data = MultilabelDataset::open_with(&args.data, global.seed(), false, args.measured(learned.as_ref()))?;
    progress.line(&format!("{}: {}", data.dataset.name, data.dataset.split_note));
    let tally = eval::evaluate_multilabel(task, &data, args.split, &mut |done, total| {
        progress.at("evaluating", done, total, String::new);
    })?;
    progress.clear();
    let scores = tally.metrics();
    report(args, task.meta(), &data.dataset.name, tally.images(), &scores, multilabel_metrics(&scores), out)
}

fn classify(args: &Eval, task: &TaskModel, global: &Global, out: &MeteredOutput) -> anyhow::Result<()> {
    refuse_detections(args)?;
    let mut progress = ProgressDisplay::new(global.quiet);
    let learned = args.learned();
    let dataset = Dataset::open_with(&args.data, global.seed(), args.measured(learned.as_ref()))?;
    progress.line(&format!("{}: {}", dataset.name, dataset.split_note));
    let unknown = dataset.classes.iter().any(|class| !task.meta().classes.contains(class));
    let named;
    let task = if unknown && task.is_open_vocabulary() {
        progress.line(&format!("telling the classes of {} by their names", dataset.name));
        named = task.with_classes(dataset.classes.clone())?;
        &named
    } else {
        task
    };
    let tally = eval::evaluate(task, &dataset, args.split, &mut |done, total| {
        progress.at("evaluating", done, total, String::new);
    })?;
    progress.clear();
    let scores = tally.metrics();
    let images = tally.images() as usize;
    report(args, task.meta(), &dataset.name, images, &scores, metrics(&scores), out)
}

fn detect(args: &Eval, task: DetectTask, global: &Global, out: &MeteredOutput) -> anyhow::Result<()> {
    let mut progress = ProgressDisplay::new(global.quiet);
    let learned = args.learned();
    let dataset = BoxDataset::open_with(&args.data, global.seed(), args.measured(learned.as_ref()))?;
    progress.line(&format!("{}: {}", dataset.name, dataset.split_note));
    let unknown = dataset.categories.iter().any(|category| !task.meta().classes.contains(&category.name));
    let task = if unknown && task.is_open_vocabulary() {
        progress.line(&format!("looking for the categories of {} by their names", dataset.name));
        task.with_classes(dataset.names())?
    } else {
        task
    };
    let shorter = || dataset.part(args.split).iter().map(|image| image.width.min(image.height)).collect();
    let (task, note) = args.boxes.apply(task, &shorter)?;
    if let Some(note) = note {
        progress.line(&note);
    }
    let found = eval::evaluate_boxes(&task, &dataset, args.split, &mut |done, total| {
        progress.at("evaluating", done, total, String::new);
    })?;
    progress.clear();
    if let Some(file) = &args.detections {
        write_atomic(file, &results_json(&found.detections)?)?;
    }
    let scores = found.eval.metrics;
    // -1 where there is nothing to measure.
    let percent = |share: f64| table::percent((share >= 0.).then_some(share));
    let rows = [
        ("AP", scores.ap),
        ("AP50", scores.ap50),
        ("AP75", scores.ap75),
        ("AP small", scores.ap_small),
        ("AP medium", scores.ap_medium),
        ("AP large", scores.ap_large),
        ("AR 1", scores.ar1),
        ("AR 10", scores.ar10),
        ("AR 100", scores.ar100),
    ];
    let mut rows: Vec<_> = rows.into_iter().map(|(name, share)| (name.to_owned(), percent(share))).collect();
    for (category, eval) in dataset.categories.iter().zip(&found.eval.categories) {
        let value = eval.as_ref().map_or_else(
            || "-".to_owned(),
            |eval| format!("{} (AP50 {}), {} objects", percent(eval.ap), percent(eval.ap50), eval.objects),
        );
        rows.push((format!("AP of {}", category.name), value));
    }
    let rows: Vec<(&str, String)> = rows.iter().map(|(name, value)| (name.as_str(), value.clone())).collect();
    report(args, task.meta(), &dataset.name, dataset.part(args.split).len(), &scores, rows, out)
}

fn segment(args: &Eval, task: SegmentTask, global: &Global, out: &MeteredOutput) -> anyhow::Result<()> {
    refuse_detections(args)?;
    let mut progress = ProgressDisplay::new(global.quiet);
    let learned = args.learned();
    let dataset = MaskDataset::open_with(&args.data, global.seed(), args.measured(learned.as_ref()))?;
    dataset.refuse_faults(false)?;
    progress.line(&format!("{}: {}", dataset.name, dataset.split_note));
    let shorter = || dataset.part(args.split).iter().map(|image| image.width.min(image.height)).collect();
    let (task, note) = args.boxes.apply_to_pixels(task, &shorter)?;
    if let Some(note) = note {
        progress.line(&note);
    }
    let tally = eval::evaluate_masks(&task, &dataset, args.split, &mut |done, total| {
        progress.at("evaluating", done, total, String::new);
    })?;
    progress.clear();
    let scores = tally.metrics(&task.meta().classes);
    let [miou, pixels, classes] = [scores.miou, scores.pixel_acc, scores.mean_acc].map(table::percent);
    let mut rows = vec![
        ("mIoU".to_owned(), miou),
        ("pixel accuracy".to_owned(), pixels),
        ("mean class accuracy".to_owned(), classes),
    ];
    for class in &scores.per_class {
        let value = format!("{} (accuracy {})", table::percent(class.iou), table::percent(class.acc));
        rows.push((format!("IoU of {}", class.class), value));
    }
    let rows: Vec<(&str, String)> = rows.iter().map(|(name, value)| (name.as_str(), value.clone())).collect();
    report(args, task.meta(), &dataset.name, tally.images(), &scores, rows, out)
}

/// Prints what both kinds of task have in common, and `rows` of scores.
fn report(
    args: &Eval,
    meta: &TaskMeta,
    data: &str,
    images: usize,
    scores: &impl Serialize,
    rows: Vec<(&str, String)>,
    MeteredOutput { out, meter }: &MeteredOutput,
) -> anyhow::Result<()> {
    let took = args.carbon.took(meter, &args.model.path().display().to_string())?;
    let mut result = json!({
        "model": args.model.path(),
        "method": meta.method,
        "backbone": meta.backbone.name,
        "data": data,
        "split": args.split,
        "images": images,
        "classes": meta.classes.len(),
        "metrics": scores,
    });
    took.tell(&mut result);
    out.result(&result, || {
        let model = format!("{}, {} on {}", args.model.path().display(), meta.method, meta.backbone.name);
        let data = format!("{data}, {}: {images} images, {} classes", args.split, meta.classes.len());
        let mut all = vec![("model", model), ("data", data)];
        all.extend(rows);
        all.extend(took.if_asked());
        table::pairs(&all)
    })
}
