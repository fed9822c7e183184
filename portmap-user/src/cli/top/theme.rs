//! Styles for terminals with and without colour.

use ratatui::style::{Color, Modifier, Style};

/// What the terminal can show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Theme {
    /// Whether colours may be used. What they say is in the text, too.
    pub(super) has_colour: bool,
    /// Whether it shows ASCII only.
    pub(super) is_ascii: bool,
}

impl Theme {
    /// A style with this colour, if colours may be used.
    pub(super) fn coloured(self, colour: Color) -> Style {
        if self.has_colour { Style::new().fg(colour) } else { Style::new() }
    }

    /// Something is wrong.
    pub(super) fn alert(self) -> Style {
        self.coloured(Color::Red).add_modifier(Modifier::BOLD)
    }

    /// Something is slowed down.
    pub(super) fn warning(self) -> Style {
        self.coloured(Color::Yellow)
    }

    /// A title.
    pub(super) fn title(self) -> Style {
        self.coloured(Color::Cyan).add_modifier(Modifier::BOLD)
    }
}
