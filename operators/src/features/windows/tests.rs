//! Golden vectors of small hand-written windows, and the proof that no laboratory's name gets through.

use std::collections::BTreeSet;

use logster_schema::{Field, Kind, Observation};

use super::*;
use crate::features::{FEATURE_VERSION, tensors};
use crate::graph::WindowGraph;
use crate::graph::tests::{observation, window};

const POWERSHELL: &str = r"C:\Windows\System32\WindowsPowerShell\v1.0\powershell.exe";
const A: &str = "{11111111-0000-0000-0000-000000000001}";
const B: &str = "{11111111-0000-0000-0000-000000000002}";
const C: &str = "{11111111-0000-0000-0000-000000000003}";

fn event(at: i64, id: u16, fields: &[(Field, &str)]) -> Observation {
    observation(at, at, Kind::Sysmon(id), fields)
}

fn start() -> Observation {
    event(
        30_000,
        1,
        &[
            (Field::ProcessGuid, A),
            (Field::ProcessId, "10"),
            (Field::Image, POWERSHELL),
            (Field::CommandLine, "powershell.exe -nop"),
            (Field::Company, "Microsoft Corporation"),
            (Field::OriginalFileName, "PowerShell.EXE"),
            (Field::IntegrityLevel, "High"),
            (Field::ParentProcessGuid, B),
            (Field::ParentImage, r"C:\Windows\explorer.exe"),
        ],
    )
}

/// If this fails, models trained before do not fit any more: bless it only with a new [`FEATURE_VERSION`].
#[test]
fn golden_tensors() {
    assert_eq!(FEATURE_VERSION, "logster-features-4");
    let t = tensors(&[&window(&[start()], &[])]);
    assert_eq!(t.node_type, [0, 0, 1]);
    // powershell.exe, explorer.exe, the image file.
    assert_eq!(t.tok_node, [vec![0; 11], vec![1; 4], vec![2]].concat());
    let ids: &[i64] = &[3114, 5233, 7659, 10399, 14120, 14964, 19524, 27318, 29693, 31036, 32101];
    assert_eq!(t.tok_id, [ids, &[3096, 16531, 21957, 23812], &[27075]].concat());
    assert_eq!((t.tree_id, t.tree_node), (vec![32101], vec![0]));
    assert_eq!((t.edge_src, t.edge_dst, t.edge_type), (vec![1, 0], vec![0, 2], vec![0, 2]));
    #[rustfmt::skip]
    let node_feat = [
        0.0, 0.125, 0.0, 0.0, 0.125, 0.0, 0.0, 0.0, 0.0, 0.0, 0.1875, 0.166, 0.0, 0.625, 0.484375, 0.125,
        0.125, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.125, 0.166, 0.0, 0.5, 0.453125, 0.0,
        0.0, 0.0, 0.0, 0.0, 0.0, 0.125, 0.0, 0.0, 0.0, 0.0, 0.125, 0.166, 0.0, 0.625, 0.7265625, 0.0,
    ];
    assert_eq!(t.node_feat, node_feat);
    #[rustfmt::skip]
    let edge_feat = [
        0.125, 0.166, 0.166, 0.0, 0.125, 0.125, 0.0, 0.125,
        0.125, 0.166, 0.166, 0.0, 0.125, 0.125, 0.125, 0.0,
    ];
    assert_eq!(t.edge_feat, edge_feat);
    assert_eq!(t.graph_feat, [0.25, 0.1875, 0.125, 0.1875, 0.125, 0.0, 0.0, 1.0 / 6.0]);
}

fn signs(graph: &WindowGraph, guid: &str) -> BTreeSet<i64> {
    let node = graph.nodes().find(|n| n.guid().as_deref() == Some(guid)).expect("the process is in the window");
    node.tokens().filter(|t| t.is_tree()).map(TokenId::id).collect()
}

fn ids(tokens: &[&str]) -> BTreeSet<i64> {
    tokens.iter().map(|t| TokenId::joined_after("f:", &[t], true).id()).collect()
}

#[test]
fn golden_signs() {
    // An encoded download cradle, started by a document.
    let encoded = "SQBFAFgAIAAoAE4AZQB3AC0ATwBiAGoAZQBjAHQAIABOAGUAdAAuAFcAZQBiAEMAbABpAGUAbgB0ACkA";
    let log = [event(
        1_000,
        1,
        &[
            (Field::ProcessGuid, A),
            (Field::Image, POWERSHELL),
            (Field::CommandLine, &format!("powershell -w hidden -enc {encoded}")),
            (Field::Company, "Microsoft Corporation"),
            (Field::ParentProcessGuid, B),
            (Field::ParentImage, r"C:\Program Files\Microsoft Office\root\Office16\WINWORD.EXE"),
        ],
    )];
    let graph = window(&log, &[]);
    let shown = ["dec_iex", "dec_download", "decoded_payload", "cl_hidden", "cl_encoded", "cl_two"];
    let own: Vec<&str> = shown.iter().copied().chain(["child_of_office"]).collect();
    assert_eq!(signs(&graph, A), ids(&own));
    let parents: Vec<String> = shown.iter().map(|s| format!("ch:{s}")).chain(["ch:c_sh".to_owned()]).collect();
    assert_eq!(signs(&graph, B), ids(&parents.iter().map(String::as_str).collect::<Vec<_>>()));
    let found: Vec<_> = graph.findings().into_iter().map(|f| f.technique).collect();
    assert_eq!(found, ["T1027", "T1059.001"]);

    // LSASS read from code that no file backs.
    let log = [event(
        1_000,
        10,
        &[
            (Field::SourceProcessGuid, A),
            (Field::SourceImage, POWERSHELL),
            (Field::TargetProcessGuid, B),
            (Field::TargetImage, r"C:\Windows\system32\lsass.exe"),
            (Field::GrantedAccess, "0x1010"),
            (Field::CallTrace, r"C:\Windows\SYSTEM32\ntdll.dll+9c534|UNKNOWN(0000000000A1B2C3)"),
        ],
    )];
    let graph = window(&log, &[]);
    let shown = [
        "acc_read",
        "ct_unbacked",
        "ct_unbacked_sh",
        "acc_rw_unbacked",
        "acc_by_sh",
        "acc_rw_by_sh",
        "lsass_by_sh",
        "lsass_read_by_sh",
        "lsass_mask",
        "lsass_unbacked",
        "lsass_read_odd",
    ];
    assert_eq!(signs(&graph, A), ids(&shown));
    let findings = graph.findings();
    assert_eq!(findings[0].technique, "T1003.001");
    assert!(findings[0].sentence.starts_with("powershell.exe opened LSASS"), "{findings:?}");

    // An autostart value that names a program of a user's, and a system library from a user's directory.
    let log = [
        event(
            1_000,
            13,
            &[
                (Field::ProcessGuid, A),
                (Field::Image, r"C:\Windows\System32\reg.exe"),
                (Field::EventType, "SetValue"),
                (Field::TargetObject, r"HKU\S-1-5-21-1-2-3-1001\Software\Microsoft\Windows\CurrentVersion\Run\x"),
                (Field::Details, r"C:\Users\ann\AppData\Roaming\x.exe"),
            ],
        ),
        event(
            2_000,
            7,
            &[
                (Field::ProcessGuid, C),
                (Field::Image, r"C:\Windows\explorer.exe"),
                (Field::ImageLoaded, r"C:\Users\ann\dbghelp.dll"),
                (Field::Signed, "false"),
            ],
        ),
    ];
    let graph = window(&log, &[]);
    assert_eq!(signs(&graph, A), ids(&["reg_run_set", "regval_program", "regval_user_program"]));
    assert_eq!(
        signs(&graph, C),
        ids(&[
            "dll_unsigned",
            "dll_unsigned_explorer",
            "dll_unsigned_user",
            "dll_user",
            "dll_user_explorer",
            "dll_sideload"
        ])
    );
    let found: Vec<_> = graph.findings().into_iter().map(|f| f.technique).collect();
    assert_eq!(found, ["T1547.001", "T1574.002"]);
}

/// Packaged apps are signed as a whole, so an unsigned library among their files says nothing.
#[test]
fn a_packaged_apps_library_is_no_sign() {
    let load = |library| {
        let fields = [
            (Field::ProcessGuid, A),
            (Field::Image, r"C:\Windows\System32\backgroundTaskHost.exe"),
            (Field::ImageLoaded, library),
            (Field::Signed, "false"),
        ];
        signs(&window(&[event(1_000, 7, &fields)], &[]), A)
    };
    assert_eq!(load(r"C:\Program Files\WindowsApps\Microsoft.Wallet_2.4\Microsoft.Wallet.dll"), ids(&[]));
    assert!(!load(r"C:\Users\ann\Program Files\WindowsApps\Microsoft.Wallet_2.4\Microsoft.Wallet.dll").is_empty());
}

/// OneDrive runs from its user's profile on nearly every machine: that is no sign, what else it does is.
#[test]
fn programs_that_windows_installs_for_each_user_run_at_home() {
    let home = r"C:\Users\ann\AppData\Local\Microsoft\OneDrive";
    let image = format!(r"{home}\OneDrive.exe");
    let load = |library: &str, signed| {
        let fields =
            [(Field::ProcessGuid, A), (Field::Image, &*image), (Field::ImageLoaded, library), (Field::Signed, signed)];
        signs(&window(&[event(1_000, 7, &fields)], &[]), A)
    };
    assert_eq!(load(&format!(r"{home}\22.1\FileSync.dll"), "true"), ids(&["img_@apphome"]));
    assert!(load(&format!(r"{home}\22.1\FileSync.dll"), "false").is_superset(&ids(&["dll_unsigned_user", "dll_user"])));
    assert!(load(r"C:\Users\ann\Downloads\FileSync.dll", "true").is_superset(&ids(&["dll_user"])));
}

/// Start-up folders lie below a `Microsoft\Windows` that is not the system's.
#[test]
fn a_file_in_a_start_up_folder_is_a_sign() {
    let start_menu = r"C:\Users\ann\AppData\Roaming\Microsoft\Windows\Start Menu\Programs";
    let fields = |path| [(Field::ProcessGuid, A), (Field::Image, POWERSHELL), (Field::TargetFilename, path)];
    let startup = format!(r"{start_menu}\Startup\notes.lnk");
    let graph = window(&[event(1_000, 11, &fields(&startup))], &[]);
    assert_eq!(signs(&graph, A), ids(&["write_startup"]));
    assert_eq!(graph.findings()[0].technique, "T1547.001");
    let elsewhere = format!(r"{start_menu}\notes.lnk");
    assert_eq!(signs(&window(&[event(1_000, 11, &fields(&elsewhere))], &[]), A), ids(&[]));
}

/// The same attack in two laboratories: other users, hosts, addresses, GUIDs, tools and pipes.
#[test]
fn tokens_do_not_know_the_laboratory() {
    let attack = |lab: [&str; 7]| {
        let [user, host, address, tool, guid, parent, random] = lab;
        let image = format!(r"C:\Users\{user}\Downloads\{tool}.exe");
        let log = [
            event(
                1_000,
                1,
                &[
                    (Field::ProcessGuid, guid),
                    (Field::ProcessId, "4242"),
                    (Field::Image, &image),
                    (Field::CommandLine, &format!(r#""{image}" /c copy \\{host}\share\{tool}.dll {random}"#)),
                    (Field::User, &format!(r"{host}\{user}")),
                    (Field::Company, tool),
                    (Field::CurrentDirectory, &format!(r"C:\Users\{user}\")),
                    (Field::ParentProcessGuid, parent),
                    (Field::ParentImage, r"C:\Windows\System32\cmd.exe"),
                ],
            ),
            event(
                2_000,
                3,
                &[
                    (Field::ProcessGuid, guid),
                    (Field::Image, &image),
                    (Field::Initiated, "true"),
                    (Field::SourceIp, "10.1.1.1"),
                    (Field::DestinationIp, address),
                    (Field::DestinationPort, "443"),
                ],
            ),
            event(
                3_000,
                11,
                &[
                    (Field::ProcessGuid, guid),
                    (Field::Image, &image),
                    (Field::TargetFilename, &format!(r"C:\Users\{user}\AppData\Local\Temp\{random}.ps1")),
                ],
            ),
            event(
                4_000,
                17,
                &[(Field::ProcessGuid, guid), (Field::Image, &image), (Field::PipeName, &format!(r"\{tool}_pipe"))],
            ),
            event(
                5_000,
                22,
                &[
                    (Field::ProcessGuid, guid),
                    (Field::Image, &image),
                    (Field::QueryName, &format!("{tool}.example.org")),
                ],
            ),
            event(
                6_000,
                13,
                &[
                    (Field::ProcessGuid, guid),
                    (Field::Image, &image),
                    (Field::EventType, "SetValue"),
                    (Field::TargetObject, &format!(r"HKLM\System\CurrentControlSet\Services\{tool}\ImagePath")),
                    (Field::Details, &image),
                ],
            ),
            event(
                7_000,
                7,
                &[
                    (Field::ProcessGuid, guid),
                    (Field::Image, &image),
                    (Field::ImageLoaded, &format!(r"C:\Users\{user}\{random}.dll")),
                    (Field::Signed, "false"),
                ],
            ),
        ];
        let t = tensors(&[&window(&log, &[])]);
        (t.tok_id, t.tok_node, t.tree_id, t.tree_node, t.edge_src, t.edge_dst, t.edge_type)
    };
    assert_eq!(
        attack(["ann", "wec", "8.8.8.8", "gruntkatz", A, B, "x81f0a"]),
        attack(["pgustavo", "theshire-7", "93.184.216.34", "wardog", C, B, "beacon"])
    );
}

#[test]
fn a_script_block_joins_its_host_by_the_writers_pid() {
    let fields = [(Field::ScriptBlockId, "s"), (Field::ScriptBlockText, "ls"), (Field::ProcessId, "10")];
    let graph = window(&[start(), event(31_000, 4104, &fields)], &[]);
    let host = graph.nodes().position(|n| n.guid().as_deref() == Some(A)).unwrap() as u32;
    assert!(graph.edges().iter().any(|e| e.src == host && graph.node(e.dst).kind() == NodeKind::Script));
}
