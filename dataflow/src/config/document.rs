//! The commented default file and the reference, both made from the table of settings.

use std::fmt::Write;

use super::{SECTIONS, Section, Setting};

/// Width that comments are filled to.
const WIDTH: usize = 100;

/// `logster config default`: every setting with its documentation, commented out at its default.
pub fn default_file() -> String {
    let mut out = String::from(
        "# Settings of Logster, each with its documentation and commented out at its default.\n\
         # `logster config check FILE` says whether a changed copy is valid. Environment variables\n\
         # (LOGSTER_<SECTION>_<KEY>) and `--set section.key=value` win over the file.\n\
         # Made from the code by `logster config default`.\n",
    );
    for section in SECTIONS {
        let _ = write!(out, "\n{}[{}]\n", comment(&prose(section.doc)), section.path);
        for setting in section.settings {
            let _ = write!(out, "\n{}{}{}\n", comment(&prose(setting.doc)), comment(&allowed(setting)), entry(setting));
        }
    }
    out
}

/// `logster config docs`: the reference in Markdown.
pub fn reference() -> String {
    let mut out = String::from(
        "# Settings\n\n\
         Made from the code by `logster config docs`.\n\n\
         One TOML file (`--config FILE`, or `LOGSTER_CONFIG`), then environment variables, then options of the \
         command line: the later wins. `LOGSTER_<SECTION>_<KEY>` sets `section.key`, dots written as `_`; lists \
         are separated by commas, tables written `name=value,name=value`; an empty value unsets an optional \
         setting. Relative paths start at the working directory. Durations have a unit: `250ms`, `30s`, `3m`, \
         `24h`, `7d`.\n",
    );
    for Section { path, doc, settings } in SECTIONS {
        let _ = write!(
            out,
            "\n## `[{path}]`\n\n{}\n\n| setting | default | allowed | meaning |\n|---|---|---|---|\n",
            prose(doc)
        );
        for setting in *settings {
            let default = match (setting.default)() {
                Some(default) => format!("`{default}`"),
                None => "unset".into(),
            };
            let short = setting.short_env.map_or(String::new(), |short| format!(" Also `{short}`."));
            let meaning = format!("{}{short}", prose(setting.doc));
            let allowed = allowed(setting);
            let _ = writeln!(out, "| `{}` | {default} | {} | {meaning} |", setting.path, allowed.trim_end_matches('.'));
        }
    }
    out
}

fn prose(doc: &[&str]) -> String {
    doc.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" ")
}

/// "A whole number, 1 to 4096."
fn allowed(setting: &Setting) -> String {
    let kind = (setting.kind)();
    let mut letters = kind.chars();
    let kind: String = letters.next().into_iter().flat_map(char::to_uppercase).chain(letters).collect();
    let range = setting.range.map_or(String::new(), |(low, high)| format!(", {low} to {high}"));
    format!("{kind}{range}.")
}

fn entry(setting: &Setting) -> String {
    let key = setting.key();
    match (setting.default)() {
        _ if setting.secret => format!("# ({} in the environment)", setting.env()),
        None => format!("#{key} ="),
        Some(list) if list.len() > WIDTH && list.starts_with('[') => {
            let items = list.trim_matches(['[', ']']);
            let lines: String = fill(items, WIDTH - 8).iter().map(|line| format!("#    {line}\n")).collect();
            format!("#{key} = [\n{lines}#]")
        }
        Some(default) => format!("#{key} = {default}"),
    }
}

fn comment(text: &str) -> String {
    fill(text, WIDTH - 2).iter().map(|line| format!("# {line}\n")).collect()
}

fn fill(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}
