use std::{collections::BTreeSet, path::Path};

use super::*;

#[test]
fn every_method_is_found_by_its_name() {
    for (method, name) in Method::ALL.iter().zip(Method::NAMES) {
        assert_eq!(method.name(), *name);
        assert_eq!(name.parse::<Method>().unwrap(), *method);
        assert_eq!(serde_json::to_value(method).unwrap(), *name);
        assert_eq!(serde_json::from_value::<Method>((*name).into()).unwrap(), *method);
    }
    assert_eq!(Method::NAMES.iter().collect::<BTreeSet<_>>().len(), Method::ALL.len());
    let message = "vpt-deap".parse::<Method>().unwrap_err().to_string();
    assert!(
        message.starts_with("method: `vpt-deap` is not one of linear, ") && message.ends_with("did you mean vpt-deep?")
    );
}

#[test]
fn defaults_in_help_texts_name_every_method_that_differs() {
    assert_eq!(
        help::batch_size(),
        "32; 256 for zs-lp, clap and tip-adapter-f; 1 for cocoop; 4 for ivlp, maple and promptsrc; in detection 4, in segmentation 8"
    );
    assert_eq!(help::optimizer(), "adamw; sgd for zs-lp, clap, coop, cocoop, ivlp, maple and promptsrc");
    assert_eq!(help::prompt_dropout(), "0.1; 0 for vpt-shallow; in detection 0");
    assert_eq!(help::views(), "20; 10 for tip-adapter and tip-adapter-f");
    let epochs = help::epochs();
    assert!(epochs.contains("lora 500 steps for each image of a class") && epochs.contains("cocoop 10"), "{epochs}");
    assert!(help::lr().contains("0.0002 for lora"), "{}", help::lr());
}

#[test]
fn epochs_follow_the_size_of_the_data_or_what_was_published() {
    assert_eq!([10, 50, 1000].map(|per_epoch| Epochs::of_steps(1000).count(per_epoch, Some(4))), [100, 20, 10]);
    assert_eq!(Epochs::Fixed(7).count(3, Some(2)), 7);
    assert_eq!([1, 4, 16].map(|shots| Epochs::ByShots([1, 2, 3]).count(9, Some(shots))), [1, 2, 3]);
    assert_eq!(Epochs::ByShots([1, 2, 3]).count(50, None), 20);
    assert_eq!((Epochs::StepsPerShot(500).count(3, Some(2)), Epochs::StepsPerShot(500).count(50, None)), (334, 20));
}

#[test]
fn methods_that_learn_different_things_learn_at_once_in_any_order() {
    for (one, other, name) in [
        ("vpt-deep,lora", "lora,vpt-deep", "vpt-deep,lora"),
        ("vp-pad,vpt-deep", "vpt-deep,vp-pad", "vpt-deep,vp-pad"),
        ("bias,vp-frame,vpt-shallow", "vpt-shallow,bias,vp-frame", "vpt-shallow,vp-frame,bias"),
    ] {
        let method: Method = one.parse().unwrap();
        assert_eq!(method, other.parse().unwrap());
        assert_eq!(method.to_string(), name);
        assert_eq!(serde_json::from_str::<Method>(&serde_json::to_string(&method).unwrap()).unwrap(), method);
        assert_eq!(method.own_head(), None);
        assert!(!method.on_features());
    }
    let refusal = |name: &str| name.parse::<Method>().unwrap_err().to_string();
    assert!(refusal("vpt-deep,full").contains("full learns alone; vpt-shallow, "));
    assert!(refusal("linear,lora").contains("linear learns alone"));
    assert!(refusal("coop,bias").contains("coop learns alone"));
    assert!(refusal("vpt-deep,vpt-shallow").ends_with("both learn prompt tokens; take one of them"));
    assert!(refusal("bias,lora").ends_with("bias and lora both learn weights of the backbone; take one of them"));
    assert!(refusal("vpt-deep,vpt-deep").contains("both learn prompt tokens"));
    assert!(refusal("vpt-deep,lroa").ends_with("did you mean lora?"));
    assert!(refusal("vpt-deep,").contains("`` is not one of"));
}

#[test]
fn the_schema_lists_every_method() {
    let schema =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/json.schema.json")).unwrap();
    let schema: serde_json::Value = serde_json::from_str(&schema).unwrap();
    assert_eq!(schema["$defs"]["method"]["anyOf"][0]["enum"], serde_json::json!(Method::NAMES));
}
