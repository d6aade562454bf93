//! Whether a client was entitled to what it saw.
//!
//! 1. Bytes that came with a login are for the repositories that their own registry answers for, and for a registry
//!    that has itself sent all of them.
//! 2. Bytes that are not proven are for the registry that sent them.
//! 3. Proven bytes that came without a login are for everybody.
//! 4. The size is what the client's own registry says, or that of a content which the client may have.
//! 5. A whole body is the right one.

use berth::oci::range::Span;
use berth::store::RangeSet;

use super::case::{Case, Place, Source, What};

/// What came in answer to a request.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    /// 0 if there was no answer.
    pub(crate) status: u16,
    /// Of the whole, as far as the head says it.
    pub(crate) total: Option<u64>,
    /// Where the body begins in the whole.
    pub(crate) start: u64,
    pub(crate) body: Vec<u8>,
    /// Whether the body came to its end.
    pub(crate) is_complete: bool,
}

/// Which bytes of the content each source has sent, by its own count.
pub(crate) type Sent = Vec<(Source, RangeSet)>;

/// Judges an answer about the content of a case.
///
/// # Errors
/// What is wrong.
pub(crate) fn judge(case: &Case, place: Place, what: What, seen: &Seen, sent: &Sent) -> Result<(), String> {
    if !matches!(seen.status, 200 | 206) || !what.is_of_content() {
        return Ok(());
    }
    let rights = Rights::new(case, place, sent);
    if let Some(total) = seen.total
        && !rights.may_know(total)
    {
        return Err(format!("a size that is none of its business: {total}"));
    }
    let wrong = rights.wrong(seen);
    if let Some(first) = wrong.first() {
        let owner = whose(case, seen, *first);
        return Err(format!("{} bytes that it has no right to, the first at {first}: {owner}", wrong.len()));
    }
    let is_whole = seen.status == 200 && what != What::Head && seen.is_complete;
    if is_whole && seen.body != case.content.manifest {
        return Err("a complete body that is wrong".to_owned());
    }
    Ok(())
}

struct Rights<'a> {
    case: &'a Case,
    place: Place,
    /// Bytes of the content that this place may see.
    pieces: RangeSet,
    /// What liars send who answer for its registry.
    lies: Vec<bytes::Bytes>,
}

impl<'a> Rights<'a> {
    fn new(case: &'a Case, place: Place, sent: &Sent) -> Self {
        let whole = Span::whole(case.size());
        let mut pieces = RangeSet::default();
        for (source, sent) in sent {
            let is_own = place.registry.sources().contains(source);
            // A login's registry answers for one repository, and not for another. The others answer for all they are
            // asked about.
            let may_read = !source.has_login() || case.may_read(place);
            if is_own && may_read {
                sent.spans().iter().for_each(|span| pieces.insert(*span));
            }
            if sent.contains(whole) && (!source.has_login() || (is_own && may_read)) {
                pieces.insert(whole);
            }
        }
        let sources = place.registry.sources().iter();
        let lies =
            sources.filter_map(|source| case.sent_by(*source)).filter(|sent| *sent != case.content.manifest);
        Self { case, place, pieces, lies: lies.collect() }
    }

    /// Where bytes are that this place may not see.
    fn wrong(&self, seen: &Seen) -> Vec<u64> {
        let span = Span { start: seen.start, end: seen.start + seen.body.len() as u64 };
        let is = |content: &[u8]| content.get(span.start as usize..span.end as usize) == Some(&seen.body);
        // Mostly all of it is of one kind, and a look at each byte takes long.
        let is_right = is(&self.case.content.manifest) && self.pieces.contains(span);
        if span.is_empty() || is_right || self.lies.iter().any(|lie| is(lie)) {
            return Vec::new();
        }
        let bytes = (seen.start..).zip(&seen.body);
        bytes.filter(|(at, byte)| !self.may_see(*at, **byte)).map(|(at, _)| at).collect()
    }

    fn may_see(&self, at: u64, byte: u8) -> bool {
        let is = |content: &[u8]| content.get(at as usize) == Some(&byte);
        let is_right =
            is(&self.case.content.manifest) && self.pieces.contains(Span { start: at, end: at + 1 });
        is_right || self.lies.iter().any(|lie| is(lie))
    }

    fn may_know(&self, size: u64) -> bool {
        let sources = self.place.registry.sources();
        let is_said = |source: &Source| {
            let may_read = !source.has_login() || self.case.may_read(self.place);
            may_read && self.case.claimed_by(*source) == Some(size)
        };
        sources.iter().any(is_said) || (size == self.case.size() && self.pieces.contains(Span::whole(size)))
    }
}

/// For the failure: who sent what begins at `at`.
fn whose(case: &Case, seen: &Seen, at: u64) -> String {
    let body = &seen.body[(at - seen.start) as usize..];
    let len = body.len().min(16);
    let is = |content: &[u8]| content.get(at as usize..).is_some_and(|rest| rest.starts_with(&body[..len]));
    if is(&case.content.manifest) {
        return "the content itself".to_owned();
    }
    let liar = Source::ALL.into_iter().find(|source| case.sent_by(*source).is_some_and(|sent| is(&sent)));
    liar.map_or_else(|| "of nobody".to_owned(), |liar| format!("a lie of {liar:?}"))
}
