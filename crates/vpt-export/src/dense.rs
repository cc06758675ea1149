//! What the heads on patch tokens have in common: the tower up to the tokens, and layers.

use crate::ExportOptions;
use crate::block::{BlockReader, activation, leave_tower};
use crate::graph::{Attr, Element, Graph, Value, transposed};
use crate::prompts::ImagePrompts;
use crate::vit::{ImageTower, TowerOutput, TowerRead};
use vpt_base::{
    Error, Result,
    params::{Param, find},
};
use vpt_image::Preprocess;
use vpt_kernel::Activation;
use vpt_model::{
    head::detect::{GROUP_EPS, GROUPS},
    model::token_reader::TokenReader,
};

/// The layers of a head with these learned values.
#[derive(Clone, Copy)]
pub(crate) struct DenseLayers<'h> {
    pub(crate) params: &'h [Param],
    /// Channels of its map, C.
    pub(crate) channels: usize,
}

impl<'h> DenseLayers<'h> {
    pub(crate) fn values(&self, name: &str) -> Result<&'h [f32]> {
        Ok(&find(self.params, &format!("head.{name}"))?.values)
    }

    /// A layer of rows `[.., inputs]`.
    pub(crate) fn linear(&self, graph: &mut Graph, x: &Value, name: &str, inputs: usize) -> Result<Value> {
        let (weight, bias) = (self.values(&format!("{name}.weight"))?, self.values(&format!("{name}.bias"))?.to_vec());
        let outputs = bias.len();
        let weight = graph.floats(&format!("{name}.weight"), &[inputs, outputs], transposed(weight, inputs));
        let bias = graph.floats(&format!("{name}.bias"), &[outputs], bias);
        let y = graph.matmul(x, &weight);
        Ok(graph.add(&y, &bias))
    }

    /// A norm over groups of channels, and its activation, of `[B, C, ..]` as `[B, C, T]`.
    pub(crate) fn norm_and_gelu(&self, graph: &mut Graph, x: &Value, name: &str, tokens: usize) -> Result<Value> {
        let c = self.channels;
        let groups = GROUPS;
        let [scale, shift] =
            ["weight", "bias"].map(|which| self.values(&format!("{name}.{which}")).map(<[f32]>::to_vec));
        let x = graph.reshape(x, &[0, groups as i64, -1]);
        let one = graph.ones(groups);
        let zero = graph.floats("zero", &[groups], vec![0.; groups]);
        let x = graph.node_with("InstanceNormalization", &[&x, &one, &zero], vec![("epsilon", Attr::Float(GROUP_EPS))]);
        let x = graph.reshape(&x, &[0, c as i64, tokens as i64]);
        let scale = graph.floats(&format!("{name}.weight"), &[c, 1], scale?);
        let shift = graph.floats(&format!("{name}.bias"), &[c, 1], shift?);
        let x = graph.mul(&x, &scale);
        let x = graph.add(&x, &shift);
        Ok(activation(graph, &x, Activation::Gelu))
    }

    /// Two convolutions 3x3 of a map `[B, C, side, side]`, each with its norm and activation, as `[B, C, T]`; `names` are those of a convolution
    /// and of its norm.
    pub(crate) fn two_convolutions(
        &self,
        graph: &mut Graph,
        map: &Value,
        side: usize,
        names: impl Fn(usize) -> [String; 2],
    ) -> Result<Value> {
        let c = self.channels;
        let mut x = map.clone();
        for i in 0..2 {
            let [conv, norm] = names(i);
            let weight = by_channel(self.values(&format!("{conv}.weight"))?, c);
            let weight = graph.floats("conv.weight", &[c, c, 3, 3], weight);
            let attributes = vec![("kernel_shape", Attr::Ints(vec![3; 2])), ("pads", Attr::Ints(vec![1; 4]))];
            let y = graph.node_with("Conv", &[&x, &weight], attributes);
            let y = self.norm_and_gelu(graph, &y, &norm, side * side)?;
            x = if i == 0 { graph.reshape(&y, &[0, c as i64, side as i64, side as i64]) } else { y };
        }
        Ok(x)
    }
}

/// Calls `f` with a graph of the tower up to the tokens that `reader` reads, these tokens, and the side of the images that come in. The head
/// that follows computes in f32.
pub(crate) fn with_levels<T>(
    (reader, params): (&TokenReader, &[Param]),
    preprocess: &Preprocess,
    options: &ExportOptions,
    f: impl FnOnce(Graph, Vec<Value>, usize) -> Result<T>,
) -> Result<T> {
    let tower = reader.backbone().plain(reader.own_weights(params));
    let tokens = reader.layout().map(|layout| Ok::<_, Error>((layout, &find(params, "prompt.tokens")?.values[..])));
    let prompts = ImagePrompts::new(&tower, tokens.transpose()?, None)?;
    let blocks = BlockReader::new(|index| tower.block(index));
    let form = options.layout.form();
    let image_tower = ImageTower { tower: &tower, blocks: &blocks, preprocess, form, pixels: None, prompts: &prompts };
    let (mut graph, reads) = (options.graph(), reader.blocks());
    let levels = image_tower.build(&mut graph, options.layout.input(), TowerRead::Levels(&reads))?;
    let TowerOutput::Levels(levels) = levels else { return Err(Error::invalid("levels", "were not read")) };
    let levels = leave(&mut graph, levels);
    f(graph, levels, image_tower.input_side())
}

/// The tokens of some blocks as f32, in which the head computes from here on.
fn leave(graph: &mut Graph, levels: Vec<Value>) -> Vec<Value> {
    let element = graph.element;
    let leave = |level| {
        graph.element = element;
        leave_tower(graph, level)
    };
    let levels = levels.into_iter().map(leave).collect();
    graph.element = Element::F32;
    levels
}

/// A convolution's weight `[out, y, x, in]` as `[out, in, y, x]`.
fn by_channel(weight: &[f32], channels: usize) -> Vec<f32> {
    weight.chunks_exact(9 * channels).flat_map(|of_output| transposed(of_output, channels)).collect()
}
