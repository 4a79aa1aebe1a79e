//! Pushes beside delete marks.

use super::check::Time;
use super::record::{Asked, Kind, Record, Request, Seen, Told};
use super::spec::Rule;

/// Pushes that were acknowledged though a delete mark must have stood on their image from before their
/// start until after their end: the registry had been asked to delete it, and did it later.
pub fn pushed_under_a_mark(record: &Record, seen: &Seen) -> Vec<Request> {
    let requests = record.requests.lock().unwrap();
    let mut wrong = Vec::new();
    for (number, (asked, image)) in &seen.asked {
        let mut carried = seen.deleted.iter().filter(|(_, _, request)| request == number);
        let Some((until, ..)) = carried.next() else { continue };
        // One by tag may have been of this image, too.
        let of_it = |r: &&Request| r.asked == Asked::Delete(*image) || r.asked == Asked::DeleteTag;
        let deletes: Vec<_> = requests.iter().filter(of_it).collect();
        let within = requests.iter().filter(|push| {
            (push.asked, &push.told) == (Asked::Push(*image), &Told::Done)
                && (push.invoked > *asked && push.ended < *until)
        });
        let marked = |push: &&Request| record.stands(&deletes, *asked, push);
        wrong.extend(within.filter(marked).cloned());
    }
    wrong
}

impl Record {
    /// Whether the mark of the DELETE that the registry was asked for at this time must stand at the end
    /// of this push of its image, and the push has to look for it.
    fn stands(&self, deletes: &[&Request], asked: Time, push: &Request) -> bool {
        let open = |r: &Request| r.ended >= asked || matches!(r.told, Told::Unclear(_));
        let by_digest = deletes.iter().filter(|r| r.asked != Asked::DeleteTag);
        let own: Vec<_> = by_digest.filter(|r| r.invoked <= asked && open(r)).collect();
        // Its own rule knows of marks, and so does that of the DELETE, or they are one process's.
        let judged = |r: &Request| !self.rules(r).contains(&Rule::Mutable);
        let known = own.iter().all(|r| judged(r) || r.proxy == push.proxy);
        // Another DELETE of the image may have ended the mark.
        let ended = deletes.iter().any(|r| {
            let other = own.len() > 1 || own.iter().any(|own| own.invoked != r.invoked);
            let definitive = matches!(r.told, Told::Done | Told::NotFound);
            other && definitive && r.ended >= asked && r.invoked <= push.ended
        });
        let undone = self.events.lock().unwrap().iter().any(|event| {
            matches!(event.kind, Kind::Loss | Kind::Kill(_))
                && event.ended >= asked
                && event.invoked <= push.ended
        });
        judged(push) && known && !ended && !undone
    }
}
