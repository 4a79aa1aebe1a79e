//! The fuzz targets as ordinary tests: over their corpora, and over inputs spliced together from
//! words. `TAGLOCK_SEED=<seed>` repeats a run; `scripts/fuzz` goes on for as long as wanted.

use std::panic::catch_unwind;
use std::path::Path;

use fastrand::Rng;
use pingora::http::RequestHeader;
use taglock::route::{Doors, Route};

#[path = "../../fuzz/targets.rs"]
mod targets;

use targets::{ALL, Target, WORDS};

/// The seed of a run without `TAGLOCK_SEED`. It found a `#` in a target once.
const SEED: u64 = 2_489_013_580_481_253_169;

fn seed() -> u64 {
    std::env::var("TAGLOCK_SEED").map_or(SEED, |seed| seed.parse().unwrap())
}

/// How many inputs each target gets.
const INPUTS: u32 = 20_000;

fn words(target: &str) -> &'static [&'static str] {
    let at = ALL.iter().position(|(name, _)| *name == target).unwrap();
    WORDS[at]
}

fn run((name, target): Target, input: &[u8], from: &str) {
    let ended = catch_unwind(|| target(input));
    assert!(ended.is_ok(), "{name} failed on {:?}, {from}", String::from_utf8_lossy(input));
}

fn input(rng: &mut Rng, words: &[&str]) -> Vec<u8> {
    let mut out = vec![rng.u8(..)];
    for _ in 0..rng.usize(1..14) {
        match rng.u8(0..40) {
            0 => out.push(rng.u8(..)),
            1 => {
                let at = rng.usize(..out.len());
                out[at] = rng.u8(..);
            }
            2 => out.truncate(rng.usize(1..=out.len())),
            _ => out.extend(words[rng.usize(..words.len())].as_bytes()),
        }
    }
    out
}

/// A request that means something, spelled a little differently.
fn misspelt(rng: &mut Rng) -> Vec<u8> {
    const TARGETS: [&str; 9] = [
        "/v2/prod/app/manifests/v1",
        "/v2/prod/app/manifests/v1?digest=sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
        "/v2/prod/app/manifests/sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa?tag=v1&tag=v2",
        "/v2/prod/app/blobs/uploads/x/../../../prod/app/manifests/v1",
        "/v2/prod/app/blobs/uploads/",
        "/v2/org/manifests/app/manifests/v1",
        "/x/../v2/prod/app/manifests/v1",
        "/service/token/../../v2/prod/app/manifests/v1",
        "/artifacts-uploads/../v2/prod/app/manifests/v1",
    ];
    let mut out = rng.choice(TARGETS).unwrap().as_bytes().to_vec();
    for _ in 0..rng.usize(0..4) {
        let at = rng.usize(..out.len());
        let byte = out[at];
        let spelt = match rng.u8(0..9) {
            0 => format!("%{byte:02x}").into_bytes(),
            1 => format!("%{byte:02X}").into_bytes(),
            2 => format!("%25{byte:02x}").into_bytes(),
            3 => vec![byte ^ 0x20],
            4 => vec![byte, byte],
            5 => vec![],
            6 => vec![rng.u8(..)],
            _ => {
                let word = rng.choice(words("route")).unwrap();
                [&[byte], word.as_bytes()].concat()
            }
        };
        out.splice(at..=at, spelt);
        if out.is_empty() {
            break;
        }
    }
    let method = if rng.bool() { 0 } else { rng.u8(..) };
    out.insert(0, method);
    out
}

/// One that is whole, between this beginning and this end, but for a word or a byte.
fn odd(rng: &mut Rng, target: &str, (begin, end): (&str, &str)) -> Vec<u8> {
    let words = words(target);
    // Of those that are whole lines, and some that are not.
    let whole = |rng: &mut Rng| loop {
        let word = *rng.choice(words).unwrap();
        if word.ends_with("\r\n") && !word.contains("HTTP/") && word.len() > 4 || rng.u8(..12) == 0
        {
            return word;
        }
    };
    let mut out = begin.as_bytes().to_vec();
    for _ in 0..rng.usize(..5) {
        out.extend(whole(rng).bytes());
    }
    out.extend(end.bytes());
    match rng.u8(..4) {
        0 => {
            let at = rng.usize(..out.len());
            out[at] = rng.u8(..);
        }
        1 => {
            let at = rng.usize(..out.len());
            out.splice(at..at, rng.choice(words).unwrap().bytes());
        }
        2 => out.extend(rng.choice(words).unwrap().bytes()),
        _ => {}
    }
    out
}

#[test]
fn every_input_of_the_corpora_holds() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    for target in ALL {
        let folder = corpus.join(target.0);
        let mut count = 0;
        for file in std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{folder:?}: {e}")) {
            let file = file.unwrap().path();
            run(target, &std::fs::read(&file).unwrap(), &file.display().to_string());
            count += 1;
        }
        assert!(count > 0, "{folder:?} is empty");
    }
}

#[test]
fn spliced_inputs_hold() {
    let seed = seed();
    for target in ALL {
        let mut rng = Rng::with_seed(seed);
        for _ in 0..INPUTS {
            let mut input = input(&mut rng, words(target.0));
            match target.0 {
                "route" if rng.u8(..4) > 0 => input = misspelt(&mut rng),
                "reads" if rng.bool() => {
                    let begin = "GET /v2/a/manifests/v1 HTTP/1.1\r\nHost: x\r\n";
                    input = odd(&mut rng, "reads", (begin, "\r\n"));
                }
                "chunks" if rng.bool() => {
                    input = odd(&mut rng, "chunks", ("", "0\r\n\r\n"));
                    input.insert(0, rng.u8(..));
                }
                // Its first byte says something, too.
                "route" | "chunks" => {}
                _ => drop(input.remove(0)),
            }
            run(target, &input, &format!("TAGLOCK_SEED={seed}"));
        }
    }
}

/// A parser of URIs may cut, replace or complete a target. One that taglock accepts stays what it was in
/// the header that decides and that is forwarded.
#[test]
fn an_accepted_target_is_kept_whole_in_the_header_that_is_forwarded() {
    let method = http::Method::GET;
    let accepted = |raw: &[u8]| Route::parse(&method, raw, &Doors::default()).is_ok();
    let mut rng = Rng::with_seed(seed());
    let mut seen = 0;
    for _ in 0..INPUTS {
        let raw = misspelt(&mut rng).split_off(1);
        if !accepted(&raw) {
            continue;
        }
        let shown = String::from_utf8_lossy(&raw);
        let Ok(header) = RequestHeader::build(method.clone(), &raw, None) else { continue };
        assert_eq!(header.raw_path(), raw, "{shown}");
        let parsed = header.uri.path_and_query().map(|target| target.as_str().as_bytes());
        assert_eq!(parsed, Some(&raw[..]), "{shown}");
        seen += 1;
    }
    assert!(seen > 1000, "{seen}");
    // What a parser of URIs drops, completes or replaces is refused as it came.
    for raw in [
        &b"/v2/a/manifests/v1#x"[..],
        b"/v2/a/manifests/v1?ns=x#y",
        b"#",
        b"",
        b"*",
        b"?ns=x",
        b"v2/a/manifests/v1",
        b"http://x/v2/a/manifests/v1",
        b"http://user@x/v2/a/manifests/v1?ns=y",
        b"//user@x/v2/a/manifests/v1",
        b"/v2/a/manifests/v1\xff",
        b"/v2/a/manifests/v1?x=\xc3\xa9",
        b"/v2/a/manifests/v1?x=\t",
    ] {
        assert!(!accepted(raw), "{}", String::from_utf8_lossy(raw));
    }
}

/// The reference has teeth: it finds what a parser that only splits would let through.
#[test]
fn a_naive_parser_is_found_out() {
    for (target, expected) in [
        ("/v2/prod/app/manifests/v1", true),
        ("/v2/prod/app/%6danifests/v1", true),
        ("/v2/other/blobs/uploads/..%2f..%2f..%2fprod/app%2fmanifests%2fv1", true),
        ("//v2//prod/./app/manifests/v1", true),
        ("/%76%32/prod/app/manifests/v1/", true),
        ("/v2/prod/app;x/manifests/v1%00", true),
        ("/x/../v2/prod/app%5cmanifests%5cv1", true),
        ("/v2/prod/app/blobs/uploads/1", false),
        ("/v2/prod/app/tags/list", false),
    ] {
        let read = targets::lenient::manifests(target.as_bytes());
        let there = read.contains(&("prod/app".into(), "v1".into()));
        assert_eq!(there, expected, "{target}: {read:?}");
    }
}
