//! The `vpt` binary: parse, dispatch, print one-line errors, set the exit code.

mod cli;

fn main() -> std::process::ExitCode {
    cli::main()
}
