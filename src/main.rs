//! The `taglock` program: parses the command line, runs it, and turns failures into exit statuses.

use std::process::ExitCode;

use clap::Parser;
use taglock::cli::Cli;
use taglock::console;
use taglock::run::{Failure, run};

/// Fewer and cheaper allocations than the system's on the small-request path.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if !matches!(failure, Failure::Console(console::Failure::Told)) {
                eprintln!("taglock: {failure}");
            }
            ExitCode::from(match failure {
                Failure::Start(_) | Failure::Console(console::Failure::Told) => 1,
                Failure::Console(console::Failure::No(_)) => 1,
                Failure::Settings(_) | Failure::Console(console::Failure::Usage(_)) => 2,
                Failure::Console(console::Failure::Unknown(_) | console::Failure::Down(_)) => 3,
            })
        }
    }
}
