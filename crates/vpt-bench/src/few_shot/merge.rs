//! Writes what a folder holds: everything that can be told from the files of its jobs, and nothing else. So it can be called
//! at any time, by any process, and twice with the same outcome.

use std::{fs::File, path::Path};

use serde_json::{Value, json};

use super::{
    curves,
    grid::GridFile,
    html,
    job::{failures, results},
    summary::{Failure, Summary, main_metric},
    tables,
};
use vpt_base::{Error, Result, files::write_atomic};
use vpt_model::metrics::Scores;

/// Locked while results are written, so that they are those of the last process that looked.
const LOCK: &str = ".merge.lock";

/// Reads every job of the folder `out` and writes `results.json`, `results.csv`, `table.md`, `table.tex`, `curves.svg` and
/// `report.html`.
///
/// # Errors
/// The folder holds no grid, or a file in it cannot be read or written.
pub fn merge(out: &Path) -> Result<Summary> {
    let grid = GridFile::load(out)?;
    let lock = out.join(LOCK);
    let file = File::create(&lock).map_err(Error::io(&lock))?;
    match file.lock() {
        Ok(()) => {}
        // A file system without locks is no reason to have no results.
        Err(error) if error.kind() == std::io::ErrorKind::Unsupported => {}
        Err(error) => return Err(Error::io(&lock)(error)),
    }
    let failures = failures(out)?.into_iter().map(|(job, error)| Failure { job, error }).collect();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let summary = Summary::new(grid, results(out)?, failures, threads)?;
    let write = |name: &str, text: String| write_atomic(&out.join(name), text.as_bytes());
    let mut json = serde_json::to_string_pretty(&to_json(&summary)).map_err(|e| Error::file(out, e.to_string()))?;
    json.push('\n');
    write("results.json", json)?;
    write("results.csv", tables::csv(&summary)?)?;
    write("table.md", tables::markdown(&summary))?;
    write("table.tex", tables::latex(&summary))?;
    write("curves.svg", curves::standalone(&summary))?;
    write("report.html", html::report(&summary))?;
    Ok(summary)
}

/// The content of `results.json`.
pub fn to_json(summary: &Summary) -> Value {
    let Summary { grid, jobs, cells, comparisons, failures } = summary;
    let val_main = format!("val_{}", main_metric(grid.task()));
    let job = |job: &super::JobResult| {
        let parts: Vec<Value> = job
            .parts
            .iter()
            .map(|part| {
                let mut fields = match serde_json::to_value(&part.metrics) {
                    Ok(Value::Object(fields)) => fields,
                    _ => serde_json::Map::new(),
                };
                if let Some(metrics) = part.metrics.classify() {
                    fields.insert("acc5".to_owned(), json!(metrics.acc5));
                }
                fields.insert("part".to_owned(), json!(part.name));
                fields.insert("images".to_owned(), json!(part.images));
                if let Some(ece) = &part.ece {
                    fields.insert("ece".to_owned(), json!(ece.before));
                    fields.insert("ece_with_temperature".to_owned(), json!(ece.after));
                }
                Value::Object(fields)
            })
            .collect();
        json!({
            "dataset": job.dataset, "method": job.method, "shots": job.shots, "seed": job.seed, "parts": parts,
            (val_main.clone()): job.val.as_ref().map(Scores::main), "best_epoch": job.best_epoch,
            "temperature": job.temperature, "train_images": job.train_images, "image_passes": job.image_passes,
            "trainable_params": job.trainable_params, "wall_s": job.wall_s, "peak_rss_bytes": job.peak_rss_bytes,
            "energy": job.energy,
            "prompts": job.prompts, "settings": job.identity, "learned": job.learned, "probe": job.probe, "vpt": job.vpt,
        })
    };
    json!({
        "grid": grid,
        "protocol": tables::protocol(grid),
        "means": cells,
        "differences": comparisons,
        "failures": failures,
        "jobs": jobs.iter().map(job).collect::<Vec<_>>(),
    })
}
