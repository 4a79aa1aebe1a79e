//! Manifests of 2 KiB, as many as fit: where no rule matches, under a rule, and from memory.

use std::time::Duration;

use crate::aims::{Aim, Bound, report};
use crate::cost::Tree;
use crate::field::{Contestant, Field, NGINX, RULES, TAGLOCK, knows_anonymous_pulls, taglock};
use crate::http;
use crate::measure::{digits, quantile, table};
use crate::plan::Plan;
use crate::servers::Backend;
use crate::wrk::{Load, wrk};

const CONNECTIONS: usize = 64;

struct Row {
    name: String,
    address: String,
    target: &'static str,
    tree: Option<Tree>,
    loads: Vec<Load>,
}

pub fn run(plan: &Plan) {
    let backend = Backend::start(1 << 20);
    let field = Field::before(&backend.address, &plan.program, None);
    let logging = taglock(&plan.program, &backend.address, "", RULES);
    let logging = Contestant::new("taglock", &logging.address, &logging.process);
    let unmatched = "/v2/free/app/manifests/v1";
    let mut rows: Vec<_> =
        field.contestants.iter().map(|contestant| row(contestant, "", unmatched)).collect();
    let own = &field.contestants[TAGLOCK];
    rows.push(row(&logging, ", with its access log", unmatched));
    let protected = rows.len();
    rows.push(row(own, ", a protected tag that was pulled before", "/v2/prod/app/manifests/v1"));
    let anonymous = knows_anonymous_pulls(&plan.program).then_some(rows.len());
    if anonymous.is_some() {
        rows.push(row(own, ", with `anonymous_pull`", "/v2/public/app/manifests/v1"));
    }
    for Row { name, address, target, .. } in &rows {
        let answer = http::get(address, target);
        assert_eq!((answer.status, &answer.body), (200, &backend.manifest), "{name}");
    }
    load(&mut rows, plan);
    let reference = |n: usize, other: usize| {
        let pairs = rows[n].loads.iter().zip(&rows[other].loads);
        quantile(pairs.map(|(own, other)| own.rate / other.rate).collect(), 0.5)
    };
    let mut cells: Vec<_> = rows
        .iter()
        .enumerate()
        .map(|(n, row)| {
            let median =
                |of: fn(&Load) -> f64| digits(quantile(row.loads.iter().map(of).collect(), 0.5));
            vec![
                row.name.clone(),
                median(|load| load.rate),
                median(|load| load.p50),
                median(|load| load.p99),
                median(|load| load.cpu),
                digits(reference(n, NGINX)),
                digits(reference(n, TAGLOCK)),
            ]
        })
        .collect();
    if anonymous.is_none() {
        let mut row = vec!["taglock, with `anonymous_pull`: not in this build".to_owned()];
        row.resize(7, "–".into());
        cells.push(row);
    }
    let heads = [
        "through",
        "requests/s",
        "p50 ms",
        "p99 ms",
        "CPU µs each",
        "requests/s to nginx's",
        "to taglock's, unmatched",
    ];
    let rounds = rows[0].loads.len();
    let title = format!("GET of a manifest of 2 KiB, {CONNECTIONS} at once ({rounds} rounds)");
    table(&title, &heads, &cells);
    let aim = |what: &str, bound, measured| Aim {
        what: what.to_owned(),
        bound: Bound::AtLeast(bound),
        measured,
    };
    let mut aims = vec![
        aim("small GET, unmatched: requests/s to nginx's", 1.0, reference(TAGLOCK, NGINX)),
        aim("the same, at the least", 0.65, reference(TAGLOCK, NGINX)),
        aim("protected tag to unmatched: requests/s", 0.95, reference(protected, TAGLOCK)),
    ];
    if let Some(anonymous) = anonymous {
        let measured = reference(anonymous, NGINX);
        aims.push(aim("small GET, `anonymous_pull`: requests/s to nginx's", 1.5, measured));
    }
    report(&aims);
}

fn row(contestant: &Contestant, what: &str, target: &'static str) -> Row {
    Row {
        name: format!("{}{what}", contestant.name),
        address: contestant.address.clone(),
        target,
        tree: contestant.tree.clone(),
        loads: Vec::new(),
    }
}

fn load(rows: &mut [Row], plan: &Plan) {
    let count = rows.len();
    // Connections to the backend open.
    for Row { address, target, .. } in &*rows {
        wrk(address, target, CONNECTIONS, 1, None, None);
    }
    for number in plan.rounds(Duration::from_secs(180)) {
        for turn in 0..count {
            let Row { address, target, tree, loads, .. } = &mut rows[(turn + number) % count];
            loads.push(wrk(address, target, CONNECTIONS, plan.seconds(), None, tree.as_ref()));
        }
    }
}
