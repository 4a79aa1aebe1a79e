//! What was aimed at, and what came out.

use crate::measure::{digits, table};

pub struct Aim {
    pub what: String,
    pub bound: Bound,
    pub measured: f64,
}

#[derive(Clone, Copy)]
pub enum Bound {
    AtMost(f64),
    AtLeast(f64),
}

impl Bound {
    fn is_met(self, measured: f64) -> bool {
        match self {
            // Rounded as it is printed: 1.004 times is once.
            Self::AtMost(bound) => (measured * 100.0).round() <= bound * 100.0,
            Self::AtLeast(bound) => (measured * 100.0).round() >= bound * 100.0,
        }
    }

    fn text(self) -> String {
        match self {
            Self::AtMost(bound) => format!("≤ {bound}"),
            Self::AtLeast(bound) => format!("≥ {bound}"),
        }
    }
}

pub fn report(aims: &[Aim]) {
    let row = |aim: &Aim| {
        let met = if aim.bound.is_met(aim.measured) { "yes" } else { "**no**" };
        vec![aim.what.clone(), aim.bound.text(), digits(aim.measured), met.to_owned()]
    };
    let rows: Vec<_> = aims.iter().map(row).collect();
    table("Aims", &["what", "aim", "measured", "met"], &rows);
}
