//! closehook from outside: the built binary, real sockets, real files, real kills. Each file is a chapter of the contract.

mod harness;

mod cli;
mod config;
mod crash;
mod delivery;
mod deploy;
mod disk;
mod ingress;
mod log;
mod tls;
