//! The frozen backbone, at each size of images that tasks ask for.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use vpt_backbone::{Backbone, OpenOptions};
use vpt_base::{Error, Result};
use vpt_model::model::BackboneOrigin;

/// Sizes that the backbone is open at, at most: each has packed weights of its own.
const MOST_SIZES: usize = 4;

/// One backbone, open at one size of images or several.
#[derive(Debug)]
pub(crate) struct Cores {
    /// What it was asked for by.
    asked: String,
    options: OpenOptions,
    /// At its own size.
    own: Arc<Backbone>,
    /// By the side of the images.
    open: Mutex<BTreeMap<usize, Arc<Backbone>>>,
}

impl Cores {
    /// Opens a backbone at the size that it is published for.
    ///
    /// # Errors
    /// As [`Backbone::open`].
    pub(crate) fn open(origin: &BackboneOrigin) -> Result<Self> {
        // Tasks of one pass are mixed, which the native engine does, whatever computed the runs.
        let BackboneOrigin { backbone: name, weights_dir, precision, .. } = origin;
        let precision = precision.unwrap_or_default();
        let options = OpenOptions { weights_dir: weights_dir.clone(), precision, ..OpenOptions::default() };
        let own = Arc::new(Backbone::open(name, &options)?);
        // What tasks are bound to, which reads all weights once.
        own.identity()?;
        let open = Mutex::new(BTreeMap::from([(own.vit.image_size(), own.clone())]));
        Ok(Self { asked: name.clone(), options, own, open })
    }

    /// At its own size.
    pub(crate) fn own(&self) -> &Arc<Backbone> {
        &self.own
    }

    /// For images of `side` pixels.
    ///
    /// # Errors
    /// The size does not fit the backbone, or there are too many sizes already.
    pub(crate) fn at(&self, side: usize) -> Result<Arc<Backbone>> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(backbone) = open.get(&side) {
            return Ok(backbone.clone());
        }
        if open.len() == MOST_SIZES {
            let sizes: Vec<String> = open.keys().map(usize::to_string).collect();
            let message = format!("{side} pixels, where tasks of {} are served already", sizes.join(", "));
            return Err(Error::invalid("image size", message));
        }
        let options = OpenOptions { image_size: Some(side), ..self.options.clone() };
        let backbone = Arc::new(Backbone::open(&self.asked, &options)?);
        open.insert(side, backbone.clone());
        Ok(backbone)
    }
}
