//! The terminal: opened for the view, and restored on every way out.

use nix::sys::signal::{SigSet, Signal, raise};
use ratatui::{
    DefaultTerminal, Frame,
    backend::{Backend as _, ClearType},
};

use crate::error::{Context as _, Result};

/// A terminal in raw mode that shows its alternate screen. It is restored on drop, and before a panic is
/// printed.
pub(super) struct Screen {
    terminal: DefaultTerminal,
}

impl Screen {
    /// Opens the terminal.
    pub(super) fn open() -> Result<Self> {
        let terminal = ratatui::try_init().context(|| "cannot prepare the terminal");
        if terminal.is_err() {
            ratatui::restore();
        }
        Ok(Self { terminal: terminal? })
    }

    /// Draws a screen.
    pub(super) fn draw(&mut self, draw: impl FnOnce(&mut Frame<'_>)) -> Result<()> {
        self.terminal.draw(draw).map(drop).context(|| "cannot write to the terminal")
    }

    /// Gives the terminal back, suspends this process, and takes the terminal again when it continues.
    pub(super) fn suspend(&mut self) -> Result<()> {
        self.restore();
        // Not SIGSTOP: the kernel ignores SIGTSTP where no shell could continue this process.
        let stop: SigSet = [Signal::SIGTSTP].into_iter().collect();
        let stopped = stop.thread_unblock().and_then(|()| raise(Signal::SIGTSTP));
        stop.thread_block().and(stopped).context(|| "cannot suspend this process")?;
        // Not by `Self::open`: the drop of the former value would restore the terminal again.
        self.terminal = ratatui::try_init().context(|| "cannot prepare the terminal")?;
        // Not by `Terminal::clear`: it asks the terminal for the cursor's position, and the thread that reads keys
        // would take the answer.
        let clear = self.terminal.backend_mut().clear_region(ClearType::All);
        clear.context(|| "cannot clear the terminal")
    }

    fn restore(&mut self) {
        // The terminal may be gone.
        let _ = self.terminal.show_cursor();
        let _ = ratatui::try_restore();
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.restore();
    }
}
