//! What clients saw, and whether it may be so.

use std::collections::{BTreeMap, BTreeSet};

/// One request, by the clock of the test in microseconds.
#[derive(Clone, Debug)]
pub struct Event {
    pub invoked: u64,
    /// Far in the future while it is under way.
    pub completed: u64,
    /// Whom it was asked of.
    pub to: String,
    pub what: What,
}

#[derive(Clone, Debug)]
pub enum What {
    Push { tags: Vec<String>, digest: String, outcome: Pushed },
    Pull { tag: String, outcome: Pulled },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pushed {
    /// 201, for these tags.
    Acknowledged(Vec<String>),
    /// 409, for this tag, which is bound to this digest.
    Refused { tag: String, bound: String },
    /// An error that says that nothing is known, or no answer.
    Unclear,
    /// Something that no push may be answered with here.
    Wrong(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pulled {
    Found(String),
    NotFound,
    Unclear,
    Wrong(String),
}

/// What was tried on one tag, and what came of it.
#[derive(Default)]
struct Tag<'a> {
    /// Each digest, and when its first push began.
    tried: BTreeMap<&'a str, u64>,
    /// Digests that an acknowledgement, a pull or a refusal says the tag has.
    shown: BTreeMap<&'a str, &'a Event>,
    /// When the first acknowledged push had ended.
    acknowledged: Option<u64>,
    refusals: Vec<(&'a str, &'a str, &'a Event)>,
    pulls: Vec<(&'a Pulled, &'a Event)>,
}

/// All that is wrong with a history; empty where it is right.
///
/// For each tag: acknowledged pushes, successful pulls and refusals show one digest; it was pushed
/// before it was seen; no pull that began after an acknowledged push had ended finds nothing;
/// and nothing is refused before another digest was tried.
pub fn violations(history: &[Event]) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut tags = BTreeMap::<&str, Tag<'_>>::new();
    for event in history {
        match &event.what {
            What::Push { tags: named, digest, outcome } => {
                for tag in named {
                    let first = tags.entry(tag).or_default().tried.entry(digest);
                    let first = first.or_insert(event.invoked);
                    *first = event.invoked.min(*first);
                }
                match outcome {
                    Pushed::Acknowledged(taken) => {
                        for tag in taken {
                            let tag = tags.entry(tag).or_default();
                            tag.shown.entry(digest).or_insert(event);
                            let ended = tag.acknowledged.unwrap_or(u64::MAX).min(event.completed);
                            tag.acknowledged = Some(ended);
                        }
                    }
                    Pushed::Refused { tag, bound } => {
                        let tag = tags.entry(tag).or_default();
                        tag.shown.entry(bound).or_insert(event);
                        tag.refusals.push((digest, bound, event));
                    }
                    Pushed::Unclear => {}
                    Pushed::Wrong(what) => wrong.push(format!("{what}: {event:?}")),
                }
            }
            What::Pull { tag, outcome } => {
                let tag = tags.entry(tag).or_default();
                match outcome {
                    Pulled::Found(digest) => {
                        tag.shown.entry(digest).or_insert(event);
                    }
                    Pulled::Wrong(what) => wrong.push(format!("{what}: {event:?}")),
                    Pulled::NotFound | Pulled::Unclear => {}
                }
                tag.pulls.push((outcome, event));
            }
        }
    }
    for (name, tag) in tags {
        if tag.shown.len() > 1 {
            wrong.push(format!("{name} had several digests: {:#?}", tag.shown));
        }
        for (digest, pushed, event) in &tag.refusals {
            let rivals = tag.tried.iter().filter(|(tried, _)| *tried != digest);
            if rivals.clone().all(|(_, invoked)| *invoked >= event.completed) {
                wrong.push(format!("{name} was refused before a rival was tried: {event:?}"));
            }
            if tag.tried.get(pushed).is_none_or(|invoked| *invoked >= event.completed) {
                wrong.push(format!("{name} was refused for a digest nobody pushed: {event:?}"));
            }
        }
        for (outcome, event) in &tag.pulls {
            match outcome {
                Pulled::Found(digest) => {
                    let invoked = tag.tried.get(digest.as_str());
                    if invoked.is_none_or(|invoked| *invoked >= event.completed) {
                        wrong.push(format!("{name} was pulled before its push: {event:?}"));
                    }
                }
                Pulled::NotFound => {
                    if tag.acknowledged.is_some_and(|ended| event.invoked > ended) {
                        wrong.push(format!("{name} was lost after its push: {event:?}"));
                    }
                }
                Pulled::Unclear | Pulled::Wrong(_) => {}
            }
        }
    }
    wrong
}

/// All that was asked of the tag that a violation names first, in order.
pub fn story(history: &[Event], violation: &str) -> String {
    let name = violation.split(' ').next().unwrap_or_default();
    let mut events: Vec<_> = history
        .iter()
        .filter(|event| match &event.what {
            What::Push { tags, .. } => tags.iter().any(|tag| tag == name),
            What::Pull { tag, .. } => tag == name,
        })
        .collect();
    events.sort_by_key(|event| event.invoked);
    let line = |e: &&Event| format!("{}–{} {}: {:?}\n", e.invoked, e.completed, e.to, e.what);
    events.iter().map(line).collect()
}

/// The digest a history shows for each tag that was pushed; `None` where it shows none.
pub fn winners(history: &[Event]) -> BTreeMap<String, Option<String>> {
    let mut winners = BTreeMap::new();
    for event in history {
        let (tags, digest): (&[String], _) = match &event.what {
            What::Push { tags, digest, outcome } => {
                for tag in tags {
                    winners.entry(tag.clone()).or_insert(None);
                }
                match outcome {
                    Pushed::Acknowledged(taken) => (taken, digest),
                    Pushed::Refused { tag, bound } => (std::slice::from_ref(tag), bound),
                    Pushed::Unclear | Pushed::Wrong(_) => continue,
                }
            }
            What::Pull { tag, outcome: Pulled::Found(digest) } => {
                (std::slice::from_ref(tag), digest)
            }
            What::Pull { .. } => continue,
        };
        for tag in tags {
            winners.insert(tag.clone(), Some(digest.clone()));
        }
    }
    winners
}

/// How many requests came to what.
pub fn summary(history: &[Event]) -> String {
    let mut counts = BTreeMap::<_, u64>::new();
    let mut tags = BTreeSet::new();
    for event in history {
        let label = match &event.what {
            What::Push { tags: named, outcome, .. } => {
                tags.extend(named);
                match outcome {
                    Pushed::Acknowledged(_) => "pushes acknowledged",
                    Pushed::Refused { .. } => "pushes refused",
                    Pushed::Unclear => "pushes unclear",
                    Pushed::Wrong(_) => "pushes wrong",
                }
            }
            What::Pull { outcome, .. } => match outcome {
                Pulled::Found(_) => "pulls served",
                Pulled::NotFound => "pulls of nothing",
                Pulled::Unclear => "pulls unclear",
                Pulled::Wrong(_) => "pulls wrong",
            },
        };
        *counts.entry(label).or_default() += 1;
    }
    format!("{} tags, {counts:?}", tags.len())
}

fn event(invoked: u64, completed: u64, what: What) -> Event {
    Event { invoked, completed, to: String::new(), what }
}

fn push(invoked: u64, completed: u64, digest: &str, outcome: Pushed) -> Event {
    let tags = vec!["t".to_owned()];
    event(invoked, completed, What::Push { tags, digest: digest.to_owned(), outcome })
}

fn pull(invoked: u64, completed: u64, outcome: Pulled) -> Event {
    event(invoked, completed, What::Pull { tag: "t".to_owned(), outcome })
}

fn taken() -> Pushed {
    Pushed::Acknowledged(vec!["t".to_owned()])
}

fn refused(bound: &str) -> Pushed {
    Pushed::Refused { tag: "t".to_owned(), bound: bound.to_owned() }
}

fn found(digest: &str) -> Pulled {
    Pulled::Found(digest.to_owned())
}

#[test]
fn a_right_history_is_right() {
    let history = [
        pull(0, 1, Pulled::NotFound),
        push(1, 10, "a", taken()),
        push(2, 9, "b", refused("a")),
        push(2, 9, "b", Pushed::Unclear),
        // Seen before its acknowledgement, and nothing after: the pull began before.
        pull(3, 4, found("a")),
        pull(9, 12, Pulled::NotFound),
        push(20, 21, "a", taken()),
        pull(22, 23, Pulled::Unclear),
    ];
    assert_eq!(violations(&history), Vec::<String>::new());
    assert_eq!(winners(&history)["t"].as_deref(), Some("a"));
    // Nothing is known of what was not answered.
    let unclear = [push(0, 5, "a", Pushed::Unclear), pull(9, 10, found("a"))];
    assert_eq!(violations(&unclear), Vec::<String>::new());
    let unknown = [push(0, 5, "a", Pushed::Unclear)];
    assert_eq!(winners(&unknown)["t"], None);
}

#[test]
fn wrong_histories_are_found() {
    let a = || push(1, 10, "a", taken());
    let b = |outcome| push(2, 9, "b", outcome);
    let wrong: &[(&str, Vec<Event>)] = &[
        ("several digests", vec![a(), b(taken())]),
        ("several digests", vec![a(), b(Pushed::Unclear), pull(3, 4, found("b"))]),
        (
            "several digests",
            vec![
                push(1, 2, "a", Pushed::Unclear),
                b(Pushed::Unclear),
                pull(3, 4, found("a")),
                pull(5, 6, found("b")),
            ],
        ),
        ("several digests", vec![a(), b(Pushed::Unclear), push(3, 9, "c", refused("b"))]),
        ("before its push", vec![pull(0, 1, found("a")), a()]),
        ("before its push", vec![pull(3, 4, found("x"))]),
        ("lost after", vec![a(), pull(11, 12, Pulled::NotFound)]),
        ("before a rival", vec![push(1, 2, "a", refused("a"))]),
        ("before a rival", vec![push(1, 2, "a", refused("b")), push(2, 9, "b", taken())]),
        ("nobody pushed", vec![b(Pushed::Unclear), push(3, 4, "a", refused("x"))]),
        ("500 pages", vec![b(Pushed::Wrong("500 pages".into()))]),
        ("teapot", vec![pull(3, 4, Pulled::Wrong("teapot".into()))]),
    ];
    for (expected, history) in wrong {
        let found = violations(history);
        assert!(found.iter().any(|what| what.contains(expected)), "{expected}: {found:?}");
    }
    // A set of tags is held to it tag by tag.
    let both = vec!["t".to_owned(), "u".to_owned()];
    let set =
        What::Push { tags: both.clone(), digest: "b".into(), outcome: Pushed::Acknowledged(both) };
    let found = violations(&[a(), event(20, 30, set)]);
    assert!(found.len() == 1 && found[0].starts_with("t had several"), "{found:?}");
}
