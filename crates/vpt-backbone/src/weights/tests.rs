//! Checkpoints in one file and in several, whole and damaged.

use serde_json::Value;

use super::*;

/// A safetensors file of these tensors: name, type, shape, bytes.
fn file(tensors: &[(&str, &str, &[usize], Vec<u8>)]) -> Vec<u8> {
    let mut data = Vec::new();
    let mut header = serde_json::Map::new();
    header.insert("__metadata__".into(), serde_json::json!({"format": "pt"}));
    for (name, dtype, shape, bytes) in tensors {
        let offsets = [data.len(), data.len() + bytes.len()];
        header.insert((*name).into(), serde_json::json!({"dtype": dtype, "shape": shape, "data_offsets": offsets}));
        data.extend(bytes);
    }
    raw(&Value::Object(header).to_string(), &data)
}

fn raw(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn folder(files: &[(&str, Vec<u8>)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        std::fs::write(dir.path().join(name), bytes).unwrap();
    }
    dir
}

fn open(bytes: Vec<u8>) -> Result<Weights> {
    Weights::open(folder(&[(SINGLE, bytes)]).path())
}

fn refused(bytes: Vec<u8>) -> String {
    let message = open(bytes).unwrap_err().to_string();
    assert!(message.contains(&format!("{SINGLE}: ")) && !message.contains('\n'), "{message}");
    message
}

#[test]
fn three_types_become_f32() {
    let values = [1.5f32, -0.25, 3.0];
    let f16s = values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect();
    let bf16s = values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect();
    let bytes = file(&[
        ("a", "F32", &[3], floats(&values)),
        ("b", "F16", &[1, 3], f16s),
        ("c", "BF16", &[3, 1], bf16s),
        ("d", "I64", &[1], vec![0; 8]),
    ]);
    let weights = open(bytes.clone()).unwrap();
    assert_eq!(weights.get("a", &[3]).unwrap(), values);
    assert_eq!(weights.get("b", &[1, 3]).unwrap(), values);
    assert_eq!(weights.get("c", &[3, 1]).unwrap(), values);
    assert_eq!((weights.parameters(), weights.dtypes()), (9, ["BF16", "F16", "F32", "I64"].map(String::from).to_vec()));
    let message = weights.get("d", &[1]).unwrap_err().to_string();
    assert!(message.contains("tensor `d` is of type I64; supported are"), "{message}");
    assert_eq!(weights.hash().unwrap(), blake3::hash(&bytes).to_hex().to_string());
    let weights = Weights::from_static(Box::leak(bytes.into_boxed_slice()), Path::new("bundled")).unwrap();
    assert_eq!(weights.get("b", &[1, 3]).unwrap(), values);
}

#[test]
fn tensors_longer_than_the_buffer_are_read_in_full() {
    let values: Vec<f32> = (0..CHUNK / 2 + 7).map(|i| i as f32).collect();
    let weights = open(file(&[("x", "F32", &[1], floats(&[9.0])), ("y", "F32", &[values.len()], floats(&values))]));
    let weights = weights.unwrap();
    assert_eq!(weights.get("y", &[values.len()]).unwrap(), values);
    let mut out = vec![0.0; values.len()];
    weights.get_into("y", &[values.len()], &mut out).unwrap();
    assert_eq!(out, values);
    assert!(weights.get_into("y", &[values.len()], &mut out[1..]).is_err());
}

#[test]
fn prefixes_are_found_when_opened() {
    let one = |name: &str, other: &str| {
        open(file(&[(name, "F32", &[1], floats(&[0.0])), (other, "F32", &[1], floats(&[7.0]))])).unwrap()
    };
    for prefix in ["", "vit.", "dinov2_with_registers.", "a.b."] {
        let weights = one(&format!("{prefix}embeddings.cls_token"), &format!("{prefix}layernorm.bias"));
        assert_eq!(weights.get("layernorm.bias", &[1]).unwrap(), [7.0], "{prefix}");
        assert!(!weights.has("norm.bias"));
    }
    let name = "vision_model.post_layernorm.bias";
    for (class, other) in [
        ("vision_model.embeddings.class_embedding", name),
        ("clip.vision_model.embeddings.class_embedding", "clip.vision_model.post_layernorm.bias"),
        ("embeddings.class_embedding", "post_layernorm.bias"),
    ] {
        assert_eq!(one(class, other).shape(name), Some(&[1][..]), "{class}");
    }
    let both = file(&[
        ("a.embeddings.cls_token", "F32", &[1], floats(&[0.0])),
        ("b.embeddings.cls_token", "F32", &[1], floats(&[0.0])),
    ]);
    assert!(open(both).unwrap_err().to_string().contains("several models, `a.embeddings.cls_token` and `b."));
}

#[test]
fn a_wrong_name_or_shape_is_named() {
    let weights = open(file(&[
        ("vit.embeddings.cls_token", "F32", &[1], floats(&[0.0])),
        ("vit.w", "F32", &[2, 1], floats(&[0.0, 1.0])),
    ]))
    .unwrap();
    let message = weights.get("w", &[1, 2]).unwrap_err().to_string();
    assert!(message.ends_with("tensor `w` has shape [2, 1], the configuration asks for [1, 2]"), "{message}");
    let message = weights.get("v", &[2]).unwrap_err().to_string();
    assert!(message.ends_with("has no tensor `vit.v`"), "{message}");
}

#[test]
fn damaged_files_are_refused() {
    let whole = file(&[("a", "F32", &[2], floats(&[1.0, 2.0])), ("b", "F32", &[1], floats(&[3.0]))]);
    for len in 0..whole.len() {
        refused(whole[..len].to_vec());
    }
    assert!(refused([&whole[..], &[0]].concat()).contains("1 bytes too long"));
    assert!(refused([&u64::MAX.to_le_bytes()[..], b"{}"].concat()).contains("a header of 18446744073709551615"));
    let entry =
        |shape: &str, offsets: &str| format!(r#"{{"dtype": "F32", "shape": {shape}, "data_offsets": {offsets}}}"#);
    for (header, part) in [
        (format!(r#"{{"a": {}}}"#, entry("[2]", "[0, 9]")), "tensor `a`: bytes 0 to 9 of 8: truncated"),
        (format!(r#"{{"a": {}}}"#, entry("[2]", "[8, 0]")), "tensor `a`: bytes 8 to 0"),
        (format!(r#"{{"a": {}}}"#, entry("[3]", "[0, 8]")), "tensor `a`: F32 [3] in 8 bytes"),
        (format!(r#"{{"a": {}}}"#, entry("[4611686018427387904, 4]", "[0, 0]")), "tensor `a`: F32 [46116"),
        (format!(r#"{{"a": {}}}"#, entry("[1]", "[4, 8]")), "tensor `a` follows a gap"),
        (format!(r#"{{"a": {}}}"#, entry("[-1]", "[0, 8]")), "header: tensor `a`: "),
        (format!(r#"{{"a": {0}, "b": {0}}}"#, entry("[2]", "[0, 8]")), "tensor `b` overlaps"),
        (r#"{"a": 3}"#.to_owned(), "header: tensor `a`: "),
        ("[]".to_owned(), "not a safetensors file: header: "),
    ] {
        let message = refused(raw(&header, &[0; 8]));
        assert!(message.contains(part), "{header}: {message}");
    }
}

#[test]
fn no_change_of_one_byte_makes_a_panic() {
    let whole = file(&[("a", "F16", &[2], vec![0; 4]), ("vit.embeddings.cls_token", "F32", &[1, 1], vec![0; 4])]);
    let dir = folder(&[(SINGLE, whole.clone())]);
    let (mut opened, mut refused) = (0, 0);
    for at in 0..whole.len() {
        for byte in [b'"', b'9', whole[at] ^ 1, 255] {
            let mut bytes = whole.clone();
            bytes[at] = byte;
            std::fs::write(dir.path().join(SINGLE), bytes).unwrap();
            match Weights::open(dir.path()) {
                Ok(weights) => {
                    opened += 1;
                    for name in ["a", "embeddings.cls_token"] {
                        let shape = weights.shape(name).map(<[usize]>::to_vec).unwrap_or_default();
                        drop(weights.get(name, &shape));
                    }
                }
                Err(error) => {
                    refused += 1;
                    assert!(!error.to_string().contains('\n'), "{error}");
                }
            }
        }
    }
    assert!(opened > 100 && refused > 100, "{opened} {refused}");
}

#[test]
fn shards_are_read_through_their_index() {
    let index = |map: &str| format!(r#"{{"metadata": {{"total_size": 8}}, "weight_map": {map}}}"#).into_bytes();
    let a = file(&[("a", "F32", &[1], floats(&[1.0])), ("unlisted", "F32", &[1], floats(&[1.0]))]);
    let b = file(&[("b", "F32", &[1], floats(&[2.0]))]);
    let good = r#"{"b": "2.safetensors", "a": "1.safetensors"}"#;
    let dir = folder(&[("1.safetensors", a.clone()), ("2.safetensors", b.clone()), (INDEX, index(good))]);
    let weights = Weights::open(dir.path()).unwrap();
    assert_eq!((weights.get("a", &[1]).unwrap(), weights.get("b", &[1]).unwrap()), (vec![1.0], vec![2.0]));
    assert!(!weights.has("unlisted"));
    assert_eq!(weights.hash().unwrap(), blake3::hash(&[&a[..], &b[..]].concat()).to_hex().to_string());
    let sizes: Vec<_> = weights.files().map(|(_, len)| len as usize).collect();
    assert_eq!(sizes, [a.len(), b.len()]);

    for (map, part) in [
        (r#"{"a": "3.safetensors"}"#, "names 3.safetensors, which is not in the folder"),
        (r#"{"c": "1.safetensors"}"#, "says that `c` is in 1.safetensors, which has no such tensor"),
        (r#"{"a": "../1.safetensors"}"#, "names `../1.safetensors`, which is not a file name"),
        (r#"{"a": ".."}"#, "names `..`, which is not a file name"),
        (r#"{"a": 1}"#, "not a safetensors index: "),
    ] {
        std::fs::write(dir.path().join(INDEX), index(map)).unwrap();
        let message = Weights::open(dir.path()).unwrap_err().to_string();
        assert!(message.contains(INDEX) && message.contains(part), "{message}");
    }
}

#[test]
fn an_empty_folder_says_what_it_lacks() {
    let message = Weights::open(folder(&[]).path()).unwrap_err().to_string();
    assert!(message.contains("holds neither model.safetensors nor"), "{message}");
    let message = Weights::open(folder(&[("pytorch_model.bin", vec![])]).path()).unwrap_err().to_string();
    assert!(message.contains("pytorch_model.bin: not a PyTorch checkpoint"), "{message}");
}
