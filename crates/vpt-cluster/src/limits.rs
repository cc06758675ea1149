//! How many threads a process may use: what the system lets it have, and not more than a scheduler has given it.

use std::num::NonZeroUsize;
use std::thread::available_parallelism;

/// Threads to compute with. The system knows affinity and the limits of control groups; Slurm without task affinity limits nothing and says
/// in variables what is whose, and ranks that a launcher has started on one machine share it.
pub fn threads() -> usize {
    let available = available_parallelism().map_or(1, NonZeroUsize::get);
    of(available, &|name| std::env::var(name).ok())
}

/// The same of a machine with `available` processors and these variables.
fn of(available: usize, variable: &dyn Fn(&str) -> Option<String>) -> usize {
    let number = |name: &str| variable(name).and_then(|text| first_number(&text)).filter(|&number| number > 0);
    let given = if let Some(each) = number("SLURM_CPUS_PER_TASK") {
        Some(each)
    } else if let Some(node) = number("SLURM_CPUS_ON_NODE") {
        let of_step = variable("SLURM_STEP_ID").and_then(|_| number("SLURM_STEP_TASKS_PER_NODE"));
        Some(node / of_step.or_else(|| number("SLURM_NTASKS_PER_NODE")).unwrap_or(1))
    } else {
        let ranks = ["LOCAL_WORLD_SIZE", "MPI_LOCALNRANKS", "OMPI_COMM_WORLD_LOCAL_SIZE"].into_iter().find_map(number);
        ranks.map(|ranks| available / ranks)
    };
    given.unwrap_or(available).clamp(1, available.max(1))
}

/// The number that `text` begins with: Slurm writes `4(x2)`.
fn first_number(text: &str) -> Option<usize> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    text[..end].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(available: usize, variables: &[(&str, &str)]) -> usize {
        let find =
            |name: &str| variables.iter().find(|(other, _)| *other == name).map(|(_, value)| (*value).to_owned());
        of(available, &find)
    }

    #[test]
    fn a_process_takes_what_the_scheduler_gives_and_no_more_than_there_is() {
        assert_eq!(with(16, &[]), 16);
        assert_eq!(with(16, &[("SLURM_CPUS_PER_TASK", "4"), ("SLURM_CPUS_ON_NODE", "8")]), 4);
        assert_eq!(with(2, &[("SLURM_CPUS_ON_NODE", "1")]), 1);
        assert_eq!(with(2, &[("SLURM_CPUS_PER_TASK", "8")]), 2, "the machine has no more");
        assert_eq!(with(16, &[("SLURM_CPUS_ON_NODE", "16"), ("SLURM_NTASKS_PER_NODE", "4")]), 4);
        let step = [("SLURM_CPUS_ON_NODE", "16"), ("SLURM_STEP_ID", "0"), ("SLURM_STEP_TASKS_PER_NODE", "8(x2)")];
        assert_eq!(with(16, &step), 2);
        assert_eq!(with(16, &step[..1]), 16);
    }

    #[test]
    fn ranks_of_one_machine_share_it() {
        assert_eq!(with(8, &[("OMPI_COMM_WORLD_LOCAL_SIZE", "4")]), 2);
        assert_eq!(with(2, &[("LOCAL_WORLD_SIZE", "3")]), 1, "one at least");
        assert_eq!(with(8, &[("LOCAL_WORLD_SIZE", "0"), ("SLURM_CPUS_PER_TASK", "")]), 8, "nonsense is none");
    }
}
