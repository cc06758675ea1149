//! A data set looked at with the eyes of a backbone: pictures that are there twice, labels that may be wrong, pictures like no other,
//! and classes that are alike. `vpt data check` finds what a file says; this finds what only somebody who looks would.
//!
//! Everything is computed from the features of the images, through the feature cache, so a second audit takes seconds. Boxes are looked at as
//! images of their own. Where an image may have several classes, each class is a question of yes or no.

mod duplicates;
mod labels;
mod neighbors;
mod outliers;
mod page;
mod table;

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::Serialize;

use self::labels::{ASKED, AlikeClasses, FEWEST, JudgedLabels};
use self::neighbors::Neighbors;
use crate::feature_cache::{self, FeatureCache};
use crate::train::features::extract::{Extractor, FeatureView};
use crate::train::observer::Observer;
use crate::train::process_group::ProcessGroup;
use crate::train::run_folder::RunFolder;
use vpt_backbone::{Backbone, OpenOptions};
use vpt_base::{Error, Message, Result, linear_algebra::normalize_l2};
use vpt_data::boxes::{BoxDataset, Rect};
use vpt_data::{Dataset, Digest, LabelSets, Layout, MultilabelDataset, Sample, Split, Unreadable};

/// The page of pictures, in the folder of an audit.
pub const PAGE: &str = "audit.html";
/// The table to act on, in the folder of an audit.
pub const TABLE: &str = "audit.csv";
/// Sides of the smallest boxes that are looked at, in pixels.
const SMALLEST: f64 = 8.;

/// What is looked at, and how.
#[derive(Debug, Clone)]
pub struct AuditConfig {
    /// Folder or file of the data set.
    pub data: PathBuf,
    /// Name or folder of the backbone.
    pub backbone: String,
    /// How it is opened.
    pub options: OpenOptions,
    /// Where features are kept.
    pub cache_dir: Option<PathBuf>,
    /// Threads to compute with.
    pub threads: usize,
    /// Seed of parts that are missing.
    pub seed: u64,
    /// The folder to fill, new or empty; a fresh one below `audits` by default.
    pub out: Option<PathBuf>,
}

/// An image, or a box in one, and what the data set says of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Audited {
    /// The image's file, or its name where it has none of its own.
    pub path: String,
    /// Left, top, width and height in pixels, of a box.
    pub bbox: Option<[f64; 4]>,
    /// The part it is in.
    pub part: Split,
    /// Its class; of several classes their names with commas between them.
    pub label: String,
    #[serde(skip)]
    sample: usize,
}

/// A label that may be wrong.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DoubtfulLabel {
    /// Whose.
    #[serde(flatten)]
    pub image: Audited,
    /// The likeliest class; of several classes `+name` for one that seems to be missing and `-name` for one too many.
    pub suggestion: String,
    /// Probability of the label.
    pub given: f32,
    /// Probability of the suggestion.
    pub likely: f32,
}

/// In which way two pictures are the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Likeness {
    /// All pixels are.
    Equal,
    /// The one may be written again, scaled or brightened.
    Near,
    /// As [`Near`](Self::Near), and mirrored.
    Mirrored,
}

/// Two pictures that are the same, or nearly so.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DuplicatePair {
    /// The one.
    pub first: Audited,
    /// The other.
    pub second: Audited,
    /// Correlation of their pixels at a small size.
    pub correlation: f64,
    /// In which way they are the same.
    pub likeness: Likeness,
    /// Whether they are in two parts.
    pub across_parts: bool,
    /// Whether their labels differ.
    pub other_label: bool,
}

/// A picture far from all others.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Outlier {
    /// Which.
    #[serde(flatten)]
    pub image: Audited,
    /// One less the mean cosine of its features with those of its nearest neighbours.
    pub distance: f64,
}

/// Two classes that are hard to tell apart.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AlikePair {
    /// The classes.
    pub classes: [String; 2],
    /// Mean share of the probability of an image of either that the other one gets.
    pub share: f64,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Audit {
    /// The data set's name.
    pub data: String,
    /// How it lies on disk.
    pub layout: Layout,
    /// Where the parts come from.
    pub split_note: String,
    /// The backbone's name.
    pub backbone: String,
    /// Whether boxes were looked at, each as an image.
    pub boxes: bool,
    /// Images, or boxes, that were looked at.
    pub images: usize,
    /// Boxes too small to be looked at.
    pub too_small: usize,
    /// Classes.
    pub classes: usize,
    /// Classes with too few images for their labels to be judged.
    pub not_judged: Vec<String>,
    /// Images that cannot be read, and were left out.
    pub unreadable: Vec<Unreadable>,
    /// Labels that may be wrong, the most doubtful first.
    pub doubtful: Vec<DoubtfulLabel>,
    /// Pictures that are there twice, the surest first.
    pub duplicates: Vec<DuplicatePair>,
    /// Pictures far from all others, the farthest first.
    pub outliers: Vec<Outlier>,
    /// Classes that are hard to tell apart, the most alike first.
    pub alike: Vec<AlikePair>,
    /// The page of pictures.
    pub page: PathBuf,
    /// The table.
    pub table: PathBuf,
    /// Seconds it took.
    pub wall_s: f64,
}

/// What is looked at: all parts, one after another.
struct Subject {
    name: String,
    layout: Layout,
    split_note: String,
    classes: Vec<String>,
    samples: Vec<(Split, Sample)>,
    /// Of boxes, where they are.
    rects: Option<Vec<Rect>>,
    /// Of several classes an image, the sets of them.
    sets: Option<LabelSets>,
    too_small: usize,
}

impl Subject {
    fn open(data: &Path, seed: u64) -> Result<Self> {
        if let Some(layout) = BoxDataset::recognize(data) {
            let (crops, places, too_small) = BoxDataset::open(data, seed)?.crops(SMALLEST);
            let rects = Some(places.concat());
            return Ok(Self { layout, rects, too_small, ..Self::of(crops, None) });
        }
        if MultilabelDataset::recognize(data).is_some() {
            let MultilabelDataset { dataset, sets, .. } = MultilabelDataset::open(data, seed, true)?;
            return Ok(Self::of(dataset, Some(sets)));
        }
        Ok(Self::of(Dataset::open(data, seed)?, None))
    }

    fn of(data: Dataset, sets: Option<LabelSets>) -> Self {
        let Dataset { name, layout, split_note, classes, train, val, test } = data;
        let parts = Split::ALL.into_iter().zip([train, val, test]);
        let samples = parts.flat_map(|(split, part)| part.into_iter().map(move |sample| (split, sample))).collect();
        Self { name, layout, split_note, classes, samples, rects: None, sets, too_small: 0 }
    }

    /// Takes out those at the positions `bad`, which ascend.
    fn leave_out(&mut self, bad: &[usize]) {
        let mut at = 0..;
        let mut keep = || at.next().is_some_and(|i: usize| bad.binary_search(&i).is_err());
        self.samples.retain(|_| keep());
        let mut at = 0..;
        let mut keep = || at.next().is_some_and(|i: usize| bad.binary_search(&i).is_err());
        if let Some(rects) = &mut self.rects {
            rects.retain(|_| keep());
        }
    }

    /// What is told of the image `i`.
    fn audited(&self, i: usize) -> Result<Audited> {
        let (part, sample) = &self.samples[i];
        let rect = self.rects.as_ref().map(|rects| rects[i]);
        let path = match rect {
            Some(_) => sample.image.file().map_or_else(|| sample.id.clone(), |file| file.display().to_string()),
            None => sample.path().display().to_string(),
        };
        let label = match &self.sets {
            Some(sets) => sets.names(sample.label, &self.classes)?,
            None => self.classes[sample.label as usize].clone(),
        };
        let bbox = rect.map(|Rect { x, y, width, height }| [x, y, width, height]);
        Ok(Audited { path, bbox, part: *part, label, sample: i })
    }
}

/// Looks at a data set and writes the page and the table; `None` when the observer asked to stop.
///
/// # Errors
/// The data set, the backbone or the folder cannot be opened, or a file cannot be written.
pub fn audit(config: &AuditConfig, observer: &mut dyn Observer) -> Result<Option<Audit>> {
    let started = Instant::now();
    if let Some(out) = &config.out {
        refuse_full(out)?;
    }
    let mut subject = Subject::open(&config.data, config.seed)?;
    let backbone = Backbone::open(&config.backbone, &config.options)?;
    let extractor = Extractor {
        group: ProcessGroup::default(),
        backbone: &backbone,
        preprocess: backbone.preprocess.clone(),
        precision: config.options.precision,
        cache: config.cache_dir.clone().map(|root| FeatureCache::new(root, feature_cache::limit())),
        threads: config.threads,
    };
    let Some((digests, unreadable)) = read(&mut subject, &extractor, observer)? else { return Ok(None) };
    let Some(features) = features(&subject, &digests, &extractor, observer)? else { return Ok(None) };
    let width = backbone.vit.width();
    let (mut centered, mut unit) = (centered(&features, width), features);
    normalize_l2(&mut centered, width);
    normalize_l2(&mut unit, width);
    let neighbors = Neighbors::new(&centered, width, ASKED, config.threads)?;
    let judged = judge(&subject, &centered, &neighbors)?;
    let samples: Vec<&Sample> = subject.samples.iter().map(|(_, sample)| sample).collect();
    let same = duplicates::find(&samples, &digests, &neighbors, config.threads)?;
    let pair = |pair: duplicates::SamePicture| -> Result<DuplicatePair> {
        let [a, b] = pair.images;
        let (first, second) = (subject.audited(a)?, subject.audited(b)?);
        let (across_parts, other_label) = (first.part != second.part, first.label != second.label);
        let duplicates::SamePicture { correlation, likeness, .. } = pair;
        Ok(DuplicatePair { first, second, correlation, likeness, across_parts, other_label })
    };
    let far = outliers::find(&unit, width, &neighbors);
    let folder = match &config.out {
        Some(out) => RunFolder::create(out)?,
        None => RunFolder::create_numbered(Path::new("audits"), &subject.name)?,
    };
    let name = |class: usize| subject.classes[class].clone();
    let alike = |AlikeClasses { classes, share }: AlikeClasses| AlikePair { classes: classes.map(name), share };
    let mut found = Audit {
        data: subject.name.clone(),
        layout: subject.layout,
        split_note: subject.split_note.clone(),
        backbone: backbone.name.clone(),
        boxes: subject.rects.is_some(),
        images: subject.samples.len(),
        too_small: subject.too_small,
        classes: subject.classes.len(),
        not_judged: judged.labels.rare.iter().map(|&class| name(class)).collect(),
        unreadable,
        doubtful: judged.doubtful,
        duplicates: same.into_iter().map(pair).collect::<Result<_>>()?,
        outliers: far
            .into_iter()
            .map(|far| Ok(Outlier { image: subject.audited(far.image)?, distance: far.distance }))
            .collect::<Result<_>>()?,
        alike: judged.labels.alike.into_iter().map(alike).collect(),
        page: folder.file(PAGE),
        table: folder.file(TABLE),
        wall_s: 0.,
    };
    folder.write(PAGE, page::html(&found, &samples)?)?;
    folder.write(TABLE, table::csv(&found)?)?;
    found.wall_s = started.elapsed().as_secs_f64();
    Ok(Some(found))
}

/// Refuses a folder with something in it, before anything is computed.
fn refuse_full(out: &Path) -> Result<()> {
    if std::fs::read_dir(out).is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(Error::file(out, Message::from("is not empty; give another ").field("out")));
    }
    Ok(())
}

/// Digests of the images of `subject`, from which those that cannot be read are taken out and told.
fn read(
    subject: &mut Subject,
    extractor: &Extractor<'_>,
    observer: &mut dyn Observer,
) -> Result<Option<(Vec<Digest>, Vec<Unreadable>)>> {
    let (mut digests, mut unreadable, mut bad) = (Vec::new(), Vec::new(), Vec::new());
    let mut first = 0;
    for split in Split::ALL {
        let samples = part(subject, split);
        let Some(read) = extractor.read(&samples, split, observer)? else { return Ok(None) };
        digests.extend(read.digests);
        for (i, error) in read.unreadable {
            bad.push(first + i);
            unreadable.push(Unreadable { split, id: samples[i].id.clone(), error });
        }
        first += samples.len();
    }
    bad.sort_unstable();
    subject.leave_out(&bad);
    if subject.samples.is_empty() {
        let why = unreadable.first().map_or_else(|| "there are none".to_owned(), |first| first.error.clone());
        return Err(Error::invalid(format!("data set {}", subject.name), format!("no image to look at: {why}")));
    }
    Ok(Some((digests, unreadable)))
}

/// The samples of `split`.
fn part(subject: &Subject, split: Split) -> Vec<Sample> {
    let all = subject.samples.iter().filter(|(part, _)| *part == split);
    all.map(|(_, sample)| sample.clone()).collect()
}

/// Features of all images, `[n, D]`.
fn features(
    subject: &Subject,
    digests: &[Digest],
    extractor: &Extractor<'_>,
    observer: &mut dyn Observer,
) -> Result<Option<Vec<f32>>> {
    let (mut all, mut first) = (Vec::new(), 0);
    for split in Split::ALL {
        let samples = part(subject, split);
        let known = &digests[first..first + samples.len()];
        let Some(values) = extractor.images(&samples, known, &[FeatureView::Plain], split, observer)? else {
            return Ok(None);
        };
        all.extend(values);
        first += samples.len();
    }
    Ok(Some(all))
}

/// `features` `[n, D]` less their mean.
fn centered(features: &[f32], width: usize) -> Vec<f32> {
    let mut mean = vec![0f64; width];
    for row in features.chunks_exact(width) {
        mean.iter_mut().zip(row).for_each(|(sum, &value)| *sum += f64::from(value));
    }
    let count = (features.len() / width.max(1)).max(1) as f64;
    let less = |row: &[f32]| row.iter().zip(&mean).map(|(&v, m)| (f64::from(v) - m / count) as f32).collect::<Vec<_>>();
    features.chunks_exact(width).flat_map(less).collect()
}

/// Labels as they were judged, and those that are doubtful in words.
struct Judgement {
    labels: JudgedLabels,
    doubtful: Vec<DoubtfulLabel>,
}

fn judge(subject: &Subject, unit: &[f32], neighbors: &Neighbors) -> Result<Judgement> {
    let Some(sets) = &subject.sets else {
        let own: Vec<u32> = subject.samples.iter().map(|(_, sample)| sample.label).collect();
        let labels = labels::judge(unit, neighbors, &own, subject.classes.len())?;
        let told = labels.doubtful.iter().map(|doubt| {
            let suggestion = subject.classes[doubt.suggestion as usize].clone();
            let (given, likely) = (doubt.given, doubt.likely);
            Ok(DoubtfulLabel { image: subject.audited(doubt.image)?, suggestion, given, likely })
        });
        let doubtful = told.collect::<Result<_>>()?;
        return Ok(Judgement { labels, doubtful });
    };
    let own: Vec<u32> = subject.samples.iter().map(|(_, sample)| sample.label).collect();
    let truth = sets.truth(&own)?;
    let classes = subject.classes.len();
    let mut all = Judgement { labels: JudgedLabels::default(), doubtful: Vec::new() };
    for (class, name) in subject.classes.iter().enumerate() {
        let has: Vec<u32> = truth.iter().skip(class).step_by(classes).map(|&has| u32::from(has)).collect();
        let count = has.iter().filter(|&&has| has == 1).count();
        if count.min(has.len() - count) < FEWEST {
            all.labels.rare.push(class);
            continue;
        }
        for doubt in labels::judge(unit, neighbors, &has, 2)?.doubtful {
            let suggestion = format!("{}{name}", if doubt.suggestion == 1 { '+' } else { '-' });
            let (given, likely) = (doubt.given, doubt.likely);
            all.doubtful.push(DoubtfulLabel { image: subject.audited(doubt.image)?, suggestion, given, likely });
        }
    }
    all.doubtful.sort_by(|a, b| a.given.total_cmp(&b.given));
    Ok(all)
}
