//! What the numbers, or colors, of mask files stand for: names out of a file beside the masks, or the numbers themselves.

use std::collections::BTreeSet;
use std::path::Path;

use super::file::{COLOR, MaskPixels, rgb};
use crate::index_png::voc_color;
use vpt_base::files::read_limited;
use vpt_base::{Error, Result};

/// Class of a pixel that is neither learned nor measured.
pub const IGNORED: u16 = u16::MAX;

/// The index that stands for no class in most data sets: borders in Pascal VOC.
pub(super) const VOID: u32 = 255;

/// Most classes.
const MAX_CLASSES: usize = 4096;

/// Longest file of names.
const MAX_BYTES: u64 = 1 << 22;

/// Files that may name the classes, the surest first.
const NAME_FILES: [&str; 7] = [
    "labelmap.txt",
    "classes.txt",
    "class_names.txt",
    "objectInfo150.txt",
    "labels.txt",
    "codes.txt",
    "label_names.txt",
];

/// The classes of Pascal VOC.
const VOC_NAMES: [&str; 21] = [
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
];

/// Which values of mask files stand for which class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MaskClasses {
    /// The classes' names.
    pub names: Vec<String>,
    /// The value of each class in files: an index, or a color with a flag.
    values: Vec<u32>,
    /// Values that stand for no class.
    ignored: Vec<u32>,
    /// Where the names are from, for the user.
    pub(super) note: String,
}

/// Names and colors of classes as a file gives them.
pub(super) struct NamedClasses {
    names: Vec<String>,
    /// Of a labelmap.
    colors: Option<Vec<[u8; 3]>>,
    note: String,
}

/// What a layout says of its values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ValueRules {
    /// Whether 0 stands for no class and classes count from 1, as in ADE20k.
    pub(super) from_one: bool,
    /// Whether masks may be in the colors of Pascal VOC.
    pub(super) voc_colors: bool,
}

impl MaskClasses {
    /// Classes that are painted, not read: each is its own number.
    pub(super) fn painted(names: Vec<String>, note: String) -> Self {
        let values = (0..names.len() as u32).collect();
        Self { names, values, ignored: vec![VOID], note }
    }

    /// The number that stands for each class in the masks that predictions are written as: that of the data, where it had numbers.
    pub fn indices(&self) -> Vec<u16> {
        let own: Option<Vec<u16>> = self.values.iter().map(|&value| u16::try_from(value).ok()).collect();
        own.unwrap_or_else(|| (0..self.values.len() as u16).collect())
    }

    /// The class that a value stands for, [`IGNORED`] among them.
    pub(super) fn class_of(&self, value: u32) -> Option<u16> {
        if self.ignored.contains(&value) {
            return Some(IGNORED);
        }
        // They are sorted, unless a labelmap has colors.
        let at = match self.values.get(value as usize) {
            Some(&own) if own == value => Some(value as usize),
            _ => self.values.iter().position(|&own| own == value),
        };
        at.map(|at| at as u16)
    }

    /// Of masks in which the values `seen` occur, by the names in `named` and the rules of the layout `by`.
    ///
    /// # Errors
    /// Nothing says what the values stand for; the message says what would.
    pub(super) fn of(seen: &BTreeSet<u32>, named: Option<NamedClasses>, by: ValueRules) -> Result<Self, String> {
        let has_colors = seen.iter().any(|value| value & COLOR != 0);
        let Some(NamedClasses { names, colors, note }) = named else {
            return if has_colors { Self::of_colors(seen, by) } else { Ok(Self::numbered(seen, by)) };
        };
        if let (true, Some(colors)) = (has_colors, &colors) {
            let values = colors.iter().copied().map(rgb).collect();
            return Ok(Self { names, values, ignored: vec![VOC_VOID], note });
        }
        if has_colors && !by.voc_colors {
            return Err(in_colors(seen));
        }
        let first = u32::from(by.from_one);
        let indices = (first..).take(names.len());
        let values: Vec<u32> = if has_colors { indices.map(voc_value).collect() } else { indices.collect() };
        let ignored = if has_colors {
            vec![VOC_VOID]
        } else {
            let none = [Some(VOID), by.from_one.then_some(0)].into_iter().flatten();
            none.filter(|value| !values.contains(value)).collect()
        };
        Ok(Self { names, values, ignored, note })
    }

    /// Classes called by the numbers that occur.
    fn numbered(seen: &BTreeSet<u32>, by: ValueRules) -> Self {
        if seen.iter().eq(&[0, VOID]) {
            let names = ["background", "object"].map(str::to_owned).to_vec();
            let note = "masks of 0 and 255 alone: background and object".to_owned();
            return Self { names, values: vec![0, VOID], ignored: Vec::new(), note };
        }
        let is_class = |value: &u32| *value != VOID && !(by.from_one && *value == 0);
        let values: Vec<u32> = seen.iter().copied().filter(is_class).collect();
        let names = values.iter().map(u32::to_string).collect();
        let ignored = if by.from_one { vec![0, VOID] } else { vec![VOID] };
        let note = "no classes.txt names the classes: they are called by their numbers".to_owned();
        Self { names, values, ignored, note }
    }

    /// Classes called by the numbers that the colors of Pascal VOC stand for.
    fn of_colors(seen: &BTreeSet<u32>, by: ValueRules) -> Result<Self, String> {
        if !by.voc_colors {
            return Err(in_colors(seen));
        }
        let palette: Vec<u32> = (0..VOID).map(voc_value).collect();
        let mut numbers = Vec::new();
        for value in seen.iter().filter(|value| **value != VOC_VOID) {
            numbers.push(palette.iter().position(|color| color == value).ok_or_else(|| in_colors(&[*value].into()))?);
        }
        numbers.sort_unstable();
        let note =
            "masks in the colors of Pascal VOC; no labelmap.txt names the classes: they are called by their numbers";
        Ok(Self {
            names: numbers.iter().map(usize::to_string).collect(),
            values: numbers.iter().map(|&number| palette[number]).collect(),
            ignored: vec![VOC_VOID],
            note: note.to_owned(),
        })
    }

    /// The classes of `mask`, `[height, width]`.
    ///
    /// # Errors
    /// A value stands for none; the message names the first, and where it is.
    pub(super) fn classes_in(&self, mask: &MaskPixels) -> Result<Vec<u16>, String> {
        let mut last = (mask.values[0], self.class_of(mask.values[0]));
        let mut out = Vec::with_capacity(mask.values.len());
        for (at, &value) in mask.values.iter().enumerate() {
            if value != last.0 {
                last = (value, self.class_of(value));
            }
            let class = last.1.ok_or_else(|| {
                let (x, y) = (at % mask.width, at / mask.width);
                format!("{} at column {x}, row {y} is none of the {} classes", shown(value), self.names.len())
            })?;
            out.push(class);
        }
        Ok(out)
    }
}

/// Borders in masks with the colors of Pascal VOC.
const VOC_VOID: u32 = COLOR | 0xe0_e0_c0;

/// The value of a class in masks with the colors of Pascal VOC.
fn voc_value(class: u32) -> u32 {
    rgb(voc_color(class))
}

fn in_colors(seen: &BTreeSet<u32>) -> String {
    let first = seen.iter().find(|value| **value & COLOR != 0).copied().unwrap_or_default();
    format!(
        "{} stands for no class that is known; masks hold a number in each pixel, or a labelmap.txt in the folder of the data set has \
         a line name:red,green,blue for each class",
        shown(first)
    )
}

fn shown(value: u32) -> String {
    if value & COLOR == 0 {
        return format!("index {value}");
    }
    let [_, r, g, b] = value.to_be_bytes();
    format!("color {r},{g},{b}")
}

impl NamedClasses {
    /// Names in a file in `root`, or those of Pascal VOC where the folder is called after it.
    ///
    /// # Errors
    /// The file is damaged, names two classes alike, or too many.
    pub(super) fn beside(root: &Path, by: ValueRules) -> Result<Option<Self>> {
        for name in NAME_FILES {
            let path = root.join(name);
            if path.is_file() {
                return Self::read(&path, name).map(Some);
            }
        }
        let folder = root.file_name().unwrap_or_default().to_string_lossy();
        let is_voc = by.voc_colors && folder.to_ascii_uppercase().starts_with("VOC20");
        Ok(is_voc.then(|| Self {
            names: VOC_NAMES.map(str::to_owned).to_vec(),
            colors: None,
            note: format!("classes of Pascal VOC, as the folder is called {folder}"),
        }))
    }

    fn read(path: &Path, name: &str) -> Result<Self> {
        let bytes = read_limited(path, MAX_BYTES)?;
        let text = std::str::from_utf8(&bytes).map_err(|_| Error::data(path, "no text in UTF-8"))?;
        let lines = text.trim_start_matches('\u{feff}').lines().map(str::trim).filter(|line| !line.is_empty());
        let (mut names, mut colors) = (Vec::new(), Vec::new());
        match name {
            // ADE20k: a table whose last column has names.
            "objectInfo150.txt" => {
                for line in lines.skip(1) {
                    let cell = line.rsplit('\t').next().unwrap_or_default();
                    names.push(cell.split(',').next().unwrap_or_default().trim().to_owned());
                }
            }
            // CVAT and Datumaro: name:red,green,blue:parts:actions.
            "labelmap.txt" => {
                for line in lines.filter(|line| !line.starts_with('#')) {
                    let mut fields = line.split(':');
                    names.push(fields.next().unwrap_or_default().trim().to_owned());
                    let color: Vec<u8> =
                        fields.next().unwrap_or_default().split(',').flat_map(|c| c.trim().parse()).collect();
                    colors.extend(<[u8; 3]>::try_from(color).ok());
                }
            }
            _ => names.extend(lines.map(str::to_owned)),
        }
        if names.is_empty() || names.iter().any(String::is_empty) {
            return Err(Error::data(path, "a name for each class is expected, one a line"));
        }
        if names.len() > MAX_CLASSES {
            return Err(Error::data(path, format!("{} classes, more than {MAX_CLASSES}", names.len())));
        }
        let mut seen = BTreeSet::new();
        if let Some(twice) = names.iter().find(|name| !seen.insert(name.as_str())) {
            return Err(Error::data(path, format!("two classes are called '{twice}'")));
        }
        let colors = Some(colors).filter(|colors| colors.len() == names.len());
        Ok(Self { names, colors, note: format!("classes are those of {name}") })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: ValueRules = ValueRules { from_one: false, voc_colors: true };

    fn mask(values: &[u32]) -> MaskPixels {
        MaskPixels { width: values.len(), height: 1, values: values.to_vec() }
    }

    #[test]
    fn numbers_without_names_are_the_names() {
        let classes = MaskClasses::of(&[0, 3, 9, 255].into(), None, PLAIN).unwrap();
        assert_eq!((&classes.names[..], classes.indices()), (&["0", "3", "9"].map(String::from)[..], vec![0, 3, 9]));
        assert_eq!(classes.classes_in(&mask(&[9, 9, 0, 255, 3])).unwrap(), [2, 2, 0, IGNORED, 1]);
        let message = classes.classes_in(&mask(&[9, 4])).unwrap_err();
        assert_eq!(message, "index 4 at column 1, row 0 is none of the 3 classes");
        let two = MaskClasses::of(&[0, 255].into(), None, PLAIN).unwrap();
        assert_eq!(two.classes_in(&mask(&[255, 0])).unwrap(), [1, 0]);
    }

    #[test]
    fn ade20k_counts_from_one_and_does_not_learn_zero() {
        let dir = tempfile::tempdir().unwrap();
        let table = "Idx\tRatio\tTrain\tVal\tStuff\tName\n1\t.1\t2\t3\t1\twall\n2\t.1\t2\t3\t1\tbuilding, edifice\n";
        std::fs::write(dir.path().join("objectInfo150.txt"), table).unwrap();
        let by = ValueRules { from_one: true, voc_colors: false };
        let named = NamedClasses::beside(dir.path(), by).unwrap();
        let classes = MaskClasses::of(&[0, 1, 2].into(), named, by).unwrap();
        assert_eq!(classes.names, ["wall", "building"]);
        assert_eq!(classes.classes_in(&mask(&[0, 1, 2, 255])).unwrap(), [IGNORED, 0, 1, IGNORED]);
        assert!(classes.classes_in(&mask(&[3])).is_err());
    }

    #[test]
    fn colors_are_those_of_a_labelmap_or_of_voc() {
        assert_eq!([1, 2, 15].map(voc_value), [[128, 0, 0], [0, 128, 0], [192, 128, 128]].map(rgb));
        let seen = [rgb([0; 3]), rgb([192, 128, 128]), VOC_VOID].into();
        let classes = MaskClasses::of(&seen, None, PLAIN).unwrap();
        assert_eq!(classes.names, ["0", "15"]);
        let dir = tempfile::tempdir().unwrap();
        let map = "# label:color_rgb:parts:actions\nbackground:0,0,0::\nroad:1,2,3::\n";
        std::fs::write(dir.path().join("labelmap.txt"), map).unwrap();
        let named = |by| NamedClasses::beside(dir.path(), by).unwrap();
        let classes = MaskClasses::of(&[rgb([1, 2, 3])].into(), named(PLAIN), PLAIN).unwrap();
        assert_eq!(classes.classes_in(&mask(&[rgb([0; 3]), rgb([1, 2, 3])])).unwrap(), [0, 1]);
        assert_eq!(classes.indices(), [0, 1]);
        // Numbers are taken, too.
        let classes = MaskClasses::of(&[0, 1].into(), named(PLAIN), PLAIN).unwrap();
        assert_eq!(classes.classes_in(&mask(&[1, 0])).unwrap(), [1, 0]);
        let plain = ValueRules { voc_colors: false, ..PLAIN };
        assert!(MaskClasses::of(&[rgb([5, 5, 6])].into(), None, plain).unwrap_err().contains("color 5,5,6"));
    }

    #[test]
    fn names_that_cannot_be_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        for (text, expected) in [("a\nb\na\n", "two classes are called 'a'"), ("\n\n", "a name for each class")] {
            std::fs::write(dir.path().join("classes.txt"), text).unwrap();
            let message = NamedClasses::beside(dir.path(), PLAIN).err().unwrap().to_string();
            assert!(message.contains(expected), "{message}");
        }
    }
}
