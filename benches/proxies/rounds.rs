//! Samples of contestants that take turns, and what one's are to another's.

use std::time::Instant;

use crate::cost::Tree;
use crate::measure::quantile;

/// One load on one contestant.
#[derive(Clone, Copy)]
pub struct Sample {
    /// Of work a second, whatever the unit.
    pub rate: f64,
    /// Processor seconds for one unit of work.
    pub cpu: f64,
    /// MiB.
    pub peak: f64,
}

/// Runs a load that does so many units of work.
pub fn sample(tree: Option<&Tree>, load: impl FnOnce() -> f64) -> Sample {
    if let Some(tree) = tree {
        tree.forget_peak();
    }
    let cpu = || tree.map_or(f64::NAN, |tree| tree.cpu().as_secs_f64());
    let (before, start) = (cpu(), Instant::now());
    let work = load();
    let took = start.elapsed().as_secs_f64();
    let peak = tree.map_or(f64::NAN, Tree::peak);
    Sample { rate: work / took, cpu: (cpu() - before) / work, peak }
}

/// The samples of each contestant, by rounds.
pub struct Table {
    pub contestants: Vec<Vec<Sample>>,
}

impl Table {
    pub fn new(contestants: usize) -> Self {
        Self { contestants: vec![Vec::new(); contestants] }
    }

    /// Each of these once; another begins each round.
    pub fn round(
        &mut self,
        number: usize,
        taking_part: &[usize],
        mut take: impl FnMut(usize) -> Sample,
    ) {
        for turn in 0..taking_part.len() {
            let contestant = taking_part[(turn + number) % taking_part.len()];
            self.contestants[contestant].push(take(contestant));
        }
    }

    pub fn rounds(&self) -> usize {
        self.contestants.iter().map(Vec::len).max().unwrap_or(0)
    }

    pub fn median(&self, contestant: usize, of: impl Fn(&Sample) -> f64) -> f64 {
        quantile(self.contestants[contestant].iter().map(of).collect(), 0.5)
    }

    /// One's to another's in each round, then the median of the rounds: what slowed a whole round
    /// down slowed both.
    pub fn ratio(&self, own: usize, other: usize, of: impl Fn(&Sample) -> f64) -> f64 {
        let pairs = self.contestants[own].iter().zip(&self.contestants[other]);
        quantile(pairs.map(|(own, other)| of(own) / of(other)).collect(), 0.5)
    }
}
