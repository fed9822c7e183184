//! A small reader of Rust source: it tells code from comments and from string literals. The checks of wording
//! and the module graph need no more than that, so xtask does without a parser.

/// The kind of a [`Token`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// An identifier or a keyword.
    Identifier,
    /// One character of punctuation.
    Punctuation,
    /// A comment, with its slashes.
    Comment,
    /// The content of a string literal, without its quotes.
    Literal,
}

/// A piece of source text. White space, numbers, lifetimes and character literals yield none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Token<'a> {
    /// Its kind.
    pub kind: Kind,
    /// Its text.
    pub text: &'a str,
    /// The line on which it begins, counted from 1.
    pub line: usize,
}

/// Splits Rust source into tokens.
pub(crate) fn tokens(source: &str) -> Vec<Token<'_>> {
    let mut reader = Reader { source, at: 0, line: 1, tokens: Vec::new() };
    while let Some(next) = reader.rest().chars().next() {
        reader.read(next);
    }
    reader.tokens
}

struct Reader<'a> {
    source: &'a str,
    /// Offset of the first byte that is not read yet.
    at: usize,
    line: usize,
    tokens: Vec<Token<'a>>,
}

impl<'a> Reader<'a> {
    fn rest(&self) -> &'a str {
        &self.source[self.at..]
    }

    /// Reads one token that begins with the character `next`.
    fn read(&mut self, next: char) {
        let rest = self.rest();
        if rest.starts_with("//") {
            let length = rest.find('\n').unwrap_or(rest.len());
            self.token(Kind::Comment, 0, length, 0);
        } else if rest.starts_with("/*") {
            self.token(Kind::Comment, 0, block_comment(rest), 0);
        } else if let Some((prefix, length, suffix)) = string(rest) {
            self.token(Kind::Literal, prefix, length, suffix);
        } else if next == '\'' {
            self.skip(quote(rest));
        } else if next.is_alphabetic() || next == '_' {
            let raw = if rest.starts_with("r#") { 2 } else { 0 };
            let length = identifier(&rest[raw..]);
            self.token(Kind::Identifier, raw, length, 0);
        } else if next.is_ascii_digit() {
            // A suffix such as `u32` belongs to the number.
            self.skip(identifier(rest));
        } else if next.is_whitespace() {
            self.skip(next.len_utf8());
        } else {
            self.token(Kind::Punctuation, 0, next.len_utf8(), 0);
        }
    }

    /// Adds a token of `length` bytes that stands between a prefix and a suffix.
    fn token(&mut self, kind: Kind, prefix: usize, length: usize, suffix: usize) {
        let text = &self.rest()[prefix..prefix + length];
        self.tokens.push(Token { kind, text, line: self.line });
        self.skip(prefix + length + suffix);
    }

    fn skip(&mut self, length: usize) {
        self.line += self.rest()[..length].matches('\n').count();
        self.at += length;
    }
}

/// The length of the identifier at the start of a text.
fn identifier(text: &str) -> usize {
    text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len())
}

/// The length of the block comment at the start of a text; block comments nest.
fn block_comment(text: &str) -> usize {
    let mut depth = 0_usize;
    let mut at = 0;
    while at < text.len() {
        let rest = &text[at..];
        if rest.starts_with("/*") {
            depth += 1;
            at += 2;
        } else if rest.starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += rest.chars().next().map_or(1, char::len_utf8);
        }
    }
    text.len()
}

/// The lengths of the prefix, the content and the suffix of the string literal at the start of a text, if
/// there is one.
fn string(text: &str) -> Option<(usize, usize, usize)> {
    let letters = text.find(|c: char| !matches!(c, 'b' | 'c' | 'r'))?;
    if letters > 2 {
        return None;
    }
    if text[..letters].ends_with('r') {
        let hashes = text[letters..].find(|c| c != '#')?;
        let content = text[letters + hashes..].strip_prefix('"')?;
        let end = format!("\"{}", "#".repeat(hashes));
        let length = content.find(&end).unwrap_or(content.len());
        return Some((letters + hashes + 1, length, end.len().min(content.len() - length)));
    }
    let content = text[letters..].strip_prefix('"')?;
    let mut is_escaped = false;
    let length = content.find(|c| {
        let ends = c == '"' && !is_escaped;
        is_escaped = c == '\\' && !is_escaped;
        ends
    });
    let length = length.unwrap_or(content.len());
    Some((letters + 1, length, usize::from(length < content.len())))
}

/// The length of the lifetime or the character literal at the start of a text.
fn quote(text: &str) -> usize {
    let inside = &text[1..];
    let Some(first) = inside.chars().next() else { return 1 };
    if first == '\\' {
        // The character after the backslash may be a quote.
        return inside.get(2..).and_then(|rest| rest.find('\'')).map_or(text.len(), |end| 1 + 2 + end + 1);
    }
    let after = &inside[first.len_utf8()..];
    if after.starts_with('\'') { 1 + first.len_utf8() + 1 } else { 1 + identifier(inside) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(source: &str, kind: Kind) -> Vec<&str> {
        tokens(source).into_iter().filter(|token| token.kind == kind).map(|token| token.text).collect()
    }

    #[test]
    fn rust_source_tells_code_from_comments_and_strings() {
        let source = "fn a() { // b \"c\"\n let d = \"e // f \\\" g\"; /* h /* i */ j */ k }\n";
        assert_eq!(texts(source, Kind::Identifier), ["fn", "a", "let", "d", "k"]);
        assert_eq!(texts(source, Kind::Comment), ["// b \"c\"", "/* h /* i */ j */"]);
        assert_eq!(texts(source, Kind::Literal), ["e // f \\\" g"]);
    }

    #[test]
    fn rust_source_reads_every_form_of_string_and_character() {
        let source = r##"b"one" r"two\" r#"th"ree"# c"four" '"' '\'' '\u{22}' 'x' &'static r#type 0x1f_u32"##;
        assert_eq!(texts(source, Kind::Literal), ["one", "two\\", "th\"ree", "four"]);
        assert_eq!(texts(source, Kind::Identifier), ["type"]);
        assert_eq!(texts(source, Kind::Punctuation), ["&"]);
    }

    #[test]
    fn rust_source_counts_lines_inside_tokens() {
        let lines: Vec<_> =
            tokens("a\n/* b\n*/ c \"d\ne\"\nf").into_iter().map(|token| (token.text, token.line)).collect();
        assert_eq!(lines, [("a", 1), ("/* b\n*/", 2), ("c", 3), ("d\ne", 3), ("f", 5)]);
    }
}
