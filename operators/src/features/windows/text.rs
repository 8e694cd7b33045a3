//! What the text of a command line, a script or a registry path gives away.
//!
//! One pass of an Aho-Corasick automaton finds all needles; a needle's `|` at an end asks for a word boundary
//! there. What needles cannot say (an argument's value, two things together) is code below them.

use std::sync::LazyLock;

use aho_corasick::{AhoCorasick, MatchKind};

use super::names::base;

/// Needles of one sign: any of them shows it.
pub type Row = (&'static str, &'static [&'static str]);

/// Finds the rows of a table that a text shows.
pub struct Matcher {
    rows: &'static [Row],
    automaton: AhoCorasick,
    /// By pattern: row, boundary wanted before, behind.
    patterns: Vec<(u8, bool, bool)>,
}

impl Matcher {
    fn new(rows: &'static [Row]) -> Self {
        assert!(rows.len() <= 64, "a u64 has a bit for every row");
        let (mut texts, mut patterns) = (Vec::new(), Vec::new());
        for (row, (_, needles)) in rows.iter().enumerate() {
            for needle in *needles {
                let text = needle.trim_matches('|');
                patterns.push((row as u8, needle.starts_with('|'), needle.ends_with('|')));
                texts.push(text);
            }
        }
        let automaton =
            AhoCorasick::builder().match_kind(MatchKind::Standard).build(texts).expect("the tables are small");
        Self { rows, automaton, patterns }
    }

    /// Bits of the rows found in `text`, which is lower-case.
    pub fn find(&self, text: &str) -> Found {
        let bytes = text.as_bytes();
        let word = |at: Option<usize>| {
            at.and_then(|at| bytes.get(at)).is_some_and(|b| b.is_ascii_alphanumeric() || *b == b'_')
        };
        let mut bits = 0u64;
        for found in self.automaton.find_overlapping_iter(text) {
            let (row, before, behind) = self.patterns[found.pattern().as_usize()];
            if before && word(found.start().checked_sub(1)) || behind && word(Some(found.end())) {
                continue;
            }
            bits |= 1 << row;
        }
        Found { rows: self.rows, bits }
    }
}

/// The rows that a text showed.
#[derive(Clone, Copy)]
pub struct Found {
    rows: &'static [Row],
    bits: u64,
}

impl Found {
    /// The signs' names.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        self.rows.iter().enumerate().filter(move |(at, _)| self.bits >> at & 1 != 0).map(|(_, row)| row.0)
    }

    /// Whether the sign was found.
    pub fn has(self, name: &str) -> bool {
        self.names().any(|n| n == name)
    }
}

/// Command lines.
#[rustfmt::skip]
pub static COMMAND: LazyLock<Matcher> = LazyLock::new(|| {
    Matcher::new(&[
        ("iex", &["|iex|", "invoke-expression", "downloadstring", "downloadfile", "webclient", "invoke-webrequest",
            "|iwr|", "start-bitstransfer", "frombase64", "reflection.assembly", "[char]", "-bxor", "getstring",
            "gzipstream"]),
        ("url", &["http:", "https:", "ftp:"]),
        ("adminshare", &[r"\admin$", r"\c$", r"\ipc$", r"\\127.0.0.1", "__output", "%comspec%"]),
        ("hives", &[r"save hklm\sam", r"save hklm\system", r"save hklm\security", r"export hklm\sam",
            r"save hkey_local_machine\s", r"\config\sam", r"\config\system|", r"\config\security", "ntds.dit",
            "shadowcopy", "vssadmin", "|ifm|"]),
        ("regedit", &["reg add", "reg.exe add", "reg.exe\" add", "reg delete", "reg.exe delete", "new-itemproperty",
            "set-itemproperty", "remove-itemproperty", "regedit /s", "regedit.exe /s"]),
        ("autostart", &[r"currentversion\run", "userinitmprlogonscript", "winlogon", "image file execution",
            "inprocserver32", r"shell\open\command", "startup"]),
        ("eventlog", &["eventlog", "wevtutil", "minint", "auditpol", "processcreationincludecmdline", "channelaccess",
            "stop-service", "scriptblocklogging"]),
        ("service", &["new-service", "set-service", "net stop", "net start", "net1 stop", "net1 start",
            "net.exe stop", "net.exe\" stop"]),
        ("account", &["net user", "net1 user", "net.exe user", "net.exe\" user", "net localgroup", "net1 localgroup",
            "net.exe\" localgroup", "net group", "net1 group", "net.exe\" group", "net accounts", "net1 accounts",
            "net use|", "net view", "net session", "net share", "/add|", "domain admins", "administrators",
            "enumdomain"]),
        ("recon", &["whoami", "systeminfo", "ipconfig", "nltest", "tasklist", "quser", "netstat", "dsquery", "setspn",
            "gpresult", "arp -a", "get-process", "get-ad", "get-domain", "get-net"]),
        ("dump", &["minidump", "comsvcs", "lsass", "procdump", "sekurlsa", ".dmp|", "|vault", "dpapi", "credman",
            "promptforcred"]),
        ("firewall", &["|netsh|", "advfirewall", "new-netfirewall", "portopening"]),
        ("download", &["bitsadmin", "urlcache", "/transfer", "|curl|", "|wget|", "certutil -decode",
            "certutil.exe -decode", "certutil -f", "certutil.exe -f"]),
        ("script", &["javascript:", "vbscript:", "scrobj", "getobject", "createobject", ".sct|", ".hta|", ".xsl",
            "/format:", "activexobject"]),
        ("wmiexec", &["process call create", "/node:", "invoke-wmimethod", "invoke-cimmethod", "win32_process"]),
        ("task", &["/create", "/change", "register-scheduledtask"]),
        ("server", &["http.server", "simplehttpserver", "httplistener", "|ncat|", "|nc|", "-listen"]),
        ("lolargs", &["/s /n", "/u /i:", "/i:", "/logfile=", "-register", "/ns|", "/au|", "updatedeploymentprovider",
            "/injectrunning"]),
        ("kill", &["taskkill", "stop-process", "ping -n"]),
        ("copy", &["|copy|", "xcopy", "robocopy", "esentutl", "|expand|", "makecab", "|compress"]),
        ("hosted", &["-embedding", "/processid", "|-k ", "/automation"]),
        ("userdir", &[r"temp\", r"appdata\", r"public\", r"downloads\", r"programdata\", r"perflogs\", r"desktop\"]),
    ])
});

/// Signs of [`COMMAND`] that alone say nothing.
pub fn command_is_neutral(sign: &str) -> bool {
    matches!(sign, "kill" | "copy" | "hosted" | "userdir")
}

/// PowerShell text: script blocks, what was hidden in base64, command lines of shells.
#[rustfmt::skip]
pub static POWERSHELL: LazyLock<Matcher> = LazyLock::new(|| {
    Matcher::new(&[
        ("iex", &["|iex|", "invoke-expression"]),
        ("download", &["downloadstring", "downloaddata", "downloadfile", "net.webclient", "invoke-webrequest",
            "invoke-restmethod", "start-bitstransfer", "webrequest"]),
        ("base64", &["frombase64string", "tobase64"]),
        ("reflection", &["reflection", ".getfield(", ".getmethod(", "definedynamic", "assembly]::load", "setvalue("]),
        ("api", &["virtualalloc", "getprocaddress", "createremotethread", "writeprocessmemory", "openprocess",
            "loadlibrary", "virtualprotect", "kernel32", "ntdll", "advapi32", "dllimport", "pinvoke", "marshal"]),
        ("amsi", &["amsi", "scriptblocklogging", "cachedgrouppolicy", "signatures"]),
        ("socket", &["net.sockets", "tcpclient", "httplistener", "udpclient"]),
        ("addtype", &["add-type", "-memberdefinition", "compileassembly", "csharpcodeprovider"]),
        ("wmi", &["invoke-wmimethod", "get-wmiobject", "gwmi", "invoke-cimmethod", "win32_process", "wmiclass",
            "__eventfilter", "commandlineeventconsumer", "activescript"]),
        ("recon", &["get-net", "get-domain", "directorysearcher", "directoryservices", "ldap", "adsisearcher",
            "netsession", "netwksta", "samr", "get-localgroup", "get-aduser", "find-local", "openscmanager"]),
        ("credential", &["lsass", "minidump", "logonpasswords", "sekurlsa", "lsadump", r"sam\", "dcsync",
            "credential", "vault", "ntlm", "kerberos", "hashdump", "dpapi", "bootkey", "syskey"]),
        ("registry", &["set-itemproperty", "new-itemproperty", "hklm:", "hkcu:", "reg add", r"currentversion\run"]),
        ("service", &["stop-service", "set-service", "new-service", "sc.exe", "get-service"]),
        ("eventlog", &["eventlog", "wevtutil", "clear-event", "limit-event", "minint", "auditpol"]),
        ("cipher", &["-bxor", "|xor|", "rc4", "|aes", "cryptostream", "gzipstream", "deflatestream"]),
        ("chars", &["[char]", "[char[]]", "-join", "-split", "-replace", "tochararray"]),
        ("encoded", &["-enc", "encodedcommand"]),
        ("hidden", &["hidden", "noprofile", "bypass", "-nop"]),
        ("inject", &["inject", "shellcode", "pebytes", "pe bytes", "byte[]"]),
        ("newobject", &["new-object"]),
        ("spy", &["getasynckeystate", "keylog", "screenshot", "microphone", "|mci", "promptforcred",
            "getnetworkcredential"]),
        ("persist", &["schtasks", "register-scheduledtask", "startup", "userinit", "wmi.subscription"]),
        ("remote", &["invoke-command", "new-pssession", "enter-pssession", "gettypefromclsid", "gettypefromprogid",
            "shellwindows", "mmc20", "wsman"]),
        ("runs", &["start-process", "cmd.exe", "cmd /c", "rundll32", "regsvr32", "mshta", "wscript", "invoke-item",
            "hh.exe", "control.exe", "python"]),
        ("removes", &["stop-process", "taskkill", "remove-item"]),
        ("standard", &["set-strictmode", "cmdletization", "microsoft.powershell", "psworkflow", "export-modulemember",
            "#requires", "copyright", "import-localizeddata"]),
    ])
});

/// Signs of [`POWERSHELL`] that ordinary administration shows as well.
pub fn powershell_is_neutral(sign: &str) -> bool {
    matches!(sign, "chars" | "hidden" | "newobject" | "runs" | "removes" | "standard" | "encoded")
}

/// Signs that make what was hidden in base64 an attack's rather than an administrator's.
pub fn is_payload(sign: &str) -> bool {
    matches!(
        sign,
        "iex"
            | "download"
            | "reflection"
            | "api"
            | "amsi"
            | "socket"
            | "credential"
            | "cipher"
            | "inject"
            | "base64"
            | "spy"
            | "persist"
            | "recon"
    )
}

/// Registry paths. Those marked in [`registry_is_neutral`] are written all day.
#[rustfmt::skip]
pub static REGISTRY: LazyLock<Matcher> = LazyLock::new(|| {
    Matcher::new(&[
        ("run", &[r"currentversion\run|", r"currentversion\runonce", r"policies\explorer\run|",
            "userinitmprlogonscript", r"\winlogon\shell", r"\winlogon\userinit", r"\winlogon\notify",
            r"windows\load|", "active setup", "startupapproved"]),
        ("ifeo", &["image file execution options", "silentprocessexit", "appcertdlls", "appinit_dlls", r"\shim"]),
        ("eventlog", &[r"services\eventlog", r"\minint", r"\audit\", r"winevt\channels\", r"wineventlog\publishers",
            "autologger", "eventlog-"]),
        ("shellcommand", &[r"\command|", "delegateexecute", "ms-settings", "mscfile", "exefile"]),
        ("com", &["inprocserver32", "localserver32", r"\treatas", "scriptleturl"]),
        ("lsa", &[r"control\lsa|", "wdigest", "securityproviders", "security packages", "credssp"]),
        ("policy", &[r"policies\microsoft\windows\powershell", r"policies\system|", "scriptblock", "enablelua",
            "consentprompt", "localaccounttokenfilter", "amsi", "executionpolicy"]),
        ("firewall", &["firewallpolicy", "firewallrules", "globallyopenports", "portproxy"]),
        ("defender", &["windows defender", r"\exclusions", "disableantispyware", "disablerealtime"]),
        ("task", &[r"schedule\taskcache"]),
        ("sam", &[r"hklm\sam|", r"\sam\domains", r"\security\policy", r"\security\cache"]),
        ("print", &[r"print\monitors", r"print\printers", r"print\environments"]),
        ("classes", &["_classes", r"software\classes"]),
        ("provider", &["networkprovider", "timeproviders", "portmon"]),
        ("environment", &[r"\environment|"]),
        ("terminal", &["terminal server", "|rdp", "fdenyts"]),
        ("certificates", &["systemcertificates", r"root\certificates", r"\certificates"]),
        ("internet", &["internet settings", "zonemap", r"\connections", "|wpad", "|proxy"]),
        ("activity", &[r"services\bam\", "userassist", "appcompatflags", "muicache"]),
        ("tracing", &[r"\tracing\"]),
        ("wbem", &[r"\wbem\", r"\esb\"]),
        ("services", &[r"\services\"]),
        ("consent", &["capabilityaccessmanager", "consentstore"]),
    ])
});

/// Areas of [`REGISTRY`] that tell nothing by themselves.
pub fn registry_is_neutral(area: &str) -> bool {
    matches!(
        area,
        "com"
            | "firewall"
            | "task"
            | "print"
            | "classes"
            | "terminal"
            | "certificates"
            | "internet"
            | "activity"
            | "tracing"
            | "wbem"
            | "services"
    )
}

/// What only a look at the words of a command line shows.
pub fn command_words(line: &str) -> Vec<&'static str> {
    let mut signs = Vec::new();
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    let switch = |word: &'_ str, full: &str, least: usize| {
        let word = word.trim_start_matches(['-', '/']);
        word.len() >= least && full.starts_with(word)
    };
    let is_switch = |word: &str| word.starts_with(['-', '/']);
    for (at, &word) in words.iter().enumerate() {
        let next = words.get(at + 1).copied().unwrap_or_default().trim_matches(['"', '\'']);
        if is_switch(word) {
            if (switch(word, "encodedcommand", 1) || word[1..] == *"ec") && next.len() >= 20 && is_base64(next) {
                signs.push("encoded");
            }
            if switch(word, "windowstyle", 1) && (next == "hidden" || next == "1") {
                signs.push("hidden");
            }
            if switch(word, "noprofile", 3) {
                signs.push("noprofile");
            }
            if switch(word, "noninteractive", 4)
                || word[1..] == *"sta"
                || (switch(word, "executionpolicy", 2) || word[1..] == *"ep")
                    && (next == "bypass" || next == "unrestricted")
            {
                signs.push("bypass");
            }
        }
        let plain = word.trim_matches(['"', '\'']);
        if let Some(server) = plain.strip_prefix(r"\\")
            && server.find('\\').is_some_and(|end| end > 0 && !server.starts_with(['?', '.']))
        {
            signs.push("unc");
        }
        if matches!(base(plain), "sc" | "sc.exe") {
            let verb = if next.starts_with(r"\\") { words.get(at + 2).copied().unwrap_or_default() } else { next };
            if matches!(verb, "create" | "config" | "stop" | "start" | "sdset" | "failure" | "delete" | "query") {
                signs.push("service");
            }
        }
        let reads = matches!(base(plain), "powershell" | "powershell.exe") || matches!(word, "-c" | "-command" | "-s");
        if reads && next == "-" {
            signs.push("stdin");
        }
        if word == "echo" && (next == ">" || words.get(at + 2).is_some_and(|w| w.starts_with(['>', '^']))) {
            signs.push("echo");
        }
        if matches!(base(plain), "cmd" | "cmd.exe") && matches!(next, "/c" | "/k" | "/q") {
            signs.push("cmdc");
        }
    }
    if user_program(line) {
        signs.push("tmpexe");
    }
    signs.sort_unstable();
    signs.dedup();
    signs
}

/// A file that can be run, in a directory where users can write.
fn user_program(line: &str) -> bool {
    const RUNS: [&str; 15] =
        ["exe", "dll", "ps1", "vbs", "js", "bat", "cmd", "hta", "sct", "xsl", "dat", "tmp", "inf", "cpl", "chm"];
    line.split('"').any(|part| {
        let lower = ["temp", "appdata", "public", "downloads", "programdata", "perflogs", "desktop"];
        let start = lower.iter().filter_map(|dir| part.find(&format!("{dir}\\"))).min();
        start.is_some_and(|start| {
            part[start..].split('.').skip(1).any(|rest| {
                RUNS.iter().any(|x| {
                    rest.strip_prefix(x).is_some_and(|tail| !tail.starts_with(|c: char| c.is_ascii_alphanumeric()))
                })
            })
        })
    })
}

fn is_base64_byte(b: u8) -> bool {
    b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/' | b'=')
}

fn is_base64(text: &str) -> bool {
    text.bytes().all(is_base64_byte)
}

/// Text hidden in base64, and in that, and so on three deep; UTF-16LE or ASCII. Empty if there is none.
pub fn hidden_text(line: &str) -> String {
    let mut out = String::new();
    decode_into(line, 0, &mut out);
    out
}

/// Decoded text kept of one line, in bytes.
const MAX_DECODED: usize = 64 * 1024;

fn decode_into(line: &str, depth: usize, out: &mut String) {
    if depth == 3 || out.len() > MAX_DECODED {
        return;
    }
    let bytes = line.as_bytes();
    let mut at = 0;
    let mut blobs = 0;
    while at < bytes.len() && blobs < 4 {
        let end = at + bytes[at..].iter().take_while(|b| is_base64_byte(**b)).count();
        // Long runs always; shorter ones only as the value of an -EncodedCommand.
        let long = end - at >= 60;
        if (long || (end - at >= 8 && after_encoded_switch(&line[..at])))
            && let Some(text) = readable(&decode_base64(&bytes[at..end]))
        {
            blobs += 1;
            out.push('\n');
            out.push_str(&text);
            decode_into(&text, depth + 1, out);
        }
        at = end.max(at) + 1;
    }
}

fn after_encoded_switch(before: &str) -> bool {
    let before = before.trim_end_matches(['"', '\'']);
    if !before.ends_with(|c: char| c.is_ascii_whitespace()) {
        return false;
    }
    let word = before.split_ascii_whitespace().next_back().unwrap_or_default();
    word.strip_prefix(['-', '/']).is_some_and(|w| {
        let w = w.to_ascii_lowercase();
        !w.is_empty() && ("encodedcommand".starts_with(&w) || w == "ec")
    })
}

fn decode_base64(text: &[u8]) -> Vec<u8> {
    let (mut out, mut bits, mut have) = (Vec::with_capacity(text.len() * 3 / 4), 0u32, 0);
    for &b in text {
        let digit = match b {
            b'A'..=b'Z' => b - b'A',
            b'a'..=b'z' => b - b'a' + 26,
            b'0'..=b'9' => b - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => break,
        };
        bits = bits << 6 | u32::from(digit);
        have += 6;
        if have >= 8 {
            have -= 8;
            out.push((bits >> have) as u8);
        }
    }
    out
}

fn readable(raw: &[u8]) -> Option<String> {
    if raw.len() < 6 {
        return None;
    }
    let zeros = raw.iter().skip(1).step_by(2).filter(|b| **b == 0).count();
    if zeros * 20 > raw.len() * 7 {
        let units: Vec<u16> = raw.chunks_exact(2).map(|p| u16::from_le_bytes([p[0], p[1]])).collect();
        return Some(String::from_utf16_lossy(&units));
    }
    let printable = raw.iter().filter(|b| matches!(b, 32..127 | 9 | 10 | 13)).count();
    (printable * 20 > raw.len() * 19).then(|| raw.iter().map(|&b| char::from(b)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn needles_mind_boundaries() {
        let signs = |text: &str| COMMAND.find(text).names().collect::<Vec<_>>();
        assert_eq!(signs("a iex b"), ["iex"]);
        assert!(signs("biexy").is_empty());
        assert_eq!(signs(r"reg.exe add hkcu\software\microsoft\windows\currentversion\run"), ["regedit", "autostart"]);
    }

    #[test]
    fn words_of_a_command_line() {
        let line = r#"powershell.exe -nop -w hidden -ep bypass -enc jabzahkacwb0aguabqa= "c:\users\a\appdata\x.ps1""#;
        assert_eq!(command_words(line), ["bypass", "encoded", "hidden", "noprofile", "tmpexe"]);
        assert_eq!(command_words(r"sc.exe \\host create x"), ["service"]);
        assert_eq!(command_words(r"copy \\host\c$\a b"), ["unc"]);
        assert!(command_words("- / -é /é \"\" \\\\").is_empty());
        assert!(command_words(r"c:\windows\system32\svchost.exe -k netsvcs").is_empty());
    }

    #[test]
    fn nested_base64() {
        // "IEX (New-Object Net.WebClient)" in UTF-16LE, and that command line encoded once more.
        let inner = "SQBFAFgAIAAoAE4AZQB3AC0ATwBiAGoAZQBjAHQAIABOAGUAdAAuAFcAZQBiAEMAbABpAGUAbgB0ACkA";
        assert!(hidden_text(&format!("powershell -e {inner}")).contains("IEX (New-Object Net.WebClient)"));
        assert!(hidden_text("powershell -e AAAA").is_empty());
        let outer = "cG93ZXJzaGVsbCAtZW5jIFNRQkZBRmdBSUFBb0FFNEFaUUIzQUMwQVR3QmlBR29BWlFCakFIUUFJQUJPQUdVQWRBQXVBRmNBWlFCaUFFTUFiQUJwQUdVQWJnQjBBQ2tB";
        assert!(hidden_text(outer).contains("Net.WebClient"));
    }
}
