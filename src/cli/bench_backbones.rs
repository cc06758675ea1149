//! `vpt bench backbones`: flags to a comparison of backbones, and its table.

use std::path::PathBuf;

use anyhow::{Context, anyhow};
use clap::Args;
use vpt::backbone::registry;
use vpt::bench::backbones::{BackbonesConfig, BackbonesOutcome, backbones};
use vpt::bench::few_shot::{GridConfig, GridMethod, GridSchedule, Mode, TextFile};
use vpt::config::RunConfig;
use vpt::feature_cache;

use super::few_shot::Processes;
use super::output::Output;
use super::{Global, Interrupted};

const EXAMPLES: &str = "\
Examples:
  vpt bench backbones --data photos/ --out which             every backbone that is here
  vpt bench backbones --data photos/ --backbones clip-nano,dinov2-small,models/my-vit --shots 4 --out which";

/// Which backbone suits your images: nearest class means, a linear probe and zero-shot on each
///
/// Every backbone that is found here, or each of --backbones, gets the same images: k a class for each seed, drawn as `vpt bench
/// few-shot` draws them, and the whole test set. The table has accuracies, the differences to the best backbone of a column with
/// paired 95 % intervals, the time of an image's forward pass, and the memory of the largest job. Zero-shot stands where a backbone
/// has a text tower. What is done is kept in --out, a grid of `vpt bench few-shot` for each backbone: the same command goes on
/// where it was stopped (Ctrl-C: exit code 75). A backbone that cannot be opened is reported, and the exit code is 1.
///
/// Writes backbones.json and backbones.md to --out.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct BackbonesArgs {
    /// Data set of images with a class each, as for `vpt train`; parts that it lacks are made by --seed
    #[arg(long, value_name = "PATH")]
    data: String,
    /// Known backbones or folders [default: every known one that is found here; see `vpt backbones list`]
    #[arg(long, value_name = "NAME|DIR[,…]", value_delimiter = ',')]
    backbones: Vec<String>,
    /// Folder to look for known backbones in, before the local Hugging Face cache
    #[arg(long, value_name = "DIR")]
    weights_dir: Option<PathBuf>,
    /// Methods, as for `vpt bench few-shot`
    #[arg(long, value_name = "METHOD[,METHOD…]", value_delimiter = ',', default_value = "ncm,linear,zero-shot")]
    methods: Vec<String>,
    /// Images a class to learn from
    #[arg(long, value_name = "K", default_value_t = 16, allow_negative_numbers = true)]
    shots: usize,
    /// Seeds of draws and training
    #[arg(long, value_name = "N[,N…]", value_delimiter = ',', default_value = "1,2,3", allow_negative_numbers = true)]
    seeds: Vec<u64>,
    /// The folder of the comparison
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Class names for zero-shot: one a line or a JSON list, in class order [default: the data's, with spaces for _]
    #[arg(long, value_name = "FILE")]
    classnames: Option<PathBuf>,
    /// Templates with {} or {c} for the class name, for zero-shot [default: "a photo of a {}."]
    #[arg(long, value_name = "FILE")]
    templates: Option<PathBuf>,
    /// The public data set whose card names the classes and has the templates: auto recognises it, none leaves it at the data's names
    /// [default: auto]
    #[arg(long, value_name = "NAME|auto|none")]
    dataset_card: Option<String>,
    /// Side of the images the backbones see, in pixels [default: each backbone's own]
    #[arg(long, value_name = "PIXELS", allow_negative_numbers = true)]
    image_size: Option<usize>,
    /// Folder that keeps features of frozen backbones; see `vpt cache` [default: `VPT_CACHE`, else vpt in the system's folder for
    /// caches]
    #[arg(long, value_name = "DIR")]
    cache_dir: Option<PathBuf>,
    /// Neither look for features in the cache nor keep any
    #[arg(long, conflicts_with = "cache_dir")]
    no_cache: bool,
}

pub(crate) fn run(args: BackbonesArgs, global: &Global, out: Output) -> anyhow::Result<()> {
    let config = args.config(global)?;
    let mut worker = Processes::of_backbones(global).context("signals")?;
    let outcome = backbones(&config, &mut worker)?;
    worker.clear();
    let BackbonesOutcome::Finished(table) = outcome else { return Err(Interrupted::Grid.into()) };
    out.result(&table, || table.console())?;
    match table.failures.len() {
        0 => Ok(()),
        failed => Err(anyhow!("failed: {failed}; the same command tries them again")),
    }
}

impl BackbonesArgs {
    fn config(self, global: &Global) -> anyhow::Result<BackbonesConfig> {
        let found = || {
            let rows = registry::list(self.weights_dir.as_deref()).into_iter().filter(|row| row.found);
            rows.map(|row| row.name.to_owned()).collect()
        };
        let backbones = if self.backbones.is_empty() { found() } else { self.backbones };
        let methods: Vec<GridMethod> = self.methods.iter().map(|name| name.parse()).collect::<vpt::Result<_>>()?;
        let text = |path: Option<PathBuf>| path.map(|path| TextFile { data: None, path }).into_iter().collect();
        let base = RunConfig {
            weights_dir: self.weights_dir,
            seed: global.seed(),
            threads: Some(global.threads()),
            precision: global.precision(),
            max_memory: global.max_memory(),
            image_size: self.image_size,
            dataset_card: self.dataset_card,
            cache_dir: if self.no_cache { None } else { self.cache_dir.or_else(feature_cache::default_folder) },
            ..RunConfig::default()
        };
        let grid = GridConfig {
            base,
            data: vec![self.data],
            methods,
            shots: vec![self.shots],
            seeds: self.seeds,
            mode: Mode::FewShot,
            targets: Vec::new(),
            schedule: GridSchedule::Published,
            classnames: text(self.classnames),
            templates: text(self.templates),
            draws: None,
            out: self.out,
            keep_runs: false,
        };
        Ok(BackbonesConfig { backbones, grid })
    }
}
