//! `vpt cache`: what is kept of frozen features, and away with it.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::json;
use vpt::feature_cache::{self, Contents, FeatureCache};
use vpt::report::table;

use super::Usage;
use super::output::Output;

/// Look into or empty the cache of features
///
/// Methods that see frozen features only (linear, zero-shot, ncm, zs-lp, clap, tip-adapter, tip-adapter-f) compute the
/// features of an image once, whatever the run. They are found by the backbone's weights, the preprocessing and the content of
/// the image, so a cache never changes a result. What was not used for longest goes when there is more than `VPT_CACHE_GB`
/// (4 by default) gigabytes of it.
#[derive(Debug, Args)]
pub(crate) struct Cache {
    #[command(subcommand)]
    command: CacheCommand,
}

#[derive(Debug, Subcommand)]
enum CacheCommand {
    /// Say where the cache is and how much it holds
    Info(Folder),
    /// Remove everything from the cache
    Clear(Folder),
}

#[derive(Debug, Args)]
struct Folder {
    /// The cache's folder [default: `VPT_CACHE`, else vpt in the system's folder for caches]
    #[arg(long, value_name = "DIR")]
    cache_dir: Option<PathBuf>,
}

pub(crate) fn run(args: &Cache, out: Output) -> anyhow::Result<()> {
    let (CacheCommand::Info(folder) | CacheCommand::Clear(folder)) = &args.command;
    let root = folder.cache_dir.clone().or_else(feature_cache::default_folder);
    let root = root.ok_or_else(|| Usage("--cache-dir: this system has no folder for caches; name one".to_owned()))?;
    let cache = FeatureCache::new(root, feature_cache::limit());
    let cleared = matches!(args.command, CacheCommand::Clear(_));
    let Contents { bytes, files, features } = if cleared { cache.clear()? } else { cache.contents()? };
    let (folder, limit) = (cache.root().display().to_string(), cache.limit());
    let value = json!({
        "folder": folder, "features": features, "files": files, "bytes": bytes, "limit_bytes": limit, "cleared": cleared,
    });
    out.result(&value, || {
        let what = format!("{} in {} files, {}", table::count(features), table::count(files), table::bytes(bytes));
        let title = if cleared { "removed features" } else { "features" };
        table::pairs(&[("folder", folder.clone()), (title, what), ("limit", table::bytes(limit))])
    })
}
