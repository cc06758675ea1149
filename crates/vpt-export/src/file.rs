//! A model file: the graph with its metadata, written beside and renamed, weights in a file of their own where one file cannot hold
//! them.

use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use crate::graph::{External, Graph};
use crate::metadata::entry;
use crate::proto::ProtoMessage;
use vpt_base::{Error, Result, files::NewFile};

/// Most bytes of a protocol buffer that every reader takes, less what metadata may still add.
const MOST: u64 = (1 << 31) - 1 - (64 << 20);
/// Constants of fewer bytes stay in the file, where shapes are inferred from them.
const SMALL: u64 = 1 << 10;
/// What offsets of constants in a file beside are multiples of, so that they can be mapped.
const PAGE: u64 = 4096;

/// A model that is written, and has not its name yet. Dropped, it leaves nothing behind.
pub(crate) struct Written {
    path: PathBuf,
    file: NewFile,
    beside: Option<(PathBuf, NewFile)>,
}

/// Writes `graph` with its metadata, to become `path`; weights go into a file beside if `external`, or where they must.
///
/// # Errors
/// The folder cannot be written, the disk is full, or a weight cannot be read.
pub(crate) fn write(graph: &Graph, entries: &[(&str, String)], path: &Path, external: bool) -> Result<Written> {
    let name = path.file_name().and_then(|name| name.to_str());
    let Some(name) = name else { return Err(Error::file(path, "is no name of a file in UTF-8")) };
    let total: u64 = graph.constants.iter().map(crate::graph::Constant::len).sum();
    let external = external || total > MOST;
    let (mut places, mut end) = (Vec::new(), 0_u64);
    for constant in &graph.constants {
        let len = constant.len();
        if external && len >= SMALL {
            let offset = end.next_multiple_of(PAGE);
            places.push(Some((offset, len)));
            end = offset + len;
        } else {
            places.push(None);
        }
    }
    let location = format!("{name}.data");
    let external = external.then_some(External { location: location.clone(), places });
    let beside = external.as_ref().map(|external| {
        let to = path.with_file_name(&location);
        let file = NewFile::beside(&to)?;
        fill(&to, file, |out| {
            let mut at = 0;
            for (constant, place) in graph.constants.iter().zip(&external.places) {
                let Some((offset, len)) = place else { continue };
                out.write_all(&vec![0; (offset - at) as usize])?;
                constant.write(out)?;
                at = offset + len;
            }
            Ok(())
        })
        .map(|file| (to, file))
    });
    let beside = beside.transpose()?;
    let model = ProtoMessage::default()
        .int(1, graph.opset.ir_version())
        .bytes(2, "vpt")
        .bytes(3, env!("CARGO_PKG_VERSION"))
        .message(7, graph.proto("vpt", external.as_ref()))
        .message(8, ProtoMessage::default().bytes(1, "").int(2, graph.opset.version()))
        .messages(14, entries.iter().map(|(key, value)| entry(key, value)));
    if model.len() > MOST + (32 << 20) {
        return Err(Error::file(path, "the graph without its weights is too large for one file"));
    }
    let file = fill(path, NewFile::beside(path)?, |out| {
        model.write(out, &mut |source, out| graph.constants[source].write(out))
    })?;
    Ok(Written { path: path.to_path_buf(), file, beside })
}

fn fill(path: &Path, mut file: NewFile, f: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<NewFile> {
    let mut out = BufWriter::with_capacity(1 << 18, file.file_mut());
    f(&mut out).and_then(|()| out.flush()).map_err(|error| ours(error, path))?;
    drop(out);
    Ok(file)
}

/// An error of ours that came through a writer, or the system's.
fn ours(error: io::Error, path: &Path) -> Error {
    match error.downcast::<Error>() {
        Ok(own) => own,
        Err(error) => Error::io(path)(error),
    }
}

impl Written {
    /// Where it lies until it has its name, and the file beside.
    pub(crate) fn paths(&self) -> (&Path, Option<&Path>) {
        (self.file.path(), self.beside.as_ref().map(|(_, file)| file.path()))
    }

    /// What the file beside will be called.
    pub(crate) fn beside(&self) -> Option<&Path> {
        self.beside.as_ref().map(|(to, _)| &**to)
    }

    /// Adds an entry to the metadata.
    ///
    /// # Errors
    /// The disk is full.
    pub(crate) fn add_entry(&mut self, key: &str, value: &str) -> Result<()> {
        let message = ProtoMessage::default().message(14, entry(key, value));
        let file = self.file.file_mut();
        file.seek(SeekFrom::End(0))
            .and_then(|_| message.write(file, &mut |_, _| Ok(())))
            .map_err(|error| Error::io(&self.path)(error))
    }

    /// Gives it its name; a file that had it is replaced. Bytes in all.
    ///
    /// # Errors
    /// The system's word.
    pub(crate) fn keep(self) -> Result<u64> {
        let Self { path, file, beside } = self;
        // The graph last: it is never there without its weights.
        let of_beside = beside.map_or(Ok(0), |(to, file)| file.rename(&to))?;
        Ok(of_beside + file.rename(&path)?)
    }

    /// Keeps it under another name, for someone to look at. That name.
    ///
    /// # Errors
    /// The system's word.
    pub(crate) fn put_aside(self) -> Result<PathBuf> {
        let aside = |path: &Path| {
            let mut name = path.as_os_str().to_owned();
            name.push(".rejected");
            PathBuf::from(name)
        };
        let Self { path, file, beside } = self;
        beside.map_or(Ok(0), |(to, file)| file.rename(&aside(&to)))?;
        let path = aside(&path);
        file.rename(&path)?;
        Ok(path)
    }
}
