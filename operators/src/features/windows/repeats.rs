//! Library loads and registry changes: most events, and few that differ; see the cache in [`Build`].

use super::*;

impl Build<'_> {
    /// Library loads and registry changes: one set of tokens and one edge.
    pub(super) fn repeated(&mut self, id: u16, e: &Event<'_>, fields: &[Field]) {
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

    pub(super) fn known(
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
        let unsigned = !signed && place.name != "apps";
        if unsigned {
            bag.flag(&["dll_unsigned"]);
            bag.flag(&["dll_unsigned_", me.class]);
            bag.flag_if(place.user, &["dll_unsigned_user"]);
            bag.flag_if(
                matches!(place.name, "sys32" | "wbem" | "windows" | "progf") && !native,
                &["dll_unsigned_system"],
            );
        }
        let own = signed && place.name == "apphome" && me.place.name == "apphome";
        if place.user && !own {
            bag.flag(&["dll_user"]);
            bag.flag(&["dll_user_", me.class]);
        }
        bag.flag_if(!matches!(file_kind(&library), "dll" | "exe"), &["dll_extension"]);
        let mut odd = unsigned && !native || place.user;
        if let Some(listed) = listed {
            bag.say(&["lib:", listed]);
            bag.say(&["libc:", me.class, ":", listed]);
            let at_home = matches!(place.name, "sys32" | "winsxs" | "dotnet" | "wbem" | "pshome" | "progf" | "apps");
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
}
