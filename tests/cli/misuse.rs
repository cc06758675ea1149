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
        (train("--precision", "bf16"), &["--precision", "not built in this version"]),
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
        (vec!["eval", "--data", "colours"], &["--model"]),
        (vec!["eval", "--model", "run"], &["--data"]),
        (vec!["eval", "--model", "run", "--data", "colours", "--split", "dev"], &["--split", "train, val or test"]),
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
