//! Cleaning of text from a serial line for logs.

/// Returns the line without carriage returns and terminal control sequences.
pub(super) fn clean(line: &str) -> String {
    let mut clean = String::with_capacity(line.len());
    let mut characters = line.chars();
    while let Some(character) = characters.next() {
        match character {
            '\u{1b}' => skip_sequence(&mut characters),
            '\t' => clean.push('\t'),
            other if !other.is_control() => clean.push(other),
            _ => {}
        }
    }
    clean
}

/// Skips the rest of a sequence that began with an escape character.
fn skip_sequence(characters: &mut std::str::Chars<'_>) {
    if characters.next() == Some('[') {
        // Parameters come before one final character from `@` to `~`.
        characters.find(|character| ('@'..='~').contains(character));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn console_removes_control_sequences() {
        assert_eq!(clean("\u{1b}[31mtest\u{1b}[0m a\tb\r"), "test a\tb");
        assert_eq!(clean("\u{1b}cplain \u{1b}[2J\u{1b}[1;1Htext é"), "plain text é");
        assert_eq!(clean("cut \u{1b}[3"), "cut ");
    }
}
