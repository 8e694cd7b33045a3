//! Files made, changed and deleted, and drivers loaded.

use super::*;

impl Build<'_> {
    pub(super) fn file_node(&mut self, path: &str) -> NodeId {
        let lower = path.to_ascii_lowercase();
        let node = self.pane.node(NodeKind::File, &lower, path);
        let mut bag = Bag::default();
        bag.say(&["file:", place_of(&lower).name, ":", file_kind(&lower)]);
        self.add(node, bag);
        node
    }

    pub(super) fn file(&mut self, id: u16, e: &Event<'_>) {
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

    pub(super) fn driver(&mut self, e: &Event<'_>) {
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
}
