/// Whether a request may be sent a second time after a pooled connection turned out dead.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Repeat {
    /// A read: registries fail in passing, too.
    Harmless,
    /// A write of what is named by its own digest: only where nothing was answered.
    Unanswered,
    /// Only when its body was never begun, so that it can't have been carried out.
    BeforeBody,
    /// Never, and over a connection of its own: one that was kept may be dead already.
    Never,
}
