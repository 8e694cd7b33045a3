//! `logster config` and the exit codes, through the real binary.

use std::process::{Command, Output};

fn logster(args: &[&str], env: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_logster"));
    // Only what the test sets: a developer's LOGSTER_ variables must not decide it.
    command.args(args).env_clear().envs(env.iter().copied());
    command.output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn check_names_every_mistake_and_exits_with_2() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("l.toml");
    std::fs::write(&file, "[inference]\nintervall = \"30s\"\nwindow = 180\n").unwrap();
    let file = file.to_str().unwrap();
    let out = logster(&["config", "check", file], &[]);
    assert_eq!(out.status.code(), Some(2));
    assert_eq!(
        text(&out.stderr),
        format!(
            "error: unknown setting `inference.intervall`\n  where: {file}:2:1\n  \
             remedy: did you mean `inference.interval`?\n\
             error: `inference.window` must be a duration such as \"30s\" (ms, s, m, h, d), found the integer 180\n  \
             where: {file}:3:10\n  remedy: give it a unit: \"180s\" or \"180ms\"\n"
        )
    );
    assert_eq!(text(&out.stdout), "");
    // A run refuses the same file in the same words.
    assert_eq!(logster(&["--config", file, "run", "--input", "x"], &[]).stderr, out.stderr);
}

#[test]
fn check_shows_what_is_not_at_its_default() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("l.toml");
    std::fs::write(&file, "[inference]\nwindow = \"6m\"\ninterval = \"30s\"\n").unwrap();
    let file = file.to_str().unwrap();
    let env = [("LOGSTER_LOG", "debug"), ("LOGSTER_KAFKA_SECURITY_PROTOCOL", "plaintext")];
    let out = logster(&["config", "check", file, "--set", "cluster.shards=32"], &env);
    assert_eq!(out.status.code(), Some(0), "{}", text(&out.stderr));
    assert_eq!(
        text(&out.stdout),
        format!(
            "{file}: ok\n  inference.window = \"6m\"  ({file}:2:10)\n  \
             cluster.shards = 32  (--set cluster.shards)\n  log.level = \"debug\"  (environment variable LOGSTER_LOG)\n"
        )
    );
    // The file named by --config or the variable is checked too.
    let out = logster(&["config", "check"], &[("LOGSTER_CONFIG", file)]);
    assert!(text(&out.stdout).starts_with(&format!("{file}: ok\n")));
}

#[test]
fn default_and_docs_print_the_generated_documents() {
    for (what, name) in [("default", "logster.toml"), ("docs", "config.md")] {
        // Even while the configuration is broken.
        let out = logster(&["config", what], &[("LOGSTER_CONFIG", "/nowhere"), ("LOGSTER_LOG", "?")]);
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/generated/").to_owned() + name;
        assert_eq!(text(&out.stdout), std::fs::read_to_string(path).unwrap());
        assert_eq!(out.status.code(), Some(0));
    }
}

#[test]
fn wrong_usage_exits_with_2() {
    for args in [&["run"][..], &["frobnicate"], &["run", "--set", "x"], &[], &["config", "check", "/nowhere.toml"]] {
        let out = logster(args, &[]);
        assert_eq!(out.status.code(), Some(2), "{args:?}: {}", text(&out.stderr));
        assert!(!out.stderr.is_empty() && out.stdout.is_empty(), "{args:?}");
    }
    assert_eq!(logster(&["--version"], &[]).status.code(), Some(0));
}
