//! The outputs of a shard while they are made: rows go to disk as they come, so memory does not grow with the shard's length.

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use half::f16;
use serde_json::{Map, Value, json};

use crate::layout::{PredictionFiles, RowType, ShardFiles, ShardLayout, ShardOutput};
use crate::metadata::{CellKind, object, write_records, write_table};
use vpt_base::{Error, Message, Result};
use vpt_data::ShardSample;
use vpt_train::infer::npy::npy_header;

/// Where rows or lines are put.
const MAIN: &str = "main";
/// Where names are put.
const NAMES: &str = "names";

/// What lines say of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LineKind {
    /// The class that it is, and the next ones.
    OneClass,
    /// All classes that are in it.
    SeveralClasses,
    /// Boxes of objects, and the size of the image in pixels.
    Boxes,
}

impl LineKind {
    /// The columns of a table of them.
    fn columns(self) -> &'static [(&'static str, CellKind)] {
        use CellKind::{Integer, Number, Text};
        match self {
            Self::OneClass => &[("key", Text), ("label", Text), ("probability", Number), ("top5", Text)],
            Self::SeveralClasses => &[("key", Text), ("labels", Text)],
            Self::Boxes => &[("key", Text), ("width", Integer), ("height", Integer), ("boxes", Text)],
        }
    }
}

/// Files that were made, and where they belong below the folder of outputs.
pub(crate) type MadeFiles = Vec<(PathBuf, PathBuf)>;

/// Takes the rows or lines of a shard in their order.
#[derive(Debug)]
pub(crate) struct ShardWriter {
    work: PathBuf,
    output: ShardOutput,
    width: usize,
    lines: LineKind,
    path: PathBuf,
    file: BufWriter<File>,
    /// Bytes before the rows.
    head: usize,
    rows: usize,
}

impl ShardWriter {
    /// Begins in the folder `work`; rows have `width` values, or lines say what `lines` tells.
    ///
    /// # Errors
    /// Nothing can be written there.
    pub(crate) fn begin(work: &Path, output: ShardOutput, width: usize, lines: LineKind) -> Result<Self> {
        let path = work.join(MAIN);
        let mut file = BufWriter::new(File::create(&path).map_err(Error::io(&path))?);
        let head = npy_head(output, 0, width);
        // The number of rows is not known yet.
        file.write_all(&head).map_err(Error::io(&path))?;
        Ok(Self { work: work.to_path_buf(), output, width, lines, path, file, head: head.len(), rows: 0 })
    }

    /// Adds rows `[B, width]`.
    ///
    /// # Errors
    /// They cannot be written, or hold what the type of the rows does not.
    pub(crate) fn rows(&mut self, rows: &[f32]) -> Result<()> {
        let is_f16 = matches!(self.output, ShardOutput::Embeddings { dtype: RowType::F16, .. });
        let write = |file: &mut BufWriter<File>, bytes: &[u8]| file.write_all(bytes).map_err(Error::io(&self.path));
        for &value in rows {
            if is_f16 {
                let short = f16::from_f32(value);
                if value.is_finite() && !short.is_finite() {
                    let message =
                        Message::from(format!("{value} is too large for f16; use f32, or ")).field("normalize");
                    return Err(Error::setting("dtype", message));
                }
                write(&mut self.file, &short.to_le_bytes())?;
            } else {
                write(&mut self.file, &value.to_le_bytes())?;
            }
        }
        self.rows += rows.len() / self.width.max(1);
        Ok(())
    }

    /// Adds a line.
    ///
    /// # Errors
    /// It cannot be written.
    pub(crate) fn line(&mut self, line: &impl serde::Serialize) -> Result<()> {
        let text = serde_json::to_string(line).map_err(|error| Error::file(&self.path, error.to_string()))?;
        writeln!(self.file, "{text}").map_err(Error::io(&self.path))?;
        self.rows += 1;
        Ok(())
    }

    /// Completes the files of a shard whose rows are of `samples`, and says what was left out of them.
    ///
    /// # Errors
    /// They cannot be written.
    pub(crate) fn finish(self, samples: &[ShardSample], files: &ShardFiles) -> Result<(MadeFiles, Option<String>)> {
        let Self { work, output, width, lines, path, file, head, rows } = self;
        let done = |path: &Path| Error::io(path.to_path_buf());
        let mut main = file.into_inner().map_err(|error| done(&path)(error.into_error()))?;
        let mut made = path.clone();
        match output {
            ShardOutput::Embeddings { layout: ShardLayout::Safetensors, dtype, .. } => {
                main.sync_all().map_err(done(&path))?;
                made = work.join("tensors");
                write_tensors(&path, &made, dtype, [rows, width], samples).map_err(done(&made))?;
            }
            ShardOutput::Embeddings { .. } => {
                let begin = npy_head(output, rows, width);
                if begin.len() != head {
                    return Err(Error::file(&path, format!("{rows} rows, more than its header has room for")));
                }
                let written = main.seek(SeekFrom::Start(0)).and_then(|_| main.write_all(&begin));
                written.and_then(|()| main.sync_all()).map_err(done(&path))?;
            }
            ShardOutput::Predictions { layout: PredictionFiles::JsonLines } => main.sync_all().map_err(done(&path))?,
            ShardOutput::Predictions { layout: PredictionFiles::Parquet } => {
                made = work.join("table");
                write_records(&made, &read_lines(&path).map_err(done(&path))?, lines.columns())?;
                std::fs::remove_file(&path).map_err(done(&path))?;
            }
        }
        let mut all = vec![(made, files.main.clone())];
        let mut said = None;
        if let Some(to) = &files.names {
            let names = work.join(NAMES);
            if to.extension().is_some_and(|extension| extension == "parquet") {
                said = write_table(&names, samples)?;
            } else {
                write_lines(&names, samples).map_err(done(&names))?;
            }
            all.push((names, to.clone()));
        }
        Ok((all, said))
    }
}

/// What stands before `rows` rows, where they are an array of `NumPy`.
fn npy_head(output: ShardOutput, rows: usize, width: usize) -> Vec<u8> {
    match output {
        ShardOutput::Embeddings { layout: ShardLayout::ClipRetrieval | ShardLayout::Npy, dtype, .. } => {
            npy_header(if dtype == RowType::F16 { "<f2" } else { "<f4" }, &[rows, width])
        }
        _ => Vec::new(),
    }
}

/// The lines of JSON in a file.
fn read_lines(path: &Path) -> io::Result<Vec<Map<String, Value>>> {
    BufReader::new(File::open(path)?).lines().map(|line| Ok(serde_json::from_str(&line?)?)).collect()
}

fn write_lines(path: &Path, samples: &[ShardSample]) -> io::Result<()> {
    let mut file = BufWriter::new(File::create(path)?);
    for sample in samples {
        serde_json::to_writer(&mut file, &object(sample))?;
        file.write_all(b"\n")?;
    }
    file.into_inner()?.sync_all()
}

/// Writes the values in the file `rows` as the tensor `image_embeds`, with the names of the images as a JSON list in the metadata under
/// `images`, as `vpt embed` has them.
fn write_tensors(
    rows: &Path,
    path: &Path,
    dtype: RowType,
    shape: [usize; 2],
    samples: &[ShardSample],
) -> io::Result<()> {
    let keys: Vec<&str> = samples.iter().map(|sample| sample.key.as_str()).collect();
    let (name, size) = if dtype == RowType::F16 { ("F16", 2) } else { ("F32", 4) };
    let header = json!({
        "__metadata__": {"images": serde_json::to_string(&keys)?},
        "image_embeds": {"dtype": name, "shape": shape, "data_offsets": [0, shape[0] * shape[1] * size]},
    });
    let mut header = serde_json::to_vec(&header)?;
    // So that values begin at a multiple of eight bytes.
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = BufWriter::new(File::create(path)?);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(&header)?;
    io::copy(&mut BufReader::new(File::open(rows)?), &mut file)?;
    file.into_inner()?.sync_all()?;
    std::fs::remove_file(rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Map;
    use vpt_data::ImageSource;
    use vpt_train::infer::npy::{NpyArray, NpyValues};

    fn samples(count: usize) -> Vec<ShardSample> {
        let image = ImageSource::File("x".into());
        let sample = |i| ShardSample { key: format!("k{i}"), image: image.clone(), caption: None, facts: Map::new() };
        (0..count).map(sample).collect()
    }

    fn written(output: ShardOutput, rows: &[&[f32]]) -> (Vec<Vec<u8>>, Vec<PathBuf>) {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = ShardWriter::begin(dir.path(), output, 2, LineKind::OneClass).unwrap();
        for rows in rows {
            writer.rows(rows).unwrap();
        }
        let count = rows.iter().map(|rows| rows.len() / 2).sum();
        let (made, said) = writer.finish(&samples(count), &output.files(3, 2)).unwrap();
        assert_eq!(said, None);
        made.into_iter().map(|(from, to)| (std::fs::read(from).unwrap(), to)).unzip()
    }

    fn embeddings(layout: ShardLayout, dtype: RowType) -> ShardOutput {
        ShardOutput::Embeddings { layout, dtype, normalized: false }
    }

    #[test]
    fn rows_are_arrays_of_numpy() {
        let (bytes, names) = written(embeddings(ShardLayout::Npy, RowType::F32), &[&[1., 2.], &[3., 4., 5., 6.]]);
        let array = NpyArray::from_bytes(&bytes[0]).unwrap();
        assert_eq!((array.shape, array.values), (vec![3, 2], NpyValues::F32(vec![1., 2., 3., 4., 5., 6.])));
        assert_eq!(bytes[1], b"{\"key\":\"k0\"}\n{\"key\":\"k1\"}\n{\"key\":\"k2\"}\n");
        assert_eq!(names, [PathBuf::from("03.npy"), PathBuf::from("03.jsonl")]);
        let (bytes, names) = written(embeddings(ShardLayout::ClipRetrieval, RowType::F16), &[&[1., -0.5]]);
        assert_eq!(bytes[0][128..], [0, 0x3c, 0, 0xb8]);
        assert!(String::from_utf8_lossy(&bytes[0][..128]).contains("'<f2', 'fortran_order': False, 'shape': (1, 2)"));
        assert_eq!(names[1], Path::new("metadata/metadata_03.parquet"));
        let (bytes, _) = written(embeddings(ShardLayout::Npy, RowType::F32), &[]);
        assert_eq!(NpyArray::from_bytes(&bytes[0]).unwrap().shape, [0, 2]);
    }

    #[test]
    fn rows_are_a_tensor_with_names() {
        let (bytes, names) = written(embeddings(ShardLayout::Safetensors, RowType::F32), &[&[1., 2., 3., 4.]]);
        assert_eq!(names[0], Path::new("03.safetensors"));
        let length = u64::from_le_bytes(bytes[0][..8].try_into().unwrap()) as usize;
        let header: serde_json::Value = serde_json::from_slice(&bytes[0][8..8 + length]).unwrap();
        assert_eq!(header["__metadata__"]["images"], r#"["k0","k1"]"#);
        assert_eq!((length % 8, bytes[0].len()), (0, 8 + length + 16));
    }

    #[test]
    fn predictions_are_a_table_of_the_same_columns_whatever_there_is() {
        use parquet::file::reader::{FileReader, SerializedFileReader};
        let dir = tempfile::tempdir().unwrap();
        let output = ShardOutput::Predictions { layout: PredictionFiles::Parquet };
        let table = |kind: LineKind, lines: &[Value]| {
            let mut writer = ShardWriter::begin(dir.path(), output, 0, kind).unwrap();
            for line in lines {
                writer.line(line).unwrap();
            }
            let (made, _) = writer.finish(&samples(lines.len()), &output.files(3, 2)).unwrap();
            assert_eq!((made.len(), &made[0].1), (1, &PathBuf::from("03.parquet")));
            let reader = SerializedFileReader::new(File::open(&made[0].0).unwrap()).unwrap();
            let schema = reader.metadata().file_metadata().schema().get_fields().iter();
            let columns: Vec<String> = schema.map(|f| format!("{} {}", f.name(), f.get_physical_type())).collect();
            let rows: Vec<String> = reader.get_row_iter(None).unwrap().map(|row| row.unwrap().to_string()).collect();
            (columns, rows)
        };
        let lines = [
            json!({"key": "a", "label": "cat", "probability": 1, "top5": [{"label": "cat", "probability": 1}]}),
            json!({"key": "b", "label": "3", "probability": 0.5, "top5": []}),
        ];
        let (columns, rows) = table(LineKind::OneClass, &lines);
        assert_eq!(columns, ["key BYTE_ARRAY", "label BYTE_ARRAY", "probability DOUBLE", "top5 BYTE_ARRAY"]);
        assert_eq!(
            rows,
            [
                r#"{key: "a", label: "cat", probability: 1.0, top5: "[{"label":"cat","probability":1}]"}"#,
                r#"{key: "b", label: "3", probability: 0.5, top5: "[]"}"#,
            ]
        );
        assert_eq!(table(LineKind::OneClass, &[]), (columns, Vec::new()));
        let (columns, rows) = table(LineKind::SeveralClasses, &[json!({"key": "a", "labels": []})]);
        assert_eq!((columns.len(), &rows[0][..]), (2, r#"{key: "a", labels: "[]"}"#));
        let (columns, rows) = table(LineKind::Boxes, &[json!({"key": "a", "width": 8, "height": 6, "boxes": []})]);
        assert_eq!((&columns[1][..], &rows[0][..]), ("width INT64", r#"{key: "a", width: 8, height: 6, boxes: "[]"}"#));
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer =
            ShardWriter::begin(dir.path(), embeddings(ShardLayout::Npy, RowType::F16), 2, LineKind::OneClass).unwrap();
        let message = writer.rows(&[1e6, 0.]).unwrap_err().to_string();
        assert!(message.starts_with("dtype: 1000000 is too large for f16"), "{message}");
    }
}
