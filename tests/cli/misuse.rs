//! Command lines that make no sense: exit code 2, and a message that names what is wrong.

use crate::util::{Sandbox, fixture};

#[test]
fn what_makes_no_sense_is_refused() {
    let sandbox = Sandbox::new();
    sandbox.colours("colours", 8);
    let vit = fixture("vit");
    let train = |flag: &'static str, value: &'static str| -> Vec<&'static str> { vec!["train", flag, value] };
    let cases: Vec<(Vec<&str>, &[&str])> = vec![
        (vec!["trian"], &["trian", "train"]),
        (vec!["runs", "lits"], &["similar", "list"]),
        (vec!["train", "--epoch", "3"], &["--epoch", "--epochs"]),
        (vec!["train", "--prompt-token", "3"], &["similar", "'--prompt-tokens'"]),
        (vec!["predict", "--modle", "run", "a.png"], &["similar", "'--model'"]),
        (vec!["train", "colours"], &["colours"]),
        (train("--method", "vpt-depe"), &["similar", "'vpt-deep'"]),
        (train("--task", "detetc"), &["similar", "'detect'"]),
        (train("--method", "vpt-deap"), &["vpt-deap", "vpt-deep", "linear", "vp-frame"]),
        (train("--head", "quadratic"), &["quadratic", "linear", "cosine"]),
        (train("--optimizer", "adam"), &["adam", "adamw", "sgd"]),
        (train("--select", "first"), &["first", "best", "last"]),
        (train("--prompt-layers", "middle"), &["middle", "all, first:K, last:K"]),
        (train("--prompt-tokens", "0"), &["--prompt-tokens", "at least 1"]),
        (train("--prompt-tokens", "-3"), &["-3"]),
        (train("--epochs", "0"), &["--epochs", "at least 1"]),
        (train("--epochs", "many"), &["--epochs", "many"]),
        (train("--epochs", "99999999999999999999999"), &["--epochs"]),
        (train("--batch-size", "0"), &["--batch-size"]),
        (train("--lr", "fast"), &["--lr", "fast"]),
        (train("--lr", "NaN"), &["--lr"]),
        (train("--lr", "0"), &["--lr"]),
        (train("--label-smoothing", "1"), &["--label-smoothing"]),
        (train("--shots", "0"), &["--shots"]),
        (train("--patience", "0"), &["--patience"]),
        (train("--pad", "8"), &["--pad", "vpt-deep"]),
        (train("--threads", "0"), &["--threads"]),
        (train("--threads", "5000"), &["--threads"]),
        (train("--seed", "-1"), &["--seed"]),
        (train("--seed", "18446744073709551615"), &["--seed"]),
        (train("--device", "cuda:0"), &["--device", "not built in this version"]),
        (train("--device", "tpu"), &["--device", "tpu"]),
        (train("--precision", "f16"), &["--precision", "f16 is for vpt export"]),
        (train("--max-memory", "much"), &["--max-memory", "900MB"]),
        (train("--max-memory", "1MB"), &["--max-memory", "1 MB are too few"]),
        (train("--precision", "f64"), &["--precision", "f64"]),
        (train("--random-resized-crop", "0.5"), &["--random-resized-crop"]),
        (vec!["train", "--random-resized-crop", "0.9", "0.5"], &["--random-resized-crop"]),
        (vec!["train", "--resume", "run", "--epochs", "3"], &["--resume", "nothing else can be set"]),
        (vec!["train", "--resume", "run", "--config", "c.toml"], &["--resume", "--config"]),
        (vec!["train", "--resume", "run", "--seed", "3"], &["--resume", "nothing else can be set"]),
        (vec!["train", "--quiet", "-v"], &["--quiet", "--verbose"]),
        (vec!["train", "--backbone", "resnet50"], &["--backbone", "resnet50", "clip-nano"]),
        (vec!["train", "--backbone", "clip-vitb32"], &["did you mean clip-vit-b32?"]),
        (vec!["train", "--backbone", &vit, "--data", "colours", "--image-size", "33"], &["--image-size", "33", "try"]),
        (
            vec!["train", "--backbone", &vit, "--data", "colours", "--prompt-layers", "first:9", "--out", "r"],
            &["--prompt-layers", "backbone of 3 blocks"],
        ),
        (
            vec!["train", "--backbone", &vit, "--data", "colours", "--prompt-layers", "last:0", "--out", "r"],
            &["--prompt-layers", "last:0"],
        ),
        (
            vec!["train", "--backbone", &vit, "--data", "colours", "--method", "coop", "--out", "r"],
            &["--method", "coop learns texts", "no text tower"],
        ),
        (train("--context-init", "a photo"), &["--context-init", "vpt-deep"]),
        (
            vec!["train", "--method", "maple", "--prompt-layers", "last:2", "--out", "r"],
            &["--prompt-layers", "first:K"],
        ),
        (
            vec!["train", "--method", "ivlp", "--prompt-tokens", "31", "--out", "r"],
            &["--prompt-tokens", "leave no room"],
        ),
        (
            vec!["train", "--method", "coop", "--context-init", "one", "--prompt-tokens", "20", "--out", "r"],
            &["--context-init", "20 vectors"],
        ),
        (vec!["bench", "step", "--method", "coop"], &["--method", "coop"]),
        (vec!["eval", "--data", "colours"], &["--model"]),
        (vec!["eval", "--model", "run"], &["--data"]),
        (vec!["eval", "--model", "run", "--data", "colours", "--split", "extra"], &["--split", "train, val or test"]),
        (vec!["predict", "--model", "run"], &["IMAGE"]),
        (vec!["embed", "--out", "e.safetensors"], &["IMAGE", "--texts"]),
        (vec!["embed", "a.png"], &["--out"]),
        (vec!["embed", "--out", "colours", "a.png"], &["--out", "colours", "folder"]),
        (vec!["embed", "--out", "e", "--model", "m", "--image-size", "64", "a.png"], &["--model", "--image-size"]),
        (vec!["bench", "step", "--backbone", &vit, "--repeats", "0"], &["--repeats"]),
        (vec!["bench", "step", "--backbone", &vit, "--classes", "0"], &["--classes"]),
        (vec!["bench", "step", "--backbone", &vit, "--batch-size", "0"], &["--batch-size"]),
        (vec!["bench", "step", "--backbone", &vit, "--method", "linear", "--prompt-tokens", "3"], &["--prompt-tokens"]),
        (vec!["data", "info"], &["PATH"]),
        (vec!["data", "convert", "colours", "--to", "coco"], &["--out"]),
        (vec!["data", "convert", "colours", "--out", "new"], &["--to"]),
        (vec!["data", "convert", "colours", "--to", "kitti", "--out", "new"], &["kitti", "coco", "yolo", "voc"]),
        (vec!["backbones", "info"], &["NAME"]),
        (vec!["data", "convert", "colours", "--to", "yollo", "--out", "new"], &["similar", "'yolo'"]),
        (vec!["eval", "--model", "run", "--data", "colours", "--split", "tset"], &["did you mean test?"]),
        (vec!["backbones", "info", "dinov2-smal"], &["did you mean dinov2-small?"]),
        (vec!["runs", "list", "--sort", "tme"], &["similar", "'time'"]),
    ];
    for (args, parts) in cases {
        sandbox.vpt(&args).refuses(parts);
    }
    assert!(!sandbox.path("runs").exists(), "nothing was begun");
}

#[test]
fn misspelt_names_of_files_and_in_files_get_a_suggestion() {
    let sandbox = Sandbox::new();
    sandbox.colours("colours", 8);
    sandbox.write("run/config.toml", "method = \"vpt-deap\"\n");
    sandbox.vpt(&["train", "--data", "colors"]).fails(&["colors: no such file or folder; did you mean colours?"]);
    sandbox.vpt(&["data", "info", "colours/gren"]).fails(&["did you mean colours/green?"]);
    sandbox.vpt(&["train", "--data", "shpaes"]).fails(&["did you mean shapes?"]);
    sandbox.vpt(&["train", "--resume", "rnu"]).fails(&["rnu: no such file or folder; did you mean run?"]);
    sandbox.vpt(&["train", "--config", "run/config.toml"]).fails(&["config.toml", "did you mean vpt-deep?"]);
}

#[test]
fn no_arguments_show_the_help() {
    let run = Sandbox::new().vpt(&[]);
    assert_eq!(run.code, Some(2));
    assert!(run.stderr.contains("Usage: vpt"), "{run:#?}");
}

/// Values that no machine has room or time for, places that are none, flags that do not go together.
#[test]
fn what_cannot_be_is_refused_before_anything_is_done() {
    let sandbox = Sandbox::new();
    sandbox.colours("colours", 20);
    sandbox.boxes("boxes", 12);
    sandbox.trained("run", &["--epochs", "1", "--method", "linear"]);
    let (vit, clip, image) = (fixture("vit"), fixture("clip"), fixture("images/a.png"));
    let most = "18446744073709551615";
    let classify = |more: &[&'static str]| -> Vec<String> {
        ["train", "--backbone", &vit, "--data", "colours", "--out", "new"]
            .iter()
            .chain(more)
            .map(|s| (*s).to_owned())
            .collect()
    };
    let detect = |more: &[&'static str]| -> Vec<String> {
        ["train", "--backbone", &clip, "--data", "boxes", "--out", "new"]
            .iter()
            .chain(more)
            .map(|s| (*s).to_owned())
            .collect()
    };
    let plain = |args: &[&str]| -> Vec<String> { args.iter().map(|s| (*s).to_owned()).collect() };
    let bench = |more: &[&str]| plain(&[&["bench", "step", "--backbone", &vit], more].concat());
    let cases: Vec<(Vec<String>, &[&str])> = vec![
        (classify(&["--epochs", "18446744073709551615"]), &["--epochs"]),
        (classify(&["--epochs", "-1"]), &["--epochs"]),
        (classify(&["--epochs", "1e3"]), &["--epochs"]),
        (classify(&["--epochs", ""]), &["--epochs"]),
        (classify(&["--patience", "-1"]), &["--patience"]),
        (classify(&["--micro-batch", "0"]), &["--micro-batch"]),
        (classify(&["--prompt-tokens", "1001"]), &["--prompt-tokens", "1000"]),
        (classify(&["--prompt-layers", "first:0"]), &["--prompt-layers"]),
        (classify(&["--prompt-layers", "last:4"]), &["--prompt-layers", "3 blocks"]),
        (classify(&["--prompt-layers", "first:18446744073709551615"]), &["--prompt-layers"]),
        (classify(&["--prompt-layers", "first:"]), &["--prompt-layers"]),
        (classify(&["--prompt-dropout", "1"]), &["--prompt-dropout"]),
        (classify(&["--prompt-dropout", "nan"]), &["--prompt-dropout"]),
        (classify(&["--method", "e2vpt", "--keys-values", "0"]), &["--keys-values"]),
        (classify(&["--keys-values", "5"]), &["--keys-values", "vpt-deep"]),
        (classify(&["--lr", "inf"]), &["--lr"]),
        (classify(&["--lr", "-0.001"]), &["--lr"]),
        (classify(&["--lr", "1e-3x"]), &["--lr"]),
        (classify(&["--head-lr", "0"]), &["--head-lr"]),
        (classify(&["--method", "linear", "--head-lr", "1"]), &["--head-lr", "linear"]),
        (classify(&["--weight-decay", "-0.1"]), &["--weight-decay"]),
        (classify(&["--weight-decay", "nan"]), &["--weight-decay"]),
        (classify(&["--warmup", "1.01"]), &["--warmup"]),
        (classify(&["--warmup", "-0.5"]), &["--warmup"]),
        (classify(&["--clip-norm", "0"]), &["--clip-norm"]),
        (classify(&["--clip-norm", "inf"]), &["--clip-norm"]),
        (classify(&["--label-smoothing", "-0.1"]), &["--label-smoothing"]),
        (classify(&["--random-resized-crop", "nan", "1"]), &["--random-resized-crop"]),
        (classify(&["--random-resized-crop", "0", "1"]), &["--random-resized-crop"]),
        (classify(&["--random-resized-crop", "0.5", "2"]), &["--random-resized-crop"]),
        (classify(&["--method", "linear", "--flip"]), &["--flip", "linear"]),
        (classify(&["--method", "linear", "--prompt-tokens", "4"]), &["--prompt-tokens", "linear"]),
        (classify(&["--method", "vpt-shallow", "--prompt-layers", "all"]), &["--prompt-layers", "vpt-shallow"]),
        (classify(&["--method", "vp-pad", "--pad", "0"]), &["--pad"]),
        (classify(&["--method", "vp-pad", "--pad", "17"]), &["--pad"]),
        (classify(&["--method", "vp-pad", "--pad", "18446744073709551615"]), &["--pad"]),
        (classify(&["--method", "vp-patch", "--patch-size", "0"]), &["--patch-size"]),
        (classify(&["--method", "vp-patch", "--patch-size", "33"]), &["--patch-size"]),
        (classify(&["--method", "vp-patch", "--patch-place", "middle"]), &["--patch-place", "middle"]),
        (classify(&["--method", "vp-frame", "--inner-size", "0"]), &["--inner-size"]),
        (classify(&["--method", "vp-frame", "--inner-size", "32"]), &["--inner-size"]),
        (classify(&["--image-size", "0"]), &["--image-size"]),
        (classify(&["--image-size", "18446744073709551608"]), &["--image-size"]),
        (classify(&["--seed", "9223372036854775808"]), &["--seed"]),
        (classify(&["--seed", "one"]), &["--seed"]),
        (classify(&["--threads", "-1"]), &["--threads"]),
        (classify(&["--box-crop"]), &["--box-crop", "detection"]),
        (classify(&["--open-vocabulary"]), &["--open-vocabulary", "detection"]),
        (classify(&["--fit", "letterbox"]), &["--fit", "detection"]),
        (classify(&["--task", "detect"]), &["--task", "colours"]),
        (classify(&["--out", ""]), &["--out"]),
        (classify(&["--backbone", ""]), &["--backbone"]),
        (classify(&["--resume", "run"]), &["--resume"]),
        (detect(&["--ema", "1"]), &["--ema"]),
        (detect(&["--ema", "nan"]), &["--ema"]),
        (detect(&["--mosaic", "1.5"]), &["--mosaic"]),
        (detect(&["--mosaic", "nan"]), &["--mosaic"]),
        (detect(&["--scale-jitter", "0", "1"]), &["--scale-jitter"]),
        (detect(&["--scale-jitter", "nan", "nan"]), &["--scale-jitter"]),
        (detect(&["--scale-jitter", "2", "1"]), &["--scale-jitter"]),
        (detect(&["--scale-jitter", "1e-30", "1e30"]), &["--scale-jitter"]),
        (detect(&["--head-epochs", "4", "--epochs", "4"]), &["--head-epochs"]),
        (detect(&["--shots", "0"]), &["--shots", "at least 1"]),
        (detect(&["--patience", "0"]), &["--patience", "at least 1"]),
        (detect(&["--method", "vp-pad"]), &["--method", "detection"]),
        (detect(&["--head", "cosine"]), &["--head", "detection"]),
        (detect(&["--task", "multilabel", "--shots", "3"]), &["--shots", "multi-label"]),
        (
            plain(&["train", "--backbone", &vit, "--data", "boxes", "--out", "new", "--open-vocabulary"]),
            &["no text tower"],
        ),
        (bench(&["--batch-size", most]), &["--batch-size"]),
        (bench(&["--batch-size", "1000000000"]), &["--batch-size", "too many"]),
        (bench(&["--classes", "1000000000000"]), &["--classes"]),
        (bench(&["--repeats", most]), &["--repeats"]),
        (bench(&["--micro-batch", "0"]), &["--micro-batch"]),
        (bench(&["--image-size", "16392"]), &["--image-size"]),
        (bench(&["--image-size", "-32"]), &["--image-size"]),
        (bench(&["--prompt-tokens", "1001"]), &["--prompt-tokens"]),
        (plain(&["bench", "detect", "--backbone", &clip, "--classes", most]), &["--classes"]),
        (plain(&["bench", "detect", "--backbone", &clip, "--batch-size", most]), &["--batch-size"]),
        (plain(&["bench", "detect", "--backbone", &clip, "--repeats", "0"]), &["--repeats"]),
        (plain(&["data", "make", "shapes", "--out", "new", "--images", "0"]), &["--images"]),
        (plain(&["data", "make", "shapes", "--out", "new", "--images", most]), &["--images"]),
        (plain(&["data", "make", "shapes", "--out", "new", "--size", "0"]), &["--size"]),
        (plain(&["data", "make", "shapes", "--out", "new", "--size", "100000"]), &["--size"]),
        (plain(&["data", "make", "shapes", "--out", "new", "--task", "detect", "--images", "2"]), &["--images"]),
        (plain(&["data", "make", "circles", "--out", "new"]), &["circles"]),
        (plain(&["predict", "--model", "run", "--min-score", "nan", &image]), &["--min-score"]),
        (plain(&["predict", "--model", "run", "--min-score", "-1", &image]), &["--min-score"]),
        (plain(&["predict", "--model", "run", "--min-score", "0.5", &image]), &["--min-score", "not boxes"]),
        (plain(&["predict", "--model", "run", "--classes", "a,b", &image]), &["--classes"]),
        (plain(&["predict", "--model", "run", "--backbone", &clip, "--threads", "1025", &image]), &["--threads"]),
        (plain(&["eval", "--model", "run", "--data", "colours", "--detections", "d.json"]), &["--detections"]),
        (plain(&["zero-shot", "--backbone", &vit, "--data", "colours"]), &["--backbone"]),
        (plain(&["zero-shot", "--backbone", &clip, "--data", "colours", "--image-size", "7"]), &["--image-size"]),
        (plain(&["embed", "--backbone", &vit, "--out", "e", "--texts", "a dog"]), &["no text tower"]),
        (plain(&["embed", "--backbone", &vit, "--out", "e", "--image-size", "12", &image]), &["--image-size"]),
        (plain(&["backbones", "fetch", "../../x"]), &["../../x"]),
        (plain(&["backbones", "fetch", ""]), &["backbone"]),
        (plain(&["backbones", "info", "a/b@../c"]), &["`../c` is no branch"]),
        (plain(&["runs", "list", "--sort", "luck"]), &["luck"]),
        (plain(&["runs", "compare", "run"]), &["RUN"]),
        (plain(&["completions", "tcsh"]), &["tcsh"]),
        (plain(&["--json"]), &["Usage"]),
        (plain(&["train", "--json=yes"]), &["--json"]),
        (plain(&["train", "--seed"]), &["--seed"]),
        (plain(&["train", "--seed", "1", "--seed", "2"]), &["--seed"]),
    ];
    for (args, parts) in cases {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        sandbox.holds("", || {
            sandbox.vpt_within_limits(&args).refuses(parts);
            assert!(!sandbox.path("new/checkpoint.safetensors").exists(), "{args:?}");
        });
        let _ = std::fs::remove_dir_all(sandbox.path("new"));
    }
    for args in [["data", "info", ""], ["data", "check", ""]] {
        sandbox.vpt_within_limits(&args).refuses(&["a value is required"]);
    }
    for args in [["runs", "show", ""], ["task", "info", ""]] {
        sandbox.vpt_within_limits(&args).fails(&["run ``"]);
    }
}
