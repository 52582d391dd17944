//! `closehook init`
mod document;
