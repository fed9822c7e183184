//! What people see: `portmap top`, `stats` and `flows`, and the pages of the documentation that show them.

mod flows;
mod inspect;
mod page;
mod top;
