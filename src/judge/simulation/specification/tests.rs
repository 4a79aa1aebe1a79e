use super::*;

fn history(start: Option<Image>) -> Specification {
    Specification::new(1, (start, false), 0, Allows::default())
}

fn whole(specification: &mut Specification, kind: Kind, end: End) -> bool {
    let op = specification.begin(kind, [0]);
    specification.end(op, 0, end)
}

#[test]
fn one_after_the_other_has_one_order() {
    let mut tag = history(None);
    assert!(whole(&mut tag, Kind::Pull, End::NotFound));
    assert!(whole(&mut tag, Kind::Push(0), End::Done));
    assert!(whole(&mut tag, Kind::Push(1), End::Conflict(0)));
    assert!(whole(&mut tag, Kind::Pull, End::Served(0)));
    assert!(whole(&mut tag, Kind::Delete(0, Some(Deletes::Release)), End::Done));
    assert!(whole(&mut tag, Kind::Push(1), End::Done));
    assert!(!whole(&mut tag.clone(), Kind::Pull, End::Served(0)));
    assert!(!whole(&mut tag.clone(), Kind::Pull, End::NotFound));
    assert!(!whole(&mut tag.clone(), Kind::Delete(1, Some(Deletes::Refuse)), End::Done));
    assert!(whole(&mut tag, Kind::Delete(1, Some(Deletes::Keep)), End::Done));
    assert!(!whole(&mut tag.clone(), Kind::Pull, End::Served(1)));
    assert!(whole(&mut tag, Kind::Push(0), End::Conflict(1)));
}

#[test]
fn at_once_has_any_order_and_an_end_is_an_end() {
    let mut tag = history(None);
    let (first, second) = (tag.begin(Kind::Push(0), [0]), tag.begin(Kind::Push(1), [0]));
    assert!(tag.end(second, 0, End::Done));
    assert!(!tag.clone().end(first, 0, End::Done));
    assert!(!tag.clone().end(first, 0, End::Conflict(0)));
    assert!(tag.end(first, 0, End::Conflict(1)));
    // One whose outcome is unknown has taken effect by its end, or never does.
    let mut tag = history(None);
    assert!(whole(&mut tag, Kind::Push(0), End::Unknown));
    assert!(whole(&mut tag.clone(), Kind::Pull, End::Served(0)));
    assert!(whole(&mut tag, Kind::Pull, End::NotFound));
    assert!(!whole(&mut tag, Kind::Pull, End::Served(0)));
    // Unless its PUT is on its way still.
    let mut tag = history(None);
    let late = tag.begin(Kind::LatePut(0), [0]);
    assert!(whole(&mut tag, Kind::Pull, End::NotFound));
    assert!(whole(&mut tag, Kind::Pull, End::Served(0)));
    assert!(tag.end(late, 0, End::Done));
    assert!(!whole(&mut tag, Kind::Pull, End::NotFound));
}

#[test]
fn one_that_may_have_happened_leaves_both_open() {
    let mut tag = Specification::new(1, (None, false), 2, Allows::default());
    let (first, second) = (tag.begin_push(0, 0), tag.begin_push(1, 1));
    assert!(tag.end(first, 0, End::Unknown));
    assert!(tag.allows(0, &[(Kind::Pull, End::Served(0))]));
    assert!(tag.allows(0, &[(Kind::Pull, End::Served(1))]));
    assert!(tag.allows(0, &[(Kind::Pull, End::NotFound)]));
    assert!(tag.end(second, 0, End::Done));
    assert!(!tag.allows(0, &[(Kind::Pull, End::Served(0))]));
}

#[test]
fn what_the_registry_shows_is_adopted() {
    let mut tag = history(Some(2));
    assert!(!whole(&mut tag.clone(), Kind::Push(0), End::Done));
    assert!(!whole(&mut tag.clone(), Kind::Pull, End::NotFound));
    assert!(whole(&mut tag, Kind::Push(0), End::Conflict(2)));
    assert!(whole(&mut tag, Kind::Release(2), End::Done));
    assert!(whole(&mut tag, Kind::Write(0), End::Done));
    assert!(whole(&mut tag, Kind::Pull, End::Served(0)));
}
