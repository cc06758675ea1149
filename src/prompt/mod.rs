//! The learned input of a frozen backbone: prompt tokens ([`tokens`]), prompt pixels ([`pixels`]) or vectors in the texts that
//! name the classes ([`text`]); or what is tuned of the backbone itself ([`weights`]); and the file that keeps a learned task
//! ([`task_file`]).

pub mod pixels;
pub mod text;
pub mod tokens;
pub mod weights;

use serde::{Deserialize, Serialize};

use self::{pixels::PixelShape, text::TextShape, tokens::TokenLayout, weights::WeightShape};

/// What is learned at the input of the backbone, or of itself: kind and place, not the values.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "input")]
pub enum PromptShape {
    /// Nothing.
    None,
    /// Prompt tokens.
    Tokens(TokenLayout),
    /// Prompt pixels.
    Pixels(PixelShape),
    /// Vectors in the texts of the classes.
    Text(TextShape),
    /// Nothing at the input, but weights of the backbone.
    Weights(WeightShape),
}
