//! The operators' commands: from the file to the taglock it is for, or to its store.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use super::{Failure, ledgers, print};
use crate::admin::model::{ClearDelete, ListQuery, ReleaseRequest};
use crate::cli::{self, Common, LedgerCommand};
use crate::console::{self, Client, Stopped, Telling, Way, aside};
use crate::rules::lint::{self, Remark, Weight};
use crate::settings::{self, Problems, Settings};

/// How long somebody may take to pick up.
const CONNECT: Duration = Duration::from_secs(3);

/// Whether a command can do with the store where no taglock runs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Needs {
    Running,
    Store,
    /// A store, which may begin.
    NewStore,
}

pub(super) fn ledger(command: LedgerCommand) -> Result<(), Failure> {
    match command {
        LedgerCommand::Init { common } => {
            let settings = settings::read_file(&common.config)?;
            let (id, place) = ledgers::init(&settings)?;
            match common.json {
                true => print(&format!("{}\n", serde_json::json!({ "id": id, "place": place }))),
                false => print(&format!("the ledger at {place} is {id}\n")),
            }
        }
        LedgerCommand::List { common, repository, tag_prefix, state } => {
            let query = ListQuery { repository, tag_prefix, state, ..ListQuery::default() };
            Ok(console::list(&way(&common, Needs::Store)?, telling(&common), query)?)
        }
        LedgerCommand::Show { reference, common } => {
            Ok(console::show(&way(&common, Needs::Store)?, telling(&common), &reference)?)
        }
        LedgerCommand::Import { repositories, jobs, actor, common } => {
            let way = way(&common, Needs::Running)?;
            Ok(console::import(&way, telling(&common), repositories, jobs, actor)?)
        }
        LedgerCommand::Verify { repositories, jobs, common } => {
            let way = way(&common, Needs::Running)?;
            Ok(console::verify(&way, telling(&common), &repositories, jobs)?)
        }
        LedgerCommand::Release { reference, reason, actor, digest, pending, common } => {
            let way = way(&common, Needs::Running)?;
            let no_one = String::new();
            let request = ReleaseRequest { reference, reason, actor: no_one, digest, pending };
            Ok(console::release(&way, telling(&common), request, actor)?)
        }
        LedgerCommand::DeleteMarks { repository, common } => {
            let way = way(&common, Needs::Running)?;
            Ok(console::delete_marks(&way, telling(&common), &repository)?)
        }
        LedgerCommand::ClearDelete { repository, digest, reason, actor, common } => {
            let way = way(&common, Needs::Running)?;
            let no_one = String::new();
            let request = ClearDelete { repository, digest, reason, actor: no_one };
            Ok(console::clear_delete(&way, telling(&common), request, actor)?)
        }
        LedgerCommand::Export { common } => Ok(console::export(&way(&common, Needs::Store)?)?),
        LedgerCommand::Restore { file, actor, common } => {
            let way = way(&common, Needs::NewStore)?;
            Ok(console::restore(&way, telling(&common), &file, actor)?)
        }
    }
}

pub(super) fn explain(
    reference: &str,
    digest: Option<&str>,
    common: &Common,
) -> Result<(), Failure> {
    let way = way(common, Needs::Running)?;
    Ok(console::explain(&way, telling(common), reference, digest)?)
}

fn telling(common: &Common) -> Telling {
    Telling { json: common.json }
}

/// The taglock that runs by this file, or the store of one that does not.
fn way(common: &Common, needs: Needs) -> Result<Way, Failure> {
    let file = common.config.display();
    let settings = settings::read_file(&common.config)?;
    let admin = settings.admin.as_ref();
    if let Some(admin) = admin
        && let Some(address) = listening(admin.address)?
    {
        if let Some(token) = &admin.token {
            let client = Client::new(address, token.expose());
            aside(&format!("asking the taglock at {}", client.base()));
            return Ok(Way::Running(client));
        }
        if needs == Needs::Running {
            let text = format!(
                "the taglock at {address} can't be asked without a token: `admin.token_file` in \
                 `{file}` names none (`openssl rand -hex 32 > admin.token`, and start it again)"
            );
            return Err(console::Failure::Usage(text).into());
        }
    }
    if needs == Needs::Running {
        return Err(match admin {
            None => console::Failure::Usage(format!(
                "`{file}` has no `[admin]`, so the taglock that runs by it can't be asked"
            )),
            Some(admin) => console::Failure::Unknown(format!(
                "no taglock answers at {}, where `{file}` has its admin listener",
                admin.address
            )),
        }
        .into());
    }
    let opened = ledgers::open_stopped(&settings, needs == Needs::NewStore);
    // It could not be opened: that is no "no".
    let unknown = |failure: Failure| match failure {
        Failure::Start(text) => console::Failure::Unknown(text).into(),
        other => other,
    };
    let ledger = opened.map_err(unknown)?;
    let why = if admin.is_some() { "no taglock can be asked" } else { "there is no `[admin]`" };
    aside(&format!("{why}: using the store itself ({})", ledgers::place(&settings)));
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.map_err(|e| console::Failure::Unknown(e.to_string()))?;
    let (upstream, naming) = (settings.upstream.name, settings.upstream.doors.naming);
    Ok(Way::Stopped(Stopped { ledger, upstream, naming, runtime }))
}

/// The address, where somebody listens; `None` where nobody does.
fn listening(mut address: SocketAddr) -> Result<Option<SocketAddr>, Failure> {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    match TcpStream::connect_timeout(&address, CONNECT) {
        Ok(_) => Ok(Some(address)),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(None),
        Err(error) => {
            let text = format!("the admin listener at {address} can't be reached: {error}");
            Err(console::Failure::Unknown(text).into())
        }
    }
}

/// What is wrong with a file, or how its rules will be applied and what in them may not be meant.
pub(super) fn check(file: &Path, strict: bool, json: bool) -> Result<(), Failure> {
    let settings = match settings::read_file(file) {
        Ok(settings) => settings,
        Err(problems) if json => {
            print(&checked(Err(&problems)))?;
            return Err(problems.into());
        }
        Err(problems) => return Err(problems.into()),
    };
    let remarks = lint::remarks(&settings.rules);
    match json {
        true => print(&checked(Ok((&settings, &remarks))))?,
        false => print(&settings::describe(&settings))?,
    }
    for Remark { weight, rule, source, text } in &remarks {
        aside(&format!("{}: {source}: rule `{rule}`: {text}", weight.as_str()));
    }
    match strict && remarks.iter().any(|remark| remark.weight == Weight::Warning) {
        true => Err(console::Failure::Told.into()),
        false => Ok(()),
    }
}

fn checked(result: Result<(&Settings, &[Remark]), &Problems>) -> String {
    let document = match result {
        Ok((settings, remarks)) => {
            let remarks = remarks.iter().map(|Remark { weight, rule, source, text }| {
                serde_json::json!({
                    "weight": weight.as_str(), "rule": rule, "source": source.to_string(), "text": text,
                })
            });
            serde_json::json!({
                "ok": true,
                "fingerprint": settings.rules.fingerprint().to_string(),
                "remarks": remarks.collect::<Vec<_>>(),
                "warnings": settings::warnings(settings),
            })
        }
        Err(Problems(problems)) => {
            let problems = problems.iter().map(|problem| {
                serde_json::json!({
                    "place": problem.place, "key": problem.key, "message": problem.message,
                    "hint": problem.hint,
                })
            });
            serde_json::json!({ "ok": false, "problems": problems.collect::<Vec<_>>() })
        }
    };
    format!("{document}\n")
}

pub(super) fn completions(shell: cli::Shell) -> Result<(), Failure> {
    print(&String::from_utf8_lossy(&cli::completions(shell)))
}

pub(super) fn manual(folder: Option<&Path>) -> Result<(), Failure> {
    let unwritten = |what: &Path, e: std::io::Error| {
        Failure::Start(format!("`{}` can't be written: {e}", what.display()))
    };
    let pages = cli::manual().map_err(|e| Failure::Start(e.to_string()))?;
    let Some(folder) = folder else {
        let first = pages.first().map(|(_, page)| String::from_utf8_lossy(page).into_owned());
        return print(&first.unwrap_or_default());
    };
    std::fs::create_dir_all(folder).map_err(|e| unwritten(folder, e))?;
    for (name, page) in pages {
        let path = folder.join(name);
        std::fs::write(&path, page).map_err(|e| unwritten(&path, e))?;
    }
    Ok(())
}
