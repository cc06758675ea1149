//! An ONNX graph that is being built: nodes, constants, inputs and outputs with names of their own.
//!
//! Values are named after the place in the network that they come from (`blocks.3/MatMul_1`), each once. Weights are constants whose
//! values are made when the file is written ([`ConstantData::Later`]); shapes and small numbers are shared by content.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use crate::proto::ProtoMessage;
use vpt_base::{Error, Result, choice::choice};

choice! {
    /// Operators that a runtime must know.
    #[derive(Default, PartialOrd, Ord)]
    pub enum Opset for "opset" {
        /// The eldest with layer norms, read by everything.
        #[default]
        V17 = "17",
        /// Attention and the GELU are operators.
        V23 = "23",
    }
}

impl Opset {
    /// Its number.
    pub fn version(self) -> i64 {
        match self {
            Self::V17 => 17,
            Self::V23 => 23,
        }
    }

    /// The first version of the file format that has it.
    pub(crate) fn ir_version(self) -> i64 {
        match self {
            Self::V17 => 8,
            Self::V23 => 11,
        }
    }
}

/// Number format of a tensor, by ONNX's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Element {
    F32 = 1,
    I64 = 7,
    Bool = 9,
    F16 = 10,
}

impl Element {
    /// Bytes of a value.
    pub(crate) fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::I64 => 8,
            Self::Bool => 1,
            Self::F16 => 2,
        }
    }
}

/// The values of a constant.
pub(crate) enum ConstantData<'a> {
    Floats(Cow<'a, [f32]>),
    Ints(Vec<i64>),
    /// Floats that are made when they are written.
    Later(Box<dyn Fn() -> Result<Vec<f32>> + 'a>),
}

/// A constant of the graph.
pub(crate) struct Constant<'a> {
    pub(crate) name: String,
    pub(crate) shape: Vec<usize>,
    pub(crate) element: Element,
    pub(crate) data: ConstantData<'a>,
}

/// A tensor for an input or output of a graph.
#[derive(Clone, Debug, PartialEq)]
pub struct NamedTensor {
    /// The name of that.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its values.
    pub values: Vec<f32>,
}

/// A dimension of an input or output.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Dim {
    Fixed(usize),
    Named(&'static str),
}

/// The name of a value.
pub(crate) type Value = String;

/// An attribute of a node.
#[derive(Clone, Debug)]
pub(crate) enum Attr {
    Int(i64),
    Float(f32),
    Text(&'static str),
    Ints(Vec<i64>),
}

/// The graph.
pub(crate) struct Graph<'a> {
    pub(crate) opset: Opset,
    /// Format of the floats that are made from now on.
    pub(crate) element: Element,
    /// Whether prompts and head are inputs.
    pub(crate) task_input: bool,
    pub(crate) constants: Vec<Constant<'a>>,
    pub(crate) nodes: Vec<ProtoMessage>,
    pub(crate) inputs: Vec<ProtoMessage>,
    pub(crate) outputs: Vec<ProtoMessage>,
    pub(crate) task: Vec<NamedTensor>,
    scope: String,
    taken: HashSet<String>,
    /// How many have had a name.
    names: HashMap<String, usize>,
    shared: HashMap<String, Value>,
    /// `[1]`: images in the batch.
    batch: Option<Value>,
}

impl<'a> Graph<'a> {
    pub(crate) fn new(opset: Opset, element: Element, task_input: bool) -> Self {
        Self {
            opset,
            element,
            task_input,
            constants: Vec::new(),
            nodes: Vec::new(),
            inputs: Vec::new(),
            outputs: Vec::new(),
            task: Vec::new(),
            scope: String::new(),
            taken: HashSet::new(),
            names: HashMap::new(),
            shared: HashMap::new(),
            batch: None,
        }
    }

    /// Names what comes from now on after this place.
    pub(crate) fn scope(&mut self, scope: impl Into<String>) {
        self.scope = scope.into();
    }

    /// `name` in the present place, with a number behind it if it is taken.
    fn fresh(&mut self, name: &str) -> String {
        let full = if self.scope.is_empty() { name.to_owned() } else { format!("{}/{name}", self.scope) };
        let mut name = full.clone();
        while !self.taken.insert(name.clone()) {
            let count = self.names.entry(full.clone()).or_default();
            *count += 1;
            name = format!("{full}_{count}");
        }
        name
    }

    /// An input of floats.
    pub(crate) fn input(&mut self, name: &str, element: Element, dims: &[Dim]) -> Value {
        self.taken.insert(name.to_owned());
        self.inputs.push(value_info(name, element, dims));
        let value = name.to_owned();
        if self.batch.is_none() {
            self.batch = Some(self.node_with("Shape", &[&value], vec![("start", Attr::Int(0)), ("end", Attr::Int(1))]));
        }
        value
    }

    /// Makes `value` an output of floats of this name.
    pub(crate) fn output(&mut self, name: &'static str, value: &Value, dims: &[Dim]) {
        self.output_of(name, Element::F32, value, dims);
    }

    /// Makes `value` an output of this name.
    pub(crate) fn output_of(&mut self, name: &'static str, element: Element, value: &Value, dims: &[Dim]) {
        self.taken.insert(name.to_owned());
        self.push("Identity", &[value], &[name.to_owned()], vec![]);
        self.outputs.push(value_info(name, element, dims));
    }

    fn push(&mut self, op: &str, inputs: &[&Value], outputs: &[Value], attributes: Vec<(&'static str, Attr)>) {
        let mut node = ProtoMessage::default();
        for input in inputs {
            node = node.bytes(1, input);
        }
        for output in outputs {
            node = node.bytes(2, output);
        }
        let name = self.fresh(op);
        node = node.bytes(3, name).bytes(4, op).messages(5, attributes.into_iter().map(attribute));
        self.nodes.push(node);
    }

    /// A node with one output.
    pub(crate) fn node_with(&mut self, op: &str, inputs: &[&Value], attributes: Vec<(&'static str, Attr)>) -> Value {
        let output = self.fresh(&format!("{op}_output"));
        self.push(op, inputs, std::slice::from_ref(&output), attributes);
        output
    }

    /// A node with `N` outputs.
    pub(crate) fn nodes_with<const N: usize>(
        &mut self,
        op: &str,
        inputs: &[&Value],
        attributes: Vec<(&'static str, Attr)>,
    ) -> [Value; N] {
        let outputs: [Value; N] = std::array::from_fn(|_| self.fresh(&format!("{op}_output")));
        self.push(op, inputs, &outputs, attributes);
        outputs
    }

    /// A node without attributes.
    pub(crate) fn node(&mut self, op: &str, inputs: &[&Value]) -> Value {
        self.node_with(op, inputs, vec![])
    }

    fn constant(&mut self, name: &str, shape: &[usize], element: Element, data: ConstantData<'a>) -> Value {
        let name = self.fresh(name);
        self.constants.push(Constant { name: name.clone(), shape: shape.to_vec(), element, data });
        name
    }

    /// A constant of floats.
    pub(crate) fn floats(&mut self, name: &str, shape: &[usize], values: impl Into<Cow<'a, [f32]>>) -> Value {
        self.constant(name, shape, self.element, ConstantData::Floats(values.into()))
    }

    /// A constant whose values are made when it is written.
    pub(crate) fn later(&mut self, name: &str, shape: &[usize], f: impl Fn() -> Result<Vec<f32>> + 'a) -> Value {
        self.constant(name, shape, self.element, ConstantData::Later(Box::new(f)))
    }

    /// What belongs to the task: a constant, or an input of a graph that serves many.
    pub(crate) fn of_task(&mut self, name: &str, dims: &[Dim], shape: &[usize], values: Vec<f32>) -> Value {
        if !self.task_input {
            return self.floats(name, shape, values);
        }
        let input = name.replace(['.', '/'], "_");
        self.taken.insert(input.clone());
        self.inputs.push(value_info(&input, Element::F32, dims));
        self.task.push(NamedTensor { name: input.clone(), shape: shape.to_vec(), values });
        if self.element == Element::F32 { input } else { self.cast(&input, self.element) }
    }

    /// A list of integers.
    pub(crate) fn ints(&mut self, values: &[i64]) -> Value {
        let key = format!("{values:?}");
        if let Some(value) = self.shared.get(&key) {
            return value.clone();
        }
        let scope = std::mem::take(&mut self.scope);
        let value = self.constant("ints", &[values.len()], Element::I64, ConstantData::Ints(values.to_vec()));
        self.scope = scope;
        self.shared.insert(key, value.clone());
        value
    }

    /// A float that is used in many places.
    pub(crate) fn scalar(&mut self, value: f32) -> Value {
        let key = format!("{:?} {:08x}", self.element, value.to_bits());
        if let Some(value) = self.shared.get(&key) {
            return value.clone();
        }
        let scope = std::mem::take(&mut self.scope);
        let made = self.constant("scalar", &[], self.element, ConstantData::Floats(vec![value].into()));
        self.scope = scope;
        self.shared.insert(key, made.clone());
        made
    }

    /// `n` ones: the scale of norms whose own is folded into what follows.
    pub(crate) fn ones(&mut self, n: usize) -> Value {
        let key = format!("{:?} ones {n}", self.element);
        if let Some(value) = self.shared.get(&key) {
            return value.clone();
        }
        let scope = std::mem::take(&mut self.scope);
        let made = self.constant("ones", &[n], self.element, ConstantData::Floats(vec![1.; n].into()));
        self.scope = scope;
        self.shared.insert(key, made.clone());
        made
    }

    pub(crate) fn add(&mut self, a: &Value, b: &Value) -> Value {
        self.node("Add", &[a, b])
    }

    pub(crate) fn mul(&mut self, a: &Value, b: &Value) -> Value {
        self.node("Mul", &[a, b])
    }

    pub(crate) fn matmul(&mut self, a: &Value, b: &Value) -> Value {
        self.node("MatMul", &[a, b])
    }

    pub(crate) fn scaled(&mut self, a: &Value, factor: f32) -> Value {
        let factor = self.scalar(factor);
        self.mul(a, &factor)
    }

    pub(crate) fn softmax(&mut self, x: &Value) -> Value {
        self.node_with("Softmax", &[x], vec![("axis", Attr::Int(-1))])
    }

    /// A layer norm over the last dimension, without scale and shift if `norm` has none.
    pub(crate) fn layer_norm(&mut self, x: &Value, width: usize, norm: Option<[Value; 2]>, eps: f32) -> Value {
        let attributes = vec![("axis", Attr::Int(-1)), ("epsilon", Attr::Float(eps))];
        if let Some([scale, shift]) = norm {
            return self.node_with("LayerNormalization", &[x, &scale, &shift], attributes);
        }
        let ones = self.ones(width);
        self.node_with("LayerNormalization", &[x, &ones], attributes)
    }

    pub(crate) fn reshape(&mut self, x: &Value, shape: &[i64]) -> Value {
        let shape = self.ints(shape);
        self.node("Reshape", &[x, &shape])
    }

    pub(crate) fn transpose(&mut self, x: &Value, order: &[i64]) -> Value {
        self.node_with("Transpose", &[x], vec![("perm", Attr::Ints(order.to_vec()))])
    }

    pub(crate) fn concat(&mut self, parts: &[&Value], axis: i64) -> Value {
        if let [one] = parts {
            return (*one).clone();
        }
        self.node_with("Concat", parts, vec![("axis", Attr::Int(axis))])
    }

    /// Rows `from..to` along an axis.
    pub(crate) fn slice(&mut self, x: &Value, axis: i64, from: usize, to: usize) -> Value {
        let [from, to, axis] = [from as i64, to as i64, axis].map(|value| self.ints(&[value]));
        self.node("Slice", &[x, &from, &to, &axis])
    }

    /// `x` `[1, …]` for each image of the batch: `[B, …]`; `rest` are the other dimensions.
    pub(crate) fn for_each_image(&mut self, x: &Value, rest: &[usize]) -> Value {
        let rest: Vec<i64> = rest.iter().map(|&n| n as i64).collect();
        let rest = self.ints(&rest);
        let batch = self.batch.clone().unwrap_or_default();
        let shape = self.concat(&[&batch, &rest], 0);
        self.node("Expand", &[x, &shape])
    }

    pub(crate) fn cast(&mut self, x: &Value, to: Element) -> Value {
        self.node_with("Cast", &[x], vec![("to", Attr::Int(to as i64))])
    }

    /// Sums over `axes`, which are kept.
    pub(crate) fn reduce_sum(&mut self, x: &Value, axis: i64) -> Value {
        let axes = self.ints(&[axis]);
        self.node_with("ReduceSum", &[x, &axes], vec![("keepdims", Attr::Int(1))])
    }

    /// The mean over `axis`, which goes.
    pub(crate) fn mean(&mut self, x: &Value, axis: i64) -> Value {
        let keep = ("keepdims", Attr::Int(0));
        if self.opset == Opset::V17 {
            return self.node_with("ReduceMean", &[x], vec![("axes", Attr::Ints(vec![axis])), keep]);
        }
        let axes = self.ints(&[axis]);
        self.node_with("ReduceMean", &[x, &axes], vec![keep])
    }

    /// The rows of `x`, along the last dimension, at length 1; `eps` keeps that of zero finite.
    pub(crate) fn unit_rows(&mut self, x: &Value, eps: f32) -> Value {
        let squares = self.mul(x, x);
        let sum = self.reduce_sum(&squares, -1);
        let eps = self.scalar(eps);
        let sum = self.add(&sum, &eps);
        let length = self.node("Sqrt", &[&sum]);
        self.node("Div", &[x, &length])
    }

    /// Names of the inputs.
    pub(crate) fn input_names(&self) -> Vec<String> {
        self.inputs.iter().filter_map(ProtoMessage::text).collect()
    }

    /// Names of the outputs.
    pub(crate) fn output_names(&self) -> Vec<String> {
        self.outputs.iter().filter_map(ProtoMessage::text).collect()
    }

    /// The `GraphProto` of this name; constants are streamed by their number, or, where `external` tells bytes from which on and
    /// how many, in the file of that name beside.
    pub(crate) fn proto(&self, name: &str, external: Option<&External>) -> ProtoMessage {
        let constants = self.constants.iter().enumerate().map(|(i, constant)| {
            let shape = &constant.shape;
            let mut tensor = ProtoMessage::default();
            for &n in shape {
                tensor = tensor.int(1, n as i64);
            }
            tensor = tensor.int(2, constant.element as i64).bytes(8, &constant.name);
            match external.and_then(|external| Some((external, external.places.get(i)?.as_ref()?))) {
                Some((external, (offset, len))) => {
                    let entry = |key: &str, value: &str| ProtoMessage::default().bytes(1, key).bytes(2, value);
                    tensor
                        .message(13, entry("location", &external.location))
                        .message(13, entry("offset", &offset.to_string()))
                        .message(13, entry("length", &len.to_string()))
                        .int(14, 1)
                }
                None => tensor.streamed(9, constant.len(), i),
            }
        });
        ProtoMessage::default()
            .messages(1, self.nodes.iter().cloned())
            .bytes(2, name)
            .messages(5, constants)
            .messages(11, self.inputs.iter().cloned())
            .messages(12, self.outputs.iter().cloned())
    }
}

/// Where constants lie that are not in the file.
pub(crate) struct External {
    /// Name of the file beside.
    pub(crate) location: String,
    /// Offset and length of each constant that lies there.
    pub(crate) places: Vec<Option<(u64, u64)>>,
}

impl Constant<'_> {
    /// Values.
    pub(crate) fn count(&self) -> usize {
        self.shape.iter().product()
    }

    /// Bytes.
    pub(crate) fn len(&self) -> u64 {
        (self.count() * self.element.bytes()) as u64
    }

    /// Writes its values.
    ///
    /// # Errors
    /// They cannot be made or are too large for their format, or the system's word.
    pub(crate) fn write(&self, out: &mut dyn std::io::Write) -> std::io::Result<()> {
        let made;
        let values: &[f32] = match &self.data {
            ConstantData::Ints(values) => {
                return values.iter().try_for_each(|value| out.write_all(&value.to_le_bytes()));
            }
            ConstantData::Floats(values) => values,
            ConstantData::Later(make) => {
                made = make().map_err(std::io::Error::other)?;
                &made
            }
        };
        if values.len() != self.count() {
            let message = format!("{}: {} values for shape {:?}", self.name, values.len(), self.shape);
            return Err(std::io::Error::other(Error::invalid("constant", message)));
        }
        let mut bytes = Vec::new();
        for chunk in values.chunks(1 << 16) {
            bytes.clear();
            if self.element == Element::F16 {
                for &value in chunk {
                    let short = half::f16::from_f32(value);
                    if short.is_infinite() {
                        let message = format!("{}: {value} is too large for f16", self.name);
                        return Err(std::io::Error::other(Error::invalid("constant", message)));
                    }
                    bytes.extend(short.to_le_bytes());
                }
            } else {
                bytes.extend(chunk.iter().flat_map(|value| value.to_le_bytes()));
            }
            out.write_all(&bytes)?;
        }
        Ok(())
    }
}

fn attribute((name, value): (&'static str, Attr)) -> ProtoMessage {
    let message = ProtoMessage::default().bytes(1, name);
    match value {
        Attr::Float(value) => message.float(2, value).int(20, 1),
        Attr::Int(value) => message.int(3, value).int(20, 2),
        Attr::Text(value) => message.bytes(4, value).int(20, 3),
        Attr::Ints(values) => values.into_iter().fold(message, |message, value| message.int(8, value)).int(20, 7),
    }
}

/// A `ValueInfoProto`.
fn value_info(name: &str, element: Element, dims: &[Dim]) -> ProtoMessage {
    let dims = dims.iter().map(|dim| match dim {
        Dim::Fixed(n) => ProtoMessage::default().int(1, *n as i64),
        Dim::Named(name) => ProtoMessage::default().bytes(2, name),
    });
    let shape = ProtoMessage::default().messages(1, dims);
    let tensor = ProtoMessage::default().int(1, element as i64).message(2, shape);
    ProtoMessage::default().bytes(1, name).message(2, ProtoMessage::default().message(1, tensor))
}

/// `[rows, columns]` row-major, the other way round.
pub(crate) fn transposed(values: &[f32], columns: usize) -> Vec<f32> {
    let rows = values.len() / columns.max(1);
    let mut out = vec![0.; values.len()];
    for (i, row) in values.chunks_exact(columns).enumerate() {
        for (j, value) in row.iter().enumerate() {
            out[j * rows + i] = *value;
        }
    }
    out
}
