//! Data sets written of images that something is known of: a folder for each class, and masks in the layout of Pascal VOC.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::Split;
use crate::boxes::{create_folder_of, link_or_copy};
use crate::class_mask::ClassMask;
use vpt_base::files::whole;
use vpt_base::{Error, Result};
use vpt_image::decode::has_image_extension;

/// Most classes of masks: 255 stands for none.
const MAX_MASK_CLASSES: usize = 255;

/// The file that names the classes.
const CLASSES: &str = "classes.txt";

/// File names in one folder, each given once.
#[derive(Debug, Default)]
struct FreeNames(HashSet<String>);

impl FreeNames {
    /// The name of `image`, with `-2`, `-3` before its ending where another image has it, or one that differs in the ending alone.
    ///
    /// # Errors
    /// Nobody would find it as an image by its name.
    fn of(&mut self, image: &Path) -> Result<String> {
        let name = image.file_name().unwrap_or_default().to_string_lossy();
        let is_found = has_image_extension(image) && !name.starts_with('.') && is_line(&name);
        let Some((stem, ending)) = name.rsplit_once('.').filter(|_| is_found) else {
            let message = "images are found by their ending, and none that are hidden or whose name is no line of text; give it \
                           such a name";
            return Err(Error::file(image, message));
        };
        let mut candidates = std::iter::once(stem.to_owned()).chain((2_u64..).map(|n| format!("{stem}-{n}")));
        // Some file systems do not tell upper from lower case.
        let free = candidates.find(|stem| self.0.insert(stem.to_lowercase()));
        Ok(format!("{}.{ending}", free.unwrap_or_default()))
    }
}

/// Whether a line of a list can hold `name`.
fn is_line(name: &str) -> bool {
    !name.is_empty() && name.trim() == name && !name.contains(char::is_control)
}

/// Refuses names of classes that a line of `classes.txt` cannot hold.
fn refuse_lines(classes: &[String]) -> Result<()> {
    match classes.iter().find(|class| !is_line(class)) {
        Some(class) => Err(Error::invalid("class", format!("'{}' is no line of {CLASSES}", class.escape_debug()))),
        None => Ok(()),
    }
}

/// Writes each of `images`, a file and the position of its class, to `out/CLASS/NAME`, as a hard link where the file system has
/// them, and the names of `classes` to `out/classes.txt`. Of two images of a name in one class the second is `NAME-2`.
///
/// # Errors
/// `out` exists and is not an empty folder, or cannot be written; a class's name cannot be a folder's. Nothing is left in `out`
/// then.
pub fn write_class_folders(out: &Path, images: &[(&Path, usize)], classes: &[String]) -> Result<()> {
    refuse_lines(classes)?;
    let is_folder = |class: &&String| !class.starts_with('.') && !class.contains(['/', '\\', ':']);
    if let Some(class) = classes.iter().find(|class| !is_folder(class)) {
        return Err(Error::invalid("class", format!("'{class}' cannot be the name of a folder")));
    }
    whole(out, |folder| {
        let mut taken: Vec<FreeNames> = classes.iter().map(|_| FreeNames::default()).collect();
        for &(image, class) in images {
            let (Some(taken), Some(name)) = (taken.get_mut(class), classes.get(class)) else {
                return Err(Error::invalid("class", format!("number {class} of {}", classes.len())));
            };
            let to = folder.join(name).join(taken.of(image)?);
            create_folder_of(&to)?;
            link_or_copy(image, &to)?;
        }
        write_classes(folder, classes)
    })
}

fn write_classes(folder: &Path, classes: &[String]) -> Result<()> {
    let path = folder.join(CLASSES);
    fs::write(&path, classes.join("\n") + "\n").map_err(Error::io(&path))
}

/// A data set of masks that is being written: `JPEGImages/`, `SegmentationClass/`, `ImageSets/Segmentation/` and `classes.txt`.
#[derive(Debug)]
pub struct MaskSetWriter {
    folders: [PathBuf; 2],
    numbers: Vec<u16>,
    taken: FreeNames,
    lists: [String; 3],
}

impl MaskSetWriter {
    /// Fills the new or empty folder `out` with what `fill` adds, in the parts `splits`.
    ///
    /// # Errors
    /// `out` exists and is not an empty folder, or cannot be written; there are too many classes, or one has a name that takes more
    /// than a line; and those of `fill`. Nothing is left in `out` then.
    pub fn fill(
        out: &Path,
        classes: &[String],
        splits: &[Split],
        fill: impl FnOnce(&mut Self) -> Result<()>,
    ) -> Result<()> {
        refuse_lines(classes)?;
        if classes.len() > MAX_MASK_CLASSES {
            let message = format!("{} are more than the {MAX_MASK_CLASSES} that masks of a byte hold", classes.len());
            return Err(Error::invalid("classes", message));
        }
        whole(out, |folder| {
            let [images, masks, lists] =
                ["JPEGImages", "SegmentationClass", "ImageSets/Segmentation"].map(|name| folder.join(name));
            for part in [&images, &masks, &lists] {
                fs::create_dir_all(part).map_err(Error::io(part))?;
            }
            let mut writer = Self {
                folders: [images, masks],
                numbers: (0..classes.len() as u16).collect(),
                taken: FreeNames::default(),
                lists: [const { String::new() }; 3],
            };
            fill(&mut writer)?;
            for split in splits {
                let path = lists.join(format!("{split}.txt"));
                fs::write(&path, &writer.lists[*split as usize]).map_err(Error::io(&path))?;
            }
            write_classes(folder, classes)
        })
    }

    /// Adds an image called `name`, which `put` writes, and its mask.
    ///
    /// # Errors
    /// The name is not that of an image, or a file cannot be written.
    pub fn add(
        &mut self,
        split: Split,
        name: &Path,
        mask: &ClassMask,
        put: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<()> {
        let name = self.taken.of(name)?;
        let stem = name.rsplit_once('.').map_or(name.as_str(), |(stem, _)| stem);
        let [images, masks] = &self.folders;
        put(&images.join(&name))?;
        let path = masks.join(format!("{stem}.png"));
        fs::write(&path, mask.to_png(&self.numbers)?).map_err(Error::io(&path))?;
        self.lists[split as usize].extend([stem, "\n"]);
        Ok(())
    }

    /// Adds the image in the file `image`, as a hard link where the file system has them, and its mask.
    ///
    /// # Errors
    /// As [`Self::add`].
    pub fn add_file(&mut self, split: Split, image: &Path, mask: &ClassMask) -> Result<()> {
        self.add(split, image, mask, |to| link_or_copy(image, to))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Dataset;
    use crate::masks::{IGNORED, MaskDataset};
    use crate::shapes::write_png;
    use vpt_image::Rgb8;

    fn picture(path: &Path) {
        create_folder_of(path).unwrap();
        write_png(path, &Rgb8::new(6, 4)).unwrap();
    }

    #[test]
    fn folders_of_classes_are_read_again_even_where_they_are_called_like_parts() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let others = (0..21).map(|i| format!("c/{i}.png"));
        let names = ["a/x.png", "b/x.png", "b/X.jpg"].map(str::to_owned).into_iter().chain(others);
        let paths: Vec<PathBuf> = names.map(|name| at(&name)).collect();
        for path in &paths {
            picture(path);
        }
        let classes = ["cat", "train", "empty"].map(str::to_owned);
        let class = |i: usize| usize::from(i >= 12);
        let images: Vec<(&Path, usize)> =
            paths.iter().enumerate().map(|(i, path)| (path.as_path(), class(i))).collect();
        write_class_folders(&at("out"), &images, &classes).unwrap();
        let mut found: Vec<String> =
            fs::read_dir(at("out/cat")).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        found.sort();
        assert_eq!((found.len(), &found[9..]), (12, &["X-3.jpg", "x-2.png", "x.png"].map(str::to_owned)[..]));
        let set = Dataset::open(at("out"), 1).unwrap();
        assert_eq!((set.layout, set.classes), (crate::Layout::FOLDER, vec!["cat".to_owned(), "train".to_owned()]));

        for class in ["..", "a/b", "a\\b", "", " a", "a\n"] {
            let classes = [class.to_owned()];
            let error = write_class_folders(&at("new"), &[(&paths[0], 0)], &classes).unwrap_err();
            assert!(!at("new").exists() && error.to_string().starts_with("class: '"), "{class:?}: {error}");
        }
        assert!(write_class_folders(&at("new"), &[(&paths[0], 3)], &classes).is_err());
        let odd = at("a/odd");
        fs::copy(&paths[0], &odd).unwrap();
        let error = write_class_folders(&at("new"), &[(&odd, 0)], &classes).unwrap_err().to_string();
        assert!(error.contains("a/odd: images are found by their ending") && !at("new").exists(), "{error}");
    }

    #[test]
    fn masks_are_read_again_with_what_is_not_known_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let paths: Vec<PathBuf> = (0..12).map(|i| at(&format!("{i}/x.png"))).collect();
        for path in &paths {
            picture(path);
        }
        let classes = ["sky", "road"].map(str::to_owned);
        let mask = |class| ClassMask { width: 6, height: 4, classes: [vec![class; 23], vec![IGNORED]].concat() };
        MaskSetWriter::fill(&at("out"), &classes, &[Split::Train], |set| {
            paths.iter().enumerate().try_for_each(|(i, path)| set.add_file(Split::Train, path, &mask(u16::from(i > 0))))
        })
        .unwrap();
        let set = MaskDataset::open(at("out"), 1).unwrap();
        assert_eq!((set.layout, set.faults.len(), &set.classes.names[..]), (crate::Layout::VOC_MASKS, 0, &classes[..]));
        let all = Split::ALL.into_iter().flat_map(|split| set.part(split));
        for image in all {
            let class = u16::from(!image.name.ends_with("/x.png"));
            assert_eq!(image.mask().unwrap(), mask(class), "{}", image.name);
        }
        let many: Vec<String> = (0..256).map(|class| class.to_string()).collect();
        let error = MaskSetWriter::fill(&at("many"), &many, &[], |_| Ok(())).unwrap_err().to_string();
        assert!(error.contains("256 are more than the 255"), "{error}");
    }
}
