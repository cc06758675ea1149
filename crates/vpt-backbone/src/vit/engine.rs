//! Where another engine takes the place of this one: what it is asked for, and how a step goes through it.
//!
//! An engine answers a [`Pass`] with the features of its images and takes their gradients back. All else (which passes there are,
//! losses, what learns) does not know which engine there is.

use std::ops::Range;

use super::{FeatureLoss, Grads, Pass, Vit, Want};
use crate::engine::{Compute, Engine};
use crate::spec::Spec;
use crate::weights::Weights;
use vpt_base::{Error, Result, parallel};
use vpt_kernel::Precision;

/// Gives the gradient of the features of consecutive images.
pub(super) type EngineLoss<'a> = dyn FnMut(Range<usize>, &[f32]) -> Result<Vec<f32>> + Send + 'a;

/// An image tower at one image size on another engine.
pub(super) trait TowerEngine: Send + Sync {
    /// One forward and, for what the pass wants, backward pass over `batch` images, which have been checked to fit. `loss` is called
    /// with features in the order of the images.
    ///
    /// # Errors
    /// `loss` fails, or the device does.
    fn step(&self, pass: &Pass, batch: usize, loss: &mut EngineLoss) -> Result<Grads>;
}

/// The engine that takes the place of the native one, if `compute` asks for one.
pub(super) fn open(
    spec: &Spec,
    weights: &Weights,
    image_size: usize,
    precision: Precision,
    compute: Compute,
) -> Result<Option<Box<dyn TowerEngine>>> {
    compute.check()?;
    match compute.engine {
        Engine::Native => Ok(None),
        #[cfg(any(test, feature = "candle"))]
        Engine::Candle => {
            let engine = super::candle::CandleEngine::open(spec, weights, image_size, precision, compute.device)?;
            Ok(Some(Box::new(engine)))
        }
        #[cfg(not(any(test, feature = "candle")))]
        Engine::Candle => {
            let _ = (spec, weights, image_size, precision);
            Ok(None)
        }
    }
}

impl Vit {
    /// [`Vit::step`] on another engine.
    pub(super) fn step_on<T: Send>(
        &self,
        engine: &dyn TowerEngine,
        pass: &Pass,
        batch: usize,
        loss: &FeatureLoss<T>,
    ) -> Result<(Grads, Vec<T>)> {
        if pass.tuned.is_some() {
            return Err(self.native_only("tunes weights of the backbone"));
        }
        let (learns, threads, mut values) = (pass.want != Want::default(), pass.threads, Vec::new());
        // Images are in the shares that they have on the native engine, so each is treated in order, by one thread.
        let mut of_shares = |range: Range<usize>, features: &[f32]| -> Result<Vec<f32>> {
            let each = features.len() / range.len().max(1);
            let shares = parallel::cut(batch, threads).filter_map(|share| {
                let own = share.start.max(range.start)..share.end.min(range.end);
                (!own.is_empty()).then_some(own)
            });
            let parts = parallel::with_shares(shares, |own: Range<usize>| {
                let of_own = &features[(own.start - range.start) * each..(own.end - range.start) * each];
                loss(own, of_own).map(|(gradient, value)| (gradient, value, of_own.len()))
            });
            let mut gradient = Vec::with_capacity(features.len());
            for part in parts {
                let (of_part, value, expected) = part?;
                if learns && of_part.len() != expected {
                    let message = format!("{} values for {expected} features", of_part.len());
                    return Err(Error::invalid("gradient of the features", message));
                }
                gradient.extend(of_part);
                values.push(value);
            }
            Ok(gradient)
        };
        let grads = engine.step(pass, batch, &mut of_shares)?;
        Ok((grads, values))
    }

    /// Why the engine does not do what the native one does.
    pub(super) fn native_only(&self, what: &str) -> Error {
        Error::setting("engine", format!("{} is not for this; native {what}", self.compute.engine))
    }
}
