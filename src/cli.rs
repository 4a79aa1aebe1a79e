//! The command line's types, and nothing else.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

/// Makes tags immutable in front of any container registry.
#[derive(Debug, Parser)]
#[command(name = "taglock", version, about, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Runs the proxy, from a file or from a few options.
    ///
    /// Exit status: 0 after a stop, 1 when it could not start or go on, 2 when the settings are
    /// wrong.
    Serve(Serve),
    /// Reports everything wrong with a file, and prints the rules as they will be applied.
    ///
    /// Exit status: 0 when the file can be used, 2 when not.
    Check {
        /// The file.
        file: PathBuf,
    },
    /// Looks after the ledger.
    #[command(subcommand)]
    Ledger(LedgerCommand),
    /// Asks a running taglock whether it lives: for health checks of containers.
    ///
    /// Exit status: 0 when it does, 1 when not.
    Health {
        /// Where its admin listener is.
        #[arg(env = "TAGLOCK_ADMIN", default_value = "127.0.0.1:5080")]
        address: SocketAddr,
        /// Asks whether ledger and registry answer, too.
        #[arg(long)]
        ready: bool,
    },
}

#[derive(Debug, Subcommand)]
pub enum LedgerCommand {
    /// Begins an empty ledger where there is none, with the id of the file, and prints its id.
    ///
    /// For a first start with `ledger.id`, and for a Redis or a folder that was emptied: without a
    /// backup, the tags are bound anew to what the registry has. A ledger that is there stays as it
    /// is, and it is an error when its id is not the file's.
    ///
    /// Exit status: 0 when the ledger is there, 1 when not, 2 when the settings are wrong.
    Init {
        /// The settings' file.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
}

#[derive(Debug, Args)]
pub struct Serve {
    /// The settings' file; `config/taglock.toml` documents every key.
    #[arg(long, value_name = "FILE", required_unless_present = "upstream")]
    pub config: Option<PathBuf>,
    /// The registry, such as `http://127.0.0.1:5001`: runs without a file.
    #[arg(long, value_name = "URL", conflicts_with = "config")]
    pub upstream: Option<String>,
    /// Repositories whose tags are immutable, such as `prod/**`; may be repeated.
    #[arg(long, value_name = "PATTERN", conflicts_with = "config")]
    pub immutable: Vec<String>,
    /// Where clients connect; may be repeated [default: 127.0.0.1:5000].
    #[arg(long, value_name = "ADDRESS", conflicts_with = "config")]
    pub listen: Vec<SocketAddr>,
    /// The folder of the embedded ledger [default: taglock-data].
    #[arg(long, value_name = "DIR", conflicts_with = "config")]
    pub data: Option<PathBuf>,
    /// Where /healthz, /readyz and /metrics are served, on a loopback address [default: nowhere].
    #[arg(long, value_name = "ADDRESS", conflicts_with = "config")]
    pub admin: Option<SocketAddr>,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_file_and_its_alternatives_exclude_each_other() {
        for bad in [
            &["taglock", "serve"][..],
            &["taglock", "serve", "--immutable", "a"],
            &["taglock", "serve", "--config", "a", "--upstream", "http://x"],
            &["taglock", "serve", "--upstream", "http://x", "--listen", "nowhere"],
            &["taglock", "check"],
            &["taglock", "health", "nowhere"],
        ] {
            assert!(Cli::try_parse_from(bad).is_err(), "{bad:?}");
        }
        let good =
            ["taglock", "serve", "--upstream", "http://x", "--immutable", "a", "--immutable", "b"];
        assert!(Cli::try_parse_from(good).is_ok());
    }
}
