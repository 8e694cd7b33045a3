//! Features of Windows endpoints: what Sysmon's events and PowerShell's script blocks say about processes.
//!
//! - Input: a pane's observations, sorted; text already cleaned by the normalizer.
//! - Output: nodes, edges, tokens, findings, through the [`PaneBuilder`].
//! - State: caches that live as long as the pane: the same fields give the same features.
//! - Ordering: that of the observations.
//! - Failure: none; an event without what it needs adds what it can.
//!
//! A token is plain (`img:`, `cls:`, ...: what a process is, which volume and kind of thing it did) or a sign
//! of suspicion (`f:`), which its relatives in the process tree share. What a child's command line shows is
//! noted on its parent too, as `ch:`. Nothing free reaches a token: see [`names`].
//!
//! Ids 7, 10 and 12 to 14 are nine events in ten and repeat; their features are kept by the fields that decide
//! them. Ordinary signed libraries of the system are one node a directory, not one a library.

mod attack;
mod files;
mod names;
mod network;
mod processes;
mod repeats;
mod scripts;
#[cfg(test)]
mod tests;
mod text;

use logster_schema::{Field, Kind, Observation};
use rustc_hash::FxHashMap;

use crate::features::TokenId;
use crate::graph::{Attribute, NodeId, NodeKind, PaneBuilder, Relation, SetId, Technique, parse_guid};
use names::{Place, Program, address_class, base, file_kind, place_of, port_class};

/// Adds what the observations of a Windows endpoint's pane show.
pub(crate) fn build(pane: &mut PaneBuilder, observations: &[Observation]) {
    let mut build = Build { pane, programs: FxHashMap::default(), cache: FxHashMap::default(), key: Vec::new() };
    for observation in observations {
        let Kind::Sysmon(id) = observation.activity.kind else { continue };
        let mut event = Event { text: [""; Field::ALL.len()] };
        for (field, text) in observation.activity.fields.iter() {
            event.text[field as usize] = text;
        }
        build.pane.at(observation.time_ms);
        build.event(id, &event);
    }
}

/// The fields of one event; absent ones are empty.
struct Event<'a> {
    text: [&'a str; Field::ALL.len()],
}

impl<'a> Event<'a> {
    fn get(&self, field: Field) -> &'a str {
        self.text[field as usize]
    }

    fn lower(&self, field: Field) -> String {
        self.get(field).to_ascii_lowercase()
    }

    fn number<T: std::str::FromStr>(&self, field: Field) -> Option<T> {
        self.get(field).parse().ok()
    }
}

/// Tokens being collected.
#[derive(Default)]
struct Bag(Vec<TokenId>);

impl Bag {
    /// A plain token.
    fn say(&mut self, parts: &[&str]) {
        self.0.push(TokenId::joined(parts, false));
    }

    /// A sign of suspicion.
    fn flag(&mut self, parts: &[&str]) {
        self.0.push(TokenId::joined_after("f:", parts, true));
    }

    fn flag_if(&mut self, condition: bool, parts: &[&str]) {
        if condition {
            self.flag(parts);
        }
    }
}

/// What repeated events come to, by the fields that decide it.
#[derive(Clone, Copy)]
struct Known {
    /// Tokens of the acting process.
    actor: SetId,
    /// Tokens of the other process (id 10).
    target: Option<SetId>,
    /// The node that the actor's edge goes to; none where it goes to the other process.
    node: Option<NodeId>,
    relation: Relation,
    finding: Option<&'static Technique>,
}

struct Build<'p> {
    pane: &'p mut PaneBuilder,
    programs: FxHashMap<String, Program>,
    cache: FxHashMap<Box<[u8]>, Known>,
    /// Scratch for the cache's key.
    key: Vec<u8>,
}

impl Build<'_> {
    fn event(&mut self, id: u16, e: &Event<'_>) {
        match id {
            1 => self.create(e),
            3 => self.connection(e),
            5 => {
                self.actor(e);
            }
            6 => self.driver(e),
            7 => self.repeated(id, e, &[Field::Image, Field::ImageLoaded, Field::Signed, Field::SignatureStatus]),
            8 => self.remote_thread(e),
            9 => self.raw_read(e),
            10 => self.access(e),
            2 | 11 | 15 | 23 | 26 => self.file(id, e),
            12..=14 => self.repeated(id, e, &[Field::Image, Field::EventType, Field::TargetObject, Field::Details]),
            17 | 18 => self.pipe(id, e),
            19..=21 => self.wmi(e),
            22 => self.lookup(e),
            25 => self.tampering(e),
            4104 => self.script(e),
            _ => {}
        }
    }

    fn program(&mut self, image: &str) -> Program {
        if let Some(known) = self.programs.get(image) {
            return *known;
        }
        let program = names::program(&image.to_ascii_lowercase());
        self.programs.insert(image.to_owned(), program);
        program
    }

    /// The process with this GUID, or failing that this pid.
    fn process(&mut self, guid: &str, pid: &str, image: &str, created: bool) -> Option<NodeId> {
        let pid = pid.parse().ok().filter(|&pid| pid != 0);
        let node = match (parse_guid(guid), pid) {
            (Some(guid), pid) => self.pane.process_by_guid(guid, pid, created),
            (None, Some(pid)) if created => self.pane.process_started(pid),
            (None, Some(pid)) => self.pane.process_by_pid(pid),
            (None, None) => return None,
        };
        if !image.is_empty() && !self.pane.has_label(node) {
            self.pane.label(node, base(image));
            let program = self.program(image);
            let mut bag = Bag::default();
            bag.say(&["img:", program.name]);
            bag.say(&["cls:", program.class]);
            bag.flag_if(program.is_user() && program.place.name != "apphome", &["img_user"]);
            bag.flag_if(program.is_user(), &["img_", program.name]);
            let set = self.pane.set(bag.0);
            self.pane.apply(node, set);
            if program.is_hub() {
                self.pane.hub(node);
            }
        }
        Some(node)
    }

    /// The process that an event is about.
    fn actor(&mut self, e: &Event<'_>) -> Option<NodeId> {
        self.process(e.get(Field::ProcessGuid), e.get(Field::ProcessId), e.get(Field::Image), false)
    }

    fn add(&mut self, node: NodeId, bag: Bag) {
        let set = self.pane.set(bag.0);
        self.pane.apply(node, set);
    }

    fn create(&mut self, e: &Event<'_>) {
        let image = e.get(Field::Image);
        let Some(node) = self.process(e.get(Field::ProcessGuid), e.get(Field::ProcessId), image, true) else {
            return;
        };
        let parent_image = e.get(Field::ParentImage);
        let parent = self.process(e.get(Field::ParentProcessGuid), e.get(Field::ParentProcessId), parent_image, false);
        let (me, by) = (self.program(image), self.program(parent_image));
        let command = e.get(Field::CommandLine);
        self.pane.attribute(node, Attribute::Command, command);
        self.pane.attribute(node, Attribute::User, e.get(Field::User));
        self.pane.attribute(node, Attribute::Integrity, e.get(Field::IntegrityLevel));
        let file = self.file_node(image);
        self.pane.edge(node, file, Relation::Executed);
        if let Some(parent) = parent {
            self.pane.edge(parent, node, Relation::Spawned);
        }

        let mut bag = Bag::default();
        bag.say(&["create"]);
        bag.say(&["eid:1"]);
        bag.say(&["par:", by.name]);
        bag.say(&["pair:", by.class, ">", me.class]);
        bag.say(&["pc:", by.name, ">", me.name]);
        bag.say(&["il:", integrity(e.get(Field::IntegrityLevel))]);
        bag.say(&["place:", me.place.name]);
        let cwd = place_of(&(e.lower(Field::CurrentDirectory) + "\\"));
        bag.say(&["cwd:", if cwd.user { "user" } else { "sys" }]);

        let mut shown = self.command(node, me, by, command);
        // Facts of the image.
        let living_off = names::LIVING_OFF.binary_search(&me.name).is_ok();
        let admin = names::ADMIN_TOOLS.binary_search(&me.name).is_ok();
        if living_off {
            shown.push("lolbin");
        }
        if admin {
            shown.push("admtool");
        }
        if me.is_user() {
            shown.push("img_user");
        }
        if e.get(Field::Company).trim_matches(['-', ' ']).is_empty() {
            shown.push("nocompany");
        }
        let original = e.lower(Field::OriginalFileName);
        let stem = |name: &str| name.trim_end_matches(".mui").trim_end_matches(".exe").to_owned();
        let file_name = base(image).to_ascii_lowercase();
        if original.len() > 1 && !original.contains(".mui") && stem(&original) != stem(&file_name) {
            shown.push("renamed");
            if names::PROGRAMS.binary_search(&&*stem(&original)).is_ok() {
                shown.push("renamed_system");
                self.pane.finding(node, &attack::RENAMED, image);
            }
        }
        for sign in &shown {
            bag.flag(&[sign]);
        }
        bag.flag_if(!file_name.ends_with(".exe") && !image.is_empty(), &["img_noexe"]);

        // Who started whom.
        let by_system = matches!(by.name, "services" | "wmiprvse" | "svchost");
        if me.is_user() && by_system {
            bag.flag(&["user_from_system"]);
            if by.name == "services" {
                self.pane.finding(node, &attack::SERVICE_RUN, image);
            }
        }
        bag.flag_if(me.is_suspect() && by.class == "off", &["child_of_office"]);
        bag.flag_if(me.class == "sh" && by.name == "wmiprvse", &["shell_from_wmi"]);
        bag.flag_if(me.class == "sh" && by.name == "services", &["shell_from_services"]);
        bag.flag_if(matches!(by.class, "lol") && me.class == "sh", &["shell_from_lolbin"]);
        if by.name == "wsmprovhost" {
            bag.flag(&["child_of_winrm"]);
            self.pane.finding(node, &attack::WINRM, command);
        }
        if by.name == "wmiprvse" && me.is_suspect() {
            self.pane.finding(node, &attack::WMI, command);
        }
        if let Some(technique) = attack::discovery(me.name) {
            self.pane.finding(node, technique, command);
        }
        self.add(node, bag);

        if let Some(parent) = parent {
            let mut bag = Bag::default();
            bag.say(&["child:", me.name]);
            bag.say(&["childc:", me.class]);
            // What a hub starts is not the hub's doing.
            if !by.is_hub() {
                for sign in &shown {
                    bag.flag(&["ch:", sign]);
                }
                bag.flag_if(me.is_suspect(), &["ch:c_", me.class]);
            }
            self.add(parent, bag);
        }
    }

    /// The signs that a command line shows, with the findings they are.
    fn command(&mut self, node: NodeId, me: Program, by: Program, command: &str) -> Vec<&'static str> {
        let lower = command.to_ascii_lowercase();
        let found = text::COMMAND.find(&lower);
        let mut words = text::command_words(&lower);
        let mut signs: Vec<&'static str> = Vec::new();

        let hidden = text::hidden_text(command);
        let mut payload = 0;
        if !hidden.is_empty() {
            for sign in text::POWERSHELL.find(&hidden.to_ascii_lowercase()).names() {
                payload += usize::from(text::is_payload(sign));
                signs.push(decoded_sign(sign));
            }
            signs.retain(|s| !s.is_empty());
            if payload >= 2 {
                signs.push("decoded_payload");
            }
            if payload == 0 {
                // An administrator's encoded command: encoding alone says nothing.
                words.retain(|w| !matches!(*w, "encoded" | "bypass" | "noprofile"));
            }
        } else if words.contains(&"encoded") {
            signs.push("undecoded");
        }

        let mut strong = 0;
        for sign in found.names() {
            if !text::command_is_neutral(sign) {
                strong += 1;
                signs.push(command_sign(sign));
            }
        }
        for &word in &words {
            strong += usize::from(word != "cmdc");
            if word != "cmdc" {
                signs.push(command_sign(word));
            }
        }
        if me.class == "sh" {
            for sign in text::POWERSHELL.find(&lower).names() {
                if !text::powershell_is_neutral(sign) {
                    signs.push(shell_sign(sign));
                }
            }
        }
        if strong >= 2 {
            signs.push("cl_two");
        }
        if strong >= 3 {
            signs.push("cl_three");
        }
        signs.sort_unstable();
        signs.dedup();

        let has = |sign: &str| found.has(sign) || words.contains(&sign);
        let mut tell = |yes: bool, technique: &'static Technique| {
            if yes {
                self.pane.finding(node, technique, command);
            }
        };
        tell(has("encoded") || payload > 0, &attack::OBFUSCATED);
        tell(payload >= 2 || (has("iex") && me.class == "sh"), &attack::POWERSHELL);
        tell(has("hives"), &attack::HIVES);
        tell(found.has("dump") && (lower.contains("minidump") || lower.contains("lsass")), &attack::MINIDUMP);
        tell(has("adminshare"), &attack::ADMIN_SHARE);
        tell(has("wmiexec"), &attack::WMI);
        tell(has("task") && lower.contains("task"), &attack::TASK);
        tell(lower.contains("wevtutil cl") || lower.contains("clear-eventlog"), &attack::CLEAR_LOG);
        tell(lower.contains("minint") || lower.contains("auditpol"), &attack::NO_LOG);
        tell(has("firewall") && lower.contains("firewall"), &attack::FIREWALL);
        tell(lower.contains("urlcache") || (has("download") && has("url")), &attack::DOWNLOAD);
        tell(lower.contains("bitsadmin") && lower.contains("/transfer"), &attack::BITS);
        tell(lower.contains("certutil") && lower.contains("-decode"), &attack::DECODE);
        tell(me.name.starts_with("net") && lower.contains("/add"), &attack::ACCOUNT);
        tell(me.name.starts_with("net") && has("account") && !lower.contains("/add"), &attack::DISCOVER_ACCOUNT);
        tell(has("autostart") && has("regedit"), &attack::RUN_KEY);
        tell(words.contains(&"service") && (lower.contains(" create ") || lower.contains("binpath")), &attack::SERVICE);
        let fed = has("script") || has("url") || has("unc") || has("tmpexe") || has("lolargs");
        tell((me.class == "lol" || me.name == "mshta") && fed && by.name != "msiexec", attack::proxy(me.name));
        tell(matches!(me.name, "wscript" | "cscript") && fed, &attack::SCRIPT_HOST);
        signs
    }
}

/// Classes of a script's length: doublings by two.
const SIZES: [&str; 8] = ["1", "4", "16", "64", "256", "1k", "4k", "16k"];

fn integrity(level: &str) -> &'static str {
    match level {
        "Low" => "low",
        "Medium" => "medium",
        "High" => "high",
        "System" => "system",
        _ => "unknown",
    }
}

fn label_registry(act: &str, what: &str) -> String {
    let done = match act {
        "set" => "set the registry value",
        "delete" => "deleted the registry key",
        "rename" => "renamed the registry key",
        _ => "added the registry key",
    };
    match what.contains('\\') {
        true => format!("{done} {what}"),
        false => format!("{done} (area: {what})"),
    }
}

/// Names of signs with their origin, from a closed list, so that they can be collected as `&'static str`.
macro_rules! renamed {
    ($function:ident, $prefix:literal, [$($name:literal),+ $(,)?]) => {
        fn $function(sign: &str) -> &'static str {
            match sign { $($name => concat!($prefix, $name),)+ _ => "" }
        }
    };
}

renamed!(
    command_sign,
    "cl_",
    [
        "iex",
        "url",
        "adminshare",
        "hives",
        "regedit",
        "autostart",
        "eventlog",
        "service",
        "account",
        "recon",
        "dump",
        "firewall",
        "download",
        "script",
        "wmiexec",
        "task",
        "server",
        "lolargs",
        "encoded",
        "hidden",
        "noprofile",
        "bypass",
        "unc",
        "stdin",
        "echo",
        "tmpexe",
    ]
);
renamed!(
    decoded_sign,
    "dec_",
    [
        "iex",
        "download",
        "base64",
        "reflection",
        "api",
        "amsi",
        "socket",
        "addtype",
        "wmi",
        "recon",
        "credential",
        "registry",
        "service",
        "eventlog",
        "cipher",
        "inject",
        "spy",
        "persist",
        "remote",
    ]
);
renamed!(
    shell_sign,
    "cp_",
    [
        "iex",
        "download",
        "base64",
        "reflection",
        "api",
        "amsi",
        "socket",
        "addtype",
        "wmi",
        "recon",
        "credential",
        "registry",
        "service",
        "eventlog",
        "cipher",
        "inject",
        "spy",
        "persist",
        "remote",
    ]
);
