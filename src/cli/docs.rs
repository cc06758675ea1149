//! `vpt completions` and `vpt man`: what a shell and `man` want to know of the commands, made from the commands themselves.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, Command, CommandFactory};
use clap_complete::Shell;
use serde_json::json;
use vpt::files::write_atomic;

use super::Cli;
use super::output::Output;

/// Print what a shell needs to complete commands, flags and their values
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  vpt completions bash > ~/.local/share/bash-completion/completions/vpt
  vpt completions zsh > ~/.zfunc/_vpt          with `fpath+=~/.zfunc` before `compinit` in ~/.zshrc
  vpt completions fish > ~/.config/fish/completions/vpt.fish")]
pub(crate) struct Completions {
    /// The shell
    #[arg(value_name = "SHELL", value_enum)]
    shell: Shell,
}

/// Print the manual page, or write a page for each command
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  vpt man | man -l -\n  vpt man --out ~/.local/share/man/man1")]
pub(crate) struct Man {
    /// Write vpt.1, vpt-train.1, vpt-data-info.1 and so on into this folder, which is made if need be
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

pub(crate) fn completions(args: &Completions, out: Output) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "vpt", &mut script);
    let script = String::from_utf8(script).context("completions")?;
    out.result(&json!({ "shell": args.shell.to_string(), "script": script }), || script.clone())
}

pub(crate) fn man(args: &Man, out: Output) -> anyhow::Result<()> {
    let mut root = Cli::command().disable_help_subcommand(true);
    root.build();
    let Some(folder) = &args.out else {
        let page = page(&root)?;
        return out.result(&json!({ "page": page }), || page.clone());
    };
    fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    let mut files = Vec::new();
    write_pages(&root, "vpt", folder, &mut files)?;
    out.result(&json!({ "files": files }), || format!("{} pages in {}", files.len(), folder.display()))
}

/// Writes the pages of `command`, which is called `name`, and of the commands in it.
fn write_pages(command: &Command, name: &str, folder: &Path, files: &mut Vec<String>) -> anyhow::Result<()> {
    let file = folder.join(format!("{name}.1"));
    write_atomic(&file, page(command)?.as_bytes())?;
    files.push(file.display().to_string());
    for inner in command.get_subcommands().filter(|inner| !inner.is_hide_set()) {
        write_pages(inner, &format!("{name}-{}", inner.get_name()), folder, files)?;
    }
    Ok(())
}

fn page(command: &Command) -> anyhow::Result<String> {
    let mut page = Vec::new();
    clap_mangen::Man::new(command.clone()).render(&mut page).context("manual page")?;
    String::from_utf8(page).context("manual page")
}
