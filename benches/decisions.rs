//! What every request costs before anything is sent: its route, and the rule for its repository.
#![allow(clippy::unwrap_used, reason = "a bench that can't be set up should end")]

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use http::Method;
use taglock::name::{RepositoryName, Tag};
use taglock::route::{Doors, Route};
use taglock::rules::{
    Mutability, RefusalStyle, RepositoryPattern, Rule, Rules, Source, TagPattern,
};

fn routes(c: &mut Criterion) {
    let mut group = c.benchmark_group("route");
    let doors = Doors {
        token_paths: vec!["/service/token".into()],
        upload_paths: vec!["/up/".into()],
        ..Doors::default()
    };
    let digest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    for (name, method, target) in [
        ("manifest by tag", Method::GET, "/v2/team/service/manifests/v1.2.3".to_owned()),
        ("manifest write", Method::PUT, "/v2/team/service/manifests/v1.2.3".to_owned()),
        ("blob", Method::GET, format!("/v2/team/service/blobs/{digest}")),
        ("upload", Method::PATCH, "/v2/a/b/blobs/uploads/0f3a?_state=abc%3D".to_owned()),
        ("encoded, refused", Method::PUT, "/%76%32/team/service/manifests/v1".to_owned()),
    ] {
        group.bench_function(name, |b| {
            b.iter(|| Route::parse(black_box(&method), black_box(target.as_bytes()), &doors));
        });
    }
    group.finish();
}

fn rule(n: usize) -> Rule {
    Rule {
        name: format!("rule-{n}"),
        source: Source::CommandLine,
        repositories: vec![
            RepositoryPattern::parse(&format!("team-{n}/**")).unwrap(),
            RepositoryPattern::parse(&format!("*/released-{n}")).unwrap(),
        ],
        mutability: Mutability::Immutable,
        except: vec![TagPattern::parse("latest").unwrap(), TagPattern::parse("dev-*").unwrap()],
        protect_signatures: false,
        deletes: taglock::rules::Deletes::Refuse,
        except_must_be_bound: false,
        enforce: true,
        anonymous_pull: false,
        refusal: RefusalStyle::Oci,
    }
}

fn rules(c: &mut Criterion) {
    let mut group = c.benchmark_group("rules");
    let tag = Tag::parse("v1.2.3").unwrap();
    for count in [1, 10, 100, 1000] {
        let rules = Rules::new((0..count).map(rule).collect()).unwrap();
        let last = RepositoryName::parse(&format!("team-{}/service", count - 1)).unwrap();
        let none = RepositoryName::parse("elsewhere/service").unwrap();
        group.bench_with_input(BenchmarkId::new("last matches", count), &count, |b, _| {
            b.iter(|| rules.rule_for(black_box(&last)).map(|rule| rule.mutability_of(&tag)));
        });
        group.bench_with_input(BenchmarkId::new("none matches", count), &count, |b, _| {
            b.iter(|| rules.protecting(black_box(&none)).is_some());
        });
    }
    group.finish();
}

criterion_group!(benches, routes, rules);
criterion_main!(benches);
