//! WMI subscriptions and PowerShell's script blocks.

use super::*;

impl Build<'_> {
    pub(super) fn wmi(&mut self, e: &Event<'_>) {
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

    pub(super) fn script(&mut self, e: &Event<'_>) {
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
