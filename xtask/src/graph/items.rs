//! Module declarations and paths in Rust source. Code behind `#[cfg(test)]` is left out.

use super::modules::ModulePath;
use crate::rust_source::{self, Kind, Token};

/// Something in a file that the graph is made of.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Item {
    /// The declaration of a module.
    Module {
        /// Its path in the crate.
        path: ModulePath,
        /// Where its source is.
        location: Location,
    },
    /// A path of at least one segment, such as `crate::kernel::link` or `super::*`.
    Path {
        /// The module that contains it; inline modules have paths of their own.
        module: ModulePath,
        /// Its segments.
        segments: Vec<String>,
        /// The name that a `use` declaration binds; none in other code.
        bound: Option<String>,
        /// Its line.
        line: usize,
    },
}

/// Where the source of a module is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Location {
    /// In its parent's file.
    Inline,
    /// In a file of its own, named after it.
    File,
    /// In the file that an attribute `path` names.
    Path(String),
}

/// The tokens of a source file without comments.
pub(super) fn code(text: &str) -> Vec<Token<'_>> {
    rust_source::tokens(text).into_iter().filter(|token| token.kind != Kind::Comment).collect()
}

/// Calls `found` for every item of a file that holds `module`.
pub(super) fn visit(code: &[Token<'_>], module: &ModulePath, found: &mut dyn FnMut(Item)) {
    Visitor { code, at: 0, module: module.clone(), found }.block();
}

struct Visitor<'a, 'f> {
    code: &'a [Token<'a>],
    at: usize,
    module: ModulePath,
    found: &'f mut dyn FnMut(Item),
}

impl Visitor<'_, '_> {
    fn text(&self, ahead: usize) -> &str {
        self.code
            .get(self.at + ahead)
            .map_or("", |token| if token.kind == Kind::Literal { "\"" } else { token.text })
    }

    fn is_identifier(&self, ahead: usize) -> bool {
        self.code.get(self.at + ahead).is_some_and(|token| token.kind == Kind::Identifier)
    }

    /// Reads to the end of the block that the visitor is in.
    fn block(&mut self) {
        let mut explicit = None;
        while self.at < self.code.len() {
            match self.text(0) {
                "}" => return self.at += 1,
                "{" => {
                    self.at += 1;
                    self.block();
                }
                "#" => {
                    let attribute = self.attribute();
                    if is_test_only(&attribute) {
                        self.skip_item();
                    } else if let ["path", "=", file] = attribute[..] {
                        explicit = Some(file.to_owned());
                    }
                    continue;
                }
                "mod" if self.is_identifier(1) => self.declaration(explicit.take()),
                "use" => self.use_declaration(),
                // `pub(in crate::daemon)` restricts, and imports nothing.
                "in" if self.at > 0 && self.code[self.at - 1].text == "(" => self.skip_to(&[")"]),
                _ if self.is_identifier(0) => self.path(),
                _ => self.at += 1,
            }
            explicit = None;
        }
    }

    /// Reads an attribute and returns the tokens between its brackets.
    fn attribute(&mut self) -> Vec<&'_ str> {
        self.at += 1;
        if self.text(0) == "!" {
            self.at += 1;
        }
        if self.text(0) != "[" {
            return Vec::new();
        }
        let start = self.at + 1;
        self.skip_balanced();
        self.code[start..(self.at - 1).max(start)].iter().map(|token| token.text).collect()
    }

    /// Skips brackets with all that is between them.
    fn skip_balanced(&mut self) {
        let mut depth = 0_usize;
        while self.at < self.code.len() {
            match self.text(0) {
                "(" | "[" | "{" => depth += 1,
                ")" | "]" | "}" => depth = depth.saturating_sub(1),
                _ => {}
            }
            self.at += 1;
            if depth == 0 {
                return;
            }
        }
    }

    fn skip_to(&mut self, ends: &[&str]) {
        while self.at < self.code.len() && !ends.contains(&self.text(0)) {
            self.at += 1;
        }
    }

    /// Skips the item that follows, with its attributes.
    fn skip_item(&mut self) {
        while self.text(0) == "#" {
            self.attribute();
        }
        let is_use = self.text(0) == "use" || self.text(0) == "pub" && self.text(1) == "use";
        while self.at < self.code.len() {
            match self.text(0) {
                ";" | "," => return self.at += 1,
                "}" => return,
                "{" if !is_use => return self.skip_balanced(),
                "(" | "[" | "{" => self.skip_balanced(),
                _ => self.at += 1,
            }
        }
    }

    /// Reads `mod name;` or `mod name { … }`.
    fn declaration(&mut self, explicit: Option<String>) {
        let mut path = self.module.clone();
        path.push(self.text(1).to_owned());
        self.at += 2;
        let is_inline = self.text(0) == "{";
        let location = match explicit {
            _ if is_inline => Location::Inline,
            None => Location::File,
            Some(path) => Location::Path(path),
        };
        (self.found)(Item::Module { path: path.clone(), location });
        self.at += 1;
        if is_inline {
            let outer = std::mem::replace(&mut self.module, path);
            self.block();
            self.module = outer;
        }
    }

    fn use_declaration(&mut self) {
        self.at += 1;
        self.use_tree(&[]);
        self.skip_to(&[";"]);
    }

    /// Reads one tree of a `use` declaration below a prefix.
    fn use_tree(&mut self, prefix: &[String]) {
        let line = self.code.get(self.at).map_or(0, |token| token.line);
        let mut segments = prefix.to_vec();
        loop {
            match self.text(0) {
                ":" => self.at += 1,
                "{" => {
                    self.at += 1;
                    while !matches!(self.text(0), "}" | "") {
                        self.use_tree(&segments);
                        if self.text(0) == "," {
                            self.at += 1;
                        }
                    }
                    self.at += 1;
                    return;
                }
                "as" => {
                    let bound = self.text(1).to_owned();
                    self.at += 2;
                    return self.found(segments, Some(bound), line);
                }
                "*" => {
                    self.at += 1;
                    segments.push("*".to_owned());
                    return self.found(segments, Some("*".to_owned()), line);
                }
                "self" if !segments.is_empty() => self.at += 1,
                _ if self.is_identifier(0) => {
                    segments.push(self.text(0).to_owned());
                    self.at += 1;
                }
                _ => {
                    let bound = segments.last().cloned();
                    return self.found(segments, bound, line);
                }
            }
        }
    }

    /// Reads a path in code that is no `use` declaration.
    fn path(&mut self) {
        let line = self.code[self.at].line;
        // What follows a dot is a method or a field.
        let is_member = self.at > 0 && self.code[self.at - 1].text == ".";
        let mut segments = vec![self.text(0).to_owned()];
        self.at += 1;
        while self.text(0) == ":" && self.text(1) == ":" && self.is_identifier(2) {
            segments.push(self.text(2).to_owned());
            self.at += 3;
        }
        if segments.len() > 1 && !is_member {
            self.found(segments, None, line);
        }
    }

    fn found(&mut self, segments: Vec<String>, bound: Option<String>, line: usize) {
        if !segments.is_empty() {
            (self.found)(Item::Path { module: self.module.clone(), segments, bound, line });
        }
    }
}

/// Whether an attribute says that what follows is for tests.
fn is_test_only(attribute: &[&str]) -> bool {
    matches!(attribute, ["cfg", "(", "test", ")"] | ["cfg", "(", "all", "(", "test", ..] | ["test"])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(text: &str) -> Vec<String> {
        let mut paths = Vec::new();
        visit(&code(text), &vec!["m".to_owned()], &mut |item| {
            if let Item::Path { module, segments, .. } = item {
                paths.push(format!("{}: {}", module.join("::"), segments.join("::")));
            }
        });
        paths
    }

    #[test]
    fn items_of_use_trees_are_read_to_their_leaves() {
        let text = "use crate::{a::{self, B}, c::*, d as e};\npub(crate) use super::f;\n";
        assert_eq!(
            paths(text),
            ["m: crate::a", "m: crate::a::B", "m: crate::c::*", "m: crate::d", "m: super::f"]
        );
    }

    #[test]
    fn items_are_qualified_paths_but_no_members_nor_visibilities() {
        let text = "pub(in crate::a) fn f(x: crate::b::C) -> D { x.e::<F>(); super::g() }";
        assert_eq!(paths(text), ["m: crate::b::C", "m: super::g"]);
    }

    #[test]
    fn items_inside_inline_modules_have_their_path() {
        assert_eq!(paths("mod n { use super::a; }\nuse b::c;"), ["m::n: super::a", "m: b::c"]);
    }

    #[test]
    fn items_for_tests_are_left_out() {
        let text = "#[cfg(test)]\nuse crate::{a, b};\n#[cfg(test)]\nmod tests { use super::*; }\n\
                    struct S { #[cfg(test)] x: crate::c::D, y: crate::e::F }\n\
                    #[cfg(test)]\nfn f(x: [u8; 2]) { crate::g::h() }\nuse crate::i;";
        assert_eq!(paths(text), ["m: crate::e::F", "m: crate::i"]);
    }

    #[test]
    fn items_ignore_strings_and_comments() {
        assert_eq!(paths("/// crate::a\nconst A: &str = \"crate::b::c\"; // crate::d\n"), [""; 0]);
    }
}
