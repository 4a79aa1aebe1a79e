//! The vocabulary of the step machine: what it wants done, what it is told, what it concludes.

use std::hash::{Hash, Hasher};

use super::permit::Permit;
use crate::ledger::{AttemptId, Claim, Entry, Origin, RepositoryKey, Seal, Unavailable};
use crate::name::{Algorithm, Digest, Tag};
use crate::registry::{Sighting, Trouble, Written};

/// One manifest's identity: its digest as the client or taglock names it, and under every other
/// registered algorithm, because the registry may use another one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Content {
    digest: Digest,
    all: [Digest; Algorithm::ALL.len()],
}

impl Content {
    /// # Errors
    /// The digest the body really has, when it is not the one the client named.
    pub fn new(bytes: &[u8], named: Option<Digest>) -> Result<Self, Digest> {
        let all = Algorithm::ALL.map(|algorithm| Digest::of(algorithm, bytes));
        match named {
            Some(named) if !all.contains(&named) => Err(Digest::of(named.algorithm(), bytes)),
            named => Ok(Self { digest: named.unwrap_or(all[0]), all }),
        }
    }

    /// One that the registry has, of which no more than its digest there is known: by another
    /// algorithm it counts as something else.
    pub fn known(digest: Digest) -> Self {
        Self { digest, all: [digest; Algorithm::ALL.len()] }
    }

    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// All its digests, one for each registered algorithm.
    pub(super) fn digests(&self) -> &[Digest] {
        &self.all
    }

    /// The same manifest under another of its digests: the one the ledger has for it.
    pub(super) fn named(self, digest: Digest) -> Self {
        debug_assert!(self.is(&digest), "a digest of another manifest");
        Self { digest, ..self }
    }

    /// Whether `digest` is a digest of this manifest.
    pub fn is(&self, digest: &Digest) -> bool {
        self.all.contains(digest)
    }
}

/// A protected manifest write, parsed, hashed and matched with the rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Push {
    pub repository: RepositoryKey,
    /// The tags a rule makes immutable; never empty.
    pub protected: Vec<Tag>,
    /// The other tags of the request.
    pub mutable: Vec<Tag>,
    pub content: Content,
    /// Of this request alone.
    pub attempt: AttemptId,
    /// For rolling a rival's claim forward: another attempt, with another digest.
    pub errand: AttemptId,
    pub options: Options,
}

impl Hash for Push {
    /// What tells pushes apart; the rest costs too much where millions are compared.
    fn hash<H: Hasher>(&self, state: &mut H) {
        let Self { content, attempt, errand, .. } = self;
        (content.digest(), attempt, errand).hash(state);
    }
}

/// What the registry can take, and how long a rival is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Options {
    /// Manifests are put by digest first (`upstream.stage`).
    pub stage: bool,
    /// A definitive refusal takes the attempt out of the claim (`upstream.abort`).
    pub abort: bool,
    /// How often a push waits for another one to end, a tenth of a second at most each.
    pub patience: u8,
    /// What becomes of a client that may push and not pull.
    pub blind: Blind,
    /// The registry has shown this client the image, and so let it in.
    pub shown: bool,
    /// The registry has lately taken a manifest of the repository from this client. From any other
    /// client the manifest is put by digest before anything else, so that the answer to who may not
    /// push does not depend on what the ledger holds.
    pub proven: bool,
}

/// Taglock looks at tags with the client's own credentials. A client that may push and not pull
/// gets a no there; that it may push is shown by what it stores by digest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Blind {
    /// The registry's no is all it gets: it has shown no credentials.
    #[default]
    Relay,
    /// It is told which right it lacks.
    Tell,
    /// Taglock's own account looks in its stead.
    Account,
}

/// By whose rights the registry is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Eyes {
    Client,
    Account,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            stage: true,
            abort: true,
            patience: 20,
            blind: Blind::Relay,
            shown: false,
            proven: false,
        }
    }
}

/// What the machine wants done next; each action is answered by one event.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Look up all protected tags. → [`Event::Entries`]
    Lookup,
    /// Wait a little, or until something happens to one of the protected tags. → [`Event::Waited`]
    Wait,
    /// HEAD by tag. → [`Event::Seen`]
    Look(Tag),
    /// HEAD by tag, checked against the bytes. → [`Event::Seen`]
    Resolve(Tag),
    /// HEAD by digest. → [`Event::Seen`]
    LookStaged,
    /// PUT by digest. → [`Event::Written`]
    Stage,
    /// → [`Event::Claimed`]
    Claim { tags: Vec<Tag>, digest: Digest, attempt: AttemptId },
    /// → [`Event::Sealed`]
    Seal { tags: Vec<Tag>, digest: Digest, origin: Origin },
    /// → [`Event::Aborted`]
    Abort { tags: Vec<Tag>, digest: Digest, attempt: AttemptId },
    /// PUT by tag of this push's manifest. → [`Event::Written`]
    Publish(Permit),
    /// GET a rival's staged manifest and keep it. → [`Event::Fetched`]
    Fetch(Digest),
    /// PUT by tag of the manifest fetched. → [`Event::Written`]
    PublishFetched(Permit),
}

/// What became of an action.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event<A> {
    Entries(Result<Vec<Entry>, Unavailable>),
    Waited,
    Seen(Sighting<A>),
    Written(Written<A>),
    Claimed(Result<Claim, Unavailable>),
    Sealed(Result<Seal, Unavailable>),
    Aborted(Result<(), Unavailable>),
    /// Whether the manifest was had.
    Fetched(Result<bool, Trouble>),
}

/// What the machine says after an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step<A> {
    Do(Action),
    Done(Verdict<A>),
}

/// The end of a push.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict<A> {
    /// The registry holds the manifest under these tags, and the ledger binds the protected ones.
    Admitted {
        /// The registry's 201; `None` where the tag was found in place after an unclear answer.
        answer: Option<A>,
        tags: Vec<Tag>,
        /// False when the last word to the ledger failed: the claim is durable and the tag is in
        /// the registry, so nothing can take it; the next look seals it.
        sealed: bool,
    },
    /// A protected tag is bound to another digest.
    Refused(Conflict),
    /// This tag may move only to what a protected tag is bound to.
    Unbound(Tag),
    /// The registry's own no.
    Relayed(A),
    /// The registry's no to a look by a client that may push: it needs the right to pull as well.
    Unseeing(A),
    /// Nothing is known to have been decided.
    Undecided(Undecided),
}

impl<A> Verdict<A> {
    /// The closed set of verdicts in logs and metrics.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Admitted { .. } => "admitted",
            Self::Refused(_) | Self::Unbound(_) => "refused",
            Self::Relayed(_) | Self::Unseeing(_) => "relayed",
            Self::Undecided(_) => "undecided",
        }
    }
}

/// A tag, what it is bound to, and what was pushed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Conflict {
    pub tag: Tag,
    pub bound: Digest,
    pub pushed: Digest,
    /// Whether the registry shows this client what is bound: if not, it isn't told the digest.
    pub visible: bool,
}

/// Why a push has no verdict.
#[derive(Clone, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Undecided {
    #[error(transparent)]
    Ledger(#[from] Unavailable),
    /// Before anything was claimed, or with the claim taken back.
    #[error("{0}; nothing was written under the tag")]
    Registry(Trouble),
    /// The PUT by tag may have been written.
    #[error("{0}; the outcome is unknown: push the same image again")]
    OutcomeUnknown(Trouble),
    /// The staged manifest can't be seen, so a 404 for the tag proves nothing.
    #[error(
        "the registry took the manifest by its digest and answers 404 when taglock asks for it: the account \
         may lack the right to pull (grant it, or set `upstream.credentials_file`), the registry may \
         replicate slowly (push again), or it may not store manifests without a tag \
         (`upstream.stage = false`)"
    )]
    Invisible,
    /// Other pushes of the same tags have not come to an end.
    #[error("other pushes of tag `{0}` are under way; try again")]
    Busy(Tag),
    /// A claim that can't be brought to its end.
    #[error(
        "tag `{tag}` is claimed for {} by a push that did not end, and the claim could not be \
         brought to its end; push that image again to end it, or ask an operator",
        .digest.map_or_else(|| "another image".to_owned(), |digest| digest.to_string())
    )]
    Stuck {
        tag: Tag,
        /// `None` where the client may not see it.
        digest: Option<Digest>,
    },
}
