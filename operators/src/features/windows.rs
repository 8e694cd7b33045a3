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
mod names;
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
            bag.flag_if(program.is_user(), &["img_user"]);
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

    // ---- processes ----------------------------------------------------------------------------------

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

    fn remote_thread(&mut self, e: &Event<'_>) {
        let (from, to) = (e.get(Field::SourceImage), e.get(Field::TargetImage));
        let source = self.process(e.get(Field::SourceProcessGuid), e.get(Field::SourceProcessId), from, false);
        let target = self.process(e.get(Field::TargetProcessGuid), e.get(Field::TargetProcessId), to, false);
        let (Some(source), Some(target)) = (source, target) else { return };
        self.pane.edge(source, target, Relation::Performed);
        let (me, it) = (self.program(from), self.program(to));
        let usual = matches!(
            me.name,
            "csrss" | "wininit" | "winlogon" | "svchost" | "services" | "smss" | "dwm" | "unk" | "system" | "werfault"
        );
        let library = e.lower(Field::StartFunction).contains("loadlibrary");
        let mut bag = Bag::default();
        bag.say(&["rt"]);
        bag.say(&["rt_to:", it.class]);
        bag.flag_if(!usual, &["rt_odd"]);
        bag.flag_if(me.is_suspect(), &["rt_by_", me.class]);
        bag.flag_if(e.get(Field::StartModule).is_empty() && !usual, &["rt_nomodule"]);
        bag.flag_if(library, &["rt_library"]);
        self.add(source, bag);
        let mut bag = Bag::default();
        bag.say(&["rt_into"]);
        bag.flag_if(!usual, &["rt_target"]);
        self.add(target, bag);
        if !usual {
            let technique = if library { &attack::INJECT_LIBRARY } else { &attack::INJECT };
            self.pane.finding(source, technique, to);
        }
    }

    fn tampering(&mut self, e: &Event<'_>) {
        let Some(actor) = self.actor(e) else { return };
        let node = self.pane.node(NodeKind::Syscall, "tampering", "image replaced in memory");
        self.pane.edge(actor, node, Relation::Performed);
        let browser = self.program(e.get(Field::Image)).class == "bro";
        let mut bag = Bag::default();
        bag.say(&["eid:25"]);
        bag.flag_if(!browser, &["tamper"]);
        self.add(actor, bag);
        if !browser {
            self.pane.finding(actor, &attack::TAMPER, e.get(Field::Type));
        }
    }

    fn raw_read(&mut self, e: &Event<'_>) {
        let Some(actor) = self.actor(e) else { return };
        let me = self.program(e.get(Field::Image));
        let node = self.pane.node(NodeKind::Syscall, "raw", "raw read of a disk");
        self.pane.edge(actor, node, Relation::Performed);
        let mut bag = Bag::default();
        bag.say(&["raw:", me.class]);
        if me.is_suspect() {
            bag.flag(&["raw_suspect"]);
            self.pane.finding(actor, &attack::RAW_DISK, e.get(Field::Device));
        }
        self.add(actor, bag);
    }

    fn access(&mut self, e: &Event<'_>) {
        let (from, to) = (e.get(Field::SourceImage), e.get(Field::TargetImage));
        let source = self.process(e.get(Field::SourceProcessGuid), e.get(Field::SourceProcessId), from, false);
        let target = self.process(e.get(Field::TargetProcessGuid), e.get(Field::TargetProcessId), to, false);
        let (Some(source), Some(target)) = (source, target) else { return };
        if source == target {
            return;
        }
        let fields = [Field::SourceImage, Field::TargetImage, Field::GrantedAccess, Field::CallTrace];
        let known = self.known(10, e, &fields, Self::access_features);
        self.pane.apply_unless_spawned(source, target, source, known.actor);
        if let Some(set) = known.target {
            self.pane.apply_unless_spawned(source, target, target, set);
        }
        self.pane.edge(source, known.node.unwrap_or(target), Relation::Performed);
        if let Some(technique) = known.finding {
            self.pane.finding(source, technique, e.get(Field::GrantedAccess));
        }
    }

    fn access_features(&mut self, _id: u16, e: &Event<'_>) -> Known {
        let (me, it) = (self.program(e.get(Field::SourceImage)), self.program(e.get(Field::TargetImage)));
        let granted = e.lower(Field::GrantedAccess);
        let mask = u32::from_str_radix(granted.trim_start_matches("0x"), 16).unwrap_or(0);
        let trace = e.lower(Field::CallTrace);
        let right = match mask {
            _ if mask & 0x1f_ffff >= 0x1f_0000 => "full",
            _ if mask & 0x20 != 0 => "write",
            _ if mask & 0x10 != 0 => "read",
            _ if mask & 0x40 != 0 => "dup",
            _ => "query",
        };
        let unbacked = trace.contains("unknown");
        let mut bag = Bag::default();
        bag.say(&["acc:", right]);
        bag.say(&["acct:", me.class, ">", it.class]);
        bag.flag_if(matches!(right, "full" | "write" | "read"), &["acc_", right]);
        bag.flag_if(unbacked, &["ct_unbacked"]);
        bag.flag_if(unbacked, &["ct_unbacked_", me.class]);
        bag.flag_if(unbacked && mask & 0x38 != 0, &["acc_rw_unbacked"]);
        if me.is_suspect() || me.class == "off" {
            bag.flag(&["acc_by_", me.class]);
            bag.flag_if(mask & 0x30 != 0, &["acc_rw_by_", me.class]);
        }
        bag.flag_if(it.is_user(), &["acc_to_user"]);
        let trusted = matches!(
            me.class,
            "csrss" | "svchost" | "services" | "lsass" | "wininit" | "winlogon" | "explorer" | "msmpeng"
        );
        bag.flag_if(mask & 0x28 == 0x28 && !trusted, &["acc_write_odd"]);
        for (needle, name) in [
            ("dbghelp", "dbghelp"),
            ("dbgcore", "dbgcore"),
            ("comsvcs", "comsvcs"),
            ("seclogon", "seclogon"),
            ("faultrep", "faultrep"),
        ] {
            bag.flag_if(trace.contains(needle), &["ct_", name]);
        }
        for (needle, name) in [
            ("clr.dll", "clr"),
            ("system.management", "automation"),
            ("vbe7", "vbe7"),
            ("wshom", "wshom"),
            ("scrobj", "scrobj"),
            ("jscript", "jscript"),
            ("vbscript", "vbscript"),
            ("wbem\\", "wbem"),
            ("mscorlib", "mscorlib"),
            ("amsi", "amsi"),
            ("framedynos", "framedynos"),
            ("wsmsvc", "wsmsvc"),
        ] {
            if trace.contains(needle) {
                bag.say(&["ct:", name, ":", me.class]);
            }
        }
        let (mut target, mut finding) = (None, None);
        if it.name == "lsass" {
            const DUMPERS: [u32; 13] = [
                0x1010, 0x1410, 0x1438, 0x143a, 0x1f_ffff, 0x1f_3fff, 0x1f_1fff, 0x1f_0fff, 0x1f_2fff, 0x1478, 0x1418,
                0x1038, 0x12_1411,
            ];
            let odd = !matches!(
                me.name,
                "svchost"
                    | "msmpeng"
                    | "wmiprvse"
                    | "csrss"
                    | "wininit"
                    | "lsass"
                    | "services"
                    | "taskmgr"
                    | "mrt"
                    | "lsm"
                    | "system"
                    | "lsaiso"
                    | "werfault"
            );
            bag.say(&["lsass:", me.class]);
            bag.flag_if(me.is_suspect(), &["lsass_by_", me.class]);
            bag.flag_if(mask & 0x10 != 0 && me.is_suspect(), &["lsass_read_by_", me.class]);
            bag.flag_if(DUMPERS.contains(&mask) && odd, &["lsass_mask"]);
            bag.flag_if(unbacked, &["lsass_unbacked"]);
            bag.flag_if(mask & 0x10 != 0 && odd, &["lsass_read_odd"]);
            let mut on = Bag::default();
            on.say(&["lsass_opened_by:", me.class]);
            target = Some(self.pane.set(on.0));
            finding = (mask & 0x10 != 0 && (odd && me.is_suspect() || unbacked)).then_some(&attack::LSASS);
        }
        let reaches = mask & 0x3a != 0;
        let node = (!reaches).then(|| {
            let label = format!("{right} handle to {}", it.name);
            self.pane.node(NodeKind::Syscall, &label, &label)
        });
        let actor = self.pane.set(bag.0);
        Known { actor, target, node, relation: Relation::Performed, finding }
    }

    // ---- what repeats -------------------------------------------------------------------------------

    /// Library loads and registry changes: one set of tokens and one edge.
    fn repeated(&mut self, id: u16, e: &Event<'_>, fields: &[Field]) {
        let Some(actor) = self.actor(e) else { return };
        let known = self.known(id, e, fields, if id == 7 { Self::load_features } else { Self::registry_features });
        self.pane.apply(actor, known.actor);
        if let Some(node) = known.node {
            self.pane.edge(actor, node, known.relation);
        }
        if let Some(technique) = known.finding {
            let detail = if id == 7 { e.get(Field::ImageLoaded) } else { e.get(Field::TargetObject) };
            self.pane.finding(actor, technique, detail);
        }
    }

    fn known(
        &mut self,
        id: u16,
        e: &Event<'_>,
        fields: &[Field],
        features: fn(&mut Self, u16, &Event<'_>) -> Known,
    ) -> Known {
        self.key.clear();
        self.key.push(id as u8);
        for &field in fields {
            let text = e.get(field).as_bytes();
            self.key.extend_from_slice(&(text.len() as u32).to_le_bytes());
            self.key.extend_from_slice(text);
        }
        if let Some(known) = self.cache.get(&*self.key) {
            return *known;
        }
        let known = features(self, id, e);
        self.cache.insert(self.key.as_slice().into(), known);
        known
    }

    fn load_features(&mut self, _id: u16, e: &Event<'_>) -> Known {
        let (image, library) = (e.lower(Field::Image), e.lower(Field::ImageLoaded));
        let me = self.program(e.get(Field::Image));
        let place = place_of(&library);
        let name = base(&library);
        let listed = names::LIBRARIES.binary_search(&name).map(|at| names::LIBRARIES[at]).ok();
        let signed = e.lower(Field::Signed) == "true" && matches!(&*e.lower(Field::SignatureStatus), "valid" | "");
        let mut bag = Bag::default();
        let mut finding = None;
        if library == image {
            bag.say(&["self:", if signed { "signed" } else { "unsigned" }]);
            return Known {
                actor: self.pane.set(bag.0),
                target: None,
                node: None,
                relation: Relation::Executed,
                finding: None,
            };
        }
        bag.say(&["dll:", if signed { "signed:" } else { "unsigned:" }, place.name]);
        let native = library.contains(r"\assembly\");
        if !signed {
            bag.flag(&["dll_unsigned"]);
            bag.flag(&["dll_unsigned_", me.class]);
            bag.flag_if(place.user, &["dll_unsigned_user"]);
            bag.flag_if(
                matches!(place.name, "sys32" | "wbem" | "windows" | "progf") && !native,
                &["dll_unsigned_system"],
            );
        }
        if place.user {
            bag.flag(&["dll_user"]);
            bag.flag(&["dll_user_", me.class]);
        }
        bag.flag_if(!matches!(file_kind(&library), "dll" | "exe"), &["dll_extension"]);
        let mut odd = !signed && !native || place.user;
        if let Some(listed) = listed {
            bag.say(&["lib:", listed]);
            bag.say(&["libc:", me.class, ":", listed]);
            let at_home = matches!(place.name, "sys32" | "winsxs" | "dotnet" | "wbem" | "pshome" | "progf");
            if !at_home {
                bag.flag(&["dll_sideload"]);
                finding = Some(&attack::SIDE_LOAD);
                odd = true;
            }
            if listed.starts_with("system.management.automation")
                && !matches!(
                    me.name,
                    "powershell"
                        | "powershell_ise"
                        | "wsmprovhost"
                        | "pwsh"
                        | "sdiagnhost"
                        | "mscorsvw"
                        | "ngen"
                        | "ngentask"
                )
            {
                bag.flag(&["automation_odd"]);
                finding = finding.or(Some(&attack::REFLECTIVE));
            }
            if matches!(listed, "clr.dll" | "mscoree.dll" | "mscorlib.ni.dll" | "clrjit.dll")
                && matches!(me.class, "lol" | "off" | "svchost" | "wmiprvse" | "lsass" | "explorer" | "usr" | "dllhost")
            {
                bag.flag(&["clr_odd"]);
                bag.flag(&["clr_odd_", me.class]);
                finding = finding.or((me.class != "usr" && listed == "clr.dll").then_some(&attack::REFLECTIVE));
            }
        }
        let node = if odd {
            self.file_node(e.get(Field::ImageLoaded))
        } else {
            let label = if place.system { "libraries of Windows or installed programs" } else { "other libraries" };
            self.pane.node(NodeKind::File, label, label)
        };
        Known { actor: self.pane.set(bag.0), target: None, node: Some(node), relation: Relation::Executed, finding }
    }

    fn registry_features(&mut self, id: u16, e: &Event<'_>) -> Known {
        let me = self.program(e.get(Field::Image));
        let object = e.lower(Field::TargetObject);
        let event_type = e.lower(Field::EventType);
        let act = match id {
            13 => "set",
            _ if event_type.contains("delete") => "delete",
            14 => "rename",
            _ => "add",
        };
        let mut bag = Bag::default();
        let mut finding = None;
        let mut telling = false;
        let mut area = "other";
        bag.say(&["eid:", ["12", "13", "14"][usize::from(id.clamp(12, 14) - 12)]]);
        let found = text::REGISTRY.find(&object);
        for name in found.names() {
            bag.say(&["regc:", name, ":", me.class, ":", act]);
            if !text::registry_is_neutral(name) {
                bag.flag(&["reg_", name, "_", act]);
                telling |= !matches!(name, "environment" | "consent") && id == 13;
            }
            if area == "other" || !text::registry_is_neutral(name) {
                area = name;
            }
        }
        let last = base(&object);
        let suspect = me.is_suspect() || me.class == "off";
        if found.has("services") {
            bag.flag_if(matches!(last, "imagepath" | "servicedll" | "failurecommand"), &["reg_serviceprogram_", act]);
        }
        if suspect && id != 12 {
            bag.flag(&["regset_by_", me.class]);
        }
        if id == 13 {
            let value = e.lower(Field::Details);
            let program = ["exe", "dll", "bat", "ps1", "vbs", ".js", "sct", "hta"]
                .iter()
                .any(|x| value.contains(&format!(".{}", x.trim_start_matches('.'))));
            let in_user = program && place_of(value.trim_matches('"')).user;
            let command = [
                "powershell",
                "cmd /",
                "cmd.exe /",
                "mshta",
                "rundll32",
                "regsvr32",
                "-enc",
                "javascript",
                "%comspec%",
            ]
            .iter()
            .any(|c| value.contains(c));
            bag.say(&[
                "regval:",
                match () {
                    () if program => "program",
                    () if value == "dword (0x00000000)" => "zero",
                    () if value.starts_with("dword") => "dword",
                    () if value.starts_with("binary") => "binary",
                    () => "text",
                },
            ]);
            bag.flag_if(program, &["regval_program"]);
            bag.flag_if(in_user, &["regval_user_program"]);
            bag.flag_if(command, &["regval_command"]);
            bag.flag_if(value.len() > 400, &["regval_long"]);
            let disabled = found.has("services") && last == "start" && value.contains("00000004");
            bag.flag_if(disabled, &["service_disabled"]);
            telling |= program && suspect || in_user || command;
            let run = found.has("run") && (program || command);
            finding = match () {
                () if run => Some(&attack::RUN_KEY),
                () if found.has("ifeo") && (program || command) => Some(&attack::IFEO),
                () if found.has("shellcommand") && suspect => Some(&attack::UAC),
                () if found.has("services") && last == "imagepath" && (in_user || command) => Some(&attack::SERVICE),
                () if found.has("com") && in_user => Some(&attack::COM_HIJACK),
                () if found.has("lsa") && suspect => Some(&attack::LSA),
                () if found.has("defender") && suspect => Some(&attack::DEFENDER),
                () if found.has("firewall") && suspect => Some(&attack::FIREWALL),
                () if found.has("eventlog") && suspect => Some(&attack::NO_LOG),
                () if command => Some(&attack::REGISTRY),
                () => None,
            };
        }
        let node = if telling {
            self.pane.node(
                NodeKind::Syscall,
                &format!("registry:{act}:{object}"),
                &label_registry(act, e.get(Field::TargetObject)),
            )
        } else {
            let label = label_registry(act, area);
            self.pane.node(NodeKind::Syscall, &label, &label)
        };
        Known { actor: self.pane.set(bag.0), target: None, node: Some(node), relation: Relation::Performed, finding }
    }

    // ---- files --------------------------------------------------------------------------------------

    fn file_node(&mut self, path: &str) -> NodeId {
        let lower = path.to_ascii_lowercase();
        let node = self.pane.node(NodeKind::File, &lower, path);
        let mut bag = Bag::default();
        bag.say(&["file:", place_of(&lower).name, ":", file_kind(&lower)]);
        self.add(node, bag);
        node
    }

    fn file(&mut self, id: u16, e: &Event<'_>) {
        let Some(actor) = self.actor(e) else { return };
        let me = self.program(e.get(Field::Image));
        let path = e.get(Field::TargetFilename);
        if path.is_empty() {
            return;
        }
        let node = self.file_node(path);
        self.pane.edge(actor, node, Relation::Wrote);
        let lower = path.to_ascii_lowercase();
        let (place, kind) = (place_of(&lower), file_kind(&lower));
        let mut bag = Bag::default();
        let act = match id {
            11 => "write",
            15 => "stream",
            2 => "time",
            _ => "delete",
        };
        bag.say(&[act, ":", place.name, ":", kind]);
        bag.say(&[act, "c:", me.class, ":", kind]);
        match id {
            11 => self.written(&mut bag, actor, me, path, &lower, place, kind),
            15 => {
                bag.flag_if(
                    e.lower(Field::Contents).contains("zoneid=3") && matches!(kind, "exe" | "dll" | "script"),
                    &["stream_downloaded_program"],
                );
            }
            2 => {}
            _ => bag.flag_if(me.is_suspect(), &["delete_by_", me.class]),
        }
        self.add(actor, bag);
    }

    #[allow(clippy::too_many_arguments, reason = "one event's facts, taken apart once")]
    fn written(
        &mut self,
        bag: &mut Bag,
        actor: NodeId,
        me: Program,
        path: &str,
        lower: &str,
        place: Place,
        kind: &'static str,
    ) {
        // PowerShell writes one of these at every start, to see whether policy lets it run scripts.
        let policy_test = lower.contains("__psscriptpolicytest");
        let program = matches!(kind, "exe" | "dll");
        let usual =
            matches!(me.name, "trustedinstaller" | "tiworker" | "msiexec" | "svchost" | "msmpeng" | "mpsigstub");
        if program {
            bag.flag(&["write_program"]);
            bag.flag(&["write_program_", me.class]);
            bag.flag(&["write_program_in_", if place.user { "user" } else { "system" }]);
        }
        if kind == "script" && !policy_test {
            bag.flag(&["write_script"]);
            bag.flag(&["write_script_", me.class]);
        }
        if kind == "dump" {
            bag.flag(&["write_dump"]);
            if !me.name.starts_with("werfault") {
                self.pane.finding(actor, &attack::DUMP_FILE, path);
            }
        }
        if place.name == "startup" && lower.rsplit('\\').next() != Some("desktop.ini") {
            bag.flag(&["write_startup"]);
            self.pane.finding(actor, &attack::STARTUP, path);
        }
        if me.name == "system" && (program || kind == "script") {
            bag.flag(&["write_remote_program"]);
            self.pane.finding(actor, &attack::REMOTE_FILE, path);
        }
        if program && me.is_suspect() && !usual && place.user {
            self.pane.finding(actor, &attack::DOWNLOAD, path);
        }
        if policy_test {
            bag.say(&["policytest:", me.class]);
        }
        let broad = matches!(place.name, "root" | "public" | "otherdir" | "wintemp" | "temp" | "pdata");
        let carrier = me.is_suspect() || matches!(me.class, "wmiprvse" | "services");
        bag.flag_if(broad && carrier && !policy_test, &["write_broad"]);
        if lower.contains("usagelogs") {
            // .NET leaves one of these for every program that ran managed code.
            let usual = ["powershell.exe", "wsmprovhost.exe", "mmc.exe"].iter().any(|n| lower.contains(n));
            bag.say(&["usagelog:", if usual { "usual" } else { "other" }]);
        }
        bag.flag_if(lower.get(3..).is_some_and(|p| p.contains(':')), &["write_stream"]);
        bag.flag_if(place.name == "unc", &["write_unc"]);
    }

    fn driver(&mut self, e: &Event<'_>) {
        let path = e.get(Field::ImageLoaded);
        if path.is_empty() {
            return;
        }
        let node = self.file_node(path);
        let signed = e.lower(Field::Signed) == "true";
        let mut bag = Bag::default();
        bag.say(&["driver"]);
        bag.flag_if(!signed, &["driver_unsigned"]);
        self.add(node, bag);
    }

    // ---- network ------------------------------------------------------------------------------------

    fn connection(&mut self, e: &Event<'_>) {
        let outward = e.lower(Field::Initiated) == "true";
        let (local, remote, remote_port) = match outward {
            true => (e.get(Field::SourceIp), e.get(Field::DestinationIp), e.number::<u16>(Field::DestinationPort)),
            false => (e.get(Field::DestinationIp), e.get(Field::SourceIp), e.number::<u16>(Field::SourcePort)),
        };
        let class = address_class(remote);
        if !matches!(class, "loop" | "none" | "mcast") {
            self.pane.peer(Some(local), remote, remote_port.unwrap_or(0));
        }
        if !matches!(address_class(local), "loop" | "none" | "mcast") {
            self.pane.local_address(local);
        }
        let service = e.number::<u16>(Field::DestinationPort).unwrap_or(0);
        let port = port_class(service);
        let direction = if outward { "out" } else { "in" };
        let label = match outward {
            true => format!("{remote}:{service}"),
            false => format!("{remote} (to port {service} here)"),
        };
        let node = self.pane.node(NodeKind::Network, &label, &label);
        let mut bag = Bag::default();
        bag.say(&["peer:", class]);
        bag.say(&["port:", direction, ":", port]);
        self.add(node, bag);

        let Some(actor) = self.actor(e) else { return };
        self.pane.edge(actor, node, Relation::ConnectedTo);
        let me = self.program(e.get(Field::Image));
        let mut bag = Bag::default();
        bag.say(&["net:", direction, ":", port]);
        bag.say(&["netc:", me.class, ":", direction, ":", class]);
        if me.is_suspect() {
            bag.flag(&["net_suspect"]);
            bag.flag(&["net_suspect_", class]);
            if class == "pub" && outward {
                self.pane.finding(actor, &attack::WEB, &label);
            }
        }
        if port == "88" && outward && me.name != "lsass" {
            bag.flag(&["net_kerberos_odd"]);
            self.pane.finding(actor, &attack::KERBEROS, &label);
        }
        let directory = matches!(
            me.name,
            "lsass"
                | "svchost"
                | "dfsrs"
                | "dns"
                | "taskhostw"
                | "ismserv"
                | "dfssvc"
                | "microsoft.activedirectory.webservices"
        );
        bag.flag_if(port == "ldap" && outward && !directory, &["net_ldap_odd"]);
        bag.flag_if(matches!(port, "445" | "139") && me.name != "system", &["net_smb_odd"]);
        bag.flag_if(port == "135" && !matches!(me.name, "svchost" | "lsass" | "dfsrs"), &["net_rpc_odd"]);
        bag.flag_if(port == "winrm", &["net_winrm"]);
        self.add(actor, bag);
    }

    fn lookup(&mut self, e: &Event<'_>) {
        let name = e.lower(Field::QueryName);
        if name.is_empty() {
            return;
        }
        let node = self.pane.node(NodeKind::Network, &name, &name);
        let microsoft = ["microsoft", "windows", "msftncsi", "live.com", "office", "akamai", "msedge", "bing"];
        let class = match () {
            () if !name.contains('.') => "single",
            () if name.starts_with('_') => "service",
            () if microsoft.iter().any(|m| name.contains(m)) => "microsoft",
            () if [".local", ".lan", ".internal", ".corp"].iter().any(|s| name.ends_with(s)) => "local",
            () => "other",
        };
        let mut bag = Bag::default();
        bag.say(&["dns:", class]);
        self.add(node, bag);
        let Some(actor) = self.actor(e) else { return };
        self.pane.edge(actor, node, Relation::ConnectedTo);
        let me = self.program(e.get(Field::Image));
        let mut bag = Bag::default();
        bag.say(&["dnsc:", me.class, ":", class]);
        bag.flag_if(class == "other" && me.is_suspect(), &["dns_suspect"]);
        self.add(actor, bag);
    }

    fn pipe(&mut self, id: u16, e: &Event<'_>) {
        const SERVICES: [&str; 24] = [
            "lsass",
            "samr",
            "svcctl",
            "srvsvc",
            "lsarpc",
            "netlogon",
            "wkssvc",
            "atsvc",
            "spoolss",
            "winreg",
            "epmapper",
            "browser",
            "protected_storage",
            "eventlog",
            "pshost",
            "ntsvcs",
            "initshutdown",
            "drsuapi",
            "trkwks",
            "tsvcpipe",
            "mojo",
            "chrome",
            "psexe",
            "remcom",
        ];
        let Some(actor) = self.actor(e) else { return };
        let me = self.program(e.get(Field::Image));
        let name = e.lower(Field::PipeName);
        let random = {
            let mut run = 0;
            name.bytes().any(|b| {
                run = if b.is_ascii_hexdigit() { run + 1 } else { 0 };
                run >= 8
            })
        };
        let class = match SERVICES.iter().find(|s| name.contains(**s)) {
            _ if name.contains("anonymous") => "anonymous",
            Some(service) => service,
            None if random => "random",
            None => "other",
        };
        let act = if id == 17 { "create" } else { "connect" };
        let label = format!("{act} pipe: {class}");
        let node = self.pane.node(NodeKind::Syscall, &label, &label);
        self.pane.attribute(node, Attribute::Example, e.get(Field::PipeName));
        self.pane.edge(actor, node, Relation::Performed);
        let mut bag = Bag::default();
        bag.say(&["pipe:", act, ":", class]);
        bag.say(&["pipec:", act, ":", me.class]);
        bag.flag_if(
            class == "pshost"
                && !matches!(me.name, "powershell" | "powershell_ise" | "wsmprovhost" | "pwsh" | "sdiagnhost"),
            &["pshost_odd"],
        );
        bag.flag_if(matches!(class, "psexe" | "remcom"), &["pipe_remote_exec"]);
        let rpc = !matches!(class, "anonymous" | "random" | "other" | "pshost" | "mojo" | "chrome");
        if rpc && id == 18 && (me.is_suspect() || me.name == "system") {
            bag.flag(&["pipe_rpc_", me.class]);
            if me.is_suspect() {
                self.pane.finding(actor, &attack::NAMED_PIPE, e.get(Field::PipeName));
            }
        }
        self.add(actor, bag);
    }

    // ---- scripts ------------------------------------------------------------------------------------

    fn wmi(&mut self, e: &Event<'_>) {
        let what =
            [Field::Name, Field::Consumer, Field::Filter, Field::Destination, Field::Query].map(|f| e.get(f)).join(" ");
        let node = self.pane.node(NodeKind::Script, &what, "WMI event subscription");
        self.pane.attribute(node, Attribute::Example, what.trim());
        let lower = (what + e.get(Field::Type)).to_ascii_lowercase();
        let mut bag = Bag::default();
        bag.flag(&["wmi_subscription"]);
        bag.flag_if(lower.contains("script") || lower.contains("command"), &["wmi_runs"]);
        self.add(node, bag);
        self.pane.finding(node, &attack::WMI_SUBSCRIPTION, e.get(Field::Name));
    }

    fn script(&mut self, e: &Event<'_>) {
        let script = e.get(Field::ScriptBlockText);
        let id = match e.get(Field::ScriptBlockId) {
            "" => script,
            id => id,
        };
        if id.is_empty() {
            return;
        }
        let path = e.get(Field::Path);
        let label = if path.is_empty() { "a PowerShell script block" } else { path };
        let node = self.pane.node(NodeKind::Script, id, label);
        self.pane.attribute(node, Attribute::Example, script.trim());
        let host = self.actor(e);
        if let Some(host) = host {
            self.pane.edge(host, node, Relation::Executed);
        }

        let mut bag = Bag::default();
        let lower = script.to_ascii_lowercase();
        let mut found: Vec<&str> = text::POWERSHELL.find(&lower).names().collect();
        let hidden = text::hidden_text(script);
        if !hidden.is_empty() {
            found.extend(text::POWERSHELL.find(&hidden.to_ascii_lowercase()).names());
            found.sort_unstable();
            found.dedup();
        }
        let standard = found.contains(&"standard");
        let telling = found.iter().filter(|s| !matches!(**s, "standard" | "newobject")).count();
        for sign in &found {
            match text::powershell_is_neutral(sign) {
                true => bag.say(&["ps:", sign]),
                false => bag.flag(&["ps_", sign]),
            }
        }
        bag.flag_if(telling >= 2, &["ps_two"]);
        bag.flag_if(telling >= 4, &["ps_four"]);
        bag.flag_if(telling >= 6, &["ps_six"]);
        bag.flag_if(telling > 0 && !standard, &["ps_nonstandard"]);
        bag.say(&["pslen:", SIZES[(script.len().max(1).ilog2() as usize / 2).min(SIZES.len() - 1)]]);
        bag.say(&["pspath:", if path.is_empty() { "none" } else { place_of(&path.to_ascii_lowercase()).name }]);
        bag.flag_if(e.number::<u32>(Field::MessageTotal).is_some_and(|n| n > 2), &["ps_parts"]);
        let head = &script.as_bytes()[..script.len().min(4000)];
        let special = head.iter().filter(|b| b.is_ascii_punctuation()).count();
        bag.flag_if(special * 10 > head.len() * 3, &["ps_special"]);
        let mixed = head
            .windows(2)
            .filter(|p| p.iter().all(u8::is_ascii_alphabetic) && p[0].is_ascii_uppercase() != p[1].is_ascii_uppercase())
            .count();
        bag.flag_if(mixed * 4 > head.len(), &["ps_mixedcase"]);
        self.add(node, bag);

        let on = host.unwrap_or(node);
        if telling >= 4 && !standard {
            self.pane.finding(on, &attack::POWERSHELL, script);
        }
        if found.contains(&"spy") {
            self.pane.finding(on, &attack::SPY, script);
        }
        if lower.contains("amsiutils") || lower.contains("amsiinitfailed") || lower.contains("amsiscanbuffer") {
            self.pane.finding(on, &attack::AMSI, script);
        }
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
