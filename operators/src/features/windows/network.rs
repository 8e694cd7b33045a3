//! Connections, name lookups and named pipes.

use super::*;

impl Build<'_> {
    pub(super) fn connection(&mut self, e: &Event<'_>) {
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

    pub(super) fn lookup(&mut self, e: &Event<'_>) {
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

    pub(super) fn pipe(&mut self, id: u16, e: &Event<'_>) {
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
}
