//! Against open_clip itself: `scripts/make_open_clip_fixture.py` made the embeddings, from weights that a formula gives.

use std::{collections::BTreeMap, fs};

use safetensors::{Dtype, tensor::TensorView};
use serde::Deserialize;
use serde_json::json;
use tempfile::TempDir;

use super::*;
use crate::formula::{assert_close, picture, values};
use crate::{Backbone, OpenOptions};

#[derive(Deserialize)]
struct OpenClipFixture {
    ids: Vec<(String, Vec<u32>)>,
    cases: BTreeMap<String, Case>,
}

#[derive(Deserialize)]
struct Case {
    config: Value,
    /// Shapes by name.
    tensors: BTreeMap<String, Vec<usize>>,
    /// Each tensor's number in the formula.
    numbers: BTreeMap<String, u64>,
    /// `(width, height)` of the pictures.
    sizes: Vec<(usize, usize)>,
    images: Vec<Vec<f32>>,
    texts: Vec<Vec<f32>>,
}

fn fixture() -> OpenClipFixture {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/open-clip.json");
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// `fill` of the script.
fn filled(name: &str, number: u64, count: usize) -> Vec<f32> {
    let center = match name {
        _ if name.contains("ln_") && name.ends_with("weight") => 1.,
        "logit_scale" => 2.,
        _ => 0.,
    };
    values(number, count, 0.3).into_iter().map(|value| value + center).collect()
}

/// A folder of open_clip with the case's model; `rename` gives its tensors other names.
fn folder(case: &Case, rename: impl Fn(&str) -> String) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(CONFIG), case.config.to_string()).unwrap();
    let bytes: Vec<(String, &Vec<usize>, Vec<u8>)> = case
        .tensors
        .iter()
        .map(|(name, shape)| {
            let values = filled(name, case.numbers[name], shape.iter().product());
            (rename(name), shape, values.iter().flat_map(|v| v.to_le_bytes()).collect())
        })
        .collect();
    let views =
        bytes.iter().map(|(name, shape, bytes)| (name, TensorView::new(Dtype::F32, (*shape).clone(), bytes).unwrap()));
    fs::write(dir.path().join(WEIGHTS[0]), safetensors::serialize(views, None).unwrap()).unwrap();
    dir
}

/// The case's tensors in a file without a configuration.
fn file(case: &Case) -> (TempDir, String) {
    let dir = folder(case, str::to_owned);
    fs::remove_file(dir.path().join(CONFIG)).unwrap();
    let path = dir.path().join(WEIGHTS[0]).display().to_string();
    (dir, path)
}

fn add(case: &mut Case, name: &str, shape: &[usize]) {
    case.tensors.insert(name.to_owned(), shape.to_vec());
    case.numbers.insert(name.to_owned(), 0);
}

fn opened(dir: &TempDir) -> Result<Backbone> {
    Backbone::open(dir.path().to_str().unwrap(), &OpenOptions::default())
}

#[test]
fn embeddings_of_images_and_texts_equal_open_clip() {
    let OpenClipFixture { ids, cases } = fixture();
    let texts: Vec<&str> = ids.iter().map(|(text, _)| text.as_str()).collect();
    assert!(cases.len() == 5 && cases["quick"].images != cases["plain"].images);
    for (name, case) in &cases {
        // It reads its texts' half when that is asked for.
        let dir = folder(case, str::to_owned);
        let backbone = opened(&dir).unwrap();
        for (size, expected) in case.sizes.iter().zip(&case.images) {
            let pixels = backbone.preprocess.apply(&picture(*size)).unwrap();
            assert_close(&backbone.embed(&pixels, None, 1).unwrap(), expected, &format!("{name} {size:?}"));
        }
        let found = backbone.embed_texts(&texts, 2).unwrap();
        let width = backbone.embedding_width();
        for ((text, found), expected) in texts.iter().zip(found.chunks_exact(width)).zip(&case.texts) {
            assert_close(found, expected, &format!("{name} {text:?}"));
        }
    }
}

#[test]
fn a_file_without_a_configuration_is_what_is_said_of_it() {
    let OpenClipFixture { ids, cases } = fixture();
    let texts: Vec<&str> = ids.iter().map(|(text, _)| text.as_str()).collect();
    let (_dir, path) = file(&cases["bare"]);
    let open = |said: &str| Backbone::open(&format!("{path}{said}"), &OpenOptions::default());
    for (said, name) in [(":gelu", "bare"), (":quick-gelu", "bare-quick")] {
        let dir = folder(&cases[name], str::to_owned);
        let (backbone, of_folder) = (open(said).unwrap(), opened(&dir).unwrap());
        assert_eq!((&backbone.spec, &backbone.preprocess), (&of_folder.spec, &of_folder.preprocess));
        assert_eq!(backbone.hash().unwrap(), of_folder.hash().unwrap());
        assert_eq!(backbone.name, format!("open_clip_model.safetensors{said}"));
        assert!(backbone.note().unwrap().contains("images are prepared as for OpenAI's CLIP"));
        for (size, expected) in cases[name].sizes.iter().zip(&cases[name].images) {
            let pixels = backbone.preprocess.apply(&picture(*size)).unwrap();
            assert_close(&backbone.embed(&pixels, None, 1).unwrap(), expected, &format!("{name} {size:?}"));
        }
        let expected = cases[name].texts.concat();
        assert_close(&backbone.embed_texts(&texts, 2).unwrap(), &expected, name);
    }
    assert!(cases["bare"].images != cases["bare-quick"].images);
    let message = |said: &str| open(said).unwrap_err().to_string();
    let unsaid = message("");
    assert!(
        unsaid.contains("no tensor tells the activation of its towers: give ") && !unsaid.contains('\n'),
        "{unsaid}"
    );
    assert!(
        unsaid.contains("open_clip_model.safetensors:quick-gelu (as OpenAI, DFN and MetaCLIP have it)"),
        "{unsaid}"
    );
    let unknown = message(":relu");
    assert!(unknown.starts_with("backbone: `relu` is not one of gelu, quick-gelu, dino, dinov2, mae"), "{unknown}");
    assert!(message(":dino").contains("no tensor tells the activation"), "{}", message(":dino"));
}

#[test]
fn what_else_a_file_without_a_configuration_holds_is_named() {
    let refused = |change: fn(&mut Case)| {
        let mut case = fixture().cases.remove("bare").unwrap();
        change(&mut case);
        let (_dir, path) = file(&case);
        Backbone::open(&format!("{path}:gelu"), &OpenOptions::default()).unwrap_err().to_string()
    };
    for (change, part) in [
        (
            (|case| add(case, "visual.attn_pool.query", &[4])) as fn(&mut Case),
            "a tensor `visual.attn_pool.query`, which a plain CLIP has not",
        ),
        (|case| add(case, "logit_bias", &[]), "`logit_bias`"),
        (|case| drop(case.tensors.remove("visual.proj")), "has no tensor `visual_projection.weight`"),
        (|case| drop(case.tensors.insert("visual.positional_embedding".into(), vec![16, 64])), "of shape [16, 64]"),
        (|case| drop(case.tensors.remove("visual.class_embedding")), "are not called as open_clip"),
        (|case| drop(case.tensors.insert("visual.proj".into(), vec![64])), "not shared so"),
    ] {
        let message = refused(change);
        assert!(message.contains(part) && !message.contains('\n'), "{message}");
    }
    // Without its texts it has images all the same.
    let mut case = fixture().cases.remove("bare").unwrap();
    case.tensors.retain(|name, _| name.starts_with("visual.") || name == "logit_scale");
    let (dir, path) = file(&case);
    let images = Backbone::open(&format!("{path}:gelu"), &OpenOptions::default()).unwrap();
    let message = images.text_spec().unwrap_err().to_string();
    assert!(message.contains("cannot be read: its file holds none in open_clip's names"), "{message}");
    // Beside a configuration the folder is what counts.
    fs::write(dir.path().join(CONFIG), "{}").unwrap();
    let message = Backbone::open(&path, &OpenOptions::default()).unwrap_err().to_string();
    assert!(message.contains("is a file of a folder with a configuration: give "), "{message}");
    let text = dir.path().join("notes.txt");
    fs::write(&text, "no weights").unwrap();
    let message = Backbone::open(&format!("{}:gelu", text.display()), &OpenOptions::default()).unwrap_err().to_string();
    assert!(message.contains("not a PyTorch checkpoint that can be read"), "{message}");
}

#[test]
fn token_ids_equal_open_clip() {
    let OpenClipFixture { ids, cases } = fixture();
    let dir = folder(&cases["quick"], str::to_owned);
    let backbone = opened(&dir).unwrap();
    for (text, expected) in ids {
        let mut found = backbone.token_ids(&[&text]).unwrap().remove(0);
        // The fixture's are filled up with zeros.
        assert!(found.len() <= 77);
        found.resize(77, 0);
        // What comes behind the first end token is of no use, and is not kept.
        let end = expected.iter().position(|&id| id == 49407).unwrap();
        assert_eq!(found[..=end], expected[..=end], "{text:?}");
    }
}

#[test]
fn names_of_other_programs_are_the_same_tensors() {
    let mut cases = fixture().cases;
    let case = cases.remove("plain").unwrap();
    let dir = folder(&case, str::to_owned);
    let plain = opened(&dir).unwrap();
    let pixels = plain.preprocess.apply(&picture((35, 32))).unwrap();
    let expected = (plain.embed(&pixels, None, 1).unwrap(), plain.embed_texts(&["a cat"], 1).unwrap());
    for rename in [(|name: &str| format!("module.{name}")) as fn(&str) -> String, |name| {
        if name.starts_with("visual.") || name == "logit_scale" { name.to_owned() } else { format!("text.{name}") }
    }] {
        let dir = folder(&case, rename);
        let other = opened(&dir).unwrap();
        assert_eq!(other.embed(&pixels, None, 1).unwrap(), expected.0);
        assert_eq!(other.embed_texts(&["a cat"], 1).unwrap(), expected.1);
    }
}

#[test]
fn what_is_not_supported_is_named() {
    let read = |json: Value| OpenClip::from_json(json.to_string().as_bytes(), Path::new(CONFIG));
    let of = |vision: Value| json!({"model_cfg": {"embed_dim": 8, "vision_cfg": vision, "text_cfg": {}}});
    for (json, part) in [
        (json!([]), "no JSON object"),
        (json!({}), "model_cfg: missing"),
        (json!({"model_cfg": {"vision_cfg": {}}}), "model_cfg.embed_dim: missing"),
        (of(json!({"timm_model_name": "convnext_base"})), "image towers of timm (convnext_base)"),
        (of(json!({"layers": [3, 4, 6, 3]})), "model_cfg.vision_cfg.layers: image towers of convolutions"),
        (of(json!({"attentional_pool": true})), "model_cfg.vision_cfg.attentional_pool: true is not supported"),
        (of(json!({"pool_type": "avg"})), "model_cfg.vision_cfg.pool_type: \"avg\" is not supported"),
        (of(json!({"pos_embed_type": "rope"})), "pos_embed_type: \"rope\" is not supported; supported are learnable"),
        (of(json!({"width": 100})), "head_width: 64 does not divide the width 100"),
        (of(json!({"mlp_ratio": -1})), "mlp_ratio: gives an MLP of width 0"),
        (of(json!({"image_size": 30})), "image_size: 30 is no multiple"),
        (of(json!({"act_kwargs": {"approximate": "sigmoid"}})), "approximate: sigmoid is not"),
        (of(json!({"norm_kwargs": {"eps": 0}})), "norm_kwargs.eps: must lie"),
    ] {
        let message = read(json).unwrap_err().to_string();
        assert!(message.starts_with(CONFIG) && message.contains(part), "{message}");
    }
    // A text tower that cannot be read leaves an image tower that can.
    for (text, part) in [
        (json!({"hf_model_name": "roberta-base"}), "transformers (roberta-base)"),
        (json!({"hf_tokenizer_name": "timm/ViT-B-16-SigLIP"}), "its tokenizer is not CLIP's"),
        (json!({"no_causal_mask": true}), "text_cfg.no_causal_mask: true"),
        (json!({"pool_type": "last"}), "text_cfg.pool_type: \"last\""),
    ] {
        let found = read(json!({"model_cfg": {"embed_dim": 8, "vision_cfg": {}, "text_cfg": text}})).unwrap();
        assert!(found.spec.text.is_none() && found.without_texts.unwrap().contains(part), "{part}");
    }
}

#[test]
fn a_missing_or_crooked_tensor_is_named() {
    let mut cases = fixture().cases;
    let mut case = cases.remove("longest").unwrap();
    case.tensors.remove("visual.ln_post.bias");
    let message = opened(&folder(&case, str::to_owned)).unwrap_err().to_string();
    assert!(message.contains("vision_model.post_layernorm.bias"), "{message}");
    let mut case = fixture().cases.remove("longest").unwrap();
    case.tensors.insert("visual.transformer.resblocks.0.attn.in_proj_bias".into(), vec![47]);
    let message = opened(&folder(&case, str::to_owned)).unwrap_err().to_string();
    assert!(message.contains("[47], which is not shared so"), "{message}");
}
