//! Ranks that are threads of one process, for tests of what several ranks do.

use std::sync::{Arc, Condvar, Mutex, PoisonError};

use super::{Ranks, check_parts};
use vpt_base::{Error, Result};

/// What is under way: each rank's parts until all have taken theirs.
#[derive(Debug)]
struct Rounds {
    /// Of each rank, what it sends to each.
    sent: Vec<Option<Vec<Vec<u8>>>>,
    /// How many ranks have still to take what the present round has sent.
    to_take: usize,
    /// Whether a rank has ended: there is no further round.
    ended: bool,
}

#[derive(Debug)]
struct SharedRounds {
    rounds: Mutex<Rounds>,
    changed: Condvar,
}

/// A rank that is a thread.
#[derive(Debug)]
pub struct ThreadRanks {
    rank: usize,
    size: usize,
    shared: Arc<SharedRounds>,
}

impl ThreadRanks {
    /// So many ranks that know of each other, each to be moved to a thread of its own.
    pub fn of(size: usize) -> Vec<Self> {
        let rounds = Rounds { sent: vec![None; size], to_take: 0, ended: false };
        let shared = Arc::new(SharedRounds { rounds: Mutex::new(rounds), changed: Condvar::new() });
        (0..size).map(|rank| Self { rank, size, shared: shared.clone() }).collect()
    }
}

impl Ranks for ThreadRanks {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn gather(&self, own: &[u8]) -> Result<Vec<Vec<u8>>> {
        self.exchange(&vec![own.to_vec(); self.size])
    }

    fn exchange(&self, parts: &[Vec<u8>]) -> Result<Vec<Vec<u8>>> {
        check_parts(parts, self.size)?;
        let SharedRounds { rounds, changed } = &*self.shared;
        let rounds = rounds.lock().unwrap_or_else(PoisonError::into_inner);
        let wait = |rounds, until: &dyn Fn(&Rounds) -> bool| {
            let wrong = |rounds: &Rounds| rounds.ended && rounds.to_take == 0;
            let rounds = changed.wait_while(rounds, |rounds: &mut Rounds| !until(rounds) && !wrong(rounds));
            let rounds = rounds.unwrap_or_else(PoisonError::into_inner);
            if until(&rounds) { Ok(rounds) } else { Err(Error::invalid("ranks", "one of them has ended")) }
        };
        // A rank that is quick must not take the place of its own parts of the round before.
        let mut rounds = wait(rounds, &|rounds| rounds.to_take == 0)?;
        rounds.sent[self.rank] = Some(parts.to_vec());
        if rounds.sent.iter().all(Option::is_some) {
            rounds.to_take = self.size;
            changed.notify_all();
        }
        let mut rounds = wait(rounds, &|rounds| rounds.to_take > 0)?;
        let received = rounds.sent.iter().flatten().map(|parts| parts[self.rank].clone()).collect();
        rounds.to_take -= 1;
        if rounds.to_take == 0 {
            rounds.sent.fill(None);
            changed.notify_all();
        }
        Ok(received)
    }

    fn abort(&self, code: u8) -> ! {
        panic!("a rank ends all with the exit code {code}")
    }
}

impl Drop for ThreadRanks {
    fn drop(&mut self) {
        // Those that wait for it must not wait for ever.
        self.shared.rounds.lock().unwrap_or_else(PoisonError::into_inner).ended = true;
        self.shared.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    #[test]
    fn what_ranks_send_arrives_in_their_order_round_after_round() {
        let sums: Vec<usize> = thread::scope(|scope| {
            let ranks = ThreadRanks::of(3).into_iter().map(|ranks| {
                scope.spawn(move || {
                    let mut sum = 0;
                    for round in 0..200u8 {
                        let own = [round, ranks.rank() as u8];
                        let all = ranks.gather(&own).unwrap();
                        assert_eq!(all, [[round, 0], [round, 1], [round, 2]]);
                        let parts: Vec<Vec<u8>> = (0..3).map(|to| vec![ranks.rank() as u8, to, round]).collect();
                        let got = ranks.exchange(&parts).unwrap();
                        let mine = ranks.rank() as u8;
                        assert_eq!(got, [[0, mine, round], [1, mine, round], [2, mine, round]]);
                        assert_eq!(ranks.broadcast(vec![mine + 7]).unwrap(), [7]);
                        sum += all.concat().len();
                    }
                    sum
                })
            });
            let threads: Vec<_> = ranks.collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(sums, [1200; 3]);
    }

    #[test]
    fn a_rank_that_has_ended_is_not_waited_for() {
        let mut ranks = ThreadRanks::of(2);
        let (one, other) = (ranks.remove(0), ranks.remove(0));
        let waiting = thread::spawn(move || one.gather(b"here").map(drop));
        // The other leaves once the first waits.
        while other.shared.rounds.lock().unwrap().sent[0].is_none() {
            thread::yield_now();
        }
        drop(other);
        assert!(waiting.join().unwrap().unwrap_err().to_string().contains("has ended"));
    }
}
