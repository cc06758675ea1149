//! Whole runs of segmentation on a small random backbone and a folder of drawn shapes.

#![allow(clippy::float_cmp)] // equal means equal here

use std::{collections::BTreeSet, fs, path::Path};

use tempfile::TempDir;

use crate::{
    config::{RunConfig, Task, TileCount},
    eval::evaluate_masks,
    train::{
        Silent, run, run_folder,
        task::dense::tests::{
            config as dense_config, control_is_linear, drawn, folds_choose_the_epochs, leaves_a_whole_folder,
            resumes_to_the_same_bytes, stopped, survives_kills, weights_learn,
        },
        tests::{backbone, bytes, content, diverges, finish, is_refused_as_another},
    },
};
use vpt_data::{
    Split,
    masks::{ClassMask, MaskDataset, MaskShots},
    shapes::{ShapesTask, write_masks},
};
use vpt_model::{
    head::{HeadKind, segment::DecodeHead},
    methods::Method,
    metrics::Scores,
    model::{SegmentTask, TaskOptions, task_file::TaskFile},
};

fn workplace() -> TempDir {
    drawn(ShapesTask::Segment, write_masks)
}

fn config(dir: &TempDir, method: Method) -> RunConfig {
    dense_config(dir, Task::Segment, method)
}

/// Puts a strip of no class beside every image, so that each has two windows.
fn widen(dir: &TempDir) {
    let root = dir.path().join("data");
    let set = MaskDataset::open(&root, 1).unwrap();
    for image in Split::ALL.into_iter().flat_map(|split| set.part(split)) {
        let path = root.join(&image.name);
        let drawn = image::open(&path).unwrap().to_rgb8();
        let mut wider = image::RgbImage::from_pixel(72, 48, image::Rgb([90, 120, 60]));
        image::imageops::replace(&mut wider, &drawn, 0, 0);
        wider.save(&path).unwrap();
        let mask = image.mask().unwrap();
        let row = |row: &[u16]| [row, &[u16::MAX; 24]].concat();
        let classes = mask.classes.chunks(48).flat_map(row).collect();
        let mask = ClassMask { width: 72, height: 48, classes }.to_png(&set.classes.indices()).unwrap();
        fs::write(root.join("SegmentationClass").join(path.file_name().unwrap()), mask).unwrap();
    }
}

fn open(folder: &Path) -> SegmentTask {
    let options = TaskOptions { backbone: Some(backbone()), threads: 2, ..TaskOptions::default() };
    SegmentTask::open(folder, &options).unwrap()
}

#[test]
fn a_run_learns_and_leaves_a_whole_folder_whose_task_tells_pixels_apart_as_it_did() {
    let dir = workplace();
    widen(&dir);
    let folder = dir.path().join("runs/segment/data-vpt-deep-1");
    let results = leaves_a_whole_folder(&config(&dir, Method::VPT_DEEP), &dir, &[]);
    assert_eq!((results.task, results.classes), (Task::Segment, 9));
    let lines = content(&folder).2;
    let losses: Vec<f64> = lines.iter().map(|line| line["train_loss"].as_f64().unwrap()).collect();
    assert!(losses[6] < 0.8 * losses[0], "{losses:?}");
    assert!(lines[0]["val"]["mIoU"].is_f64() && lines[0]["train_pixel_acc"].is_f64());
    let json = serde_json::to_value(&results.test).unwrap();
    assert_eq!(json["per_class"].as_array().unwrap().len(), 9);
    for name in ["mIoU", "pixel_acc", "mean_acc"] {
        assert!((0. ..=1.).contains(&json[name].as_f64().unwrap()), "{json}");
    }
    assert!(results.head_only.is_some());

    let task = open(&folder);
    let dataset = MaskDataset::open(dir.path().join("data"), 1).unwrap();
    let found = evaluate_masks(&task, &dataset, Split::Test, &mut |_, _| {}).unwrap();
    assert_eq!(Scores::Segment(found.metrics(&task.meta().classes)), results.test);
    assert_eq!(task.indices(), [0, 1, 2, 3, 4, 5, 6, 7, 8]);
}

#[test]
fn weights_learn_beside_a_head_and_their_task_tells_pixels_apart_as_the_run_did() {
    let dir = workplace();
    let dataset = MaskDataset::open(dir.path().join("data"), 1).unwrap();
    weights_learn(
        |method| config(&dir, method),
        &dir,
        |folder| {
            let found = evaluate_masks(&open(folder), &dataset, Split::Test, &mut |_, _| {}).unwrap();
            Scores::Segment(found.metrics(&dataset.classes.names))
        },
    );
}

#[test]
fn folds_choose_the_epochs_where_there_is_no_val() {
    let dir = workplace();
    let val = dir.path().join("data/ImageSets/Segmentation/val.txt");
    folds_choose_the_epochs(|method| config(&dir, method), &dir, &val);
}

#[test]
fn a_run_that_is_stopped_anywhere_ends_with_the_same_bytes() {
    let square = workplace();
    let wide = workplace();
    widen(&wide);
    let linear = Some(DecodeHead::Linear);
    let cases = vec![
        ("cached prefixes", &wide, config(&wide, Method::VPT_DEEP), vec![2, 5, 9, 14]),
        (
            "a linear head",
            &square,
            RunConfig { decode_head: linear, ..config(&square, Method::VPT_DEEP) },
            vec![1, 4, 12],
        ),
        ("from images", &wide, config(&wide, Method::VPT_SHALLOW), vec![4, 11, 15]),
        (
            "zoomed",
            &wide,
            RunConfig { scale_jitter: Some([0.7, 1.4]), micro_batch: Some(2), ..config(&wide, Method::VPT_DEEP) },
            vec![6, 12],
        ),
        (
            "random views",
            &wide,
            RunConfig { scale_jitter: Some([0.7, 1.4]), cached_views: Some(3), ..config(&wide, Method::VPT_DEEP) },
            vec![3, 8, 14, 21],
        ),
        ("biases", &wide, config(&wide, Method::BIAS), vec![3, 9, 14]),
        (
            "prompts and norms, a linear head",
            &square,
            RunConfig { decode_head: linear, ..config(&square, "vpt-deep,norm".parse().unwrap()) },
            vec![2, 12],
        ),
        ("linear", &square, RunConfig { decode_head: linear, ..config(&square, Method::LINEAR) }, vec![2, 7, 15]),
    ];
    resumes_to_the_same_bytes(cases, &[]);
}

#[test]
fn a_killed_run_goes_on_from_its_last_checkpoint() {
    let dir = workplace();
    survives_kills(&config(&dir, Method::VPT_DEEP), &dir, &[(2, 1), (6, 9), (13, 4)]);
}

#[test]
fn the_control_is_what_method_linear_learns() {
    let dir = workplace();
    control_is_linear(&config(&dir, Method::VPT_DEEP), &config(&dir, Method::LINEAR), &dir);
    let task = TaskFile::open(&dir.path().join("runs/segment/data-linear-1")).unwrap();
    assert_eq!((task.meta.parts.len(), task.meta.segment.unwrap().blocks), (0, vec![1, 2, 3]));
}

#[test]
fn a_checkpoint_of_other_masks_is_refused() {
    let dir = workplace();
    let folder = stopped(&config(&dir, Method::VPT_DEEP), &dir, 6);
    let masks = dir.path().join("data/SegmentationClass");
    fs::copy(masks.join("000002.png"), masks.join("000001.png")).unwrap();
    is_refused_as_another(&folder);
}

#[test]
fn a_loss_that_is_not_finite_ends_the_run_and_keeps_the_last_good_state() {
    let dir = workplace();
    diverges(config(&dir, Method::LINEAR), &dir, "not finite in step");
}

#[test]
fn few_images_a_class_are_learned_from_and_drawn_again_by_their_file() {
    let dir = workplace();
    let config = RunConfig { shots: Some(1), ..config(&dir, Method::VPT_DEEP) };
    let (folder, results) = finish(&config, &dir);
    let draw = MaskShots::read(&folder.join(run_folder::FEW_SHOT)).unwrap();
    let drawn: BTreeSet<&String> = draw.train.values().flatten().collect();
    assert!(results.train_images == drawn.len() && drawn.len() < 9 && draw.shots == 1, "{draw:?}");
    let again = RunConfig { shots: None, draw: Some(folder.join(run_folder::FEW_SHOT)), ..config.clone() };
    let (other, repeated) = finish(&again, &dir);
    assert_eq!((content(&other).1, &repeated.test), (content(&folder).1, &results.test));
    resumes_to_the_same_bytes(vec![("few", &dir, config, vec![2, 5])], &[run_folder::FEW_SHOT]);
}

#[test]
fn more_windows_see_smaller_things() {
    let dir = workplace();
    let config = RunConfig {
        tiles: Some(TileCount::Value(2)),
        epochs: Some(2),
        head_epochs: Some(1),
        ..config(&dir, Method::VPT_DEEP)
    };
    let (folder, results) = finish(&config, &dir);
    assert_eq!(open(&folder).meta().segment.as_ref().unwrap().tiles, 2);
    // Windows of 32 pixels show 48 best in two.
    let auto = finish(&RunConfig { tiles: Some(TileCount::Auto), ..config }, &dir).0;
    assert!(content(&auto) == content(&folder));
    assert!(bytes(&auto, run_folder::CONFIG) == bytes(&folder, run_folder::CONFIG));
    let dataset = MaskDataset::open(dir.path().join("data"), 1).unwrap();
    let found = evaluate_masks(&open(&folder), &dataset, Split::Test, &mut |_, _| {}).unwrap();
    assert_eq!(Scores::Segment(found.metrics(&dataset.classes.names)), results.test);
}

#[test]
fn what_makes_no_sense_for_pixels_is_refused_before_a_folder_is_made() {
    let dir = workplace();
    let deep = config(&dir, Method::VPT_DEEP);
    let cases = [
        (RunConfig { head_epochs: Some(4), ..deep.clone() }, "head_epochs: 4 of 4"),
        (RunConfig { shots: Some(0), ..deep.clone() }, "shots: "),
        (RunConfig { head: Some(HeadKind::Cosine), ..deep.clone() }, "head: cosine is not for segmentation"),
        (RunConfig { open_vocabulary: true, ..deep.clone() }, "open_vocabulary: only for detection"),
        (RunConfig { tiles: Some(TileCount::Value(1000)), ..deep.clone() }, "tiles: "),
        (RunConfig { scale_jitter: Some([1.5, 0.5]), ..deep.clone() }, "scale_jitter: "),
        (RunConfig { head_epochs: None, ..config(&dir, Method::VP_PAD) }, "method: vp-pad is not for segmentation"),
        (RunConfig { data: dir.path().display().to_string(), ..deep.clone() }, "no data set of masks"),
    ];
    for (config, part) in cases {
        let message = run(&config, &dir.path().join("runs"), &mut Silent).unwrap_err().to_string();
        assert!(message.contains(part) && !message.contains('\n'), "{part}: {message}");
    }
    fs::remove_file(dir.path().join("data/SegmentationClass/000003.png")).unwrap();
    let message = run(&deep, &dir.path().join("runs"), &mut Silent).unwrap_err().to_string();
    assert!(message.contains("000003.png: no mask for it"), "{message}");
    assert!(!dir.path().join("runs").exists());
    let (_, results) = finish(&RunConfig { skip_bad_images: true, ..deep }, &dir);
    assert_eq!(results.train_images, 14);
    assert!(!bytes(&dir.path().join("runs/segment/data-vpt-deep-1"), run_folder::BEST).is_empty());
}
