//! The `taglock` program: parses the command line, runs it, and turns failures into exit statuses.

use std::process::ExitCode;

use clap::Parser;
use taglock::cli::Cli;
use taglock::run::{Failure, run};

/// Fewer and cheaper allocations than the system's on the small-request path.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("taglock: {failure}");
            match failure {
                Failure::Settings(_) => ExitCode::from(2),
                Failure::Start(_) => ExitCode::from(1),
            }
        }
    }
}
