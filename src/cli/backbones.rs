//! `vpt backbones`: what is known, where it was found, what it is, and how it comes from the hub.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::json;
use vpt::backbone::golden::{GoldenReport, golden_of};
use vpt::backbone::info::{self, BackboneInfo};
use vpt::backbone::registry::{self, BackboneRow};
use vpt::backbone::spec::TowerSpec;
use vpt::backbone::{Backbone, OpenOptions};
use vpt::image::decode;
use vpt::report::table;

use super::output::Output;
use super::{Global, fetch};

/// List, describe, fetch and verify backbones
#[derive(Debug, Args)]
pub(crate) struct Backbones {
    #[command(subcommand)]
    command: BackbonesCommand,
}

#[derive(Debug, Subcommand)]
enum BackbonesCommand {
    /// Every known backbone and where it was found
    #[command(after_help = "Example:\n  vpt backbones list --weights-dir models/")]
    List {
        /// Folder to look in, before the local Hugging Face cache
        #[arg(long, value_name = "DIR")]
        weights_dir: Option<PathBuf>,
    },
    /// Family, sizes, files and hash of one backbone
    ///
    /// The hash is what task files hold to know their backbone by: BLAKE3 over the weight files.
    #[command(after_help = "Example:\n  vpt backbones info clip-nano")]
    Info {
        /// Known name, `owner/name[@revision]` of a repository, or folder in the Hugging Face layout
        #[arg(value_name = "NAME|DIR")]
        backbone: String,
        /// Folder to look in, before the local Hugging Face cache
        #[arg(long, value_name = "DIR")]
        weights_dir: Option<PathBuf>,
    },
    /// Fetch a backbone from the Hugging Face hub
    ///
    /// The files go into the Hugging Face cache (`HF_HUB_CACHE`, `HF_HOME`), where every command and other tools find them. A
    /// fetch that was cut off goes on where it ended; lengths and hashes are checked. No other command opens a connection.
    ///
    /// `HF_ENDPOINT` names another hub, `HF_TOKEN` says who asks where a repository is private or gated, `HTTPS_PROXY` and
    /// `NO_PROXY` lead through a proxy, `SSL_CERT_FILE` names certificates to trust, `HF_HUB_OFFLINE=1` forbids it all.
    #[command(
        after_help = "Examples:\n  vpt backbones fetch dinov2-small\n  vpt backbones fetch google/vit-base-patch16-384@main"
    )]
    Fetch {
        /// Known name or `owner/name` of a repository; `@revision` behind it is a branch, tag or commit
        #[arg(value_name = "NAME")]
        backbone: String,
    },
    /// Check that what was fetched is still whole
    ///
    /// Every file of the backbone in the Hugging Face cache is read and compared with the hash in its name. Exit code 1 if
    /// something is damaged or missing.
    ///
    /// With --image the backbone computes what it says of one well-known photo, COCO's 000000039769
    /// (<http://images.cocodataset.org/val2017/000000039769.jpg>), and that is compared with values published for it: of
    /// clip-vit-b32, siglip-b16, dinov2-base and four sizes of `DINOv3`.
    #[command(
        after_help = "Examples:\n  vpt backbones verify dinov2-small\n  vpt backbones verify dinov2-base --image 000000039769.jpg"
    )]
    Verify {
        /// Known name or `owner/name[@revision]` of a repository
        #[arg(value_name = "NAME")]
        backbone: String,
        /// COCO's photo 000000039769, to compare what is computed with what is published
        #[arg(long, value_name = "FILE")]
        image: Option<PathBuf>,
        /// Folder to look in for the backbone of --image, before the local Hugging Face cache
        #[arg(long, value_name = "DIR", requires = "image")]
        weights_dir: Option<PathBuf>,
    },
}

pub(crate) fn run(args: Backbones, global: &Global, out: Output) -> anyhow::Result<()> {
    match args.command {
        BackbonesCommand::List { weights_dir } => {
            let rows = registry::list(weights_dir.as_deref());
            out.result(&json!({ "backbones": rows }), || list(&rows))
        }
        BackbonesCommand::Info { backbone, weights_dir } => {
            let info = info::info(&backbone, weights_dir.as_deref())?;
            out.result(&info, || describe(&info))
        }
        BackbonesCommand::Fetch { backbone } => fetch::fetch(&backbone, global.quiet, out),
        BackbonesCommand::Verify { backbone, image: None, .. } => fetch::verify(&backbone, out),
        BackbonesCommand::Verify { backbone, image: Some(photo), weights_dir } => {
            compare(&backbone, &photo, weights_dir, global, out)
        }
    }
}

/// Holds what a backbone says of the photo against what is published.
fn compare(name: &str, photo: &Path, weights_dir: Option<PathBuf>, global: &Global, out: Output) -> anyhow::Result<()> {
    let location = registry::locate(name, weights_dir.as_deref())?;
    let repo = location.known.map_or(location.name.as_str(), |known| known.repo);
    let golden = golden_of(repo)?;
    let open = OpenOptions { weights_dir, ..OpenOptions::default() };
    let backbone = Backbone::open(name, &open)?;
    let report = golden.compare(&backbone, &decode(photo)?, global.threads())?;
    out.result(&report, || describe_golden(&report))?;
    anyhow::ensure!(
        report.ok,
        "{name}: values differ from the published ones by up to {:.3}: other weights, another photo, or read wrongly",
        report.largest
    );
    Ok(())
}

fn describe_golden(report: &GoldenReport) -> String {
    let what = |i: usize| report.texts.get(i).cloned().unwrap_or_else(|| format!("feature {i}"));
    let row = |i: usize| vec![what(i), format!("{:.4}", report.published[i]), format!("{:.4}", report.computed[i])];
    let rows: Vec<_> = (0..report.published.len().min(report.computed.len())).map(row).collect();
    let table = table::columns(&["of the photo", "published", "computed"], &rows);
    format!("{table}\n{} by {} of transformers; largest difference {:.4}", report.repo, report.source, report.largest)
}

fn list(rows: &[BackboneRow]) -> String {
    let row = |row: &BackboneRow| {
        let place = row.path.clone().unwrap_or_else(|| "not found".to_owned());
        vec![row.name.to_owned(), row.family.to_string(), row.repo.to_owned(), place]
    };
    table::columns(&["name", "family", "hub repository", "where"], &rows.iter().map(row).collect::<Vec<_>>())
}

fn describe(info: &BackboneInfo) -> String {
    let spec = &info.spec;
    let tower = |t: &TowerSpec| {
        let gated = if t.gated { ", gated" } else { "" };
        format!("{} blocks, width {}, {} heads, MLP {}{gated}", t.depth, t.width, t.heads, t.mlp)
    };
    let (side, patch) = (spec.image_size, spec.patch_size);
    let read = spec.grid() * patch;
    let read = if read == side { String::new() } else { format!(", {read}x{read} pixels read") };
    let mut rows = vec![("name", info.name.clone())];
    rows.extend(info.repo.map(|repo| ("hub repository", repo.to_owned())));
    rows.extend([
        ("where", info.path.clone()),
        ("family", spec.family.to_string()),
        ("image tower", tower(&spec.vision)),
        ("images", format!("{side}x{side} pixels, patches of {patch}x{patch}{read}")),
    ]);
    rows.extend((!spec.family.note.is_empty()).then(|| ("note", spec.family.note.to_owned())));
    rows.extend(spec.rotary.map(|_| ("positions", "rotary".to_owned())));
    rows.extend((spec.registers > 0).then(|| ("tokens before the patches", spec.prefix_tokens().to_string())));
    rows.extend(spec.projection.map(|width| ("projection", width.to_string())));
    rows.extend(
        spec.text.as_ref().map(|text| ("text tower", format!("{}, {} tokens", tower(&text.tower), text.context))),
    );
    rows.extend([("parameters", table::count(info.parameters)), ("stored as", info.dtypes.join(", "))]);
    rows.extend(info.files.iter().map(|file| ("file", format!("{}, {}", file.name, table::bytes(file.bytes)))));
    rows.push(("BLAKE3", info.hash.clone()));
    rows.extend(info.identity.as_ref().map(|identity| ("identity", identity.hash.clone())));
    table::pairs(&rows)
}
