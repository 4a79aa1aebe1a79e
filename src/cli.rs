//! The command line's types, and what is made of them: completions and manual pages.

mod generated;

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

pub use clap_complete::Shell;
pub use generated::{completions, manual};

/// Makes tags immutable in front of any container registry.
///
/// Exit status of all commands: 0 when it is done; 1 when the answer is no: drift, not found,
/// refused, a conflict; 2 when the command line or the settings are wrong; 3 when it could not be
/// found out: no proxy, ledger or registry answered. Data goes to standard output, everything else
/// to standard error.
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
    /// What in the rules may not be meant is told on standard error.
    ///
    /// Exit status: 0 when the file can be used, 2 when not; with `--strict` 1 where there is a
    /// warning.
    Check {
        /// The file.
        file: PathBuf,
        /// Warnings count as failures; notes don't.
        #[arg(long)]
        strict: bool,
        /// Prints what was found as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Tells why a tag is immutable or not, what ledger and registry say of it, and what a push
    /// would get.
    ///
    /// Asks the running taglock through its admin API.
    ///
    /// Exit status: 0 when it is told, 2 when the settings are wrong, 3 when it could not be found
    /// out.
    Explain {
        /// `repository:tag`.
        #[arg(value_name = "REPO:TAG")]
        reference: String,
        /// What would be pushed.
        #[arg(long, value_name = "DIGEST")]
        digest: Option<String>,
        #[command(flatten)]
        common: Common,
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
    /// Prints completions for a shell.
    Completions { shell: Shell },
    /// Prints the manual page, or writes those of all commands into a folder.
    Man {
        /// The folder.
        folder: Option<PathBuf>,
    },
}

/// What all commands that ask a taglock take.
#[derive(Clone, Debug, Args)]
pub struct Common {
    /// The settings' file of that taglock: it says where its admin API and its ledger are.
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Prints JSON.
    #[arg(long)]
    pub json: bool,
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
        #[command(flatten)]
        common: Common,
    },
    /// Prints the entries of the ledger.
    ///
    /// From the running taglock, or from the store where none runs. With `--json`, one object a
    /// line.
    ///
    /// Exit status: 0, or 2 when the settings are wrong, 3 when they could not be read.
    List {
        #[command(flatten)]
        common: Common,
        /// Only of this repository.
        #[arg(long, value_name = "REPO")]
        repository: Option<String>,
        /// Only tags that begin so.
        #[arg(long, value_name = "TEXT")]
        tag_prefix: Option<String>,
        /// Only `sealed` or only `pending` ones.
        #[arg(long, value_parser = ["sealed", "pending"])]
        state: Option<String>,
    },
    /// Prints one entry.
    ///
    /// From the running taglock, or from the store where none runs.
    ///
    /// Exit status: 0, or 1 when the ledger has no such entry, 2 when the settings are wrong, 3 when
    /// it could not be found out.
    Show {
        /// `repository:tag`.
        #[arg(value_name = "REPO:TAG")]
        reference: String,
        #[command(flatten)]
        common: Common,
    },
    /// Binds the protected tags that are in the registry already.
    ///
    /// All repositories of the registry's catalogue, or those that are named. It looks with the
    /// account of `upstream.credentials_file`, or as anybody. Safe beside running pushes; what is
    /// bound already is not looked at, so it may be broken off and begun again.
    ///
    /// Exit status: 0 when all are bound, 2 when the settings are wrong, 3 when some could not be.
    Import {
        /// Only these.
        #[arg(value_name = "REPO")]
        repositories: Vec<String>,
        /// How many requests at once.
        #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=64))]
        jobs: u8,
        /// Who, for the audit [default: the user of the system].
        #[arg(long, value_name = "NAME")]
        actor: Option<String>,
        #[command(flatten)]
        common: Common,
    },
    /// Compares the ledger with the registry, and prints the tags that differ.
    ///
    /// What differs is known to the running taglock as drift from then on: `/metrics` counts it,
    /// and pulls carry a warning.
    ///
    /// Exit status: 0 when nothing differs, 1 when something does, 2 when the settings are wrong,
    /// 3 when nothing was found to differ and not all could be compared.
    Verify {
        /// Only these.
        #[arg(value_name = "REPO")]
        repositories: Vec<String>,
        /// How many requests at once.
        #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=64))]
        jobs: u8,
        #[command(flatten)]
        common: Common,
    },
    /// Frees a name by hand: any image may be pushed to it then.
    ///
    /// Audited. What the registry has under the tag stays there, and counts again with the next push
    /// or pull: delete it there first, if another image is to take its place.
    ///
    /// Exit status: 0 when it is free, 1 when there is no such entry or it is not what was meant, 2
    /// when the settings or the command line are wrong, 3 when it could not be done.
    Release {
        /// `repository:tag`.
        #[arg(value_name = "REPO:TAG")]
        reference: String,
        /// Why, for the audit.
        #[arg(long, value_name = "TEXT")]
        reason: String,
        /// Who, for the audit [default: the user of the system].
        #[arg(long, value_name = "NAME")]
        actor: Option<String>,
        /// Only if it is bound to this.
        #[arg(long, value_name = "DIGEST")]
        digest: Option<String>,
        /// Lets go of a claim whose push has not ended. If that push is still under way it may
        /// land later, in the registry alone. Pushing the claimed image again is the safe way.
        #[arg(long)]
        pending: bool,
        #[command(flatten)]
        common: Common,
    },
    /// Prints the delete marks of a repository: deletes that are under way, or whose outcome is unknown.
    ///
    /// While a mark stands, pushes of the image get 503. A delete that the registry answers for good
    /// removes it.
    ///
    /// Exit status: 0, or 2 when the settings are wrong, 3 when they could not be read.
    DeleteMarks {
        #[arg(value_name = "REPO")]
        repository: String,
        #[command(flatten)]
        common: Common,
    },
    /// Removes the delete mark of an image, so that tags can be bound to it again.
    ///
    /// Audited. For a delete whose outcome the registry did not tell, and that cannot be repeated. If it
    /// is still carried out later, an image that was pushed since is gone from the registry.
    ///
    /// Exit status: 0 when there is none any more, 1 when there was none or the delete is under way, 2
    /// when the settings or the command line are wrong, 3 when it could not be done.
    ClearDelete {
        #[arg(value_name = "REPO")]
        repository: String,
        #[arg(value_name = "DIGEST")]
        digest: String,
        /// Why, for the audit.
        #[arg(long, value_name = "TEXT")]
        reason: String,
        /// Who, for the audit [default: the user of the system].
        #[arg(long, value_name = "NAME")]
        actor: Option<String>,
        #[command(flatten)]
        common: Common,
    },
    /// Prints the whole ledger as JSON lines, for `restore`: a header, the entries, a footer.
    ///
    /// From the running taglock, or from the store where none runs.
    ///
    /// Exit status: 0 when it is whole, 2 when the settings are wrong, 3 when it is not.
    Export {
        #[command(flatten)]
        common: Common,
    },
    /// Binds what is missing of an export. What the ledger has stays as it is.
    ///
    /// Through the running taglock, or in the store where none runs.
    ///
    /// Exit status: 0, or 1 when the ledger has other images than the export, 2 when the settings or
    /// the export are wrong, 3 when it could not be done or the export is not whole.
    Restore {
        /// The export; `-` for standard input.
        file: PathBuf,
        /// Who, for the audit [default: the user of the system].
        #[arg(long, value_name = "NAME")]
        actor: Option<String>,
        #[command(flatten)]
        common: Common,
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
            &["taglock", "explain", "a:b"],
            &["taglock", "ledger", "release", "a:b", "--config", "c"],
            &["taglock", "ledger", "import", "--config", "c", "--jobs", "0"],
            &["taglock", "ledger", "list", "--config", "c", "--state", "open"],
            &["taglock", "health", "nowhere"],
        ] {
            assert!(Cli::try_parse_from(bad).is_err(), "{bad:?}");
        }
        let good =
            ["taglock", "serve", "--upstream", "http://x", "--immutable", "a", "--immutable", "b"];
        assert!(Cli::try_parse_from(good).is_ok());
    }

    #[test]
    fn every_command_tells_its_exit_status_but_those_that_only_print() {
        fn check(command: &clap::Command, path: &str) {
            for sub in command.get_subcommands() {
                let path = format!("{path} {}", sub.get_name());
                if sub.has_subcommands() {
                    check(sub, &path);
                } else if !matches!(sub.get_name(), "completions" | "man" | "help") {
                    let help = sub.get_long_about().map(ToString::to_string).unwrap_or_default();
                    assert!(help.contains("Exit status: 0"), "{path}");
                }
            }
        }
        check(&Cli::command(), "taglock");
    }
}
