use logster_schema::{Activity, Endpoint, Field, Fields, Kind, Lane, Observation, Platform, Position, RawTopic};
use proptest::prelude::*;

use super::*;

fn observation(kind: Kind, fields: &[(Field, &str)]) -> Observation {
    let mut builder = Fields::builder();
    fields.iter().for_each(|(field, text)| {
        builder.push(*field, text);
    });
    Observation {
        endpoint: Endpoint::new("t", "h"),
        platform: Platform::Windows,
        time_ms: 0,
        arrival_ms: 0,
        lane: Lane::Live,
        position: Position { topic: RawTopic::Sysmon, partition: 0, offset: 0 },
        activity: Activity { kind, fields: builder.finish() },
        rules: None,
    }
}

fn source(name: &str, text: &str) -> Source {
    Source { name: name.to_owned(), text: text.to_owned() }
}

/// A rule of `logsource` (in YAML's flow style) with one selection.
fn rule(id: &str, logsource: &str, selection: &str) -> String {
    format!(
        "title: Rule {id}\nid: {id}\nlogsource: {{{logsource}}}\ndetection:\n  selection:\n    {selection}\n  \
         condition: selection\nlevel: high\ntags: [attack.t1059.001, attack.execution, attack.t1003]\n"
    )
}

/// The set of rules without findings.
fn set(rules: &[String]) -> RuleSet {
    let sources: Vec<Source> = rules.iter().enumerate().map(|(n, text)| source(&format!("{n}.yml"), text)).collect();
    let (set, findings) = RuleSet::load(&sources);
    assert_eq!(findings, []);
    set
}

fn matched(set: &RuleSet, o: &Observation) -> Vec<String> {
    set.evaluate(o).iter().map(|hit| set.rules()[hit.rule as usize].id.clone()).collect()
}

fn audit(kind: &str, text: &str) -> Observation {
    let serial = "1795220776.116:6";
    observation(Kind::Audit, &[(Field::AuditType, kind), (Field::AuditSerial, serial), (Field::AuditText, text)])
}

#[test]
fn an_event_meets_the_rules_of_its_log_source_under_sigma_names() {
    let sysmon = |id, fields: &[(Field, &str)]| observation(Kind::Sysmon(id), fields);
    let exec = |args| observation(Kind::EbpfExec, &[(Field::Ppid, "7"), (Field::Uid, "0"), (Field::Args, args)]);
    let open = |flags| {
        observation(Kind::EbpfFile, &[(Field::Comm, "sh"), (Field::Flags, flags), (Field::Path, "/etc/cron.d/x")])
    };
    let connect = |kind| {
        let fields = [(Field::Comm, "nc"), (Field::ConnectionType, kind), (Field::DestinationPort, "4444")];
        observation(Kind::EbpfConnect, &fields)
    };
    let execve = audit("EXECVE", "argc=3 a0=\"bash\" a1=\"-c\" a2=6964203E2078");
    let cases = [
        (
            "product: windows, category: process_creation",
            "CommandLine|contains: -ENC",
            1,
            (Field::CommandLine, "x -enc"),
        ),
        (
            "product: windows, category: image_load",
            "ImageLoaded|endswith: \\a.dll",
            7,
            (Field::ImageLoaded, "c:\\A.DLL"),
        ),
        ("category: network_connection", "DestinationPort: 443", 3, (Field::DestinationPort, "443")),
        (
            "product: windows, category: registry_set",
            "TargetObject|contains: Run",
            13,
            (Field::TargetObject, "a\\Run\\b"),
        ),
        (
            "product: windows, category: registry_event",
            "TargetObject|contains: Run",
            14,
            (Field::TargetObject, "a\\Run\\b"),
        ),
        ("product: windows, category: registry_add", "EventType: CreateKey", 12, (Field::EventType, "CreateKey")),
        ("product: windows, category: registry_delete", "EventType: DeleteKey", 12, (Field::EventType, "DeleteKey")),
        ("product: windows, category: process_access", "GrantedAccess: '0x1010'", 10, (Field::GrantedAccess, "0x1010")),
        ("product: windows, category: create_stream_hash", "Imphash: ab12", 15, (Field::Hashes, "MD5=1,IMPHASH=AB12")),
        (
            "product: windows, category: ps_script",
            "ScriptBlockText|contains: iex",
            4104,
            (Field::ScriptBlockText, "IEX x"),
        ),
        ("product: windows, service: sysmon", "EventID: 22", 22, (Field::QueryName, "a.b")),
    ];
    for (logsource, selection, id, field) in cases {
        let set = set(&[rule("r", logsource, selection)]);
        assert_eq!(matched(&set, &sysmon(id, &[field])), ["r"], "{logsource}");
        for other in (1..=29).chain([255, 4104]).filter(|other| *other != id) {
            let same = logsource.ends_with("registry_event") && (12..=14).contains(&other);
            assert_eq!(matched(&set, &sysmon(other, &[field])).len(), usize::from(same), "{logsource}: {other}");
        }
    }
    let cases = [
        ("product: linux, category: process_creation", "Image|endswith: /curl", exec("/usr/bin/curl -s x"), true),
        ("product: linux, category: process_creation", "User: root", exec("/usr/bin/curl"), true),
        ("product: linux, category: process_creation", "CommandLine: bash -c id > x", execve.clone(), true),
        ("product: linux, category: process_creation", "Image: /usr/bin/bash", execve.clone(), true),
        ("product: linux, service: auditd", "a2|contains: 'id >'", execve, true),
        (
            "product: linux, service: auditd",
            "syscall: ptrace",
            audit("SYSCALL", "syscall=101 exe=\"/x\" SYSCALL=ptrace"),
            true,
        ),
        ("product: linux, service: auditd", "type: SYSCALL", audit("PATH", "name=\"/x\""), false),
        (
            "product: linux, category: file_event",
            "TargetFilename|startswith: /etc/cron",
            open("O_WRONLY|O_CREAT"),
            true,
        ),
        ("product: linux, category: file_event", "TargetFilename|startswith: /etc/cron", open("O_RDONLY"), false),
        ("category: file_event", "TargetFilename: /etc/x", audit("PATH", "name=\"/etc/x\" nametype=CREATE"), true),
        ("category: file_event", "TargetFilename: /etc/x", audit("PATH", "name=\"/etc/x\" nametype=NORMAL"), false),
        ("product: linux, category: network_connection", "DestinationPort: 4444", connect("CONNECT"), true),
        ("product: linux, category: network_connection", "DestinationPort: 4444", connect("ACCEPT"), false),
        ("product: windows, category: network_connection", "DestinationPort: 4444", connect("CONNECT"), false),
    ];
    for (logsource, selection, o, matches) in cases {
        let set = set(&[rule("r", logsource, selection)]);
        assert_eq!(matched(&set, &o).len(), usize::from(matches), "{logsource} {selection}");
    }
}

#[test]
fn a_match_says_which_rule_and_why() {
    let yaml = rule("r", "product: windows, category: process_creation", "CommandLine|contains: -enc");
    let set = set(&[yaml]);
    let want = Rule {
        id: "r".into(),
        title: "Rule r".into(),
        level: RuleLevel::High,
        techniques: vec!["T1003".into(), "T1059.001".into()],
    };
    assert_eq!(set.rules(), [want]);
    let long = format!("x -enc {}", "é".repeat(500));
    let o = observation(Kind::Sysmon(1), &[(Field::Image, "C:\\x.exe"), (Field::CommandLine, &long)]);
    let hits = set.evaluate(&o);
    assert_eq!(hits.len(), 1);
    let evidence = &hits[0].evidence;
    assert!(evidence.starts_with("Image: C:\\x.exe; CommandLine: x -enc é"), "{evidence}");
    assert!(evidence.len() < 200, "{evidence}");
}

#[test]
fn filters_take_matches_away() {
    let yaml = rule("r", "product: windows, category: process_creation", "Image|endswith: \\a.exe");
    let filter = "title: Not here\nlogsource: {product: windows}\nfilter:\n  rules: [r]\n  ours:\n    User: svc\n  \
                  condition: not ours\n";
    let (set, findings) = RuleSet::load(&[source("a.yml", &yaml), source("b.yml", filter)]);
    assert_eq!(findings, []);
    let o = |user| observation(Kind::Sysmon(1), &[(Field::Image, "c:\\a.exe"), (Field::User, user)]);
    assert_eq!(matched(&set, &o("ann")), ["r"]);
    assert_eq!(matched(&set, &o("svc")), [""; 0]);
}

#[test]
fn the_same_files_give_the_same_set() {
    let yaml = |id: &str| rule(id, "product: windows, category: process_creation", "User: x");
    let forwards = [source("a", &yaml("a1")), source("b", &yaml("a2")), source("c", &yaml("a3"))];
    let backwards =
        [source("z", &yaml("a3")), source("y", &yaml("a1")), source("x", &yaml("a2")), source("w", &yaml("a2"))];
    let (a, b) = (RuleSet::load(&forwards).0, RuleSet::load(&backwards).0);
    assert_eq!((a.rules(), a.digest()), (b.rules(), b.digest()));
    assert_ne!(a.digest(), RuleSet::load(&forwards[1..]).0.digest());
}

#[test]
fn what_is_wrong_is_said_with_its_place() {
    let windows = "product: windows, category: process_creation";
    let good = rule("g", windows, "User: x");
    let cases = [
        ("title: [", 2, true, "YAML"),
        ("a: 1\n", 1, true, "Missing required field 'title'"),
        (&*good.replace("condition: selection", "condition: selection and"), 7, true, "Condition parse error"),
        (&*good.replace("User: x", "User|containz: x"), 6, true, "Unknown modifier 'containz'"),
        (&*good.replace("level: high", "level: hihg"), 8, true, "invalid level: 'hihg'"),
        (&*good.replace("level: high", "status: fine\nlevel: high"), 8, false, "invalid status"),
        (&*good.replace("User: x", "User|re: '('"), 1, true, "cannot be compiled"),
        (&*good.replace("level: high\n", ""), 1, false, "has no level"),
        (&*good.replace("id: g\n", ""), 1, false, "has no id"),
        (&*good.replace("process_creation", "ps_module"), 1, false, "can never match"),
        (&*good.replace("product: windows, category: process_creation", "category: proxy"), 1, false, "category=proxy"),
        (&*good.replace("User: x", "Usr: x"), 1, false, "have no field `Usr`"),
        (&*format!("# a comment\n{good}---\n{}", good.replace("User: x", "User|containz: x")), 17, true, "containz"),
        (&*format!("{good}---\n{}", good.replace("User: x", "User: y")), 11, true, "has the id g"),
    ];
    for (yaml, line, error, what) in cases {
        let (_, findings) = RuleSet::load(&[source("r.yml", yaml)]);
        let found = findings.iter().find(|f| f.what.contains(what));
        let found = found.unwrap_or_else(|| panic!("{what:?} is not among {findings:#?}\n{yaml}"));
        assert_eq!((&*found.file, found.line, found.error), ("r.yml", line, error), "{found:?}\n{yaml}");
        assert!(!found.remedy.is_empty());
    }
    let two = ["one", "two"].map(|id| source(id, &rule(id, "service: security, product: windows", "EventID: 4624")));
    let (_, findings) = RuleSet::load(&two);
    assert_eq!(findings.len(), 1, "one warning a log source: {findings:#?}");
    assert!(findings[0].what.starts_with("2 rules (\"Rule one\" and 1 more) can never match"), "{findings:#?}");
}

proptest! {
    /// Numbers, classes and candidates: a set finds what each of its rules finds alone.
    #[test]
    fn a_set_finds_what_its_rules_find_alone(
        kind in prop::sample::select(vec![1u16, 3, 7, 11, 13, 4104]),
        image in "[a-c]{1,2}", line in "[a-c]{0,3}",
    ) {
        let logsources = ["category: process_creation", "product: windows", "category: image_load", "service: sysmon"];
        let selections = ["Image: a*", "CommandLine|contains: bc", "Image|endswith: b", "CommandLine|contains|all: [a, b]"];
        let yaml: Vec<String> = logsources
            .iter()
            .flat_map(|l| selections.iter().map(move |s| (*l, *s)))
            .enumerate()
            .map(|(n, (l, s))| rule(&format!("r{n:02}"), l, s))
            .collect();
        let o = observation(Kind::Sysmon(kind), &[(Field::Image, &image), (Field::CommandLine, &line)]);
        let alone: Vec<String> = yaml.iter().flat_map(|y| matched(&set(std::slice::from_ref(y)), &o)).collect();
        prop_assert_eq!(matched(&set(&yaml), &o), alone);
    }

    #[test]
    fn any_text_is_evaluated(
        kind in prop::sample::select(vec![Kind::Sysmon(1), Kind::Sysmon(15), Kind::EbpfExec, Kind::EbpfFile, Kind::Audit, Kind::Opaque]),
        fields in prop::collection::vec((prop::sample::select(Field::ALL), any::<String>()), 0..8),
        exec in any::<bool>(),
    ) {
        let rules = ["product: windows", "product: linux"].map(|l| rule(l, l, "'*': x"));
        let mut fields: Vec<(Field, &str)> = fields.iter().map(|(f, t)| (*f, t.as_str())).collect();
        if exec {
            fields.push((Field::AuditType, "EXECVE"));
        }
        let sources: Vec<Source> = rules.iter().map(|text| source("r", text)).collect();
        RuleSet::load(&sources).0.evaluate(&observation(kind, &fields));
    }
}
