//! `vpt predict --attention`: where a task looks.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use serde::Serialize;
use vpt::Error;
use vpt::backbone::vit::AttentionOf;
use vpt::files::write_atomic;
use vpt::image::{Rgb8, decode, encode::picture_format};
use vpt::infer::inputs::ImageFiles;
use vpt::model::attention::{AttentionShares, TaskAttention};
use vpt::report::{picture_bytes, picture_paths, table};

use super::Usage;
use super::flags::parsed;

/// Pictures of attention.
#[derive(Debug, Args)]
pub(crate) struct AttentionArgs {
    /// Write where the task looks: the picture with the attention of the last block laid over it, mean of the heads, the more the
    /// lighter. A file (PNG, JPEG, WebP, BMP, TIFF) for one image, a folder for several. Deep prompts are looked at, too; what
    /// share goes to them is told beside
    #[arg(long, value_name = "FILE|DIR")]
    attention: Option<PathBuf>,
    /// Whose attention: features (the class token, or SigLIP's pooling query) or prompts (mean of the prompt tokens)
    #[arg(long, value_name = "WHOSE", requires = "attention", default_value = "features", value_parser = parsed::<AttentionOf>)]
    attention_of: AttentionOf,
}

impl AttentionArgs {
    /// Where they are to be written, if they are asked for.
    pub(crate) fn to(&self) -> Option<&Path> {
        self.attention.as_deref()
    }

    /// Whose attention.
    pub(crate) fn of(&self) -> AttentionOf {
        self.attention_of
    }

    /// Whether `--attention` names one picture, not a folder.
    fn attends_to_one(&self) -> bool {
        self.attention.as_ref().is_some_and(|to| !to.is_dir() && picture_format(to).is_some())
    }

    /// Refuses `--attention` where what it names cannot hold the pictures.
    pub(crate) fn check(&self, files: &ImageFiles) -> Result<(), Usage> {
        let Some(to) = self.attention.as_ref().filter(|_| self.attends_to_one()) else { return Ok(()) };
        if let [_, _, ..] = &files.images[..] {
            let count = files.images.len();
            return Err(Usage(format!(
                "--attention: {} is one picture, for {count} images; name a folder",
                to.display()
            )));
        }
        let is_input =
            |image: &PathBuf| to.canonicalize().is_ok_and(|to| image.canonicalize().is_ok_and(|image| image == to));
        if files.images.iter().any(is_input) {
            return Err(Usage(format!("--attention: {} is the image itself", to.display())));
        }
        Ok(())
    }

    /// Writes the pictures that `--attention` asks for, if it does.
    pub(crate) fn write(&self, images: &[PathBuf], attend: Attend) -> anyhow::Result<Vec<Attended>> {
        let Some(to) = &self.attention else { return Ok(Vec::new()) };
        let paths = if self.attends_to_one() {
            vec![to.clone()]
        } else {
            std::fs::create_dir_all(to).with_context(|| to.display().to_string())?;
            picture_paths(images, to)?
        };
        let written = images.iter().zip(paths).map(|(image, file)| {
            let picture = decode(image)?;
            let found = attend(&picture).map_err(|error| Error::file(image, error.to_string()))?;
            write_atomic(&file, &picture_bytes(&found.over(&picture), &file)?)?;
            Ok(Attended { image: image.display().to_string(), file, shares: found.shares() })
        });
        written.collect()
    }
}

/// Where a task looks in a picture.
pub(crate) type Attend<'a> = &'a dyn Fn(&Rgb8) -> vpt::Result<TaskAttention>;

/// A picture of `--attention`.
#[derive(Debug, Serialize)]
pub(crate) struct Attended {
    image: String,
    file: PathBuf,
    #[serde(flatten)]
    shares: AttentionShares,
}

impl Attended {
    pub(crate) fn row(&self) -> Vec<String> {
        let AttentionShares { of, patches, prefix, prompts } = self.shares;
        let [patches, prompts, prefix] = [patches, prompts, prefix].map(|share| table::percent(f64::from(share)));
        vec![self.image.clone(), of.to_owned(), patches, prompts, prefix, self.file.display().to_string()]
    }
}
