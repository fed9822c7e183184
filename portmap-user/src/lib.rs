//! t
#![allow(missing_docs)]
pub mod object;
