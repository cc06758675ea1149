//! Processes that work on one run at the same time and hear of each other: how many there are, which of them this is, and bytes that go
//! between them ([`Ranks`]).
//!
//! What is made of the bytes is up to whoever sends them. Nothing here adds numbers up: MPI's own sums depend on the algorithm that
//! a library chooses by its version, the length and the number of ranks, so sums are made by the receivers, in an order that they know.

#[cfg(feature = "mpi")]
mod mpi;
#[cfg(any(test, feature = "testing"))]
mod threads;

#[cfg(feature = "mpi")]
pub use self::mpi::MpiRanks;
#[cfg(any(test, feature = "testing"))]
pub use self::threads::ThreadRanks;

use std::{fmt::Debug, sync::Arc};

use vpt_base::{Error, Result};

/// The processes of a run. Every call but [`Self::rank`] and [`Self::size`] is made by all of them, in the same order.
pub trait Ranks: Debug + Send + Sync {
    /// Which of them this is, from 0.
    fn rank(&self) -> usize;

    /// How many there are.
    fn size(&self) -> usize;

    /// What each rank has, in the order of ranks, at every rank.
    ///
    /// # Errors
    /// The ranks cannot be reached.
    fn gather(&self, own: &[u8]) -> Result<Vec<Vec<u8>>>;

    /// Sends `parts[r]` to the rank r, and takes what each has sent to this one, in the order of ranks.
    ///
    /// # Errors
    /// The ranks cannot be reached, or there are not as many parts as ranks.
    fn exchange(&self, parts: &[Vec<u8>]) -> Result<Vec<Vec<u8>>>;

    /// What rank 0 has, at every rank; what the others have is not looked at.
    ///
    /// # Errors
    /// The ranks cannot be reached.
    fn broadcast(&self, bytes: Vec<u8>) -> Result<Vec<u8>> {
        let own = if self.rank() == 0 { &bytes[..] } else { &[] };
        Ok(self.gather(own)?.swap_remove(0))
    }

    /// Ends the processes of all ranks with the exit code `code`, whatever they do: one that waits for another would wait for ever.
    fn abort(&self, code: u8) -> !;
}

/// A process by itself.
#[derive(Debug, Clone, Copy, Default)]
pub struct Alone;

impl Ranks for Alone {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    fn gather(&self, own: &[u8]) -> Result<Vec<Vec<u8>>> {
        Ok(vec![own.to_vec()])
    }

    fn exchange(&self, parts: &[Vec<u8>]) -> Result<Vec<Vec<u8>>> {
        check_parts(parts, 1)?;
        Ok(parts.to_vec())
    }

    fn abort(&self, code: u8) -> ! {
        std::process::exit(code.into())
    }
}

/// Fails unless there is a part for each of `size` ranks.
fn check_parts(parts: &[Vec<u8>], size: usize) -> Result<()> {
    if parts.len() == size {
        return Ok(());
    }
    Err(Error::invalid("ranks", format!("{} parts for {size} ranks", parts.len())))
}

/// The ranks that this process is one of, as the launcher's `variable`s and MPI say; a process that nothing has started as one of several
/// is [`Alone`]. To be called once, on the thread that will make the calls.
///
/// # Errors
/// It was started as one of several, and MPI is not built in, or does not know of the others.
pub fn of_process(variable: &dyn Fn(&str) -> Option<String>) -> Result<Arc<dyn Ranks>> {
    // Without a launcher of MPI's, starting MPI takes time and may fail for want of a daemon.
    #[cfg(feature = "mpi")]
    if is_launched_by_mpi(variable) {
        let ranks = MpiRanks::start()?;
        if ranks.size() > 1 {
            return Ok(Arc::new(ranks));
        }
    }
    refuse_unknown_ranks(variable)?;
    Ok(Arc::new(Alone))
}

/// Whether a launcher that MPI knows (mpirun, or srun with a plugin for it) has started this process.
#[cfg(feature = "mpi")]
fn is_launched_by_mpi(variable: &dyn Fn(&str) -> Option<String>) -> bool {
    ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMI_RANK", "PMIX_RANK"].iter().any(|name| variable(name).is_some())
}

/// Fails if this is one of several processes that MPI would not know of. A batch script has `SLURM_NTASKS` as well, although it is one
/// process; only what srun starts has `SLURM_STEP_ID`.
fn refuse_unknown_ranks(variable: &dyn Fn(&str) -> Option<String>) -> Result<()> {
    let several = |name: &str| variable(name).and_then(|text| text.parse::<usize>().ok()).filter(|&size| size > 1);
    let of_step = variable("SLURM_STEP_ID").and_then(|_| several("SLURM_STEP_NUM_TASKS").or(several("SLURM_NTASKS")));
    let started = [("srun", of_step), ("mpirun", several("OMPI_COMM_WORLD_SIZE")), ("mpirun", several("PMI_SIZE"))];
    let Some((launcher, size)) = started.into_iter().find_map(|(launcher, size)| Some((launcher, size?))) else {
        return Ok(());
    };
    let message = if cfg!(feature = "mpi") {
        format!(
            "{launcher} has started {size} processes, and MPI knows of one: have srun speak PMIx or PMI-2 with them (its option mpi; the \
             value list says which there is), or start them with the mpirun of the library that this vpt is built with"
        )
    } else {
        format!(
            "{launcher} has started {size} processes, and this vpt is built without MPI, so they would not share a run: start one, or build \
             it with the feature mpi"
        )
    };
    Err(Error::invalid("ranks", message))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(variables: &[(&str, &str)]) -> Result<Arc<dyn Ranks>> {
        of_process(&|name| variables.iter().find(|(other, _)| *other == name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn a_process_is_alone_unless_a_launcher_has_started_several() {
        let alone: &[&[(&str, &str)]] = &[
            &[],
            // A batch script, which is one process of a job of four.
            &[("SLURM_PROCID", "0"), ("SLURM_NTASKS", "4")],
            &[("SLURM_STEP_ID", "0"), ("SLURM_NTASKS", "1")],
            // torchrun's, which are no ranks of MPI.
            &[("RANK", "1"), ("WORLD_SIZE", "2")],
        ];
        for variables in alone {
            let ranks = of(variables).unwrap();
            assert_eq!((ranks.rank(), ranks.size()), (0, 1), "{variables:?}");
            assert_eq!(ranks.gather(b"a").unwrap(), [b"a"]);
            assert_eq!(ranks.exchange(&[b"b".to_vec()]).unwrap(), [b"b"]);
            assert_eq!(ranks.broadcast(b"c".to_vec()).unwrap(), b"c");
            assert!(ranks.exchange(&[]).is_err());
        }
    }

    #[test]
    fn processes_that_would_not_know_of_each_other_are_refused() {
        let message = of(&[("SLURM_STEP_ID", "0"), ("SLURM_NTASKS", "4")]).unwrap_err().to_string();
        assert!(message.starts_with("ranks: srun has started 4 processes, and "), "{message}");
        let step = [("SLURM_STEP_ID", "0"), ("SLURM_NTASKS", "8"), ("SLURM_STEP_NUM_TASKS", "2")];
        assert!(of(&step).unwrap_err().to_string().contains("has started 2 processes"));
    }

    #[cfg(not(feature = "mpi"))]
    #[test]
    fn mpirun_needs_a_program_with_mpi() {
        for variables in
            [[("OMPI_COMM_WORLD_SIZE", "2"), ("OMPI_COMM_WORLD_RANK", "1")], [("PMI_SIZE", "2"), ("PMI_RANK", "0")]]
        {
            let message = of(&variables).unwrap_err().to_string();
            assert!(
                message.contains("mpirun has started 2 processes") && message.contains("the feature mpi"),
                "{message}"
            );
        }
        assert_eq!(of(&[("PMI_SIZE", "1"), ("PMI_RANK", "0")]).unwrap().size(), 1);
    }
}
