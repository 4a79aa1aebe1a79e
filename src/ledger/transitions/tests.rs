use super::*;
use crate::ledger::contract::{digest, few_offers, orders, pending, tag};

fn take(offers: &[Offer], before: &Entry) -> Restoring {
    let mut state = Restoring { entry: before.clone(), off: None };
    for offer in offers {
        state.offered(offer);
    }
    state
}

#[test]
fn what_offers_come_to_depends_on_no_order() {
    let befores = [Entry::Absent, pending(2), pending(9), few_offers()[2].entry()];
    let mut checked = 0;
    for before in &befores {
        for offers in orders(&few_offers(), 5) {
            let mut sorted = offers.clone();
            sorted.sort_by_key(|offer| format!("{offer:?}"));
            assert_eq!(take(&offers, before), take(&sorted, before), "{offers:?}");
            // One that is repeated, as a call whose answer was lost, changes nothing.
            let twice: Vec<_> = offers.iter().chain(&offers).cloned().collect();
            assert_eq!(take(&twice, before), take(&sorted, before));
            checked += 1;
        }
    }
    assert!(checked > 10_000, "{checked}");
}

#[test]
fn the_newest_binding_or_release_wins() {
    let bound = |seed: u8, sequence: u64| Offer {
        tag: tag("t"),
        state: Offered::Bound {
            digest: digest(seed),
            origin: Origin::Push,
            since: Timestamp::EPOCH,
            withdrawn: None,
        },
        sequence,
    };
    let freed = |sequence| Offer { tag: tag("t"), state: Offered::Freed, sequence };
    let none = Entry::Absent;
    // Bound, freed, and bound to another image; a proxy missed what came after the first.
    let all = [bound(1, 2), freed(3), bound(3, 4)];
    for offers in orders(&all, 3) {
        let newest = offers.iter().max_by_key(|offer| offer.sequence).map(Offer::entry);
        assert_eq!(take(&offers, &none).entry, newest.unwrap_or(Entry::Absent));
    }
    // Freed with nobody after it.
    let state = take(&[freed(3), bound(1, 2)], &none);
    assert_eq!(state, Restoring { entry: Entry::Absent, off: Some(3) });
    // The very binding that was freed.
    assert_eq!(take(&[bound(1, 3), freed(3)], &none).entry, Entry::Absent);
    // What was claimed after the loss is newer, and what was claimed before the binding is older.
    assert_eq!(take(&[bound(1, 4)], &pending(9)).entry, pending(9));
    assert_eq!(take(&[bound(1, 4)], &pending(2)).entry, bound(1, 4).entry());
}

#[test]
fn what_is_bound_after_a_loss_is_above_all_offers() {
    let offer = |sequence| Offer { tag: tag("t"), state: Offered::Freed, sequence };
    assert_eq!(sequence_after(0, &[offer(7), offer(9)], true), (9 + ABOVE, true));
    assert_eq!(sequence_after(9 + ABOVE, &[offer(12)], true), (10 + ABOVE, false));
    assert_eq!(sequence_after(9, &[offer(9)], false), (9, false), "nothing is missing");
    assert_eq!(sequence_after(9, &[], false), (9, false));
}
