//! The code that depends on the kernel: the maps, the frame behind a `__sk_buff`, applying verdicts, and the
//! programs.

mod apply;
mod drops;
mod frame;
mod gcra;
mod maps;
mod offload;
mod programs;
