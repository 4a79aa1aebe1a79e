//! Samples of interleaved rounds, and tables of them.

use std::time::Duration;

/// Times of one contestant, round by round, in microseconds.
#[derive(Default)]
pub struct Series {
    rounds: Vec<Vec<f64>>,
}

impl Series {
    pub fn round(&mut self, times: Vec<Duration>) {
        self.rounds.push(times.iter().map(|time| time.as_secs_f64() * 1e6).collect());
    }

    pub fn count(&self) -> usize {
        self.rounds.iter().map(Vec::len).sum()
    }

    /// Of all samples: 0.5 is the median.
    pub fn quantile(&self, at: f64) -> f64 {
        quantile(self.rounds.iter().flatten().copied().collect(), at)
    }

    /// This one's median to the other's: of each round, then the median of the rounds. What
    /// slowed a whole round down slowed both.
    pub fn ratio(&self, bare: &Self) -> f64 {
        let pairs = self.rounds.iter().zip(&bare.rounds);
        let ratios = pairs.map(|(a, b)| quantile(a.clone(), 0.5) / quantile(b.clone(), 0.5));
        quantile(ratios.collect(), 0.5)
    }
}

pub fn quantile(mut values: Vec<f64>, at: f64) -> f64 {
    if values.is_empty() {
        return f64::NAN;
    }
    values.sort_by(f64::total_cmp);
    values[((values.len() - 1) as f64 * at).round() as usize]
}

/// Three digits that matter.
pub fn digits(value: f64) -> String {
    match value {
        v if v.is_nan() => "–".into(),
        v if v >= 100.0 => format!("{v:.0}"),
        v if v >= 10.0 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    }
}

/// A markdown table on standard output.
pub fn table(title: &str, heads: &[&str], rows: &[Vec<String>]) {
    println!("\n### {title}\n\n| {} |", heads.join(" | "));
    println!("|{}", "---|".repeat(heads.len()));
    for row in rows {
        println!("| {} |", row.join(" | "));
    }
}

/// `--quick`; what cargo itself passes means nothing here.
pub fn is_quick() -> bool {
    std::env::args().any(|argument| argument == "--quick")
}

/// Where and when: figures mean little without.
pub fn preamble(name: &str) {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let now = taglock::ledger::Timestamp::now();
    let quick = if is_quick() { ", --quick" } else { "" };
    println!("## {name}: {now}, {cores} cores{quick}, load {}", load());
}

/// The load average of the last minute, where the system tells one.
pub fn load() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or("unknown").to_owned()
}
