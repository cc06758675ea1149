//! `vpt data`: look into data sets, convert and make them.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::json;
use vpt::data::boxes::{BoxDataset, BoxLayout, BoxSummary, Converted, ProblemKind, convert};
use vpt::data::examine::{DatasetSummary, SplitCounts};
use vpt::data::masks::{MaskDataset, MaskSummary};
use vpt::data::shapes::{self, Categories, Pairs, ShapesConfig, ShapesTask, Style};
use vpt::data::{Dataset, MultilabelDataset};
use vpt::report::table;

use super::data_audit::{self, AuditArgs};
use super::data_cards::{self, CardList};
use super::data_check::{self, Check};
use super::output::{Output, message};
use super::{Global, Usage, one_of};

/// Look into a data set, check, convert or draw one; list public ones
#[derive(Debug, Args)]
pub(crate) struct Data {
    #[command(subcommand)]
    command: DataCommand,
}

#[derive(Debug, Subcommand)]
enum DataCommand {
    List(CardList),
    Info(Info),
    Check(Check),
    Audit(AuditArgs),
    Convert(Convert),
    /// Generate a data set
    #[command(subcommand)]
    Make(Make),
}

#[derive(Debug, Subcommand)]
enum Make {
    Shapes(Shapes),
}

/// Layout, classes, splits and sizes of a data set, and what is wrong with it; or what is known of a public one
///
/// A path is looked at, every image of it. A name that `vpt data list` has, where nothing lies at that path, prints the card of
/// that public data set: classes, parts, metric, licence, how to lay it out, class names and templates.
///
/// One label each: image folder (train/ val/ test/ or flat; a folder for each class), CSV or TSV of path and label,
/// `split_zhou_*.json`, lists of path and label (`train.json` as the VPT paper's sets have it, or `train.txt`; `classes.txt`
/// may name numbers), IDX (the MNIST family, gz or not), Parquet as on the Hugging Face hub (image, label), image folders with
/// metadata.jsonl or metadata.csv (`file_name`, label), `WebDataset` (tar files with .jpg and .cls, .json or .txt).
///
/// The content hash is over all that training sees: decoded pixels, classes in order, splits. It is the same in any lossless
/// layout, whatever files are called, and the same hash gives the same result: `results.json` of a run holds it too.
///
/// Boxes: COCO (annotations/instances_*.json, train.json, train/_annotations.coco.json), YOLO (data.yaml), Pascal VOC
/// (`Annotations/` and `JPEGImages/`, or images with XML files beside them), CSV of boxes (`_annotations.csv`,
/// `train_labels.csv`, Open Images), Create ML, labelme, CVAT for images, Darknet (obj.data), `_annotations.txt`, and Parquet
/// or metadata.jsonl with objects (bbox, category). Boxes past the border, repeated ids and the like
/// are mended and listed.
///
/// Masks: Pascal VOC (`JPEGImages/`, `SegmentationClass/`), ADE20k (images/training/, annotations/training/), images/ and masks/ with
/// files of the same names; COCO with polygons or runs with --task segment, which also takes Pascal VOC's masks where boxes lie
/// beside them. 255 is of no class.
///
/// Missing splits are drawn by --seed and said. Exit code 1 if an image is missing or cannot be read.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  vpt data info photos/\n  vpt data info coco/ --json\n  vpt data info oxford-pets")]
struct Info {
    /// Folder or file of the data set, `shapes`, or the name of a public data set
    #[arg(value_name = "PATH|shapes|NAME")]
    data: PathBuf,
    /// Take the data set for one of masks, where it is also one of boxes
    #[arg(long, value_name = "TASK", value_parser = ["segment"])]
    task: Option<String>,
}

/// Write a data set of boxes in another layout
///
/// Splits, order, file names, categories and boxes (to a thousandth of a pixel) stay; splits that are missing are drawn by
/// --seed. Images become hard links where possible, else copies. What the layout cannot hold is counted: YOLO has no crowds,
/// which are left out, and no areas; YOLO and VOC have no ids. VOC gets crowds and areas in elements of its own.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  vpt data convert coco/ --to yolo --out yolo/\n  \
                        vpt data convert VOCdevkit/VOC2007 --to coco --out voc-as-coco/")]
struct Convert {
    /// Folder or file of the data set
    #[arg(value_name = "DIR")]
    data: PathBuf,
    /// The layout to write
    #[arg(long, value_name = "LAYOUT", value_parser = one_of::<BoxLayout>(BoxLayout::NAMES))]
    to: BoxLayout,
    /// The folder to fill; new or empty
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

/// Draw pictures of coloured shapes, with train, val and test
///
/// Classification: one object in each image, an image folder with a class for each pair of colour and shape ("red circle").
/// Detection: up to five objects, the COCO layout with a category for each shape, or pair. Segmentation: the same pictures, in
/// the layout of Pascal VOC with a mask for each. The same --seed draws the same bytes.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  vpt data make shapes --out shapes/\n  \
                        vpt data make shapes --out shifted/ --style shifted --images 2048 --seed 7\n  \
                        vpt data make shapes --out boxes/ --task detect --images 300 --size 256\n  \
                        vpt data make shapes --out small/ --task detect --size 1024 --object-size 8 16 --objects 20\n  \
                        vpt data make shapes --out masks/ --task segment --images 300 --size 128")]
struct Shapes {
    /// The folder to fill; new or empty
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// What the data is for
    #[arg(long, value_name = "TASK", default_value = "classify", value_parser = one_of::<ShapesTask>(ShapesTask::NAMES))]
    task: ShapesTask,
    /// Images in all: about five eighths train, an eighth val, a quarter test
    #[arg(long, allow_negative_numbers = true, value_name = "N", default_value_t = ShapesConfig::default().images)]
    images: usize,
    /// Side of the images, in pixels
    #[arg(long, allow_negative_numbers = true, value_name = "PIXELS", default_value_t = ShapesConfig::default().size)]
    size: usize,
    /// As clip-nano saw them in pre-training, or shifted: turned, wobbly, pale, over hatching and noise
    #[arg(long, value_name = "STYLE", default_value = "plain", value_parser = one_of::<Style>(Style::NAMES))]
    style: Style,
    /// Colour-shape pairs: all 64, the 48 that clip-nano has seen, or the 16 that it has not
    #[arg(long, value_name = "PAIRS", default_value = "all", value_parser = one_of::<Pairs>(Pairs::NAMES))]
    pairs: Pairs,
    /// What the categories of boxes and masks are: the eight shapes, or pairs of a colour and a shape [default: shapes]
    #[arg(long, value_name = "WHAT", value_parser = one_of::<Categories>(Categories::NAMES))]
    categories: Option<Categories>,
    /// Diameter of the objects in pixels, at least and at most, for boxes and masks: small ones in large images [default: a sixth of the
    /// image and more]
    #[arg(long, value_name = "PIXELS", num_args = 2, allow_negative_numbers = true)]
    object_size: Vec<usize>,
    /// Most objects in an image, for boxes and masks [default: 5]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    objects: Option<usize>,
}

pub(crate) fn run(args: Data, global: &Global, out: Output) -> anyhow::Result<()> {
    match args.command {
        DataCommand::List(args) => data_cards::list(&args, out),
        DataCommand::Info(args) if data_cards::is_card(&args.data) => data_cards::info(&args.data, out),
        DataCommand::Info(args) if is_of_masks(&args.data, args.task.as_deref()) => mask_info(&args, global, out),
        DataCommand::Info(args) if BoxDataset::recognize(&args.data).is_some() => box_info(&args, global, out),
        DataCommand::Info(args) => {
            let summary = if MultilabelDataset::recognize(&args.data).is_some() {
                MultilabelDataset::open(&args.data, global.seed(), false)?.summary()
            } else {
                Dataset::open(&args.data, global.seed())
                    .map_err(|error| data_cards::or_card(error, &args.data))?
                    .summary()
            };
            out.result(&summary, || describe(&summary))?;
            let bad = summary.unreadable.len();
            anyhow::ensure!(bad == 0, "{}: {bad} unreadable images", args.data.display());
            Ok(())
        }
        DataCommand::Check(args) => data_check::run(&args, global, out),
        DataCommand::Audit(args) => data_audit::run(&args, global, out),
        DataCommand::Convert(args) => convert_boxes(&args, global, out),
        DataCommand::Make(Make::Shapes(args)) => make_shapes(&args, global, out),
    }
}

fn box_info(args: &Info, global: &Global, out: Output) -> anyhow::Result<()> {
    let summary = BoxDataset::open(&args.data, global.seed())?.summary();
    out.result(&summary, || describe_boxes(&summary))?;
    let lost = summary.problems.iter().filter(|problem| problem.loses_image()).count();
    let bad = lost + summary.unreadable.len();
    anyhow::ensure!(bad == 0, "{}: {bad} missing or unreadable images", args.data.display());
    Ok(())
}

/// Whether `data` is meant as a data set of masks: it is said, or it is nothing else.
pub(super) fn is_of_masks(data: &Path, task: Option<&str>) -> bool {
    task.is_some() || (MaskDataset::lies_in_folders(data) && BoxDataset::recognize(data).is_none())
}

fn mask_info(args: &Info, global: &Global, out: Output) -> anyhow::Result<()> {
    let summary = MaskDataset::open(&args.data, global.seed())?.summary();
    out.result(&summary, || describe_masks(&summary))?;
    let bad = summary.faults.len();
    anyhow::ensure!(bad == 0, "{}: {bad} images or masks that cannot be used", args.data.display());
    Ok(())
}

fn convert_boxes(args: &Convert, global: &Global, out: Output) -> anyhow::Result<()> {
    let data = BoxDataset::open(&args.data, global.seed())?;
    let converted = convert(&data, args.to, &args.out)?;
    let problems = data.problems.iter().filter(|problem| problem.kind != ProblemKind::Crowd).count();
    if problems > 0 && !global.quiet {
        let (s, data) = (if problems == 1 { "" } else { "s" }, args.data.display());
        message(&format!("{problems} problem{s} in {data}; `vpt data check` lists them"));
    }
    let Converted { images, objects, categories, lost } = converted;
    let result = json!({
        "data": args.data,
        "from": data.layout,
        "to": args.to,
        "out": args.out,
        "split_note": data.split_note,
        "images": images,
        "objects": objects,
        "categories": categories,
        "lost": lost,
        "problems": problems,
    });
    out.result(&result, || {
        let mut text = table::pairs(&[
            ("layout", format!("{} from {}", args.to.title(), data.layout.title())),
            ("splits", data.split_note.clone()),
            ("images", total(images)),
            ("objects", total(objects)),
            ("categories", categories.to_string()),
            ("out", args.out.display().to_string()),
        ]);
        let counts = [(lost.crowds, "crowds"), (lost.areas, "areas other than the boxes'")];
        let counts = counts.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{n} {what}"));
        let ids = [(lost.category_ids, "category ids"), (lost.ids, "image and object ids")];
        let ids = ids.iter().filter(|(is_lost, _)| *is_lost).map(|(_, what)| (*what).to_owned());
        let lost: Vec<String> = counts.chain(ids).collect();
        if !lost.is_empty() {
            text += &table::pairs(&[("not held by it", lost.join(", "))]);
        }
        text
    })
}

fn make_shapes(args: &Shapes, global: &Global, out: Output) -> anyhow::Result<()> {
    let Shapes { images, size, style, pairs, task, categories, .. } = *args;
    if task == ShapesTask::Classify && categories.is_some() {
        return Err(Usage(
            "--categories: only with --task detect or segment; the classes of --task classify are pairs".into(),
        )
        .into());
    }
    let scattered = [("--object-size", !args.object_size.is_empty()), ("--objects", args.objects.is_some())];
    if let (ShapesTask::Classify, Some((flag, _))) = (task, scattered.iter().find(|(_, given)| *given)) {
        return Err(Usage(format!("{flag}: only with --task detect or segment")).into());
    }
    let categories = categories.unwrap_or(Categories::Shapes);
    let object_size = <[usize; 2]>::try_from(&args.object_size[..]).ok();
    let objects = args.objects.unwrap_or(ShapesConfig::default().objects);
    let config =
        ShapesConfig { images, seed: global.seed(), style, pairs, task, categories, size, object_size, objects };
    let [train, val, test] = match task {
        ShapesTask::Classify => shapes::write_folder(&args.out, &config)?,
        ShapesTask::Detect => shapes::write_coco(&args.out, &config)?,
        ShapesTask::Segment => shapes::write_masks(&args.out, &config)?,
    };
    let result = json!({
        "out": args.out,
        "task": task,
        "images": { "train": train, "val": val, "test": test },
        "size": size,
        "style": style,
        "pairs": pairs,
        "seed": config.seed,
    });
    out.result(&result, || {
        format!("{train} train, {val} val and {test} test images of {size}x{size} pixels in {}", args.out.display())
    })
}

/// Most problems or unreadable images that are listed.
const LISTED: usize = 20;

fn size(range: Option<[usize; 2]>) -> String {
    match range {
        Some([least, most]) if least == most => least.to_string(),
        Some([least, most]) => format!("{least} to {most}"),
        None => "-".to_owned(),
    }
}

fn total(SplitCounts { train, val, test }: SplitCounts) -> String {
    format!("{} ({train} train, {val} val, {test} test)", train + val + test)
}

fn listed(title: &str, all: impl ExactSizeIterator<Item = String>) -> String {
    let count = all.len();
    let mut lines = vec![format!("\n{title}")];
    lines.extend(all.take(LISTED));
    if count > LISTED {
        lines.push(format!("… and {} more", count - LISTED));
    }
    lines.join("\n") + "\n"
}

fn describe_boxes(summary: &BoxSummary) -> String {
    let range = |range: Option<[f64; 3]>| match range {
        Some([least, median, most]) => format!("{least:.1} to {most:.1} pixels, median {median:.1}"),
        None => "-".to_owned(),
    };
    let sizes = summary.sizes;
    let mut text = table::pairs(&[
        ("name", summary.name.clone()),
        ("layout", summary.layout.title().to_owned()),
        ("splits", summary.split_note.clone()),
        ("images", total(summary.images)),
        ("without objects", total(summary.empty_images)),
        ("width", format!("{} pixels", size(summary.width))),
        ("height", format!("{} pixels", size(summary.height))),
        ("objects", total(summary.objects)),
        ("crowds", total(summary.crowds)),
        ("by area", format!("{} small, {} medium, {} large", sizes.small, sizes.medium, sizes.large)),
        ("box width", range(summary.box_width)),
        ("box height", range(summary.box_height)),
        ("fingerprint", summary.fingerprint.clone()),
    ]);
    let rows: Vec<Vec<String>> = summary
        .categories
        .iter()
        .map(|category| {
            let counts = [category.objects, category.images].map(|c| [c.train, c.val, c.test].map(|n| n.to_string()));
            [category.id.to_string(), category.name.clone()].into_iter().chain(counts.into_iter().flatten()).collect()
        })
        .collect();
    text.push('\n');
    let header = ["id", "category", "train", "val", "test", "images: train", "val", "test"];
    text += &table::columns(&header, &rows);
    if !summary.problems.is_empty() {
        let counts = summary.problem_counts.iter();
        let rows: Vec<Vec<String>> =
            counts.map(|c| vec![c.kind.to_string(), c.remedy.to_string(), c.count.to_string()]).collect();
        text.push('\n');
        text += &table::columns(&["problem", "what was done", "times"], &rows);
        text += &listed("problems", summary.problems.iter().map(ToString::to_string));
    }
    if !summary.unreadable.is_empty() {
        text += &listed("unreadable", summary.unreadable.iter().map(|image| image.error.clone()));
    }
    text
}

fn describe_masks(summary: &MaskSummary) -> String {
    let mut text = table::pairs(&[
        ("name", summary.name.clone()),
        ("layout", summary.layout.title().to_owned()),
        ("splits", summary.split_note.clone()),
        ("images", total(summary.images)),
        ("width", format!("{} pixels", size(summary.width))),
        ("height", format!("{} pixels", size(summary.height))),
        ("of no class", format!("{} of all pixels", table::percent(summary.ignored))),
        ("fingerprint", summary.fingerprint.clone()),
    ]);
    let rows: Vec<Vec<String>> = summary
        .classes
        .iter()
        .map(|class| {
            let SplitCounts { train, val, test } = class.images;
            let counts = [train, val, test].map(|n| n.to_string());
            let name = [class.index.to_string(), class.name.clone(), table::percent(class.share)];
            name.into_iter().chain(counts).collect()
        })
        .collect();
    text.push('\n');
    text += &table::columns(&["index", "class", "pixels", "images: train", "val", "test"], &rows);
    for (title, all) in [("cannot be used", &summary.faults), ("to be known", &summary.notes)] {
        if !all.is_empty() {
            text += &listed(title, all.iter().map(ToString::to_string));
        }
    }
    text
}

fn describe(summary: &DatasetSummary) -> String {
    let mut text = table::pairs(&[
        ("name", summary.name.clone()),
        ("layout", summary.layout.name().replace('_', "")),
        ("splits", summary.split_note.clone()),
        ("images", total(summary.images)),
        ("width", format!("{} pixels", size(summary.width))),
        ("height", format!("{} pixels", size(summary.height))),
        ("content hash", summary.content_hash.clone().unwrap_or_else(|| "-".to_owned())),
    ]);
    let rows: Vec<Vec<String>> = summary
        .classes
        .iter()
        .map(|class| {
            let SplitCounts { train, val, test } = class.images;
            [train, val, test].iter().fold(vec![class.name.clone()], |mut row, n| {
                row.push(n.to_string());
                row
            })
        })
        .collect();
    text.push('\n');
    text += &table::columns(&["class", "train", "val", "test"], &rows);
    if !summary.unreadable.is_empty() {
        text += &listed("unreadable", summary.unreadable.iter().map(|image| image.error.clone()));
    }
    text
}
