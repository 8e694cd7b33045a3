//! What a process does to other processes and to the disk below the file system: threads, tampering, access, raw reads.

use super::*;

impl Build<'_> {
    pub(super) fn remote_thread(&mut self, e: &Event<'_>) {
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

    pub(super) fn tampering(&mut self, e: &Event<'_>) {
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

    pub(super) fn raw_read(&mut self, e: &Event<'_>) {
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

    pub(super) fn access(&mut self, e: &Event<'_>) {
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
}
