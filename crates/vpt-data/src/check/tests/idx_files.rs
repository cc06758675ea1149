//! IDX files.

use super::*;
use FindingKind as Kind;

const IMAGES: &str = "train-images-idx3-ubyte";
const LABELS: &str = "train-labels-idx1-ubyte";

/// `count` images of 8 x 8 pixels, none like another.
fn images(count: u32, seed: u32) -> Vec<u8> {
    let header = [0x803, count, 8, 8].into_iter().flat_map(u32::to_be_bytes);
    header.chain((0..count).flat_map(|i| (0..64).map(move |p| (p * 3 + i * 7 + seed) as u8))).collect()
}

fn labels(values: &[u8]) -> Vec<u8> {
    [0x801, values.len() as u32].into_iter().flat_map(u32::to_be_bytes).chain(values.iter().copied()).collect()
}

fn good() -> Set {
    let set = Set::new();
    set.write(IMAGES, images(6, 0)).write(LABELS, labels(&[0, 1, 2, 0, 1, 2]));
    set.write("t10k-images-idx3-ubyte", images(3, 100)).write("t10k-labels-idx1-ubyte", labels(&[0, 1, 2]));
    set
}

#[test]
fn headers_contents_and_labels_are_compared() {
    good().holds(&[]);
    for (name, content, kind) in [
        (IMAGES, [images(6, 0), vec![1]].concat(), Kind::IdxCount),
        (IMAGES, images(6, 0)[..300].to_vec(), Kind::IdxTruncated),
        (IMAGES, images(6, 0)[..9].to_vec(), Kind::IdxTruncated),
        (IMAGES, labels(&[1, 2]), Kind::IdxMalformed),
        (LABELS, labels(&[0, 1, 2, 0, 1]), Kind::IdxLabels),
        (LABELS, labels(&[0, 1, 2, 0, 1, 2])[..10].to_vec(), Kind::IdxTruncated),
        (LABELS, labels(&[0, 1, 3, 0, 1, 3]), Kind::LabelGap),
    ] {
        let set = good();
        let found = set.write(name, content).found(false);
        assert!(found.contains(&(kind, name.into(), None)), "{kind}: {found:?}");
    }
    // Both halves are looked at.
    let set = good();
    set.write(LABELS, "").write("t10k-labels-idx1-ubyte", labels(&[0, 1]));
    set.holds(&[(Kind::IdxLabels, "t10k-labels-idx1-ubyte", None), (Kind::IdxTruncated, LABELS, None)]);
    assert_eq!(set.found(true), set.found(false));
}

#[test]
fn files_of_a_part_come_in_pairs() {
    let set = good();
    fs::remove_file(set.path().join(LABELS)).unwrap();
    set.holds(&[(Kind::IdxNoLabels, IMAGES, None)]);
    let set = good();
    set.write("x-train-images-idx3-ubyte", images(1, 0));
    set.holds(&[(Kind::AmbiguousSplit, "x-train-images-idx3-ubyte", None)]);
    let set = good();
    fs::remove_file(set.path().join(IMAGES)).unwrap();
    fs::remove_file(set.path().join(LABELS)).unwrap();
    set.holds(&[(Kind::NoTrain, "", None)]);
}

#[test]
fn images_are_compared_by_their_pixels() {
    let set = good();
    set.write("t10k-images-idx3-ubyte", images(3, 7));
    let report = check(set.path(), false, &mut |_, _| {}).unwrap();
    let kinds: Vec<_> = report.findings.iter().map(|f| f.kind).collect();
    assert_eq!(kinds, [Kind::DuplicateOtherLabel; 3]);
    assert!(report.findings[0].message.contains("image 0: the same as image 1 of"), "{}", report.findings[0]);
    let mut blank = images(6, 0);
    blank[16..16 + 128].fill(0);
    set.write(IMAGES, blank).write("t10k-images-idx3-ubyte", images(3, 100));
    set.holds(&[(Kind::BlankImage, IMAGES, None), (Kind::BlankImage, IMAGES, None)]);
}
