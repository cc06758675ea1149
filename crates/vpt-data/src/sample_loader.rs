//! Batches of pictures some of which may not be readable. Where a data set is refused because one of its pictures cannot be read,
//! this goes on: batches hold those that can, and tell why the others cannot.

use std::path::Path;

use super::batch_loader::{BatchLoader, MakeBatch};
use super::container::ImageSource;
use super::formats::reason;
use super::prefetch::blaming;
use vpt_base::{Error, Result};
use vpt_image::{Rgb8, preprocess::Preprocess};

/// Pictures some of which may not be readable, and how they are made ready.
#[derive(Debug)]
pub struct SampleImages {
    images: Vec<ImageSource>,
    /// None where they are wanted as they are.
    preprocess: Option<Preprocess>,
}

/// A picture that could be read.
#[derive(Debug)]
pub enum SamplePicture {
    /// Made ready for a backbone: `[3, H, W]`, normalised.
    Ready(Vec<f32>),
    /// As it is.
    Whole(Rgb8),
}

/// Some pictures.
#[derive(Clone, Debug, Default)]
pub struct SampleBatch {
    /// Of those that could be read, `[B, 3, H, W]`, normalised; empty where they are wanted as they are.
    pub pixels: Vec<f32>,
    /// Of those that could be read, the pictures, where they are wanted as they are.
    pub pictures: Vec<Rgb8>,
    /// Positions of these.
    pub readable: Vec<usize>,
    /// Positions of the others, with the reason.
    pub unreadable: Vec<(usize, String)>,
}

/// An iterator over the batches of one pass over pictures some of which may not be readable.
pub type SampleLoader = BatchLoader<SampleImages>;

impl SampleLoader {
    /// Batches of `size` of `images` in their order, made ahead by `threads` threads.
    ///
    /// # Errors
    /// The size is 0, `preprocess` does not give all images the same size, or no thread can be started. That an archive or a table
    /// can no longer be read is an error of its batch, after which the iterator ends; what is wrong with a picture is not.
    pub fn of_samples(images: Vec<ImageSource>, preprocess: &Preprocess, size: usize, threads: usize) -> Result<Self> {
        preprocess.output_size().ok_or_else(|| {
            Error::invalid(
                "preprocessing",
                "gives images of different sizes, which cannot be one batch; a crop is missing",
            )
        })?;
        Self::over(SampleImages { images, preprocess: Some(preprocess.clone()) }, size, threads)
    }

    /// The same of the pictures as they are, each of its own size.
    ///
    /// # Errors
    /// As [`Self::of_samples`].
    pub fn of_pictures(images: Vec<ImageSource>, size: usize, threads: usize) -> Result<Self> {
        Self::over(SampleImages { images, preprocess: None }, size, threads)
    }

    fn over(images: SampleImages, size: usize, threads: usize) -> Result<Self> {
        let order = (0..images.images.len()).collect();
        Self::start(images, order, size, threads)
    }
}

impl MakeBatch for SampleImages {
    /// The picture, or what is wrong.
    type Item = Result<SamplePicture, String>;
    type Batch = SampleBatch;

    fn images(&self) -> usize {
        self.images.len()
    }

    fn path(&self, index: usize) -> &Path {
        self.images[index].file().unwrap_or(Path::new("image"))
    }

    fn make(&self, index: usize) -> Result<Self::Item> {
        let image = &self.images[index];
        let read = || {
            let picture = image.load()?;
            Ok(match &self.preprocess {
                Some(preprocess) => SamplePicture::Ready(preprocess.apply(&picture)?),
                None => SamplePicture::Whole(picture),
            })
        };
        match blaming(self.path(index), read) {
            Ok(picture) => Ok(Ok(picture)),
            // The whole archive is at fault, and may be read another time.
            Err(error @ Error::Io { .. }) if matches!(image, ImageSource::Member { .. }) => Err(error),
            Err(error) => Ok(Err(reason(error))),
        }
    }

    fn batch(&self, indices: Vec<usize>, items: Vec<Self::Item>) -> SampleBatch {
        let mut batch = SampleBatch::default();
        for (index, item) in indices.into_iter().zip(items) {
            match item {
                Ok(SamplePicture::Ready(pixels)) => batch.pixels.extend(pixels),
                Ok(SamplePicture::Whole(picture)) => batch.pictures.push(picture),
                Err(why) => {
                    batch.unreadable.push((index, why));
                    continue;
                }
            }
            batch.readable.push(index);
        }
        batch
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::ShardSamples;

    fn png(side: u32) -> Vec<u8> {
        let mut out = std::io::Cursor::new(Vec::new());
        image::GrayImage::new(side, side).write_to(&mut out, image::ImageFormat::Png).unwrap();
        out.into_inner()
    }

    fn archive(members: &[(&str, &[u8])]) -> Vec<u8> {
        let mut archive = tar::Builder::new(Vec::new());
        for (name, content) in members {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            archive.append_data(&mut header, name, *content).unwrap();
        }
        archive.into_inner().unwrap()
    }

    #[test]
    fn samples_of_an_archive_keep_their_order_and_what_is_said_of_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.tar");
        let picture = png(8);
        let bytes = archive(&[
            ("b.png", &picture),
            ("b.txt", b"a cat \n"),
            ("b.json", br#"{"url": "http://x", "width": 8}"#),
            ("in/a.b.png", &picture),
            ("in/a.json", b"[1]"),
            ("c.txt", b"alone"),
            ("b.jpg", &picture),
            ("d.png", b"no picture"),
        ]);
        std::fs::write(&path, &bytes).unwrap();
        let ShardSamples { samples, faults, notes } = ShardSamples::open(&path).unwrap();
        let keys: Vec<&str> = samples.iter().map(|sample| sample.key.as_str()).collect();
        assert_eq!(keys, ["b", "in/a", "d"]);
        assert_eq!(samples[0].caption.as_deref(), Some("a cat"));
        assert_eq!(samples[0].facts["width"], 8);
        let told: Vec<String> = faults.iter().map(|fault| format!("{}: {}", fault.key, fault.error)).collect();
        assert_eq!(told, ["b: b.jpg: the sample b has a picture already", "c: the sample has no picture"]);
        assert_eq!((notes.len(), notes[0].key.as_str()), (1, "in/a"));
        let images = samples.into_iter().map(|sample| sample.image).collect();
        let mut loader = SampleLoader::of_samples(images, &Preprocess::clip(8), 4, 2).unwrap();
        let batch = loader.next().unwrap().unwrap();
        assert_eq!((batch.readable, batch.pixels.len()), (vec![0, 1], 2 * 3 * 8 * 8));
        assert_eq!(batch.unreadable.len(), 1);
        assert!(batch.unreadable[0].1.starts_with("d.png: not an image"), "{:?}", batch.unreadable);
        assert!(loader.next().is_none());
        // Cut off in the middle of a picture.
        std::fs::write(&path, &bytes[..520]).unwrap();
        assert!(ShardSamples::open(&path).unwrap_err().to_string().contains("0.tar: truncated"));
        std::fs::write(&path, [0x1f, 0x8b, 8, 0]).unwrap();
        assert!(ShardSamples::open(&path).unwrap_err().to_string().contains("gzip"));
    }

    #[test]
    fn an_archive_that_is_gone_is_no_fault_of_its_pictures() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.tar");
        std::fs::write(&path, archive(&[("a.png", &png(8))])).unwrap();
        let images = |samples: ShardSamples| samples.samples.into_iter().map(|sample| sample.image).collect::<Vec<_>>();
        let member = images(ShardSamples::open(&path).unwrap());
        std::fs::remove_file(&path).unwrap();
        let mut loader = SampleLoader::of_samples(member, &Preprocess::clip(8), 4, 1).unwrap();
        assert!(loader.next().unwrap().is_err());
        // A file of a list is its own.
        let file = images(ShardSamples::of_files(&[dir.path().join("gone.png")]));
        let mut loader = SampleLoader::of_samples(file, &Preprocess::clip(8), 4, 1).unwrap();
        assert_eq!(loader.next().unwrap().unwrap().unreadable.len(), 1);
    }
}
