//! The Open Inference Protocol (`KServe` v2) with Triton's binary form: what its requests say, and its answers.
//!
//! An input is `image` (BYTES: files, one an element) or `pixel_values` (FP32 `[n, 3, S, S]`, resized and normalized). In JSON the
//! elements of BYTES are base64; in the binary form they are four bytes of length, the least first, and the bytes, behind the JSON,
//! whose own length is in the header `Inference-Header-Content-Length`.

use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::upload::image_of_text;

/// The header that says how long the JSON of the binary form is.
pub const HEADER_LENGTH: &str = "inference-header-content-length";

/// Inputs of a request at most.
const MOST_INPUTS: usize = 16;

/// What a request asks.
#[derive(Debug, Clone, PartialEq)]
pub struct InferRequest {
    /// The client's own name for it.
    pub id: Option<String>,
    /// What it is about.
    pub input: InferInput,
    /// Outputs that are wanted, and whether in binary; all if there are none.
    pub outputs: Vec<(String, bool)>,
    /// Whether outputs are binary that nothing else is said of.
    pub binary: bool,
    /// Most classes of an image.
    pub top_k: Option<usize>,
    /// Score that boxes must have.
    pub min_score: Option<f64>,
}

/// Images, as files or as pixels.
#[derive(Debug, Clone, PartialEq)]
pub enum InferInput {
    /// Files.
    Images(Vec<Bytes>),
    /// Pixels `[3, S, S]` each.
    Pixels(Vec<Vec<f32>>),
}

/// A tensor of an answer.
#[derive(Debug, Clone, PartialEq)]
pub struct InferOutput {
    /// Its name.
    pub name: &'static str,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its values.
    pub data: InferData,
}

/// Values of a tensor of an answer.
#[derive(Debug, Clone, PartialEq)]
pub enum InferData {
    /// FP64.
    Doubles(Vec<f64>),
    /// BYTES.
    Texts(Vec<String>),
    /// INT32.
    Counts(Vec<i32>),
}

#[derive(Deserialize)]
struct RequestJson {
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    parameters: Map<String, Value>,
    inputs: Vec<TensorJson>,
    #[serde(default)]
    outputs: Vec<OutputJson>,
}

#[derive(Deserialize)]
struct TensorJson {
    name: String,
    shape: Vec<u64>,
    datatype: String,
    #[serde(default)]
    parameters: Map<String, Value>,
    #[serde(default)]
    data: Option<Value>,
}

#[derive(Deserialize)]
struct OutputJson {
    name: String,
    #[serde(default)]
    parameters: Map<String, Value>,
}

/// Reads a request; `header_length` is what its header says of the JSON's length, in the binary form.
///
/// # Errors
/// It is no request of the protocol, or none that a task can answer.
pub fn parse(body: &Bytes, header_length: Option<usize>) -> Result<InferRequest, String> {
    let length = header_length.unwrap_or(body.len());
    if length > body.len() {
        return Err(format!("a body of {} bytes, of which {length} are JSON", body.len()));
    }
    let request: RequestJson =
        serde_json::from_slice(&body[..length]).map_err(|error| format!("no inference request: {error}"))?;
    let mut rest = body.slice(length..);
    if request.inputs.len() > MOST_INPUTS {
        return Err(format!("{} inputs, where `image` or `pixel_values` is expected", request.inputs.len()));
    }
    let mut found = None;
    for tensor in request.inputs {
        // Binary data lies in the order of the inputs, whether they are read or not.
        let binary = match tensor.parameters.get("binary_data_size") {
            None => None,
            Some(size) => {
                let size = size.as_u64().and_then(|size| usize::try_from(size).ok()).filter(|size| *size <= rest.len());
                Some(rest.split_to(size.ok_or("binary_data_size is not what is behind the JSON")?))
            }
        };
        if !["image", "pixel_values"].contains(&tensor.name.as_str()) {
            return Err(format!("input '{}', where image or pixel_values is expected", tensor.name.escape_debug()));
        }
        if found.is_some() {
            return Err("both image and pixel_values".to_owned());
        }
        found = Some(if tensor.name == "image" { images(&tensor, binary) } else { pixels(&tensor, binary) }?);
    }
    if !rest.is_empty() {
        return Err(format!("{} bytes behind the last input", rest.len()));
    }
    let flag = |parameters: &Map<String, Value>, name: &str| parameters.get(name).and_then(Value::as_bool);
    let binary = flag(&request.parameters, "binary_data_output").unwrap_or(false);
    let outputs = request.outputs.into_iter().map(|output| {
        let own = flag(&output.parameters, "binary_data").unwrap_or(binary);
        (output.name, own)
    });
    Ok(InferRequest {
        id: request.id,
        input: found.ok_or("no input")?,
        outputs: outputs.collect(),
        binary,
        top_k: request.parameters.get("top_k").and_then(Value::as_u64).map(|k| k as usize),
        min_score: request.parameters.get("min_score").and_then(Value::as_f64),
    })
}

/// Elements that a shape says.
fn elements(shape: &[u64]) -> Option<usize> {
    shape.iter().try_fold(1_usize, |all, &side| all.checked_mul(usize::try_from(side).ok()?))
}

fn images(tensor: &TensorJson, binary: Option<Bytes>) -> Result<InferInput, String> {
    if tensor.datatype != "BYTES" {
        return Err(format!("image is BYTES, not {}", tensor.datatype.escape_debug()));
    }
    let mut found = Vec::new();
    match (binary, &tensor.data) {
        (Some(mut bytes), _) => {
            while !bytes.is_empty() {
                let head = bytes.first_chunk::<4>().ok_or("an element of image is cut short")?;
                let length = u32::from_le_bytes(*head) as usize;
                let _ = bytes.split_to(4);
                if length > bytes.len() {
                    return Err("an element of image is cut short".to_owned());
                }
                found.push(bytes.split_to(length));
            }
        }
        (None, Some(data)) => {
            let mut texts = Vec::new();
            flatten(data, &mut texts);
            for text in texts {
                found.push(image_of_text(text.as_str().ok_or("an element of image is no text of base64")?)?);
            }
        }
        (None, None) => return Err("image has no data".to_owned()),
    }
    if elements(&tensor.shape) != Some(found.len()) {
        return Err(format!("{} elements of image, which do not fill the shape {:?}", found.len(), tensor.shape));
    }
    Ok(InferInput::Images(found))
}

fn pixels(tensor: &TensorJson, binary: Option<Bytes>) -> Result<InferInput, String> {
    if tensor.datatype != "FP32" {
        return Err(format!("pixel_values is FP32, not {}", tensor.datatype.escape_debug()));
    }
    let values: Vec<f32> = match (binary, &tensor.data) {
        (Some(bytes), _) => {
            let (values, rest) = bytes.as_chunks::<4>();
            if !rest.is_empty() {
                return Err("pixel_values ends within a value".to_owned());
            }
            values.iter().map(|value| f32::from_le_bytes(*value)).collect()
        }
        (None, Some(data)) => {
            let mut numbers = Vec::new();
            flatten(data, &mut numbers);
            let number =
                |value: &&Value| value.as_f64().map(|value| value as f32).ok_or("pixel_values holds no number");
            numbers.iter().map(number).collect::<Result<_, _>>()?
        }
        (None, None) => return Err("pixel_values has no data".to_owned()),
    };
    let [images, 3, height, width] = tensor.shape[..] else {
        return Err(format!("pixel_values of the shape {:?}, where [n, 3, height, width] is expected", tensor.shape));
    };
    if elements(&tensor.shape) != Some(values.len()) || images == 0 || values.is_empty() || height != width {
        return Err(format!("{} values, which are no square images of {:?}", values.len(), tensor.shape));
    }
    if values.iter().any(|value| !value.is_finite()) {
        return Err("pixel_values holds what is no number".to_owned());
    }
    let each = values.len() / images as usize;
    Ok(InferInput::Pixels(values.chunks_exact(each).map(<[f32]>::to_vec).collect()))
}

/// The leaves of lists in lists.
fn flatten<'a>(value: &'a Value, leaves: &mut Vec<&'a Value>) {
    match value {
        Value::Array(values) => values.iter().for_each(|value| flatten(value, leaves)),
        leaf => leaves.push(leaf),
    }
}

/// An answer: its bytes and, in the binary form, the length of its JSON.
///
/// # Errors
/// An output is wanted that there is none of.
pub fn answer(
    model: &str,
    version: &str,
    request: &InferRequest,
    outputs: Vec<InferOutput>,
) -> Result<(Vec<u8>, Option<usize>), String> {
    let wanted = |name: &str| request.outputs.iter().find(|(wanted, _)| wanted == name).map(|(_, binary)| *binary);
    if let Some((name, _)) = request.outputs.iter().find(|(name, _)| outputs.iter().all(|output| output.name != *name))
    {
        let known: Vec<&str> = outputs.iter().map(|output| output.name).collect();
        return Err(format!("no output '{}'; there are {}", name.escape_debug(), known.join(", ")));
    }
    let (mut tensors, mut behind, mut any) = (Vec::new(), Vec::new(), false);
    for InferOutput { name, shape, data } in outputs {
        let Some(binary) = wanted(name).or(request.outputs.is_empty().then_some(request.binary)) else { continue };
        let mut tensor = json!({ "name": name, "datatype": data.datatype(), "shape": shape });
        if binary {
            any = true;
            let before = behind.len();
            data.write(&mut behind);
            tensor["parameters"] = json!({ "binary_data_size": behind.len() - before });
        } else {
            tensor["data"] = data.json();
        }
        tensors.push(tensor);
    }
    let mut answer = json!({ "model_name": model, "model_version": version, "outputs": tensors });
    if let Some(id) = &request.id {
        answer["id"] = json!(id);
    }
    let mut bytes = answer.to_string().into_bytes();
    let length = bytes.len();
    bytes.extend(behind);
    Ok((bytes, any.then_some(length)))
}

impl InferData {
    fn datatype(&self) -> &'static str {
        match self {
            Self::Doubles(_) => "FP64",
            Self::Texts(_) => "BYTES",
            Self::Counts(_) => "INT32",
        }
    }

    fn json(&self) -> Value {
        match self {
            Self::Doubles(values) => json!(values),
            Self::Texts(values) => json!(values),
            Self::Counts(values) => json!(values),
        }
    }

    fn write(&self, to: &mut Vec<u8>) {
        match self {
            Self::Doubles(values) => to.extend(values.iter().flat_map(|value| value.to_le_bytes())),
            Self::Counts(values) => to.extend(values.iter().flat_map(|value| value.to_le_bytes())),
            Self::Texts(values) => {
                for text in values {
                    to.extend((text.len() as u32).to_le_bytes());
                    to.extend(text.as_bytes());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn binary(json: &str, behind: &[u8]) -> Result<InferRequest, String> {
        parse(&Bytes::from([json.as_bytes(), behind].concat()), Some(json.len()))
    }

    #[test]
    fn json_and_binary_say_the_same() {
        let text = r#"{"id": "7", "inputs": [{"name": "image", "shape": [2, 1], "datatype": "BYTES", "data": ["aGk=", "aA=="]}]}"#;
        let plain = parse(&Bytes::from(text), None).unwrap();
        assert_eq!(plain.input, InferInput::Images(vec![Bytes::from("hi"), Bytes::from("h")]));
        let text = r#"{"id": "7", "inputs": [{"name": "image", "shape": [2], "datatype": "BYTES",
            "parameters": {"binary_data_size": 11}}]}"#;
        assert_eq!(binary(text, b"\x02\0\0\0hi\x01\0\0\0h").unwrap(), plain);
        let text = r#"{"inputs": [{"name": "pixel_values", "shape": [2, 3, 1, 1], "datatype": "FP32",
            "parameters": {"binary_data_size": 24}}], "parameters": {"binary_data_output": true, "top_k": 2}}"#;
        let values: Vec<u8> = (0..6).flat_map(|i| (i as f32).to_le_bytes()).collect();
        let request = binary(text, &values).unwrap();
        assert_eq!(request.input, InferInput::Pixels(vec![vec![0., 1., 2.], vec![3., 4., 5.]]));
        assert!(request.binary && request.top_k == Some(2));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        for (json, behind) in [
            ("{}", &b""[..]),
            (r#"{"inputs": []}"#, b""),
            (r#"{"inputs": [{"name": "image", "shape": [1], "datatype": "BYTES"}]}"#, b""),
            (r#"{"inputs": [{"name": "x", "shape": [1], "datatype": "BYTES", "data": ["aA=="]}]}"#, b""),
            (r#"{"inputs": [{"name": "image", "shape": [2], "datatype": "BYTES", "data": ["aA=="]}]}"#, b""),
            (
                r#"{"inputs": [{"name": "image", "shape": [18446744073709551615, 2], "datatype": "BYTES", "data": []}]}"#,
                b"",
            ),
            (
                r#"{"inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": 9}}]}"#,
                b"\xff\xff\xff\xffhello",
            ),
            (
                r#"{"inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": 99}}]}"#,
                b"\x01\0\0\0h",
            ),
            (
                r#"{"inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": 5}}]}"#,
                b"\x01\0\0\0hmore",
            ),
            (r#"{"inputs": [{"name": "pixel_values", "shape": [0, 3, 1, 1], "datatype": "FP32", "data": []}]}"#, b""),
            (
                r#"{"inputs": [{"name": "pixel_values", "shape": [1, 3, 1, 1], "datatype": "FP32", "data": [1, 2, "x"]}]}"#,
                b"",
            ),
        ] {
            assert!(binary(json, behind).is_err(), "{json}");
        }
        assert!(parse(&Bytes::from("{}"), Some(3)).is_err());
    }

    #[test]
    fn answers_are_json_or_binary_as_wanted() {
        let mut request = parse(
            &Bytes::from(r#"{"inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "data": ["aA=="]}]}"#),
            None,
        )
        .unwrap();
        let outputs = || {
            vec![
                InferOutput { name: "scores", shape: vec![1, 1], data: InferData::Doubles(vec![0.5]) },
                InferOutput { name: "labels", shape: vec![1, 1], data: InferData::Texts(vec!["cat".to_owned()]) },
            ]
        };
        let (bytes, length) = answer("m", "v", &request, outputs()).unwrap();
        let value: Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!((length, &value["outputs"][1]["data"]), (None, &json!(["cat"])));
        request.outputs = vec![("labels".to_owned(), true)];
        let (bytes, length) = answer("m", "v", &request, outputs()).unwrap();
        assert_eq!(&bytes[length.unwrap()..], b"\x03\0\0\0cat");
        let value: Value = serde_json::from_slice(&bytes[..length.unwrap()]).unwrap();
        assert_eq!(value["outputs"].as_array().unwrap().len(), 1);
        request.outputs = vec![("boxes".to_owned(), true)];
        assert!(answer("m", "v", &request, outputs()).unwrap_err().contains("scores, labels"));
    }
}
