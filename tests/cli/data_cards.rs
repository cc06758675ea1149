//! `vpt data list`, and `vpt data info` of a public data set.

use std::fs;

use crate::util::Sandbox;

#[test]
fn public_data_sets_are_listed_by_benchmark_and_task() {
    let sandbox = Sandbox::new();
    let listed = |args: &[&str]| {
        let json = sandbox.vpt(&[&["data", "list", "--json"], args].concat()).ok().json();
        let names = json["cards"].as_array().unwrap().iter().map(|card| card["name"].as_str().unwrap().to_owned());
        names.collect::<Vec<_>>()
    };
    assert_eq!(listed(&["--of", "fgvc"]), ["fgvc-cub", "fgvc-nabirds", "fgvc-flowers", "fgvc-dogs", "fgvc-cars"]);
    assert_eq!(listed(&["--of", "detect"]), ["coco", "lvis", "voc2007", "voc2012", "rf100-vl"]);
    assert!(listed(&[]).len() > 60);
    let text = sandbox.vpt(&["data", "list", "--of", "CoOp"]).ok().stdout;
    assert!(text.contains("oxford-pets") && text.lines().count() == 12, "{text}");
    sandbox.vpt(&["data", "list", "--of", "CoCoOp"]).fails(&[
        "--of: no public data set is of CoCoOp",
        "CoOp",
        "VTAB-1k",
    ]);
}

#[test]
fn a_name_prints_its_card_and_a_path_what_lies_there() {
    let sandbox = Sandbox::new();
    let card = sandbox.vpt(&["data", "info", "eurosat"]).ok().stdout;
    for part in [
        "EuroSAT",
        "13500 train, 5400 val, 8100 test",
        "split_zhou_EuroSAT.json",
        "licence  MIT",
        "SeaLake",
        "Sea or Lake",
    ] {
        assert!(card.contains(part), "no {part} in {card}");
    }
    let json = sandbox.vpt(&["data", "info", "Oxford_Pets", "--json"]).ok().json();
    assert_eq!(
        (&json["name"], &json["classes"], &json["names"][0]),
        (&"oxford-pets".into(), &37.into(), &"Abyssinian".into())
    );
    // What lies there comes first.
    sandbox.colours("eurosat", 4);
    let info = sandbox.vpt(&["data", "info", "eurosat", "--json"]).ok().json();
    assert_eq!(info["layout"], "folder");
    fs::create_dir(sandbox.path("dtd")).unwrap();
    sandbox.vpt(&["data", "info", "dtd"]).fails(&["dtd: no data set found"]);
}

#[test]
fn a_name_that_is_near_one_is_told() {
    let sandbox = Sandbox::new();
    sandbox
        .vpt(&["data", "info", "oxford-pest"])
        .fails(&["did you mean the public data set oxford-pets (`vpt data list`)?"]);
    let far = sandbox.vpt(&["data", "info", "holidays"]).fails(&["holidays"]);
    assert!(!far.stderr.contains("public data set"), "{far:?}");
}
