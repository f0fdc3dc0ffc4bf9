//! Completions for shells. What clap_complete 4.6 makes of a name with a hyphen, or of commands beside arguments, is mended: bash finds no
//! options of commands, zsh no commands and fish no options behind a model.

use clap::Command;
use clap_complete::Shell;

/// The script for a shell.
pub(super) fn script(shell: Shell, command: &mut Command) -> Vec<u8> {
    let mut text = Vec::new();
    clap_complete::generate(shell, command, "onnx-jmd", &mut text);
    let commands: Vec<&str> = command.get_subcommands().map(Command::get_name).collect();
    let text = String::from_utf8_lossy(&text).into_owned();
    let mended = match shell {
        // One half of the script is of another opinion than the other on what the program is called.
        Shell::Bash => text.replace("onnx__subcmd__jmd", "onnx__jmd"),
        Shell::Fish => text.lines().map(|line| of_program(line, &commands) + "\n").collect(),
        Shell::Zsh => with_commands_first(&text, &commands),
        _ => text,
    };
    mended.into_bytes()
}

/// A line of fish's on an option of the program, which there is behind its models, too.
fn of_program(line: &str, commands: &[&str]) -> String {
    const ALONE: &str = "complete -c onnx-jmd -n \"__fish_onnx_jmd_needs_command\" -";
    match line.strip_prefix(ALONE).filter(|rest| rest.starts_with("l ") || rest.starts_with("s ")) {
        Some(rest) => {
            let commands = commands.join(" ");
            format!("complete -c onnx-jmd -n \"not __fish_onnx_jmd_using_subcommand {commands}\" -{rest}")
        }
        None => line.to_owned(),
    }
}

/// zsh's script takes a command for the third argument, behind two models: where it is the first, two that are empty go before it.
fn with_commands_first(script: &str, commands: &[&str]) -> String {
    let moved = format!(
        "    local ret=1\n\n    case $words[2] in\n        ({})\n            words=(\"$words[1]\" '' '' \"${{(@)words[2,-1]}}\")\n            (( CURRENT += 2 ))\n        ;;\n    esac\n",
        commands.join("|")
    );
    let first =
        "\n_onnx-jmd_first() {\n    _alternative 'commands:command:_onnx-jmd_commands' 'models:model:_files'\n}\n";
    let mut text = String::with_capacity(script.len() + 1024);
    for line in script.lines() {
        match line.strip_suffix(":_files' \\").filter(|start| start.starts_with("':input -- ")) {
            Some(start) => text += &format!("{start}:_onnx-jmd_first' \\\n"),
            None => text += &format!("{line}\n"),
        }
    }
    text.replacen("    local ret=1\n", &moved, 1).replacen(
        "\n(( $+functions[_onnx-jmd_commands] ))",
        &format!("{first}\n(( $+functions[_onnx-jmd_commands] ))"),
        1,
    )
}
