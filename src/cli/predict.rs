//! `vpt predict`: classes of images, or the objects in them.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use serde::Serialize;
use serde_json::json;
use vpt::data::boxes::Rect;
use vpt::infer::data_set::{LEAST_PROBABILITY, above, looked_at, write_boxes, write_folders, write_masks};
use vpt::infer::detect::{DetectPrediction, predict_boxes};
use vpt::infer::exemplars::{Exemplars, read_exemplars};
use vpt::infer::inputs::{Answered, ImageFiles, SkippedImage, expand, past_unreadable, shorter_sides};
use vpt::infer::multilabel::{MultilabelPrediction, predict_multilabel};
use vpt::infer::predict::{Prediction, predict};
use vpt::infer::segment::{SegmentPrediction, predict_masks};
use vpt::model::{AnyTask, DetectTask, SegmentTask, TaskModel};
use vpt::report::{DrawnBox, draw_boxes, draw_mask, picture_bytes, picture_paths, table};
use vpt::shards::{PredictionFiles, ShardDetector, ShardOutput, ShardWork};
use vpt::{
    files::write_atomic,
    image::{Rgb8, decode},
};

use super::box_args::BoxArgs;
use super::flags::parsed;
use super::model::ModelArgs;
use super::output::{Output, message};
use super::predict_attention::{Attend, Attended, AttentionArgs};
use super::predict_set::{SetArgs, SetOutcome, SetPlan};
use super::progress::ProgressDisplay;
use super::shards::{ShardArgs, ShardCommand};
use super::{Global, Usage};

/// Classify images, find the objects in them, or tell their pixels apart, with a trained task file
///
/// A classifier prints the likeliest class of each image and its probability, at the temperature that was fitted on validation,
/// and the next likely ones; one of any number
/// of classes an image all whose probability is at least one half. A detector prints the boxes it is sure enough of, in pixels.
/// Segmentation prints the classes in each image with their share of its pixels; --save writes the masks, too, as PNG files of the
/// data's numbers into masks/ in the folder.
///
/// --to writes what is found as a data set to learn from, and a list of the images that a person should look at.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  vpt predict --model runs/classify/photos-vpt-deep-1 new/*.jpg
  vpt predict --model runs/detect/cells-vpt-deep-1 --save drawn/ new/
  vpt predict --model runs/classify/photos-vpt-deep-1 --attention where.png new/cat.jpg
  vpt predict --model runs/detect/boxes-vpt-deep-2 --classes \"red circle,blue star\" new/
  vpt predict --model runs/detect/boxes-vpt-deep-2 --exemplars shelf.jpg:40,60,32,32=bolt --save-task bolts.safetensors new/
  vpt predict --model runs/detect/cells-vpt-deep-1 --to yolo --out labelled --min-score 0.6 new/
  vpt predict --model runs/classify/photos-vpt-deep-1 --input 'shards/{00000..09999}.tar' --out predictions")]
pub(crate) struct Predict {
    #[command(flatten)]
    model: ModelArgs,
    /// Write each image with its boxes and names, its class, or its mask drawn on it into this folder
    #[arg(long, value_name = "DIR")]
    save: Option<PathBuf>,
    #[command(flatten)]
    attention: AttentionArgs,
    /// Detection: leave out boxes with lower scores [default: where F1 was best on validation]; with --to also classes and pixels
    /// with lower probabilities [default: 0.5]
    #[arg(long, value_name = "SCORE", allow_negative_numbers = true)]
    min_score: Option<f64>,
    /// Tell these classes apart instead, separated by commas; for a detector trained with --open-vocabulary and the methods
    /// that learn texts (coop, cocoop, ivlp, maple, promptsrc)
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    classes: Vec<String>,
    /// Look for more like these, without training: a box in an image, in pixels, and what it shows, or a JSON file with a list of
    /// {"image", "bbox": [left, top, width, height], "label"}; given several times, each is an example. For a detector trained with
    /// --open-vocabulary
    #[arg(long, value_name = "FILE|IMAGE:x,y,w,h=NAME", conflicts_with = "classes")]
    exemplars: Vec<String>,
    /// Keep the detector for what --exemplars show as a task file, which predict, eval and serve open
    #[arg(long, value_name = "FILE", requires = "exemplars")]
    save_task: Option<PathBuf>,
    /// End with exit code 0 although images could not be read; they are named either way
    #[arg(long)]
    skip_bad_images: bool,
    /// Image files (JPEG, PNG, WebP, BMP, TIFF, GIF, HEIC), folders of them, or patterns such as 'new/*.jpg'
    #[arg(value_name = "IMAGE", required_unless_present_any = ["input", "save_task"])]
    images: Vec<PathBuf>,
    #[command(flatten)]
    boxes: BoxArgs,
    #[command(flatten)]
    set: SetArgs,
    /// The folder for the data set that --to asks for, or for what --input asks: a file for each shard
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    #[command(flatten)]
    shards: ShardArgs,
    /// Files of what --input asks for [default: json-lines]
    #[arg(long, value_name = "json-lines|parquet", value_parser = parsed::<PredictionFiles>, help_heading = "Very many images")]
    layout: Option<PredictionFiles>,
}

pub(crate) fn run(args: &Predict, global: &Global, out: Output) -> anyhow::Result<()> {
    if let Some(score) = args.min_score
        && !(0. ..=1.).contains(&score)
    {
        return Err(Usage(format!("--min-score: {score} is not between 0 and 1")).into());
    }
    args.shards
        .refuse_alone(&[("--out", args.out.is_some() && !args.set.is_given()), ("--layout", args.layout.is_some())])?;
    if args.shards.are_given() {
        return run_shards(args, global, out);
    }
    let files = expand(&args.images)?;
    args.attention.check(&files)?;
    let set = args.set.plan(args.out.as_deref())?;
    let mut progress = ProgressDisplay::new(global.quiet);
    let asked = PredictRequest { args, files: &files, set: set.as_ref(), out };
    let task = args.model.open(global)?;
    if !args.exemplars.is_empty() && !matches!(task, AnyTask::Detect(_)) {
        return Err(Usage("--exemplars: the task has no boxes".to_owned()).into());
    }
    args.boxes.check(&task)?;
    let shorter = || shorter_sides(&files.images);
    let (task, note) = match task {
        AnyTask::Detect(task) => {
            let (task, note) = args.boxes.apply(task, &shorter)?;
            (AnyTask::Detect(task), note)
        }
        AnyTask::Segment(task) => {
            let (task, note) = args.boxes.apply_to_pixels(task, &shorter)?;
            (AnyTask::Segment(task), note)
        }
        task => (task, None),
    };
    if let Some(note) = note {
        progress.line(&note);
    }
    let mut at = |done, total| progress.at("predicting", done, total, String::new);
    match task {
        AnyTask::Detect(task) => detect(asked, task, &mut at),
        AnyTask::Segment(task) => segment(asked, task, &mut at),
        AnyTask::Multilabel(task) => multilabel(asked, &task, &mut at),
        AnyTask::Classify(task) => classify(asked, task, &mut at),
    }
}

/// What is asked for: of which images, as which data set, told where.
#[derive(Clone, Copy)]
struct PredictRequest<'a> {
    args: &'a Predict,
    files: &'a ImageFiles,
    set: Option<&'a SetPlan<'a>>,
    out: Output,
}

fn classify(asked: PredictRequest, task: TaskModel, progress: &mut dyn FnMut(usize, usize)) -> anyhow::Result<()> {
    let PredictRequest { args, files, set, .. } = asked;
    let names = args.names()?;
    if !task.is_open_vocabulary() {
        refuse_boxes_flags(args)?;
    } else if args.min_score.is_some() && set.is_none() {
        return Err(Usage("--min-score: the task has classes, not boxes".to_owned()).into());
    }
    let task = if names.is_empty() { task } else { task.with_classes(names)? };
    let found = past_unreadable(&files.images, |images| predict(&task, images, &mut *progress))?;
    let least = args.min_score.unwrap_or(LEAST_PROBABILITY);
    let write =
        |set: &SetPlan| set.finish(write_folders(&found.answers, &task.meta().classes, least, set.layout, set.out)?);
    let set = set.map(write).transpose()?;
    let label = |(image, prediction): (&mut Rgb8, &Prediction)| {
        let rect = Rect { x: 0., y: 0., width: image.width as f64, height: image.height as f64 };
        let drawn = DrawnBox { rect, category: 0, score: Some(prediction.probability), crowd: false };
        draw_boxes(image, &[drawn], std::slice::from_ref(&prediction.label));
    };
    finish(asked, set.as_ref(), &found, label, &|picture| task.attention(picture, args.attention.of()), || {
        let rows: Vec<_> = found.answers.iter().map(row).collect();
        table::columns(&["image", "class", "probability", "next"], &rows)
    })
}

impl Predict {
    /// Which shards are looked at, if any are.
    pub(super) fn shards(&self) -> &ShardArgs {
        &self.shards
    }

    /// The classes that are asked for, if any are.
    fn names(&self) -> Result<Vec<String>, Usage> {
        let names: Vec<String> = self.classes.iter().map(|name| name.trim().to_owned()).collect();
        if names.iter().any(String::is_empty) {
            return Err(Usage("--classes: a name is empty".to_owned()));
        }
        Ok(names)
    }

    /// The detector as it is asked for: of which classes, or for what is shown.
    fn detector(&self, task: DetectTask) -> anyhow::Result<DetectTask> {
        let names = self.names()?;
        let task = if names.is_empty() { task } else { task.with_classes(names)? };
        Ok(self.shown(task)?)
    }

    /// The detector for what `--exemplars` show, if any do; kept as `--save-task` says.
    fn shown(&self, task: DetectTask) -> vpt::Result<DetectTask> {
        if self.exemplars.is_empty() {
            return Ok(task);
        }
        let Exemplars { images, names } = read_exemplars(&self.exemplars)?;
        let task = task.with_exemplars(&images, names)?;
        if let Some(file) = &self.save_task {
            task.to_file()?.save(file)?;
        }
        Ok(task)
    }
}

/// Classifies shards, or looks for objects in them, into a folder.
fn run_shards(args: &Predict, global: &Global, out: Output) -> anyhow::Result<()> {
    let Some(folder) = &args.out else { return Err(Usage("--out: a folder is needed with --input".to_owned()).into()) };
    if let Some(save) = &args.save {
        return Err(Usage(format!("--save {}: no pictures are drawn of shards", save.display())).into());
    }
    if let Some(to) = args.attention.to() {
        return Err(Usage(format!("--attention {}: no pictures are drawn of shards", to.display())).into());
    }
    if folder.is_file() {
        return Err(Usage(format!("--out: {} is a file; it is to be a folder", folder.display())).into());
    }
    let model = args.model.path().to_path_buf();
    let run = |backbone: &str, work: &ShardWork| {
        let command = ShardCommand {
            out: folder,
            model: Some(&model),
            backbone,
            output: ShardOutput::Predictions { layout: args.layout.unwrap_or_default() },
            skip_bad_images: args.skip_bad_images,
            carbon: None,
        };
        args.shards.run(&command, work, global, out)
    };
    let task = args.model.open(global)?;
    args.boxes.check(&task)?;
    match task {
        AnyTask::Classify(task) | AnyTask::Multilabel(task) => {
            refuse_boxes_flags(args)?;
            if !args.exemplars.is_empty() {
                return Err(Usage("--exemplars: the task has no boxes".to_owned()).into());
            }
            run(&task.model().backbone().name, &ShardWork::Predict(&task))
        }
        AnyTask::Detect(task) => {
            args.boxes.refuse_auto()?;
            let (task, note) = args.boxes.apply(task, &Vec::new)?;
            if let Some(note) = note {
                ProgressDisplay::new(global.quiet).line(&note);
            }
            let task = args.detector(task)?;
            let detector = ShardDetector { thresholds: task.thresholds(args.min_score), task };
            run(&detector.task.detector().backbone().name, &ShardWork::Detect(&detector))
        }
        AnyTask::Segment(_) => {
            let message = "--input: shards are given classes or boxes; a task of pixels takes images one by one";
            Err(Usage(message.to_owned()).into())
        }
    }
}

/// Flags that make no sense without boxes, or for a data set.
fn refuse_boxes_flags(args: &Predict) -> Result<(), Usage> {
    let flags =
        [("--min-score", args.min_score.is_some() && !args.set.is_given()), ("--classes", !args.classes.is_empty())];
    let given = flags.into_iter().find(|(_, given)| *given);
    given.map_or(Ok(()), |(flag, _)| Err(Usage(format!("{flag}: the task has classes, not boxes"))))
}

fn multilabel(asked: PredictRequest, task: &TaskModel, progress: &mut dyn FnMut(usize, usize)) -> anyhow::Result<()> {
    let PredictRequest { args, files, set, .. } = asked;
    if set.is_some() {
        let message = "--to: the task gives an image any number of classes, for which no layout is written";
        return Err(Usage(message.to_owned()).into());
    }
    refuse_boxes_flags(args)?;
    let found = past_unreadable(&files.images, |images| predict_multilabel(task, images, &mut *progress))?;
    let names = |prediction: &MultilabelPrediction| {
        let named = prediction.labels.iter().map(|l| format!("{} {}", l.label, table::percent(l.probability)));
        if prediction.labels.is_empty() { "-".to_owned() } else { named.collect::<Vec<_>>().join(", ") }
    };
    let draw = |(image, prediction): (&mut Rgb8, &MultilabelPrediction)| {
        let rect = Rect { x: 0., y: 0., width: image.width as f64, height: image.height as f64 };
        draw_boxes(image, &[DrawnBox { rect, category: 0, score: None, crowd: false }], &[names(prediction)]);
    };
    finish(asked, None, &found, draw, &|picture| task.attention(picture, args.attention.of()), || {
        let rows: Vec<_> = found.answers.iter().map(|p| vec![p.image.clone(), names(p)]).collect();
        table::columns(&["image", "classes"], &rows)
    })
}

fn detect(asked: PredictRequest, task: DetectTask, progress: &mut dyn FnMut(usize, usize)) -> anyhow::Result<()> {
    let PredictRequest { args, files, set, .. } = asked;
    let task = args.detector(task)?;
    let thresholds = task.thresholds(args.min_score);
    // A list of doubtful images also tells of boxes that were almost found.
    let least = if set.is_some() { looked_at(&thresholds) } else { thresholds.clone() };
    let mut found = past_unreadable(&files.images, |images| predict_boxes(&task, images, &least, &mut *progress))?;
    let write =
        |set: &SetPlan| set.finish(write_boxes(&found.answers, task.categories(), &thresholds, set.layout, set.out)?);
    let set = set.map(write).transpose()?;
    found.answers = above(&found.answers, &thresholds);
    let draw = |(image, prediction): (&mut Rgb8, &DetectPrediction)| {
        let boxes = prediction.boxes.iter().map(|found| {
            let [x, y, width, height] = found.bbox;
            let rect = Rect { x, y, width, height };
            DrawnBox { rect, category: found.class, score: Some(found.score), crowd: false }
        });
        draw_boxes(image, &boxes.collect::<Vec<_>>(), &task.meta().classes);
    };
    finish(asked, set.as_ref(), &found, draw, &|picture| task.attention(picture, args.attention.of()), || {
        let rows: Vec<_> = found.answers.iter().flat_map(box_rows).collect();
        table::columns(&["image", "class", "score", "left", "top", "width", "height"], &rows)
    })
}

fn segment(asked: PredictRequest, task: SegmentTask, progress: &mut dyn FnMut(usize, usize)) -> anyhow::Result<()> {
    let PredictRequest { args, files, set, .. } = asked;
    refuse_boxes_flags(args)?;
    if args.attention.to().is_some() {
        let message = "--attention: a task of pixels looks at windows of a picture, each by itself";
        return Err(Usage(message.to_owned()).into());
    }
    if let Some(set) = set {
        return segment_set(asked, set, task, progress);
    }
    let names = &task.meta().classes;
    let mut saved = Vec::new();
    let found = past_unreadable(&files.images, |images| {
        saved = Vec::new();
        let masks = if let Some(folder) = &args.save {
            let masks = folder.join("masks");
            std::fs::create_dir_all(&masks).map_err(vpt::Error::io(&masks))?;
            saved = picture_paths(images, folder)?;
            mask_paths(&saved, &masks)
        } else {
            Vec::new()
        };
        predict_masks(&task, images, &mut *progress, |i, mask| {
            let (Some(to), Some(picture)) = (masks.get(i), saved.get(i)) else { return Ok(None) };
            let mut image = decode(&images[i])?;
            draw_mask(&mut image, mask, names);
            write_atomic(picture, &picture_bytes(&image, picture)?)?;
            write_atomic(to, &mask.to_png(task.indices())?)?;
            Ok(Some(to.clone()))
        })
    })?;
    report(asked, None, &found, (&saved, &[]), || shares_of(&found.answers))
}

/// Writes the masks as a data set.
fn segment_set(
    asked: PredictRequest,
    set: &SetPlan,
    task: SegmentTask,
    progress: &mut dyn FnMut(usize, usize),
) -> anyhow::Result<()> {
    let PredictRequest { args, files, .. } = asked;
    if let Some(save) = &args.save {
        return Err(Usage(format!("--save {}: --to writes the masks", save.display())).into());
    }
    let task = task.with_least_probability(args.min_score.unwrap_or(LEAST_PROBABILITY));
    let mut outcome = None;
    let found = past_unreadable(&files.images, |images| {
        let (predictions, written, rows) = write_masks(&task, images, set.layout, set.out, &mut *progress)?;
        outcome = Some(set.finish((written, rows))?);
        Ok(predictions)
    })?;
    report(asked, outcome.as_ref(), &found, (&[], &[]), || shares_of(&found.answers))
}

/// A row for each image with the classes of its pixels.
fn shares_of(predictions: &[SegmentPrediction]) -> String {
    let shares = |prediction: &SegmentPrediction| {
        let told = prediction.classes.iter().map(|c| format!("{} {}", c.label, table::percent(c.share)));
        told.collect::<Vec<_>>().join(", ")
    };
    let rows: Vec<_> = predictions.iter().map(|p| vec![p.image.clone(), shares(p)]).collect();
    table::columns(&["image", "classes by their share of the pixels"], &rows)
}

/// Where the masks go of pictures that are written to `saved`: each under the picture's name with the ending of a PNG file.
fn mask_paths(saved: &[PathBuf], folder: &Path) -> Vec<PathBuf> {
    let mut taken = std::collections::HashSet::new();
    let place = |picture: &PathBuf| {
        let name = picture.file_name().unwrap_or_default();
        let plain = Path::new(name).with_extension("png");
        if taken.insert(plain.clone()) {
            folder.join(plain)
        } else {
            folder.join(format!("{}.png", name.to_string_lossy()))
        }
    };
    saved.iter().map(place).collect()
}

/// Writes the pictures that `--save` asks for, each with `draw` at work on it, and those of `--attention`, and prints the result.
fn finish<P: Serialize>(
    asked: PredictRequest,
    set: Option<&SetOutcome>,
    found: &Answered<Vec<P>>,
    draw: impl Fn((&mut Rgb8, &P)),
    attend: Attend,
    text: impl FnOnce() -> String,
) -> anyhow::Result<()> {
    let args = asked.args;
    let Answered { answers: predictions, images, .. } = found;
    let mut saved = Vec::new();
    if let Some(folder) = &args.save {
        std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        saved = picture_paths(images, folder)?;
        for ((path, to), prediction) in images.iter().zip(&saved).zip(predictions) {
            let mut image = decode(path)?;
            draw((&mut image, prediction));
            write_atomic(to, &picture_bytes(&image, to)?)?;
        }
    }
    let attended = args.attention.write(images, attend)?;
    report(asked, set, found, (&saved, &attended), text)
}

/// Prints the result, which pictures were `saved`, with and without attention, and the data set that was written. Names what there is
/// no answer for.
fn report<P: Serialize>(
    asked: PredictRequest,
    set: Option<&SetOutcome>,
    found: &Answered<Vec<P>>,
    (saved, attended): (&[PathBuf], &[Attended]),
    text: impl FnOnce() -> String,
) -> anyhow::Result<()> {
    let PredictRequest { args, files, out, .. } = asked;
    let Answered { answers: predictions, skipped, .. } = found;
    let saved: Option<Vec<&Path>> = args.save.as_ref().map(|_| saved.iter().map(PathBuf::as_path).collect());
    let passed_by = &files.passed_by;
    let mut result = json!({
        "model": args.model.path(),
        "predictions": predictions,
        "skipped": skipped,
        "passed_by": passed_by,
    });
    if let Some(saved) = saved {
        result["saved"] = json!(saved);
    }
    if args.attention.to().is_some() {
        result["attention"] = json!(attended);
    }
    if let Some(set) = set {
        result["data_set"] = json!(set);
    }
    out.result(&result, || {
        let mut parts = vec![text()];
        if !attended.is_empty() {
            let rows: Vec<_> = attended.iter().map(Attended::row).collect();
            let header = ["image", "attention of", "patches", "prompts", "class token, registers", "file"];
            parts.push(table::columns(&header, &rows));
        }
        parts.extend(set.map(SetOutcome::text));
        parts.join("\n")
    })?;
    name_skipped(skipped, passed_by, args.skip_bad_images)
}

/// Names files that there is no answer for; that is a failure where they are images.
pub(crate) fn name_skipped(skipped: &[SkippedImage], passed_by: &[SkippedImage], is_fine: bool) -> anyhow::Result<()> {
    for SkippedImage { image, error } in passed_by {
        message(&one_line(&format!("{image}: {error}")));
    }
    for SkippedImage { error, .. } in skipped {
        message(&one_line(error));
    }
    let s = if skipped.len() == 1 { "" } else { "s" };
    anyhow::ensure!(
        skipped.is_empty() || is_fine,
        "{} image{s} could not be read (--skip-bad-images makes that no failure)",
        skipped.len()
    );
    Ok(())
}

/// `text` without what could steer a terminal.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn row(prediction: &Prediction) -> Vec<String> {
    let next =
        prediction.top5[1..].iter().map(|guess| format!("{} {}", guess.label, table::percent(guess.probability)));
    let next = next.collect::<Vec<_>>().join(", ");
    vec![prediction.image.clone(), prediction.label.clone(), table::percent(prediction.probability), next]
}

/// A row for each box; one without a class where nothing was found.
fn box_rows(prediction: &DetectPrediction) -> Vec<Vec<String>> {
    if prediction.boxes.is_empty() {
        let mut row = vec!["-".to_owned(); 7];
        row[0].clone_from(&prediction.image);
        return vec![row];
    }
    let row = |found: &vpt::predict::PredictedBox| {
        let mut row = vec![prediction.image.clone(), found.label.clone(), format!("{:.3}", found.score)];
        row.extend(found.bbox.map(|value| format!("{value:.1}")));
        row
    };
    prediction.boxes.iter().map(row).collect()
}
