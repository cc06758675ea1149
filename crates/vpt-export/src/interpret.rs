//! An interpreter of the operators that this crate writes: a second way to compute what a file says, from the file alone, so that
//! what was written is known to be what was meant.
//!
//! It is no runtime: it knows these operators in these forms, and says which it does not know.

mod boxes;
mod elementwise;
mod layers;
mod shape;

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

pub(crate) use self::layers::resize;
use crate::graph::Element;
use crate::proto::{Wire, fields};
use vpt_base::{Error, Result};

/// Most values of a tensor: what says more is damaged.
const MOST_VALUES: usize = 1 << 33;

/// A tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its values, row-major.
    pub values: Values,
}

/// Values of a tensor.
#[derive(Clone, Debug, PartialEq)]
pub enum Values {
    /// Floating point numbers of any width.
    Floats(Vec<f32>),
    /// Integers and truth values.
    Ints(Vec<i64>),
}

impl Tensor {
    /// Floats of a shape.
    pub fn floats(shape: &[usize], values: Vec<f32>) -> Self {
        Self { shape: shape.to_vec(), values: Values::Floats(values) }
    }

    /// Integers of a shape.
    pub fn ints(shape: &[usize], values: Vec<i64>) -> Self {
        Self { shape: shape.to_vec(), values: Values::Ints(values) }
    }

    fn count(&self) -> usize {
        self.shape.iter().product()
    }

    /// The floats.
    ///
    /// # Errors
    /// There are integers.
    pub fn as_floats(&self) -> Result<&[f32], String> {
        match &self.values {
            Values::Floats(values) => Ok(values),
            Values::Ints(_) => Err("integers where floats must be".to_owned()),
        }
    }

    /// The integers.
    ///
    /// # Errors
    /// There are floats.
    pub fn as_ints(&self) -> Result<&[i64], String> {
        match &self.values {
            Values::Ints(values) => Ok(values),
            Values::Floats(_) => Err("floats where integers must be".to_owned()),
        }
    }

    fn dim(&self, axis: usize) -> Result<usize, String> {
        self.shape.get(axis).copied().ok_or_else(|| format!("no dimension {axis} in {:?}", self.shape))
    }

    /// The axis that a number from the end, if negative, stands for.
    fn axis(&self, axis: i64) -> Result<usize, String> {
        let rank = self.shape.len() as i64;
        let found = if axis < 0 { axis + rank } else { axis };
        if (0..rank.max(1)).contains(&found) { Ok(found as usize) } else { Err(format!("no axis {axis}")) }
    }

    /// Positions before an axis, of it, and behind it.
    fn around(&self, axis: usize) -> [usize; 3] {
        let product = |dims: &[usize]| dims.iter().product();
        let at = axis.min(self.shape.len());
        let own = self.shape.get(axis).copied().unwrap_or(1);
        [product(&self.shape[..at]), own, product(self.shape.get(axis + 1..).unwrap_or_default())]
    }
}

/// An attribute of a node.
#[derive(Clone, Debug, Default, PartialEq)]
struct Attribute {
    float: f32,
    int: i64,
    text: String,
    ints: Vec<i64>,
}

/// A node.
#[derive(Debug, Default)]
struct Node {
    name: String,
    op: String,
    inputs: Vec<String>,
    outputs: Vec<String>,
    attributes: HashMap<String, Attribute>,
}

impl Node {
    fn int(&self, name: &str, default: i64) -> i64 {
        self.attributes.get(name).map_or(default, |attribute| attribute.int)
    }

    fn float(&self, name: &str, default: f32) -> f32 {
        self.attributes.get(name).map_or(default, |attribute| attribute.float)
    }

    fn ints(&self, name: &str) -> Option<&[i64]> {
        self.attributes.get(name).map(|attribute| &*attribute.ints)
    }

    fn text(&self, name: &str) -> &str {
        self.attributes.get(name).map_or("", |attribute| &attribute.text)
    }
}

/// Where the values of a constant lie.
#[derive(Debug)]
struct StoredConstant {
    shape: Vec<usize>,
    element: i64,
    /// In the file, or else in the one beside.
    beside: bool,
    bytes: Range<usize>,
}

/// A model file that is open.
#[derive(Debug)]
pub struct Program {
    path: PathBuf,
    bytes: Vec<u8>,
    beside: Vec<u8>,
    nodes: Vec<Node>,
    constants: HashMap<String, StoredConstant>,
    inputs: Vec<String>,
    outputs: Vec<String>,
    metadata: BTreeMap<String, String>,
}

impl Program {
    /// Opens the file `path`. Weights beside it are read from `beside` if given, else from the file that it names in its folder.
    ///
    /// # Errors
    /// It cannot be read, is no ONNX file, or holds what this crate does not write.
    pub fn open(path: &Path, beside: Option<&Path>) -> Result<Self> {
        let bytes = fs::read(path).map_err(Error::io(path))?;
        let mut program = Self {
            path: path.to_path_buf(),
            bytes: Vec::new(),
            beside: Vec::new(),
            nodes: Vec::new(),
            constants: HashMap::new(),
            inputs: Vec::new(),
            outputs: Vec::new(),
            metadata: BTreeMap::new(),
        };
        let location = program.read(&bytes).map_err(|why| Error::file(path, format!("not a model file: {why}")))?;
        if let Some(location) = location {
            let plain = Path::new(&location).file_name().is_some_and(|name| name.to_str() == Some(&location));
            if !plain {
                return Err(Error::file(path, "names a file of weights outside of its folder"));
            }
            let file = beside.map_or_else(|| path.with_file_name(&location), Path::to_path_buf);
            program.beside = fs::read(&file).map_err(Error::io(&file))?;
        }
        program.bytes = bytes;
        program.check().map_err(|why| Error::file(path, why))?;
        Ok(program)
    }

    /// Names of the inputs.
    pub fn inputs(&self) -> &[String] {
        &self.inputs
    }

    /// Names of the outputs.
    pub fn outputs(&self) -> &[String] {
        &self.outputs
    }

    /// What the file says of itself.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Reads the fields of a `ModelProto`; the name of the file with its weights, if they are in another.
    fn read(&mut self, bytes: &[u8]) -> Result<Option<String>, String> {
        let mut location = None;
        let start = bytes.as_ptr() as usize;
        for field in fields(bytes) {
            match field? {
                (7, graph) => {
                    for field in fields(graph.bytes()?) {
                        match field? {
                            (1, node) => self.nodes.push(read_node(node.bytes()?)?),
                            (5, tensor) => {
                                let (name, stored, file) = read_tensor(tensor.bytes()?, start)?;
                                if self.constants.insert(name.clone(), stored).is_some() {
                                    return Err(format!("two constants `{name}`"));
                                }
                                location = file.or(location);
                            }
                            (11, input) => self.inputs.push(read_name(input.bytes()?)?),
                            (12, output) => self.outputs.push(read_name(output.bytes()?)?),
                            _ => {}
                        }
                    }
                }
                (14, entry) => {
                    let (mut key, mut value) = (String::new(), String::new());
                    for field in fields(entry.bytes()?) {
                        match field? {
                            (1, text) => text.text()?.clone_into(&mut key),
                            (2, text) => text.text()?.clone_into(&mut value),
                            _ => {}
                        }
                    }
                    self.metadata.insert(key, value);
                }
                _ => {}
            }
        }
        Ok(location)
    }

    /// Checks that the constants lie in the files.
    fn check(&self) -> Result<(), String> {
        for (name, stored) in &self.constants {
            let file = if stored.beside { self.beside.len() } else { self.bytes.len() };
            let width = match stored.element {
                e if e == Element::F32 as i64 => 4,
                e if e == Element::F16 as i64 => 2,
                e if e == Element::I64 as i64 => 8,
                other => return Err(format!("constant `{name}` of the unknown type {other}")),
            };
            let count =
                stored.shape.iter().try_fold(1_usize, |n, &dim| n.checked_mul(dim).filter(|&n| n < MOST_VALUES));
            if count.is_none_or(|count| stored.bytes.len() != count * width) || stored.bytes.end > file {
                return Err(format!("constant `{name}` is not where its shape says"));
            }
        }
        Ok(())
    }

    fn constant(&self, name: &str) -> Option<Tensor> {
        let stored = self.constants.get(name)?;
        let file = if stored.beside { &self.beside } else { &self.bytes };
        let bytes = file.get(stored.bytes.clone())?;
        let values = match stored.element {
            e if e == Element::I64 as i64 => {
                Values::Ints(bytes.as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b)).collect())
            }
            e if e == Element::F16 as i64 => {
                let (pairs, _) = bytes.as_chunks::<2>();
                Values::Floats(pairs.iter().map(|b| half::f16::from_le_bytes(*b).to_f32()).collect())
            }
            _ => Values::Floats(bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()),
        };
        Some(Tensor { shape: stored.shape.clone(), values })
    }

    /// The outputs, in their order, for these inputs.
    ///
    /// # Errors
    /// An input is missing, or an operator is not known or cannot be applied; the error names the node.
    pub fn run(&self, inputs: Vec<(&str, Tensor)>, threads: usize) -> Result<Vec<Tensor>> {
        let mut values: HashMap<&str, Tensor> = inputs.into_iter().collect();
        let mut last: HashMap<&str, usize> = HashMap::new();
        for (i, node) in self.nodes.iter().enumerate() {
            last.extend(node.inputs.iter().map(|input| (&**input, i)));
        }
        for (i, node) in self.nodes.iter().enumerate() {
            let fault = |why: String| Error::file(&self.path, format!("node `{}`: {}: {why}", node.name, node.op));
            let own: Vec<Option<Tensor>> = node
                .inputs
                .iter()
                .map(|name| if values.contains_key(&**name) { None } else { self.constant(name) })
                .collect();
            let given: Result<Vec<&Tensor>, String> = node
                .inputs
                .iter()
                .zip(&own)
                // One that may be left out has no name.
                .filter(|(name, _)| !name.is_empty())
                .map(|(name, own)| {
                    own.as_ref().or_else(|| values.get(&**name)).ok_or_else(|| format!("there is no value `{name}`"))
                })
                .collect();
            let made = given.and_then(|given| apply(node, &given, threads)).map_err(fault)?;
            if made.len() != node.outputs.len() {
                return Err(fault(format!("{} outputs where it has {}", node.outputs.len(), made.len())));
            }
            for name in &node.inputs {
                if last.get(&**name) == Some(&i) && !self.outputs.contains(name) {
                    values.remove(&**name);
                }
            }
            values.extend(node.outputs.iter().map(|name| &**name).zip(made));
        }
        let output = |name: &String| {
            values.remove(&**name).ok_or_else(|| Error::file(&self.path, format!("makes no output `{name}`")))
        };
        self.outputs.iter().map(output).collect()
    }
}

/// What a node makes of its inputs.
fn apply(node: &Node, given: &[&Tensor], threads: usize) -> Result<Vec<Tensor>, String> {
    let at = |i: usize| given.get(i).copied().ok_or_else(|| format!("has no input {i}"));
    let one = match &*node.op {
        "Add" | "Sub" | "Mul" | "Div" | "Equal" | "GreaterOrEqual" | "Mod" => {
            elementwise::pair(&node.op, at(0)?, at(1)?)
        }
        "Erf" | "Exp" | "Sqrt" | "Tanh" | "Sigmoid" | "Relu" | "Gelu" => elementwise::each(node, at(0)?),
        "Clip" => elementwise::clip(at(0)?, at(1)?, at(2)?),
        "Where" => elementwise::choose(at(0)?, at(1)?, at(2)?),
        "Cast" => Ok(elementwise::cast(at(0)?, node.int("to", 1))),
        "Identity" => Ok(at(0)?.clone()),
        "MatMul" => layers::matmul(at(0)?, at(1)?, threads),
        "Conv" => layers::conv(node, at(0)?, at(1)?, given.get(2).copied(), threads),
        "Softmax" => layers::softmax(at(0)?, node.int("axis", -1)),
        "LayerNormalization" => layers::layer_norm(node, at(0)?, at(1)?, given.get(2).copied()),
        "InstanceNormalization" => layers::instance_norm(node, at(0)?, at(1)?, at(2)?),
        "Attention" => layers::attention(node, given, threads),
        "ReduceSum" | "ReduceMean" => layers::reduce(node, at(0)?, given.get(1).copied()),
        "Resize" => layers::resize_by(node, at(0)?, at(1)?),
        "ArgMax" => layers::arg_max(node, at(0)?),
        "Shape" => Ok(shape::shape(node, at(0)?)),
        "Reshape" => shape::reshape(at(0)?, at(1)?),
        "Transpose" => shape::transpose(node, at(0)?),
        "Concat" => shape::concat(node, given),
        "Slice" => shape::slice(given),
        "Split" => return shape::split(node, at(0)?, at(1)?),
        "Expand" => shape::expand(at(0)?, at(1)?),
        "Pad" => shape::pad(at(0)?, at(1)?),
        "Gather" => shape::gather(node, at(0)?, at(1)?),
        "GatherND" => shape::gather_nd(node, at(0)?, at(1)?),
        "ScatterND" => shape::scatter_nd(at(0)?, at(1)?, at(2)?),
        "TopK" => return boxes::top_k(node, at(0)?, at(1)?),
        "NonMaxSuppression" => boxes::suppress(given),
        op => return Err(format!("the operator {op} is not among those that are written")),
    };
    one.map(|tensor| vec![tensor])
}

fn read_node(bytes: &[u8]) -> Result<Node, String> {
    let mut node = Node::default();
    for field in fields(bytes) {
        match field? {
            (1, input) => node.inputs.push(input.text()?.to_owned()),
            (2, output) => node.outputs.push(output.text()?.to_owned()),
            (3, name) => name.text()?.clone_into(&mut node.name),
            (4, op) => op.text()?.clone_into(&mut node.op),
            (5, attribute) => {
                let (name, attribute) = read_attribute(attribute.bytes()?)?;
                node.attributes.insert(name, attribute);
            }
            _ => {}
        }
    }
    Ok(node)
}

fn read_attribute(bytes: &[u8]) -> Result<(String, Attribute), String> {
    let (mut name, mut attribute) = (String::new(), Attribute::default());
    for field in fields(bytes) {
        match field? {
            (1, text) => text.text()?.clone_into(&mut name),
            (2, value) => attribute.float = value.float()?,
            (3, value) => attribute.int = value.int()?,
            (4, text) => text.text()?.clone_into(&mut attribute.text),
            (8, values) => attribute.ints.extend(values.ints()?),
            _ => {}
        }
    }
    Ok((name, attribute))
}

/// Name and place of a `TensorProto` in a file whose bytes begin at the address `start`, and the file that it names.
fn read_tensor(bytes: &[u8], start: usize) -> Result<(String, StoredConstant, Option<String>), String> {
    let (mut name, mut location) = (String::new(), None);
    let mut stored = StoredConstant { shape: Vec::new(), element: 0, beside: false, bytes: 0..0 };
    let (mut offset, mut length) = (0_usize, 0_usize);
    for field in fields(bytes) {
        match field? {
            (1, dims) => {
                for dim in dims.ints()? {
                    stored.shape.push(usize::try_from(dim).map_err(|_| "a negative dimension".to_owned())?);
                }
            }
            (2, element) => stored.element = element.int()?,
            (8, text) => text.text()?.clone_into(&mut name),
            (9, raw) => {
                let raw = raw.bytes()?;
                let at = raw.as_ptr() as usize - start;
                stored.bytes = at..at + raw.len();
            }
            (13, entry) => {
                let (mut key, mut value) = ("", "");
                for field in fields(entry.bytes()?) {
                    match field? {
                        (1, text) => key = text.text()?,
                        (2, text) => value = text.text()?,
                        _ => {}
                    }
                }
                let number = || value.parse::<usize>().map_err(|_| format!("`{value}` is no number of bytes"));
                match key {
                    "location" => location = Some(value.to_owned()),
                    "offset" => offset = number()?,
                    "length" => length = number()?,
                    _ => {}
                }
            }
            (14, place) => stored.beside = place.int()? == 1,
            _ => {}
        }
    }
    if stored.beside {
        stored.bytes = offset..offset.saturating_add(length);
    }
    Ok((name, stored, location))
}

/// The name of a `ValueInfoProto`.
fn read_name(bytes: &[u8]) -> Result<String, String> {
    let mut name = String::new();
    for field in fields(bytes) {
        if let (1, text @ Wire::Bytes(_)) = field? {
            text.text()?.clone_into(&mut name);
        }
    }
    Ok(name)
}

#[cfg(test)]
mod tests;
