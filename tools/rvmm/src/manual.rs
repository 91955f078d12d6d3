// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `rvmm man` and `rvmm completions`: what shells and man show is made of what `--help` shows.

use std::io::{self, Write};

use clap::CommandFactory;
use clap_complete::Shell;

use crate::status::{say, Status};
use crate::Cli;

/// Options of `rvmm completions`.
#[derive(clap::Args)]
pub struct CompletionArgs {
    /// Shell to write completions for.
    shell: Shell,
}

/// Options of `rvmm man`.
#[derive(clap::Args)]
pub struct ManArgs {
    /// Command whose page is wanted, such as `run`; the page of all if not given.
    #[arg(value_name = "COMMAND")]
    command: Option<String>,
}

/// Runs `rvmm completions`.
pub fn completions(args: &CompletionArgs) -> Status {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "rvmm", &mut text);
    print(&text)
}

/// Runs `rvmm man`.
pub fn man(args: &ManArgs) -> Status {
    match page(args.command.as_deref()) {
        Some(Ok(text)) => print(&text),
        Some(Err(error)) => failed(&error),
        None => {
            let name = args.command.as_deref().unwrap_or_default();
            say!("rvmm: there is no command {name:?}: see `rvmm --help`");
            Status::Other
        }
    }
}

/// The page of `rvmm`, or of one of its commands if there is that.
fn page(command: Option<&str>) -> Option<io::Result<Vec<u8>>> {
    let mut all = Cli::command();
    // Names of the pages of commands, and options that all have.
    all.build();
    let page = match command {
        None => clap_mangen::Man::new(all),
        Some(name) => {
            let found = all.find_subcommand(name)?;
            let title = format!("rvmm-{}", found.get_name());
            clap_mangen::Man::new(found.clone()).title(title)
        }
    };
    let mut text = Vec::new();
    let done = page.render(&mut text);
    Some(done.map(|()| text))
}

fn print(text: &[u8]) -> Status {
    match io::stdout().write_all(text) {
        Ok(()) => Status::Done,
        Err(error) => failed(&error),
    }
}

fn failed(error: &io::Error) -> Status {
    say!("rvmm: standard output: {error}");
    Status::Other
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page() {
        let text = |command| String::from_utf8(page(command).unwrap().unwrap()).unwrap();
        assert!(text(None).contains(".TH rvmm 1"));
        let all = Cli::command();
        for command in all.get_subcommands() {
            let text = text(Some(command.get_name()));
            assert!(text.contains(&format!(".TH rvmm-{} 1", command.get_name())));
        }
        assert!(text(Some("run")).contains("Exit status"));
        assert!(page(Some("no-such")).is_none());
    }

    #[test]
    fn every_shell_is_told_the_commands() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "rvmm", &mut text);
            let text = String::from_utf8(text).unwrap();
            for word in ["completions", "on-reset", "memory"] {
                assert!(text.contains(word), "{shell}: {word}");
            }
        }
    }

    #[test]
    fn help_fits_a_screen() {
        let all = Cli::command();
        let names = all
            .get_subcommands()
            .map(|command| vec![command.get_name()]);
        for name in names.chain([vec![]]) {
            for flag in ["-h", "--help"] {
                let words = ["rvmm"].into_iter().chain(name.iter().copied());
                let help = Cli::command()
                    .term_width(100)
                    .try_get_matches_from(words.chain([flag]))
                    .unwrap_err();
                let lines = help.to_string().lines().count();
                assert!(lines <= 36, "{name:?} {flag}: {lines} lines");
            }
        }
    }
}
