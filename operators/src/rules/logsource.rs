//! Sigma's log sources and the events that they mean here.
//!
//! | product | category | events |
//! |---|---|---|
//! | windows | `process_creation`, `image_load`, `registry_set`, ... | the Sysmon id that Sigma's Sysmon mapping names |
//! | windows | `ps_script` | PowerShell 4104 |
//! | windows | none, service `sysmon` or `powershell` | all Sysmon ids, or 4104 |
//! | linux | `process_creation` | eBPF `[EXEC]`, auditd `EXECVE` |
//! | linux | `file_event` | eBPF `[FILE]` that creates or truncates, auditd `PATH` of nametype `CREATE` |
//! | linux | `network_connection` | eBPF `[CONNECT]` |
//! | linux | none, service `auditd` | auditd records, each on its own |
//! | none | one of the above | both platforms', as far as they have it |
//!
//! What is not in the table has no events: such a rule can never match, and loading says so.

use logster_schema::{Activity, Field, Kind};
use rsigma_parser::LogSource;

/// Events that the same rules are evaluated on, with the same fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum EventClass {
    /// A Sysmon event by id; 4104 is PowerShell's script block. Of id 12, the creations.
    Windows(u16),
    /// Sysmon 12 of a deletion.
    RegistryDelete,
    /// A program was executed.
    LinuxProcess,
    /// A file was created or overwritten.
    LinuxFile,
    /// A connection was opened.
    LinuxNetwork,
    /// One auditd record.
    Audit,
}

use EventClass::{Audit, LinuxFile, LinuxNetwork, LinuxProcess, RegistryDelete, Windows};

const POWERSHELL: u16 = 4104;

/// Category and the Sysmon ids that it means.
const WINDOWS: [(&str, &[u16]); 28] = [
    ("process_creation", &[1]),
    ("file_change", &[2]),
    ("network_connection", &[3]),
    ("sysmon_status", &[4, 16]),
    ("process_termination", &[5]),
    ("driver_load", &[6]),
    ("image_load", &[7]),
    ("create_remote_thread", &[8]),
    ("raw_access_thread", &[9]),
    ("process_access", &[10]),
    ("file_event", &[11]),
    ("registry_event", &[12, 13, 14]),
    ("registry_add", &[12]),
    ("registry_delete", &[]),
    ("registry_set", &[13]),
    ("registry_rename", &[14]),
    ("create_stream_hash", &[15]),
    ("pipe_created", &[17, 18]),
    ("wmi_event", &[19, 20, 21]),
    ("dns_query", &[22]),
    ("file_delete", &[23, 26]),
    ("clipboard_capture", &[24]),
    ("process_tampering", &[25]),
    ("file_block_executable", &[27]),
    ("file_block_shredding", &[28]),
    ("file_executable_detected", &[29]),
    ("sysmon_error", &[255]),
    ("ps_script", &[POWERSHELL]),
];

const LINUX: [(&str, EventClass); 3] =
    [("process_creation", LinuxProcess), ("file_event", LinuxFile), ("network_connection", LinuxNetwork)];

fn sysmon() -> impl Iterator<Item = EventClass> {
    (1..=29).chain([255]).map(Windows).chain([RegistryDelete])
}

fn windows(category: Option<&str>, service: Option<&str>) -> Vec<EventClass> {
    let of_service: Vec<EventClass> = match service {
        None => sysmon().chain([Windows(POWERSHELL)]).collect(),
        Some("sysmon") => sysmon().collect(),
        Some("powershell") => vec![Windows(POWERSHELL)],
        Some(_) => Vec::new(),
    };
    let Some(category) = category else { return of_service };
    let ids = WINDOWS.iter().find(|(name, _)| *name == category).map_or(&[][..], |(_, ids)| ids);
    let deletes = matches!(category, "registry_delete" | "registry_event");
    let meant = ids.iter().copied().map(Windows).chain(deletes.then_some(RegistryDelete));
    meant.filter(|class| of_service.contains(class)).collect()
}

fn linux(category: Option<&str>, service: Option<&str>) -> Vec<EventClass> {
    match (category, service) {
        (None, None) => LINUX.iter().map(|(_, class)| *class).chain([Audit]).collect(),
        (None, Some("auditd")) => vec![Audit],
        (Some(category), None) => LINUX.iter().filter(|(name, _)| *name == category).map(|(_, class)| *class).collect(),
        _ => Vec::new(),
    }
}

/// The classes of events that a rule of this log source is about; empty: there are none.
pub(super) fn classes(source: &LogSource) -> Vec<EventClass> {
    let lower = |text: &Option<String>| text.as_deref().map(str::to_lowercase);
    let (product, category, service) = (lower(&source.product), lower(&source.category), lower(&source.service));
    let (category, service) = (category.as_deref(), service.as_deref());
    match product.as_deref() {
        Some("windows") => windows(category, service),
        Some("linux") => linux(category, service),
        None if category.is_some() || service.is_some() => {
            windows(category, service).into_iter().chain(linux(category, service)).collect()
        }
        _ => Vec::new(),
    }
}

/// `product=windows category=process_creation`
pub(super) fn describe(source: &LogSource) -> String {
    let parts = [("product", &source.product), ("category", &source.category), ("service", &source.service)];
    let parts: Vec<String> =
        parts.iter().filter_map(|(name, value)| Some(format!("{name}={}", value.as_ref()?))).collect();
    if parts.is_empty() { "nothing".to_owned() } else { parts.join(" ") }
}

/// The classes that an event belongs to: none, one, or for auditd two.
pub(super) fn classes_of(activity: &Activity) -> impl Iterator<Item = EventClass> {
    let is = |field, text: &str| activity.fields.get(field) == Some(text);
    let has = |field, parts: &[&str]| {
        activity.fields.get(field).is_some_and(|text| parts.iter().any(|part| text.contains(part)))
    };
    let (first, second) = match activity.kind {
        Kind::Sysmon(12) if has(Field::EventType, &["Delete"]) => (Some(RegistryDelete), None),
        Kind::Sysmon(id) => (Some(Windows(id)), None),
        Kind::EbpfExec => (activity.fields.get(Field::Args).map(|_| LinuxProcess), None),
        Kind::EbpfFile => (has(Field::Flags, &["O_CREAT", "O_TRUNC"]).then_some(LinuxFile), None),
        Kind::EbpfConnect => (is(Field::ConnectionType, "CONNECT").then_some(LinuxNetwork), None),
        Kind::Audit if is(Field::AuditType, "EXECVE") => (Some(Audit), Some(LinuxProcess)),
        Kind::Audit if is(Field::AuditType, "PATH") && has(Field::AuditText, &["nametype=CREATE"]) => {
            (Some(Audit), Some(LinuxFile))
        }
        Kind::Audit => (Some(Audit), None),
        Kind::EbpfSocket | Kind::Opaque => (None, None),
    };
    first.into_iter().chain(second)
}

/// Whether events of the class may have a field of that name.
pub(super) fn has_field(class: EventClass, name: &str) -> bool {
    match class {
        Windows(_) | RegistryDelete => {
            let last = Field::RuleName as usize;
            Field::ALL[..=last].iter().any(|field| field.name() == name) || super::event::DERIVED.contains(&name)
        }
        LinuxProcess => {
            matches!(name, "Image" | "CommandLine" | "ProcessId" | "ParentProcessId" | "User" | "Computer")
        }
        LinuxFile => matches!(name, "Image" | "TargetFilename" | "ProcessId" | "Computer"),
        LinuxNetwork => {
            matches!(name, "Image" | "ProcessId" | "DestinationIp" | "DestinationPort" | "Initiated" | "Computer")
        }
        // Whatever stands in the record.
        Audit => true,
    }
}
