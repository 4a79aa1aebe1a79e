//! Debian's `wrk`: many small requests, over kept connections, for a fixed time.

use std::path::Path;
use std::process::Command;

use crate::cost::Tree;
use crate::harness::succeed;

#[derive(Clone, Copy)]
pub struct Load {
    /// Requests a second.
    pub rate: f64,
    /// Milliseconds.
    pub p50: f64,
    pub p99: f64,
    /// Processor microseconds for each.
    pub cpu: f64,
}

/// `script` is Lua that makes the requests.
pub fn wrk(
    address: &str,
    target: &str,
    connections: usize,
    seconds: u64,
    script: Option<&Path>,
    tree: Option<&Tree>,
) -> Load {
    let mut command = Command::new("wrk");
    command.args(["-t1", "--latency", "--timeout", "20s"]);
    command.arg(format!("-c{connections}")).arg(format!("-d{seconds}s"));
    if let Some(script) = script {
        command.arg("-s").arg(script);
    }
    command.arg(format!("http://{address}{target}"));
    let cpu = || tree.map_or(f64::NAN, |tree| tree.cpu().as_secs_f64());
    let before = cpu();
    let said = succeed(&mut command);
    let used = cpu() - before;
    // Both stand there only where there were any.
    assert!(!said.contains("Non-2xx") && !said.contains("Socket errors"), "{said}");
    let value = |name: &str| {
        let line = said.lines().find_map(|line| line.trim().strip_prefix(name));
        line.unwrap_or_else(|| panic!("no `{name}` in {said}")).trim().to_owned()
    };
    let count: f64 = {
        let line = said.lines().find(|line| line.contains(" requests in ")).unwrap();
        line.split_whitespace().next().unwrap().parse().unwrap()
    };
    Load {
        rate: value("Requests/sec:").parse().unwrap(),
        p50: milliseconds(&value("50%")),
        p99: milliseconds(&value("99%")),
        cpu: used / count * 1e6,
    }
}

fn milliseconds(text: &str) -> f64 {
    for (unit, factor) in [("us", 0.001), ("ms", 1.0), ("s", 1000.0)] {
        if let Some(number) = text.strip_suffix(unit) {
            return number.parse::<f64>().unwrap() * factor;
        }
    }
    panic!("{text} is no time")
}
