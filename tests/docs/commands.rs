//! Every command line of ours in the pages is one that the program understands. Nothing is run.

use clap::Parser as _;
use pierhead::cli::Cli;

use crate::page;

/// What ends a command in a shell.
const ENDS: [&str; 9] = ["|", "||", "&", "&&", ";", ">", ">>", "<", "2>&1"];

/// The words of a shell's line, comments left out. The pages' quotes are plain.
fn words(line: &str) -> Vec<String> {
    let spaced = line.replace(';', " ; ").replace("> ", " > ");
    let bare = spaced.split(" #").next().unwrap_or_default();
    shlex::split(bare).unwrap_or_default()
}

/// Our commands in a line: ours where a command begins, until where it ends.
fn ours(line: &str) -> Vec<Vec<String>> {
    let words = words(line);
    let mut found = Vec::new();
    for command in words.split(|word| ENDS.contains(&word.as_str())) {
        let command: Vec<_> = command.iter().skip_while(|w| *w == "sudo").cloned().collect();
        let cargo = ["cargo", "run", "--release", "--"];
        if command.len() > cargo.len() && command.iter().zip(cargo).all(|(a, b)| a == b) {
            found.push(command[cargo.len() - 1..].to_vec());
        } else if command.first().is_some_and(|c| c == "pierhead" || c.ends_with("/pierhead")) {
            found.push(command);
        }
    }
    found
}

/// What a line of a block says to a shell, or to systemd.
fn line_of<'l>(tag: &str, line: &'l str) -> Option<&'l str> {
    let line = line.trim_start();
    match tag {
        "console" | "" => line.strip_prefix("$ "),
        "sh" | "bash" => Some(line),
        "ini" => line.starts_with("Exec").then(|| line.split_once('=')).flatten().map(|(_, l)| l),
        _ => None,
    }
}

#[test]
fn every_command_is_understood() {
    let mut count = 0;
    for page in page::all() {
        let mut lines: Vec<(String, String)> = Vec::new();
        for block in page.blocks() {
            let text = block.text.replace("\\\n", " ");
            let place = format!("{}:{}", page.name(), block.line);
            let said = text.lines().filter_map(|line| line_of(&block.tag, line));
            lines.extend(said.map(|line| (place.clone(), line.to_owned())));
        }
        let spans = page.spans().into_iter().filter(|span| span.starts_with("pierhead "));
        lines.extend(spans.map(|span| (page.name(), span)));
        for (place, line) in lines {
            for command in ours(&line) {
                count += 1;
                if let Err(error) = Cli::try_parse_from(&command) {
                    use clap::error::ErrorKind::{DisplayHelp, DisplayVersion};
                    let told = matches!(error.kind(), DisplayHelp | DisplayVersion);
                    assert!(told, "{place}: `{line}` is not understood:\n{error}");
                }
            }
        }
    }
    assert!(count > 60, "only {count} commands were found");
}

#[test]
fn commands_are_found_where_they_stand() {
    let one = |words: &[&str]| words.iter().map(|&w| w.to_owned()).collect::<Vec<_>>();
    assert_eq!(ours("pierhead ls -n 3 | head # x"), [one(&["pierhead", "ls", "-n", "3"])]);
    assert_eq!(ours("kill %1; pierhead serve &"), [one(&["pierhead", "serve"])]);
    assert_eq!(ours("cargo run --release -- demo"), [one(&["--", "demo"])]);
    assert_eq!(ours("docker run -v pierhead:/x pierhead"), [] as [Vec<String>; 0]);
    assert!(Cli::try_parse_from(["pierhead", "srve"]).is_err());
}
