//! How far a long command is: a bar on a terminal, plain lines otherwise.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::{aside, on_a_terminal};

pub(super) struct Progress {
    /// `None` where nobody watches.
    bar: Option<ProgressBar>,
}

impl Progress {
    pub fn new(what: &'static str) -> Self {
        let bar = on_a_terminal().then(|| {
            let bar = ProgressBar::new(0).with_message(what);
            // A constant that a test reads.
            if let Ok(style) = ProgressStyle::with_template(TEMPLATE) {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(200));
            bar
        });
        Self { bar }
    }

    /// There is more to do.
    pub fn found(&self, tags: usize) {
        if let Some(bar) = &self.bar {
            bar.inc_length(tags as u64);
        }
    }

    pub fn done(&self, tags: usize) {
        if let Some(bar) = &self.bar {
            bar.inc(tags as u64);
        }
    }

    /// A line, above the bar where there is one.
    pub fn say(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| aside(text)),
            None => aside(text),
        }
    }

    /// A line for those who have no bar.
    pub fn plain(&self, text: impl FnOnce() -> String) {
        if self.bar.is_none() {
            aside(&text());
        }
    }

    pub fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

const TEMPLATE: &str = "{msg} {wide_bar} {pos}/{len} tags, {per_sec}, {eta} left";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_can_be_drawn() {
        assert!(ProgressStyle::with_template(TEMPLATE).is_ok());
    }
}
