//! Clients: container runtimes add their containers by the CNI plugin. The runtimes are real programs; what cannot run
//! here is replaced by its calls, as recorded.

mod calls;
mod containerd;
mod engine;
mod nomad;
mod plugin;
mod podman;
mod recovery;
