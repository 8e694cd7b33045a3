//! ATT&CK techniques of Linux facts, each with what was seen.
//!
//! A finding explains a detection, it does not make one: results list findings only where the model saw an attack.
//! Still each rests on a fact that the sentence names. The process is also given a token of the technique, which
//! sums up many ways to do one thing.

use std::collections::BTreeSet;
use std::net::IpAddr;

use rustc_hash::FxHashMap;

use super::paths::{Place, address_class};
use super::programs::Role;
use super::{Builder, Exec, Fact, File, Process, ProgramNo, Written, audit, base_name};
use crate::graph::{NodeId, Technique};
use audit::{FileOp, NetOp};

macro_rules! techniques {
    ($($name:ident = $id:literal, $did:literal;)+) => {
        $(static $name: Technique = Technique { id: $id, did: $did };)+
    };
}

techniques! {
    UNIX_SHELL = "T1059.004", "ran as a shell";
    PYTHON = "T1059.006", "ran a script given on the command line";
    WEB_SHELL = "T1505.003", "ran commands for a web server";
    CRON = "T1053.003", "changed scheduled jobs";
    SYSTEMD_UNIT = "T1543.002", "changed a service definition";
    SETUID = "T1548.001", "set the set-user-id or set-group-id bit";
    SETUID_RUN = "T1548.001", "ran with another user's rights from an unusual place";
    SUDOERS = "T1548.003", "changed who may use sudo";
    PRELOAD = "T1574.006", "had a library loaded into other programs";
    SHADOW = "T1003.008", "read password hashes";
    HISTORY_READ = "T1552.003", "read shell history";
    PRIVATE_KEYS = "T1552.004", "read private keys";
    CREDENTIAL_FILES = "T1552.001", "read stored credentials";
    PROC_MEMORY = "T1003.007", "read another process's memory or environment";
    LOGS_CLEARED = "T1070.002", "cleared or removed logs";
    HISTORY_CLEARED = "T1070.003", "cleared or disabled shell history";
    FILE_DELETED = "T1070.004", "removed what had just been run";
    SHREDDED = "T1070.004", "overwrote files to remove them";
    TIMESTOMP = "T1070.006", "set a file's time stamps to chosen values";
    DROPPED = "T1105", "ran what had just been brought here";
    DOWNLOAD_RUN = "T1105", "read a script from a download";
    WEB_TRAFFIC = "T1071.001", "called out from an unusual place";
    SHELL_NETWORK = "T1095", "connected a shell or interpreter to the network";
    NEW_ACCOUNT = "T1136.001", "created an account";
    AUTHORIZED_KEYS = "T1098.004", "changed keys that may log in";
    ENCRYPTED = "T1486", "left many files encrypted";
    MINING = "T1496", "used a miner or a mining pool";
    BRUTE_FORCE = "T1110", "refused log-ins again and again";
    MASQUERADE = "T1036.005", "bears a system program's name in an unusual place";
    DECODED = "T1140", "decoded hidden text";
    PROFILE = "T1546.004", "changed what shells run at log-in";
    MODULE = "T1547.006", "loaded a kernel module";
    PTRACE = "T1055.008", "took control of another process";
    MEMORY_RUN = "T1620", "ran from memory";
    DISARMED = "T1562.001", "stopped a security or logging service";
    AUDIT_OFF = "T1562.012", "changed or disabled auditing";
    FIREWALL_OFF = "T1562.004", "changed the firewall";
    TUNNEL = "T1572", "opened a tunnel";
    UPLOAD = "T1048", "sent a file out";
    DISCOVERY = "T1082", "asked about the system, its users and network";
    SETUID_SEARCH = "T1083", "searched for files that give more rights";
    HIDDEN = "T1564.001", "fetched, unlocked or ran a hidden file where anyone may write";
}

/// Daemons of the idle list whose business is to call other hosts.
fn calls_out(name: &str) -> bool {
    matches!(name, "chronyd" | "ntpd" | "systemd-timesyncd" | "systemd-resolved" | "systemd-networkd" | "rsyslogd")
}

/// The shell's own `-i`, not one of the words that it is given to run.
pub(super) fn interactive(exec: &Exec<'_>) -> bool {
    let mut options = exec.argv.iter().skip(1).take_while(|argument| argument.starts_with('-'));
    options.any(|option| !option.starts_with("--") && option.contains('i'))
}

/// Failed log-ins of a pane that make a series.
const MANY_FAILURES: u32 = 5;
/// Files encrypted by one process in a pane that make a series.
const MANY_ENCRYPTED: u32 = 8;
/// Different programs of discovery by one parent that make a survey.
const MANY_QUESTIONS: usize = 4;

/// Counts over the pane.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// In the order met, so that findings are.
    failures: Vec<(NodeId, u32)>,
    encrypted: Vec<(NodeId, u32)>,
    questions: Vec<(NodeId, BTreeSet<ProgramNo>)>,
    at: FxHashMap<(u8, NodeId), usize>,
}

impl Tally {
    fn count(counts: &mut Vec<(NodeId, u32)>, at: &mut FxHashMap<(u8, NodeId), usize>, kind: u8, node: NodeId) {
        let at = *at.entry((kind, node)).or_insert_with(|| {
            counts.push((node, 0));
            counts.len() - 1
        });
        counts[at].1 += 1;
    }
}

impl Builder<'_, '_> {
    fn find(&mut self, node: NodeId, technique: &'static Technique, detail: &str) {
        self.pane.finding(node, technique, detail);
        self.pane.flag(node, &format!("t:{}", technique.id));
    }

    /// `/tmp/x, written 4 s before by wget`.
    fn written_before(&self, path: &str, written: &Written) -> String {
        let seconds = (self.now - written.time_ms).max(0) / 1000;
        format!("{path}, written {seconds} s before by {}", self.token_of(written.by))
    }

    pub(super) fn exec_findings(
        &mut self,
        process: &Process,
        parent: Option<&Process>,
        fact: &Fact<'_>,
        exec: &Exec<'_>,
        words: &BTreeSet<String>,
    ) {
        let node = process.node;
        let (program, place) = {
            let program = self.programs[usize::from(process.program)].0;
            (program, Place::of(&exec.path))
        };
        let name = program.name.unwrap_or("");
        let has = |word: &str| words.contains(word);
        let command = exec.argv.join(" ");
        let by = parent.map_or(Role::Other, |parent| self.role_of(parent.program));
        let parent_name = parent.map_or(String::new(), |parent| self.token_of(parent.program).to_owned());

        if program.role == Role::Shell {
            if matches!(by, Role::Server) {
                self.find(node, &UNIX_SHELL, &format!("started by {parent_name}: {command}"));
                if matches!(
                    parent_name.as_str(),
                    "apache2"
                        | "httpd"
                        | "nginx"
                        | "lighttpd"
                        | "php-fpm"
                        | "php-cgi"
                        | "tomcat"
                        | "gunicorn"
                        | "uwsgi"
                ) {
                    self.find(node, &WEB_SHELL, &command);
                }
            } else if by == Role::Interpreter {
                self.find(node, &UNIX_SHELL, &format!("started by {parent_name}: {command}"));
            } else if has("/dev/tcp.none") || interactive(exec) && !fact.terminal && fact.auid.is_some() {
                self.find(node, &UNIX_SHELL, &command);
            }
            if has("/dev/tcp.none") {
                self.find(node, &SHELL_NETWORK, &command);
            }
        }
        if program.role == Role::Interpreter && has("-c") | has("-e") && has("socket") | has("pty") | has("exec") {
            self.find(node, &PYTHON, &command);
        }
        let unusual = place.is_scratch() || place.hidden;
        if program.name.is_some() && (unusual || place.area == "/other") {
            self.find(node, &MASQUERADE, &exec.path);
        }
        if place.is_scratch() && place.hidden {
            self.find(node, &HIDDEN, &exec.path);
        }
        if exec.path.starts_with("/proc/") && exec.path.contains("/fd/") || exec.path.starts_with("/memfd:") {
            self.find(node, &MEMORY_RUN, &exec.path);
        }
        if let (Some(uid), Some(euid)) = (fact.uid, fact.euid)
            && uid != 0
            && euid == 0
            && !place.is_system_bin()
        {
            self.find(node, &SETUID_RUN, &exec.path);
        }
        match name {
            "crontab" if !has("-l") => self.find(node, &CRON, &command),
            "useradd" | "adduser" | "newusers" => self.find(node, &NEW_ACCOUNT, &command),
            "shred" => self.find(node, &SHREDDED, &command),
            "touch" if has("-r") || has("-t") || has("-d") || has("--reference") || has("--date") => {
                self.find(node, &TIMESTOMP, &command);
            }
            "base64" | "base32" | "xxd" if has("-d") || has("--decode") || has("-r") => {
                self.find(node, &DECODED, &command);
            }
            "insmod" | "modprobe" => self.find(node, &MODULE, &command),
            "chisel" | "ngrok" => self.find(node, &TUNNEL, &command),
            "ssh" if has("-R") || has("-D") || has("-L") || has("RemoteForward") => self.find(node, &TUNNEL, &command),
            "curl" if has("-T") || has("--upload-file") || has("--data-binary") || has("-F") => {
                self.find(node, &UPLOAD, &command);
            }
            "auditctl" if has("-D") || has("-e") => self.find(node, &AUDIT_OFF, &command),
            "setenforce" => self.find(node, &DISARMED, &command),
            "systemctl" | "service" if has("stop") || has("disable") || has("mask") => {
                let guards = ["auditd", "rsyslogd", "syslog", "fail2ban-server", "falco", "osqueryd", "audit"];
                if guards.iter().any(|guard| has(guard)) {
                    self.find(node, &DISARMED, &command);
                }
            }
            "iptables" | "nft" | "ufw" if has("-F") || has("disable") || has("flush") => {
                self.find(node, &FIREWALL_OFF, &command);
            }
            "find" if has("-perm") && !has("-delete") => self.find(node, &SETUID_SEARCH, &command),
            "xmrig" => self.find(node, &MINING, &command),
            _ => {}
        }
        if ["stratum", "xmr", "monero", "xmrig", "donate-level", "--donate-level"].iter().any(|w| has(w)) {
            self.find(node, &MINING, &command);
        }
        if has("LD_PRELOAD") {
            self.find(node, &PRELOAD, &command);
        }
        if has("HISTFILE") || has("HISTSIZE") || has("history") && has("-c") {
            self.find(node, &HISTORY_CLEARED, &command);
        }
        if program.role == Role::Shell && has("B64") && has("base64") {
            self.find(node, &DECODED, &command);
        }
        if program.role == Role::Shell && has("-c") && has("URL") && (has("|") && (has("sh") || has("bash"))) {
            self.find(node, &DOWNLOAD_RUN, &command);
        }
        if program.role == Role::Discovery
            && let Some(parent) = parent
        {
            let tally = &mut self.tally;
            let at = *tally.at.entry((0, parent.node)).or_insert_with(|| {
                tally.questions.push((parent.node, BTreeSet::new()));
                tally.questions.len() - 1
            });
            tally.questions[at].1.insert(process.program);
        }
    }

    /// A file written a moment ago is run, by itself or by an interpreter.
    pub(super) fn dropped(&mut self, process: &Process, path: &str, written: &Written) {
        // What a shell or a compiler writes was made here; what these write came from elsewhere.
        if matches!(self.role_of(written.by), Role::Download | Role::Server | Role::Interpreter) {
            let detail = self.written_before(path, written);
            self.find(process.node, &DROPPED, &detail);
        }
    }

    pub(super) fn read_findings(&mut self, process: &Process, path: &str, place: &Place) {
        let role = self.role_of(process.program);
        let name = self.programs[usize::from(process.program)].0.name.unwrap_or("");
        // Who reads such files in the way of business.
        let login = matches!(
            name,
            "sshd"
                | "sshd-session"
                | "su"
                | "sudo"
                | "login"
                | "passwd"
                | "chage"
                | "chpasswd"
                | "unix_chkpwd"
                | "useradd"
                | "usermod"
                | "userdel"
                | "groupadd"
                | "gpasswd"
                | "cron"
                | "crond"
                | "systemd"
                | "systemd-logind"
                | "systemd-executor"
                | "runuser"
                | "vipw"
                | "polkitd"
                | "unix_update"
                | "systemd-sysusers"
                | "pwck"
                | "chfn"
                | "chsh"
                | "adduser"
                | "getent"
                | "atd"
        );
        let own_keys = matches!(
            name,
            "ssh" | "sshd" | "sshd-session" | "scp" | "sftp" | "ssh-keygen" | "ssh-add" | "ssh-agent" | "git"
        );
        let node = process.node;
        match place.area {
            "/etc/shadow" if !login && role != Role::Package => self.find(node, &SHADOW, path),
            "H.hist" | "root.H.hist" if role != Role::Shell => self.find(node, &HISTORY_READ, path),
            "H.ssh" | "root.H.ssh" if !own_keys && base_name(path).starts_with("id_") && !path.ends_with(".pub") => {
                self.find(node, &PRIVATE_KEYS, path);
            }
            "/etc/ssh/key" if !own_keys && !path.ends_with(".pub") && role != Role::Package => {
                self.find(node, &PRIVATE_KEYS, path);
            }
            "H.cloud" | "root.H.cloud" | "H.cred" | "root.H.cred"
                if !matches!(
                    name,
                    "aws" | "kubectl" | "gcloud" | "az" | "docker" | "git" | "psql" | "mysql" | "curl"
                ) =>
            {
                self.find(node, &CREDENTIAL_FILES, path);
            }
            "/proc/#/mem" if name != "gdb" && name != "strace" => self.find(node, &PROC_MEMORY, path),
            _ => {}
        }
    }

    pub(super) fn write_findings(&mut self, process: &Process, file: &File<'_>, path: &str, place: &Place) {
        let node = process.node;
        let role = self.role_of(process.program);
        let name = self.programs[usize::from(process.program)].0.name.unwrap_or("");
        let installs = role == Role::Package;
        let changes = file.op.writes() || file.op == FileOp::Link;
        match place.area {
            "/etc/cron" if changes && !installs && !matches!(name, "cron" | "crond") => self.find(node, &CRON, path),
            "/etc/systemd" | "H.units" | "root.H.units" if changes && !installs && name != "systemd" => {
                self.find(node, &SYSTEMD_UNIT, path);
            }
            "/etc/sudoers" if changes && !installs => self.find(node, &SUDOERS, path),
            "/etc/ld.so.preload" if changes => self.find(node, &PRELOAD, path),
            "H.profile" | "root.H.profile" | "/etc/profile"
                if changes && !installs && !matches!(name, "useradd" | "adduser") =>
            {
                self.find(node, &PROFILE, path);
            }
            "H.ssh" | "root.H.ssh" if changes && base_name(path).starts_with("authorized_keys") => {
                self.find(node, &AUTHORIZED_KEYS, path);
            }
            "H.hist" | "root.H.hist" if file.op == FileOp::Delete || file.truncates && role != Role::Shell => {
                self.find(node, &HISTORY_CLEARED, path);
            }
            "/var/log" | "/var/log/auth" | "/var/log/audit" | "/var/log/login" | "/var/log/journal"
                if (file.op == FileOp::Delete || file.truncates)
                    && matches!(role, Role::Shell | Role::Interpreter | Role::Other)
                    && !matches!(
                        name,
                        "logrotate" | "rsyslogd" | "systemd-journald" | "auditd" | "savelog" | "gzip" | "xz"
                    )
                    && !name.is_empty() =>
            {
                self.find(node, &LOGS_CLEARED, path);
            }
            _ => {}
        }
        if let Some(mode) = file.mode
            && mode & 0o6000 != 0
            && mode & 0o111 != 0
            && !installs
        {
            self.find(node, &SETUID, path);
        }
        if file.op == FileOp::Delete
            && let Some(number) = self.path_numbers.get(path).copied()
            && self.paths[number as usize].ran
            && !installs
            && role != Role::Compiler
            && let Some(written) = self.paths[number as usize].written
            && self.role_of(written.by) != Role::Compiler
        {
            let detail = self.written_before(path, &written);
            self.find(node, &FILE_DELETED, &detail);
        }
        // Hidden files in /tmp are locks and sockets as often as not; what is fetched there, or made to run, is none.
        let fetched = file.op.writes() && matches!(role, Role::Download | Role::Server);
        if place.hidden && place.is_scratch() && (fetched || file.mode.is_some_and(|mode| mode & 0o111 != 0)) {
            self.find(node, &HIDDEN, path);
        }
        if place.extension == "encrypted" && file.op.writes() {
            let tally = &mut self.tally;
            Tally::count(&mut tally.encrypted, &mut tally.at, 1, node);
        }
    }

    pub(super) fn network_findings(&mut self, process: &Process, op: NetOp, ip: IpAddr, port: u16) {
        if op != NetOp::Connect {
            return;
        }
        let program = self.programs[usize::from(process.program)].0;
        if ip.is_loopback() {
            // Tokens tell of it; as a finding, a service's talk with itself would drown the others.
            if program.role != Role::Shell {
                return;
            }
        } else if program.name.is_some_and(|name| super::IDLE_ALLOW_LIST.contains(&name) && !calls_out(name)) {
            self.pane.flag(process.node, "g:daemon>network");
        }
        let to = format!("{ip} port {port}");
        if program.role == Role::Shell {
            self.find(process.node, &SHELL_NETWORK, &to);
        }
        if let Some(place) = program.place
            && (place.is_scratch() || place.hidden)
        {
            self.find(process.node, &WEB_TRAFFIC, &format!("{to} ({})", address_class(ip)));
        }
    }

    pub(super) fn call_findings(&mut self, process: &Process, name: &str, errno: u16) {
        if errno != 0 {
            return;
        }
        let by = self.programs[usize::from(process.program)].0.name.unwrap_or("");
        match name {
            "init_module" | "finit_module" if !matches!(by, "systemd-udevd" | "kmod" | "modprobe" | "systemd") => {
                self.find(process.node, &MODULE, name);
            }
            "ptrace" | "process_vm_writev" if !matches!(by, "gdb" | "strace" | "ltrace" | "systemd") => {
                self.find(process.node, &PTRACE, name);
            }
            _ => {}
        }
    }

    pub(super) fn user_findings(&mut self, process: &Process, kind: &str, ok: bool, command: Option<&str>) {
        match kind {
            "ADD_USER" => self.find(process.node, &NEW_ACCOUNT, command.unwrap_or_default()),
            "USER_AUTH" | "USER_LOGIN" if !ok => {
                // Each attempt has a process of its own: the series is the daemon's, by its program.
                let tally = &mut self.tally;
                let node = tally.failures.first().map_or(process.node, |(node, _)| *node);
                Tally::count(&mut tally.failures, &mut tally.at, 2, node);
            }
            _ => {}
        }
    }

    /// Findings that take more than one fact.
    pub(super) fn tally_findings(&mut self) {
        let tally = std::mem::take(&mut self.tally);
        for (node, count) in tally.failures {
            if count >= MANY_FAILURES {
                self.find(node, &BRUTE_FORCE, &format!("{count} in half a minute"));
            }
        }
        for (node, count) in tally.encrypted {
            if count >= MANY_ENCRYPTED {
                self.find(node, &ENCRYPTED, &format!("{count} files in half a minute"));
            }
        }
        for (node, programs) in tally.questions {
            if programs.len() >= MANY_QUESTIONS {
                let names: Vec<_> =
                    programs.iter().filter_map(|&program| self.programs[usize::from(program)].0.name).collect();
                let names = names.join(", ");
                self.find(node, &DISCOVERY, &names);
            }
        }
    }
}
