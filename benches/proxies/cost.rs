//! What a process and its children use, as `/proc` tells it.

use std::fs;
use std::time::Duration;

/// `USER_HZ`, which Linux shows programs whatever its own clock is.
const TICKS: u64 = 100;

/// A process with all that descends from it: nginx works in children.
#[derive(Clone)]
pub struct Tree {
    pids: Vec<u32>,
}

impl Tree {
    /// As it is now; a proxy's workers are there once it answers.
    pub fn of(root: u32) -> Self {
        let mut pids = vec![root];
        let all: Vec<_> = fs::read_dir("/proc")
            .unwrap()
            .filter_map(|entry| entry.unwrap().file_name().to_str()?.parse::<u32>().ok())
            .filter_map(|pid| Some((pid, stat(pid)?.get(1)?.parse::<u32>().ok()?)))
            .collect();
        let mut next = 0;
        while next < pids.len() {
            let parent = pids[next];
            pids.extend(all.iter().filter(|(_, of)| *of == parent).map(|(pid, _)| *pid));
            next += 1;
        }
        Self { pids }
    }

    /// Processor time so far, the system's for it included.
    pub fn cpu(&self) -> Duration {
        let ticks = |pid| -> u64 {
            let fields = stat(pid).unwrap_or_default();
            fields.iter().skip(11).take(2).map(|field| field.parse::<u64>().unwrap()).sum()
        };
        Duration::from_millis(self.pids.iter().map(|pid| ticks(*pid)).sum::<u64>() * 1000 / TICKS)
    }

    /// From now on [`Self::peak`] tells of what comes.
    pub fn forget_peak(&self) {
        for pid in &self.pids {
            fs::write(format!("/proc/{pid}/clear_refs"), "5").unwrap();
        }
    }

    /// The largest memory of each, added up, in MiB.
    pub fn peak(&self) -> f64 {
        self.memory("VmHWM:")
    }

    pub fn resident(&self) -> f64 {
        self.memory("VmRSS:")
    }

    fn memory(&self, name: &str) -> f64 {
        let of = |pid: &u32| -> f64 {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.map_or(0.0, |kib| kib.trim().trim_end_matches(" kB").parse().unwrap())
        };
        self.pids.iter().map(of).sum::<f64>() / 1024.0
    }
}

/// The fields of `stat` from the state on; the name before may hold anything.
fn stat(pid: u32) -> Option<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, after) = text.rsplit_once(") ")?;
    Some(after.split(' ').map(str::to_owned).collect())
}
