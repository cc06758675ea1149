//! The processes that train one run together, each a rank: what is shared out among them, and what each hears of the others.
//!
//! Every rank holds the learned values and changes them in the same way, by the same numbers; what takes time, images read and computed, is
//! dealt out in pieces and told to all. A rank that cannot go on says so in the place of its piece. That the run is to stop is agreed
//! on in the same way, so that all stop at the same place.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::observer::{Event, Observer};
use vpt_base::{Error, Message, Result};
use vpt_cluster::{Ranks, ranks::Alone};
use vpt_data::ImageCount;
use vpt_energy::Carbon;

/// The processes of a run; one of them alone unless a launcher has started more.
#[derive(Debug, Clone)]
pub(crate) struct ProcessGroup {
    ranks: Arc<dyn Ranks>,
    stop: Arc<StopFlags>,
}

/// Whether the run is to stop.
#[derive(Debug, Default)]
struct StopFlags {
    /// This rank was asked to.
    asked: AtomicBool,
    /// All know that one was.
    agreed: AtomicBool,
}

/// What a rank tells the others.
#[derive(Serialize, Deserialize)]
enum RankMessage<T> {
    /// What they wait for, and whether the rank was asked to stop.
    Value(T, bool),
    /// Why it cannot go on.
    Failed(String),
}

impl Default for ProcessGroup {
    fn default() -> Self {
        Self::new(Arc::new(Alone))
    }
}

impl ProcessGroup {
    /// Those of `ranks`.
    pub(crate) fn new(ranks: Arc<dyn Ranks>) -> Self {
        Self { ranks, stop: Arc::default() }
    }

    /// Which rank this is, from 0.
    pub(crate) fn rank(&self) -> usize {
        self.ranks.rank()
    }

    /// How many there are.
    pub(crate) fn size(&self) -> usize {
        self.ranks.size()
    }

    /// Whether there is no other.
    pub(crate) fn is_alone(&self) -> bool {
        self.size() == 1
    }

    /// Whether this is the one that writes files.
    pub(crate) fn leads(&self) -> bool {
        self.rank() == 0
    }

    /// What each rank has, in the order of ranks, at every rank.
    ///
    /// # Errors
    /// A rank has an error in the place of it, this one or another.
    pub(crate) fn gather<T: Serialize + DeserializeOwned>(&self, own: Result<T>) -> Result<Vec<T>> {
        if self.is_alone() {
            return own.map(|own| vec![own]);
        }
        let (told, failed) = match own {
            Ok(value) => (RankMessage::Value(value, self.stop.asked.load(Ordering::SeqCst)), None),
            Err(error) => (RankMessage::Failed(error.to_string()), Some(error)),
        };
        let mut values = Vec::with_capacity(self.size());
        let mut fault = None;
        for (rank, bytes) in self.ranks.gather(&to_bytes(&told)?)?.iter().enumerate() {
            match from_bytes(bytes)? {
                RankMessage::Value(value, stop) => {
                    self.stop.agreed.fetch_or(stop, Ordering::SeqCst);
                    values.push(value);
                }
                RankMessage::Failed(message) => {
                    let _ = fault.get_or_insert_with(|| Error::invalid(format!("rank {rank}"), message));
                }
            }
        }
        match failed.or(fault) {
            Some(error) => Err(error),
            None => Ok(values),
        }
    }

    /// What rank 0 has, at every rank.
    ///
    /// # Errors
    /// It has an error in the place of it.
    pub(crate) fn of_leader<T: Serialize + DeserializeOwned>(&self, own: impl FnOnce() -> Result<T>) -> Result<T> {
        if self.is_alone() {
            return own();
        }
        let own = if self.leads() { own().map(Some) } else { Ok(None) };
        let all = self.gather(own)?;
        all.into_iter().next().flatten().ok_or_else(|| Error::invalid("rank 0", "has said nothing"))
    }

    /// Sends `parts[r]`, floats, to the rank r; what each has sent to this one, in the order of ranks.
    fn exchange(&self, parts: &[Vec<f32>]) -> Result<Vec<Vec<f32>>> {
        let parts: Vec<Vec<u8>> =
            parts.iter().map(|part| part.iter().flat_map(|value| value.to_le_bytes()).collect()).collect();
        Ok(self.ranks.exchange(&parts)?.iter().map(|bytes| floats(bytes).collect()).collect())
    }

    /// Deals `pieces` out: `compute` is called for those of this rank, and `take` with what came of each of all pieces, in their order, at
    /// every rank; `false` as soon as `take` says not to go on.
    ///
    /// # Errors
    /// Those of `compute`, of any rank, and of `take`.
    pub(crate) fn share<O: Serialize + DeserializeOwned>(
        &self,
        pieces: usize,
        mut compute: impl FnMut(usize) -> Result<O>,
        mut take: impl FnMut(O) -> Result<bool>,
    ) -> Result<bool> {
        let (rank, size) = (self.rank(), self.size());
        for round in 0..pieces.div_ceil(size) {
            let own = Some(round * size + rank).filter(|&piece| piece < pieces).map(&mut compute).transpose();
            let outputs = if self.is_alone() { vec![own?] } else { self.gather(own)? };
            let mut goes_on = true;
            for output in outputs.into_iter().flatten() {
                goes_on = take(output)?;
            }
            if !goes_on {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Of `order`, which is cut into batches of `size`, the images of the batches that [`Self::visit`] has this rank compute.
    pub(crate) fn own_images(&self, order: &[usize], size: usize) -> Vec<usize> {
        order.chunks(size).skip(self.rank()).step_by(self.size()).flatten().copied().collect()
    }

    /// As [`vpt_data::visit_batches`], shared: `batches` are those of [`Self::own_images`] of `total` images in batches of `size`; `compute`
    /// makes something of each, and `take` takes that of all batches in their order.
    ///
    /// # Errors
    /// Those of the batches, of `compute` and of `take`.
    pub(crate) fn visit<B: ImageCount, O: Serialize + DeserializeOwned>(
        &self,
        mut batches: impl Iterator<Item = Result<B>>,
        (total, size): (usize, usize),
        go_on: &mut dyn FnMut(usize, usize) -> bool,
        mut compute: impl FnMut(B) -> Result<O>,
        mut take: impl FnMut(O) -> Result<()>,
    ) -> Result<bool> {
        let next = |_| match batches.next() {
            Some(batch) => compute(batch?),
            None => Err(Error::invalid("batches", "fewer than their images ask for")),
        };
        let mut done = 0;
        self.share(total.div_ceil(size.max(1)), next, |output| {
            take(output)?;
            done = (done + size).min(total);
            Ok(go_on(done, total))
        })
    }

    /// The sum over all shares of a batch, in their order: `own` are those of this rank, which has as many as any other, or fewer where there
    /// are no more. Each rank adds up a part of the values and tells the others, so nobody receives more than the values of its own
    /// shares twice, however many ranks there are.
    ///
    /// # Errors
    /// The ranks cannot be reached, or do not have values of one length.
    pub(crate) fn sum(&self, own: Vec<Vec<f32>>, len: usize) -> Result<Vec<f32>> {
        if let Some(wrong) = own.iter().find(|values| values.len() != len) {
            return Err(Error::invalid("gradient", format!("{} values where {len} are expected", wrong.len())));
        }
        if self.is_alone() {
            return Ok(add_up(len, own.iter().map(|values| values.iter().copied())));
        }
        let slice = len.div_ceil(self.size()).max(1);
        let bounds = |rank: usize| (rank * slice).min(len)..((rank + 1) * slice).min(len);
        let parts: Vec<Vec<f32>> = (0..self.size())
            .map(|rank| own.iter().flat_map(|values| &values[bounds(rank)]).copied().collect())
            .collect();
        drop(own);
        let width = bounds(self.rank()).len();
        let received = self.exchange(&parts)?;
        drop(parts);
        let shares = received.iter().flat_map(|values| values.chunks_exact(width.max(1)));
        let sum = add_up(width, shares.map(|share| share.iter().copied()));
        let bytes: Vec<u8> = sum.iter().flat_map(|value| value.to_le_bytes()).collect();
        let whole: Vec<f32> = self.ranks.gather(&bytes)?.iter().flat_map(|bytes| floats(bytes)).collect();
        if whole.len() == len {
            Ok(whole)
        } else {
            Err(Error::invalid("gradient", "ranks do not learn the same values"))
        }
    }

    /// Fails unless all ranks have the same `own`; `what` names it.
    ///
    /// # Errors
    /// They have not.
    pub(crate) fn agree<T>(&self, what: &str, own: T) -> Result<()>
    where
        T: Serialize + DeserializeOwned + PartialEq + std::fmt::Display,
    {
        let all = self.gather(Ok(own))?;
        match all.iter().position(|other| *other != all[0]) {
            None => Ok(()),
            Some(rank) => {
                let message =
                    format!("is {} on rank 0 and {} on rank {rank}; all ranks need the same", all[0], all[rank]);
                Err(Error::invalid(Message::from(what), message))
            }
        }
    }

    /// `observer` as all ranks see it: it says to stop once all know that one was asked to.
    pub(crate) fn observer<'a>(&self, observer: &'a mut dyn Observer) -> GroupObserver<'a> {
        GroupObserver { inner: observer, stop: (!self.is_alone()).then(|| self.stop.clone()) }
    }
}

/// Element by element, in the order of `shares`.
fn add_up<I: Iterator<Item = f32>>(len: usize, shares: impl Iterator<Item = I>) -> Vec<f32> {
    let mut sum: Vec<f32> = Vec::new();
    for share in shares {
        if sum.is_empty() {
            sum.extend(share);
        } else {
            sum.iter_mut().zip(share).for_each(|(sum, value)| *sum += value);
        }
    }
    sum.resize(len, 0.);
    sum
}

fn floats(bytes: &[u8]) -> impl Iterator<Item = f32> + '_ {
    bytes.chunks_exact(4).map(|bytes| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
}

fn to_bytes(value: &impl Serialize) -> Result<Vec<u8>> {
    postcard::to_stdvec(value).map_err(|error| Error::invalid("ranks", error.to_string()))
}

fn from_bytes<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    let message = "what another rank has sent cannot be read: are all the same version of vpt?";
    postcard::from_bytes(bytes).map_err(|_| Error::invalid("ranks", message))
}

/// The observer of a rank.
pub(crate) struct GroupObserver<'a> {
    inner: &'a mut dyn Observer,
    /// Nothing where there is one process.
    stop: Option<Arc<StopFlags>>,
}

impl Observer for GroupObserver<'_> {
    fn event(&mut self, event: &Event<'_>) {
        self.inner.event(event);
    }

    fn words(&self, message: &Message) -> String {
        self.inner.words(message)
    }

    fn carbon(&self) -> Option<&Carbon> {
        self.inner.carbon()
    }

    fn stop(&self) -> bool {
        let Some(flags) = &self.stop else { return self.inner.stop() };
        if self.inner.stop() {
            flags.asked.store(true, Ordering::SeqCst);
        }
        flags.agreed.load(Ordering::SeqCst)
    }
}

/// Calls `work` on each of `size` ranks, which are threads; what they return, in the order of ranks.
#[cfg(test)]
pub(crate) fn on_ranks<T: Send>(size: usize, work: impl Fn(ProcessGroup) -> T + Sync) -> Vec<T> {
    let work = &work;
    std::thread::scope(|scope| {
        let ranks = vpt_cluster::ranks::ThreadRanks::of(size).into_iter();
        let threads: Vec<_> =
            ranks.map(|ranks| scope.spawn(move || work(ProcessGroup::new(Arc::new(ranks))))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::observer::Silent;

    #[test]
    fn pieces_are_computed_once_and_taken_in_their_order_by_all() {
        for size in 1..5 {
            let found = on_ranks(size, |group| {
                let (mut own, mut all) = (Vec::new(), Vec::new());
                let compute = |piece| {
                    own.push(piece);
                    Ok(piece * piece)
                };
                let take = |square| {
                    all.push(square);
                    Ok(true)
                };
                assert!(group.share(7, compute, take).unwrap());
                (own, all)
            });
            let mut computed: Vec<usize> = found.iter().flat_map(|(own, _)| own.clone()).collect();
            computed.sort_unstable();
            assert_eq!(computed, [0, 1, 2, 3, 4, 5, 6]);
            assert!(found.iter().all(|(_, all)| all[..] == [0, 1, 4, 9, 16, 25, 36]));
        }
    }

    #[test]
    fn an_error_of_one_rank_is_an_error_of_all() {
        let messages = on_ranks(3, |group| {
            let compute = |piece| if piece == 4 { Err(Error::image("cat.png", "is damaged")) } else { Ok(piece) };
            group.share(9, compute, |_| Ok(true)).unwrap_err().to_string()
        });
        assert_eq!(messages, ["rank 1: cat.png: is damaged", "cat.png: is damaged", "rank 1: cat.png: is damaged"]);
    }

    #[test]
    fn sums_are_those_of_the_shares_in_their_order_to_the_last_bit() {
        // Sums in another order have other bits.
        let share = |i: usize| -> Vec<f32> {
            (0..11).map(|j| (0.1 + (i * 7 + j) as f32).sin() * 10f32.powi((i * j % 9) as i32 - 4)).collect()
        };
        let mut expected = share(0);
        for i in 1..6 {
            expected.iter_mut().zip(share(i)).for_each(|(sum, value)| *sum += value);
        }
        for size in [1, 2, 3, 4, 6] {
            let sums = on_ranks(size, |group| {
                let own = (group.rank() * 6 / size..(group.rank() + 1) * 6 / size).map(share).collect();
                group.sum(own, 11).unwrap()
            });
            assert!(
                sums.iter().all(|sum| sum.iter().zip(&expected).all(|(a, b)| a.to_bits() == b.to_bits())),
                "{size}"
            );
        }
        // The last batch of an epoch may have fewer shares than ranks.
        let sums = on_ranks(3, |group| {
            let own = if group.rank() == 0 { vec![share(0)] } else { Vec::new() };
            group.sum(own, 11).unwrap()
        });
        assert_eq!(sums, vec![share(0); 3]);
        let wrong = on_ranks(2, |group| group.sum(vec![vec![0.; 2]], 3).unwrap_err().to_string());
        assert!(wrong[0].contains("2 values where 3"), "{wrong:?}");
    }

    #[test]
    fn all_stop_at_the_same_place_when_one_is_asked_to() {
        struct Asked(bool);
        impl Observer for Asked {
            fn event(&mut self, _: &Event<'_>) {}

            fn stop(&self) -> bool {
                self.0
            }
        }
        let rounds = on_ranks(3, |group| {
            let mut asked = Asked(group.rank() == 2);
            let observer = group.observer(&mut asked);
            let mut rounds = 0;
            let take = |()| {
                rounds += 1;
                Ok(!observer.stop())
            };
            assert!(!group.share(300, |_| Ok(()), take).unwrap());
            rounds
        });
        assert_eq!(rounds, [rounds[0]; 3]);
        assert!(rounds[0] < 10);
        let mut silent = Silent;
        let alone = ProcessGroup::default();
        assert!(!alone.observer(&mut silent).stop());
        let mut asked = Asked(true);
        assert!(alone.observer(&mut asked).stop(), "one process asks nobody");
    }

    #[test]
    fn what_differs_between_ranks_is_told() {
        let said = on_ranks(2, |group| group.agree("seed", group.rank()).unwrap_err().to_string());
        assert_eq!(said, vec!["seed: is 0 on rank 0 and 1 on rank 1; all ranks need the same"; 2]);
        assert!(on_ranks(2, |group| group.agree("seed", 7).is_ok()).into_iter().all(|fine| fine));
        let leaders = on_ranks(3, |group| group.of_leader(|| Ok(group.rank() + 5)).unwrap());
        assert_eq!(leaders, [5; 3]);
    }
}
