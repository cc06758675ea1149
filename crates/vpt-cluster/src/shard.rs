//! Which share of the work is a process's: as the user says, or as the variables say that launchers set.

use std::str::FromStr;

use vpt_base::{Error, Message, Result};

/// How many processes a Kubernetes job has, which no variable of its own says.
const SHARDS: &str = "VPT_SHARDS";

/// A share of the work: every `of`-th piece from `index` on, counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    index: usize,
    of: usize,
}

/// A share as a user asks for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShardChoice {
    /// This one.
    Given(Shard),
    /// As the launcher's variables say.
    Auto,
}

impl Shard {
    /// Whether the piece at `position`, counted from 0, is of this share.
    pub fn has(self, position: usize) -> bool {
        position % self.of == self.index - 1
    }

    /// Which share it is, counted from 1.
    pub fn index(self) -> usize {
        self.index
    }

    /// How many shares there are.
    pub fn of(self) -> usize {
        self.of
    }

    /// The share that the launcher's variables say: a task of a Slurm job array, and of its ranks if `srun` started several; a pod of an
    /// indexed Kubernetes job, whose number of pods is in `VPT_SHARDS`; a rank of `torchrun`, `mpirun` or `srun`.
    ///
    /// # Errors
    /// [`Error::Setting`] `shard`: they say nothing, or what they say cannot be.
    pub fn of_launcher(variable: &dyn Fn(&str) -> Option<String>) -> Result<Self> {
        let variables = Variables(variable);
        let rank = variables.rank()?;
        if let Some(id) = variables.number("SLURM_ARRAY_TASK_ID")? {
            let task = variables.array_task(id)?;
            // What else than a step of Slurm's starts ranks in a task of an array counts them by itself.
            let ranks = rank.unwrap_or(Self { index: 1, of: 1 });
            let index = (task.index - 1).checked_mul(ranks.of).and_then(|first| first.checked_add(ranks.index));
            return match (index, task.of.checked_mul(ranks.of)) {
                (Some(index), Some(of)) => Ok(Self { index, of }),
                _ => Err(Error::setting("shard", "the variables of the job array say more than there can be")),
            };
        }
        if let Some(index) = variables.number("JOB_COMPLETION_INDEX")? {
            let Some(of) = variables.number(SHARDS)? else {
                let message = format!(
                    "JOB_COMPLETION_INDEX says which pod this is, but not of how many: set {SHARDS} to the job's completions"
                );
                return Err(Error::setting("shard", message));
            };
            return Self::from_zero(index, of, "JOB_COMPLETION_INDEX", SHARDS);
        }
        rank.ok_or_else(|| {
            let message = "auto finds no variable of a launcher (SLURM_ARRAY_TASK_ID, JOB_COMPLETION_INDEX, RANK and WORLD_SIZE, \
                           or their like); say which share this is as I/N, or leave it out: processes that share a folder share its work";
            Error::setting("shard", message)
        })
    }

    fn from_zero(index: usize, of: usize, index_name: &str, of_name: &str) -> Result<Self> {
        if index < of {
            return Ok(Self { index: index + 1, of });
        }
        Err(Error::setting("shard", format!("{index_name} is {index}, which is none of {of_name}'s {of}")))
    }
}

impl FromStr for Shard {
    type Err = Error;

    /// Reads `I/N`.
    fn from_str(s: &str) -> Result<Self> {
        let parts = s.split_once('/').and_then(|(index, of)| Some((index.parse().ok()?, of.parse().ok()?)));
        match parts {
            Some((index, of)) if (1..=of).contains(&index) => Ok(Self { index, of }),
            _ => Err(Error::setting("shard", format!("`{}` is not I/N with I from 1 to N", s.escape_debug()))),
        }
    }
}

impl FromStr for ShardChoice {
    type Err = Error;

    /// Reads `auto` or `I/N`.
    fn from_str(s: &str) -> Result<Self> {
        if s == "auto" { Ok(Self::Auto) } else { s.parse().map(Self::Given) }
    }
}

impl ShardChoice {
    /// The share that is meant, by the variables of this process.
    ///
    /// # Errors
    /// As [`Shard::of_launcher`].
    pub fn shard(self) -> Result<Shard> {
        match self {
            Self::Given(shard) => Ok(shard),
            Self::Auto => Shard::of_launcher(&|name| std::env::var(name).ok()),
        }
    }
}

/// What launchers say.
struct Variables<'a>(&'a dyn Fn(&str) -> Option<String>);

impl Variables<'_> {
    /// The number that the variable `name` holds; none where it is not set, or empty.
    fn number(&self, name: &str) -> Result<Option<usize>> {
        let Some(text) = (self.0)(name).filter(|text| !text.is_empty()) else { return Ok(None) };
        let number = text.parse().map_err(|_| {
            let message = format!("the variable {name} is `{}`, which is no number", text.escape_debug());
            Error::setting("shard", Message::from(message))
        })?;
        Ok(Some(number))
    }

    fn array_task(&self, id: usize) -> Result<Shard> {
        let count = self.number("SLURM_ARRAY_TASK_COUNT")?;
        let min = self.number("SLURM_ARRAY_TASK_MIN")?.unwrap_or(0);
        let step = self.number("SLURM_ARRAY_TASK_STEP")?.unwrap_or(1).max(1);
        let Some(count) = count else {
            return Err(Error::setting("shard", "SLURM_ARRAY_TASK_ID is set, but not SLURM_ARRAY_TASK_COUNT"));
        };
        match id.checked_sub(min) {
            Some(above) if above % step == 0 && above / step < count => {
                Ok(Shard { index: above / step + 1, of: count })
            }
            _ => {
                let message = format!(
                    "task {id} of a job array of {count} from {min} in steps of {step}: give the array as a range, such as 0-{}",
                    count.saturating_sub(1)
                );
                Err(Error::setting("shard", message))
            }
        }
    }

    /// The rank of this process among those that a launcher has started together, in the order in which other programs ask.
    fn rank(&self) -> Result<Option<Shard>> {
        let pairs = [
            ("RANK", "WORLD_SIZE"),
            ("PMI_RANK", "PMI_SIZE"),
            ("SLURM_PROCID", "SLURM_NTASKS"),
            ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
        ];
        for (rank, size) in pairs {
            // A batch script has rank 0 of all its tasks, although it is one process; only what srun starts is a rank.
            if rank == "SLURM_PROCID" && (self.0)("SLURM_STEP_ID").is_none() {
                continue;
            }
            if let (Some(index), Some(of)) = (self.number(rank)?, self.number(size)?) {
                return Shard::from_zero(index, of, rank, size).map(Some);
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn auto(variables: &[(&str, &str)]) -> Result<Shard> {
        let find =
            |name: &str| variables.iter().find(|(other, _)| *other == name).map(|(_, value)| (*value).to_owned());
        Shard::of_launcher(&find)
    }

    fn is(index: usize, of: usize) -> Shard {
        Shard { index, of }
    }

    #[test]
    fn shards_are_counted_from_one() {
        assert_eq!("2/3".parse::<Shard>().unwrap(), is(2, 3));
        for wrong in ["0/2", "3/2", "1", "1/0", "a/b", "-1/2", "1/2/3"] {
            assert!(wrong.parse::<Shard>().unwrap_err().to_string().starts_with("shard: "), "{wrong}");
        }
        assert_eq!("auto".parse::<ShardChoice>().unwrap(), ShardChoice::Auto);
        assert_eq!("1/1".parse::<ShardChoice>().unwrap().shard().unwrap(), is(1, 1));
    }

    #[test]
    fn shares_leave_nothing_out_and_have_nothing_twice() {
        for of in 1..5 {
            for position in 0..20 {
                assert_eq!((1..=of).filter(|&index| is(index, of).has(position)).count(), 1);
            }
        }
    }

    #[test]
    fn a_task_of_a_job_array_is_a_share() {
        let array = |id, count, min, step| {
            auto(&[
                ("SLURM_ARRAY_TASK_ID", id),
                ("SLURM_ARRAY_TASK_COUNT", count),
                ("SLURM_ARRAY_TASK_MIN", min),
                ("SLURM_ARRAY_TASK_STEP", step),
                // What a batch script sees besides.
                ("SLURM_PROCID", "0"),
                ("SLURM_NTASKS", "4"),
            ])
        };
        assert_eq!(array("0", "8", "0", "1").unwrap(), is(1, 8));
        assert_eq!(array("7", "8", "0", "1").unwrap(), is(8, 8));
        assert_eq!(array("5", "3", "1", "2").unwrap(), is(3, 3));
        assert_eq!(array("7", "2", "3", "4").unwrap(), is(2, 2));
        // As an array of the tasks 1, 2 and 9 would have it.
        let message = array("9", "3", "1", "1").unwrap_err().to_string();
        assert!(message.contains("as a range, such as 0-2"), "{message}");
        assert!(array("x", "3", "1", "1").unwrap_err().to_string().contains("SLURM_ARRAY_TASK_ID is `x`"));
    }

    #[test]
    fn ranks_that_srun_starts_in_an_array_share_the_share() {
        let variables = [
            ("SLURM_ARRAY_TASK_ID", "2"),
            ("SLURM_ARRAY_TASK_COUNT", "3"),
            ("SLURM_ARRAY_TASK_MIN", "1"),
            ("SLURM_STEP_ID", "0"),
            ("SLURM_PROCID", "1"),
            ("SLURM_NTASKS", "4"),
        ];
        assert_eq!(auto(&variables).unwrap(), is(6, 12));
    }

    #[test]
    fn ranks_are_those_of_the_launcher_and_not_of_a_batch_script() {
        assert_eq!(auto(&[("RANK", "1"), ("WORLD_SIZE", "2"), ("OMPI_COMM_WORLD_RANK", "0")]).unwrap(), is(2, 2));
        assert_eq!(auto(&[("OMPI_COMM_WORLD_RANK", "3"), ("OMPI_COMM_WORLD_SIZE", "4")]).unwrap(), is(4, 4));
        let batch = [("SLURM_PROCID", "0"), ("SLURM_NTASKS", "4")];
        assert!(auto(&batch).unwrap_err().to_string().contains("finds no variable"));
        assert_eq!(auto(&[&batch[..], &[("SLURM_STEP_ID", "0")]].concat()).unwrap(), is(1, 4));
        assert!(auto(&[("RANK", "2"), ("WORLD_SIZE", "2")]).unwrap_err().to_string().contains("RANK is 2"));
    }

    #[test]
    fn a_pod_needs_to_know_of_how_many_it_is_one() {
        assert_eq!(auto(&[("JOB_COMPLETION_INDEX", "4"), ("VPT_SHARDS", "5")]).unwrap(), is(5, 5));
        assert!(auto(&[("JOB_COMPLETION_INDEX", "4")]).unwrap_err().to_string().contains("set VPT_SHARDS"));
        assert!(auto(&[("JOB_COMPLETION_INDEX", "5"), ("VPT_SHARDS", "5")]).is_err());
        assert!(auto(&[]).unwrap_err().to_string().contains("finds no variable of a launcher"));
    }
}
