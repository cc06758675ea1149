//! The learned input of a frozen backbone: prompt tokens ([`tokens`]), prompt pixels ([`pixels`]) or vectors in the texts that
//! name the classes ([`text`]); or what is tuned of the backbone itself ([`weights`]).

pub mod key_values;
pub mod part;
pub mod pixels;
pub mod text;
pub mod tokens;
pub mod weights;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use serde_json::Value;

use self::{
    key_values::KeyValueShape,
    part::{Kind, Work},
    pixels::PixelShape,
    text::TextShape,
    tokens::TokenLayout,
    weights::WeightShape,
};
use vpt_base::Error;

/// What is learned beside the head: kind and place, not the values.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "input")]
pub enum PartShape {
    /// Prompt tokens.
    Tokens(TokenLayout),
    /// Prompt tokens, with keys and values beside them.
    KeysValues(KeyValueShape),
    /// Prompt pixels.
    Pixels(PixelShape),
    /// Vectors in the texts of the classes.
    Text(TextShape),
    /// Nothing at the input, but weights of the backbone.
    Weights(WeightShape),
}

impl PartShape {
    /// The kind of part that it is.
    pub(crate) fn kind(&self) -> &dyn Kind {
        match self {
            Self::Tokens(layout) => layout,
            Self::KeysValues(shape) => shape,
            Self::Pixels(shape) => shape,
            Self::Text(shape) => shape,
            Self::Weights(shape) => shape,
        }
    }
}

/// All that is learned beside the head, at most one of each kind.
///
/// A file has `{"input": "none"}` for nothing, the entry itself for one part, and a list of entries for several.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PartShapes(Vec<PartShape>);

impl PartShapes {
    /// Nothing: a head alone.
    pub const NONE: Self = Self(Vec::new());

    /// Whether there are several, which older programs cannot read.
    pub fn are_several(&self) -> bool {
        self.0.len() > 1
    }

    /// What it is, in words.
    pub fn describe(&self) -> String {
        let parts: Vec<String> = self.iter().map(|shape| shape.kind().describe()).collect();
        let at_input = self.iter().any(|shape| !matches!(shape, PartShape::Weights(_)));
        (!at_input).then(|| "none".to_owned()).into_iter().chain(parts).collect::<Vec<_>>().join("; ")
    }

    /// Whether an image's features stay as they are while they learn.
    pub fn keep_features(&self) -> bool {
        !self.iter().any(|shape| shape.kind().changes_features())
    }

    /// Whether one is pruned after training.
    pub fn prunes(&self) -> bool {
        self.iter().any(|shape| shape.kind().prunes())
    }

    /// What they ask of a step on images of `side` pixels with patches of `patch`.
    pub fn work(&self, side: usize, patch: usize) -> Work {
        let mut work = Work::default();
        self.iter().for_each(|shape| shape.kind().add_work(side, patch, &mut work));
        work
    }

    /// Fails unless they can learn together: at most one of a kind, and texts alone, or what is told by them.
    pub(crate) fn check(&self) -> vpt_base::Result<()> {
        let kinds: Vec<_> = self.iter().map(std::mem::discriminant).collect();
        let tokens =
            self.iter().filter(|shape| matches!(shape, PartShape::Tokens(_) | PartShape::KeysValues(_))).count();
        if tokens > 1 || (1..kinds.len()).any(|i| kinds[..i].contains(&kinds[i])) {
            return Err(Error::invalid("parts", "two of one kind"));
        }
        if self.are_several() && (self.text().is_some() || self.told_by_texts()) {
            return Err(Error::invalid("parts", "texts are learned alone"));
        }
        Ok(())
    }

    /// Adds a part.
    pub fn push(&mut self, shape: PartShape) {
        self.0.push(shape);
    }

    /// The prompt tokens.
    pub fn tokens(&self) -> Option<TokenLayout> {
        self.iter().find_map(|shape| if let PartShape::Tokens(layout) = shape { Some(*layout) } else { None })
    }

    /// The prompt pixels.
    pub fn pixels(&self) -> Option<PixelShape> {
        self.iter().find_map(|shape| if let PartShape::Pixels(shape) = shape { Some(*shape) } else { None })
    }

    /// The vectors in the texts of the classes.
    pub fn text(&self) -> Option<TextShape> {
        self.iter().find_map(|shape| if let PartShape::Text(shape) = shape { Some(*shape) } else { None })
    }

    /// The weights of the backbone.
    pub fn weights(&self) -> Option<WeightShape> {
        self.iter().find_map(|shape| if let PartShape::Weights(shape) = shape { Some(*shape) } else { None })
    }

    /// Whether classes are told by their texts through tuned weights, and there is no head to learn.
    pub fn told_by_texts(&self) -> bool {
        self.weights().is_some_and(|shape| shape.told_by_texts())
    }
}

impl std::ops::Deref for PartShapes {
    type Target = [PartShape];

    fn deref(&self) -> &[PartShape] {
        &self.0
    }
}

impl From<PartShape> for PartShapes {
    fn from(shape: PartShape) -> Self {
        Self(vec![shape])
    }
}

impl FromIterator<PartShape> for PartShapes {
    fn from_iter<I: IntoIterator<Item = PartShape>>(shapes: I) -> Self {
        Self(shapes.into_iter().collect())
    }
}

impl Serialize for PartShapes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.0[..] {
            [] => serde_json::json!({"input": "none"}).serialize(serializer),
            [one] => one.serialize(serializer),
            several => several.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for PartShapes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let entry = Value::deserialize(deserializer)?;
        if entry["input"] == "none" {
            return Ok(Self::NONE);
        }
        let shapes = if entry.is_array() {
            serde_json::from_value(entry)
        } else {
            serde_json::from_value(entry).map(|shape| vec![shape])
        };
        shapes.map(Self).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_part_is_written_as_itself_and_several_as_a_list() {
        let tokens = PartShape::Tokens(TokenLayout { start: 0, layers: 2, tokens: 3 });
        let several: PartShapes = [tokens, PartShape::Weights(WeightShape::Bias)].into_iter().collect();
        for (shapes, text) in [
            (PartShapes::NONE, r#"{"input":"none"}"#),
            (tokens.into(), r#"{"input":"tokens","start":0,"layers":2,"tokens":3}"#),
            (PartShape::Weights(WeightShape::Full).into(), r#"{"input":"weights","tuned":"full"}"#),
            (several, r#"[{"input":"tokens","start":0,"layers":2,"tokens":3},{"input":"weights","tuned":"bias"}]"#),
        ] {
            assert_eq!(serde_json::to_string(&shapes).unwrap(), text);
            assert_eq!(serde_json::from_str::<PartShapes>(text).unwrap(), shapes);
        }
        for bad in [r#"{"input":"smell"}"#, "7", r#"[{"input":"none"}]"#, r#"{"input":"tokens","start":0}"#] {
            assert!(serde_json::from_str::<PartShapes>(bad).is_err(), "{bad}");
        }
    }
}
