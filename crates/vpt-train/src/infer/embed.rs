//! Embeddings of images and texts as a safetensors file, for retrieval, clustering or a head of one's own.
//!
//! Image embeddings are what the field calls so: of CLIP the projected class token, of other families the class token
//! after the last norm. Neither is normalised unless asked for.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, TensorView};

use super::npy::{NpyArray, write_npy, write_npz};
use vpt_backbone::Backbone;
use vpt_base::Progress;
use vpt_base::files::write_atomic;
use vpt_base::linear_algebra::normalize_l2;
use vpt_base::{Error, Result};
use vpt_image::Preprocess;
use vpt_model::{
    model::TaskModel,
    predict::{embed_images, sources},
};

/// What makes the embeddings.
#[derive(Debug, Clone, Copy)]
pub enum EmbeddingSource<'a> {
    /// A frozen backbone as it is.
    Backbone(&'a Backbone),
    /// A backbone with the prompts of a task.
    Task(&'a TaskModel),
}

/// Embeddings, row by row in the order that was asked for.
#[derive(Debug, Clone, PartialEq)]
pub struct Embeddings {
    /// Of the images, `[images, width]`.
    pub images: Vec<f32>,
    /// Of the texts, `[texts, text_width]`; empty without texts.
    pub texts: Vec<f32>,
    /// Values of an image embedding.
    pub width: usize,
    /// Values of a text embedding.
    pub text_width: usize,
    /// Names of the images, where rows are not simply those of what was given.
    pub names: Vec<String>,
}

impl EmbeddingSource<'_> {
    /// The backbone.
    pub fn backbone(&self) -> &Backbone {
        match self {
            Self::Backbone(backbone) => backbone,
            Self::Task(task) => task.model().backbone(),
        }
    }

    /// How images become pixels.
    pub fn preprocess(&self) -> &Preprocess {
        match self {
            Self::Backbone(backbone) => &backbone.preprocess,
            Self::Task(task) => task.preprocess(),
        }
    }

    /// Embeddings `[B, D]` of `pixels` `[B, 3, S, S]`, with `threads` threads.
    ///
    /// # Errors
    /// The pixels are not those of images.
    pub fn embed_pixels(&self, pixels: &[f32], threads: usize) -> Result<Vec<f32>> {
        match self {
            Self::Backbone(backbone) => backbone.embed(pixels, None, threads),
            Self::Task(task) => task.model().embed(task.params(), pixels),
        }
    }

    /// Embeds `images` and `texts`, each in its order, with `threads` threads.
    ///
    /// # Errors
    /// An image cannot be read, or there are texts and the backbone has no text tower.
    pub fn embed(
        &self,
        images: &[PathBuf],
        texts: &[String],
        threads: usize,
        progress: Progress,
    ) -> Result<Embeddings> {
        let backbone = self.backbone();
        // First: a missing text tower should be told before a thousand images are read.
        let text_embeds = match self {
            _ if texts.is_empty() => Vec::new(),
            Self::Backbone(backbone) => backbone.embed_texts(texts, threads)?,
            Self::Task(task) => task.model().embed_texts(task.params(), texts)?,
        };
        let image_embeds = match self {
            Self::Backbone(backbone) => embed_images(backbone, &sources(images), threads, progress)?,
            Self::Task(task) => task.embed_images(&sources(images), progress)?,
        };
        Ok(Embeddings {
            images: image_embeds,
            width: backbone.embedding_width(),
            text_width: text_embeds.len() / texts.len().max(1),
            texts: text_embeds,
            names: Vec::new(),
        })
    }
}

impl Embeddings {
    /// Scales every embedding to length 1; one of length 0 stays.
    pub fn normalise(&mut self) {
        normalize_l2(&mut self.images, self.width);
        normalize_l2(&mut self.texts, self.text_width);
    }

    /// Writes `image_embeds` and, if there are texts, `text_embeds`, as f32, whole or not at all: as arrays of `NumPy` where the name of
    /// the file ends in `.npy`, which has room for one of them, or `.npz`, else as safetensors. There the names of images, if there
    /// are any, are a JSON list in the metadata under `images`.
    ///
    /// # Errors
    /// The file cannot be written, or is an `.npy` and there are images and texts.
    pub fn save(&self, path: &Path) -> Result<()> {
        match ArrayFile::of(path) {
            Some(ArrayFile::Npy) => write_npy(path, &self.only_array().map_err(|why| Error::file(path, why))?),
            Some(ArrayFile::Npz) => write_npz(path, &self.arrays()?),
            None => self.save_tensors(path),
        }
    }

    /// What there is, by name.
    fn arrays(&self) -> Result<Vec<(&'static str, NpyArray)>> {
        let all = [("image_embeds", &self.images, self.width), ("text_embeds", &self.texts, self.text_width)];
        let there = all.into_iter().filter_map(|(name, values, width)| {
            let rows = values.len().checked_div(width).filter(|&rows| rows > 0)?;
            Some(NpyArray::new(&[rows, width], values.clone()).map(|array| (name, array)))
        });
        there.collect()
    }

    /// The one array that there is.
    fn only_array(&self) -> Result<NpyArray, String> {
        let mut arrays = self.arrays().map_err(|error| error.to_string())?;
        match (arrays.pop(), arrays.is_empty()) {
            (Some((_, array)), true) => Ok(array),
            _ => Err("an .npy holds one array, of images or of texts; name the file .npz for both".to_owned()),
        }
    }

    fn save_tensors(&self, path: &Path) -> Result<()> {
        let mut tensors = Vec::new();
        let (images, texts) = (bytes(&self.images), bytes(&self.texts));
        let bad = |error: safetensors::SafeTensorError| Error::file(path, error.to_string());
        for (name, bytes, width) in [("image_embeds", &images, self.width), ("text_embeds", &texts, self.text_width)] {
            if let Some(rows) = (bytes.len() / 4).checked_div(width) {
                tensors.push((name, TensorView::new(Dtype::F32, vec![rows, width], bytes).map_err(bad)?));
            }
        }
        let names = serde_json::to_string(&self.names).map_err(|error| Error::file(path, error.to_string()))?;
        let meta = (!self.names.is_empty()).then(|| HashMap::from([("images".to_owned(), names)]));
        write_atomic(path, &safetensors::serialize(tensors, meta).map_err(bad)?)
    }
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// Files that hold arrays of `NumPy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArrayFile {
    /// One array.
    Npy,
    /// Several.
    Npz,
}

impl ArrayFile {
    /// Which of them the name of `path` says, if it does.
    pub fn of(path: &Path) -> Option<Self> {
        let ending = path.extension()?.to_str()?;
        [("npy", Self::Npy), ("npz", Self::Npz)]
            .into_iter()
            .find_map(|(own, kind)| ending.eq_ignore_ascii_case(own).then_some(kind))
    }
}

#[cfg(test)]
#[allow(clippy::float_cmp)] // these values are exact
mod tests {
    use super::*;

    #[test]
    fn rows_get_length_one_and_zero_stays() {
        let mut values = [3., 4., 0., 0., -2., 0.];
        normalize_l2(&mut values, 2);
        assert_eq!(values, [0.6, 0.8, 0., 0., -1., 0.]);
    }

    #[test]
    fn files_hold_what_was_embedded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("e.safetensors");
        let mut embeddings =
            Embeddings { images: vec![1., 2., 3., 4.], texts: Vec::new(), width: 2, text_width: 0, names: Vec::new() };
        embeddings.save(&path).unwrap();
        let read = std::fs::read(&path).unwrap();
        let file = safetensors::SafeTensors::deserialize(&read).unwrap();
        assert_eq!(file.names(), ["image_embeds"]);
        embeddings.texts = vec![5., 6., 7.];
        embeddings.text_width = 3;
        embeddings.save(&path).unwrap();
        let read = std::fs::read(&path).unwrap();
        let file = safetensors::SafeTensors::deserialize(&read).unwrap();
        assert_eq!(file.tensor("image_embeds").unwrap().shape(), [2, 2]);
        let texts = file.tensor("text_embeds").unwrap();
        assert_eq!((texts.shape(), texts.data()), (&[1, 3][..], &bytes(&[5., 6., 7.])[..]));
    }

    #[test]
    fn the_name_of_the_file_says_its_kind() {
        use super::super::npy::{read_npy, read_npz};
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let both = Embeddings {
            images: vec![1., 2., 3., 4.],
            texts: vec![5., 6., 7.],
            width: 2,
            text_width: 3,
            names: Vec::new(),
        };
        both.save(&path("e.npz")).unwrap();
        let [images, texts] = [([2, 2], both.images.clone()), ([1, 3], both.texts.clone())]
            .map(|(shape, values)| NpyArray::new(&shape, values).unwrap());
        let named = |name: &str, array: &NpyArray| (name.to_owned(), array.clone());
        assert_eq!(read_npz(&path("e.npz")).unwrap(), [named("image_embeds", &images), named("text_embeds", &texts)]);
        let message = both.save(&path("e.npy")).unwrap_err().to_string();
        assert!(message.contains("name the file .npz for both"), "{message}");
        Embeddings { images: Vec::new(), ..both.clone() }.save(&path("t.NPY")).unwrap();
        assert_eq!(read_npy(&path("t.NPY")).unwrap(), texts);
        Embeddings { texts: Vec::new(), ..both }.save(&path("i.npy")).unwrap();
        assert_eq!(read_npy(&path("i.npy")).unwrap(), images);
    }
}
