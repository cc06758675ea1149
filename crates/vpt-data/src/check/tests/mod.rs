//! Small broken data sets, one defect each beside what it brings with it: kind, file and line must be told.

mod box_files;
mod folders;
mod idx_files;
mod lists;
mod not_misread;
mod samples;
mod tables;

use std::fs;
use std::path::Path;

use image::{ImageFormat, RgbImage};

use super::{FindingKind, Severity, check, notes};

/// A folder to seed defects in.
struct Set(tempfile::TempDir);

/// A picture like no other, encoded.
fn picture(seed: u32, format: ImageFormat) -> Vec<u8> {
    sized(24, 20, seed, format)
}

fn sized(width: u32, height: u32, seed: u32, format: ImageFormat) -> Vec<u8> {
    let pixel = |x, y| image::Rgb([(x * 9 + seed) as u8, (y * 7 + seed * 31) as u8, (x * y + seed / 256) as u8]);
    let mut out = std::io::Cursor::new(Vec::new());
    RgbImage::from_fn(width, height, pixel).write_to(&mut out, format).unwrap();
    out.into_inner()
}

impl Set {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) -> &Self {
        assert!(Path::new(name).is_relative(), "{name}");
        let path = self.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
        self
    }

    /// Classes `cat` and `dog` with four pictures each, in each of `parts`.
    fn classes(parts: &[&str]) -> Self {
        let set = Self::new();
        let mut seed = 0;
        for part in parts {
            for class in ["cat", "dog"] {
                for number in 1..=4 {
                    let name = Path::new(part).join(class).join(format!("{number}.png"));
                    set.write(name.to_str().unwrap(), picture(seed, ImageFormat::Png));
                    seed += 1;
                }
            }
        }
        set
    }

    /// Kind, file in this folder and line of what the check finds.
    fn found(&self, fast: bool) -> Vec<(FindingKind, String, Option<u64>)> {
        self.found_in("", fast)
    }

    fn found_in(&self, data: &str, fast: bool) -> Vec<(FindingKind, String, Option<u64>)> {
        let report = check(&self.path().join(data), fast, &mut |_, _| {}).unwrap();
        let counted = (report.errors + report.warnings, report.kinds.values().sum::<usize>());
        assert_eq!(counted, (report.findings.len(), report.findings.len()));
        let name = |path: &Path| path.strip_prefix(self.path()).unwrap_or(path).to_string_lossy().into_owned();
        report.findings.iter().map(|finding| (finding.kind, name(&finding.path), finding.line)).collect()
    }

    /// The check finds exactly this.
    #[track_caller]
    fn holds(&self, expected: &[(FindingKind, &str, Option<u64>)]) {
        let expected: Vec<_> = expected.iter().map(|(kind, path, line)| (*kind, (*path).to_owned(), *line)).collect();
        assert_eq!(self.found(false), expected);
    }
}

/// The severities of what is found in `set`.
fn severities(set: &Set) -> Vec<Severity> {
    check(set.path(), false, &mut |_, _| {}).unwrap().findings.iter().map(|finding| finding.severity).collect()
}

#[test]
fn good_sets_of_every_layout_are_good() {
    use crate::boxes::{BoxDataset, BoxLayout, convert};
    use crate::shapes::{ShapesConfig, ShapesTask, write_coco, write_folder};
    let set = Set::new();
    let config = ShapesConfig { images: 320, size: 32, ..ShapesConfig::default() };
    write_folder(&set.path().join("folder"), &config).unwrap();
    write_coco(&set.path().join("coco"), &ShapesConfig { images: 96, task: ShapesTask::Detect, size: 64, ..config })
        .unwrap();
    let coco = BoxDataset::open(set.path().join("coco"), 1).unwrap();
    convert(&coco, BoxLayout::Yolo, &set.path().join("yolo")).unwrap();
    convert(&coco, BoxLayout::Voc, &set.path().join("voc")).unwrap();
    for layout in ["folder", "coco", "yolo", "voc"] {
        let mut done = Vec::new();
        let report = check(&set.path().join(layout), false, &mut |now, of| done.push((now, of))).unwrap();
        assert_eq!((report.layout, &report.findings[..]), (Some(layout), &[][..]));
        assert_eq!(done.last(), Some(&(report.images, report.images)), "progress reaches its end");
        assert_eq!(set.found_in(layout, true), [], "{layout}, fast");
    }
}

#[test]
fn what_is_not_there_is_an_error_and_what_is_no_set_is_refused() {
    let set = Set::new();
    assert!(check(&set.path().join("nowhere"), false, &mut |_, _| {}).is_err());
    set.write("notes.txt", "text").holds(&[(FindingKind::Refused, "", None)]);
}

#[test]
fn a_run_tells_warnings_and_leaves_errors_to_where_they_stop_it() {
    let set = Set::classes(&[""]);
    assert_eq!(notes(set.path()), [""; 0]);
    set.write("cat/5.png", "");
    assert_eq!(notes(set.path()), [""; 0], "one error, which the run tells");
    for number in 0..9 {
        set.write(&format!("dog/{number}.avif"), "");
    }
    let lines = notes(set.path());
    assert_eq!(lines.len(), 6, "{lines:?}");
    assert!(lines[0].ends_with("[unsupported-file]"), "{lines:?}");
    assert!(lines[5].starts_with("10 findings in the data: see `vpt data check "), "{lines:?}");
    assert_eq!(notes(&set.path().join("nowhere")), [""; 0]);
}
