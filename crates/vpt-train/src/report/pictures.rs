//! Where pictures made of input images are written.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use vpt_base::{Error, Result};
use vpt_image::encode::picture_format;

/// For each of `inputs` a file in `folder` for a picture made of it: of the same name, with `-2`, `-3` before the ending where
/// that is taken by another input or is an input itself. What is neither JPEG, PNG, WebP, BMP nor TIFF by its ending gets
/// `.png` behind its name.
///
/// # Errors
/// An input has no file name.
pub fn picture_paths(inputs: &[PathBuf], folder: &Path) -> Result<Vec<PathBuf>> {
    let real = |path: &Path| path.canonicalize().ok();
    let read: HashSet<PathBuf> = inputs.iter().filter_map(|input| real(input)).collect();
    // Some file systems do not tell upper from lower case.
    let mut taken = HashSet::new();
    let mut free = |path: &Path| {
        let is_input = real(path).is_some_and(|path| read.contains(&path));
        !is_input && taken.insert(path.to_string_lossy().to_lowercase())
    };
    let path_of = |input: &PathBuf| {
        let name = input.file_name().ok_or_else(|| Error::file(input, "not the name of a file"))?;
        let mut path = folder.join(name);
        if picture_format(&path).is_none() {
            path.as_mut_os_string().push(".png");
        }
        let (stem, ending) = (path.file_stem().unwrap_or_default(), path.extension().unwrap_or_default());
        let numbered = |n: usize| {
            let mut name = stem.to_os_string();
            name.push(format!("-{n}."));
            name.push(ending);
            folder.join(name)
        };
        let mut candidates = std::iter::once(path.clone()).chain((2..).map(numbered));
        candidates.find(|path| free(path)).ok_or_else(|| Error::file(input, "no name is left for its picture"))
    };
    inputs.iter().map(path_of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(inputs: &[PathBuf], folder: &Path) -> Vec<String> {
        let paths = picture_paths(inputs, folder).unwrap();
        paths.iter().map(|p| p.strip_prefix(folder).unwrap().display().to_string()).collect()
    }

    #[test]
    fn names_stay_unless_they_would_meet() {
        let dir = tempfile::tempdir().unwrap();
        let inputs = ["a/cat.jpg", "b/cat.jpg", "c/CAT.jpg", "cat-2.jpg", "a/dog.gif", "b/no ending", "dog.gif.png"];
        let inputs = inputs.map(PathBuf::from);
        let expected =
            ["cat.jpg", "cat-2.jpg", "CAT-3.jpg", "cat-2-2.jpg", "dog.gif.png", "no ending.png", "dog.gif-2.png"];
        assert_eq!(names(&inputs, dir.path()), expected);
        assert!(picture_paths(&["..".into()], dir.path()).is_err());
    }

    #[test]
    fn no_input_is_ever_written_over() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in ["cat.jpg", "cat-2.jpg"] {
            std::fs::write(at(name), name).unwrap();
        }
        assert_eq!(names(&[at("cat.jpg")], dir.path()), ["cat-2.jpg"]);
        let roundabout = dir.path().join(".").join("cat-2.jpg");
        assert_eq!(names(&[at("cat.jpg"), roundabout], dir.path()), ["cat-3.jpg", "cat-2-2.jpg"]);
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink(at("cat.jpg"), at("link.jpg")).unwrap();
            let elsewhere = tempfile::tempdir().unwrap();
            let other = elsewhere.path().join("link.jpg");
            std::fs::write(&other, "another").unwrap();
            assert_eq!(names(&[at("cat.jpg"), other], dir.path()), ["cat-2.jpg", "link-2.jpg"]);
        }
    }
}
