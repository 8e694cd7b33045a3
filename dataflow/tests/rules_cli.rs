//! `logster rules check` and a run that refuses rules, through the real binary.

use std::process::{Command, Output};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

fn logster(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_logster")).current_dir(ROOT).args(args).env_clear().output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn the_rules_that_come_along_are_in_order() {
    let out = logster(&["rules", "check", "deploy/rules"]);
    assert_eq!(out.status.code(), Some(0), "{}", text(&out.stdout));
    let last = text(&out.stdout).lines().last().unwrap();
    assert!(last.starts_with("10 rules (1 medium, 8 high, 1 critical) in 10 files, version "), "{last}");
    assert!(last.ends_with(": 0 errors, 0 warnings"), "{}", text(&out.stdout));
    // Through the setting, the same.
    let set = logster(&["rules", "check", "--set", "rules.paths=deploy/rules/linux,deploy/rules/windows"]);
    assert_eq!(text(&set.stdout), text(&out.stdout));
}

#[test]
fn errors_are_listed_with_their_place_and_a_run_does_not_start_with_them() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.yml");
    let rule = "title: A\nid: 7b0d7f7e-6a5a-4d9a-9d7e-0f5f3a3b6f10\nstatus: test\nlogsource:\n    product: windows\n    \
                service: security\ndetection:\n    selection:\n        EventID|containz: 1\n    condition: selection\n\
                level: high\n---\ntitle: B\nid: 1d2e3f40-6a5a-4d9a-9d7e-0f5f3a3b6f10\nlogsource:\n    product: windows\n    \
                service: security\ndetection:\n    selection:\n        EventID: 4624\n    condition: selection\nlevel: low\n";
    std::fs::write(&file, rule).unwrap();
    let file = file.to_str().unwrap();
    let out = logster(&["rules", "check", file]);
    assert_eq!(out.status.code(), Some(1));
    let stdout = text(&out.stdout);
    assert!(stdout.contains(&format!("error: {file}:9: Unknown modifier 'containz'\n  remedy: ")), "{stdout}");
    assert!(stdout.contains(&format!("warning: {file}:13: \"B\" can never match")), "{stdout}");

    let out = logster(&["run", "--input", "deploy/demo", "--set", &format!("rules.paths={file}")]);
    assert_eq!(out.status.code(), Some(2), "{}", text(&out.stderr));
    assert!(
        text(&out.stderr).contains(&format!("the rules have errors, 1 in all:\n  {file}:9: Unknown modifier")),
        "{}",
        text(&out.stderr)
    );

    for (args, what) in
        [(&["rules", "check"][..], "no rules to check"), (&["rules", "check", "/nowhere"], "cannot be read")]
    {
        let out = logster(args);
        assert_eq!(out.status.code(), Some(2));
        assert!(text(&out.stderr).contains(what), "{}", text(&out.stderr));
    }
}
