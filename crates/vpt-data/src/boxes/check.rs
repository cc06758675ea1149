//! From what a file says to what holds: every box is checked against the image that it is in.
//!
//! Boxes are rounded to a thousandth of a pixel, cut at the image's border and left out if nothing remains. An image is as
//! large as its file says, the right way up; boxes that were drawn in it as it is stored are turned with it.

use std::path::Path;
use std::sync::Arc;

use image::metadata::Orientation;

use super::problem::{PlaceInFile, Problem, ProblemKind, Remedy};
use super::{BoxImage, Object, Rect};
use crate::ImageSource;

/// How far past the border a box may reach, in pixels, before it is more than rounding: six decimals of a fraction of
/// 10,000 pixels.
const ROUNDING: f64 = 0.02;

/// An image as the annotations describe it.
pub(crate) struct AnnotatedImage {
    /// Its id; 0 where the format has none.
    pub(crate) id: u64,
    pub(crate) image: ImageSource,
    /// Width and height according to the annotations.
    pub(crate) declared: Option<[usize; 2]>,
    /// The file with the annotations, or the list that names the image.
    pub(crate) source: Arc<Path>,
    /// Where in it the image is.
    pub(crate) place: Option<PlaceInFile>,
    pub(crate) objects: Vec<AnnotatedObject>,
}

/// An object as the annotations describe it.
pub(crate) struct AnnotatedObject {
    /// Its id; 0 where the format has none.
    pub(crate) id: u64,
    pub(crate) place: Option<PlaceInFile>,
    pub(crate) category: usize,
    pub(crate) extent: BoxExtent,
    pub(crate) area: Option<f64>,
    pub(crate) crowd: bool,
}

/// A box: left, top, width, height.
#[derive(Clone, Copy)]
pub(crate) enum BoxExtent {
    /// In pixels.
    Pixels([f64; 4]),
    /// In fractions of the image's width and height.
    Fractions([f64; 4]),
}

/// Checks `image`, which is in the data set in `root`. None if it cannot be part of the data set.
pub(crate) fn verify(root: &Path, image: AnnotatedImage) -> (Option<BoxImage>, Vec<Problem>) {
    let AnnotatedImage { id, image, declared, source, place, objects } = image;
    let mut problems = Vec::new();
    let at_source = |kind, remedy, place, detail| Problem { kind, remedy, file: source.to_path_buf(), place, detail };
    let file = image.file().unwrap_or(Path::new("")).to_path_buf();
    if !file.exists() {
        let hint = if file.to_string_lossy().contains('\\') { "; write paths with /" } else { "" };
        let detail = format!("{} is not there{hint}", file.display());
        problems.push(at_source(ProblemKind::MissingImage, Remedy::ImageDropped, place, detail));
        return (None, problems);
    }
    let [width, height] = match image.size() {
        Ok(size) => size,
        Err(error) => {
            let detail = error.to_string();
            problems.push(at_source(ProblemKind::UnreadableImage, Remedy::ImageDropped, place, detail));
            return (None, problems);
        }
    };
    // A size that is right but for the turn says that the boxes lie as the sensor did.
    let may_lie = width != height && declared == Some([height, width]);
    let orientation = if may_lie { image.orientation() } else { Orientation::NoTransforms };
    let lies = orientation != Orientation::NoTransforms;
    if let Some([w, h]) = declared.filter(|&d| d != [width, height] && !lies) {
        let detail = format!("{w}x{h} pixels here, {width}x{height} in {}", file.display());
        problems.push(at_source(ProblemKind::SizeMismatch, Remedy::FileHolds, place, detail));
    }
    let mut kept = Vec::with_capacity(objects.len());
    for object in objects {
        let mut report = |kind, remedy, detail| problems.push(at_source(kind, remedy, object.place, detail));
        let stated = match object.extent {
            BoxExtent::Pixels(extent) => turned(extent, [width, height], orientation),
            BoxExtent::Fractions([x, y, w, h]) => {
                [x * width as f64, y * height as f64, w * width as f64, h * height as f64]
            }
        };
        let Some(rect) = rounded(stated, &mut report).and_then(|r| clipped(r, [width, height], &mut report)) else {
            continue;
        };
        if object.crowd {
            report(ProblemKind::Crowd, Remedy::Kept, "a crowd in one box".into());
        }
        // An area that only repeats the box follows it to the border.
        let own = object.area.filter(|&a| a > 0. && a.is_finite() && !is_product(a, stated));
        let (area, category, crowd) = (own.unwrap_or_else(|| rect.area()), object.category, object.crowd);
        kept.push(Object { id: object.id, category, rect, area, crowd });
    }
    let name = image.id(root);
    (Some(BoxImage { id, name, image, width, height, objects: kept }), problems)
}

/// The box `[x, y, w, h]` of an image of `size`, rounded as a file's is.
///
/// # Errors
/// A file's box would be mended, or left out; says why.
pub(crate) fn placed(extent: [f64; 4], size: [usize; 2]) -> Result<Rect, String> {
    let mut why = None;
    let mut report = |_, _, detail: String| why = Some(detail);
    let rect = rounded(extent, &mut report).and_then(|rect| clipped(rect, size, &mut report));
    match (rect, why) {
        (Some(rect), None) => Ok(rect),
        (_, why) => Err(why.unwrap_or_else(|| "an empty box".to_owned())),
    }
}

/// The box `[x, y, w, h]` of an image as it is stored in the image of `size` that it is the right way up. Only quarter turns show
/// in a size.
fn turned([x, y, w, h]: [f64; 4], size: [usize; 2], orientation: Orientation) -> [f64; 4] {
    let [width, height] = size.map(|v| v as f64);
    match orientation {
        Orientation::Rotate90FlipH => [y, x, h, w],
        Orientation::Rotate90 => [width - y - h, x, h, w],
        Orientation::Rotate270FlipH => [width - y - h, height - x - w, h, w],
        Orientation::Rotate270 => [y, height - x - w, h, w],
        _ => [x, y, w, h],
    }
}

fn is_product(area: f64, [_, _, w, h]: [f64; 4]) -> bool {
    (area - w * h).abs() <= 1e-6 * area
}

/// `value` to a thousandth.
pub(crate) fn thousandth(value: f64) -> f64 {
    // The sum turns -0 into 0.
    (value * 1000.).round() / 1000. + 0.
}

fn rounded(extent: [f64; 4], report: &mut impl FnMut(ProblemKind, Remedy, String)) -> Option<Rect> {
    // Beyond this, thousandths are no longer told apart.
    if !extent.iter().all(|v| v.abs() < 1e12) {
        report(ProblemKind::NotFinite, Remedy::ObjectDropped, format!("a box of {extent:?}"));
        return None;
    }
    let [x, y, width, height] = extent.map(thousandth);
    if width <= 0. || height <= 0. {
        report(ProblemKind::EmptyBox, Remedy::ObjectDropped, format!("a box of {width} x {height} pixels"));
        return None;
    }
    Some(Rect { x, y, width, height })
}

fn clipped(rect: Rect, size: [usize; 2], report: &mut impl FnMut(ProblemKind, Remedy, String)) -> Option<Rect> {
    let [width, height] = size.map(|v| v as f64);
    let past = [-rect.x, -rect.y, rect.right() - width, rect.bottom() - height].into_iter().fold(0., f64::max);
    if past < 1e-6 {
        return Some(rect);
    }
    let span = |from: f64, length: f64, limit: f64| {
        let start = from.clamp(0., limit);
        (start, thousandth((from + length).clamp(0., limit) - start))
    };
    let (x, w) = span(rect.x, rect.width, width);
    let (y, h) = span(rect.y, rect.height, height);
    let is_left = w > 0. && h > 0.;
    if past > ROUNDING || !is_left {
        let remedy = if is_left { Remedy::Clipped } else { Remedy::ObjectDropped };
        report(ProblemKind::OutsideImage, remedy, format!("a box that reaches {past:.1} pixels past the border"));
    }
    is_left.then_some(Rect { x, y, width: w, height: h })
}

#[cfg(test)]
#[allow(clippy::float_cmp)] // these values are exact
mod tests {
    use super::*;

    #[test]
    fn boxes_turn_as_pixels_do() {
        let stored = [2_u32, 3, 5, 4];
        for exif in 5..=8 {
            let orientation = Orientation::from_exif(exif).unwrap();
            let [x, y, w, h] = stored;
            let inside = |px, py| (x..x + w).contains(&px) && (y..y + h).contains(&py);
            let mut image: ::image::DynamicImage =
                ::image::GrayImage::from_fn(19, 13, |px, py| ::image::Luma([u8::from(inside(px, py))])).into();
            image.apply_orientation(orientation);
            let image = image.into_luma8();
            let marked = image.enumerate_pixels().filter(|(_, _, value)| value.0[0] > 0).map(|(x, y, _)| [x, y]);
            let marked: Vec<[u32; 2]> = marked.collect();
            let least = [0, 1].map(|axis| marked.iter().map(|at| at[axis]).min().unwrap());
            let most = [0, 1].map(|axis| marked.iter().map(|at| at[axis]).max().unwrap());
            let expected = [least[0], least[1], most[0] + 1 - least[0], most[1] + 1 - least[1]];
            assert_eq!(turned(stored.map(f64::from), [13, 19], orientation), expected.map(f64::from), "{exif}");
        }
    }

    #[test]
    fn boxes_are_turned_where_the_size_says_that_they_lie() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/decode/orientation-6.jpg");
        let check = |declared| {
            let extent = BoxExtent::Pixels([2., 3., 5., 4.]);
            let object = AnnotatedObject { id: 1, place: None, category: 0, extent, area: None, crowd: false };
            let source: Arc<Path> = Path::new("train.json").into();
            let image = AnnotatedImage {
                id: 1,
                image: ImageSource::File(path.clone()),
                declared,
                source,
                place: None,
                objects: vec![object],
            };
            let (image, problems) = verify(path.parent().unwrap(), image);
            let image = image.unwrap();
            assert_eq!([image.width, image.height], [13, 19]);
            let Rect { x, y, width, height } = image.objects[0].rect;
            ([x, y, width, height], problems.len())
        };
        assert_eq!(check(Some([19, 13])), ([6., 2., 4., 5.], 0));
        assert_eq!(check(Some([13, 19])), ([2., 3., 5., 4.], 0));
        assert_eq!(check(None), ([2., 3., 5., 4.], 0));
        assert_eq!(check(Some([20, 13])), ([2., 3., 5., 4.], 1));
    }

    fn checked(extent: BoxExtent, area: Option<f64>) -> (Option<Object>, Vec<(ProblemKind, Remedy)>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.png");
        ::image::GrayImage::new(100, 50).save(&path).unwrap();
        let place = Some(PlaceInFile::Annotation(7));
        let object = AnnotatedObject { id: 7, place, category: 2, extent, area, crowd: false };
        let source: Arc<Path> = Path::new("train.json").into();
        let image = AnnotatedImage {
            id: 1,
            image: ImageSource::File(path),
            declared: Some([100, 50]),
            source,
            place: None,
            objects: vec![object],
        };
        let (image, problems) = verify(dir.path(), image);
        assert!(problems.iter().all(|p| p.file == Path::new("train.json") && p.place == place));
        (image.unwrap().objects.pop(), problems.iter().map(|p| (p.kind, p.remedy)).collect())
    }

    #[test]
    fn boxes_are_rounded_cut_and_dropped() {
        let rect = |x, y, width, height| Some(Rect { x, y, width, height });
        let nothing = vec![];
        let outside = |remedy| vec![(ProblemKind::OutsideImage, remedy)];
        for (extent, expected, problems) in [
            ([1.23449, 2., 3., 4.], rect(1.234, 2., 3., 4.), nothing.clone()),
            ([90., 40., 10.001, 10.], rect(90., 40., 10., 10.), nothing.clone()),
            ([-0.0, 0., 100., 50.], rect(0., 0., 100., 50.), nothing.clone()),
            ([-5., 40., 10., 20.], rect(0., 40., 5., 10.), outside(Remedy::Clipped)),
            ([100., 10., 5., 5.], None, outside(Remedy::ObjectDropped)),
            ([-9., 10., 5., 5.], None, outside(Remedy::ObjectDropped)),
            ([1., 1., 0., 5.], None, vec![(ProblemKind::EmptyBox, Remedy::ObjectDropped)]),
            ([1., 1., 4., -5.], None, vec![(ProblemKind::EmptyBox, Remedy::ObjectDropped)]),
            ([1., f64::NAN, 4., 5.], None, vec![(ProblemKind::NotFinite, Remedy::ObjectDropped)]),
            ([1., 1., f64::INFINITY, 5.], None, vec![(ProblemKind::NotFinite, Remedy::ObjectDropped)]),
            ([1e300, 1., 1., 5.], None, vec![(ProblemKind::NotFinite, Remedy::ObjectDropped)]),
        ] {
            let (object, found) = checked(BoxExtent::Pixels(extent), None);
            assert_eq!((object.map(|o| o.rect), found), (expected, problems), "{extent:?}");
        }
    }

    #[test]
    fn fractions_are_of_the_file() {
        let (object, problems) = checked(BoxExtent::Fractions([0.1, 0.2, 0.25, 0.5]), None);
        assert_eq!(object.unwrap().rect, Rect { x: 10., y: 10., width: 25., height: 25. });
        assert_eq!(problems, []);
    }

    #[test]
    fn an_area_is_the_annotations_unless_it_repeats_the_box() {
        let area = |extent, area| checked(BoxExtent::Pixels(extent), area).0.unwrap().area;
        for (given, expected) in [(Some(12.5), 12.5), (None, 100.), (Some(0.), 100.), (Some(f64::NAN), 100.)] {
            assert!((area([10., 10., 10., 10.], given) - expected).abs() < 1e-9);
        }
        assert!((area([-5., 10., 10., 10.], Some(100.)) - 50.).abs() < 1e-9);
        assert!((area([-5., 10., 10., 10.], Some(70.)) - 70.).abs() < 1e-9);
    }

    #[test]
    fn an_image_is_as_large_as_its_file_or_left_out() {
        let dir = tempfile::tempdir().unwrap();
        ::image::GrayImage::new(20, 10).save(dir.path().join("a.png")).unwrap();
        std::fs::write(dir.path().join("text.png"), "text").unwrap();
        let found = |name: &str| AnnotatedImage {
            id: 3,
            image: ImageSource::File(dir.path().join(name)),
            declared: Some([10, 20]),
            source: Path::new("x.json").into(),
            place: Some(PlaceInFile::Image(3)),
            objects: Vec::new(),
        };
        let (image, problems) = verify(dir.path(), found("a.png"));
        let image = image.unwrap();
        assert_eq!((image.width, image.height, image.name.as_str()), (20, 10, "a.png"));
        assert!(
            problems[0].to_string().starts_with("x.json, image 3: 10x20 pixels here, 20x10 in "),
            "{}",
            problems[0]
        );
        for (name, kind) in [("gone.png", ProblemKind::MissingImage), ("text.png", ProblemKind::UnreadableImage)] {
            let (image, problems) = verify(dir.path(), found(name));
            assert!(image.is_none());
            assert_eq!((problems[0].kind, problems[0].loses_image()), (kind, true));
            assert!(problems[0].detail.contains(name), "{}", problems[0]);
        }
    }
}
