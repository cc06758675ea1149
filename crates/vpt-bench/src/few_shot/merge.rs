//! Writes what a folder holds: everything that can be told from the files of its jobs, and nothing else. So it can be called
//! at any time, by any process, and twice with the same outcome.

use std::{fs::File, path::Path};

use serde_json::{Value, json};

use super::{
    curves,
    grid::GridFile,
    html,
    job::{failures, results},
    summary::{Failure, Summary},
    tables,
};
use vpt_base::{Error, Result, files::write_atomic};

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
    let job = |job: &super::JobResult| {
        let parts: Vec<Value> = job
            .parts
            .iter()
            .map(|part| {
                json!({
                    "part": part.name, "images": part.images, "acc1": part.metrics.acc1, "acc5": part.metrics.acc5,
                    "mean_per_class_recall": part.metrics.mean_per_class_recall, "loss": part.metrics.loss,
                    "ece": part.ece.before, "ece_with_temperature": part.ece.after,
                })
            })
            .collect();
        json!({
            "dataset": job.dataset, "method": job.method, "shots": job.shots, "seed": job.seed, "parts": parts,
            "val_acc1": job.val.as_ref().map(|val| val.acc1), "best_epoch": job.best_epoch,
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
