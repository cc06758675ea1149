use super::*;
use crate::prompt::{
    PartShape, PartShapes,
    pixels::PixelShape,
    text::{Beside, TextShape},
    tokens::TokenLayout,
    weights::{LoraShape, LoraTowers},
};

const FACTS: Facts =
    Facts { task: Task::Classify, depth: 12, text_depth: Some(12), image_size: 224, train_images: 1000, shots: None };

fn config(method: Method) -> RunConfig {
    RunConfig { method, ..RunConfig::default() }
}

fn refusal(change: impl FnOnce(&mut RunConfig)) -> String {
    let mut config = RunConfig::default();
    change(&mut config);
    config.resolve(&FACTS).unwrap_err().to_string()
}

#[test]
fn an_empty_file_is_the_default_run() {
    assert_eq!(toml::from_str::<RunConfig>("").unwrap(), RunConfig::default());
}

#[test]
fn a_resolved_run_resolves_to_itself() {
    for &method in Method::ALL {
        let plan = config(method).resolve(&FACTS).unwrap();
        let text = plan.config.to_toml().unwrap();
        let again: RunConfig = toml::from_str(&text).unwrap();
        assert_eq!(again.resolve(&FACTS).unwrap(), plan, "{text}");
    }
}

#[test]
fn prompts_follow_method_depth_and_image_size() {
    let prompt = |config: RunConfig| config.resolve(&FACTS).unwrap().parts;
    let tokens = |start, layers, tokens| PartShapes::from(PartShape::Tokens(TokenLayout { start, layers, tokens }));
    let dropout = |method| config(method).resolve(&FACTS).unwrap().prompt_dropout;
    assert_eq!(prompt(config(Method::Linear)), PartShapes::NONE);
    assert_eq!(prompt(config(Method::VptShallow)), tokens(0, 1, 10));
    assert_eq!(prompt(config(Method::VptDeep)), tokens(0, 12, 10));
    let last = RunConfig { prompt_layers: Some(PromptLayers::Last(3)), prompt_tokens: Some(4), ..RunConfig::default() };
    assert_eq!(prompt(last), tokens(9, 3, 4));
    assert_eq!(prompt(config(Method::VpPad)), PartShape::Pixels(PixelShape::Pad { width: 30 }).into());
    assert_eq!(prompt(config(Method::VpFrame)), PartShape::Pixels(PixelShape::Frame { inner: 180 }).into());
    assert_eq!((dropout(Method::VptShallow), dropout(Method::VptDeep)), (0., 0.1));
}

#[test]
fn low_rank_changes_are_clip_lora_s_where_texts_tell_the_classes() {
    let facts = Facts { text_depth: Some(12), shots: Some(4), train_images: 40, ..FACTS };
    let lora = |change: fn(&mut RunConfig), facts: Facts| {
        let mut config = config(Method::Lora);
        change(&mut config);
        config.resolve(&facts)
    };
    let shape = |plan: &Plan| match plan.parts.weights() {
        Some(shape) => shape.lora().unwrap(),
        other => panic!("{other:?}"),
    };
    let plan = lora(|_| {}, facts).unwrap();
    assert_eq!(shape(&plan), LoraShape { rank: 2, alpha: 1., towers: LoraTowers::Both, texts: true });
    // 500 steps for each of 4 images a class; two steps an epoch of 40 images.
    assert_eq!((plan.epochs, plan.total_steps, plan.warmup_steps, plan.prompt_dropout), (1000, 2000, 0, 0.25));
    assert_eq!((plan.head, plan.config.head), (HeadKind::Cosine, None));
    let rates = plan.rates(2e-4);
    assert_eq!((plan.learning_rates[0], rates.parts[0].decay, plan.batch_size), (2e-4, 0.01, 32));
    let without = Facts { text_depth: None, ..facts };
    for (plan, towers) in [
        (lora(|_| {}, without), LoraTowers::Image),
        (lora(|c| c.head = Some(HeadKind::Cosine), facts), LoraTowers::Image),
        (lora(|_| {}, Facts { task: Task::Multilabel, shots: None, ..facts }), LoraTowers::Image),
    ] {
        let plan = plan.unwrap();
        assert_eq!((shape(&plan).towers, shape(&plan).texts, plan.config.head.is_some()), (towers, false, true));
        assert!(plan.config.templates.is_none());
    }
    let refusal = |change, facts| lora(change, facts).unwrap_err().to_string();
    assert!(
        refusal(|c| c.lora_towers = Some(LoraTowers::Both), without).starts_with("--lora-towers: the backbone has no")
    );
    let message = refusal(|c| (c.lora_towers, c.head) = (Some(LoraTowers::Text), Some(HeadKind::Linear)), facts);
    assert!(message.starts_with("--lora-towers: text changes texts"), "{message}");
    assert!(refusal(|c| c.head_lr = Some(0.1), facts).starts_with("--head-lr: texts tell the classes"));
    assert!(refusal(|c| c.templates = Some(vec!["a {}".into()]), without).starts_with("--templates: the classes are"));
    assert!(refusal(|c| c.lora_rank = Some(0), facts).starts_with("--lora-rank: 0 is not between 1 and"));
    assert!(refusal(|c| c.lora_alpha = Some(-1.), facts).starts_with("--lora-alpha: -1 is not"));
    assert!(refusal(|c| c.lora_dropout = Some(1.), facts).starts_with("--lora-dropout: 1 is not a share"));
    let full = RunConfig { max_memory: Some(1 << 30), ..config(Method::Full) };
    assert!(full.resolve(&facts).unwrap_err().to_string().starts_with("--max-memory: not with method full"));
    let detect = Facts { task: Task::Detect, ..FACTS };
    for method in [Method::Bias, Method::Lora, Method::Full] {
        let message = config(method).resolve(&detect).unwrap_err().to_string();
        assert_eq!(message, format!("--method: {method} is not for detection; take linear, vpt-shallow or vpt-deep"));
    }
    let other = RunConfig { lora_rank: Some(2), ..config(Method::Bias) };
    assert_eq!(other.validate().unwrap_err().to_string(), "--lora-rank: method bias has no low-rank change");
}

#[test]
fn a_detector_s_images_are_zoomed_while_prompts_learn_unless_told_otherwise() {
    let facts = Facts { task: Task::Detect, ..FACTS };
    let zoom = |method, scale_jitter| {
        let plan = RunConfig { scale_jitter, ..config(method) }.resolve(&facts).unwrap();
        let again: RunConfig = toml::from_str(&plan.config.to_toml().unwrap()).unwrap();
        assert_eq!(again.resolve(&facts).unwrap(), plan);
        plan.detect.unwrap().augment.scale
    };
    assert_eq!(zoom(Method::VptDeep, None), Some([0.8, 1.25]));
    assert_eq!(zoom(Method::VptDeep, Some([1., 1.])), None);
    assert_eq!(zoom(Method::Linear, None), None);
    assert_eq!(zoom(Method::Linear, Some([0.5, 2.])), Some([0.5, 2.]));
}

#[test]
fn a_wrong_value_names_its_flag() {
    type Change = fn(&mut RunConfig);
    let cases: [(Change, &str); 26] = [
        (|c| c.prompt_tokens = Some(0), "--prompt-tokens: must be at least 1"),
        (|c| c.prompt_tokens = Some(1001), "--prompt-tokens: more than 1000"),
        (
            |c| c.prompt_layers = Some(PromptLayers::First(13)),
            "--prompt-layers: first:13 does not fit a backbone of 12 blocks: take 1 to 12",
        ),
        (|c| c.prompt_dropout = Some(1.), "--prompt-dropout: 1 is not a share from 0 to below 1"),
        (|c| c.lr = Some(LearningRate::Value(f64::NAN)), "--lr: NaN is not a number above 0"),
        (|c| c.lr = Some(LearningRate::Value(-1.)), "--lr: -1 is not a number above 0"),
        (|c| c.head_lr = Some(f64::INFINITY), "--head-lr: inf is not a number above 0"),
        (|c| c.weight_decay = Some(-0.1), "--weight-decay: -0.1 is not a number of 0 or more"),
        (|c| c.warmup = Some(2.), "--warmup: 2 is not a share between 0 and 1"),
        (|c| c.label_smoothing = f32::NAN, "--label-smoothing: NaN is not a share from 0 to below 1"),
        (|c| c.clip_norm = Some(0.), "--clip-norm: 0 is not a number above 0"),
        (|c| c.epochs = Some(0), "--epochs: must be at least 1"),
        (|c| c.epochs = Some(usize::MAX), "--epochs: 18446744073709551615 are too many"),
        (|c| c.batch_size = Some(0), "--batch-size: must be at least 1"),
        (|c| c.shots = Some(0), "--shots: must be at least 1"),
        (|c| c.seed = u64::MAX, "--seed: 18446744073709551615 is larger than 9223372036854775807"),
        (|c| c.split_seed = Some(u64::MAX), "--split-seed: 18446744073709551615 is larger than 9223372036854775807"),
        (
            |c| (c.shots, c.draw) = (Some(2), Some("draw.json".into())),
            "--draw: its file says which images are learned from; leave out --shots",
        ),
        (
            |c| c.random_resized_crop = Some([0.9, 0.5]),
            "--random-resized-crop: 0.9 to 0.5 are not shares of the area with 0 < least <= most <= 1",
        ),
        (|c| c.pad = Some(8), "--pad: method vpt-deep has no border"),
        (|c| c.context_init = Some("a".into()), "--context-init: method vpt-deep has no words of texts to learn"),
        (
            |c| c.templates = Some(vec!["{}".into()]),
            "--templates: only for --head text and zero-shot, zs-lp, clap, tip-adapter, tip-adapter-f, promptsrc, lora, not linear",
        ),
        (
            |c| (c.method, c.head) = (Method::Coop, Some(HeadKind::Text)),
            "--head: text is not for method coop, which has a head of its own",
        ),
        (
            |c| (c.method, c.prompt_layers) = (Method::Coop, Some(PromptLayers::All)),
            "--prompt-layers: method coop has no choice of blocks",
        ),
        (
            |c| (c.method, c.prompt_tokens) = (Method::Linear, Some(8)),
            "--prompt-tokens: method linear has no prompt tokens",
        ),
        (
            |c| (c.method, c.flip) = (Method::Linear, Some(true)),
            "--flip: method linear computes the features of an image once, without augmentation",
        ),
    ];
    for (change, expected) in cases {
        assert_eq!(refusal(change), expected);
    }
}

#[test]
fn texts_are_learned_as_published() {
    let plan = |method, shots| RunConfig { shots, ..config(method) }.resolve(&Facts { shots, ..FACTS }).unwrap();
    let layout = |tokens| TokenLayout { start: 0, layers: 9, tokens };
    for (method, tokens, layers, beside, lr, batch, epochs) in [
        (Method::Coop, 16, 1, Beside::Nothing, 2e-3, 32, [50, 100, 200]),
        (Method::Cocoop, 4, 1, Beside::MetaNet, 2e-3, 1, [10; 3]),
        (Method::Ivlp, 4, 9, Beside::Tokens(layout(4)), 2.5e-3, 4, [50; 3]),
        (Method::Maple, 2, 9, Beside::Map, 3.5e-3, 4, [50; 3]),
        (Method::Promptsrc, 4, 9, Beside::Tokens(layout(4)), 2.5e-3, 4, [50; 3]),
    ] {
        for (shots, epochs) in [1, 4, 16].into_iter().zip(epochs) {
            let plan = plan(method, Some(shots));
            assert_eq!(plan.parts.text(), Some(TextShape { tokens, layers, beside }));
            assert_eq!((plan.learning_rates.as_slice(), plan.batch_size, plan.epochs), (&[lr][..], batch, epochs));
            assert_eq!((plan.optimizer, plan.config.weight_decay), (OptimizerKind::Sgd, Some(5e-4)));
            // The first epoch at a constant 1e-5, then PyTorch's cosine by epochs.
            let course = plan.course(epochs, 5);
            let rates: Vec<f64> = (0..11).map(|step| lr * course.factor(step)).collect();
            let third = lr * 0.5 * (1. + (std::f64::consts::PI / epochs as f64).cos());
            for (step, rate) in rates.iter().enumerate() {
                let expected = [1e-5, lr, third][step / 5];
                assert!((rate - expected).abs() < 1e-12, "{method} step {step}: {rate}, not {expected}");
            }
            assert!(plan.course(1, 5).factor(0) > 0.5, "a single epoch learns");
            assert_eq!((plan.config.warmup, plan.warmup_steps), (None, 0));
            assert_eq!(plan.config.templates.is_some(), method == Method::Promptsrc);
            assert_eq!(plan.config.head, Some(HeadKind::Cosine));
            let words = (method != Method::Coop).then_some("a photo of a");
            assert_eq!(plan.context_words(), words);
            assert_eq!(plan.config.resolve(&FACTS).unwrap(), plan, "{method}");
            assert_eq!(plan.config.with_method(Method::Linear).head, None);
        }
    }
    // Towers that are less deep, and of two depths.
    let facts = Facts { depth: 4, text_depth: Some(3), ..FACTS };
    let shape = config(Method::Ivlp).resolve(&facts).unwrap().parts.text().unwrap();
    assert_eq!((shape.layers, shape.image_tokens().unwrap().layers), (2, 3));
    let shape = config(Method::Maple).resolve(&facts).unwrap().parts.text().unwrap();
    assert_eq!(shape.image_tokens().unwrap().layers, 2);
    // As many vectors as words.
    let words = Some("this is a picture of one".to_owned());
    let coop = RunConfig { context_init: words, ..config(Method::Coop) }.resolve(&FACTS).unwrap();
    assert_eq!((coop.config.prompt_tokens, coop.context_words()), (Some(6), Some("this is a picture of one")));
    let many = RunConfig { prompt_tokens: Some(5), ..config(Method::Ivlp) }.resolve(&FACTS).unwrap();
    assert_eq!(many.context_words(), None);

    let refusal = |config: RunConfig, facts: &Facts| config.resolve(facts).unwrap_err().to_string();
    let message = refusal(config(Method::Coop), &Facts { text_depth: None, ..FACTS });
    assert_eq!(message, "--method: coop learns texts, and the backbone has no text tower; take a CLIP");
    let layers = |layers| RunConfig { prompt_layers: Some(layers), ..config(Method::Maple) };
    assert!(refusal(layers(PromptLayers::Last(2)), &FACTS).contains("maple prompts the first blocks"));
    assert!(refusal(layers(PromptLayers::First(4)), &facts).contains("a backbone of 3 blocks"));
    let head_lr = RunConfig { head_lr: Some(0.1), ..config(Method::Coop) };
    assert!(refusal(head_lr, &FACTS).starts_with("--head-lr: method coop has no prompt beside its head"));
    let template = |text: &str| RunConfig { templates: Some(vec![text.to_owned()]), ..config(Method::Promptsrc) };
    assert!(template("a {}").validate().is_ok());
    assert_eq!(refusal(template("a dog"), &FACTS), "--templates: template 1 ('a dog') has no {} for the class name");
}

#[test]
fn flags_of_other_tasks_are_refused() {
    let facts = Facts { task: Task::Multilabel, ..FACTS };
    let refusal = |config: RunConfig| config.resolve(&facts).unwrap_err().to_string();
    let not = "not for multi-label classification";
    assert_eq!(refusal(RunConfig { shots: Some(4), ..RunConfig::default() }), format!("--shots: {not}"));
    assert_eq!(
        refusal(RunConfig { label_smoothing: 0.1, ..RunConfig::default() }),
        format!("--label-smoothing: {not}")
    );
    let message = refusal(RunConfig { mosaic: Some(0.5), ..RunConfig::default() });
    assert_eq!(message, "--mosaic: only for detection, from data with boxes");
    let message = refusal(RunConfig { head: Some(HeadKind::Text), ..RunConfig::default() });
    assert!(message.starts_with("--head: text is for one class an image"), "{message}");
    for &method in Method::ALL {
        if method.on_embeddings() || method.has_texts() {
            assert_eq!(refusal(config(method)), format!("--method: {method} is {not}"));
            continue;
        }
        let plan = config(method).resolve(&facts).unwrap();
        assert_eq!(plan.config.task, Task::Multilabel);
        assert_eq!(plan.config.resolve(&facts).unwrap(), plan, "{method}");
    }
}

#[test]
fn flags_of_other_methods_on_features_are_refused() {
    type Change = fn(&mut RunConfig);
    let cases: [(Method, Change, &str); 11] = [
        (Method::Ncm, |c| c.lr = Some(LearningRate::Auto), "--lr: method ncm learns nothing in steps"),
        (Method::ZeroShot, |c| c.epochs = Some(3), "--epochs: method zero-shot learns nothing in steps"),
        (
            Method::Linear,
            |c| (c.solver, c.epochs) = (Some(Solver::Lbfgs), Some(3)),
            "--epochs: not with --solver lbfgs",
        ),
        (Method::Linear, |c| c.l2 = Some(1.), "--l2: method linear has no such penalty without --solver lbfgs"),
        (Method::ZsLp, |c| c.solver = Some(Solver::Sgd), "--solver: method zs-lp has no choice of solvers"),
        (
            Method::Clap,
            |c| c.head = Some(HeadKind::Linear),
            "--head: linear is not for method clap, which has a head of its own",
        ),
        (
            Method::Ncm,
            |c| c.templates = Some(vec!["{}".into()]),
            "--templates: only for --head text and zero-shot, zs-lp, clap, tip-adapter, tip-adapter-f, promptsrc, lora, not ncm",
        ),
        (
            Method::Linear,
            |c| (c.solver, c.head) = (Some(Solver::Lbfgs), Some(HeadKind::Text)),
            "--head: text is not for --solver lbfgs, which fits a linear head",
        ),
        (Method::Linear, |c| c.views = Some(3), "--views: method linear has no augmented views"),
        (Method::TipAdapter, |c| c.alpha = Some(1.), "--alpha: --alpha and --beta are given together or not at all"),
        (Method::TipAdapter, |c| c.views = Some(1001), "--views: more than 1000"),
    ];
    for (method, change, expected) in cases {
        let mut config = config(method);
        change(&mut config);
        assert_eq!(config.resolve(&FACTS).unwrap_err().to_string(), expected);
    }
}

#[test]
fn published_schedules_are_the_defaults() {
    let plan = |method| config(method).resolve(&Facts { train_images: 160, ..FACTS }).unwrap();
    let clap = plan(Method::Clap);
    assert_eq!((clap.epochs, clap.batch_size, clap.views, clap.steps_per_epoch()), (300, 256, 20, 13));
    assert_eq!((clap.optimizer, clap.learning_rates, clap.head), (OptimizerKind::Sgd, vec![0.1], HeadKind::Cosine));
    let tip = plan(Method::TipAdapterF);
    assert_eq!((tip.epochs, tip.batch_size, tip.views, tip.warmup_steps), (20, 160, 10, 0));
    assert_eq!((tip.optimizer, tip.learning_rates), (OptimizerKind::Adamw, vec![1e-3]));
}

#[test]
fn a_wrong_file_names_line_and_field() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.toml");
    let load = |text: &str| {
        std::fs::write(&path, text).unwrap();
        let message = RunConfig::load(&path).unwrap_err().to_string();
        assert!(!message.contains('\n'), "{message}");
        message.strip_prefix(&format!("{}: ", path.display())).unwrap().to_owned()
    };
    assert_eq!(load("seed = 3\nepoch = 4\n"), "line 2: unknown field `epoch`; did you mean epochs?");
    assert!(load("resnet = 3\n").starts_with("line 1: unknown field `resnet`, expected one of `backbone`"));
    assert!(load("method = \"vpt-medium\"\n").contains("`vpt-medium` is not one of linear, zero-shot"));
    assert!(load("lr = \"fast\"\n").contains("expected a number or \"auto\""));
    assert!(load("prompt_layers = \"middle\"").contains("all, first:K, last:K"));
    assert!(load("seed = ").starts_with("line 1: "));
    std::fs::write(&path, b"data = \"\xff\"").unwrap();
    assert!(RunConfig::load(&path).unwrap_err().to_string().ends_with("not UTF-8 text"));
}

#[test]
fn learning_rates_are_numbers_or_auto() {
    let lr = |text: &str| toml::from_str::<RunConfig>(text).unwrap().lr.unwrap();
    assert_eq!(lr("lr = 1"), LearningRate::Value(1.));
    assert_eq!(lr("lr = 2.5e-3"), LearningRate::Value(2.5e-3));
    assert_eq!(lr("lr = \"auto\""), LearningRate::Auto);
    assert_eq!("auto".parse::<LearningRate>().unwrap(), LearningRate::Auto);
    assert!("fast".parse::<LearningRate>().is_err());
    let auto = RunConfig { lr: Some(LearningRate::Auto), ..RunConfig::default() };
    assert!(auto.resolve(&FACTS).unwrap().learning_rates.len() > 1);
}

#[test]
fn few_shots_count_the_last_epoch_unless_told_otherwise() {
    let select = |shots, select| RunConfig { shots, select, ..RunConfig::default() }.resolve(&FACTS).unwrap().select;
    assert_eq!(select(None, None), Select::Best);
    assert_eq!(select(Some(4), None), Select::Last);
    assert_eq!(select(Some(4), Some(Select::Best)), Select::Best);
}

#[test]
fn another_method_leaves_open_what_was_said_for_the_old_one() {
    let deep = RunConfig { seed: 7, ..config(Method::VptDeep) }.resolve(&FACTS).unwrap().config;
    let linear = deep.with_method(Method::Linear).resolve(&FACTS).unwrap();
    assert_eq!(linear.config.seed, 7);
    assert_eq!(linear, RunConfig { seed: 7, ..config(Method::Linear) }.resolve(&FACTS).unwrap());
}

#[test]
fn steps_cover_every_image_and_small_sets_get_more_epochs() {
    let plan = |train_images| RunConfig::default().resolve(&Facts { train_images, ..FACTS }).unwrap();
    assert_eq!(plan(33).steps_per_epoch(), 2);
    assert_eq!(plan(1).batch_size, 1);
    assert!(plan(100).epochs > plan(10_000).epochs);
    assert!(RunConfig::default().resolve(&Facts { train_images: 0, ..FACTS }).is_err());
}

#[test]
fn pixels_with_a_label_map_are_learned_as_in_ilm_vp() {
    for &map in LabelMap::ALL {
        let mapped = RunConfig { label_map: Some(map), ..config(Method::VpFrame) };
        for shots in [None, Some(1), Some(16)] {
            let plan = RunConfig { shots, ..mapped.clone() }.resolve(&Facts { shots, ..FACTS }).unwrap();
            assert_eq!((plan.epochs, plan.learning_rates.as_slice()), (200, &[1e-2][..]));
            assert_eq!((plan.optimizer, plan.config.weight_decay), (OptimizerKind::Adamw, Some(0.)), "which is Adam");
            assert_eq!((plan.config.head, plan.config.head_lr, plan.config.label_map), (None, None, Some(map)));
            assert_eq!(plan.config.resolve(&Facts { shots, ..FACTS }).unwrap(), plan);
        }
        let inner = |image_size| mapped.resolve(&Facts { image_size, ..FACTS }).unwrap().config.inner_size;
        assert_eq!([224, 64, 32, 384].map(inner), [128, 38, 20, 220].map(Some));
        let of_shapes = mapped.resolve(&Facts { task: Task::Multilabel, ..FACTS }).unwrap_err().to_string();
        assert_eq!(of_shapes, "--label-map: not for multi-label classification");
        assert_eq!(mapped.clone().with_method(Method::VpPad).label_map, None);
    }
    assert_eq!(config(Method::VpFrame).resolve(&FACTS).unwrap().config.inner_size, Some(180));
}
