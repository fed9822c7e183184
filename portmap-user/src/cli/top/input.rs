//! Keys of `portmap top`.

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::{
    action::{Action, Mode},
    sort::SortKey,
};

/// The action of a key in a mode.
pub(super) fn action(key: KeyEvent, mode: Mode) -> Option<Action> {
    if key.kind == KeyEventKind::Release {
        return None;
    }
    if key.modifiers.contains(KeyModifiers::CONTROL) {
        return match key.code {
            KeyCode::Char('c') => Some(Action::Quit),
            KeyCode::Char('z') => Some(Action::Suspend),
            KeyCode::Char('u') if mode == Mode::Filter => Some(Action::EraseAll),
            _ => None,
        };
    }
    if mode == Mode::Filter {
        return match key.code {
            KeyCode::Char(character) => Some(Action::Type(character)),
            KeyCode::Backspace => Some(Action::Erase),
            KeyCode::Enter => Some(Action::Accept),
            KeyCode::Esc => Some(Action::Back),
            _ => None,
        };
    }
    match key.code {
        KeyCode::Char('q') if mode == Mode::Table => Some(Action::Quit),
        KeyCode::Char('q') | KeyCode::Esc | KeyCode::Backspace => Some(Action::Back),
        KeyCode::Up | KeyCode::Char('k') => Some(Action::Move(-1)),
        KeyCode::Down | KeyCode::Char('j') => Some(Action::Move(1)),
        KeyCode::PageUp => Some(Action::Page(-1)),
        KeyCode::PageDown => Some(Action::Page(1)),
        KeyCode::Home | KeyCode::Char('g') => Some(Action::First),
        KeyCode::End | KeyCode::Char('G') => Some(Action::Last),
        KeyCode::Enter => Some(Action::Open),
        KeyCode::Char('?' | 'h') => Some(Action::Help),
        KeyCode::Char(' ') => Some(Action::Pause),
        KeyCode::Char('b') => Some(Action::Unit),
        KeyCode::Char('/') if mode == Mode::Table => Some(Action::Filter),
        KeyCode::Char('i') => Some(Action::Invert),
        KeyCode::Left | KeyCode::Char('<') => Some(Action::SortNext(-1)),
        KeyCode::Right | KeyCode::Char('>') => Some(Action::SortNext(1)),
        KeyCode::Char(letter) => SortKey::by_letter(letter).map(Action::Sort),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pressed(code: KeyCode, mode: Mode) -> Option<Action> {
        action(KeyEvent::new(code, KeyModifiers::NONE), mode)
    }

    #[test]
    fn top_keys_depend_on_the_mode() {
        assert_eq!(pressed(KeyCode::Char('q'), Mode::Table), Some(Action::Quit));
        assert_eq!(pressed(KeyCode::Char('q'), Mode::Detail), Some(Action::Back));
        assert_eq!(pressed(KeyCode::Char('q'), Mode::Filter), Some(Action::Type('q')));
        for mode in [Mode::Table, Mode::Filter, Mode::Detail, Mode::Help] {
            let interrupt = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
            assert_eq!(action(interrupt, mode), Some(Action::Quit), "{mode:?}");
        }
    }

    /// Each letter is the key of one column, and of nothing else.
    #[test]
    fn top_sort_letters_are_unique() {
        for key in SortKey::ALL {
            assert_eq!(pressed(KeyCode::Char(key.letter()), Mode::Table), Some(Action::Sort(key)), "{key:?}");
        }
    }
}
