//! `audit.csv`: a row for each finding, to act on.

use super::{Audit, Audited};
use vpt_base::{Error, Result};

const HEADER: [&str; 11] = [
    "kind",
    "path",
    "box",
    "part",
    "label",
    "suggestion",
    "score",
    "other_path",
    "other_box",
    "other_part",
    "other_label",
];

/// What was found, the doubtful labels first. The score is that of the label (lower is more doubtful), the correlation of two pictures
/// (higher is surer) or the distance of an outlier (higher is farther).
pub(super) fn csv(audit: &Audit) -> Result<Vec<u8>> {
    let bad = |error: csv::Error| Error::file(&audit.table, error.to_string());
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record(HEADER).map_err(bad)?;
    let none = ["", "", "", ""].map(str::to_owned);
    for doubt in &audit.doubtful {
        let score = doubt.given / doubt.likely;
        row(&mut writer, "doubtful-label", &doubt.image, &doubt.suggestion, f64::from(score), &none).map_err(bad)?;
    }
    for pair in &audit.duplicates {
        let kind = if pair.across_parts { "duplicate-across-parts" } else { "duplicate" };
        row(&mut writer, kind, &pair.first, "", pair.correlation, &fields(&pair.second)).map_err(bad)?;
    }
    for outlier in &audit.outliers {
        row(&mut writer, "outlier", &outlier.image, "", outlier.distance, &none).map_err(bad)?;
    }
    writer.into_inner().map_err(|error| Error::file(&audit.table, error.to_string()))
}

fn row(
    writer: &mut csv::Writer<Vec<u8>>,
    kind: &str,
    image: &Audited,
    suggestion: &str,
    score: f64,
    other: &[String; 4],
) -> Result<(), csv::Error> {
    let [path, place, part, label] = fields(image);
    let score = format!("{score:.4}");
    let own = [kind, &path, &place, &part, &label, suggestion, &score];
    writer.write_record(own.into_iter().chain(other.iter().map(String::as_str)))
}

/// Path, box, part and label.
fn fields(image: &Audited) -> [String; 4] {
    let place = image.bbox.map(|sides| sides.map(|side| side.to_string()).join(" ")).unwrap_or_default();
    [image.path.clone(), place, image.part.to_string(), image.label.clone()]
}
