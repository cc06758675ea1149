//! Any number of classes an image, learned from boxes.

use crate::util::{Sandbox, files, fixture, json_file, keys, number, run_files};

fn trained(sandbox: &Sandbox) {
    let drawn = ["data", "make", "shapes", "--task", "detect", "--images", "40", "--out", "coco"];
    sandbox.vpt(&drawn).ok();
    let clip = fixture("clip");
    let args = ["train", "--task", "multilabel", "--backbone", &clip, "--data", "coco", "--method", "linear"];
    let run = sandbox.vpt(&[&args[..], &["--epochs", "3", "--out", "run"]].concat()).ok();
    assert!(run.stdout.contains("mAP") && run.stdout.contains("exact match"), "{run:#?}");
    assert!(run.stderr.contains("val loss") && run.stderr.contains("mAP"), "{run:#?}");
}

#[test]
fn train_eval_and_predict_say_the_same() {
    let sandbox = Sandbox::new();
    trained(&sandbox);
    let results = json_file(&sandbox.path("run/results.json"));
    assert_eq!(results["task"], "multilabel");
    assert_eq!(keys(&results["test"]), ["mAP", "micro_f1", "macro_f1", "exact_match", "loss"]);
    assert_eq!(results["classes"], 8);
    assert_eq!(files(&sandbox.path("run")), run_files(&[]));
    // As many images are wrong as are not right in every class.
    let page = std::fs::read_to_string(sandbox.path("run/mistakes.html")).unwrap();
    let images = files(&sandbox.path("coco/test")).len();
    let wrong = images as f64 * (1. - number(&results, "/test/exact_match"));
    assert!(page.contains(&format!("{wrong:.0} of {images} images are wrong")), "{wrong} of {images}");
    assert!(page.contains(", overlooked") && page.contains("src=\"data:image/jpeg;base64,"));
    let evaluated = sandbox.vpt(&["eval", "--model", "run", "--data", "coco", "--json"]).ok().json();
    assert!((number(&evaluated, "/metrics/mAP") - number(&results, "/test/mAP")).abs() < 1e-9);
    assert_eq!(evaluated["metrics"]["exact_match"], results["test"]["exact_match"]);
    let text = sandbox.vpt(&["eval", "--model", "run", "--data", "coco", "--split", "val"]).ok().stdout;
    assert!(text.contains("mAP") && text.contains("macro F1"), "{text}");

    let predicted = sandbox.vpt(&["predict", "--model", "run", "--json", "--save", "drawn", "coco/test"]).ok().json();
    let predictions = predicted["predictions"].as_array().unwrap();
    assert_eq!(predictions.len(), files(&sandbox.path("drawn")).len());
    for prediction in predictions {
        assert_eq!(keys(prediction), ["image", "labels"]);
        for label in prediction["labels"].as_array().unwrap() {
            assert_eq!(keys(label), ["label", "probability"]);
            assert!((0.5..=1.).contains(&number(label, "/probability")), "{label}");
        }
    }
    let text = sandbox.vpt(&["predict", "--model", "run", "coco/test"]).ok().stdout;
    assert!(text.starts_with("image ") && text.contains("classes"), "{text}");
}

#[test]
fn what_makes_no_sense_is_refused() {
    let sandbox = Sandbox::new();
    trained(&sandbox);
    sandbox.colours("colours", 4);
    let train = |data: &str, more: &[&str]| {
        sandbox.vpt(&[&["train", "--task", "multilabel", "--data", data, "--out", "new"], more].concat())
    };
    train("coco", &["--shots", "2"]).refuses(&["--shots: not for multi-label classification"]);
    train("coco", &["--label-smoothing", "0.1"]).refuses(&["--label-smoothing: not for multi-label classification"]);
    train("coco", &["--box-crop"]).refuses(&["--box-crop: only for detection"]);
    train("colours", &[]).refuses(&["--task: multilabel: colours holds no boxes", "COCO, YOLO, Pascal VOC"]);
    let predict = ["predict", "--model", "run", "coco/test", "--min-score", "0.3"];
    sandbox.vpt(&predict).refuses(&["--min-score: the task has classes, not boxes"]);
    let eval = ["eval", "--model", "run", "--data", "coco", "--detections", "d.json"];
    sandbox.vpt(&eval).refuses(&["--detections d.json: the task has classes, not boxes"]);
    sandbox.vpt(&["eval", "--model", "run", "--data", "colours"]).fails(&["colours: no data set of boxes"]);
}

#[test]
fn help_names_the_task() {
    let help = Sandbox::new().vpt(&["train", "--help"]).ok().stdout;
    assert!(help.contains("auto, classify, multilabel, detect") || help.contains("- multilabel"), "{help}");
    assert!(help.contains("which classes occur in an image"), "{help}");
}
