//! The file's rules.

use super::toml_reader::Table;
use super::values;
use crate::rules::{
    Deletes, Mutability, RefusalStyle, RepositoryPattern, Rule, Source, TagPattern,
};

pub(super) const STYLES: [(&str, RefusalStyle); 2] =
    [("oci", RefusalStyle::Oci), ("ecr", RefusalStyle::Ecr)];
const DELETES: [(&str, Deletes); 3] =
    [("refuse", Deletes::Refuse), ("keep", Deletes::Keep), ("release", Deletes::Release)];

pub(super) fn rule(mut table: Table<'_>, file: &str, style: RefusalStyle) -> Option<Rule> {
    let source = Source::File { path: file.to_owned(), line: table.line() };
    let name = table.required_text("name", "\"releases\"", |text| {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
        if !text.is_empty() && text.len() <= 64 && text.bytes().all(plain) {
            Ok(text.to_owned())
        } else {
            Err("a rule's name is 1 to 64 letters, digits, `.`, `_` or `-`")
        }
    });
    let repositories =
        table.required_texts("repositories", "[\"prod/**\"]", RepositoryPattern::parse);
    let words = [("immutable", Mutability::Immutable), ("mutable", Mutability::Mutable)];
    let mutability =
        table.required_text("mutability", "\"immutable\"", |t| values::word(t, &words));
    let except = table.texts("except", TagPattern::parse);
    let refusal = table.text("refusal", |t| values::word(t, &STYLES)).unwrap_or(style);
    let protect_signatures = table.flag("protect_signatures").unwrap_or(false);
    let deletes = table.text("delete", |t| values::word(t, &DELETES)).unwrap_or_default();
    let bound = table.flag("except_must_be_bound").unwrap_or(false);
    let pointless =
        mutability == Some(Mutability::Mutable) || except.as_ref().is_none_or(Vec::is_empty);
    if bound && pointless && mutability.is_some() {
        table.problem(
            "except_must_be_bound",
            "this rule excepts no mutable tags",
            "it goes with `mutability = \"immutable\"` and the mutable tags in `except`",
        );
    }
    let enforce = table.flag("enforce").unwrap_or(true);
    let anonymous_pull = table.flag("anonymous_pull").unwrap_or(false);
    let protects_none =
        mutability == Some(Mutability::Mutable) && except.as_ref().is_none_or(Vec::is_empty);
    if anonymous_pull && protects_none {
        table.problem(
            "anonymous_pull",
            "this rule makes no tag immutable, and only what can't change is answered from memory",
            "it goes with immutable tags: `mutability = \"immutable\"`, or those in `except`",
        );
    }
    table.finish();
    Some(Rule {
        name: name?,
        source,
        repositories: repositories?,
        mutability: mutability?,
        except: except.unwrap_or_default(),
        protect_signatures,
        refusal,
        deletes,
        except_must_be_bound: bound,
        enforce,
        anonymous_pull,
    })
}
