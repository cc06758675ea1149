//! What a checkpoint says, however it is stored: names and values of tensors, not bytes of files.

use std::sync::PoisonError;

use super::file::TensorEntry;
use super::{CHUNK, Weights};
use vpt_base::Result;

impl Weights {
    /// Names of the plain model that were asked for until now, in their order.
    pub(crate) fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    /// BLAKE3, in hexadecimal, over shapes and values of the tensors `names` of the plain model and `beside` it, of those that
    /// are there. Values are taken as f32: neither file, order, prefix nor number format change it.
    ///
    /// # Errors
    /// A file cannot be read.
    pub(crate) fn content(&self, names: &[String], beside: &[String]) -> Result<String> {
        let mut hasher = blake3::Hasher::new();
        let is_float = |tensor: &&TensorEntry| matches!(tensor.dtype.as_str(), "F64" | "F32" | "F16" | "BF16");
        let plain = names.iter().filter_map(|name| Some((name, self.find(name)?)));
        let beside = beside.iter().filter_map(|name| Some((name, self.find_beside(name).filter(is_float)?)));
        for (name, tensor) in plain.chain(beside) {
            hasher.update(format!("{} {name} {:?}\n", name.len(), tensor.shape).as_bytes());
            self.add_values(name, tensor, &mut hasher)?;
        }
        Ok(hasher.finalize().to_hex().to_string())
    }

    /// Adds the values of a tensor, row-major.
    fn add_values(&self, name: &str, tensor: &TensorEntry, hasher: &mut blake3::Hasher) -> Result<()> {
        let count: usize = tensor.shape.iter().product();
        // One that lies there in another order is read as a whole.
        let apart = !tensor.is_in_order();
        let step = if apart { count.max(1) } else { CHUNK };
        let mut bytes = Vec::with_capacity(4 * step.min(count));
        for first in (0..count).step_by(step) {
            let mut values = vec![0.; step.min(count - first)];
            if apart {
                self.read_in_order(name, tensor, &mut values)?;
            } else if let Some(part) = tensor.part(first, values.len()) {
                self.read_stored(name, &part, &mut values)?;
            }
            bytes.clear();
            for value in values {
                bytes.extend_from_slice(&value.to_le_bytes());
            }
            hasher.update(&bytes);
        }
        Ok(())
    }
}
