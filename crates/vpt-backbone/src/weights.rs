//! The tensors of a checkpoint: safetensors, in one file or several, read one tensor at a time.
//!
//! A checkpoint is larger than everything else in the process, so no file is ever held or mapped as a whole: the headers
//! are read and checked when the folder is opened, and a tensor's bytes are read from their place, converted to f32 on
//! the way, when it is asked for. Resident memory is the tensors that were asked for and a buffer.

mod content;
mod file;
pub mod pickle;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use half::{bf16, f16};
use serde::Deserialize;

use self::file::{FileSource, TensorEntry, WeightFile};
use self::pickle::{PICKLED, PICKLED_INDEX};
use super::names::native::{self, NativeSlot};
use super::names::{Anchor, FAMILIES, StoredTensor, dinov3};
use super::tensor_slot::TensorSlot;
use super::{names, open_clip};
use vpt_base::files::read_limited;
use vpt_base::{Error, Result};

/// The one file of a checkpoint that is not sharded.
pub const SINGLE: &str = "model.safetensors";
/// The list of which tensor is in which file, for a checkpoint that is sharded.
pub const INDEX: &str = "model.safetensors.index.json";

const MAX_INDEX_BYTES: u64 = 100_000_000;
/// Bytes converted at a time.
const CHUNK: usize = 1 << 18;
/// Values that may lie in a file from the first to the last value of a tensor, for each of its own.
const MAX_SCATTER: usize = 16;

/// The weights in PyTorch's form in the folder `dir`, where it has none of safetensors: `pytorch_model.bin`, or the only `.pth`.
pub(crate) fn pickled_timm(dir: &Path) -> Option<PathBuf> {
    if dir.join(SINGLE).is_file() || dir.join(INDEX).is_file() {
        return None;
    }
    let known = dir.join(pickle::PICKLED);
    if known.is_file() {
        return Some(known);
    }
    let files = std::fs::read_dir(dir).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    let mut files = files.filter(|path| path.is_file() && path.extension().is_some_and(|end| end == "pth"));
    files.next().filter(|_| files.next().is_none())
}

/// What `slot` is of `tensor`, if that can be shared so.
fn slot_of(slot: TensorSlot, tensor: &TensorEntry) -> Option<TensorEntry> {
    match slot {
        TensorSlot::Whole => Some(tensor.clone()),
        TensorSlot::Third(number) => tensor.share(number, 3),
        TensorSlot::Half(number) => tensor.share(number, 2),
        TensorSlot::Transposed => tensor.transpose(),
        TensorSlot::OnlyOne => tensor.only_one(),
        TensorSlot::PatchRows if tensor.shape.len() == 4 => Some(tensor.clone()),
        TensorSlot::PatchRows => tensor.patch_rows(),
    }
}

/// An open checkpoint.
///
/// Tensors are named as in the plain model of their family (`ViTModel`, `Dinov2Model`, `CLIPModel`), whatever class the
/// checkpoint was saved from: what stands before those names (`vit.` in a `ViTForImageClassification`) is found when it
/// is opened.
#[derive(Debug)]
pub struct Weights {
    /// Where the checkpoint is, for errors that no single file is to blame for.
    origin: PathBuf,
    /// In the order of their names.
    files: Vec<WeightFile>,
    tensors: BTreeMap<String, TensorEntry>,
    /// Prefix of the plain model's names.
    prefix: String,
    /// What the names of an image tower begin with that the file holds alone and without it, as CLIP's without `vision_model.`.
    bare_image_tower: Option<&'static str>,
    /// Names of the plain model that were asked for.
    asked: Mutex<BTreeSet<String>>,
}

impl Weights {
    /// Opens the checkpoint in the folder `dir`: `model.safetensors`, or the files its index names, else the same in PyTorch's form,
    /// which is read where it lies.
    ///
    /// # Errors
    /// Neither is there, a shard is missing or lacks a tensor the index promises, a header is longer than its file or no
    /// header at all, or tensors overlap, leave gaps, end beyond the file or disagree with their shapes.
    pub fn open(dir: &Path) -> Result<Self> {
        let (pickled, index) = (dir.join(PICKLED), dir.join(PICKLED_INDEX));
        let (files, tensors) = if [SINGLE, INDEX].iter().any(|name| dir.join(name).is_file()) {
            Self::safetensors(dir)?
        } else if pickled.is_file() {
            let file = WeightFile::open(&pickled)?;
            let tensors = file.tensors(0)?;
            (vec![file], tensors)
        } else if index.is_file() {
            Self::shards(dir, &index)?
        } else {
            Self::safetensors(dir)?
        };
        Self::new(dir, files, tensors)
    }

    /// The files of safetensors in `dir` and the tensors in them.
    fn safetensors(dir: &Path) -> Result<(Vec<WeightFile>, BTreeMap<String, TensorEntry>)> {
        let (single, index) = (dir.join(SINGLE), dir.join(INDEX));
        if single.is_file() {
            let file = WeightFile::open(&single)?;
            let tensors = file.header(0)?;
            return Ok((vec![file], tensors));
        }
        if index.is_file() {
            return Self::shards(dir, &index);
        }
        Err(Error::weights(dir, format!("holds neither {SINGLE} nor {INDEX} nor {PICKLED}")))
    }

    /// Opens the checkpoint of open_clip in the folder `dir`, safetensors or PyTorch's own form, whose tensors then have the
    /// names of transformers.
    ///
    /// # Errors
    /// As [`Weights::open`], or the file in PyTorch's form is none that can be read where it is.
    pub(crate) fn open_open_clip(dir: &Path) -> Result<Self> {
        let Some(name) = open_clip::weight_file(dir) else {
            return Err(Error::weights(dir, format!("holds no {}", open_clip::WEIGHTS[0])));
        };
        Self::of_open_clip(&dir.join(name), dir)
    }

    /// As [`Weights::open_open_clip`], of the one file `path`; `origin` stands for it in errors.
    ///
    /// # Errors
    /// As [`Weights::open_open_clip`].
    pub(crate) fn of_open_clip(path: &Path, origin: &Path) -> Result<Self> {
        let (file, tensors) = Self::one_file(path)?;
        let files = vec![file];
        let renamed = renamed(&files, tensors, open_clip::slots)?;
        Self::new(origin, files, renamed)
    }

    /// Opens the checkpoint of timm in the folder `dir`, whose tensors then have the names of [`crate::names::timm`].
    ///
    /// # Errors
    /// As [`Weights::open_open_clip`].
    pub(crate) fn open_timm(dir: &Path) -> Result<Self> {
        match pickled_timm(dir) {
            Some(path) => Self::of_timm(&path, dir),
            None => Self::safetensors(dir).and_then(|(files, tensors)| Self::in_names_of_timm(dir, files, tensors)),
        }
    }

    /// As [`Weights::open_timm`], of the one file `path`; `origin` stands for it in errors.
    ///
    /// # Errors
    /// As [`Weights::open_open_clip`].
    pub(crate) fn of_timm(path: &Path, origin: &Path) -> Result<Self> {
        let (file, tensors) = Self::one_file(path)?;
        Self::in_names_of_timm(origin, vec![file], tensors)
    }

    fn in_names_of_timm(origin: &Path, files: Vec<WeightFile>, tensors: BTreeMap<String, TensorEntry>) -> Result<Self> {
        let extent = |ending: &str, axis: usize| {
            let found = tensors.iter().find(|(name, _)| name.ends_with(ending));
            found.and_then(|(_, tensor)| tensor.shape.get(axis).copied())
        };
        let (into, out) = (extent("blocks.0.mlp.fc1.weight", 0), extent("blocks.0.mlp.fc2.weight", 1));
        let packed = into.zip(out).is_some_and(|(into, out)| into == out.saturating_mul(2));
        let renamed = renamed(&files, tensors, |name| names::timm::slots(name, packed))?;
        Self::new(origin, files, renamed)
    }

    /// A file of safetensors or in PyTorch's own form, and the tensors in it.
    fn one_file(path: &Path) -> Result<(WeightFile, BTreeMap<String, TensorEntry>)> {
        let file = WeightFile::open(path)?;
        let safetensors = path.extension().is_some_and(|extension| extension == "safetensors");
        let tensors = if safetensors { file.header(0)? } else { pickle::entries(&file.path, 0)? };
        Ok((file, tensors))
    }

    /// A checkpoint in memory, the content of a `model.safetensors`; `name` stands for it in errors.
    ///
    /// # Errors
    /// As [`Weights::open`].
    pub fn from_static(bytes: &'static [u8], name: &Path) -> Result<Self> {
        let file = WeightFile { path: name.to_path_buf(), source: FileSource::Memory(bytes), len: bytes.len() as u64 };
        let tensors = file.header(0)?;
        Self::new(name, vec![file], tensors)
    }

    fn shards(dir: &Path, index: &Path) -> Result<(Vec<WeightFile>, BTreeMap<String, TensorEntry>)> {
        let weight_map = parse_index(&read_limited(index, MAX_INDEX_BYTES)?, index)?;
        let names: BTreeSet<&String> = weight_map.values().collect();
        let mut files = Vec::new();
        let mut headers = BTreeMap::new();
        for name in names {
            let path = dir.join(name);
            if !path.is_file() {
                return Err(Error::weights(index, format!("names {name}, which is not in the folder")));
            }
            let file = WeightFile::open(&path)?;
            headers.insert(name, file.tensors(files.len())?);
            files.push(file);
        }
        let mut tensors = BTreeMap::new();
        for (tensor, name) in &weight_map {
            let Some(entry) = headers.get_mut(name).and_then(|h| h.remove(tensor)) else {
                return Err(Error::weights(
                    index,
                    format!("says that `{}` is in {name}, which has no such tensor", tensor.escape_debug()),
                ));
            };
            tensors.insert(tensor.clone(), entry);
        }
        Ok((files, tensors))
    }

    fn new(origin: &Path, files: Vec<WeightFile>, tensors: BTreeMap<String, TensorEntry>) -> Result<Self> {
        let tensors = share_out(&files, with_older_names(tensors, origin)?)?;
        let mut found = BTreeMap::new();
        for name in tensors.keys() {
            for Anchor { tower, tensor } in FAMILIES.map(|family| family.anchor) {
                let Some(before) = name.strip_suffix(tensor).filter(|b| b.is_empty() || b.ends_with('.')) else {
                    continue;
                };
                match before.strip_suffix(tower) {
                    Some(before) => found.insert((before, None), tensor),
                    None => found.insert((before, Some(tower)), tensor),
                };
            }
        }
        let (prefix, bare_image_tower) = match found.iter().collect::<Vec<_>>()[..] {
            [] => (String::new(), None),
            [(&(prefix, bare), _)] => (prefix.to_owned(), bare),
            [(&(one, _), first), (&(two, _), second), ..] => {
                let message = format!("holds several models, `{one}{first}` and `{two}{second}`");
                return Err(Error::weights(origin, message));
            }
        };
        let nested = format!("{prefix}{}", dinov3::NESTED_BLOCKS);
        let plain = |name: String| match name.strip_prefix(&nested) {
            Some(rest) => format!("{prefix}{}.{rest}", dinov3::FAMILY.vision.blocks.prefix),
            None => name,
        };
        let tensors = tensors.into_iter().map(|(name, tensor)| (plain(name), tensor)).collect();
        Ok(Self { origin: origin.to_path_buf(), files, tensors, prefix, bare_image_tower, asked: Mutex::default() })
    }

    /// Where the checkpoint is, for errors that no single file is to blame for.
    pub(crate) fn origin(&self) -> &Path {
        &self.origin
    }

    /// The tensor `name` beside the plain model, as the classifier of a `ViTForImageClassification` stands beside its `vit.`.
    fn find_beside(&self, name: &str) -> Option<&TensorEntry> {
        let parent = self.prefix.trim_end_matches('.').rsplit_once('.').map(|(parent, _)| parent);
        let beside = match parent {
            Some(parent) => self.tensors.get(&format!("{parent}.{name}")),
            None => self.tensors.get(name),
        };
        // timm's is a layer of the model itself.
        beside.or_else(|| self.find(name))
    }

    /// The shape of the tensor of this name beside the plain model, if there is one.
    pub fn shape_beside(&self, name: &str) -> Option<&[usize]> {
        self.find_beside(name).map(|t| t.shape.as_slice())
    }

    /// [`Weights::get`] of a tensor beside the plain model.
    ///
    /// # Errors
    /// As [`Weights::get`].
    pub fn get_beside(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let tensor = self.find_beside(name);
        let tensor = tensor.ok_or_else(|| Error::weights(&self.origin, format!("has no tensor `{name}`")))?;
        self.check_shape(name, tensor, shape)?;
        let mut out = vec![0.0; tensor.shape.iter().product()];
        self.read(name, tensor, &mut out)?;
        Ok(out)
    }

    fn find(&self, name: &str) -> Option<&TensorEntry> {
        let bare = self.bare_image_tower.and_then(|tower| name.strip_prefix(tower)).unwrap_or(name);
        if self.prefix.is_empty() {
            self.tensors.get(bare)
        } else {
            self.tensors.get(&format!("{}{bare}", self.prefix))
        }
    }

    /// The names of the tensors.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(|name| name.strip_prefix(&self.prefix).unwrap_or(name))
    }

    /// Whether there is a tensor of this name.
    pub fn has(&self, name: &str) -> bool {
        self.find(name).is_some()
    }

    /// The shape of the tensor of this name, if there is one.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.find(name).map(|t| t.shape.as_slice())
    }

    /// Checks that [`Weights::get`] can read the tensor `name`, without reading it.
    ///
    /// # Errors
    /// As [`Weights::get`], unless its file cannot be read.
    pub fn check(&self, name: &str, shape: &[usize]) -> Result<()> {
        let tensor = self.checked(name, shape)?;
        match tensor.dtype.as_str() {
            "F64" | "F32" | "F16" | "BF16" => Ok(()),
            _ => Err(self.unreadable(name, tensor)),
        }
    }

    /// Reads the tensor `name` as f32, row-major. `shape` is what the caller has derived from the configuration.
    ///
    /// # Errors
    /// There is no such tensor, it has another shape, its type is not f64, f32, f16 or bf16, it holds NaN or an infinity, or its
    /// file cannot be read.
    pub fn get(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let tensor = self.checked(name, shape)?;
        // The header check has bounded this by the length of the file.
        let mut out = vec![0.0; tensor.shape.iter().product()];
        self.read(name, tensor, &mut out)?;
        Ok(out)
    }

    /// [`Weights::get`] into memory that is there already, as one third of fused query, key and value weights.
    ///
    /// # Errors
    /// As [`Weights::get`], and `out` not as long as the shape says.
    pub fn get_into(&self, name: &str, shape: &[usize], out: &mut [f32]) -> Result<()> {
        let tensor = self.checked(name, shape)?;
        let len: usize = tensor.shape.iter().product();
        if out.len() != len {
            let message = format!("room for {} of the {len} values of tensor `{name}`", out.len());
            return Err(Error::weights(&self.files[tensor.file].path, message));
        }
        self.read(name, tensor, out)
    }

    fn checked(&self, name: &str, shape: &[usize]) -> Result<&TensorEntry> {
        let Some(tensor) = self.find(name) else {
            return Err(Error::weights(&self.origin, format!("has no tensor `{}{name}`", self.prefix)));
        };
        self.check_shape(name, tensor, shape)?;
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned());
        Ok(tensor)
    }

    fn check_shape(&self, name: &str, tensor: &TensorEntry, shape: &[usize]) -> Result<()> {
        if tensor.shape == shape {
            return Ok(());
        }
        let message = format!("tensor `{name}` has shape {:?}, the configuration asks for {shape:?}", tensor.shape);
        Err(Error::weights(&self.files[tensor.file].path, message))
    }

    fn read(&self, name: &str, tensor: &TensorEntry, out: &mut [f32]) -> Result<()> {
        self.read_in_order(name, tensor, out)?;
        if let Some(value) = out.iter().find(|value| !value.is_finite()) {
            let what = if value.is_nan() { "NaN" } else { "an infinity" };
            let message = format!("tensor `{name}` holds {what} as f32: the file is damaged, or its training diverged");
            return Err(Error::weights(&self.files[tensor.file].path, message));
        }
        Ok(())
    }

    /// The values of `tensor`, row-major, whatever they are.
    fn read_in_order(&self, name: &str, tensor: &TensorEntry, out: &mut [f32]) -> Result<()> {
        let behind = tensor.last_rows.as_ref().map_or(0, |last| last.shape.iter().product());
        let (own, behind) = out.split_at_mut(out.len().saturating_sub(behind));
        if let Some(last) = &tensor.last_rows {
            self.read_in_order(name, last, behind)?;
        }
        let Some(strides) = &tensor.strides else { return self.read_stored(name, tensor, own) };
        let tensor = &tensor.first_rows();
        let all = tensor.as_stored();
        let values = all.shape[0];
        if values / MAX_SCATTER > own.len().max(CHUNK) {
            let message =
                format!("the values of tensor `{}` lie too far apart; save it contiguous", name.escape_debug());
            return Err(Error::weights(&self.files[tensor.file].path, message));
        }
        let mut stored = vec![0.; values];
        self.read_stored(name, &all, &mut stored)?;
        let mut out = own.iter_mut();
        pickle::each_place(&tensor.shape, strides, |at| {
            if let Some(value) = out.next() {
                *value = stored[at];
            }
        });
        Ok(())
    }

    /// The values of `tensor` in the order of its file.
    fn read_stored(&self, name: &str, tensor: &TensorEntry, out: &mut [f32]) -> Result<()> {
        let file = &self.files[tensor.file];
        match tensor.dtype.as_str() {
            "F64" => file.read_values(tensor, out, |b: [u8; 8]| f64::from_le_bytes(b) as f32),
            "F32" => file.read_values(tensor, out, f32::from_le_bytes),
            "F16" => file.read_values(tensor, out, |b: [u8; 2]| f16::from_le_bytes(b).to_f32()),
            "BF16" => file.read_values(tensor, out, |b: [u8; 2]| bf16::from_le_bytes(b).to_f32()),
            _ => Err(self.unreadable(name, tensor)),
        }
    }

    fn unreadable(&self, name: &str, tensor: &TensorEntry) -> Error {
        let message = format!("tensor `{name}` is of type {}; supported are F64, F32, F16 and BF16", tensor.dtype);
        Error::weights(&self.files[tensor.file].path, message)
    }

    /// The number of values in floating-point tensors, heads included that are no part of the backbone.
    pub fn parameters(&self) -> u64 {
        let float = self.tensors.values().filter(|t| matches!(t.dtype.as_str(), "F64" | "F32" | "F16" | "BF16"));
        float.map(|t| t.shape.iter().product::<usize>() as u64).sum()
    }

    /// The types the tensors are stored in, as safetensors names them, in alphabetical order.
    pub fn dtypes(&self) -> Vec<String> {
        self.tensors.values().map(|t| t.dtype.clone()).collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// The files the tensors are read from and their lengths in bytes, in the order of their names.
    pub fn files(&self) -> impl Iterator<Item = (&Path, u64)> {
        self.files.iter().map(|f| (f.path.as_path(), f.len))
    }

    /// BLAKE3 over the bytes of the weight files, one after the other in the order of their names, in hexadecimal. Of a
    /// checkpoint that is not sharded this is what `b3sum model.safetensors` prints.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn hash(&self) -> Result<String> {
        let mut hasher = blake3::Hasher::new();
        let mut buffer = vec![0; CHUNK];
        for file in &self.files {
            let mut offset = 0;
            while offset < file.len {
                let n = (file.len - offset).min(CHUNK as u64) as usize;
                file.read_exact_at(&mut buffer[..n], offset)?;
                hasher.update(&buffer[..n]);
                offset += n as u64;
            }
        }
        Ok(hasher.finalize().to_hex().to_string())
    }
}

/// `tensors` of `files` under the names, and in the shares, that `slots` gives for a name.
fn renamed(
    files: &[WeightFile],
    tensors: BTreeMap<String, TensorEntry>,
    slots: impl Fn(&str) -> Vec<(String, TensorSlot)>,
) -> Result<BTreeMap<String, TensorEntry>> {
    let mut renamed = BTreeMap::new();
    for (name, tensor) in tensors {
        for (name, slot) in slots(&name) {
            let part = slot_of(slot, &tensor).ok_or_else(|| unshared(&files[tensor.file], &name, &tensor))?;
            renamed.insert(name, part);
        }
    }
    Ok(renamed)
}

/// The tensors with those in the place of others that they hold, see [`StoredTensor`].
fn share_out(files: &[WeightFile], tensors: BTreeMap<String, TensorEntry>) -> Result<BTreeMap<String, TensorEntry>> {
    renamed(files, tensors, |name| {
        let before = |stored: &StoredTensor| {
            let before = name.strip_suffix(stored.name).filter(|before| before.is_empty() || before.ends_with('.'))?;
            Some(stored.holds.iter().map(|(held, slot)| (format!("{before}{held}"), *slot)).collect())
        };
        let found = FAMILIES.iter().flat_map(|family| family.stored).find_map(before);
        found.unwrap_or_else(|| vec![(name.to_owned(), TensorSlot::Whole)])
    })
}

fn unshared(file: &WeightFile, name: &str, tensor: &TensorEntry) -> Error {
    let message = format!("tensor for `{}` has shape {:?}, which is not shared so", name.escape_debug(), tensor.shape);
    Error::weights(&file.path, message)
}

/// The same tensors, those of names that transformers has in memory by their older ones.
fn with_older_names(tensors: BTreeMap<String, TensorEntry>, origin: &Path) -> Result<BTreeMap<String, TensorEntry>> {
    let found = tensors.keys().map(|name| native::older(name, |other| tensors.contains_key(other))).collect::<Vec<_>>();
    if found.iter().all(Option::is_none) {
        return Ok(tensors);
    }
    let (mut renamed, mut lower) = (BTreeMap::new(), Vec::new());
    for ((name, tensor), older) in tensors.into_iter().zip(found) {
        match older {
            None => drop(renamed.insert(name, tensor)),
            Some((name, NativeSlot::Lower)) => lower.push((name, tensor)),
            Some((name, _)) => drop(renamed.insert(name, tensor)),
        }
    }
    for (name, below) in lower {
        let joined = renamed.remove(&name).and_then(|above: TensorEntry| above.above(below));
        let apart = || Error::weights(origin, format!("the two halves of tensor `{}` do not fit", name.escape_debug()));
        let joined = joined.ok_or_else(apart)?;
        renamed.insert(name, joined);
    }
    Ok(renamed)
}

/// Which tensor is in which file, from the bytes of the index `path`. The files are in the index's folder.
///
/// # Errors
/// It is no index, or names a file with a folder in it, which could be anywhere.
pub(crate) fn parse_index(bytes: &[u8], path: &Path) -> Result<BTreeMap<String, String>> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let Index { weight_map } =
        serde_json::from_slice(bytes).map_err(|e| Error::weights(path, format!("not a safetensors index: {e}")))?;
    let is_file_name = |name: &str| {
        Path::new(name).file_name().is_some_and(|n| n == name) && !name.contains(['\\', ':', '\0']) && name.len() < 256
    };
    match weight_map.values().find(|name| !is_file_name(name)) {
        None => Ok(weight_map),
        Some(name) => {
            let shown: String = name.chars().take(80).collect();
            Err(Error::weights(path, format!("names `{}`, which is not a file name", shown.escape_debug())))
        }
    }
}
