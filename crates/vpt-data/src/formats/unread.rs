//! What no layout reads: files that say something of the images beside them, and would be passed over where the images are
//! taken for something else. A run that goes on without them learns nonsense and says an accuracy.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use super::image_folder::files;
use crate::Split;
use crate::formats::text_file::first_bytes;
use vpt_image::decode::has_image_extension;

/// Bytes of a file that are looked at.
const START: u64 = 1 << 18;

/// Files of one kind in a folder that are looked into: they are alike, and the first may be damaged.
const PROBES: usize = 8;

/// Files of all kinds that are looked into.
const MOST_FILES: usize = 512;

/// Lines of a text that are looked at.
const LINES: usize = 64;

/// Boxes that are read, for messages that say what to do.
pub(crate) const BOX_LAYOUTS: &str = "COCO (annotations/instances_*.json, train.json or train/_annotations.coco.json), YOLO \
                                      (data.yaml) or Pascal VOC (Annotations/ and JPEGImages/, or images with XML files \
                                      beside them)";

/// Ends of names of texts that may say something of images.
const TEXTS: [&str; 13] =
    ["csv", "tsv", "json", "jsonl", "ndjson", "geojson", "xml", "txt", "yaml", "yml", "data", "lst", "names"];

/// Ends of names of tables and archives that are not text.
const TABLES: [&str; 9] = ["parquet", "arrow", "tfrecord", "tfrecords", "record", "mat", "xlsx", "xls", "ods"];

/// Words in the names of such tables that say what they hold.
const TABLE_WORDS: [&str; 8] = ["label", "annot", "bbox", "coco", "instances", "metadata", "split", "ground"];

/// A file that says something of images and that is not read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unread {
    pub(crate) file: PathBuf,
    /// What it is and what to do.
    pub(crate) message: String,
}

/// The files under `root` that say something of the images there: the first of each kind in a folder.
pub(crate) fn unread(root: &Path) -> Vec<Unread> {
    let is_candidate = |path: &Path| has_ending(path, &TEXTS) || has_ending(path, &TABLES);
    let Ok(candidates) = files(root, "", &is_candidate) else { return Vec::new() };
    if candidates.is_empty() {
        return Vec::new();
    }
    let images = ImageNames::under(root);
    let mut groups: BTreeMap<(PathBuf, String, bool), Vec<PathBuf>> = BTreeMap::new();
    for (_, path) in candidates {
        let folder = path.parent().unwrap_or(root).to_path_buf();
        let is_sidecar = images.has_stem(&path);
        groups.entry((folder, ending(&path), is_sidecar)).or_default().push(path);
    }
    let mut found = Vec::new();
    let mut looked = 0;
    for ((_, ending, is_sidecar), files) in &groups {
        let mut kinds: Vec<(&PathBuf, String)> = Vec::new();
        for file in files.iter().take(PROBES) {
            looked += 1;
            kinds.extend(judge(file, ending, *is_sidecar, &images).map(|message| (file, message)));
            // Files beside images are alike.
            if looked > MOST_FILES || (*is_sidecar && !kinds.is_empty()) {
                break;
            }
        }
        let several_tables = ["csv", "tsv"].contains(&ending.as_str()) && kinds.len() > 1;
        for (file, message) in kinds {
            let message = if several_tables {
                "one of several tables of the images, none of which is named after its part; keep one, or name them train.csv, \
                 val.csv and test.csv"
                    .to_owned()
            } else if *is_sidecar && files.len() > 1 {
                format!("{message}; {} files like it in this folder", files.len() - 1)
            } else {
                message
            };
            found.push(Unread { file: file.clone(), message });
        }
    }
    found
}

/// Names of images under a folder.
struct ImageNames {
    names: HashSet<String>,
    stems: HashSet<String>,
}

impl ImageNames {
    fn under(root: &Path) -> Self {
        let all = files(root, "", &has_image_extension).unwrap_or_default();
        let of = |part: fn(&Path) -> Option<&std::ffi::OsStr>| -> HashSet<String> {
            all.iter().filter_map(|(_, path)| Some(part(path)?.to_string_lossy().into_owned())).collect()
        };
        Self { names: of(Path::file_name), stems: of(Path::file_stem) }
    }

    /// Whether `path` is named after an image: `a.txt` or `a.jpg.json`.
    fn has_stem(&self, path: &Path) -> bool {
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        self.stems.contains(&*stem) || self.names.contains(&*stem)
    }

    /// Whether `word`, a name or path, is that of an image.
    fn names(&self, word: &str) -> bool {
        let word = word
            .trim_matches(|c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '(' | ')' | '[' | ']' | '{' | '}'));
        let name = word.rsplit(['/', '\\']).next().unwrap_or(word);
        self.names.contains(name)
    }

    /// Whether `word` is the name of an image without its ending. A number of few digits may be anything.
    fn is_stem(&self, word: &str) -> bool {
        let name = word.rsplit(['/', '\\']).next().unwrap_or(word);
        name.len() > 3 && self.stems.contains(name)
    }
}

fn ending(path: &Path) -> String {
    path.extension().unwrap_or_default().to_string_lossy().to_ascii_lowercase()
}

fn has_ending(path: &Path, endings: &[&str]) -> bool {
    endings.contains(&ending(path).as_str())
}

/// What `file` says of images and what to do; none if it says nothing.
fn judge(file: &Path, ending: &str, is_sidecar: bool, images: &ImageNames) -> Option<String> {
    // Parts of a set of masks, of which its folders tell.
    if file.parent().is_some_and(|folder| folder.ends_with("ImageSets/Segmentation")) {
        return None;
    }
    let stem = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    if TABLES.contains(&ending) {
        let lower = stem.to_ascii_lowercase();
        let is_one = TABLE_WORDS.iter().any(|word| lower.contains(word)) || Split::from_name(&stem).is_some();
        return is_one.then(|| format!("a .{ending} file, which is not read here; {MOVE_AWAY}"));
    }
    // A pipe would never begin.
    if !file.is_file() {
        return None;
    }
    let start = first_bytes(file, START).ok()?;
    let text = String::from_utf8_lossy(&start);
    let text = text.trim_start_matches('\u{feff}');
    match ending {
        "csv" | "tsv" => table(text, images),
        "json" | "jsonl" | "ndjson" | "geojson" => json(text, images),
        "xml" => xml(text, images),
        "yaml" | "yml" => yaml(text),
        "data" | "names" => darknet(text),
        _ => list(text, &stem, is_sidecar, images),
    }
}

/// What to do with a file that says nothing of labels.
const MOVE_AWAY: &str = "if it says nothing of labels or boxes, move it out of the folder";

fn table(text: &str, images: &ImageNames) -> Option<String> {
    let first = text.lines().next().unwrap_or_default();
    let mut fields = text.lines().take(LINES).flat_map(|line| line.split([',', ';', '\t']));
    let lists_names = fields.any(|field| images.names(field));
    let stem = |line: &str| line.split([',', ';', '\t']).next().map(|field| field.trim_matches(['"', ' ']).to_owned());
    let lists_stems = || text.lines().skip(1).take(LINES).filter_map(stem).any(|word| images.is_stem(&word));
    if !lists_names && !lists_stems() {
        return None;
    }
    let header = shortened(first);
    Some(if has_box_columns(first) {
        format!("a table of boxes ({header}), which is not read here; boxes are read from {BOX_LAYOUTS}")
    } else if first.split([',', ';', '\t']).any(|field| images.names(field)) && has_numbers(first) {
        format!(
            "a table of boxes without a header; write one above it, such as filename,xmin,ymin,xmax,ymax,class (it begins with \
             {header})"
        )
    } else if first.split([',', ';', '\t']).any(|field| images.names(field)) {
        format!("a table of the images without a header; write path,label above it (it begins with {header})")
    } else if lists_names {
        format!(
            "a table of the images that is not read; it needs a column path and a column label (found: {header}); {MOVE_AWAY}"
        )
    } else {
        format!(
            "a table that names images without the ends of their names; it needs a column path, with them, and a column label \
             (found: {header})"
        )
    })
}

/// Whether four fields of `line` in a row are numbers, as the sides of a box are.
fn has_numbers(line: &str) -> bool {
    let fields: Vec<bool> = line.split([',', ';', '\t']).map(|field| field.trim().parse::<f64>().is_ok()).collect();
    fields.windows(4).any(|four| four.iter().all(|is_number| *is_number))
}

/// Whether the header of a table names boxes or their sides.
pub(super) fn has_box_columns(header: &str) -> bool {
    const BOXES: [&str; 4] = ["bbox", "bboxes", "boxes", "region_shape_attributes"];
    let fields: Vec<&str> = header.split([',', ';', '\t']).map(|field| field.trim_matches(['"', ' ', '\r'])).collect();
    has_box_sides(&fields) || fields.iter().any(|field| BOXES.iter().any(|name| field.eq_ignore_ascii_case(name)))
}

/// Whether the sides of boxes are among the names of columns.
pub(super) fn has_box_sides(columns: &[&str]) -> bool {
    let has = |names: &[&str]| names.iter().all(|name| columns.iter().any(|column| column.eq_ignore_ascii_case(name)));
    has(&["xmin", "ymin", "xmax", "ymax"])
        || has(&["x_min", "y_min", "x_max", "y_max"])
        || has(&["x1", "y1", "x2", "y2"])
        || has(&["left", "top", "right", "bottom"])
        || has(&["left", "top", "width", "height"])
        || has(&["x", "y", "w", "h"])
        || has(&["x", "y", "width", "height"])
        || has(&["bbox_x", "bbox_y", "bbox_width", "bbox_height"])
}

fn json(text: &str, images: &ImageNames) -> Option<String> {
    let has = |key: &str| text.contains(&format!("\"{key}\""));
    let boxes = |what: &str| Some(format!("{what}, not read here; boxes are read from {BOX_LAYOUTS}"));
    if has("images") && has("annotations") && (has("categories") || has("bbox")) {
        return Some(
            "annotations like COCO's in a file whose name says nothing; name it after its part (annotations/instances_train.json, \
             train.json), or annotations.json where it holds all parts"
                .to_owned(),
        );
    }
    if has("shapes") && (has("imagePath") || has("imageHeight")) {
        return boxes("annotations of labelme");
    }
    if has("_via_img_metadata") || has("region_attributes") || has("shape_attributes") {
        return boxes("annotations of VIA");
    }
    if has("annotation_result") || has("from_name") || has("rectanglelabels") {
        return boxes("annotations of Label Studio");
    }
    if has("annotations") && (has("coordinates") || has("bbox")) {
        return boxes("annotations in a form that is not known");
    }
    if has("bbox") || has("boxes") || has("xmin") || (has("classTitle") && has("points")) {
        return boxes("boxes in a form that is not known");
    }
    let strings = text.split('"').skip(1).step_by(2);
    if has("classes") && has("labels") && strings.clone().take(1 << 14).any(|word| images.stems.contains(word)) {
        return Some("labels of FiftyOne, not read here; write them as a .csv of path,label".to_owned());
    }
    strings.take(1 << 14).any(|word| has_image_extension(Path::new(word)) && images.names(word)).then(|| {
        format!(
            "lists images in a form that is not known; labels are read from a .csv of path,label, from train.json with \
             {{\"path\": label}}, or from split_zhou_*.json; {MOVE_AWAY}"
        )
    })
}

fn xml(text: &str, images: &ImageNames) -> Option<String> {
    let is_voc = text.contains("<annotation>") || text.contains("<annotation ");
    let boxes = ["<annotations", "<object", "<box", "<image ", "<bndbox"].iter().any(|mark| text.contains(mark));
    let words =
        || text.split(['"', '>', '<', '\'']).any(|word| has_image_extension(Path::new(word)) && images.names(word));
    if is_voc {
        return Some(
            "annotations in Pascal VOC's form, but not where they are looked for: in Annotations/ beside JPEGImages/, or each \
             beside its image"
                .to_owned(),
        );
    }
    (boxes || words())
        .then(|| format!("annotations in XML of another kind than Pascal VOC's; boxes are read from {BOX_LAYOUTS}"))
}

fn yaml(text: &str) -> Option<String> {
    let has = |key: &str| text.lines().any(|line| line.starts_with(key));
    let is_yolo = (has("names:") || has("nc:")) && ["train:", "val:", "test:", "path:"].into_iter().any(has);
    is_yolo.then(|| {
        "settings of a YOLO data set, which are not read; call the one that is meant data.yaml, with train:, val: and names: in it"
            .to_owned()
    })
}

fn darknet(text: &str) -> Option<String> {
    let has = |key: &str| text.lines().any(|line| line.split_once('=').is_some_and(|(name, _)| name.trim() == key));
    (has("train") && has("names")).then(|| {
        "settings of a darknet data set, which are not read here; write a data.yaml with path:, train:, val: and names: beside it"
            .to_owned()
    })
}

/// A list of images, or labels beside one.
fn list(text: &str, stem: &str, is_sidecar: bool, images: &ImageNames) -> Option<String> {
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).take(LINES).collect();
    let first = lines.first()?;
    if lines.iter().all(|line| is_label(line)) {
        let is_one = is_sidecar || Split::from_name(stem).is_some();
        return is_one.then(|| {
            format!(
                "labels of YOLO (it begins with {}) without a data.yaml; write one with train:, val: and names: into the \
                 folder of the data set",
                shortened(first)
            )
        });
    }
    let words = |line: &str| -> (String, bool) {
        let mut words = line.split([' ', '\t', ',', ';']).filter(|word| !word.is_empty());
        (words.next().unwrap_or_default().to_owned(), words.next().is_some())
    };
    let says_more = lines.iter().any(|line| words(line).1);
    let is_part = Split::from_name(stem).is_some();
    let named = |line: &&str| images.names(line) || images.names(&words(line).0);
    let is_stem = |line: &&str| images.is_stem(&words(line).0);
    if lines.iter().any(named) && (says_more || is_part) {
        let has_boxes = lines.iter().any(|line| line.matches(',').count() >= 4);
        return Some(if has_boxes {
            format!(
                "a list of images with boxes ({}), which is not read here; boxes are read from {BOX_LAYOUTS}",
                shortened(first)
            )
        } else if says_more {
            format!(
                "a list of images and labels that is not read; call it train.txt, with a path and a label in each line; {MOVE_AWAY}"
            )
        } else {
            "a list of images of a part, without labels, which is not read; put the class folders of each part into a folder of \
             its own (train/, test/)"
                .to_owned()
        });
    }
    (is_part && lines.iter().all(is_stem))
        .then(|| format!("lists images of a part by names without their ends ({}), and is not read", shortened(first)))
}

/// Whether `line` is one of YOLO's labels: a number of a class and at least four coordinates.
fn is_label(line: &str) -> bool {
    let mut words = line.split_whitespace();
    words.next().is_some_and(|class| class.parse::<u32>().is_ok())
        && line.split_whitespace().count() > 4
        && words.all(|word| word.parse::<f64>().is_ok())
}

/// `text`, or its beginning if it is long.
fn shortened(text: &str) -> String {
    let text = text.trim();
    let start: String = text.chars().take(60).collect();
    if start.len() < text.len() { start + "…" } else { start }
}
