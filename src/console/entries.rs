//! Single entries and lists of them.

use super::{Failure, Telling, Way, actor, aside, data, json};
use crate::admin::export::{self, Wanted};
use crate::admin::model::{
    EntryPage, Explanation, LedgerEntry, ListQuery, PushOutcome, ReleaseRequest, Released, State,
};
use crate::ledger::{Ledger, RepositoryKey, Unavailable};
use crate::name::Tag;

impl From<Unavailable> for Failure {
    fn from(error: Unavailable) -> Self {
        Self::Unknown(error.to_string())
    }
}

/// # Errors
/// See [`Failure`].
pub fn list(way: &Way, telling: Telling, mut query: ListQuery) -> Result<(), Failure> {
    query.limit = Some(1000);
    loop {
        let page = page(way, &query)?;
        let lines = page.entries.iter().map(|entry| match telling.json {
            true => json(entry),
            false => line(entry),
        });
        data(&lines.collect::<String>())?;
        match page.next {
            Some(next) => query.after = Some(next),
            None => return Ok(()),
        }
    }
}

pub(super) fn page(way: &Way, query: &ListQuery) -> Result<EntryPage, Failure> {
    match way {
        Way::Running(client) => {
            let limit = query.limit.map(|limit| limit.to_string());
            let pairs = [
                ("repository", &query.repository),
                ("tag_prefix", &query.tag_prefix),
                ("state", &query.state),
                ("after", &query.after),
                ("limit", &limit),
            ];
            let pairs = pairs.iter().filter_map(|(name, value)| Some((*name, value.as_deref()?)));
            client.get("/v1/ledger", &pairs.collect::<Vec<_>>())
        }
        Way::Stopped(stopped) => {
            let wanted = Wanted::new(query, &stopped.naming).map_err(Failure::Usage)?;
            let page = export::page(&*stopped.ledger, &stopped.upstream, wanted);
            Ok(stopped.runtime.block_on(page)?)
        }
    }
}

/// An entry on one line.
fn line(entry: &LedgerEntry) -> String {
    let reference = format!("{}:{}", entry.repository, entry.tag);
    let state = match (entry.state, &entry.withdrawn) {
        (State::Pending, _) => "pending",
        (State::Sealed, None) => "sealed",
        (State::Sealed, Some(_)) => "withdrawn",
    };
    let origin = entry.origin.as_deref().unwrap_or("-");
    format!("{reference:<40} {state:<9} {} {} {origin}\n", entry.digest, entry.since)
}

/// # Errors
/// See [`Failure`].
pub fn show(way: &Way, telling: Telling, reference: &str) -> Result<(), Failure> {
    let (name, tag) = export::reference(reference).map_err(Failure::Usage)?;
    let entry = match way {
        Way::Running(client) => client.get("/v1/entry", &[("reference", reference)])?,
        Way::Stopped(stopped) => {
            let name =
                stopped.naming.repository(name).map_err(|e| Failure::Usage(e.to_string()))?;
            let key = RepositoryKey { upstream: stopped.upstream.clone(), repository: name };
            let tag = stopped.naming.tag(tag);
            let entry = stopped.runtime.block_on(looked_up(&*stopped.ledger, &key, &tag))?;
            entry.ok_or_else(|| Failure::No(format!("the ledger has no `{reference}`")))?
        }
    };
    telling.tell(&entry, || {
        let mut out = format!("{}:{}\n", entry.repository, entry.tag);
        out += &sentence(&entry);
        out.push('\n');
        out
    })
}

async fn looked_up(
    ledger: &dyn Ledger,
    key: &RepositoryKey,
    tag: &Tag,
) -> Result<Option<LedgerEntry>, Unavailable> {
    let entries = ledger.lookup(key, std::slice::from_ref(tag)).await?.entries;
    Ok(entries.first().and_then(|entry| export::shown(key, tag, entry)))
}

fn sentence(entry: &LedgerEntry) -> String {
    let LedgerEntry { digest, since, .. } = entry;
    match entry.state {
        State::Pending => {
            let pushes = entry.pushes.unwrap_or_default();
            format!("claimed for {digest} since {since} by {pushes} pushes that have not ended")
        }
        State::Sealed => {
            let by = match entry.origin.as_deref() {
                Some("push") => "a push",
                Some("import") => "import: it was in the registry",
                Some("first-sight") => "the first pull that saw it",
                _ => "unknown",
            };
            let withdrawn = match &entry.withdrawn {
                Some(when) => format!("; deleted at {when}, and its name kept"),
                None => String::new(),
            };
            format!("bound to {digest} since {since} by {by}{withdrawn}")
        }
    }
}

/// # Errors
/// See [`Failure`].
pub fn release(
    way: &Way,
    telling: Telling,
    mut request: ReleaseRequest,
    named: Option<String>,
) -> Result<(), Failure> {
    let Way::Running(client) = way else {
        return Err(Failure::Unknown("a name is released through a running taglock".into()));
    };
    if request.reason.trim().is_empty() {
        return Err(Failure::Usage("`--reason` says why, for the audit".into()));
    }
    request.actor = actor(named);
    if request.pending {
        aside(
            "a push of the claimed image that is still under way may land in the registry later; \
             pulls go by the ledger all the same",
        );
    }
    let released: Released = client.post("/v1/release", &request)?;
    if released.remembered_seconds > 0 {
        aside(&format!(
            "other proxies of the ledger may serve what it was bound to for another {} s",
            released.remembered_seconds
        ));
    }
    aside("what the registry has under the tag counts again");
    telling.tell(&released, || {
        format!("{} is free; it was {}\n", request.reference, sentence(&released.entry))
    })
}

/// # Errors
/// See [`Failure`].
pub fn explain(
    way: &Way,
    telling: Telling,
    reference: &str,
    digest: Option<&str>,
) -> Result<(), Failure> {
    export::reference(reference).map_err(Failure::Usage)?;
    let Way::Running(client) = way else {
        return Err(Failure::Unknown("only a running taglock can explain".into()));
    };
    let mut query = vec![("reference", reference)];
    query.extend(digest.map(|digest| ("digest", digest)));
    let explanation: Explanation = client.get("/v1/explain", &query)?;
    telling.tell(&explanation, || explained(&explanation))
}

fn explained(explanation: &Explanation) -> String {
    let Explanation { repository, tag, mutability, because, rule, entry, registry, push } =
        explanation;
    let rule = match rule {
        Some(rule) => {
            format!("{}. {} ({}), by its `{}`", rule.number, rule.name, rule.source, rule.pattern)
        }
        None => "none".to_owned(),
    };
    let ledger = entry.as_ref().map_or_else(|| "nothing".to_owned(), sentence);
    let said = match (&registry.digest, registry.answer.as_str()) {
        (Some(digest), _) => digest.clone(),
        (None, "not-found") => "nothing".to_owned(),
        (None, _) => format!("not known: {}", registry.why.as_deref().unwrap_or("it did not say")),
    };
    let differs = match (entry, &registry.digest) {
        (Some(entry), Some(digest)) if entry.digest != *digest => ", which is another image",
        _ => "",
    };
    let outcome = match push.outcome {
        PushOutcome::Accepted => "accepted",
        PushOutcome::Refused => "refused",
        PushOutcome::Depends => "depends",
    };
    format!(
        "{repository}:{tag} is {mutability}: {because}\nrule      {rule}\nledger    {ledger}\n\
         registry  {said}{differs}\na push    {outcome}: {}\n",
        push.text
    )
}

/// All sealed entries, page by page, until the callback has enough.
pub(super) fn each_page(
    way: &Way,
    repository: Option<&str>,
    mut each: impl FnMut(Vec<LedgerEntry>) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut query = ListQuery {
        repository: repository.map(str::to_owned),
        state: Some("sealed".to_owned()),
        limit: Some(1000),
        ..ListQuery::default()
    };
    loop {
        let EntryPage { entries, next } = page(way, &query)?;
        each(entries)?;
        match next {
            Some(next) => query.after = Some(next),
            None => return Ok(()),
        }
    }
}
