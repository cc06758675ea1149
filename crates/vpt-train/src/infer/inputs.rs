//! Images that are given to a model: which files are meant, by the same walk as that of data sets, and going on past those that
//! cannot be read.

use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::Serialize;

use super::name;
use crate::config::RunConfig;
use vpt_base::{Error, Result};
use vpt_data::ImageSource;
use vpt_data::check::images_in;
use vpt_data::split::SplitFile;
use vpt_image::decode::decode;
use vpt_model::model::run_origin::CONFIG;

/// An image, or a file that may be meant for one, that there is no answer for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SkippedImage {
    /// Its path.
    pub image: String,
    /// Why.
    pub error: String,
}

/// Files that arguments stand for.
#[derive(Clone, Debug, Default)]
pub struct ImageFiles {
    /// Images.
    pub images: Vec<PathBuf>,
    /// Files in folders that are none, or are not read, with the reason; notes aside.
    pub passed_by: Vec<SkippedImage>,
}

/// Image files that arguments stand for: a file, a folder of images (not the folders in it; what a data set would pass by is passed
/// by and named), or a pattern with `*`, `?` or `[`, for where no shell has filled it in.
///
/// # Errors
/// A folder or a pattern has no images, or a pattern makes no sense.
pub fn expand(images: &[PathBuf]) -> Result<ImageFiles> {
    let mut all = ImageFiles::default();
    for path in images {
        if path.is_dir() {
            let (files, findings) = images_in(path)?;
            let passed_by =
                findings.into_iter().map(|finding| SkippedImage { image: name(&finding.path), error: finding.message });
            all.passed_by.extend(passed_by);
            if files.is_empty() {
                return Err(Error::file(path, "the folder holds no images"));
            }
            all.images.extend(files);
            continue;
        }
        let pattern = path.to_str().filter(|text| text.contains(['*', '?', '[']) && !path.exists());
        let Some(pattern) = pattern else {
            all.images.push(path.clone());
            continue;
        };
        let matches = glob::glob(pattern).map_err(|error| Error::file(path, format!("not a pattern: {error}")))?;
        let before = all.images.len();
        all.images.extend(matches.filter_map(std::result::Result::ok).filter(|file| file.is_file()));
        if all.images.len() == before {
            return Err(Error::file(path, "no such file, and no file that fits it as a pattern"));
        }
    }
    Ok(all)
}

/// Shorter sides of those of `images` whose size can be read, in pixels.
pub fn shorter_sides(images: &[PathBuf]) -> Vec<usize> {
    images.par_iter().filter_map(|path| ImageSource::File(path.clone()).size().ok()?.into_iter().min()).collect()
}

/// Files of the validation images of the run that `model`, a run folder or a file in one, is of: at most `most`, from all over the
/// part. None where the run or its data are not there, or its images are in other files.
pub fn validation_images(model: &Path, most: usize) -> Vec<PathBuf> {
    let folder = if model.is_dir() { model } else { model.parent().unwrap_or(model) };
    let Ok(config) = RunConfig::load(&folder.join(CONFIG)) else { return Vec::new() };
    let Some(split) = SplitFile::of_run(model) else { return Vec::new() };
    let data = Path::new(&config.data);
    let root = if data.is_dir() { data } else { data.parent().unwrap_or(data) };
    let files: Vec<PathBuf> = split.val.iter().map(|id| root.join(id)).filter(|file| file.is_file()).collect();
    let taken = most.min(files.len());
    (0..taken).map(|i| files[i * files.len() / taken].clone()).filter(|file| decode(file).is_ok()).collect()
}

/// Answers for the images that could be read.
#[derive(Clone, Debug)]
pub struct Answered<T> {
    /// What the work made of them.
    pub answers: T,
    /// These images, in their order.
    pub images: Vec<PathBuf>,
    /// The others.
    pub skipped: Vec<SkippedImage>,
}

/// Does `work` on `images`; if one cannot be read, on those that can. They are decoded once more to find out, which costs nothing
/// where all is well.
///
/// # Errors
/// No image can be read, or the work fails for another reason.
pub fn past_unreadable<T>(images: &[PathBuf], mut work: impl FnMut(&[PathBuf]) -> Result<T>) -> Result<Answered<T>> {
    let error = match work(images) {
        Ok(answers) => return Ok(Answered { answers, images: images.to_vec(), skipped: Vec::new() }),
        Err(error) => error,
    };
    let why: Vec<Option<Error>> = images.par_iter().map(|path| decode(path).err()).collect();
    let (mut readable, mut skipped) = (Vec::new(), Vec::new());
    for (path, why) in images.iter().zip(why) {
        match why {
            None => readable.push(path.clone()),
            Some(why) => skipped.push(SkippedImage { image: name(path), error: why.to_string() }),
        }
    }
    if skipped.is_empty() || readable.is_empty() {
        return Err(error);
    }
    Ok(Answered { answers: work(&readable)?, images: readable, skipped })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn png() -> Vec<u8> {
        let mut out = std::io::Cursor::new(Vec::new());
        image::GrayImage::new(8, 8).write_to(&mut out, image::ImageFormat::Png).unwrap();
        out.into_inner()
    }

    #[test]
    fn folders_and_patterns_stand_for_the_images_in_them() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str| dir.path().join(name);
        for name in ["b.png", "a.JPG", "notes.txt", "[x].png"] {
            std::fs::write(file(name), b"").unwrap();
        }
        std::fs::create_dir(file("in.png")).unwrap();
        let images = |paths: &[PathBuf]| expand(paths).map(|files| files.images);
        assert_eq!(images(&[dir.path().into()]).unwrap(), [file("[x].png"), file("a.JPG"), file("b.png")]);
        assert_eq!(images(&[file("[ab].*"), file("c.png")]).unwrap(), [file("a.JPG"), file("b.png"), file("c.png")]);
        // A file that is there is meant as it is called.
        assert_eq!(images(&[file("[x].png")]).unwrap(), [file("[x].png")]);
        assert!(images(&[file("*.bmp")]).unwrap_err().to_string().contains("no file that fits"));
        assert!(images(&[file("in.png")]).unwrap_err().to_string().contains("no images"));
    }

    #[test]
    fn what_a_data_set_would_pass_by_is_passed_by_and_named() {
        let dir = tempfile::tempdir().unwrap();
        for (name, bytes) in [
            ("a.png", png()),
            ("._a.png", b"apple".to_vec()),
            ("b.avif", b"avif".to_vec()),
            ("c.jfif", png()),
            ("d", png()),
            ("readme.md", b"text".to_vec()),
        ] {
            std::fs::write(dir.path().join(name), bytes).unwrap();
        }
        let found = expand(&[dir.path().into()]).unwrap();
        assert_eq!(found.images, [dir.path().join("a.png")]);
        let named: Vec<(&str, &str)> = found.passed_by.iter().map(|s| (s.image.as_str(), s.error.as_str())).collect();
        for (end, word) in [("._a.png", "hidden"), ("b.avif", "convert"), ("c.jfif", "PNG image"), ("/d", "PNG image")]
        {
            assert!(named.iter().any(|(image, why)| image.ends_with(end) && why.contains(word)), "{end}: {named:?}");
        }
        assert_eq!(named.len(), 4, "{named:?}");
    }

    #[test]
    fn work_goes_on_past_images_that_cannot_be_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::write(path("good.png"), png()).unwrap();
        std::fs::write(path("bad.png"), "text").unwrap();
        let work = |images: &[PathBuf]| {
            images.iter().map(|path| decode(path).map(|image| image.width)).collect::<Result<Vec<_>>>()
        };
        let found = past_unreadable(&[path("bad.png"), path("good.png"), path("gone.png")], work).unwrap();
        assert_eq!((found.answers, found.images), (vec![8], vec![path("good.png")]));
        let skipped: Vec<&str> = found.skipped.iter().map(|skipped| skipped.image.as_str()).collect();
        assert_eq!(skipped, [path("bad.png").to_str().unwrap(), path("gone.png").to_str().unwrap()]);
        assert!(found.skipped[0].error.contains("bad.png: not an image"), "{}", found.skipped[0].error);
        assert!(past_unreadable(&[path("bad.png")], work).is_err());
    }
}
