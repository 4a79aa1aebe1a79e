//! The vocabulary of the step machine: what it wants done, what it is told, what it concludes.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use super::permit::Permit;
use crate::ledger::{
    Adopt, AttemptId, Bind, Claim, FreedNumber, Lookup, Origin, RepositoryKey, Timestamp,
    Unavailable,
};
use crate::name::{Algorithm, Digest, Tag};
use crate::registry::{Sighting, Trouble, Written, wire};

/// One manifest's identity: its digest as the client or taglock names it, and under every other
/// registered algorithm, because the registry may use another one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Content {
    digest: Digest,
    all: [Digest; Algorithm::ALL.len()],
    /// The manifests it lists, if it is an index.
    parts: Arc<[Digest]>,
}

impl Content {
    /// # Errors
    /// The digest the body really has, when it is not the one the client named.
    pub fn new(bytes: &[u8], named: Option<Digest>) -> Result<Self, Digest> {
        let all = Algorithm::ALL.map(|algorithm| Digest::of(algorithm, bytes));
        match named {
            Some(named) if !all.contains(&named) => Err(Digest::of(named.algorithm(), bytes)),
            named => {
                let parts = wire::parts(bytes).unwrap_or_default();
                let parts = parts.iter().filter_map(|part| Digest::parse(part).ok()).collect();
                Ok(Self { digest: named.unwrap_or(all[0]), all, parts })
            }
        }
    }

    /// One that the registry has, of which no more than its digest there is known: by another
    /// algorithm it counts as something else.
    pub fn known(digest: Digest) -> Self {
        Self { digest, all: [digest; Algorithm::ALL.len()], parts: Arc::default() }
    }

    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// The manifests it lists, as far as they can be told; none where it is no index.
    pub(super) fn parts(&self) -> &[Digest] {
        &self.parts
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
    /// How far a rival's image is brought (`upstream.roll_forward`).
    pub roll_forward: RollForward,
}

/// How far a push brings a rival's image that its owner has claimed and not bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum RollForward {
    /// It is bound once the registry shows it under the tag. No client's rights are used for it.
    #[default]
    Published,
    /// It is published, too, where it is stored by its digest: for registries in which the right to
    /// store an image is the right to tag it.
    Staged,
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
            roll_forward: RollForward::Published,
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
    /// Whether a part of this push's image is being deleted. → [`Event::Parts`]
    LookAtParts,
    /// → [`Event::Claimed`]
    Claim { tags: Vec<Tag>, digest: Digest, attempt: AttemptId },
    /// Bind what the registry has taken. → [`Event::Bound`]
    Bind { tags: Vec<Tag>, digest: Digest, attempt: AttemptId, freed: FreedNumber },
    /// Bind what the registry has shown. → [`Event::Adopted`]
    Adopt { tag: Tag, digest: Digest, origin: Origin, freed: FreedNumber },
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
    Entries(Result<Lookup, Unavailable>),
    Waited,
    Seen(Sighting<A>),
    Written(Written<A>),
    Claimed(Result<Claim, Unavailable>),
    /// A part on which a delete mark stands.
    Parts(Result<Option<Digest>, Unavailable>),
    Bound(Result<Bind, Unavailable>),
    Adopted(Result<Adopt, Unavailable>),
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
        /// False where the claim of a protected tag was gone by the time of the binding: the registry shows
        /// the image, and the tag is bound to nothing.
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
    /// The claim, or the binding, may have been written.
    #[error("{0}; the outcome is unknown: push the same image again")]
    LedgerUnknown(Unavailable),
    /// The registry has taken the image, and the claim it was pushed under is gone: the ledger lost it, or
    /// somebody freed the name.
    #[error(
        "the claim of tag `{0}` is gone from the ledger; the outcome is unknown: push the same image again"
    )]
    ClaimLost(Tag),
    /// A delete of the image has had no definitive answer.
    #[error(
        "a delete of {0} is under way, or its outcome is unknown; push again later, or ask an operator \
         to clear its delete mark (`taglock ledger clear-delete`)"
    )]
    Deleting(Digest),
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
        "tag `{tag}` is claimed for {} since {since} by a push that did not end; push that image again to \
         end it, or ask an operator to free the claim (`taglock ledger release --pending`)",
        .digest.map_or_else(|| "another image".to_owned(), |digest| digest.to_string())
    )]
    Stuck {
        tag: Tag,
        /// `None` where the client may not see it.
        digest: Option<Digest>,
        since: Timestamp,
    },
}
