//! `vpt data audit`: what only somebody who looks at the pictures of a data set would find.

use std::path::PathBuf;

use clap::Args;
use vpt::audit::{Audit, AuditConfig, DoubtfulLabel, audit};
use vpt::backbone::{Compute, OpenOptions};
use vpt::feature_cache;
use vpt::report::table;

use super::Global;
use super::output::Output;
use super::progress::ProgressDisplay;

/// Findings of a kind that are printed.
const LISTED: usize = 10;

/// Find labels that may be wrong, pictures that are there twice, outliers and classes that are alike, by the features of a backbone
///
/// Doubtful labels: a linear probe that has not seen an image (5-fold cross-validation) and the labels of its nearest neighbours
/// together give its label next to nothing and another class nearly all. Duplicates: the same picture, maybe written again, scaled,
/// brightened or mirrored, within a part or across parts. Outliers: farther from their neighbours than nearly all others.
///
/// Writes audit.html, which shows the pictures, and audit.csv (kind, path, box, part, label, suggestion, score, `other_path`,
/// `other_box`, `other_part`, `other_label`), a row for each finding. They are opinions: look before you change a label. `vpt data check` finds
/// damaged files and the like.
///
/// Takes every layout. Of data sets of boxes each box of 8 pixels or more is looked at as an image; where images have several
/// classes, each class by itself (suggestions are `+class` or `-class`). Missing parts are drawn by --seed and said. Features are kept in the
/// cache. Exit code 1 if an image cannot be read; it is left out.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  vpt data audit photos/ --backbone dinov2-small\n  vpt data audit cells/ --backbone clip-vit-b32 --out cells-audit --json"
)]
pub(super) struct AuditArgs {
    /// Folder or file of the data set, or `shapes`
    #[arg(value_name = "PATH|shapes")]
    data: PathBuf,
    /// Known backbone or folder in the Hugging Face layout; clip-nano knows drawn shapes alone
    #[arg(long, value_name = "NAME|DIR", default_value = "clip-nano")]
    backbone: String,
    /// Folder to look for known backbones in, before the local Hugging Face cache
    #[arg(long, value_name = "DIR")]
    weights_dir: Option<PathBuf>,
    /// Side of the images the backbone sees, in pixels; a multiple of its patch size [default: the backbone's]
    #[arg(long, allow_negative_numbers = true, value_name = "PIXELS")]
    image_size: Option<usize>,
    /// The folder to fill; new or empty [default: audits/NAME-N]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Folder of the cache of features [default: `VPT_CACHE`, else vpt in the system's folder for caches]
    #[arg(long, value_name = "DIR")]
    cache_dir: Option<PathBuf>,
    /// Compute all features anew, and keep none
    #[arg(long, conflicts_with = "cache_dir")]
    no_cache: bool,
}

pub(super) fn run(args: &AuditArgs, global: &Global, out: Output) -> anyhow::Result<()> {
    let cache_dir = args.cache_dir.clone().or_else(feature_cache::default_folder);
    let config = AuditConfig {
        data: args.data.clone(),
        backbone: args.backbone.clone(),
        options: OpenOptions {
            weights_dir: args.weights_dir.clone(),
            image_size: args.image_size,
            precision: global.precision(),
            max_memory: global.max_memory(),
            compute: Compute::default(),
        },
        cache_dir: cache_dir.filter(|_| !args.no_cache),
        threads: global.threads(),
        seed: global.seed(),
        out: args.out.clone(),
    };
    let mut progress = ProgressDisplay::new(global.quiet);
    let Some(found) = audit(&config, &mut progress)? else { return Ok(()) };
    progress.clear();
    progress.line(&format!("{}: {}", found.data, found.split_note));
    out.result(&found, || describe(&found))?;
    let bad = found.unreadable.len();
    for image in found.unreadable.iter().take(LISTED) {
        progress.line(&image.error);
    }
    let s = if bad == 1 { "" } else { "s" };
    anyhow::ensure!(bad == 0, "{}: {bad} unreadable image{s}, left out", args.data.display());
    Ok(())
}

fn listed(lines: impl ExactSizeIterator<Item = String>, what: &str) -> String {
    let more = lines.len().saturating_sub(LISTED);
    let rest = (more > 0).then(|| format!("… and {more} more {what}"));
    lines.take(LISTED).chain(rest).map(|line| line + "\n").collect()
}

fn describe(found: &Audit) -> String {
    let doubtful = found.doubtful.iter().map(|doubt| {
        let DoubtfulLabel { image, suggestion, likely, .. } = doubt;
        format!("{}: '{}', or {suggestion}? ({})", image.path, image.label, table::percent(f64::from(*likely)))
    });
    let across = found.duplicates.iter().filter(|pair| pair.across_parts);
    let twice: Vec<String> = across
        .map(|pair| {
            let (a, b) = (&pair.first, &pair.second);
            format!("{}: in {}, the same as {} in {}", a.path, a.part, b.path, b.part)
        })
        .collect();
    let across = twice.len();
    let mut text = listed(doubtful, "doubtful labels") + &listed(twice.into_iter(), "pictures in two parts");
    if !text.is_empty() {
        text.push('\n');
    }
    let things = if found.boxes { "boxes" } else { "images" };
    let alike = found.alike.iter().take(3);
    let alike: Vec<String> = alike
        .map(|pair| format!("{} and {} ({})", pair.classes[0], pair.classes[1], table::percent(pair.share)))
        .collect();
    let none = |text: String| if text.is_empty() { "-".to_owned() } else { text };
    let mut rows = vec![
        ("data", format!("{}: {} {things}, {} classes", found.data, found.images, found.classes)),
        ("backbone", found.backbone.clone()),
        ("doubtful labels", found.doubtful.len().to_string()),
        ("there twice", format!("{} pairs, {across} across parts", found.duplicates.len())),
        ("outliers", found.outliers.len().to_string()),
        ("most alike", none(alike.join(", "))),
    ];
    if !found.not_judged.is_empty() {
        let names = found.not_judged.iter().take(LISTED).map(String::as_str).collect::<Vec<_>>().join(", ");
        rows.push(("labels not judged", format!("{} classes with too few {things}: {names}", found.not_judged.len())));
    }
    if found.too_small > 0 {
        rows.push(("left out", format!("{} boxes of less than 8 pixels", found.too_small)));
    }
    rows.extend([
        ("time", table::seconds(found.wall_s)),
        ("page", found.page.display().to_string()),
        ("table", found.table.display().to_string()),
    ]);
    text + &table::pairs(&rows)
}
