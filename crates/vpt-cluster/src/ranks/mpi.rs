//! The same over MPI. Only collectives of bytes, on one thread; what MPI adds up itself is not used.

use std::{
    fmt,
    thread::{self, ThreadId},
};

use mpi::{
    Count, Threading,
    datatype::{Partition, PartitionMut},
    environment::Universe,
    topology::SimpleCommunicator,
    traits::{Communicator, CommunicatorCollectives},
};

use super::{Ranks, check_parts};
use vpt_base::{Error, Result};

/// Bytes that all ranks together send in one call: MPI counts in 32 bits.
const AT_ONCE: usize = 1 << 30;

/// What a rank sends that has nothing to send: see [`room`].
static NOTHING: [u8; 1] = [0];

/// All processes that mpirun or srun has started.
pub struct MpiRanks {
    rank: usize,
    size: usize,
    /// The one that may make calls.
    thread: ThreadId,
    /// Ends MPI when it goes.
    _universe: Universe,
}

impl MpiRanks {
    /// Starts MPI, which can be done once in a process.
    ///
    /// # Errors
    /// It was started before, or does not suffer threads beside its own.
    pub fn start() -> Result<Self> {
        let Some((universe, threading)) = mpi::initialize_with_threading(Threading::Funneled) else {
            return Err(Error::invalid("MPI", "was started in this process before"));
        };
        if threading < Threading::Funneled {
            return Err(Error::invalid("MPI", "this library suffers no threads (MPI_THREAD_FUNNELED)"));
        }
        let world = universe.world();
        let (rank, size) = (world.rank() as usize, world.size() as usize);
        Ok(Self { rank, size, thread: thread::current().id(), _universe: universe })
    }

    fn world(&self) -> Result<SimpleCommunicator> {
        if thread::current().id() == self.thread {
            return Ok(SimpleCommunicator::world());
        }
        Err(Error::invalid("MPI", "called on another thread than the one that started it"))
    }

    /// Bytes that a rank sends to each in one call.
    fn at_once(&self) -> usize {
        (AT_ONCE / self.size).max(1)
    }
}

/// Of `lengths`, what a call that begins at `from` takes at most `most` of: counts, and where each begins.
fn portions(lengths: &[u64], from: usize, most: usize) -> (Vec<Count>, Vec<Count>) {
    let counts: Vec<Count> =
        lengths.iter().map(|&length| (length as usize).saturating_sub(from).min(most) as Count).collect();
    let mut end = 0;
    let mut place = |count: &Count| {
        let begin = end;
        end += count;
        begin
    };
    let places = counts.iter().map(&mut place).collect();
    (counts, places)
}

/// The bytes of `all` from `from` on, at most `most`.
fn portion(all: &[u8], from: usize, most: usize) -> &[u8] {
    let from = from.min(all.len());
    &all[from..all.len().min(from + most)]
}

/// Room for `len` bytes and one more: a buffer of none would begin at an address that is `MPI_IN_PLACE` to OpenMPI.
fn room(len: usize) -> Vec<u8> {
    vec![0; len + 1]
}

/// Adds to each of `all` its part of `buffer`.
fn append(all: &mut [Vec<u8>], mut buffer: &[u8], counts: &[Count]) {
    for (one, &count) in all.iter_mut().zip(counts) {
        let (own, rest) = buffer.split_at(count as usize);
        one.extend_from_slice(own);
        buffer = rest;
    }
}

fn total(counts: &[Count]) -> usize {
    counts.iter().map(|&count| count as usize).sum()
}

impl Ranks for MpiRanks {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn gather(&self, own: &[u8]) -> Result<Vec<Vec<u8>>> {
        let (world, most) = (self.world()?, self.at_once());
        let mut lengths = vec![0u64; self.size];
        world.all_gather_into(&(own.len() as u64), &mut lengths[..]);
        let mut all: Vec<Vec<u8>> = lengths.iter().map(|&length| Vec::with_capacity(length as usize)).collect();
        let longest = lengths.iter().max().map_or(0, |&length| length as usize);
        for from in (0..longest).step_by(most) {
            let (counts, places) = portions(&lengths, from, most);
            let (own, mut buffer) = (portion(own, from, most), room(total(&counts)));
            let own = if own.is_empty() { &NOTHING[..0] } else { own };
            let mut received = PartitionMut::new(&mut buffer[..], &counts[..], &places[..]);
            world.all_gather_varcount_into(own, &mut received);
            append(&mut all, &buffer, &counts);
        }
        Ok(all)
    }

    fn exchange(&self, parts: &[Vec<u8>]) -> Result<Vec<Vec<u8>>> {
        check_parts(parts, self.size)?;
        let (world, most) = (self.world()?, self.at_once());
        let sent: Vec<u64> = parts.iter().map(|part| part.len() as u64).collect();
        let mut lengths = vec![0u64; self.size];
        world.all_to_all_into(&sent[..], &mut lengths[..]);
        // All make as many calls as the longest part of any rank needs.
        let own_longest = sent.iter().max().copied().unwrap_or_default();
        let mut longest = vec![0u64; self.size];
        world.all_gather_into(&own_longest, &mut longest[..]);
        let longest = longest.iter().max().map_or(0, |&length| length as usize);
        let mut all: Vec<Vec<u8>> = lengths.iter().map(|&length| Vec::with_capacity(length as usize)).collect();
        for from in (0..longest).step_by(most) {
            let (out_counts, out_places) = portions(&sent, from, most);
            let (counts, places) = portions(&lengths, from, most);
            let mut out: Vec<u8> = parts.iter().flat_map(|part| portion(part, from, most)).copied().collect();
            out.push(0);
            let mut buffer = room(total(&counts));
            let outgoing = Partition::new(&out[..], &out_counts[..], &out_places[..]);
            let mut received = PartitionMut::new(&mut buffer[..], &counts[..], &places[..]);
            world.all_to_all_varcount_into(&outgoing, &mut received);
            append(&mut all, &buffer, &counts);
        }
        Ok(all)
    }

    fn abort(&self, code: u8) -> ! {
        SimpleCommunicator::world().abort(code.into())
    }
}

impl fmt::Debug for MpiRanks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MpiRanks").field("rank", &self.rank).field("size", &self.size).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_messages_go_in_portions() {
        let (counts, places) = portions(&[5, 0, 3], 2, 2);
        assert_eq!((counts, places), (vec![2, 0, 1], vec![0, 2, 2]));
        assert_eq!(portion(b"abcde", 4, 2), b"e");
        assert_eq!(portion(b"abcde", 6, 2), b"");
        let mut all = vec![b"ab".to_vec(), Vec::new(), b"xy".to_vec()];
        append(&mut all, b"cdz", &[2, 0, 1]);
        assert_eq!(all, [&b"abcd"[..], b"", b"xyz"]);
    }
}
