//! Tables with lists of boxes: `objects` with `bbox` and `category`, or such columns on their own.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use rayon::prelude::*;

use super::features::HubFeatures;
use super::table::{KeptPages, ListRow, ParquetTable};
use super::{ShardFile, Shards, pictures};
use crate::ImageSource;
use crate::boxes::{
    AnnotatedImage, AnnotatedObject, AnnotatedSet, BoxDataset, BoxExtent, Category, PlaceInFile, Problem, ProblemKind,
    Remedy,
};
use crate::check::{Checking, FindingKind, Findings, ListedImage, repeated_boxes};
use crate::formats::BoxFiles;
use crate::open::sort_classes;
use vpt_base::{Error, Result};

/// What columns are called: of boxes, of the categories beside them.
const BOXES: [&str; 4] = ["bbox", "bboxes", "boxes", "box"];
const CATEGORIES: [&str; 9] =
    ["category", "categories", "label", "labels", "category_id", "category_ids", "class", "classes", "class_id"];

/// Parts of a column's name that only say that it is a list.
const LIST_WORDS: [&str; 4] = ["list", "element", "item", "array"];

/// The columns of boxes in a table.
pub(super) struct BoxColumns {
    boxes: usize,
    categories: usize,
    /// What the column of categories is called, from the outermost name on.
    path: Vec<String>,
    areas: Option<usize>,
    crowds: Option<usize>,
}

impl BoxColumns {
    /// The columns of `table`; none if there are none.
    pub(super) fn of(table: &ParquetTable) -> Option<Self> {
        let columns: Vec<(Vec<&str>, bool)> = table.columns().map(|(parts, many)| (plain(parts), many)).collect();
        let boxes = BOXES.iter().find_map(|name| {
            columns.iter().position(|(path, many)| *many && path.len() <= 2 && path.last() == Some(name))
        })?;
        let beside = &columns[boxes].0[..columns[boxes].0.len() - 1];
        let find = |name: &str| {
            columns.iter().position(|(path, many)| {
                *many && path.split_last().is_some_and(|(last, before)| *last == name && before == beside)
            })
        };
        let categories = CATEGORIES.iter().find_map(|name| find(name))?;
        let path = columns[categories].0.iter().map(|part| (*part).to_owned()).collect();
        let crowds = find("iscrowd").or_else(|| find("is_crowd"));
        Some(Self { boxes, categories, path, areas: find("area"), crowds })
    }
}

/// A column's name without what says that it is a list.
fn plain(parts: &[String]) -> Vec<&str> {
    let named = parts.iter().enumerate().filter(|(i, part)| *i == 0 || !LIST_WORDS.contains(&part.as_str()));
    named.map(|(_, part)| part.as_str()).collect()
}

/// Tables with boxes in each row.
pub(super) struct BoxTables(pub(super) Shards);

/// A picture and the objects in it, of categories by name.
struct BoxedPicture {
    image: AnnotatedImage,
    categories: Vec<String>,
}

/// What a file holds.
struct BoxedFile {
    pictures: Vec<BoxedPicture>,
    /// What its categories are called, by their numbers.
    names: Option<Vec<String>>,
}

fn read(path: &Path, kept: &Arc<KeptPages>) -> Result<BoxedFile> {
    let table = Arc::new(ParquetTable::open(path)?);
    let Some(columns) = BoxColumns::of(&table) else {
        return Err(Error::data(path, "no columns of boxes and categories, such as objects with bbox and category"));
    };
    let column_path: Vec<&str> = columns.path.iter().map(String::as_str).collect();
    let names = HubFeatures::parse(table.remark("huggingface")).class_names(&column_path);
    let (boxes, categories) = (table.numbers(columns.boxes)?, table.lists(columns.categories)?);
    let extra = |column: Option<usize>| column.map(|column| table.numbers(column)).transpose();
    // Crowds are also written as booleans, which have no numbers.
    let (areas, crowds) = (extra(columns.areas)?, columns.crowds.map(|column| table.flags(column)).transpose()?);
    let side = |name: &str| -> Result<Option<Vec<Option<String>>>> {
        let column = table.column(&[name]).filter(|column| table.is_integer(*column));
        column.map(|column| table.texts(column)).transpose()
    };
    let (widths, heights) = (side("width")?, side("height")?);
    let container = pictures(&table, kept)?;
    let source: Arc<Path> = path.into();
    let mut out = Vec::with_capacity(boxes.len());
    for (row, (boxes, categories)) in boxes.into_iter().zip(categories).enumerate() {
        let place = Some(PlaceInFile::Row(row as u64));
        let at = |message: String| Error::data(path, format!("row {row}: {message}"));
        let extents = extents(&boxes).map_err(at)?;
        if extents.len() != categories.values.len() {
            return Err(at(format!("{} boxes and {} categories", extents.len(), categories.values.len())));
        }
        // What is not there for every box is there for none.
        let of_each = |all: &Option<Vec<ListRow<f64>>>, i: usize| {
            all.as_ref()
                .map(|all| &all[row].values)
                .filter(|values| values.len() == extents.len())
                .map(|values| values[i])
        };
        let object = |(i, extent): (usize, &[f64; 4])| AnnotatedObject {
            id: 0,
            place,
            category: 0,
            extent: BoxExtent::Pixels(*extent),
            area: of_each(&areas, i),
            crowd: of_each(&crowds, i).is_some_and(|flag| flag > 0.),
        };
        let objects = extents.iter().enumerate().map(object).collect();
        let number = |all: &Option<Vec<Option<String>>>| all.as_ref()?[row].as_ref()?.parse::<usize>().ok();
        let declared = number(&widths).zip(number(&heights)).map(|(w, h)| [w, h]);
        let image = ImageSource::Member { container: container.clone(), index: row };
        let image = AnnotatedImage { id: 0, image, declared, source: source.clone(), place, objects };
        out.push(BoxedPicture { image, categories: categories.values });
    }
    Ok(BoxedFile { pictures: out, names })
}

/// Four numbers a box.
fn extents(row: &ListRow<f64>) -> Result<Vec<[f64; 4]>, String> {
    let ends = row.starts.iter().skip(1).copied().chain([row.values.len()]);
    row.starts
        .iter()
        .zip(ends)
        .map(|(&from, to)| row.values[from..to].try_into().map_err(|_| format!("a box of {} numbers", to - from)))
        .collect()
}

impl BoxFiles for BoxTables {
    fn open(&self) -> Result<AnnotatedSet> {
        let Self(shards) = self;
        let kept = Arc::default();
        let files: Vec<&ShardFile> = shards.used().collect();
        let all: Vec<_> = files.par_iter().map(|file| read(&file.path, &kept)).collect();
        let all: Vec<BoxedFile> = all.into_iter().collect::<Result<_>>()?;
        // Names by number, if files give them; else what occurs.
        let names = all.iter().find_map(|file| file.names.clone());
        let names = names.unwrap_or_else(|| {
            let occurs = all.iter().flat_map(|file| &file.pictures).flat_map(|picture| &picture.categories);
            let mut names: Vec<String> = occurs.cloned().collect();
            names.sort();
            names.dedup();
            sort_classes(&mut names);
            names
        });
        if names.is_empty() {
            return Err(Error::data(&shards.root, "there are no boxes, and no file says what they could be of"));
        }
        let mut problems = Vec::new();
        let mut held = Vec::with_capacity(all.len());
        for file in all {
            let has_names = file.names.is_some();
            if file.names.as_ref().is_some_and(|these| *these != names) {
                let path = file.pictures.first().map_or(&*shards.root, |p| &p.image.source);
                return Err(Error::data(path, "its categories have other names than those of the first file"));
            }
            held.push(numbered(file.pictures, &names, has_names, &mut problems));
        }
        let categories = (1..).zip(names).map(|(id, name)| Category { id, name }).collect();
        let parts = shards.to_parts(held)?;
        Ok(AnnotatedSet {
            root: crate::boxes::normal(&shards.root),
            categories,
            parts,
            has_ids: false,
            problems,
            absent: Vec::new(),
        })
    }

    fn open_piecewise(&self) -> (Vec<Problem>, Vec<Error>) {
        let kept = Arc::default();
        let files: Vec<&ShardFile> = self.0.used().collect();
        (Vec::new(), files.par_iter().filter_map(|file| read(&file.path, &kept).err()).collect())
    }

    fn check_texts(&self, check: &mut Checking<'_>) {
        self.0.check(check);
    }

    fn check_opened(&mut self, data: &BoxDataset, _listed: &[ListedImage], out: &mut Findings) {
        repeated_boxes(data, |image, object, _, _| {
            let name = &data.categories[object.category].name;
            let member = image.image.member().unwrap_or_default();
            let message = format!("{member}: two equal boxes of '{name}'");
            out.warning(FindingKind::DuplicateBox, image.file(), None, message);
        });
    }
}

/// `pictures` with the positions of their categories in `names`. Those that are numbers are ones if there `are_numbers`.
fn numbered(
    pictures: Vec<BoxedPicture>,
    names: &[String],
    are_numbers: bool,
    problems: &mut Vec<Problem>,
) -> Vec<AnnotatedImage> {
    let by_name: BTreeMap<&str, usize> = names.iter().map(String::as_str).zip(0..).collect();
    let find = |category: &str| match category.parse::<usize>() {
        Ok(number) if are_numbers => (number < names.len()).then_some(number),
        _ => by_name.get(category).copied(),
    };
    let mut out = Vec::with_capacity(pictures.len());
    for BoxedPicture { mut image, categories } in pictures {
        let objects = std::mem::take(&mut image.objects);
        for (object, category) in objects.into_iter().zip(categories) {
            if let Some(category) = find(&category) {
                image.objects.push(AnnotatedObject { category, ..object });
            } else {
                problems.push(Problem {
                    kind: ProblemKind::UnknownCategory,
                    remedy: Remedy::ObjectDropped,
                    file: image.source.to_path_buf(),
                    place: object.place,
                    detail: format!("category {category} of {}", names.len()),
                });
            }
        }
        out.push(image);
    }
    out
}
