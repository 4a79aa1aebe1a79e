//! Whether a page of a list is the last, by its header.
//!
//! What may announce more and can't be read is never the end of a list: a tag that is not seen would
//! not be protected.

use http::HeaderMap;
use http::header::{CONTENT_RANGE, HeaderName, LINK};

/// How much of a list there is, as registries tell it beside the specification.
const TOTALS: [HeaderName; 2] =
    [HeaderName::from_static("x-total-count"), HeaderName::from_static("x-total")];
const TOTAL_PAGES: HeaderName = HeaderName::from_static("x-total-pages");
const NEXT_PAGE: HeaderName = HeaderName::from_static("x-next-page");
/// A longer query is no registry's.
const MAX_QUERY: usize = 2048;

/// Why a list is not known to its end.
pub(super) const UNREADABLE: &str = "whether its list goes on, and where, is not understood";

/// What follows a page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Nothing: the list is whole.
    End,
    /// A page with this query. The path is known, and whatever host a registry names in its `Link`, it
    /// is the registry itself that is asked on.
    Query(String),
    /// More, or perhaps more; which page is not understood.
    Unreadable,
}

/// How much of a list has come, with this page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Progress {
    pub pages: usize,
    pub entries: usize,
    /// The largest number of entries that a page has announced.
    announced: usize,
    /// A page said something of the others that is not understood.
    unclear: bool,
}

impl Progress {
    /// What follows a page of so many entries.
    pub fn next(&mut self, headers: &HeaderMap, entries: usize) -> Next {
        self.pages += 1;
        self.entries += entries;
        let (next, announced) = (linked(headers), announced(headers, self.pages));
        self.unclear |= next == Next::Unreadable || announced.is_none();
        self.announced = self.announced.max(announced.unwrap_or_default());
        let more = self.announced > self.entries || has_next_page(headers);
        match next {
            _ if self.unclear => Next::Unreadable,
            Next::End if more => Next::Unreadable,
            next => next,
        }
    }
}

/// What follows a page of which nobody knows how many came before it.
pub(super) fn next_of_any(headers: &HeaderMap) -> Next {
    match linked(headers) {
        Next::End if has_next_page(headers) => Next::Unreadable,
        next => next,
    }
}

fn has_next_page(headers: &HeaderMap) -> bool {
    let mut values = headers.get_all(NEXT_PAGE).iter();
    values.any(|value| !value.as_bytes().trim_ascii().is_empty())
}

/// The number of entries that a header announces: 0 where it announces none. `None` where it can't be
/// read, or announces more pages than came.
fn announced(headers: &HeaderMap, pages: usize) -> Option<usize> {
    let number = |text: &[u8]| std::str::from_utf8(text.trim_ascii()).ok()?.parse::<usize>().ok();
    let mut announced = 0;
    for value in TOTALS.iter().flat_map(|name| headers.get_all(name)) {
        announced = announced.max(number(value.as_bytes())?);
    }
    // `tags 0-99/250`: a part of a list, whatever the status.
    for value in headers.get_all(CONTENT_RANGE) {
        let total = value.as_bytes().rsplit(|b| *b == b'/').next().unwrap_or_default();
        announced = announced.max(number(total)?);
    }
    let linked = matches!(linked(headers), Next::Query(_));
    for value in headers.get_all(TOTAL_PAGES) {
        if number(value.as_bytes())? > pages && !linked {
            return None;
        }
    }
    Some(announced)
}

/// By `Link` (RFC 8288), as the distribution specification has it.
fn linked(headers: &HeaderMap) -> Next {
    let mut next = Next::End;
    for value in headers.get_all(LINK) {
        let Some(links) = links(value.as_bytes()) else { return Next::Unreadable };
        for link in links.iter().filter(|link| link.is_next()) {
            let query = query(link.target).filter(|_| !link.anchored);
            next = match (query, next) {
                (Some(query), Next::End) => Next::Query(query),
                (Some(query), Next::Query(first)) if first == query => Next::Query(first),
                // None that can be asked for, or two.
                _ => return Next::Unreadable,
            };
        }
    }
    next
}

/// The query of a target, without the fragment, which is not sent, and without the caller's own
/// namespace, which is named with each request.
fn query(target: &[u8]) -> Option<String> {
    let target = std::str::from_utf8(target).ok()?.trim();
    let target = target.split('#').next().unwrap_or_default();
    let pairs = target.split_once('?')?.1.split('&');
    let query = pairs.filter(|pair| !pair.starts_with("ns=")).collect::<Vec<_>>().join("&");
    let plain = query.bytes().all(|b| b.is_ascii_graphic());
    (plain && !query.is_empty() && query.len() <= MAX_QUERY).then_some(query)
}

#[derive(Debug, PartialEq, Eq)]
struct Link<'a> {
    target: &'a [u8],
    /// The value of the first `rel`, without quotes.
    relations: Vec<u8>,
    /// It is a link of something else than this list.
    anchored: bool,
}

impl Link<'_> {
    /// `rel` is a list of relation types, in any case.
    fn is_next(&self) -> bool {
        self.relations.split(u8::is_ascii_whitespace).any(|one| one.eq_ignore_ascii_case(b"next"))
    }
}

/// The links of one value: `<target>; name=value; name="value", <target>; …`. `None` where it does
/// not parse.
fn links(value: &[u8]) -> Option<Vec<Link<'_>>> {
    let mut links = Vec::new();
    let mut rest = value;
    loop {
        // Empty elements of a list count for nothing.
        rest = after(rest, |b| b" \t,".contains(&b));
        let Some(inner) = rest.strip_prefix(b"<") else {
            return rest.is_empty().then_some(links);
        };
        let end = memchr::memchr(b'>', inner)?;
        let mut link = Link { target: &inner[..end], relations: Vec::new(), anchored: false };
        rest = white(&inner[end + 1..]);
        let mut has_relation = false;
        while let Some(parameter) = rest.strip_prefix(b";") {
            let (name, value, after) = parameter_of(white(parameter))?;
            if name.eq_ignore_ascii_case(b"rel") && !std::mem::replace(&mut has_relation, true) {
                link.relations = value;
            } else if name.eq_ignore_ascii_case(b"anchor") {
                link.anchored = true;
            }
            rest = white(after);
        }
        links.push(link);
        if !rest.is_empty() && !rest.starts_with(b",") {
            return None;
        }
    }
}

/// A parameter's name, its value without quotes, and what follows it. All may be empty.
fn parameter_of(text: &[u8]) -> Option<(&[u8], Vec<u8>, &[u8])> {
    let is_token = |b: u8| !b" \t,;=\"<>".contains(&b);
    let rest = after(text, is_token);
    let name = &text[..text.len() - rest.len()];
    let Some(value) = white(rest).strip_prefix(b"=") else {
        return Some((name, Vec::new(), rest));
    };
    let value = white(value);
    let Some(quoted) = value.strip_prefix(b"\"") else {
        // Targets may stand in it, unquoted.
        let rest = after(value, |b| is_token(b) || b == b'=');
        return Some((name, value[..value.len() - rest.len()].to_vec(), rest));
    };
    let mut unquoted = Vec::new();
    let mut bytes = quoted.iter().enumerate();
    while let Some((at, byte)) = bytes.next() {
        match byte {
            b'"' => return Some((name, unquoted, &quoted[at + 1..])),
            b'\\' => unquoted.push(*bytes.next()?.1),
            byte => unquoted.push(*byte),
        }
    }
    None
}

fn white(text: &[u8]) -> &[u8] {
    after(text, |b| b" \t".contains(&b))
}

/// What follows the first bytes of this kind.
fn after(text: &[u8], is: impl Fn(u8) -> bool) -> &[u8] {
    let length = text.iter().take_while(|byte| is(**byte)).count();
    &text[length..]
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        headers
    }

    fn next(lines: &[(&'static str, &str)]) -> Next {
        Progress::default().next(&headers(lines), 2)
    }

    fn to(query: &str) -> Next {
        Next::Query(query.to_owned())
    }

    #[test]
    fn the_next_page_is_found_in_every_form_of_link() {
        for (link, expected) in [
            ("</v2/a/tags/list?last=b&n=2>; rel=\"next\"", "last=b&n=2"),
            ("<http://elsewhere/x?n=2&last=b>; rel=next", "n=2&last=b"),
            ("<?last=b>;rel=\"next\"", "last=b"),
            ("<?last=b> ;\t REL = \"next\" ", "last=b"),
            ("<?last=b>; Rel=Next", "last=b"),
            ("<?last=b>; rel=\"prefetch  NEXT x\"", "last=b"),
            ("<?last=b>; title=\"a, <?last=c>; rel=prev\"; rel=next", "last=b"),
            ("<?last=b>; title=\"\\\"; rel=prev; \\\"\"; rel=next", "last=b"),
            ("<?last=b>; title=é; title*=UTF-8''e; rel=next; hreflang", "last=b"),
            ("<?last=b>; rel=next; rel=prev", "last=b"),
            ("<?a=1,2>; rel=\"prev\", <?b=3;4>; rel=\"next\"", "b=3;4"),
            (", <?a=1>; rel=first,, <?b=3>;; rel=next,", "b=3"),
            ("<?last=b>; rel=next, <?last=b>; rel=next", "last=b"),
            ("<?last=b&ns=docker.io>; rel=\"next\"", "last=b"),
            ("<?last=b#top>; rel=\"next\"", "last=b"),
            ("< ?last=b >; rel=next", "last=b"),
        ] {
            assert_eq!(next(&[("link", link)]), to(expected), "{link}");
        }
        let lines = [("link", "<?a=1>; rel=prev"), ("link", "<?a=2>; rel=next")];
        assert_eq!(next(&lines), to("a=2"));
    }

    #[test]
    fn only_a_header_that_announces_nothing_more_is_the_end() {
        assert_eq!(next(&[]), Next::End);
        for link in [
            "",
            "<?last=b>; rel=\"prev\"",
            "<?last=b>; rel=nextpage",
            "<?last=b>; rev=next",
            "<?last=b>",
            "<?last=b>; rel=prev; rel=next",
            "<?last=b>; title=\"rel=next\"",
            "<?last=b>; title=\"<?c=d>; rel=next\"; rel=prev",
            "<https://docs.example/>; rel=help; anchor=\"/x\"",
        ] {
            assert_eq!(next(&[("link", link)]), Next::End, "{link}");
        }
        for (name, value) in [
            ("x-total-count", "2"),
            ("x-total-count", "0"),
            ("x-total", "1"),
            ("x-total-pages", "1"),
            ("x-next-page", ""),
            ("content-range", "tags 0-1/2"),
        ] {
            assert_eq!(next(&[(name, value)]), Next::End, "{name}: {value}");
        }
    }

    #[test]
    fn what_may_announce_more_and_is_not_understood_is_not_the_end() {
        for link in [
            "/v2/a/tags/list?last=b&n=2; rel=\"next\"",
            "nonsense",
            "<unclosed",
            "<?last=b>; rel=\"next",
            "<?last=b>; rel=next x",
            "<?last=b> rel=next",
            "<?a=1>; rel=prev <?b=1>; rel=next",
            "</v2/a/tags/list>; rel=\"next\"",
            "<>; rel=next",
            "<?>; rel=next",
            "<?ns=docker.io>; rel=next",
            "<?last=a b>; rel=\"next\"",
            "<?last=é>; rel=next",
            "<?last=b>; rel=next; anchor=\"/v2/other\"",
            "<?last=b>; rel=next, <?last=c>; rel=next",
            "<?last=b>; rel=next, nonsense",
        ] {
            assert_eq!(next(&[("link", link)]), Next::Unreadable, "{link}");
        }
        let long = format!("<?{}>; rel=next", "a".repeat(MAX_QUERY + 1));
        assert_eq!(next(&[("link", &long)]), Next::Unreadable);
        assert_eq!(next(&[("link", "<?b>; rel=next"), ("link", "x")]), Next::Unreadable);
        for (name, value) in [
            ("x-total-count", "3"),
            ("x-total-count", "many"),
            ("x-total-count", "-1"),
            ("x-total", "3"),
            ("x-total-pages", "2"),
            ("x-next-page", "2"),
            ("content-range", "tags 0-1/3"),
            ("content-range", "tags 0-1/*"),
        ] {
            assert_eq!(next(&[(name, value)]), Next::Unreadable, "{name}: {value}");
            let link = ("link", "<?a=1>; rel=prev");
            assert_eq!(next(&[link, (name, value)]), Next::Unreadable, "{name}: {value}");
        }
        assert_eq!(next_of_any(&headers(&[("x-next-page", "2")])), Next::Unreadable);
        assert_eq!(next_of_any(&headers(&[("x-total-count", "9")])), Next::End);
    }

    #[test]
    fn what_one_page_announces_counts_until_it_has_come() {
        let mut progress = Progress::default();
        let first = headers(&[
            ("link", "<?a=1>; rel=next"),
            ("x-total-count", "5"),
            ("x-next-page", "2"),
            ("x-total-pages", "3"),
        ]);
        assert_eq!(progress.next(&first, 2), to("a=1"));
        let mut lost = progress;
        assert_eq!(lost.next(&headers(&[]), 2), Next::Unreadable);
        assert_eq!(progress.next(&headers(&[]), 3), Next::End);
        for unclear in [("link", "x"), ("x-total-count", "many"), ("x-total-pages", "-")] {
            let mut progress = Progress::default();
            assert_eq!(progress.next(&headers(&[unclear]), 2), Next::Unreadable);
            assert_eq!(progress.next(&headers(&[]), 2), Next::Unreadable, "{unclear:?}");
        }
    }
}
