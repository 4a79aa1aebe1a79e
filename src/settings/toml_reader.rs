//! Reads a TOML document key by key and gathers every mistake on the way.
//!
//! Deserialisers stop at the first one. Here a key that can't be read is reported and passed over,
//! and what nobody asked for is an unknown key.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::exposed::Exposed;
use super::problem::{Problem, Problems};
use super::values;

/// Looks up an environment variable.
pub type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

/// One document and everything found wrong with it so far.
pub struct Reader<'a> {
    file: &'a str,
    text: &'a str,
    environment: Environment<'a>,
    problems: RefCell<Vec<(usize, Problem)>>,
    asked: RefCell<BTreeSet<String>>,
    exposed: RefCell<Vec<Exposed>>,
}

impl<'a> Reader<'a> {
    pub fn new(file: &'a str, text: &'a str, environment: Environment<'a>) -> Self {
        Self {
            file,
            text,
            environment,
            problems: RefCell::default(),
            asked: RefCell::default(),
            exposed: RefCell::default(),
        }
    }

    /// The document's table. What is not TOML is reported, and the rest of it read on.
    pub fn document(&self) -> Table<'_> {
        let (document, errors) = DeTable::parse_recoverable(self.text);
        for error in errors {
            let offset = error.span().map_or(0, |span| span.start);
            self.report(offset, "", error.message().trim(), None);
        }
        Table::new(self, String::new(), 0, document.into_inner())
    }

    /// The keys that were looked for, by path.
    #[cfg(test)]
    pub fn asked(&self) -> BTreeSet<String> {
        self.asked.borrow().clone()
    }

    /// The files with secrets, read so far, that too many users may read or change.
    pub fn exposed(&self) -> Vec<Exposed> {
        self.exposed.borrow().clone()
    }

    fn look_at_mode(&self, key: &str, file: &Path) {
        self.exposed.borrow_mut().extend(Exposed::look(key, file));
    }

    /// # Errors
    /// All problems, in the order of the lines.
    pub fn finish(self) -> Result<(), Problems> {
        let mut problems = self.problems.into_inner();
        problems.sort_by_key(|(offset, _)| *offset);
        if problems.is_empty() {
            Ok(())
        } else {
            Err(Problems(problems.into_iter().map(|(_, problem)| problem).collect()))
        }
    }

    pub fn line(&self, offset: usize) -> usize {
        self.text[..offset.min(self.text.len())].bytes().filter(|b| *b == b'\n').count() + 1
    }

    fn report(&self, offset: usize, key: &str, message: impl Display, hint: Option<String>) {
        let place = format!("{}:{}", self.file, self.line(offset));
        let problem = Problem { place, key: key.into(), message: message.to_string(), hint };
        self.problems.borrow_mut().push((offset, problem));
    }

    /// Puts `${NAME}` in a value's place.
    fn expand(&self, text: &str) -> Result<String, String> {
        let mut out = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("${") {
            let (name, behind) =
                after.split_once('}').ok_or("a `${` without its `}`".to_owned())?;
            let value = (self.environment)(name)
                .ok_or_else(|| format!("the environment variable `{name}` is not set"))?;
            out.push_str(before);
            out.push_str(&value);
            rest = behind;
        }
        out.push_str(rest);
        Ok(out)
    }
}

/// One table, and the keys of it that nobody has asked for yet.
pub struct Table<'r> {
    reader: &'r Reader<'r>,
    path: String,
    offset: usize,
    left: BTreeMap<String, Found<'r>>,
    known: Vec<&'static str>,
}

struct Found<'r> {
    offset: usize,
    value: DeValue<'r>,
}

impl<'r> Table<'r> {
    fn new(reader: &'r Reader<'r>, path: String, offset: usize, table: DeTable<'r>) -> Self {
        let left = table
            .into_iter()
            .map(|(key, value)| {
                let offset = key.span().start;
                (key.into_inner().into_owned(), Found { offset, value: value.into_inner() })
            })
            .collect();
        Self { reader, path, offset, left, known: Vec::new() }
    }

    pub fn line(&self) -> usize {
        self.reader.line(self.offset)
    }

    fn path_of(&self, key: &str) -> String {
        match (self.path.as_str(), key) {
            ("", key) => key.to_owned(),
            (path, "") => path.to_owned(),
            (path, key) => format!("{path}.{key}"),
        }
    }

    fn take(&mut self, key: &'static str) -> Option<Found<'r>> {
        self.known.push(key);
        // The path without the numbers of a list's members.
        let path = self.path_of(key).replace(|c: char| c.is_ascii_digit(), "").replace("[]", "");
        self.reader.asked.borrow_mut().insert(path);
        self.left.remove(key)
    }

    /// Whether the key stands there and nobody has asked for it yet.
    pub fn has(&self, key: &str) -> bool {
        self.left.contains_key(key)
    }

    /// A mistake that is about the table, or about a key as a whole.
    pub fn problem(&self, key: &str, message: impl Display, hint: &str) {
        let hint = (!hint.is_empty()).then(|| hint.to_owned());
        let offset = self.left.get(key).map_or(self.offset, |found| found.offset);
        self.reader.report(offset, &self.path_of(key), message, hint);
    }

    fn wrong(&self, found: &Found<'_>, key: &str, expected: &str) {
        let message = format!("{} is not {expected}", shown(&found.value));
        self.reader.report(found.offset, &self.path_of(key), message, None);
    }

    /// A text, with `${NAME}` expanded, through `parse`, whose error is the problem.
    pub fn text<T, E: Display>(
        &mut self,
        key: &'static str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        let found = self.take(key)?;
        let Some(text) = found.value.as_str() else {
            self.wrong(&found, key, "a text");
            return None;
        };
        match self.parse_text(text, parse) {
            Ok(value) => Some(value),
            Err(message) => {
                self.reader.report(found.offset, &self.path_of(key), message, None);
                None
            }
        }
    }

    /// The content of a file that holds a secret and that this key names, through `parse`.
    pub fn secret<T>(
        &mut self,
        key: &'static str,
        parse: impl FnOnce(String) -> Result<T, String>,
    ) -> Option<T> {
        let (reader, name) = (self.reader, self.path_of(key));
        self.text(key, |file| {
            let value = parse(values::secret_file(file)?)?;
            reader.look_at_mode(&name, Path::new(file));
            Ok::<_, String>(value)
        })
    }

    /// The path of a file that holds a secret, such as a private key.
    pub fn secret_path(&mut self, key: &'static str) -> Option<PathBuf> {
        let (reader, name) = (self.reader, self.path_of(key));
        let path = self.text(key, values::path)?;
        reader.look_at_mode(&name, &path);
        Some(path)
    }

    /// Looks at the mode of the configuration file itself, where a password stands in this URL.
    pub fn password_in_file(&self, key: &str) {
        let text = self.left.get(key).and_then(|found| found.value.as_str());
        let user = text.and_then(|text| text.split_once("://")?.1.rsplit_once('@'));
        let password = user.and_then(|(user, _)| Some(user.split_once(':')?.1));
        if password.is_some_and(|password| !password.is_empty() && !password.starts_with("${")) {
            self.reader.look_at_mode(&self.path_of(key), Path::new(self.reader.file));
        }
    }

    /// The value found stands in the message as it stands in the file: an expanded one may
    /// be a secret.
    fn parse_text<T, E: Display>(
        &self,
        text: &str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Result<T, String> {
        let expanded = self.reader.expand(text).map_err(|e| format!("`{text}`: {e}"))?;
        parse(&expanded).map_err(|e| format!("`{text}`: {e}"))
    }

    /// A text that must be there.
    pub fn required_text<T, E: Display>(
        &mut self,
        key: &'static str,
        example: &str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        if !self.has(key) {
            self.problem(key, "this key is missing", &format!("such as `{key} = {example}`"));
        }
        self.text(key, parse)
    }

    /// A list of texts, or a single one. Every bad member is reported.
    pub fn texts<T, E: Display>(
        &mut self,
        key: &'static str,
        parse: impl Fn(&str) -> Result<T, E>,
    ) -> Option<Vec<T>> {
        let found = self.take(key)?;
        let members: Vec<(usize, Option<&str>)> = match &found.value {
            DeValue::String(text) => vec![(found.offset, Some(text))],
            DeValue::Array(list) => {
                list.iter().map(|v| (v.span().start, v.get_ref().as_str())).collect()
            }
            _ => {
                self.wrong(&found, key, "a text or a list of texts");
                return None;
            }
        };
        let mut out = Vec::new();
        let mut sound = true;
        for (offset, text) in members {
            let value = text
                .ok_or_else(|| "every member of the list must be a text".to_owned())
                .and_then(|text| self.parse_text(text, &parse));
            match value {
                Ok(value) => out.push(value),
                Err(message) => {
                    self.reader.report(offset, &self.path_of(key), message, None);
                    sound = false;
                }
            }
        }
        sound.then_some(out)
    }

    /// A table whose keys are the operator's own, each with a text. Every bad pair is reported.
    pub fn pairs<T, E: Display>(
        &mut self,
        key: &'static str,
        parse: impl Fn(&str, &str) -> Result<T, E>,
    ) -> Option<Vec<T>> {
        let table = self.table(key)?;
        let mut out = Vec::new();
        let mut sound = true;
        for (key, found) in &table.left {
            let text = found.value.as_str().ok_or_else(|| "the value must be a text".to_owned());
            match text.and_then(|text| table.parse_text(text, |text| parse(key, text))) {
                Ok(value) => out.push(value),
                Err(message) => {
                    let path = table.path_of(&format!("\"{key}\""));
                    self.reader.report(found.offset, &path, message, None);
                    sound = false;
                }
            }
        }
        sound.then_some(out)
    }

    /// A list of texts that must be there and may not be empty.
    pub fn required_texts<T, E: Display>(
        &mut self,
        key: &'static str,
        example: &str,
        parse: impl Fn(&str) -> Result<T, E>,
    ) -> Option<Vec<T>> {
        let hint = format!("such as `{key} = {example}`");
        if !self.has(key) {
            self.problem(key, "this key is missing", &hint);
        }
        let texts = self.texts(key, parse);
        if texts.as_ref().is_some_and(Vec::is_empty) {
            self.problem(key, "the list is empty", &hint);
        }
        texts
    }

    pub fn flag(&mut self, key: &'static str) -> Option<bool> {
        let found = self.take(key)?;
        let value = found.value.as_bool();
        if value.is_none() {
            self.wrong(&found, key, "`true` or `false`");
        }
        value
    }

    /// A whole number within bounds.
    pub fn number(
        &mut self,
        key: &'static str,
        bounds: std::ops::RangeInclusive<u64>,
    ) -> Option<u64> {
        let found = self.take(key)?;
        let number = found.value.as_integer();
        let number = number.and_then(|n| u64::from_str_radix(n.as_str(), n.radix()).ok());
        let number = number.filter(|n| bounds.contains(n));
        if number.is_none() {
            let expected = format!("a whole number from {} to {}", bounds.start(), bounds.end());
            self.wrong(&found, key, &expected);
        }
        number
    }

    /// A number from 0 to 1.
    pub fn share(&mut self, key: &'static str) -> Option<f64> {
        let found = self.take(key)?;
        let number: Option<f64> = match &found.value {
            DeValue::Float(number) => number.as_str().parse().ok(),
            DeValue::Integer(number) => number.as_str().parse().ok(),
            _ => None,
        };
        let number = number.filter(|number| (0.0..=1.0).contains(number));
        if number.is_none() {
            self.wrong(&found, key, "a number from 0 to 1");
        }
        number
    }

    /// A table below this one. `None` where it is not there.
    pub fn table(&mut self, key: &'static str) -> Option<Table<'r>> {
        let found = self.take(key)?;
        match found.value {
            DeValue::Table(table) => {
                Some(Table::new(self.reader, self.path_of(key), found.offset, table))
            }
            _ => {
                self.wrong(&found, key, "a table");
                None
            }
        }
    }

    /// A list of tables, or a single one.
    pub fn tables(&mut self, key: &'static str) -> Vec<Table<'r>> {
        let Some(found) = self.take(key) else { return Vec::new() };
        let list: Vec<Spanned<DeValue<'r>>> = match found.value {
            DeValue::Table(table) => {
                return vec![Table::new(self.reader, self.path_of(key), found.offset, table)];
            }
            DeValue::Array(list) => list.into_iter().collect(),
            _ => {
                self.wrong(&found, key, "a table or a list of tables");
                return Vec::new();
            }
        };
        let mut tables = Vec::new();
        for (n, member) in list.into_iter().enumerate() {
            let offset = member.span().start;
            let path = format!("{}[{}]", self.path_of(key), n + 1);
            match member.into_inner() {
                DeValue::Table(table) => {
                    tables.push(Table::new(self.reader, path, offset, table));
                }
                other => {
                    let message = format!("{} is not a table", shown(&other));
                    self.reader.report(offset, &path, message, None);
                }
            }
        }
        tables
    }

    /// Reports the keys that are left: nobody knows them.
    pub fn finish(self) {
        for (key, found) in &self.left {
            let hint = nearest(key, &self.known).map_or_else(
                || format!("known here: {}", self.known.join(", ")),
                |known| format!("did you mean `{known}`?"),
            );
            let path = self.path_of(key);
            self.reader.report(found.offset, &path, "unknown key", Some(hint));
        }
    }
}

/// A value as it is told in a message.
fn shown(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => format!("`{text}`"),
        DeValue::Integer(number) => format!("`{}`", number.as_str()),
        DeValue::Float(number) => format!("`{}`", number.as_str()),
        DeValue::Boolean(flag) => format!("`{flag}`"),
        DeValue::Datetime(time) => format!("`{time}`"),
        DeValue::Array(_) => "a list".into(),
        DeValue::Table(_) => "a table".into(),
    }
}

/// The known key that differs in the fewest letters, if in few.
fn nearest(key: &str, known: &[&'static str]) -> Option<&'static str> {
    let close = known.iter().map(|known| (distance(key, known), *known)).min()?;
    (close.0 <= 1 + close.1.len() / 4).then_some(close.1)
}

/// Levenshtein's distance.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let substituted = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}
