//! Everything that touches the kernel: the maps, the frame behind a `__sk_buff`, and carrying out a verdict.

mod apply;
mod drops;
mod frame;
mod limits;
mod maps;
mod offload;
mod programs;
