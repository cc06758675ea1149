//! Shape of a dense head: its sizes, the names and shapes of its tensors, and their first values.

use std::ops::Range;

use rand::Rng;
use serde::{Deserialize, Serialize};

use crate::head::dense_tensors::{self, Fresh, TensorRanges, check_sizes};
use vpt_base::{
    Error, Result,
    params::{Group, Param},
};

/// Names of the logarithm of the scale of cosines with texts, and of what is added to them; `[1]` each.
pub(crate) const LOG_SCALE: &str = "head.class.log_scale";
pub(crate) const SHIFT: &str = "head.class.shift";

/// Groups of every GroupNorm.
pub const GROUPS: usize = 8;

/// Convolutions of a tower.
pub(super) const DEPTH: usize = 2;

/// Names of the two towers, in the order of their tensors.
const TOWERS: [&str; 2] = ["class", "box"];

/// Share of objects among (token, class) pairs that fresh weights predict (Lin et al., "Focal Loss for Dense Object
/// Detection", 2017, §4.1).
const PRIOR: f32 = 0.01;

/// The initial scale of cosines with text embeddings.
const INIT_SCALE: f32 = 16.;

/// Standard deviation of fresh weights of the layers that give logits.
const INIT_STD: f32 = 0.01;

/// How a token's class logits are made of its C channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClassLayer {
    /// A linear layer, one row a class.
    Linear {
        /// Number of classes, K.
        classes: usize,
    },
    /// Open vocabulary: a linear layer to the width of text embeddings, then the cosine with the embedding of each class
    /// name, times a learned scale, plus a learned shift.
    Text {
        /// Number of classes in training. Another number of texts may be bound later.
        classes: usize,
        /// Length of a text embedding, E.
        width: usize,
    },
}

impl ClassLayer {
    /// The same for another number of classes.
    #[must_use]
    pub(crate) fn with_count(self, classes: usize) -> Self {
        match self {
            Self::Linear { .. } => Self::Linear { classes },
            Self::Text { width, .. } => Self::Text { classes, width },
        }
    }
}

/// A dense head's sizes and the one constant it takes from its training data.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct DetectShape {
    /// Length of a patch token, D.
    pub width: usize,
    /// How many blocks' tokens are read.
    pub levels: usize,
    /// Tokens a side; N is its square.
    pub grid: usize,
    /// Whether the map has twice as many tokens a side.
    pub upsample: bool,
    /// Channels of the map, C: a multiple of 8.
    pub channels: usize,
    /// The class layer.
    pub classes: ClassLayer,
    /// The side of a typical box in units of the network input, from which sizes are counted:
    /// [`super::geometry::anchor_side`].
    pub anchor: f32,
}

impl DetectShape {
    /// Tokens a side of the map that boxes are read from, G'.
    pub fn side(&self) -> usize {
        if self.upsample { 2 * self.grid } else { self.grid }
    }

    /// Tokens of the map, T.
    pub fn tokens(&self) -> usize {
        self.side() * self.side()
    }

    /// Number of classes in training, K.
    pub fn class_count(&self) -> usize {
        match self.classes {
            ClassLayer::Linear { classes } | ClassLayer::Text { classes, .. } => classes,
        }
    }

    /// Fails unless the sizes are ones a head can have and whose tensors fit into memory's addresses: a shape may come out
    /// of a file.
    pub fn check(&self) -> Result<()> {
        let mut sizes = vec![
            ("width", self.width, 1 << 14),
            ("levels", self.levels, 64),
            ("grid", self.grid, 1 << 9),
            ("channels", self.channels, 1 << 12),
            ("classes", self.class_count(), 1 << 16),
        ];
        if let ClassLayer::Text { width, .. } = self.classes {
            sizes.push(("text_width", width, 1 << 14));
        }
        check_sizes(&sizes, self.channels)?;
        if !(self.anchor > 0. && self.anchor <= 1.) {
            return Err(Error::invalid("head.anchor", format!("{} is not in (0, 1]", self.anchor)));
        }
        Ok(())
    }

    /// Name and shape of every tensor of the head. Convolutions are `[out, y, x, in]`, other weights `[out, in]`.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let (d, c) = (self.width, self.channels);
        let mut all = Vec::new();
        let mut add = |name: String, shape: &[usize]| all.push((format!("head.{name}"), shape.to_vec()));
        for level in 0..self.levels {
            add(format!("neck.norm{level}.weight"), &[d]);
            add(format!("neck.norm{level}.bias"), &[d]);
        }
        add("neck.weight".into(), &[c, self.levels * d]);
        add("neck.bias".into(), &[c]);
        add("neck.group_norm.weight".into(), &[c]);
        add("neck.group_norm.bias".into(), &[c]);
        if self.upsample {
            add("upsample.weight".into(), &[4 * c, c]);
            add("upsample.bias".into(), &[4 * c]);
        }
        for tower in TOWERS {
            for i in 0..DEPTH {
                add(format!("{tower}.conv{i}.weight"), &[c, 3, 3, c]);
                add(format!("{tower}.norm{i}.weight"), &[c]);
                add(format!("{tower}.norm{i}.bias"), &[c]);
            }
        }
        match self.classes {
            ClassLayer::Linear { classes } => {
                add("class.weight".into(), &[classes, c]);
                add("class.bias".into(), &[classes]);
            }
            ClassLayer::Text { width, .. } => {
                add("class.project.weight".into(), &[width, c]);
                add("class.project.bias".into(), &[width]);
                add("class.log_scale".into(), &[1]);
                add("class.shift".into(), &[1]);
            }
        }
        // Box and quality lie side by side: they are one product.
        add("box.weight".into(), &[4, c]);
        add("quality.weight".into(), &[1, c]);
        add("box.bias".into(), &[4]);
        add("quality.bias".into(), &[1]);
        all
    }

    /// Fresh values: towers, neck and upsampling after He et al. ("Delving Deep into Rectifiers", 2015), class logits that
    /// say 1 % everywhere, and boxes of the anchor's size at their tokens.
    pub fn init(&self, rng: &mut impl Rng) -> Result<Vec<Param>> {
        self.check()?;
        let fresh = |name: &str, shape: &[usize], fan_in: f32| match name {
            "head.class.weight" | "head.quality.weight" => Fresh::Normal(INIT_STD),
            "head.box.weight" => Fresh::All(0.),
            "head.class.bias" | SHIFT => Fresh::All(-((1. - PRIOR) / PRIOR).ln()),
            LOG_SCALE => Fresh::All(INIT_SCALE.ln()),
            "head.upsample.weight" | "head.class.project.weight" => Fresh::Normal(fan_in.powf(-0.5)),
            _ if shape.len() > 1 => Fresh::he(fan_in),
            _ if name.ends_with("weight") => Fresh::All(1.),
            _ => Fresh::All(0.),
        };
        let group = |_: &str, shape: &[usize]| if shape.len() > 1 { Group::Head } else { Group::HeadBias };
        dense_tensors::init(self.tensors(), rng, fresh, group)
    }

    /// Where each tensor lies when all are put one behind the other in the order of [`Self::tensors`].
    pub(super) fn places(&self) -> DetectRanges {
        DetectRanges { all: TensorRanges::new(self.tensors()), levels: self.levels, upsample: self.upsample }
    }
}

/// The ranges of a head's tensors in one flat vector.
#[derive(Clone, Debug)]
pub(super) struct DetectRanges {
    all: TensorRanges,
    levels: usize,
    upsample: bool,
}

impl DetectRanges {
    /// Values in all.
    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    /// Every tensor's range, in order.
    pub(super) fn all(&self) -> &[Range<usize>] {
        self.all.all()
    }

    /// Scale, then shift `[2, D]` of a level's LayerNorm.
    pub(super) fn level_norm(&self, level: usize) -> Range<usize> {
        self.all.pair(2 * level)
    }

    pub(super) fn neck_weight(&self) -> Range<usize> {
        self.all.at(2 * self.levels)
    }

    pub(super) fn neck_bias(&self) -> Range<usize> {
        self.all.at(2 * self.levels + 1)
    }

    /// Scale, then shift `[2, C]`.
    pub(super) fn neck_norm(&self) -> Range<usize> {
        self.all.pair(2 * self.levels + 2)
    }

    pub(super) fn upsample_weight(&self) -> Range<usize> {
        self.all.at(2 * self.levels + 4)
    }

    pub(super) fn upsample_bias(&self) -> Range<usize> {
        self.all.at(2 * self.levels + 5)
    }

    fn towers(&self) -> usize {
        2 * self.levels + if self.upsample { 6 } else { 4 }
    }

    /// Weight of convolution `i` of a tower.
    pub(super) fn conv(&self, tower: usize, i: usize) -> Range<usize> {
        self.all.at(self.towers() + 3 * (DEPTH * tower + i))
    }

    /// Scale, then shift `[2, C]` of the norm behind convolution `i` of a tower.
    pub(super) fn tower_norm(&self, tower: usize, i: usize) -> Range<usize> {
        self.all.pair(self.towers() + 3 * (DEPTH * tower + i) + 1)
    }

    fn outputs(&self) -> usize {
        self.towers() + 3 * DEPTH * TOWERS.len()
    }

    /// Weight of the class layer, or of the layer to the texts' width.
    pub(super) fn class_weight(&self) -> Range<usize> {
        self.all.at(self.outputs())
    }

    pub(super) fn class_bias(&self) -> Range<usize> {
        self.all.at(self.outputs() + 1)
    }

    /// Logarithm of the scale, then the shift, of cosines with texts.
    pub(super) fn cosine(&self) -> Range<usize> {
        self.all.pair(self.outputs() + 2)
    }

    /// Weights of box and quality `[5, C]`.
    pub(super) fn box_weight(&self) -> Range<usize> {
        self.all.pair(self.all().len() - 4)
    }

    /// Biases of box and quality `[5]`.
    pub(super) fn box_bias(&self) -> Range<usize> {
        self.all.pair(self.all().len() - 2)
    }
}
