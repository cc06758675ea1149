//! Which program computes the image tower, and on what.
//!
//! The native engine is the one written for this work ([`crate::vit`]); candle's computes the same by plain tensor operations and
//! their automatic gradients, on a GPU too where it is built for one. What a build has not is refused here.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use vpt_base::choice::choice;
use vpt_base::{Error, Message, Result};

choice! {
    /// The program that computes the image tower.
    #[derive(Default)]
    pub enum Engine for "engine" {
        /// Kernels for prompts on a frozen tower, on the CPU.
        #[default]
        Native = "native",
        /// Tensor operations of candle, and its gradients.
        Candle = "candle",
    }
}

/// What computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Device {
    /// The processor.
    #[default]
    Cpu,
    /// NVIDIA's GPU of this number.
    Cuda(usize),
}

impl Device {
    /// Whether GPUs are built in.
    pub const HAS_CUDA: bool = cfg!(feature = "cuda");

    /// Fails if this is a GPU and none are built in.
    ///
    /// # Errors
    /// As said.
    pub fn check(self) -> Result<()> {
        if self == Self::Cpu || Self::HAS_CUDA {
            return Ok(());
        }
        let message = Message::from("CUDA is not built in this version; use ").field("device").text(" cpu");
        Err(Error::setting("device", message))
    }
}

impl std::fmt::Display for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
        }
    }
}

impl FromStr for Device {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        let number = |digits: &str| digits.parse::<u32>().ok().map(|number| Self::Cuda(number as usize));
        let device = match s.split_once(':') {
            None if s == "cpu" => Some(Self::Cpu),
            None if s == "cuda" => Some(Self::Cuda(0)),
            Some(("cuda", digits)) => number(digits),
            _ => None,
        };
        device.ok_or_else(|| Error::setting("device", "expected cpu or cuda:N"))
    }
}

impl From<Device> for String {
    fn from(device: Device) -> Self {
        device.to_string()
    }
}

impl TryFrom<String> for Device {
    type Error = Error;

    fn try_from(s: String) -> Result<Self> {
        s.parse()
    }
}

/// The engine and what it computes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Compute {
    /// The program.
    pub engine: Engine,
    /// What it runs on.
    pub device: Device,
}

impl Compute {
    /// Whether candle's engine is built in.
    pub const HAS_CANDLE: bool = cfg!(any(test, feature = "candle"));

    /// Fails unless this build can compute so.
    ///
    /// # Errors
    /// The engine or the device is not built in, or the engine does not compute on the device.
    pub fn check(self) -> Result<()> {
        if self.engine == Engine::Candle && !Self::HAS_CANDLE {
            return Err(Error::setting("engine", "candle is not built in this version; native computes the same"));
        }
        self.device.check()?;
        if self.engine == Engine::Native && self.device != Device::Cpu {
            let message = Message::from(format!("{} is for ", self.device)).field("engine");
            return Err(Error::setting("device", message.text(" candle; native computes on the CPU")));
        }
        Ok(())
    }
}

impl std::fmt::Display for Compute {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.device {
            Device::Cpu => self.engine.fmt(f),
            Device::Cuda(_) => write!(f, "{} on {}", self.engine, self.device),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_and_what_is_not_built_in_is_refused() {
        for (text, device) in [("cpu", Device::Cpu), ("cuda", Device::Cuda(0)), ("cuda:3", Device::Cuda(3))] {
            assert_eq!(text.parse::<Device>().unwrap(), device);
        }
        for bad in ["", "gpu", "cuda:", "cuda:-1", "cuda:x", "cpu:0", "cuda:99999999999"] {
            assert!(bad.parse::<Device>().unwrap_err().to_string().starts_with("device: "), "{bad}");
        }
        for engine in [Engine::Native, Engine::Candle] {
            assert!(Compute { engine, device: Device::Cpu }.check().is_ok());
            let on_gpu = Compute { engine, device: Device::Cuda(0) }.check();
            assert_eq!(on_gpu.is_ok(), Device::HAS_CUDA && engine == Engine::Candle);
        }
        assert_eq!(Compute { engine: Engine::Candle, device: Device::Cuda(1) }.to_string(), "candle on cuda:1");
    }
}
