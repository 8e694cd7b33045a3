//! An observation as a Sigma rule sees it: fields under their Sigma names.
//!
//! The values are those of the graph: HTML entities decoded, `-` absent, GUIDs in lower case, a call trace cut. Rules
//! compare without regard to case, so this shows in nothing but such a placeholder: it counts as absent.

use std::borrow::Cow;

use logster_schema::{Field, Kind, Observation};
use rsigma_eval::{Event, EventValue};

use super::logsource::EventClass;
use crate::features::audit::{self, Line, Pairs};

/// Fields of Windows events that are made from others.
pub(super) const DERIVED: [&str; 7] = ["EventID", "Computer", "Hash", "Imphash", "md5", "sha1", "sha256"];

/// The parts of Sysmon's `Hashes` and the fields that Sigma has for them.
const HASHES: [(&str, &str); 4] = [("IMPHASH=", "Imphash"), ("MD5=", "md5"), ("SHA1=", "sha1"), ("SHA256=", "sha256")];

/// The fields of one event.
pub(super) struct View<'a>(Vec<(&'a str, EventValue<'a>)>);

fn text<'a>(value: impl Into<Cow<'a, str>>) -> EventValue<'a> {
    EventValue::Str(value.into())
}

impl<'a> View<'a> {
    /// What rules of `class` see of `o`.
    pub(super) fn of(class: EventClass, o: &'a Observation) -> Self {
        let mut view = Self(Vec::with_capacity(32));
        let fields = &o.activity.fields;
        match class {
            EventClass::Windows(_) | EventClass::RegistryDelete => view.windows(o),
            EventClass::Audit => view.audit(o),
            EventClass::LinuxProcess if o.activity.kind == Kind::Audit => view.execve(o),
            EventClass::LinuxFile if o.activity.kind == Kind::Audit => {
                let named = |key| move |(k, raw)| if k == key { audit::text(raw) } else { None };
                let name = fields.get(Field::AuditText).and_then(|t| Pairs::of(t).find_map(named("name")));
                view.push("TargetFilename", name.filter(|name| name.starts_with('/')).map(text));
            }
            EventClass::LinuxProcess => {
                let args = fields.get(Field::Args);
                view.push("CommandLine", args.map(text));
                view.push("Image", args.and_then(|args| args.split_whitespace().next()).map(text));
                view.push("ParentProcessId", fields.get(Field::Ppid).map(text));
                view.push("User", (fields.get(Field::Uid) == Some("0")).then(|| text("root")));
                view.push("ProcessId", fields.get(Field::ProcessId).map(text));
            }
            EventClass::LinuxFile => {
                view.program(o);
                view.push("TargetFilename", fields.get(Field::Path).map(text));
            }
            EventClass::LinuxNetwork => {
                view.program(o);
                view.push("DestinationIp", fields.get(Field::DestinationIp).map(text));
                view.push("DestinationPort", fields.get(Field::DestinationPort).map(text));
                view.push("Initiated", Some(text("true")));
            }
        }
        view.push("Computer", Some(text(o.endpoint.host())));
        view
    }

    fn push(&mut self, name: &'a str, value: Option<EventValue<'a>>) {
        self.0.extend(value.map(|value| (name, value)));
    }

    /// The program of a tracer's line that names no path: where the published event supposes it too.
    fn program(&mut self, o: &'a Observation) {
        self.push("Image", o.activity.fields.get(Field::Comm).map(|comm| text(format!("/usr/bin/{comm}"))));
        self.push("ProcessId", o.activity.fields.get(Field::ProcessId).map(text));
    }

    fn windows(&mut self, o: &'a Observation) {
        if let Kind::Sysmon(id) = o.activity.kind {
            self.push("EventID", Some(EventValue::Int(id.into())));
        }
        for (field, value) in o.activity.fields.iter() {
            self.push(field.name(), Some(text(value)));
            if field == Field::Hashes {
                for part in value.split(',') {
                    let known = HASHES.iter().find_map(|(prefix, name)| Some((*name, part.strip_prefix(prefix)?)));
                    self.0.extend(known.map(|(name, hash)| (name, text(hash))));
                }
                // Id 15 calls it so, and so do its rules.
                self.push("Hash", (o.activity.kind == Kind::Sysmon(15)).then(|| text(value)));
            }
        }
    }

    /// One auditd record: `type`, and every `key=value` under its key. Where auditd has enriched a system call's number
    /// with its name, `syscall` is the name.
    fn audit(&mut self, o: &'a Observation) {
        let Some(line) = Line::of(o) else { return };
        self.push("type", Some(text(line.kind)));
        for (key, raw) in Pairs::of(line.text) {
            let known = self.0.iter().any(|(name, _)| *name == key);
            self.push(key, audit::text(raw).filter(|_| !known).map(text));
        }
        if let Some(name) = self.0.iter().find(|(key, _)| *key == "SYSCALL").map(|(_, name)| name.clone()) {
            self.0.iter_mut().filter(|(key, _)| *key == "syscall").for_each(|(_, number)| *number = name.clone());
        }
    }

    /// What an EXECVE record says of the process: its arguments. The program is the first of them; a bare name is
    /// supposed in /usr/bin, as the published eBPF events suppose it.
    fn execve(&mut self, o: &'a Observation) {
        let Some(line) = Line::of(o) else { return };
        let arguments = audit::arguments(audit::argument_pieces(line.text).collect());
        if let Some(program) = arguments.first() {
            let folder = if program.contains('/') { "" } else { "/usr/bin/" };
            self.push("Image", Some(text(format!("{folder}{program}"))));
            self.push("CommandLine", Some(text(arguments.join(" "))));
        }
    }
}

impl Event for View<'_> {
    fn get_field(&self, path: &str) -> Option<EventValue<'_>> {
        let (_, value) = self.0.iter().find(|(name, _)| *name == path)?;
        Some(match value {
            EventValue::Str(text) => EventValue::Str(Cow::Borrowed(text)),
            other => other.clone(),
        })
    }

    fn any_string_value(&self, pred: &dyn Fn(&str) -> bool) -> bool {
        self.0.iter().any(|(_, value)| matches!(value, EventValue::Str(text) if pred(text)))
    }

    fn all_string_values(&self) -> Vec<Cow<'_, str>> {
        let strings = self.0.iter().filter_map(|(_, value)| match value {
            EventValue::Str(text) => Some(Cow::Borrowed(&**text)),
            _ => None,
        });
        strings.collect()
    }

    fn visit_string_values(&self, visit: &mut dyn FnMut(&str)) {
        for (_, value) in &self.0 {
            if let EventValue::Str(text) = value {
                visit(text);
            }
        }
    }

    fn to_json(&self) -> serde_json::Value {
        self.0.iter().map(|(name, value)| ((*name).to_owned(), value.to_json())).collect()
    }

    fn visit_top_level_keys(&self, visit: &mut dyn FnMut(&str)) -> bool {
        self.0.iter().for_each(|(name, _)| visit(name));
        true
    }
}
