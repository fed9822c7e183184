//! Retired words: [`words`] lists them, this module finds them.

use std::collections::HashMap;

use anyhow::{Result, bail};

use super::{
    files::{self, File, Format},
    hits::{self, Hit},
    words::{self, Exception, Term},
};
use crate::rust_source::{self, Kind};

/// The file that lists the words contains them.
const LIST: &str = "xtask/src/check/words.rs";

/// Fails if a retired word is in the tree, and lists every place. An exception that excepts nothing is an
/// error, too.
pub(super) fn check() -> Result<()> {
    let files: Vec<File> = files::read()?.into_iter().filter(|file| file.path != LIST).collect();
    let index = Index::new(words::EVERYWHERE, words::IDENTIFIER_PARTS, words::IDENTIFIERS);
    let mut is_used = vec![false; words::EXCEPTIONS.len()];
    let mut hits = Vec::new();
    for file in &files {
        for found in index.search(file) {
            let excepts =
                |exception: &Exception| exception.file == file.path && exception.words == found.term.0;
            match words::EXCEPTIONS.iter().position(excepts) {
                Some(exception) => is_used[exception] = true,
                None => hits.push(found.hit(file)),
            }
        }
    }
    hits::none("retired words", &hits)?;
    let unused = words::EXCEPTIONS.iter().zip(is_used).filter(|(_, is_used)| !is_used);
    let unused: Vec<_> =
        unused.map(|(one, _)| format!("{:?} in {} ({})", one.words, one.file, one.reason)).collect();
    if !unused.is_empty() {
        bail!("{LIST} lists exceptions that nothing needs, remove them: {}", unused.join(", "));
    }
    Ok(())
}

/// A retired word in a file.
struct Found {
    term: &'static Term,
    line: usize,
    /// The words as the file has them, in lower case, or the identifier.
    text: String,
}

impl Found {
    fn hit(&self, file: &File) -> Hit {
        let Self { term: (_, say), line, text } = self;
        Hit { file: file.path.clone(), line: *line, message: format!("{text}: say {say}") }
    }
}

/// A word of a text, in lower case.
#[derive(Debug, PartialEq, Eq)]
struct Word {
    text: String,
    line: usize,
    /// Whether it is part of an identifier of Rust, or between backticks in prose.
    is_code: bool,
    /// Whether nothing but white space, an underscore, a hyphen or the slashes of a comment precedes it.
    is_joined: bool,
}

/// The words of a file, and its identifiers with their lines.
#[derive(Default)]
struct Words {
    parts: Vec<Word>,
    identifiers: Vec<(String, usize)>,
}

impl Words {
    fn of(file: &File) -> Self {
        let mut words = Self::default();
        // A file's name is code, because it is a module's.
        words.add_text(&file.path, 1, true);
        words.interrupt();
        if files::format(&file.path) != Some(Format::Rust) {
            words.add_text(&file.text, 1, false);
            return words;
        }
        let mut previous = Kind::Punctuation;
        for token in rust_source::tokens(&file.text) {
            match token.kind {
                Kind::Identifier => words.add_identifier(token.text, token.line, true, true),
                Kind::Comment => {
                    // A sentence goes on in the comment of the next line.
                    if previous != Kind::Comment {
                        words.interrupt();
                    }
                    words.add_text(token.text, token.line, false);
                }
                Kind::Literal => {
                    words.interrupt();
                    words.add_text(&without_escapes(token.text), token.line, false);
                    words.interrupt();
                }
                Kind::Punctuation => words.interrupt(),
            }
            previous = token.kind;
        }
        words
    }

    /// Ends a phrase: the next word does not continue it.
    fn interrupt(&mut self) {
        self.parts.push(Word { text: String::new(), line: 0, is_code: false, is_joined: false });
    }

    /// Adds prose, in which code is between backticks; or code only.
    fn add_text(&mut self, text: &str, first_line: usize, is_all_code: bool) {
        let (mut line, mut is_quoted, mut is_joined) = (first_line, false, true);
        let mut rest = text;
        while let Some(next) = rest.chars().next() {
            let is_word = |c: char| c.is_alphanumeric() || c == '_';
            if is_word(next) {
                let length = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
                self.add_identifier(&rest[..length], line, is_quoted || is_all_code, is_joined);
                is_joined = true;
                rest = &rest[length..];
                continue;
            }
            let length = if next == '`' {
                is_quoted = !is_quoted;
                rest.find(|c| c != '`').unwrap_or(rest.len())
            } else {
                is_joined &= next.is_whitespace() || matches!(next, '-' | '/' | '!' | '#');
                line += usize::from(next == '\n');
                next.len_utf8()
            };
            rest = &rest[length..];
        }
    }

    fn add_identifier(&mut self, identifier: &str, line: usize, is_code: bool, is_joined: bool) {
        if is_code {
            self.identifiers.push((identifier.to_owned(), line));
        }
        for (place, part) in split(identifier).into_iter().enumerate() {
            let is_joined = is_joined || place > 0;
            self.parts.push(Word { text: part.to_lowercase(), line, is_code, is_joined });
        }
    }
}

/// The literal without the characters that its backslashes escape, which are no letters of a word.
fn without_escapes(literal: &str) -> String {
    let mut text = String::with_capacity(literal.len());
    let mut is_escaped = false;
    for c in literal.chars() {
        let keeps = !is_escaped && c != '\\' || c == '\n';
        text.push(if keeps { c } else { ' ' });
        is_escaped = c == '\\' && !is_escaped;
    }
    text
}

/// The words of an identifier: `KeyedLock`, `keyed_lock` and `KEYED_LOCK` are "keyed" and "lock".
fn split(identifier: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    for part in identifier.split('_').filter(|part| !part.is_empty()) {
        let mut start = 0;
        let mut was_lower = false;
        for (at, c) in part.char_indices() {
            if c.is_uppercase() && was_lower {
                parts.push(&part[start..at]);
                start = at;
            }
            was_lower = c.is_lowercase() || c.is_ascii_digit();
        }
        parts.push(&part[start..]);
    }
    parts
}

/// A term that begins with a certain word.
struct Candidate {
    term: &'static Term,
    /// The words that may follow, one after the other.
    following: Vec<Vec<&'static str>>,
    is_code_only: bool,
}

/// All terms, by their first word.
struct Index {
    terms: HashMap<&'static str, Vec<Candidate>>,
    identifiers: HashMap<&'static str, &'static Term>,
}

impl Index {
    fn new(
        everywhere: &'static [Term],
        identifier_parts: &'static [Term],
        identifiers: &'static [Term],
    ) -> Self {
        let mut terms: HashMap<_, Vec<Candidate>> = HashMap::new();
        for (list, is_code_only) in [(everywhere, false), (identifier_parts, true)] {
            for term in list {
                let mut words = term.0.split(' ').map(|word| word.split('|').collect::<Vec<_>>());
                let first = words.next().unwrap_or_default();
                let following: Vec<_> = words.collect();
                for word in first {
                    let following = following.clone();
                    terms.entry(word).or_default().push(Candidate { term, following, is_code_only });
                }
            }
        }
        let mut by_name = HashMap::new();
        for term in identifiers {
            by_name.extend(term.0.split('|').map(|name| (name, term)));
        }
        Self { terms, identifiers: by_name }
    }

    /// The terms in a file, with their lines in ascending order.
    fn search(&self, file: &File) -> Vec<Found> {
        let Words { parts, identifiers } = Words::of(file);
        let mut found = Vec::new();
        for (place, word) in parts.iter().enumerate() {
            for candidate in self.terms.get(&*word.text).map_or(&[][..], Vec::as_slice) {
                if matches(candidate, word, &parts[place + 1..]) {
                    let words = &parts[place..=place + candidate.following.len()];
                    let words: Vec<_> = words.iter().map(|word| &*word.text).collect();
                    found.push(Found { term: candidate.term, line: word.line, text: words.join(" ") });
                }
            }
        }
        for (name, line) in identifiers {
            found.extend(self.identifiers.get(&*name).map(|term| Found { term, line, text: name }));
        }
        found.sort_by_key(|found| found.line);
        found
    }
}

/// Whether the term is at the word `first`, which `rest` follows.
fn matches(candidate: &Candidate, first: &Word, rest: &[Word]) -> bool {
    let Candidate { following, is_code_only, term: _ } = candidate;
    (first.is_code || !is_code_only)
        && following.len() <= rest.len()
        && following.iter().zip(rest).all(|(accepted, word)| {
            word.is_joined && (word.is_code || !is_code_only) && accepted.contains(&&*word.text)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVERYWHERE: &[Term] = &[("gadget", "no client"), ("flip|flips back", "restore")];
    const PARTS: &[Term] = &[("tinker", "repair"), ("keyed spin", "KeyedLock")];
    const IDENTIFIERS: &[Term] = &[("Wish|spins", "TrafficSpec or KeyedLock")];

    fn search(path: &str, text: &str) -> Vec<(&'static str, usize)> {
        let file = File { path: path.to_owned(), text: text.to_owned() };
        let found = Index::new(EVERYWHERE, PARTS, IDENTIFIERS).search(&file);
        found.into_iter().map(|found| (found.term.0, found.line)).collect()
    }

    #[test]
    fn words_are_found_in_comments_strings_and_identifiers() {
        let text = "// Gadget.\nfn told_gadget() {}\nconst GADGET: &str = \"a\\gadget, gadget's\";\n";
        let expected = [("gadget", 1), ("gadget", 2), ("gadget", 3), ("gadget", 3)];
        assert_eq!(search("a.rs", text), expected);
    }

    #[test]
    fn phrases_are_found_across_lines_but_not_across_sentences() {
        assert_eq!(search("a.rs", "/// It flips\n    /// back.\n"), [("flip|flips back", 1)]);
        assert_eq!(search("a.md", "It was flip-back.\n"), [("flip|flips back", 1)]);
        assert_eq!(search("a.rs", "/// It is flip. Back.\nlet flip = back;\n"), []);
    }

    #[test]
    fn parts_of_identifiers_are_no_words_of_prose() {
        assert_eq!(
            search("a.rs", "// Tinker it.\nfn tinker_host() -> HostTinker {}"),
            [("tinker", 2), ("tinker", 2)]
        );
        assert_eq!(search("a.md", "To tinker is `Host::tinker`, a keyed spin is `KeyedSpin`.\n").len(), 2);
        assert_eq!(search("a.rs", "fn tinkerer(atinker: u8) {}"), []);
    }

    #[test]
    fn identifiers_are_compared_as_a_whole() {
        let text = "struct Wish; let spins = wish; // spins `spins`";
        assert_eq!(search("a.rs", text), [("Wish|spins", 1); 3]);
        assert_eq!(search("a.rs", "struct WishList; let u_spins = 0;"), []);
        assert_eq!(search("daemon/spins.rs", ""), [("Wish|spins", 1)]);
    }

    #[test]
    fn words_are_named_with_their_replacement() {
        let file = File { path: "a.rs".to_owned(), text: "// What flips\n// back: KeyedSpin".to_owned() };
        let hits: Vec<_> = Index::new(EVERYWHERE, PARTS, IDENTIFIERS)
            .search(&file)
            .iter()
            .map(|found| found.hit(&file))
            .collect();
        let expected =
            Hit { file: "a.rs".to_owned(), line: 1, message: "flips back: say restore".to_owned() };
        assert_eq!(hits, [expected]);
    }

    #[test]
    fn scripts_are_prose() {
        assert_eq!(search(".ci/run", "# gadget\nspins=1\n"), [("gadget", 1)]);
    }

    #[test]
    fn words_of_the_list_are_lower_case_and_have_a_replacement() {
        for (words, say) in words::EVERYWHERE.iter().chain(words::IDENTIFIER_PARTS) {
            assert_eq!(*words, words.to_lowercase());
            assert!(!words.is_empty() && !say.is_empty(), "{words}");
            assert!(!words.contains('_'), "{words}: words are separated by spaces");
        }
        for exception in words::EXCEPTIONS {
            assert!(!exception.reason.is_empty(), "{}", exception.words);
        }
    }
}
