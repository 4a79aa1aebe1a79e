//! The checker on histories that are known to be right or wrong.

use super::check::{NEVER, Operation, STEPS, Time, Verdict, check};
use super::spec::{Action, Binding, Deletes, Image, Rule, State};

const A: Image = Image(0);
const B: Image = Image(1);
const REFUSE: Rule = Rule::Immutable(Deletes::Refuse);
const KEEP: Rule = Rule::Immutable(Deletes::Keep);
const RELEASE: Rule = Rule::Immutable(Deletes::Release);

fn under(rule: Rule, invoked: Time, ended: Time, action: Action) -> Operation {
    let (rules, told) = (vec![rule], String::new());
    let (optional, may_keep, seen) = (false, false, (invoked, ended));
    Operation { invoked, ended, action, optional, rules, may_keep, told, seen }
}

fn op(invoked: Time, ended: Time, action: Action) -> Operation {
    under(RELEASE, invoked, ended, action)
}

fn maybe(invoked: Time, action: Action) -> Operation {
    Operation { optional: true, ..op(invoked, NEVER, action) }
}

/// The registry shows it from this instant on.
fn shown(at: Time, image: Option<Image>) -> Operation {
    op(at, at, Action::Shown(image))
}

fn pushed(invoked: Time, ended: Time, image: Image) -> Operation {
    op(invoked, ended, Action::Pushed(image))
}

/// A push whose PUT took effect in its middle.
fn push(at: Time, image: Image) -> [Operation; 2] {
    [pushed(at, at + 8, image), shown(at + 4, Some(image))]
}

/// A DELETE of the image that the tag shows, carried out in its middle.
fn delete(rule: Rule, at: Time, image: Image) -> [Operation; 3] {
    [
        under(rule, at + 5, at + 8, Action::Deleted(image)),
        under(rule, at + 4, at + 4, Action::Gone(image)),
        shown(at + 4, None),
    ]
}

/// The registry carries out a DELETE by tag after the name was freed, and bound to B.
fn untagged_late(may_keep: bool) -> Vec<Operation> {
    let late = Operation { may_keep, ..op(37, 40, Action::Untagged(B)) };
    let after = [late, shown(36, None), op(50, 51, Action::Pulled(B))];
    [&push(10, A)[..], &delete(RELEASE, 20, A), &push(28, B), &after].concat()
}

/// Two proxies: by the older rules one moves the tag from A to B, and by the newer ones the other binds it to A.
fn rolled_out(may_keep: bool) -> Vec<Operation> {
    let moved = Operation { may_keep, ..under(Rule::Mutable, 15, 18, Action::Pushed(B)) };
    vec![
        shown(1, Some(A)),
        op(10, 30, Action::Pulled(A)),
        moved,
        shown(14, Some(B)),
        op(40, 41, Action::Refused(A)),
    ]
}

fn verdict(parts: &[&[Operation]]) -> Verdict {
    check(&parts.concat(), State::unknown(None), STEPS)
}

#[test]
fn right_histories_are_allowed() {
    use Action::*;
    let right: &[(&str, &[&[Operation]])] = &[
        ("nothing", &[]),
        (
            "rivals",
            &[
                &push(10, A),
                &[op(5, 30, Refused(A)), op(0, 12, NotFound), op(11, 16, Pulled(A))],
                &[op(40, 41, Pulled(A)), op(40, 41, RefusedUnnamed(B)), pushed(42, 43, A)],
            ],
        ),
        (
            "released by an operator, adopted and withdrawn, while its DELETE is under way",
            &[
                &push(10, A),
                &[op(30, 31, Released(A)), op(40, 60, Refused(A))],
                &[under(KEEP, 50, 50, Gone(A)), shown(50, None), under(KEEP, 51, 70, Deleted(A))],
                &[op(65, 80, NotFound), op(75, 81, Refused(A))],
            ],
        ),
        ("freed by a DELETE", &[&push(10, A), &delete(RELEASE, 20, A), &push(30, B)]),
        (
            "404 while a DELETE is under way, and the name is not free yet",
            &[
                &push(10, A),
                &[op(31, 90, Deleted(A)), op(30, 30, Gone(A)), shown(30, None)],
                &[op(40, 41, NotFound), op(50, 51, Refused(A)), op(95, 96, NotFound)],
            ],
        ),
        (
            "withdrawn and pushed again",
            &[
                &push(10, A),
                &delete(KEEP, 20, A),
                &[under(KEEP, 30, 31, NotFound), under(KEEP, 30, 31, Refused(A))],
                &push(40, A),
                &[under(KEEP, 50, 51, Pulled(A))],
            ],
        ),
        ("released by an operator", &[&push(10, A), &[op(20, 21, Released(A))], &push(30, B)]),
        (
            "released while the registry shows it, and adopted again",
            &[
                &push(10, A),
                &[op(20, 21, Released(A)), op(30, 31, Refused(A)), op(30, 31, Pulled(A))],
            ],
        ),
        (
            "a release whose answer got lost",
            &[&push(10, A), &[maybe(20, Released(A)), shown(22, None)], &push(40, B)],
        ),
        (
            "adopted by somebody who was not told, before the registry lost the tag",
            &[&[shown(5, Some(A)), shown(10, None), op(20, 21, Refused(A))]],
        ),
        (
            "moved while the rule was mutable, then adopted",
            &[
                &push(10, A),
                &[under(Rule::Mutable, 20, 28, Pushed(B)), shown(24, Some(B))],
                &[
                    under(Rule::Mutable, 30, 31, Pulled(B)),
                    op(40, 41, Pulled(B)),
                    op(50, 51, Refused(B)),
                ],
            ],
        ),
        (
            "the tag was deleted past taglock while its push had not ended",
            &[&[pushed(10, 60, A), shown(14, Some(A)), op(20, 20, Hidden), op(30, 31, NotFound)]],
        ),
        (
            "a bound tag is pulled until the client of a mutable push is told, and its image deleted meanwhile",
            &[
                &push(10, A),
                &[under(Rule::Mutable, 25, 60, Pushed(B)), shown(24, Some(B)), shown(30, None)],
                &[op(40, 41, Pulled(A)), op(70, 71, NotFound)],
            ],
        ),
        (
            "a PUT comes late, and its image is deleted, while another image is claimed",
            &[
                &[pushed(10, 60, A), shown(14, Some(A)), op(16, 16, Strayed(Some(B), false))],
                &[op(20, 20, Strayed(None, true)), op(30, 31, NotFound), op(70, 71, Pulled(A))],
            ],
        ),
        ("a DELETE by tag finds another image than it looked at", &[&untagged_late(true)]),
        ("bound by newer rules beside a push by older ones", &[&rolled_out(true)]),
        (
            "lost with what the registry does not show",
            &[&push(10, A), &[shown(20, None), op(30, 31, Lost)], &push(40, B)],
        ),
    ];
    for (what, parts) in right {
        assert_eq!(verdict(parts), Verdict::Allowed, "{what}");
    }
}

#[test]
fn wrong_histories_are_found() {
    use Action::*;
    let both = |at| [under(REFUSE, at, at, Gone(A)), shown(at, None)];
    let wrong: &[(&str, &[&[Operation]])] = &[
        ("two images are acknowledged", &[&push(10, A), &push(20, B)]),
        ("another image is pulled", &[&push(10, A), &[op(20, 21, Pulled(B))]]),
        ("pulled before anybody had pushed it", &[&[op(0, 5, Pulled(A))], &push(10, A)]),
        ("a bound tag is not found", &[&push(10, A), &[op(20, 21, NotFound)]]),
        (
            "refused for an image that it is not bound to",
            &[&push(10, A), &[op(20, 21, Refused(B))]],
        ),
        (
            "a freed name is served again",
            &[&push(10, A), &delete(RELEASE, 20, A), &push(30, B), &[op(40, 41, Pulled(A))]],
        ),
        (
            "after a DELETE the name is still bound (D12, D18, D23)",
            &[&push(10, A), &delete(RELEASE, 20, A), &[op(30, 31, Refused(A))]],
        ),
        (
            "pushed while it is deleted, and then not found (D27)",
            &[
                &push(10, A),
                &[under(KEEP, 31, 90, Deleted(A)), under(KEEP, 30, 30, Gone(A)), shown(30, None)],
                &push(40, A),
                &[op(60, 61, Pulled(A)), op(95, 96, NotFound)],
            ],
        ),
        ("under `refuse` the image of a bound tag is deleted (D25)", &[&push(10, A), &both(20)]),
        (
            "a DELETE that was answered lands after a later push (D29)",
            &[
                &push(10, A),
                &delete(KEEP, 20, A),
                &push(30, A),
                // Nobody is open to carry it out: the strictest rule judges it.
                &both(50),
                &[under(KEEP, 60, 61, NotFound)],
            ],
        ),
        (
            "a judged push binds over a later mutable one (D5)",
            &[
                &[pushed(10, 60, A), shown(12, Some(A))],
                &[under(Rule::Mutable, 25, 28, Pushed(B)), shown(24, Some(B))],
                &[op(70, 71, Pulled(A))],
            ],
        ),
        (
            "two proxies acknowledge two images over a reload (D8, D9)",
            &[
                &[under(Rule::Mutable, 51, 60, Pushed(B)), shown(50, Some(B))],
                &push(10, A),
                &[op(70, 71, Pulled(A))],
            ],
        ),
        (
            "a release that took place is told as a conflict (D22)",
            &[&push(10, A), &[shown(20, None)], &push(30, B)],
        ),
        ("a loss lets a shown tag move", &[&push(10, A), &[op(20, 21, Lost)], &push(30, B)]),
        (
            "an image that the registry has not shown before it strays is acknowledged",
            &[&[op(16, 16, Strayed(Some(B), false)), pushed(20, 60, A), op(70, 71, Pulled(A))]],
        ),
        ("a DELETE by tag leaves the name bound", &[&untagged_late(false)]),
        ("bound by a proxy whose rules are the older ones, too", &[&rolled_out(false)]),
        (
            "a mutable pull shows what the registry does not",
            &[&[under(Rule::Mutable, 0, 1, Pulled(A))]],
        ),
        (
            "a release is acknowledged that freed nothing (D21)",
            &[&push(10, A), &[shown(19, None), op(20, 21, Released(A)), op(30, 31, Refused(A))]],
        ),
    ];
    for (what, parts) in wrong {
        let found = verdict(parts);
        assert!(matches!(found, Verdict::Wrong { .. }), "{what}: {found:?}");
    }
}

#[test]
fn what_is_told_of_a_wrong_history_is_where_it_went_wrong() {
    let operations =
        [&push(10, A)[..], &[op(20, 21, Action::Pulled(B)), op(30, 31, Action::Pulled(A))]];
    let bound = State::unknown(Some(A)).with(Binding::Bound(A));
    assert_eq!(verdict(&operations), Verdict::Wrong { explained: 2, state: bound, at: 2 });
}

#[test]
fn a_search_that_is_given_up_is_no_pass() {
    let rivals: Vec<_> = (0..20).flat_map(|n| push(n, A)).collect();
    assert_eq!(check(&rivals, State::unknown(None), 3), Verdict::TooHard);
    assert_eq!(check(&rivals, State::unknown(None), STEPS), Verdict::Allowed);
    let many: Vec<_> = (0..200).map(|n| maybe(n, Action::Released(A))).collect();
    assert_eq!(check(&many, State::unknown(None), STEPS), Verdict::TooHard);
}
