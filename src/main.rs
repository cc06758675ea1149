//! The `vpt` binary: parse, dispatch, print one-line errors, set the exit code.
fn main() {}
