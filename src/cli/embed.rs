//! `vpt embed`: features of images and texts as a file of safetensors or of NumPy.

use std::path::PathBuf;

use clap::{ArgGroup, Args};
use serde_json::json;
use vpt::backbone::Backbone;
use vpt::energy::EnergyMeter;
use vpt::infer::embed::{ArrayFile, EmbeddingSource, Embeddings};
use vpt::infer::inputs::{Answered, ImageFiles, expand, past_unreadable};
use vpt::model::TaskModel;
use vpt::shards::{RowType, ShardLayout, ShardOutput, ShardWork};

use super::carbon::CarbonArgs;
use super::output::{Output, message};
use super::predict::name_skipped;
use super::progress::ProgressDisplay;
use super::shards::{ShardArgs, ShardCommand};
use super::{Global, Usage, model, one_of};

/// Write embeddings of images and texts to a file: safetensors, or NumPy's .npy and .npz
///
/// The name of the file says which. An .npy holds the images or the texts, the others both, by name: `image_embeds` [N, D] and, with
/// --texts, `text_embeds` [T, D], both f32 and in the order given. They are not normalised unless --normalize says so.
///
/// An image's embedding is CLIP's projected class token; what the attention at SigLIP's end makes of the patches; of other families the
/// class token after the last norm or, where there is none, the mean of the patches.
///
/// With --input very many images are embedded shard by shard into the folder --out: see --help on it, and docs/cluster.md.
#[derive(Debug, Args)]
#[command(
    group(ArgGroup::new("what").args(["images", "texts", "input"]).required(true).multiple(true)),
    after_help = "Examples:\n  vpt embed --backbone clip-vit-b32 --out features.safetensors photos/*.jpg --texts \"a cat\" \"a dog\"\n  \
                  vpt embed --model runs/classify/photos-vpt-deep-1 --normalize --out features.npy photos/*.jpg\n  \
                  vpt embed --backbone clip-vit-b32 --input 'shards/{00000..09999}.tar' --out embeddings --layout clip-retrieval"
)]
pub(crate) struct Embed {
    /// Known backbone or folder in the Hugging Face layout [default: clip-nano; with --model the task's]
    #[arg(long, value_name = "NAME|DIR")]
    backbone: Option<String>,
    /// Embed through the prompts of this task file or run folder
    #[arg(long, value_name = "RUN|FILE", conflicts_with = "image_size")]
    model: Option<PathBuf>,
    /// Folder to look for known backbones in, before the local Hugging Face cache
    #[arg(long, value_name = "DIR")]
    weights_dir: Option<PathBuf>,
    /// Side of the images the backbone sees, in pixels; a multiple of its patch size [default: the backbone's]
    #[arg(long, allow_negative_numbers = true, value_name = "PIXELS")]
    image_size: Option<usize>,
    /// Texts to embed too (CLIP); takes all values up to the next flag
    #[arg(long, value_name = "TEXT", num_args = 1.., conflicts_with = "input")]
    texts: Vec<String>,
    /// Scale every embedding to length 1
    #[arg(long)]
    normalize: bool,
    /// The file to write: .npy and .npz for NumPy, else safetensors; with --input the folder
    #[arg(long, value_name = "FILE|DIR")]
    out: PathBuf,
    /// End with exit code 0 although images could not be read; they are named either way, and have no row
    #[arg(long)]
    skip_bad_images: bool,
    /// Image files (JPEG, PNG, WebP, BMP, TIFF, GIF, HEIC), folders of them, or patterns such as 'new/*.jpg'
    #[arg(value_name = "IMAGE")]
    images: Vec<PathBuf>,
    #[command(flatten)]
    shards: ShardArgs,
    /// How the folder lies: clip-retrieval (`img_emb/*.npy`, rows of length 1, and `metadata/*.parquet`, for clip-retrieval, autofaiss and
    /// embedding-reader), safetensors, or npy, these with names and captions in *.jsonl beside [default: safetensors]
    #[arg(long, value_name = "LAYOUT", help_heading = "Very many images", value_parser = one_of::<ShardLayout>(ShardLayout::NAMES))]
    layout: Option<ShardLayout>,
    /// Type of the values [default: f16 with clip-retrieval, else f32]
    #[arg(long, value_name = "TYPE", help_heading = "Very many images", value_parser = one_of::<RowType>(RowType::NAMES))]
    dtype: Option<RowType>,
    #[command(flatten)]
    carbon: CarbonArgs,
}

pub(crate) fn run(args: &Embed, global: &Global, out: Output) -> anyhow::Result<()> {
    args.shards.refuse_alone(&[("--layout", args.layout.is_some()), ("--dtype", args.dtype.is_some())])?;
    if args.shards.are_given() {
        return run_shards(args, global, out);
    }
    if args.out.is_dir() {
        return Err(Usage(format!("--out: {} is a folder; give a file", args.out.display())).into());
    }
    args.carbon.carbon()?;
    let meter = EnergyMeter::start();
    let arrays = ArrayFile::of(&args.out);
    if arrays == Some(ArrayFile::Npy) && !args.images.is_empty() && !args.texts.is_empty() {
        let message = "an .npy holds one array, of images or of texts; name the file .npz or .safetensors for both";
        return Err(Usage(format!("--out: {}: {message}", args.out.display())).into());
    }
    let files = expand(&args.images)?;
    let model = EmbeddingModel::open(args, global)?;
    let name = model.source().backbone().name.clone();
    let found = embed(&model.source(), &files, args, global)?;
    let Answered { answers: mut embeddings, images, skipped } = found;
    if !skipped.is_empty() {
        // Rows are no longer those of the arguments.
        embeddings.names = images.iter().map(|path| path.display().to_string()).collect();
        if arrays.is_some() {
            message(
                "the rows are those of the images that could be read; a file of NumPy does not name them, .safetensors would",
            );
        }
    }
    if args.normalize {
        embeddings.normalise();
    }
    embeddings.save(&args.out)?;
    let took = args.carbon.took(&meter, &args.out.display().to_string())?;
    let mut result = json!({
        "out": args.out,
        "backbone": name,
        "model": args.model,
        "images": images.len(),
        "texts": args.texts.len(),
        "width": embeddings.width,
        "normalized": args.normalize,
        "skipped": skipped,
        "passed_by": files.passed_by,
    });
    took.tell(&mut result);
    out.result(&result, || {
        let texts = if args.texts.is_empty() { String::new() } else { format!(" and {} texts", args.texts.len()) };
        let images = images.len();
        format!(
            "{images} images{texts} embedded by {name}, {} values each, in {}",
            embeddings.width,
            args.out.display()
        )
    })?;
    name_skipped(&skipped, &files.passed_by, args.skip_bad_images)
}

impl Embed {
    /// Which shards are embedded, if any are.
    pub(super) fn shards(&self) -> &ShardArgs {
        &self.shards
    }
}

/// What makes the embeddings.
enum EmbeddingModel {
    Task(Box<TaskModel>),
    Backbone(Box<Backbone>),
}

impl EmbeddingModel {
    fn open(args: &Embed, global: &Global) -> anyhow::Result<Self> {
        let weights_dir = args.weights_dir.as_deref();
        if let Some(path) = &args.model {
            let task = TaskModel::open(path, &model::options(args.backbone.as_deref(), weights_dir, global))?;
            return Ok(Self::Task(Box::new(task)));
        }
        let options = global.open_options(args.weights_dir.as_deref(), args.image_size);
        let backbone = Backbone::open(args.backbone.as_deref().unwrap_or("clip-nano"), &options)?;
        backbone.note().iter().for_each(|note| ProgressDisplay::new(global.quiet).line(note));
        Ok(Self::Backbone(Box::new(backbone)))
    }

    fn source(&self) -> EmbeddingSource<'_> {
        match self {
            Self::Task(task) => EmbeddingSource::Task(task),
            Self::Backbone(backbone) => EmbeddingSource::Backbone(backbone),
        }
    }
}

/// Embeds shards into a folder.
fn run_shards(args: &Embed, global: &Global, out: Output) -> anyhow::Result<()> {
    if args.out.is_file() {
        return Err(Usage(format!("--out: {} is a file; with --input it is a folder", args.out.display())).into());
    }
    let model = EmbeddingModel::open(args, global)?;
    let source = model.source();
    let layout = args.layout.unwrap_or(ShardLayout::Safetensors);
    let output = ShardOutput::Embeddings {
        layout,
        dtype: args.dtype.unwrap_or(layout.row_type()),
        normalized: args.normalize || layout.is_normalized(),
    };
    let command = ShardCommand {
        out: &args.out,
        model: args.model.as_ref(),
        backbone: &source.backbone().name,
        output,
        skip_bad_images: args.skip_bad_images,
        carbon: Some(&args.carbon),
    };
    args.shards.run(&command, &ShardWork::Embed(source), global, out)
}

fn embed(
    source: &EmbeddingSource<'_>,
    files: &ImageFiles,
    args: &Embed,
    global: &Global,
) -> vpt::Result<Answered<Embeddings>> {
    let mut progress = ProgressDisplay::new(global.quiet);
    let mut at = |done, total| progress.at("embedding", done, total, String::new);
    past_unreadable(&files.images, |images| source.embed(images, &args.texts, global.threads(), &mut at))
}
