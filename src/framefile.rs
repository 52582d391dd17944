//! Append-only files of checksummed frames: what the journal, the state and the dead letters are kept in.
