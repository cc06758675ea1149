//! `vpt predict --attention`: where a task looks, as pictures and as numbers.

use crate::util::{Sandbox, files, fixture, number};

#[test]
fn pictures_and_shares_of_one_image_and_of_several() {
    let sandbox = Sandbox::new();
    sandbox.trained("deep", &["--epochs", "1", "--prompt-tokens", "4", "--keep-better", "false"]);
    let predict = |more: &[&str]| sandbox.vpt(&[&["predict", "--model", "deep", "--json"], more].concat()).ok().json();
    let (one, all) = ("colours/green/000.png", "colours/blue");
    let answer = predict(&["--attention", "looks.png", one]);
    let attended = &answer["attention"][0];
    assert_eq!((&attended["of"], &attended["image"]), (&"class token".into(), &one.into()));
    assert_eq!(attended["file"], "looks.png");
    let shares = ["/patches", "/prefix", "/prompts"].map(|share| number(attended, share));
    assert!((shares.iter().sum::<f64>() - 1.).abs() < 1e-4 && shares.iter().all(|&share| share > 0.), "{shares:?}");
    // The same picture, in other colours.
    let drawn = image::open(sandbox.path("looks.png")).unwrap().to_rgb8();
    let picture = image::open(sandbox.path(one)).unwrap().to_rgb8();
    assert_eq!(drawn.dimensions(), picture.dimensions());
    assert_ne!(drawn, picture);
    // What is said of the image is what is said without.
    assert_eq!(answer["predictions"], predict(&[one])["predictions"]);

    let answer = predict(&["--attention", "looks", "--attention-of", "prompts", all]);
    let attended = answer["attention"].as_array().unwrap();
    assert_eq!(attended.len(), 20);
    assert!(attended.iter().all(|one| one["of"] == "prompts"));
    assert_eq!(files(&sandbox.path("looks")).len(), 20);
    let text = sandbox.vpt(&["predict", "--model", "deep", "--attention", "looks.jpg", one]).ok().stdout;
    assert!(text.contains("attention of") && text.contains("class token") && text.contains("looks.jpg"), "{text}");
}

#[test]
fn what_cannot_be_shown_is_refused() {
    let sandbox = Sandbox::new();
    sandbox.trained("probe", &["--epochs", "1", "--method", "linear"]);
    let predict = |more: &[&str]| sandbox.vpt(&[&["predict", "--model", "probe"], more].concat());
    let (one, other) = ("colours/green/000.png", "colours/green/001.png");
    predict(&["--attention", "a.png", one, other])
        .refuses(&["--attention: a.png is one picture, for 2 images; name a folder"]);
    predict(&["--attention", one, one]).refuses(&["--attention", "is the image itself"]);
    predict(&["--attention-of", "prompts", one]).refuses(&["--attention"]);
    predict(&["--attention", "a.png", "--attention-of", "heads", one]).refuses(&["heads", "features, prompts"]);
    predict(&["--attention", "a.png", "--attention-of", "prompts", one])
        .fails(&["colours/green/000.png", "the task has no prompt tokens that would look"]);
    assert!(!sandbox.path("a.png").exists());
}

#[test]
fn a_backbone_without_a_class_token_shows_where_its_pooling_looks() {
    let sandbox = Sandbox::new();
    let siglip = fixture("siglip");
    sandbox.colours("colours", 20);
    let args = ["train", "--backbone", &siglip, "--data", "colours", "--epochs", "1", "--out", "run"];
    sandbox.vpt(&args).ok();
    let args = ["predict", "--model", "run", "--attention", "a.webp", "colours/blue/000.png", "--json"];
    let attended = &sandbox.vpt(&args).ok().json()["attention"][0];
    assert_eq!(attended["of"], "pooling query");
    assert_eq!((number(attended, "/prefix"), number(attended, "/prompts")), (0., 0.));
}

#[test]
fn a_detector_shows_where_it_looks() {
    let sandbox = Sandbox::new();
    sandbox.boxes("boxes", 24);
    let clip = fixture("clip");
    let args = ["train", "--backbone", &clip, "--data", "boxes", "--epochs", "2", "--image-size", "32", "--out", "run"];
    sandbox.vpt(&[&args[..], &["--keep-better", "false"]].concat()).ok();
    let args =
        ["predict", "--model", "run", "--attention", "looks", "--attention-of", "prompts", "boxes/val", "--json"];
    let answer = sandbox.vpt(&args).ok().json();
    let attended = answer["attention"].as_array().unwrap();
    assert_eq!(attended.len(), answer["predictions"].as_array().unwrap().len());
    assert_eq!(files(&sandbox.path("looks")).len(), attended.len());
}
